"""Files that are safe once we say so: folders synced, modes fixed, errors in plain words."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE_MODE = 0o640
FOLDER_MODE = 0o750

_LIBC = ctypes.CDLL(None, use_errno=True)
_FLUSHED_AT_ONCE = {0xEF53, 0x58465342, 0x9123683E}  # f_type of ext4, XFS, btrfs
_WRITE = 2  # SYNC_FILE_RANGE_WRITE

_PLAIN = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota used up", errno.EIO: "disk error"}


class Unusable(Exception):
    """What is on disk cannot be served from; the message is one line that says why and what now."""


def plain(error: OSError) -> str:
    """The error in a few words that may go to a peer: no path, no number."""
    if error.errno is None:
        return "storage failed"
    return _PLAIN.get(error.errno) or os.strerror(error.errno).lower()


def make_folder(path: Path) -> None:
    """Make `path` and what is missing above it, each entry durable; mode 0750 whatever the umask.

    A folder that is there already is left as it is. Raises OSError.
    """
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    path.chmod(FOLDER_MODE)
    sync_folder(path.parent)


def check_folder(path: Path) -> None:
    """Look whether `path` can be served from, making nothing. Raises Unusable."""
    there = path
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        raise Unusable(f"{path} cannot be used: {there} is not a folder; move it or set DATA_DIR")
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        raise Unusable(
            f"{path} cannot be used: {there} is not writable for uid {os.geteuid()}; "
            "change its owner or set DATA_DIR"
        )


def sync_folder(path: Path) -> None:
    """What was created, renamed or removed in `path` survives a power cut from here on."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_free(folder: int, least: int) -> None:
    """Raise OSError (ENOSPC) when less than `least` bytes are free where this descriptor is."""
    if least:
        status = os.fstatvfs(folder)
        free = status.f_bavail * status.f_frsize
        if free < least:
            raise OSError(errno.ENOSPC, f"{free >> 20} MiB free, MIN_FREE is {least >> 20} MiB")


def sync_data(descriptor: int) -> None:
    """fdatasync, or what comes up to it: macOS keeps data in the drive unless told F_FULLFSYNC."""
    if sys.platform == "darwin":  # pragma: no cover
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(descriptor)


def syncs_at_once(folder: int) -> bool:
    """Whether `sync_all` on this descriptor promises what `sync_data` of every file would.

    That needs a kernel that reports write-back errors through syncfs(2) (Linux 5.8), and a
    filesystem of which we know that it flushes the drive: FUSE, for one, does not.
    """
    if not sys.platform.startswith("linux") or not hasattr(_LIBC, "syncfs"):
        return False
    version = re.match(r"([0-9]+)\.([0-9]+)", os.uname().release)
    if version is None or (int(version[1]), int(version[2])) < (5, 8):
        return False
    status = (ctypes.c_long * 64)()  # struct statfs; its first word is the type
    return _LIBC.fstatfs(folder, status) == 0 and status[0] in _FLUSHED_AT_ONCE


def sync_all(folder: int) -> None:
    """Everything written so far to the filesystem of `folder` is durable.

    folder: opened before the first write that matters: an error is reported once a descriptor,
    and only if it came after the descriptor did. Raises OSError for anybody's lost write there.
    """
    if _LIBC.syncfs(folder):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def begin_write_back(descriptor: int, start: int, length: int) -> None:
    """Have the drive begin with these bytes, so that the sync at the end is short. A hint."""
    if hasattr(_LIBC, "sync_file_range"):
        offset = ctypes.c_int64
        _LIBC.sync_file_range(descriptor, offset(start), offset(length), _WRITE)


def forget_pages(descriptor: int) -> None:
    """Have what is read next come from the drive. A hint.

    Pages that could not be written stay in memory as if they had been, and look sound.
    """
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def open_new(path: str, folder: int | None = None) -> int:
    """Create a file nobody else has, mode 0640 whatever the umask; a descriptor to write to."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, FILE_MODE, dir_fd=folder)
    try:
        os.fchmod(descriptor, FILE_MODE)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def opened(path: str, flags: int, folder: int | None = None) -> Iterator[int]:
    """A descriptor for a while; a file it makes has mode 0640 whatever the umask."""
    descriptor = os.open(path, flags, FILE_MODE, dir_fd=folder)
    try:
        if flags & os.O_CREAT:
            os.fchmod(descriptor, FILE_MODE)
        yield descriptor
    finally:
        os.close(descriptor)


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Every byte, also where write(2) takes less than it was given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
