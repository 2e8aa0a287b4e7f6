"""Reactors to try things on: each test gets a fresh one of its own, which nobody else knows.

A test is a coroutine, `@driven`, and runs inside the reactor; its peers are plain sockets, looked
at again and again, so that nothing on their side depends on what is being tested.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import Any, ClassVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHalfCloseableProtocol, IPullProducer, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from daemon.reactor.uv import UvloopReactor

if sys.platform == "linux":
    from twisted.internet.epollreactor import EPollReactor as TwistedsReactor
else:
    from twisted.internet.selectreactor import SelectReactor as TwistedsReactor

PATIENCE = 4.0  # seconds for what happens at once
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
BIG = 6_000_000  # bytes, more than the buffers of two sockets hold


def driven(test: Callable[[Any, Net], Coroutine[Any, Any, None]]) -> Callable[[Any], None]:
    """Make a coroutine a test: it runs in a fresh reactor, and ends it."""

    @wraps(test)
    def run(self: Any) -> None:
        self.drive(lambda net: test(self, net))

    return run


class ReactorCase(SynchronousTestCase):
    """make: the reactor class. Listening is done by `Net`, on TCP unless the test says so."""

    make: ClassVar[Callable[[], Any]]

    def drive(self, body: Callable[[Net], Coroutine[Any, Any, None]]) -> None:
        reactor = type(self).make()
        net = Net(reactor)
        failures: list[Failure] = []

        async def go() -> None:
            try:
                await body(net)
            except BaseException:
                failures.append(Failure())
            finally:
                net.over = True
                reactor.stop()

        def begin() -> None:
            Deferred.fromCoroutine(go()).addTimeout(3 * PATIENCE, reactor)

        observer: Any = net.events.append
        globalLogPublisher.addObserver(observer)
        try:
            reactor.callWhenRunning(reactor.callLater, 0, begin)
            reactor.run(installSignalHandlers=False)
        finally:
            globalLogPublisher.removeObserver(observer)
            net.close()
        for failure in failures:
            failure.raiseException()


class OnTwisted(ReactorCase):
    make = TwistedsReactor
    native = False


class OnOurs(ReactorCase):
    make = UvloopReactor
    native = True


class Watch(Protocol):
    """Notes what happens to it. act: called when it is connected."""

    act: Callable[[], object] | None = None
    transport: Any

    def __init__(self) -> None:
        self.events: list[str] = []
        self.got = bytearray()
        self.reason: Any = None

    def connectionMade(self) -> None:
        self.events.append("made")
        if self.act is not None:
            self.act()

    def dataReceived(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        self.got += data
        if self.events[-1] != "data":
            self.events.append("data")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.events.append("lost")
        self.reason = reason.value
        self.transport.write(b"nobody hears this")
        self.transport.loseConnection()
        self.transport.abortConnection()


@implementer(IHalfCloseableProtocol)
class Halves(Watch):
    """A Watch that is told of either half."""

    def readConnectionLost(self) -> None:
        self.events.append("read lost")

    def writeConnectionLost(self) -> None:
        self.events.append("write lost")


@implementer(IPushProducer)
class Pushed:
    """A push producer that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


@implementer(IPullProducer)
class Pulled:
    """A pull producer of `size` bytes, a chunk each time it is asked."""

    CHUNK = 60_000

    def __init__(self, transport: Any, size: int) -> None:
        self.transport, self.left = transport, size
        self.asked = 0
        self.stopped = False
        transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.asked += 1
        chunk = min(self.left, self.CHUNK)
        self.left -= chunk
        self.transport.write(bytes(chunk))
        if not self.left:
            self.transport.unregisterProducer()

    def stopProducing(self) -> None:
        self.stopped = True


@define
class Peer:
    """A plain socket at the other end. It reads only when it is looked at."""

    sock: socket.socket
    got: bytearray = field(factory=bytearray)
    ended: bool = False
    was_reset: bool = False

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    @property
    def heard(self) -> bytes:
        """Everything so far."""
        try:
            while not (self.ended or self.was_reset):
                data = self.sock.recv(1 << 20)
                self.got += data
                self.ended = not data
        except BlockingIOError:
            pass
        except ConnectionError:
            self.was_reset = True
        return bytes(self.got)

    @property
    def fin(self) -> bool:
        return bool(self.heard is not None and self.ended)

    @property
    def reset(self) -> bool:
        return bool(self.heard is not None and self.was_reset)

    def ends(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def resets(self) -> None:
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.sock.close()


@define(eq=False)
class Net:
    """A reactor, what listens on it, and who connected."""

    reactor: Any
    folder: Path = field(factory=lambda: Path(mkdtemp(prefix="reactor-")))
    peers: list[Peer] = field(factory=list)
    made: list[Any] = field(factory=list)  # the Protocols, in the order they were built
    events: list[LogEvent] = field(factory=list)
    over: bool = False

    def factory(self, protocol: Callable[[], Any], act: Any = None) -> Any:
        """Builds `protocol`, which does `act` with itself once it is connected."""

        def build(address: object) -> Any:
            one = protocol()
            one.address = address
            if act is not None:
                one.act = lambda: act(one)
            self.made.append(one)
            return one

        factory: Any = Factory()
        factory.noisy = False
        factory.buildProtocol = build
        return factory

    def listen(self, protocol: Callable[[], Any], act: Any = None, family: int = 2) -> Any:
        factory = self.factory(protocol, act)
        match family:
            case socket.AF_UNIX:
                return self.reactor.listenUNIX(str(self.folder / "socket"), factory)
            case socket.AF_INET6:
                return self.reactor.listenTCP(0, factory, interface="::1")
        return self.reactor.listenTCP(0, factory, interface="127.0.0.1")

    def dial(self, port: Any) -> Peer:
        host = port.getHost()
        where = getattr(host, "name", None) or (host.host, host.port)
        sock = socket.socket(port.addressFamily, socket.SOCK_STREAM)
        self.peers.append(peer := Peer(sock))
        sock.connect(where)
        sock.setblocking(False)
        return peer

    async def pair(
        self, protocol: Callable[[], Any], act: Any = None, family: int = 2
    ) -> tuple[Any, Peer]:
        """A connected Protocol and its peer, on a port of their own."""
        before = len(self.made)
        peer = self.dial(self.listen(protocol, act, family))
        await self.until(lambda: len(self.made) > before and self.made[-1].transport is not None)
        return self.made[-1], peer

    async def until(self, happened: Callable[..., object]) -> None:
        due = self.reactor.seconds() + PATIENCE
        while not happened():
            assert self.reactor.seconds() < due, "it did not happen"
            await deferLater(self.reactor, 0.001)

    def in_thread(self, work: Callable[..., Any]) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()

        def run() -> None:
            try:
                result = work()
            except BaseException:
                self.reactor.callFromThread(done.errback, Failure())
            else:
                self.reactor.callFromThread(done.callback, result)

        Thread(target=run, daemon=True).start()
        return done

    async def a_while(self, seconds: float = 0.03) -> None:
        """Long enough for anything that is going to happen."""
        await deferLater(self.reactor, seconds)

    def logged(self, text: str) -> int:
        return sum(text in (formatEvent(event) or "") for event in self.events)

    def close(self) -> None:
        for peer in self.peers:
            peer.sock.close()
        self.reactor.waker.connectionLost(None)
        if hasattr(self.reactor, "loop"):
            self.reactor.spare.release()
            self.reactor.loop.close()
        elif hasattr(self.reactor, "_poller"):
            self.reactor._poller.close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()
