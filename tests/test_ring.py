"""The rooms: one order, one write a member, and what slowness costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import define, field
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores.ring import (
    BRIM,
    FAIR,
    FLOOD,
    GAP,
    HARD,
    LEAST,
    OWN,
    PATIENCE,
    SLICE,
    SOFT,
    STALL,
    WORK,
    Ring,
    Seat,
)
from daemon.stores.room import CHUNK, LINES
from protocols.stores import Kind, Line


def plain(lines: Sequence[Line], at: float) -> bytes:
    return b"".join([line.text + b"\n" for line in lines])


def loud(lines: Sequence[Line], at: float) -> bytes:
    return plain(lines, at).upper()


@define(eq=False)
class Ear:
    """A consumer. room: bytes it takes until it pauses its producer; None: any number."""

    room: int | None = None
    heard: bytearray = field(factory=bytearray)
    writes: int = 0
    reading: bool = True
    producer: Any = None
    on_write: Callable[[], object] = bool
    lost: list[str] = field(factory=list)

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        assert data
        self.heard += data
        self.writes += 1
        self.on_write()
        if self.room is not None and self.producer is not None:
            self.room -= len(data)
            if self.room <= 0:
                self.producer.pauseProducing()

    def takes(self, room: int | None) -> None:
        """It has sent what it had, and has room again."""
        self.room = room
        if self.producer is not None:
            self.producer.resumeProducing()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True


class Turns(Clock):
    """A clock that knows single turns: what a turn plans for at once belongs to the next."""

    def turn(self) -> None:
        for call in [call for call in self.calls if call.getTime() <= self.seconds()]:
            self.calls.remove(call)
            call.called = 1
            call.func(*call.args, **call.kw)

    def spend(self, seconds: float) -> None:
        """Time that passes within a turn."""
        self.rightNow += seconds


class RingCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Turns()
        self.ring = Ring(self.clock)

    def follow(self, ear: Ear, render: Any = plain, room: str = "main") -> Seat:
        seat = self.ring.seat(ear, ear, ear.lost.append)
        assert seat.follow(room, render, new=True)
        return seat

    def ears(self, count: int, room: int | None = None) -> list[Ear]:
        ears = [Ear(room) for _ in range(count)]
        for ear in ears:
            self.follow(ear)
        return ears

    def say(self, *texts: str | bytes, room: str = "main") -> None:
        for text in texts:
            text = text.encode() if isinstance(text, str) else text
            self.ring.publish(room, [Line(text)])

    def turn(self) -> None:
        """A flush, all of it."""
        self.clock.advance(GAP)


class OrderTests(RingCase):
    def test_nothing_is_written_before_the_end_of_the_turn(self) -> None:
        (ana,) = self.ears(1)
        self.say("a")
        assert ana.heard == b""
        self.clock.advance(0)
        assert ana.heard == b"a\n"

    def test_the_lines_of_a_turn_are_joined_and_written_once_a_member(self) -> None:
        ears = self.ears(3)
        self.say("a", "b")
        self.ring.publish("main", [Line(b"c"), Line(b"d\ne")])
        self.clock.advance(0)
        assert {bytes(ear.heard) for ear in ears} == {b"a\nb\nc\nd\ne\n"}
        assert {ear.writes for ear in ears} == {1}

    def test_every_turn_is_heard_in_one_order(self) -> None:
        ears = self.ears(5)
        for number in range(20):
            self.say(f"m{number}")
            if number % 3:
                self.turn()
        self.turn()
        assert {bytes(ear.heard) for ear in ears} == {b"".join(b"m%d\n" % n for n in range(20))}

    def test_rooms_hear_only_what_is_said_in_them(self) -> None:
        ana, ben = Ear(), Ear()
        self.follow(ana, room="a")
        self.follow(ben, room="b")
        self.say("x", room="a")
        self.say("y", room="b")
        self.say("z", room="nobody's")
        self.clock.advance(0)
        assert ana.heard == b"x\n"
        assert ben.heard == b"y\n"

    def test_who_came_later_hears_what_is_said_from_then_on(self) -> None:
        self.ears(1)
        self.say("a")
        self.turn()
        (late,) = self.ears(1)
        self.say("b")
        self.turn()
        assert late.heard == b"b\n"

    def test_who_waits_in_the_backlog_is_let_in_before_a_flush(self) -> None:
        late = Ear()
        self.ring.accept = lambda: late.producer or self.follow(late)
        self.say("a")
        self.clock.advance(0)
        assert late.heard == b"a\n"

    def test_what_is_said_meanwhile_comes_after_what_is_being_served(self) -> None:
        ears = self.ears(SLICE * 2 + 1)
        self.say("a")
        self.clock.turn()
        assert sum(bool(ear.heard) for ear in ears) == SLICE
        self.say("b")
        (late,) = self.ears(1)
        self.clock.turn()
        assert sum(bool(ear.heard) for ear in ears) == SLICE * 2
        for _ in range(6):
            self.clock.turn()
        assert {bytes(ear.heard) for ear in ears} == {b"a\nb\n"}
        assert late.heard == b"b\n"
        assert {ear.writes for ear in ears} == {2}

    def test_who_leaves_between_two_slices_is_left_alone(self) -> None:
        ears = self.ears(SLICE + 2)
        members = [ear.producer for ear in ears]
        self.say("a")
        self.clock.turn()
        members[SLICE].stop()
        self.clock.turn()
        assert ears[SLICE].heard == b""
        assert ears[SLICE + 1].heard == b"a\n"


class DialectTests(RingCase):
    def test_a_dialect_is_rendered_once_however_many_speak_it(self) -> None:
        calls: list[list[bytes]] = []

        def counted(lines: Sequence[Line], at: float) -> bytes:
            calls.append([line.text for line in lines])
            return plain(lines, at)

        ears = [Ear() for _ in range(10)]
        for ear in ears:
            self.follow(ear, counted)
        self.say("a", "b")
        self.turn()
        assert calls == [[b"a", b"b"]]
        assert {bytes(ear.heard) for ear in ears} == {b"a\nb\n"}

    def test_two_dialects_hear_the_same_in_their_own_words(self) -> None:
        ana, ben = Ear(), Ear()
        self.follow(ana)
        member = self.follow(ben, loud)
        self.say("a")
        member.private(b"for ben\n")
        self.say("b")
        self.turn()
        assert ana.heard == b"a\nb\n"
        assert ben.heard == b"A\nfor ben\nB\n"


class PrivateTests(RingCase):
    def test_a_private_answer_keeps_its_place_between_the_lines(self) -> None:
        ana, ben = self.ears(2)
        ana.producer.private(b"0\n")
        self.say("a")
        ana.producer.private(b"1\n")
        ana.producer.private(b"2\n")
        self.say("b", "c")
        ana.producer.private(b"3\n")
        self.turn()
        assert ana.heard == b"0\na\n1\n2\nb\nc\n3\n"
        assert ben.heard == b"a\nb\nc\n"
        assert ben.writes == 1

    def test_it_is_written_at_once_while_nobody_speaks(self) -> None:
        (ana,) = self.ears(1)
        ana.producer.private(b"a\n")
        assert ana.heard == b"a\n"
        assert self.clock.getDelayedCalls() == []

    def test_it_keeps_its_place_for_a_member_that_is_behind(self) -> None:
        (ana,) = self.ears(1, room=1)
        self.say("a")
        self.turn()
        self.say("b")
        ana.producer.private(b"1\n")
        self.turn()
        ana.producer.private(b"2\n")
        self.say("c")
        self.turn()
        assert ana.heard == b"a\n"
        ana.takes(None)
        assert ana.heard == b"a\nb\n1\n2\nc\n"

    def test_a_member_not_served_yet_gets_it_after_the_lines_before_it(self) -> None:
        ears = self.ears(SLICE + 1)
        self.say("a")
        self.clock.turn()
        assert ears[-1].heard == b""
        ears[-1].producer.private(b"1\n")
        self.turn()
        assert ears[-1].heard == b"a\n1\n"

    def test_who_takes_no_answers_is_read_no_more_until_it_does(self) -> None:
        (ana,) = self.ears(1, room=1)
        ana.producer.private(b"x")
        answer = b"ERR\n" * (OWN // 4)
        ana.producer.private(answer)
        assert ana.reading
        ana.producer.private(b"y")
        assert not ana.reading
        ana.takes(1)
        assert not ana.reading
        ana.takes(None)
        assert ana.reading
        assert ana.heard == b"x" + answer + b"y"

    def test_a_huge_answer_is_written_in_pieces(self) -> None:
        (ana,) = self.ears(1, room=1)
        ana.producer.private(b"x" * (CHUNK * 3))
        assert len(ana.heard) == CHUNK
        ana.takes(None)
        assert len(ana.heard) == CHUNK * 3

    def test_a_member_that_stopped_gets_no_answer(self) -> None:
        (ana,) = self.ears(1)
        member = ana.producer
        self.say("a")
        member.private(b"1\n")
        member.stop()
        member.private(b"2\n")
        member.stop()
        self.turn()
        assert ana.heard == b""


class StopTests(RingCase):
    def test_the_end_comes_after_everything_published_so_far(self) -> None:
        ana, ben = self.ears(2)
        self.say("a")
        ends: list[bytes] = []
        ana.producer.stop(after=lambda: ends.append(bytes(ana.heard)))
        ana.producer.private(b"too late\n")
        self.say("b")
        assert ends == []
        self.turn()
        assert ends == [b"a\n"] == [ana.heard]
        assert ana.producer is None
        assert ben.heard == b"a\nb\n"

    def test_it_comes_at_once_when_nothing_is_owed(self) -> None:
        (ana,) = self.ears(1)
        ends: list[str] = []
        ana.producer.stop(after=lambda: ends.append("end"))
        assert ends == ["end"]

    def test_it_waits_for_a_member_that_is_behind(self) -> None:
        (ana,) = self.ears(1, room=1)
        ends: list[bytes] = []
        self.say("a")
        self.turn()
        self.say("b")
        ana.producer.private(b"1\n")
        ana.producer.stop(after=lambda: ends.append(bytes(ana.heard)))
        self.say("c")
        self.turn()
        assert ends == []
        ana.takes(None)
        assert ends == [b"a\nb\n1\n"]
        assert ana.heard == b"a\nb\n1\n"

    def test_a_full_transport_that_got_everything_is_not_waited_for(self) -> None:
        (ana,) = self.ears(1, room=1)
        self.say("a")
        self.turn()
        ends: list[str] = []
        ana.producer.stop(after=lambda: ends.append("end"))
        assert ends == ["end"]
        assert self.clock.getDelayedCalls() == []

    def test_only_the_first_end_is_called(self) -> None:
        (ana,) = self.ears(1)
        member, ends = ana.producer, []
        self.say("a")
        member.stop(after=lambda: ends.append("first"))
        member.stop(after=lambda: ends.append("second"))
        self.turn()
        assert ends == ["first"]

    def test_a_connection_that_goes_meanwhile_calls_nothing(self) -> None:
        (ana,) = self.ears(1)
        member, ends = ana.producer, []
        self.say("a")
        member.stop(after=lambda: ends.append("end"))
        member.stopProducing()
        member.stop()
        self.turn()
        assert ends == []

    def test_a_room_nobody_is_in_leaves_nothing_behind(self) -> None:
        (ana,) = self.ears(1)
        member = ana.producer
        self.say("a")
        member.stop()
        self.turn()
        assert self.ring._rooms == {}
        self.ears(1)[0].producer.stop()
        assert self.ring._rooms == {}
        assert self.clock.getDelayedCalls() == []

    def test_a_room_may_empty_and_fill_again_within_a_flush(self) -> None:
        ears = self.ears(SLICE + 1)
        members = [ear.producer for ear in ears]
        self.say("a")
        self.clock.turn()
        for member in members:
            member.stop()
        (ana,) = self.ears(1)
        self.turn()
        self.say("b")
        self.turn()
        assert ana.heard == b"b\n"


class SlowTests(RingCase):
    def test_a_full_member_is_not_written_to_and_gets_every_byte_when_it_resumes(self) -> None:
        ana, ben = Ear(1), Ear()
        self.follow(ana)
        self.follow(ben)
        for number in range(100):
            self.say(f"m{number}")
            self.turn()
        assert ana.heard == b"m0\n"
        for _ in range(3):
            ana.takes(50)
        ana.takes(None)
        assert ana.heard == ben.heard
        self.say("live again")
        self.turn()
        assert ana.heard == ben.heard

    def test_what_waits_is_written_in_chunks_and_only_while_it_is_taken(self) -> None:
        (ana,) = self.ears(1, room=1)
        self.say(b"x" * (3 * CHUNK))
        self.turn()
        assert len(ana.heard) == CHUNK
        ana.takes(CHUNK + 1)
        assert len(ana.heard) == 3 * CHUNK
        ana.takes(None)
        assert ana.heard == b"x" * (3 * CHUNK) + b"\n"

    def pump(self, seconds: float, each: Callable[[], object] = bool, step: float = 0.1) -> None:
        until = self.clock.seconds() + seconds
        while self.clock.seconds() < until:
            self.clock.advance(step)
            each()

    def test_who_is_stuck_is_cut_at_the_hard_limit_and_nobody_else(self) -> None:
        stuck, slow, well = Ear(1), Ear(1), Ear()
        for ear in (stuck, slow, well):
            self.follow(ear)
        for _ in range(HARD // SOFT + 3):
            self.say(b"x" * (SOFT - 1))
            self.turn()
            self.clock.advance(STALL / 4)
            slow.takes(SOFT)
            assert not slow.lost
        assert stuck.lost == ["slow"]
        assert stuck.producer is None
        assert (slow.lost, well.lost) == ([], [])
        slow.takes(None)
        assert slow.heard == well.heard

    def test_a_flush_beyond_every_limit_cuts_nobody_who_kept_up(self) -> None:
        stuck, well = Ear(1), Ear(10)
        for ear in (stuck, well):
            self.follow(ear)
        self.say("x" * 20)
        self.turn()
        well.takes(1)
        for _ in range(2):
            self.say(b"y" * (HARD + CHUNK))
            self.turn()
            assert well.lost == []
            well.takes(None)
            self.clock.advance(STALL)
            well.takes(1)
        self.turn()
        assert (stuck.lost, well.lost) == (["slow"], [])
        assert len(well.heard) == 21 + 2 * (HARD + CHUNK + 1)

    def test_who_is_behind_the_soft_limit_for_long_is_cut_though_nobody_speaks_any_more(
        self,
    ) -> None:
        slow, well = Ear(1), Ear(1)
        for ear in (slow, well):
            self.follow(ear)
        self.say(b"x" * (SOFT * 3))
        self.turn()
        self.say(b"x" * SOFT)
        self.turn()

        def take() -> None:
            slow.takes(1)
            well.takes(SOFT)

        self.pump(PATIENCE * 0.7, take, PATIENCE / 4)
        assert slow.lost == well.lost == []
        self.pump(PATIENCE * 0.5)
        assert (slow.lost, well.lost) == (["slow"], [])

    def test_who_comes_back_below_the_soft_limit_in_time_is_kept_for_ever(self) -> None:
        (ana,) = self.ears(1, room=1)
        self.say(b"x")
        self.turn()
        for _ in range(10):
            self.say(b"x" * (SOFT + CHUNK))
            self.turn()
            self.pump(PATIENCE * 0.8)
            ana.takes(SOFT + CHUNK)
        assert ana.lost == []

    def test_who_is_a_little_behind_may_stay_so(self) -> None:
        (ana,) = self.ears(1, room=1)
        for _ in range(SOFT // 1000):
            self.say(b"x" * 900)
            self.turn()
            self.pump(PATIENCE)
        assert ana.lost == []
        ana.takes(None)
        assert len(ana.heard) == 901 * (SOFT // 1000)

    def test_once_nobody_is_slow_there_is_no_timer_and_no_memory(self) -> None:
        ana, ben = self.ears(2, room=1)
        self.say(b"x" * (2 * CHUNK))
        self.turn()
        (dialect,) = [place.dialect for place in ana.producer.places]
        assert dialect.end - dialect.start > CHUNK
        ana.takes(None)
        ben.producer.stop()
        assert dialect.end == dialect.start
        assert not dialect._chunks
        assert self.clock.getDelayedCalls() == []

    def behind(self) -> tuple[Ear, Ear]:
        """One that lacks a line and reads no more, and one that hears all."""
        slow, well = Ear(1), Ear()
        for ear in (slow, well):
            self.follow(ear)
        for text in "ab":
            self.say(text)
            self.turn()
        assert slow.heard == b"a\n"
        return slow, well

    def test_who_left_and_takes_nothing_keeps_no_log_for_ever(self) -> None:
        slow, well = self.behind()
        (dialect,) = [place.dialect for place in well.producer.places]
        slow.producer.leave("main")
        for _ in range(HARD // SOFT + 3):
            assert dialect.end - dialect.start <= HARD + 2 * SOFT
            self.say(b"x" * SOFT)
            self.turn()
            self.clock.advance(STALL / 4)
        assert (slow.lost, well.lost) == (["slow"], [])
        assert dialect.end == dialect.start

    def test_who_is_leaving_is_not_late_with_what_is_said_since(self) -> None:
        slow, _ = self.behind()
        ends: list[bytes] = []
        slow.producer.stop(after=lambda: ends.append(bytes(slow.heard)))
        for _ in range(4):
            self.say(b"x" * SOFT)
            self.turn()
            self.clock.advance(PATIENCE)
        assert (slow.lost, ends) == ([], [])
        slow.takes(None)
        assert ends == [b"a\nb\n"]
        self.clock.advance(1)
        assert self.clock.getDelayedCalls() == []

    def test_who_is_told_ever_more_and_takes_nothing_is_cut(self) -> None:
        (stuck,) = self.ears(1, room=1)
        seat = stuck.producer
        seat.private(b"x")
        told = 0
        while not stuck.lost:
            assert told <= HARD
            behind = seat.tell(b"y" * 1000)
            told += 1000
            assert behind is (told > OWN)
        assert stuck.lost == ["slow"]
        assert stuck.heard == b"x"
        assert not seat.tell(b"y")

    def test_who_is_told_very_much_and_reads_is_kept(self) -> None:
        well, slow = self.ears(2)
        slow.takes(1)
        slow.producer.private(b"x" * 3 * OWN)
        for number in range(2 * HARD // 1000):
            assert not well.producer.tell(b"y" * 1000)
            assert slow.producer.tell(b"y" * 1000)
            if number % 70 == 0:
                slow.takes(1)
        assert slow.lost == well.lost == []
        slow.takes(None)
        assert len(slow.heard) == 3 * OWN + len(well.heard)

    def test_a_member_that_cannot_be_written_to_costs_no_neighbour(self) -> None:
        ana, bad, ben = self.ears(3)
        bad.on_write = lambda: 1 // 0
        self.say("a")
        self.turn()
        assert bad.lost == ["failed"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        self.say("b")
        self.turn()
        assert ana.heard == ben.heard == b"a\nb\n"


class PaceTests(RingCase):
    def rest(self) -> float:
        (planned,) = self.clock.getDelayedCalls()
        return planned.getTime() - self.clock.seconds()

    def test_after_a_flush_it_rests_as_long_as_that_took_and_no_longer_than_the_gap(self) -> None:
        for took, rest in ((GAP / 2, GAP / 2), (GAP * 5, GAP)):
            ear = Ear(on_write=partial(self.clock.spend, took))
            member = self.follow(ear)
            self.say("a")
            self.clock.turn()
            self.say("b")
            self.assertAlmostEqual(self.rest(), rest)
            self.clock.advance(rest)
            assert ear.heard == b"a\nb\n"
            member.stop()
            self.clock.advance(1)

    def test_a_lone_line_never_waits(self) -> None:
        (ana,) = self.ears(1)
        ana.on_write = partial(self.clock.spend, GAP)
        self.say("a")
        self.turn()
        self.turn()
        self.say("b")
        self.clock.turn()
        assert ana.heard == b"a\nb\n"

    def test_it_does_not_rest_while_much_waits(self) -> None:
        (ana,) = self.ears(1)
        ana.on_write = partial(self.clock.spend, GAP)
        self.say("a")
        self.clock.turn()
        self.say("b")
        self.assertAlmostEqual(self.rest(), GAP)
        self.say("x" * BRIM)
        assert self.rest() == 0
        self.clock.turn()
        self.say("y" * (BRIM + 1))
        assert self.rest() == 0
        assert ana.heard.startswith(b"a\nb\nx")

    def test_all_slices_count(self) -> None:
        ears = self.ears(SLICE * 2)
        ears[0].on_write = ears[-1].on_write = partial(self.clock.spend, GAP / 4)
        self.say("a")
        self.clock.turn()
        self.clock.turn()
        assert all(ear.heard for ear in ears)
        self.say("b")
        self.assertAlmostEqual(self.rest(), GAP / 2)


class FloodTests(RingCase):
    """Who says more than others can hear is not read for a while, and loses nothing."""

    def talk(self, seat: Seat, size: int) -> None:
        self.ring.publish("main", [Line(b"x" * (size - 1))], seat)

    def test_a_flooder_waits_for_the_slowest_that_still_reads(self) -> None:
        slow, loud, quiet = Ear(1), Ear(), Ear()
        self.follow(slow)
        flooder, talker = self.follow(loud), self.follow(quiet)
        while loud.reading:
            assert self.ring._rooms["main"].dialects[plain].end < 2 * FLOOD
            self.talk(flooder, FAIR + 1)
            self.turn()
        self.talk(talker, 100)
        assert flooder.muted
        assert quiet.reading
        while not loud.reading:
            self.clock.advance(STALL / 3)
            slow.takes(CHUNK)
            self.clock.advance(0)
        (place,) = slow.producer.places
        assert place.lag <= SOFT
        assert not flooder.muted
        slow.takes(None)
        assert slow.lost == []
        assert slow.heard == loud.heard

    def test_nobody_waits_for_one_that_is_stuck(self) -> None:
        stuck, loud = Ear(1), Ear()
        self.follow(stuck)
        flooder = self.follow(loud)
        said = 0
        while loud.reading:
            self.talk(flooder, FAIR + 1)
            said += FAIR + 1
            self.turn()
        start = self.clock.seconds()
        while not loud.reading:
            self.clock.advance(0.05)
        assert self.clock.seconds() - start <= STALL + 0.5
        while not stuck.lost:
            self.talk(flooder, FAIR + 1)
            said += FAIR + 1
            self.turn()
            assert loud.reading
        assert said < HARD + 2 * FAIR
        assert stuck.lost == ["slow"]

    def test_a_flooder_goes_on_when_the_slow_one_leaves(self) -> None:
        slow, loud = Ear(1), Ear()
        member = self.follow(slow)
        flooder = self.follow(loud)
        while loud.reading:
            self.talk(flooder, FAIR + 1)
            self.turn()
        member.stop()
        self.clock.advance(0)
        assert loud.reading
        assert self.clock.getDelayedCalls() == []

    def test_a_flooder_that_goes_to_another_room_is_read_there(self) -> None:
        slow, loud = Ear(1), Ear()
        self.follow(slow)
        flooder = self.follow(loud)
        while loud.reading:
            self.talk(flooder, FAIR + 1)
            self.turn()
        flooder.leave("main")
        assert loud.reading
        assert flooder.follow("other", plain)

    def test_a_flooder_that_leaves_meanwhile_is_left_alone(self) -> None:
        slow, loud = Ear(1), Ear()
        self.follow(slow)
        flooder = self.follow(loud)
        while loud.reading:
            self.talk(flooder, FAIR + 1)
            self.turn()
        flooder.stop()
        slow.takes(None)
        self.clock.advance(1)
        assert not loud.reading

    def test_what_is_said_faster_than_it_is_written_is_not_read(self) -> None:
        (loud,) = ears = self.ears(1)
        flooder = loud.producer
        while loud.reading:
            self.talk(flooder, FAIR)
        assert self.ring._rooms["main"].size <= BRIM + 2 * FAIR
        self.turn()
        assert loud.reading
        assert len(loud.heard) >= BRIM
        ears += self.ears(WORK // LEAST)
        self.talk(flooder, 10)
        self.clock.pump([GAP] * 40)
        said = 0
        while loud.reading:
            self.talk(flooder, FAIR)
            said += FAIR
        assert said <= LEAST + 3 * FAIR
        self.clock.pump([GAP] * 40)
        assert loud.reading
        assert len({len(ear.heard) for ear in ears[1:]}) == 1

    def test_tiny_lines_are_counted_too(self) -> None:
        (loud,) = self.ears(1)
        said = 0
        while loud.reading:
            assert said <= LINES + 8192
            self.ring.publish("main", [Line(b"\n".join([b"x"] * 2048))], loud.producer)
            said += 2048
        (planned,) = self.clock.getDelayedCalls()
        assert planned.getTime() == self.clock.seconds()
        self.turn()
        assert loud.reading
        assert loud.heard == b"x\n" * said

    def test_who_comes_and_goes_without_end_waits_for_the_slow_too(self) -> None:
        def seen(lines: Sequence[Line], at: float) -> bytes:
            return b"".join([b"%-49s\n" % (line.author or "").encode() for line in lines])

        slow, loud = Ear(1), Ear()
        self.follow(slow, seen)
        restless = self.follow(loud)
        for _ in range(100):
            if not loud.reading:
                break
            self.ring.publish("main", [Line(b"", "ana", Kind.JOIN)] * 100, restless)
            self.turn()
        assert not loud.reading
        assert slow.lost == []
        slow.takes(None)
        self.clock.advance(0)
        assert loud.reading

    def test_who_is_not_known_cannot_be_held_back_and_harms_nobody(self) -> None:
        slow, well = Ear(1), Ear()
        self.follow(slow)
        self.follow(well)
        for _ in range(4):
            self.say(b"x" * FLOOD)
            self.turn()
        assert well.reading
        assert len(well.heard) == 4 * (FLOOD + 1)


class RoomsTests(RingCase):
    """One consumer in several rooms."""

    def seat(self, ear: Ear, *rooms: str, echo: bool = True) -> Seat:
        seat = self.ring.seat(ear, ear, ear.lost.append)
        for room in rooms:
            assert seat.follow(room, plain, echo)
        return seat

    def test_a_seat_hears_all_its_rooms_in_the_order_of_the_turns(self) -> None:
        ana = Ear()
        self.seat(ana, "a", "b")
        for number in range(6):
            self.say(f"{number}", room="ab"[number % 2])
            self.turn()
        assert ana.heard == b"0\n1\n2\n3\n4\n5\n"

    def test_so_does_one_that_is_slow(self) -> None:
        ana, ben = Ear(1), Ear()
        self.seat(ana, "a", "b")
        self.seat(ben, "b", "a")
        for number in range(50):
            self.say(f"{number}", room="aab"[number % 3])
            self.turn()
        assert ana.heard == b"0\n"
        for _ in range(5):
            ana.takes(10)
        ana.takes(None)
        assert ana.heard == ben.heard

    def test_an_answer_comes_after_what_was_said_in_any_of_its_rooms(self) -> None:
        for room in (None, 1):
            ana = Ear(room)
            seat = self.seat(ana, "a", "b")
            self.say("1", room="a")
            seat.private(b"2\n")
            self.say("3", room="b")
            seat.private(b"4\n")
            self.say("5", room="a")
            self.turn()
            ana.takes(None)
            assert bytes(ana.heard).index(b"1") < bytes(ana.heard).index(b"2")
            assert bytes(ana.heard).index(b"3") < bytes(ana.heard).index(b"4")
            assert bytes(ana.heard).index(b"4") < bytes(ana.heard).index(b"5")
            assert sorted(bytes(ana.heard)) == sorted(b"1\n2\n3\n4\n5\n")

    def test_who_left_a_room_still_hears_what_was_said_before(self) -> None:
        ana, slow = Ear(), Ear(1)
        for ear in (ana, slow):
            seat = self.seat(ear, "a", "b")
            self.say("1", room="b")
            self.turn()
            self.say("2", room="a")
            seat.leave("a")
            self.say("3", room="a")
            self.say("4", room="b")
            self.turn()
            self.say("5", room="a")
            self.say("6", room="b")
            self.turn()
            seat.leave("b")
            seat.leave("never followed")
            self.say("7", room="b")
            self.turn()
            ear.takes(None)
            assert ear.heard == b"1\n2\n4\n6\n"
            seat.stop()
        assert self.ring._rooms == {}

    def test_who_comes_back_in_the_same_turn_misses_only_what_was_said_meanwhile(self) -> None:
        ana = Ear()
        seat = self.seat(ana, "a")
        self.say("1", room="a")
        seat.leave("a")
        self.say("2", room="a")
        assert seat.follow("a", plain)
        self.say("3", room="a")
        self.turn()
        assert ana.heard == b"1\n3\n"

    def test_who_joins_hears_what_is_said_from_then_on_also_within_a_turn(self) -> None:
        ana, ben = Ear(), Ear()
        self.say("before", room="a")
        self.seat(ana, "a")
        newcomer = self.ring.seat(ben, ben, ben.lost.append)
        assert newcomer.follow("a", plain, new=True)
        self.say("after", room="a")
        self.turn()
        assert ana.heard == b"after\n"
        assert ben.heard == b"before\nafter\n"

    def test_following_twice_changes_nothing(self) -> None:
        ana = Ear()
        seat = self.seat(ana, "a", "a")
        self.say("1", room="a")
        self.turn()
        assert ana.heard == b"1\n"
        seat.leave("a")
        assert self.ring._rooms == {}

    def test_one_without_echo_hears_the_others_only(self) -> None:
        ana, ben = Ear(), Ear()
        one, other = self.seat(ana, "a", "b", echo=False), self.seat(ben, "a", "b")
        for _ in range(2):
            self.ring.publish("a", [Line(b"mine")], one)
            self.ring.publish("a", [Line(b"mine too"), Line(b"and this")], one)
            one.private(b"answer\n")
            self.ring.publish("a", [Line(b"yours")], other)
            self.ring.publish("b", [Line(b"mine")], one)
            self.ring.publish("elsewhere", [Line(b"mine")], one)
            self.turn()
        assert ana.heard == b"answer\nyours\n" * 2
        assert ben.heard == b"mine\nmine too\nand this\nyours\nmine\n" * 2

    def test_its_end_comes_after_what_was_said_in_all_its_rooms(self) -> None:
        ana = Ear(1)
        seat = self.seat(ana, "a", "b", "c")
        self.say("1", room="a")
        self.turn()
        ends: list[bytes] = []
        self.say("2", room="b")
        seat.stop(after=lambda: ends.append(bytes(ana.heard)))
        self.say("3", room="c")
        assert not seat.follow("d", plain)
        self.turn()
        ana.takes(None)
        assert ends == [b"1\n2\n"]
        assert not seat.follow("d", plain)

    def test_a_slow_seat_in_many_rooms_costs_little_and_gets_everything(self) -> None:
        ana, ben = Ear(1), Ear()
        seat = self.seat(ana, *"abcde")
        self.seat(ben, *"abcde")
        for number in range(1000):
            self.say(f"{number}", room="abcde"[number % 5])
            self.turn()
        assert len(seat._script) < 300
        ana.takes(None)
        assert sorted(ana.heard.split()) == sorted(ben.heard.split())
        for room in range(5):
            own = [int(one) for one in ana.heard.split() if int(one) % 5 == room]
            assert own == sorted(own)

    def test_who_is_far_behind_and_leaves_hears_what_was_said_before(self) -> None:
        ana, ben = Ear(1), Ear()
        seat = self.seat(ana, "a", "b")
        self.seat(ben, "a", "b")
        for number in range(600):
            self.say(f"{number}", room="ab"[number % 2])
            self.turn()
        self.say("a", room="a")
        seat.leave("b")
        self.turn()
        heard = ben.heard.split()
        self.say("b", room="b")
        self.turn()
        ana.takes(None)
        assert sorted(ana.heard.split()) == sorted(heard)

    def test_what_is_not_shown_is_not_written(self) -> None:
        def silent(lines: Sequence[Line], at: float) -> bytes:
            return plain([line for line in lines if line.kind is Kind.SAY], at)

        ana = Ear()
        self.follow(ana, silent)
        self.ring.publish("main", [Line(b"", "ben", Kind.JOIN)])
        self.turn()
        assert ana.writes == 0
        ana.producer.private(b"1\n")
        self.ring.publish("main", [Line(b"", "ben", Kind.QUIT)])
        ana.producer.private(b"2\n")
        self.turn()
        assert ana.heard == b"1\n2\n"

    def test_lines_know_when_they_were_said(self) -> None:
        times: list[float] = []

        def timed(lines: Sequence[Line], at: float) -> bytes:
            times.append(at)
            return plain(lines, at)

        self.ring.now = iter([100.0, 200.0]).__next__
        self.follow(Ear(), timed)
        for _ in range(2):
            self.say("a", "b")
            self.turn()
        assert times == [100.0, 200.0]

    def test_rooms_are_told_with_their_members(self) -> None:
        self.seat(Ear(), "b", "a")
        self.seat(Ear(), "b")
        assert self.successResultOf(self.ring.rooms()) == [("a", 1), ("b", 2)]
        for room, members in (("a", 1), ("b", 2), ("nowhere", 0)):
            assert self.successResultOf(self.ring.members(room)) == members

    def test_there_are_only_so_many_rooms(self) -> None:
        self.ring.bounds(rooms=2, history=0)
        ana = Ear()
        seat = self.seat(ana, "a", "b")
        assert not seat.follow("c", plain)
        self.say("lost", room="c")
        self.turn()
        seat.leave("a")
        assert seat.follow("c", plain)
        self.say("x", room="c")
        self.turn()
        assert ana.heard == b"x\n"

    def test_a_room_of_which_only_the_history_is_left_makes_room_for_another(self) -> None:
        self.ring.bounds(rooms=3, history=10)
        self.ring.now = iter(range(1, 100)).__next__
        seat = self.seat(Ear(), "a", "b")
        for room in ("a", "b", "c"):
            self.say("x", room=room)
            self.turn()
        seat.leave("a")
        assert self.successResultOf(self.ring.rooms()) == [("a", 0), ("b", 1), ("c", 0)]
        assert seat.follow("d", plain)
        assert self.successResultOf(self.ring.rooms()) == [("b", 1), ("c", 0), ("d", 1)]
        (said,) = self.successResultOf(self.ring.history("c", 5))
        assert said.text == b"x"
        assert self.successResultOf(self.ring.history("a", 5)) == []

    def test_the_room_where_all_begin_is_open_to_everybody_and_keeps_its_history(self) -> None:
        self.ring.bounds(rooms=2, history=10)
        self.say("x")
        self.turn()
        seat = self.seat(Ear(), "a")
        assert not seat.follow("b", plain)
        assert len(self.successResultOf(self.ring.history("main", 5))) == 1
        self.ring.bounds(rooms=1, history=0)
        assert not seat.follow("b", plain)
        assert seat.follow("main", plain)

    def test_answers_to_one_that_reads_nothing_are_kept_and_little_else(self) -> None:
        ana = Ear(1)
        seat = self.seat(ana, *"abcde")
        for room in "aabcde":
            self.say(room, room=room)
            self.turn()
        before = len(seat._script)
        for _ in range(100):
            seat.private(b"1\n")
        assert len(seat._script) <= before + 105
        for _ in range(100):
            for room in "abcde":
                assert seat.follow(room, plain)
                seat.leave(room)
        assert len(seat.places) <= 10
        ana.takes(None)
        assert ana.heard.split() == [*b"a a b c d e".split(), *[b"1"] * 100]

    def test_history_holds_what_was_published_before_it_was_asked_for(self) -> None:
        self.ring.bounds(rooms=3, history=10)
        ana = Ear()
        self.say("1", "2")
        seat = self.seat(ana, "main")
        past = self.successResultOf(self.ring.history("main", 5))
        seat.private(b"".join(b"> %s\n" % said.text for said in past))
        self.say("3")
        self.turn()
        assert ana.heard == b"> 1\n> 2\n3\n"
