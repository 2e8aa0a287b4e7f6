"""What was said in the rooms: the recent lines in memory, HISTORY of each room in `chat.db`.

    said    seq, room, at, author, kind, text      one row a line; seq rises over all rooms

at is in seconds since the epoch, author NULL for who has no name, kind `say` or `action`.

The rooms never wait for the disk: once in INTERVAL what is new is written by the thread of the
database, in one transaction. More than HISTORY lines of a room in one INTERVAL are never written,
for they would be deleted by the next. While the disk does not follow, lines wait in memory, up to
MOST_BYTES of all rooms together; beyond that the oldest are missing from the history, and that is
said once. A killed daemon loses what was said within the last INTERVAL.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.measures import Measure
from daemon.stores.database import Database
from daemon.stores.files import Unusable
from protocols.stores import Kind, Line, Said, StoreError

log = Logger()

INTERVAL = 1.0  # seconds between two writes
RECENT = 16 << 10  # bytes of a room that stay in memory once they are on disk
MOST_BYTES = 32 << 20

MIGRATIONS = (
    """
    CREATE TABLE said (
        seq INTEGER PRIMARY KEY, room TEXT NOT NULL, at REAL NOT NULL,
        author TEXT, kind TEXT NOT NULL, text TEXT NOT NULL
    );
    CREATE INDEX said_in ON said (room, seq);
    """,
)

_KEPT = frozenset({Kind.SAY, Kind.ACTION})
_STRIDE = 500  # rows a statement: every call of SQLite may have to wait for a busy reactor
_OVERHEAD = 200  # bytes an entry costs besides its text


@define(eq=False, repr=False)
class Entry:
    """Some lines of one author. seq: of the first of them."""

    seq: int
    at: float
    line: Line
    count: int

    @property
    def end(self) -> int:
        """The first seq after it."""
        return self.seq + self.count

    @property
    def size(self) -> int:
        return len(self.line.text) + _OVERHEAD

    def said(self) -> list[Said]:
        return [
            Said(self.seq + i, self.at, self.line.author, self.line.kind, text)
            for i, text in enumerate(self.line.text.split(b"\n"))
        ]


@define(eq=False, repr=False)
class Shelf:
    """The recent lines of a room. last: when the latest was said.

    kept: lines before this seq are on disk. older: there may be lines on disk that are not here.
    """

    last: float = 0.0
    kept: int = 0
    older: bool = False
    count: int = field(default=0, init=False)  # lines here
    size: int = field(default=0, init=False)
    _entries: deque[Entry] = field(factory=deque, init=False)

    def add(self, entry: Entry) -> None:
        self._entries.append(entry)
        self.count += entry.count
        self.size += entry.size
        self.last = entry.at

    def drop(self) -> Entry:
        """The oldest goes."""
        entry = self._entries.popleft()
        self.count -= entry.count
        self.size -= entry.size
        self.older = self.older or entry.end <= self.kept
        return entry

    def trim(self, lines: int) -> None:
        """Keep `lines` lines, or a few more."""
        while self._entries and self.count - self._entries[0].count >= lines:
            self.drop()

    def trim_kept(self) -> None:
        """Of what is on disk keep RECENT bytes, or less."""
        while self.size > RECENT and self._entries[0].end <= self.kept:
            self.drop()

    def new(self) -> list[Entry]:
        """What is not on disk, oldest first."""
        found: list[Entry] = []
        for entry in reversed(self._entries):
            if entry.seq < self.kept:
                break
            found.append(entry)
        return found[::-1]

    def read(self, most: int, before: int) -> list[Said]:
        found: list[list[Said]] = []
        count = 0
        for entry in reversed(self._entries):
            if entry.seq < before:
                found.append([said for said in entry.said() if said.seq < before])
                count += len(found[-1])
                if count >= most:
                    break
        return [*chain.from_iterable(reversed(found))][-most:]


@define(eq=False, repr=False)
class Past:
    """What rooms remember, in memory. lines: of each room, 0: none."""

    lines: int = field(default=0, init=False)
    _shelves: dict[str, Shelf] = field(factory=dict, init=False)
    _size: int = field(default=0, init=False)  # bytes of all shelves
    _next: int = field(default=1, init=False)  # the next seq

    def keep(self, lines: int) -> None:
        self.lines = lines

    def add(self, room: str, lines: Sequence[Line], at: float) -> None:
        kept = [line for line in lines if line.kind in _KEPT]
        if not (kept and self.lines):
            return
        shelf = self._shelves.get(room)
        if shelf is None:
            shelf = self._shelves[room] = Shelf()
        size = shelf.size
        for line in kept:
            entry = Entry(self._next, at, line, line.text.count(b"\n") + 1)
            self._next = entry.end
            shelf.add(entry)
        shelf.trim(self.lines)
        self._size += shelf.size - size
        if self._size > MOST_BYTES:
            self._shed()
        self._added(room)

    def read(self, room: str, most: int, before: int | None = None) -> Deferred[Sequence[Said]]:
        shelf = self._shelves.get(room)
        most = min(most, self.lines)
        if shelf is None or most <= 0:
            return succeed([])
        before = self._next if before is None else before
        found = shelf.read(most, before)
        if len(found) == most or not shelf.older:
            return succeed(found)
        older = self._older(room, most - len(found), found[0].seq if found else before)
        return older.addCallback(lambda some: [*some, *found])

    def rooms(self) -> Collection[str]:
        """Those of which a line is left."""
        return self._shelves.keys() if self.lines else ()

    def oldest(self, besides: Collection[str]) -> str | None:
        """The room that was silent for the longest time."""
        names = [name for name in self.rooms() if name not in besides]
        return min(names, key=lambda name: self._shelves[name].last, default=None)

    def forget(self, room: str) -> None:
        self._size -= self._shelves.pop(room).size

    def _added(self, room: str) -> None:
        """Something is new in `room`."""

    def _older(self, room: str, most: int, before: int) -> Deferred[list[Said]]:
        """Lines that are not in memory any more."""
        return succeed([])

    def _shed(self) -> bool:
        """Make some room in memory, in rooms long silent first. Whether a line was lost by it."""
        lost = False
        enough = MOST_BYTES * 7 // 8  # not to look at all rooms for every line
        for shelf in sorted(self._shelves.values(), key=lambda shelf: shelf.last):
            while self._size > enough and shelf.count:
                entry = shelf.drop()
                self._size -= entry.size
                lost = lost or entry.end > shelf.kept
        return lost


@define(eq=False, repr=False)
class History(Past, Service):
    """What rooms remember, also across restarts."""

    service: ClassVar[str] = "chat"

    path: Path
    reactor: Any
    _database: Database = field(init=False)
    _new: dict[str, None] = field(factory=dict, init=False)  # rooms with lines not on disk
    _open: bool = field(default=False, init=False)
    _due: IDelayedCall | None = field(default=None, init=False)
    _writing: bool = field(default=False, init=False)
    _trouble: bool = field(default=False, init=False)  # that lasts and is in the log
    _gap: bool = field(default=False, init=False)  # so

    def __attrs_post_init__(self) -> None:
        self._database = Database(self.path, MIGRATIONS, self.reactor)

    def check(self) -> None:
        """Raises Unusable for a database that is not ours, or newer."""
        self._database.check()

    def startService(self) -> None:
        super().startService()
        if self.lines:
            self._load()

    def stopService(self) -> Deferred[None]:
        """Fires once everything that was said is on disk, if the disk takes it."""
        super().stopService()
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if not self._open:
            return succeed(None)
        self._open = False
        self._write()
        return self._database.stopService()

    def keep(self, lines: int) -> None:
        """From now on. Turned on while we run, and the file is not usable: said, and left off."""
        super().keep(lines)
        if lines and self.running and not self._open:
            try:
                self._load()
            except Unusable as error:
                log.error("no history: {error}", event="history.none", error=str(error))
                self.lines = 0

    def ready(self) -> Deferred[object]:
        """Where there is no history, nothing can be wrong with it."""
        return self._database.ready() if self._open else succeed(None)

    def measures(self) -> Iterator[Measure]:
        if self._open:
            yield Measure("chat_lines_total", "Lines said since the history began.", self._next - 1)
            yield Measure("chat_history_bytes", "Bytes of the history in memory.", self._size)
            yield from self._database.measures(self.service)

    def forget(self, room: str) -> None:
        super().forget(room)
        self._new.pop(room, None)
        if self._open:
            self._database.run(partial(_forget, room)).addErrback(self._failed)

    def _load(self) -> None:
        """Open the file and learn which rooms it holds. Raises Unusable."""
        self._database.startService()
        self._open = True
        try:
            reader = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True)
            try:
                found = reader.execute("SELECT room, max(seq), max(at) FROM said GROUP BY room")
                for room, seq, at in found:
                    self._shelves[room] = Shelf(at, seq + 1, True)
                    self._next = max(self._next, seq + 1)
            finally:
                reader.close()
        except sqlite3.Error as error:
            raise Unusable(f"{self.path} cannot be read: {error}") from None

    def _added(self, room: str) -> None:
        if self._open:
            self._new[room] = None
            self._plan()

    def _plan(self) -> None:
        if self._due is None and not self._writing and self._open:
            self._due = self.reactor.callLater(INTERVAL, self._write)

    def _write(self) -> None:
        self._due = None
        rooms, self._new = self._new, {}
        if rooms:
            new = {room: self._shelves[room].new() for room in rooms}
            self._writing = True
            written = self._database.run(partial(_keep, new, self.lines))
            written.addCallbacks(partial(self._wrote, new), partial(self._not_written, new))

    def _wrote(self, new: dict[str, list[Entry]], _: object) -> None:
        self._writing = False
        if self._trouble:
            log.info("{path} is written again", event="history.back", path=str(self.path))
        self._trouble = self._gap = False
        for room, entries in new.items():
            shelf = self._shelves.get(room)
            if shelf is not None and entries:
                size = shelf.size
                shelf.kept = max(shelf.kept, entries[-1].end)
                shelf.trim_kept()
                self._size += shelf.size - size
        if self._new:
            self._plan()

    def _not_written(self, new: dict[str, list[Entry]], why: Failure) -> None:
        self._writing = False
        self._failed(why)
        self._new = {room: None for room in new if room in self._shelves} | self._new
        self._plan()

    def _failed(self, why: Failure) -> None:
        if self._trouble:
            return
        self._trouble = True
        if why.check(StoreError) is None:
            log.failure("{path} was not written", why, event="history.broken", path=str(self.path))
        else:
            log.error(
                "{path} takes nothing ({why}): what is said now may be missing from the history",
                event="history.down",
                path=str(self.path),
                why=why.getErrorMessage(),
            )

    def _older(self, room: str, most: int, before: int) -> Deferred[list[Said]]:
        if not self._open:
            return succeed([])
        found = self._database.run(partial(_read, room, most, before))

        def nothing(why: Failure) -> list[Said]:
            self._failed(why)
            return []

        return found.addErrback(nothing)

    def _shed(self) -> bool:
        lost = super()._shed()
        if lost and not self._gap:
            self._gap = True
            log.warn(
                "{path} cannot follow: lines are missing from the history",
                event="history.gap",
                path=str(self.path),
            )
        return lost


# --- in the thread of the database


def _keep(new: dict[str, list[Entry]], lines: int, database: sqlite3.Connection) -> None:
    """Write the last `lines` lines of each room, and forget what is older than those."""
    rows: list[tuple[Any, ...]] = []
    for room, entries in new.items():
        rows += [*_rows(room, entries)][-lines:]
    for i in range(0, len(rows), _STRIDE):
        some = rows[i : i + _STRIDE]
        # a COMMIT that failed may have been kept all the same: then they are there
        values = ",".join(["(?,?,?,?,?,?)"] * len(some))
        database.execute(
            f"INSERT OR IGNORE INTO said VALUES {values}", [*chain.from_iterable(some)]
        )
    for room in new:
        database.execute(
            "DELETE FROM said WHERE room = ?1 AND seq <="
            " (SELECT seq FROM said WHERE room = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
            (room, lines),
        )


def _rows(room: str, entries: Sequence[Entry]) -> Iterator[tuple[Any, ...]]:
    for said in chain.from_iterable(map(Entry.said, entries)):
        text = said.text.decode(errors="replace")
        yield said.seq, room, said.at, said.author, said.kind.value, text


def _read(room: str, most: int, before: int, database: sqlite3.Connection) -> list[Said]:
    found = database.execute(
        "SELECT seq, at, author, kind, text FROM said WHERE room = ? AND seq < ?"
        " ORDER BY seq DESC LIMIT ?",
        (room, before, most),
    ).fetchall()
    return [
        Said(seq, at, author, Kind(kind), text.encode())
        for seq, at, author, kind, text in reversed(found)
    ]


def _forget(room: str, database: sqlite3.Connection) -> None:
    database.execute("DELETE FROM said WHERE room = ?", (room,))
