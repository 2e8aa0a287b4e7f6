"""The folder that series share: its descriptor, what its syncs are worth, how much it may hold."""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from base64 import b32encode
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field

from daemon.measures import Durations
from daemon.stores import files
from daemon.stores.completed import FAILED, PENDING
from daemon.stores.crew import Hands
from daemon.stores.landing.manifest import SUFFIX, SUMS, Manifest
from daemon.stores.leisure import Leisure
from protocols.stores import Series

PARTIAL = ".partial"
DAMAGED = ".damaged"


@define(eq=False, repr=False)
class Place:
    """A descriptor of the folder, for the series that began while it was the folder's.

    An error of a sync is told to a descriptor once. So once a sync of everything failed here,
    what is written through this place is synced file by file; once the names could not be synced
    they never count as durable again.
    """

    path: Path
    descriptor: int
    trusted: bool  # a sync of everything is as good as one of each file
    users: int = 0
    syncs: Durations = field(factory=Durations)
    _unsafe: bool = False
    _lock: threading.Lock = field(factory=threading.Lock)

    def sync_all(self) -> bool:
        """Make everything durable at once, if that can be trusted here. Raises OSError."""
        with self._lock:
            if not self.trusted:
                return False
            try:
                with self.syncs.timed():
                    files.sync_all(self.descriptor)
            except OSError:
                self.trusted = False
                raise
            return True

    def sync(self, descriptor: int) -> None:
        """Make a file durable. Raises OSError."""
        with self.syncs.timed():
            files.sync_data(descriptor)

    def sync_names(self) -> None:
        """What was created, renamed or removed survives a power cut from here on."""
        try:
            os.fsync(self.descriptor)
        except OSError as error:
            self._unsafe = True
            error.filename = str(self.path)
            raise
        if self._unsafe:  # the error is told once, perhaps to another thread at this moment
            raise OSError(None, "the folder could not be synced")

    @property
    def unsafe(self) -> bool:
        return self._unsafe


class Inline(Executor):
    """Does what it is given at once."""

    def hurry(self) -> None:
        """Nothing waits."""

    def submit(self, task: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(task(*args, **named))
        except BaseException as error:
            done.set_exception(error)
        return done


@define(eq=False, repr=False)
class Ground:
    """What the series in `folder` share. Called by any thread; raises OSError.

    now: seconds since the epoch. hands, hashers: sync and hash beside the threads that read; late:
    sync what nobody waits for. mark: called with the name of a manifest and a descriptor of the
    folder before it is named there.
    """

    RECOUNT: ClassVar[float] = 1.0  # seconds

    folder: Path
    now: Callable[[], float] = time.time
    hands: Executor = field(factory=Inline)
    late: Leisure | Inline = field(factory=Inline)
    hashers: Hands | None = None
    mark: Callable[[str, int], None] = lambda name, folder: None
    syncs: Durations = field(factory=Durations, init=False)
    _lock: threading.RLock = field(factory=threading.RLock, init=False)
    _place: Place | None = field(default=None, init=False)
    _used: int = field(default=0, init=False)  # bytes in the folder, as far as we know
    _counted: float = field(default=float("-inf"), init=False)

    def enter(self) -> Place:
        """The folder as it is now; somebody may have taken it away. `leave` it once."""
        with self._lock:
            place = self._place
            if place is None or place.unsafe or not self.holds(place):
                if place is not None:
                    self._place = None
                    self._close(place)
                place = self._place = self._open()
            place.users += 1
            return place

    def leave(self, place: Place) -> None:
        with self._lock:
            place.users -= 1
            self._close(place)

    @contextmanager
    def visit(self) -> Iterator[Place]:
        place = self.enter()
        try:
            yield place
        finally:
            self.leave(place)

    def close(self) -> None:
        with self._lock:
            place, self._place = self._place, None
            if place is not None:
                self._close(place)

    def name(self, prefix: str, at: float) -> str:
        """A name for a series that nobody else has."""
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(at))
        unique = b32encode(secrets.token_bytes(5)).decode().lower()
        return f"{prefix}_{stamp}_{unique}"

    def admit(self, place: Place, count: int, series: Series) -> None:
        """Raise OSError unless there is room for `count` bytes more."""
        files.check_free(place.descriptor, series.free)
        if series.quota:
            self._admit(count, series)

    def stored(self, count: int) -> None:
        with self._lock:
            self._used += count

    def publish(self, manifest: Manifest, place: Place) -> None:
        """The manifest and the sums, durable under their names as all names before them."""
        sums = manifest.sums()
        papers = [(manifest.series + SUFFIX, manifest.to_json())]
        if sums is not None:
            papers.insert(0, (manifest.series + SUMS, sums))
        for name, text in papers:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with files.opened(name + PARTIAL, flags, place.descriptor) as paper:
                files.write_all(paper, text)
                files.sync_data(paper)
        self.mark(manifest.series + SUFFIX, place.descriptor)
        for name, _ in papers:
            rename(name + PARTIAL, name, place.descriptor)
        place.sync_names()

    def holds(self, place: Place) -> bool:
        """Whether the folder is still the one that `place` is."""
        with suppress(OSError):
            return os.path.samestat(os.stat(self.folder), os.fstat(place.descriptor))
        return False

    def _open(self) -> Place:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            descriptor = os.open(self.folder, flags)
        except FileNotFoundError:
            files.make_folder(self.folder)
            descriptor = os.open(self.folder, flags)
        trusted = files.syncs_at_once(descriptor)
        return Place(self.folder, descriptor, trusted, syncs=self.syncs)

    def _close(self, place: Place) -> None:
        if place is not self._place and not place.users:
            os.close(place.descriptor)

    def _admit(self, count: int, series: Series) -> None:
        with self._lock:
            if self._used + count <= series.quota and self._counted > float("-inf"):
                return
            if time.monotonic() - self._counted >= self.RECOUNT:
                self._recount()
            if series.oldest:
                self._make_room(count, series.quota)
            if self._used + count > series.quota:
                raise OSError(errno.EDQUOT, f"QUOTA is {series.quota} bytes", str(self.folder))

    def _recount(self) -> None:
        used = 0
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    used += entry.stat(follow_symlinks=False).st_size
        self._used, self._counted = used, time.monotonic()

    def _make_room(self, count: int, quota: int) -> None:
        """Delete whole series, the oldest first, until there is room or none is left."""
        if self._used + count <= quota:
            return
        ages = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX):
                    with suppress(FileNotFoundError):
                        ages.append((entry.stat().st_mtime_ns, entry.name))
        for _, name in sorted(ages):
            if self._used + count <= quota:
                return
            self._remove(name)

    def _remove(self, name: str) -> None:
        """The manifest goes last: what is left of a series is still the oldest then."""
        try:
            parts = Manifest.from_json((self.folder / name).read_bytes()).parts
        except (OSError, ValueError):  # somebody else's, or somebody took it away
            return
        series = name.removesuffix(SUFFIX)
        papers = (series + SUMS, series + PENDING, series + FAILED, name)
        for gone in (*(part.name for part in parts), *papers):
            path = self.folder / gone
            with suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                self._used -= size


def rename(old: str, new: str, folder: int) -> None:
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def mark_damaged(name: str, folder: int) -> None:
    """Keep a part that could not be synced from ever being adopted: its pages may be lost."""
    with suppress(OSError):  # a filesystem gone read-only takes no mark either
        rename(name + PARTIAL, name + DAMAGED, folder)
