"""One stream laid down in parts: the blocking side, for a thread of the crew.

A part is made as `<name>.partial` and gets its name once it is full and synced, by other hands
than those that read on. Parts that fill within one turn are settled together: a few with a sync
each, MANY with one sync of the filesystem where that is as good (and then they are closed as they
fill: descriptors stay few).

Bytes of a lent socket go to the part by splice(2): they are never copied to this process. Where a
checksum is asked they are read back out of the page cache and hashed by other hands meanwhile, see
`sums`; those of tiny parts are received and hashed as they come.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import ClassVar

from attrs import define, field

from daemon.stores import files
from daemon.stores.crew import KIT, PIPE, SPLICES, Lent, Sink
from daemon.stores.landing.ground import DAMAGED, PARTIAL, Ground, Place, mark_damaged, rename
from daemon.stores.landing.manifest import SUFFIX, Manifest, Piece
from daemon.stores.sums import STRETCH, Sums
from protocols.stores import Receipt, Series

MANY = 32  # parts in a turn from which on one sync of the filesystem is cheaper
MOST = 1024  # parts that wait to be settled
BEHIND = 3  # turns whose parts are being settled while the stream is read on
FAR = 8  # the same where nobody waits for the disk
AHEAD = 8 << 20  # bytes of a part after which the drive is told to begin
TINY = 1 << 20  # bytes of a part that is not worth being read back for its sum


@define(eq=False)
class Part:
    """A file of a series, full or in hand. began: when, in seconds since the epoch."""

    name: str
    descriptor: int
    began: float
    sum: str | None = None
    size: int = 0
    summed: int = 0  # bytes that are in the sums, or on their way there
    begun: int = 0  # bytes that the drive has been told to begin with
    kept: bool = False  # it is synced and has its name

    def release(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    @property
    def piece(self) -> Piece:
        return Piece(self.name, self.size, self.sum)

    def prove(self, digest: str) -> None:
        self.sum = digest


@define(eq=False, repr=False)
class Parts(Sink[Receipt]):
    """A series on its `ground`; nothing is made there before the first byte. Raises OSError."""

    PATIENCE: ClassVar[float] = 5.0

    ground: Ground
    series: Series
    peer: str = ""
    opened: float | None = None
    resting: bool = False  # nothing is expected soon: hold no descriptor. Set in any thread
    stem: str = field(default="", init=False)
    _place: Place | None = field(default=None, init=False)  # from the first byte on
    _size: int = field(default=0, init=False)
    _part: Part | None = field(default=None, init=False)
    _full: list[Part] = field(factory=list, init=False)  # of this turn
    _all: list[Part] = field(factory=list, init=False)
    _settling: deque[Future[None]] = field(factory=deque, init=False)
    _rest: deque[memoryview] = field(factory=deque, init=False)  # what the disk did not take yet
    _sums: Sums | None = field(default=None, init=False)
    _unkept: OSError | None = field(default=None, init=False)  # why a full part is not durable
    published: bool = field(default=False, init=False)  # there is a manifest, durable

    def __attrs_post_init__(self) -> None:
        if self.series.checksum:
            self._sums = Sums(self.ground.hashers)

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        self._rest.extend(map(memoryview, chunks))
        try:
            self.rotate()
            self._flush()
        finally:
            self._end_turn()

    def pull(self, lent: Lent, most: int) -> None:
        self.rotate()
        try:
            self._flush()
            if self._place is not None:
                self.ground.admit(self._place, 0, self.series)
            until = lent.size + most
            if SPLICES and not self._in_hand:
                while lent.size < until and self._splice(lent):
                    pass
            else:
                while lent.size < until and (block := lent.read(self.series.read)):
                    self._rest.append(block)
                    self._flush()
        finally:
            self._end_turn()

    def written(self) -> Receipt:
        """All of it is in files, and outlives this process. `commit` is still to be called."""
        self._flush()
        if self._part is not None:
            self._fill()
        self._hand_over()
        return Receipt(self._size, None, len(self._all))

    def commit(self, outcome: str = "whole", hurry: bool = True) -> Receipt:
        """hurry: somebody waits for it."""
        self.written()
        digest = None if self._sums is None else self._sums.hexdigest()
        self._settled(0, hurry)
        if self._place is not None:
            self.ground.publish(self._manifest(outcome, digest), self._place)
            self.published = True
            self._leave()
        return Receipt(self._size, digest, len(self._all))

    def fail(self) -> int:
        """Settle whatever can still be settled, a short last part too. The bytes durable then."""
        self._rest.clear()
        place = self._place
        if place is None:
            return 0
        if self._part is not None and self._part.size:
            with suppress(OSError):
                self._fill()
        elif self._part is not None:
            self._remove(self._part)
        with suppress(OSError):  # parts that failed are out of the way now
            self._hand_over()
        with suppress(OSError):
            self._settled(0)
        self._let_go()
        kept = sum(part.size for part in self._all if part.kept and self._proved(part))
        try:
            if kept:
                self._publish_what_is_kept(place)
            else:
                self._forget_paper(place)
                place.sync_names()
        except OSError:
            kept = 0
        self._leave()
        return kept

    def abort(self) -> None:
        place = self._place
        if place is None:
            return
        with suppress(OSError):
            self._settled(0)
        self._let_go()
        for part in self._all:
            part.release()
            for made in (part.name, part.name + PARTIAL):
                with suppress(FileNotFoundError):
                    os.unlink(made, dir_fd=place.descriptor)
        self._forget_paper(place)
        place.sync_names()
        self._leave()

    def rotate(self) -> None:
        """Close the part in hand if it is old enough."""
        if self.ages():
            self._fill()

    def ages(self) -> bool:
        """Whether the part in hand is old enough to be closed. In any thread."""
        part, age = self._part, self.series.rotate
        return bool(part and age and part.size and self.ground.now() - part.began >= age)

    def _end_turn(self) -> None:
        self._hand_over()
        part = self._part
        if part is not None and (self.resting or part.size - part.summed >= STRETCH):
            self._sum_up(part)
        if part is not None and self.resting:
            self._let_go()
            part.release()
        self._settled(self._behind)

    def _let_go(self) -> None:
        if self._sums is not None:
            self._sums.let_go()

    # Bytes.

    def _flush(self) -> None:
        """Write what is in hand; what the disk does not take stays there."""
        rest = self._rest
        if not rest:
            return
        try:
            if self._place is not None:
                self.ground.admit(self._place, 0, self.series)
            while rest:
                data = rest[0]
                while data:
                    part = self._room(len(data))
                    with blamed(part):
                        taken = os.write(part.descriptor, data[: self.series.max_part - part.size])
                    piece, data = data[:taken], data[taken:]
                    rest[0] = data  # before a full part raises what an earlier one met
                    self._took(part, taken, piece)
                rest.popleft()
        except OSError:
            self._rest = deque(memoryview(bytes(data)) for data in rest)
            raise

    def _splice(self, lent: Lent) -> int:
        """Move what is there by way of this thread's pipe; the bytes, 0 at the end."""
        drain, pipe = KIT.pipe()
        count = left = lent.splice(pipe, min(PIPE, self.series.read))
        try:
            while left:
                part = self._room(left)
                piece = min(left, self.series.max_part - part.size)
                with blamed(part):
                    taken = os.splice(drain, part.descriptor, piece, flags=os.SPLICE_F_MOVE)
                left -= taken
                self._took(part, taken)
        except BaseException:
            while left:  # what is in the pipe is of this stream alone: none of it may stay there
                self._rest.append(memoryview(os.read(drain, left)))
                left -= len(self._rest[-1])
            raise
        return count

    def _room(self, count: int) -> Part:
        """The part that takes what comes next."""
        if self._place is None:
            self._place = self.ground.enter()
            self.opened = self.ground.now() if self.opened is None else self.opened
            self.stem = self.ground.name(self.series.prefix, self.opened)
        if self.series.quota:
            self.ground.admit(self._place, count, self.series)
        part = self._part or self._begin(self._place)
        if part.descriptor < 0:
            self._open(part, self._place)
        return part

    def _took(self, part: Part, count: int, data: memoryview | None = None) -> None:
        """data: in hand, if it is; what is not in the part is not in its sum."""
        part.size += count
        self._size += count
        if self._sums is not None and data is not None and self._in_hand:
            self._sums.update(data)
            part.summed = part.size
        if self.series.quota:
            self.ground.stored(count)
        if part.size == self.series.max_part:
            self._fill()
        elif part.size - part.begun >= AHEAD and self.series.durable:
            files.begin_write_back(part.descriptor, part.begun, part.size - part.begun)
            part.begun = part.size

    @property
    def _in_hand(self) -> bool:
        """Bytes are hashed before they are forgotten, not read back."""
        return self._sums is not None and self.series.max_part < TINY

    def _proved(self, part: Part) -> bool:
        return self._sums is None or part.sum is not None

    def _sum_up(self, part: Part) -> None:
        """What is in the part is to be in its sum."""
        if self._sums is not None and part.size > part.summed:
            with blamed(part):
                self._sums.follow(part.descriptor, part.summed, part.size)
            part.summed = part.size

    # Parts.

    def _begin(self, place: Place) -> Part:
        if not self._all:
            self.ground.admit(place, 0, self.series)
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            with files.opened(self.stem + SUFFIX + PARTIAL, flags, place.descriptor) as paper:
                files.write_all(paper, self._manifest("open", None).to_json())
        name = f"{self.stem}_parte_{len(self._all) + 1:06d}.bin"
        part = Part(name, files.open_new(name + PARTIAL, place.descriptor), self.ground.now())
        self._all.append(part)
        self._part = part
        return part

    def _open(self, part: Part, place: Place) -> None:
        """It rested. An error that write-back met meanwhile is told to this descriptor."""
        with blamed(part):
            flags = os.O_RDWR | os.O_CLOEXEC
            part.descriptor = os.open(part.name + PARTIAL, flags, dir_fd=place.descriptor)
            os.lseek(part.descriptor, part.size, os.SEEK_SET)

    def _fill(self) -> None:
        """The part in hand holds all it will."""
        part = self._part
        assert part is not None
        assert self._place is not None
        if part.descriptor < 0:
            self._open(part, self._place)
        self._part = None
        self._full.append(part)
        self._sum_up(part)
        if self._sums is not None:
            self._sums.cut(part.prove)
        waiting = len(self._full)
        if waiting < MANY:
            return
        if not self._place.trusted:
            self._hand_over()
        elif waiting > MANY:
            part.release()
        else:
            for full in self._full:
                full.release()
        if waiting == MOST:
            self._hand_over()

    def _hand_over(self) -> None:
        """Other hands make the full parts durable and give them their names."""
        if self._full:
            assert self._place is not None
            full, self._full = self._full, []
            hands = self.ground.hands if self.series.durable else self.ground.late
            self._settling.append(hands.submit(settle, full, self._place))
            self._settled(self._behind)

    @property
    def _behind(self) -> int:
        return BEHIND if self.series.durable else FAR

    def _settled(self, most: int, hurry: bool = True) -> None:
        """Wait until no more than `most` turns are being settled, or still to be.

        Raises what one of them raised, and from then on always: trouble that passes may let the
        stream go on, but a part that could not be made durable never will be.
        """
        while len(self._settling) > most or (self._settling and self._settling[0].done()):
            first = self._settling.popleft()
            if hurry and not (self.series.durable or first.done()):
                self.ground.late.hurry()
            try:
                first.result()
            except OSError as error:
                self._unkept = self._unkept or error
        if self._unkept is not None:
            raise self._unkept

    def _manifest(self, outcome: str, digest: str | None) -> Manifest:
        pieces = tuple(part.piece for part in self._all if part.kept)
        size = sum(piece.size for piece in pieces)
        now = self.ground.now()
        opened = now if self.opened is None else self.opened
        return Manifest(self.stem, size, digest, pieces, self.peer, opened, now, outcome)

    def _publish_what_is_kept(self, place: Place) -> None:
        """Raises OSError when not even the names are durable."""
        try:
            digest = None
            if self._sums is not None and all(part.kept for part in self._all):
                digest = self._sums.hexdigest()
            self.ground.publish(self._manifest("failed", digest), place)
            self.published = True
        except OSError:  # the next start writes it
            place.sync_names()

    def _remove(self, part: Part) -> None:
        """It is empty; if it cannot be removed the next start will."""
        self._part = None
        self._all.remove(part)
        part.release()
        assert self._place is not None
        with suppress(OSError):
            os.unlink(part.name + PARTIAL, dir_fd=self._place.descriptor)

    def _forget_paper(self, place: Place) -> None:
        with suppress(OSError):
            os.unlink(self.stem + SUFFIX + PARTIAL, dir_fd=place.descriptor)

    def _leave(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self.ground.leave(place)


@contextmanager
def blamed(part: Part) -> Iterator[None]:
    """An error is this part's."""
    try:
        yield
    except OSError as error:
        error.filename = part.name
        raise


def settle(parts: Sequence[Part], place: Place) -> None:
    """Make full parts durable, then name them. Each is tried; raises the first OSError."""
    trouble: OSError | None = None
    at_once = False
    if len(parts) >= MANY:
        try:
            at_once = place.sync_all()
        except OSError as error:
            trouble = error
            trouble.filename = f"{parts[0].name}{DAMAGED} to {parts[-1].name}{DAMAGED}"
    for part in parts:
        try:
            if not at_once:
                _sync(part, place)
            part.release()
            rename(part.name + PARTIAL, part.name, place.descriptor)
            part.kept = True
        except OSError as error:
            trouble = trouble or error
        finally:
            part.release()
    if trouble is not None:
        raise trouble


def _sync(part: Part, place: Place) -> None:
    """One that was closed already went with a sync of everything that failed."""
    try:
        if part.descriptor < 0:
            raise OSError(errno.EIO, "it could not be synced")
        place.sync(part.descriptor)
    except OSError as error:
        error.filename = part.name + DAMAGED
        mark_damaged(part.name, place.descriptor)
        raise
