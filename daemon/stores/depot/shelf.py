"""One box: its files, those on their way into it, and who waits for one."""

from __future__ import annotations

from bisect import bisect_left, insort
from operator import attrgetter
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, succeed

from daemon.stores.depot.parcel import Item, Parcel

if TYPE_CHECKING:
    from daemon.stores.depot.arriving import Arriving

_ident = attrgetter("ident")


@frozen(eq=False)
class Wish:
    """Who waits. most: deliveries it allows a file. awaited: the arrivals that were expected when
    it came, and that it waits for; None: any, for ever."""

    most: int
    receiver: str
    awaited: set[object] | None


@define(eq=False, repr=False)
class Shelf:
    """items: all of them, in order; only those that somebody may claim stand on the shelf."""

    _expected: set[object] = field(factory=set)
    items: dict[int, Item] = field(factory=dict, init=False)
    arriving: dict[str, Arriving] = field(factory=dict, init=False)
    _free: list[Item] = field(factory=list, init=False)  # by ident
    _waiting: dict[Deferred[Parcel | None], Wish] = field(factory=dict, init=False)
    _serving: bool = field(default=False, init=False)

    @property
    def empty(self) -> bool:
        return not (self.items or self.arriving or self._waiting or self._expected)

    def put(self, item: Item) -> None:
        """Somebody may claim it, or claim it again."""
        self.items[item.ident] = item
        if not (item.on_shelf or item.parked or item.leaving or item.spoken_for):
            item.on_shelf = True
            insort(self._free, item, key=_ident)

    def take_off(self, item: Item) -> None:
        """Nobody may claim it for now."""
        if item.on_shelf:
            item.on_shelf = False
            del self._free[bisect_left(self._free, item.ident, key=_ident)]

    def take(self, most: int, wait: bool, receiver: str = "") -> Deferred[Parcel | None]:
        wish = Wish(most, receiver, None if wait else self._expected.copy())
        if (parcel := self._claim(wish)) is not None:
            return succeed(parcel)
        if not (wait or self._expected):
            return succeed(None)
        waiter = Deferred[Parcel | None](self._waiting.__delitem__)
        self._waiting[waiter] = wish
        return waiter

    def serve(self) -> None:
        """First come, first served. Who is served may give back at once: that is not nested."""
        if self._serving:
            return
        self._serving = True
        while self._free and (served := self._next()):
            waiter, parcel = served
            del self._waiting[waiter]
            waiter.callback(parcel)
        self._serving = False

    def expect(self, arrival: object) -> None:
        """Something may be put here soon: until it is `over`, nobody is told that nothing is."""
        self._expected.add(arrival)

    def over(self, arrival: object) -> None:
        """It was put here, or will never be."""
        self._expected.discard(arrival)
        self.serve()
        for waiter, wish in list(self._waiting.items()):
            if wish.awaited is not None and waiter in self._waiting:
                wish.awaited.discard(arrival)
                if not wish.awaited:
                    del self._waiting[waiter]
                    waiter.callback(None)

    def _next(self) -> tuple[Deferred[Parcel | None], Parcel] | None:
        for waiter, wish in self._waiting.items():
            if (parcel := self._claim(wish)) is not None:
                return waiter, parcel
        return None

    def _claim(self, wish: Wish) -> Parcel | None:
        for item in self._free:
            if item.is_for(wish.receiver):
                parcel = item.claim(wish.most, wish.receiver)
                if item.spoken_for:
                    self.take_off(item)
                return parcel
        return None
