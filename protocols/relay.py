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

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols.connection import Connection, Live, LiveFactory
from protocols.relay_delivery import Delivery, trouble
from protocols.relay_http import BUSY, RelayHttp
from protocols.relay_options import BOX, Options
from protocols.spec import Context, Port, Spec
from protocols.stores import Deposit, Depot, Kernel, Label, Parcel, Shelved, StoreError

log = Logger()

LEND = 1 << 16  # bytes of an upload after which a thread reads the rest
TURN = 0.01  # seconds in which the reactor reads what came while it was busy


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

    @property
    def lease(self) -> float:
        return self.options.lease

    def received(self, data: bytes) -> None:
        if self._upload is None:
            try:
                self._upload = self._send()
            except StoreError as why:
                self.abort("unstored", why.reason)
                return
        self._upload.write(data)
        if self._upload.size >= LEND:
            self._upload.lend(self.transport)

    def abort(self, outcome: str, detail: str = "") -> None:
        upload, self._upload = self._upload, None
        super().abort(outcome, detail)
        if upload is not None:
            upload.abort()  # a transport that is lent is aborted once it is back

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
            self._upload.commit(parked=True).addErrback(trouble)
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
        options = self.options
        copies = 0 if options.mode == "shared" else options.copies
        label = Label(expires=options.expires, copies=copies)
        return self.depot.deposit(BOX, self, label, options.allowance)

    def _kept(self, _: Shelved) -> None:
        if self.closing:
            return
        self.kernel.reset_on_close(self.transport, False)
        if self._doubtful:  # it may never read what it was handed before it spoke
            self._cut = self.live.clock.callLater(
                self.options.lease, self.transport.abortConnection
            )
        self.close("sent")

    def _unstored(self, failure: Failure) -> None:
        self.abort("unstored", trouble(failure))

    # As a receiver.

    def _receive_after(self, seconds: float, wait: bool) -> None:
        # In two steps, with a look at the sockets after either: what had come before, but lay
        # there because the reactor was busy, goes first.
        self.later(seconds, lambda: self.later(TURN, lambda: self._receive(wait)))

    def _receive(self, wait: bool) -> None:
        # it has no other name than its address
        host = str(getattr(self.transport.getPeer(), "host", "") or "local")
        name = host if self.options.told_apart else ""
        self._claim = self.depot.take(BOX, self.options.max_deliveries, wait, name)
        self._claim.addCallbacks(self._deliver, self._unclaimed)

    def _withdraw(self) -> None:
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.cancel()

    def _unclaimed(self, failure: Failure) -> None:
        if not isinstance(failure.value, CancelledError):
            self.abort("unread", trouble(failure))

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
        self._delivery.begin(partial(parcel.send, self.transport))

    def arrived(self) -> None:
        """The peer has all of its file."""
        self._delivery = None
        self.close("received")
        if not self.ended:
            self.transport.loseConnection()


def build(context: Context) -> dict[str, LiveFactory]:
    options: Options = context.options
    depot, kernel = context.stores.depot, context.kernel
    depot.on_complete(options.on_complete)
    raw, http = Live("relay", context.clock), Live("relay", context.clock, options.lease)
    return {
        "PORT": LiveFactory(raw, lambda live: Relay(live, options, depot, kernel)),
        "HTTP_PORT": LiveFactory(http, lambda live: RelayHttp(live, options, depot, kernel)),
    }


SPEC = Spec(
    name="relay",
    ports=(
        Port("PORT", 5011, resets=True, means="raw: nothing but the bytes of files, the box queue"),
        Port(
            "HTTP_PORT",
            5012,
            secondary=True,
            busy=BUSY,
            means="named boxes over HTTP, resumable uploads (tus), and a page",
        ),
    ),
    build=build,
    options=Options,
    stores=frozenset({"depot"}),
)
