"""What rooms remember: in memory for a while, on disk across restarts, never in the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock, deferLater
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon.stores import history as module
from daemon.stores.files import Unusable
from daemon.stores.history import INTERVAL, MIGRATIONS, RECENT, History, Past
from protocols.stores import Kind, Line, Said, StoreError


def texts(said: Any) -> list[bytes]:
    return [one.text for one in said]


def lines(first: int, last: int) -> list[Line]:
    return [Line(b"%d" % number) for number in range(first, last)]


class PastTests(SynchronousTestCase):
    def past(self, most: int = 10) -> Past:
        past = Past()
        past.keep(most)
        return past

    def read(self, past: Past, most: int = 100, before: int | None = None) -> list[bytes]:
        return texts(self.successResultOf(past.read("main", most, before)))

    def test_it_gives_the_last_lines_oldest_first_with_all_that_is_known(self) -> None:
        past = self.past()
        past.add("main", [Line(b"hi", "ana")], 1.5)
        past.add("main", [Line(b"a\nb"), Line(b"waves", "ben", Kind.ACTION)], 2.5)
        assert self.successResultOf(past.read("main", 100)) == [
            Said(1, 1.5, "ana", Kind.SAY, b"hi"),
            Said(2, 2.5, None, Kind.SAY, b"a"),
            Said(3, 2.5, None, Kind.SAY, b"b"),
            Said(4, 2.5, "ben", Kind.ACTION, b"waves"),
        ]
        assert self.read(past, 2) == [b"b", b"waves"]
        assert self.read(past, 2, before=3) == [b"hi", b"a"]
        assert self.read(past, 5, before=1) == []
        assert self.read(past, 0) == []

    def test_what_happened_is_not_remembered(self) -> None:
        past = self.past()
        for kind in (Kind.JOIN, Kind.PART, Kind.NICK, Kind.QUIT):
            past.add("main", [Line(b"", "ana", kind)], 1.0)
        assert [*past.rooms()] == []
        past.add("main", [Line(b"hi")], 1.0)
        past.add("main", [Line(b"", "ana", Kind.QUIT)], 1.0)
        assert self.read(past) == [b"hi"]

    def test_rooms_have_their_own(self) -> None:
        past = self.past()
        past.add("main", lines(0, 1), 1.0)
        past.add("other", lines(1, 2), 1.0)
        assert self.read(past) == [b"0"]
        assert sorted(past.rooms()) == ["main", "other"]
        assert past.oldest(()) == "main"
        assert past.oldest(("main",)) == "other"
        past.forget("main")
        assert self.read(past) == []

    def test_off_means_that_nothing_is_kept_or_told(self) -> None:
        past = self.past()
        past.add("main", lines(0, 1), 1.0)
        past.keep(0)
        past.add("main", lines(1, 2), 1.0)
        assert self.read(past) == []
        assert [*past.rooms()] == []
        assert past.oldest(()) is None

    @settings(deadline=None, max_examples=200)
    @given(
        st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), max_size=20),
        st.integers(1, 12),
        st.integers(1, 12),
        st.integers(1, 60),
    )
    def test_however_lines_come_the_last_ones_are_told(
        self, turns: list[list[int]], kept: int, most: int, before: int
    ) -> None:
        past = self.past(kept)
        said: list[bytes] = []
        for turn in turns:
            some = []
            for count in turn:
                some.append([b"%d" % n for n in range(len(said), len(said) + count)])
                said += some[-1]
            past.add("main", [Line(b"\n".join(one)) for one in some], 1.0)
        assert self.read(past, most) == said[-min(most, kept) :]
        here = said[: before - 1][-min(most, kept) :]
        told = self.read(past, most, before)
        assert told == here[len(here) - len(told) :]
        assert past._size == sum(shelf.size for shelf in past._shelves.values())

    def test_memory_is_bounded_over_all_rooms(self) -> None:
        past = self.past(100)
        with patch.object(module, "MOST_BYTES", 10_000):
            for number in range(200):
                past.add(f"room {number % 20}", [Line(b"x" * 1000)], 1.0)
        assert past._size <= 10_000 + 20 * 1200

    def test_where_memory_is_short_what_was_said_longest_ago_goes(self) -> None:
        past = self.past(100)
        with patch.object(module, "MOST_BYTES", 10_000):
            for _ in range(8):
                past.add("old", [Line(b"x" * 1000)], 1.0)
            for number in range(3):
                past.add("main", [Line(b"%d " % number + b"x" * 1000)], 2.0)
        assert [text[:1] for text in self.read(past)] == [b"0", b"1", b"2"]
        assert 0 < len(self.successResultOf(past.read("old", 100))) < 8


class HistoryCase(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor

        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "data" / "chat.db"
        self.reactor: Any = reactor
        fast = patch.object(module, "INTERVAL", 0.01)
        fast.start()
        self.addCleanup(fast.stop)

    def history(self, most: int = 10, clock: Any = None) -> History:
        history = History(self.path, clock or self.reactor)
        history.keep(most)
        history.startService()
        self.addCleanup(history.stopService)
        return history

    def rows(self) -> list[Any]:
        with closing(sqlite3.connect(self.path)) as connection:
            sql = "SELECT seq, room, at, author, kind, text FROM said ORDER BY seq"
            return connection.execute(sql).fetchall()

    async def written(self, history: History) -> None:
        for _ in range(400):
            if not (history._new or history._writing):
                return
            await deferLater(self.reactor, 0.01)
        raise AssertionError("it is never written")


class HistoryTests(HistoryCase):
    async def test_a_restart_finds_what_was_said(self) -> None:
        history = self.history()
        history.add("main", [Line(b"hi", "ana"), Line("¿qué\ntal?".encode())], 1.5)
        history.add("other", [Line(b"waves", "ben", Kind.ACTION)], 2.5)
        await history.stopService()
        assert self.rows() == [
            (1, "main", 1.5, "ana", "say", "hi"),
            (2, "main", 1.5, None, "say", "¿qué"),
            (3, "main", 1.5, None, "say", "tal?"),
            (4, "other", 2.5, "ben", "action", "waves"),
        ]
        again = self.history()
        assert sorted(again.rooms()) == ["main", "other"]
        assert again.oldest(()) == "main"
        again.add("main", [Line(b"back")], 3.5)
        assert await again.read("main", 3) == [
            Said(2, 1.5, None, Kind.SAY, "¿qué".encode()),
            Said(3, 1.5, None, Kind.SAY, b"tal?"),
            Said(5, 3.5, None, Kind.SAY, b"back"),
        ]
        assert texts(await again.read("main", 10, before=3)) == [b"hi", "¿qué".encode()]
        assert texts(await again.read("other", 10)) == [b"waves"]

    async def test_it_is_on_disk_within_an_interval(self) -> None:
        history = self.history()
        history.add("main", lines(0, 3), 1.0)
        await self.written(history)
        assert len(self.rows()) == 3

    async def test_who_comes_and_goes_costs_no_write(self) -> None:
        history = self.history()
        history.add("main", lines(0, 1), 1.0)
        await self.written(history)
        with patch.object(history._database, "run", side_effect=AssertionError):
            history.add("main", [Line(b"", "ana", Kind.JOIN)], 2.0)
            history.add("main", [Line(b"", "ana", Kind.QUIT)], 2.0)
            assert history._due is None

    async def test_only_the_last_lines_of_a_room_stay(self) -> None:
        history = self.history(10)
        history.add("other", lines(0, 2), 1.0)
        for first in range(0, 60, 12):
            history.add("main", lines(first, first + 12), 1.0)
            await self.written(history)
        await history.stopService()
        assert [int(row[5]) for row in self.rows() if row[1] == "main"] == [*range(50, 60)]
        assert len(self.rows()) == 12

    async def test_a_group_larger_than_a_statement_is_whole(self) -> None:
        history = self.history(3000)
        history.add("main", [Line(b"\n".join(b"%d" % n for n in range(2500)))], 1.0)
        await history.stopService()
        assert [int(row[5]) for row in self.rows()] == [*range(2500)]

    async def test_what_is_on_disk_leaves_the_memory_and_is_read_from_there(self) -> None:
        history = self.history(1000)
        said = [b"%d " % number + b"x" * 500 for number in range(200)]
        for text in said:
            history.add("main", [Line(text)], 1.0)
        await self.written(history)
        shelf = history._shelves["main"]
        assert shelf.size <= RECENT
        assert history._size == shelf.size
        history.add("main", [Line(b"new")], 2.0)
        assert texts(await history.read("main", 1000)) == [*said, b"new"]
        assert texts(await history.read("main", 3, before=4)) == said[:3]

    async def test_a_snapshot_lacks_and_repeats_nothing_while_it_is_read(self) -> None:
        history = self.history(1000)
        history.add("main", [Line(b"%d " % n + b"x" * 500) for n in range(100)], 1.0)
        await self.written(history)
        reading = history.read("main", 1000)
        history.add("main", lines(100, 200), 1.0)
        assert [int(text.split()[0]) for text in texts(await reading)] == [*range(100)]

    async def test_a_forgotten_room_is_forgotten_on_disk(self) -> None:
        history = self.history()
        history.add("main", lines(0, 1), 1.0)
        history.add("other", lines(1, 2), 1.0)
        await self.written(history)
        history.add("main", lines(0, 1), 1.0)
        history.forget("main")
        assert await history.read("main", 10) == []
        await history.stopService()
        assert [row[1] for row in self.rows()] == ["other"]

    async def test_bytes_that_are_no_text_harm_nobody(self) -> None:
        history = self.history()
        history.add("main", [Line(b"\xff\xfe"), Line(b"fine")], 1.0)
        await history.stopService()
        assert [row[5] for row in self.rows()] == ["\ufffd\ufffd", "fine"]


class TroubleTests(HistoryCase):
    async def test_without_a_history_there_is_no_file(self) -> None:
        history = self.history(0)
        history.add("main", lines(0, 1), 1.0)
        await history.stopService()
        assert not self.path.exists()

    async def test_it_can_be_switched_on_and_off_while_it_runs(self) -> None:
        history = self.history(0)
        history.keep(5)
        history.add("main", lines(0, 1), 1.0)
        history.keep(0)
        history.add("main", lines(1, 2), 1.0)
        history.keep(5)
        assert texts(await history.read("main", 9)) == [b"0"]
        await history.stopService()
        assert [row[5] for row in self.rows()] == ["0"]

    def test_a_file_that_is_not_ours_is_refused(self) -> None:
        self.path.parent.mkdir()
        self.path.write_bytes(b"my letters, " * 20)
        with pytest.raises(Unusable, match="no SQLite database"):
            History(self.path, Clock()).check()
        history = History(self.path, Clock())
        history.startService()
        with capturedLogs() as logs:
            history.keep(10)
        assert [event["log_format"] for event in logs] == ["no history: {error}"]
        history.add("main", lines(0, 1), 1.0)
        assert [*history.rooms()] == []
        assert self.path.read_bytes() == b"my letters, " * 20

    def test_a_file_without_our_table_is_refused(self) -> None:
        self.path.parent.mkdir()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE other (x)")
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        history = History(self.path, self.reactor)
        history.keep(10)
        with pytest.raises(Unusable, match="cannot be read: no such table"):
            history.startService()
        return history._database.stopService()  # type: ignore[return-value]

    async def test_a_disk_that_takes_nothing_is_named_once_and_written_when_it_does(self) -> None:
        history = self.history(100)
        run, broken = history._database.run, True

        def sometimes(work: Any) -> Deferred[Any]:
            return fail(StoreError("disk full")) if broken else run(work)

        history._database.run = sometimes  # type: ignore[method-assign]
        with capturedLogs() as logs:
            for number in range(3):
                history.add("main", lines(number, number + 1), 1.0)
                await deferLater(self.reactor, 0.03)
            assert texts(await history.read("main", 9)) == [b"0", b"1", b"2"]
            broken = False
            await self.written(history)
        assert [event["log_level"].name for event in logs] == ["error", "info"]
        assert [row[5] for row in self.rows()] == ["0", "1", "2"]

    async def test_while_the_disk_does_not_follow_memory_is_bounded(self) -> None:
        history = self.history(1000)
        history._database.run = lambda work: Deferred()  # type: ignore[method-assign]
        with patch.object(module, "MOST_BYTES", 50_000), capturedLogs() as logs:
            for number in range(500):
                history.add("main", [Line(b"%d " % number + b"x" * 500)], 1.0)
        assert history._size <= 50_000
        assert len(logs) == 1
        assert "cannot follow" in logs[0]["log_format"]
        newest = texts(self.successResultOf(history.read("main", 5)))
        assert [int(text.split()[0]) for text in newest] == [495, 496, 497, 498, 499]
        del history._database.run

    async def test_what_cannot_be_read_is_left_out(self) -> None:
        history = self.history()
        history.add("main", lines(0, 1), 1.0)
        await history.stopService()
        again = self.history()
        again.add("main", lines(1, 2), 1.0)
        with patch.object(again._database, "run", lambda work: fail(StoreError("disk error"))):
            assert texts(await again.read("main", 10)) == [b"1"]
        assert texts(await again.read("main", 10)) == [b"0", b"1"]

    async def test_a_bug_is_logged_and_loses_no_line(self) -> None:
        history = self.history()
        with patch.object(module, "_rows", lambda room, entries: 1 // 0):
            history.add("main", lines(0, 1), 1.0)
            await deferLater(self.reactor, 0.1)
        assert self.flushLoggedErrors(ZeroDivisionError)
        await history.stopService()
        assert [row[5] for row in self.rows()] == ["0"]

    def test_a_write_waits_an_interval_so_that_a_flood_costs_one(self) -> None:
        clock = Clock()
        with patch.object(module, "INTERVAL", INTERVAL):
            history = self.history(10, clock)
            works: list[Any] = []

            def never(work: Any) -> Deferred[Any]:
                works.append(work)
                return Deferred()

            history._database.run = never  # type: ignore[method-assign]
            for _ in range(1000):
                history.add("main", lines(0, 10), 1.0)
            assert works == []
            clock.advance(INTERVAL)
            history.add("main", lines(0, 10), 1.0)
            clock.advance(INTERVAL * 3)
            assert len(works) == 1
        del history._database.run
        history._database.reactor = self.reactor
        history.reactor = self.reactor
