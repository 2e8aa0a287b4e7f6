"""Streams into local files: each a series of parts, named for good only once it is durable.

On disk, in one folder
    <prefix>_<YYYYmmddHHMMSS>_<unique>_parte_<n>.bin            a durable part
    <prefix>_<YYYYmmddHHMMSS>_<unique>.json, .sha256            what proves the series: `manifest`
    ... .partial        being written, or left by a crash: the next start finishes it
    ... .bin.damaged    its sync failed: what is in it is for a person to judge
    .journal-<unique>   small streams whose files are not synced yet: `journal`
Order: a part is synced, then renamed; then the manifest; the folder is synced; only then is there
a receipt. For a small stream the journal is synced before its receipt; its part is there then,
its manifest as soon as nothing else is to do, or a second later. Where nobody waits for the disk
(`Series.durable`) the end comes when all is written, and the same order follows behind it, in
threads of its own.

A stream that rests keeps nothing in memory: what it sent goes to its part after a second or two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from daemon.measures import Measure
from daemon.stores import files
from daemon.stores.completed import Completed
from daemon.stores.crew import Crew, Hands, QueuedIntake
from daemon.stores.landing.ground import Ground
from daemon.stores.landing.journal import NAME, Journal, Small, replay
from daemon.stores.landing.manifest import SUFFIX
from daemon.stores.landing.recovery import adopt, finish, listed, unfinished
from daemon.stores.landing.series import Parts
from daemon.stores.leisure import Leisure
from protocols.stores import Receipt, Series, Source, StoreError

log = Logger()
_T = TypeVar("_T")

SMALL = 64 << 10  # bytes of a stream that is journalled if it ends before it is lent


@define(eq=False, repr=False)
class Landed:
    """`protocols.stores.Landed`: in memory while it is small and young, then in parts."""

    RESTS: ClassVar[int] = 4  # beats
    CHUNKS: ClassVar[int] = 64  # in a list; more are joined, for each costs more than its bytes

    landing: Landing
    series: Series
    source: Source
    peer: str
    opened: float
    _chunks: list[bytes] = field(factory=list, init=False)
    _held: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)  # bytes at the last beat
    _still: int = field(default=0, init=False)  # beats since the last byte
    _parts: Parts | None = field(default=None, init=False)
    _intake: QueuedIntake[Receipt] | None = field(default=None, init=False)

    @property
    def size(self) -> int:
        return self._held if self._intake is None else self._intake.size

    @property
    def starved(self) -> bool:
        return self._intake is not None and self._intake.starved

    def write(self, data: bytes) -> None:
        if self._intake is not None:
            self._wake().write(data)
            return
        self._chunks.append(data)
        if len(self._chunks) > self.CHUNKS:
            self._chunks = [b"".join(self._chunks)]
        self._held += len(data)
        self.landing.held += len(data)
        if self._held > SMALL or self.landing.held > self.landing.HELD:
            self._lay_down()

    def lend(self, transport: Any, most: int | None = None) -> bool:
        self._lay_down()
        return self._wake().lend(transport, most)

    def commit(self, outcome: str = "whole") -> Deferred[Receipt]:
        self.landing.over(self)
        if self._intake is None:
            data = self._empty()
            small = Small(self.series, self.peer, self.opened, outcome, data)
            return self.landing.journal.add(small)
        assert self._parts is not None
        if self.series.durable or self.landing.behind >= self.landing.BEHIND:
            return self._intake.commit(partial(self._parts.commit, outcome)).addCallback(self._kept)
        return self._intake.commit(self._parts.written).addCallback(self._written, outcome)

    def abort(self) -> None:
        self.landing.over(self)
        self._empty()
        if self._intake is not None:
            self._intake.abort()

    def beat(self) -> bool:
        """A second passed. Who rests keeps neither memory nor descriptors.

        Whether it goes to a part now, which takes some of both until it is there.
        """
        self._still = self._still + 1 if self.size == self._seen else 0
        self._seen = self.size
        if self._intake is None:
            if self._still:
                self._lay_down(resting=True)
            return self._intake is not None
        assert self._parts is not None
        if self._still == self.RESTS:
            self._parts.resting = True
            self._intake.recall()
            self._intake.nudge()
        elif self._parts.ages():
            self._intake.nudge()
        return False

    def _lay_down(self, resting: bool = False) -> None:
        """It goes to a part of its own, as all that follows."""
        if self._intake is not None:
            return
        ground, series = self.landing.ground, self.series
        self._parts = Parts(ground, series, self.peer, self.opened, resting)
        # Tiny parts cost thousands of files a read: less of them may wait in a turn.
        high = min(QueuedIntake.HIGH, max(1 << 16, series.max_part * self.landing.TINY))
        crew = self.landing.crew
        self._intake = QueuedIntake(self._parts, self.source, crew, high, self._ended)
        if data := self._empty():
            self._intake.write(data)

    def _wake(self) -> QueuedIntake[Receipt]:
        assert self._parts is not None
        assert self._intake is not None
        self._parts.resting, self._still = False, 0
        return self._intake

    def _empty(self) -> bytes:
        data = b"".join(self._chunks)
        self._chunks.clear()
        self.landing.held -= len(data)
        return data

    def _kept(self, receipt: Receipt) -> Receipt:
        self.landing.streams += 1
        self.landing.stored += receipt.size
        return receipt

    def _written(self, receipt: Receipt, outcome: str) -> Receipt:
        Deferred.fromCoroutine(self._settle(outcome))
        return receipt

    async def _settle(self, outcome: str) -> None:
        """Nobody waits any more: what is left is done where it is in nobody's way."""
        landing, parts = self.landing, self._parts
        assert parts is not None
        landing.crew.begin()
        landing.behind += 1
        if landing.behind > landing.BEHIND // 2:
            landing.ground.late.hurry()
        try:
            self._kept(await landing.at_leisure(parts.commit, outcome, False))
        except Exception as error:  # whatever it is: nobody else would hear of it
            if isinstance(error, OSError):
                landing.crew.complain(error)
            else:
                log.failure("storing failed", event="store.broken")
            stored = 0
            with suppress(Exception):  # then nothing counts
                stored = await landing.at_leisure(parts.fail)
            log.error(
                "{series}, which nobody waited for: {stored} of {size} bytes kept",
                event="ingest.late",
                series=parts.stem,
                stored=stored,
                size=self.size,
            )
        finally:
            self._ended()
            landing.behind -= 1
            landing.crew.end()

    def _ended(self) -> None:
        """Its intake is over; one that broke is asked for nothing any more."""
        assert self._parts is not None
        self.landing.over(self)
        if self._parts.published:
            self.landing.durable(self._parts.stem)


@define(eq=False, repr=False)
class Landing(Service):
    """`protocols.stores.Landing` in `folder`. now: seconds since the epoch, for the names.

    held: bytes in memory of small streams that are still coming; HELD of them at most, in all.
    behind: streams that are written and not durable yet, and that nobody waits for; of more than
    BEHIND the next one is waited for.
    """

    TINY: ClassVar[int] = 4096  # a turn of the crew lays down about that many parts at most
    HELD: ClassVar[int] = 32 << 20
    BEAT: ClassVar[float] = 1.0  # seconds
    ABREAST: ClassVar[int] = 256  # streams that go to rest at a time
    HANDS: ClassVar[int] = 4
    BEHIND: ClassVar[int] = 64  # streams
    LATER: ClassVar[float] = 1.0  # seconds until what nobody waits for is synced

    service: ClassVar[str] = "ingest"

    folder: Path
    crew: Crew
    now: Callable[[], float] = time.time
    held: int = field(default=0, init=False)
    streams: int = field(default=0, init=False)  # acknowledged, small ones aside; and their bytes
    stored: int = field(default=0, init=False)
    behind: int = field(default=0, init=False)
    _leisure: Leisure = field(init=False)
    _ends: ThreadPool = field(init=False)  # of streams that nobody waits for
    ground: Ground = field(init=False)
    journal: Journal = field(init=False)
    completed: Completed = field(init=False)
    _open: set[Landed] = field(factory=set, init=False)
    _pulse: IDelayedCall | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.completed = Completed("ingest", self.folder, self.crew)
        self.ground = Ground(self.folder, self.now, mark=self.completed.mark)
        self.journal = Journal(self.ground, self.crew, self.durable)

    def check(self) -> None:
        """Raise files.Unusable when no stream could be kept."""
        files.check_folder(self.folder)

    def startService(self) -> None:
        """Finish what a crash left. A folder that fails now fails each stream until it is back."""
        super().startService()
        self.ground.hands = ThreadPoolExecutor(self.HANDS, "landing")
        self.ground.hashers = Hands(self.crew, self.HANDS, "hashing")
        self.ground.late = self._leisure = Leisure("landing-late", self.LATER)
        self._ends = ThreadPool(0, 1, "landing-end")
        self._ends.start()
        try:
            left = self._recover()
        except OSError as error:
            log.error(
                "{folder} cannot be used: {error}",
                event="ingest.unusable",
                folder=self.folder,
                error=str(error),
            )
            left = {}
        if left:  # reading them may take a while
            self.crew.begin()
            self.crew.work(self._finish, left).addBoth(self._finished)
        else:
            self.completed.startService()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        self._leisure.hurry(always=True)
        await self.crew.idle()
        await self.crew.work(self.journal.stop)
        if self.completed.running:
            await self.completed.stopService()
        if self._pulse is not None and self._pulse.active():
            self._pulse.cancel()
        self.ground.hands.shutdown()
        self._ends.stop()
        self._leisure.shutdown()
        if self.ground.hashers is not None:
            self.ground.hashers.shutdown()
        self.ground.close()

    def open(self, series: Series, source: Source, peer: str = "") -> Landed:
        landed = Landed(self, series, source, peer, self.now())
        self._open.add(landed)
        if self._pulse is None:
            self._pulse = self.crew.reactor.callLater(self.BEAT, self._beat)
        return landed

    def over(self, landed: Landed) -> None:
        self._open.discard(landed)

    def at_leisure(self, task: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """Run what nobody waits for in a thread, one after the other."""
        return deferToThreadPool(self.crew.reactor, self._ends, task, *args)

    def on_complete(self, command: Sequence[str]) -> None:
        self.completed.use(command)

    def ready(self) -> Deferred[None]:
        reason = self.crew.trouble.recent
        return fail(StoreError(reason)) if reason else succeed(None)

    def measures(self) -> Iterator[Measure]:
        journal = self.journal
        yield Measure("ingest_open_streams", "Streams that are coming in.", len(self._open))
        yield Measure("ingest_streams_total", "Streams stored.", self.streams + journal.streams)
        yield Measure(
            "ingest_stored_bytes_total", "Bytes of those streams.", self.stored + journal.stored
        )
        yield Measure("ingest_held_bytes", "Bytes of small streams in memory.", self.held)
        yield Measure(
            "ingest_waiting_streams", "Small streams that wait for the journal.", journal.waiting
        )
        yield Measure(
            "ingest_unsynced_streams",
            "Streams that are written and not durable yet, and whose peers do not wait for that.",
            self.behind,
        )
        yield Measure("ingest_sync_seconds", "How long a sync took.", self.ground.syncs)

    def durable(self, series: str) -> None:
        """A manifest is: whoever waits for such may begin."""
        self.completed.add(self.folder / (series + SUFFIX))

    def _beat(self) -> None:
        Deferred.fromCoroutine(self._round())

    async def _round(self) -> None:
        """A beat for each. Who waits for a thread takes memory: few go to rest at a time."""
        begun = 0
        try:
            for landed in list(self._open):
                if self.running and landed in self._open and landed.beat():
                    begun += 1
                    if begun % self.ABREAST == 0:
                        await self.crew.work(int)  # until it is the turn of a task behind them
        finally:
            self._pulse = None
            if self._open and self.running:
                self._pulse = self.crew.reactor.callLater(self.BEAT, self._beat)

    def _recover(self) -> dict[str, list[str]]:
        """Name what has no name; the series whose manifest is still to be written."""
        with self.ground.visit() as place:
            names = listed(self.ground)
            journalled = any(name.startswith(NAME) for name in names)
            streams = replay(self.ground, place)
            if streams:  # they have files now
                names = listed(self.ground)
            left = unfinished(names, journalled)
            adopted, removed = adopt(place, names)
        if streams:
            log.info(
                "{folder}: {streams} small streams were in the journal and have their files",
                event="ingest.journal",
                folder=self.folder,
                streams=streams,
            )
        if adopted or removed:
            log.info(
                "{folder}: parts that a crash left: {adopted} adopted, {removed} empty and removed",
                event="ingest.adopted",
                folder=self.folder,
                adopted=adopted,
                removed=removed,
            )
        return left

    def _finish(self, left: Mapping[str, list[str]]) -> None:
        """In a thread."""
        for series, parts in left.items():
            if not self.running:  # the next start goes on
                return
            try:
                finish(series, parts, self.ground, lambda: self.running)
            except OSError as error:
                log.error(
                    "{series} has no manifest: {error}",
                    event="ingest.manifest",
                    series=series,
                    error=str(error),
                )

    def _finished(self, result: object) -> None:
        if isinstance(result, Failure):
            log.failure(
                "what a crash left was not finished", event="ingest.unfinished", failure=result
            )
        if self.running:
            self.completed.startService()
        self.crew.end()
