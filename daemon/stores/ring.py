"""The rooms: what a turn says is joined once a dialect and written once a member, in one order.

One `send` costs microseconds in any language, so the lines of a turn of the reactor are put
together before anybody gets them (a flush). A dialect keeps one log of recent bytes for all its
members, and a member is an offset into it: whoever reads as fast as we write is always at its
end, and the log is empty again after the flush. A member whose transport is full stays where it
is, costs nothing but its place, and goes on from there when it resumes.

Slowness
    SOFT       bytes a member may be behind; who stays further behind for PATIENCE is cut
    PATIENCE   seconds to come back below SOFT
    HARD       bytes behind at which one is cut at once who took nothing for STALL
    STALL      seconds; who takes something now and then is slow, who takes nothing is stuck
    FLOOD      bytes behind from which those who say much (more than FAIR bytes meanwhile) are not
               read, until nobody is beyond SOFT: what they say waits in their own sockets. For a
               member that is slow, not for one that is stuck
    OWN        bytes of private answers that may wait for one member before it is read no more
               (they answer what it said; until it takes them it shall say nothing)
Who has left a room lacks nothing that is said there since, but the log is kept from its place on:
SOFT is for what it lacks, HARD for what is kept. What others tell one member alone is no answer:
who takes none of it is cut when HARD bytes of it wait.

Pace
    SLICE      members served a turn of the reactor: the other services get in between. A long
               write counts as one more for every WEIGHT bytes
    GAP        seconds: after a flush we rest as long as it took, at most so long, unless more
               waits for the next one than its brim: BRIM bytes, in large rooms fewer (WORK bytes
               to all members together), down to LEAST; and never more than LINES lines. Beyond
               it, who says much is not read until there was a flush
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from daemon.measures import Measure
from daemon.stores.history import Past
from daemon.stores.room import CHUNK, Dialect, Following, Room
from protocols.rooms import MAIN
from protocols.stores import Line, Render, Said, Talker

log = Logger()

SOFT = 96 << 10
PATIENCE = 2.0
HARD = 1536 << 10
STALL = 0.5
FLOOD = 256 << 10
FAIR = 8 << 10
OWN = 64 << 10
SLICE = 256
WEIGHT = 8 << 10
GAP = 0.010
BRIM = 256 << 10
WORK = 64 << 20
LEAST = 16 << 10
ROOMS = 1000

_LOOK = 0.25  # seconds between two looks at those who are late
_WOVEN = 256  # steps of a script, from which on the order between rooms is no longer kept
_STEP = 100  # bytes that one thing told costs besides what it says, about

Span = tuple[Following, int, int]  # read up to this place, then go on from that one
Mark = tuple[Following, int, int]  # the same in indexes into the lines of a turn
Act = Callable[[], object]


@implementer(IPushProducer)
@define(eq=False, repr=False)
class Seat:
    """`protocols.stores.Seat`: its places in the logs, and what is only for it.

    What it gets next is the script; after it, whatever its logs hold. A private answer, or an end,
    that belongs between lines still to be flushed waits as an aside of the ring.
    """

    ring: Ring
    consumer: Any
    talker: Talker
    lost: Callable[[str], object]
    follows: dict[str, Following] = field(factory=dict, init=False)
    busy: bool = field(default=False, init=False)  # a flush cannot just be written to it
    full: bool = field(default=False, init=False)  # the consumer takes no more for now
    gone: bool = field(default=False, init=False)
    muted: bool = field(default=False, init=False)
    asides: int = field(default=0, init=False)  # of the ring's, that are for this seat
    held: set[Room] = field(factory=set, init=False)  # in which it says too much
    places: dict[Following, None] = field(factory=dict, init=False)  # with those it is leaving
    _script: deque[bytes | Span | Act] = field(factory=deque, init=False)
    _owed: int = field(default=0, init=False)  # bytes in the script and in asides
    _told: int = field(default=0, init=False)  # what waits of what others told it costs, at most
    _stopping: bool = field(default=False, init=False)

    def follow(self, room: str, render: Render, echo: bool = True, new: bool = False) -> bool:
        if self.gone or self._stopping:
            return False
        if room in self.follows:
            return True
        here = self.ring.open(room)
        if here is None:
            return False
        self._weave()
        dialect = here.dialect(render)
        push = getattr(self.consumer, "push", self.consumer.write)
        place = Following(self, here, dialect, echo, dialect.end, push)
        dialect.members[place] = self.places[place] = None
        if self.full:
            dialect.slow[place] = None
        self.follows[room] = place
        if here.lines and not new:
            self.ring.skip(place, 0)
        return True

    def leave(self, room: str) -> None:
        place = self.follows.get(room)
        if place is not None:
            self._aside(place)
            self.follows.pop(room, None)

    def private(self, data: bytes) -> None:
        if self.gone or self._stopping or not data:
            return
        self._owed += len(data)
        self._aside(data)
        if self._owed > OWN:
            self.mute()

    def tell(self, data: bytes) -> bool:
        if self.gone or self._stopping:
            return False
        self._told += len(data) + _STEP
        self.private(data)
        if self._told > HARD:
            self.ring.cut(self)
        return self._owed > OWN

    def stop(self, after: Act | None = None) -> None:
        if self.gone:
            return
        if after is None:
            self.end()
        elif not self._stopping:
            self._stopping = True
            for room in [*self.follows]:
                self.leave(room)
            self._aside(partial(self.end, after))

    def serve(self) -> None:
        """Write what is owed until the consumer is full."""
        script = self._script
        while not self.gone:
            if script and callable(step := script[0]):
                script.popleft()
                step()
            elif self.full:
                break
            elif data := self._next():
                self.consumer.write(data)
            elif not script:  # what came before a step may have been nothing
                break
        self.busy = self.full or self.gone or bool(script)
        self._told = min(self._told, self._owed + _STEP * len(script))
        if self.muted:
            self.unmute()

    def mute(self) -> None:
        if not (self.muted or self.gone):
            self.muted = True
            self.talker.pauseProducing()

    def unmute(self) -> None:
        """Let it be read again, if nothing is against it any more."""
        if self.muted and not (self._owed or self.held or self.gone):
            self.muted = False
            if not self._stopping:
                self.talker.resumeProducing()

    def place(self, spans: Sequence[Span], step: bytes | Act | Following | None) -> None:
        """The `spans`, and then `step`, come after everything placed so far."""
        self._script += spans
        if isinstance(step, Following):
            step = self._part(step, spans)
        if step is not None:
            self._script.append(step)
        self.busy = True

    def settle(self) -> None:
        """Before a flush: what a slow one lacks of several rooms comes before what is new."""
        if len(self.places) > 1 and len(self._script) < _WOVEN:
            self._weave()

    def end(self, after: Act | None = None) -> None:
        """It has left; what is still owed is dropped."""
        self.gone = self.busy = True
        for place in [*self.places]:
            self._drop(place)
        self.follows.clear()
        self._script.clear()
        self.consumer.unregisterProducer()
        if after is not None:
            after()

    def _part(self, place: Following, spans: Sequence[Span]) -> Act | None:
        """Let `place` end where `spans` take it, else where its log ends; what is to be done then.

        Where nothing is owed, that is now.
        """
        ends = [last for one, last, _ in spans if one is place]
        place.last = place.woven = ends[0] if ends else place.end
        if not ends and not place.lag:
            self._drop(place)
            return None
        self._script.append((place, place.last, place.last))
        return partial(self._drop, place)

    def _weave(self) -> None:
        for place in self.places:
            if place.lag and place.woven < place.end:
                place.woven = place.end
                self._script.append((place, place.end, place.end))
                self.busy = True

    def _aside(self, step: bytes | Act | Following) -> None:
        if not self.ring.aside(self, step):
            self._weave()
            self.place((), step)
            self.serve()

    def _next(self) -> bytes:
        """At least CHUNK bytes of what may be written by now, or all of it."""
        parts: list[bytes] = []
        size = 0
        script = self._script
        while script and size < CHUNK:
            step = script[0]
            if isinstance(step, bytes):
                script.popleft()
                part = step[:CHUNK]
                if len(step) > CHUNK:
                    script.appendleft(step[CHUNK:])
                self._owed -= len(part)
            elif isinstance(step, tuple):
                place, last, then = step
                part = place.dialect.read(place.at, last)
                place.at += len(part)
                if place.at >= last:
                    script.popleft()
                    place.at = then
            else:
                break
            parts.append(part)
            size += len(part)
        if not script:
            for place in self.places:
                while size < CHUNK and (part := place.dialect.read(place.at, place.end)):
                    place.at += len(part)
                    parts.append(part)
                    size += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _drop(self, place: Following) -> None:
        del self.places[place]
        self.held.discard(place.room)
        self.ring.left(place)

    def pauseProducing(self) -> None:
        self.full = self.busy = True
        for place in self.places:
            place.dialect.slow[place] = None

    def resumeProducing(self) -> None:
        self.full = False
        self.serve()
        self.ring.moved(self)

    def stopProducing(self) -> None:
        """The transport is gone; its connection will stop us."""


def _nobody() -> None:
    """Nobody waits."""


@define(eq=False, repr=False)
class Ring:
    """`protocols.stores.Broadcast` in one process.

    accept: called before a flush decides who gets it, so that whoever waits in a listening
    backlog is let in first. now: seconds since the epoch.
    """

    clock: IReactorTime
    past: Past = field(factory=Past)
    accept: Act = _nobody
    now: Callable[[], float] = time.time
    most: int = ROOMS
    _rooms: dict[str, Room] = field(factory=dict, init=False)
    _talking: dict[Room, None] = field(factory=dict, init=False)  # rooms with something to flush
    _asides: list[tuple[Seat, list[Mark], Any]] = field(factory=list, init=False)
    _at: float = field(default=0.0, init=False)  # when this turn's lines are said; 0: none are
    _flushing: Iterator[int] | None = field(default=None, init=False)  # slices still to be served
    _rested: float = field(default=0.0, init=False)  # when the next flush may begin
    _due: IDelayedCall | None = field(default=None, init=False)
    _late: dict[Room, None] = field(factory=dict, init=False)  # where somebody is too far behind
    _looking: IDelayedCall | None = field(default=None, init=False)

    def bounds(self, rooms: int, history: int) -> None:
        self.most = rooms
        self.past.keep(history)

    def seat(self, consumer: Any, talker: Talker, lost: Callable[[str], object]) -> Seat:
        seat = Seat(self, consumer, talker, lost)
        consumer.registerProducer(seat, True)
        return seat

    def publish(self, room: str, lines: Sequence[Line], by: Seat | None = None) -> None:
        here = self._rooms.get(room) or self.open(room)
        if here is None:
            return
        if not self._at:
            self._at = self.now()
        size = here.say(lines)
        self.past.add(room, lines, self._at)
        if by is not None:
            place = by.follows.get(room)
            if place is not None and not place.echo:
                self.skip(place, len(here.lines) - len(lines))
            if here.held or here.brimful:
                here.spoken[by] = spoken = here.spoken.get(by, 0) + size
                if spoken > FAIR:
                    by.held.add(here)
                    by.mute()
        self._talking[here] = None
        self._plan(hurry=here.brimful)

    def rooms(self) -> Deferred[Sequence[tuple[str, int]]]:
        found = dict.fromkeys(self.past.rooms(), 0)
        found |= {name: len(room) for name, room in self._rooms.items()}
        return succeed(sorted(found.items()))

    def members(self, room: str) -> Deferred[int]:
        here = self._rooms.get(room)
        return succeed(0 if here is None else len(here))

    def history(self, room: str, most: int, before: int | None = None) -> Deferred[Sequence[Said]]:
        return self.past.read(room, most, before)

    def measures(self) -> Iterator[Measure]:
        dialects = [one for room in self._rooms.values() for one in room.dialects.values()]
        members = sum(len(dialect.members) for dialect in dialects)
        waiting = sum(dialect.end - dialect.start for dialect in dialects)
        slow = sum(len(dialect.slow) for dialect in dialects)
        yield Measure("chat_rooms", "Rooms that somebody is in.", len(self._rooms))
        yield Measure("chat_members", "Members of all rooms.", members)
        yield Measure("chat_slow_members", "Members who read slower than is said.", slow)
        yield Measure("chat_waiting_bytes", "Bytes kept for those who are slow.", waiting)

    def open(self, name: str) -> Room | None:
        """The room, made if need be; None: there are too many. MAIN there always is."""
        room = self._rooms.get(name)
        if room is None:
            known = {*self.past.rooms()}
            full = len(known | self._rooms.keys()) >= self.most
            if full and name != MAIN and name not in known:
                empty = self.past.oldest({*self._rooms, MAIN})
                if empty is None:
                    return None
                self.past.forget(empty)
            room = self._rooms[name] = Room(name)
        return room

    def aside(self, seat: Seat, step: bytes | Act | Following) -> bool:
        """`step` comes after what was said so far; False: all of that was flushed already."""
        marks = [(p, index := len(p.room.lines), index) for p in seat.follows.values()]
        if not (seat.asides or any(index for _, index, _ in marks)):
            return False
        self._asides.append((seat, marks, step))
        seat.asides += 1
        return True

    def skip(self, place: Following, first: int) -> None:
        """The lines of this turn from `first` on, up to now, are not for it."""
        last = len(place.room.lines)
        if self._asides:
            _, marks, step = self._asides[-1]
            if step is None and marks[0][0] is place and marks[0][2] == first:
                marks[0] = (place, marks[0][1], last)
                return
        self._asides.append((place.seat, [(place, first, last)], None))
        place.seat.asides += 1

    def cut(self, seat: Seat, outcome: str = "slow") -> None:
        """It cannot be kept."""
        if not seat.gone:
            seat.end()
            seat.lost(outcome)

    def left(self, place: Following) -> None:
        """It is in its dialect no more."""
        room, dialect = place.room, place.dialect
        del dialect.members[place]
        if dialect.slow.pop(place, True) is None:
            self._caught_up(dialect)
        if not dialect.members:
            del room.dialects[dialect.render]
        self._look_soon(room)
        self._forget(room)

    def moved(self, seat: Seat) -> None:
        """Its consumer took something."""
        now = self.clock.seconds()
        for place in seat.places:
            if not seat.full and place.dialect.slow.pop(place, True) is None:
                self._caught_up(place.dialect)
            if place.late is not None:
                place.moved = now
                if place.keeps <= SOFT:
                    place.late = None
                if place.lag <= SOFT:
                    self._look_soon(place.room)

    def _caught_up(self, dialect: Dialect) -> None:
        if self._flushing is None:
            dialect.trim()

    def _forget(self, room: Room) -> None:
        """Nobody follows and nothing is to be said: the room is no more."""
        if not room.dialects and room not in self._talking and self._rooms.get(room.name) is room:
            del self._rooms[room.name]

    # --- flushes

    def _plan(self, hurry: bool = False) -> None:
        if self._flushing is not None:
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
        rooms, self._talking = [*self._talking], {}
        seats = self._gather(rooms)
        self._flushing = self._deliver(rooms, seats)
        self._serve(rooms, self.clock.seconds() - began)

    def _gather(self, rooms: list[Room]) -> list[Seat]:
        """Put what was said into the logs. The seats that have asides to be served."""
        asides, self._asides = self._asides, []
        at, self._at = self._at, 0.0
        cuts: dict[Room, set[int]] = {room: set() for room in rooms}
        for _, marks, _ in asides:
            for place, first, last in marks:
                if place.room in cuts:
                    cuts[place.room] |= {first, last}
        for room in rooms:
            for dialect in room.dialects.values():
                for place in dialect.slow:
                    place.seat.settle()
        places: dict[Dialect, dict[int, int]] = {}
        for room in rooms:
            places |= room.gather(cuts[room], at)
            room.brim = min(BRIM, max(LEAST, WORK // (len(room) or 1)))
        for seat, marks, step in asides:
            seat.asides -= 1
            if not seat.gone:
                spans = []
                for place, first, last in marks:
                    of = places.get(place.dialect)
                    if of is not None:
                        spans.append((place, of[first], of[last]))
                seat.place(spans, step)
        return [*dict.fromkeys([seat for seat, _, _ in asides])]

    def _deliver(self, rooms: list[Room], seats: list[Seat]) -> Iterator[int]:
        """Write what was gathered; yields after each slice."""
        work = 0
        for room in rooms:
            for dialect in [*room.dialects.values()]:
                first, last = dialect.fresh, dialect.end
                if first == last:
                    continue
                data = dialect.read(first, last)
                whole = first + len(data) == last
                weight = 1 + (last - first) // WEIGHT
                for place in [*dialect.members]:
                    if work >= SLICE:
                        work = 0
                        yield SLICE
                    work += weight
                    try:
                        if whole and place.at == first and not place.seat.busy:
                            place.at = last
                            place.push(data)
                        else:
                            place.seat.serve()
                    except Exception:
                        self._failed(place.seat)
        for seat in seats:
            try:
                seat.serve()
            except Exception:
                self._failed(seat)

    def _failed(self, seat: Seat) -> None:
        log.failure("a member cannot be written to and is cut", event="chat.unwritable")
        self.cut(seat, "failed")

    def _serve(self, rooms: list[Room], spent: float) -> None:
        """A slice of the flush. spent: seconds that it took so far."""
        assert self._flushing is not None
        began = self.clock.seconds()
        more = next(self._flushing, 0)
        now = self.clock.seconds()
        spent += now - began
        if more:
            self.clock.callLater(0, self._serve, rooms, spent)
            return
        self._flushing = None
        for room in rooms:
            self._judge(room)
            for dialect in room.dialects.values():
                dialect.trim()
            self._forget(room)
        self._rested = now + min(GAP, spent)
        if self._talking:
            self._plan()

    # --- the slow

    def _judge(self, room: Room) -> None:
        """Cut who is too slow; hold the talkers back while somebody is slow, and no longer."""
        now = self.clock.seconds()
        late = held = False
        for place in [place for dialect in room.dialects.values() for place in dialect.slow]:
            lag, keeps = place.lag, place.keeps
            if keeps <= SOFT:
                continue
            if place.late is None:
                place.late = place.moved = now
            stuck = now - place.moved >= STALL
            fallen = stuck and keeps > HARD and place.at < place.dialect.fresh
            if fallen or (lag > SOFT and now - place.late > PATIENCE):
                self.cut(place.seat)
                continue
            late = True
            held = held or (lag > SOFT and not stuck and (room.held or lag > FLOOD))
        room.held = held
        if not held:
            spoken, room.spoken = room.spoken, {}
            for seat in spoken:
                seat.held.discard(room)
                seat.unmute()
        if late:
            self._late[room] = None
        else:
            self._late.pop(room, None)
        if self._late and self._looking is None:
            self._looking = self.clock.callLater(_LOOK, self._look)
        elif self._looking is not None and not self._late:
            self._looking.cancel()
            self._looking = None

    def _look_soon(self, room: Room) -> None:
        if self._looking is not None and room in self._late:
            self._looking.reset(0)

    def _look(self) -> None:
        self._looking = None
        for room in [*self._late]:
            self._judge(room)
