"""Streams in files: cut exactly, named once durable, and what is left when the disk fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from daemon.stores import files
from daemon.stores.crew import Crew
from daemon.stores.landing import Landing, series
from daemon.stores.landing.recovery import adopt
from daemon.stores.landing.series import Parts
from protocols.stores import Receipt, Series, StoreError

NAME = re.compile(r"data_[0-9]{14}_[a-z2-7]{8}_parte_[0-9]{6,}\.bin")
NOON = 1_800_000_000.0  # seconds since the epoch


class LandingCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        descriptors = len(os.listdir("/dev/fd"))
        self.addCleanup(lambda: self.assertEqual(len(os.listdir("/dev/fd")), descriptors))

    def parts(self, limit: int = 10, now: float = NOON, checksum: bool = True) -> Parts:
        return Parts(self.folder, Series("data", limit, checksum), lambda: now)

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())

    def contents(self, suffix: str = ".bin") -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in self.names() if name.endswith(suffix)]

    def break_sync(self, *broken: int) -> None:
        """The nth fdatasync fails, for each n of `broken` (counted from 1)."""
        sync, count = files.sync_data, 0

        def sync_data(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count in broken:
                raise OSError(errno.EIO, "no such sector")
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)

    def break_write(self, room: int) -> None:
        """The disk takes `room` bytes more; a write that does not fit is short."""
        write: Callable[[int, memoryview], int] = os.write

        def full(descriptor: int, data: memoryview) -> int:
            nonlocal room
            if not room:
                raise OSError(errno.ENOSPC, "no space left")
            taken = write(descriptor, data[:room])
            room -= taken
            return taken

        self.patch(os, "write", full)

    def break_folder_sync(self) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(errno.EIO, "no such sector")

        self.patch(os, "fsync", fsync)

    def break_sync_all(self) -> list[int]:
        """The filesystem is one that has sync_all, and it fails. Its descriptors."""
        asked: list[int] = []

        def sync_all(folder: int) -> None:
            asked.append(folder)
            raise OSError(errno.EIO, "no such sector")

        self.patch(files, "syncs_at_once", lambda folder: True)
        self.patch(files, "sync_all", sync_all)
        return asked


class SeriesTests(LandingCase):
    def test_a_stream_is_cut_into_parts_of_exactly_the_limit(self) -> None:
        parts = self.parts()
        parts.write([b"1234567", b"89abcdefgh"])
        parts.write([b"ijklmno"])
        receipt = parts.commit()
        stream = b"123456789abcdefghijklmno"
        assert receipt == Receipt(24, hashlib.sha256(stream).hexdigest(), 3)
        assert self.contents() == [b"123456789a", b"bcdefghijk", b"lmno"]
        numbers = [name.rpartition("_parte_")[2] for name in self.names()]
        assert numbers == ["000001.bin", "000002.bin", "000003.bin"]

    def test_a_stream_of_exactly_the_limit_is_one_file(self) -> None:
        parts = self.parts()
        parts.write([b"1234567890"])
        assert parts.commit().parts == 1
        assert self.contents() == [b"1234567890"]

    def test_a_stream_without_a_byte_makes_no_file_and_no_folder(self) -> None:
        folder = self.folder / "not" / "made"
        parts = Parts(folder, Series("data", 10), lambda: NOON)
        assert parts.commit() == Receipt(0, hashlib.sha256().hexdigest(), 0)
        assert self.parts().fail() == 0
        self.parts().abort()
        assert self.names() == []

    def test_without_a_checksum_the_receipt_has_none(self) -> None:
        parts = self.parts(checksum=False)
        parts.write([b"x"])
        assert parts.commit() == Receipt(1, None, 1)

    def test_names_carry_prefix_local_time_and_number_and_files_their_mode(self) -> None:
        self.addCleanup(os.umask, os.umask(0o777))
        parts = Parts(self.folder, Series("año", 1), lambda: 0.0)
        parts.write([b"ab"])
        parts.commit()
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(0))
        for number, name in enumerate(self.names(), 1):
            assert re.fullmatch(rf"año_{stamp}_[a-z2-7]{{8}}_parte_{number:06d}\.bin", name)
            assert (self.folder / name).stat().st_mode & 0o777 == 0o640

    def test_series_of_one_second_never_share_a_file_also_when_the_clock_goes_back(self) -> None:
        several = [self.parts(now=now) for now in (NOON, NOON, NOON - 3600, NOON)]
        for turn in (b"12345", b"67890", b"abc"):
            for number, parts in enumerate(several):
                parts.write([turn + b"%d" % number])
        assert [parts.commit().parts for parts in several] == [2] * 4
        stems = {name.partition("_parte_")[0] for name in self.names()}
        assert sorted(
            b"".join((self.folder / n).read_bytes() for n in self.names() if n.startswith(stem))
            for stem in stems
        ) == [b"12345%d67890%dabc%d" % (n, n, n) for n in range(4)]

    def test_the_stamp_is_of_the_first_file_for_all_of_them(self) -> None:
        times = iter((NOON, NOON + 60))
        parts = Parts(self.folder, Series("data", 1), lambda: next(times))
        parts.write([b"ab"])
        parts.commit()
        assert len({name.partition("_parte_")[0] for name in self.names()}) == 1

    def test_a_full_part_has_its_name_while_the_stream_goes_on(self) -> None:
        parts = self.parts()
        parts.write([b"1234567890abc"])
        full, in_hand = self.names()
        assert NAME.fullmatch(full)
        assert in_hand.endswith("_parte_000002.bin.partial")
        parts.commit()
        assert len(self.contents()) == 2

    def test_a_part_is_synced_then_named_then_the_folder_synced(self) -> None:
        done: list[str] = []

        def record(owner: object, name: str) -> None:
            real = getattr(owner, name)

            def recorded(*args: object, **keywords: object) -> None:
                done.append(name)
                real(*args, **keywords)

            self.patch(owner, name, recorded)

        record(files, "sync_data")
        record(os, "rename")
        record(os, "fsync")
        parts = self.parts()
        parts.write([b"1234567890abc"])
        assert done == ["sync_data", "rename"]
        parts.commit()
        assert done == ["sync_data", "rename"] * 2 + ["fsync"]

    def test_thousands_of_tiny_parts_cost_few_syncs_and_few_descriptors(self) -> None:
        place = os.open(self.folder, os.O_RDONLY)
        trusted = files.syncs_at_once(place)
        os.close(place)
        if not trusted:
            raise SkipTest("this filesystem has no sync of everything that could be trusted")
        syncs: list[str] = []
        sampled: list[int] = []
        most = 0
        sync_all, open_new = files.sync_all, files.open_new

        def counted(folder: int) -> None:
            syncs.append("all")
            sync_all(folder)

        def opened(path: str, folder: int | None = None) -> int:
            nonlocal most
            descriptor = open_new(path, folder)
            if len(sampled) < 40 or len(sampled) % 50 == 0:
                most = max(most, self.held())
            sampled.append(descriptor)
            return descriptor

        self.patch(files, "sync_all", counted)
        self.patch(files, "sync_data", lambda descriptor: syncs.append("one"))
        self.patch(files, "open_new", opened)
        parts = self.parts(limit=1)
        stream = bytes(range(256)) * 8
        parts.write([stream])
        assert parts.commit().parts == 2048
        assert b"".join(self.contents()) == stream
        assert syncs == ["all", "all"]
        assert most <= series.MANY + 2  # the folder's own, and that of the part in hand

    def held(self) -> int:
        """Descriptors of this process on the folder and what is in it."""
        held = 0
        for entry in os.scandir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                held += os.readlink(entry).startswith(str(self.folder))
        return held

    def test_where_one_sync_cannot_be_trusted_each_part_has_its_own(self) -> None:
        self.patch(files, "syncs_at_once", lambda folder: False)
        synced: list[int] = []
        self.patch(files, "sync_data", synced.append)
        parts = self.parts(limit=1)
        parts.write([bytes(100)])
        assert parts.commit().parts == len(synced) == len(self.contents()) == 100

    def test_a_big_part_is_begun_with_early(self) -> None:
        asked: list[tuple[int, int]] = []
        self.patch(files, "begin_write_back", lambda _, start, size: asked.append((start, size)))
        self.patch(series, "AHEAD", 100)
        parts = self.parts(limit=250)
        parts.write([bytes(60)] * 5)
        assert parts.commit().size == 300
        assert asked == [(0, 120), (120, 120)]

    def test_an_aborted_stream_leaves_nothing(self) -> None:
        parts = self.parts()
        parts.write([b"1234567890abc"])
        parts.abort()
        assert self.names() == []

    def test_a_folder_that_was_taken_away_is_made_again(self) -> None:
        self.folder = self.folder / "gone"
        parts = self.parts()
        parts.write([b"abc"])
        parts.commit()
        assert self.contents() == [b"abc"]

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.binary(max_size=90), max_size=8).flatmap(
            lambda chunks: st.tuples(st.just(chunks), st.lists(st.booleans(), min_size=8))
        ),
        st.integers(1, 120),
    )
    def test_any_chunks_and_any_limit_give_the_same_bytes_in_exact_parts(
        self, stream: tuple[list[bytes], list[bool]], limit: int
    ) -> None:
        chunks, turns = stream
        whole = b"".join(chunks)
        with TemporaryDirectory() as folder:
            parts = Parts(Path(folder), Series("data", limit), lambda: NOON)
            turn: list[bytes] = []
            for chunk, ends in zip(chunks, turns, strict=False):
                turn.append(chunk)
                if ends:
                    parts.write(turn)
                    turn = []
            parts.write(turn)
            receipt = parts.commit()
            laid = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
        assert b"".join(laid) == whole
        assert [len(part) for part in laid[:-1]] == [limit] * (len(laid) - 1)
        assert not laid or 0 < len(laid[-1]) <= limit
        assert receipt == Receipt(len(whole), hashlib.sha256(whole).hexdigest(), len(laid))


class FaultTests(LandingCase):
    def test_a_full_disk_keeps_what_was_written_as_a_shorter_last_part(self) -> None:
        parts = self.parts()
        self.break_write(room=14)
        with pytest.raises(OSError, match=r"no space left: 'data_.*_parte_000002\.bin'"):
            parts.write([b"1234567890", b"abcdefghij"])
        assert parts.fail() == 14
        assert self.contents() == [b"1234567890", b"abcd"]
        assert len(self.names()) == 2

    def test_a_disk_that_takes_not_a_byte_leaves_no_empty_part(self) -> None:
        parts = self.parts()
        self.break_write(room=10)
        with pytest.raises(OSError, match="no space left"):
            parts.write([b"1234567890", b"abcdefghij"])
        assert parts.fail() == 10
        assert self.contents() == [b"1234567890"]
        assert len(self.names()) == 1

    def test_a_part_whose_sync_failed_is_damaged_and_never_synced_again(self) -> None:
        parts = self.parts()
        self.break_sync(2)
        with pytest.raises(OSError, match=r"no such sector: 'data_.*_parte_000002\.bin\.damaged'"):
            parts.write([b"1" * 10 + b"2" * 10 + b"3" * 10 + b"4" * 5])
        assert parts.fail() == 25
        assert self.contents() == [b"1" * 10, b"3" * 10, b"4" * 5]
        assert self.contents(".bin.damaged") == [b"2" * 10]

    def test_a_sync_that_fails_at_the_end_costs_only_the_last_part(self) -> None:
        parts = self.parts()
        self.break_sync(2)
        parts.write([b"1" * 10 + b"2" * 5])
        with pytest.raises(OSError, match="no such sector"):
            parts.commit()
        assert parts.fail() == 10
        assert self.contents() == [b"1" * 10]
        assert self.contents(".bin.damaged") == [b"2" * 5]

    def test_a_failed_sync_of_many_damages_all_of_them(self) -> None:
        parts = self.parts(limit=1)
        asked = self.break_sync_all()
        parts.write([b"abc"])
        with pytest.raises(
            OSError, match=r"no such sector: .*parte_000004.bin.damaged to .*_000103.bin.damaged"
        ):
            parts.write([bytes(100)])
        assert parts.fail() == 3
        assert len(asked) == 1
        assert self.contents() == [b"a", b"b", b"c"]
        assert self.contents(".bin.damaged") == [b"\0"] * 100

    def test_a_full_disk_among_many_tiny_parts_keeps_those_that_were_written(self) -> None:
        self.patch(files, "syncs_at_once", lambda folder: True)
        self.patch(files, "sync_all", lambda folder: None)
        parts = self.parts(limit=2)
        self.break_write(room=99)
        with pytest.raises(OSError, match="no space left"):
            parts.write([bytes(200)])
        assert parts.fail() == 99
        assert self.contents() == [b"\0\0"] * 49 + [b"\0"]
        assert len(self.names()) == 50

    def test_names_that_cannot_be_made_durable_count_for_nothing(self) -> None:
        parts = self.parts()
        parts.write([b"1234567890abc"])
        self.break_folder_sync()
        with pytest.raises(OSError, match=f"no such sector: '{self.folder}'"):
            parts.commit()
        self.patch(os, "fsync", lambda descriptor: None)  # a second one would seem to succeed
        assert parts.fail() == 0

    def test_a_folder_sync_that_fails_after_another_error_counts_for_nothing(self) -> None:
        parts = self.parts()
        self.break_write(room=12)
        self.break_folder_sync()
        with pytest.raises(OSError, match="no space left"):
            parts.write([b"1234567890abc"])
        assert parts.fail() == 0

    def test_a_part_that_cannot_be_renamed_is_not_counted_and_can_be_adopted(self) -> None:
        parts = self.parts()
        rename = os.rename
        refused: list[str] = []

        def refuse_once(old: str, new: str, **folders: int) -> None:
            if not refused:
                refused.append(new)
                raise OSError(errno.EROFS, "read-only")
            rename(old, new, **folders)

        self.patch(os, "rename", refuse_once)
        with pytest.raises(OSError, match="read-only"):
            parts.write([b"1" * 10 + b"2" * 10])
        assert parts.fail() == 10
        assert self.contents() == [b"2" * 10]
        assert self.contents(".partial") == [b"1" * 10]

    def test_a_damaged_part_on_a_disk_gone_read_only_is_still_an_error(self) -> None:
        parts = self.parts()
        self.break_sync(1)

        def refuse(old: str, new: str, **folders: int) -> None:
            raise OSError(errno.EROFS, "read-only")

        self.patch(os, "rename", refuse)
        with pytest.raises(OSError, match="no such sector"):
            parts.write([b"1" * 10])
        assert parts.fail() == 0

    def test_a_process_out_of_descriptors_fails_the_stream_and_keeps_what_it_had(self) -> None:
        parts = self.parts()
        parts.write([b"1234567890"])

        def refuse(path: str, folder: int | None = None) -> int:
            raise OSError(errno.EMFILE, "too many open files")

        self.patch(files, "open_new", refuse)
        with pytest.raises(OSError, match="too many open files"):
            parts.write([b"abc"])
        assert parts.fail() == 10
        assert self.contents() == [b"1234567890"]

    def test_an_empty_part_that_cannot_be_removed_is_left_for_the_next_start(self) -> None:
        parts = self.parts()
        self.break_write(room=0)

        def refuse(path: str, **folders: int) -> None:
            raise OSError(errno.EROFS, "read-only")

        self.patch(os, "unlink", refuse)
        with pytest.raises(OSError, match="no space left"):
            parts.write([b"abc"])
        assert parts.fail() == 0
        assert self.contents(".partial") == [b""]


class RecoveryTests(LandingCase):
    def left(self, number: int, content: bytes, suffix: str = ".partial") -> str:
        name = f"data_20260101000000_abcdefgh_parte_{number:06d}.bin"
        (self.folder / (name + suffix)).write_bytes(content)
        return name

    def test_parts_that_a_crash_left_get_their_names_and_empty_ones_go(self) -> None:
        names = [self.left(n, b"%d" % n) for n in (1, 2)]
        self.left(3, b"")
        assert adopt(self.folder) == (2, 1)
        assert self.names() == names
        assert self.contents() == [b"1", b"2"]
        assert adopt(self.folder) == (0, 0)

    def test_many_are_synced_at_once(self) -> None:
        for number in range(1, 101):
            self.left(number, b"x")
        self.patch(files, "syncs_at_once", lambda folder: True)
        asked: list[int] = []
        self.patch(files, "sync_all", asked.append)
        self.patch(files, "sync_data", lambda descriptor: self.fail("one by one"))
        assert adopt(self.folder) == (100, 0)
        assert len(asked) == 1

    def test_where_that_fails_or_is_not_to_be_trusted_each_is_tried_on_its_own(self) -> None:
        for trusted in (True, False):
            for number in range(1, 41):
                self.left(number + 100 * trusted, b"x")
            self.break_sync_all()
            self.patch(files, "syncs_at_once", lambda folder, trusted=trusted: trusted)
            assert adopt(self.folder) == (40, 0)

    def test_nothing_is_overwritten(self) -> None:
        self.left(1, b"old", suffix="")
        self.left(1, b"new")
        with capturedLogs() as events:
            assert adopt(self.folder) == (0, 0)
        assert "was not adopted: there is a data_" in formatEvent(events[0])
        assert self.contents() == [b"old"]
        assert self.contents(".partial") == [b"new"]

    def test_a_part_that_cannot_be_synced_is_damaged_and_the_others_are_adopted(self) -> None:
        names = [self.left(n, b"%d" % n) for n in (1, 2, 3)]
        self.break_sync(2)
        with capturedLogs() as events:
            assert adopt(self.folder) == (2, 0)
        assert names[1] in formatEvent(events[0])
        assert self.contents() == [b"1", b"3"]
        assert self.contents(".damaged") == [b"2"]
        assert adopt(self.folder) == (0, 0)

    def test_what_is_not_ours_or_is_damaged_is_left_alone(self) -> None:
        self.left(1, b"x", suffix=".damaged")
        (self.folder / "somebody.partial").touch()
        (self.folder / "data_parte_000001.bin.partial").mkdir()
        (self.folder / "link_parte_000001.bin.partial").symlink_to("nowhere")
        before = self.names()
        assert adopt(self.folder) == (0, 0)
        assert self.names() == before

    def test_a_stream_that_was_cut_by_a_crash_is_there_after_the_next_start(self) -> None:
        parts = self.parts()
        parts.write([b"1234567890abc"])
        parts._part.release()  # type: ignore[union-attr]
        parts._leave()
        landing = Landing(self.folder, Crew(reactor))
        with capturedLogs() as events:
            landing.startService()
        assert "parts that a crash left: 1 adopted, 0 empty and removed" in formatEvent(events[0])
        assert self.contents() == [b"1234567890", b"abc"]

    def test_a_start_without_anything_left_says_nothing_and_makes_the_folder(self) -> None:
        landing = Landing(self.folder / "ingest", Crew(reactor))
        landing.check()
        assert self.names() == []
        with capturedLogs() as events:
            landing.startService()
        assert events == []
        assert self.names() == ["ingest"]

    def test_a_folder_that_cannot_be_used_is_refused_at_load_and_only_logged_later(self) -> None:
        (self.folder / "file").touch()
        landing = Landing(self.folder / "file", Crew(reactor))
        with pytest.raises(files.Unusable, match="not a folder"):
            landing.check()
        with capturedLogs() as events:
            landing.startService()
        assert "cannot be used" in formatEvent(events[0])


@define(eq=False)
class Feeder:
    """A source that remembers what it was told."""

    told: list[str] = field(factory=list)
    why: StoreError | None = None

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def broken(self, why: StoreError) -> None:
        self.told.append("broken")
        self.why = why


class WholeTests(TestCase):
    """Real files, real threads, the real reactor."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        crew = Crew(reactor)
        crew.startService()
        self.addCleanup(crew.stopService)
        self.landing = Landing(self.folder, crew)
        self.landing.startService()

    async def test_streams_side_by_side_land_whole(self) -> None:
        streams = [bytes([n]) * (300_000 + n) for n in range(6)]
        feeders = [Feeder() for _ in streams]
        intakes = [self.landing.open(Series("data", 100_000), feeder) for feeder in feeders]
        for start in range(0, 310_000, 65_536):
            for stream, intake in zip(streams, intakes, strict=True):
                intake.write(stream[start : start + 65_536])
        receipts: list[Deferred[Receipt]] = [intake.commit() for intake in intakes]
        for n, (stream, receipt) in enumerate(zip(streams, receipts, strict=True)):
            digest = hashlib.sha256(stream).hexdigest()
            assert await receipt == Receipt(len(stream), digest, len(stream) // 100_000 + (n > 0))
        series = {path.name.partition("_parte_")[0] for path in self.folder.iterdir()}
        landed = [
            b"".join(path.read_bytes() for path in sorted(self.folder.glob(f"{stem}*")))
            for stem in series
        ]
        assert sorted(landed) == streams

    async def test_a_disk_error_reaches_the_source_with_the_bytes_that_are_kept(self) -> None:
        def sync_data(descriptor: int) -> None:
            raise OSError(errno.EIO, "no such sector")

        self.patch(files, "sync_data", sync_data)
        intake = self.landing.open(Series("data", 100), Feeder())
        intake.write(b"abc")
        with pytest.raises(StoreError, match="disk error") as failed:
            await intake.commit()
        assert failed.value.stored == 0

    def test_tiny_parts_wait_in_smaller_numbers(self) -> None:
        small = self.landing.open(Series("data", 15), Feeder())
        large = self.landing.open(Series("data", 64 << 20), Feeder())
        assert (small.high, large.high) == (65_536, 1 << 20)
