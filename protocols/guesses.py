"""Wrong codes, counted: who guesses is made to wait, and nobody else.

    an id at an address     WRONG in SPAN seconds: refused for PAUSE seconds, right code or not
    an address              the same, for ids that never showed their right code from there

So an id is never locked for other addresses, and a client that knows its code does not suffer from
one beside it that does not. What is remembered is bounded: the longest unheard of is forgotten.
Pure: the clock is handed in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import ClassVar

from attrs import define, field

Who = tuple[str, str]  # an id and an address; the address alone stands under the empty id


@define
class Count:
    """Wrong codes since `since`; nothing is taken before `until`. Both are times of the clock."""

    since: float
    wrong: int = 0
    until: float = 0.0


@define(eq=False)
class Guesses:
    """seconds: a clock that never goes back."""

    WRONG: ClassVar[int] = 5
    SPAN: ClassVar[float] = 60.0
    PAUSE: ClassVar[float] = 60.0
    MOST: ClassVar[int] = 10_000  # of each kind that is remembered

    seconds: Callable[[], float]
    _counts: OrderedDict[Who, Count] = field(factory=OrderedDict, init=False)
    _addresses: OrderedDict[Who, Count] = field(factory=OrderedDict, init=False)
    _proven: OrderedDict[Who, None] = field(factory=OrderedDict, init=False)

    def pause(self, ident: str, address: str) -> float:
        """Seconds for which this id is refused from that address; 0: it is not."""
        now = self.seconds()
        count, whole = self._counts.get((ident, address)), self._addresses.get(("", address))
        until = count.until if count is not None else 0.0
        if whole is not None and (ident, address) not in self._proven:
            until = max(until, whole.until)
        return max(0.0, until - now)

    def wrong(self, ident: str, address: str) -> None:
        """A wrong code came."""
        now = self.seconds()
        for table, who in ((self._counts, (ident, address)), (self._addresses, ("", address))):
            count = table.get(who)
            if count is None or now >= count.since + self.SPAN:
                count = table[who] = Count(now, until=0.0 if count is None else count.until)
            count.wrong += 1
            if count.wrong >= self.WRONG:
                count.until, count.since, count.wrong = now + self.PAUSE, now + self.PAUSE, 0
            self._bound(table, who)

    def right(self, ident: str, address: str) -> None:
        """The right code came."""
        self._proven[ident, address] = None
        self._bound(self._proven, (ident, address))

    def _bound(self, table: OrderedDict[Who, Count] | OrderedDict[Who, None], who: Who) -> None:
        table.move_to_end(who)
        if len(table) > self.MOST:
            table.popitem(last=False)
