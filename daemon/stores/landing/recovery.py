"""What a crash left in the folder: parts without their name, series without their manifest."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress

from twisted.logger import Logger

from daemon.stores import files
from daemon.stores.landing.ground import PARTIAL, Ground, Place, mark_damaged, rename
from daemon.stores.landing.manifest import SUFFIX, SUMS, Manifest, Piece
from daemon.stores.landing.series import MANY

log = Logger()

_LEFT = re.compile(rf"(.+)_parte_[0-9]{{6,}}\.bin{re.escape(PARTIAL)}", re.DOTALL)
_PART = re.compile(r"(.+)_parte_([0-9]{6,})\.bin", re.DOTALL)
_BLOCK = 1 << 20


def adopt(place: Place, names: list[str]) -> tuple[int, int]:
    """Of the files called `names`, sync every part that has no name yet and give it its own.

    How many were adopted, and how many were empty and removed. Nothing is ever overwritten; a
    file that cannot be adopted is logged and left, for a person or the next start; if it could
    not be synced, as damaged, for a second sync would seem to succeed. Raises OSError only when
    the folder itself cannot be synced.
    """
    left = sorted(name for name in names if _LEFT.fullmatch(name))
    synced = len(left) >= MANY and _synced_at_once(place)
    adopted = removed = 0
    for name in left:
        try:
            if _adopt(name, place.descriptor, synced):
                adopted += 1
            else:
                removed += 1
        except OSError as error:
            log.error(
                "{name} was not adopted: {why}",
                event="ingest.orphan",
                name=name,
                why=error.strerror,
            )
    if adopted or removed:
        place.sync_names()
    return adopted, removed


def unfinished(names: list[str], journalled: bool) -> dict[str, list[str]]:
    """The series that have no manifest because a crash came first, and their parts by number.

    journalled: a journal was left, so there may be parts of small streams that came not into it.
    """
    kept = frozenset(names)
    begun = {name[: -len(SUFFIX + PARTIAL)] for name in names if name.endswith(SUFFIX + PARTIAL)}
    begun |= {found[1] for name in names if (found := _LEFT.fullmatch(name))}
    parts: dict[str, list[tuple[int, str]]] = {}
    for name in {name.removesuffix(PARTIAL) for name in names}:
        if found := _PART.fullmatch(name):
            parts.setdefault(found[1], []).append((int(found[2]), name))
    if journalled:
        begun |= parts.keys()
    return {
        series: [name for _, name in sorted(parts.get(series, ()))]
        for series in sorted(begun)
        if series + SUFFIX not in kept
    }


def finish(
    series: str, parts: list[str], ground: Ground, going: Callable[[], object] = lambda: True
) -> bool:
    """Write the manifest of a series that a crash cut: what of it is there. Raises OSError.

    parts: the names they have, or would have if they could be adopted. going: asked at each
    block; once it says no, all is left to the next start. Whether there is a manifest now; if
    not, and nobody said no, nothing is left of the series.
    """
    with ground.visit() as place:
        begun = _begun(series, place.descriptor)
        whole = hashlib.sha256()
        pieces, numbers, closed = [], [], 0.0
        for name in parts:
            own, size = hashlib.sha256(), 0
            with (
                suppress(FileNotFoundError),  # it is damaged, or somebody took it away
                files.opened(name, os.O_RDONLY | os.O_CLOEXEC, place.descriptor) as part,
            ):
                while block := os.read(part, _BLOCK):
                    if not going():
                        return False
                    own.update(block)
                    whole.update(block)
                    size += len(block)
                files.sync_data(part)  # of a small stream it may not be durable yet
                closed = os.fstat(part).st_mtime
            if size:
                pieces.append(Piece(name, size, own.hexdigest()))
                numbers.append(int(name.rpartition("_")[2].removesuffix(".bin")))
            else:
                _unlink(name, place.descriptor)
        if not pieces:
            for paper in (SUFFIX, SUMS):
                _unlink(series + paper + PARTIAL, place.descriptor)
            return False
        size = sum(piece.size for piece in pieces)
        gapless = numbers == list(range(1, len(numbers) + 1))
        ground.publish(
            Manifest(
                series,
                size,
                whole.hexdigest() if gapless else None,
                tuple(pieces),
                begun.peer if begun else "",
                begun.opened if begun else closed,
                closed,
                "crash",
            ),
            place,
        )
        return True


def listed(ground: Ground) -> list[str]:
    """The files of the folder that may be ours: every FILE_PREFIX is printable."""
    with os.scandir(ground.folder) as entries:
        return [
            entry.name
            for entry in entries
            if entry.name.isprintable() and entry.is_file(follow_symlinks=False)
        ]


def _begun(series: str, folder: int) -> Manifest | None:
    """What was written of it at its beginning, if that is still there."""
    try:
        name = series + SUFFIX + PARTIAL
        with files.opened(name, os.O_RDONLY | os.O_CLOEXEC, folder) as paper:
            return Manifest.from_json(os.read(paper, _BLOCK))
    except (OSError, ValueError):
        return None


def _unlink(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _synced_at_once(place: Place) -> bool:
    """Whether one sync made all of them durable; if not, each is tried on its own."""
    try:
        return place.sync_all()
    except OSError:
        return False


def _adopt(name: str, folder: int, synced: bool) -> bool:
    """Whether it was adopted; False: it was empty and is gone."""
    if not os.stat(name, dir_fd=folder).st_size:
        os.unlink(name, dir_fd=folder)
        return False
    final = name.removesuffix(PARTIAL)
    try:
        os.lstat(final, dir_fd=folder)
    except FileNotFoundError:
        pass
    else:
        raise FileExistsError(errno.EEXIST, f"there is a {final} already")
    if not synced:
        try:
            with files.opened(name, os.O_RDONLY | os.O_CLOEXEC, folder) as part:
                files.sync_data(part)
        except OSError:
            mark_damaged(final, folder)
            raise
    rename(name, final, folder)
    return True
