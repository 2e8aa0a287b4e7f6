"""relay: hand files from one user to another, first in, first out.

Wire (TCP, port 5011, the bytes of files and nothing else)
    -> bytes, FIN           an upload; our FIN after it: the file is durable and in the queue
    -> RST                  the upload is dropped
    (RECEIVER_AFTER seconds of silence)
                            a receiver: it waits for the oldest complete file
    -> FIN                  without a byte: a receiver, too, served now or not at all (an upload
                            whose FIN had come is waited for)
    <- bytes, FIN           to a receiver: one file
    -> FIN, all acked       the file leaves the queue; a peer that stays open is believed after
                            LEASE seconds, one that had half-closed before as soon as all is acked
A receiver that was handed something and begins to speak was a slow sender: sending stops, the
file goes back to its place, and what it says is an upload; if that ends in a reset, it is kept
but parked, for it may be cut. Files queue in the order in which their uploads complete.

Errors
    RST: the upload was not stored; the file could not be read to its end, or made no progress
    for LEASE seconds. A file whose delivery breaks off goes back to its place, so to the head of
    the queue. MAX_DELIVERIES times, if the peer's kernel acknowledged a byte of it (or it could
    not be read); then it is parked: kept, and handed to nobody. Connect-and-close costs nothing.
A killed daemon resets everyone whom FIN would tell something untrue (SO_LINGER {1, 0}).

Outcomes
    sent (its upload is kept), received (it has the file), nothing (half-closed, and no file was
    there), reset (its upload was dropped, or its file given back), stuck, unread (the file could
    not be read), unstored, busy (no descriptor was left), drained, cut

Source: "File relay" (port 5011, senders and receivers on one port). The seed asks each peer for
its role in words; on a raw port every word is legal file content, so who speaks first decides.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from attrs import define, field, frozen
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols.connection import Connection, Live, LiveFactory
from protocols.options import count, duration, option
from protocols.spec import Context, Port, Spec
from protocols.stores import Deposit, Depot, Gauge, Kernel, Parcel, StoreError, Ticket

log = Logger()

BOX = "queue"
LOOK = 0.05  # seconds between looks at acknowledgements that are still under way
TURN = 0.01  # seconds in which the reactor reads what came while it was busy


@frozen
class Options:
    receiver_after: float = option(
        1.0,
        partial(duration, least=0.05, most=60.0),
        "seconds of silence after which a peer is a receiver",
    )
    lease: float = option(
        60.0,
        partial(duration, least=1.0),
        "seconds without progress after which a delivery is given back",
    )
    max_deliveries: int = option(
        5, partial(count, least=1), "deliveries that break off before a file is parked"
    )


@define(eq=False, repr=False)
class Relay(Connection):
    """A peer: silent at first, then a sender or a receiver."""

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"sent", "received", "nothing", "drained"})
    PACED: ClassVar[bool] = False  # a parcel is the producer

    options: Options
    depot: Depot
    kernel: Kernel
    _upload: Deposit | None = field(default=None, init=False)
    _storing: bool = field(default=False, init=False)  # the upload is whole, but not yet durable
    _doubtful: bool = field(default=False, init=False)  # the upload is a slow sender's
    _claim: Deferred[Parcel | None] | None = field(default=None, init=False)
    _delivery: Delivery | None = field(default=None, init=False)
    _cut: IDelayedCall | None = field(default=None, init=False)

    def opened(self) -> None:
        self._receive_after(self.options.receiver_after, wait=True)

    def received(self, data: bytes) -> None:
        if self._upload is None:
            self._upload = self._send()
        self._upload.write(data)

    def finished(self) -> None:
        if self._upload is not None:
            upload, self._upload, self._storing = self._upload, None, True
            self.detail = "its upload was whole"
            upload.commit().addCallbacks(self._kept, self._unstored)
        elif self._delivery is not None:
            self._delivery.look()
        else:
            self._withdraw()
            self._receive_after(TURN, wait=False)

    def writeConnectionLost(self) -> None:
        # Nobody lingers here: we close after the peer's FIN, or after a lease.
        if self._delivery is not None:
            self._delivery.handed()

    def drain(self, grace: float) -> None:
        # Who still waits is reset: FIN would tell a receiver that its file is empty.
        if not (self.closing or self._storing or self._upload or self._delivery):
            self._withdraw()
            self.abort("drained")

    def closed(self, reason: Failure) -> None:
        self._withdraw()
        if self._cut is not None and self._cut.active():
            self._cut.cancel()
        if self._delivery is not None:
            self._delivery.break_off()
        if self._upload is None:
            return
        if self._doubtful and self.outcome == "reset":
            self._upload.commit(parked=True).addErrback(_reason)
        else:
            self._upload.abort()

    # As a sender.

    def broken(self, why: StoreError) -> None:
        """The depot takes no more of the upload."""
        self._upload = None
        self.abort("unstored", why.reason)

    def _send(self) -> Deposit:
        self._withdraw()
        if self._delivery is not None:
            self._doubtful = self._delivery.parcel.sent > 0
            self._delivery.give_back()
            self._delivery = None
            self.kernel.reset_on_close(self.transport, True)
        self.detail = "its upload was " + ("parked" if self._doubtful else "dropped")
        return self.depot.deposit(BOX, self)

    def _kept(self, ticket: Ticket) -> None:
        if self.closing:
            return
        self.kernel.reset_on_close(self.transport, False)
        if self._doubtful:  # it may never read what it was handed before it spoke
            self._cut = self.live.clock.callLater(
                self.options.lease, self.transport.abortConnection
            )
        self.close("sent")

    def _unstored(self, failure: Failure) -> None:
        self.abort("unstored", _reason(failure))

    # As a receiver.

    def _receive_after(self, seconds: float, wait: bool) -> None:
        # In two steps, with a look at the sockets after either: what had come before, but lay
        # there because the reactor was busy, goes first.
        self.later(seconds, lambda: self.later(TURN, lambda: self._receive(wait)))

    def _receive(self, wait: bool) -> None:
        self._claim = self.depot.take(BOX, self.options.max_deliveries, wait)
        self._claim.addCallbacks(self._deliver, self._unclaimed)

    def _withdraw(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.cancel()

    def _unclaimed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.abort("unread", _reason(failure))

    def _deliver(self, parcel: Parcel | None) -> None:
        self._claim = None
        if parcel is None:
            self.kernel.reset_on_close(self.transport, False)
            self.close("nothing")
            return
        try:
            gauge = self.kernel.gauge(self.transport)
        except OSError as error:
            self.abort("busy", str(error))
            parcel.release()
            return
        self.detail = f"file {parcel.ident} was given back"
        self._delivery = Delivery(self, parcel, gauge)
        self._delivery.begin()

    def arrived(self) -> None:
        """The peer has all of its file."""
        self._delivery = None
        self.close("received")
        if not self.ended:
            self.transport.loseConnection()


@define(eq=False, repr=False)
class Delivery:
    """One parcel on its way to one receiver, until it is there or was given back.

    No progress for the lease, counted from the look that saw the last, is the end of it.
    """

    LOOKS: ClassVar[int] = 20  # a lease; so much later than meant it may end

    to: Relay
    parcel: Parcel
    gauge: Gauge
    _sending: Deferred[None] | None = field(default=None, init=False)
    _unreadable: bool = field(default=False, init=False)
    _fin: bool = field(default=False, init=False)
    _seen: tuple[int | None, ...] = field(default=(), init=False)
    _since: float = field(default=0.0, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)

    def begin(self) -> None:
        self._sending = self.parcel.send(self.to.transport)
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
        to, lease, now = self.to, self.to.options.lease, self.to.live.clock.seconds()
        acked, left = self.gauge.acknowledged(), self.gauge.outstanding()
        if self._seen != (seen := (acked, left, self.parcel.sent)):
            self._seen, self._since = seen, now
        rest = lease - (now - self._since)
        there = self._fin and not left and (acked is None or acked >= self.parcel.size)
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

    def break_off(self) -> None:
        """The peer is gone, and the file may have reached it or not."""
        acked = self.gauge.acknowledged() or 0
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
            self.to.abort("unread", f"file {self.parcel.ident}: {_reason(failure)}")

    def _leave(self) -> None:
        self._forget_next()
        if self._sending is not None:
            self._sending.cancel()
        self.gauge.close()

    def _forget_next(self) -> None:
        timer, self._next = self._next, None
        if timer is not None and timer.active():
            timer.cancel()

    def _not_removed(self, failure: Failure) -> None:
        log.error(
            "relay: file {ident} was received, but its removal was not stored ({reason}):"
            " after a restart it may be handed out again",
            ident=self.parcel.ident,
            reason=_reason(failure),
        )

    def _not_counted(self, failure: Failure) -> None:
        log.error(
            "relay: file {ident} is back, but that its delivery broke off was not stored: {reason}",
            ident=self.parcel.ident,
            reason=_reason(failure),
        )


def _reason(failure: Failure) -> str:
    """What a store says went wrong; anything but its own error is a defect, shown whole."""
    if not isinstance(failure.value, StoreError):
        log.failure("a store failed in a way it must not", failure)
    return str(failure.value)


def build(context: Context) -> dict[str, LiveFactory]:
    options: Options = context.options
    depot, kernel = context.stores.depot, context.kernel
    live = Live("relay", context.clock)
    return {"PORT": LiveFactory(live, lambda live: Relay(live, options, depot, kernel))}


SPEC = Spec(
    name="relay",
    ports=(Port("PORT", 5011, resets=True),),
    build=build,
    options=Options,
    stores=frozenset({"depot"}),
)
