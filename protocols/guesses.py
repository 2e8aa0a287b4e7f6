"""Wrong codes, counted: who guesses is made to wait, and nobody else.

    an id at an address     WRONG in SPAN seconds: refused for PAUSE seconds, right code or not
    an address              the same, for ids that never showed their right code from there

So an id is never locked for other addresses, and a client that knows its code does not suffer from
one beside it that does not. The 2^64 addresses of an IPv6 network that one customer has to himself
are one (`source`). What is remembered is bounded: the longest unheard of is forgotten. Pure: the
clock is handed in.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import ClassVar

from attrs import define, field

Who = tuple[str, str]  # an id and an address; the address alone stands under the empty id


def source(host: str) -> str:
    """The address under which `host` is counted: IPv6 by the first half of it."""
    try:
        address = IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or IPv6Address(address.packed[:8] + bytes(8)))


@define
class Count:
    """When the latest wrong codes came; nothing is taken before `until`. Times of the clock."""

    wrong: deque[float] = field(factory=deque)
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

    def wrong(self, ident: str, address: str) -> bool:
        """A wrong code came. Whether the address waits from now on."""
        now = self.seconds()
        for table, who in ((self._counts, (ident, address)), (self._addresses, ("", address))):
            count = table.setdefault(who, Count())
            count.wrong.append(now)
            while count.wrong[0] <= now - self.SPAN:
                count.wrong.popleft()
            waits = len(count.wrong) >= self.WRONG
            if waits:
                count.until = now + self.PAUSE
                count.wrong.clear()
            self._bound(table, who)
        return waits

    def right(self, ident: str, address: str) -> None:
        """The right code came."""
        self._proven[ident, address] = None
        self._bound(self._proven, (ident, address))

    def _bound(self, table: OrderedDict[Who, Count] | OrderedDict[Who, None], who: Who) -> None:
        table.move_to_end(who)
        if len(table) > self.MOST:
            table.popitem(last=False)
