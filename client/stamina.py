"""How long a transfer that was cut is tried again."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep

from attrs import define, field

from client.http import Refused
from client.net import Failed, Nobody, Reset, Silent

MOST = 60.0  # seconds without a byte, without --timeout
FIRST, LONGEST = 0.05, 2.0  # seconds between two tries
PASSING = {408, 409, 423, 425, 429, 500, 502, 503, 504}  # statuses that may be others soon


@define(eq=False, repr=False)
class Stamina:
    """Gives up once nothing has moved for `most` seconds. note: told of each cut, once."""

    most: float
    note: Callable[[str], object]
    _since: float | None = field(default=None, init=False)  # of the first cut without progress
    _pause: float = field(default=FIRST, init=False)

    @classmethod
    def lasting(cls, timeout: float | None, note: Callable[[str], object]) -> Stamina:
        return cls(timeout or MOST, note)

    def moved(self) -> None:
        """A byte went through."""
        self._since, self._pause = None, FIRST

    def again(self, error: Failed) -> None:
        """Pause before the next try; raise `error` where there is none."""
        passing = isinstance(error, Reset | Silent | Nobody) or (
            isinstance(error, Refused) and error.status in PASSING
        )
        if not passing:
            raise error
        if self._since is None:
            self._since = monotonic()
            self.note(f"{error.message}; trying again")
        elif monotonic() - self._since > self.most:
            text = f"{error.message}; given up after {self.most:g} s without a byte"
            raise Failed(text) if isinstance(error, Refused) else type(error)(text)
        sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST)
