"""What every connection does: end politely, count how it ended, leave nothing behind."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from attrs import define, field, frozen
from twisted.internet import reactor as _reactor
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from protocols.connection import (
    CUT,
    LINGER,
    LINGER_BYTES,
    Connection,
    Live,
    LiveFactory,
    spoken,
)
from protocols.options import duration, option
from protocols.spec import Context, Port, Spec
from tests.wire import House, Peer

reactor: Any = _reactor


@define(eq=False, repr=False)
class Parrot(Connection):
    """Says back what it hears; `bye` closes, `abort` resets, `later` answers in a second."""

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"left", "bye"})

    prefix: bytes = b""
    reasons: list[Failure] = field(factory=list, init=False)
    fins: int = field(default=0, init=False)
    stays: bool = field(default=False, init=False)

    def received(self, data: bytes) -> None:
        match data:
            case b"bye":
                self.transport.write(b"bye!")
                self.close("bye")
            case b"abort":
                self.abort("thrown", "it asked for it")
            case b"strange":
                self.close("strange", "it was strange")
            case b"later":
                self.later(1.0, lambda: self.transport.write(b"now"))
            case b"stay":
                self.stays = True
            case _:
                self.transport.write(self.prefix + data)

    def finished(self) -> None:
        self.fins += 1
        if not self.stays:
            super().finished()

    def drain(self, grace: float) -> None:
        if not self.stays:
            super().drain(grace)

    def closed(self, reason: Failure) -> None:
        self.reasons.append(reason)


@define(eq=False, repr=False)
class Unpaced(Parrot):
    PACED: ClassVar[bool] = False


@frozen
class Options:
    idle_timeout: float = option(0.0, duration, "seconds")
    prefix: str = option("", str, "what comes before every answer")


def build(context: Context) -> dict[str, LiveFactory]:
    options = context.options
    live = Live("parrot", context.clock, options.idle_timeout)
    return {"PORT": LiveFactory(live, lambda live: Parrot(live, options.prefix.encode()))}


SPEC = Spec("parrot", (Port("PORT", 1),), build, Options)


class ConnectionCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        hears: Any = self.events.append
        globalLogPublisher.addObserver(hears)
        self.addCleanup(globalLogPublisher.removeObserver, hears)

    def house(self, **options: Any) -> House:
        return House(SPEC, options=Options(**options))

    def said(self) -> list[str]:
        """What the log says of how connections ended."""
        lines = [
            event["log_format"].format(**event)
            for event in self.events
            if event.get("log_namespace") == "protocols.connection"
        ]
        self.events.clear()
        return lines


class CloseTests(ConnectionCase):
    def test_a_close_is_fin_after_the_answer_and_the_rest_is_read_and_dropped(self) -> None:
        ana = self.house().peer()
        ana.says(b"hola", b"bye", b"what follows", b"bye")
        assert ana.heard == b"holabye!"
        assert ana.transport.fin
        assert not ana.transport.closed
        assert ana.transport.producer is None
        ana.ends()
        assert ana.transport.closed
        assert ana.transport.lost

    def test_a_peer_that_does_not_end_is_cut_loose_after_a_while(self) -> None:
        ana = self.house().peer()
        ana.says(b"bye")
        ana.waits(LINGER - 0.1)
        assert not ana.transport.closed
        ana.waits(0.1)
        assert ana.transport.lost
        assert ana.clock.getDelayedCalls() == []

    def test_each_peer_has_its_own_while(self) -> None:
        ana, ben = (house := self.house()).peer(), house.peer()
        ana.says(b"bye")
        ana.waits(1)
        ben.says(b"bye")
        ana.waits(LINGER - 1)
        assert (ana.transport.closed, ben.transport.closed) == (True, False)
        ben.waits(1)
        assert ben.transport.closed
        assert ana.clock.getDelayedCalls() == []

    def test_a_peer_that_floods_instead_of_ending_is_reset(self) -> None:
        ana = self.house().peer()
        ana.says(b"bye")
        mib = bytes(1 << 20)
        ana.says(*[mib] * (LINGER_BYTES >> 20))
        assert not ana.transport.reset
        ana.says(b"x")
        assert ana.transport.reset
        assert ana.outcome == "bye"

    def test_a_peer_that_has_ended_already_is_closed_at_once(self) -> None:
        ana = self.house().peer()
        ana.says(b"stay")
        ana.ends()
        assert not ana.hung_up
        ana.connection.close("bye")
        assert (ana.transport.fin, ana.transport.closed) == (False, True)

    def test_only_the_first_outcome_counts(self) -> None:
        ana = (house := self.house()).peer()
        ana.says(b"bye")
        ana.connection.close("other")
        ana.connection.abort("third")
        assert ana.hung_up
        assert ana.transport.reset
        assert house.factories["PORT"].live.outcomes == {"bye": 1}

    def test_our_fin_told_after_the_peer_is_gone_leaves_nothing(self) -> None:
        ana = (house := self.house()).peer()
        ana.connection.close("bye")
        ana.connection.connectionLost(Failure(ConnectionDone()))
        ana.connection.writeConnectionLost()
        assert ana.clock.getDelayedCalls() == []
        assert len(house.factories["PORT"].live) == 0

    def test_a_received_that_was_not_written_is_noticed(self) -> None:
        with pytest.raises(NotImplementedError):
            Connection(Live("x", Clock())).received(b"")


class OutcomeTests(ConnectionCase):
    def outcome(self, act: Callable[[Peer], object]) -> tuple[str, list[str]]:
        ana = (house := self.house()).peer()
        act(ana)
        ana.transport.settle()
        if not ana.transport.lost:
            ana.ends()
        assert len(ana.connection.reasons) == 1  # type: ignore[attr-defined]
        (outcome,) = house.factories["PORT"].live.outcomes
        return outcome, self.said()

    def test_what_is_ordinary_is_counted_and_not_logged(self) -> None:
        assert self.outcome(lambda ana: ana.ends()) == ("left", [])
        assert self.outcome(lambda ana: ana.says(b"bye")) == ("bye", [])

    def test_what_is_not_is_one_line_that_names_the_peer(self) -> None:
        assert self.outcome(lambda ana: ana.resets()) == (
            "reset",
            ["parrot 127.0.0.1:54321: reset"],
        )
        assert self.outcome(lambda ana: ana.says(b"strange")) == (
            "strange",
            ["parrot 127.0.0.1:54321: strange (it was strange)"],
        )
        assert self.outcome(lambda ana: ana.says(b"abort")) == (
            "thrown",
            ["parrot 127.0.0.1:54321: thrown (it asked for it)"],
        )

    def test_an_exception_of_ours_is_a_failure(self) -> None:
        def fails(ana: Peer) -> None:
            ana.transport.lost = True
            ana.connection.connectionLost(Failure(ZeroDivisionError()))

        assert self.outcome(fails)[0] == "failed"

    def test_a_clean_end_without_a_fin_is_a_leave(self) -> None:
        assert self.outcome(lambda ana: ana.transport.loseConnection())[0] == "left"

    def test_addresses_are_said_as_people_write_them(self) -> None:
        assert spoken(IPv4Address("TCP", "127.0.0.1", 80)) == "127.0.0.1:80"
        assert spoken(IPv6Address("TCP", "::1", 80)) == "[::1]:80"
        assert spoken(UNIXAddress("/run/chat")) == "/run/chat"
        assert spoken(UNIXAddress(None)) == "unix"
        assert spoken(UNIXAddress("/run/\n")) == "/run/\\n"


class PaceTests(ConnectionCase):
    def test_while_the_peer_does_not_read_it_is_not_read(self) -> None:
        ana = self.house().peer()
        ana.transport.full = True
        ana.says(b"hola")
        assert not ana.transport.reading
        ana.transport.full = False
        ana.transport.producer.resumeProducing()
        ana.says(b"x")
        assert ana.heard == b"holax"

    def test_a_peer_that_was_paused_is_read_again_once_we_are_closing(self) -> None:
        ana = self.house().peer()
        ana.transport.full = True
        ana.says(b"hola")
        ana.connection.close("bye")
        assert ana.transport.reading
        ana.connection.pauseProducing()
        assert ana.transport.reading
        ana.says(b"dropped")

    def test_a_peer_that_has_ended_is_never_read_again(self) -> None:
        ana = self.house().peer()
        ana.says(b"stay")
        ana.ends()
        ana.connection.pauseProducing()
        ana.connection.resumeProducing()
        assert not ana.transport.reading

    def test_the_transport_may_belong_to_another_producer(self) -> None:
        factory = LiveFactory(Live("unpaced", Clock()), Unpaced)
        house = self.house()
        house.factories["PORT"] = factory
        ana = house.peer()
        assert ana.transport.producer is None
        ana.transport.registerProducer(self, False)
        ana.says(b"bye")
        assert ana.transport.producer is self

    def test_a_transport_that_goes_stops_nothing_twice(self) -> None:
        ana = self.house().peer()
        ana.connection.stopProducing()
        assert not ana.hung_up


class TimerTests(ConnectionCase):
    def test_later_comes_unless_more_bytes_come_first(self) -> None:
        ana = self.house().peer()
        ana.says(b"later")
        ana.waits(1)
        assert ana.heard == b"now"
        ana.says(b"later", b"x")
        ana.waits(1)
        assert ana.heard == b"nowx"

    def test_there_is_one_later_at_a_time(self) -> None:
        ana = self.house().peer()
        ana.says(b"later")
        ana.waits(0.5)
        ana.connection.later(1, lambda: ana.transport.write(b"other"))
        ana.waits(1)
        assert ana.heard == b"other"

    def test_an_end_of_any_kind_forgets_it(self) -> None:
        ends: list[Callable[[Peer], object]] = [
            lambda ana: ana.ends(),
            lambda ana: ana.resets(),
            lambda ana: ana.connection.abort("thrown"),
        ]
        for end in ends:
            ana = self.house().peer()
            ana.says(b"later")
            end(ana)
            ana.transport.settle()
            assert ana.clock.getDelayedCalls() == []

    def test_silence_of_the_idle_time_or_a_little_more_closes(self) -> None:
        ana = self.house(idle_timeout=4).peer()
        ana.clock.pump([0.5] * 8)
        assert not ana.hung_up
        ana.clock.pump([0.5] * 2)
        assert ana.hung_up
        ana.ends()
        assert self.said() == ["parrot 127.0.0.1:54321: silent"]

    def test_whoever_speaks_is_not_silent(self) -> None:
        ana = self.house(idle_timeout=4).peer()
        for _ in range(10):
            ana.says(b"x")
            ana.clock.pump([1, 1, 1])
        assert not ana.hung_up

    def test_whoever_was_not_listened_to_is_not_silent(self) -> None:
        ana = self.house(idle_timeout=4).peer()
        ana.transport.full = True
        ana.says(b"hola")
        for _ in range(10):
            ana.clock.pump([1, 1, 1])
            ana.transport.producer.resumeProducing()
        assert not ana.hung_up

    def test_the_beat_leaves_no_timer_when_everybody_is_gone(self) -> None:
        ana = (house := self.house(idle_timeout=4)).peer()
        ana.clock.pump([1] * 2)
        ana.ends()
        ana.waits(1)
        assert ana.clock.getDelayedCalls() == []
        ben = house.peer()
        ben.clock.pump([1] * 5)
        assert ben.hung_up

    def test_without_an_idle_time_there_is_no_timer_at_all(self) -> None:
        assert self.house().peer().clock.getDelayedCalls() == []


class DrainTests(ConnectionCase):
    def drain(self, house: House, grace: float = 10.0) -> list[None]:
        done: list[None] = []
        Deferred.fromCoroutine(house.factories["PORT"].drain(grace)).addCallback(done.append)
        return done

    def test_a_port_without_peers_is_drained_at_once(self) -> None:
        assert self.drain(self.house()) == [None]

    def test_it_is_over_when_the_last_peer_has_ended(self) -> None:
        ana, ben = (house := self.house(idle_timeout=30)).peer(), house.peer()
        done = self.drain(house)
        assert ana.hung_up
        ana.ends()
        assert done == []
        ben.ends()
        assert done == [None]
        assert house.clock.getDelayedCalls() == []
        assert house.factories["PORT"].live.outcomes == {"drained": 2}

    def test_who_works_on_gets_the_grace_and_is_then_cut(self) -> None:
        ana, ben = (house := self.house()).peer(), house.peer()
        for peer in (ana, ben):
            peer.says(b"stay")
        done = self.drain(house)
        ana.waits(9)
        ana.connection.close("bye")
        ana.ends()
        assert (ben.hung_up, done) == (False, [])
        ana.waits(1)
        assert ben.transport.reset
        ben.transport.settle()
        assert done == [None]
        assert house.factories["PORT"].live.outcomes == {"bye": 1, "cut": 1}
        assert self.said() == ["parrot: 1 cut after 10.0 s", "parrot 127.0.0.1:54321: cut"]
        assert house.clock.getDelayedCalls() == []

    def test_it_is_over_only_when_who_was_cut_is_gone(self) -> None:
        ana, ben = (house := self.house()).peer(), house.peer()
        for peer in (ana, ben):
            peer.says(b"stay")
        done = self.drain(house)
        house.clock.advance(10)
        ana.transport.settle()
        assert done == []
        ben.transport.settle()
        assert done == [None]
        assert house.clock.getDelayedCalls() == []

    def test_a_cut_that_is_not_told_in_time_holds_nobody_up(self) -> None:
        ana = (house := self.house()).peer()
        ana.says(b"stay")
        done = self.drain(house)
        house.clock.advance(10)
        house.clock.advance(CUT)
        assert done == [None]
        ana.transport.settle()
        assert house.clock.getDelayedCalls() == []

    def test_who_only_lingers_is_not_waited_for(self) -> None:
        ana = (house := self.house()).peer()
        ana.says(b"bye")
        done = self.drain(house)
        ana.transport.settle()
        assert done == [None]
        assert house.factories["PORT"].live.outcomes == {"bye": 1}
        assert house.clock.getDelayedCalls() == []


class AdoptTests(ConnectionCase):
    def test_a_reload_counts_for_whoever_comes_next(self) -> None:
        house = self.house(prefix="old ")
        old = house.peer()
        house.set(prefix="new ", idle_timeout=4.0)
        new = house.peer()
        for peer in (old, new):
            peer.says(b"x")
        assert (old.heard, new.heard) == (b"old x", b"new x")
        new.clock.pump([1] * 20)
        assert (old.hung_up, new.hung_up) == (False, True)

    def test_an_idle_time_that_is_taken_away_still_holds_for_whoever_was_there(self) -> None:
        house = self.house(idle_timeout=4.0)
        old = house.peer()
        house.set(idle_timeout=0.0)
        new = house.peer()
        new.clock.pump([1] * 20)
        assert (old.hung_up, new.hung_up) == (True, False)
        for peer in (old, new):
            peer.ends()
        assert house.factories["PORT"].live.outcomes == {"silent": 1, "left": 1}
        new.clock.advance(4)
        assert house.clock.getDelayedCalls() == []

    def test_a_drain_ends_both_old_and_new(self) -> None:
        house = self.house()
        peers = [house.peer()]
        for idle in (1.0, 2.0):
            house.set(idle_timeout=idle)
            peers.append(house.peer())
        done: list[object] = []
        Deferred.fromCoroutine(house.factories["PORT"].drain(5)).addCallback(done.append)
        for peer in peers:
            assert done == []
            assert peer.hung_up
            peer.ends()
        assert len(done) == 1
        assert house.clock.getDelayedCalls() == []


class SocketTests(TestCase):
    """The same on a real socket, where the kernel has its say."""

    def setUp(self) -> None:
        self.live = Live("parrot", reactor)
        self.connections: list[Parrot] = []

        def make(live: Live) -> Parrot:
            self.connections.append(Parrot(live))
            return self.connections[-1]

        port = reactor.listenTCP(0, LiveFactory(self.live, make), interface="127.0.0.1")
        self.address = ("127.0.0.1", port.getHost().port)
        self.addCleanup(port.stopListening)

    def dial(self) -> socket.socket:
        peer = socket.create_connection(self.address, timeout=4)
        self.addCleanup(peer.close)
        return peer

    async def gone(self) -> None:
        """Until no connection is left, 4 s at most."""
        for _ in range(400):
            if self.connections and not len(self.live):
                return
            await deferLater(reactor, 0.01)
        self.fail("a connection is still there")

    async def test_an_answer_is_not_lost_to_what_the_peer_says_after_it(self) -> None:
        peer = self.dial()

        def talk() -> bytes:
            peer.sendall(b"bye")
            heard = peer.recv(100)
            for _ in range(20):
                peer.sendall(bytes(100_000))
            while more := peer.recv(100):
                heard += more
            return heard

        assert await deferToThread(talk) == b"bye!"
        peer.close()
        await self.gone()
        assert self.live.outcomes == {"bye": 1}

    async def test_a_fin_is_told_once_however_often_reading_is_resumed(self) -> None:
        peer = self.dial()

        def talk() -> None:
            peer.sendall(b"stay")
            peer.shutdown(socket.SHUT_WR)

        await deferToThread(talk)
        for _ in range(100):
            await deferLater(reactor, 0.01)
            if self.connections and self.connections[0].fins:
                break
        (connection,) = self.connections
        for _ in range(3):
            connection.pauseProducing()
            connection.resumeProducing()
            await deferLater(reactor, 0.01)
        assert connection.fins == 1
        connection.close("bye")
        assert await deferToThread(peer.recv, 1) == b""
        await self.gone()

    async def test_a_reset_is_a_reset(self) -> None:
        peer = self.dial()
        await deferToThread(peer.sendall, b"hola")
        assert await deferToThread(peer.recv, 4) == b"hola"
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        await self.gone()
        assert self.live.outcomes == {"reset": 1}

    async def test_an_abort_is_one_too(self) -> None:
        peer = self.dial()
        await deferToThread(peer.sendall, b"abort")
        with pytest.raises(ConnectionResetError):
            await deferToThread(peer.recv, 4)
        await self.gone()
        assert self.live.outcomes == {"thrown": 1}
