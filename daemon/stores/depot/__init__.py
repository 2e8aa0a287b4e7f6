"""Queues of files, durable: the bytes in a folder, their order in a database beside them.

On disk, in one folder
    <unique>.partial    being written: never acknowledged, so the next start removes it
    <unique>.parcel     whole and durable; without a row it was not acknowledged yet, or was
                        received already, and the next start removes it
    index.db            SQLite, for anybody to read; table parcels: ident (the place in the queue,
                        never given twice), box, file, size, sha256, at (ISO 8601, UTC),
                        deliveries (counted ones that broke off), parked (0 or 1)
Order in: data synced, renamed, folder synced; then the row; only then is there a Ticket. Order
out: the row, then the file. Claims live in memory, so a restart frees them.
"""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from heapq import heappop, heappush
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.stores import files
from daemon.stores.crew import Crew, QueuedIntake
from daemon.stores.database import Database
from daemon.stores.depot.parcel import Parcel
from daemon.stores.depot.upload import PARTIAL, WHOLE, Laid, Upload
from protocols.stores import Shelved, Source, StoreError, Ticket

log = Logger()
_T = TypeVar("_T")

OPENING = "opening"  # what every shelf expects until the index was read
MIGRATIONS = (
    """
    CREATE TABLE parcels (
        ident INTEGER PRIMARY KEY AUTOINCREMENT,
        box TEXT NOT NULL, file TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
        sha256 TEXT NOT NULL, at TEXT NOT NULL,
        deliveries INTEGER NOT NULL DEFAULT 0, parked INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX parcels_box ON parcels (box, ident);
    """,
)
_ENTER = "INSERT INTO parcels (box, file, size, sha256, at, parked) VALUES (?, ?, ?, ?, ?, ?)"
_UPDATE = "UPDATE parcels SET deliveries = ?, parked = ? WHERE ident = ?"
_REMOVE = "DELETE FROM parcels WHERE ident = ?"
_ALL = "SELECT ident, box, file, size, deliveries, parked FROM parcels"
_LIST = (
    "SELECT ident, size, sha256, at, deliveries, parked FROM parcels WHERE box = ? ORDER BY ident"
)


@define(eq=False, repr=False)
class Shelf:
    """The files of one box that nobody has claimed, and who waits for one.

    Whoever waits is in a dict for its order: with how many deliveries it allows a file, and the
    arrivals it waits for, those that were expected when it came; None: any, for ever.
    """

    _expected: set[object] = field(factory=set)
    _files: list[tuple[int, Parcel]] = field(factory=list, init=False)  # a heap
    _waiting: dict[Deferred[Parcel | None], tuple[int, set[object] | None]] = field(
        factory=dict, init=False
    )
    _serving: bool = field(default=False, init=False)

    def put(self, parcel: Parcel) -> None:
        heappush(self._files, (parcel.ident, parcel))

    def take(self, most: int, wait: bool) -> Deferred[Parcel | None]:
        if self._files:
            return succeed(self._pop(most))
        if not (wait or self._expected):
            return succeed(None)
        waiter = Deferred[Parcel | None](self._waiting.__delitem__)
        self._waiting[waiter] = (most, None if wait else self._expected.copy())
        return waiter

    def serve(self) -> None:
        """First come, first served. Who is served may give back at once: that is not nested."""
        if self._serving:
            return
        self._serving = True
        while self._files and self._waiting:
            waiter = next(iter(self._waiting))
            most, _ = self._waiting.pop(waiter)
            waiter.callback(self._pop(most))
        self._serving = False

    def expect(self, arrival: object) -> None:
        """Something may be put here soon: until it is `over`, nobody is told that nothing is."""
        self._expected.add(arrival)

    def over(self, arrival: object) -> None:
        """It was put here, or will never be."""
        self._expected.discard(arrival)
        self.serve()
        for waiter, (_, awaited) in list(self._waiting.items()):
            if awaited is not None and waiter in self._waiting:
                awaited.discard(arrival)
                if not awaited:
                    del self._waiting[waiter]
                    waiter.callback(None)

    def _pop(self, most: int) -> Parcel:
        _, parcel = heappop(self._files)
        parcel.most = most
        return parcel


@define(eq=False, repr=False)
class Incoming:
    """`protocols.stores.Deposit`: a file on its way into a box."""

    depot: Depot
    box: str
    intake: QueuedIntake[Laid]

    def write(self, data: bytes) -> None:
        self.intake.write(data)

    def commit(self, parked: bool = False) -> Deferred[Ticket]:
        return self.depot.enter(self.box, self.intake.commit(), parked)

    def abort(self) -> None:
        self.intake.abort()


@define(eq=False, repr=False)
class Depot(Service):
    """`protocols.stores.Depot` in `folder`. Stops once all that was begun is on disk."""

    RETRY: ClassVar[float] = 5.0  # seconds until an index that could not be read is tried again

    folder: Path
    crew: Crew
    reactor: Any
    index: Database = field(init=False)
    _shelves: dict[str, Shelf] = field(init=False)
    _opened: bool = field(default=False, init=False)  # the shelves hold what the index does
    _opening: Deferred[None] = field(init=False)
    _at_work: int = field(default=0, init=False)
    _idle: Deferred[None] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.index = Database(self.folder / "index.db", MIGRATIONS, self.reactor)
        self._shelves = defaultdict(lambda: Shelf(set() if self._opened else {OPENING}))

    def check(self) -> None:
        """Raise files.Unusable when nothing could be kept, or what is there is not ours."""
        files.check_folder(self.folder)
        self.index.check()

    def startService(self) -> None:
        self.index.startService()
        super().startService()
        left = frozenset(os.listdir(self.folder))
        self._opening = Deferred.fromCoroutine(self._open(left))
        self._opening.addErrback(self._not_opened)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._opening.cancel()  # what it leaves undone, the next start does
        if self._at_work:
            self._idle = Deferred()
            await self._idle
        await self.index.stopService()

    def deposit(self, box: str, source: Source) -> Incoming:
        upload = Upload(self.folder / uuid4().hex)
        return Incoming(self, box, QueuedIntake(upload, source, self.crew))

    def take(self, box: str, most: int, wait: bool = True) -> Deferred[Parcel | None]:
        return self._shelves[box].take(most, wait)

    def list(self, box: str) -> Deferred[Sequence[Shelved]]:
        def rows(connection: sqlite3.Connection) -> Sequence[Shelved]:
            return [
                Shelved(ident, size, sha256, at, deliveries, bool(parked))
                for ident, size, sha256, at, deliveries, parked in connection.execute(_LIST, (box,))
            ]

        return self.index.run(rows)

    # What incoming files and parcels ask for.

    def enter(self, box: str, laid: Deferred[Laid], parked: bool) -> Deferred[Ticket]:
        """A row for a file, once it is durable; from then on it is in its queue."""
        return self._begin(self._enter(box, laid, parked))

    def remove(self, parcel: Parcel) -> Deferred[None]:
        """It was received."""
        return self._begin(self._remove(parcel))

    def take_back(self, parcel: Parcel, counted: bool, park: bool) -> Deferred[bool]:
        """It was not. Whether it is parked now."""
        return self._begin(self._take_back(parcel, counted, park))

    def _begin(self, work: Coroutine[Any, Any, _T]) -> Deferred[_T]:
        """Do something that stopService waits for."""
        self._at_work += 1

        def ended(result: _T) -> _T:
            self._at_work -= 1
            if not self._at_work and self._idle is not None:
                idle, self._idle = self._idle, None
                idle.callback(None)
            return result

        return Deferred.fromCoroutine(work).addBoth(ended)

    async def _enter(self, box: str, laid: Deferred[Laid], parked: bool) -> Ticket:
        shelf = self._shelves[box]
        if not parked:
            shelf.expect(laid)
        try:
            return await self._shelve(box, await laid, parked)
        finally:
            shelf.over(laid)

    async def _shelve(self, box: str, file: Laid, parked: bool) -> Ticket:
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = (box, file.path.name, file.size, file.sha256, at, parked)
        try:
            ident = await self.index.run(lambda db: db.execute(_ENTER, row).lastrowid)
        except Exception:
            await self.crew.work(_unlink, [file.path])
            raise
        assert ident is not None
        parcel = Parcel(self, ident, box, file.path.name, file.size)
        if parked:
            self._say_parked(parcel, "its upload may be cut")
        elif self._opened:  # else opening will find its row
            self._shelves[box].put(parcel)
        return Ticket(ident, file.size, file.sha256)

    async def _remove(self, parcel: Parcel) -> None:
        await self._change(_REMOVE, parcel.ident)
        await self.crew.work(_unlink, [parcel.path])

    async def _take_back(self, parcel: Parcel, counted: bool, park: bool) -> bool:
        parcel.deliveries += counted
        parked = park or (counted and parcel.deliveries >= parcel.most)
        if parked:
            self._say_parked(parcel, f"{parcel.deliveries} deliveries of it broke off")
        else:
            self._shelves[parcel.box].put(parcel)
            self._shelves[parcel.box].serve()
        if counted or parked:
            await self._change(_UPDATE, parcel.deliveries, parked, parcel.ident)
        return parked

    def _change(self, statement: str, *values: object) -> Deferred[None]:
        def change(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        return self.index.run(change)

    def _say_parked(self, parcel: Parcel, why: str) -> None:
        log.warn(
            "relay: file {ident} ({size} bytes) is parked: {why}; it is kept as {path} and handed"
            " to nobody; to see all such: sqlite3 {index}"
            " 'SELECT * FROM parcels WHERE parked'",
            ident=parcel.ident,
            size=parcel.size,
            why=why,
            path=str(parcel.path),
            index=str(self.index.path),
        )

    # Opening: what the last run left.

    async def _open(self, left: frozenset[str]) -> None:
        """left: the names in the folder before anything was added to it."""
        while True:
            try:
                rows = await self.index.run(lambda db: db.execute(_ALL).fetchall())
                break
            except StoreError:  # the log has the reason
                await deferLater(self.reactor, self.RETRY)
        known, parked, lost = set[str](), 0, []
        for ident, box, file, size, deliveries, is_parked in rows:
            known.add(file)
            parcel = Parcel(self, ident, box, file, size, deliveries)
            if file not in left and not parcel.path.exists():
                lost.append(ident)
            elif is_parked:
                parked += 1
            else:
                self._shelves[box].put(parcel)
        self._opened = True
        log.info(
            "relay: {waiting} files wait, {parked} are parked",
            waiting=len(rows) - parked - len(lost),
            parked=parked,
        )
        for shelf in list(self._shelves.values()):
            shelf.over(OPENING)
        strays = [name for name in left - known if name.endswith((PARTIAL, WHOLE))]
        await self.crew.work(_unlink, [self.folder / name for name in strays])
        for ident in lost:
            log.error("relay: file {ident} is gone from {folder}", ident=ident, folder=self.folder)
            await self._change(_REMOVE, ident)

    def _not_opened(self, failure: Failure) -> None:
        failure.trap(CancelledError, StoreError)


def _unlink(paths: Sequence[Path]) -> None:
    """In a thread: what no row knows. What stays is tried again at the next start."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warn("{path} could not be removed: {error}", path=str(path), error=str(error))
