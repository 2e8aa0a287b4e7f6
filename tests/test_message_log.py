"""The log file follows the table: in order, each message once, whatever happened to the file."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores import files
from daemon.stores.ledger import MIGRATIONS
from daemon.stores.message_log import MessageLog, last_record, sequence
from protocols.handshake_formats import records as lines

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ROW = st.tuples(st.integers(1, 1 << 62), st.just("2026-11-21T09:30:00.123Z"), TEXT, TEXT)


class LineTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=200)
    @given(st.lists(ROW, max_size=4))
    def test_any_message_is_one_printable_line_that_says_it_exactly(self, rows: list[Any]) -> None:
        data = lines(rows)
        assert all(32 <= byte < 127 or byte == 10 for byte in data)
        records = [json.loads(line) for line in data.decode().splitlines()]
        assert [(r["seq"], r["time"], r["id"], r["message"]) for r in records] == rows
        assert [sequence(line) for line in data.splitlines()] == [row[0] for row in rows]

    def test_a_line_has_this_shape(self) -> None:
        row = (7, "2026-11-21T09:30:00.123Z", "ana", "a\nb\x7f\u2028ñ\x00")
        assert lines([row]) == (
            b'{"time": "2026-11-21T09:30:00.123Z", "seq": 7, "id": "ana",'
            b' "message": "a\\nb\\u007f\\u2028\\u00f1\\u0000"}\n'
        )

    @settings(deadline=None, max_examples=200)
    @given(st.lists(ROW, max_size=3), st.binary(max_size=30))
    def test_whatever_follows_the_last_line_of_ours_is_cut(
        self, rows: list[Any], rest: bytes
    ) -> None:
        ours = lines(rows)
        for tail in (rest, ours[:-1][:7], b"\0" * 50, b"{}\n[1]\n" + b"[" * 5000 + b"\n1"):
            keep, seq = last_record(ours + tail)
            if rows:
                assert (keep, seq) == (len(ours), rows[-1][0])
            else:
                assert (keep, seq) == (tail.rfind(b"\n") + 1, None)


class Following(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "logfile.log"
        self.table = sqlite3.connect(Path(folder.name) / "x.db", isolation_level=None)
        self.addCleanup(self.table.close)
        self.table.executescript("PRAGMA synchronous = OFF;" + "".join(MIGRATIONS))
        self.log = self.fresh()

    def fresh(self) -> MessageLog:
        """As after a restart."""
        log = MessageLog(self.path)
        self.addCleanup(log.close)
        return log

    def says(self, *texts: str) -> None:
        self.table.executemany(
            "INSERT INTO messages (at, id, message, peer) VALUES ('now', 'ana', ?, 'p')",
            [(text,) for text in texts],
        )

    def follows(self, log: MessageLog | None = None) -> None:
        (log or self.log).follow(self.table)

    def logged(self, path: Path | None = None) -> list[tuple[int, str]]:
        records = [json.loads(line) for line in (path or self.path).read_bytes().splitlines()]
        return [(record["seq"], record["message"]) for record in records]


class FollowTests(Following):
    def test_a_fresh_database_has_an_empty_log_that_then_holds_everything(self) -> None:
        self.follows()
        assert self.path.read_bytes() == b""
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o640
        self.says("a", "b")
        self.follows()
        self.follows()
        self.says("c")
        self.follows()
        assert self.logged() == [(1, "a"), (2, "b"), (3, "c")]

    def test_many_messages_come_in_bounded_batches(self) -> None:
        self.says(*map(str, range(MessageLog.BATCH * 2 + 1)))
        self.follows()
        self.follows()
        assert self.logged() == []  # a log that was not there begins with the next message
        self.says(*map(str, range(MessageLog.BATCH * 2 + 1)))
        wrote: list[int] = []
        write = files.write_all

        def counted(file: int, data: bytes) -> None:
            wrote.append(len(data))
            write(file, data)

        self.patch(files, "write_all", counted)
        self.follows()
        assert len(wrote) == 3
        seqs = [seq for seq, _ in self.logged()]
        assert seqs == list(range(MessageLog.BATCH * 2 + 2, MessageLog.BATCH * 4 + 3))

    def test_after_a_kill_it_goes_on_behind_the_last_whole_line(self) -> None:
        self.follows()
        self.says("a", "b", "c")
        self.follows()
        whole = self.path.read_bytes()
        for cut in range(len(whole)):
            self.path.write_bytes(whole[:cut])
            with capturedLogs() as events:
                self.follows(self.fresh())
            assert self.path.read_bytes() == whole
            torn = cut - (whole.rfind(b"\n", 0, cut) + 1)
            assert [event["count"] for event in events] == [torn] * bool(torn)

    def test_last_lines_that_are_not_ours_are_cut_and_said_so(self) -> None:
        self.follows()
        self.says("a", "b")
        self.follows()
        whole = self.path.read_bytes()
        self.path.write_bytes(whole + b"\0" * 100 + b'\nnoise\n{"seq": 9}\n{"ti')
        with capturedLogs() as events:
            self.follows(self.fresh())
        assert self.path.read_bytes() == whole
        assert len(events) == 1
        self.path.write_bytes(b"somebody's notes\n")
        self.follows(self.fresh())
        assert self.path.read_bytes() == b"somebody's notes\n" + whole

    def test_only_the_end_of_a_long_log_is_read(self) -> None:
        self.patch(MessageLog, "TAIL", 200)
        self.follows()
        self.says(*("x" * 50 for _ in range(20)))
        self.follows()
        whole = self.path.read_bytes()
        self.path.write_bytes(whole + b"torn")
        self.follows(self.fresh())
        assert self.path.read_bytes() == whole

    def test_a_log_that_was_removed_begins_with_the_next_message_also_after_restarts(self) -> None:
        self.says("a", "b")
        for _ in range(3):  # the empty file of the first start is not taken for a lost one
            self.follows(self.fresh())
            assert self.logged() == []
        self.says("c")  # and killed before its line was written
        self.follows(self.fresh())
        assert self.logged() == [(3, "c")]

    def test_a_log_that_is_moved_away_or_deleted_meanwhile_goes_on_in_a_new_file(self) -> None:
        self.follows()
        self.says("a")
        self.follows()
        old = self.path.rename(self.path.with_suffix(".1"))
        self.follows()
        assert not self.path.exists()
        self.says("b")
        self.follows()
        assert self.logged(old) == [(1, "a")]
        assert self.logged() == [(2, "b")]
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o640
        self.path.unlink()
        self.says("c")
        self.follows()
        assert self.logged() == [(3, "c")]
        self.path.write_bytes(b"")  # somebody's copytruncate; then a kill before the next line
        self.says("d")
        self.follows()
        self.path.write_bytes(b"")
        self.follows(self.fresh())
        assert self.logged() == [(4, "d")]

    def test_a_failed_write_leaves_whole_lines_and_is_made_good_and_said_once(self) -> None:
        self.follows()
        self.says("a")
        self.follows()

        whole = files.write_all

        def half(file: int, data: bytes) -> None:
            os.write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(files, "write_all", half)
        with capturedLogs() as events:
            for text in "bc":
                self.says(text)
                self.follows()
                assert self.logged() == [(1, "a")]
            self.patch(files, "write_all", whole)
            self.follows()
        assert self.logged() == [(1, "a"), (2, "b"), (3, "c")]
        assert [event["log_level"].name for event in events] == ["error", "info"]

    def test_a_log_that_cannot_be_opened_costs_nobody_and_nothing(self) -> None:
        self.path.mkdir()
        with capturedLogs() as events:
            self.follows()
            self.says("a")
            self.follows()
        assert [event["error"] for event in events] == ["Is a directory"]
        self.path.rmdir()
        self.follows()
        assert self.logged() == [(1, "a")]

    def test_a_log_of_another_database_goes_on_with_this_ones_next_message(self) -> None:
        self.path.write_bytes(lines([(900, "then", "ana", "x")]))
        self.says("a")
        with capturedLogs() as events:
            self.follows()
        self.says("b")
        self.follows()
        assert self.logged() == [(900, "x"), (2, "b")]
        assert "another one" in str(events[0]["log_format"])

    def test_what_is_handed_over_is_written_without_being_read(self) -> None:
        self.follows()
        self.says("a", "b")
        self.log.follow(self.table, [(1, "now", "ana", "handed"), (2, "now", "ana", "over")])
        assert self.logged() == [(1, "handed"), (2, "over")]

    def test_what_is_handed_over_but_not_what_the_table_has_is_read(self) -> None:
        self.follows()
        self.says("a", "b", "c")
        for fresh in (
            [(2, "now", "ana", "x"), (3, "now", "ana", "x")],  # one is missing
            [(1, "now", "ana", "x")] * 3,  # rolled back, then inserted again
            [(seq, "now", "ana", "x") for seq in (1, 2, 3, 4)],  # rolled back
        ):
            self.path.unlink(missing_ok=True)
            log = self.fresh()
            log._first = 0
            log.follow(self.table, fresh)
            assert self.logged() == [(1, "a"), (2, "b"), (3, "c")]


class RotationTests(Following):
    def old(self, number: int) -> Path:
        return self.path.with_name(f"logfile.log.{number}")

    def test_a_log_that_grows_too_long_begins_anew_and_old_ones_are_kept(self) -> None:
        line = len(lines([(1, "now", "ana", "a")]))
        self.log.rotate(2 * line, 2)
        self.follows()
        for text in "abcdefgh":
            self.says(text)
            self.follows()
        assert self.logged() == [(7, "g"), (8, "h")]
        assert self.logged(self.old(1)) == [(5, "e"), (6, "f")]
        assert self.logged(self.old(2)) == [(3, "c"), (4, "d")]
        assert not self.old(3).exists()
        assert stat.S_IMODE(self.path.stat().st_mode) == 0o640

    def test_fewer_are_kept_once_that_is_asked_for(self) -> None:
        for keep, there in ((3, [1, 2, 3]), (1, [1]), (0, [])):
            self.log.rotate(1, keep)
            for text in "abcdef":
                self.says(text)
                self.follows()
            assert [n for n in range(1, 9) if self.old(n).exists()] == there
            assert len(self.logged()) == 1

    def test_a_log_that_is_gone_at_the_start_goes_on_behind_its_newest_rotation(self) -> None:
        self.follows()
        self.says("a", "b")
        self.follows()
        self.path.rename(self.old(1))  # and killed before the new file was there
        self.says("c")
        self.follows(self.fresh())
        assert self.logged() == [(3, "c")]
        self.path.unlink()
        self.old(1).write_bytes(b"notes\n")  # none of ours: as if it were not there
        self.follows(self.fresh())
        assert self.logged() == []

    def test_no_kill_between_two_steps_of_a_rotation_loses_or_doubles_a_line(self) -> None:
        for step in range(1, 8):
            with self.subTest(step=step):
                self.tearDown()
                self.setUp()
                self.log.rotate(1, 2)
                self.follows()
                for text in "abc":
                    self.says(text)
                    self.follows()
                with Killed(step) as killed, contextlib.suppress(Kill):
                    self.says("d")
                    self.follows()
                again = self.fresh()
                again.rotate(1, 2)
                self.follows(again)
                everything = [
                    seq
                    for path in (self.old(2), self.old(1), self.path)
                    if path.exists()
                    for seq, _ in self.logged(path)
                ]
                assert everything == [*range(everything[0], 5)], (step, killed.steps)
                assert everything[0] <= 3


class Kill(BaseException):
    """The process is gone."""


class Killed:
    """Dies before step `at` of those that change a folder or a file."""

    def __init__(self, at: int) -> None:
        self.at, self.steps = at, 0
        self.patches = [
            patch.object(Path, "rename", self.counted(Path.rename)),
            patch.object(Path, "unlink", self.counted(Path.unlink)),
            patch.object(files, "open_new", self.counted(files.open_new)),
            patch.object(files, "write_all", self.counted(files.write_all)),
        ]

    def counted(self, call: Any) -> Any:
        def step(*args: Any, **more: Any) -> Any:
            self.steps += 1
            if self.steps == self.at:
                raise Kill
            return call(*args, **more)

        return step

    def __enter__(self) -> Killed:
        for one in self.patches:
            one.start()
        return self

    def __exit__(self, *error: object) -> None:
        for one in self.patches:
            one.stop()
