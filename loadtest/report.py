"""python -m loadtest report 51: a run of Locust against a daemon of its own, and a page about it.

Also 500, 5000 and soak.

In the folder of a report
    README.md            what was run, on which machine, and the figures
    locust.html          Locust's own report
    totals.json          requests of each kind in all
    stats_history.csv    requests every second; its last line is a second or two older
    daemon.csv           the daemon every second: CPU (share of a core), resident memory (bytes),
                         descriptors
    over_time.svg        requests, latencies, users, errors, and the daemon under them
    latency.svg          p50 and p99 of each kind
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import groupby, pairwise
from operator import attrgetter
from pathlib import Path
from statistics import linear_regression
from tempfile import TemporaryDirectory
from typing import Any

import click
from attrs import define, field, frozen

from loadtest import charts
from loadtest.bounds import Bounds, Requests
from loadtest.charts import Bar, Bars, Lines
from loadtest.compare.harness import Broken, Server, descriptors
from loadtest.compare.report import machine
from loadtest.compare.roundhouse import installed, python, roundhouse

HOME = Path(__file__).resolve().parents[1]
SHAPES = HOME / "loadtest" / "shapes"
REPORTS = Path(__file__).with_name("reports")
EVERY = 1.0  # seconds between two looks at the daemon
STOP = 30.0  # seconds in which users finish what they have begun
FILES = {  # of Locust's, and what they are called in a report
    "run.json": "totals.json",
    "run_stats_history.csv": "stats_history.csv",
    "run.html": "locust.html",
}
WARM = 1 / 3  # of a run, after which a daemon has what it needs
MINUTE = 60.0  # seconds
LOGGED = ("POST", "message")  # of the locustfile: each is a row when it was acknowledged


@frozen
class Scenario:
    """A load shape and who comes; it keeps the bounds of its name. processes: of Locust."""

    name: str
    title: str
    shape: Path
    users: tuple[str, ...]
    processes: int = 1


EACH = ("EchoUser", "ChatUser", "IngestUser", "RelayUser", "HandshakeUser")
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("51", "51 users, each acting once a second", SHAPES / "rate51.py", EACH),
        Scenario("500", "500 users, each acting once a second", SHAPES / "rate500.py", EACH),
        Scenario(
            "5000", "Up to 5,000 users of everything", SHAPES / "ramp5000.py", ("MixedUser",), 2
        ),
        Scenario("soak", "200 users for half an hour", SHAPES / "soak.py", EACH),
    )
}


@frozen
class Moment:
    """The daemon at one time. cpu: seconds spent so far; memory: bytes."""

    at: float
    cpu: float
    memory: int
    descriptors: int = 0


@define(eq=False)
class Watch:
    """Looks at the daemon every second, in a thread, until the `with` block ends."""

    server: Server
    moments: list[Moment] = field(factory=list)
    _over: threading.Event = field(factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            server = self.server
            self.moments.append(
                Moment(time.time(), server.cpu(), server.memory(), server.descriptors())
            )
            if self._over.wait(EVERY):
                return


@frozen
class Kind:
    """One line of Locust's statistics, in all of the run. Latencies in ms."""

    method: str
    name: str
    requests: int
    failures: int
    rate: float
    p50: float
    p95: float
    p99: float
    longest: float

    @property
    def label(self) -> str:
        return f"{self.method} {self.name}"


@frozen
class Run:
    """What a scenario left: the figures, the daemon's moments, and whether all was kept."""

    scenario: Scenario
    kinds: Sequence[Kind]
    history: Sequence[dict[str, str]]
    moments: Sequence[Moment]
    acknowledged: int  # messages
    rows: int
    lines: int  # of the message log
    missed: Sequence[str]

    @property
    def requests(self) -> int:
        return sum(kind.requests for kind in self.kinds)

    @property
    def failures(self) -> int:
        return sum(kind.failures for kind in self.kinds)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("scenario", type=click.Choice([*SCENARIOS]), metavar="|".join(SCENARIOS))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Its folder.  [default: loadtest/reports/NAME]"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(scenario: str, out: Path | None, as_json: bool) -> None:
    """Run Locust against a daemon of its own, and write a page with charts about it.

    Exit status 1 when a request failed, a bound of loadtest/bounds.toml was missed, or a message
    that was acknowledged is not in the table and in the log file.

    \b
    Examples:
      python -m loadtest report 51
      python -m loadtest report 5000 --out /tmp/report
    """
    chosen = SCENARIOS[scenario]
    out = out or REPORTS / chosen.name
    out.mkdir(parents=True, exist_ok=True)
    try:
        run = perform(chosen, out)
    except Broken as error:
        raise click.ClickException(str(error)) from None
    write(run, out)
    if as_json:
        click.echo(json.dumps(summary(run), indent=2))
    else:
        click.echo(f"{run.requests:,} requests, {run.failures:,} failures; {out / 'README.md'}")
    if run.missed:
        raise click.ClickException("; ".join(run.missed))


def perform(scenario: Scenario, out: Path) -> Run:
    """Start the daemon and Locust; its files are in `out` then. Raise Broken."""
    descriptors()
    peer = roundhouse("echo", name="roundhouse", about="service.tac, all services loaded")
    with Server(peer) as server, TemporaryDirectory() as scratch:
        watch = Watch(server)
        with watch:
            said = _locust(scenario, server.folder / "config.cfg", Path(scratch))
        if ended := server.ended():
            raise Broken(ended)
        kinds = kinds_of(Path(scratch) / "run.json")
        acknowledged = sum(
            kind.requests - kind.failures for kind in kinds if (kind.method, kind.name) == LOGGED
        )
        rows, lines = _kept(server.folder / "data", acknowledged)
        for name, kept in FILES.items():
            shutil.copyfile(Path(scratch) / name, out / kept)
    with (out / "stats_history.csv").open(encoding="utf-8") as file:
        history = [*csv.DictReader(file)]
    missed = [*_missed(scenario, kinds, watch.moments)]
    if not all_kept(scenario, acknowledged, rows, lines):
        missed.append(f"{acknowledged} messages acknowledged, {rows} rows, {lines} log lines")
    if said and not missed:
        missed.append(f"Locust ended with status {said}")
    return Run(scenario, kinds, history, watch.moments, acknowledged, rows, lines, missed)


def _locust(scenario: Scenario, config: Path, scratch: Path) -> int:
    """Its exit status; `scratch` has FILES then."""
    files = f"{HOME / 'loadtest' / 'locustfile.py'},{scenario.shape}"
    command = [sys.executable, "-m", "locust", "-f", files, "--headless", "--only-summary"]
    command += ["--stop-timeout", f"{STOP:g}", "--csv", str(scratch / "run"), "--csv-full-history"]
    command += ["--html", str(scratch / "run.html"), "--totals", str(scratch / "run.json")]
    command += scenario.users
    if scenario.processes > 1:
        command += ["--processes", str(scenario.processes)]
    environ = {**os.environ, "ROUNDHOUSE_CONFIG": str(config)}
    environ.pop("ROUNDHOUSE_HOST", None)
    # in a terminal Locust tells of its progress, on standard error
    process = subprocess.run(command, cwd=HOME, env=environ, stdout=sys.stderr, check=False)
    if not all((scratch / name).exists() for name in FILES):
        raise Broken(f"Locust ended with status {process.returncode} and left no figures")
    return process.returncode


def all_kept(scenario: Scenario, acknowledged: int, rows: int, lines: int) -> bool:
    """Whether each acknowledged message is in table and log, and nothing else.

    Of several processes Locust loses the last counts: there may be more than it knows of.
    """
    return rows == lines and (
        rows == acknowledged or (scenario.processes > 1 and rows > acknowledged)
    )


def kinds_of(path: Path) -> list[Kind]:
    """The locustfile's totals."""
    kinds = []
    for each in json.loads(path.read_text(encoding="utf-8")):
        p50, p95, p99 = (_percentile(each["response_times"], part) for part in (0.5, 0.95, 0.99))
        seconds = max(each["last_request_timestamp"] - each["start_time"], 1)
        count, failures = each["num_requests"], each["num_failures"]
        longest = each["max_response_time"] or 0.0
        one = Kind(
            each["method"], each["name"], count, failures, count / seconds, p50, p95, p99, longest
        )
        kinds.append(one)
    return sorted(kinds, key=attrgetter("label"))


def _percentile(counts: dict[str, int], share: float) -> float:
    """counts: how many took so many ms (rounded by Locust to two digits)."""
    left = share * sum(counts.values())
    for took in sorted(counts, key=float):
        left -= counts[took]
        if left <= 0:
            return float(took)
    return 0.0


def _number(text: str) -> float | None:
    return None if text in ("", "N/A") else float(text)


def _kept(data: Path, wanted: int) -> tuple[int, int]:
    """Messages in the table, and lines in the log; which follows it within a moment."""
    until = time.monotonic() + 10
    while True:
        database = sqlite3.connect(f"file:{data / 'roundhouse.db'}?mode=ro", uri=True)
        with closing(database):
            (rows,) = database.execute("SELECT count(*) FROM messages").fetchone()
        log = data / "logfile.log"
        lines = len(log.read_bytes().splitlines()) if log.exists() else 0
        if rows == lines == wanted or time.monotonic() > until:
            return rows, lines
        time.sleep(0.1)


def _missed(scenario: Scenario, kinds: Sequence[Kind], moments: Sequence[Moment]) -> Sequence[str]:
    bounds = Bounds.named(scenario.name)
    asked = (Requests(kind.label, kind.requests, kind.failures, kind.p99) for kind in kinds)
    return [*bounds.missed(asked), *bounds.outgrown(*growth(moments))]


def growth(moments: Sequence[Moment]) -> tuple[float, float]:
    """MiB of memory, and descriptors, by which a warm daemon grows in ten minutes.

    By least squares after the first third of the run. Descriptors come and go with the load, so
    it is the fewest of each minute that count: those that leaked are among them for ever.
    """
    warm = moments[int(len(moments) * WARM) :]
    if not warm or warm[-1].at - warm[0].at < 3 * MINUTE:
        return 0.0, 0.0
    memory = linear_regression([m.at for m in warm], [m.memory / 2**20 for m in warm]).slope
    minutes = [[*some] for _, some in groupby(warm, lambda m: (m.at - warm[0].at) // MINUTE)]
    fewest = [min(moment.descriptors for moment in minute) for minute in minutes]
    return 600 * memory, 600 * linear_regression([m[0].at for m in minutes], fewest).slope


# --- the page ---------------------------------------------------------------------------------


def summary(run: Run) -> dict[str, Any]:
    return {
        "scenario": run.scenario.name,
        "machine": machine(),
        "requests": run.requests,
        "failures": run.failures,
        "acknowledged": run.acknowledged,
        "rows": run.rows,
        "log_lines": run.lines,
        "kinds": [
            {"kind": kind.label, "requests": kind.requests, "failures": kind.failures}
            | {"p50_ms": kind.p50, "p95_ms": kind.p95, "p99_ms": kind.p99}
            for kind in run.kinds
        ],
        "missed": [*run.missed],
    }


def write(run: Run, out: Path) -> None:
    """Charts, the daemon's figures and the page."""
    with (out / "daemon.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seconds", "cpu", "memory", "descriptors"])
        began = run.moments[0].at
        writer.writerows(
            [f"{moment.at - began:.1f}", f"{share:.3f}", moment.memory, moment.descriptors]
            for moment, share in zip(run.moments[1:], shares(run.moments), strict=True)
        )
    _draw(run, out)
    (out / "README.md").write_text(page(run), encoding="utf-8")


def shares(moments: Sequence[Moment]) -> list[float]:
    """CPU seconds a second between each two moments."""
    return [(b.cpu - a.cpu) / (b.at - a.at) for a, b in pairwise(moments)]


def _draw(run: Run, out: Path) -> None:
    whole = [row for row in run.history if row["Name"] == "Aggregated"]
    began = float(whole[0]["Timestamp"])
    seconds = [float(row["Timestamp"]) - began for row in whole]

    def column(name: str) -> list[float | None]:
        return [_number(row[name]) for row in whole]

    daemon = [moment.at - began for moment in run.moments[1:]]
    panels = [
        (seconds, Lines("Requests", "a second", {"requests": column("Requests/s")})),
        (
            seconds,
            Lines(
                "Latency, all kinds",
                "ms",
                {
                    name: column(key)
                    for name, key in (("p50", "50%"), ("p95", "95%"), ("p99", "99%"))
                },
                log=True,
            ),
        ),
        (seconds, Lines("Users", "", {"users": column("User Count")}, step=True)),
        (seconds, Lines("Errors", "a second", {"errors": column("Failures/s")})),
        (
            daemon,
            Lines(
                "The daemon's CPU", "% of a core", {"cpu": [100 * s for s in shares(run.moments)]}
            ),
        ),
        (
            daemon,
            Lines(
                "The daemon's memory", "MiB", {"rss": [m.memory / 2**20 for m in run.moments[1:]]}
            ),
        ),
        (
            daemon,
            Lines("Its descriptors", "open", {"fds": [m.descriptors for m in run.moments[1:]]}),
        ),
    ]
    charts.over_time(out / "over_time.svg", run.scenario.title, (0, seconds[-1]), panels)
    groups = []
    for title, figure in (("p50", attrgetter("p50")), ("p99", attrgetter("p99"))):
        each = [(kind.label, figure(kind)) for kind in run.kinds]
        drawn = [Bar(name, value, value, value, ours=True) for name, value in each]
        groups.append(Bars(f"{title}, ms", drawn))
    charts.bars(out / "latency.svg", "Latency of each kind of request", "", groups)


def page(run: Run) -> str:
    """The README.md of a report."""
    scenario = run.scenario
    peak = max(moment.memory for moment in run.moments) / 2**20
    cpu = max(shares(run.moments), default=0.0)
    rows = "".join(
        f"| {kind.label} | {kind.requests:,} | {kind.failures:,} | {kind.rate:.1f} |"
        f" {kind.p50:g} | {kind.p95:g} | {kind.p99:g} | {kind.longest:.0f} |\n"
        for kind in run.kinds
    )
    kept = "as many rows in the table, as many lines in the log file"
    if all_kept(scenario, run.acknowledged, run.rows, run.lines):
        if more := run.rows - run.acknowledged:
            kept = f"all are in the table and in the log file, and {more:,} whose users had left"
    else:
        kept = f"**{run.rows:,} rows in the table, {run.lines:,} lines in the log file**"
    software = f"{installed('roundhouse-daemon')} on {python('twisted', 'uvloop', 'locust')}"
    bounds = Bounds.named(scenario.name)
    grown = ""
    if bounds.memory_mib is not None:
        memory, descriptors = growth(run.moments)
        grown = (
            f" After the first third of the run its memory grew by {memory:.2f} MiB and its"
            f" descriptors by {descriptors:.1f} in ten minutes."
        )
    verdict = "All bounds were kept." if not run.missed else f"**Missed: {'; '.join(run.missed)}.**"
    return f"""# {scenario.title}

{run.requests:,} requests, {run.failures:,} failures. {run.acknowledged:,} messages were
acknowledged: {kept}. {verdict}

| request | requests | failures | a second | p50 ms | p95 ms | p99 ms | longest ms |
|---|---|---|---|---|---|---|---|
{rows}
The daemon took at most {100 * cpu:.0f} % of a core and {peak:.0f} MiB of memory.{grown}
Load and daemon shared the machine: {machine()}; {software}.

![over time](over_time.svg)

![latency](latency.svg)

Locust's own [report](locust.html); its figures [in all](totals.json) and
[every second](stats_history.csv); the [daemon's](daemon.csv).
Again: `python -m loadtest report {scenario.name}`.
"""
