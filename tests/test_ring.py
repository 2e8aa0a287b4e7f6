"""The ring: one order, one write a member, and what slowness costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from attrs import define, field
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores.ring import CHUNK, GAP, HASTE, OWN, PATIENCE, SLICE, Member, Ring
from protocols.stores import Line


def plain(lines: Sequence[Line]) -> bytes:
    return b"".join([line.text + b"\n" for line in lines])


def loud(lines: Sequence[Line]) -> bytes:
    return plain(lines).upper()


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

    def follow(self, ear: Ear, render: Any = plain, room: str = "main") -> Member:
        return self.ring.follow(room, render, ear, ear.lost.append)

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
        self.ring.accept = lambda: late.producer or self.follow(late)  # type: ignore[assignment]
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

        def counted(lines: Sequence[Line]) -> bytes:
            calls.append([line.text for line in lines])
            return plain(lines)

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

    def test_who_falls_off_the_ring_is_cut_and_nobody_else(self) -> None:
        self.ring.limit = 1000
        stuck, slow, well = Ear(1), Ear(1), Ear()
        for ear in (stuck, slow, well):
            self.follow(ear)
        for _ in range(20):
            self.say(b"x" * 99)
            self.turn()
            slow.takes(1)
        assert stuck.lost == ["slow"]
        assert stuck.producer is None
        assert slow.lost == well.lost == []
        slow.takes(None)
        assert slow.heard == well.heard

    def test_a_flush_larger_than_the_ring_cuts_nobody_who_kept_up(self) -> None:
        self.ring.limit = 1000
        stuck, well = Ear(1), Ear(10)
        for ear in (stuck, well):
            self.follow(ear)
        self.say("x" * 20)
        self.turn()
        well.takes(1)
        self.say(b"y" * (CHUNK * 2))
        self.turn()
        well.takes(None)
        assert len(well.heard) == 21 + CHUNK * 2 + 1
        self.say("z")
        self.turn()
        assert (stuck.lost, well.lost) == (["slow"], [])
        assert well.heard.endswith(b"y\nz\n")

    def test_who_takes_nothing_for_long_while_something_waits_is_cut(self) -> None:
        stuck, idle, well = Ear(1), Ear(2), Ear(1)
        for ear in (stuck, well):
            self.follow(ear)
        self.say("a")
        self.turn()
        self.say("b")
        self.turn()
        self.follow(idle)
        idle.producer.private(b"all it is owed\n")
        start = self.clock.seconds()
        while not stuck.lost:
            self.clock.advance(PATIENCE / 30)
            well.takes(1)
        assert PATIENCE <= self.clock.seconds() - start <= PATIENCE * 1.5
        self.clock.pump([PATIENCE / 3] * 9)
        assert idle.lost == well.lost == []

    def test_once_nobody_is_slow_there_is_no_timer_and_no_memory(self) -> None:
        ana, ben = self.ears(2, room=1)
        self.say(b"x" * (2 * CHUNK))
        self.turn()
        dialect = ana.producer.dialect
        assert dialect.end - dialect.start > CHUNK
        ana.takes(None)
        ben.producer.stop()
        assert dialect.end == dialect.start
        assert not dialect._chunks
        assert self.clock.getDelayedCalls() == []

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
        self.say("x" * HASTE)
        assert self.rest() == 0
        self.clock.turn()
        self.say("y" * (HASTE + 1))
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
