"""The command line: which services, how often, and how it is told."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
from attrs import asdict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos.handshake import Handshake
from tests.chaos.hazards import Trial
from tests.chaos.ingest import Ingest, IngestFin
from tests.chaos.relay import Relay
from tests.chaos.relay_http import RelayHttp
from tests.chaos.tools import POINTS, Impossible
from tests.chaos.workload import Workload

SERVICES: Mapping[str, Callable[[], Workload]] = {
    "ingest": Ingest,
    "ingest-fin": IngestFin,
    "handshake": Handshake,
    "relay": Relay,
    "relay-http": RelayHttp,
}
FLEETING = {"ingest-fin"}  # what they acknowledge is not meant to outlive a power cut
SHOWN = 5  # lines of each kind of trouble
Step = Callable[[str], object]


def _times(name: str, usual: int, means: str) -> Callable[[Any], Any]:
    return click.option(
        name, type=click.IntRange(0), default=usual, show_default=True, metavar="N", help=means
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("services", nargs=-1, metavar="[SERVICE]...")
@_times("--kills", 200, "kill -9 at random, one in five while it starts.")
@_times("--points", 50, f"Killed at its 1st to Nth {', '.join(POINTS)}.")
@_times("--power", 20, "Its disk (ext4 in a file) loses power; one without syncs must lose data.")
@_times("--crowd", 0, "Nobody dies but clients, until so many things were acknowledged.")
@click.option("--seed", type=int, help="Of the random times.  [default: a fresh one, told]")
@click.option(
    "--within", default=2.0, show_default=True, metavar="SECONDS", help="A start may take."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    services: Sequence[str],
    kills: int,
    points: int,
    power: int,
    crowd: int,
    seed: int | None,
    within: float,
    as_json: bool,
) -> None:
    """Kill a real daemon under load, and look for what it had acknowledged.

    SERVICE: ingest, ingest-fin (RECEIPT and WAIT_FOR_DISK off), handshake, relay, relay-http;
    without any, all of them.

    \b
    Examples:
      python -m tests.chaos
      python -m tests.chaos ingest --kills 20 --points 0 --power 0
      python -m tests.chaos --seed 7 --json > chaos.json

    What a hazard needs and this machine lacks (root, gcc, ext4) skips that hazard, with the reason.
    Where something was wrong, the folder of that daemon is kept and named.

    Exit status: 0 nothing lost, nothing twice, every start in time; 1 something was; 2 wrong usage;
    69 everything was skipped; 130 Ctrl-C. All of it takes about 15 minutes a service.
    """
    for name in services:
        if name not in SERVICES:
            raise click.UsageError(f"no service {name!r}; there are: {', '.join(SERVICES)}")
    chosen = [name for name in SERVICES if name in services or not services]
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    told: dict[str, list[dict[str, Any]]] = {}
    for name in chosen:
        told[name] = []
        hazards = {"kills": kills, "points": points, "power": power, "control": power}
        for hazard, times in (hazards | {"crowd": crowd}).items():
            if not times:
                continue
            once = {"points": times * len(POINTS), "control": 1, "crowd": 1}
            total = once.get(hazard, times)
            with progress(name, total) as step:
                trial = Trial(SERVICES[name], random.Random(seed), within, step)
                if hazard in ("power", "control") and name in FLEETING:
                    found = {"hazard": hazard, "skipped": "it promises nothing about power"}
                else:
                    found = tried(trial, hazard, times)
                told[name].append(found)
            if not as_json:
                for line in lines(name, found):
                    click.echo(line)
    ran = [one for some in told.values() for one in some if "skipped" not in one]
    good = all(one["good"] for one in ran)
    if as_json:
        click.echo(json.dumps({"seed": seed, "good": good, "services": told}, indent=2))
    raise SystemExit(69 if not ran else 0 if good else 1)


def tried(trial: Trial, hazard: str, times: int) -> dict[str, Any]:
    """An Outcome for JSON, or why there is none."""
    try:
        match hazard:
            case "kills":
                outcome = trial.kills(times)
            case "points":
                outcome = trial.points(range(1, times + 1))
            case "power":
                outcome = trial.power(times)
            case "crowd":
                outcome = trial.crowd(times)
            case _:
                outcome = trial.control()
    except Impossible as error:
        return {"hazard": hazard, "skipped": str(error)}
    return {**asdict(outcome), "good": outcome.verdict.good}


def lines(service: str, told: Mapping[str, Any]) -> Iterator[str]:
    """One hazard, for people."""
    if "skipped" in told:
        yield f"{service:10} {told['hazard']:13} skipped: {told['skipped']}"
        return
    verdict = told["verdict"]
    yield (
        f"{service:10} {told['hazard']:13} {told['deaths']:4} deaths, {verdict['acknowledged']:,}"
        f" acknowledged: {len(verdict['lost'])} lost, {len(verdict['twice'])} twice,"
        f" {len(verdict['wrong'])} wrong; slowest start {told['slowest']:.2f} s"
    )
    for kind in ("lost", "twice", "wrong"):
        yield from (f"  {kind}: {one}" for one in verdict[kind][:SHOWN])
        if (more := len(verdict[kind]) - SHOWN) > 0:
            yield f"  {kind}: ... and {more} more"
    yield from (f"  {note}" for note in told["notes"])
    yield from (f"  kept: {home}" for home in told["kept"])


@contextmanager
def progress(service: str, total: int) -> Iterator[Step]:
    """On standard error: a bar on a terminal, else a line now and then."""
    if not sys.stderr.isatty():
        done = iter(range(total + 1))

        def told(what: str) -> None:
            if next(done) % 10 == 0:
                click.echo(f"{service}: {what}", err=True)

        yield told
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(service, total=total)

        def moved(what: str) -> None:
            bar.update(task, advance=1, description=f"{service}: {what}")

        yield moved


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # disks are unmounted all the same
    main(prog_name="python -m tests.chaos")
