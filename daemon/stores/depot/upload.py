"""Bytes on their way in, in a thread: into a file, hashed beside, durable at the end.

A file has its name from the first byte on; what makes it count is the row in the index.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field, frozen

from daemon.measures import Durations
from daemon.stores import files
from daemon.stores.crew import KIT, PIPE, SLICE, SPLICES, Hands, Lent, Sink
from daemon.stores.sums import STRETCH, Sums

AHEAD = 1 << 16  # bytes of an upload that may wait for the disk, where the reactor reads them


@frozen
class Laid:
    """A file is durable, under a name that no row knows as whole yet."""

    path: Path
    size: int
    sha256: str


@frozen
class Shared:
    """What one connection's share did to a draft: see `protocols.stores.Progress`."""

    offset: int
    refused: bool = False
    laid: Laid | None = None


@define(eq=False, repr=False)
class Upload(Sink[Laid]):
    """One file that is being written; as `daemon.stores.crew.Sink`, all of it.

    charge: told of bytes before they are written, raises OSError when there is no room for them;
    None: the room was promised before; charged: those. dropped: called when nothing of it is left,
    because it failed or was aborted. most, free: bytes the file may have (None: any number), and
    those that stay free on its disk. size: bytes so far, for anybody to look at.
    """

    WRITE_BACK: ClassVar[int] = 8 << 20  # bytes; what the sync at the end has left is less

    path: Path
    hashers: Hands | None
    charge: Callable[[int], None] | None = None
    most: int | None = None
    free: int = 0
    size: int = 0
    dropped: Callable[[], object] = bool
    syncs: Durations = field(factory=Durations)
    charged: int = field(default=0, init=False)
    synced: int = field(init=False)
    _descriptor: int = field(default=-1, init=False)
    _begun: int = field(default=0, init=False)  # bytes the drive was told to begin with
    _sums: Sums = field(init=False)
    _summed: int = field(default=0, init=False)  # bytes that are in them, or on their way there

    def __attrs_post_init__(self) -> None:
        self.synced = self._begun = self.size
        self._sums = Sums(self.hashers)

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        self._open()
        for chunk in chunks:
            self._admit(len(chunk))
            files.write_all(self._descriptor, chunk)
            self.size += len(chunk)
        self._look_ahead()

    def pull(self, lent: Lent, most: int) -> None:
        if not SPLICES:
            super().pull(lent, most)
            return
        self._open()
        until = lent.size + most
        try:
            while lent.size < until and self._splice(lent):
                pass
        finally:
            self._look_ahead()

    def _splice(self, lent: Lent) -> int:
        """Move what is there by way of this thread's pipe; the bytes, 0 at the end."""
        drain, pipe = KIT.pipe()
        count = left = lent.splice(pipe, PIPE)
        try:
            self._admit(count)
            while left:
                taken = os.splice(drain, self._descriptor, left, flags=os.SPLICE_F_MOVE)
                left -= taken
                self.size += taken
        finally:
            while left:  # it failed: nothing of it may stay for another file
                left -= len(os.read(drain, left))
        return count

    def _admit(self, count: int) -> None:
        if self.most is not None and self.size + count > self.most:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.path))
        if self.charge is not None:
            self.charge(count)
            self.charged += count

    def _look_ahead(self) -> None:
        """Have what came hashed, and the drive begin with it."""
        if self.size - self._summed >= STRETCH:
            self._sum_up(min(self.size, self._summed + 2 * SLICE))
        if (ahead := self.size - self._begun) >= self.WRITE_BACK:
            files.begin_write_back(self._descriptor, self._begun, ahead)
            self._begun = self.size
            files.check_free(self._descriptor, self.free)

    def _sum_up(self, size: int) -> None:
        """Have it hashed so far; what was there before this connection is caught up on."""
        self._sums.follow(self._descriptor, self._summed, size)
        self._summed = size

    def commit(self) -> Laid:
        self._open()
        self._sum_up(self.size)
        self.sync()
        return Laid(self.path, self.size, self._sums.hexdigest())

    def fail(self) -> int:
        self.abort()
        return 0

    def abort(self) -> None:
        try:
            self.close()
            self.path.unlink(missing_ok=True)
        finally:
            self.dropped()

    def sync(self) -> None:
        """All so far is durable. The descriptor is closed."""
        self.checkpoint()
        self.close()
        files.sync_folder(self.path.parent)

    def checkpoint(self) -> None:
        """The bytes so far are durable, their name may not be."""
        self._open()
        size = self.size
        with self.syncs.timed():
            files.sync_data(self._descriptor)
        self.synced = self._begun = size

    def cut(self, size: int) -> None:
        """Forget what came after `size`. A descriptor that failed is not trusted again."""
        self.close()
        if self.path.exists():
            os.truncate(self.path, size)
        self.size, self.synced, self._begun = size, min(self.synced, size), size
        self._sums, self._summed = Sums(self.hashers), 0

    def close(self) -> None:
        self._sums.let_go()
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _open(self) -> None:
        if self._descriptor >= 0:
            return
        if self.size:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            os.lseek(self._descriptor, self.size, os.SEEK_SET)
        else:
            self.path.unlink(missing_ok=True)
            self._descriptor = files.open_new(str(self.path))


@define(eq=False, repr=False)
class Share(Sink[Shared]):
    """`daemon.stores.crew.Sink`: what one connection brings of a draft.

    whole: bytes of all of it. told: called in the thread with what is durable meanwhile. checksum:
    a hashlib algorithm and the digest this share must have. cut_off: it is not whole itself.
    """

    CHECKPOINT: ClassVar[int] = 32 << 20  # bytes; who is cut off by a crash sends less than that

    upload: Upload
    whole: int
    told: Callable[[int], object]
    checksum: tuple[str, bytes] | None = None
    cut_off: bool = False
    _start: int = field(init=False)
    _check: Any = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._start = self.upload.size
        self.upload.most = self.whole
        if self.checksum is not None:
            self._check = hashlib.new(self.checksum[0])

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        self.upload.write(chunks)
        if self._check is not None:
            for chunk in chunks:
                self._check.update(chunk)
        self._look_back()

    def pull(self, lent: Lent, most: int) -> None:
        if self._check is not None:
            super().pull(lent, most)
            return
        try:
            self.upload.pull(lent, min(most, self.CHECKPOINT))
        finally:
            self._look_back()

    def _look_back(self) -> None:
        if self._check is None and self.upload.size - self.upload.synced >= self.CHECKPOINT:
            self.upload.checkpoint()
            self.told(self.upload.synced)

    def commit(self) -> Shared:
        if self.checksum is not None and (self.cut_off or self._check.digest() != self.checksum[1]):
            self.upload.cut(self._start)
            return Shared(self._start, refused=True)
        if self.upload.size == self.whole:
            return Shared(self.whole, laid=self.upload.commit())
        self.upload.sync()
        return Shared(self.upload.synced)

    def fail(self) -> int:
        self.upload.cut(self.upload.synced)
        return self.upload.synced

    def abort(self) -> None:
        """Never asked for: a draft keeps what came."""
