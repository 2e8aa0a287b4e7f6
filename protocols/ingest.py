"""ingest: land a TCP stream in files, byte for byte.

Wire (TCP, port 8080, any bytes)
    -> bytes ... FIN      <- OK <bytes> <sha256> <parts>, then FIN, once every part is durable
    -> FIN, no bytes      <- OK 0 <sha256 of nothing> 0, then FIN; no file is made
Nothing is sent while the peer still sends: a client that never reads would lose its own bytes.
Each connection is a series of files of MAX_FILE_SIZE bytes; only the last may be shorter. What
was read before a reset is kept. CHECKSUM = none answers `-` in place of the sha256.

Errors, one line, then FIN
    ERR <reason> stored=<bytes durably kept>    storing failed: at the peer's FIN, or after
                                                DROP_BYTES or DROP seconds more of its stream
    ERR idle stored=<n>                         nothing came for IDLE_TIMEOUT seconds (0 = off)
    ERR stopping stored=<n>                     the daemon ends, and 3/4 of its grace were over
    ERR stream too long stored=<n>              more than MAX_STREAM bytes came; told like the first
    ERR busy                                    one connection too many: nothing was read
A peer that sent nothing gets no line from `idle` and `stopping`: we never speak first.

RECEIPT = off
    Nothing is ever sent. Our FIN means that all is kept; every error, also a killed daemon,
    resets the peer.
    WAIT_FOR_DISK = off: our FIN means that all is written. It outlives the daemon from then on, a
    power cut as soon as it is synced, begun a second later; an error after our FIN is logged.

Past its first LENT bytes a stream is read by a thread, straight from its socket (not so under TLS
or a PROXY header); the reactor hears how it ended.

Outcomes
    whole, left (nothing was sent), reset, silent, drained, overlong, failed (the detail says why),
    cut; the manifest of a series has the same

Source: "TCP Server Log" (port 8080, MAX_FILE_SIZE, FILE_PREFIX, the names). The receipt, the
unique part of the names and what follows the limit exactly are ours: the seed overfills a part.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any, ClassVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols.connection import Connection, Live, LiveFactory, spoken
from protocols.options import choice, command, duration, file_prefix, flag, option, size
from protocols.spec import Context, Port, Spec
from protocols.stores import Kernel, Landed, Landing, Receipt, Series, StoreError

log = Logger()

LENT = 64 << 10  # bytes
DROP = 5.0  # seconds
DROP_BYTES = 64 << 20


@frozen
class Options:
    max_file_size: int = option(64 << 20, partial(size, least=1), "most bytes of one file")
    file_prefix: str = option("data", file_prefix, "how the names of the files begin")
    receipt: bool = option(True, flag, "answer a whole stream with OK, bytes, checksum and parts")
    wait_for_disk: bool = option(
        True, flag, "with RECEIPT = off, too, the end of a stream is answered once it is durable"
    )
    checksum: str = option("sha256", choice("sha256", "none"), "what the receipt proves it by")
    idle_timeout: float = option(0.0, duration, "seconds of silence that end a stream; 0: none do")
    buffer_size: int = option(
        1 << 20, partial(size, least=1 << 10, most=16 << 20), "most bytes of one read"
    )
    max_stream: int = option(0, size, "most bytes of one connection; 0: any number")
    rotate_seconds: float = option(
        0.0, duration, "seconds after which a file is closed, however short; 0: none is"
    )
    quota: int = option(0, size, "most bytes of all files; 0: any number")
    quota_policy: str = option(
        "refuse", choice("refuse", "oldest"), "what a full quota does: refuse, or delete the oldest"
    )
    min_free: int = option(256 << 20, size, "bytes that stay free on the disk")
    on_complete: tuple[str, ...] = option(
        (), command, "program run for each series, its manifest as last argument"
    )

    @property
    def series(self) -> Series:
        return Series(
            self.file_prefix,
            self.max_file_size,
            self.checksum == "sha256",
            self.rotate_seconds,
            self.min_free,
            self.quota,
            self.quota_policy == "oldest",
            self.buffer_size,
            self.receipt or self.wait_for_disk,
        )


@define(eq=False, repr=False)
class Ingest(Connection):
    """One stream. It ends once: by the peer's FIN, by us, or because the peer is gone."""

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"whole", "left"})
    PACED: ClassVar[bool] = False

    landing: Landing
    kernel: Kernel
    options: Options
    _intake: Landed | None = field(default=None, init=False)
    _lent: bool = field(default=False, init=False)
    _unlendable: bool = field(default=False, init=False)
    _seen: int = field(default=0, init=False)  # bytes of the stream at the last look
    _still: int = field(default=0, init=False)  # looks since then
    _over: bool = field(default=False, init=False)  # the intake was asked to commit
    _held: bool = field(default=False, init=False)  # it has paused us
    _broken: StoreError | None = field(default=None, init=False)
    _discarded: int = field(default=0, init=False)
    _deadline: IDelayedCall | None = field(default=None, init=False)

    def opened(self) -> None:
        transport: Any = self.transport
        if hasattr(transport, "bufferSize"):
            transport.bufferSize = min(LENT, self.options.buffer_size)
        if not self.options.receipt:
            self.kernel.reset_on_close(self.transport, True)

    def received(self, data: bytes) -> None:
        if self._broken is not None:
            self._discarded += len(data)
            if self._discarded > DROP_BYTES:
                self._enough()
        elif not self._over:
            self._take(data)

    def finished(self) -> None:
        if self._broken is not None:
            self._enough()
        elif self._intake is None:
            digest = hashlib.sha256().hexdigest() if self.options.series.checksum else None
            self._answer(Receipt(0, digest, 0), "left")
        elif not self._over:
            self._commit(self._intake).addCallbacks(self._answer, self._fail)

    def silent(self) -> None:
        # Who is held back by a slow disk is not silent.
        if not self.options.idle_timeout or self._held or self._broken is not None:
            return
        self._still += 1
        intake = self._intake if self._lent else None
        if intake is not None and (intake.size != self._seen or not intake.starved):
            self._seen, self._still = intake.size, 0  # a thread heard of it, or did not listen yet
        elif intake is None or self._still > self.live.BEATS:
            self._stop("silent", "idle")

    def drain(self, grace: float) -> None:
        if self._intake is None or self._broken is not None:
            self._enough()
        elif not self._over:
            self._forget_deadline()
            self._deadline = self.live.clock.callLater(grace * 0.75, self._enough)

    @property
    def _size(self) -> int:
        return 0 if self._intake is None else self._intake.size

    def _take(self, data: bytes) -> None:
        if self._intake is None:
            peer = spoken(self.transport.getPeer())
            self._intake = self.landing.open(self.options.series, self, peer)
        most = self.options.max_stream
        if most and self._size + len(data) > most:
            self._intake.write(data[: most - self._size])
            self._overlong(self._intake)
            return
        self._intake.write(data)
        if self._size >= LENT and not self._unlendable:
            self._lent = self._intake.lend(self.transport, most - self._size if most else None)
            self._unlendable = not self._lent

    def returned(self) -> None:
        self._lent = False
        self._seen, self._still, self.quiet = self._size, 0, 0

    def pauseProducing(self) -> None:
        self._held = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._held, self.quiet = False, 0
        if not self._over:
            super().resumeProducing()

    def broken(self, why: StoreError) -> None:
        if self.closing:
            return
        self._broken = why
        if self.ended or not self.options.receipt:
            self._enough()
            return
        super().resumeProducing()  # one that became too long may have been held back
        if self._deadline is None:
            self._deadline = self.live.clock.callLater(DROP, self._enough)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.closing and self._size:
            self.detail = f"{self._size} bytes had been read"
        super().connectionLost(reason)

    def closed(self, reason: Failure) -> None:
        self._forget_deadline()
        if self._intake is not None and not self._over and self._broken is None:
            self._commit(self._intake, self.outcome).addErrback(self._fail)

    def _enough(self) -> None:
        """No more of this stream: the storage is broken, or the daemon ends."""
        if self._broken is not None:
            outcome = "overlong" if self._over else "failed"
            self._refuse(outcome, self._broken.reason, self._broken.stored)
        else:
            self._stop("drained", "stopping")

    def _stop(self, outcome: str, reason: str) -> None:
        """The peer did not end it; we do."""
        if self._intake is None:
            self._refuse(outcome)
        elif not self._over:
            self.transport.pauseProducing()
            self._commit(self._intake, outcome).addCallbacks(
                lambda receipt: self._refuse(outcome, reason, receipt.size), self._fail
            )

    def _overlong(self, intake: Landed) -> None:
        """What came up to the limit is kept; the rest is dropped as if storing had failed."""
        self._commit(intake, "overlong").addCallbacks(
            lambda receipt: self.broken(StoreError("stream too long", receipt.size)), self._fail
        )

    def _commit(self, intake: Landed, outcome: str = "whole") -> Deferred[Receipt]:
        self._over = True
        self._forget_deadline()
        return intake.commit(outcome)

    def _answer(self, receipt: Receipt, outcome: str = "whole") -> None:
        if self.closing:
            return
        if self.options.receipt:
            line = f"OK {receipt.size} {receipt.sha256 or '-'} {receipt.parts}\n"
            self.transport.write(line.encode())
        else:
            self.kernel.reset_on_close(self.transport, False)
        self.close(outcome)

    def _fail(self, failure: Failure) -> None:
        why = failure.value
        assert isinstance(why, StoreError)
        if self.closing:
            log.error(
                "ingest {peer}, which is gone: {reason}, {stored} of {size} bytes kept",
                event="ingest.lost",
                peer=spoken(self.transport.getPeer()),
                reason=why.reason,
                stored=why.stored,
                size=self._size,
            )
        else:
            self._refuse("failed", why.reason, why.stored)

    def _refuse(self, outcome: str, reason: str = "", stored: int = 0) -> None:
        """reason: for the peer; nothing is said to one that sent nothing."""
        self._forget_deadline()
        if self.closing:
            return
        detail = reason and f"{reason}, {stored} bytes kept"
        if not self.options.receipt:
            self.abort(outcome, detail)
            return
        if reason:
            self.transport.write(f"ERR {reason} stored={stored}\n".encode())
        self.close(outcome, detail)

    def _forget_deadline(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()


def build(context: Context) -> dict[str, LiveFactory]:
    options: Options = context.options
    landing, kernel = context.stores.landing, context.kernel
    landing.on_complete(options.on_complete)
    return {
        "PORT": LiveFactory(
            Live("ingest", context.clock, options.idle_timeout),
            lambda live: Ingest(live, landing, kernel, options),
        )
    }


SPEC = Spec(
    name="ingest",
    ports=(Port("PORT", 8080, busy=b"ERR busy\n"),),
    build=build,
    options=Options,
    stores={"landing"},
    also_default=True,
)
