"""The three ways to die: at random, at a point of its own making, and without power. And a crowd.

Each ends the same way: the daemon starts again on what is left, within a time; nobody sends any
more; what only the wire shows is fetched; it stops with status 0, and the data is looked at.
"""

from __future__ import annotations

import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from attrs import define, field, frozen

from tests.chaos.tools import POINTS, PREFIX, Disk, mounted, preloaded
from tests.chaos.workload import Load, Verdict, Workload
from tests.process import PATIENCE, Twistd

KILLS_A_LIFE = 20  # then its data is looked at and a fresh one begins
SLOW = 0.2  # seconds a thing
FOREGROUND = ("-n", "--pidfile=")


@define
class Victim(Twistd):
    """A daemon to be killed. extra: more environment for its next start.

    disk: the folder that DATA_DIR is in, where that is not its home.
    """

    home: Path = field(factory=lambda: Path(mkdtemp(prefix=PREFIX)))
    settings: Mapping[str, str] = field(factory=dict, kw_only=True)
    disk: Path | None = field(default=None, kw_only=True)
    extra: Mapping[str, str] = field(factory=dict, kw_only=True)

    def __attrs_post_init__(self) -> None:
        Twistd.__attrs_post_init__(self)
        self.ports = dict(zip(self.ports, ports_below(len(self.ports)), strict=True))
        self.configure()

    @property
    def data(self) -> Path:
        return (self.disk or self.home) / "data"

    def configure(self, default: str = "", **sections: str) -> None:
        given = {**self.settings, **sections}
        lines = (f"DATA_DIR = {self.data}", given.pop("default", ""), default)
        Twistd.configure(self, "\n".join(lines), **given)

    def environ(self) -> dict[str, str]:
        return Twistd.environ(self) | dict(self.extra)

    def serve(self) -> float:
        """Start it and wait until all is served. Seconds; raises AssertionError when it is not."""
        self._starts = self.log.count("Press Ctrl+C to stop.")
        began = time.monotonic()
        self.start()
        return time.monotonic() - began


def ports_below(count: int) -> list[int]:
    """Free ports that the system gives to nobody who connects.

    A client that tries an ephemeral port again and again while nobody listens there connects to
    itself in the end, and holds the port.
    """
    found: list[int] = []
    while len(found) < count:
        number = random.SystemRandom().randrange(15_000, 32_000)
        try:
            socket.create_server(("127.0.0.1", number)).close()
        except OSError:
            continue
        if number not in found:
            found.append(number)
    return found


@define(eq=False)
class Life:
    """One daemon in a home of its own, and what it does to its data. within: seconds of a start."""

    workload: Workload
    daemon: Victim
    within: float
    deaths: int = 0
    slowest: float = 0.0
    verdict: Verdict = field(factory=Verdict)

    def serve(self) -> None:
        """It shall serve; not within the time is wrong."""
        seconds = self.daemon.serve()
        self.slowest = max(self.slowest, seconds)
        if seconds > self.within:
            self.wrong(f"a start took {seconds:.1f} s")

    def strike(self) -> None:
        """kill -9."""
        process = self.daemon.process
        assert process is not None
        assert process.poll() is None, f"it had ended by itself: {self.daemon.log[-2000:]}"
        process.kill()
        self.died()

    def died(self) -> None:
        assert self.daemon.process is not None
        self.workload.strikes.append(time.monotonic())
        self.daemon.process.wait(PATIENCE)
        self.deaths += 1

    def cut(self, disk: Disk, under_load: float) -> None:
        """Its disk loses power after some seconds under load; it serves again from what is left."""
        with Load(self.workload.clients(self.daemon)) as load:
            time.sleep(under_load)
            self._deafen(True)
            self.workload.powerless = True
            self.workload.strikes.append(time.monotonic())
            disk.cut()
            time.sleep(0.2)
            self.strike()
        self._deafen(False)
        self.daemon.extra = {}
        disk.power_on()
        self.serve()
        self.judge(load)

    def judge(self, load: Load) -> None:
        self.workload.collect(self.daemon)
        status = self.daemon.stop()
        self.wrong(*load.wrong, *([f"it stopped with status {status}"] if status else []))
        self.verdict += self.workload.verify(self.daemon.data)

    def _deafen(self, deaf: bool) -> None:
        for heard in self.workload.heard:
            heard.deaf = deaf

    def wrong(self, *lines: str) -> None:
        self.verdict += Verdict(wrong=lines)


@frozen
class Outcome:
    """What one hazard showed.

    slowest: seconds of the slowest start. kept: homes of daemons where something was wrong.
    """

    hazard: str
    deaths: int
    slowest: float
    verdict: Verdict
    notes: Sequence[str]
    kept: Sequence[str]


@define(eq=False)
class Trial:
    """A hazard for one service, again and again.

    make: a fresh workload. within: seconds that a start may take. step: told before each death.
    """

    make: Callable[[], Workload]
    rng: random.Random
    within: float
    step: Callable[[str], object]
    _deaths: int = field(default=0, init=False)
    _slowest: float = field(default=0.0, init=False)
    _verdict: Verdict = field(factory=Verdict, init=False)
    _notes: list[str] = field(factory=list, init=False)
    _kept: list[str] = field(factory=list, init=False)

    def kills(self, count: int) -> Outcome:
        """kill -9 under load at random times, one in five of them while it starts."""
        for first in range(0, count, KILLS_A_LIFE):
            with self._life() as life:
                life.serve()
                with Load(life.workload.clients(life.daemon)) as load:
                    for number in range(first, min(first + KILLS_A_LIFE, count)):
                        self.step(f"kill -9, {number + 1} of {count}")
                        time.sleep(self.rng.uniform(0.02, 0.8))
                        life.strike()
                        if self.rng.random() < 0.2:
                            life.daemon.process = life.daemon.spawn(*FOREGROUND)
                            time.sleep(self.rng.uniform(0.0, 1.0))
                            life.strike()
                        life.serve()
                    time.sleep(0.2)
                life.judge(load)
        return self._outcome("kill -9")

    def points(
        self, numbers: Sequence[int], kinds: Sequence[str] = POINTS, patience: float = 8.0
    ) -> Outcome:
        """Killed at each of these calls of each kind; numbers: rising, the first call is 1.

        patience: seconds of load within which it must come to a point, else that kind ends.
        Raises Impossible.
        """
        with preloaded() as library:
            for kind in kinds:
                for number in numbers:
                    self.step(f"{kind} {number} of {numbers[-1]}")
                    point = {"LD_PRELOAD": str(library), "CHAOS_POINT": f"{kind}:{number}"}
                    if not self._point(point, f"chaos: killed at {kind} {number}\n", patience):
                        self._notes.append(f"the process never came to {kind} {number}")
                        break
        return self._outcome("crash points")

    def _point(self, preload: Mapping[str, str], last_words: str, patience: float) -> bool:
        """Whether it came there; that it was the point which killed it is asserted."""
        came = False
        with self._life() as life:
            daemon = life.daemon
            daemon.extra = preload
            daemon.process = process = daemon.spawn(*FOREGROUND)
            with Load(life.workload.clients(daemon)) as load:
                until = time.monotonic() + patience
                while process.poll() is None and time.monotonic() < until:
                    time.sleep(0.01)
                ended = process.poll() is not None
                process.kill()
                life.died()
            came = last_words in daemon.log
            assert came or not ended, f"it ended by itself: {daemon.log[-2000:]}"
            assert process.returncode == -signal.SIGKILL
            daemon.extra = {}
            life.serve()
            life.judge(load)
        return came

    def power(self, count: int) -> Outcome:
        """The power fails under load. Raises Impossible."""
        for number in range(1, count + 1):
            self.step(f"power cut {number} of {count}")
            with mounted() as disk, self._life(disk) as life:
                life.serve()
                life.cut(disk, self.rng.uniform(0.3, 1.5))
        return self._outcome("power cut")

    def control(self) -> Outcome:
        """A power cut for a daemon that never syncs: it must lose. Raises Impossible."""
        self.step("the control, without syncs")
        with preloaded() as library, mounted() as disk, self._life(disk) as life:
            life.daemon.extra = {"LD_PRELOAD": str(library), "CHAOS_SYNCS": "off"}
            life.serve()
            try:
                life.cut(disk, 1.0)
            except AssertionError:
                self._notes.append("it did not even start again, as it should")
            else:
                lost, of = len(life.verdict.lost), life.verdict.acknowledged
                self._notes.append(f"it lost {lost} of {of} acknowledged, as it should")
                assert lost, "without syncs nothing was lost: the power cuts prove nothing"
            life.verdict = Verdict()
        return self._outcome("control")

    def crowd(self, things: int) -> Outcome:
        """Nobody dies but clients, until so many things were acknowledged (the first `heard`)."""
        self.step(f"a crowd, until {things} are acknowledged")
        with self._life() as life:
            life.serve()
            with Load(life.workload.clients(life.daemon)) as load:
                until = time.monotonic() + things * SLOW + PATIENCE
                while len(life.workload.heard[0]) < things and not load.wrong:
                    assert time.monotonic() < until, "the daemon is too slow"
                    time.sleep(0.02)
            life.judge(load)
        return self._outcome("crowd")

    def _begin(self, disk: Disk | None) -> Life:
        workload = self.make()
        place = None if disk is None else disk.folder
        return Life(workload, Victim(settings=workload.settings, disk=place), self.within)

    @contextmanager
    def _life(self, disk: Disk | None = None) -> Iterator[Life]:
        """From the first start to the verdict; where that is bad its home is kept."""
        life = self._begin(disk)
        daemon = life.daemon
        try:
            yield life
        except AssertionError as error:
            life.wrong(str(error))
        finally:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait(PATIENCE)
            if life.verdict.good:
                daemon.discard()
            elif disk is not None and daemon.data.exists():
                shutil.copytree(daemon.data, daemon.home / "data")
        if not life.verdict.good:
            self._kept.append(str(daemon.home))
        self._deaths += life.deaths
        self._slowest = max(self._slowest, life.slowest)
        self._verdict += life.verdict

    def _outcome(self, hazard: str) -> Outcome:
        return Outcome(hazard, self._deaths, self._slowest, self._verdict, self._notes, self._kept)
