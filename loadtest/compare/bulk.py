"""The bytes that bulk_load sends, and whether bytes are those."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

MIB = 1 << 20
PIECE = 4 * MIB  # bytes of a read
DATA = b"".join(b"line %0250d\n" % number for number in range(3907))  # as bulk_load.c composes it


@cache
def digest(size: int) -> str:
    """Of a stream of `size` bytes, in hex."""
    whole, rest = divmod(size, len(DATA))
    made = sha256()
    for _ in range(whole):
        made.update(DATA)
    made.update(DATA[:rest])
    return made.hexdigest()


def pieces(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                yield piece


def same(given: Iterable[bytes], size: int) -> bool:
    """Whether the pieces are a stream of `size` bytes."""
    place, twice = 0, DATA * (2 + PIECE // len(DATA))
    for piece in given:
        at = place % len(DATA)
        if twice[at : at + len(piece)] != piece:
            return False
        place += len(piece)
    return place == size
