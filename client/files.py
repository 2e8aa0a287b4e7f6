"""Local files: read as they are sent, and landed whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import BinaryIO, Protocol

from attrs import define, frozen

from client.net import CHUNK, Failed, Reset, Wire
from client.terminal import printable

NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@define(eq=False, repr=False)
class Source:
    """Bytes to send; size: bytes, None: unknown (a pipe)."""

    name: str
    size: int | None
    _stream: BinaryIO

    @classmethod
    def open(cls, path: str) -> Source:
        """Open a file, or standard input for "-". Raise Failed."""
        try:
            stream: BinaryIO = (
                sys.stdin.buffer if path == "-" else open(path, "rb", buffering=0)  # noqa: SIM115
            )
        except OSError as error:
            raise Failed(f"cannot read {printable(path)}: {error.strerror}") from None
        return cls("standard input" if path == "-" else path, _size(stream), stream)

    @classmethod
    def of(cls, data: bytes) -> Source:
        return cls("memory", len(data), BytesIO(data))

    def fileno(self) -> int:
        """Raise OSError where there is none."""
        return self._stream.fileno()

    def read(self) -> bytes:
        """At most CHUNK bytes, as soon as there are any; b"" at the end. Raise Failed."""
        try:
            # read1 never waits for a full buffer, and leaves none behind that select cannot see
            return getattr(self._stream, "read1", self._stream.read)(CHUNK) or b""
        except OSError as error:
            raise Failed(f"cannot read {printable(self.name)}: {error.strerror}") from None

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stream is not sys.stdin.buffer:
            self._stream.close()


def _size(stream: BinaryIO) -> int | None:
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@frozen
class Sent:
    """What went out; whole: up to the source's end, and not cut short by the peer."""

    size: int
    sha256: str
    whole: bool


def pour(
    wire: Wire,
    source: Source,
    advance: Callable[[int], object],
    first: bytes = b"",
    deaf: bool = False,
) -> Sent:
    """Send `first` and then all of `source`, until the peer closes or (unless deaf) speaks.

    The FIN is left to the caller. Raise Failed; a Reset only where the peer left no word.
    """
    size, digest = 0, sha256()
    chunk = first
    try:
        while not wire.ended and (deaf or not wire.heard):
            if chunk:
                wire.send(chunk)
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
            ready = wire.wait(source)
            if ready.heard:
                wire.take()
            if deaf:
                wire.heard.clear()
            chunk = source.read() if ready.source else b""
            if ready.source and not chunk:
                return Sent(size, digest.hexdigest(), whole=not wire.ended)
    except Reset:
        if deaf or not wire.heard:
            raise
    return Sent(size, digest.hexdigest(), whole=False)


class Landing(Protocol):
    """Where a received file goes. Leaving the `with` without `keep` leaves nothing."""

    def write(self, data: bytes) -> None: ...

    def keep(self) -> str | None:
        """Make it durable; the name it got."""

    def __enter__(self) -> Landing: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@define(eq=False, repr=False)
class NewFile:
    """A file that appears whole under its name, or never. Nothing is ever overwritten.

    spare: where the name is taken at the end, `name-2` and so on will do.
    """

    target: Path
    spare: bool
    _partial: Path
    _file: BinaryIO

    @classmethod
    def at(cls, path: str, spare: bool = False) -> NewFile:
        """Open a partial file beside `path`. Raise Failed, also where `path` exists."""
        target = Path(path)
        if os.path.lexists(path) and not spare:
            raise Failed(f"{printable(path)} exists, and nothing is overwritten: name another file")
        if not target.name:
            raise Failed(f"'{path}' is no name for a file")
        partial = target.parent / f".roundhouse-{token_hex(6)}.partial"
        try:
            return cls(target, spare, partial, open(partial, "xb"))
        except OSError as error:
            raise Failed(f"cannot write {printable(path)}: {error.strerror}") from None

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._unkept(error) from None

    def keep(self) -> str:
        """Fsync, then give it its name."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            name = self._name()
            _sync(self.target.parent)
        except OSError as error:
            raise self._unkept(error) from None
        return str(name)

    def _name(self) -> Path:
        for number in range(1, 100):
            stem = self.target.stem if number == 1 else f"{self.target.stem}-{number}"
            name = self.target.with_name(stem + self.target.suffix)
            try:
                _give(self._partial, name)
                return name
            except FileExistsError:
                if not self.spare:
                    raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _unkept(self, error: OSError) -> Failed:
        name = printable(str(self.target))
        return Failed(f"cannot store {name}: {error.strerror}; the server keeps the file")

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError:  # a full disk: what is still buffered was not to be kept
            pass
        finally:
            self._partial.unlink(missing_ok=True)


def _give(partial: Path, name: Path) -> None:
    """Name a file, never replacing one. Raise FileExistsError."""
    try:
        os.link(partial, name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        open(name, "xb").close()  # a file system without links: claim the name first
        os.replace(partial, name)


def _sync(folder: Path) -> None:
    """Make a new name durable, where the folder lets itself be opened and synced at all."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a drop box
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@define(eq=False, repr=False)
class Stdout:
    """Standard output as a landing: bytes that were passed on cannot be taken back."""

    def write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)

    def keep(self) -> None:
        sys.stdout.buffer.flush()
        if _size(sys.stdout.buffer) is not None:
            os.fsync(sys.stdout.fileno())

    def __enter__(self) -> Stdout:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass
