"""Bytes to lines, bounded, without I/O.

`twisted.protocols.basic.LineReceiver` is quadratic on small lines and loses the good lines that
share a read with an overlong one; this is one `split` a read.
"""

from __future__ import annotations

from typing import Any

from attrs import define, field


class Overlong:
    """Stands where a line was that passed the limit."""

    def __repr__(self) -> str:
        return "OVERLONG"


OVERLONG = Overlong()


@define(eq=False)
class Lines:
    """A stream cut at LF. limit: most bytes of a line, its LF not counted.

    A line that passes the limit is reported once, as soon as that is known, as OVERLONG; the
    rest of it is dropped up to its LF. Nothing else is lost, and no cut of the stream into reads
    changes what comes out.
    """

    limit: int
    _rest: bytes = field(default=b"", init=False)
    _skipping: bool = field(default=False, init=False)

    @property
    def pending(self) -> bytes:
        """The line that has begun and has no LF yet."""
        return self._rest

    @property
    def begun(self) -> bool:
        """A line has begun, or the rest of an overlong one is being dropped."""
        return self._skipping or bool(self._rest)

    def feed(self, data: bytes) -> list[bytes | Overlong]:
        """The lines that `data` completes, without their LF."""
        lines: list[Any] = (self._rest + data).split(b"\n")
        rest = lines.pop()
        if self._skipping:
            if not lines:
                return []
            del lines[0]
            self._skipping = False
        if lines and max(map(len, lines)) > self.limit:
            lines = [OVERLONG if len(line) > self.limit else line for line in lines]
        if len(rest) > self.limit:
            lines.append(OVERLONG)
            rest, self._skipping = b"", True
        self._rest = rest
        return lines

    def take(self) -> bytes:
        """Take out the line that has begun (at FIN, or after a silence that ends it).

        That ends an overlong one, too, of which nothing is left to take.
        """
        rest, self._rest, self._skipping = self._rest, b"", False
        return rest
