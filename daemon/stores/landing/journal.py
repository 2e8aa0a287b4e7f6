"""Small streams: one append and one sync for a group of them, instead of several for each.

A stream that ended within 64 KiB is durable once its record is in the journal, a hidden file in
the landing folder; its parts are made by other hands while the journal syncs, so they are there
when its receipt is. Its manifest and sums follow when nothing else is to do, or a second later.
When all of a journal's files are there and synced, the journal goes. What a crash left of it is
done again by `replay` at the next start: also files that somebody took away meanwhile.

A record
    magic, crc of all that follows, length of the manifest, length of the data: 4 bytes each
    manifest (JSON), data
A tail that is damaged was acknowledged to nobody and is cut.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import struct
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import ClassVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.stores import files
from daemon.stores.crew import PASSING, Crew
from daemon.stores.landing.ground import PARTIAL, Ground, Place, rename
from daemon.stores.landing.manifest import SUFFIX, SUMS, Manifest, Piece
from protocols.stores import Receipt, Series, StoreError

log = Logger()

NAME = ".journal"
_HEAD = struct.Struct(">4sIII")
_MAGIC = b"RHJ1"
LINE = 512  # bytes that a part takes in a manifest and in memory, about


@define(eq=False, repr=False)
class Small:
    """A whole stream in memory. opened: seconds since the epoch."""

    series: Series
    peer: str
    opened: float
    outcome: str
    data: bytes
    done: Deferred[Receipt] = field(factory=Deferred, init=False)
    due: float = field(default=0.0, init=False)  # until when a disk that is full is waited for
    manifest: Manifest = field(init=False)
    text: bytes = field(init=False)  # the manifest as it is written

    def cut(self, ground: Ground) -> None:
        """Its name, its parts and what proves them."""
        name = ground.name(self.series.prefix, self.opened)
        self.manifest = lay_out(
            name, self.series, self.data, self.peer, self.opened, ground.now(), self.outcome
        )
        self.text = self.manifest.to_json()

    @property
    def weight(self) -> int:
        """About the bytes of its record; tiny parts weigh more than what is in them."""
        return len(self.data) + LINE * -(-len(self.data) // self.series.max_part)

    @property
    def receipt(self) -> Receipt:
        return Receipt(len(self.data), self.manifest.sha256, len(self.manifest.parts))


def lay_out(
    name: str,
    series: Series,
    data: bytes,
    peer: str,
    opened: float,
    closed: float,
    outcome: str,
) -> Manifest:
    limit = series.max_part
    pieces = [data] if len(data) <= limit else list(_cut(data, limit))
    sums = [hashlib.sha256(piece).hexdigest() if series.checksum else None for piece in pieces]
    whole = sums[0] if len(pieces) == 1 else series.checksum and hashlib.sha256(data).hexdigest()
    parts = tuple(
        Piece(f"{name}_parte_{number:06d}.bin", len(piece), digest)
        for number, (piece, digest) in enumerate(zip(pieces, sums, strict=True), 1)
    )
    return Manifest(name, len(data), whole or None, parts, peer, opened, closed, outcome)


def _cut(data: bytes, limit: int) -> Iterator[bytes]:
    for start in range(0, len(data), limit):
        yield data[start : start + limit]


@frozen(eq=False)
class Paper:
    """A manifest, and its text, that is to be made; since: of time.monotonic."""

    manifest: Manifest
    text: bytes
    since: float


@define(eq=False, repr=False)
class Journal:
    """The journal of one landing folder, and the thread that keeps it.

    durable: called in the reactor's thread with each series whose manifest is.
    """

    GROUP: ClassVar[int] = 512  # streams
    HEAVY: ClassVar[int] = 8 << 20  # bytes of their records, about
    BEHIND: ClassVar[int] = 5_000  # manifests that are still to be made: replay has to be quick
    FULL: ClassVar[int] = 64 << 20  # bytes of a journal
    PIECE: ClassVar[int] = 100  # manifests between two looks whether a stream came
    SPARE: ClassVar[int] = 30  # more than came are made while too many wait, or for too long
    REST: ClassVar[float] = 0.2  # seconds without a stream, after which manifests are made
    LINGER: ClassVar[float] = 1.0  # seconds after which they are made in any case
    EXPOSED: ClassVar[float] = 5.0  # seconds after which what was made is synced in any case
    LOOK: ClassVar[float] = 0.01  # seconds between two looks whether it is
    PATIENCE: ClassVar[float] = 5.0  # seconds for a disk that is full
    RETRY: ClassVar[float] = 0.5

    ground: Ground
    crew: Crew
    durable: Callable[[str], object] = lambda series: None
    streams: int = field(default=0, init=False)  # acknowledged, and their bytes
    stored: int = field(default=0, init=False)
    _queue: SimpleQueue[Small | None] = field(factory=SimpleQueue, init=False)
    _thread: Thread | None = field(default=None, init=False)
    _name: str = field(default="", init=False)
    _file: int = field(default=-1, init=False)
    _place: Place | None = field(default=None, init=False)
    _size: int = field(default=0, init=False)
    _papers: deque[Paper] = field(factory=deque, init=False)  # to be made
    _made: list[Manifest] = field(factory=list, init=False)  # made, and not synced yet
    _since: float = field(default=0.0, init=False)  # when the first of them was
    _syncing: Future[None] | None = field(default=None, init=False)
    _synced: list[Manifest] = field(factory=list, init=False)  # will be then
    _resting: bool = field(default=False, init=False)
    _ending: bool = field(default=False, init=False)

    def add(self, small: Small) -> Deferred[Receipt]:
        """Fires once it is durable; fails with StoreError."""
        if self._thread is None:
            thread = Thread(target=self._keep, name="journal", daemon=True)
            thread.start()
            self._thread = thread
        self.crew.begin()
        small.due = time.monotonic() + self.PATIENCE
        self._queue.put(small)
        return small.done

    @property
    def waiting(self) -> int:
        """Streams that are not durable yet, about."""
        return self._queue.qsize()

    def stop(self) -> None:
        """Make what is left to make. Called when nothing is added any more; it may block."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    # The thread.

    def _keep(self) -> None:
        while not self._ending:
            group = self._gather()
            try:
                if group:
                    self._commit(group)
                self._catch_up(len(group))
            except Exception as error:  # whatever it is: streams wait for this thread
                self.crew.reactor.callFromThread(self.crew.complain, error)
                if self._place is not None and not self.ground.holds(self._place):
                    self._leave()  # nothing there can be made any more
                time.sleep(0 if self._ending else self.RETRY)
        self._leave()

    def _gather(self) -> list[Small]:
        """Everything that waits, as far as memory goes, or nothing after a while."""
        group: list[Small] = []
        weight = 0
        try:
            if self._papers and self._resting:
                first = self._queue.get_nowait()
            elif self._syncing is not None:
                first = self._queue.get(timeout=self.LOOK)
            elif self._papers or self._made:
                first = self._queue.get(timeout=self.REST)
            else:
                first = self._queue.get()
            self._resting = False
            while first is not None:
                group.append(first)
                weight += first.weight
                if len(group) == self.GROUP or weight > self.HEAVY:
                    return group
                first = self._queue.get_nowait()
            self._ending = True
        except Empty:
            self._resting = not group
        return group

    def _catch_up(self, count: int) -> None:
        """Manifests are made while nothing else is to do; if too many wait, or one for too long,
        while streams come, too: more than came."""
        now = time.monotonic()
        whole = self._ending or self._size > self.FULL
        if whole:
            self._make_papers(len(self._papers))
        elif not count:
            self._make_papers(self.PIECE)
        elif len(self._papers) > self.BEHIND or self._lingers(now):
            self._make_papers(count + self.SPARE)
        self._end_sync(wait=whole)
        quiet = not (count or self._papers)
        if self._made and (whole or quiet or now - self._since > self.EXPOSED):
            self._sync()
            self._end_sync(wait=whole)

    def _lingers(self, now: float) -> bool:
        return bool(self._papers) and now - self._papers[0].since > self.LINGER

    def _commit(self, group: Sequence[Small]) -> None:
        """Every stream of the group durable and answered, or failed."""
        try:
            for small in group:
                small.cut(self.ground)
            while group:
                group = self._try(group)
        except Exception:  # whatever it is: others will wait for this thread
            log.failure("storing failed", event="store.broken")
            self._drop_file()
            self.crew.reactor.callFromThread(self._answer, group, "storage failed")

    def _try(self, group: Sequence[Small]) -> Sequence[Small]:
        """Once; those that are to be tried again."""
        try:
            kept = self._append(group)
        except OSError as error:
            self.crew.reactor.callFromThread(self.crew.complain, error)
            passes = error.errno in PASSING and not self._ending
            now = time.monotonic()
            late = [small for small in group if not passes or small.due <= now]
            self.crew.reactor.callFromThread(self._answer, late, files.plain(error))
            if len(late) < len(group):
                time.sleep(self.RETRY)
            return [small for small in group if passes and small.due > now]
        now = time.monotonic()
        self._papers.extend(Paper(small.manifest, small.text, now) for small in kept)
        self.crew.reactor.callFromThread(self._answer, kept, "")
        return group[len(kept) :]

    def _append(self, group: Sequence[Small]) -> Sequence[Small]:
        """Those that are durable now: all, or as many from the first on as there is room for."""
        place = self._begin()
        group = self._admitted(group, place)
        records = [_record(small.text, small.data) for small in group]
        making = self.ground.hands.submit(_make, group, place)
        before = self._size
        try:
            try:
                self._write(b"".join(records))
            finally:
                making.result()
        except Exception:  # nobody is told that these are kept
            _unmake(group, place)
            if self._size > before:
                self._cut_back(before)
            raise
        for small in group:
            if small.series.quota:
                self.ground.stored(len(small.data))
        return group

    def _admitted(self, group: Sequence[Small], place: Place) -> Sequence[Small]:
        """Raises OSError when there is no room for the first one even."""
        coming = 0
        for number, small in enumerate(group):
            coming += len(small.data)
            try:
                self.ground.admit(place, coming, small.series)
            except OSError:
                if not number:
                    raise
                return group[:number]
        return group

    def _write(self, data: bytes) -> None:
        try:
            files.write_all(self._file, data)
            with self.ground.syncs.timed():
                files.sync_data(self._file)
        except OSError as error:
            error.filename = NAME
            if error.errno in PASSING:
                self._cut_back(self._size)
            else:
                self._drop_file()
            raise
        self._size += len(data)

    def _cut_back(self, size: int) -> None:
        """What is behind `size` counts for nothing, and so would every record that follows it.

        A file that cannot be cut is never written to again; what it held before is safe in it.
        """
        try:
            os.ftruncate(self._file, size)
            os.lseek(self._file, size, os.SEEK_SET)
            self._size = size
        except OSError:
            self._drop_file()

    def _begin(self) -> Place:
        """The place of the journal in hand; a new one if the folder is another now."""
        place = self.ground.enter()
        try:
            if place is not self._place:
                self._leave()
                self._place, place.users = place, place.users + 1
            if self._file < 0:
                self._name = f"{NAME}-{secrets.token_hex(4)}"
                self._file = files.open_new(self._name, place.descriptor)
                place.sync_names()
            return place
        finally:
            self.ground.leave(place)

    def _drop_file(self) -> None:
        """What is in it is for the next start."""
        descriptor, self._file, self._size = self._file, -1, 0
        if descriptor >= 0:
            os.close(descriptor)

    def _leave(self) -> None:
        """Go from the folder; an empty journal goes as well."""
        place, self._place = self._place, None
        if place is None:
            return
        if self._file >= 0 and not self._size:
            with suppress(OSError):
                os.unlink(self._name, dir_fd=place.descriptor)
        self._drop_file()
        self._papers.clear()
        self._made.clear()
        syncing, self._syncing = self._syncing, None
        if syncing is not None:  # it has the descriptor of the place
            with suppress(Exception):  # what it did counts for nothing any more
                syncing.result()
        self.ground.leave(place)

    def _make_papers(self, count: int) -> None:
        for _ in range(min(count, len(self._papers))):
            paper = self._papers[0]
            assert self._place is not None
            self.ground.mark(paper.manifest.series + SUFFIX, self._place.descriptor)
            make_papers(paper.manifest, paper.text, self._place.descriptor)
            if not self._made:
                self._since = time.monotonic()
            self._made.append(paper.manifest)
            self._papers.popleft()

    def _sync(self) -> None:
        """Begin to make durable what was made: streams need not wait for it."""
        if self._syncing is None:
            assert self._place is not None
            self._synced, self._made = self._made, []
            self._syncing = self.ground.hands.submit(sync_files, self._synced, self._place)

    def _end_sync(self, wait: bool) -> None:
        """If it ended, or once it does. The journal is empty if nothing else is in it."""
        if self._syncing is None or not (wait or self._syncing.done()):
            return
        syncing, self._syncing = self._syncing, None
        try:
            syncing.result()
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
                self._made = self._synced + self._made
            else:
                # A second sync would seem to succeed. The next start makes them again.
                self._drop_file()
            raise
        if self._file >= 0 and not (self._papers or self._made):
            self._cut_back(0)
        self.crew.reactor.callFromThread(self._tell, self._synced)

    # In the reactor's thread.

    def _answer(self, group: Sequence[Small], trouble: str) -> None:
        for small in group:
            if trouble:
                small.done.errback(Failure(StoreError(trouble)))
            else:
                self.streams += 1
                self.stored += len(small.data)
                small.done.callback(small.receipt)
            self.crew.end()

    def _tell(self, made: Sequence[Manifest]) -> None:
        for manifest in made:
            self.durable(manifest.series)


def names(manifest: Manifest) -> Iterator[str]:
    """Every file of a series."""
    for part in manifest.parts:
        yield part.name
    if manifest.sums() is not None:
        yield manifest.series + SUMS
    yield manifest.series + SUFFIX


def sync_files(manifests: Sequence[Manifest], place: Place) -> None:
    """All of these series, and their names, are durable. Raises OSError."""
    if not place.sync_all():
        for manifest in manifests:
            for name in names(manifest):
                with (
                    suppress(FileNotFoundError),
                    files.opened(name, os.O_RDONLY | os.O_CLOEXEC, place.descriptor) as file,
                ):
                    files.sync_data(file)
    place.sync_names()


def make_papers(manifest: Manifest, text: bytes, folder: int) -> None:
    """The manifest and the sums of a series that the journal holds; not synced."""
    sums = manifest.sums()
    if sums is not None:
        _put(manifest.series + SUMS, sums, folder)
    _put(manifest.series + SUFFIX, text, folder)


def _put(name: str, data: bytes, folder: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with files.opened(name, flags, folder) as file:
        files.write_all(file, data)


def _make(group: Sequence[Small], place: Place) -> None:
    for small in group:
        offset = 0
        for part in small.manifest.parts:
            _put(part.name, small.data[offset : offset + part.size], place.descriptor)
            offset += part.size


def _unmake(group: Sequence[Small], place: Place) -> None:
    """Nobody is told that these are kept."""
    for small in group:
        for part in small.manifest.parts:
            with suppress(OSError):
                os.unlink(part.name, dir_fd=place.descriptor)


def _record(text: bytes, data: bytes) -> bytes:
    rest = struct.pack(">II", len(text), len(data)) + text + data
    return _MAGIC + struct.pack(">I", zlib.crc32(rest)) + rest


def records(journal: bytes) -> Iterator[tuple[Manifest, bytes, int]]:
    """What is whole in a journal: each stream with its manifest, and where its record ends."""
    at = 0
    while len(journal) - at >= _HEAD.size:
        magic, crc, text, data = _HEAD.unpack_from(journal, at)
        end = at + _HEAD.size + text + data
        if magic != _MAGIC or end > len(journal) or zlib.crc32(journal[at + 8 : end]) != crc:
            return
        start = at + _HEAD.size
        try:
            manifest = Manifest.from_json(journal[start : start + text])
        except ValueError:
            return
        yield manifest, journal[start + text : end], end
        at = end


def replay(ground: Ground, place: Place) -> int:
    """Make the files of every journal that was left, then drop it; before anything is landed.

    How many streams there were. One that cannot be read is logged and stays. Raises OSError.
    """
    left, manifests = list[str](), list[Manifest]()
    for name in sorted(name for name in os.listdir(ground.folder) if name.startswith(NAME)):
        try:
            journal = (ground.folder / name).read_bytes()
        except OSError as error:
            log.error(
                "{folder} cannot be used: {error}",
                event="ingest.unusable",
                folder=ground.folder,
                error=str(error),
            )
            continue
        left.append(name)
        whole = 0
        for manifest, data, end in records(journal):
            whole = end
            manifests.append(manifest)
            _restore(manifest, data, ground, place)
        if whole < len(journal):
            log.warn(
                "{name}: its last {count} bytes are not whole and were cut;"
                " no receipt was given for them",
                event="ingest.torn",
                name=name,
                count=len(journal) - whole,
            )
    if left:
        sync_files(manifests, place)
        for name in left:
            os.unlink(name, dir_fd=place.descriptor)
        place.sync_names()
    return len(manifests)


def _restore(manifest: Manifest, data: bytes, ground: Ground, place: Place) -> None:
    """Make what is not there, or not as it was."""
    offset, folder = 0, place.descriptor
    for part in manifest.parts:
        content = data[offset : offset + part.size]
        if _content(part.name, folder, part.size) != content:
            _put(part.name + PARTIAL, content, folder)
            rename(part.name + PARTIAL, part.name, folder)
        offset += part.size
    text, sums = manifest.to_json(), manifest.sums() or b""
    if _content(manifest.series + SUFFIX, folder, len(text)) != text:
        ground.mark(manifest.series + SUFFIX, folder)
        make_papers(manifest, text, folder)
    elif sums and _content(manifest.series + SUMS, folder, len(sums)) != sums:
        _put(manifest.series + SUMS, sums, folder)


def _content(name: str, folder: int, size: int) -> bytes | None:
    """The file, if there is one; one byte more than `size` of it says that it is another."""
    try:
        with files.opened(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, folder) as file:
            files.forget_pages(file)
            return os.read(file, size + 1)
    except OSError:
        return None
