"""Starts the peers, measures them in turns, and leaves nothing behind.

Server and load have a core each, where there are two: the last and the first of those this process
may use. A generator is a program that is called with port, seconds and a case's arguments, and

    prints `ready` when it has warmed up and nothing is under way, and waits for a line on stdin;
    prints one line of JSON when it has measured and all is answered: ops, seconds, p50_us, p99_us,
    wrong, cpu, and bytes where they matter; holds its connections until its stdin ends.

The server's CPU time is read at both moments, when it has nothing to do. A wrong answer ends the
comparison: figures of a server that answers wrongly mean nothing.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile, mkdtemp
from typing import Any

import psutil
from attrs import define, field, frozen

from loadtest.compare.build import Workshop
from loadtest.compare.table import GROWN, Case, Sample, Table

START = 20.0  # seconds a server may take to listen
STOP = 5.0  # seconds it may take to end
REST = 5.0  # seconds to wait at most until a server has nothing more to do
LOOK = 0.02  # seconds over which that is judged
AT_REST = 0.001  # seconds of CPU in a LOOK
PORTS = range(10240, 32768)  # below the ephemeral range: no outgoing connection takes one
PROOF = "{ops:,} answers were compared byte for byte: none is wrong."
TAIL = 2000  # characters of a log that are worth showing


class Wrong(Exception):
    """A server answered wrongly, or not at all."""


class Broken(Exception):
    """A server or a generator does not start, or ends."""


@frozen
class Launch:
    """A command, what it adds to the environment, and the ports it takes beside its own."""

    argv: Sequence[str]
    environ: Mapping[str, str] = field(factory=dict)
    ports: Mapping[str, int] = field(factory=dict)


@frozen
class Peer:
    """A server to compare.

    launch: makes the command, of a folder for its files and the port of 127.0.0.1 to listen on.
    """

    name: str
    about: str
    version: str
    launch: Callable[[Path, int], Launch]


@frozen
class Reference:
    """A speed of this machine that others are held against; no server. sample: measures it."""

    name: str
    about: str
    version: str
    sample: Callable[[Case], Sample]


@frozen
class Cores:
    """Where servers and load run; None: anywhere."""

    server: int | None = None
    load: int | None = None

    @classmethod
    def of_this_machine(cls) -> Cores:
        usable = sorted(os.sched_getaffinity(0))
        return cls(usable[-1], usable[0]) if len(usable) > 1 else cls()


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Children started inside, and their threads, run on `core`."""
    usable = os.sched_getaffinity(0)
    try:
        if core is not None:
            os.sched_setaffinity(0, {core})
        yield
    finally:
        os.sched_setaffinity(0, usable)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Signals wait: a child must not be born while nobody is left to end it."""
    noted: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {n: signal.getsignal(n) for n in numbers if callable(signal.getsignal(n))}
    for known in before:
        signal.signal(known, lambda number, frame: noted.append(number))
    try:
        yield
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
        for number in noted:
            signal.raise_signal(number)


def descriptors() -> int:
    """Raise the limit of open files, which children inherit, as far as allowed: what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody has."""
    found: set[int] = set()
    with ExitStack() as held:
        for number in random.sample(PORTS, min(len(PORTS), 200 + 10 * count)):
            if len(found) == count:
                break
            with suppress(OSError):
                held.enter_context(socket.create_server(("127.0.0.1", number)))
                found.add(number)
    if len(found) < count:
        raise Broken(f"no {count} free ports between {PORTS.start} and {PORTS.stop} of 127.0.0.1")
    return sorted(found)


@define(eq=False)
class Server:
    """A peer that runs, in a folder of its own. Ends with the `with` block, by its own pid.

    within: where that folder is made; None: among the temporary ones. lasting: it stays.
    """

    peer: Peer
    core: int | None = None
    within: Path | None = None
    lasting: bool = False
    port: int = field(init=False)
    folder: Path = field(init=False)
    launch: Launch = field(init=False)
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def __enter__(self) -> Server:
        self.folder = Path(mkdtemp(prefix=f"roundhouse-{self.peer.name}-", dir=self.within))
        try:
            with undisturbed():
                self._start()
            self._wait_until_served()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu(self) -> float:
        """Seconds of CPU it has spent, user and system, with its threads and its children."""
        return sum(map(_spent, self._family()))

    def memory(self) -> int:
        """Bytes that are resident."""
        total = 0
        for process in self._family():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def descriptors(self) -> int:
        """How many are open."""
        total = 0
        for process in self._family():
            with suppress(psutil.Error):
                total += process.num_fds()
        return total

    def peak(self) -> int:
        """The most bytes that were resident since it started; 0 where nobody tells."""
        total = 0
        for process in self._family():
            with suppress(OSError):
                status = Path(f"/proc/{process.pid}/status").read_text()
                if found := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
                    total += int(found[1]) * 1024
        return total

    def forget_peak(self) -> None:
        """From now on `peak` is of what comes, where the system can do that."""
        for process in self._family():
            with suppress(OSError):
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")

    def rest(self) -> None:
        """Wait until it has nothing more to do: connections that ended are cleared away."""
        until = time.monotonic() + REST
        spent = self.cpu()
        while time.monotonic() < until:
            time.sleep(LOOK)
            was, spent = spent, self.cpu()
            if spent - was < AT_REST:
                return

    def ended(self) -> str:
        """How it ended, and its last words; empty while it runs."""
        if self._process is None or (status := self._process.poll()) is None:
            return ""
        said = self._log.read_text(errors="replace")[-TAIL:].strip()
        return f"{self.peer.name} ended with status {status}: {said}"

    @property
    def _log(self) -> Path:
        return self.folder / "out.log"

    def _family(self) -> list[psutil.Process]:
        try:
            process = psutil.Process(self.pid)
            return [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _start(self) -> None:
        (self.port,) = free_ports(1)
        self.launch = launch = self.peer.launch(self.folder, self.port)
        keep = {k: v for k, v in os.environ.items() if not k.startswith("ROUNDHOUSE_")}
        try:
            with on_core(self.core), self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    launch.argv,
                    cwd=self.folder,
                    env={**keep, **launch.environ},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for us, and we end it
                )
        except OSError as error:
            raise Broken(f"{self.peer.name} cannot be started: {error}") from None

    def _wait_until_served(self) -> None:
        until = time.monotonic() + START
        while True:
            if ended := self.ended():
                raise Broken(ended)
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return
            if time.monotonic() > until:
                said = self._log.read_text(errors="replace")[-TAIL:].strip()
                raise Broken(f"{self.peer.name} does not listen after {START:g} s: {said}")
            time.sleep(LOOK)

    def _end(self) -> None:
        try:
            if self._process is not None:
                end(self._process)
        finally:
            if not self.lasting:
                remove(self.folder)


def remove(folder: Path) -> None:
    with undisturbed():  # gigabytes take their time to go
        shutil.rmtree(folder, ignore_errors=True)


def _spent(process: psutil.Process) -> float:
    try:
        ended = process.cpu_times()
        # CPUCLOCK_SCHED of a whole process: what utime + stime add up to, but in nanoseconds
        alive: float = time.clock_gettime((~process.pid << 3) | 2)
        return alive + ended.children_user + ended.children_system
    except (OSError, psutil.Error):
        return 0.0


def end(process: subprocess.Popen[Any]) -> None:
    """Politely at first."""
    process.terminate()
    try:
        process.wait(STOP)
    except BaseException as error:  # also a second Ctrl-C: nothing is left behind
        process.kill()
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise


def _as_the_case_says(case: Case, server: Server) -> Sequence[str]:
    return case.load


def _answers_are_enough(case: Case, server: Server, sample: Sample) -> None:
    pass


@frozen
class Comparison:
    """What is compared: cases, peers by name, and the C source of the load generator.

    peers: each is found or built when it is needed, and raises Missing where it cannot be had;
    the first one is the limit. load: the generator's arguments after port and seconds. check: looks
    at what a sample left in the server's folder, and raises Wrong. proof: what the report says was
    compared. pinned: server and load have a core each. room: bytes of disk, not of memory, that a
    server needs; 0: it writes nothing. quick: how long --quick takes, about.
    """

    name: str
    help: str
    cases: Sequence[Case]
    peers: Mapping[str, Callable[[Workshop], Peer | Reference]]
    generator: str
    load: Callable[[Case, Server], Sequence[str]] = _as_the_case_says
    check: Callable[[Case, Server, Sample], None] = _answers_are_enough
    proof: str = PROOF
    pinned: bool = True
    room: int = 0
    quick: str = "90 s"


def measure(
    server: Server,
    case: Case,
    generator: Path,
    seconds: float,
    core: int | None = None,
    load_of: Callable[[Case, Server], Sequence[str]] = _as_the_case_says,
) -> Sample:
    """One sample of `case`. Raise Wrong or Broken."""
    command = [str(generator), str(server.port), f"{seconds:g}", *load_of(case, server)]
    with ExitStack() as stack:
        errors = stack.enter_context(TemporaryFile("w+"))
        with undisturbed(), on_core(core):
            load = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
            stack.enter_context(load)
            stack.callback(load.kill)
        assert load.stdin is not None
        assert load.stdout is not None

        def why(what: str) -> str:
            errors.seek(0)
            parts = (what, errors.read().strip(), server.ended())
            return f"{case.name}: {server.peer.name}: {'; '.join(filter(None, parts))}"

        if load.stdout.readline() != "ready\n":
            raise Broken(why("the load could not begin"))
        server.rest()
        if GROWN in case.columns:
            server.forget_peak()
        was, cpu = server.memory(), server.cpu()
        load.stdin.write("\n")
        load.stdin.flush()
        line = load.stdout.readline()
        server.rest()  # what it puts off is part of what it costs
        cpu, memory, peak = server.cpu() - cpu, server.memory() - was, server.peak()
        if not line:
            raise Broken(why("the load ended early"))
        told = json.loads(line)
        if told["wrong"] or not told["ops"]:
            raise Wrong(why("a wrong answer" if told["wrong"] else "no answer at all"))
    server.rest()
    return Sample(
        ops=told["ops"],
        seconds=told["seconds"],
        cpu=cpu,
        p50_us=told["p50_us"],
        p99_us=told["p99_us"],
        memory=memory,
        load_cpu=told["cpu"],
        bytes=told.get("bytes", 0),
        peak=peak,
        grown=max(0, peak - was),
    )


def compare(
    comparison: Comparison,
    cases: Sequence[Case],
    peers: Sequence[Peer | Reference],
    generator: Path,
    *,
    rounds: int,
    seconds: float,
    cores: Cores,
    within: Path | None = None,
    before: Callable[[Case, int, Peer | Reference], object] = lambda case, number, peer: None,
) -> Table:
    """Every case in `rounds` rounds, each of them once through its peers. Raise Wrong or Broken.

    within: where the folders of the servers are made. before: called before each sample, with the
    number of the round, from 0.
    """
    table = Table()
    with ExitStack() as stack:
        home = Path(mkdtemp(prefix="roundhouse-compare-", dir=within))
        stack.callback(remove, home)
        shared = {
            peer.name: stack.enter_context(Server(peer, cores.server, home))
            for peer in peers
            if isinstance(peer, Peer) and any(not c.fresh and c.wants(peer.name) for c in cases)
        }
        for case in cases:
            for number in range(rounds):
                for peer in peers:
                    if not case.wants(peer.name):
                        continue
                    before(case, number, peer)
                    if isinstance(peer, Reference):
                        table.add(case, peer.name, peer.sample(case))
                        continue
                    with ExitStack() as one:
                        if case.fresh:
                            server = one.enter_context(
                                Server(peer, cores.server, home, lasting=case.many)
                            )
                        else:
                            server = shared[peer.name]
                        if comparison.room:
                            os.sync()  # nobody pays for what another one left unwritten
                        sample = measure(
                            server, case, generator, seconds, cores.load, comparison.load
                        )
                        comparison.check(case, server, sample)
                    table.add(case, peer.name, sample)
    return table
