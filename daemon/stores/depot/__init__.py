"""Queues of files, durable: the bytes in a folder, their order in a database beside them.

On disk, in one folder
    <32 hex digits>.parcel  a file, whole or a draft if the index has a row for it; else its
                            upload was not acknowledged, or it was received already, and the
                            next start removes it
    index.db                SQLite, for anybody to read: see index.py
    <the same>.json         for ON_COMPLETE: see paper.py
Order in: data synced, folder synced; then the row; only then is it told. Order out: the row, then
the file. Claims and leases live in memory, so a restart frees them. Names are rows, never paths.
What expires does so by a monotonic clock; the wall clock says what is left of it at the start.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.measures import Durations, Measure
from daemon.stores import files
from daemon.stores.completed import MANIFEST, Completed
from daemon.stores.crew import Crew, Hands, QueuedIntake
from daemon.stores.database import Database
from daemon.stores.depot import index, paper
from daemon.stores.depot.arriving import Arriving, Draft, Incoming
from daemon.stores.depot.index import DraftRow, ParcelRow
from daemon.stores.depot.parcel import Item, Look, Parcel
from daemon.stores.depot.shelf import Shelf
from daemon.stores.depot.stock import Stock
from daemon.stores.depot.upload import AHEAD, Laid, Shared, Upload
from protocols.stores import (
    NO_BOX,
    NOT_THE_DIGEST,
    TOO_LARGE,
    UPLOADING,
    Allowance,
    Box,
    Label,
    Progress,
    Shelved,
    Source,
    StoreError,
)

log = Logger()
_T = TypeVar("_T")

OPENING = "opening"  # what every shelf expects until the index was read
SUFFIX = ".parcel"
STRAYS = (SUFFIX, ".paper", ".partial")  # the last were uploads of earlier versions
BATCH = 1000  # files of a long list that are looked at in one go
HASHERS = 2  # threads that hash what others receive
CLOSED = "the daemon stops"
NO_LABEL = Label()
UNLIMITED = Allowance()
LONGEST = 60.0  # seconds the timer for what expires sleeps at most: clocks may be set


@define(eq=False, repr=False)
class Depot(Service):
    """`protocols.stores.Depot` in `folder`. Stops once all that was begun is on disk.

    wall, monotonic: clocks, in seconds.
    """

    RETRY: ClassVar[float] = 5.0  # seconds until an index that failed is tried again
    MANY: ClassVar[int] = 1000  # that may expire: from so many on those that left are forgotten

    service: ClassVar[str] = "relay"

    folder: Path
    crew: Crew
    reactor: Any
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    index: Database = field(init=False)
    boot: str = field(factory=lambda: _boot(), init=False)
    stock: Stock = field(factory=Stock, init=False)
    syncs: Durations = field(factory=Durations, init=False)
    _kept: int = field(default=0, init=False)  # files that came in, and deliveries that went out
    _delivered: int = field(default=0, init=False)
    hashers: Hands = field(init=False)
    completed: Completed = field(init=False)
    _shelves: dict[str, Shelf] = field(factory=dict, init=False)
    _drafts: dict[str, Draft] = field(factory=dict, init=False)
    _unread: Counter[str] = field(factory=Counter, init=False)  # bytes by box, until it is opened
    _opened: bool = field(default=False, init=False)  # the shelves hold what the index does
    _ready: bool = field(default=False, init=False)  # and the drafts are as long as they are
    _opening: Deferred[None] = field(init=False)
    _awaited: list[Deferred[None]] = field(factory=list, init=False)
    _due: list[tuple[float, int, Item | Draft]] = field(factory=list, init=False)  # a heap
    _many: int = field(init=False)
    _next: IDelayedCall | None = field(default=None, init=False)
    _at_work: int = field(default=0, init=False)
    _idle: Deferred[None] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.index = Database(self.folder / "index.db", index.MIGRATIONS, self.reactor)
        self.completed = Completed("relay", self.folder, self.crew)
        self._many = self.MANY

    def check(self) -> None:
        """Raise files.Unusable when nothing could be kept, or what is there is not ours."""
        files.check_folder(self.folder)
        self.index.check()

    def startService(self) -> None:
        self.index.startService()
        self.hashers = Hands(self.crew, HASHERS, "depot-hash")
        super().startService()
        left = frozenset(os.listdir(self.folder))
        with suppress(sqlite3.Error):  # then nothing can be entered, either
            self._unread.update(index.held(self.index.path))
        for box, size in self._unread.items():
            self.stock.add(box, size)
        self._opening = Deferred.fromCoroutine(self._open(left))
        self._opening.addErrback(self._not_opened)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self.completed.running:
            await self.completed.stopService()
        self._opening.cancel()  # what it leaves undone, the next start does
        if self._next is not None and self._next.active():
            self._next.cancel()
        for shelf in self._shelves.values():
            for item in shelf.items.values():
                for claim in item.claims:
                    claim.hold()
        if self._at_work:
            self._idle = Deferred()
            await self._idle
        await self.index.stopService()
        self.hashers.shutdown()

    def deposit(
        self, box: str, source: Source, label: Label = NO_LABEL, allowance: Allowance = UNLIMITED
    ) -> Incoming:
        upload = self._upload(box, label, allowance)
        incoming = Incoming(
            self,
            upload.path.stem,
            box,
            label,
            upload,
            self.spoken(self.wall()),
            label.size or 0,
            intake=QueuedIntake(upload, source, self.crew, AHEAD),
        )
        upload.dropped = partial(self.reactor.callFromThread, self.left, incoming)
        self._shelf(box).arriving[incoming.key] = incoming
        return incoming

    def begin(self, box: str, label: Label, allowance: Allowance) -> Deferred[Draft]:
        return self._begin(self._begin_draft(box, label, allowance))

    def draft(self, key: str) -> Deferred[Draft | None]:
        return Deferred.fromCoroutine(self._draft(key))

    def take(
        self, box: str, most: int, wait: bool = True, receiver: str = ""
    ) -> Deferred[Parcel | None]:
        def forgotten(result: _T) -> _T:
            self._forget(box)
            return result

        return self._shelf(box).take(most, wait, receiver).addBoth(forgotten)

    def find(self, box: str, key: str) -> Deferred[Look | None]:
        return Deferred.fromCoroutine(self._find(box, key))

    def list(self, box: str) -> Deferred[Sequence[Shelved]]:
        return Deferred.fromCoroutine(self._list(box))

    def boxes(self) -> Deferred[Sequence[Box]]:
        return Deferred.fromCoroutine(self._list_boxes())

    def on_complete(self, command: Sequence[str]) -> None:
        self.completed.use(command)

    def ready(self) -> Deferred[object]:
        reason = self.crew.trouble.recent
        return fail(StoreError(reason)) if reason else self.index.ready()

    def measures(self) -> Iterator[Measure]:
        shelves = self._shelves.values()
        queued = sum(len(shelf.items) for shelf in shelves)
        arriving = sum(len(shelf.arriving) for shelf in shelves)
        yield Measure("relay_boxes", "Boxes that hold something.", len(self._shelves))
        yield Measure("relay_parcels", "Files in all boxes, parked ones too.", queued)
        yield Measure("relay_arriving_parcels", "Uploads that are not whole.", arriving)
        yield Measure("relay_stored_bytes", "Bytes of all of these.", self.stock.total)
        yield Measure("relay_parcels_total", "Files that were kept.", self._kept)
        yield Measure("relay_deliveries_total", "Files that were received.", self._delivered)
        yield Measure("relay_sync_seconds", "How long a sync of a file took.", self.syncs)
        yield from self.index.measures(self.service)

    # What files on their way in ask for.

    def enter(self, incoming: Incoming, laid: Deferred[Laid], parked: bool) -> Deferred[Shelved]:
        """A row for a file, once it is durable; from then on it is in its queue."""
        return self._begin(self._enter(incoming, laid, parked))

    def share(self, draft: Draft, shared: Deferred[Shared]) -> Deferred[Progress]:
        """What a connection brought of a draft is synced, or is all."""
        return self._begin(self._share(draft, shared))

    def note(self, draft: Draft, synced: int) -> None:
        """More of a draft is durable."""
        if not draft.gone and synced > draft.synced and self.running:
            draft.synced = synced
            self.touch(draft)
            work = index.synced(draft.key, synced, self.spoken(draft.touched), draft.boot)
            self.index.run(work).addErrback(_said)

    def touch(self, draft: Draft) -> None:
        """Somebody goes on with it."""
        draft.touched = self.wall()
        if draft.idle:
            draft.due = self.monotonic() + draft.idle

    def left(self, arriving: Arriving) -> None:
        """Its upload was given up."""
        if not arriving.gone:
            arriving.gone = True
            self._shelf(arriving.box).arriving.pop(arriving.key, None)
            self.stock.drop(arriving.box, arriving.held)
            self._forget(arriving.box)

    # What claims and looks ask for.

    def received(self, item: Item, receiver: str) -> Deferred[bool]:
        """This receiver has it; False: that was known."""
        received = self._begin(self._received(item, receiver))
        return received.addCallback(self._count_delivery)

    def _count_delivery(self, new: bool) -> bool:
        self._delivered += new
        return new

    def take_back(self, parcel: Parcel, counted: bool, park: bool) -> Deferred[bool]:
        """It was not received. Whether it is parked now."""
        return self._begin(self._take_back(parcel, counted, park))

    def lapsed(self, parcel: Parcel) -> None:
        """Its lease ended."""
        self.take_back(parcel, counted=True, park=False).addErrback(_said)

    def cancel(self, what: Item | Arriving) -> Deferred[bool]:
        """It is deleted, for whomever it was; False: it is gone already."""
        work = self._remove(what) if isinstance(what, Item) else self._discard(what)
        return self._begin(work)

    def requeue(self, item: Item) -> Deferred[bool]:
        return self._begin(self._requeue(item))

    @staticmethod
    def never() -> Deferred[bool]:
        return succeed(False)

    @staticmethod
    def spoken(seconds: float) -> str:
        """Seconds since 1970, in ISO 8601."""
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")

    # Inside.

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

    def _shelf(self, box: str) -> Shelf:
        shelf = self._shelves.get(box)
        if shelf is None:
            shelf = self._shelves[box] = Shelf(set() if self._opened else {OPENING})
        return shelf

    def _forget(self, box: str) -> None:
        """A box with nothing in it is none."""
        shelf = self._shelves.get(box)
        if shelf is not None and shelf.empty:
            del self._shelves[box]

    def _upload(self, box: str, label: Label, allowance: Allowance) -> Upload:
        """Raises StoreError when there is no room for it."""
        full = {name for name, shelf in self._shelves.items() if shelf.items or shelf.arriving}
        full |= self._unread.keys()
        if allowance.boxes and len(full) >= allowance.boxes and box not in full:
            raise StoreError(NO_BOX)
        size = label.size or 0
        if allowance.file and size > allowance.file:
            raise StoreError(TOO_LARGE)
        path = self.folder / f"{uuid4().hex}{SUFFIX}"
        try:
            self.stock.add(box, size, allowance)
            if allowance.free:
                try:
                    with files.opened(str(self.folder), os.O_RDONLY) as folder:
                        files.check_free(folder, allowance.free + size)
                except OSError:
                    self.stock.drop(box, size)
                    raise
        except OSError as error:
            raise StoreError(files.plain(error)) from None
        charge = None if size else partial(self.stock.add, box, limits=allowance)
        most, free = allowance.file or None, allowance.free
        return Upload(path, self.hashers, charge, most, free, syncs=self.syncs)

    async def _enter(self, incoming: Incoming, laid: Deferred[Laid], parked: bool) -> Shelved:
        shelf = self._shelf(incoming.box)
        if not parked:
            shelf.expect(laid)
        try:
            return await self._shelve(incoming, await laid, parked)
        finally:
            self.left(incoming)
            shelf.over(laid)
            self._forget(incoming.box)

    async def _shelve(self, arriving: Arriving, file: Laid, parked: bool = False) -> Shelved:
        label = arriving.label
        if label.sha256 and label.sha256 != file.sha256:
            await self.crew.work(_unlink, [file.path])
            raise StoreError(NOT_THE_DIGEST)
        now = self.wall()
        row = ParcelRow(
            box=arriving.box,
            name=label.name,
            file=file.path.name,
            size=file.size,
            sha256=file.sha256,
            at=self.spoken(now),
            expires=self.spoken(now + label.expires) if label.expires else None,
            parked=parked,
            copies=label.copies,
        )
        draft = arriving.key if isinstance(arriving, Draft) else ""
        told: Path | None = None
        try:
            if self.completed.command:
                told = await self.crew.work(paper.write, self.completed, self.folder, row)
            ident = await self.index.run(index.enter(row, draft))
        except Exception as error:
            await self.crew.work(paper.drop, file.path, True)
            if not draft:
                await self.crew.work(_unlink, [file.path])
            if isinstance(error, OSError):
                raise StoreError(files.plain(error)) from None
            raise
        if told is not None:
            self.completed.add(told)
        self._kept += 1
        item = arriving.item = Item(self, ident, row)
        if label.expires:
            self._expire(item, self.monotonic() + label.expires)
        if self._opened:
            self._add(item)
        else:  # opening will find its row
            self._unread[item.row.box] += item.size
            self.stock.add(item.row.box, item.size)
        if parked:
            self._say_parked(item, "its upload may be cut")
        return item.shelved

    def _add(self, item: Item) -> None:
        self.stock.add(item.row.box, item.size)
        self._shelf(item.row.box).put(item)

    async def _received(self, item: Item, receiver: str) -> bool:
        claim = item.claimed_by(receiver)
        if item.leaving or (receiver and receiver in item.receivers):
            return False
        if item.copies == 1:
            return await self._remove(item)
        if claim is not None:
            claim.hold()
        copies = max(0, item.copies - 1)
        receivers = {receiver} if receiver else set()
        item.receivers |= receivers  # it gets no other, also while that is stored
        try:
            await self.index.run(index.receive(item.ident, copies, receiver))
        except Exception:
            item.receivers -= receivers
            if claim is not None:
                claim.renew()
            raise
        if claim is not None:
            item.claims.discard(claim)
        item.copies = copies
        self._settle(item)
        return True

    async def _remove(self, item: Item) -> bool:
        """It leaves the queue, whoever has it now."""
        if item.leaving:
            return False
        item.leaving = True
        shelf = self._shelf(item.row.box)
        shelf.take_off(item)
        for claim in item.claims:
            claim.hold()
        try:
            await self.index.run(index.remove(item.ident))
        except Exception:
            item.leaving = False
            for claim in item.claims:
                claim.renew()
            if item.due is not None:
                self._look_at(item, max(item.due, self.monotonic() + self.RETRY))
            if not self._overdue(item):
                self._settle(item)
            raise
        shelf.items.pop(item.ident, None)
        self.stock.drop(item.row.box, item.size)
        self._forget(item.row.box)
        await self.crew.work(_clear, item.path)
        return True

    async def _take_back(self, parcel: Parcel, counted: bool, park: bool) -> bool:
        item = parcel.item
        parcel.hold()
        if parcel not in item.claims:
            return item.parked
        item.claims.discard(parcel)
        if item.leaving:
            return False
        item.deliveries += counted
        item.parked |= park or (counted and item.deliveries >= parcel.most)
        if item.parked:
            self._say_parked(item, f"{item.deliveries} deliveries of it broke off")
            self._shelf(item.row.box).take_off(item)
        self._settle(item)
        if counted or item.parked:
            await self.index.run(index.deliver(item.ident, item.deliveries, item.parked))
        return item.parked

    async def _requeue(self, item: Item) -> bool:
        if item.leaving:
            return False
        await self.index.run(index.deliver(item.ident, 0, False))
        item.deliveries, item.parked = 0, False
        self._settle(item)
        return not item.leaving

    def _settle(self, item: Item) -> None:
        """A claim ended, or it may be claimed again: to whoever waits, unless its time is over."""
        if self._overdue(item):
            if not item.claims:
                self._look_at(item, 0.0)
            return
        shelf = self._shelf(item.row.box)
        shelf.put(item)
        shelf.serve()

    async def _share(self, draft: Draft, shared: Deferred[Shared]) -> Progress:
        now = await shared
        draft.synced, draft.boot = now.offset, self.boot
        self.touch(draft)
        if now.laid is None:
            work = index.synced(draft.key, now.offset, self.spoken(draft.touched), self.boot)
            await self.index.run(work)
            return Progress(now.offset, now.refused)
        shelf = self._shelf(draft.box)
        shelf.expect(draft)
        try:
            shelved = await self._shelve(draft, now.laid)
        except StoreError as error:
            if error.reason == NOT_THE_DIGEST:
                await self._discard(draft)
            raise
        finally:
            if draft.item is not None:
                self._drafts.pop(draft.key, None)
                self.left(draft)
            shelf.over(draft)
        return Progress(now.offset, shelved=shelved)

    async def _begin_draft(self, box: str, label: Label, allowance: Allowance) -> Draft:
        await self._until_ready()
        assert label.size is not None
        upload = self._upload(box, label, allowance)
        upload.charge = None
        now = self.wall()
        key = upload.path.stem
        draft = Draft(
            self,
            key,
            box,
            label,
            upload,
            self.spoken(now),
            label.size,
            idle=allowance.idle,
            boot=self.boot,
        )
        self.touch(draft)
        row = DraftRow(
            key=key,
            box=box,
            name=label.name,
            file=upload.path.name,
            size=label.size,
            synced=0,
            sha256=label.sha256,
            lasts=label.expires,
            copies=label.copies,
            touched=self.spoken(now),
            idle=allowance.idle,
            boot=self.boot,
        )
        self._keep(draft)
        try:
            await self.index.run(index.begin(row))
        except Exception:
            self._drafts.pop(key)
            self.left(draft)
            raise
        return draft

    def _keep(self, draft: Draft) -> None:
        self._drafts[draft.key] = draft
        self._shelf(draft.box).arriving[draft.key] = draft
        if draft.due is not None:
            self._expire(draft, draft.due)

    async def distrust(self, draft: Draft) -> None:
        """What comes next is proved at its end; until then a crash must not keep it."""
        draft.boot = ""
        await self.index.run(index.synced(draft.key, draft.synced, self.spoken(draft.touched), ""))

    async def _draft(self, key: str) -> Draft | None:
        await self._until_ready()
        return self._drafts.get(key)

    async def _discard(self, arriving: Arriving) -> bool:
        if arriving.gone or not isinstance(arriving, Draft):
            if isinstance(arriving, Incoming) and not arriving.gone:
                raise StoreError(UPLOADING)
            return False
        try:
            await self.index.run(index.discard(arriving.key))
        except Exception:
            if arriving.due is not None:
                self._look_at(arriving, max(arriving.due, self.monotonic() + self.RETRY))
            raise
        self._drafts.pop(arriving.key, None)
        self.left(arriving)
        arriving.upload.close()
        await self.crew.work(_unlink, [arriving.path])
        return True

    async def _find(self, box: str, key: str) -> Look | None:
        await self._until_ready()
        shelf = self._shelves.get(box)
        if shelf is None:
            return None
        if key.isascii() and key.isdecimal() and len(key) < 19:
            item = shelf.items.get(int(key))
            if item is not None and not item.leaving and key == str(item.ident):
                return Look(self, item)
        if (arriving := shelf.arriving.get(key)) is not None:
            return Look(self, arriving)
        for item in reversed(shelf.items.values()):
            if key in (item.name, item.key) and not item.leaving:
                return Look(self, item)
        for arriving in reversed(shelf.arriving.values()):
            if key == arriving.label.name:
                return Look(self, arriving)
        return None

    async def _list(self, box: str) -> Sequence[Shelved]:
        await self._until_ready()
        shelf = self._shelves.get(box)
        if shelf is None:
            return []
        now: list[Item | Arriving] = [*shelf.items.values(), *shelf.arriving.values()]
        listed = list[Shelved]()
        for start in range(0, len(now), BATCH):
            if start:
                await deferLater(self.reactor, 0)
            listed += [one.shelved for one in now[start : start + BATCH] if not one.over]
        return listed

    async def _list_boxes(self) -> Sequence[Box]:
        await self._until_ready()
        return [
            Box(name, len(shelf.items) + len(shelf.arriving), self.stock.held(name))
            for name, shelf in sorted(self._shelves.items())
            if shelf.items or shelf.arriving
        ]

    def _say_parked(self, item: Item, why: str) -> None:
        log.warn(
            "relay: file {ident} of {box} ({size} bytes) is parked: {why}; it is kept as {path}"
            " and handed to nobody until it is requeued or deleted",
            event="relay.parked",
            ident=item.ident,
            box=item.row.box,
            size=item.size,
            why=why,
            path=str(item.path),
        )

    # What expires.

    def _expire(self, what: Item | Draft, due: float) -> None:
        what.due = due
        self._look_at(what, due)

    def _overdue(self, item: Item) -> bool:
        return item.due is not None and item.due <= self.monotonic()

    def _look_at(self, what: Item | Draft, when: float) -> None:
        """Whether it is due then."""
        if len(self._due) >= self._many:  # most are received long before
            self._due = [one for one in self._due if not one[2].over]
            heapify(self._due)
            self._many = max(self.MANY, 2 * len(self._due))
        heappush(self._due, (when, id(what), what))
        self._sleep()

    def _sleep(self) -> None:
        """Until the next is due, or for a while: what is left of it is looked up then."""
        if self._next is not None and self._next.active():
            self._next.cancel()
        self._next = None
        if self._due and self.running:
            rest = self._due[0][0] - self.monotonic()
            self._next = self.reactor.callLater(min(max(rest, 0.01), LONGEST), self._sweep)

    def _sweep(self) -> None:
        """Delete what is due, unless somebody is just collecting it or going on with it."""
        now = self.monotonic()
        while self._due and self._due[0][0] <= now:
            _, _, what = heappop(self._due)
            if what.over:
                continue
            if isinstance(what, Item):
                if what.claims:  # it ends with the claim, if that breaks off
                    continue
            elif what.writing is not None or (what.due is not None and what.due > now):
                if what.writing is not None:
                    self.touch(what)
                heappush(self._due, (what.due or now, id(what), what))
                continue
            self.cancel(what).addErrback(_said)
        self._sleep()

    # Opening: what the last run left.

    async def _until_ready(self) -> None:
        """Raises StoreError when that will never be."""
        if not self.running:
            raise StoreError(CLOSED)
        if not self._ready:
            awaited: Deferred[None] = Deferred()
            self._awaited.append(awaited)
            await awaited

    async def _open(self, left: frozenset[str]) -> None:
        """left: the names in the folder before anything was added to it."""
        while True:
            try:
                contents = await self.index.run(index.contents)
                break
            except StoreError:  # the log has the reason
                await deferLater(self.reactor, self.RETRY)
        for box, size in self._unread.items():  # from here on each file counts by itself
            self.stock.drop(box, size)
        self._unread.clear()
        wall, monotonic = self.wall(), self.monotonic()
        known, parked, lost = set[str](), 0, []
        for ident, deliveries, row, receivers in contents.parcels:
            known.add(row.file)
            item = Item(self, ident, row, deliveries, receivers)
            if row.file not in left and not item.path.exists():
                lost.append(ident)
                continue
            parked += row.parked
            if row.expires is not None:
                self._due.append((monotonic + _seconds(row.expires) - wall, id(item), item))
                item.due = self._due[-1][0]
            self._add(item)
        drafts = [self._restore(row, wall, monotonic) for row in contents.drafts]
        known |= {draft.path.name for draft in drafts}
        heapify(self._due)
        self._opened = True
        log.info(
            "relay: {waiting} files wait, {parked} are parked, {drafts} are drafts",
            event="relay.found",
            waiting=len(contents.parcels) - parked - len(lost),
            parked=parked,
            drafts=len(drafts),
        )
        self._sweep()
        for shelf in list(self._shelves.values()):
            shelf.over(OPENING)
        for box in list(self._shelves):
            self._forget(box)
        strays = [name for name in left - known if name.endswith(STRAYS)]
        await self.crew.work(_unlink, [self.folder / name for name in strays])
        for draft in drafts:
            with suppress(StoreError):  # the log has the reason; the next start does it again
                await self._recover(draft)
        papers = {Path(name).stem for name in left if name.endswith(MANIFEST)}
        for stem in papers - {Path(name).stem for name in known}:
            await self.crew.work(paper.drop, self.folder / stem)
        self.completed.startService()
        self._ready = True
        awaited, self._awaited = self._awaited, []
        for one in awaited:
            one.callback(None)
        for ident in lost:
            log.error(
                "relay: file {ident} is gone from {folder}",
                event="relay.gone",
                ident=ident,
                folder=self.folder,
            )
            with suppress(StoreError):
                await self.index.run(index.remove(ident))

    async def _recover(self, draft: Draft) -> None:
        size = await self.crew.work(_synced, draft.upload, draft.length, bool(draft.boot))
        draft.boot = self.boot
        if size is None:
            log.error(
                "relay: draft {key} is gone from {folder}",
                event="relay.draft_gone",
                key=draft.key,
                folder=self.folder,
            )
            await self._discard(draft)
        elif size != draft.synced:
            draft.synced = size
            touched = self.spoken(draft.touched)
            await self.index.run(index.synced(draft.key, size, touched, self.boot))

    def _restore(self, row: DraftRow, wall: float, monotonic: float) -> Draft:
        label = Label(row.name, row.size, row.sha256, row.lasts, row.copies)
        path = self.folder / row.file
        upload = Upload(path, self.hashers, size=row.synced, syncs=self.syncs)
        draft = Draft(
            self,
            row.key,
            row.box,
            label,
            upload,
            row.touched,
            row.size,
            synced=row.synced,
            idle=row.idle,
            touched=_seconds(row.touched),
            boot=row.boot if row.boot == self.boot else "",
        )
        if row.idle:
            draft.due = monotonic + draft.touched + row.idle - wall
            self._due.append((draft.due, id(draft), draft))
        self._drafts[row.key] = draft
        self._shelf(row.box).arriving[row.key] = draft
        self.stock.add(row.box, row.size)
        return draft

    def _not_opened(self, failure: Failure) -> None:
        failure.trap(CancelledError)
        awaited, self._awaited = self._awaited, []
        for one in awaited:
            one.errback(StoreError(CLOSED))


def _seconds(spoken: str) -> float:
    return datetime.fromisoformat(spoken).timestamp()


def _said(failure: Failure) -> None:
    """The database has said it in the log; what was not stored is tried again some time."""
    failure.trap(StoreError)


def _clear(path: Path) -> None:
    """In a thread: a file that left its box."""
    _unlink([path])
    paper.drop(path)


def _unlink(paths: Sequence[Path]) -> None:
    """In a thread: what no row knows. What stays is tried again at the next start."""
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warn(
                "{path} could not be removed: {error}",
                event="relay.left",
                path=str(path),
                error=str(error),
            )


def _synced(upload: Upload, most: int, same_boot: bool) -> int | None:
    """In a thread: make durable what a draft holds, and cut the rest off; how much that is.

    In the boot in which it was written all of it is there; after a power cut only what the index
    knows to be synced. None: not even that.
    """
    try:
        size = upload.path.stat().st_size if upload.path.exists() else 0
        if size < upload.size:
            return None
        upload.cut(min(size, most) if same_boot else upload.size)
        if upload.size:
            upload.sync()
    except OSError as error:
        log.error(
            "{path}: {error}", event="relay.draft_unread", path=str(upload.path), error=str(error)
        )
        return None
    return upload.size


def _boot() -> str:
    """Which boot of the machine this is; empty where that cannot be known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
