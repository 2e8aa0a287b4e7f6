"""TLS and PROXY around a service: half-close both ways, pacing, refusals; on both reactors."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import pytest
import trustme
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IConsumer, IPushProducer, ISystemHandle, ITCPTransport
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from daemon import binding
from daemon.binding import PortsTaken
from daemon.gate import Gate
from daemon.settings import Listen
from daemon.wrappers import proxy, wrap
from daemon.wrappers.proxy import Header, Proxy
from daemon.wrappers.tls import Secure
from daemon.wrappers.wrapper import PATIENCE, Wrapper
from protocols.connection import Connection, Live, LiveFactory
from protocols.echo import Echo
from protocols.spec import Port
from tests.reactors import BIG, Net, OnOurs, OnTwisted, Peer, Pulled, driven
from tests.tls import Authority, TLSPeer

CONTROL = b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 8080\r\n"
STUCK = 2_000_000  # bytes that a peer who does not read may cost, with the kernel's


@define(eq=False, repr=False)
class Noting(Connection):
    """Notes what it is told. At the peer's end it answers with what it got, in upper case."""

    act: Callable[[Any], object] = field(default=lambda connection: None)
    events: list[str] = field(factory=list, init=False)
    got: bytearray = field(factory=bytearray, init=False)

    def opened(self) -> None:
        self.act(self)

    def received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        self.got += data
        if self.events[-1:] != ["data"]:
            self.events.append("data")

    def finished(self) -> None:
        self.events.append("finished")
        self.transport.write(b"GOT " + bytes(self.got[:1000]).upper())
        self.close("whole")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")
        super().writeConnectionLost()

    def closed(self, reason: Failure) -> None:
        self.events.append("closed")


@implementer(IPushProducer)
@define(eq=False, repr=False)
class Flood:
    """Writes without end, whenever it may."""

    transport: Any
    sent: int = 0
    paused: bool = False
    stopped: bool = False

    def begin(self) -> Flood:
        self.transport.registerProducer(self, True)
        self.resumeProducing()
        return self

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False
        while not (self.paused or self.stopped):
            self.sent += 100_000
            self.transport.write(bytes(100_000))

    def stopProducing(self) -> None:
        self.stopped = True


class Floods(Noting):
    PACED: ClassVar[bool] = False
    flood: Flood

    def opened(self) -> None:
        narrow(self.transport)
        self.flood = Flood(self.transport).begin()


def narrow(transport: Any) -> None:
    """Let the kernel keep little of what nobody reads."""
    transport.getHandle().setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)


async def stalled(net: Net, count: Callable[[], Any]) -> Any:
    """What `count` has grown to when it grows no more."""
    before = -1
    while count() > before:
        before = count()
        await net.a_while(0.05)
    return before


@define(eq=False)
class Place:
    """A service behind an endpoint, in the reactor of `net`."""

    net: Net
    home: Path
    endpoint: str
    make: Callable[..., Connection] = Noting
    act: Callable[[Any], object] | None = None
    clock: Any = None
    made: list[Any] = field(factory=list)
    factory: LiveFactory = field(init=False)
    port: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.factory = LiveFactory(Live("svc", self.clock or self.net.reactor), self.build)
        listen = Listen("svc", Port("PORT", 1), (self.endpoint,), "LISTEN", "config.cfg:1")
        ((claim,),) = binding.claim([(listen, self.factory)], self.home)
        self.port = claim.serve(self.net.reactor)

    def build(self, live: Live) -> Connection:
        connection = self.make(live, self.act) if self.act else self.make(live)
        self.made.append(connection)
        return connection

    def dial(self) -> Peer:
        peer = self.net.dial(self.port)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        return peer

    @property
    def waiting(self) -> int:
        """How many are at the inner door."""
        door = self.port.factory
        return len((door.within if door.within is not self.factory else door)._at_the_door)

    async def refused(self) -> bool:
        await self.net.until(lambda: self.factory.live.outcomes["refused"])
        return self.factory.live.outcomes.total() == 1 and not self.made


class WrappedCase:
    """What the tests of both wrappers begin with."""

    addCleanup: Any
    patch: Any
    flushLoggedErrors: Any

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.authority = Authority(self.home)
        self.authority.server()

    def place(
        self,
        net: Net,
        endpoint: str = "ssl:0:interface=127.0.0.1",
        make: Any = Noting,
        act: Any = None,
        clock: Any = None,
    ) -> Place:
        return Place(net, self.home, endpoint, make, act, clock)

    def dial(self, place: Place, **about: Any) -> TLSPeer:
        """A TLS peer of `place`; about: attributes of its SSLContext."""
        context = self.authority.context(about.pop("client", None))
        for name, value in about.items():
            setattr(context, name, value)
        return TLSPeer(place.dial().sock, context)

    async def open(self, place: Place, **about: Any) -> tuple[Any, TLSPeer]:
        """A connection that is through the door, and its peer."""
        peer = self.dial(place, **about)
        before = len(place.made)
        await place.net.until(lambda: peer.look().shaken and len(place.made) > before)
        return place.made[-1], peer


BOTH = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


class HalfCloseOverTLS(WrappedCase):
    """close_notify is an end, FIN alone is none."""

    @driven
    async def test_after_close_notify_the_answer_still_goes_out_then_ours_and_fin(
        self, net: Net
    ) -> None:
        place = self.place(net)
        for version in BOTH:
            noting, peer = await self.open(place, maximum_version=version, minimum_version=version)
            peer.send(b"hola ")
            peer.send(b"todos")
            peer.notify()
            await net.until(lambda p=peer: p.over)
            assert (peer.heard, peer.notified, peer.was_reset) == (b"GOT HOLA TODOS", True, False)
            await net.until(lambda n=noting: n.events[-1] == "closed")
            assert noting.events == ["data", "finished", "closed"]
            assert noting.outcome == "whole"

    @driven
    async def test_a_peer_that_closes_right_after_its_last_byte_is_heard_to_the_end(
        self, net: Net
    ) -> None:
        place = self.place(net)
        for version in BOTH:
            noting, peer = await self.open(place, maximum_version=version)
            peer.sock.setblocking(True)
            peer.sock.sendall(peer.encrypted(b"x" * 300_000, last=True))
            peer.sock.close()  # a ticket that lies unread in its buffer would make this a reset
            await net.until(lambda n=noting: n.events[-1:] == ["closed"])
            assert (len(noting.got), noting.outcome) == (300_000, "whole")
            assert noting.events[:2] == ["data", "finished"]

    @driven
    async def test_fin_without_close_notify_is_a_reset_for_the_stream_was_cut(
        self, net: Net
    ) -> None:
        place = self.place(net, act=lambda noting: setattr(noting, "detail", "half of it"))
        noting, peer = await self.open(place)
        peer.send(b"half of the fi")
        peer.ends()
        await net.until(lambda: peer.over)
        assert bytes(noting.got) == b"half of the fi"
        assert noting.events == ["data", "closed"]
        assert noting.outcome == "reset"
        number = peer.sock.getsockname()[1]
        assert net.logged(f"svc 127.0.0.1:{number}: TLS broke off (FIN without close_notify)") == 1
        assert net.logged(f"svc 127.0.0.1:{number}: reset (half of it)") == 1
        assert not peer.heard

    @driven
    async def test_whoever_has_our_close_notify_may_leave_without_its_own(self, net: Net) -> None:
        place = self.place(net, act=lambda noting: noting.transport.loseWriteConnection())
        noting, peer = await self.open(place)
        await net.until(lambda: peer.over)
        assert peer.notified
        assert noting.events == ["write lost"]
        peer.ends()
        await net.until(lambda: noting.events[-1] == "closed")
        assert noting.events == ["write lost", "finished", "closed"]
        assert noting.outcome == "whole"

    @driven
    async def test_but_not_with_half_of_a_stream(self, net: Net) -> None:
        place = self.place(net, act=lambda noting: noting.transport.loseWriteConnection())
        for version in BOTH:
            noting, peer = await self.open(place, maximum_version=version)
            await net.until(lambda p=peer: p.over)
            peer.send(b"a slow sender")  # after both our close_notify and our FIN
            await net.until(lambda n=noting: n.got == b"a slow sender")
            peer.ends()
            await net.until(lambda n=noting: n.events[-1] == "closed")
            assert noting.events == ["write lost", "data", "closed"]
            assert noting.outcome == "reset"

    @driven
    async def test_nothing_is_written_after_our_close_notify(self, net: Net) -> None:
        def act(noting: Noting) -> None:
            noting.transport.writeSequence([b"all ", b"of it", b""])
            noting.transport.write(b"")
            noting.transport.loseWriteConnection()
            noting.transport.write(b"too late")

        place = self.place(net, act=act)
        _, peer = await self.open(place)
        await net.until(lambda: peer.over)
        assert (peer.heard, peer.notified) == (b"all of it", True)

    @driven
    async def test_what_a_peer_sends_after_close_is_read_and_dropped_until_it_ends(
        self, net: Net
    ) -> None:
        place = self.place(net, act=lambda noting: noting.close("enough"))
        noting, peer = await self.open(place)
        await net.until(lambda: peer.over)
        peer.send(bytes(100_000))
        peer.notify()
        await net.until(lambda: noting.events[-1] == "closed")
        assert (noting.outcome, bytes(noting.got), peer.was_reset) == ("enough", b"", False)

    @driven
    async def test_bytes_after_close_notify_mean_nothing(self, net: Net) -> None:
        place = self.place(net, act=lambda noting: setattr(noting, "finished", lambda: None))
        noting, peer = await self.open(place)
        noting.events.append("ready")
        peer.notify()
        await net.until(lambda: noting.ended)
        peer.sock.send(b"no TLS at all")
        peer.ends()
        await net.a_while()
        assert noting.events == ["ready"]
        noting.transport.loseConnection()
        await net.until(lambda: peer.over)
        assert peer.notified

    @driven
    async def test_a_reset_is_a_reset_before_and_after_close_notify(self, net: Net) -> None:
        place = self.place(net, act=lambda noting: setattr(noting, "finished", lambda: None))
        for notifies in (False, True):
            noting, peer = await self.open(place)
            if notifies:
                peer.notify()
                await net.until(lambda n=noting: n.ended)
            Peer(peer.sock).resets()
            await net.until(lambda n=noting: n.events[-1:] == ["closed"])
            assert noting.outcome == "reset"

    @driven
    async def test_our_abort_resets_the_peer(self, net: Net) -> None:
        _, peer = await self.open(
            self.place(net, act=lambda noting: noting.abort("cut")),
        )
        await net.until(lambda: peer.over)
        assert peer.was_reset


class OverTLS(WrappedCase):
    """A transport like any other."""

    @driven
    async def test_a_service_needs_to_know_nothing_of_it(self, net: Net) -> None:
        for endpoint in ("ssl:0:interface=127.0.0.1", "tls:port=0:interface=127.0.0.1"):
            place = self.place(net, endpoint, Echo)
            _, peer = await self.open(place)
            peer.send("señor\n".encode())
            await net.until(lambda p=peer: p.heard == "SEÑOR\n".encode())
            peer.send(b"DESCONEXION\n")
            await net.until(lambda p=peer: p.over)
            assert peer.notified

    @driven
    async def test_its_transport_provides_what_others_do(self, net: Net) -> None:
        noting, peer = await self.open(self.place(net))
        transport = noting.transport
        for interface in (ITCPTransport, IConsumer, IPushProducer, ISystemHandle):
            assert interface.providedBy(transport), interface
        assert transport.getPeer().port == peer.sock.getsockname()[1]
        assert transport.getHost().port == peer.sock.getpeername()[1]
        assert transport.getHandle().getpeername() == peer.sock.getsockname()
        for on in (True, False):
            transport.setTcpNoDelay(on)
            assert transport.getTcpNoDelay() is on
            transport.setTcpKeepAlive(on)
            assert transport.getTcpKeepAlive() is on
        transport.bufferSize = 12345
        assert transport.bufferSize == transport.transport.bufferSize == 12345
        transport.stopProducing()
        await net.until(lambda: peer.over)
        assert peer.notified

    @driven
    async def test_records_may_be_cut_at_any_byte(self, net: Net) -> None:
        noting, peer = await self.open(self.place(net))
        peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in peer.encrypted(b"hola", last=True):
            peer.sock.send(bytes([byte]))
            await net.a_while(0)
        await net.until(lambda: peer.over)
        assert (noting.got, peer.heard) == (b"hola", b"GOT HOLA")

    @driven
    async def test_what_comes_with_the_end_of_the_handshake_is_heard(self, net: Net) -> None:
        place = self.place(net)
        peer = self.dial(place)
        peer.look()
        await net.until(lambda: peer.take().shaken)  # its last flight is not out yet
        peer.sock.sendall(peer.encrypted(b"hola", last=True))
        await net.until(lambda: peer.over)
        assert peer.heard == b"GOT HOLA"

    @driven
    async def test_much_goes_both_ways_at_once(self, net: Net) -> None:
        noting, peer = await self.open(
            self.place(net, act=lambda noting: noting.transport.write(bytes(range(250)) * 20_000))
        )
        peer.send(bytes(BIG))
        await net.until(lambda: len(peer.heard) == 5_000_000 and len(noting.got) == BIG)
        assert bytes(peer.got) == bytes(range(250)) * 20_000
        peer.notify()
        await net.until(lambda: peer.over)
        assert len(peer.heard) == 5_000_000 + 1004

    @driven
    async def test_a_peer_that_does_not_read_pauses_the_producer(self, net: Net) -> None:
        floods, peer = await self.open(self.place(net, make=Floods))
        assert await stalled(net, lambda: floods.flood.sent) < STUCK
        await net.until(lambda: peer.look() and floods.flood.sent > 2 * STUCK)
        floods.flood.stopProducing()
        floods.close("enough")  # not before the rest is out
        await net.a_while()
        assert not peer.notified
        floods.transport.unregisterProducer()
        await net.until(lambda: peer.over)
        assert (len(peer.got), peer.notified) == (floods.flood.sent, True)

    @driven
    async def test_a_peer_that_does_not_read_is_not_read_from(self, net: Net) -> None:
        class Doubles(Noting):
            def opened(self) -> None:
                narrow(self.transport)

            def received(self, data: bytes) -> None:
                self.got += data
                self.transport.write(data * 2)

        doubles, peer = await self.open(self.place(net, make=Doubles))
        peer.send(bytes(2 * STUCK))
        assert await stalled(net, lambda: peer.flush() and len(doubles.got)) < STUCK
        await net.until(lambda: len(peer.heard) == 4 * STUCK)

    @driven
    async def test_a_pull_producer_is_asked_again_and_again(self, net: Net) -> None:
        pulled: list[Pulled] = []

        def act(noting: Noting) -> None:
            noting.transport.unregisterProducer()
            pulled.append(Pulled(noting.transport, BIG))
            noting.transport.loseConnection()  # not before it is done

        place = self.place(net, act=act)
        _, peer = await self.open(place)
        await net.until(lambda: peer.over)
        assert (len(peer.got), peer.notified) == (BIG, True)
        assert pulled[0].asked == BIG // Pulled.CHUNK

    @driven
    async def test_a_pull_producer_that_is_done_at_once_does_not_hold_up_the_end(
        self, net: Net
    ) -> None:
        def act(noting: Noting) -> None:
            noting.transport.unregisterProducer()
            Pulled(noting.transport, 5)
            noting.transport.loseWriteConnection()

        _, peer = await self.open(self.place(net, act=act))
        await net.until(lambda: peer.over)
        assert (peer.heard, peer.notified) == (bytes(5), True)

    @driven
    async def test_a_producer_is_told_when_the_peer_is_gone(self, net: Net) -> None:
        floods, peer = await self.open(self.place(net, make=Floods))
        Peer(peer.sock).resets()
        await net.until(lambda: floods.flood.stopped)
        assert floods.events == ["closed"]

    @driven
    async def test_nothing_is_delivered_while_it_is_paused_and_then_all_in_order(
        self, net: Net
    ) -> None:
        noting, peer = await self.open(
            self.place(net, act=lambda noting: noting.transport.pauseProducing())
        )
        peer.send(b"hola")
        peer.notify()
        await net.a_while()
        assert noting.events == []
        noting.transport.resumeProducing()
        noting.transport.resumeProducing()
        assert noting.events == []
        await net.until(lambda: peer.over)
        assert noting.events[:2] == ["data", "finished"]
        assert peer.heard == b"GOT HOLA"

    @driven
    async def test_who_pauses_at_the_last_bytes_hears_of_the_end_when_it_goes_on(
        self, net: Net
    ) -> None:
        class Pausing(Noting):
            def received(self, data: bytes) -> None:
                super().received(data)
                self.transport.pauseProducing()

        pausing, peer = await self.open(self.place(net, make=Pausing))
        peer.sock.sendall(peer.encrypted(b"hola", last=True))
        await net.until(lambda: pausing.events)
        await net.a_while()
        assert pausing.events == ["data"]
        pausing.transport.resumeProducing()
        pausing.transport.resumeProducing()
        assert pausing.events == ["data"]  # not inside that call
        await net.until(lambda: peer.over)
        assert peer.heard == b"GOT HOLA"

    @driven
    async def test_who_goes_on_and_is_lost_before_its_turn_hears_of_that_alone(
        self, net: Net
    ) -> None:
        noting, peer = await self.open(self.place(net))
        noting.transport.pauseProducing()
        noting.transport._ending = True
        noting.transport.resumeProducing()
        noting.transport.connectionLost(Failure(ConnectionResetError()))
        noting.transport.abortConnection()
        await net.until(lambda: peer.over)
        assert noting.events == ["closed"]

    @driven
    async def test_an_exception_within_ends_the_connection_also_after_a_pause(
        self, net: Net
    ) -> None:
        class Failing(Noting):
            def finished(self) -> None:
                raise ZeroDivisionError

        for pauses in (False, True):
            failing, peer = await self.open(self.place(net, make=Failing))
            if pauses:
                failing.transport.pauseProducing()
                failing.transport._pending = b"something"
            peer.notify()
            await net.a_while()
            failing.transport._ending |= pauses
            failing.transport.resumeProducing()
            await net.until(lambda f=failing: f.events[-1:] == ["closed"])
            assert failing.outcome == "failed"
            assert self.flushLoggedErrors(ZeroDivisionError)

    @driven
    async def test_a_broken_record_ends_it_after_what_was_good(self, net: Net) -> None:
        class Answering(Noting):
            def received(self, data: bytes) -> None:
                super().received(data)
                self.transport.write(b"thank you")

        answering, peer = await self.open(self.place(net, make=Answering))
        record = bytearray(peer.encrypted(b"good"))
        broken = bytearray(peer.encrypted(b"evil"))
        broken[-1] ^= 1
        peer.sock.sendall(bytes(record + broken))
        await net.until(lambda: peer.over)
        assert answering.got == b"good"
        assert answering.outcome == "reset"
        assert net.logged("TLS broke off (decryption failed or bad record mac)")

    @driven
    async def test_a_cut_is_not_worth_a_line_where_resets_are_not(self, net: Net) -> None:
        place = self.place(net, make=Echo)
        _, peer = await self.open(place)
        peer.send(b"hola")
        peer.ends()
        await net.until(lambda: peer.over)
        await net.until(lambda: place.factory.live.outcomes == {"reset": 1})
        assert not net.logged("svc 127")


class AtTheDoor(WrappedCase):
    """Handshakes that fail, and who may come in."""

    @driven
    async def test_what_is_no_tls_is_refused_in_a_line_to_both_sides(self, net: Net) -> None:
        for data, why, answer in (
            (b"x", "refused (it speaks no TLS)", b"ERR this port speaks TLS\n"),
            (b"GET ready\n", "refused (it speaks no TLS)", b"ERR this port speaks TLS\n"),
            (b"DELETE /x HTTP/1.1\r\n\r\n", "refused (it speaks no TLS)", b"HTTP/1.1 426 "),
            (b"\x16" + b"\0" * 100, "refused (TLS: ", b""),
        ):
            place = self.place(net)
            peer = place.dial()
            peer.send(data)
            assert await place.refused()
            await net.until(lambda p=peer: p.fin)  # after the answer, which is not lost
            assert peer.got.startswith(answer)
            peer.send(b"more of that")
            peer.ends()
            await net.a_while()
            assert net.logged(f"{peer.sock.getsockname()[1]}: {why}") == 1
        assert not self.flushLoggedErrors()

    @driven
    async def test_a_browser_that_asks_without_tls_is_told_in_http(self, net: Net) -> None:
        peer = self.place(net).dial()
        peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await net.until(lambda: peer.fin)
        head, _, body = bytes(peer.got).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.2, HTTP/1.1\r\n")
        assert f"Content-Length: {len(body)}".encode() in head
        assert body == b"This port speaks TLS: ask with https://\n"

    @driven
    async def test_tls_1_1_is_refused(self, net: Net) -> None:
        place = self.place(net)
        context = self.authority.context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        peer = TLSPeer(place.dial().sock, context)
        peer.look()
        assert await place.refused()
        await net.until(lambda: peer.look().error)
        assert net.logged("refused (TLS: unsupported protocol)")

    @driven
    async def test_a_client_that_does_not_trust_us_says_so_and_so_does_the_log(
        self, net: Net
    ) -> None:
        place = self.place(net)
        stranger = ssl.create_default_context(cadata=trustme.CA().cert_pem.bytes().decode())
        peer = TLSPeer(place.dial().sock, stranger)
        await net.until(lambda: peer.look().error)
        assert await place.refused()
        assert net.logged("refused (TLS: tlsv1 alert unknown ca)")

    @driven
    async def test_client_certificates_are_asked_for_where_a_ca_is_named(self, net: Net) -> None:
        vouched = self.authority.ca.issue_cert("ana@example.org")
        between = self.authority.ca.create_child_ca()
        self.authority.write("between.pem", between.cert_pem)
        for ca, good in {"root.pem": vouched, "between.pem": between.issue_cert("bob@x")}.items():
            endpoint = f"ssl:0:interface=127.0.0.1:clientCA={ca}"
            noting, peer = await self.open(self.place(net, endpoint), client=good)
            peer.notify()
            await net.until(lambda p=peer: p.over)
            assert noting.outcome == "whole"
            for version in BOTH:
                for bad, why in {
                    None: "refused (TLS: peer did not return a certificate)",
                    trustme.CA().issue_cert("eve@example.org"): "refused (TLS: its certificate: ",
                }.items():
                    before = net.logged(why)
                    place = self.place(net, endpoint)
                    peer = self.dial(place, client=bad, maximum_version=version)
                    peer.look()
                    await net.until(lambda p=peer: p.look().error)
                    assert await place.refused()
                    assert net.logged(why) == before + 1
        assert not self.flushLoggedErrors()

    @driven
    async def test_a_probe_that_says_nothing_costs_no_line(self, net: Net) -> None:
        for endpoint in ("ssl:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1"):
            place = self.place(net, endpoint)
            ends, resets = place.dial(), place.dial()
            await net.a_while()
            ends.ends()
            resets.resets()
            await net.until(lambda p=ends: p.fin)
            await net.a_while()
            assert not place.factory.live.outcomes
            assert not place.port.factory._at_the_door

    @driven
    async def test_who_leaves_in_the_middle_is_named(self, net: Net) -> None:
        for endpoint, owed in {
            "ssl:0:interface=127.0.0.1": "it left before its TLS handshake was whole",
            "haproxy:tcp:0:interface=127.0.0.1": "it left before its PROXY header was whole",
        }.items():
            for leave in (Peer.ends, Peer.resets):
                place = self.place(net, endpoint)
                peer = place.dial()
                peer.send(b"\x16\x03\x01" if "ssl" in endpoint else b"PRO")
                await net.until(lambda p=place: any(w._heard for w in p.port.factory._at_the_door))
                leave(peer)
                assert await place.refused()
                assert net.logged(owed)

    @driven
    async def test_who_owes_too_long_is_reset(self, net: Net) -> None:
        for endpoint, owed in {
            "ssl:0:interface=127.0.0.1": "refused (no TLS handshake in 10 s)",
            "haproxy:tcp:0:interface=127.0.0.1": "refused (no PROXY header in 10 s)",
            "haproxy:ssl:0:interface=127.0.0.1": "refused (no TLS handshake in 10 s)",
        }.items():
            header = CONTROL if "haproxy:ssl" in endpoint else b""
            before = net.logged(owed)
            place = self.place(net, endpoint, clock=Clock())
            peers = []
            for number in (1, 2):
                peers.append(place.dial())
                peers[-1].send(header)
                await net.until(lambda p=place, n=number: p.waiting == n)
                place.clock.advance(PATIENCE / 2)
            await net.until(lambda p=place: p.waiting == 1)
            assert (peers[0].reset, peers[1].reset) == (True, False)
            place.clock.advance(PATIENCE / 2)
            await net.until(lambda p=place: not p.waiting)
            assert peers[1].reset
            assert net.logged(owed) == before + 2

    @driven
    async def test_who_was_refused_and_does_not_leave_is_reset_too(self, net: Net) -> None:
        place = self.place(net, clock=Clock())
        peer = place.dial()
        peer.send(b"GET / HTTP/1.1\r\n\r\n")
        await net.until(lambda: peer.fin)
        place.clock.advance(PATIENCE)
        await net.until(lambda: not place.waiting)
        assert place.factory.live.outcomes == {"refused": 1}

    @driven
    async def test_who_says_nothing_there_counts_as_a_connection_of_its_address(
        self, net: Net
    ) -> None:
        self.patch(Wrapper, "MOST", 2)
        place = self.place(net)
        gate = place.factory.live.gate = Gate(net.reactor, per_address=3, loopback=True)
        peers = [place.dial() for _ in range(3)]
        await net.until(lambda: place.waiting == 3)
        late = place.dial()
        await net.until(lambda: late.reset)
        assert (place.waiting, gate.refusals["address"]) == (3, 1)
        assert place.factory.live.outcomes == {"refused": 1}
        assert net.logged("refused 1: 127.0.0.1 has 3 connections open") == 1
        for peer in peers:
            peer.resets()
        await net.until(lambda: not place.waiting)
        _, inside = await self.open(place)
        inside.notify()
        await net.until(lambda: inside.over)
        await net.until(lambda: not place.factory.live)
        assert not gate._here

    @driven
    async def test_one_too_many_is_told_so_inside_while_few_are_at_the_door(self, net: Net) -> None:
        place = self.place(net)
        place.factory.live.gate = Gate(net.reactor, per_address=1, loopback=True)
        place.factory.busy = b"ERR busy\n"
        await self.open(place)
        late = self.dial(place)
        await net.until(lambda: late.heard == b"ERR busy\n" and late.notified)

    @driven
    async def test_a_balancer_speaks_for_many(self, net: Net) -> None:
        self.patch(Wrapper, "MOST", 0)
        place = self.place(net, "haproxy:tcp:0:interface=127.0.0.1")
        place.factory.live.gate = Gate(net.reactor, per_address=1, loopback=True)
        for number in (1, 2, 3):
            place.dial()
            await net.until(lambda n=number: place.waiting == n)

    @driven
    async def test_who_is_still_at_the_door_when_the_port_closes_is_reset(self, net: Net) -> None:
        for endpoint in ("ssl:0:interface=127.0.0.1", "haproxy:ssl:0:interface=127.0.0.1"):
            place = self.place(net, endpoint)
            peer = place.dial()
            peer.send(CONTROL[:7])
            if "haproxy" not in endpoint:
                peer = place.dial()
            await net.until(lambda p=place: p.port.factory._at_the_door)
            assert place.factory.numPorts == 1
            await place.port.stopListening()
            await net.until(lambda p=peer: p.reset)
            assert place.factory.numPorts == 0
            assert place.port.factory._sweep is None

    @driven
    async def test_who_is_inside_when_the_port_closes_stays(self, net: Net) -> None:
        place = self.place(net)
        _, peer = await self.open(place)
        await place.port.stopListening()
        peer.send(b"hola")
        peer.notify()
        await net.until(lambda: peer.over)
        assert peer.heard == b"GOT HOLA"

    @driven
    async def test_a_service_may_refuse_to_build_anything(self, net: Net) -> None:
        place = self.place(net)
        place.factory.buildProtocol = lambda addr: None  # type: ignore[method-assign,assignment,return-value]
        peer = self.dial(place)
        await net.until(lambda: peer.over)
        assert peer.was_reset


class Certificates(WrappedCase):
    """Files that are renewed, and chains."""

    @driven
    async def test_renewed_files_are_taken_without_a_restart(self, net: Net) -> None:
        place = self.place(net)
        _, first = await self.open(place)
        _, same = await self.open(place)
        assert first.certificate() == same.certificate()
        self.authority.server()
        _, renewed = await self.open(place)
        assert renewed.certificate() != first.certificate()
        assert net.logged(f"svc: {self.home}/server.pem read again") == 1
        first.send(b"still here")
        first.notify()
        await net.until(lambda: first.over)
        assert first.heard == b"GOT STILL HERE"

    @driven
    async def test_files_that_become_useless_leave_the_old_ones_in_force(self, net: Net) -> None:
        place = self.place(net)
        _, first = await self.open(place)
        (self.home / "server.pem").write_text("half")
        for _ in range(2):
            _, peer = await self.open(place)
            assert peer.certificate() == first.certificate()
        assert net.logged("svc: the certificate in force stays: ") == 1
        (self.home / "server.pem").unlink()
        await self.open(place)
        assert net.logged("server.pem: cannot be read: No such file or directory") == 1
        self.authority.server()
        _, peer = await self.open(place)
        assert peer.certificate() != first.certificate()

    @driven
    async def test_files_that_whoever_we_became_cannot_read_are_told_at_once(
        self, net: Net
    ) -> None:
        place = self.place(net)
        (self.home / "server.pem").unlink()
        place.port.factory.startFactory()
        assert net.logged("svc: the certificate in force stays: ") == 1
        await self.open(place)
        assert net.logged("server.pem: cannot be read: No such file or directory") == 1

    @driven
    async def test_the_chain_may_have_a_file_of_its_own(self, net: Net) -> None:
        between = self.authority.ca.create_child_ca()
        leaf = between.issue_cert("localhost")
        self.authority.write("key.pem", leaf.private_key_pem)
        self.authority.write("cert.pem", leaf.cert_chain_pems[0])
        self.authority.write("chain.pem", between.cert_pem)
        folder = str(self.home).replace(":", r"\:")
        place = self.place(
            net,
            rf"ssl:0:privateKey={folder}/key.pem:certKey=cert.pem:extraCertChain=chain.pem"
            r":interface=127.0.0.1:backlog=10",
        )
        noting, peer = await self.open(place)
        peer.notify()
        await net.until(lambda: peer.over)
        assert noting.outcome == "whole"


class BehindABalancer(WrappedCase):
    """PROXY headers on the wire."""

    ENDPOINT = "haproxy:tcp:0:interface=127.0.0.1"

    @driven
    async def test_the_peer_is_who_the_header_says(self, net: Net) -> None:
        place = self.place(net, self.ENDPOINT)
        peer = place.dial()
        peer.send(CONTROL + b"hola")
        await net.until(lambda: place.made and place.made[0].got == b"hola")
        transport = place.made[0].transport
        assert transport.getPeer() == IPv4Address("TCP", "192.0.2.7", 40000)
        assert transport.getHost() == IPv4Address("TCP", "10.0.0.1", 8080)
        assert transport.getHandle().getpeername() == peer.sock.getsockname()
        peer.resets()
        await net.until(lambda: place.made[0].events[-1] == "closed")
        assert net.logged("svc 192.0.2.7:40000: reset")

    @driven
    async def test_the_balancer_itself_keeps_its_address(self, net: Net) -> None:
        for header in (b"PROXY UNKNOWN\r\n", proxy.V2 + b"\x20\0\0\0"):
            place = self.place(net, self.ENDPOINT)
            peer = place.dial()
            peer.send(header)
            await net.until(lambda p=place: p.made)
            transport = place.made[0].transport
            assert transport.getPeer().port == peer.sock.getsockname()[1]
            assert transport.getHost().port == peer.sock.getpeername()[1]
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            assert peer.heard == b"GOT "

    @driven
    async def test_a_header_may_be_cut_at_any_byte_with_and_without_tls(self, net: Net) -> None:
        for header in (CONTROL, binary(0x21, 0x11, FOUR, b"\x04\0\1x")):
            place = self.place(net, self.ENDPOINT)
            peer = place.dial()
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in header + b"hola":
                peer.send(bytes([byte]))
                await net.a_while(0)
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            assert peer.heard == b"GOT HOLA"
            place = self.place(net, "haproxy:ssl:0:interface=127.0.0.1")
            for cut in (0, 1, len(header) - 1, len(header)):
                plain = place.dial()
                plain.send(header[:cut])
                await net.a_while(0.005)
                secret = TLSPeer(plain.sock, self.authority.context())
                plain.send(header[cut:])  # and the ClientHello right behind it
                await net.until(lambda s=secret: s.look().shaken)
                secret.send(b"hola")
                secret.notify()
                await net.until(lambda s=secret: s.over)
                assert secret.heard == b"GOT HOLA"
                assert place.made[-1].transport.getPeer() == IPv4Address("TCP", "192.0.2.7", 40000)

    @driven
    async def test_half_close_goes_through_and_so_does_ours(self, net: Net) -> None:
        place = self.place(net, self.ENDPOINT)
        peer = place.dial()
        peer.send(CONTROL + b"hola")
        peer.ends()
        await net.until(lambda: peer.fin)
        assert peer.heard == b"GOT HOLA"
        await net.until(lambda: place.made[0].events[-1] == "closed")
        assert place.made[0].events == ["data", "finished", "closed"]
        place = self.place(net, self.ENDPOINT, act=lambda noting: noting.close("enough"))
        peer = place.dial()
        peer.send(CONTROL)
        await net.until(lambda: peer.fin)
        assert place.made[0].events == ["write lost"]

    @driven
    async def test_anything_else_is_reset_and_named(self, net: Net) -> None:
        for wrong, why in {
            b"GET / HTTP/1.1\r\n": "refused (no PROXY header, but something else)",
            b"PROXY SCTP\r\n": "refused (a PROXY line that is neither ",
            b"PROXY " + bytes(200): "refused (a PROXY line longer than 107 bytes)",
        }.items():
            place = self.place(net, self.ENDPOINT)
            peer = place.dial()
            peer.send(wrong)
            await net.until(lambda p=peer: p.reset)
            assert await place.refused()
            assert net.logged(f"svc 127.0.0.1:{peer.sock.getsockname()[1]}: {why}")

    @driven
    async def test_nothing_is_delivered_while_it_is_paused(self, net: Net) -> None:
        place = self.place(net, self.ENDPOINT, act=lambda noting: noting.transport.pauseProducing())
        peer = place.dial()
        peer.send(CONTROL + b"hola")
        peer.ends()
        await net.until(lambda: place.made)
        await net.a_while()
        noting = place.made[0]
        assert noting.events == []
        noting.transport.resumeProducing()
        await net.until(lambda: peer.fin)
        assert peer.heard == b"GOT HOLA"
        noting.transport.resumeProducing()

    @driven
    async def test_it_is_paced_as_without(self, net: Net) -> None:
        place = self.place(net, self.ENDPOINT, Floods)
        peer = place.dial()
        peer.send(CONTROL)
        await net.until(lambda: place.made)
        flood = place.made[0].flood
        assert await stalled(net, lambda: flood.sent) < STUCK
        await net.until(lambda: peer.heard and flood.sent > 2 * STUCK)

    @driven
    async def test_unix_sockets_may_have_a_balancer_too(self, net: Net) -> None:
        place = self.place(net, "haproxy:unix:here.sock")
        peer = place.dial()
        peer.send(CONTROL + b"hola")
        peer.ends()
        await net.until(lambda: peer.fin)
        assert peer.heard == b"GOT HOLA"
        assert place.made[0].transport.getPeer().host == "192.0.2.7"


class TwistedHalfCloseTests(HalfCloseOverTLS, OnTwisted):
    pass


class OurHalfCloseTests(HalfCloseOverTLS, OnOurs):
    pass


class TwistedTLSTests(OverTLS, OnTwisted):
    pass


class OurTLSTests(OverTLS, OnOurs):
    pass


class TwistedDoorTests(AtTheDoor, OnTwisted):
    pass


class OurDoorTests(AtTheDoor, OnOurs):
    pass


class OurCertificatesTests(Certificates, OnOurs):
    pass


class TwistedBalancerTests(BehindABalancer, OnTwisted):
    pass


class OurBalancerTests(BehindABalancer, OnOurs):
    pass


def binary(command: int, family: int, addresses: bytes, more: bytes = b"") -> bytes:
    """A header of version 2; more: what balancers add."""
    length = len(addresses + more)
    return proxy.V2 + struct.pack("!BBH", command, family, length) + addresses + more


FOUR = struct.pack("!4s4s2H", bytes([192, 0, 2, 7]), bytes([10, 0, 0, 1]), 40000, 8080)
SIX = struct.pack(
    "!16s16s2H",
    socket.inet_pton(socket.AF_INET6, "2001:db8::7"),
    socket.inet_pton(socket.AF_INET6, "::1"),
    40000,
    8080,
)
FROM_FOUR = (IPv4Address("TCP", "192.0.2.7", 40000), IPv4Address("TCP", "10.0.0.1", 8080))
FROM_SIX = (IPv6Address("TCP", "2001:db8::7", 40000), IPv6Address("TCP", "::1", 8080))
NOBODY = (None, None)
HEADERS: dict[bytes, tuple[Any, Any]] = {
    CONTROL: FROM_FOUR,
    b"PROXY TCP6 2001:db8:0::7 ::1 40000 8080\r\n": FROM_SIX,
    b"PROXY UNKNOWN\r\n": NOBODY,
    b"PROXY UNKNOWN ffff::1 ffff::1 65535 65535\r\n": NOBODY,
    binary(0x21, 0x11, FOUR): FROM_FOUR,
    binary(0x21, 0x11, FOUR, b"\x04\0\1x" * 50): FROM_FOUR,
    binary(0x21, 0x21, SIX): FROM_SIX,
    binary(0x21, 0x31, struct.pack("108s108s", b"/run/a", b"/run/b")): (
        UNIXAddress(b"/run/a"),
        UNIXAddress(b"/run/b"),
    ),
    binary(0x21, 0x31, bytes(216)): (UNIXAddress(None), UNIXAddress(None)),
    binary(0x21, 0x00, b""): NOBODY,
    binary(0x21, 0x12, FOUR): NOBODY,
    binary(0x20, 0x11, FOUR): NOBODY,
    binary(0x20, 0x00, b""): NOBODY,
}
MALFORMED = {
    b"GET / HTTP/1.1": "no PROXY header, but something else",
    b"PROXy": "no PROXY header, but something else",
    b"\r\n\r\n\0\r\nQUIT\r": "no PROXY header, but something else",
    b"PROXY \r\n": "a PROXY line that is neither UNKNOWN nor TCP4 or TCP6",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n": "a PROXY line that is neither",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n": "a PROXY line that is neither",
    b"PROXY TCP4 1.1.1 2.2.2.2 1 2\r\n": "a PROXY line with '1.1.1' for an address",
    b"PROXY TCP4 ::1 ::1 1 2\r\n": "a PROXY line with '::1' for an address",
    b"PROXY TCP6 1.1.1.1 ::1 1 2\r\n": "a PROXY line with '1.1.1.1' for an address",
    b"PROXY TCP4 1.1.1.1 \xff 1 2\r\n": "a PROXY line with '\\xff' for an address",
    b"PROXY TCP4 1.1.1.1 \0 1 2\r\n": "a PROXY line with '\\x00' for an address",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 -1 2\r\n": "a PROXY line with '-1' for a port",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n": "a PROXY line with '65536' for a port",
    b"PROXY UNKNOWN" + b" " * 93 + b"\r\n": "a PROXY line longer than 107 bytes",
    proxy.V2 + b"\x11\x11\0\0": "a PROXY header of an unknown version or command: 0x11",
    proxy.V2 + b"\x22\x11\0\0": "a PROXY header of an unknown version or command: 0x22",
    proxy.V2 + b"\x21\x11\x10\0": "a PROXY header longer than 4096 bytes",
    binary(0x21, 0x41, FOUR): "a PROXY header of an unknown family: 0x41",
    binary(0x21, 0x11, FOUR[:-1]): "a PROXY header too short for its addresses",
    binary(0x21, 0x21, FOUR): "a PROXY header too short for its addresses",
    binary(0x21, 0x31, SIX): "a PROXY header too short for its addresses",
}


class HeaderTests(SynchronousTestCase):
    def test_a_header_is_read_once_it_is_whole_and_not_before(self) -> None:
        for header, (source, destination) in HEADERS.items():
            for cut in range(len(header)):
                assert proxy.read(header[:cut]) is None, header[:cut]
            wanted = Header(len(header), source, destination)
            assert proxy.read(header) == proxy.read(header + CONTROL) == wanted, header

    def test_what_is_wrong_with_one_is_said(self) -> None:
        for header, why in MALFORMED.items():
            with pytest.raises(ValueError, match="PROXY") as caught:
                proxy.read(header)
            assert str(caught.value).startswith(why), header

    @settings(deadline=None, max_examples=300)
    @given(st.sampled_from([b"", proxy.V1, proxy.V2, *HEADERS]), st.binary(), st.integers(0, 60))
    def test_no_bytes_do_worse_than_be_refused(self, begin: bytes, data: bytes, cut: int) -> None:
        whole = begin[: cut or None] + data
        try:
            found = proxy.read(whole)
        except ValueError as error:
            why = str(error)
            assert why.isascii() and why.isprintable()  # noqa: PT018
            return
        assert found is None or 15 <= found.size <= len(whole)
        assert found is not None or len(whole) < proxy.MOST_V2


class EndpointTests(SynchronousTestCase):
    """Endpoint strings, and certificates that are of no use."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.authority = Authority(self.home)
        self.factory = LiveFactory(Live("svc", Clock()), Connection)

    def why(self, endpoint: str) -> str:
        """What binding says about an endpoint that cannot be used."""
        listen = Listen("svc", Port("PORT", 1), (endpoint,), "LISTEN", "config.cfg:7")
        with pytest.raises(PortsTaken) as caught:
            binding.claim([(listen, self.factory)], self.home)
        (problem,) = caught.value.problems
        begin = f"svc: {endpoint} is not an endpoint that can be used here: "
        end = " (config.cfg:7: [svc] LISTEN moves it, ENABLED = no switches it off)"
        assert problem.startswith(begin)
        assert problem.endswith(end)
        return problem.removeprefix(begin).removesuffix(end).replace(f"{self.home}/", "")

    def test_a_plain_endpoint_stays_as_it_is(self) -> None:
        for endpoint in ("tcp:1:interface=127.0.0.1", r"tcp6:1:interface=\:\:1", "unix:x", ""):
            assert wrap(endpoint, self.factory, self.home) == (endpoint, self.factory)

    def test_layers_are_taken_off_from_the_outside(self) -> None:
        self.authority.server("server.pem")
        self.authority.server("a:b.pem")
        for endpoint, plain in {
            r"ssl:443:privateKey=a\:b.pem:interface=\:\:1": r"tcp:443:interface=\:\:1",
            "tls:port=1:backlog=5": "tcp:port=1:backlog=5",
            "ssl:443": "tcp:443",
        }.items():
            found, within = wrap(endpoint, self.factory, self.home)
            assert found == plain
            assert isinstance(within, Secure)
            assert within.within is self.factory
            found, within = wrap("haproxy:" + endpoint, self.factory, self.home)
            assert found == plain
            assert isinstance(within, Proxy)
            assert isinstance(within.within, Secure)
        found, within = wrap("haproxy:unix:x", self.factory, self.home)
        assert found == "unix:x"
        assert isinstance(within, Proxy)
        assert within.within is self.factory

    def test_a_taken_port_is_named_with_its_holder_through_any_layer(self) -> None:
        self.authority.server()
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
            endpoint = f"haproxy:ssl:port={port}:interface=127.0.0.1"
            listen = Listen("svc", Port("PORT", 1), (endpoint,), "LISTEN", "config.cfg:7")
            with pytest.raises(PortsTaken, match=rf"is taken by .+ \(pid {os.getpid()}\)"):
                binding.claim([(listen, self.factory)], self.home)

    def test_a_bad_certificate_is_named_with_what_is_wrong(self) -> None:
        leaf, other = (self.authority.ca.issue_cert("localhost") for _ in range(2))
        self.authority.write("key.pem", leaf.private_key_pem)
        self.authority.write("cert.pem", leaf.cert_chain_pems[0])
        self.authority.write("other.pem", other.private_key_pem)
        (self.home / "text.pem").write_text("no PEM")
        (self.home / "locked.pem").write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
        (self.home / "half.pem").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n")
        (self.home / "badkey.pem").write_text("-----BEGIN PRIVATE KEY-----\nMIIB\n")
        for arguments, wanted in {
            "": "server.pem: cannot be read: No such file or directory",
            "privateKey=.": f"{self.home}: cannot be read: Is a directory",
            "privateKey=text.pem": "text.pem: holds no private key in PEM form",
            "privateKey=cert.pem": "cert.pem: holds no private key in PEM form",
            "privateKey=key.pem": "key.pem: holds no certificate in PEM form",
            "privateKey=locked.pem": "locked.pem: needs a passphrase: `openssl pkey` removes it",
            "privateKey=other.pem:certKey=cert.pem": (
                "other.pem: not the key of the certificate in cert.pem"
            ),
            "privateKey=key.pem:certKey=half.pem": "key.pem, half.pem: ",
            "privateKey=badkey.pem:certKey=cert.pem": "badkey.pem, cert.pem: ",
            "privateKey=key.pem:certKey=cert.pem:extraCertChain=no.pem": (
                "no.pem: cannot be read: No such file or directory"
            ),
            "privateKey=key.pem:certKey=cert.pem:extraCertChain=key.pem": (
                "key.pem: holds no certificate in PEM form"
            ),
            "privateKey=key.pem:certKey=cert.pem:clientCA=text.pem": (
                "text.pem: holds no certificate in PEM form"
            ),
            "privateKey=key.pem:certKey=cert.pem:clientCA=half.pem": "half.pem: ",
            "privatekey=key.pem": (
                "it takes no privatekey, only privateKey, certKey, extraCertChain, clientCA, port,"
                " interface, backlog"
            ),
        }.items():
            assert self.why(f"ssl:0:{arguments}".rstrip(":")).startswith(wanted), arguments
