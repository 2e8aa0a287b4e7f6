"""The room: what a turn says is joined once a dialect and written once a member, in one order.

One `send` costs microseconds in any language, so the lines of a turn of the reactor are put
together before anybody gets them (a flush). A dialect keeps one log of recent bytes for all its
members, and a member is an offset into it: whoever reads as fast as we write is always at its
end, and the log is empty again after the flush. A member whose transport is full stays where it
is, costs nothing but its place, and goes on from there when it resumes.

Limits
    limit      bytes of the log a slow member may be behind; beyond that it is cut (`slow`)
    PATIENCE   seconds (or a third more) a member may take nothing while something waits for it
    OWN        bytes of private answers that may wait for one member before it is read no more
               (they answer what it said; until it takes them it shall say nothing)
    CHUNK      bytes of one write: a full transport holds little more than it wanted
    SLICE      members served a turn of the reactor: the other services get in between
    GAP        seconds: after a flush we rest as long as it took, at most so long, unless HASTE
               bytes wait
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from attrs import define, field
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from protocols.stores import Line, Render

log = Logger()

LIMIT = 4 << 20
PATIENCE = 30.0
OWN = 64 << 10
CHUNK = 64 << 10
SLICE = 256
GAP = 0.010
HASTE = 256 << 10

_LOOKS = 3  # at the slow, within PATIENCE


@implementer(IPushProducer)
@define(eq=False, repr=False)
class Member:
    """`protocols.stores.Following`: a place in the log of a dialect, and what is only for it."""

    ring: Ring
    room: Room
    dialect: Dialect
    consumer: Any
    lost: Callable[[str], object]
    at: int
    full: bool = field(default=False, init=False)  # the consumer takes no more for now
    gone: bool = field(default=False, init=False)
    muted: bool = field(default=False, init=False)
    looks: int = field(default=0, init=False)  # of Ring._look since it last resumed
    _own: deque[tuple[int, bytes]] = field(factory=deque, init=False)  # with their places
    _owed: int = field(default=0, init=False)  # bytes in _own and in the room's asides
    _end: int | None = field(default=None, init=False)  # the place where it stops
    _after: Callable[[], object] | None = field(default=None, init=False)

    @property
    def behind(self) -> bool:
        """Something waits for it here (not in its transport)."""
        return self.at < self.dialect.end or bool(self._own)

    def private(self, data: bytes) -> None:
        if self.gone or self._after is not None:
            return
        self._owed += len(data)
        self.room.aside(self, data)
        if self._owed > OWN and not self.muted:
            self.muted = True
            self.consumer.pauseProducing()

    def stop(self, after: Callable[[], object] | None = None) -> None:
        if self.gone:
            return
        if after is None:
            self.ring.leave(self)
        elif self._after is None:
            self._after = after
            self.room.aside(self, None)

    def place(self, at: int, data: bytes | None) -> None:
        """`data` belongs at `at`, after everything placed so far; None: nothing comes after."""
        if data is None:
            self._end = at
        else:
            self._own.append((at, data))

    def serve(self) -> None:
        """Write what is owed until the consumer is full."""
        while not (self.full or self.gone):
            data = self._next()
            if not data:
                break
            self.consumer.write(data)
        if self.muted and not self._owed and self._after is None:
            self.muted = False
            self.consumer.resumeProducing()
        if self._end is not None and self.at == self._end and not self._own and not self.gone:
            self.ring.leave(self)
            if self._after is not None:
                self._after()

    def _next(self) -> bytes:
        """At least CHUNK bytes of what is owed, or all of it."""
        if not self._own and self._end is None:
            data = self.dialect.read(self.at, self.dialect.end)
            self.at += len(data)
            return data
        parts: list[bytes] = []
        size = 0
        while size < CHUNK:
            if self._own and self._own[0][0] == self.at:
                part = self._own.popleft()[1]
                if len(part) > CHUNK:
                    self._own.appendleft((self.at, part[CHUNK:]))
                    part = part[:CHUNK]
                self._owed -= len(part)
            else:
                last = self.dialect.end if self._end is None else self._end
                part = self.dialect.read(self.at, self._own[0][0] if self._own else last)
                self.at += len(part)
                if not part:
                    break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def pauseProducing(self) -> None:
        self.full = True
        self.ring.paused(self)

    def resumeProducing(self) -> None:
        self.full = False
        self.looks = 0
        self.serve()
        if not self.full:
            self.ring.resumed(self)

    def stopProducing(self) -> None:
        """The transport is gone; its connection will stop us."""


@define(eq=False, repr=False)
class Dialect:
    """The members of a room that are spoken to alike, and the bytes some of them still lack.

    Places count from the first byte ever said in the dialect.
    """

    render: Render
    members: dict[Member, None] = field(factory=dict, init=False)
    slow: dict[Member, None] = field(factory=dict, init=False)  # those whose transport is full
    start: int = field(default=0, init=False)  # the place of the log's first byte
    fresh: int = field(default=0, init=False)  # where the last flush began
    _log: bytearray = field(factory=bytearray, init=False)
    _chunks: dict[int, bytes] = field(factory=dict, init=False)  # of the last flush, by place

    @property
    def end(self) -> int:
        return self.start + len(self._log)

    def add(self, lines: Sequence[Line], cuts: Sequence[int]) -> dict[int, int]:
        """Append `lines`. Tells at which place each index into them that is in `cuts` came."""
        places, parts = {0: self.end}, []
        for first, last in pairwise(cuts):
            parts.append(self.render(lines[first:last]))
            places[last] = places[first] + len(parts[-1])
        data = b"".join(parts)
        self.fresh = self.end
        self._log += data
        self._chunks = {self.fresh + i: data[i : i + CHUNK] for i in range(0, len(data), CHUNK)}
        return places

    def read(self, at: int, last: int) -> bytes:
        """Some bytes from `at` on, none from `last` on; nothing only if at == last."""
        chunk = self._chunks.get(at)
        if chunk is not None and at + len(chunk) <= last:
            return chunk
        return bytes(self._log[at - self.start : min(last, at + CHUNK) - self.start])

    def fallen(self, limit: int) -> list[Member]:
        """Those who lack more than `limit` bytes, and not only since the last flush."""
        floor = min(self.fresh, self.end - limit)
        return [member for member in self.slow if member.at < floor]

    def trim(self) -> None:
        """Forget what nobody lacks."""
        keep = min((member.at for member in self.slow), default=self.end)
        del self._log[: keep - self.start]
        self.start = keep
        self._chunks.clear()


@define(eq=False, repr=False)
class Room:
    """Who follows, and what was said since the last flush."""

    name: str
    dialects: dict[Render, Dialect] = field(factory=dict, init=False)
    lines: list[Line] = field(factory=list, init=False)
    size: int = field(default=0, init=False)  # bytes in `lines`
    _asides: list[tuple[int, Member, bytes | None]] = field(factory=list, init=False)

    def say(self, lines: Sequence[Line]) -> None:
        self.lines += lines
        self.size += sum([len(line.text) for line in lines])

    def aside(self, member: Member, data: bytes | None) -> None:
        """`data` for `member` alone, after what was said so far; None: its end is there."""
        if self.lines:
            self._asides.append((len(self.lines), member, data))
        else:
            member.place(member.dialect.end, data)
            member.serve()

    def gather(self) -> list[Member]:
        """Put what was said into the logs. The members, each to be served."""
        lines, self.lines, self.size = self.lines, [], 0
        asides, self._asides = self._asides, []
        cuts = sorted({0, len(lines), *(index for index, _, _ in asides)})
        places = {d: d.add(lines, cuts) for d in self.dialects.values()}
        for index, member, data in asides:
            if not member.gone:
                member.place(places[member.dialect][index], data)
        return [member for dialect in places for member in dialect.members]


def _nobody() -> None:
    """Nobody waits."""


@define(eq=False, repr=False)
class Ring:
    """`protocols.stores.Broadcast` in one process.

    accept: called before a flush decides who gets it, so that whoever waits in a listening
    backlog is let in first.
    """

    clock: IReactorTime
    accept: Callable[[], None] = _nobody
    limit: int = LIMIT
    _rooms: dict[str, Room] = field(factory=dict, init=False)
    _talking: dict[Room, None] = field(factory=dict, init=False)  # rooms with something to flush
    _flushing: bool = field(default=False, init=False)  # slices are still to be served
    _rested: float = field(default=0.0, init=False)  # when the next flush may begin
    _due: IDelayedCall | None = field(default=None, init=False)
    _slow: set[Member] = field(factory=set, init=False)
    _looking: IDelayedCall | None = field(default=None, init=False)

    def publish(self, room: str, lines: Sequence[Line]) -> None:
        here = self._room(room)
        here.say(lines)
        self._talking[here] = None
        self._plan(hurry=here.size > HASTE)

    def follow(
        self, room: str, render: Render, consumer: Any, lost: Callable[[str], object]
    ) -> Member:
        here = self._room(room)
        dialect = here.dialects.get(render)
        if dialect is None:
            dialect = here.dialects[render] = Dialect(render)
        member = Member(self, here, dialect, consumer, lost, dialect.end)
        dialect.members[member] = None
        consumer.registerProducer(member, True)
        return member

    def leave(self, member: Member) -> None:
        """It follows no more; what is still owed to it is dropped."""
        member.gone = True
        room, dialect = member.room, member.dialect
        del dialect.members[member]
        self.resumed(member)
        if not dialect.members:
            del room.dialects[dialect.render]
            self._forget(room)
        member.consumer.unregisterProducer()

    def cut(self, member: Member, outcome: str = "slow") -> None:
        """It cannot be kept."""
        if not member.gone:
            self.leave(member)
            member.lost(outcome)

    def paused(self, member: Member) -> None:
        self._slow.add(member)
        member.dialect.slow[member] = None
        if self._looking is None:
            self._looking = self.clock.callLater(PATIENCE / _LOOKS, self._look)

    def resumed(self, member: Member) -> None:
        """It has got everything, or is gone."""
        self._slow.discard(member)
        if member.dialect.slow.pop(member, True) is None and not self._flushing:
            member.dialect.trim()
        if not self._slow and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    def _room(self, name: str) -> Room:
        room = self._rooms.get(name)
        if room is None:
            room = self._rooms[name] = Room(name)
        return room

    def _forget(self, room: Room) -> None:
        """Nobody follows and nothing is to be said: the room is no more."""
        if not room.dialects and room not in self._talking and self._rooms.get(room.name) is room:
            del self._rooms[room.name]

    def _plan(self, hurry: bool = False) -> None:
        if self._flushing:
            return
        if self._due is None:
            rest = 0.0 if hurry else max(0.0, self._rested - self.clock.seconds())
            self._due = self.clock.callLater(rest, self._flush)
        elif hurry:
            self._due.reset(0.0)

    def _flush(self) -> None:
        self._due = None
        began = self.clock.seconds()
        self.accept()
        rooms, self._talking = list(self._talking), {}
        members = [member for room in rooms for member in room.gather()]
        self._flushing = True
        self._serve(rooms, members, 0, self.clock.seconds() - began)

    def _serve(self, rooms: list[Room], members: list[Member], first: int, spent: float) -> None:
        """A slice of the flush. spent: seconds that it took so far."""
        began = self.clock.seconds()
        for member in members[first : first + SLICE]:
            try:
                member.serve()
            except Exception:
                log.failure("a member of {room} cannot be written to", room=member.room.name)
                self.cut(member, "failed")
        now = self.clock.seconds()
        spent += now - began
        if first + SLICE < len(members):
            self.clock.callLater(0, self._serve, rooms, members, first + SLICE, spent)
            return
        self._flushing = False
        for room in rooms:
            for dialect in list(room.dialects.values()):
                for member in dialect.fallen(self.limit):
                    self.cut(member)
                dialect.trim()
            self._forget(room)
        self._rested = now + min(GAP, spent)
        if self._talking:
            self._plan()

    def _look(self) -> None:
        """Cut those who took nothing for PATIENCE seconds though something waited for them."""
        self._looking = self.clock.callLater(PATIENCE / _LOOKS, self._look)
        for member in list(self._slow):
            member.looks = member.looks + 1 if member.behind else 0
            if member.looks > _LOOKS:
                self.cut(member)
