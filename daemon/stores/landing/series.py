"""One stream laid down in parts: the blocking side, for a thread of the crew.

A part is made as `<name>.partial` and gets its name when it is full and synced. Parts that fill
within one turn are settled together at the end of the turn, so that nothing waits for a name
while the stream rests: a few with a sync each, MANY with one sync of the filesystem where that
is as good (and then they are closed as they fill: descriptors stay few).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from base64 import b32encode
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from attrs import define, field

from daemon.stores import files
from protocols.stores import Receipt, Series

PARTIAL = ".partial"
DAMAGED = ".damaged"

MANY = 32  # parts in a turn from which on one sync of the filesystem is cheaper
MOST = 1024  # parts that wait to be settled
AHEAD = 8 << 20  # bytes of a part after which the drive is told to begin


def mark_damaged(name: str, folder: int) -> None:
    """Keep a part that could not be synced from ever being adopted: its pages may be lost."""
    with suppress(OSError):  # a filesystem gone read-only takes no mark either
        os.rename(name + PARTIAL, name + DAMAGED, src_dir_fd=folder, dst_dir_fd=folder)


@define(eq=False)
class Part:
    """A file of a series, full or in hand."""

    name: str
    descriptor: int
    size: int = 0
    begun: int = 0  # bytes that the drive has been told to begin with

    def release(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


@define(eq=False, repr=False)
class Parts:
    """A `Sink` in `folder`; nothing is made there before the first byte. Raises OSError."""

    folder: Path
    series: Series
    now: Callable[[], float]
    _place: int = field(default=-1, init=False)  # descriptor of the folder, from the first byte on
    _stem: str = field(default="", init=False)
    _count: int = field(default=0, init=False)
    _size: int = field(default=0, init=False)
    _kept: int = field(default=0, init=False)  # bytes in parts that were synced and named
    _part: Part | None = field(default=None, init=False)
    _full: deque[Part] = field(factory=deque, init=False)
    _unsafe: bool = field(default=False, init=False)  # the names may not be durable
    _digest: hashlib._Hash | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._digest = hashlib.sha256() if self.series.checksum else None

    def write(self, chunks: list[bytes]) -> None:
        for chunk in chunks:
            self._lay(memoryview(chunk))
            self._size += len(chunk)
            if self._digest is not None:
                self._digest.update(chunk)
        self._settle()

    def commit(self) -> Receipt:
        if self._part is not None:
            self._fill()
        self._settle()
        self._sync_names()
        self._leave()
        digest = None if self._digest is None else self._digest.hexdigest()
        return Receipt(self._size, digest, self._count)

    def fail(self) -> int:
        """Settle whatever can still be settled, a short last part too. The bytes durable then."""
        self._settle_what_can_be()
        part, self._part = self._part, None
        if part is not None and part.size:
            self._full.append(part)
            self._settle_what_can_be()
        elif part is not None:
            self._remove(part)
        try:
            self._sync_names()
        except OSError:
            self._kept = 0
        self._leave()
        return self._kept

    def abort(self) -> None:
        for part in filter(None, (self._part, *self._full)):
            part.release()
        for number in range(1, self._count + 1):
            name = self._name(number)
            for made in (name, name + PARTIAL):
                with suppress(FileNotFoundError):
                    os.unlink(made, dir_fd=self._place)
        self._sync_names()
        self._leave()

    def _lay(self, rest: memoryview) -> None:
        limit = self.series.max_part
        while rest:
            part = self._part or self._begin()
            try:
                taken = os.write(part.descriptor, rest[: limit - part.size])
            except OSError as error:
                error.filename = part.name
                raise
            part.size += taken
            rest = rest[taken:]
            if part.size == limit:
                self._fill()
            elif part.size - part.begun >= AHEAD:
                files.begin_write_back(part.descriptor, part.begun, part.size - part.begun)
                part.begun = part.size

    def _begin(self) -> Part:
        if self._place < 0:
            self._arrive()
        name = self._name(self._count + 1)
        part = self._part = Part(name, files.open_new(name + PARTIAL, self._place))
        self._count += 1
        return part

    def _arrive(self) -> None:
        """The first byte is here: find the folder (somebody may have taken it away) and a name."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            self._place = os.open(self.folder, flags)
        except FileNotFoundError:
            files.make_folder(self.folder)
            self._place = os.open(self.folder, flags)
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(self.now()))
        unique = b32encode(secrets.token_bytes(5)).decode().lower()
        self._stem = f"{self.series.prefix}_{stamp}_{unique}"

    def _name(self, number: int) -> str:
        return f"{self._stem}_parte_{number:06d}.bin"

    def _fill(self) -> None:
        """The part in hand holds all it will."""
        assert self._part is not None
        part, self._part = self._part, None
        self._full.append(part)
        waiting = len(self._full)
        if waiting < MANY:
            return
        if waiting > MANY:
            part.release()
        elif files.syncs_at_once(self._place):
            for full in self._full:
                full.release()
        else:
            self._settle()
        if waiting == MOST:
            self._settle()

    def _settle(self) -> None:
        """The full parts become durable and get their names."""
        at_once = bool(self._full) and self._full[0].descriptor < 0
        if at_once:
            try:
                files.sync_all(self._place)
            except OSError as error:
                first, last = self._full[0].name, self._full[-1].name
                error.filename = f"{first}{DAMAGED} to {last}{DAMAGED}"
                while self._full:
                    mark_damaged(self._full.popleft().name, self._place)
                raise
        while self._full:
            part = self._full.popleft()
            if not at_once:
                try:
                    files.sync_data(part.descriptor)
                except OSError as error:
                    error.filename = part.name + DAMAGED
                    mark_damaged(part.name, self._place)
                    raise
                finally:
                    part.release()
            os.rename(
                part.name + PARTIAL, part.name, src_dir_fd=self._place, dst_dir_fd=self._place
            )
            self._kept += part.size

    def _settle_what_can_be(self) -> None:
        while self._full:
            with suppress(OSError):  # the part that failed is out of the way now
                self._settle()

    def _remove(self, part: Part) -> None:
        with suppress(OSError):  # empty: the next start would remove it
            part.release()
            os.unlink(part.name + PARTIAL, dir_fd=self._place)

    def _sync_names(self) -> None:
        """Renames survive a power cut from here on. Once it failed it is never trusted again."""
        if self._place < 0:
            return
        if self._unsafe:
            raise OSError(None, "the folder could not be synced")
        try:
            os.fsync(self._place)
        except OSError as error:
            self._unsafe = True
            error.filename = str(self.folder)
            raise

    def _leave(self) -> None:
        place, self._place = self._place, -1
        if place >= 0:
            os.close(place)
