"""How many may connect, and what one too many is told."""

from __future__ import annotations

import resource
from collections.abc import Sequence

from attrs import define
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from daemon.gate import Gate, descriptors, places
from protocols.connection import Connection, Live, LiveFactory, TurnedAway
from tests.wire import Memory


def address(host: str) -> IAddress:
    return IPv6Address("TCP", host, 1) if ":" in host else IPv4Address("TCP", host, 1)


@define(eq=False, repr=False)
class Polite(Connection):
    def received(self, data: bytes) -> None:
        self.transport.write(data)


class GateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.gate = Gate(self.clock, most=0, per_address=2)

    def enter(self, *hosts: str) -> None:
        for host in hosts:
            self.gate.enter(address(host))

    def said(self, hosts: Sequence[str]) -> list[str]:
        with capturedLogs() as events:
            for host in hosts:
                assert self.gate.full(address(host))
        return [formatEvent(event) for event in events]

    def test_one_address_may_have_so_many_and_another_does_not_notice(self) -> None:
        self.enter("10.0.0.1", "10.0.0.1", "10.0.0.2")
        (said,) = self.said(["10.0.0.1"])
        assert said == "refused 1: 10.0.0.1 has 2 connections open, as many as one address may"
        assert not self.gate.full(address("10.0.0.2"))

    def test_who_leaves_makes_room(self) -> None:
        self.enter("10.0.0.1", "10.0.0.1")
        self.gate.leave(address("10.0.0.1"))
        assert not self.gate.full(address("10.0.0.1"))

    def test_this_machine_and_unix_sockets_are_exempt_unless_set(self) -> None:
        for host in ("127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"):
            self.enter(host, host)
            assert not self.gate.full(address(host))
            self.gate.loopback = True
            assert self.gate.full(address(host))
            self.gate.loopback = False
        unix = UNIXAddress(b"/run/chat")
        for _ in range(3):
            self.gate.enter(unix)
        self.gate.loopback = True
        assert not self.gate.full(unix)

    def test_there_are_only_so_many_in_all(self) -> None:
        self.gate.most = 3
        self.enter("10.0.0.1", "127.0.0.1", "::1")
        (said,) = self.said(["10.0.0.9"])
        assert said == "refused 1: 3 connections are open, as many as may be"

    def test_a_flood_is_told_of_at_once_and_then_once_a_second_and_reason(self) -> None:
        self.enter("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2")
        assert len(self.said(["10.0.0.1"] * 50 + ["10.0.0.2"] * 2)) == 2
        with capturedLogs() as events:
            self.clock.advance(1)
        assert [formatEvent(event).partition(" has ")[0] for event in events] == [
            "refused 49: 10.0.0.1",
            "refused 1: 10.0.0.2",
        ]
        assert self.said(["10.0.0.1"]) == []
        with capturedLogs() as events:
            self.clock.advance(1)
        assert len(events) == 1
        assert self.clock.getDelayedCalls() == []
        self.clock.advance(60)
        (said,) = self.said(["10.0.0.1"])
        assert said.startswith("refused 1: 10.0.0.1 ")

    def test_what_is_said_and_remembered_of_refusals_is_bounded(self) -> None:
        self.gate.per_address = 1
        hosts = [f"10.1.{number >> 8}.{number & 255}" for number in range(3 * Gate.ABOUT)]
        self.enter(*hosts)
        assert len(self.said(hosts)) == Gate.ABOUT + 1
        assert len(self.gate._told) == Gate.ABOUT + 1
        with capturedLogs() as events:
            self.clock.advance(1)
        (event,) = events
        assert formatEvent(event).startswith(f"refused {2 * Gate.ABOUT - 1}: many addresses have")
        assert len(self.said(hosts[-1:])) == 1
        assert len(self.gate._told) == 2

    def test_what_a_header_claims_is_no_address_of_ours(self) -> None:
        self.enter("unknown", "unknown")
        assert self.gate.full(IPv4Address("TCP", "unknown", 1))

    def test_most_of_the_descriptors_may_be_connections(self) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        assert places(7) == 7
        assert places(0) == int(descriptors() * 0.75)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)


class TurnedAwayTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.live = Live("toy", self.clock)
        self.live.gate = Gate(self.clock, per_address=1, loopback=True)
        self.factory = LiveFactory(self.live, Polite)

    def connect(self) -> Memory:
        protocol = self.factory.buildProtocol(address("127.0.0.1"))
        memory = Memory(protocol)
        protocol.makeConnection(memory)
        memory.settle()
        return memory

    def test_one_too_many_is_told_so_and_may_read_it(self) -> None:
        self.factory.busy = b"ERR busy\n"
        self.connect()
        late = self.connect()
        assert isinstance(late.protocol, TurnedAway)
        assert bytes(late.sent) == b"ERR busy\n"
        assert (late.fin, late.reset) == (True, False)

    def test_without_a_word_it_is_reset(self) -> None:
        self.connect()
        late = self.connect()
        assert (bytes(late.sent), late.reset) == (b"", True)
        assert self.live.outcomes["refused"] == 1

    def test_a_flood_of_those_who_do_not_read_is_reset(self) -> None:
        self.factory.busy = b"ERR busy\n"
        self.connect()
        late = [self.connect() for _ in range(TurnedAway.MOST + 1)]
        assert [memory.reset for memory in late] == [False] * TurnedAway.MOST + [True]

    def test_they_do_not_count_themselves(self) -> None:
        first = self.connect()
        self.connect()
        first.protocol.abort("left")
        first.settle()
        assert isinstance(self.connect().protocol, Polite)

    def test_a_reload_keeps_the_gate(self) -> None:
        fresh = LiveFactory(Live("toy", self.clock, idle=5.0), Polite)
        self.factory.adopt(fresh)
        self.connect()
        assert isinstance(self.connect().protocol, TurnedAway)
