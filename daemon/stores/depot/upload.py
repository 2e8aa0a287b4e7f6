"""Bytes on their way in, in a thread: into a file, hashed beside, durable at the end.

A file has its name from the first byte on; what makes it count is the row in the index.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field, frozen

from daemon.measures import Durations
from daemon.stores import files
from daemon.stores.crew import Sink
from daemon.stores.landing.series import Sum

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
    because it failed or was aborted. most, free: bytes the file may have (0: any number), and
    those that stay free on its disk. size: bytes so far, for anybody to look at.
    """

    WRITE_BACK: ClassVar[int] = 8 << 20  # bytes; what the sync at the end has left is less

    path: Path
    hashers: Executor
    charge: Callable[[int], None] | None = None
    most: int = 0
    free: int = 0
    size: int = 0
    dropped: Callable[[], object] = bool
    syncs: Durations = field(factory=Durations)
    charged: int = field(default=0, init=False)
    synced: int = field(init=False)
    _descriptor: int = field(default=-1, init=False)
    _begun: int = field(default=0, init=False)  # bytes the drive was told to begin with
    _sum: Sum | None = field(init=False)  # of all so far; None: it has to be read for that

    def __attrs_post_init__(self) -> None:
        self.synced = self._begun = self.size
        self._sum = None if self.size else Sum(self.hashers)

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        self._open()
        for chunk in chunks:
            if self.most and self.size + len(chunk) > self.most:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.path))
            if self.charge is not None:
                self.charge(len(chunk))
                self.charged += len(chunk)
            files.write_all(self._descriptor, chunk)
            if self._sum is not None:
                self._sum.update(chunk)
            self.size += len(chunk)
        if (ahead := self.size - self._begun) >= self.WRITE_BACK:
            files.begin_write_back(self._descriptor, self._begun, ahead)
            self._begun = self.size
            files.check_free(self._descriptor, self.free)

    def commit(self) -> Laid:
        self.sync()
        if self._sum is not None:
            return Laid(self.path, self.size, self._sum.hexdigest())
        with self.path.open("rb") as file:
            return Laid(self.path, self.size, hashlib.file_digest(file, "sha256").hexdigest())

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
        self._sum = None if size else Sum(self.hashers)

    def close(self) -> None:
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
        if self.checksum is not None:
            self._check = hashlib.new(self.checksum[0])

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        if self.upload.size + sum(map(len, chunks)) > self.whole:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.upload.path))
        self.upload.write(chunks)
        if self._check is not None:
            for chunk in chunks:
                self._check.update(chunk)
        elif self.upload.size - self.upload.synced >= self.CHECKPOINT:
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
