"""The same connections on Twisted's own reactor and on ours: they behave alike."""

from __future__ import annotations

import builtins
import contextlib
import datetime
import os
import socket
import ssl
import stat
import sys
import threading
import time
from importlib.util import find_spec
from typing import Any, ClassVar
from unittest import skipUnless

import pytest
from twisted.internet.error import (
    CannotListenError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
    UnsupportedAddressFamily,
)
from twisted.internet.interfaces import (
    IConsumer,
    IFileDescriptorReceiver,
    IListeningPort,
    IOpenSSLServerConnectionCreator,
    IPushProducer,
    ISSLTransport,
    ISystemHandle,
    ITCPTransport,
)
from twisted.internet.protocol import ClientFactory
from zope.interface import implementer
from zope.interface.verify import verifyObject

from daemon.reactor.stream import Stream
from tests.reactors import BIG, Halves, Net, OnOurs, OnTwisted, Pulled, Pushed, Watch, driven


class Echo(Watch):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data.upper())


class Oops(Exception):
    """Raised by a Protocol under test."""


class Connections:
    """What a Protocol and its transport do to each other."""

    native: ClassVar[bool]
    flushLoggedErrors: Any

    @driven
    async def test_bytes_go_both_ways(self, net: Net) -> None:
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            echo, peer = await net.pair(Echo, family=family)
            peer.send(b"hola")
            await net.until(lambda p=peer: p.heard == b"HOLA")
            assert isinstance(echo.transport, Stream) is self.native

    @driven
    async def test_a_transport_provides_what_twisteds_does(self, net: Net) -> None:
        watch, _ = await net.pair(Watch)
        for interface in (ITCPTransport, IConsumer, IPushProducer, ISystemHandle):
            verifyObject(interface, watch.transport)
        assert "Watch" in watch.transport.logPrefix()
        assert "Watch" in repr(watch.transport)
        assert watch.transport.connected
        assert not watch.transport.disconnected
        assert not watch.transport.TLS

    @driven
    async def test_both_ends_have_an_address_to_the_end(self, net: Net) -> None:
        seen: list[Any] = []

        class Nosy(Watch):
            def connectionLost(self, reason: Any = None) -> None:
                seen.append(self.transport.getPeer())

        for family in (socket.AF_INET, socket.AF_INET6):
            nosy, peer = await net.pair(Nosy, family=family)
            host, port = peer.sock.getsockname()[:2]
            assert (nosy.transport.getPeer().host, nosy.transport.getPeer().port) == (host, port)
            assert nosy.address == nosy.transport.getPeer()
            assert nosy.transport.getHost().port == peer.sock.getpeername()[1]
            peer.ends()
            await net.until(lambda: seen)
            assert seen.pop() == nosy.address
        nosy, peer = await net.pair(Nosy, family=socket.AF_UNIX)
        assert nosy.transport.getPeer().name is None
        assert nosy.transport.getHost().name == os.fsencode(net.folder / "socket")
        assert nosy.transport.getTcpNoDelay() is False
        nosy.transport.setTcpNoDelay(True)

    @driven
    async def test_the_socket_and_its_options_can_be_had(self, net: Net) -> None:
        watch, _ = await net.pair(Watch)
        for on in (True, False):
            watch.transport.setTcpNoDelay(on)
            assert watch.transport.getTcpNoDelay() is on
            watch.transport.setTcpKeepAlive(on)
            assert watch.transport.getTcpKeepAlive() is on
        handle = watch.transport.getHandle()
        assert handle.fileno() == watch.transport.fileno()
        assert handle.gettimeout() == 0.0
        assert handle.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0

    @driven
    async def test_a_peer_that_ends_is_gone(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        peer.send(b"bye")
        peer.ends()
        await net.until(lambda: watch.reason)
        assert watch.events == ["made", "data", "lost"]
        assert isinstance(watch.reason, ConnectionDone)
        assert peer.fin
        assert not watch.transport.connected
        assert watch.transport.disconnected

    @driven
    async def test_a_peer_that_resets_is_lost(self, net: Net) -> None:
        watch, peer = await net.pair(Halves)
        peer.resets()
        await net.until(lambda: watch.reason)
        assert watch.events == ["made", "lost"]
        assert isinstance(watch.reason, ConnectionLost)

    @driven
    async def test_a_peer_that_reset_in_the_backlog_is_lost_quietly(self, net: Net) -> None:
        port = net.listen(Watch)
        net.dial(port).resets()
        await net.until(lambda: net.made and net.made[0].reason)
        assert net.made[0].events == ["made", "lost"]
        assert isinstance(net.made[0].reason, ConnectionLost)

    @driven
    async def test_closing_sends_everything_first(self, net: Net) -> None:
        def leave(watch: Watch) -> None:
            watch.transport.write(bytes(BIG))
            watch.transport.writeSequence([b"a", b"b"])
            watch.transport.loseConnection()
            watch.transport.loseConnection()
            assert watch.transport.disconnecting
            assert watch.events == ["made"]

        watch, peer = await net.pair(Watch, leave)
        await net.a_while()
        assert watch.events == ["made"]
        await net.until(lambda: peer.fin)
        assert peer.heard == bytes(BIG) + b"ab"
        await net.until(lambda: watch.reason)
        assert isinstance(watch.reason, ConnectionDone)
        assert watch.events == ["made", "lost"]

    @driven
    async def test_a_closing_connection_hears_nothing_more(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.write(bytes(BIG))
        watch.transport.loseConnection()
        watch.transport.resumeProducing()
        peer.send(b"too late")
        await net.a_while()
        assert watch.events == ["made"]
        peer.resets()
        await net.until(lambda: watch.reason)
        assert watch.events == ["made", "lost"]

    @driven
    async def test_aborting_resets_at_once_and_drops_what_is_queued(self, net: Net) -> None:
        for unread in (b"", b"unread"):
            watch, peer = await net.pair(Watch)
            watch.transport.pauseProducing()
            peer.send(unread)
            watch.transport.write(bytes(BIG))
            watch.transport.abortConnection()
            watch.transport.abortConnection()
            watch.transport.write(b"more")
            assert watch.events == ["made"], "never from inside the call"
            await net.until(lambda w=watch: w.reason)
            assert isinstance(watch.reason, ConnectionAborted)
            assert watch.events == ["made", "lost"]
            await net.until(lambda p=peer: p.reset)
            assert len(peer.heard) < BIG

    @driven
    async def test_aborting_cuts_a_close_that_cannot_finish(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.write(bytes(BIG))
        watch.transport.loseConnection()
        await net.a_while()
        watch.transport.abortConnection()
        await net.until(lambda: watch.reason)
        assert isinstance(watch.reason, ConnectionAborted)
        await net.until(lambda: peer.reset)

    @driven
    async def test_aborting_from_connectionMade_and_from_dataReceived(self, net: Net) -> None:
        class Abrupt(Watch):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.abortConnection()

        first, peer = await net.pair(Watch, lambda watch: watch.transport.abortConnection())
        await net.until(lambda: peer.reset and first.reason)
        second, peer = await net.pair(Abrupt)
        peer.send(b"x")
        await net.until(lambda: peer.reset and second.reason)
        for watch in (first, second):
            assert isinstance(watch.reason, ConnectionAborted)
            assert watch.events.count("lost") == 1

    @driven
    async def test_half_closed_by_the_peer_it_still_answers(self, net: Net) -> None:
        halves, peer = await net.pair(Halves)
        peer.send(b"question")
        peer.ends()
        await net.until(lambda: "read lost" in halves.events)
        await net.a_while()
        assert halves.events == ["made", "data", "read lost"], "once"
        halves.transport.write(bytes(BIG))
        halves.transport.loseConnection()
        await net.until(lambda: peer.fin or peer.reset)
        assert len(peer.heard) == BIG
        await net.until(lambda: halves.reason)
        assert isinstance(halves.reason, ConnectionDone)

    @driven
    async def test_half_closed_by_us_it_still_listens(self, net: Net) -> None:
        halves, peer = await net.pair(Halves)
        halves.transport.write(bytes(BIG))
        halves.transport.loseWriteConnection()
        halves.transport.loseWriteConnection()
        peer.send(b"first")
        await net.a_while()
        assert halves.events == ["made", "data"], "what is queued goes out first"
        await net.until(lambda: peer.fin)
        assert len(peer.heard) == BIG
        await net.until(lambda: "write lost" in halves.events)
        halves.transport.write(b"too late")
        peer.send(b" second")
        await net.until(lambda: halves.got == b"first second")
        peer.ends()
        await net.until(lambda: "read lost" in halves.events)
        halves.transport.loseConnection()
        await net.until(lambda: halves.reason)
        assert halves.events == ["made", "data", "write lost", "data", "read lost", "lost"]

    @driven
    async def test_half_closed_with_nothing_queued(self, net: Net) -> None:
        for protocol in (Halves, Watch):
            one, peer = await net.pair(protocol)
            one.transport.loseWriteConnection()
            await net.until(lambda p=peer: p.fin)
            peer.ends()
            if protocol is Halves:
                await net.until(lambda o=one: "read lost" in o.events)
                assert one.events == ["made", "write lost", "read lost"]
                one.transport.loseConnection()
            await net.until(lambda o=one: o.reason)
            assert isinstance(one.reason, ConnectionDone)

    @driven
    async def test_nothing_is_delivered_while_paused(self, net: Net) -> None:
        class Sip(Watch):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.pauseProducing()

        sip, peer = await net.pair(Sip)
        seen = 0
        peer.sock.setblocking(True)
        sender = threading.Thread(target=peer.send, args=(bytes(BIG),))
        sender.start()
        while seen < BIG:
            await net.until(lambda: len(sip.got) > seen)  # noqa: B023
            seen = len(sip.got)
            await net.a_while(0)
            await net.a_while(0)
            assert len(sip.got) == seen
            sip.transport.resumeProducing()
            assert len(sip.got) == seen, "never from inside the call"
        sender.join()

    @driven
    async def test_paused_in_connectionMade_it_hears_nothing_not_even_the_end(
        self, net: Net
    ) -> None:
        halves, peer = await net.pair(Halves, lambda watch: watch.transport.pauseProducing())
        peer.send(b"hello")
        peer.ends()
        await net.a_while()
        assert halves.events == ["made"]
        halves.transport.resumeProducing()
        await net.until(lambda: "read lost" in halves.events)
        assert halves.events == ["made", "data", "read lost"]
        halves.transport.stopProducing()
        await net.until(lambda: halves.reason)

    @driven
    async def test_paused_by_another_turn_before_it_ever_read(self, net: Net) -> None:
        port = net.listen(Watch)
        peer = net.dial(port)
        peer.send(b"early")
        port.doRead()
        [watch] = net.made
        watch.transport.pauseProducing()
        await net.a_while()
        assert watch.events == ["made"]
        watch.transport.resumeProducing()
        await net.until(lambda: watch.got == b"early")

    @driven
    async def test_a_push_producer_is_paused_when_the_peer_does_not_read(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        pushed = Pushed()
        watch.transport.registerProducer(pushed, True)
        watch.transport.write(b"little")
        assert pushed.told == []
        for _ in range(BIG // 50_000):
            watch.transport.write(bytes(50_000))
            await net.a_while(0)
        assert pushed.told[-1] == "pause"
        pushed.told.clear()
        await net.until(lambda: len(peer.heard) > BIG)
        await net.until(lambda: pushed.told)
        assert pushed.told == ["resume"]
        watch.transport.unregisterProducer()
        watch.transport.write(bytes(BIG))
        peer.resets()
        await net.until(lambda: watch.reason)
        assert pushed.told == ["resume"]

    @driven
    async def test_a_producer_is_paused_by_the_size_it_asks_for(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.bufferSize = 10 * BIG
        pushed = Pushed()
        watch.transport.registerProducer(pushed, True)
        watch.transport.write(bytes(BIG))
        assert pushed.told == []
        assert watch.transport.bufferSize == 10 * BIG
        await net.until(lambda: len(peer.heard) == BIG)

    @driven
    async def test_a_pull_producer_is_asked_again_each_time_it_was_sent(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.write(bytes(BIG))
        pulled = Pulled(watch.transport, BIG)
        await net.a_while()
        assert pulled.asked <= 2, "not while the peer does not read"
        await net.until(lambda: len(peer.heard) == 2 * BIG)
        assert watch.transport.producer is None
        watch.transport.write(b"after")
        await net.until(lambda: peer.heard.endswith(b"after"))

    @driven
    async def test_a_pull_producer_that_writes_nothing_is_not_asked_in_circles(
        self, net: Net
    ) -> None:
        watch, peer = await net.pair(Watch)

        class Idle(Pulled):
            def resumeProducing(self) -> None:
                self.asked += 1

        idle = Idle(watch.transport, 1)
        await net.a_while()
        assert idle.asked == 1
        watch.transport.write(b"x")
        await net.until(lambda: idle.asked == 2)
        assert peer.heard == b"x"
        peer.ends()
        await net.until(lambda: watch.reason)
        assert idle.stopped

    @driven
    async def test_closing_waits_for_a_pull_producer(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        Pulled(watch.transport, BIG)
        watch.transport.loseConnection()
        assert watch.transport.disconnecting
        await net.until(lambda: peer.fin)
        assert len(peer.heard) == BIG
        await net.until(lambda: isinstance(watch.reason, ConnectionDone))

    @driven
    async def test_closing_waits_for_a_push_producer_that_is_paused(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)

        class Last(Pushed):
            def resumeProducing(self) -> None:
                watch.transport.write(b"last")
                watch.transport.unregisterProducer()

        watch.transport.registerProducer(Last(), True)
        watch.transport.write(bytes(BIG))
        watch.transport.loseConnection()
        await net.until(lambda: peer.fin)
        assert peer.heard == bytes(BIG) + b"last"

    @driven
    async def test_closing_does_not_wait_for_an_idle_push_producer(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.registerProducer(pushed := Pushed(), True)
        watch.transport.write(b"bye")
        watch.transport.loseConnection()
        await net.until(lambda: peer.fin)
        assert peer.heard == b"bye"
        assert pushed.told == ["stop"]

    @driven
    async def test_there_is_one_producer_and_none_for_the_dead(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.registerProducer(first := Pushed(), True)
        with pytest.raises(RuntimeError):
            watch.transport.registerProducer(Pushed(), True)
        peer.ends()
        await net.until(lambda: watch.reason)
        assert first.told == ["stop"]
        watch.transport.registerProducer(late := Pushed(), True)
        assert late.told == ["stop"]
        watch.transport.unregisterProducer()

    @driven
    async def test_a_consumer_can_be_told_to_stop(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.registerProducer(Pushed(), True)
        watch.transport.stopConsuming()
        await net.until(lambda: peer.fin and watch.reason)

    @driven
    async def test_an_exception_closes_the_connection_and_is_logged(self, net: Net) -> None:
        for raised in (Oops("x"), OSError(5, "of a file, not of the socket")):

            class Faulty(Halves):
                def dataReceived(self, data: bytes, raised: Exception = raised) -> None:
                    raise raised

            faulty, peer = await net.pair(Faulty)
            peer.send(b"x")
            await net.until(lambda f=faulty: f.reason)
            assert faulty.reason is raised
            assert faulty.events == ["made", "lost"]
            await net.until(lambda p=peer: p.fin)
            assert len(self.flushLoggedErrors(type(raised))) == 1

    @driven
    async def test_an_exception_in_a_half_closes_the_connection(self, net: Net) -> None:
        class Faulty(Halves):
            def readConnectionLost(self) -> None:
                raise Oops

            writeConnectionLost = readConnectionLost

        first, peer = await net.pair(Faulty)
        peer.ends()
        second, other = await net.pair(Faulty)
        second.transport.loseWriteConnection()
        await net.until(lambda: first.reason and second.reason)
        assert isinstance(first.reason, Oops)
        assert isinstance(second.reason, Oops)
        await net.until(lambda: peer.fin and other.fin)
        assert len(self.flushLoggedErrors(Oops)) == 2

    @driven
    async def test_an_exception_of_a_producer_closes_the_connection(self, net: Net) -> None:
        class Faulty(Pushed):
            def resumeProducing(self) -> None:
                raise Oops

        watch, peer = await net.pair(Watch)
        watch.transport.registerProducer(Faulty(), True)
        watch.transport.write(bytes(BIG))
        await net.until(lambda: peer.heard is not None and watch.reason)
        assert isinstance(watch.reason, Oops)
        assert len(self.flushLoggedErrors(Oops)) == 1

    @driven
    async def test_an_exception_in_connectionLost_is_logged(self, net: Net) -> None:
        class Faulty(Watch):
            def connectionLost(self, reason: Any = None) -> None:
                self.reason = reason.value
                raise Oops

        faulty, peer = await net.pair(Faulty)
        peer.ends()
        await net.until(lambda: faulty.reason and peer.fin)
        await net.a_while(0)
        assert len(self.flushLoggedErrors(Oops)) == 1

    @driven
    async def test_another_protocol_can_take_over(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        heir = Watch()

        class First(Watch):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.protocol = heir
                heir.makeConnection(self.transport)

        first, peer = await net.pair(First)
        assert first.transport.protocol is first
        peer.send(b"one")
        await net.until(lambda: first.got)
        peer.send(b"two")
        await net.until(lambda: heir.got)
        peer.ends()
        await net.until(lambda: heir.reason)
        assert first.got == b"one"
        assert heir.got == b"two"
        assert first.events == ["made", "data"]
        del watch

    @driven
    async def test_a_peer_that_does_not_suit_is_closed(self, net: Net) -> None:
        factory = net.factory(Watch)
        factory.buildProtocol = lambda address: None
        peer = net.dial(net.reactor.listenTCP(0, factory, interface="127.0.0.1"))
        await net.until(lambda: peer.fin)

    @driven
    async def test_what_a_protocol_writes_at_once_arrives_in_order(self, net: Net) -> None:
        def greet(watch: Watch) -> None:
            for number in range(100):
                watch.transport.write(b"%d " % number)

        _, peer = await net.pair(Watch, greet)
        await net.until(lambda: peer.heard.endswith(b"99 "))
        assert peer.heard == b"".join(b"%d " % number for number in range(100))


class Ports:
    """Listening."""

    flushLoggedErrors: Any

    @driven
    async def test_a_port_says_where_it_is_and_when_it_closes(self, net: Net) -> None:
        counts: list[str] = []
        factory = net.factory(Echo)
        factory.startFactory = lambda: counts.append("start")
        factory.stopFactory = lambda: counts.append("stop")
        port = net.reactor.listenTCP(0, factory, interface="127.0.0.1")
        verifyObject(IListeningPort, port)
        number = port.getHost().port
        assert number > 0
        assert port.getHost().host == "127.0.0.1"
        assert net.logged(f"starting on {number}") == 1
        peer = net.dial(port)
        await net.until(lambda: net.made)
        await port.stopListening()
        assert net.logged(f"(TCP Port {number} Closed)") == 1
        assert counts == ["start", "stop"]
        peer.send(b"still there")
        await net.until(lambda: peer.heard == b"STILL THERE")
        with pytest.raises(builtins.ConnectionRefusedError), socket.socket() as late:
            late.connect(("127.0.0.1", number))

    @driven
    async def test_a_taken_port_cannot_be_listened_on(self, net: Net) -> None:
        port = net.listen(Watch)
        with pytest.raises(CannotListenError):
            net.reactor.listenTCP(port.getHost().port, net.factory(Watch), interface="127.0.0.1")

    @driven
    async def test_many_who_connect_at_once_are_all_served(self, net: Net) -> None:
        port = net.reactor.listenTCP(0, net.factory(Echo), 500, "127.0.0.1")
        peers = [net.dial(port) for _ in range(300)]
        for peer in peers:
            peer.send(b"x")
        await net.until(lambda: all(peer.heard == b"X" for peer in peers))

    @driven
    async def test_a_unix_port_has_a_mode_and_is_removed(self, net: Net) -> None:
        path = net.folder / "socket"
        port = net.reactor.listenUNIX(str(path), net.factory(Echo), mode=0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert net.logged(f"starting on {str(path)!r}") == 1
        peer = net.dial(port)
        peer.send(b"x")
        await net.until(lambda: peer.heard == b"X")
        await port.stopListening()
        assert not path.exists()

    @driven
    async def test_a_unix_port_locks_and_clears_what_a_dead_one_left(self, net: Net) -> None:
        path = net.folder / "socket"
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
        os.symlink("999999", f"{path}.lock")
        port = net.reactor.listenUNIX(str(path), net.factory(Echo), wantPID=True)
        with pytest.raises(CannotListenError):
            net.reactor.listenUNIX(str(path), net.factory(Echo), wantPID=True)
        peer = net.dial(port)
        peer.send(b"x")
        await net.until(lambda: peer.heard == b"X")
        await port.stopListening()
        assert not os.path.lexists(f"{path}.lock")

    @skipUnless(sys.platform == "linux", "only Linux has abstract names")
    @driven
    async def test_a_unix_port_may_have_an_abstract_name(self, net: Net) -> None:
        port = net.reactor.listenUNIX(f"\0reactor-{os.getpid()}-{id(net)}", net.factory(Echo))
        peer = net.dial(port)
        peer.send(b"x")
        await net.until(lambda: peer.heard == b"X")

    @driven
    async def test_a_socket_of_ours_can_be_adopted(self, net: Net) -> None:
        for family, name in (
            (socket.AF_INET, ("127.0.0.1", 0)),
            (socket.AF_INET6, ("::1", 0)),
            (socket.AF_UNIX, str(net.folder / "adopted")),
        ):
            with socket.socket(family) as sock:
                sock.bind(name)
                sock.listen()
                sock.setblocking(False)
                port = net.reactor.adoptStreamPort(sock.fileno(), family, net.factory(Echo))
            peer = net.dial(port)
            peer.send(b"x")
            await net.until(lambda p=peer: p.heard == b"X")
            await port.stopListening()
        with pytest.raises(UnsupportedAddressFamily):
            net.reactor.adoptStreamPort(0, socket.AF_APPLETALK, net.factory(Echo))

    @driven
    async def test_descriptors_can_be_passed_on_a_unix_port(self, net: Net) -> None:
        @implementer(IFileDescriptorReceiver)
        class Taker(Watch):
            def fileDescriptorReceived(self, descriptor: int) -> None:
                os.write(descriptor, b"taken")
                os.close(descriptor)

        taker, peer = await net.pair(Taker, family=socket.AF_UNIX)
        read, write = os.pipe()
        socket.send_fds(peer.sock, [b"x"], [write])
        os.close(write)
        await net.until(lambda: taker.got)
        assert os.read(read, 100) == b"taken"
        os.close(read)


class Reactors:
    """The reactor itself."""

    flushLoggedErrors: Any
    drive: Any

    @driven
    async def test_outgoing_connections_are_twisteds_own(self, net: Net) -> None:
        failed: list[Any] = []

        class Client(ClientFactory):
            noisy = False

            def clientConnectionFailed(self, connector: Any, reason: Any) -> None:
                failed.append(reason.value)

        client: Any = Client()
        client.buildProtocol = net.factory(Watch).buildProtocol
        port = net.listen(Echo)
        number = port.getHost().port
        net.reactor.connectTCP("127.0.0.1", number, client)
        await net.until(lambda: len(net.made) == 2)
        [watch] = [one for one in net.made if not isinstance(one, Echo)]
        watch.transport.write(b"x" * 1000)
        await net.until(lambda: watch.got == b"X" * 1000)
        watch.transport.loseConnection()
        await net.until(lambda: all(one.reason for one in net.made))
        await port.stopListening()
        net.reactor.connectTCP("127.0.0.1", number, client)
        await net.until(lambda: failed)
        assert isinstance(failed[0], ConnectionRefusedError)

    @driven
    async def test_a_thread_wakes_it_and_calls_come_in_order(self, net: Net) -> None:
        calls: list[int] = []

        def work() -> None:
            time.sleep(0.02)
            for number in range(50):
                net.reactor.callFromThread(calls.append, number)
            net.reactor.callFromThread(lambda: 1 / 0)

        before = time.monotonic()
        thread = threading.Thread(target=work)
        thread.start()
        net.reactor.callLater(60, lambda: None)
        while len(calls) < 50:
            await net.a_while(0.005)
        assert calls == list(range(50))
        assert time.monotonic() - before < 1
        thread.join()
        await net.until(lambda: self.flushLoggedErrors(ZeroDivisionError))

    @driven
    async def test_timers_are_never_early_and_hardly_late(self, net: Net) -> None:
        late: list[float] = []
        for ms in (0, 1, 2, 5, 10, 20):
            due = net.reactor.seconds() + ms / 1000
            net.reactor.callLater(ms / 1000, lambda d=due: late.append(net.reactor.seconds() - d))
        await net.until(lambda: len(late) == 6)
        assert min(late) >= 0
        assert sorted(late)[2] < 0.01

    @driven
    async def test_a_timer_can_be_cancelled_and_moved(self, net: Net) -> None:
        calls: list[str] = []
        net.reactor.callLater(0.01, calls.append, "never").cancel()
        sooner = net.reactor.callLater(60, calls.append, "sooner")
        sooner.reset(0.001)
        later = net.reactor.callLater(0.001, calls.append, "later")
        later.delay(0.02)
        await net.until(lambda: calls)
        assert calls == ["sooner"]
        await net.until(lambda: len(calls) == 2)
        assert calls == ["sooner", "later"]

    def test_stopping_tells_every_protocol(self) -> None:
        nets: list[Net] = []

        async def leave_them_open(net: Net) -> None:
            nets.append(net)
            await net.pair(Halves)
            await net.pair(Watch, family=socket.AF_UNIX)
            last = net.dial(net.listen(Watch))
            last.send(b"x")
            net.made[0].transport.write(bytes(BIG))

        def leave(net: Net) -> Any:
            return leave_them_open(net)

        self.drive(leave)
        [net] = nets
        assert len(net.made) >= 2
        for one in net.made:
            assert isinstance(one.reason, ConnectionLost)
            assert one.events.count("lost") == 1


@skipUnless(find_spec("OpenSSL"), "pyOpenSSL is not installed")
class Secured:
    """TLS over these transports: begun in the middle, and by a factory that wraps."""

    patch: Any

    @driven
    async def test_a_connection_can_go_on_in_tls(self, net: Net) -> None:
        from twisted.protocols import tls

        self.patch(tls, "_get_default_clock", lambda: net.reactor)
        server, client = contexts()

        class Polite(Halves):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                if data == b"STARTTLS\n":
                    self.transport.write(b"go\n")
                    self.transport.registerProducer(pushed, True)
                    self.transport.startTLS(server)
                elif data == b"bye":
                    self.transport.unregisterProducer()
                    self.transport.write(b"see you")
                    self.transport.loseConnection()
                else:
                    self.transport.writeSequence([data.upper(), b"!"])

        pushed = Pushed()
        polite, peer = await net.pair(Polite)

        def talk() -> list[bytes]:
            peer.sock.setblocking(True)
            peer.sock.sendall(b"STARTTLS\n")
            heard = [peer.sock.recv(100)]
            with client.wrap_socket(peer.sock) as sock:
                sock.sendall(b"hola")
                while sum(map(len, heard)) < 8:
                    heard.append(sock.recv(100))
                sock.sendall(b"bye")
                while data := sock.recv(100):
                    heard.append(data)
            return heard

        heard = await net.in_thread(talk)
        assert heard[0] == b"go\n"
        assert b"".join(heard[1:]) == b"HOLA!see you"
        await net.until(lambda: polite.reason)
        assert polite.transport.TLS
        assert ISSLTransport.providedBy(polite.transport)
        assert polite.events.count("lost") == 1

    @driven
    async def test_a_factory_may_wrap_it_in_tls(self, net: Net) -> None:
        from twisted.protocols.tls import TLSMemoryBIOFactory

        server, client = contexts()

        class Send(Watch):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.write(bytes(BIG))
                self.transport.loseConnection()

        plain = net.factory(Send)
        wrapped = TLSMemoryBIOFactory(server, False, plain, net.reactor)
        peer = net.dial(net.reactor.listenTCP(0, wrapped, interface="127.0.0.1"))

        def fetch() -> int:
            peer.sock.setblocking(True)
            size = 0
            with client.wrap_socket(peer.sock) as sock:
                sock.sendall(b"x")
                while data := sock.recv(1 << 16):
                    size += len(data)
            return size

        assert await net.in_thread(fetch) == BIG
        await net.until(lambda: net.made[0].reason)

    @driven
    async def test_a_handshake_that_fails_closes_the_connection(self, net: Net) -> None:
        from twisted.protocols import tls

        self.patch(tls, "_get_default_clock", lambda: net.reactor)
        server, _ = contexts()
        watch, peer = await net.pair(Watch, lambda watch: watch.transport.startTLS(server))
        peer.send(b"this is not TLS at all\n")
        await net.until(lambda: watch.reason and (peer.fin or peer.reset))

    @driven
    async def test_tls_can_be_aborted(self, net: Net) -> None:
        from twisted.protocols import tls

        self.patch(tls, "_get_default_clock", lambda: net.reactor)
        server, client = contexts()
        watch, peer = await net.pair(Watch, lambda watch: watch.transport.startTLS(server))

        def talk() -> bytes:
            peer.sock.setblocking(True)
            with client.wrap_socket(peer.sock) as sock:
                sock.sendall(b"x")
                with contextlib.suppress(ConnectionResetError):
                    return sock.recv(100)
            return b""

        talking = net.in_thread(talk)
        await net.until(lambda: watch.got)
        watch.transport.abortConnection()
        assert await talking == b""
        await net.until(lambda: watch.reason)
        assert watch.events == ["made", "data", "lost"]


def contexts() -> tuple[Any, ssl.SSLContext]:
    """A server's, with a certificate of the day, and one of a client that trusts anybody."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from OpenSSL import SSL  # type: ignore[import-not-found,unused-ignore]

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "roundhouse")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .sign(key, hashes.SHA256())
    )

    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.use_certificate(certificate)
    context.use_privatekey(key)

    @implementer(IOpenSSLServerConnectionCreator)
    class Server:
        def serverConnectionForTLS(self, protocol: object) -> Any:
            return SSL.Connection(context, None)

    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return Server(), client


class TwistedConnectionTests(Connections, OnTwisted):
    pass


class OurConnectionTests(Connections, OnOurs):
    pass


class TwistedTLSTests(Secured, OnTwisted):
    pass


class OurTLSTests(Secured, OnOurs):
    pass


class TwistedPortTests(Ports, OnTwisted):
    pass


class OurPortTests(Ports, OnOurs):
    pass


class TwistedReactorTests(Reactors, OnTwisted):
    pass


class OurReactorTests(Reactors, OnOurs):
    pass
