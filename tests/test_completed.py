"""ON_COMPLETE: run once for each durable series, also when the daemon dies or the command does."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ProcessDone, ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon.stores.completed import Completed, Run
from daemon.stores.crew import Crew
from tests.process import PATIENCE, Twistd


@define(eq=False)
class Spawned:
    """A process that ends when the test says so."""

    protocol: Any
    argv: Sequence[str]
    signals: list[str] = field(factory=list)
    gone: bool = False

    def end(self, status: int = 0, by: int | None = None) -> None:
        value = ProcessTerminated(status, by) if status or by else ProcessDone(0)
        self.gone = True
        self.protocol.processExited(Failure(value))
        self.protocol.processEnded(Failure(value))

    def signalProcess(self, name: str) -> None:
        if self.gone:
            raise ProcessExitedAlready
        self.signals.append(name)

    def loseConnection(self) -> None:
        """Its pipes are closed."""


class Shop(Clock):
    """A reactor whose processes do nothing by themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[Spawned] = []
        self.broken: OSError | None = None

    def spawnProcess(
        self, protocol: Any, executable: str, args: Sequence[str], **rest: Any
    ) -> None:
        if self.broken is not None:
            raise self.broken
        assert executable == args[0]
        protocol.transport = Spawned(protocol, args)
        self.begun.append(protocol.transport)


@define
class Hands:
    """A crew that works at once."""

    reactor: Any
    slow: bool = False
    told_late: list[tuple[Deferred[Any], Any]] = field(factory=list)

    def work(self, task: Callable[..., Any], *args: Any) -> Deferred[Any]:
        if not self.slow:
            return maybeDeferred(task, *args)
        waiting = Deferred[Any]()
        self.told_late.append((waiting, task(*args)))
        return waiting

    @contextmanager
    def at_leisure(self) -> Iterator[None]:
        """What is worked on meanwhile is told at `finish`."""
        self.slow = True
        yield
        self.slow = False

    def finish(self) -> None:
        for waiting, result in self.told_late:
            waiting.callback(result)


class CompletedCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.shop = Shop()
        self.hands: Any = Hands(self.shop)

    def completed(self, *command: str) -> Completed:
        made = Completed("ingest", self.folder, self.hands, command)
        made.startService()
        return made

    def durable(self, completed: Completed, *names: str) -> None:
        """What the landing does for each series."""
        for name in names:
            self.name(completed, name)
            completed.add(self.folder / f"{name}.json")

    def name(self, completed: Completed, name: str) -> None:
        place = os.open(self.folder, os.O_RDONLY)
        try:
            completed.mark(f"{name}.json", place)
        finally:
            os.close(place)
        (self.folder / f"{name}.json").write_text("{}")

    def marks(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir() if p.suffix != ".json")

    def asked(self) -> list[str]:
        """For which series a process was begun, in order."""
        return [Path(one.argv[-1]).stem for one in self.shop.begun]


class OnceTests(CompletedCase):
    def test_the_command_runs_once_with_the_manifest_as_last_argument(self) -> None:
        completed = self.completed("/bin/move", "--to", "a b")
        self.durable(completed, "one")
        (run,) = self.shop.begun
        assert run.argv == ["/bin/move", "--to", "a b", str(self.folder / "one.json")]
        assert self.marks() == ["one.pending"]
        run.end()
        assert self.marks() == []
        completed.add(self.folder / "two.json")  # a manifest that is gone again
        assert self.asked() == ["one"]
        assert self.shop.getDelayedCalls() == []

    def test_without_a_command_nothing_is_marked_or_run(self) -> None:
        self.durable(self.completed(), "one")
        assert self.marks() == []
        assert self.shop.begun == []

    def test_what_was_marked_and_not_done_runs_at_the_next_start(self) -> None:
        first = self.completed("/bin/move")
        self.durable(first, "one")
        self.name(first, "two")  # killed before it was told
        self.completed("/bin/move")
        assert self.asked() == ["one", "one", "two"]

    def test_a_mark_whose_manifest_has_no_name_yet_is_left_alone(self) -> None:
        for name in ("one.pending", "old.pending"):
            (self.folder / name).touch()
        os.utime(self.folder / "old.pending", (1, 1))  # its series was deleted
        self.completed("/bin/move")
        assert self.shop.begun == []
        assert self.marks() == ["one.pending"]

    def test_no_more_than_four_run_at_once_in_the_order_they_came(self) -> None:
        completed = self.completed("/bin/move")
        names = [f"n{number}" for number in range(10)]
        self.durable(completed, *names)
        assert self.asked() == names[:4]
        self.shop.begun[2].end()
        self.shop.begun[0].end()
        assert self.asked() == names[:6]
        for number in (1, 3, 4, 5, 6, 7, 8, 9):
            self.shop.begun[number].end()
        assert self.asked() == names
        assert self.marks() == []

    def test_what_has_run_counts_among_the_four_until_its_mark_is_gone(self) -> None:
        completed = self.completed("/bin/move")
        names = [f"n{number}" for number in range(6)]
        self.durable(completed, *names)
        with self.hands.at_leisure():
            self.shop.begun[0].end()
            self.shop.begun[1].end()
            assert self.asked() == names[:4]
        self.hands.finish()
        assert self.asked() == names

    def test_what_does_not_fit_in_memory_waits_on_disk_and_runs_once(self) -> None:
        self.patch(Completed, "MOST", 6)
        completed = self.completed("/bin/move")
        names = [f"n{number:02d}" for number in range(20)]
        self.durable(completed, *names)
        assert len(completed._tries) == 6
        for number in range(20):
            self.shop.begun[number].end()
        assert sorted(self.asked()) == names
        assert self.marks() == []

    def test_what_is_done_while_the_folder_is_being_looked_at_does_not_run_again(self) -> None:
        completed = self.completed("/bin/move")
        self.name(completed, "one")
        completed.use([])
        with self.hands.at_leisure():
            completed.use(["/bin/move"])
        completed.add(self.folder / "one.json")
        assert self.asked() == ["one"]
        self.shop.begun[0].end()
        self.hands.finish()
        completed.add(self.folder / "one.json")
        assert self.asked() == ["one"]
        assert self.marks() == []

    def test_a_folder_that_cannot_be_read_is_said_and_harms_nothing(self) -> None:
        with capturedLogs() as logs:
            gone = self.folder / "gone"
            Completed("ingest", gone, self.hands, ("/bin/move",)).startService()
        (event,) = logs
        assert "No such file or directory" in formatEvent(event)


class ReloadTests(CompletedCase):
    def test_a_new_command_serves_every_run_that_has_not_begun(self) -> None:
        completed = self.completed("/bin/old")
        self.durable(completed, "a", "b", "c", "d", "e")
        completed.use(["/bin/new"])
        self.shop.begun[0].end()
        assert [one.argv[0] for one in self.shop.begun] == ["/bin/old"] * 4 + ["/bin/new"]

    def test_while_there_is_no_command_what_is_marked_waits(self) -> None:
        completed = self.completed("/bin/old")
        self.durable(completed, "a", "b", "c", "d", "e")
        completed.use([])
        for run in self.shop.begun:
            run.end()
        assert self.marks() == ["e.pending"]
        self.durable(completed, "f")
        completed.use(["/bin/new"])
        assert self.asked()[4:] == ["e"]

    def test_a_command_given_later_finds_what_an_earlier_run_left(self) -> None:
        self.name(self.completed("/bin/move"), "one")
        later = self.completed()
        assert self.shop.begun == []
        later.use(["/bin/move"])
        assert self.asked() == ["one"]


class FailureTests(CompletedCase):
    def test_a_failure_is_logged_and_tried_again_after_growing_pauses_then_given_up(self) -> None:
        completed = self.completed("/bin/move")
        with capturedLogs() as logs:
            self.durable(completed, "one")
            for pause in Completed.PAUSES:
                self.shop.begun[-1].end(3)
                count = len(self.shop.begun)
                self.shop.advance(pause - 0.5)
                assert len(self.shop.begun) == count
                self.shop.advance(0.5)
                assert len(self.shop.begun) == count + 1
            self.shop.begun[-1].end(by=signal.SIGSEGV)
        said = [formatEvent(event) for event in logs]
        assert said[0] == "[ingest] ON_COMPLETE one.json: exit status 3; again in 5 s"
        assert "ended by signal 11; given up after 4 runs, see " in said[-1]
        assert self.marks() == ["one.failed"]
        self.completed("/bin/move")
        assert len(self.shop.begun) == 4
        assert self.shop.getDelayedCalls() == []

    def test_others_run_while_one_that_failed_waits(self) -> None:
        completed = self.completed("/bin/move")
        self.durable(completed, "a", "b", "c", "d", "e")
        self.shop.begun[0].end(1)
        assert self.asked()[-1] == "e"

    def test_a_program_that_cannot_be_started_counts_as_a_failure(self) -> None:
        completed = self.completed("/bin/move")
        self.shop.broken = FileNotFoundError(2, "No such file or directory")
        with capturedLogs() as logs:
            self.durable(completed, "one")
            self.shop.advance(0)
        (event,) = logs
        assert "/bin/move cannot be run: No such file or directory; again" in formatEvent(event)
        self.shop.broken = None
        self.shop.advance(5)
        self.shop.begun[0].end()
        assert self.marks() == []

    def test_a_program_that_is_gone_is_tried_for_each_of_many_and_again_when_it_is_back(
        self,
    ) -> None:
        names = [f"n{number:03d}" for number in range(500)]
        left = self.completed("/bin/move")
        self.shop.broken = FileNotFoundError(2, "No such file or directory")
        for name in names:
            self.name(left, name)
        self.completed("/bin/move")
        with capturedLogs() as logs:
            self.shop.advance(0)
        assert [event.get("name") for event in logs] == [f"{name}.json" for name in names]
        self.shop.broken = None
        self.shop.advance(5)
        for number in range(500):
            self.shop.begun[number].end()
        assert self.asked() == names
        assert self.marks() == []

    def test_a_stop_waits_for_no_program_that_cannot_be_started(self) -> None:
        completed = self.completed("/bin/move")
        self.shop.broken = FileNotFoundError(2, "No such file or directory")
        self.durable(completed, "one")
        stopped = completed.stopService()
        self.shop.advance(0)
        self.successResultOf(stopped)
        assert self.shop.getDelayedCalls() == []
        assert self.marks() == ["one.pending"]

    def test_what_takes_too_long_is_ended_and_counts_as_a_failure(self) -> None:
        completed = self.completed("/bin/move")
        self.durable(completed, "one")
        (run,) = self.shop.begun
        self.shop.advance(Completed.LIMIT)
        assert run.signals == ["TERM"]
        self.shop.advance(Run.HARD)
        assert run.signals == ["TERM", "KILL"]
        with capturedLogs() as logs:
            run.end(by=9)
        assert "took longer than 3600 s; again in 5 s" in formatEvent(logs[0])

    def test_a_mark_that_cannot_be_removed_is_said(self) -> None:
        completed = self.completed("/bin/move")
        self.durable(completed, "one")
        (self.folder / "one.pending").unlink()
        (self.folder / "one.pending").mkdir()
        with capturedLogs() as logs:
            self.shop.begun[0].end()
        assert "its mark stays, so it runs again" in formatEvent(logs[0])


class OutputTests(CompletedCase):
    def test_what_it_prints_is_logged_in_harmless_lines_and_bounded(self) -> None:
        completed = self.completed("/bin/move")
        self.durable(completed, "one")
        (run,) = self.shop.begun
        run.protocol.outReceived(b"moved\n\nred \x1b[31m\n")
        run.protocol.errReceived(b"x" * Run.OUTPUT)
        run.protocol.errReceived(b"yy")
        with capturedLogs() as logs:
            run.end()
        moved, red, rest, more = [formatEvent(event) for event in logs]
        assert moved == "[ingest] ON_COMPLETE one.json: moved"
        assert red == r"[ingest] ON_COMPLETE one.json: red \x1b[31m"
        assert len(rest) < Run.OUTPUT + 40
        assert more.endswith("... and 19 bytes more")


class StopTests(CompletedCase):
    def test_a_stop_begins_nothing_more_and_gives_what_runs_a_moment(self) -> None:
        completed = self.completed("/bin/move")
        self.durable(completed, "a", "b", "c", "d", "e")
        self.shop.begun[3].end(1)  # and waits to be tried again
        self.shop.begun[4].end()
        stopped = completed.stopService()
        self.shop.begun[0].end()
        self.shop.advance(Completed.STOP)
        assert [one.signals for one in self.shop.begun[1:3]] == [["TERM"], ["TERM"]]
        self.shop.begun[1].end(by=15)
        self.assertNoResult(stopped)
        self.shop.advance(Run.HARD)
        assert self.shop.begun[2].signals == ["TERM", "KILL"]
        self.shop.begun[2].end(by=9)
        assert self.successResultOf(stopped) is None
        assert self.marks() == ["b.pending", "c.pending", "d.pending"]
        assert self.shop.getDelayedCalls() == []
        self.completed("/bin/move")
        assert self.asked()[5:] == ["b", "c", "d"]

    def test_a_stop_with_nothing_to_do_is_over_at_once(self) -> None:
        assert self.successResultOf(self.completed("/bin/move").stopService()) is None


class RealProcessTests(TestCase):
    """Programs that run, on the reactor of the tests."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.crew = Crew(reactor)
        self.crew.startService()
        self.addCleanup(self.crew.stopService)

    def completed(self, program: str) -> Completed:
        made = Completed("ingest", self.folder, self.crew, (sys.executable, "-c", program))
        made.startService()
        self.addCleanup(made.stopService)
        return made

    def durable(self, completed: Completed, name: str) -> None:
        place = os.open(self.folder, os.O_RDONLY)
        completed.mark(f"{name}.json", place)
        os.close(place)
        (self.folder / f"{name}.json").write_text("{}")
        completed.add(self.folder / f"{name}.json")

    async def until_settled(self, name: str) -> None:
        for _ in range(400):
            if not (self.folder / f"{name}.pending").exists():
                return
            await deferLater(reactor, 0.01)
        raise AssertionError(f"{name} is still pending")

    async def test_it_gets_an_empty_stdin_and_its_output_is_logged(self) -> None:
        completed = self.completed(
            "import sys; print(sys.stdin.read() or 'nothing', sys.argv[1]); sys.stderr.write('!')"
        )
        with capturedLogs() as logs:
            self.durable(completed, "one")
            await self.until_settled("one")
        said = [formatEvent(event) for event in logs]
        assert f"[ingest] ON_COMPLETE one.json: nothing {self.folder / 'one.json'}" in said
        assert "[ingest] ON_COMPLETE one.json: !" in said

    async def test_what_it_leaves_running_with_its_pipes_holds_no_place(self) -> None:
        completed = self.completed(
            "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid)"
        )
        with capturedLogs() as logs:
            self.durable(completed, "one")
            await self.until_settled("one")
        (said,) = [formatEvent(event) for event in logs]
        os.kill(int(said.rpartition(" ")[2]), signal.SIGKILL)

    async def test_what_ignores_sigterm_is_killed_when_the_daemon_stops(self) -> None:
        self.patch(Completed, "STOP", 0.3)
        self.patch(Run, "HARD", 0.1)
        completed = self.completed(
            "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
        )
        self.durable(completed, "one")
        await deferLater(reactor, 0.2)
        with capturedLogs() as logs:
            await completed.stopService()
        assert "the next start runs it again" in formatEvent(logs[-1])
        assert (self.folder / "one.pending").exists()


class RealDaemonTests(SynchronousTestCase):
    """ON_COMPLETE of [ingest] in a real twistd; the command notes for which manifest it ran."""

    def daemon(self, command: str) -> Twistd:
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        script = daemon.home / "note"
        script.write_text('#!/bin/sh\nsleep "$1"; shift; echo "$*" >> "${0%/*}/ran"\n')
        script.chmod(0o755)
        daemon.configure(ingest=f"ON_COMPLETE = {command}")
        return daemon.start()

    def ran(self, daemon: Twistd, count: int) -> list[str]:
        """What was noted, once it is so much."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            note = daemon.home / "ran"
            lines = note.read_text().splitlines() if note.exists() else []
            if len(lines) >= count and not self.marks(daemon):
                return lines
            time.sleep(0.02)
        raise AssertionError(f"{lines}, {self.marks(daemon)}: {daemon.log[-2000:]}")

    def marks(self, daemon: Twistd) -> list[str]:
        return [path.name for path in (daemon.data / "ingest").glob("*.pending")]

    def manifests(self, daemon: Twistd) -> list[str]:
        return sorted(str(path) for path in (daemon.data / "ingest").glob("*.json"))

    def test_it_runs_once_for_each_series_and_a_reload_changes_it(self) -> None:
        daemon = self.daemon("./note 0")
        for data in (b"a", b"b" * 100_000, b"c"):
            assert daemon.ask(8080, data).startswith(b"OK ")
        assert sorted(self.ran(daemon, 3)) == self.manifests(daemon)
        daemon.configure(ingest="ON_COMPLETE = ./note 0 'later  on'")
        daemon.says("ON_COMPLETE = ")
        assert daemon.ask(8080, b"d").startswith(b"OK ")
        assert self.ran(daemon, 4)[3].startswith("later  on /")
        assert daemon.stop() == 0
        assert len(self.ran(daemon, 4)) == 4

    def test_kill_9_forgets_none_and_repeats_only_what_ran(self) -> None:
        daemon = self.daemon("./note 0.2")
        for number in range(10):
            assert daemon.ask(8080, b"%d" % number).startswith(b"OK ")
        self.ran_at_least(daemon, 2)
        daemon.kill()
        ran = self.ran(daemon, 10)
        assert sorted(set(ran)) == self.manifests(daemon)
        assert len(ran) <= 10 + Completed.AT_ONCE
        assert daemon.stop() == 0

    def ran_at_least(self, daemon: Twistd, count: int) -> None:
        until = time.monotonic() + PATIENCE
        note = daemon.home / "ran"
        while not note.exists() or len(note.read_text().splitlines()) < count:
            assert time.monotonic() < until, daemon.log[-2000:]
            time.sleep(0.02)
