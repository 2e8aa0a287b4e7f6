"""What the wires of the chat share: what may be said, what may be a name, and how one speaks.

Text
    One line, not blank (Unicode), at most LONGEST characters, UTF-8, without control characters
    other than TAB and without bidi overrides (U+202D, U+202E).
Names, of people and of rooms
    1 to 32 printable characters, without blanks and without what either wire reads as punctuation
    (``! # $ % & * + , . / : ; < = > ? @ ~``), nothing invisible and no accent to begin with. Two
    names are one if they are equal after NFKC and casefold; a room is called by that form.
Everybody starts without a name. Where a wire must call such a one by some name it says GUEST,
which nobody may take.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from email.utils import formatdate, parsedate
from functools import lru_cache, partial
from typing import Any, ClassVar
from unicodedata import category, normalize

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols.connection import Connection
from protocols.framing import Overlong
from protocols.stores import Broadcast, Kind, Line, Render, Roster, Said, Seat, Sighting

log = Logger()

MAIN = "main"
GUEST = "guest"
LONGEST = 256  # characters of a line
LONGEST_NAME = 32  # characters
MOST_HISTORY = 100_000  # lines of a room
A_TURN = 2048  # lines of one peer: a flood of tiny ones leaves room for the others
A_PAGE = 500  # lines of the past that are looked up and rendered in a turn
MOST_RECALLED = 1 << 20  # bytes of them for one peer: it may not read them
PAUSE = 0.5  # seconds until one may say more to somebody who does not read

_TAKEN = frozenset({GUEST, "roundhouse", "history"})
_FORBIDDEN = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u202d\u202e]")
_PUNCTUATION = frozenset("!#$%&*+,./:;<=>?@~")
_INVISIBLE = re.compile(  # printable to Unicode, and yet nothing is seen of them
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U0001d159\U000e0100-\U000e01ef]"
)


def valid(text: bytes) -> bool:
    """Whether a line, without its ending, may go to everyone. Pure."""
    try:
        characters = text.decode()
    except UnicodeDecodeError:
        return False
    return (
        len(characters) <= LONGEST
        and bool(characters.strip())
        and _FORBIDDEN.search(characters) is None
    )


def folded(name: str) -> str:
    """What two spellings of a name have in common. Pure."""
    return normalize("NFKC", normalize("NFKC", name).casefold())


def as_name(text: str) -> str:
    """`text` as the name of somebody. Raises ValueError with what would be right."""
    _check(text)
    if folded(text) in _TAKEN:
        raise ValueError(f"nobody may be called {text}")
    return text


def as_room(text: str) -> str:
    """`text`, with or without a # before it, as the name of a room. Raises ValueError."""
    name = folded(text.removeprefix("#"))
    _check(name)
    return name


def _check(name: str) -> None:
    if not 0 < len(name) <= LONGEST_NAME:
        raise ValueError(f"a name has 1 to {LONGEST_NAME} characters")
    if not name.isprintable() or " " in name:
        raise ValueError("a name has no blanks and no control characters")
    spelled = name + normalize("NFKC", name)
    if wrong := sorted(_PUNCTUATION.intersection(spelled)):
        raise ValueError(f"a name has no {' '.join(wrong)}")
    if _INVISIBLE.search(spelled) or " " in spelled or category(name[0])[0] == "M":
        raise ValueError("every character of a name must be seen")


def wrapped(text: str, size: int) -> list[str]:
    """`text` as lines of at most `size` bytes, or of one longer word. Pure."""
    first, *words = text.split(" ")
    lines, length = [[first]], len(first.encode())
    for word in words:
        length += 1 + len(word.encode())
        if length > size:
            lines.append([])
            length = len(word.encode())
        lines[-1].append(word)
    return [" ".join(line) for line in lines]


@lru_cache(4096)  # a history is asked for again and again
def moment(at: int) -> tuple[str, str]:
    """Seconds since the epoch in UTC: 2026-11-21 and 06:35:12. Pure."""
    year, month, day, hour, minute, second, *_ = parsedate(formatdate(at)) or (0,) * 9
    return f"{year:04}-{month:02}-{day:02}", f"{hour:02}:{minute:02}:{second:02}"


@define(eq=False, repr=False)
class Speaker(Connection):
    """One peer of either wire: where it sits, what it is called, and its lines in their order.

    A peer's lines are heeded in the turn in which they come, up to A_TURN of them. The rest, and
    all that follow a line whose answer is not there yet, wait for the turns to come; meanwhile
    the peer is not read.
    """

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"left", "reset"})
    PACED: ClassVar[bool] = False

    broadcast: Broadcast
    roster: Roster
    name: str | None = field(default=None, init=False)
    rooms: list[str] = field(factory=list, init=False)
    seat: Seat = field(init=False)
    leaving: tuple[str, str] | None = field(default=None, init=False)  # the outcome, the detail
    _waiting: list[bytes | Overlong] = field(factory=list, init=False)
    _asked: bool = field(default=False, init=False)  # a store was, and has not answered yet
    _planned: bool = field(default=False, init=False)  # _go_on will be called

    def heed(self, lines: Sequence[bytes | Overlong]) -> int:
        """Act on the first of `lines`, A_TURN at most; how many that were.

        It stops at a line that asked a store (`ask`), and after one that was answered at length.
        """
        raise NotImplementedError

    def told(self, line: Line) -> bool:
        """Somebody says this to it alone. True: it is behind with reading."""
        raise NotImplementedError

    def render(self, room: str) -> Render:
        """The dialect in which `room` is heard."""
        raise NotImplementedError

    def opened(self) -> None:
        self.seat = self.broadcast.seat(self.transport, self, self.abort)

    def say(self, lines: list[bytes | Overlong]) -> None:
        """The peer said `lines`."""
        if self.leaving is not None:
            return
        if self._waiting or self._asked:
            self._waiting += lines
        else:
            done = self.heed(lines)
            if done == len(lines) and not self._asked:
                return
            self._waiting = lines[done:]
            self._plan()
        self.transport.pauseProducing()

    def ask(self, act: Coroutine[Any, Any, None]) -> None:
        """Heed the next line once `act` is done, and not in this turn."""
        self._asked = True
        done = Deferred.fromCoroutine(act).addErrback(self._failed)
        done.addCallback(self._answered)

    def enter(self, room: str, new: bool = False, echo: bool = True) -> bool:
        """Be in `room`, too. False: there are too many rooms."""
        if not self.seat.follow(room, self.render(room), echo, new):
            return False
        self.rooms.append(room)
        self.announce(Kind.JOIN, room)
        return True

    def depart(self, room: str, why: bytes = b"") -> None:
        """Be in `room` no more."""
        self.announce(Kind.PART, room, why)
        self.roster.leave(room, self)
        self.seat.leave(room)
        self.rooms.remove(room)

    async def rename(self, name: str) -> bool:
        """Be called `name`. False: somebody else is."""
        if not await self.roster.claim(name, self):
            return False
        if self.closing:  # it went meanwhile
            self.roster.release(self)
            return False
        if self.name is not None and self.name != name:
            for room in self.rooms:
                self.announce(Kind.NICK, room, name.encode())
        known, self.name = self.name, name
        if known is None:
            for room in self.rooms:
                self.announce(Kind.JOIN, room)
        return True

    async def present(self, room: str) -> tuple[Sequence[Sighting], int]:
        """Who is in `room`, and how many there have no name."""
        named = await self.roster.present(room)
        members = await self.broadcast.members(room)
        return named, max(0, members - len(named))

    async def recalled(
        self, room: str, most: int, render: Callable[[Sequence[Said]], bytes]
    ) -> list[bytes]:
        """The last `most` lines of `room` up to now, as many as fit MOST_RECALLED, rendered.

        A page a turn, from the latest on: the past may be long, and others have their turns.
        """
        pages: list[bytes] = []
        size, before = 0, None
        while most > 0 and size < MOST_RECALLED and not self.closing:
            if pages:
                await deferLater(self.live.clock, 0)
            asked = min(most, A_PAGE)
            past = await self.broadcast.history(room, asked, before)
            if past:
                pages.append(render(past))
                size, before = size + len(pages[-1]), past[0].seq
            most = most - asked if len(past) == asked else 0
        return pages[::-1]

    async def wait_for(self, ear: Sighting) -> None:
        """Say no more for a while, if `ear` does not read what it is told."""
        if ear.behind:
            await deferLater(self.live.clock, PAUSE)

    def announce(self, kind: Kind, room: str, text: bytes = b"") -> None:
        """Tell `room` what became of us, if we have a name."""
        if self.name is not None:
            if kind is Kind.JOIN:
                self.roster.enter(room, self)
            self.broadcast.publish(room, [Line(text, self.name, kind)], self.seat)

    def resumeProducing(self) -> None:
        if self._waiting or self._asked:
            self._plan()
        else:
            super().resumeProducing()

    def close(self, outcome: str, detail: str = "") -> None:
        """Close once what was said is heeded, and everything published so far has been sent."""
        if self.leaving is None:
            self.leaving = outcome, detail
            if not (self._waiting or self._asked):
                self._leave()

    def closed(self, reason: Failure) -> None:
        self.quit()
        self.seat.stop()

    def quit(self, why: bytes = b"") -> None:
        """Be in no room and have no name.

        It leaves its room by QUIT; where those who share several would hear of it several times,
        by PART each.
        """
        kind = Kind.QUIT if len(self.rooms) == 1 else Kind.PART
        for room in self.rooms:
            self.announce(kind, room, why)
        self.rooms.clear()
        self.roster.release(self)
        self.name = None

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self.live.clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        """What waits for a turn has it."""
        self._planned = False
        if self.closing or self._asked or (self._waiting and self.seat.muted):
            return
        if self._waiting:
            lines = self._waiting
            self._waiting = lines[self.heed(lines) :]
            if self._waiting or self._asked:
                self._plan()
                return
        if self.leaving is not None:
            self._leave()
        elif not self.seat.muted:
            self.resumeProducing()

    def _answered(self, _: object) -> None:
        self._asked = False
        self._plan()

    def _failed(self, failure: Failure) -> None:
        log.failure("a command of {name} failed", failure, event="chat.broken", name=self.name)
        self.abort("failed")

    def _leave(self) -> None:
        assert self.leaving is not None
        self.quit()
        self.seat.stop(after=partial(super().close, *self.leaving))
