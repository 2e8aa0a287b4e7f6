"""One parcel on its way to one receiver, and when it may be said that it is there.

The peer's kernel has acknowledged every byte and our FIN, and the peer's own FIN came; or the
peer has stayed open for a lease after that. A peer that is gone, or made no progress for a lease,
gives the parcel back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Protocol

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols.connection import IPeer, Live
from protocols.stores import Gauge, Kernel, Parcel, StoreError

log = Logger()

LOOK = 0.05  # seconds between looks at acknowledgements that are still under way


class Receiver(Protocol):
    """The connection of whoever receives. ended: its FIN came; lease: seconds."""

    live: Live
    transport: IPeer
    kernel: Kernel
    ended: bool
    detail: str

    @property
    def lease(self) -> float: ...

    def arrived(self) -> None:
        """It has all of its file."""

    def abort(self, outcome: str, detail: str = "") -> None: ...


@define(eq=False, repr=False)
class Delivery:
    """One parcel on its way to one receiver, until it is there or was given back.

    No progress for the lease, counted from the look that saw the last, is the end of it.
    """

    LOOKS: ClassVar[int] = 20  # a lease; so much later than meant it may end

    to: Receiver
    parcel: Parcel
    gauge: Gauge
    before: int = 0  # bytes that go out ahead of the parcel
    _sending: Deferred[None] | None = field(default=None, init=False)
    _unreadable: bool = field(default=False, init=False)
    _fin: bool = field(default=False, init=False)
    _seen: tuple[int | None, ...] = field(default=(), init=False)
    _since: float = field(default=0.0, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)

    def begin(self, send: Callable[[], Deferred[None]]) -> None:
        self._sending = send()
        self._sending.addCallbacks(self._written, self._stopped)
        self.look()

    def handed(self) -> None:
        """Every byte and our FIN are with the kernel, which would now end it alone."""
        self._fin = True
        self.to.kernel.reset_on_close(self.to.transport, False)
        self.look()

    def look(self) -> None:
        """Is it there, is it on its way, or is it lost?"""
        self._forget_next()
        to, lease, now = self.to, self.to.lease, self.to.live.clock.seconds()
        acked, left = self.gauge.acknowledged(), self.gauge.outstanding()
        if self._seen != (seen := (acked, left, self.parcel.sent)):
            self._seen, self._since = seen, now
        rest = lease - (now - self._since)
        there = (
            self._fin and not left and (acked is None or acked >= self.before + self.parcel.size)
        )
        if to.ended and self.gauge.dead():
            to.abort("reset", to.detail)
        elif there and (to.ended or rest <= 0):
            self._leave()
            self.parcel.done().addErrback(self._not_removed)
            to.arrived()
        elif rest <= 0:
            to.abort("stuck", to.detail)
        else:
            soon = LOOK if self._fin and to.ended else lease / self.LOOKS
            self._next = to.live.clock.callLater(rest if there else min(soon, rest), self.look)

    def stop(self) -> None:
        """Send no more of it."""
        if self._sending is not None:
            self._sending.cancel()

    def break_off(self) -> None:
        """The peer is gone, and the file may have reached it or not."""
        acked = (self.gauge.acknowledged() or 0) - self.before
        self.give_back(counted=acked > 0 or self._unreadable)

    def give_back(self, counted: bool = False) -> None:
        self._leave()
        self.parcel.release(counted).addErrback(self._not_counted)

    def _written(self, _: None) -> None:
        self._sending = None
        self.to.transport.loseWriteConnection()

    def _stopped(self, failure: Failure) -> None:
        self._sending = None
        if not isinstance(failure.value, CancelledError):
            self._unreadable = True
            self.to.abort("unread", f"file {self.parcel.ident}: {trouble(failure)}")

    def _leave(self) -> None:
        self._forget_next()
        self.stop()
        self.gauge.close()

    def _forget_next(self) -> None:
        timer, self._next = self._next, None
        if timer is not None and timer.active():
            timer.cancel()

    def _not_removed(self, failure: Failure) -> None:
        log.error(
            "relay: file {ident} was received, but its removal was not stored ({reason}):"
            " after a restart it may be handed out again",
            event="relay.unremoved",
            ident=self.parcel.ident,
            reason=trouble(failure),
        )

    def _not_counted(self, failure: Failure) -> None:
        log.error(
            "relay: file {ident} is back, but that its delivery broke off was not stored: {reason}",
            event="relay.uncounted",
            ident=self.parcel.ident,
            reason=trouble(failure),
        )


def trouble(failure: Failure) -> str:
    """What a store says went wrong; anything but its own error is a defect, shown whole."""
    if not isinstance(failure.value, StoreError):
        log.failure("a store failed in a way it must not", failure, event="relay.broken")
    return str(failure.value)
