"""A table as people read it, on a terminal and in a file, and as JSON."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field, frozen
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from client.terminal import counted
from loadtest.compare.harness import PROOF, Cores, Peer, Reference
from loadtest.compare.table import LIMIT, Case, Row, Spread, Table, Verdict

WIDTH = 120  # columns, at least: a narrower terminal wraps lines, but nothing is cut


@frozen
class Skipped:
    """A case or a peer that was left out, and why."""

    name: str
    why: str


@define
class Report:
    """One comparison that has run.

    seconds: of each sample. proof: what was compared, {ops} and {bytes} of it. where: on which disk
    the servers wrote, where that matters.
    """

    name: str
    table: Table
    peers: Sequence[Peer | Reference]
    rounds: int
    seconds: float
    cores: Cores
    skipped: Sequence[Skipped] = field(factory=list)
    proof: str = PROOF
    where: str = ""

    @property
    def verdicts(self) -> list[Verdict]:
        return [verdict for case in self.table.cases for verdict in self.table.verdicts(case)]

    @property
    def missed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.met]

    def text(self) -> str:
        """Plain, as it looks without a terminal."""
        out = io.StringIO()
        self.show(Console(file=out, width=2 * WIDTH, color_system=None, force_terminal=False))
        return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())

    def show(self, console: Console) -> None:
        console.width = max(console.width, WIDTH)
        console.print(self._head(), soft_wrap=True, highlight=False)
        console.print(self._peers())
        console.print()
        console.print(self._figures())
        console.print()
        console.print(self._foot(), soft_wrap=True, highlight=False)

    def as_json(self) -> dict[str, Any]:
        return {
            "comparison": self.name,
            "machine": machine(),
            "cores": attrs.asdict(self.cores),
            "rounds": self.rounds,
            "seconds": self.seconds,
            "peers": [
                {"name": peer.name, "about": peer.about, "version": peer.version}
                for peer in self.peers
            ],
            "skipped": [attrs.asdict(skipped) for skipped in self.skipped],
            "cases": [self._case_as_json(case) for case in self.table.cases],
            "answers": self.table.ops,
            "bytes": self.table.bytes,
            "disk": self.where,
            "missed": len(self.missed),
        }

    def _case_as_json(self, case: Case) -> dict[str, Any]:
        return {
            "name": case.name,
            "title": case.title,
            "figure": case.figure.name,
            "unit": case.unit(case.figure),
            "rows": [
                {
                    "peer": row.peer,
                    "value": attrs.asdict(row.value),
                    "ratio": row.ratio and attrs.asdict(row.ratio),
                    **{
                        figure.name: attrs.asdict(spread)
                        for figure, spread in zip(case.columns, row.columns, strict=True)
                    },
                    "samples": [attrs.asdict(s) for s in self.table.samples(case, row.peer)],
                }
                for row in self.table.rows(case)
            ],
            "bounds": [
                {
                    "peer": verdict.bound.peer,
                    "against": verdict.bound.against,
                    "figure": verdict.figure.name,
                    "at_least" if verdict.more else "at_most": verdict.bound.value,
                    "shown": attrs.asdict(verdict.shown),
                    "met": verdict.met,
                }
                for verdict in self.table.verdicts(case)
            ],
        }

    def _head(self) -> Text:
        where = "server and load anywhere"
        if self.cores.server is not None:
            where = f"server on core {self.cores.server}, load on core {self.cores.load}"
        if self.where:
            where += f", files on {self.where}"
        rounds = counted(self.rounds, "round")
        return Text(f"{self.name}: {rounds} of {self.seconds:g} s, {where}; {machine()}")

    def _peers(self) -> Grid:
        grid = Grid.grid(padding=(0, 2, 0, 0))
        for peer in self.peers:
            grid.add_row(Text(f"  {peer.name}"), Text(peer.about), Text(peer.version))
        for skipped in self.skipped:
            grid.add_row(Text(f"  {skipped.name}"), Text(f"skipped: {skipped.why}", "yellow"))
        return grid

    def _figures(self) -> Grid:
        grid = Grid.grid(padding=(0, 2, 0, 0))
        grid.add_column(no_wrap=True)
        for _ in range(4 + max((len(case.columns) for case in self.table.cases), default=0)):
            grid.add_column(no_wrap=True, justify="right")
        for number, case in enumerate(self.table.cases):
            if number:
                grid.add_row()
            related = f"to {LIMIT}" if case.figure.related else ""
            units = map(case.unit, (case.figure, *case.columns))
            heads = (related, "min..max", "bound", *units)
            grid.add_row(Text(case.title, "bold"), *(Text(head, "dim") for head in heads))
            verdicts = [*self.table.verdicts(case)]
            for row in self.table.rows(case):
                grid.add_row(*_cells(row, [v for v in verdicts if v.bound.peer == row.peer]))
                for verdict in verdicts:
                    if verdict.bound.peer == row.peer and _aside(verdict):
                        grid.add_row(
                            Text(f"    {_of(case, verdict)}"),
                            Text(_exactly(verdict.shown.median)),
                            Text(_between(verdict.shown)),
                            _bound(verdict),
                        )
        return grid

    def _foot(self) -> Text:
        text = Text(self.proof.format(ops=self.table.ops, bytes=self.table.bytes))
        if verdicts := self.verdicts:
            met = len(verdicts) - len(self.missed)
            text.append(f" Bounds met: {met} of {len(verdicts)}.")
        return text


def machine() -> str:
    """Which machine the figures are of."""
    parts = [f"{platform.system()} {platform.release()}", counted(os.cpu_count() or 1, "core")]
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    parts += [line.partition(":")[2].strip() for line in lines if line.startswith("model name")][:1]
    return ", ".join(parts)


def _cells(row: Row, verdicts: Iterable[Verdict]) -> list[Text]:
    related = row.ratio
    return [
        Text(f"  {row.peer}"),
        Text(_exactly(related.median) if related else ""),
        Text("" if row.peer == LIMIT and related else _between(related or row.value)),
        next((_bound(verdict) for verdict in verdicts if not _aside(verdict)), Text()),
        *(Text(number(spread.median)) for spread in (row.value, *row.columns)),
    ]


def _aside(verdict: Verdict) -> bool:
    """Whether it needs a line of its own, being no figure of the peer's line."""
    return verdict.bound.against not in (LIMIT, None) or verdict.bound.figure is not None


def _of(case: Case, verdict: Verdict) -> str:
    """What a verdict with a line of its own is about."""
    against = verdict.bound.against
    unit = case.unit(verdict.figure) if verdict.bound.figure else ""
    return " ".join(filter(None, (unit, against and f"to {against}")))


def _bound(verdict: Verdict) -> Text:
    word, colour = ("met", "green") if verdict.met else ("missed", "bold red")
    sign = ">=" if verdict.more else "<="
    return Text(f"{sign} {_exactly(verdict.bound.value)} {word:<6}", colour)


def _between(spread: Spread) -> str:
    return f"{_exactly(spread.least)}..{_exactly(spread.most)}"


def _exactly(value: float) -> str:
    """A ratio, or what stands in its place."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def number(value: float) -> str:
    """Three digits, or more of a large one."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
