"""What every wrapper is: a factory around a factory, a transport around a transport.

A peer is first at the door: it owes a header or a handshake, for which it has PATIENCE seconds.
The service does not know of it, so it is neither served nor taken for silent. Then it is let in:
only now the service builds its connection. Who is still at the door when the port closes is
reset.

The gate counts who is at the door like who is inside, for silence costs a descriptor there, too.
One too many is reset at the door if MOST are there already, else inside, where it can be told.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from attrs import define, field
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IProtocolFactory,
    IReactorTime,
    ISystemHandle,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from protocols.connection import IPeer, LiveFactory, spoken

log = Logger()

PATIENCE = 10.0  # seconds


@define(eq=False, repr=False)
class Wrapper(Factory["Wrapped"]):
    """Builds a Wrapped for each peer.

    within: who builds what a peer is let in to. served: the service at the bottom of it.
    """

    noisy = False
    MOST: ClassVar[int] = 64

    within: IProtocolFactory
    served: LiveFactory
    _at_the_door: dict[Wrapped, float] = field(factory=dict, init=False)  # until when, in order
    _sweep: IDelayedCall | None = field(default=None, init=False)

    @property
    def clock(self) -> IReactorTime:
        return self.served.live.clock

    def startFactory(self) -> None:
        self.within.doStart()

    def stopFactory(self) -> None:
        self.within.doStop()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for wrapped in list(self._at_the_door):
            wrapped.abortConnection()

    def came(self, wrapped: Wrapped) -> bool:
        """Whether it may stay."""
        live = self.served.live
        if live.gate is not None:
            if len(self._at_the_door) >= self.MOST and live.gate.full(wrapped.counts_for):
                live.outcomes["refused"] += 1
                return False
            live.gate.enter(wrapped.counts_for)
        self._at_the_door[wrapped] = self.clock.seconds() + PATIENCE
        if self._sweep is None:
            self._sweep = self.clock.callLater(PATIENCE, self._send_away)
        return True

    def gone(self, wrapped: Wrapped) -> None:
        """It was let in, or it is lost."""
        was_there = self._at_the_door.pop(wrapped, None) is not None
        if was_there and (gate := self.served.live.gate) is not None:
            gate.leave(wrapped.counts_for)

    def _send_away(self) -> None:
        now = self.clock.seconds()
        self._sweep = None
        for wrapped, due in list(self._at_the_door.items()):
            if due > now:
                self._sweep = self.clock.callLater(due - now, self._send_away)
                break
            wrapped.late()


@implementer(IPeer, ISystemHandle, IHalfCloseableProtocol)
@define(eq=False, repr=False)
class Wrapped(Protocol):
    """A peer behind a layer: the protocol of its transport, and the transport of its protocol.

    Subclasses call `let_in` once they know who it is, or `refuse` it. Here, bytes go through
    unchanged, and nothing is delivered while the protocol within has paused us.
    """

    OWES: ClassVar[str]

    wrapper: Wrapper
    transport: Any = field(init=False)
    _within: Any = field(default=None, init=False)
    _heard: bool = field(default=False, init=False)
    _refused: bool = field(default=False, init=False)
    _pending: bytes = field(default=b"", init=False)  # not delivered yet
    _ending: bool = field(default=False, init=False)  # after it comes the end, not told yet
    _fin: bool = field(default=False, init=False)  # the peer's FIN came
    _paused: bool = field(default=False, init=False)
    _later: IDelayedCall | None = field(default=None, init=False)
    _why: Failure | None = field(default=None, init=False)

    # at the door

    @property
    def counts_for(self) -> IAddress:
        """The address that it is one connection of, as far as is known there."""
        address: IAddress = self.transport.getPeer()
        return address

    def connectionMade(self) -> None:
        if not self.wrapper.came(self):
            self._refused = True  # the gate has said so
            self.transport.abortConnection()

    def let_in(self) -> None:
        """What it owed is here. Deliver what came with it."""
        self.wrapper.gone(self)
        self._within = self.wrapper.within.buildProtocol(self.getPeer())
        if self._within is None:
            self.abortConnection()
        else:
            self._within.makeConnection(self)
            self._deliver()

    def refuse(self, why: str) -> None:
        """Count it and say so, once; how it ends is up to the caller."""
        if not self._refused:
            self._refused = True
            live = self.wrapper.served.live
            live.outcomes["refused"] += 1
            log.info(
                "{name} {peer}: refused ({why})",
                event="connection.refused",
                name=live.name,
                peer=spoken(self.transport.getPeer()),
                why=why,
            )

    def late(self) -> None:
        self.refuse(f"no {self.OWES} in {PATIENCE:g} s")
        self.transport.abortConnection()

    # the protocol of the transport

    def dataReceived(self, data: bytes) -> None:
        self._pending += data
        self._deliver()

    def readConnectionLost(self) -> None:
        self._fin = True
        if self._within is not None:
            self._ending = True
            self._deliver()
        else:  # without a byte it is a probe that looks whether the port is open
            if self._heard:
                self.refuse(f"it left before its {self.OWES} was whole")
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        if self._within is not None:
            self._within.writeConnectionLost()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.wrapper.gone(self)
        if self._later is not None:
            self._later.cancel()
            self._later = None
        within, self._within = self._within, None
        if within is not None:
            within.connectionLost(self._why or reason)
        elif self._heard and reason.check(ConnectionLost):
            self.refuse(f"it left before its {self.OWES} was whole")

    def _deliver(self) -> None:
        while self._within is not None and not self._paused:
            if self._pending:
                data, self._pending = self._pending, b""
                self._within.dataReceived(data)
            elif self._ending:
                self._ending = False
                self._within.readConnectionLost()
            else:
                break

    def _deliver_rest(self) -> None:
        """Go on after a pause. As in a transport, an exception within ends the connection."""
        self._later = None
        try:
            self._deliver()
        except Exception:
            self._why = Failure()
            log.failure(
                "{what!r} failed and is closed",
                self._why,
                event="connection.broken",
                what=self._within,
            )
            self.transport.abortConnection()
        else:
            self._read_on()

    def _read_on(self) -> None:
        if self._within is not None and not (self._paused or self._fin):
            self.transport.resumeProducing()

    # the transport of the protocol within

    def write(self, data: bytes) -> None:
        self.transport.write(data)

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        self.transport.loseConnection()

    def loseWriteConnection(self) -> None:
        self.transport.loseWriteConnection()

    def abortConnection(self) -> None:
        self.transport.abortConnection()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.transport.registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        self.transport.unregisterProducer()

    def pauseProducing(self) -> None:
        self._paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on; what is left from before the pause comes first, and not inside this call."""
        self._paused = False
        if not (self._pending or self._ending):
            self._read_on()
        elif self._later is None:
            self._later = self.wrapper.clock.callLater(0, self._deliver_rest)

    def stopProducing(self) -> None:
        self.loseConnection()

    def getPeer(self) -> Any:
        return self.transport.getPeer()

    def getHost(self) -> Any:
        return self.transport.getHost()

    def getHandle(self) -> Any:
        """The socket beneath it all."""
        return self.transport.getHandle()

    def getTcpNoDelay(self) -> bool:
        return bool(self.transport.getTcpNoDelay())

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.transport.setTcpNoDelay(enabled)

    def getTcpKeepAlive(self) -> bool:
        return bool(self.transport.getTcpKeepAlive())

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.transport.setTcpKeepAlive(enabled)

    @property
    def bufferSize(self) -> int:
        size: int = self.transport.bufferSize
        return size

    @bufferSize.setter
    def bufferSize(self, size: int) -> None:
        self.transport.bufferSize = size
