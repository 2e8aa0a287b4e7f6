"""handshake: messages committed and answered, as lines, over HTTP, with a connection each.

After every sample the table and the log file of the server must hold the messages of that sample,
each as often as it was acknowledged: once. SQLite alone, which commits batches of 1,000 with nobody
asking, is the limit of what a ledger in SQLite can do; servers commit what waits, so theirs are as
long as their clients let them be.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import evolve

from loadtest.compare.build import Missing, Workshop
from loadtest.compare.harness import (
    Comparison,
    Cores,
    Launch,
    Peer,
    Reference,
    Server,
    Wrong,
    measure,
)
from loadtest.compare.roundhouse import installed, python, roundhouse
from loadtest.compare.table import LIMIT, P50, P99, PER_CPU, PER_SECOND, Bound, Case, Figure, Sample

OURS = "roundhouse"
SEED = "twisted.web"
STARLETTE = "starlette"
GO = "go"
GOAL = "goal"
TIMER = "timer"
GENERATOR = "handshake_load"
BATCH = 1000
ALONE = 1.0  # seconds for the limit
TIMED = 3.0  # seconds for the timer,
TICKS = 200  # of which there must be so many, at least
SPARE = 200  # descriptors a server needs beside its connections
PATIENCE = 20.0  # seconds in which the last line of a log must appear
ENOUGH = 100_000  # messages a second are the goal,
SHARE = 0.3  # or this share of the limit, whichever is less

OF_THE_CLOCK = Figure("per_second", "messages/s", True, PER_SECOND.of, related=False)
OF_ITS_CPU = Figure("per_cpu", "messages/CPU-s", True, PER_CPU.of, related=False)

LATE = Figure("late", "p99 µs late", False, P99.of, related=False)


def keep(connections: int, depth: int) -> Case:
    return Case(
        name=f"keep {connections} x{depth}",
        title=f"KEEP lines, {connections} clients, {depth} deep",
        load=("keep", str(connections), str(depth)),
        ops="messages",
        figure=PER_SECOND,
        bounds=(Bound(OURS, 1.0, against=GOAL),),
        descriptors=connections + SPARE,
        columns=(OF_ITS_CPU, P50, P99),
        peers=(LIMIT, GOAL, OURS),
    )


def http(connections: int, *bounds: Bound, peers: tuple[str, ...]) -> Case:
    return Case(
        name=f"http {connections}",
        title=f"HTTP keep-alive, {connections:,} clients",
        load=("http", str(connections), "1"),
        ops="messages",
        figure=OF_ITS_CPU,
        bounds=bounds,
        descriptors=connections + SPARE,
        columns=(OF_THE_CLOCK, P50, P99),
        peers=peers,
    )


GROUPS = (OURS, STARLETTE, GO)
CASES = (
    keep(51, 64),
    http(
        51,
        Bound(OURS, 1.0, against=GO),
        Bound(OURS, 1.3, against=STARLETTE),
        Bound(OURS, 15.0, against=SEED, figure=OF_THE_CLOCK),
        peers=(OURS, SEED, STARLETTE, GO),
    ),
    http(500, Bound(OURS, 1.0, against=GO), Bound(OURS, 1.3, against=STARLETTE), peers=GROUPS),
    http(5000, peers=GROUPS),
    Case(
        name="timer",
        title="a 1 ms timer in the reactor while KEEP lines come, 51 clients, 64 deep",
        load=("keep", "51", "64"),
        ops="ticks",
        figure=LATE,
        bounds=(Bound(TIMER, 5000.0, against=None),),
        descriptors=51 + SPARE,
        columns=(Figure("p50_us", "p50 µs", False, P50.of, related=False),),
        peers=(TIMER,),
    ),
    Case(
        name="once",
        title="a connection a message, 51 at once",
        load=("once", "51", "1"),
        ops="messages",
        figure=OF_ITS_CPU,
        bounds=(Bound(OURS, 1.5, against=GO), Bound(OURS, 1.5, against=STARLETTE)),
        descriptors=51 + SPARE,
        columns=(OF_THE_CLOCK, P50, P99),
        peers=GROUPS,
    ),
)


class Alone:
    """SQLite with nobody asking: rows of the same size, BATCH a commit, WAL and FULL."""

    last: Sample

    def sample(self, case: Case) -> Sample:
        with (
            TemporaryDirectory(prefix="roundhouse-sqlite-") as folder,
            closing(sqlite3.connect(Path(folder, "x.db"), isolation_level=None)) as table,
        ):
            table.executescript(SCHEMA)
            self.last = _filled(table)
        return self.last

    def goal(self, case: Case) -> Sample:
        """What is asked of a server, as if it had been measured."""
        ops = min(ENOUGH, SHARE * PER_SECOND.of(self.last))
        return Sample(round(ops), 1.0, self.last.cpu, 0.0, 0.0)


SCHEMA = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE messages (seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL,
        id TEXT NOT NULL, message TEXT NOT NULL, peer TEXT NOT NULL);
"""


def _filled(table: sqlite3.Connection) -> Sample:
    row = ("2026-11-21T09:30:00.000Z", "load-12345-17", "x" * 64, "127.1.0.1:54321")
    insert = "INSERT INTO messages (at, id, message, peer) VALUES (?, ?, ?, ?)"
    ops, started, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() < started + ALONE:
        table.execute("BEGIN IMMEDIATE")
        table.executemany(insert, [row] * BATCH)
        table.execute("COMMIT")
        ops += BATCH
    seconds = time.perf_counter() - started
    return Sample(ops, seconds, time.process_time() - cpu, 1e6 * BATCH * seconds / ops, 0.0)


ALONE_HERE = Alone()


def sqlite(workshop: Workshop) -> Reference:
    about = f"SQLite alone: {BATCH:,} rows a commit, WAL and FULL"
    return Reference(LIMIT, about, f"SQLite {sqlite3.sqlite_version}", ALONE_HERE.sample)


def goal(workshop: Workshop) -> Reference:
    about = f"{ENOUGH:,} a second, or {SHARE} of the limit if that is less"
    return Reference(GOAL, about, "", ALONE_HERE.goal)


def ours(workshop: Workshop) -> Peer:
    about = "service.tac, all services loaded"
    return roundhouse("handshake", "MESSAGE_PORT", name=OURS, about=about)


def timer(workshop: Workshop) -> Reference:
    """Ours once more, with a timer; how late it was is what is told."""
    generator, plain = workshop.c(GENERATOR), ours(workshop)
    tac = Path(__file__).with_name("late.tac")

    def launch(folder: Path, port: int) -> Launch:
        usual = plain.launch(folder, port)
        *command, service = usual.argv
        return evolve(
            usual,
            argv=[*command, str(tac)],
            environ={**usual.environ, "ROUNDHOUSE_SERVICE": service},
        )

    def sample(case: Case) -> Sample:
        cores = Cores.of_this_machine()
        with Server(evolve(plain, name=TIMER, launch=launch), cores.server) as server:
            before = len([*server.folder.glob("late-*.json")])
            loaded = measure(server, case, generator, TIMED, cores.load, load)
            check(case, server, loaded)
            told = sorted(server.folder.glob("late-*.json"))[before + 1 : -1]
            late = sorted(us for path in told for us in json.loads(path.read_text())["late_us"])
        if len(late) < TICKS:
            raise Wrong(f"{case.name}: {len(late)} ticks are too few to tell")
        p50, p99 = late[len(late) // 2], late[len(late) * 99 // 100]
        return Sample(len(late), loaded.seconds, loaded.cpu, float(p50), float(p99))

    return Reference(TIMER, f"{plain.about}, and a timer every millisecond", plain.version, sample)


def seed(workshop: Workshop) -> Peer:
    script = Path(__file__).with_name("handshake_twisted.py")
    return Peer(
        SEED,
        "a commit a message, rollback journal, as the seed did",
        f"{installed('twisted')} on {python()}",
        lambda folder, port: Launch([sys.executable, str(script), str(port)]),
    )


def starlette(workshop: Workshop) -> Peer:
    for name in ("starlette", "uvicorn"):
        if find_spec(name) is None:
            raise Missing(f"{name} is not installed (pip install starlette uvicorn)")
    command = [sys.executable, "-m", "uvicorn", "--log-level", "warning", "--no-access-log"]
    command += ["--backlog", "5000", "--app-dir", str(Path(__file__).parent)]
    return Peer(
        STARLETTE,
        "on uvicorn (uvloop, httptools), group commit in a thread",
        f"{installed('starlette')}, uvicorn {installed('uvicorn')} on {python('uvloop')}",
        lambda _, port: Launch([*command, "--port", str(port), "handshake_starlette:app"]),
    )


def go(workshop: Workshop) -> Peer:
    program = workshop.go("handshake", c=True)
    return Peer(
        GO,
        "net/http, group commit in a goroutine, SQLite's C library",
        workshop.said(workshop.tool("go", package="golang-go"), "version"),
        lambda _, port: Launch([str(program), str(port), "messages.db"]),
    )


def load(case: Case, server: Server) -> Sequence[str]:
    """Codes come from the same port, but for ours."""
    return (*case.load, str(server.launch.ports.get("handshake CODE_PORT", server.port)))


def check(case: Case, server: Server, sample: Sample) -> None:
    """Rows and lines of this sample's measured phase are its acknowledgements. Raise Wrong."""
    (path,) = [*server.folder.rglob("roundhouse.db"), *server.folder.rglob("messages.db")]
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as table:
        ((newest,),) = table.execute("SELECT id FROM messages ORDER BY seq DESC LIMIT 1")
        run = newest.split("-")[1]
        ((rows,),) = table.execute(
            "SELECT count(*) FROM messages WHERE message >= ? AND message < ?",
            (f"{run} m ", f"{run} n"),
        )
    lines, until = -1, time.monotonic() + PATIENCE
    while lines < rows and time.monotonic() < until:
        (log,) = server.folder.rglob("logfile.log")
        mark = f'"message": "{run} m '.encode()
        loose = f'"message":"{run} m '.encode()  # as Go writes it
        data = log.read_bytes()
        lines = data.count(mark) + data.count(loose)
    if not rows == lines == sample.ops:
        raise Wrong(
            f"{case.name}: {server.peer.name}: {sample.ops:,} acknowledged, {rows:,} in the table,"
            f" {lines:,} in the log"
        )


COMPARISON = Comparison(
    name="handshake",
    help="Handshake against SQLite alone, twisted.web, Starlette and Go.",
    cases=CASES,
    peers={
        LIMIT: sqlite,
        GOAL: goal,
        OURS: ours,
        TIMER: timer,
        SEED: seed,
        STARLETTE: starlette,
        GO: go,
    },
    generator=GENERATOR,
    load=load,
    check=check,
    proof="{ops:,} messages were acknowledged; each is in its table once, and in its log once.",
    room=4 << 30,
    quick="2 min",
)
