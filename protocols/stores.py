"""What a protocol may rely on: the promises of whatever keeps its bytes.

Today they are kept by files, SQLite and memory in one process (`daemon/stores`); later by a
cluster behind the same promises, so they stay small. Whatever may touch a disk or a network
answers by a Deferred, and what a Deferred says is kept is durable: it survives kill -9 and a
power cut. Trouble comes as StoreError, never as an OSError or an SQL error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, TypeVar

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

    def returned(self) -> None:
        """The transport that was lent is back; called before anything else comes from it.

        Why it is follows: a FIN or a reset of the peer, `broken`, or the intake has read as many
        bytes as it was to read (see its `size`) or was asked to commit or to abort.
        """


class Intake(Protocol[Kept]):
    """Where one stream of bytes goes. Calls never block and never raise."""

    @property
    def size(self) -> int:
        """Bytes that came so far; rises while a transport is lent, too."""

    def write(self, data: bytes) -> None:
        """Queue `data`; the source is paused while too much waits for the disk."""

    def lend(self, transport: Any, most: int | None = None) -> bool:
        """Have a thread read the socket of `transport`, up to `most` bytes, past the reactor.

        From now until `returned` the source gets nothing from it, not even its end, and writes
        nothing to the intake. False: it is no plain socket (TLS, PROXY), so go on with `write`.
        """

    def commit(self) -> Deferred[Kept]:
        """The stream is whole. Fires when every byte is durable, else fails with StoreError.

        A transport that is lent is recalled with what the peer has sent by now.
        """

    def abort(self) -> None:
        """The stream shall leave nothing behind."""


@frozen
class Series:
    """How a stream is laid down in files: `prefix` and a stamp, parts of `max_part` bytes.

    checksum: whether receipt and manifest carry sha256 sums. rotate: seconds after which a part
    is closed, however short; 0: none is. free: bytes that stay free on the disk. quota: bytes the
    folder may hold, 0: any number; oldest: whole series make room then, the oldest first. read:
    most bytes of one read. durable: `commit` waits for the disk; else until all is written.
    """

    prefix: str
    max_part: int
    checksum: bool = True
    rotate: float = 0.0
    free: int = 0
    quota: int = 0
    oldest: bool = False
    read: int = 1 << 20
    durable: bool = True


@frozen
class Receipt:
    """A stream is kept: its bytes, the hex sha256 of them (or None), and in how many parts."""

    size: int
    sha256: str | None
    parts: int


class Landed(Intake[Receipt], Protocol):
    """A stream on its way into files."""

    @property
    def starved(self) -> bool:
        """While a transport is lent: it is the peer that is waited for, not thread or disk."""

    def commit(self, outcome: str = "whole") -> Deferred[Receipt]:
        """It is over; outcome: how it ended, for its manifest: only `whole` is complete."""


class Landing(Protocol):
    """Streams into local files."""

    def open(self, series: Series, source: Source, peer: str = "") -> Landed:
        """peer: who sends it, for its manifest."""

    def on_complete(self, command: Sequence[str]) -> None:
        """From now on run `command` for each series that is durable; empty: nothing."""


# --- the file queue ---------------------------------------------------------------------------


@frozen
class Label:
    """What a sender says of a file.

    name: data, never a path; may be empty. size: bytes, if they are known before they come.
    sha256: the hex digest it must have, or empty. expires: seconds after which it is deleted,
    0: never. copies: receivers who get it, 0: each named receiver, until it expires or is
    cancelled.
    """

    name: str = ""
    size: int | None = None
    sha256: str = ""
    expires: float = 0.0
    copies: int = 1


@frozen
class Allowance:
    """How much may be kept; 0: no limit.

    file, box, total: bytes of one file, of one box and of all, with what is still being uploaded.
    free: bytes that stay free on the disk. boxes: how many there may be. idle: seconds after
    which a draft that nobody went on with is deleted.
    """

    file: int = 0
    box: int = 0
    total: int = 0
    free: int = 0
    boxes: int = 0
    idle: float = 0.0


# Why there is no room, as a StoreError says it; an error of the disk may be the same.
TOO_LARGE = "file too large"
NO_QUOTA = "disk quota used up"
NO_SPACE = "disk full"
NO_BOX = "too many boxes"
# And what else is no trouble of the store.
NOT_THE_DIGEST = "the digest differs"
SUPERSEDED = "another connection goes on with it"
UPLOADING = "it is being uploaded"


@frozen
class Shelved:
    """A file of a box, as one would list it.

    ident: its place in the queue in decimal digits; of one that is being uploaded, 32 hex digits
    that go on naming it afterwards. name: never empty. size: bytes, None while nobody knows.
    sha256: hex, empty while it is uploaded. sent: when it became durable, or began to come;
    expires: when it is deleted; both ISO 8601 in UTC. deliveries: those that broke off. state:
    uploading, waiting, claimed, or parked (kept, but handed to nobody). received: bytes so far.
    """

    ident: str
    box: str
    name: str
    size: int | None
    sha256: str
    sent: str
    expires: str | None
    deliveries: int
    state: str
    received: int


@frozen
class Box:
    """A box with something in it: how many files are kept and their bytes."""

    name: str
    parcels: int
    size: int


class Deposit(Intake[Shelved], Protocol):
    """A file on its way into a box."""

    def commit(self, parked: bool = False) -> Deferred[Shelved]:
        """It is whole; parked: it may not be, so it is kept and handed to nobody.

        Fails with StoreError(NOT_THE_DIGEST) if that of its label is another; nothing is kept.
        """


@frozen
class Progress:
    """A draft after one connection's share: the bytes that are durable now.

    refused: the share was not the one its checksum meant, so it was dropped. shelved: that was
    all of the file, and it is in its box now.
    """

    offset: int
    refused: bool = False
    shelved: Shelved | None = None


class Draft(Protocol):
    """A file that may come in several connections, and survives restarts between them.

    key: 32 hex digits. length: bytes when it is whole. offset: those of them that are durable; it
    stands still once `settle` has fired, until the next `write`. expires: seconds since 1970.
    """

    key: str
    box: str
    length: int

    @property
    def offset(self) -> int: ...

    @property
    def expires(self) -> float | None: ...

    def settle(self) -> Deferred[None]:
        """End whoever writes: their source is `broken`, what they brought is synced."""

    def write(
        self, source: Source, checksum: tuple[str, bytes] | None = None
    ) -> Deferred[Intake[Progress]]:
        """Settle, then go on from `offset`. Aborting keeps what came, as committing does.

        checksum: a hashlib algorithm and the digest of what follows; what differs is dropped, and
        so is what was aborted. Fails with StoreError when the draft is gone meanwhile.
        """

    def discard(self) -> Deferred[None]:
        """Settle and delete it."""


class Reading(Protocol):
    """A look at a file that does not claim it, even while it is being uploaded.

    sent: bytes written to the transport by the latest `send`, from its start.
    """

    sent: int

    @property
    def shelved(self) -> Shelved:
        """What it is now. Its size may be known only later, its ident change (see Shelved)."""

    def send(
        self,
        transport: Any,
        head: bytes = b"",
        start: int = 0,
        end: int | None = None,
        frame: Callable[[bytes], bytes] | None = None,
    ) -> Deferred[None]:
        """Write `head`, then the bytes from `start` to `end` (else all) to `transport`.

        frame: what makes a piece ready to be written. What is not uploaded yet is waited for.
        Fires when the last byte was written; fails with StoreError when the file cannot be read
        to its end or its upload was given up, and with CancelledError when cancelled or when the
        transport is gone. While it lasts, the transport is not to be touched, but for
        `abortConnection`.
        """

    def leased(self, receiver: str) -> bool:
        """Whether this receiver claims it."""

    def renew(self, receiver: str) -> None:
        """Whoever leased it is still at it."""

    def acknowledge(self, receiver: str) -> Deferred[bool]:
        """This receiver has it. False: that was so before, or it is gone."""

    def cancel(self) -> Deferred[bool]:
        """Nobody shall get it any more; it is deleted. False: it is gone already.

        Fails with StoreError(UPLOADING) while it comes in one connection: that has to break off.
        """

    def requeue(self) -> Deferred[bool]:
        """A parked one waits again, as if never delivered. False: it is gone."""


class Parcel(Protocol):
    """A complete file, claimed by one receiver until `done` or `release`."""

    ident: int
    size: int
    deliveries: int  # counted ones so far
    sent: int  # bytes written to the transport by the latest `send`

    @property
    def shelved(self) -> Shelved: ...

    def send(self, transport: Any, head: bytes = b"", watch: bool = True) -> Deferred[None]:
        """As `Reading.send`, all of it. watch: the peer must be heard meanwhile, so the reactor
        does it; else a thread may."""

    def lease(self, seconds: float) -> None:
        """The claim outlives its connection: it ends by itself, as a delivery, when for so long
        nobody renewed it (`Reading.renew`), unless it was acknowledged."""

    def done(self) -> Deferred[None]:
        """It was received: fires when that is durable."""

    def release(self, counted: bool = False, park: bool = False) -> Deferred[bool]:
        """Give it back to its place in the queue, the head if nothing older is there.

        counted: this was a delivery. Fires with True if the file is now parked: kept, shown, but
        handed to nobody (because `park` was asked or its deliveries are used up).
        """


class Depot(Protocol):
    """Queues of files, one a box."""

    def deposit(
        self, box: str, source: Source, label: Label = ..., allowance: Allowance = ...
    ) -> Deposit:
        """A new file; files queue in the order in which their commits fire.

        Raises StoreError when there is no room for it.
        """

    def begin(self, box: str, label: Label, allowance: Allowance) -> Deferred[Draft]:
        """A new file of label.size bytes, to come in one or more connections."""

    def draft(self, key: str) -> Deferred[Draft | None]:
        """One that was begun and is not whole yet."""

    def take(
        self, box: str, most: int, wait: bool = True, receiver: str = ""
    ) -> Deferred[Parcel | None]:
        """Claim the oldest file that is there; None if there is none and `wait` is off.

        What is being committed when it is called counts as there, unless that fails.
        most: counted deliveries after which a file is parked instead of coming back. receiver:
        who has a name gets no file twice. Cancelling a waiting Deferred withdraws the claim;
        waiters are served in the order they came.
        """

    def find(self, box: str, key: str) -> Deferred[Reading | None]:
        """A file by its ident, or the newest of that name. An ident is tried first."""

    def list(self, box: str) -> Deferred[Sequence[Shelved]]:
        """Every file of the box in the order of the queue, then those being uploaded."""

    def boxes(self) -> Deferred[Sequence[Box]]:
        """Every box with something in it, by name."""

    def on_complete(self, command: Sequence[str]) -> None:
        """Run this for every file from now on, with the path of its JSON; empty: nothing."""


# --- the ledger -------------------------------------------------------------------------------


class Refused(Enum):
    """Why the ledger did not take something; the value is what a peer is told."""

    WRONG = "wrong id or code"
    SLOW = "slow down"
    TAKEN = "id taken"
    BUSY = "busy"
    BROKEN = "not stored"


@frozen
class Entry:
    """Messages somebody wants logged, with the pair that shows who. peer: host:port.

    What one read brought under one pair is one entry: all of its messages are kept, or none is.
    """

    ident: str
    code: str
    messages: Sequence[str]
    peer: str


@frozen
class Claim:
    """Somebody wants a code for an id. code: the present one of that id, to be replaced.

    exclusive: an id that has a code gets another only for that one. The one that was shown ends
    when its successor is first used, so that an answer which never arrives locks nobody out.
    """

    ident: str
    code: str | None = None
    exclusive: bool = False


@frozen
class Query:
    """Somebody wants to read: up to `limit` messages after number `after`, oldest first.

    whole: all that were logged under the id; else those that were logged with this code.
    """

    ident: str
    code: str
    after: int = 0
    limit: int = 100
    whole: bool = False


class Record(NamedTuple):
    """A message that is logged. at: ISO 8601 in UTC, with milliseconds."""

    seq: int
    at: str
    ident: str
    message: str


@frozen
class Rules:
    """What the ledger keeps.

    code_expires: seconds after which a code that was never used ends; 0: never.
    keep_seconds, keep_count: older messages, or those beyond that many, are deleted; 0: none.
    log_size: bytes at which the log file is rotated; 0: never. log_keep: rotated ones that stay.
    """

    code_expires: float = 0.0
    keep_seconds: float = 0.0
    keep_count: int = 0
    log_size: int = 0
    log_keep: int = 5


class Ledger(Protocol):
    """Registered clients, their codes, their messages. Nothing fails: refusals are values."""

    @property
    def behind(self) -> bool:
        """So much waits that whoever can should wait, too; with twice as much, all are BUSY."""

    def rule(self, rules: Rules) -> None:
        """From now on these hold; before the first call nothing expires."""

    def claim(self, claim: Claim) -> Deferred[str | Refused]:
        """A fresh code; durable. TAKEN when the id has one, and it was not shown."""

    def append(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        """Log messages, one call a read: of each entry the number of its first message once all
        are durable, or why not. The others have the numbers that follow."""

    def read(self, query: Query) -> Deferred[Sequence[Record] | Refused]:
        """What was asked for, perhaps less than `limit`; empty: there is no more."""


# --- the rooms --------------------------------------------------------------------------------


class Kind(Enum):
    """What was said, or what happened. A dialect renders what it shows and skips the rest."""

    SAY = "say"
    ACTION = "action"  # the text is what the author does: `waves`
    JOIN = "join"
    PART = "part"  # the text is the reason, or empty; so for QUIT
    NICK = "nick"  # the text is the author's new name
    QUIT = "quit"


@frozen
class Line:
    """What one author (or nobody) said or did in a room in one go.

    text: one line, or (SAY only) several with LF between them, without the LF of the last: what a
    read brought goes through the room as one value.
    """

    text: bytes
    author: str | None = None
    kind: Kind = Kind.SAY


@frozen
class Said:
    """One line of a room's history, SAY or ACTION. seq rises; at: seconds since the epoch."""

    seq: int
    at: float
    author: str | None
    kind: Kind
    text: bytes


Render = Callable[[Sequence[Line], float], bytes]
"""Lines and when they were said (seconds since the epoch) to bytes, maybe none. Renders that are
equal are one dialect, called once for all its members: a function, or a frozen value."""


class Talker(Protocol):
    """Who speaks from a seat: it is told to read no more for now, and to go on."""

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...


class Seat(Protocol):
    """Where one member sits: the rooms it hears, on one consumer.

    muted: its talker is paused, because it takes its private answers too slowly, or because it
    says more than the others in its rooms can hear.
    """

    muted: bool

    def follow(self, room: str, render: Render, echo: bool = True, new: bool = False) -> bool:
        """Hear everything published in `room` from now on.

        echo: also what was published `by` this seat. new: the peer has only just connected, so
        what this turn published already is for it, too. False: it does not follow, because there
        are too many rooms. Following a room twice changes nothing.
        """

    def leave(self, room: str) -> None:
        """Hear nothing published in `room` from now on; what was published before still comes."""

    def private(self, data: bytes) -> None:
        """To this member only, in its place between the lines published around it."""

    def tell(self, data: bytes) -> bool:
        """As `private`, but it comes from another member, as often as that one likes.

        True: this one is behind with reading. Who takes nothing while ever more comes is cut.
        """

    def stop(self, after: Callable[[], object] | None = None) -> None:
        """Leave every room and the consumer.

        after: called once everything published so far was written; without it, what is owed is
        dropped.
        """


class Broadcast(Protocol):
    """Lines to everyone in a room, in one order.

    A room exists while somebody follows it or its history holds a line. Who follows several hears
    the lines of one turn of the reactor room by room; nobody can have answered them yet.
    """

    def bounds(self, rooms: int, history: int) -> None:
        """From now on: at most so many rooms, and so many lines of each are kept (0: none).

        The room that everybody starts in is never one too many.
        """

    def seat(self, consumer: Any, talker: Talker, lost: Callable[[str], object]) -> Seat:
        """A place for the peer behind `consumer`, a transport; the seat is its push producer.

        lost: called with an outcome when the member reads too slowly to be kept.
        """

    def publish(self, room: str, lines: Sequence[Line], by: Seat | None = None) -> None:
        """Send `lines` to every follower, in order, at the end of this turn of the reactor.

        by: who says it; a talker that floods its rooms can only be paused if it is known.
        """

    def rooms(self) -> Deferred[Sequence[tuple[str, int]]]:
        """Every room and how many follow it (0: only its history is left), by name."""

    def members(self, room: str) -> Deferred[int]:
        """How many follow `room`; cheap, however many rooms there are."""

    def history(self, room: str, most: int, before: int | None = None) -> Deferred[Sequence[Said]]:
        """The last `most` lines of `room` (with a seq below `before`), oldest first.

        Single lines, as they were published before this call, none later: a private answer made
        of it, for one who follows since then, neither lacks nor repeats a line. Never fails; what
        cannot be read is left out.
        """


# --- the roster -------------------------------------------------------------------------------


class Bearer(Protocol):
    """Who may bear a name."""

    def told(self, line: Line) -> bool:
        """`line.author` says or does (SAY, ACTION; one line) something for it alone.

        True: it is behind with reading what it was told.
        """


@frozen
class Sighting:
    """Who is there: the name as it is spelled, its rooms, and why it is away (None: it is not).

    behind: it does not read what it is told, as `Roster.tell` found; tell it no more for a while.
    """

    name: str
    rooms: tuple[str, ...] = ()
    away: str | None = None
    behind: bool = False


class Roster(Protocol):
    """Who is called what, and where they are. No two bear names that read alike.

    Two names are one if they are equal after NFKC and casefold. What may be a name at all is
    the protocol's to say.
    """

    def claim(self, name: str, who: Bearer) -> Deferred[bool]:
        """`who` is called `name` from now on, in place of what it was called. False: taken."""

    def release(self, who: Bearer) -> None:
        """It is called nothing, and is nowhere."""

    def enter(self, room: str, who: Bearer) -> None:
        """It is in `room` from now on; nothing happens to who has no name, and so for the next."""

    def leave(self, room: str, who: Bearer) -> None: ...

    def away(self, who: Bearer, why: str | None) -> None: ...

    def find(self, name: str) -> Deferred[Sighting | None]:
        """Who is called so."""

    def present(self, room: str | None = None) -> Deferred[Sequence[Sighting]]:
        """Who has a name and is in `room` (or anywhere), by name."""

    def tell(self, name: str, line: Line) -> Deferred[Sighting | None]:
        """Give `line` to who is called `name`; who that was, None: nobody is."""


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

    def names(self) -> Collection[str]:
        """What this machine is called, in lower case."""


@frozen
class Stores:
    """The stores of one daemon; a protocol reaches for those its Spec names."""

    landing: Landing
    depot: Depot
    ledger: Ledger
    broadcast: Broadcast
    roster: Roster
