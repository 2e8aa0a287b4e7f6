"""How many bytes each box holds, and whether there is room for more."""

from __future__ import annotations

import errno
import os
from collections import Counter
from threading import Lock

from attrs import define, field

from protocols.stores import Allowance


@define(eq=False, repr=False)
class Stock:
    """Bytes kept, being uploaded and promised, box by box; asked from any thread."""

    total: int = field(default=0, init=False)
    _boxes: Counter[str] = field(factory=Counter, init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def add(self, box: str, count: int, limits: Allowance | None = None) -> None:
        """Raises OSError (EDQUOT) where that passes the limits; then nothing is added."""
        with self._lock:
            held, total = self._boxes[box] + count, self.total + count
            if limits is not None and (0 < limits.box < held or 0 < limits.total < total):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            self._boxes[box], self.total = held, total

    def drop(self, box: str, count: int) -> None:
        with self._lock:
            self._boxes[box] -= count
            self.total -= count
            if not self._boxes[box]:
                del self._boxes[box]

    def held(self, box: str) -> int:
        return self._boxes[box]
