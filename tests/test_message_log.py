"""The log file follows the table: in order, each message once, whatever happened to the file."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores import files
from daemon.stores.ledger import MIGRATIONS
from daemon.stores.message_log import MessageLog, last_record, lines, sequence

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


class FollowTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "logfile.log"
        self.table = sqlite3.connect(Path(folder.name) / "x.db", isolation_level=None)
        self.addCleanup(self.table.close)
        self.table.executescript(MIGRATIONS[0])
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
