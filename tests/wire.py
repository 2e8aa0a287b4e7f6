"""A peer made of memory: connect a protocol to it, speak, move the clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from attrs import define, evolve, field
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from protocols.connection import Connection, IPeer, LiveFactory
from protocols.spec import Context, Spec
from protocols.stores import Stores


@implementer(IPeer)
@define(eq=False, repr=False)
class Memory:
    """A transport that keeps what was written.

    As Twisted's own: a close waits for a registered producer that is paused, and connectionLost
    comes after the call that caused it (here: with `settle`, which Peer calls after every act).
    full: the peer does not read, so the producer is paused by the next write.
    """

    protocol: Connection
    sent: bytearray = field(factory=bytearray)
    fin: bool = False  # we half-closed
    closed: bool = False  # loseConnection was called
    reset: bool = False  # abortConnection was called
    reading: bool = True
    full: bool = False
    lost: bool = False
    disconnecting: bool = False
    producer: Any = None
    streaming: bool = False
    peer: IPv4Address = field(factory=lambda: IPv4Address("TCP", "127.0.0.1", 54321))
    _due: list[Callable[[], object]] = field(factory=list)

    def write(self, data: bytes) -> None:
        assert isinstance(data, bytes)
        if self.lost or self.fin or self.disconnecting:
            return
        self.sent += data
        if self.full and self.streaming:
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        self.write(b"".join(data))

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert self.producer is None, "a producer is already registered"
        self.producer, self.streaming = producer, streaming

    def unregisterProducer(self) -> None:
        self.producer, self.streaming = None, False

    def loseConnection(self) -> None:
        if not self.closed:
            self.closed = self.disconnecting = True
            self._due.append(lambda: self._lose(ConnectionDone()))

    def loseWriteConnection(self) -> None:
        if not self.fin:
            self.fin = True
            self._due.append(self.protocol.writeConnectionLost)

    def abortConnection(self) -> None:
        if not self.reset:
            self.reset = self.disconnecting = True
            self._due.append(lambda: self._lose(ConnectionAborted()))

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = not self.disconnecting

    stopProducing = loseConnection

    def settle(self) -> None:
        while self._due:
            self._due.pop(0)()

    def die(self) -> None:
        """The peer's RST."""
        self._due.append(lambda: self._lose(ConnectionLost()))
        self.settle()

    def _lose(self, why: Exception) -> None:
        if not self.lost:
            self.lost, self.reading = True, False
            if self.producer is not None:
                self.producer.stopProducing()
                self.producer = None
            self.protocol.connectionLost(Failure(why))

    def getPeer(self) -> IPv4Address:
        return self.peer

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 1)

    def getHandle(self) -> Any:
        raise NotImplementedError("memory has no socket")

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def getTcpKeepAlive(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None: ...


@define
class MemoryGauge:
    """acked: what the peer's kernel confirmed; None: everything at once. broken: by an RST."""

    transport: Memory
    acked: int | None = None
    broken: bool = False
    closed: bool = False

    @property
    def _written(self) -> int:
        return len(self.transport.sent) + self.transport.fin

    def acknowledged(self) -> int:
        return self._written if self.acked is None else self.acked

    def outstanding(self) -> int:
        return self._written - self.acknowledged()

    def dead(self) -> bool:
        return self.broken

    def close(self) -> None:
        self.closed = True


@define
class MemoryKernel:
    """Remembers what was asked of it."""

    gauges: dict[Memory, MemoryGauge] = field(factory=dict)
    resets: dict[Memory, bool] = field(factory=dict)

    def gauge(self, transport: Any) -> MemoryGauge:
        return self.gauges.setdefault(transport, MemoryGauge(transport))

    def reset_on_close(self, transport: Any, on: bool) -> None:
        self.resets[transport] = on

    def names(self) -> set[str]:
        return {"house"}


@define
class Peer:
    """One client of a protocol under test."""

    connection: Connection
    transport: Memory
    clock: Clock

    def says(self, *chunks: bytes) -> None:
        """Each chunk is one segment; nothing is delivered while the protocol does not read."""
        for chunk in chunks:
            assert self.transport.reading, "the protocol reads no more"
            self.connection.dataReceived(chunk)
            self.transport.settle()

    def ends(self) -> None:
        """FIN."""
        self.connection.readConnectionLost()
        self.transport.settle()

    def resets(self) -> None:
        """RST."""
        self.transport.die()

    def waits(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.transport.settle()

    @property
    def heard(self) -> bytes:
        self.transport.settle()
        return bytes(self.transport.sent)

    @property
    def hung_up(self) -> bool:
        """Our FIN or RST is out."""
        self.transport.settle()
        return self.transport.fin or self.transport.closed or self.transport.reset

    @property
    def outcome(self) -> str:
        return self.connection.outcome


@define
class House:
    """A protocol built with memory around it; `peer` connects to one of its ports."""

    spec: Spec
    clock: Clock = field(factory=Clock)
    kernel: MemoryKernel = field(factory=MemoryKernel)
    stores: Any = None
    options: Any = None
    factories: dict[str, LiveFactory] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.options = self.spec.options() if self.options is None else self.options
        stores = self.stores or Stores(*[None] * 5)  # type: ignore[arg-type]
        context = Context(self.clock, self.options, stores, self.kernel)
        self.factories = dict(self.spec.build(context))

    def set(self, **options: Any) -> None:
        """Reload with other options, as the daemon does."""
        changed = House(
            self.spec, self.clock, self.kernel, self.stores, evolve(self.options, **options)
        )
        for key, factory in changed.factories.items():
            self.factories[key].adopt(factory)

    def peer(self, port: str = "") -> Peer:
        factory = self.factories[port or self.spec.ports[0].key]
        connection = factory.buildProtocol(None)
        transport = Memory(connection)
        connection.makeConnection(transport)
        transport.settle()
        return Peer(connection, transport, self.clock)
