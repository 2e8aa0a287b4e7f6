"""What a crash left in the folder: parts without their name."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from twisted.logger import Logger

from daemon.stores import files
from daemon.stores.landing.series import MANY, PARTIAL, mark_damaged

log = Logger()

_LEFT = re.compile(rf".+_parte_[0-9]{{6,}}\.bin{re.escape(PARTIAL)}", re.DOTALL)


def adopt(folder: Path) -> tuple[int, int]:
    """Sync every part that has no name yet and give it its own; empty ones go.

    How many were adopted and how many removed. Nothing is ever overwritten; a file that cannot
    be adopted is logged and left, for a person or the next start; if it could not be synced, as
    damaged, for a second sync would seem to succeed. Raises OSError only when the
    folder itself cannot be read or synced.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with os.scandir(folder) as entries:
            left = sorted(
                entry.name
                for entry in entries
                if _LEFT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
            )
        synced = len(left) >= MANY and _synced_at_once(place)
        adopted = removed = 0
        for name in left:
            try:
                if _adopt(name, place, synced):
                    adopted += 1
                else:
                    removed += 1
            except OSError as error:
                log.error("{name} was not adopted: {why}", name=name, why=error.strerror)
        if adopted or removed:
            os.fsync(place)
        return adopted, removed
    finally:
        os.close(place)


def _synced_at_once(place: int) -> bool:
    """Whether one sync made all of them durable; if not, each is tried on its own."""
    if not files.syncs_at_once(place):
        return False
    try:
        files.sync_all(place)
    except OSError:
        return False
    return True


def _adopt(name: str, place: int, synced: bool) -> bool:
    """Whether it was adopted; False: it was empty and is gone."""
    if not os.stat(name, dir_fd=place).st_size:
        os.unlink(name, dir_fd=place)
        return False
    final = name.removesuffix(PARTIAL)
    try:
        os.lstat(final, dir_fd=place)
    except FileNotFoundError:
        pass
    else:
        raise FileExistsError(errno.EEXIST, f"there is a {final} already")
    if not synced:
        descriptor = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
        try:
            files.sync_data(descriptor)
        except OSError:
            mark_damaged(name.removesuffix(PARTIAL), place)
            raise
        finally:
            os.close(descriptor)
    os.rename(name, final, src_dir_fd=place, dst_dir_fd=place)
    return True
