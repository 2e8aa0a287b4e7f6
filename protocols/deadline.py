"""So many seconds for a request to come whole, however slowly its bytes trickle.

Silence is found by the beat of `connection.Live`, and every byte ends a silence: who sends one
now and then could hold a request open for ever. No timer is set for what comes in one read, and
none is set anew by a byte.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IReactorTime


@define(eq=False, repr=False)
class Deadline:
    """Calls `late` when the same request was awaited for `seconds`.

    awaited: the number of the request that has begun and is not whole, 0 while there is none, or
    while it is we who do not read.
    """

    clock: IReactorTime
    seconds: float
    awaited: Callable[[], int]
    late: Callable[[], object]
    number: int = field(default=0, init=False)  # of the one that is awaited, as of the last look
    _since: float = field(default=0.0, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)

    def look(self) -> None:
        """Something was read, or answered."""
        number = self.awaited()
        if number == self.number:
            return
        self.number = number
        if number:
            self._since = self.clock.seconds()
            if self._next is None:
                self._next = self.clock.callLater(self.seconds, self._look_again)

    def end(self) -> None:
        """Nothing is awaited any more."""
        timer, self._next = self._next, None
        if timer is not None:
            timer.cancel()

    def _look_again(self) -> None:
        self._next = None
        self.look()
        if not self.number or self._next is not None:
            return
        rest = self._since + self.seconds - self.clock.seconds()
        if rest > 0:
            self._next = self.clock.callLater(rest, self._look_again)
        else:
            self.late()
