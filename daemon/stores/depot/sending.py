"""Bytes on their way out: by sendfile in a thread, or through the reactor where that cannot be."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from daemon.reactor.lending import Loan, NotLendable, lend, unsent
from daemon.stores import files
from daemon.stores.crew import SLICE, Crew, Errand, Pause
from protocols.stores import StoreError

log = Logger()


class Supply(Protocol):
    """A file that is whole, or still growing."""

    @property
    def path(self) -> Path: ...

    @property
    def size(self) -> int:
        """The bytes there are now."""

    @property
    def whole(self) -> bool:
        """Whether that is all. Raises StoreError when it never will be."""


class Sent(Protocol):
    """Bytes of the file that were written so far."""

    @property
    def sent(self) -> int: ...


@define(eq=False, repr=False)
class Lending:
    """A whole file, sent by the crew over a lent socket; it is open only while it is worked on."""

    STEP: ClassVar[int] = 1 << 20  # bytes of one call

    path: Path
    loan: Loan
    head: bytes
    at: int
    end: int
    sent: int = field(default=0, init=False)
    _errand: Errand[bool] | None = field(default=None, init=False)
    _stopped: bool = field(default=False, init=False)
    _over: Deferred[None] = field(init=False)

    def begin(self, crew: Crew) -> Deferred[None]:
        self._over = Deferred(lambda _: self._stop())
        self._errand = crew.pursue(self._step, self.loan.socket.fileno())
        self._errand.done.addCallbacks(self._done, self._failed)
        return self._over

    def _stop(self) -> None:
        self._stopped = True
        if self._errand is not None:
            self._errand.hurry()

    def _step(self) -> Pause | bool:
        """In a thread. Whether the peer is still there."""
        if self._stopped:
            return True
        sock, until = self.loan.socket, self.sent + SLICE
        try:
            while self.head:
                more = socket.MSG_MORE if hasattr(socket, "MSG_MORE") else 0
                self.head = self.head[sock.send(self.head, more if self.at < self.end else 0) :]
        except BlockingIOError:
            return Pause.WRITABLE
        except OSError:
            return False
        if self.at == self.end:
            return True
        with self.path.open("rb", buffering=0) as file:
            while self.at < self.end:
                if self.sent >= until:
                    return Pause.TURN
                try:
                    count = os.sendfile(
                        sock.fileno(), file.fileno(), self.at, min(self.STEP, self.end - self.at)
                    )
                except BlockingIOError:
                    return Pause.WRITABLE
                except OSError as error:
                    if error.errno == errno.EIO:
                        raise
                    return False
                if not count:
                    raise shorter(self.path)
                self.at += count
                self.sent += count
        return True

    def _done(self, there: bool) -> None:
        self._errand = None
        self.loan.give_back(reset=not there)
        if not self._over.called:
            if there:
                self._over.callback(None)
            else:
                self._over.errback(CancelledError())

    def _failed(self, failure: Failure) -> None:
        self._errand = None
        self.loan.give_back()
        if not self._over.called:
            self._over.errback(unreadable(failure, self.path))


@implementer(IPushProducer)
@define(eq=False, repr=False)
class Sending:
    """The bytes of a file, read by the crew and written as the transport takes them.

    No more than one piece is read ahead, and the file is open only while a piece is read: peers
    that do not read cost a piece each, and no descriptor. end: None, all there will be.
    """

    PIECE: ClassVar[int] = 1 << 18  # bytes
    LOOK: ClassVar[float] = 0.05  # seconds between looks at a file that grows

    supply: Supply
    crew: Crew
    transport: Any
    start: int = 0
    end: int | None = None
    frame: Callable[[bytes], bytes] | None = None
    sent: int = field(default=0, init=False)
    _over: Deferred[None] | None = field(default=None, init=False)
    _ahead: bytes = field(default=b"", init=False)
    _reading: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)

    def begin(self, head: bytes = b"") -> Deferred[None]:
        self._over = over = Deferred[None](lambda _: self.stopProducing())
        self.transport.registerProducer(self, True)
        if head and self._over is not None:
            self.transport.write(head)
        self._next()
        return over

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._next()

    def stopProducing(self) -> None:
        """The transport is gone, or nobody wants the rest."""
        self._end(Failure(CancelledError()))

    def _next(self) -> None:
        if self._over is not None and self._ahead and not self._paused:
            data, self._ahead = self._ahead, b""
            self.sent += len(data)
            # it may pause or end us meanwhile
            self.transport.write(data if self.frame is None else self.frame(data))
        if self._over is None or self._ahead or self._reading:
            return
        at = self.start + self.sent
        try:
            whole = self.supply.whole  # before its size: the last byte may come in between
        except StoreError as why:
            self._end(Failure(why))
            return
        end = self.supply.size if self.end is None else self.end
        # Who reads along has not all of it before it is known to be good.
        ready = end if whole else min(end - 1, self.supply.size)
        if at < ready:
            self._reading = True
            reading = self.crew.work(self._read, at, min(self.PIECE, ready - at))
            reading.addCallbacks(self._came, self._failed)
        elif whole:
            self._end(None)
        else:
            self._reading = True
            self.crew.reactor.callLater(self.LOOK, self._came, b"")

    def _read(self, offset: int, length: int) -> bytes:
        """In a thread: the piece at `offset`."""
        with self.supply.path.open("rb") as file:
            file.seek(offset)
            piece = file.read(length)
        if len(piece) < length:
            raise shorter(self.supply.path)
        return piece

    def _came(self, piece: bytes) -> None:
        self._reading = False
        self._ahead = piece
        self._next()

    def _failed(self, failure: Failure) -> None:
        self._end(unreadable(failure, self.supply.path))

    def _end(self, result: Failure | None) -> None:
        over, self._over, self._ahead = self._over, None, b""
        if over is not None:
            self.transport.unregisterProducer()
            over.callback(result)  # a Failure goes the errback way


def send(
    supply: Supply,
    crew: Crew,
    transport: Any,
    head: bytes = b"",
    start: int = 0,
    end: int | None = None,
    frame: Callable[[bytes], bytes] | None = None,
    watch: bool = False,
) -> tuple[Sent, Deferred[None]]:
    """Write a file, or what of it is from `start` to `end`, to a transport.

    watch: the transport must go on reading meanwhile. Else a thread gets its socket, if it has a
    plain one, the file is whole, and nothing else waits to be written before it.
    """
    if not watch and frame is None and supply.whole and not unsent(transport):
        try:
            loan = lend(transport)
        except (NotLendable, OSError):  # no plain socket, or no descriptor left
            pass
        else:
            until = supply.size if end is None else end
            lending = Lending(supply.path, loan, head, start, until)
            return lending, lending.begin(crew)
    sending = Sending(supply, crew, transport, start, end, frame)
    return sending, sending.begin(head)


def shorter(path: Path) -> OSError:
    return OSError(errno.EIO, "the file is shorter than it was", str(path))


def unreadable(failure: Failure, path: Path) -> Failure:
    """What went wrong with a file, as a StoreError if it was the disk's doing."""
    if not isinstance(failure.value, OSError):
        return failure
    if isinstance(failure.value, FileNotFoundError):  # as a rule it was received or deleted
        return Failure(StoreError("the file is gone"))
    log.error(
        "{path} cannot be read: {error}",
        event="relay.unread",
        path=str(path),
        error=str(failure.value),
    )
    return Failure(StoreError(files.plain(failure.value)))
