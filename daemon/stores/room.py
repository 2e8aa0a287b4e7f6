"""A room: what was said in it since the last flush, and the bytes that its members still lack."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from attrs import define, field

from protocols.stores import Line, Render

if TYPE_CHECKING:
    from daemon.stores.ring import Seat

CHUNK = 64 << 10  # bytes of one write: a full transport holds little more than it wanted
LINES = 16 << 10  # of one flush at most, about: some dialects say more of each than it has bytes
EVENT = 32  # bytes that a Line weighs besides its text: who joins and leaves says something, too


@define(eq=False, repr=False)
class Following:
    """A place in the log of a dialect.

    last: the place where it ends, once that is known. late: since when it has been too far
    behind, on the ring's clock; moved: when it last took something since then. woven: up to
    there its seat's script has it.
    """

    seat: Seat
    room: Room
    dialect: Dialect
    echo: bool
    at: int
    push: Callable[[bytes], object]  # writes a flush
    last: int | None = field(default=None, init=False)
    late: float | None = field(default=None, init=False)
    moved: float = field(default=0.0, init=False)
    woven: int = field(default=0, init=False)

    @property
    def end(self) -> int:
        """The place up to which it is owed everything, as of now."""
        return self.dialect.end if self.last is None else self.last

    @property
    def lag(self) -> int:
        """Bytes it lacks, beyond what its transport holds."""
        return self.end - self.at

    @property
    def keeps(self) -> int:
        """Bytes the log keeps for it: more than it lacks, once it has left."""
        return self.dialect.end - self.at


@define(eq=False, repr=False)
class Dialect:
    """The members of a room that are spoken to alike, and one log of recent bytes for them all.

    Places count from the first byte ever said in the dialect. While all keep up, the log is empty
    between flushes.
    """

    render: Render
    members: dict[Following, None] = field(factory=dict, init=False)
    slow: dict[Following, None] = field(factory=dict, init=False)  # whose consumer is full
    start: int = field(default=0, init=False)  # the place of the log's first byte
    end: int = field(default=0, init=False)
    fresh: int = field(default=0, init=False)  # where the last flush began
    _log: bytearray = field(factory=bytearray, init=False)
    _chunks: dict[int, bytes] = field(factory=dict, init=False)  # of the last flush, by place

    def add(self, lines: Sequence[Line], cuts: Sequence[int], at: float) -> dict[int, int]:
        """Append `lines`. Tells at which place each index into them that is in `cuts` came."""
        self.fresh = place = self.end
        places, parts = {0: place}, []
        for first, last in pairwise(cuts):
            parts.append(part := self.render(lines[first:last], at))
            places[last] = place = place + len(part)
        data = b"".join(parts)
        self._log += data
        self.end = place
        if len(data) <= CHUNK:
            self._chunks = {self.fresh: data}
        else:
            self._chunks = {self.fresh + i: data[i : i + CHUNK] for i in range(0, len(data), CHUNK)}
        return places

    def read(self, at: int, last: int) -> bytes:
        """Some bytes from `at` on, none from `last` on; nothing only if at == last."""
        chunk = self._chunks.get(at)
        if chunk is not None and at + len(chunk) <= last:
            return chunk
        return bytes(self._log[at - self.start : min(last, at + CHUNK) - self.start])

    def trim(self) -> None:
        """Forget what nobody lacks."""
        keep = min([one.at for one in self.slow], default=self.end)
        del self._log[: keep - self.start]
        self.start = keep
        self._chunks.clear()


@define(eq=False, repr=False)
class Room:
    """Who follows, what was said since the last flush, and who says too much.

    brim: how much may be said until the next flush is urgent. held: somebody cannot keep up; who
    says much is not read until all have caught up. Sizes: bytes of text, and EVENT for each Line.
    """

    name: str
    dialects: dict[Render, Dialect] = field(factory=dict, init=False)
    lines: list[Line] = field(factory=list, init=False)
    size: int = field(default=0, init=False)  # of `lines`
    count: int = field(default=0, init=False)  # single lines in them
    brim: int = field(default=256 << 10, init=False)
    held: bool = field(default=False, init=False)
    spoken: dict[Seat, int] = field(factory=dict, init=False)  # bytes, while it is held or brimful

    def __len__(self) -> int:
        return sum([len(dialect.members) for dialect in self.dialects.values()])

    @property
    def brimful(self) -> bool:
        """The next flush is urgent."""
        return self.size > self.brim or self.count > LINES

    def dialect(self, render: Render) -> Dialect:
        found = self.dialects.get(render)
        if found is None:
            found = self.dialects[render] = Dialect(render)
        return found

    def say(self, lines: Sequence[Line]) -> int:
        """Their size."""
        self.lines += lines
        size = sum([len(line.text) + EVENT for line in lines])
        self.size += size
        self.count += sum([line.text.count(b"\n") + 1 for line in lines])
        return size

    def gather(self, cuts: Iterable[int], at: float) -> dict[Dialect, dict[int, int]]:
        """Put what was said into the logs; tell the places of `cuts`, indexes into the lines."""
        lines, self.lines, self.size, self.count = self.lines, [], 0, 0
        ordered = sorted({0, len(lines), *cuts})
        return {dialect: dialect.add(lines, ordered, at) for dialect in self.dialects.values()}
