"""A file on its way in, as a thread of the crew sees it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field, frozen

from daemon.stores import files

PARTIAL = ".partial"
WHOLE = ".parcel"


@frozen
class Laid:
    """A file is durable, under a name that no row knows yet."""

    path: Path
    size: int
    sha256: str


@define(eq=False, repr=False)
class Upload:
    """`daemon.stores.crew.Sink` for one file. path: its place and name, without a suffix."""

    WRITE_BACK: ClassVar[int] = 8 << 20  # bytes; what the sync at the end has left is less

    path: Path
    _descriptor: int = field(default=-1, init=False)
    _size: int = field(default=0, init=False)
    _begun: int = field(default=0, init=False)  # bytes the drive was told to begin with
    _digest: Any = field(factory=hashlib.sha256, init=False)

    def write(self, chunks: list[bytes]) -> None:
        self._open()
        for chunk in chunks:
            files.write_all(self._descriptor, chunk)
            self._digest.update(chunk)
            self._size += len(chunk)
        if (ahead := self._size - self._begun) >= self.WRITE_BACK:
            files.begin_write_back(self._descriptor, self._begun, ahead)
            self._begun = self._size

    def commit(self) -> Laid:
        self._open()
        files.sync_data(self._descriptor)
        self._close()
        whole = self.path.with_suffix(WHOLE)
        self.path.with_suffix(PARTIAL).rename(whole)
        files.sync_folder(whole.parent)
        return Laid(whole, self._size, self._digest.hexdigest())

    def fail(self) -> int:
        self.abort()
        return 0

    def abort(self) -> None:
        self._close()
        for suffix in (PARTIAL, WHOLE):
            self.path.with_suffix(suffix).unlink(missing_ok=True)

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = files.open_new(str(self.path.with_suffix(PARTIAL)))

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
