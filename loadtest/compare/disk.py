"""Where servers may write: on a disk, for in memory nothing waits for one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
from attrs import frozen

from loadtest.compare.build import Missing

MEMORY = frozenset({"tmpfs", "ramfs", "rootfs"})


@frozen
class Disk:
    """A folder, and the kind of the file system it is on, as the kernel calls it."""

    folder: Path
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.folder})"


def disk(room: int, places: Sequence[Path]) -> Disk:
    """The first of `places` on a disk where `room` bytes are free. Raise Missing."""
    found = [Disk(place.resolve(), _kind(place.resolve())) for place in places]
    for one in found:
        if one.kind not in MEMORY and psutil.disk_usage(str(one.folder)).free >= room:
            return one
    tried = ", ".join(dict.fromkeys(map(str, found)))
    raise Missing(f"no {room / 1e9:.1f} GB free on a disk; tried {tried}; TMPDIR names another")


def _kind(folder: Path) -> str:
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (folder, *folder.parents) if path in mounts), "unknown")
