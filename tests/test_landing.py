"""Streams in files: cut exactly, named once durable, and what is left when the disk fails."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import define, evolve, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from daemon.stores import files
from daemon.stores.completed import Completed
from daemon.stores.crew import KIT, SPLICES, Crew, Lent
from daemon.stores.landing import Landed, Landing, recovery, series
from daemon.stores.landing.ground import Ground, Place
from daemon.stores.landing.manifest import Manifest, Piece
from daemon.stores.landing.recovery import adopt, finish, listed
from daemon.stores.landing.series import Part, Parts
from protocols.stores import Receipt, Series, StoreError
from tests.process import open_files
from tests.waiting import until

NAME = re.compile(r"data_[0-9]{14}_[a-z2-7]{8}_parte_[0-9]{6,}\.bin")
NOON = 1_800_000_000.0  # seconds since the epoch
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = TEXT.filter(lambda name: name and not {"/", "\0"} & {*name})
SUM = st.one_of(st.none(), st.binary(min_size=32, max_size=32).map(bytes.hex))


class LandingCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.addCleanup(self.holds_no_more_than, len(os.listdir("/dev/fd")))

    def holds_no_more_than(self, descriptors: int) -> None:
        assert len(os.listdir("/dev/fd")) == descriptors

    def parts(self, limit: int = 10, now: float = NOON, checksum: bool = True) -> Parts:
        return self.on(Ground(self.folder, lambda: now), Series("data", limit, checksum))

    def on(self, ground: Ground, series: Series) -> Parts:
        self.addCleanup(ground.close)
        return Parts(ground, series, "127.0.0.1:54321")

    def names(self) -> list[str]:
        """Of the parts; the papers have tests of their own."""
        return sorted(path.name for path in self.folder.iterdir() if "_parte_" in path.name)

    def adopt(self) -> tuple[int, int]:
        ground = Ground(self.folder)
        with ground.visit() as place:
            adopted = adopt(place, listed(ground))
        ground.close()
        return adopted

    def manifests(self) -> list[Manifest]:
        return [
            Manifest.from_json(path.read_bytes()) for path in sorted(self.folder.glob("*.json"))
        ]

    def contents(self, suffix: str = ".bin") -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in self.names() if name.endswith(suffix)]

    def break_sync(self, *broken: int, code: int = errno.EIO) -> None:
        """The nth fdatasync fails, for each n of `broken` (counted from 1)."""
        sync, count = files.sync_data, 0

        def sync_data(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count in broken:
                raise OSError(code, "no such sector")
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)

    def break_write(self, room: int) -> None:
        """The disk takes `room` bytes more; a write that does not fit is short."""
        write: Callable[[int, memoryview], int] = os.write

        def full(descriptor: int, data: memoryview) -> int:
            nonlocal room
            if "_parte_" not in os.readlink(f"/dev/fd/{descriptor}"):
                return write(descriptor, data)
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
        parts = self.on(Ground(folder), Series("data", 10))
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
        parts = self.on(Ground(self.folder, lambda: 0.0), Series("año", 1))
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
        times = count(NOON, 60)
        parts = self.on(Ground(self.folder, lambda: next(times)), Series("data", 1))
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
        papers = ["sync_data", "sync_data", "rename", "rename", "fsync"]
        assert done == ["sync_data", "rename"] * 2 + papers

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
        assert syncs == ["all", "all", "one", "one"]  # and the manifest and the sums
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
        assert parts.commit().parts == len(synced) - 2 == len(self.contents()) == 100

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
            ground = Ground(Path(folder))
            parts = Parts(ground, Series("data", limit))
            turn: list[bytes] = []
            for chunk, ends in zip(chunks, turns, strict=False):
                turn.append(chunk)
                if ends:
                    parts.write(turn)
                    turn = []
            parts.write(turn)
            receipt = parts.commit()
            ground.close()
            laid = [path.read_bytes() for path in sorted(Path(folder).glob("*.bin"))]
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

    def test_names_whose_error_was_told_to_another_stream_count_for_nothing(self) -> None:
        ground = Ground(self.folder)
        parts, other = (self.on(ground, Series("data", 10)) for _ in range(2))
        parts.write([b"abc"])
        other.write([b"def"])
        fsync = os.fsync

        def told_elsewhere(descriptor: int) -> None:
            self.break_folder_sync()
            with pytest.raises(OSError, match="no such sector"):
                other.commit()
            self.patch(os, "fsync", fsync)

        self.patch(os, "fsync", told_elsewhere)
        with pytest.raises(OSError, match="could not be synced"):
            parts.commit()
        assert parts.fail() == 0
        assert other.fail() == 0

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

    def test_a_sync_that_found_no_room_is_no_receipt_however_often_it_is_tried(self) -> None:
        parts = self.parts()
        self.break_sync(1, code=errno.ENOSPC)
        with pytest.raises(OSError, match="no such sector"):
            parts.write([b"1" * 10 + b"2" * 5])
        for again in (lambda: parts.write([]), parts.commit, parts.commit):
            with pytest.raises(OSError, match="no such sector"):
                again()
        assert parts.fail() == 5
        assert self.contents() == [b"2" * 5]
        assert self.contents(".bin.damaged") == [b"1" * 10]

    def test_what_was_written_before_a_sync_failed_is_not_written_again(self) -> None:
        self.patch(files, "syncs_at_once", lambda folder: False)
        parts, stream = self.parts(limit=1), bytes(range(3 * series.MANY))
        self.break_sync(5, code=errno.ENOSPC)
        for chunks in ([stream], [], []):
            with pytest.raises(OSError, match="no such sector"):
                parts.write(chunks)
        assert parts.fail() == len(stream) - 1
        assert b"".join(self.contents()) == stream[:4] + stream[5:]

    def test_several_parts_that_fail_cost_no_other(self) -> None:
        parts = self.parts()
        self.break_sync(2, 3)
        with pytest.raises(OSError, match="no such sector"):
            parts.write([b"0" * 10 + b"1" * 10 + b"2" * 5])
        assert parts.fail() == 10
        assert self.contents() == [b"0" * 10]
        assert [(one.size, one.outcome) for one in self.manifests()] == [(10, "failed")]

    def test_a_part_that_cannot_be_closed_for_its_age_costs_no_byte(self) -> None:
        now = [NOON]
        parts = self.on(Ground(self.folder, lambda: now[0]), Series("data", 100, rotate=5.0))
        parts.resting = True
        parts.write([b"first"])
        now[0] += 10
        opens = os.open

        def refuse(path: Any, *how: Any, **where: Any) -> int:
            raise OSError(errno.EMFILE, "too many open files")

        self.patch(os, "open", refuse)
        with pytest.raises(OSError, match="too many open files"):
            parts.write([b"second"])
        self.patch(os, "open", opens)
        parts.write([b"third"])
        assert parts.commit().size == 16
        assert self.contents() == [b"first", b"secondthird"]

    def test_a_mistake_of_ours_leaves_nothing_in_the_pipe_for_another_stream(self) -> None:
        if not SPLICES:
            raise SkipTest("there is no splice here")
        ours, theirs = socket.socketpair()
        self.addCleanup(KIT.close)

        def stumble(*about: object) -> None:
            raise ZeroDivisionError

        self.patch(Parts, "_took", stumble)
        parts = self.parts(checksum=False)
        lent: Any = Lent(SimpleNamespace(socket=ours), None)  # type: ignore[arg-type]
        with ours, theirs:
            theirs.send(bytes(100))
            with pytest.raises(ZeroDivisionError):
                parts.pull(lent, 1000)
        with pytest.raises(BlockingIOError):
            os.read(KIT.pipe()[0], 100)
        parts.fail()

    def test_a_full_part_in_the_middle_of_a_read_costs_no_byte_of_the_next_one(self) -> None:
        """Where there is no splice, and the part is read back by the thread that has the rest."""
        self.patch(series, "SPLICES", False)
        self.patch(series, "TINY", 1)
        data = bytes(range(256)) * 40
        parts = self.on(Ground(self.folder), Series("data", 2500, read=1000))
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)
            lent: Any = Lent(SimpleNamespace(socket=ours), None)  # type: ignore[arg-type]
            parts.pull(lent, 1 << 20)
        assert parts.commit().sha256 == hashlib.sha256(data).hexdigest()
        assert b"".join(self.contents()) == data

    def test_a_stream_whose_part_is_cut_by_somebody_else_fails_and_keeps_the_rest(self) -> None:
        self.patch(series, "TINY", 1)
        ground = Ground(self.folder)
        parts = self.on(ground, Series("data", 100))
        parts.write([bytes(150)])
        os.truncate(self.folder / self.names()[-1], 10)
        with pytest.raises(OSError, match="became shorter"):
            parts.commit()
        assert parts.fail() == 100
        assert not [link for link in open_files() if "_parte_" in link]
        assert self.manifests() == []  # the next start reads what is there


class RecoveryTests(LandingCase):
    def left(self, number: int, content: bytes, suffix: str = ".partial") -> str:
        name = f"data_20260101000000_abcdefgh_parte_{number:06d}.bin"
        (self.folder / (name + suffix)).write_bytes(content)
        return name

    def test_parts_that_a_crash_left_get_their_names_and_empty_ones_go(self) -> None:
        names = [self.left(n, b"%d" % n) for n in (1, 2)]
        self.left(3, b"")
        assert self.adopt() == (2, 1)
        assert self.names() == names
        assert self.contents() == [b"1", b"2"]
        assert self.adopt() == (0, 0)

    def test_many_are_synced_at_once(self) -> None:
        for number in range(1, 101):
            self.left(number, b"x")
        self.patch(files, "syncs_at_once", lambda folder: True)
        asked: list[int] = []
        self.patch(files, "sync_all", asked.append)
        self.patch(files, "sync_data", lambda descriptor: self.fail("one by one"))
        assert self.adopt() == (100, 0)
        assert len(asked) == 1

    def test_where_that_fails_or_is_not_to_be_trusted_each_is_tried_on_its_own(self) -> None:
        for trusted in (True, False):
            for number in range(1, 41):
                self.left(number + 100 * trusted, b"x")
            self.break_sync_all()
            self.patch(files, "syncs_at_once", lambda folder, trusted=trusted: trusted)
            assert self.adopt() == (40, 0)

    def test_nothing_is_overwritten(self) -> None:
        self.left(1, b"old", suffix="")
        self.left(1, b"new")
        with capturedLogs() as events:
            assert self.adopt() == (0, 0)
        assert "was not adopted: there is a data_" in formatEvent(events[0])
        assert self.contents() == [b"old"]
        assert self.contents(".partial") == [b"new"]

    def test_a_part_that_cannot_be_synced_is_damaged_and_the_others_are_adopted(self) -> None:
        names = [self.left(n, b"%d" % n) for n in (1, 2, 3)]
        self.break_sync(2)
        with capturedLogs() as events:
            assert self.adopt() == (2, 0)
        assert names[1] in formatEvent(events[0])
        assert self.contents() == [b"1", b"3"]
        assert self.contents(".damaged") == [b"2"]
        assert self.adopt() == (0, 0)

    def test_a_stop_does_not_wait_until_all_that_a_crash_left_is_read(self) -> None:
        name = self.left(1, b"abc", suffix="")
        stem = name.partition("_parte_")[0]
        ground = Ground(self.folder)
        self.addCleanup(ground.close)
        self.patch(recovery, "_BLOCK", 1)
        going = iter([True, True, False])
        assert not finish(stem, [name], ground, lambda: next(going))
        assert self.manifests() == []
        assert finish(stem, [name], ground)
        assert [one.size for one in self.manifests()] == [3]

    def test_what_is_not_ours_or_is_damaged_is_left_alone(self) -> None:
        self.left(1, b"x", suffix=".damaged")
        (self.folder / "somebody.partial").touch()
        (self.folder / os.fsdecode(b"\xff_parte_000001.bin.partial")).touch()
        (self.folder / "data_parte_000001.bin.partial").mkdir()
        (self.folder / "link_parte_000001.bin.partial").symlink_to("nowhere")
        before = self.names()
        assert self.adopt() == (0, 0)
        assert self.names() == before


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

    def returned(self) -> None:
        self.told.append("returned")


class LandingTests(TestCase):
    """Real files, real threads, the real reactor."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.crew = Crew(reactor)
        self.crew.startService()
        self.addCleanup(self.crew.stopService)
        self.stops: list[Landing] = []
        self.addCleanup(self.stop)

    async def start(self, folder: Path | None = None, stop: bool = True) -> Landing:
        landing = Landing(folder or self.folder, self.crew)
        landing.startService()
        await self.crew.idle()
        self.stops.append(landing)
        return landing

    def stop(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        for landing in self.stops:
            await landing.stopService()
        self.stops.clear()

    async def kept(self, intake: Landed, outcome: str = "whole") -> Receipt:
        receipt: Receipt = await intake.commit(outcome)
        return receipt

    def contents(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("*.bin"))]

    def manifests(self) -> list[Manifest]:
        return [
            Manifest.from_json(path.read_bytes()) for path in sorted(self.folder.glob("*.json"))
        ]

    def papers(self) -> set[str]:
        """The suffixes of what is in the folder, but for the parts."""
        return {path.name.partition(".")[2] for path in self.folder.iterdir()} - {"bin"}


class WholeTests(LandingTests):
    async def test_streams_side_by_side_land_whole(self) -> None:
        landing = await self.start()
        streams = [bytes([n]) * (300_000 + n) for n in range(6)]
        intakes = [landing.open(Series("data", 100_000), Feeder()) for _ in streams]
        for start in range(0, 310_000, 65_536):
            for stream, intake in zip(streams, intakes, strict=True):
                intake.write(stream[start : start + 65_536])
        receipts: list[Deferred[Receipt]] = [intake.commit() for intake in intakes]
        for n, (stream, receipt) in enumerate(zip(streams, receipts, strict=True)):
            digest = hashlib.sha256(stream).hexdigest()
            assert await receipt == Receipt(len(stream), digest, len(stream) // 100_000 + (n > 0))
        landed = [
            b"".join((self.folder / part.name).read_bytes() for part in manifest.parts)
            for manifest in self.manifests()
        ]
        assert sorted(landed) == streams
        sums = {hashlib.sha256(part).hexdigest() for part in self.contents()}
        told = b"".join(path.read_bytes() for path in self.folder.glob("*.sha256"))
        assert {line[:64] for line in told.decode().splitlines()} == sums

    async def test_sha256sum_agrees(self) -> None:
        if shutil.which("sha256sum") is None:
            raise SkipTest("sha256sum is not here")
        landing = await self.start()
        for size in (100, 250_000):
            intake = landing.open(Series("a\\b", 100_000), Feeder())
            intake.write(bytes(size))
            await self.kept(intake)
        await self._stop()
        for sums in self.folder.glob("*.sha256"):
            checked = subprocess.run(
                ["sha256sum", "-c", "--strict", sums.name],
                cwd=self.folder,
                capture_output=True,
                check=False,
            )
            assert checked.returncode == 0, checked.stderr

    async def test_a_disk_error_reaches_the_source_with_the_bytes_that_are_kept(self) -> None:
        landing = await self.start()

        def sync_data(descriptor: int) -> None:
            raise OSError(errno.EIO, "no such sector")

        self.patch(files, "sync_data", sync_data)
        for size in (3, 100_000):
            intake = landing.open(Series("data", 1 << 20), Feeder())
            intake.write(bytes(size))
            with pytest.raises(StoreError, match="disk error") as failed:
                await self.kept(intake)
            assert failed.value.stored == 0
        assert self.contents() == []

    async def test_a_stream_that_breaks_is_forgotten_and_what_is_kept_of_it_announced(self) -> None:
        landing = await self.start()
        announced: list[Path] = []
        self.patch(Completed, "add", lambda _, manifest: announced.append(manifest))
        sync, synced = files.sync_data, count(1)

        def sync_data(descriptor: int) -> None:
            if next(synced) == 2:
                raise OSError(errno.EIO, "no such sector")
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)
        feeder = Feeder()
        intake = landing.open(Series("data", 100_000), feeder)
        intake.write(bytes(250_000))
        for _ in range(300):
            await deferLater(reactor, 0.01)
            intake.write(bytes(10))  # a turn hears of the one before
            if feeder.why is not None:
                break
        assert feeder.why is not None
        assert feeder.why.stored > 100_000
        assert not landing._open
        assert announced == list(self.folder.glob("*.json"))
        assert [one.outcome for one in self.manifests()] == ["failed"]

    async def test_a_stream_that_rests_is_in_its_part_and_holds_no_descriptor(self) -> None:
        self.patch(Landing, "BEAT", 0.02)
        landing = await self.start()
        intake = landing.open(Series("data", 1 << 20), Feeder())
        intake.write(b"slow ")
        for _ in range(100):
            await deferLater(reactor, 0.01)
            if [path.stat().st_size for path in self.folder.glob("*.bin.partial")] == [5]:
                break
        assert landing.held == 0
        await deferLater(reactor, 0.02 * (Landed.RESTS + 2))
        assert not [link for link in open_files() if "_parte_" in link]
        intake.write(b"sensor")
        assert (await self.kept(intake)).size == 11
        assert self.contents() == [b"slow sensor"]

    async def test_of_many_that_begin_to_rest_few_wait_for_a_thread(self) -> None:
        self.patch(Landing, "BEAT", 0.02)
        self.patch(Landing, "ABREAST", Crew.SIZE)
        free = threading.Event()
        self.addCleanup(free.set)
        begin = Parts._begin

        def held(parts: Parts, place: Place) -> Part:
            assert free.wait(5)
            return begin(parts, place)

        self.patch(Parts, "_begin", held)
        landing = await self.start()
        intakes = [landing.open(Series("data", 1 << 20), Feeder()) for _ in range(5 * Crew.SIZE)]
        for intake in intakes:
            intake.write(b"slow")
        await deferLater(reactor, 0.3)
        assert landing.held == 4 * len(b"slow") * Crew.SIZE
        free.set()
        for _ in range(100):
            await deferLater(reactor, 0.01)
            if landing.held == 0:
                break
        assert landing.held == 0
        for intake in intakes:
            assert (await self.kept(intake)).size == 4

    async def test_what_is_held_in_memory_is_bounded(self) -> None:
        self.patch(Landing, "HELD", 100)
        landing = await self.start()
        intakes = [landing.open(Series("data", 1 << 20), Feeder()) for _ in range(10)]
        for intake in intakes:
            intake.write(bytes(30))
            assert landing.held <= 100
        for intake in intakes:
            assert (await self.kept(intake)).size == 30
        assert landing.held == 0

    async def test_a_stream_of_tiny_pieces_costs_about_its_bytes(self) -> None:
        landing = await self.start()
        intake = landing.open(Series("data", 1 << 20), Feeder())
        for number in range(10_000):
            intake.write(b"%02d" % (number % 100))
        assert sum(map(sys.getsizeof, intake._chunks)) < 25_000
        assert (await self.kept(intake)).size == 20_000
        assert self.contents() == [b"".join(b"%02d" % n for n in range(100)) * 100]

    async def test_an_aborted_stream_leaves_nothing_small_or_large(self) -> None:
        landing = await self.start()
        for size in (3, 100_000):
            intake = landing.open(Series("data", 1 << 20), Feeder())
            intake.write(bytes(size))
            intake.abort()
        await self.crew.idle()
        await self._stop()
        assert list(self.folder.iterdir()) == []

    async def test_a_part_is_closed_by_age_also_while_its_stream_rests(self) -> None:
        self.patch(Landing, "BEAT", 0.02)
        landing = await self.start()
        intake = landing.open(Series("data", 1 << 20, rotate=0.1), Feeder())
        for letter in (b"a", b"b"):
            intake.write(letter)
            for _ in range(200):
                await deferLater(reactor, 0.01)
                if letter in self.contents():
                    break
        receipt = await self.kept(intake)
        assert (receipt.size, receipt.parts) == (2, 2)
        assert self.contents() == [b"a", b"b"]

    async def test_a_command_is_run_once_for_each_durable_series(self) -> None:
        landing = await self.start()
        told = self.folder.parent / (self.folder.name + ".told")
        self.addCleanup(told.unlink, missing_ok=True)
        landing.on_complete(["/bin/sh", "-c", f'echo "$1" >> "{told}"', "sh"])
        for size in (3, 100_000):
            intake = landing.open(Series("data", 1 << 20), Feeder())
            intake.write(bytes(size))
            await self.kept(intake)
        for _ in range(300):
            await deferLater(reactor, 0.01)
            if told.exists() and len(told.read_text().split()) == 2 and not self.marks():
                break
        assert sorted(told.read_text().split()) == sorted(map(str, self.folder.glob("*.json")))
        assert not self.marks()

    def marks(self) -> list[Path]:
        return list(self.folder.glob("*.pending"))


class WrittenTests(LandingTests):
    """Series(durable=False): whoever sends does not wait for the disk."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = threading.Event()
        self.addCleanup(self.disk.set)
        sync = files.sync_data

        def sync_data(descriptor: int) -> None:
            assert self.disk.wait(5)
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)

    def sent(self, landing: Landing, size: int = 250_000) -> Landed:
        self.source = Feeder()
        intake = landing.open(Series("data", 100_000, durable=False), self.source)
        intake.write(bytes(size))
        return intake

    def behind(self, landing: Landing) -> int:
        (found,) = (m for m in landing.measures() if m.name == "ingest_unsynced_streams")
        assert isinstance(found.value, int)
        return found.value

    async def test_its_end_waits_until_all_is_written_and_the_rest_follows(self) -> None:
        landing = await self.start()
        assert await self.kept(self.sent(landing)) == Receipt(250_000, None, 3)
        written = sorted(path.stat().st_size for path in self.folder.glob("*_parte_*.partial"))
        assert written == [50_000, 100_000, 100_000]
        assert (self.behind(landing), landing.streams) == (1, 0)
        self.disk.set()
        await self.crew.idle()
        assert (self.behind(landing), landing.streams) == (0, 1)
        (manifest,) = self.manifests()
        assert (manifest.size, manifest.complete) == (250_000, True)
        assert manifest.sha256 == hashlib.sha256(bytes(250_000)).hexdigest()
        assert self.papers() == {"json", "sha256"}

    async def test_no_crew_waits_for_the_disk_however_many_there_are(self) -> None:
        landing = await self.start()
        for _ in range(2 * Crew.SIZE):
            await self.kept(self.sent(landing))
        assert self.behind(landing) == 2 * Crew.SIZE
        self.disk.set()
        await self.crew.idle()
        assert landing.streams == 2 * Crew.SIZE

    async def test_so_many_and_no_more_may_be_behind(self) -> None:
        self.patch(Landing, "BEHIND", 1)
        landing = await self.start()
        await self.kept(self.sent(landing))
        second: Deferred[Receipt] = self.sent(landing).commit()
        await deferLater(reactor, 0.1)
        assert not second.called
        self.disk.set()
        assert await second == Receipt(250_000, hashlib.sha256(bytes(250_000)).hexdigest(), 3)

    async def test_cores_and_disk_are_left_to_a_burst_for_a_while(self) -> None:
        self.patch(Landing, "LATER", 0.2)
        self.disk.set()
        sync, times = files.sync_data, list[float]()

        def sync_data(descriptor: int) -> None:
            times.append(time.monotonic())
            sync(descriptor)

        self.patch(files, "sync_data", sync_data)
        landing = await self.start()
        began = time.monotonic()
        await self.kept(self.sent(landing))
        await self.crew.idle()
        assert min(times) - began >= 0.2
        assert len([*self.folder.glob("*.bin")]) == 3

    async def test_a_part_does_not_wait_for_its_stream(self) -> None:
        self.patch(Landing, "LATER", 0.05)
        self.disk.set()
        intake = self.sent(await self.start())
        await until(lambda: len([*self.folder.glob("*.bin")]) == 2)
        await self.kept(intake)

    async def test_a_stream_that_is_far_ahead_of_the_disk_hurries_it(self) -> None:
        self.patch(Landing, "LATER", 60.0)
        self.patch(series, "FAR", 2)
        self.disk.set()
        landing = await self.start()
        intake = landing.open(Series("data", 100_000, durable=False), Feeder())
        for _ in range(100):
            intake.write(bytes(100_000))
            await deferLater(reactor, 0.02)  # a turn of its own, mostly
            if [*self.folder.glob("*.bin")]:
                break
        assert [*self.folder.glob("*.bin")]
        await self.kept(intake)

    async def test_many_streams_that_are_behind_hurry_it(self) -> None:
        self.patch(Landing, "LATER", 60.0)
        self.patch(Landing, "BEHIND", 4)
        self.disk.set()
        landing = await self.start()
        for _ in range(3):
            await self.kept(self.sent(landing))
        await self.crew.idle()
        assert landing.streams == 3

    async def test_who_has_to_wait_after_all_hurries_it(self) -> None:
        self.patch(Landing, "LATER", 60.0)
        self.patch(Landing, "BEHIND", 0)
        self.disk.set()
        assert (await self.kept(self.sent(await self.start()))).parts == 3

    async def test_a_stop_does_not_wait_for_the_time_to_come(self) -> None:
        self.patch(Landing, "LATER", 60.0)
        self.disk.set()
        await self.kept(self.sent(await self.start()))
        await self._stop()
        assert [manifest.complete for manifest in self.manifests()] == [True]

    async def test_a_part_is_not_begun_with_early(self) -> None:
        self.patch(series, "AHEAD", 1000)
        self.patch(files, "begin_write_back", lambda *about: self.fail(f"{about}"))
        self.disk.set()
        await self.kept(self.sent(await self.start()))

    async def test_a_stop_waits_for_what_is_behind(self) -> None:
        landing = await self.start()
        await self.kept(self.sent(landing))
        stopped = Deferred.fromCoroutine(self._stop())
        await deferLater(reactor, 0.1)
        assert not stopped.called
        self.disk.set()
        await stopped
        assert [manifest.complete for manifest in self.manifests()] == [True]

    async def test_a_disk_that_fails_afterwards_is_told_to_the_log(self) -> None:
        landing = await self.start()

        def sync_data(descriptor: int) -> None:
            assert self.disk.wait(5)
            raise OSError(errno.EIO, "no such sector")

        self.patch(files, "sync_data", sync_data)
        await self.kept(self.sent(landing))
        with capturedLogs() as events:
            self.disk.set()
            await self.crew.idle()
        told = [str(formatEvent(event)) for event in events]
        assert told[0].startswith("storing failed: [Errno 5] no such sector")
        assert re.fullmatch(
            r"data_\d{14}_[a-z2-7]{8}, which nobody waited for: 0 of 250000 bytes kept", told[1]
        )
        assert self.source.told == []
        assert len(list(self.folder.glob("*.damaged"))) == 3
        assert self.behind(landing) == 0

    async def test_a_mistake_of_ours_is_no_less_told(self) -> None:
        landing = await self.start()

        def stumble(*about: object) -> None:
            raise ZeroDivisionError

        self.patch(Ground, "publish", stumble)
        self.disk.set()
        with capturedLogs() as events:
            await self.kept(self.sent(landing))
            await self.crew.idle()
        assert [event["event"] for event in events] == ["store.broken", "ingest.late"]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert self.behind(landing) == 0

    async def test_a_disk_that_takes_not_all_of_it_fails_its_end(self) -> None:
        landing = await self.start()
        write: Callable[[int, memoryview], int] = os.write

        def broken(descriptor: int, data: memoryview) -> int:
            if "_parte_" in os.readlink(f"/dev/fd/{descriptor}"):
                raise OSError(errno.EIO, "no such sector")
            return write(descriptor, data)

        self.disk.set()
        self.patch(os, "write", broken)
        with pytest.raises(StoreError, match="disk error"):
            await self.kept(self.sent(landing))
        assert self.source.told == []
        assert self.behind(landing) == 0


class StartTests(LandingTests):
    async def test_a_stream_that_was_cut_by_a_crash_is_there_with_a_manifest(self) -> None:
        ground = Ground(self.folder)
        parts = Parts(ground, Series("data", 10), "127.0.0.1:54321")
        parts.write([b"1234567890abc"])
        parts._part.release()  # type: ignore[union-attr]
        parts._leave()
        ground.close()
        with capturedLogs() as events:
            await self.start()
        assert "parts that a crash left: 1 adopted, 0 empty and removed" in formatEvent(events[0])
        assert self.contents() == [b"1234567890", b"abc"]
        (manifest,) = self.manifests()
        assert (manifest.size, manifest.outcome, manifest.complete) == (13, "crash", False)
        assert manifest.sha256 == hashlib.sha256(b"1234567890abc").hexdigest()
        assert manifest.peer == "127.0.0.1:54321"
        assert self.papers() == {"json", "sha256"}

    async def test_a_series_that_only_lacked_its_manifest_gets_it(self) -> None:
        name = "data_20260101000000_abcdefgh"
        (self.folder / f"{name}_parte_000001.bin").write_bytes(b"one")
        (self.folder / f"{name}_parte_000003.bin").write_bytes(b"three")
        (self.folder / f"{name}.json.partial").write_bytes(b"")
        (self.folder / "data_20260101000000_nothing2.json.partial").write_bytes(b"{}")
        await self.start()
        (manifest,) = self.manifests()
        assert [part.size for part in manifest.parts] == [3, 5]
        assert manifest.sha256 is None, "a part is missing"
        assert self.papers() == {"json", "sha256"}

    async def test_a_small_stream_that_came_not_into_the_journal_gets_its_manifest(self) -> None:
        name = "data_20260101000000_abcdefgh"
        (self.folder / f"{name}_parte_000001.bin").write_bytes(b"one")
        (self.folder / "data_20260101000000_bcdefghi_parte_000001.bin").write_bytes(b"")
        await self.start()
        assert self.manifests() == [], "without a journal they are somebody's own files"
        await self._stop()
        (self.folder / ".journal-1234").write_bytes(b"")
        await self.start()
        assert [(one.series, one.outcome) for one in self.manifests()] == [(name, "crash")]
        assert self.contents() == [b"one"]

    async def test_what_the_manifest_of_a_cut_series_proves_is_durable_before_it(self) -> None:
        name = "data_20260101000000_abcdefgh"
        (self.folder / f"{name}_parte_000001.bin").write_bytes(b"one")
        (self.folder / ".journal-1234").write_bytes(b"")
        synced: list[str] = []
        sync = files.sync_data

        def sync_data(descriptor: int) -> None:
            synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
            sync(descriptor)

        self.patch(files, "syncs_at_once", lambda folder: False)
        self.patch(files, "sync_data", sync_data)
        await self.start()
        assert synced == [
            f"{name}_parte_000001.bin",
            f"{name}.sha256.partial",
            f"{name}.json.partial",
        ]

    async def test_a_series_that_has_its_manifest_is_left_alone(self) -> None:
        landing = await self.start()
        intake = landing.open(Series("data", 1 << 20), Feeder())
        intake.write(bytes(100_000))
        await self.kept(intake)
        before = {path: path.stat().st_mtime_ns for path in self.folder.iterdir()}
        await self._stop()
        await self.start()
        assert {path: path.stat().st_mtime_ns for path in self.folder.iterdir()} == before

    async def test_a_start_without_anything_left_says_nothing_and_makes_the_folder(self) -> None:
        with capturedLogs() as events:
            await self.start(self.folder / "ingest")
        assert events == []
        assert (self.folder / "ingest").is_dir()

    async def test_a_folder_that_cannot_be_used_is_refused_at_load_and_logged_later(self) -> None:
        (self.folder / "file").touch()
        with pytest.raises(files.Unusable, match="not a folder"):
            Landing(self.folder / "file", self.crew).check()
        with capturedLogs() as events:
            landing = await self.start(self.folder / "file")
        assert "cannot be used" in formatEvent(events[0])
        (self.folder / "file").unlink()
        intake = landing.open(Series("data", 10), Feeder())
        intake.write(b"abc")
        assert (await self.kept(intake)).size == 3, "it is well again without a restart"


class RoomTests(LandingCase):
    """How much a folder may hold."""

    def land(self, parts: Parts, data: bytes) -> None:
        parts.write([data])
        parts.commit()

    def series(self, **limits: Any) -> Series:
        return Series("data", 1 << 20, **limits)

    def test_too_little_free_space_is_a_full_disk(self) -> None:
        parts = self.on(Ground(self.folder), self.series(free=1 << 60))
        with pytest.raises(OSError, match="MIN_FREE") as full:
            parts.write([b"abc"])
        assert full.value.errno == errno.ENOSPC
        self.patch(files, "check_free", lambda folder, least: None)
        parts.write([])
        assert parts.commit().size == 3, "nothing was lost meanwhile"

    def test_a_quota_is_kept_to_the_byte_and_noticed_again_when_files_go(self) -> None:
        ground = Ground(self.folder)
        self.patch(Ground, "RECOUNT", 0.0)
        self.land(self.on(ground, self.series(quota=0)), bytes(50_000))
        parts = self.on(ground, self.series(quota=100_000))
        parts.write([bytes(40_000)])
        with pytest.raises(OSError, match="QUOTA") as full:
            parts.write([bytes(20_000)])
        assert full.value.errno == errno.EDQUOT
        assert sum(path.stat().st_size for path in self.folder.iterdir()) < 100_000
        for path in self.folder.glob("*.bin"):
            path.unlink()
        parts.write([])
        assert parts.commit().size == 60_000

    def test_the_oldest_whole_series_make_room_where_that_is_wanted(self) -> None:
        ground = Ground(self.folder)
        for number in range(4):
            self.land(self.on(ground, self.series()), b"%d" % number * 30_000)
            for path in self.manifests_of_ours():
                if path.stat().st_mtime > 100:
                    os.utime(path, (number, number))
        (self.folder / "somebody.json").write_bytes(b"{}")
        os.utime(self.folder / "somebody.json", (0, 0))
        self.land(self.on(ground, self.series(quota=100_000, oldest=True)), b"n" * 30_000)
        assert sorted(content[:1] for content in self.contents()) == [b"2", b"3", b"n"]
        assert len(self.manifests_of_ours()) == 3
        assert (self.folder / "somebody.json").exists()
        assert len(list(self.folder.glob("*.sha256"))) == 3

    def test_room_is_made_with_all_that_belongs_to_a_series_and_past_what_does_not(self) -> None:
        ground = Ground(self.folder)
        self.land(self.on(ground, self.series()), bytes(30_000))
        (oldest,) = self.manifests_of_ours()
        for mark in (".pending", ".failed"):
            oldest.with_suffix(mark).touch()
        (self.folder / "somebody.json").mkdir()
        os.utime(self.folder / "somebody.json", (0, 0))
        self.land(self.on(ground, self.series(quota=50_000, oldest=True)), bytes(30_000))
        (left,) = self.manifests_of_ours()
        assert left != oldest
        assert not list(self.folder.glob(f"{oldest.stem}*"))

    def manifests_of_ours(self) -> list[Path]:
        return list(self.folder.glob("data_*.json"))

    def test_a_series_in_progress_never_makes_room(self) -> None:
        parts = self.on(Ground(self.folder), self.series(quota=1000, oldest=True))
        parts.write([bytes(900)])
        with pytest.raises(OSError, match="QUOTA"):
            parts.write([bytes(200)])
        assert parts.fail() == 900
        assert self.contents() == [bytes(900)]


class ManifestTests(LandingCase):
    def test_it_says_what_is_there_and_how_it_ended(self) -> None:
        parts = self.parts()
        parts.write([b"1234567890abc"])
        parts.commit("reset")
        (manifest,) = self.manifests()
        one, two = self.names()
        assert manifest == Manifest(
            one.partition("_parte_")[0],
            13,
            hashlib.sha256(b"1234567890abc").hexdigest(),
            (
                Piece(one, 10, hashlib.sha256(b"1234567890").hexdigest()),
                Piece(two, 3, hashlib.sha256(b"abc").hexdigest()),
            ),
            "127.0.0.1:54321",
            NOON,
            NOON,
            "reset",
        )
        assert not manifest.complete

    @given(
        st.builds(
            Manifest,
            TEXT,
            st.integers(0),
            SUM,
            st.lists(st.builds(Piece, NAMES, st.integers(0), SUM), max_size=3).map(tuple),
            TEXT,
            st.floats(0, 4e9),
            st.floats(0, 4e9),
            st.one_of(st.just("whole"), TEXT),
        )
    )
    @settings(deadline=None)
    def test_it_is_the_json_that_a_library_writes_of_it(self, manifest: Manifest) -> None:
        text = manifest.to_json()
        assert text.decode() == json.dumps(json.loads(text), ensure_ascii=False, indent=1) + "\n"
        again = Manifest.from_json(text)
        assert evolve(again, opened=0, closed=0) == evolve(manifest, opened=0, closed=0)
        assert again.opened == pytest.approx(manifest.opened, abs=0.001)
        assert again.closed == pytest.approx(manifest.closed, abs=0.001)
        assert json.loads(text)["complete"] is manifest.complete

    def test_without_checksums_there_are_no_sums(self) -> None:
        parts = self.parts(checksum=False)
        parts.write([b"x"])
        parts.commit()
        (manifest,) = self.manifests()
        assert (manifest.sha256, manifest.parts[0].sha256, manifest.complete) == (None, None, True)
        assert list(self.folder.glob("*.sha256")) == []

    def test_what_failed_has_a_manifest_of_what_was_kept(self) -> None:
        parts = self.parts()
        self.break_write(room=14)
        with pytest.raises(OSError, match="no space left"):
            parts.write([b"1234567890", b"abcdefghij"])
        assert parts.fail() == 14
        (manifest,) = self.manifests()
        assert (manifest.size, manifest.outcome) == (14, "failed")
        assert [part.sha256 for part in manifest.parts] == [
            hashlib.sha256(part).hexdigest() for part in (b"1234567890", b"abcd")
        ]

    def test_a_damaged_part_is_not_in_it(self) -> None:
        parts = self.parts()
        self.break_sync(2)
        with pytest.raises(OSError, match="no such sector"):
            parts.write([b"1" * 10 + b"2" * 10 + b"3" * 10])
        assert parts.fail() == 20
        (manifest,) = self.manifests()
        assert [part.name[-10:] for part in manifest.parts] == ["000001.bin", "000003.bin"]
        assert manifest.sha256 is None

    def test_what_no_daemon_wrote_is_refused_in_one_line(self) -> None:
        good = json.loads(Manifest("s", 0, None, (), "p", 0, 0, "whole").to_json())
        for bad in (
            b"",
            b"[]",
            b"\xff",
            b"[" * 100_000,
            *(json.dumps({**good, key: None}).encode() for key in ("series", "opened", "parts")),
            json.dumps({**good, "bytes": -1}).encode(),
            json.dumps({**good, "sha256": "x"}).encode(),
            json.dumps({**good, "parts": [{"name": "../x", "bytes": 1, "sha256": None}]}).encode(),
        ):
            with pytest.raises(ValueError, match=r"^no manifest: [^\n]*$"):
                Manifest.from_json(bad)
