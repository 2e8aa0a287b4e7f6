"""That storing failed: how often, and whether it was a moment ago."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import ClassVar

from attrs import define, field


@define(eq=False, repr=False)
class Trouble:
    """Any thread may note it. now: seconds, of a clock that nobody sets.

    LASTS: seconds for which it counts after it was met last: a disk that failed once is not to be
    trusted the moment it works again.
    """

    LASTS: ClassVar[float] = 4.0

    now: Callable[[], float] = time.monotonic
    count: int = field(default=0, init=False)
    _reason: str = field(default="", init=False)
    _last: float = field(default=float("-inf"), init=False)

    def note(self, reason: str) -> None:
        self.count += 1
        self._reason, self._last = reason, self.now()

    @property
    def recent(self) -> str:
        """What the trouble is; empty if there is none."""
        return self._reason if self.now() - self._last < self.LASTS else ""
