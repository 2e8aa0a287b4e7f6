"""python -m loadtest guard: the few ratios that must not decay, in under three minutes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
from attrs import frozen

from loadtest.bounds import FILE
from loadtest.compare.command import Failed, Unavailable, run_comparison
from loadtest.compare.harness import Comparison
from loadtest.compare.report import Report
from loadtest.compare.table import Spread

ROUNDS, SECONDS = 3, 1.0


@frozen
class Ratio:
    """A line of bounds.toml: `peer` to `against` in one case. at_least or at_most holds it."""

    comparison: str
    case: str
    peer: str
    against: str
    at_least: float | None = None
    at_most: float | None = None

    def kept(self, shown: Spread) -> bool:
        return (self.at_least is None or shown.median >= self.at_least) and (
            self.at_most is None or shown.median <= self.at_most
        )

    def __str__(self) -> str:
        bound = f">= {self.at_least:g}" if self.at_most is None else f"<= {self.at_most:g}"
        return f"{self.comparison}, {self.case}: {self.peer} to {self.against} {bound}"


def read(path: Path = FILE) -> list[Ratio]:
    return [Ratio(**each) for each in tomllib.loads(path.read_text(encoding="utf-8"))["guard"]]


def command(comparisons: Mapping[str, Callable[[], Comparison]]) -> click.Command:
    """The command, for comparisons by name."""

    @click.command("guard", help=_HELP, short_help="The few ratios that must not decay.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    def run(as_json: bool) -> None:
        told = [*judge(read(), comparisons)]
        if as_json:
            click.echo(json.dumps([_as_json(*each) for each in told], indent=2))
        missed = [ratio for ratio, shown in told if shown is None or not ratio.kept(shown)]
        if missed:
            raise Failed(f"decayed: {len(missed)} of {len(told)}")

    def judge(
        ratios: Sequence[Ratio], known: Mapping[str, Callable[[], Comparison]]
    ) -> Iterator[tuple[Ratio, Spread | None]]:
        for name in dict.fromkeys(ratio.comparison for ratio in ratios):
            some = [ratio for ratio in ratios if ratio.comparison == name]
            report = _measure(known[name](), some)
            for ratio in some:
                shown = _shown(report, ratio)
                _tell(ratio, shown)
                yield ratio, shown

    return run


_HELP = """The few ratios that must not decay, measured against loadtest/bounds.toml.

For a quiet machine, and for every night: under three minutes.

\b
Examples:
  python -m loadtest guard
  python -m loadtest guard --json > guard.json

Exit status: 0 all are kept, 1 one is not, 69 it cannot be measured here (no Linux, no C compiler).
"""


def _measure(comparison: Comparison, ratios: Sequence[Ratio]) -> Report:
    names = {ratio.case for ratio in ratios}
    cases = [case for case in comparison.cases if case.name in names]
    limit = next(iter(comparison.peers))
    peers = {limit, *(ratio.peer for ratio in ratios), *(ratio.against for ratio in ratios)}
    ordered = [peer for peer in comparison.peers if peer in peers]
    report = run_comparison(comparison, cases, ordered, ROUNDS, SECONDS)
    if report.skipped:
        raise Unavailable("; ".join(f"{one.name}: {one.why}" for one in report.skipped))
    return report


def _shown(report: Report, ratio: Ratio) -> Spread | None:
    for case in report.table.cases:
        if case.name == ratio.case:
            return report.table.ratio(case, ratio.peer, ratio.against)
    return None


def _tell(ratio: Ratio, shown: Spread | None) -> None:
    if shown is None:
        click.echo(f"{ratio}: there is no such case or peer", err=True)
        return
    word = "kept" if ratio.kept(shown) else "DECAYED"
    spread = f"{shown.least:.2f}..{shown.most:.2f}"
    click.echo(f"{ratio}: {shown.median:.2f} ({spread}) {word}", err=True)


def _as_json(ratio: Ratio, shown: Spread | None) -> dict[str, object]:
    return {
        "comparison": ratio.comparison,
        "case": ratio.case,
        "peer": ratio.peer,
        "against": ratio.against,
        "at_least": ratio.at_least,
        "at_most": ratio.at_most,
        "median": shown and shown.median,
        "least": shown and shown.least,
        "most": shown and shown.most,
        "kept": shown is not None and ratio.kept(shown),
    }
