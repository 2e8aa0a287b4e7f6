"""One SQLite file: refused untouched, migrated in steps, answered only after the commit."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread, current_thread
from typing import Any, ClassVar

import pytest
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon.stores import database as module
from daemon.stores.database import Database, plain
from daemon.stores.files import Unusable
from protocols.stores import StoreError

NOTES = ("CREATE TABLE notes (text TEXT UNIQUE)",)


class Faulty(sqlite3.Connection):
    """Remembers what is executed, and fails where it is told to. One subclass a test."""

    seen: ClassVar[list[str]]
    broken: ClassVar[dict[str, sqlite3.Error]]

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        self.seen.append(sql)
        if sql in self.broken:
            raise self.broken[sql]
        return super().execute(sql, *parameters)


def io_error(code: int = sqlite3.SQLITE_IOERR_FSYNC) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    return error


def note(text: str) -> Callable[[sqlite3.Connection], str]:
    def work(connection: sqlite3.Connection) -> str:
        connection.execute("INSERT INTO notes VALUES (?)", [text])
        return text

    return work


def notes(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM notes ORDER BY rowid")]


class Case(TestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor

        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "data" / "some.db"
        self.reactor = reactor

    def database(
        self, migrations: Sequence[str] = NOTES, connection: Any = sqlite3.Connection
    ) -> Database:
        class Under(Database):
            CONNECTION = connection

        return Under(self.path, migrations, self.reactor)

    def started(
        self, migrations: Sequence[str] = NOTES, connection: Any = sqlite3.Connection
    ) -> Database:
        database = self.database(migrations, connection)
        database.startService()
        self.addCleanup(database.stopService)
        return database

    def faulty(self) -> type[Faulty]:
        return type("Under", (Faulty,), {"seen": [], "broken": {}})

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.path.parent.iterdir()}

    async def fails(self, answer: Deferred[Any], reason: str) -> None:
        with pytest.raises(StoreError) as caught:
            await answer
        assert caught.value.reason == reason

    async def started_and_settled(self, connection: Any = sqlite3.Connection) -> Database:
        """The thread is past its first look."""
        database = self.started(connection=connection)
        await database.run(lambda _: None)
        return database


async def _after(first: Deferred[Any], then: Callable[[], Deferred[Any]]) -> Any:
    await first
    return await then()


class CheckTests(Case):
    def written(self, version: int) -> sqlite3.Connection:
        self.path.parent.mkdir()
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE theirs (x)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute(f"PRAGMA user_version = {version}")
        return connection

    def refused(self, database: Database, match: str) -> None:
        before = self.files()
        for refuse in (database.check, database.startService):
            with pytest.raises(Unusable, match=match) as caught:
                refuse()
            assert "\n" not in str(caught.value)
            assert self.files() == before

    def test_a_newer_version_is_refused_in_one_line_and_untouched(self) -> None:
        self.written(2).close()
        self.refused(self.database(), r"some\.db is of version 2, this program knows up to 1: ")
        assert list(self.files()) == ["some.db"]

    def test_a_newer_version_that_only_the_log_knows_is_refused_untouched_too(self) -> None:
        with closing(self.written(2)) as connection:
            connection.execute("INSERT INTO theirs VALUES (1)")
            killed = self.path.parent.parent / "killed"
            killed.mkdir()
            for name in ("some.db", "some.db-wal"):
                shutil.copy(self.path.parent / name, killed / name)
        self.path = killed / "some.db"
        assert self.path.read_bytes()[60:64] == bytes(4)
        self.refused(self.database(), "is of version 2")

    def test_a_version_that_was_never_committed_does_not_count(self) -> None:
        with closing(self.written(1)) as connection:
            connection.executescript(
                "BEGIN; PRAGMA user_version = 2; INSERT INTO theirs VALUES (1); COMMIT"
            )
            killed = self.path.parent.parent / "killed"
            killed.mkdir()
            shutil.copy(self.path, killed)
            wal = Path(f"{self.path}-wal").read_bytes()
        self.path = killed / "some.db"
        for torn in (wal[:-1], wal[:32], wal[:7], b"\xff" * 64):
            (killed / "some.db-wal").write_bytes(torn)
            self.database().check()
        (killed / "some.db-wal").write_bytes(wal)
        self.refused(self.database(), "is of version 2")

    def test_what_is_no_database_is_refused_untouched(self) -> None:
        self.path.parent.mkdir()
        for content in (b"hello\n", b"SQLite format 3\0", b"x" * 4096):
            self.path.write_bytes(content)
            self.refused(self.database(), r"some\.db is no SQLite database")
        self.path.unlink()
        self.path.mkdir()
        with pytest.raises(Unusable, match="cannot be read: Is a directory"):
            self.database().check()

    def test_a_file_that_is_not_there_or_has_no_byte_yet_is_fine(self) -> None:
        self.database().check()
        assert not self.path.parent.exists()
        self.path.parent.mkdir()
        self.path.touch()
        self.database().check()
        assert self.path.read_bytes() == b""


class StartTests(Case):
    STEPS = (
        "CREATE TABLE notes (text TEXT); -- a remark without a line of its own",
        "ALTER TABLE notes ADD COLUMN at TEXT; UPDATE notes SET at = 'then';",
        "CREATE INDEX by_at ON notes (at)",
    )

    async def test_every_version_becomes_the_newest_and_keeps_its_rows(self) -> None:
        for version in range(len(self.STEPS) + 1):
            shutil.rmtree(self.path.parent, ignore_errors=True)
            if version:
                old = self.started(self.STEPS[:version])
                await old.run(lambda c: c.execute("INSERT INTO notes (text) VALUES ('kept')"))
                await old.stopService()
            new = self.started(self.STEPS)
            await new.run(lambda c: c.execute("INSERT INTO notes (text, at) VALUES ('new', 'now')"))
            await new.stopService()
            assert notes(self.path) == ["kept", "new"][not version :]
            assert self.path.read_bytes()[60:64] == bytes([0, 0, 0, 3])

    async def test_a_step_that_fails_changes_nothing(self) -> None:
        old = self.started()
        await old.run(note("kept"))
        await old.stopService()
        broken = (*NOTES, "DELETE FROM notes; CREATE TABLE notes (again)")
        with pytest.raises(Unusable, match="cannot be used: table notes already exists"):
            self.database(broken).startService()
        assert notes(self.path) == ["kept"]
        self.database().check()

    async def test_files_are_0640_in_a_folder_of_0750_whatever_the_umask(self) -> None:
        for umask in (0, 0o077):
            self.addCleanup(os.umask, os.umask(umask))
            database = self.started()
            await database.run(note("x"))
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in self.path.parent.iterdir()}
            assert modes == {"some.db": 0o640, "some.db-wal": 0o640, "some.db-shm": 0o640}
            assert stat.S_IMODE(self.path.parent.stat().st_mode) == 0o750
            await database.stopService()
            shutil.rmtree(self.path.parent)

    async def test_a_damaged_a_readonly_and_an_unloggable_file_are_refused_in_one_line(
        self,
    ) -> None:
        await self.started().stopService()
        sound = self.path.read_bytes()
        self.path.write_bytes(sound[:100] + b"\xff" * (len(sound) - 100))
        with pytest.raises(Unusable, match=r"some\.db cannot be used: .*malformed"):
            self.database().startService()
        self.path.write_bytes(sound)
        readonly = self.faulty()
        readonly.broken["BEGIN IMMEDIATE"] = io_error(sqlite3.SQLITE_READONLY)
        with pytest.raises(Unusable, match="cannot be used"):
            self.database(connection=readonly).startService()

        class Unloggable(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                return super().execute(sql.replace("= WAL", "= DELETE"), *parameters)

        with pytest.raises(Unusable, match="cannot keep a write-ahead log"):
            self.database(connection=Unloggable).startService()

    async def test_it_syncs_every_commit(self) -> None:
        database = self.started()
        assert await database.run(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,)
        assert await database.run(lambda c: c.execute("PRAGMA journal_mode").fetchone()) == ("wal",)

    async def test_it_starts_again_after_it_stopped(self) -> None:
        database = self.started()
        await database.run(note("one"))
        await database.stopService()
        database.startService()
        await database.run(note("two"))
        assert notes(self.path) == ["one", "two"]


class RunTests(Case):
    async def test_a_result_comes_when_others_can_read_what_it_is_about(self) -> None:
        database = self.started()

        def look(text: str) -> tuple[bool, Thread]:
            return text in notes(self.path), current_thread()

        works = [database.run(note(text)).addCallback(look) for text in "abc"]
        assert database.waiting == 3
        assert await gatherResults(works) == [(True, current_thread())] * 3
        assert notes(self.path) == ["a", "b", "c"]
        assert database.waiting == 0

    async def test_nothing_is_answered_before_the_commit(self) -> None:
        order: list[str] = []

        class Slow(sqlite3.Connection):
            def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
                if sql == "COMMIT":
                    order.append(f"commit with {len(notes(path))} there")
                return super().execute(sql, *parameters)

        path = self.path
        database = self.started(connection=Slow)
        await database.run(note("x")).addCallback(lambda _: order.append("answer"))
        assert order == ["commit with 0 there", "answer"]

    async def test_whatever_waits_is_one_transaction_and_calls_of_a_kind_are_one(self) -> None:
        connection = self.faulty()
        database = await self.started_and_settled(connection)
        begun, free = Event(), Event()
        calls: list[list[int]] = []

        def double(_: sqlite3.Connection, items: list[int]) -> list[int]:
            calls.append(items)
            return [item * 2 for item in items]

        def first(_: sqlite3.Connection) -> bool:
            begun.set()
            return free.wait(5)

        begins = database.run(first)
        await deferToThread(begun.wait, 5)
        del connection.seen[:]
        answers = [database.gather(double, item) for item in range(3)]
        answers.insert(1, database.run(lambda _: 7))
        free.set()
        assert await begins is True
        assert await gatherResults(answers) == [0, 7, 2, 4]
        assert calls == [[0, 1, 2]]
        assert connection.seen == ["COMMIT", "BEGIN IMMEDIATE", "COMMIT"]

    async def test_who_asks_again_on_an_answer_is_committed_with_those_who_wait(self) -> None:
        database = await self.started_and_settled()
        begun, free = Event(), Event()
        groups: list[list[int]] = []

        def work(_: sqlite3.Connection, items: list[int]) -> list[int]:
            groups.append(items)
            begun.set()
            free.wait(5)
            return items

        first = database.gather(work, 1)
        again = Deferred.fromCoroutine(_after(first, lambda: database.gather(work, 3)))
        await deferToThread(begun.wait, 5)
        waits = database.gather(work, 2)
        free.set()
        assert await gatherResults([waits, again]) == [2, 3]
        assert groups == [[1], [2, 3]]

    async def test_one_bad_work_costs_no_neighbour(self) -> None:
        database = self.started()
        await database.run(note("a"))
        answers = [database.run(note(text)) for text in ("b", "a", "c")]
        answers.append(database.run(lambda _: f"{1 / 0}"))
        answers.append(database.run(note("d")))
        assert await answers[0] == "b"
        with pytest.raises(sqlite3.IntegrityError):
            await answers[1]
        assert await answers[2] == "c"
        with pytest.raises(ZeroDivisionError):
            await answers[3]
        assert await answers[4] == "d"
        assert notes(self.path) == ["a", "b", "c", "d"]

    async def test_a_callback_that_raises_keeps_no_other_from_its_result(self) -> None:
        database = self.started()
        first, second, third = (database.run(note(text)) for text in "abc")
        raised: Deferred[None] = first.addCallback(lambda _: [][1])
        second.cancel()
        second.addErrback(lambda _: None)
        assert await third == "c"
        with pytest.raises(IndexError):
            await raised
        assert notes(self.path) == ["a", "b", "c"]
        assert database.waiting == 0

    async def test_a_kind_that_miscounts_its_answers_fails_and_keeps_nothing(self) -> None:
        database = self.started()

        def short(connection: sqlite3.Connection, items: list[str]) -> list[str]:
            for item in items:
                note(item)(connection)
            return []

        with pytest.raises(ValueError, match="zip"):
            await database.gather(short, "x")
        assert notes(self.path) == []


class TroubleTests(Case):
    async def test_a_full_disk_fails_what_needs_room_and_is_over_when_there_is_some(self) -> None:
        database = self.started()
        await database.run(note("before"))
        await database.run(lambda c: c.execute("PRAGMA max_page_count = 1").fetchone())
        with capturedLogs() as events:
            big = [database.run(note(f"{n}" * 20_000)) for n in range(3)]
            for answer in big:
                await self.fails(answer, "disk full")
            assert await database.run(note("small")) == "small"
        assert [e["log_level"].name for e in events] == ["error", "info"]
        await database.run(lambda c: c.execute("PRAGMA max_page_count = 1000").fetchone())
        await database.run(note("y" * 20_000))
        assert [text[:6] for text in notes(self.path)] == ["before", "small", "yyyyyy"]

    async def test_a_failed_commit_fails_its_group_and_is_not_tried_again(self) -> None:
        connection = self.faulty()
        database = await self.started_and_settled(connection)
        connection.broken["COMMIT"] = io_error()
        ran: list[str] = []

        def traced(text: str) -> Callable[[sqlite3.Connection], None]:
            return lambda connection: ran.append(note(text)(connection))

        with capturedLogs() as events:
            for _ in range(2):
                answers = [database.run(traced(text)) for text in "ab"]
                for answer in answers:
                    await self.fails(answer, "disk error")
        assert ran == ["a", "b"] * 2
        assert len(events) == 1
        assert "disk error (disk I/O error)" in events[0]["error"]
        connection.broken.clear()
        del connection.seen[:]
        await database.run(note("c"))
        assert connection.seen[:2] == ["PRAGMA wal_checkpoint(TRUNCATE)", "BEGIN IMMEDIATE"]
        assert notes(self.path) == ["c"]

    async def test_nothing_is_ok_until_the_checkpoint_succeeds_on_a_fresh_connection(self) -> None:
        connection = self.faulty()
        database = await self.started_and_settled(connection)
        await database.run(note("a"))
        connection.broken["COMMIT"] = connection.broken["PRAGMA wal_checkpoint(TRUNCATE)"] = (
            io_error()
        )
        await self.fails(database.run(note("b")), "disk error")
        del connection.broken["COMMIT"]
        await self.fails(database.run(note("b")), "disk error")
        connection.broken.clear()
        del connection.seen[:]
        await database.run(note("c"))
        assert connection.seen[0] == "PRAGMA user_version"  # opened anew
        assert notes(self.path) == ["a", "c"]

    async def test_a_rollback_that_fails_costs_the_connection(self) -> None:
        connection = self.faulty()
        database = await self.started_and_settled(connection)
        connection.broken["COMMIT"] = connection.broken["ROLLBACK"] = io_error()
        await self.fails(database.run(note("b")), "disk error")
        connection.broken.clear()
        await database.run(note("c"))
        assert notes(self.path) == ["c"]

    async def test_a_file_that_is_gone_is_not_made_anew_under_the_clients(self) -> None:
        connection = self.faulty()
        database = await self.started_and_settled(connection)
        connection.broken["COMMIT"] = connection.broken["ROLLBACK"] = io_error()
        await self.fails(database.run(note("b")), "disk error")
        connection.broken.clear()
        shutil.rmtree(self.path.parent)
        await self.fails(database.run(note("c")), "storage failed")
        assert not self.path.exists()

    async def test_another_writer_makes_it_busy_for_a_while(self) -> None:
        self.patch(module, "LOCK_TIMEOUT", 0.05)
        database = await self.started_and_settled()
        with closing(sqlite3.connect(self.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            await self.fails(database.run(note("a")), "database busy")
        await database.run(note("b"))
        assert notes(self.path) == ["b"]

    async def test_a_long_reader_keeps_the_checkpoint_waiting_at_the_start(self) -> None:
        self.patch(module, "LOCK_TIMEOUT", 0.05)
        first = self.started()
        await first.run(note("a"))
        with closing(sqlite3.connect(self.path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM notes").fetchone() == (1,)
            await first.run(note("b"))
            await first.stopService()
            with capturedLogs() as events:
                second = self.started()
                await self.fails(second.run(note("c")), "database busy")
            assert len(events) == 1
            assert "another program has it open" in events[0]["error"]
        await second.run(note("d"))
        assert notes(self.path) == ["a", "b", "d"]

    def test_reasons_are_plain(self) -> None:
        assert plain(io_error(sqlite3.SQLITE_FULL)) == "disk full"
        assert plain(sqlite3.OperationalError("odd")) == "storage failed"
        assert plain(PermissionError(13, "x")) == "permission denied"


class HookTests(Case):
    async def test_it_looks_once_at_the_start_and_after_every_group(self) -> None:
        database = self.database()
        seen: list[int] = []

        def look(connection: sqlite3.Connection) -> None:
            seen.extend(connection.execute("SELECT count(*) FROM notes").fetchone())

        database.after_commit.append(look)
        database.startService()
        await database.run(note("a"))
        await database.run(note("b"))
        await database.stopService()
        assert seen == [0, 1, 2]

    async def test_a_hook_that_raises_is_logged_and_costs_no_one(self) -> None:
        database = self.database()
        looked: list[int] = []
        database.after_commit += [lambda _: [][1], lambda _: looked.append(1)]
        database.startService()
        await database.run(note("a"))
        await database.stopService()
        assert len(self.flushLoggedErrors(IndexError)) == 2
        assert looked == [1, 1]

    async def test_trouble_met_by_a_hook_is_trouble(self) -> None:
        connection = self.faulty()
        database = await self.started_and_settled(connection)
        errors = [io_error()]

        def look(_: sqlite3.Connection) -> None:
            if errors:
                raise errors.pop()

        database.after_commit.append(look)
        await database.run(note("a"))
        del connection.seen[:]
        await database.run(note("b"))
        assert "PRAGMA wal_checkpoint(TRUNCATE)" in connection.seen
        assert notes(self.path) == ["a", "b"]


class StopTests(Case):
    async def test_it_waits_for_all_that_is_queued_and_leaves_one_file(self) -> None:
        database = self.started()
        answers = [database.run(note(f"{n}")) for n in range(100)]
        stopped = database.stopService()
        done: list[str] = []
        for answer in answers:
            answer.addCallback(done.append)
        assert not stopped.called
        await self.fails(database.run(note("late")), "shutting down")
        await stopped
        assert done == [f"{n}" for n in range(100)] == notes(self.path)
        assert not database._thread.is_alive()
        assert os.listdir(self.path.parent) == ["some.db"]
        assert self.successResultOf(database.stopService()) is None


class IdleTests(SynchronousTestCase):
    def test_making_one_and_stopping_it_unstarted_does_nothing(self) -> None:
        database = Database(Path("/nonexistent/x.db"), NOTES, None)
        self.failureResultOf(database.run(lambda _: None), StoreError)
        assert self.successResultOf(database.stopService()) is None
