"""The roster: who is called what, and where they are, in one process and in memory."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, succeed

from protocols.rooms import folded
from protocols.stores import Bearer, Line, Sighting


@define(eq=False, repr=False)
class Names:
    """`protocols.stores.Roster`."""

    _bearers: dict[str, Bearer] = field(factory=dict, init=False)  # by folded name
    _seen: dict[Bearer, Sighting] = field(factory=dict, init=False)
    _rooms: dict[str, dict[Bearer, None]] = field(factory=dict, init=False)

    def claim(self, name: str, who: Bearer) -> Deferred[bool]:
        key = folded(name)
        if self._bearers.get(key, who) is not who:
            return succeed(False)
        was = self._seen.get(who)
        if was is not None:
            del self._bearers[folded(was.name)]
        self._bearers[key] = who
        self._seen[who] = Sighting(name) if was is None else evolve(was, name=name)
        return succeed(True)

    def release(self, who: Bearer) -> None:
        seen = self._seen.get(who)
        if seen is not None:
            for room in seen.rooms:
                self.leave(room, who)
            del self._seen[who], self._bearers[folded(seen.name)]

    def enter(self, room: str, who: Bearer) -> None:
        seen = self._seen.get(who)
        if seen is not None and room not in seen.rooms:
            self._seen[who] = evolve(seen, rooms=(*seen.rooms, room))
            self._rooms.setdefault(room, {})[who] = None

    def leave(self, room: str, who: Bearer) -> None:
        seen = self._seen.get(who)
        if seen is not None and room in seen.rooms:
            self._seen[who] = evolve(seen, rooms=tuple(r for r in seen.rooms if r != room))
            here = self._rooms[room]
            del here[who]
            if not here:
                del self._rooms[room]

    def away(self, who: Bearer, why: str | None) -> None:
        seen = self._seen.get(who)
        if seen is not None:
            self._seen[who] = evolve(seen, away=why)

    def find(self, name: str) -> Deferred[Sighting | None]:
        who = self._bearers.get(folded(name))
        return succeed(None if who is None else self._seen[who])

    def present(self, room: str | None = None) -> Deferred[Sequence[Sighting]]:
        bearers = self._seen if room is None else self._rooms.get(room, {})
        return succeed(sorted([self._seen[who] for who in bearers], key=lambda s: folded(s.name)))

    def tell(self, name: str, line: Line) -> Deferred[Sighting | None]:
        who = self._bearers.get(folded(name))
        if who is None:
            return succeed(None)
        behind = who.told(line)
        seen = self._seen.get(who)  # it may be gone because of that
        return succeed(evolve(seen, behind=True) if behind and seen else seen)
