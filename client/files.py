"""What is sent: local files and standard input, read as they go."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from io import BytesIO
from types import TracebackType
from typing import BinaryIO

from attrs import define, frozen

from client.hashing import Beside
from client.net import CHUNK, Failed, Reset, Wire
from client.terminal import printable


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
        return cls("standard input" if path == "-" else path, regular_size(stream), stream)

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

    @property
    def repeatable(self) -> bool:
        """Whether it can be read again from anywhere."""
        return self.size is not None and self._stream is not sys.stdin.buffer

    def seek(self, offset: int) -> None:
        self._stream.seek(offset)

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


def regular_size(stream: BinaryIO) -> int | None:
    """The bytes of a file; None where it is a pipe, a terminal or a device."""
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
    size, chunk = 0, first
    with Beside() as digest:
        try:
            while not wire.ended and (deaf or not wire.heard):
                if chunk:
                    digest.update(chunk)
                    wire.send(chunk)
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
