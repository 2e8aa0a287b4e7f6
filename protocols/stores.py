"""What a protocol may rely on: the promises of whatever keeps its bytes.

Today they are kept by files, SQLite and memory in one process (`daemon/stores`); later by a
cluster behind the same promises, so they stay small. Whatever may touch a disk or a network
answers by a Deferred, and what a Deferred says is kept is durable: it survives kill -9 and a
power cut. Trouble comes as StoreError, never as an OSError or an SQL error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Protocol, TypeVar

from attrs import define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport

Kept = TypeVar("Kept")


@define(eq=False)
class StoreError(Exception):
    """Something could not be kept. reason: a few plain words for the peer and the log.

    stored: the bytes of this stream that are durable all the same.
    """

    reason: str
    stored: int = 0

    def __str__(self) -> str:
        return self.reason


# --- bulk bytes -------------------------------------------------------------------------------


class Source(Protocol):
    """Who fills an intake: it is told to pause when the disk is behind, and of the end of it."""

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def broken(self, why: StoreError) -> None:
        """The intake takes no more; called at most once, never after `commit` or `abort`."""


class Intake(Protocol[Kept]):
    """Where one stream of bytes goes. Calls never block and never raise."""

    def write(self, data: bytes) -> None:
        """Queue `data`; the source is paused while too much waits for the disk."""

    def commit(self) -> Deferred[Kept]:
        """The stream is whole. Fires when every byte is durable, else fails with StoreError."""

    def abort(self) -> None:
        """The stream shall leave nothing behind."""


@frozen
class Series:
    """How a stream is laid down in files: `prefix` and a stamp, parts of `max_part` bytes.

    checksum: whether the receipt carries the sha256 of the whole stream.
    """

    prefix: str
    max_part: int
    checksum: bool = True


@frozen
class Receipt:
    """A stream is durable: its bytes, the hex sha256 of them (or None), and in how many parts."""

    size: int
    sha256: str | None
    parts: int


class Landing(Protocol):
    """Streams into local files."""

    def open(self, series: Series, source: Source) -> Intake[Receipt]: ...


# --- the file queue ---------------------------------------------------------------------------


@frozen
class Ticket:
    """A file is durable in its queue: its place there, its bytes and their hex sha256."""

    ident: int
    size: int
    sha256: str


@frozen
class Shelved:
    """A file of a queue, as one would list it. at: when it became durable, ISO 8601 in UTC.

    parked: kept, but handed to nobody.
    """

    ident: int
    size: int
    sha256: str
    at: str
    deliveries: int
    parked: bool


class Deposit(Intake[Ticket], Protocol):
    """A file on its way into a queue."""

    def commit(self, parked: bool = False) -> Deferred[Ticket]:
        """It is whole; parked: it may not be, so it is kept and handed to nobody."""


class Parcel(Protocol):
    """A complete file, claimed by one receiver until `done` or `release`."""

    ident: int
    size: int
    deliveries: int  # counted ones so far
    sent: int  # bytes written to the transport by the latest `send`

    def send(self, transport: Any) -> Deferred[None]:
        """Write every byte to `transport`, at its pace (as its producer).

        Fires when the last byte was written; fails with StoreError when the file cannot be read
        to its end, and with CancelledError when cancelled or when the transport is gone. The
        producer is unregistered in every case.
        """

    def done(self) -> Deferred[None]:
        """It was received: fires when its removal is durable."""

    def release(self, counted: bool = False, park: bool = False) -> Deferred[bool]:
        """Give it back to its place in the queue, the head if nothing older is there.

        counted: this was a delivery. Fires with True if the file is now parked: kept, shown, but
        handed to nobody (because `park` was asked or its deliveries are used up).
        """


class Depot(Protocol):
    """Queues of files, one a box."""

    def deposit(self, box: str, source: Source) -> Deposit:
        """A new file; files queue in the order in which their commits fire."""

    def take(self, box: str, most: int, wait: bool = True) -> Deferred[Parcel | None]:
        """Claim the oldest file that is there; None if there is none and `wait` is off.

        What is being committed when it is called counts as there, unless that fails.
        most: counted deliveries after which a file is parked instead of coming back. Cancelling
        a waiting Deferred withdraws the claim; waiters are served in the order they came.
        """

    def list(self, box: str) -> Deferred[Sequence[Shelved]]:
        """Every file of the box in the order of the queue, claimed and parked ones, too."""


# --- the ledger -------------------------------------------------------------------------------


class Refused(Enum):
    """Why the ledger did not take something; the value is what a peer is told."""

    WRONG = "wrong id or code"
    TAKEN = "id taken"
    BUSY = "busy"
    BROKEN = "not stored"


@frozen
class Entry:
    """A message somebody wants logged, with the pair that shows who. peer: host:port."""

    ident: str
    code: str
    message: str
    peer: str


class Ledger(Protocol):
    """Registered clients, their codes, their messages. Nothing fails: refusals are values."""

    def claim(self, ident: str, exclusive: bool = False) -> Deferred[str | Refused]:
        """A fresh code for `ident`; durable. exclusive: TAKEN when it has one already."""

    def append(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        """Log messages, one call a read: the rising number of each once durable, or why not."""


# --- the room ---------------------------------------------------------------------------------


@frozen
class Line:
    """What one author (or nobody) said in a room in one go.

    text: one line, or several with LF between them, without the LF of the last: what a read
    brought goes through the room as one value.
    """

    text: bytes
    author: str | None = None


Render = Callable[[Sequence[Line]], bytes]


class Following(Protocol):
    """One member's place in a room.

    muted: it takes its private answers too slowly, so its consumer is not read until it does.
    """

    muted: bool

    def private(self, data: bytes) -> None:
        """To this member only, in its place between the lines published around it."""

    def stop(self, after: Callable[[], object] | None = None) -> None:
        """Follow no more. after: called once everything published so far was written."""


class Broadcast(Protocol):
    """Lines to everyone in a room, in one order."""

    def publish(self, room: str, lines: Sequence[Line]) -> None:
        """Send `lines` to every follower, in order, at the end of this turn of the reactor."""

    def follow(
        self, room: str, render: Render, consumer: Any, lost: Callable[[str], object]
    ) -> Following:
        """Everything published from now on is rendered (once a dialect) and written to `consumer`.

        consumer: a transport; the following registers itself as its producer. lost: called with
        an outcome when the member reads too slowly to be kept.
        """


# --- what only the operating system knows ------------------------------------------------------


class Gauge(Protocol):
    """How far the peer's kernel is with what we sent. Close it when the peer is gone."""

    def acknowledged(self) -> int | None:
        """Bytes (our FIN counts as one) the peer's kernel confirmed since we took the gauge.

        Valid after a reset, too. None where the system does not tell.
        """

    def outstanding(self) -> int:
        """Bytes (our FIN counts as one) in our kernel that the peer's did not confirm yet.

        0 where the system does not tell.
        """

    def dead(self) -> bool:
        """Whether the connection was reset; a transport that is not reading does not notice."""

    def close(self) -> None:
        """Until then no FIN or RST goes out for a transport that was closed."""


class Kernel(Protocol):
    """The socket beneath a transport."""

    def gauge(self, transport: ITransport) -> Gauge:
        """Raises OSError when no descriptor is left for it."""

    def reset_on_close(self, transport: ITransport, on: bool) -> None:
        """While on, the end of this process resets the peer instead of sending it FIN."""


@frozen
class Stores:
    """The stores of one daemon; a protocol reaches for those its Spec names."""

    landing: Landing
    depot: Depot
    ledger: Ledger
    broadcast: Broadcast
