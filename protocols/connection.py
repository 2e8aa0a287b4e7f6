"""What every connection needs: a polite end, one named outcome, and a beat that finds the silent.

This runs for every connection and every read, so it does little: no timer, no log line and no
allocation per message. Silence and lingering are found by one timer for all (`Live`).

How a connection ends, in every service
    close    what was written goes out, then FIN; what the peer still sends is read and dropped,
             so that the kernel has no reason to reset the answer away, until the peer's own FIN
             or LINGER seconds or LINGER_BYTES later
    abort    RST, at once; unsent bytes are lost
Outcomes of its own: left (the peer's FIN), reset, silent, drained, cut (grace was over), refused
(too many connections), failed (an exception of ours; its traceback is in the log).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import ClassVar
from typing import Protocol as Promise

from attrs import define, field
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.defer import TimeoutError as TooLate
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

log = Logger()

LINGER = 5.0  # seconds
LINGER_BYTES = 64 << 20
CUT = 1.0  # seconds within which a connection that was aborted is gone


class IPeer(ITCPTransport, IConsumer, IPushProducer):
    """What every server transport of Twisted is: half-closeable, paced in both directions."""


@implementer(IHalfCloseableProtocol, IPushProducer)
@define(eq=False, repr=False)
class Connection(Protocol):
    """A TCP peer. Subclasses override `received`, and what they need of the other hooks.

    While the peer does not read what we write, we do not read what it sends: our output is
    bounded by the transport's buffer. PACED = False leaves the transport's producer to others.
    """

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"left"})
    PACED: ClassVar[bool] = True
    COUNTED: ClassVar[bool] = True  # by the gate
    FRAMED: ClassVar[bool] = False  # all it is told has a length: an end of TLS can cut nothing off

    live: Live
    transport: IPeer = field(init=False)
    closing: bool = field(default=False, init=False)
    ended: bool = field(default=False, init=False)  # the peer's FIN came
    outcome: str = field(default="left", init=False)
    detail: str = field(default="", init=False)
    quiet: int = field(default=0, init=False)  # beats since the peer was heard
    _dropped: int = field(default=0, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)

    def opened(self) -> None:
        """The peer is there."""

    def received(self, data: bytes) -> None:
        """Bytes came. Never called again once `close` or `abort` was."""
        raise NotImplementedError

    def finished(self) -> None:
        """The peer will send no more (FIN), but still listens."""
        self.close("left")

    def closed(self, reason: Failure) -> None:
        """The peer is gone; the timer is already off."""

    def silent(self) -> None:
        """Nothing came for the seconds of `Live.idle`; called at each beat until it has ended."""
        self.close("silent")

    def drain(self, grace: float) -> None:
        """The daemon is stopping: finish the work in hand within `grace` seconds, then close."""
        self.close("drained")

    def close(self, outcome: str, detail: str = "") -> None:
        """Close once everything written has been sent. detail: for the log, never for the peer."""
        if self.closing:
            return
        self._end(outcome, detail)
        if self.PACED:
            self.transport.unregisterProducer()
        if self.ended:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()
            self.transport.resumeProducing()

    def abort(self, outcome: str, detail: str = "") -> None:
        """Reset the peer, also one that is already closing."""
        if not self.closing:
            self._end(outcome, detail)
        self.transport.abortConnection()

    def later(self, seconds: float, then: Callable[[], object]) -> None:
        """Call `then` in `seconds` unless more bytes come first. One at a time."""
        self._forget_next()
        self._next = self.live.clock.callLater(seconds, then)

    def pauseProducing(self) -> None:
        """The other side of what we do is slow: read no more for now."""
        if not self.closing:
            self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.quiet = 0  # it was not silent: we did not listen
        if not (self.closing or self.ended):  # a FIN that is polled again is told again
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """The transport is gone; connectionLost says so."""

    def returned(self) -> None:
        """An intake has our transport no more (`protocols.stores.Source`)."""

    def connectionMade(self) -> None:
        self.live.add(self)
        if self.PACED:
            self.transport.registerProducer(self, True)
        self.opened()

    def dataReceived(self, data: bytes) -> None:
        self.quiet = 0
        if self._next is not None:
            self._forget_next()
        if not self.closing:
            self.received(data)
            return
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self.transport.abortConnection()

    def readConnectionLost(self) -> None:
        self.ended = True
        self._forget_next()
        if self.closing:
            self.transport.loseConnection()
        else:
            self.finished()

    def writeConnectionLost(self) -> None:
        """Our FIN is out: from now on the peer has LINGER seconds for its own."""
        self.live.linger(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.closing:
            match reason.value:
                case ConnectionDone():
                    self.outcome = "left"
                case ConnectionLost() | ConnectionAborted():
                    self.outcome = "reset"
                case _:
                    self.outcome = "failed"
        self.closing = True
        self._forget_next()
        self.live.discard(self)
        self.closed(reason)

    def _end(self, outcome: str, detail: str) -> None:
        self.closing, self.outcome, self.detail = True, outcome, detail
        self._forget_next()

    def _forget_next(self) -> None:
        timer, self._next = self._next, None
        if timer is not None and timer.active():
            timer.cancel()


@define(eq=False, repr=False)
class TurnedAway(Connection):
    """One too many: hears why where the wire has a word for it, else it is reset.

    As many as MOST may linger until they have read it.
    """

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"refused"})  # the gate logs them, summed up
    COUNTED: ClassVar[bool] = False
    MOST: ClassVar[int] = 64

    word: bytes

    def opened(self) -> None:
        if self.word and self.live.lingering < self.MOST:
            self.transport.write(self.word)
            self.close("refused")
        else:
            self.abort("refused")


class Gate(Promise):
    """Who may connect: how many in all, and from one address."""

    def full(self, address: IAddress) -> bool:
        """Whether there are too many to let in another one from there. Logs what it refuses."""

    def enter(self, address: IAddress) -> None: ...

    def leave(self, address: IAddress) -> None: ...


class Tally(Promise):
    """Who adds up what the connections of a port have moved."""

    def add(self, transport: ITransport) -> None:
        """This one is over; its socket may still be asked."""


@define(eq=False, repr=False)
class Live:
    """The open connections of one port, how each ended, and the beat that finds the silent.

    A connection that said nothing for BEATS whole beats, `idle` seconds or a little more, is
    closed; 0 never closes one. The beat stands still while nobody is connected.
    """

    BEATS: ClassVar[int] = 4

    name: str
    clock: IReactorTime
    idle: float = 0.0
    gate: Gate | None = field(default=None, init=False)
    tally: Tally | None = field(default=None, init=False)
    outcomes: Counter[str] = field(factory=Counter, init=False)
    _open: set[Connection] = field(factory=set, init=False)
    _pulse: IDelayedCall | None = field(default=None, init=False)
    _lingering: dict[Connection, float] = field(factory=dict, init=False)
    _sweep: IDelayedCall | None = field(default=None, init=False)
    _empty: Deferred[None] | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._open)

    @property
    def lingering(self) -> int:
        """Connections that we have ended, and whose peers have not."""
        return len(self._lingering)

    def add(self, connection: Connection) -> None:
        self._open.add(connection)
        if self.gate is not None and connection.COUNTED:
            self.gate.enter(connection.transport.getPeer())
        if self._pulse is None and self.idle:
            self._pulse = self.clock.callLater(self.idle / self.BEATS, self._tick)

    def linger(self, connection: Connection) -> None:
        """Our FIN went out; cut the peer if its own does not come in LINGER seconds."""
        if connection not in self._open:  # it went while its transport was telling us
            return
        self._lingering[connection] = self.clock.seconds() + LINGER
        if self._sweep is None:
            self._sweep = self.clock.callLater(LINGER, self._cut_lingering)

    def discard(self, connection: Connection) -> None:
        """It is gone. Count how it ended; say so if that is not the ordinary way."""
        self._open.discard(connection)
        self._lingering.pop(connection, None)
        if self.gate is not None and connection.COUNTED:
            self.gate.leave(connection.transport.getPeer())
        if self.tally is not None:
            self.tally.add(connection.transport)
        self.outcomes[connection.outcome] += 1
        if connection.outcome not in connection.ORDINARY:
            log.info(
                "{name} {peer}: {outcome}{detail}",
                event="connection.ended",
                name=self.name,
                peer=spoken(connection.transport.getPeer()),
                outcome=connection.outcome,
                detail=connection.detail and f" ({connection.detail})",
            )
        if not self._open:
            self._sweep = self._cancel(self._sweep)
            if self._empty is not None:
                empty, self._empty = self._empty, None
                empty.callback(None)

    async def drain(self, grace: float) -> None:
        """Let every connection finish; after `grace` seconds, cut the rest.

        None is left then: what they hold is back with its store before that may stop.
        """
        for connection in list(self._open):
            if connection in self._lingering:
                connection.transport.loseConnection()
            else:
                connection.drain(grace)
        try:
            await self._emptied(grace)
        except TooLate:
            count = len(self)
            log.warn(
                "{name}: {count} cut after {s} s",
                event="connection.cut",
                name=self.name,
                count=count,
                s=grace,
            )
            for connection in list(self._open):
                connection.abort("cut")
            with suppress(TooLate):  # a socket that is lent to a thread may take longer
                await self._emptied(CUT)
        self._pulse = self._cancel(self._pulse)
        self._sweep = self._cancel(self._sweep)

    def _emptied(self, seconds: float) -> Deferred[None]:
        """Fires when the last connection is gone; fails with TooLate after that many seconds."""
        if not self._open:
            return succeed(None)
        self._empty = Deferred(lambda _: setattr(self, "_empty", None))
        return self._empty.addTimeout(seconds, self.clock)

    def _tick(self) -> None:
        silent = []
        for connection in self._open:
            connection.quiet += 1
            if connection.quiet > self.BEATS:
                silent.append(connection)
        for connection in silent:
            connection.silent()
        self._pulse = None
        if self._open and self.idle:
            self._pulse = self.clock.callLater(self.idle / self.BEATS, self._tick)

    def _cut_lingering(self) -> None:
        now = self.clock.seconds()
        self._sweep = None
        for connection, due in list(self._lingering.items()):
            if due > now:
                self._sweep = self.clock.callLater(due - now, self._cut_lingering)
                break
            connection.transport.loseConnection()

    @staticmethod
    def _cancel(timer: IDelayedCall | None) -> None:
        if timer is not None and timer.active():
            timer.cancel()


@define(eq=False, repr=False)
class LiveFactory(Factory[Connection]):
    """Builds connections and knows the live ones.

    busy: what one too many is told; without it, it is reset.
    """

    noisy = False

    live: Live
    make: Callable[[Live], Connection]
    busy: bytes = field(default=b"", init=False)
    _older: list[Live] = field(factory=list, init=False)  # with connections from before a reload

    def buildProtocol(self, addr: IAddress | None) -> Connection:
        gate = self.live.gate
        if gate is not None and addr is not None and gate.full(addr):
            return TurnedAway(self.live, self.busy)
        return self.make(self.live)

    def adopt(self, fresh: LiveFactory) -> None:
        """Go on as `fresh` would (reload); open connections keep what they were made with."""
        self.make = fresh.make
        if fresh.live.idle != self.live.idle:
            self._older = [live for live in (*self._older, self.live) if live]
            fresh.live.outcomes, fresh.live.gate = self.live.outcomes, self.live.gate
            fresh.live.tally = self.live.tally
            self.live = fresh.live

    @property
    def lives(self) -> tuple[Live, ...]:
        """All that have connections, those from before a reload first."""
        return (*self._older, self.live)

    async def drain(self, grace: float) -> None:
        """Let every connection finish, also those from before a reload."""
        await gatherResults([Deferred.fromCoroutine(live.drain(grace)) for live in self.lives])


def spoken(address: IAddress) -> str:
    """An address as people write it: `127.0.0.1:8080`, `[::1]:8080`, `/run/chat`."""
    host, port = getattr(address, "host", None), getattr(address, "port", None)
    if host is None:
        name = getattr(address, "name", None)
        return "unix" if name is None else ascii(name)[2:-1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
