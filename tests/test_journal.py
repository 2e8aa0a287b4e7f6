"""Small streams: durable in the journal first, in their files at once, proved soon after."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList, gatherResults
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon.stores import files
from daemon.stores.crew import Crew
from daemon.stores.landing import journal as journal_module
from daemon.stores.landing.ground import Ground, Place
from daemon.stores.landing.journal import (
    NAME,
    Journal,
    Small,
    _record,
    lay_out,
    records,
    replay,
)
from daemon.stores.landing.manifest import Manifest
from protocols.stores import Receipt, Series, StoreError
from tests.waiting import until

SERIES = Series("data", 1 << 20)


def small(data: bytes, series: Series = SERIES, outcome: str = "whole") -> Small:
    return Small(series, "127.0.0.1:54321", 1_800_000_000.0, outcome, data)


class FolderCase:
    folder: Path

    def names(self, suffix: str) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.endswith(suffix))

    def contents(self) -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in self.names(".bin")]

    def journals(self) -> list[Path]:
        return list(self.folder.glob(f"{NAME}*"))

    def manifests(self) -> list[Manifest]:
        return [
            Manifest.from_json((self.folder / name).read_bytes()) for name in self.names(".json")
        ]


class JournalTests(FolderCase, TestCase):
    """With its thread, on real files."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.crew = Crew(reactor)
        self.crew.startService()
        self.addCleanup(self.crew.stopService)
        self.told: list[str] = []
        self.ground = Ground(self.folder)
        self.journal = Journal(self.ground, self.crew, self.told.append)
        self.addCleanup(self.stop)

    def stop(self) -> Deferred[None]:
        return self.crew.work(self.journal.stop).addCallback(lambda _: self.ground.close())

    def land(self, *streams: bytes, series: Series = SERIES) -> Deferred[list[Receipt]]:
        return gatherResults(
            [self.journal.add(small(stream, series)) for stream in streams], consumeErrors=True
        )

    async def test_a_file_is_there_when_its_receipt_is_and_its_proof_soon_after(self) -> None:
        streams = [b"%d" % number * 100 for number in range(10)]
        receipts = await self.land(*streams)
        assert receipts == [Receipt(100, hashlib.sha256(s).hexdigest(), 1) for s in streams]
        assert sorted(self.contents()) == streams
        assert self.journals()[0].stat().st_size > 1000
        await until(lambda: len(self.told) == 10)
        assert len(self.names(".json")) == len(self.names(".sha256")) == 10
        assert {m.sha256 for m in self.manifests()} == {r.sha256 for r in receipts}
        assert sorted(self.told) == [m.series for m in self.manifests()]
        assert self.journals()[0].stat().st_size == 0, "what is safe elsewhere is dropped"

    async def test_a_receipt_waits_for_the_sync_of_the_journal(self) -> None:
        free, sync = threading.Event(), files.sync_data
        self.addCleanup(free.set)

        def sync_data(descriptor: int) -> None:
            free.wait(4)
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)
        receipt = self.land(b"abc")
        await until(lambda: self.contents() == [b"abc"])
        await deferLater(reactor, 0.03)
        assert not receipt.called
        free.set()
        await receipt

    async def test_what_comes_together_is_synced_together(self) -> None:
        syncs: list[int] = []
        self.patch(files, "sync_data", syncs.append)
        await self.land(*[b"x"] * 500)
        assert len(syncs) < 50

    async def test_no_more_is_taken_together_than_memory_has_room_for(self) -> None:
        self.patch(Journal, "HEAVY", 1000)
        groups: list[int] = []
        make = journal_module._make

        def counted(group: Sequence[Small], place: Place) -> None:
            groups.append(len(group))
            make(group, place)

        self.patch(journal_module, "_make", counted)
        await self.land(*[bytes(100)] * 40)
        assert max(groups) == 2
        groups.clear()
        await self.land(*[bytes(100)] * 40, series=Series("data", 10))
        assert max(groups) == 1, "ten parts weigh more than one"

    async def test_tiny_parts_cost_no_sync_each(self) -> None:
        syncs: list[int] = []
        self.patch(files, "sync_data", syncs.append)
        stream = bytes(range(250))
        (receipt,) = await self.land(stream, series=Series("data", 2))
        assert receipt == Receipt(250, hashlib.sha256(stream).hexdigest(), 125)
        assert b"".join(self.contents()) == stream
        assert len(syncs) == 1

    async def test_without_checksums_there_are_none(self) -> None:
        (receipt,) = await self.land(b"abc", series=Series("data", 2, checksum=False))
        assert receipt == Receipt(3, None, 2)
        await until(lambda: self.told)
        (manifest,) = self.manifests()
        assert [part.sha256 for part in manifest.parts] == [None, None]
        assert self.names(".sha256") == []

    async def test_a_stop_makes_what_is_left_to_make_and_leaves_no_journal(self) -> None:
        await self.land(*[b"x"] * 150)
        await self.stop()
        assert len(self.names(".json")) == 150
        assert self.journals() == []

    async def test_manifests_that_fall_behind_are_made_in_between(self) -> None:
        self.patch(Journal, "BEHIND", 10)
        self.patch(Journal, "REST", 60.0)
        for _ in range(5):
            await self.land(*[b"x"] * 10)
        assert len(self.names(".json")) >= 30

    async def test_streams_that_never_pause_have_their_proof_a_moment_later(self) -> None:
        self.patch(Journal, "REST", 60.0)
        self.patch(Journal, "LINGER", 0.1)
        self.patch(Journal, "EXPOSED", 0.1)
        for number in range(40):
            await self.land(b"%d" % number)
            await deferLater(reactor, 0.02)
        assert len(self.told) >= 20, "they are synced, too"
        assert len(self.names(".json")) >= len(self.told)

    async def test_no_receipt_waits_for_the_sync_of_files(self) -> None:
        self.patch(Journal, "REST", 0.01)
        free, begun = threading.Event(), threading.Event()
        self.addCleanup(free.set)
        self.hold_syncs(free, begun)
        await self.land(b"first")
        await until(begun.is_set)
        (receipt,) = await self.land(b"second")
        assert receipt.size == 6
        assert self.told == []
        free.set()
        await until(lambda: len(self.told) == 2)
        await until(lambda: self.journals()[0].stat().st_size == 0)

    async def test_whatever_ends_a_sync_the_journal_keeps_what_was_to_be_synced(self) -> None:
        self.patch(Journal, "REST", 0.01)
        self.patch(Journal, "RETRY", 0.01)
        sync, mistakes = Place.sync_all, [ZeroDivisionError()]

        def sync_all(place: Place) -> bool:
            if mistakes:
                raise mistakes.pop()
            return sync(place)

        self.patch(Place, "sync_all", sync_all)
        await self.land(b"first")
        await until(lambda: self.crew.trouble.count)
        await self.land(b"second")
        await until(lambda: self.told)
        assert self.journalled() == {b"first"}

    async def test_a_folder_that_goes_while_it_is_synced_is_left_only_then(self) -> None:
        self.patch(Journal, "REST", 0.01)
        free, begun = threading.Event(), threading.Event()
        self.addCleanup(free.set)
        held = self.hold_syncs(free, begun)
        await self.land(b"gone")
        await until(begun.is_set)
        shutil.rmtree(self.folder)
        new = self.land(b"new")
        await deferLater(reactor, 0.1)
        assert os.path.samestat(*map(os.fstat, held * 2)), "its descriptor is still its own"
        assert not new.called
        free.set()
        await new
        assert self.contents() == [b"new"]

    def hold_syncs(self, free: threading.Event, begun: threading.Event) -> list[int]:
        """Hold whatever syncs files until `free`; the folders of the first."""
        hands = self.ground.hands = ThreadPoolExecutor(2)
        self.addCleanup(hands.shutdown)
        held: list[int] = []
        sync = Place.sync_all

        def sync_all(place: Place) -> bool:
            held.append(place.descriptor)
            begun.set()
            assert free.wait(5)
            return sync(place)

        self.patch(Place, "sync_all", sync_all)
        return held

    async def test_a_journal_never_grows_without_end(self) -> None:
        self.patch(Journal, "FULL", 10_000)
        self.patch(Journal, "REST", 60.0)
        for _ in range(10):
            await self.land(*[bytes(1000)] * 10)
        await until(lambda: len(self.names(".json")) == 100)
        assert self.journals()[0].stat().st_size < 30_000

    async def test_where_one_sync_cannot_be_trusted_each_file_is_synced(self) -> None:
        self.patch(files, "syncs_at_once", lambda folder: False)
        synced: set[str] = set()
        sync = files.sync_data

        def sync_data(descriptor: int) -> None:
            synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)
        await self.land(b"abc")
        await until(lambda: self.told)
        assert synced >= {".bin", ".json", ".sha256"}

    async def test_a_folder_that_was_taken_away_is_made_again(self) -> None:
        await self.land(b"old")
        moved = self.folder.with_name(self.folder.name + ".moved")
        self.folder.rename(moved)
        (receipt,) = await self.land(b"new")
        assert receipt.size == 3
        assert self.contents() == [b"new"]
        await self.stop()
        assert [path.read_bytes() for path in moved.glob("*.bin")] == [b"old"]
        for path in moved.iterdir():
            path.unlink()
        moved.rmdir()

    async def test_a_full_disk_is_waited_for_and_the_streams_are_kept(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        self.break_sync(errno.ENOSPC, times=3)
        with capturedLogs() as events:
            (receipt,) = await self.land(b"abc")
        assert receipt.size == 3
        assert len(events) == 1, "said once"
        assert len(list(records(self.journals()[0].read_bytes()))) == 1

    async def test_a_disk_that_stays_full_fails_them_and_leaves_no_file(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        self.patch(Journal, "PATIENCE", 0.05)
        self.break_sync(errno.ENOSPC, times=1000)
        with pytest.raises(Exception, match="disk full"):
            await self.land(b"abc")
        assert self.contents() == []
        assert self.journals()[0].read_bytes() == b""

    async def test_a_journal_whose_sync_failed_is_never_written_again(self) -> None:
        await self.land(b"before")
        (first,) = self.journals()
        self.break_sync(errno.EIO, times=1)
        kept = self.journal.add(small(b"lost"))
        with pytest.raises(StoreError, match="disk error") as failed:
            await kept
        assert failed.value.stored == 0
        (receipt,) = await self.land(b"after")
        assert receipt.size == 5
        assert sorted(self.contents()) == [b"after", b"before"]
        assert len(self.journals()) == 2
        await until(lambda: len(self.told) == 2)
        assert [m.size for m in self.manifests()] != []
        assert first in self.journals(), "the next start looks at it"

    async def test_a_disk_that_stays_full_is_waited_for_once_and_not_once_a_group(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        self.patch(Journal, "PATIENCE", 0.3)
        self.patch(Journal, "GROUP", 1)
        self.break_sync(errno.ENOSPC, times=1_000_000)
        began = time.monotonic()
        streams = [self.journal.add(small(b"%d" % number)) for number in range(5)]
        ends: Any = await DeferredList(streams, consumeErrors=True)
        assert [kept for kept, _ in ends] == [False] * 5
        assert time.monotonic() - began < 1.0

    async def test_what_comes_together_takes_no_more_than_the_quota_leaves(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        self.patch(Journal, "PATIENCE", 0.05)
        series = Series("data", 1 << 20, quota=100_000)
        streams = [self.journal.add(small(bytes(30_000), series)) for _ in range(6)]
        ends: Any = await DeferredList(streams, consumeErrors=True)
        assert 1 <= sum(kept for kept, _ in ends) <= 3
        assert {str(why.value) for kept, why in ends if not kept} == {"disk quota used up"}
        assert sum(map(len, self.contents())) <= 100_000

    async def test_a_record_that_cannot_be_cut_off_is_the_last_of_its_journal(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        self.patch(Journal, "REST", 60.0)
        await self.land(b"before")
        write_all, full = files.write_all, [True]

        def torn(descriptor: int, data: bytes) -> None:
            if NAME in os.readlink(f"/proc/self/fd/{descriptor}") and full:
                full.clear()
                write_all(descriptor, data[:20])
                raise OSError(errno.ENOSPC, "no space left")
            write_all(descriptor, data)

        def refuse(descriptor: int, size: int) -> None:
            raise OSError(errno.ENOSPC, "no space left")

        self.patch(files, "write_all", torn)
        self.patch(os, "ftruncate", refuse)
        await self.land(b"torn")
        await self.land(b"after")
        assert self.journalled() == {b"before", b"torn", b"after"}

    async def test_what_has_no_files_is_not_in_the_journal_either(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        make, left = journal_module._make, [3]

        def refuse(group: Sequence[Small], place: Place) -> None:
            if left[0]:
                left[0] -= 1
                raise OSError(errno.EMFILE, "too many open files")
            make(group, place)

        self.patch(journal_module, "_make", refuse)
        await self.land(b"kept")
        assert left == [0]
        assert len(list(records(self.journals()[0].read_bytes()))) == 1

    async def test_what_cannot_be_synced_as_files_stays_in_the_journal(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        self.patch(files, "syncs_at_once", lambda folder: False)
        sync, broken = files.sync_data, [True]

        def sync_data(descriptor: int) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".bin") and broken:
                broken.clear()
                raise OSError(errno.EIO, "no such sector")
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)
        await self.land(b"kept")
        await until(lambda: not broken)
        await self.land(b"next")
        await until(lambda: self.told and self.journalled() == {b"kept"})
        assert len(self.told) == 1, "a second sync would have seemed to succeed"

    async def test_a_folder_that_is_gone_is_no_lasting_trouble(self) -> None:
        self.patch(Journal, "RETRY", 0.01)
        await self.land(b"gone")
        shutil.rmtree(self.folder)
        await until(lambda: self.crew.trouble.count)
        await deferLater(reactor, 0.1)
        assert self.crew.trouble.count == 1
        (receipt,) = await self.land(b"new")
        assert receipt.size == 3
        assert self.contents() == [b"new"]

    async def test_a_mistake_of_ours_fails_a_stream_and_not_those_after_it(self) -> None:
        name, odd = Ground.name, [True]

        def stumble(ground: Ground, prefix: str, at: float) -> str:
            if odd:
                odd.clear()
                raise ZeroDivisionError
            return name(ground, prefix, at)

        self.patch(Ground, "name", stumble)
        failed = self.journal.add(small(b"odd"))
        with pytest.raises(StoreError, match="storage failed"):
            await failed
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        (receipt,) = await self.land(b"next")
        assert receipt.size == 4

    def journalled(self) -> set[bytes]:
        """The streams that the next start would find."""
        return {data for path in self.journals() for _, data, _ in records(path.read_bytes())}

    def break_sync(self, code: int, times: int) -> None:
        sync = files.sync_data
        left = [times]

        def sync_data(descriptor: int) -> None:
            if left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)


class ReplayTests(FolderCase, SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.marked: list[str] = []
        self.ground = Ground(self.folder, mark=lambda name, _: self.marked.append(name))
        self.addCleanup(self.ground.close)

    def journal(self, *streams: bytes, series: Series = SERIES) -> tuple[list[Manifest], bytes]:
        manifests = [
            lay_out(f"data_2026_{n}", series, stream, "peer:1", 1.0, 2.0, "whole")
            for n, stream in enumerate(streams)
        ]
        return manifests, b"".join(
            _record(manifest.to_json(), stream)
            for manifest, stream in zip(manifests, streams, strict=True)
        )

    def left(self, journal: bytes) -> None:
        (self.folder / f"{NAME}-1").write_bytes(journal)

    def replay(self) -> int:
        with self.ground.visit() as place:
            return replay(self.ground, place)

    def test_every_file_is_made_again_and_the_journal_goes(self) -> None:
        manifests, journal = self.journal(b"one", b"three", series=Series("data", 4))
        self.left(journal)
        assert self.replay() == 2
        assert self.contents() == [b"one", b"thre", b"e"]
        assert self.manifests() == manifests
        assert len(self.names(".sha256")) == 2
        assert self.marked == ["data_2026_0.json", "data_2026_1.json"]
        assert self.journals() == []

    def test_what_is_there_already_is_not_made_nor_marked_again(self) -> None:
        _, journal = self.journal(b"one")
        self.left(journal)
        self.replay()
        before = {path: path.stat().st_mtime_ns for path in self.folder.iterdir()}
        self.left(journal)
        assert self.replay() == 1
        assert {path: path.stat().st_mtime_ns for path in self.folder.iterdir()} == before
        assert self.marked == ["data_2026_0.json"]

    def test_a_file_that_a_power_cut_left_too_short_is_made_again(self) -> None:
        (manifest,), journal = self.journal(b"whole")
        (self.folder / manifest.parts[0].name).write_bytes(b"")
        self.left(journal)
        self.replay()
        assert self.contents() == [b"whole"]

    def test_a_file_that_only_memory_shows_whole_is_made_again(self) -> None:
        _, journal = self.journal(b"whole")
        self.left(journal)
        self.replay()

        def forget(descriptor: int) -> None:
            """The drive has never had it."""
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.suffix == ".bin":
                path.write_bytes(bytes(5))

        self.patch(files, "forget_pages", forget)
        self.left(journal)
        self.replay()
        assert self.contents() == [b"whole"]

    def test_sums_that_a_power_cut_took_are_made_again(self) -> None:
        _, journal = self.journal(b"whole")
        self.left(journal)
        self.replay()
        for path in self.folder.glob("*.sha256"):
            path.unlink()
        self.left(journal)
        self.replay()
        assert len(self.names(".sha256")) == 1
        assert len(self.marked) == 1, "the command is not run again for that"

    def test_a_damaged_tail_is_cut_and_said_so(self) -> None:
        _, journal = self.journal(b"one", b"two")
        for damaged in (journal[:-1], journal[:-5] + b"?" + journal[-4:], journal + bytes(500)):
            whole = len(list(records(damaged)))
            self.left(damaged)
            with capturedLogs() as events:
                assert self.replay() == whole
            assert "not whole and were cut" in formatEvent(events[0])
            assert self.journals() == []

    def test_a_journal_that_cannot_be_read_is_said_and_keeps_no_other_from_being_done(self) -> None:
        _, journal = self.journal(b"whole")
        (self.folder / f"{NAME}-0").mkdir()
        self.left(journal)
        with capturedLogs() as events:
            assert self.replay() == 1
        assert f"{NAME}-0" in formatEvent(events[0])
        assert self.contents() == [b"whole"]
        assert [path.name for path in self.journals()] == [f"{NAME}-0"]

    def test_a_start_without_a_journal_does_nothing(self) -> None:
        assert self.replay() == 0

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=300), st.integers(0, 400), st.binary(max_size=40))
    def test_no_damage_makes_up_a_stream(self, stream: bytes, at: int, noise: bytes) -> None:
        _, journal = self.journal(stream, b"second")
        damaged = journal[:at] + noise + journal[at + len(noise) :]
        known = [stream, b"second"]
        found = [data for _, data, _ in records(damaged)]
        assert found == known[: len(found)]

    @settings(deadline=None, max_examples=100)
    @given(st.binary(min_size=1, max_size=300), st.integers(1, 400))
    def test_any_limit_lays_out_the_same_bytes(self, stream: bytes, limit: int) -> None:
        manifest = lay_out("data", Series("data", limit), stream, "", 0.0, 0.0, "whole")
        assert sum(part.size for part in manifest.parts) == len(stream)
        assert all(part.size == limit for part in manifest.parts[:-1])
        assert manifest.sha256 == hashlib.sha256(stream).hexdigest()
