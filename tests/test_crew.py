"""The intake in front of the threads: order, pace, and what the source hears."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from daemon.stores.crew import NICE, Crew, Hands, QueuedIntake, Sink, stand_back
from protocols.stores import StoreError


@define(eq=False)
class ByHand(Crew):
    """A crew whose work waits until the test has it done."""

    tasks: list[tuple[Deferred[Any], Callable[..., Any], Any]] = field(factory=list, init=False)
    busy: int = field(default=0, init=False)

    def work(self, task: Callable[..., Any], *args: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self.tasks.append((done, task, args))
        return done

    def does(self) -> None:
        """The oldest task."""
        done, task, args = self.tasks.pop(0)
        maybeDeferred(task, *args).chainDeferred(done)

    def does_all(self) -> None:
        while self.tasks:
            self.does()

    def begin(self) -> None:
        self.busy += 1

    def end(self) -> None:
        self.busy -= 1


@define(eq=False)
class Pail(Sink[str]):
    """A sink that keeps everything, or fails where it is told to."""

    fails: dict[str, Exception] = field(factory=dict)
    turns: list[list[bytes]] = field(factory=list)
    asked: list[str] = field(factory=list)

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if what in self.fails:
            raise self.fails[what]

    def write(self, chunks: Any) -> None:
        self.turns.append(chunks)
        self._ask("write")

    def commit(self) -> str:
        self._ask("commit")
        return "kept"

    def fail(self) -> int:
        self._ask("fail")
        return 7

    def abort(self) -> None:
        self._ask("abort")


@define(eq=False)
class Feeder:
    told: list[str] = field(factory=list)
    why: StoreError | None = None

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def broken(self, why: StoreError) -> None:
        self.told.append("broken")
        self.why = why

    def returned(self) -> None:
        self.told.append("returned")


FULL = OSError(errno.ENOSPC, "no space left", "/secret")


class IntakeTests(SynchronousTestCase):
    def intake(self, **fails: Exception) -> QueuedIntake[str]:
        self.clock = Clock()
        self.crew, self.pail, self.feeder = ByHand(self.clock), Pail(fails), Feeder()
        return QueuedIntake(self.pail, self.feeder, self.crew, high=100)

    def test_what_waits_goes_in_one_turn_and_one_thread_at_a_time(self) -> None:
        intake = self.intake()
        for chunk in (b"a", b"b", b"c"):
            intake.write(chunk)
        kept = intake.commit()
        assert len(self.crew.tasks) == 1
        self.crew.does_all()
        assert self.pail.turns == [[b"a"], [b"b", b"c"]]
        assert self.pail.asked == ["write", "write", "commit"]
        assert self.successResultOf(kept) == "kept"
        assert self.crew.busy == 0

    def test_an_empty_stream_can_be_committed(self) -> None:
        intake = self.intake()
        kept = intake.commit()
        assert self.crew.busy == 1
        self.crew.does_all()
        assert self.successResultOf(kept) == "kept"
        assert self.crew.busy == 0

    def test_an_intake_nobody_wrote_to_keeps_no_crew_waiting(self) -> None:
        self.intake()
        assert self.crew.busy == 0

    def test_the_source_is_paused_above_the_limit_and_resumed_at_a_quarter_of_it(self) -> None:
        intake = self.intake()
        intake.write(bytes(25))
        intake.write(bytes(75))
        assert self.feeder.told == []
        intake.write(bytes(1))
        intake.write(bytes(50))
        assert self.feeder.told == ["pause"]
        self.crew.does()
        assert self.feeder.told == ["pause"]
        self.crew.does()
        assert self.feeder.told == ["pause", "resume"]

    def test_a_write_that_fails_breaks_the_source_once_with_what_is_kept(self) -> None:
        intake = self.intake(write=FULL)
        with capturedLogs() as events:
            intake.write(bytes(200))
            self.crew.does()
            intake.write(b"more")
            assert self.feeder.told == ["pause"]
            self.crew.does_all()
            intake.write(b"more")
        assert self.feeder.told == ["pause", "resume", "broken"]
        assert self.feeder.why is not None
        assert (str(self.feeder.why), self.feeder.why.stored) == ("disk full", 7)
        assert self.pail.asked == ["write", "fail"]
        assert "no space left" in formatEvent(events[0])
        assert len(events) == 1
        assert self.crew.busy == 0

    def test_whoever_asked_to_commit_hears_of_the_failure_instead_of_the_source(self) -> None:
        for moment in ("before", "while", "commit"):
            intake = self.intake(**{"commit" if moment == "commit" else "write": FULL})
            intake.write(b"a")
            if moment == "while":
                self.crew.does()
            kept = intake.commit()
            self.crew.does_all()
            why = self.failureResultOf(kept, StoreError).value
            assert (why.reason, why.stored) == ("disk full", 7)
            assert self.feeder.told == []
            assert self.crew.busy == 0

    def test_a_commit_after_the_failure_fails_at_once(self) -> None:
        intake = self.intake(write=FULL)
        intake.write(b"a")
        self.crew.does_all()
        why = self.failureResultOf(intake.commit(), StoreError).value
        assert why.stored == 7
        assert self.crew.tasks == []

    def test_its_end_is_told_once_however_it_came(self) -> None:
        cases: list[tuple[dict[str, Exception], Any]] = [
            ({}, QueuedIntake.commit),
            ({"commit": FULL}, QueuedIntake.commit),
            ({"write": FULL}, lambda intake: None),
            ({}, QueuedIntake.abort),
        ]
        for fails, act in cases:
            ended: list[bool] = []
            intake = self.intake(**fails)
            intake.ended = partial(ended.append, True)
            intake.write(b"a")
            kept = act(intake)
            assert ended == []
            self.crew.does_all()
            assert ended == [True]
            if kept is not None:
                kept.addErrback(lambda failure: failure.trap(StoreError))

    def test_a_salvage_that_fails_too_has_kept_nothing(self) -> None:
        intake = self.intake(write=FULL, fail=FULL)
        intake.write(b"a")
        self.crew.does_all()
        assert self.feeder.why is not None
        assert self.feeder.why.stored == 0
        assert self.crew.busy == 0

    def test_a_mistake_of_ours_is_logged_whole_and_told_in_few_words(self) -> None:
        intake = self.intake(write=ValueError("a mistake"))
        intake.write(b"a")
        self.crew.does_all()
        assert str(self.feeder.why) == "storage failed"
        assert len(self.flushLoggedErrors(ValueError)) == 1

    def test_an_aborted_stream_forgets_what_waits_and_leaves_nothing(self) -> None:
        intake = self.intake()
        intake.write(b"a")
        intake.write(b"b")
        intake.abort()
        intake.write(b"c")
        self.crew.does_all()
        assert self.pail.turns == [[b"a"]]
        assert self.pail.asked == ["write", "abort"]
        assert self.feeder.told == []
        assert self.crew.busy == 0

    def test_an_abort_that_fails_is_logged_and_ends_all_the_same(self) -> None:
        intake = self.intake(abort=FULL)
        with capturedLogs() as events:
            intake.abort()
            self.crew.does_all()
        assert "may have left files behind" in formatEvent(events[0])
        self.flushLoggedErrors(OSError)
        assert self.crew.busy == 0

    def test_an_abort_after_the_end_does_nothing(self) -> None:
        intake = self.intake()
        kept = intake.commit()
        self.crew.does_all()
        self.successResultOf(kept)
        intake.abort()
        assert self.crew.tasks == []
        assert self.pail.asked == ["commit"]

    def patient(self, **fails: Exception) -> QueuedIntake[str]:
        intake = self.intake(**fails)
        self.patch(Pail, "PATIENCE", 5.0)
        return intake

    def test_trouble_that_passes_pauses_the_source_for_a_while_and_costs_nothing(self) -> None:
        intake = self.patient(write=FULL)
        intake.write(b"a")
        self.crew.does_all()
        assert self.feeder.told == ["pause"]
        assert self.crew.tasks == []
        intake.write(b"b")
        for _ in range(5):
            self.clock.advance(0.5)
            self.crew.does_all()
        self.pail.fails.clear()
        self.clock.advance(0.5)
        self.crew.does_all()
        assert self.feeder.told == ["pause", "resume"]
        assert self.pail.turns == [[b"a"], [b"b"], *[[]] * 5]
        kept = intake.commit()
        self.crew.does_all()
        assert self.successResultOf(kept) == "kept"

    def test_trouble_that_stays_breaks_the_source_after_that_while(self) -> None:
        intake = self.patient(write=FULL)
        intake.write(b"a")
        for _ in range(10):
            self.crew.does_all()
            assert self.feeder.why is None
            self.clock.advance(0.5)
        self.crew.does_all()
        assert self.feeder.told == ["pause", "resume", "broken"]
        assert self.clock.getDelayedCalls() == []

    def test_a_commit_waits_for_trouble_to_pass_as_well(self) -> None:
        intake = self.patient(commit=FULL)
        kept = intake.commit()
        self.crew.does_all()
        self.assertNoResult(kept)
        self.pail.fails.clear()
        self.clock.advance(0.5)
        self.crew.does_all()
        assert self.successResultOf(kept) == "kept"

    def test_trouble_that_no_one_can_end_is_not_waited_for(self) -> None:
        intake = self.patient(write=OSError(errno.EIO, "no such sector"))
        intake.write(b"a")
        self.crew.does_all()
        assert self.feeder.told == ["broken"]

    def test_an_abort_does_not_wait_for_trouble_to_pass(self) -> None:
        intake = self.patient(write=FULL)
        intake.write(b"a")
        self.crew.does_all()
        intake.abort()
        self.clock.advance(0.5)
        self.crew.does_all()
        assert self.pail.asked == ["write", "abort"]
        assert self.crew.busy == 0

    def test_trouble_of_many_streams_is_logged_once_in_a_while(self) -> None:
        crew = ByHand(Clock())
        with capturedLogs() as events:
            for _ in range(100):
                crew.complain(FULL)
            crew.complain(OSError(errno.EIO, "no such sector"))
            crew.reactor.advance(Crew.QUIET)
            crew.complain(FULL)
        assert [formatEvent(event) for event in events] == [
            "storing failed: [Errno 28] no space left: '/secret'",
            "storing failed: [Errno 5] no such sector",
            "storing failed: [Errno 28] no space left: '/secret' (99 more such since)",
        ]

    def test_the_bytes_that_came_are_counted(self) -> None:
        intake = self.intake()
        intake.write(b"abc")
        intake.write(b"de")
        assert intake.size == 5


class CrewTests(TestCase):
    def setUp(self) -> None:
        self.crew = Crew(reactor)
        self.crew.startService()
        self.stopped: Deferred[None] | None = None
        self.addCleanup(lambda: self.stopped or self.crew.stopService())

    def stop(self) -> Deferred[None]:
        self.stopped = self.crew.stopService()
        return self.stopped

    async def test_work_happens_in_another_thread_and_its_result_comes_back_here(self) -> None:
        here = threading.get_ident()
        assert await self.crew.work(lambda a, b: (a + b, threading.get_ident() != here), 1, 2) == (
            3,
            True,
        )
        with pytest.raises(OSError, match="no space left"):
            await self.crew.work(self.broken)

    @staticmethod
    def broken() -> None:
        raise FULL

    async def test_it_stops_only_after_every_intake_has_ended(self) -> None:
        first, second = (QueuedIntake(Pail(), Feeder(), self.crew) for _ in range(2))
        first.write(b"a")
        second.write(b"b")
        gone: list[Failure | None] = []
        self.stop().addBoth(gone.append)
        assert await first.commit() == "kept"
        assert gone == []
        second.abort()
        assert self.stopped is not None
        await self.stopped
        assert gone == [None]

    async def test_an_idle_crew_stops_at_once(self) -> None:
        await self.stop()


class PriorityTests(TestCase):
    """Threads of bulk bytes let the reactor go first."""

    def setUp(self) -> None:
        if sys.platform != "linux":
            raise SkipTest("a thread has no priority of its own here")
        self.usual = priority(os.getpid())

    async def test_who_works_on_a_socket_or_hashes_stands_back_and_nobody_else(self) -> None:
        crew = Crew(reactor)
        crew.startService()
        hands = Hands(crew, 1, "hashing")
        self.addCleanup(hands.shutdown)
        assert await crew.pursue(priority, 0).done == self.usual + NICE
        assert hands.submit(priority).result(5) == self.usual + NICE
        assert await crew.work(priority) == self.usual
        assert priority(os.getpid()) == self.usual
        await crew.stopService()

    def test_one_that_stands_at_the_end_already_stays_there(self) -> None:
        asked: list[int] = []
        self.patch(os, "getpriority", lambda which, who: 15)
        self.patch(os, "setpriority", lambda which, who, value: asked.append(value))
        stand_back()
        assert asked == [19]

    def test_who_may_not_works_on(self) -> None:
        def refuse(which: int, who: int, value: int) -> None:
            raise PermissionError

        self.patch(os, "setpriority", refuse)
        stand_back()
        assert priority() == self.usual


def priority(thread: int | None = None) -> int:
    """Of a thread; of the one that asks."""
    return os.getpriority(os.PRIO_PROCESS, thread or threading.get_native_id())
