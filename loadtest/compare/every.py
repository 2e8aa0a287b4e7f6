"""`python -m loadtest compare all`: every comparison in turn, and a page with pictures of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click

from loadtest import charts
from loadtest.charts import Bar, Bars
from loadtest.compare.command import (
    QUICK_ROUNDS,
    QUICK_SECONDS,
    SECONDS,
    Failed,
    Unavailable,
    run_comparison,
)
from loadtest.compare.harness import Comparison
from loadtest.compare.report import Report, machine, number
from loadtest.compare.table import LIMIT, Case, Row, Spread, Verdict

REPORTS = Path(__file__).parents[1] / "reports" / "compare"
ROUNDS = 3
OURS = "roundhouse"  # how the names of our own peers begin

Outcome = Report | Failed  # a comparison that has run, or why it did not


def command(comparisons: Mapping[str, Callable[[], Comparison]]) -> click.Command:
    """The command, for comparisons by name; each is imported when its turn comes."""

    @click.command("all", help=_HELP, short_help="All of them, and a page with pictures.")
    @click.option("--quick", is_flag=True, help="A rough picture, in a few minutes.")
    @click.option("--rounds", type=click.IntRange(1, 99), help=f"[default: {ROUNDS}]")
    @click.option("--seconds", type=click.FloatRange(0.05, 600), help=f"[default: {SECONDS:g}]")
    @click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        default=REPORTS,
        help="Where the page goes.  [default: loadtest/reports/compare]",
    )
    @click.option("--check", is_flag=True, help="Exit status 1 when a bound is missed.")
    def run(quick: bool, rounds: int | None, seconds: float | None, out: Path, check: bool) -> None:
        out.mkdir(parents=True, exist_ok=True)
        rounds = rounds or (QUICK_ROUNDS if quick else ROUNDS)
        seconds = seconds or (QUICK_SECONDS if quick else SECONDS)
        outcomes: dict[str, Outcome] = {}
        for name, find in comparisons.items():
            click.echo(f"{name}:", err=True)
            comparison = find()
            try:
                found: Outcome = run_comparison(
                    comparison, comparison.cases, [*comparison.peers], rounds, seconds
                )
            except Failed as error:
                found = error
            outcomes[name] = found
            if isinstance(found, Report):
                click.echo(found.text())
                (out / f"{name}.json").write_text(json.dumps(found.as_json(), indent=1) + "\n")
                draw(found, out / f"{name}.svg")
            else:
                click.echo(f"{name}: {found.message}\n", err=True)
            (out / "README.md").write_text(page(outcomes), encoding="utf-8")
        if failed := [name for name, one in outcomes.items() if _is_wrong(one)]:
            raise Failed(f"did not run to the end: {', '.join(failed)}")
        missed = sum(len(one.missed) for one in outcomes.values() if isinstance(one, Report))
        if check and missed:
            raise Failed(f"Bounds missed: {missed}")

    return run


_HELP = """Every comparison in turn, and a page with pictures of them.

What cannot be had on this machine is skipped, and the page says so.

\b
Examples:
  python -m loadtest compare all
  python -m loadtest compare all --quick --out /tmp/compare

Exit status: 0 done, 1 a wrong answer, a peer that does not run or, with --check, a missed bound.
"""


def _is_wrong(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and not isinstance(outcome, Unavailable)


# --- the page ---------------------------------------------------------------------------------


def page(outcomes: Mapping[str, Outcome]) -> str:
    """Markdown: all that was compared so far. Pure."""
    parts = [
        "# Roundhouse beside others, and beside the possible\n",
        f"{machine()}. Every round measures each peer once, one after the other; ratios are those"
        " of one round, and the tables have their medians and spread. Again:"
        " `python -m loadtest compare all`, or one of them: `python -m loadtest compare echo`.\n",
    ]
    for name, outcome in outcomes.items():
        parts.append(f"## {name}\n")
        parts += _section(outcome) if isinstance(outcome, Report) else [f"{outcome.message}\n"]
    return "\n".join(parts)


def _section(report: Report) -> Iterator[str]:
    yield f"![{report.name}]({report.name}.svg)\n"
    peers = [f"- **{peer.name}**: {peer.about} ({peer.version})" for peer in report.peers]
    peers += [f"- {skipped.name}: skipped, {skipped.why}" for skipped in report.skipped]
    yield "\n".join(peers) + "\n"
    for case in report.table.cases:
        yield _table(report, case)
    where = f" Files on {report.where}." if report.where else ""
    proof = report.proof.format(ops=report.table.ops, bytes=report.table.bytes)
    met = len(report.verdicts) - len(report.missed)
    yield (
        f"{report.rounds} rounds of {report.seconds:g} s.{where} {proof}"
        f" Bounds met: {met} of {len(report.verdicts)}.\n"
    )


def _table(report: Report, case: Case) -> str:
    units = [case.unit(figure) for figure in (case.figure, *case.columns)]
    heads = [case.title, f"to {LIMIT}" if case.figure.related else "", "min..max", "bound", *units]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(heads) - 1))]
    verdicts = [*report.table.verdicts(case)]
    for row in report.table.rows(case):
        own = [each for each in verdicts if each.bound.peer == row.peer]
        lines.append(_line(_cells(row, own)))
    return "\n".join(lines) + "\n"


def _cells(row: Row, verdicts: Sequence[Verdict]) -> list[str]:
    name = f"**{row.peer}**" if row.peer.startswith(OURS) else row.peer
    shown = row.ratio or row.value
    between = "" if row.ratio and row.peer == LIMIT else f"{shown.least:.2f}..{shown.most:.2f}"
    figures = [number(spread.median) for spread in (row.value, *row.columns)]
    ratio = f"{row.ratio.median:.2f}" if row.ratio else ""
    return [name, ratio, between, "; ".join(map(_bound, verdicts)), *figures]


def _bound(verdict: Verdict) -> str:
    sign = "≥" if verdict.more else "≤"
    against = verdict.bound.against
    other = f" {verdict.figure.name}" if verdict.bound.figure else ""
    other += f" to {against}: {verdict.shown.median:.2f}" if against not in (LIMIT, None) else ""
    return f"{sign} {verdict.bound.value:g}{other} {'met' if verdict.met else '**missed**'}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def draw(report: Report, path: Path) -> None:
    """Bars of every case: ratios to the limit where there are, else the figures."""
    groups = [_bars(report, case) for case in report.table.cases]
    note = f"{report.rounds} rounds of {report.seconds:g} s, median and spread; {machine()}"
    charts.bars(path, f"{report.name}: the limit, {LIMIT}, is the line", note, groups)


def _bars(report: Report, case: Case) -> Bars:
    related = case.figure.related
    rows = [row for row in report.table.rows(case) if not (related and row.peer == LIMIT)]
    shown: list[tuple[str, Spread]] = [(row.peer, row.ratio or row.value) for row in rows]
    unit = "of the limit's" if related else ""
    better = "more" if case.figure.more else "less"
    title = f"{case.title}: {case.unit(case.figure)} {unit} ({better} is better)"
    bars = [
        Bar(peer, spread.median, spread.least, spread.most, ours=peer.startswith(OURS))
        for peer, spread in shown
    ]
    return Bars(title, bars, 1.0 if related else None)
