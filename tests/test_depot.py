"""Queues of files on a disk: in order, durable first, claimed once, given back, parked."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any, cast

import pytest
from attrs import define, field
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface import implementer

from daemon.stores import depot as module
from daemon.stores import files
from daemon.stores.crew import Crew
from daemon.stores.database import Database
from daemon.stores.depot import OPENING, Depot
from daemon.stores.depot.arriving import Incoming
from daemon.stores.depot.index import MIGRATIONS, PARCELS, ParcelRow
from daemon.stores.depot.parcel import Item, Parcel
from daemon.stores.depot.sending import Sending
from daemon.stores.depot.shelf import Shelf
from daemon.stores.depot.upload import Laid, Upload
from daemon.stores.files import Unusable
from protocols.stores import NO_BOX, Allowance, Label, Shelved, StoreError

BOX = "queue"


@define(eq=False)
class Feeder:
    """Who fills an intake."""

    told: list[str] = field(factory=list)

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def broken(self, why: StoreError) -> None:
        self.told.append(why.reason)

    def returned(self) -> None:
        self.told.append("returned")


@define(eq=False)
class Pipe:
    """A transport that is full after `room` bytes, until `room` is changed and `drain` called."""

    room: int = 1 << 62
    got: bytearray = field(factory=bytearray)
    producer: Any = None
    gone: bool = False

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        assert streaming
        assert self.producer is None
        if self.gone:
            producer.stopProducing()
        else:
            self.producer = producer

    def unregisterProducer(self) -> None:
        self.producer = None

    def write(self, data: bytes) -> None:
        self.got += data
        if len(self.got) >= self.room:
            self.producer.pauseProducing()

    def drain(self, room: int) -> None:
        self.room = room
        self.producer.resumeProducing()

    def lose(self) -> None:
        self.gone = True
        producer, self.producer = self.producer, None
        producer.stopProducing()


class DepotCase(TestCase):
    timeout = 5

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "relay"
        self.said: list[str] = []
        self.refused: set[str] = set()
        self.patch(Database, "CONNECTION", self.breakable())

        @implementer(ILogObserver)
        def hear(event: Any) -> None:
            if event["log_namespace"].startswith("daemon."):
                self.said.append(str(formatEvent(event)))

        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)
        self.depot = self.make()

    def make(self) -> Depot:
        return Depot(self.folder, Crew(reactor), reactor)

    def start(self) -> None:
        self.depot.crew.startService()
        self.depot.startService()
        self.addCleanup(self.stop, self.depot)

    async def stop(self, depot: Depot | None = None) -> None:
        depot = depot or self.depot
        if depot.running:
            await depot.stopService()
        if depot.crew.running:
            await depot.crew.stopService()

    async def restart(self) -> None:
        await self.stop()
        self.depot = self.make()
        self.start()

    def begin(self, data: bytes, box: str = BOX) -> Incoming:
        incoming = self.depot.deposit(box, Feeder())
        incoming.write(data)
        return incoming

    def put(self, data: bytes, parked: bool = False, box: str = BOX) -> Deferred[Shelved]:
        return self.begin(data, box).commit(parked)

    def take(self, wait: bool = True, most: int = 5, box: str = BOX) -> Deferred[Any]:
        return self.depot.take(box, most, wait)

    async def takes(self, *contents: bytes, most: int = 5) -> list[Parcel]:
        """Claim as many, which must be these."""
        parcels = [cast(Parcel, await self.take(most=most)) for _ in contents]
        assert [parcel.path.read_bytes() for parcel in parcels] == list(contents)
        return parcels

    async def is_empty(self) -> None:
        assert await self.take(wait=False) is None

    def names(self, suffix: str = "") -> list[str]:
        found = (path.name for path in self.folder.iterdir())
        return sorted(n for n in found if n.endswith(suffix) and not n.startswith("index.db"))

    def rows(self, what: str = "ident, deliveries, parked") -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.folder / "index.db")) as index:
            return index.execute(f"SELECT {what} FROM parcels ORDER BY ident").fetchall()

    async def comes(self, happened: Callable[[], object]) -> None:
        for _ in range(1000):
            if happened():
                return
            await deferLater(reactor, 0.005)
        raise AssertionError(f"it did not happen; {self.said}")

    async def fails(self, wanted: str, work: Deferred[Any]) -> None:
        with pytest.raises(StoreError) as caught:
            await work
        assert caught.value.reason == wanted

    def hold(self, owner: Any, name: str) -> Event:
        """Calls of a blocking method wait until the event is set."""
        original, go = getattr(owner, name), Event()

        def held(*args: Any) -> Any:
            assert go.wait(10)
            return original(*args)

        self.patch(owner, name, held)
        self.addCleanup(go.set)
        return go

    def break_(self, owner: Any, name: str, code: int, when: str = "") -> None:
        """Calls fail; with `when`, only for a path that holds it."""
        original = getattr(owner, name)

        def broken(*args: Any, **kwargs: Any) -> Any:
            if when not in str(args[0]):
                return original(*args, **kwargs)
            raise OSError(code, "broken by the test", str(args[0]))

        self.patch(owner, name, broken)

    def breakable(self) -> type[sqlite3.Connection]:
        """What the index is opened with: statements that begin with a word of `refused` fail."""
        execute, refused = sqlite3.Connection.execute, self.refused

        class Breakable(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql.startswith(tuple(refused)):
                    error = sqlite3.OperationalError("disk I/O error")
                    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                    raise error
                return execute(self, sql, *args)

        return Breakable


class EnteringTests(DepotCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()

    async def test_a_file_gets_its_place_its_size_and_its_digest(self) -> None:
        data = os.urandom(100_000)
        one, two = await self.put(data), await self.put(b"x")
        digest = hashlib.sha256(data).hexdigest()
        assert (one.ident, one.size, one.sha256) == ("1", 100_000, digest)
        assert two.ident == "2"
        await self.takes(data, b"x")

    async def test_files_queue_in_the_order_in_which_their_commits_fire(self) -> None:
        first, second = self.begin(b"begun first"), self.begin(b"begun second")
        await second.commit()
        await first.commit()
        await self.takes(b"begun second", b"begun first")

    async def test_a_file_is_there_when_its_ticket_is_and_not_before(self) -> None:
        go = self.hold(Upload, "commit")
        ticket = self.put(b"x")
        waiting = self.take()
        await deferLater(reactor, 0.02)
        assert not ticket.called
        assert not waiting.called
        go.set()
        await ticket
        assert waiting.called

    async def test_bytes_name_folder_and_row_become_durable_in_this_order(self) -> None:
        done: list[object] = []
        sync_data, sync_folder = files.sync_data, files.sync_folder

        def data(descriptor: int) -> None:
            sync_data(descriptor)
            done.append(("bytes", os.fstat(descriptor).st_size, self.rows()))

        def folder(path: Path) -> None:
            sync_folder(path)
            (name,) = self.names()
            done.append(("folder", Path(name).suffix, self.rows()))

        self.patch(files, "sync_data", data)
        self.patch(files, "sync_folder", folder)
        await self.put(b"12345")
        done.append(("ticket", self.rows()))
        assert done == [("bytes", 5, []), ("folder", ".parcel", []), ("ticket", [(1, 0, 0)])]

    async def test_a_row_leaves_before_its_file_does(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        seen: list[list[tuple[Any, ...]]] = []
        unlink = Path.unlink

        def watched(path: Path, missing_ok: bool = False) -> None:
            if path.suffix == ".parcel":
                seen.append(self.rows())
            unlink(path, missing_ok)

        self.patch(Path, "unlink", watched)
        await parcel.done()
        assert seen == [[]]
        assert self.names() == []

    async def test_an_aborted_upload_leaves_nothing(self) -> None:
        incoming = self.begin(b"x" * 100)
        await self.comes(lambda: self.names(".parcel"))
        incoming.abort()
        await self.comes(lambda: not self.names())
        await self.is_empty()

    async def test_a_big_file_is_written_back_early(self) -> None:
        begun: list[tuple[int, int]] = []
        self.patch(Upload, "WRITE_BACK", 1000)
        self.patch(
            files, "begin_write_back", lambda _, start, length: begun.append((start, length))
        )
        incoming = self.begin(bytes(600))
        await self.comes(lambda: self.names(".parcel"))
        incoming.write(bytes(600))
        await self.comes(lambda: begun)
        incoming.write(bytes(1000))
        await incoming.commit()
        assert begun == [(0, 1200), (1200, 1000)]

    async def test_boxes_do_not_know_each_other(self) -> None:
        await self.put(b"for ana", box="ana")
        await self.is_empty()
        assert (await self.take(box="ana")).size == 7

    async def test_files_and_index_are_nobody_elses_to_read(self) -> None:
        await self.put(b"x")
        modes = {
            path.name.partition("-")[0]: path.stat().st_mode & 0o777
            for path in self.folder.iterdir()
            if not path.name.startswith("index.db-")
        }
        assert set(modes.values()) == {0o640}
        assert self.folder.stat().st_mode & 0o777 == 0o750


class ErrorTests(DepotCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()

    async def test_a_full_disk_breaks_the_upload_and_leaves_nothing(self) -> None:
        self.break_(files, "write_all", errno.ENOSPC)
        feeder = Feeder()
        self.depot.deposit(BOX, feeder).write(b"x")
        await self.comes(lambda: feeder.told == ["disk full"])
        assert self.names() == []

    async def test_a_sync_that_fails_fails_the_commit_and_leaves_nothing(self) -> None:
        self.break_(files, "sync_data", errno.EIO)
        await self.fails("disk error", self.put(b"x"))
        assert self.names() == []
        await self.is_empty()

    async def test_a_folder_that_cannot_be_synced_does_too(self) -> None:
        self.break_(files, "sync_folder", errno.EIO)
        await self.fails("disk error", self.put(b"x"))
        assert self.names() == []
        await self.is_empty()

    async def test_a_row_that_cannot_be_written_does_too_and_the_next_upload_is_taken(self) -> None:
        await self.put(b"before")
        self.refused.add("INSERT")
        await self.fails("disk error", self.put(b"x"))
        self.refused.clear()
        assert len(self.names()) == 1
        await self.put(b"after")
        await self.takes(b"before", b"after")

    async def test_a_file_that_cannot_be_removed_is_removed_by_the_next_start(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        self.break_(Path, "unlink", errno.EACCES, ".parcel")
        await parcel.done()
        assert self.rows() == []
        assert any("could not be removed" in line for line in self.said)
        self.patch(Path, "unlink", lambda path, missing_ok=False: os.unlink(path))
        await self.restart()
        await self.comes(lambda: not self.names())

    async def test_a_removal_that_is_not_stored_fails_and_keeps_the_file(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        self.refused.add("DELETE")
        await self.fails("disk error", parcel.done())
        await self.is_empty()
        self.refused.clear()
        await self.restart()
        await self.takes(b"x")

    async def test_one_of_several_receipts_that_is_not_stored_fails_and_the_claim_stays(
        self,
    ) -> None:
        deposit = self.depot.deposit(BOX, Feeder(), Label(copies=2))
        deposit.write(b"x")
        await deposit.commit()
        parcel = await self.depot.take(BOX, 5, True, "ana")
        assert parcel is not None
        self.refused.add("UPDATE")
        await self.fails("disk error", parcel.done())
        self.refused.clear()
        assert await self.depot.take(BOX, 5, False, "ana") is None
        await self.depot.index.run(lambda _: None)  # it is tried again once it can be
        await parcel.done()
        assert self.rows("copies") == [(1,)]

    async def test_a_draft_that_cannot_be_stored_is_none(self) -> None:
        self.refused.add("INSERT")
        await self.fails("disk error", self.depot.begin(BOX, Label("d", 3), Allowance()))
        assert await self.depot.list(BOX) == []
        assert self.depot.stock.total == 0


class ClaimTests(DepotCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()

    async def test_a_claimed_file_is_nobody_elses(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        await self.is_empty()
        assert [one.ident for one in await self.depot.list(BOX)] == [str(parcel.ident)]

    async def test_a_file_that_is_given_back_is_the_head_again(self) -> None:
        for data in (b"1", b"2", b"3"):
            await self.put(data)
        one, two = await self.takes(b"1", b"2")
        assert await two.release() is False
        assert await one.release() is False
        await self.takes(b"1", b"2", b"3")

    async def test_deliveries_that_count_are_capped_by_whoever_claimed_it_last(self) -> None:
        await self.put(b"x")
        for number in range(1, 4):
            (parcel,) = await self.takes(b"x", most=9 if number < 3 else 3)
            assert parcel.deliveries == number - 1
            assert await parcel.release(counted=True) is (number == 3)
        await self.is_empty()
        assert self.rows() == [(1, 3, 1)]
        (line,) = (line for line in self.said if "is parked" in line)
        why = "is parked: 3 deliveries of it broke off;"
        assert line.startswith(f"relay: file 1 of queue (1 bytes) {why}")
        assert str(parcel.path) in line
        assert parcel.path.read_bytes() == b"x"

    async def test_deliveries_that_do_not_count_are_not_written_anywhere(self) -> None:
        await self.put(b"x")
        for _ in range(3):
            (parcel,) = await self.takes(b"x", most=1)
            assert await parcel.release() is False
        assert self.rows() == [(1, 0, 0)]

    async def test_a_file_can_be_parked_by_hand(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        assert await parcel.release(park=True) is True
        assert self.rows() == [(1, 0, 1)]
        await self.is_empty()

    async def test_an_upload_may_be_parked_from_the_start(self) -> None:
        ticket = await self.put(b"cut?", parked=True)
        await self.is_empty()
        assert self.rows() == [(int(ticket.ident), 0, 1)]
        said = "file 1 of queue (4 bytes) is parked: its upload may be cut"
        assert any(said in line for line in self.said)

    async def test_a_count_that_is_not_stored_fails_but_the_file_is_back(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        self.refused.add("UPDATE")
        await self.fails("disk error", parcel.release(counted=True))
        (again,) = await self.takes(b"x")
        assert again.deliveries == 1

    async def test_list_shows_the_box_in_order_with_claimed_and_parked_files(self) -> None:
        await self.put(b"claimed")
        await self.put(b"parked", parked=True)
        await self.put(b"waits")
        await self.put(b"elsewhere", box="other")
        (parcel,) = await self.takes(b"claimed")
        shelved = await self.depot.list(BOX)
        assert [(one.ident, one.size, one.deliveries, one.state) for one in shelved] == [
            ("1", 7, 0, "claimed"),
            ("2", 6, 0, "parked"),
            ("3", 5, 0, "waiting"),
        ]
        assert isinstance(shelved[0], Shelved)
        assert shelved[0].sha256 == hashlib.sha256(b"claimed").hexdigest()
        assert shelved[0].sent.endswith("+00:00")
        await parcel.done()
        assert len(await self.depot.list(BOX)) == 2


class WaiterTests(DepotCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()

    async def test_who_came_first_is_served_first(self) -> None:
        waiting = [self.take() for _ in range(3)]
        for data in (b"1", b"22", b"333"):
            await self.put(data)
        assert [(await one).size for one in waiting] == [1, 2, 3]

    async def test_who_left_is_passed_over(self) -> None:
        first, second = self.take(), self.take()
        first.cancel()
        with pytest.raises(CancelledError):
            await first
        await self.put(b"x")
        assert (await second).size == 1

    async def test_who_gives_back_at_once_makes_way_for_the_next(self) -> None:
        def refuse(parcel: Parcel) -> None:
            parcel.release()

        waiting = [self.take().addCallback(refuse) for _ in range(3)]
        last = self.take()
        await self.put(b"x")
        await gatherResults(waiting)
        assert (await last).size == 1

    async def test_who_would_not_wait_has_nothing_at_once_when_nothing_is_under_way(self) -> None:
        await self.depot._opening
        self.begin(b"dropped").abort()
        arriving = self.begin(b"still arriving")
        self.addCleanup(arriving.abort)
        await self.comes(lambda: self.names(".parcel"))
        hurried = self.take(wait=False)
        assert hurried.called
        assert await hurried is None

    async def test_who_would_not_wait_gets_what_is_being_committed(self) -> None:
        await self.depot._opening
        go = self.hold(Upload, "commit")
        ticket = self.put(b"x")
        hurried = self.take(wait=False)
        assert not hurried.called
        go.set()
        assert (await hurried).size == 1
        await ticket

    async def test_who_came_before_gets_it_and_who_would_not_wait_has_nothing(self) -> None:
        await self.depot._opening
        patient = self.take()
        go = self.hold(Upload, "commit")
        ticket = self.put(b"x")
        hurried = self.take(wait=False)
        go.set()
        await ticket
        assert (await patient).size == 1
        assert await hurried is None

    async def test_a_commit_that_fails_or_is_parked_or_elsewhere_holds_nobody_up(self) -> None:
        await self.depot._opening
        go = self.hold(Upload, "commit")
        others = [self.put(b"x", parked=True), self.put(b"x", box="other")]
        assert await self.take(wait=False) is None
        self.break_(files, "sync_folder", errno.EIO)
        ticket = self.put(b"x")
        hurried = self.take(wait=False)
        assert not hurried.called
        go.set()
        for failing in (*others, ticket):
            await self.fails("disk error", failing)
        assert await hurried is None

    async def test_who_would_not_wait_does_not_wait_for_commits_that_came_later(self) -> None:
        await self.depot._opening
        gates, commit = {b"1": Event(), b"2": Event()}, Upload.commit

        def held(upload: Upload) -> Laid:
            assert gates[upload.path.read_bytes()].wait(10)
            return commit(upload)

        self.patch(Upload, "commit", held)
        patient, first = self.take(), self.put(b"1")
        hurried, second = self.take(wait=False), self.put(b"2")
        gates[b"1"].set()
        assert str((await patient).ident) == (await first).ident
        assert await hurried is None
        assert not second.called
        gates[b"2"].set()
        await second

    async def test_who_would_not_wait_may_leave(self) -> None:
        await self.depot._opening
        go = self.hold(Upload, "commit")
        ticket = self.put(b"x")
        hurried = self.take(wait=False)
        hurried.cancel()
        with pytest.raises(CancelledError):
            await hurried
        go.set()
        await ticket
        await self.takes(b"x")


class ShelfTests(SynchronousTestCase):
    def test_who_is_told_that_nothing_is_there_may_take_another_s_place_with_it(self) -> None:
        """The Deferred of one fires while the others are looked at."""
        shelf = Shelf()
        shelf.expect("a")
        first, second = shelf.take(5, wait=False), shelf.take(5, wait=False)
        second.addErrback(lambda failure: None)
        first.addCallback(lambda _: second.cancel())
        shelf.over("a")
        self.assertIsNone(self.successResultOf(first))
        assert second.called

    def test_everything_that_was_expected_must_be_over(self) -> None:
        shelf = Shelf({OPENING})
        shelf.expect("a")
        hurried = shelf.take(5, wait=False)
        shelf.over("a")
        self.assertNoResult(hurried)
        shelf.over(OPENING)
        assert self.successResultOf(hurried) is None
        assert self.successResultOf(shelf.take(5, wait=False)) is None


class RestartTests(DepotCase):
    async def test_queue_deliveries_and_parked_files_survive_and_claims_do_not(self) -> None:
        self.start()
        for data in (b"1", b"2", b"3"):
            await self.put(data)
        await self.put(b"cut", parked=True)
        one, two, _ = await self.takes(b"1", b"2", b"3")
        await one.done()
        await two.release(counted=True)
        await self.restart()
        two, _ = await self.takes(b"2", b"3")
        assert two.deliveries == 1
        assert any("2 files wait, 1 are parked, 0 are drafts" in line for line in self.said)
        await self.is_empty()

    async def test_numbers_are_never_given_twice(self) -> None:
        self.start()
        await self.put(b"1")
        (parcel,) = await self.takes(b"1")
        await parcel.done()
        await self.restart()
        assert (await self.put(b"2")).ident == "2"

    async def test_what_no_row_knows_is_removed_and_what_is_not_ours_stays(self) -> None:
        self.start()
        await self.put(b"known")
        await self.stop()
        for name in ("torn.partial", "unacknowledged.parcel", "notes.txt"):
            (self.folder / name).write_bytes(b"?")
        self.depot = self.make()
        self.start()
        await self.takes(b"known")
        await self.comes(lambda: len(self.names()) == 2)
        assert "notes.txt" in self.names()

    async def test_a_row_whose_file_is_gone_is_said_and_removed(self) -> None:
        self.start()
        for data in (b"gone", b"here"):
            await self.put(data)
        (parcel,) = await self.takes(b"gone")
        parcel.path.unlink()
        await self.restart()
        await self.takes(b"here")
        await self.comes(lambda: self.rows() == [(2, 0, 0)])
        assert f"relay: file 1 is gone from {self.folder}" in self.said
        assert any("1 files wait, 0 are parked, 0 are drafts" in line for line in self.said)

    async def test_limits_count_what_the_index_holds_before_it_was_read(self) -> None:
        self.start()
        await self.put(bytes(600))
        await self.put(bytes(300), box="other")
        await self.stop()
        self.patch(Depot, "RETRY", 0.05)
        self.depot = self.make()
        self.refused.add(PARCELS)
        self.start()
        assert (self.depot.stock.held(BOX), self.depot.stock.total) == (600, 900)
        full = StoreError(files.plain(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))).reason
        for allowance, box in ((Allowance(total=1000), "third"), (Allowance(box=700), BOX)):
            incoming = self.depot.deposit(box, Feeder(), Label(), allowance)
            incoming.write(bytes(101))
            await self.fails(full, incoming.commit())
        with pytest.raises(StoreError, match=NO_BOX):
            self.depot.deposit("third", Feeder(), Label(), Allowance(boxes=2))
        await self.put(bytes(50))  # a row before the shelves know of any
        assert (self.depot.stock.held(BOX), self.depot.stock.total) == (650, 950)
        self.refused.clear()
        (parcel,) = await self.takes(bytes(600))
        assert (self.depot.stock.held(BOX), self.depot.stock.total) == (650, 950)
        await parcel.done()
        assert (self.depot.stock.held(BOX), self.depot.stock.total) == (50, 350)

    async def test_an_index_that_cannot_be_read_is_tried_again_and_nobody_loses_by_it(self) -> None:
        self.start()
        for data in (b"1", b"2"):
            await self.put(data)
        await self.stop()
        self.patch(Depot, "RETRY", 0.05)
        self.depot = self.make()
        self.refused.add(PARCELS)
        self.start()
        patient, hurried, other = self.take(), self.take(wait=False), self.take(False, box="b")
        await self.put(b"333")  # a row before the shelves know of any
        assert not any(one.called for one in (patient, hurried, other))
        self.refused.clear()
        assert (await patient).ident == 1
        assert (await hurried).ident == 2
        assert await other is None
        await self.takes(b"333")
        await self.is_empty()

    async def test_stopping_while_the_index_cannot_be_read_is_no_trouble(self) -> None:
        self.refused.add(PARCELS)
        self.start()
        await self.comes(lambda: self.said)  # the trouble
        await self.stop()
        self.refused.clear()
        self.depot = self.make()
        self.start()
        await self.put(b"x")
        await self.takes(b"x")

    async def test_stopping_then_tells_whoever_waits_for_what_it_holds(self) -> None:
        self.refused.add(PARCELS)
        self.start()
        waiting: list[Deferred[Any]] = [
            self.depot.list(BOX),
            self.depot.begin(BOX, Label(size=1), Allowance()),
        ]
        await self.comes(lambda: self.said)
        stopped = Deferred.fromCoroutine(self.stop())
        for one in waiting:
            await self.fails("the daemon stops", one)
        await stopped
        await self.fails("the daemon stops", self.depot.list(BOX))

    async def test_a_disk_that_takes_no_row_keeps_nobody_from_what_is_there(self) -> None:
        self.start()
        for data in (b"gone", b"here"):
            await self.put(data)
        draft = await self.depot.begin(BOX, Label("d", 3), Allowance())
        (parcel,) = await self.takes(b"gone")
        parcel.path.unlink()
        await self.stop()
        (self.folder / f"{draft.key}.parcel").write_bytes(b"12")
        self.depot = self.make()
        self.refused |= {"UPDATE", "DELETE"}
        self.start()
        assert [one.name for one in await self.depot.list(BOX)] == ["queue-2", "d"]
        found = await self.depot.draft(draft.key)
        assert found is not None
        assert found.offset == 2

    async def test_a_draft_whose_bytes_are_gone_is_said_and_removed(self) -> None:
        self.start()
        draft = await self.depot.begin(BOX, Label("d", 3), Allowance())
        writing = await draft.write(Feeder())
        writing.write(b"12")
        assert (await writing.commit()).offset == 2
        await self.stop()
        (self.folder / f"{draft.key}.parcel").unlink()
        self.depot = self.make()
        self.start()
        assert await self.depot.draft(draft.key) is None
        assert f"relay: draft {draft.key} is gone from {self.folder}" in self.said
        assert await self.depot.list(BOX) == []
        assert self.depot.stock.total == 0

    async def test_an_index_of_the_first_version_is_taken_over(self) -> None:
        self.folder.mkdir()
        (self.folder / "a.parcel").write_bytes(b"old")
        with closing(sqlite3.connect(self.folder / "index.db")) as old:
            old.executescript(MIGRATIONS[0])
            old.executescript(
                """
                INSERT INTO parcels (box, file, size, sha256, at, deliveries)
                VALUES ('queue', 'a.parcel', 3, 'abc', '2026-11-20T10:00:00.000+00:00', 2);
                PRAGMA user_version = 1;
                """
            )
        self.start()
        (listed,) = await self.depot.list(BOX)
        assert (listed.name, listed.sha256, listed.deliveries) == ("queue-1", "abc", 2)
        (parcel,) = await self.takes(b"old")
        await parcel.done()
        assert (await self.put(b"new")).ident == "2"

    def test_a_folder_or_an_index_that_cannot_be_used_is_said_before_the_start(self) -> None:
        self.depot.check()
        assert not self.folder.exists()
        self.folder.mkdir()
        (self.folder / "index.db").write_bytes(b"not a database, but a file of some length" * 10)
        with pytest.raises(Unusable, match="no SQLite database"):
            self.depot.check()
        (self.folder / "index.db").unlink()
        self.folder.rmdir()
        self.folder.write_bytes(b"")
        with pytest.raises(Unusable, match="is not a folder"):
            self.depot.check()


class ExpiryTests(DepotCase):
    """By a clock of its own: `now` seconds after the start."""

    def make(self) -> Depot:
        self.now = 0.0
        crew = Crew(reactor)
        return Depot(self.folder, crew, reactor, lambda: 1e9 + self.now, lambda: self.now)

    def setUp(self) -> None:
        super().setUp()
        self.start()

    async def passes(self, seconds: float) -> None:
        """The timer sleeps by another clock, so it is woken."""
        self.now += seconds
        self.depot._sweep()

    async def shelve(self, name: str, expires: float, copies: int = 1) -> Shelved:
        label = Label(name, expires=expires, copies=copies)
        deposit = self.depot.deposit(BOX, Feeder(), label)
        deposit.write(b"x")
        return await deposit.commit()

    async def test_it_leaves_when_it_is_due_and_not_before(self) -> None:
        shelved = await self.shelve("a", 60.0)
        assert shelved.expires == "2001-09-09T01:47:40.000+00:00"
        await self.passes(59.9)
        assert len(await self.depot.list(BOX)) == 1
        await self.passes(0.2)
        await self.comes(lambda: not self.names())
        assert self.rows() == []

    async def test_a_removal_that_is_not_stored_is_tried_again_after_a_while(self) -> None:
        await self.shelve("a", 60.0)
        self.refused.add("DELETE")
        await self.passes(60.1)
        await self.comes(lambda: any("disk error" in line for line in self.said))
        await deferLater(reactor, 0.05)
        assert [due for due, *_ in self.depot._due] == [60.1 + Depot.RETRY]
        await self.is_empty()  # its time is over all the same
        self.refused.clear()
        await self.passes(Depot.RETRY)
        await self.comes(lambda: not self.names())

    async def test_of_a_draft_too(self) -> None:
        await self.depot.begin(BOX, Label("d", 3), Allowance(idle=60.0))
        self.refused.add("DELETE")
        await self.passes(60.1)
        await self.comes(lambda: self.said)
        self.refused.clear()
        await self.passes(Depot.RETRY)
        await self.comes(lambda: not self.depot._shelves)

    async def test_who_has_it_may_end_but_nobody_else_gets_it(self) -> None:
        await self.shelve("a", 60.0, copies=2)
        one, two = await self.takes(b"x", b"x")
        await self.passes(60.1)
        await one.release()
        await self.is_empty()
        assert self.names() != []
        await two.release()
        await self.comes(lambda: not self.names())

    async def test_those_that_left_before_are_forgotten(self) -> None:
        self.patch(Depot, "MANY", 10)
        self.depot._many = 10
        for number in range(50):
            await self.shelve(str(number), 60.0)
            (parcel,) = await self.takes(b"x")
            await parcel.done()
        assert len(self.depot._due) <= 11


class CompletedTests(DepotCase):
    """ON_COMPLETE: the command is told of every file."""

    def start(self) -> None:
        self.told = self.folder.parent / "told"
        script = self.folder.parent / "run.sh"
        script.write_text(f'#!/bin/sh\ncat "$1" >> {self.told}\n')
        script.chmod(0o755)
        super().start()
        self.depot.on_complete([str(script)])

    async def test_it_is_told_what_and_where_the_file_is(self) -> None:
        self.start()
        shelved = await self.put(b"12345")
        await self.comes(lambda: self.told.exists() and self.told.read_text().endswith("}\n"))
        told = json.loads(self.told.read_text())
        assert Path(told.pop("file")).read_bytes() == b"12345"
        (found,) = [await self.depot.find(BOX, told["id"])]
        assert found is not None
        assert found.shelved == shelved
        assert told["sha256"] == hashlib.sha256(b"12345").hexdigest()
        assert (told["box"], told["name"], told["size"]) == (BOX, "", 5)

    async def test_what_it_is_told_of_leaves_with_the_file(self) -> None:
        self.start()
        await self.put(b"x")
        await self.comes(lambda: self.told.exists())
        await self.comes(lambda: not self.names(".pending"))
        (parcel,) = await self.takes(b"x")
        await parcel.done()
        assert self.names() == []

    async def test_a_file_that_is_not_kept_is_not_told_of(self) -> None:
        self.start()
        self.refused.add("INSERT")
        await self.fails("disk error", self.put(b"x"))
        assert self.names() == []

    async def test_a_paper_whose_file_left_in_a_crash_is_removed_by_the_next_start(self) -> None:
        self.start()
        await self.put(b"x")
        await self.comes(lambda: self.names(".json") and not self.names(".pending"))
        (paper,) = self.names(".json")
        await self.stop()
        (self.folder / ("0" * 32 + ".json")).write_text("{}")
        self.depot = self.make()
        super().start()
        await self.comes(lambda: self.names(".json") == [paper])


class StopTests(DepotCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()

    async def stops_after(self, go: Event, *works: Deferred[Any]) -> None:
        stopped = self.depot.stopService()
        await deferLater(reactor, 0.03)
        assert not stopped.called
        go.set()
        await stopped
        assert all(work.called for work in works)
        await self.depot.crew.stopService()

    async def test_it_waits_for_a_commit(self) -> None:
        go = self.hold(Upload, "commit")
        await self.stops_after(go, self.put(b"x"), self.put(b"y"))
        assert len(self.rows()) == 2

    async def test_it_waits_for_a_removal(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        go = self.hold(module, "_unlink")
        await self.stops_after(go, parcel.done())
        assert self.names() == []

    async def test_what_comes_later_is_refused(self) -> None:
        await self.put(b"x")
        (parcel,) = await self.takes(b"x")
        await self.depot.stopService()
        await self.fails("shutting down", parcel.done())
        await self.fails("shutting down", parcel.release(counted=True))
        await self.depot.crew.stopService()


class SendingTests(DepotCase):
    PIECE = 1000

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.patch(Sending, "PIECE", self.PIECE)
        self.reads: list[int] = []
        read = Sending._read

        def counted(sending: Sending, offset: int, length: int) -> bytes:
            self.reads.append(offset)
            return read(sending, offset, length)

        self.patch(Sending, "_read", counted)

    async def parcel(self, size: int) -> tuple[Parcel, bytes]:
        data = os.urandom(size)
        await self.put(data)
        return cast(Parcel, await self.take()), data

    async def test_every_byte_comes_in_order(self) -> None:
        for size in (1, self.PIECE - 1, self.PIECE, self.PIECE + 1, 10 * self.PIECE + 3):
            parcel, data = await self.parcel(size)
            pipe = Pipe()
            await parcel.send(pipe)
            assert bytes(pipe.got) == data
            assert parcel.sent == size
            assert pipe.producer is None

    async def test_an_empty_file_is_sent_at_once(self) -> None:
        row = ParcelRow(BOX, "", "not looked at", 0, "", "", None, parked=False, copies=1)
        parcel = Parcel(Item(self.depot, 1, row), 5)
        await parcel.send(Pipe())
        assert self.reads == []

    async def test_who_does_not_read_is_read_ahead_for_by_one_piece(self) -> None:
        parcel, data = await self.parcel(5 * self.PIECE)
        pipe = Pipe(room=1)
        sending = parcel.send(pipe)
        await self.comes(lambda: len(self.reads) == 2)
        await deferLater(reactor, 0.02)
        assert self.reads == [0, self.PIECE]
        assert (len(pipe.got), parcel.sent) == (self.PIECE, self.PIECE)
        assert not sending.called
        pipe.drain(1 << 20)
        await sending
        assert bytes(pipe.got) == data

    async def test_pausing_and_going_on_while_a_piece_is_read_reads_it_once(self) -> None:
        parcel, data = await self.parcel(2 * self.PIECE)
        pipe = Pipe()
        sending = parcel.send(pipe)
        pipe.producer.pauseProducing()
        pipe.producer.resumeProducing()
        await sending
        assert bytes(pipe.got) == data
        assert self.reads == [0, self.PIECE]

    async def test_it_can_be_sent_again(self) -> None:
        parcel, data = await self.parcel(3 * self.PIECE)
        for _ in range(2):
            pipe = Pipe()
            await parcel.send(pipe)
            assert bytes(pipe.got) == data

    async def test_a_transport_that_is_gone_ends_it(self) -> None:
        parcel, _ = await self.parcel(3 * self.PIECE)
        pipe = Pipe(room=1)
        sending = parcel.send(pipe)
        await self.comes(lambda: pipe.got)
        pipe.lose()
        with pytest.raises(CancelledError):
            await sending
        with pytest.raises(CancelledError):
            await parcel.send(pipe)  # it was gone before
        assert parcel.sent == 0

    async def test_a_transport_that_goes_while_it_is_written_to_ends_it(self) -> None:
        parcel, _ = await self.parcel(3 * self.PIECE)
        pipe = Pipe()
        self.patch(Pipe, "write", lambda pipe, data: pipe.lose())
        with pytest.raises(CancelledError):
            await parcel.send(pipe)
        assert parcel.sent == self.PIECE

    async def test_it_can_be_cancelled_also_while_a_piece_is_read(self) -> None:
        parcel, _ = await self.parcel(3 * self.PIECE)
        pipe = Pipe()
        sending = parcel.send(pipe)
        sending.cancel()
        with pytest.raises(CancelledError):
            await sending
        assert pipe.producer is None
        await deferLater(reactor, 0.02)
        assert pipe.got == b""
        os.truncate(parcel.path, 0)
        sending = parcel.send(pipe)
        sending.cancel()
        with pytest.raises(CancelledError):
            await sending
        await self.comes(lambda: any("cannot be read" in line for line in self.said))

    async def test_a_file_that_became_shorter_fails(self) -> None:
        parcel, data = await self.parcel(3 * self.PIECE)
        os.truncate(parcel.path, 2 * self.PIECE + 1)
        pipe = Pipe()
        await self.fails("disk error", parcel.send(pipe))
        assert bytes(pipe.got) == data[: 2 * self.PIECE]
        assert pipe.producer is None
        assert any("the file is shorter than it was" in line for line in self.said)

    async def test_a_file_that_cannot_be_opened_fails(self) -> None:
        parcel, _ = await self.parcel(1)
        self.break_(Path, "open", errno.EACCES, ".parcel")
        await self.fails("permission denied", parcel.send(Pipe()))
        assert any("cannot be read" in line for line in self.said)

    async def test_a_file_that_was_received_meanwhile_is_gone_and_that_is_no_error(self) -> None:
        parcel, _ = await self.parcel(1)
        parcel.path.unlink()
        await self.fails("the file is gone", parcel.send(Pipe()))
        assert not any("cannot be read" in line for line in self.said)

    async def test_what_is_no_error_of_the_disk_is_passed_on(self) -> None:
        def fault(sending: Sending, offset: int, length: int) -> bytes:
            raise ZeroDivisionError("a defect")

        parcel, _ = await self.parcel(1)
        self.patch(Sending, "_read", fault)
        with pytest.raises(ZeroDivisionError):
            await parcel.send(Pipe())
