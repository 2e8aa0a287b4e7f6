"""A file on its way out: who has it, and how its bytes get to a transport."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from daemon.stores import files
from protocols.stores import StoreError

if TYPE_CHECKING:
    from daemon.stores.depot import Depot

log = Logger()


@define(eq=False, repr=False)
class Parcel:
    """`protocols.stores.Parcel`: a whole file of a box, in its queue or claimed."""

    depot: Depot
    ident: int
    box: str
    file: str
    size: int
    deliveries: int = 0
    sent: int = field(default=0, init=False)
    most: int = field(default=0, init=False)  # deliveries, as whoever has it now counts

    @property
    def path(self) -> Path:
        return self.depot.folder / self.file

    def send(self, transport: Any) -> Deferred[None]:
        self.sent = 0
        return Sending(self, transport).begin()

    def done(self) -> Deferred[None]:
        return self.depot.remove(self)

    def release(self, counted: bool = False, park: bool = False) -> Deferred[bool]:
        return self.depot.take_back(self, counted, park)


@implementer(IPushProducer)
@define(eq=False, repr=False)
class Sending:
    """The bytes of a parcel, read by the crew and written as the transport takes them.

    No more than one piece is read ahead, and the file is open only while a piece is read: peers
    that do not read cost a piece each, and no descriptor.
    """

    PIECE: ClassVar[int] = 1 << 18  # bytes

    parcel: Parcel
    transport: Any
    _over: Deferred[None] | None = field(default=None, init=False)
    _ahead: bytes = field(default=b"", init=False)
    _reading: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)

    def begin(self) -> Deferred[None]:
        self._over = over = Deferred[None](lambda _: self.stopProducing())
        self.transport.registerProducer(self, True)
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
            self.parcel.sent += len(data)
            self.transport.write(data)  # it may pause or end us meanwhile
        if self._over is None:
            return
        if self.parcel.sent == self.parcel.size:
            self._end(None)
        elif not self._ahead and not self._reading:
            self._reading = True
            reading = self.parcel.depot.crew.work(self._read, self.parcel.sent)
            reading.addCallbacks(self._came, self._failed)

    def _read(self, offset: int) -> bytes:
        """In a thread: the piece at `offset`."""
        length = min(self.PIECE, self.parcel.size - offset)
        with self.parcel.path.open("rb") as file:
            file.seek(offset)
            piece = file.read(length)
        if len(piece) < length:
            raise OSError(errno.EIO, "the file is shorter than it was", str(self.parcel.path))
        return piece

    def _came(self, piece: bytes) -> None:
        self._reading = False
        self._ahead = piece
        self._next()

    def _failed(self, failure: Failure) -> None:
        if isinstance(failure.value, OSError):
            log.error(
                "file {ident} of the relay cannot be read: {error}",
                ident=self.parcel.ident,
                error=str(failure.value),
            )
            failure = Failure(StoreError(files.plain(failure.value)))
        self._end(failure)

    def _end(self, result: Failure | None) -> None:
        over, self._over, self._ahead = self._over, None, b""
        if over is not None:
            self.transport.unregisterProducer()
            over.callback(result)  # a Failure goes the errback way
