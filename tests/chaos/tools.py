"""What a hazard needs of the machine: a library to preload, a disk that loses its power."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen

SOURCE = Path(__file__).with_name("points.c")
POINTS = ("fsync", "fdatasync", "syncfs", "rename", "unlink", "ftruncate")  # as in points.c
PREFIX = "roundhouse-chaos-"  # of every temporary folder
DISK = 1 << 30  # bytes, well above every MIN_FREE; the file of the disk is sparse
PATIENCE = 30.0  # seconds for a tool


class Impossible(Exception):
    """A hazard cannot be had on this machine; says why and what would help."""


@contextmanager
def preloaded() -> Iterator[Path]:
    """points.c as a library. Raises Impossible."""
    if sys.platform != "linux":
        raise Impossible("LD_PRELOAD needs Linux")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Impossible("gcc is not installed (apt install gcc libc6-dev)")
    with TemporaryDirectory(prefix=PREFIX) as folder:
        library = Path(folder) / "points.so"
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(SOURCE), "-ldl"]
        made = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if made.returncode:
            raise Impossible(f"{SOURCE.name} does not compile: {made.stderr.strip()}")
        yield library


@frozen
class Disk:
    """An ext4 of its own in a file, mounted at `folder`."""

    image: Path
    folder: Path

    def cut(self) -> None:
        """The power is gone: what was not synced is lost, and every access fails from now on."""
        shutdown, without_flush = 0x8004587D, 2  # EXT4_IOC_SHUTDOWN, EXT4_GOING_FLAGS_NOLOGFLUSH
        place = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(place, shutdown, struct.pack("I", without_flush))
        finally:
            os.close(place)

    def power_on(self) -> None:
        """Mount what is left. Nobody may have anything open on it."""
        self.unmount()
        _run("mount", "-o", "loop", str(self.image), str(self.folder))

    def unmount(self) -> None:
        """Raises Impossible when somebody holds it for long."""
        until = time.monotonic() + PATIENCE
        while os.path.ismount(self.folder):
            try:
                _run("umount", str(self.folder))
            except Impossible:
                if time.monotonic() > until:
                    _run("umount", "-l", str(self.folder))
                    raise
                time.sleep(0.1)


@contextmanager
def mounted() -> Iterator[Disk]:
    """A fresh disk, unmounted and gone afterwards whatever happened. Raises Impossible."""
    if sys.platform != "linux":
        raise Impossible("a power cut needs ext4, so Linux")
    if os.geteuid():
        raise Impossible("mounting a disk needs root")
    if not (shutil.which("mkfs.ext4") and shutil.which("mount")):
        raise Impossible("mkfs.ext4 or mount is not installed (apt install e2fsprogs mount)")
    with TemporaryDirectory(prefix=PREFIX) as home:
        disk = Disk(Path(home) / "disk.img", Path(home) / "disk")
        disk.folder.mkdir()
        with disk.image.open("wb") as image:
            image.truncate(DISK)
        _run("mkfs.ext4", "-q", "-F", str(disk.image))
        try:
            _run("mount", "-o", "loop", str(disk.image), str(disk.folder))
            yield disk
        finally:
            disk.unmount()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise Impossible(f"{' '.join(command)}: {done.stderr.strip()}")
