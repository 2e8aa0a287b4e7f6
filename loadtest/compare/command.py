"""The command line of a comparison: which cases, which peers, how long, and how it is told."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from loadtest.compare import harness
from loadtest.compare.build import Missing, Unbuilt, Workshop, cache
from loadtest.compare.disk import Disk, disk
from loadtest.compare.harness import Broken, Comparison, Cores, Peer, Reference, Wrong
from loadtest.compare.report import Report, Skipped
from loadtest.compare.table import Case

ROUNDS, SECONDS = 5, 1.5
QUICK_ROUNDS, QUICK_SECONDS = 3, 0.25


class Failed(click.ClickException):
    """Wrong answers, a peer that does not run, a missed bound."""


class Unavailable(Failed):
    """It cannot be compared on this machine."""

    exit_code = 69


def command(comparison: Comparison) -> click.Command:
    """`python -m loadtest compare <name>`."""
    limit = next(iter(comparison.peers))
    options: list[Callable[[Any], Any]] = [
        click.option("--only", multiple=True, metavar="CASE", help="These cases; * is a wildcard."),
        click.option(
            "--peers", multiple=True, metavar="PEER,...", help=f"These peers; {limit} always."
        ),
        click.option("--quick", is_flag=True, help=f"About {comparison.quick}: a rough picture."),
        click.option(
            "--rounds", type=click.IntRange(1, 99), help=f"Of all peers.  [default: {ROUNDS}]"
        ),
        click.option(
            "--seconds",
            type=click.FloatRange(0.05, 600),
            help=f"For each sample.  [default: {SECONDS:g}]",
        ),
        click.option("--check", is_flag=True, help="Exit status 1 when a bound is missed."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ]

    def run(
        only: tuple[str, ...],
        peers: tuple[str, ...],
        quick: bool,
        rounds: int | None,
        seconds: float | None,
        check: bool,
        as_json: bool,
    ) -> None:
        names = chosen_peers(comparison, peers)
        chosen = chosen_cases(comparison, only, names)
        report = run_comparison(
            comparison,
            chosen,
            names,
            rounds or (QUICK_ROUNDS if quick else ROUNDS),
            seconds or (QUICK_SECONDS if quick else SECONDS),
        )
        if as_json:
            click.echo(json.dumps(report.as_json(), indent=2))
        elif sys.stdout.isatty():
            report.show(Console())
        else:
            click.echo(report.text(), nl=False)
        if check and report.missed:
            raise Failed(f"Bounds missed: {len(report.missed)} of {len(report.verdicts)}")

    for option in reversed(options):
        run = option(run)
    return click.command(comparison.name, help=_help(comparison), short_help=comparison.help)(run)


def _help(comparison: Comparison) -> str:
    names = [*comparison.peers]
    peer = names[min(1, len(names) - 1)]
    first, name = comparison.cases[0].name, comparison.name
    width = max(len(case.name) for case in comparison.cases)
    cases = "\n".join(f"  {case.name:<{width}}  {case.title}" for case in comparison.cases)
    return f"""{comparison.help}

Every round measures each peer once, one after the other; ratios are those of one round, and the
table has their medians and spread. CPU is the server's own, user and system. Absolute figures of a
machine that does other things meanwhile are worth little, ratios a bit more.

\b
Peers:
  {", ".join(names)}

\b
Cases:
{cases}

\b
Examples:
  python -m loadtest compare {name}
  python -m loadtest compare {name} --quick
  python -m loadtest compare {name} --only '{first}' --peers {peer} --rounds 9
  python -m loadtest compare {name} --check --json > {name}.json

Exit status: 0 done, 1 a wrong answer, a peer that does not run or, with --check, a missed bound,
2 wrong usage, 69 it cannot be compared here (no Linux, no C compiler), 130 Ctrl-C.
"""


def chosen_cases(comparison: Comparison, only: Sequence[str], names: Sequence[str]) -> list[Case]:
    """Those in which any of the peers takes part. Raise UsageError where a pattern fits none."""
    for pattern in only:
        if not any(fnmatchcase(case.name, pattern.lower()) for case in comparison.cases):
            known = ", ".join(case.name for case in comparison.cases)
            raise click.UsageError(f"no case {pattern!r} in {comparison.name}; there are: {known}")
    fitting = [
        case
        for case in comparison.cases
        if not only or any(fnmatchcase(case.name, pattern.lower()) for pattern in only)
    ]
    if chosen := [case for case in fitting if any(map(case.wants, names))]:
        return chosen
    wanted = ", ".join(dict.fromkeys(peer for case in fitting for peer in case.peers))
    raise click.UsageError(f"none of these peers takes part in these cases; there are: {wanted}")


def chosen_peers(comparison: Comparison, peers: Sequence[str]) -> list[str]:
    """The limit, and those asked for. Raise UsageError for a stranger."""
    limit = next(iter(comparison.peers))
    asked = {name.strip() for some in peers for name in some.split(",") if name.strip()}
    for name in sorted(asked - {*comparison.peers}):
        known = ", ".join(comparison.peers)
        raise click.UsageError(f"no peer {name!r} in {comparison.name}; there are: {known}")
    return [name for name in comparison.peers if not asked or name in asked or name == limit]


def run_comparison(
    comparison: Comparison, cases: Sequence[Case], names: Sequence[str], rounds: int, seconds: float
) -> Report:
    """Build, start, measure. Raise Failed.

    What cannot run on this machine is left out, and the report says so.
    """
    if not sys.platform.startswith("linux"):
        raise Unavailable("skipped: servers and load use epoll, so Linux is needed")
    skipped: list[Skipped] = []
    peers: list[Peer | Reference] = []
    workshop = Workshop(cache(os.environ))
    place: Disk | None = None
    try:
        if comparison.room:
            place = disk(comparison.room, (Path(gettempdir()), workshop.folder, Path.cwd()))
        generator = workshop.c(comparison.generator)
        peers = [*_found(comparison, names, workshop, skipped)]
        possible = [*_possible(cases, harness.descriptors(), skipped)]
        cores = Cores.of_this_machine() if comparison.pinned else Cores()
        with progress(possible, rounds, [peer.name for peer in peers]) as before:
            table = harness.compare(
                comparison,
                possible,
                peers,
                generator,
                rounds=rounds,
                seconds=seconds,
                cores=cores,
                within=place.folder if place else None,
                before=before,
            )
    except Missing as error:
        raise Unavailable(f"skipped: {error}") from None
    except (Unbuilt, Wrong, Broken) as error:
        raise Failed(str(error)) from None
    return Report(
        comparison.name,
        table,
        peers,
        rounds,
        seconds,
        cores,
        skipped,
        comparison.proof,
        str(place or ""),
    )


def _found(
    comparison: Comparison, names: Sequence[str], workshop: Workshop, skipped: list[Skipped]
) -> Iterator[Peer | Reference]:
    limit = next(iter(comparison.peers))
    for name in names:
        try:
            yield comparison.peers[name](workshop)
        except Missing as error:
            if name == limit:
                raise
            skipped.append(Skipped(name, str(error)))


def _possible(cases: Sequence[Case], allowed: int, skipped: list[Skipped]) -> Iterator[Case]:
    """Those for which `allowed` descriptors are enough. Raise Missing where there are none."""
    before = len(skipped)
    for case in cases:
        if case.descriptors <= allowed:
            yield case
        else:
            why = f"needs ulimit -n {case.descriptors}, here it is {allowed}"
            skipped.append(Skipped(case.name, why))
    if len(skipped) - before == len(cases):
        raise Missing("; ".join(f"{one.name} {one.why}" for one in skipped[before:]))


@contextmanager
def progress(
    cases: Sequence[Case], rounds: int, peers: Sequence[str]
) -> Iterator[Callable[[Case, int, Peer | Reference], object]]:
    """On standard error: a bar on a terminal, else a line a case."""
    if not sys.stderr.isatty():
        waiting = [case.name for case in cases]

        def told(case: Case, number: int, peer: Peer | Reference) -> None:
            if case.name in waiting:
                waiting.remove(case.name)
                click.echo(f"{len(cases) - len(waiting)}/{len(cases)}  {case.title}", err=True)

        yield told
        return
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}", markup=False))
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, refresh_per_second=2) as bar:
        samples = rounds * sum(case.wants(peer) for case in cases for peer in peers)
        task = bar.add_task("starting", total=samples)
        done = iter(range(samples))

        def moved(case: Case, number: int, peer: Peer | Reference) -> None:
            what = f"{case.name}, round {number + 1}, {peer.name}"
            bar.update(task, completed=next(done), description=what)

        yield moved
