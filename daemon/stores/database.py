"""One SQLite file, written by one thread: whatever waits is committed together, then answered.

Durable means: the COMMIT returned, with WAL and synchronous=FULL. After an I/O error, and at the
start, the write-ahead log may hold frames that never reached the disk although later ones do; a
truncating checkpoint must succeed before anything is answered again. Others (the sqlite3 shell, a
backup) may read the file at any time, in short transactions: a long one keeps that checkpoint,
and so the daemon after trouble, waiting.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, ClassVar, TypeVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.measures import Durations, Measure
from daemon.stores import files
from daemon.stores.files import Unusable
from daemon.stores.trouble import Trouble
from protocols.stores import StoreError

log = Logger()
_T = TypeVar("_T")
_Item = TypeVar("_Item")

LOCK_TIMEOUT = 5.0  # seconds another program may hold the file before that is trouble
MAGIC = b"SQLite format 3\0"
PRAGMAS = (
    "synchronous = FULL",
    "wal_autocheckpoint = 1000",  # pages
    "journal_size_limit = 16777216",  # bytes the log keeps after a burst
    "temp_store = MEMORY",  # what a statement may have to undo
    *(("fullfsync = ON", "checkpoint_fullfsync = ON") if sys.platform == "darwin" else ()),
)

_PLAIN = {
    sqlite3.SQLITE_FULL: "disk full",
    sqlite3.SQLITE_IOERR: "disk error",
    sqlite3.SQLITE_BUSY: "database busy",
    sqlite3.SQLITE_LOCKED: "database busy",
    sqlite3.SQLITE_READONLY: "database read-only",
    sqlite3.SQLITE_CORRUPT: "database damaged",
    sqlite3.SQLITE_NOTADB: "database damaged",
}


def plain(error: Exception) -> str:
    """The error in a few words that may go to a peer."""
    if isinstance(error, OSError):
        return files.plain(error)
    return _PLAIN.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, "storage failed")


def _is_trouble(error: Exception) -> bool:
    """Whether the storage failed, not the work that met it (a constraint, a bug)."""
    return isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError


def checkpoint(connection: sqlite3.Connection) -> None:
    """Everything goes from the log to the file, and both to the disk. Raises sqlite3.Error."""
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        error = sqlite3.OperationalError("another program has it open in a long transaction")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error


def _version(page: bytes) -> int:
    """user_version, as the file's first page has it."""
    return int.from_bytes(page[60:64], "big", signed=True)


def _logged_version(path: Path) -> int | None:
    """user_version as the last transaction in the write-ahead log left it; None: it did not."""
    found = latest = None
    with suppress(OSError), path.open("rb") as log_file:
        header = log_file.read(32)
        size, salt = 24 + int.from_bytes(header[8:12], "big"), header[16:24]
        if size > 24 + 65536:
            return None
        while len(frame := log_file.read(size)) == size and frame[8:16] == salt:
            if int.from_bytes(frame[:4], "big") == 1:
                latest = _version(frame[24:])
            if any(frame[4:8]):  # the last frame of a transaction
                found = latest
    return found


class _Down(Exception):
    """The storage takes nothing now; the message is the plain reason."""


@define(eq=False, repr=False)
class _Job:
    work: Callable[[sqlite3.Connection, list[Any]], list[Any]]
    item: Any
    answer: Deferred[Any]
    weight: int
    result: Any = None  # a Failure goes the errback way


def _nothing(connection: sqlite3.Connection) -> None:
    """A transaction shows whether there can be one."""


def _each(
    connection: sqlite3.Connection, works: list[Callable[[sqlite3.Connection], Any]]
) -> list[Any]:
    return [work(connection) for work in works]


@define(eq=False, repr=False)
class Database(Service):
    """One SQLite file and the one connection that writes it.

    migrations: the script at place i brings a file of version i to i + 1. after_commit: called
    in the writer's thread, with its connection, before the first group (after trouble: before the
    next one) and after every group, when its answers are already on their way; must not raise.
    """

    CONNECTION: ClassVar[type[sqlite3.Connection]] = sqlite3.Connection
    GROUP: ClassVar[int] = 1024  # rows a transaction: Python makes others wait for each of them
    SLICE: ClassVar[int] = 64  # answers a turn of the reactor

    path: Path
    migrations: Sequence[str]
    reactor: Any
    after_commit: list[Callable[[sqlite3.Connection], object]] = field(factory=list, init=False)
    waiting: int = field(default=0, init=False)  # works not answered yet
    commits: Durations = field(factory=Durations, init=False)
    trouble: Trouble = field(factory=Trouble, init=False)
    _asked: deque[_Job] = field(factory=deque, init=False)  # since the thread got the last
    _busy: bool = field(default=False, init=False)  # it has some, or is about to
    _jobs: SimpleQueue[list[_Job] | None] = field(factory=SimpleQueue, init=False)
    _done: deque[_Job] = field(factory=deque, init=False)  # to be answered, in this order
    _ended: bool = field(default=False, init=False)
    _thread: Thread = field(init=False)
    _stopped: Deferred[None] = field(init=False)
    _connection: sqlite3.Connection | None = field(default=None, init=False)
    _doubted: bool = field(default=True, init=False)  # a checkpoint must succeed first
    _said: bool = field(default=False, init=False)  # the trouble that lasts is in the log

    # --- in the reactor's thread

    def check(self) -> None:
        """Raise Unusable if the file is not ours to open. Only reads: not with SQLite."""
        try:
            with self.path.open("rb") as file:
                header = file.read(100)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unusable(f"{self.path} cannot be read: {error.strerror}") from None
        # an empty one was made, but the first checkpoint never came
        if header and (len(header) < 100 or not header.startswith(MAGIC)):
            raise Unusable(
                f"{self.path} is no SQLite database: move it away, or put a backup in its place"
            )
        logged = _logged_version(Path(f"{self.path}-wal"))
        self._accept(_version(header) if logged is None else logged)

    def startService(self) -> None:
        """Open the file, make or migrate it; raises Unusable. What follows is the thread's."""
        self.check()
        try:
            files.make_folder(self.path.parent)
            if not self.path.exists():
                os.close(files.open_new(str(self.path)))
                files.sync_folder(self.path.parent)
            self._connection = self._open()
        except (sqlite3.Error, OSError) as error:
            raise Unusable(f"{self.path} cannot be used: {error}") from None
        self._doubted = True
        self._thread = Thread(target=self._serve, name=self.path.name, daemon=True)
        self._thread.start()
        super().startService()

    def stopService(self) -> Deferred[None]:
        """Fires once everything that waits is committed and answered, and the file is closed."""
        if not self.running:
            return succeed(None)
        super().stopService()
        self._stopped, self._ended = Deferred(), False
        if not self._busy:
            self._jobs.put(None)
        return self._stopped

    def ready(self) -> Deferred[object]:
        """Fires once a write would be kept, fails with StoreError: also soon after trouble."""
        if reason := self.trouble.recent:
            return fail(StoreError(reason))
        return self.run(_nothing)

    def measures(self, service: str) -> Iterator[Measure]:
        """What there is to say of it, for the service whose it is."""
        yield Measure(f"{service}_waiting_works", "Works not committed yet.", self.waiting)
        yield Measure(f"{service}_commit_seconds", "How long a commit took.", self.commits)
        yield Measure(
            f"{service}_storage_errors_total",
            "Errors of its database and its disk.",
            self.trouble.count,
        )

    def run(self, work: Callable[[sqlite3.Connection], _T]) -> Deferred[_T]:
        """Call `work` in the writer's thread; fires with its result once that is durable.

        Works run in the order of the calls, inside a transaction they must not end (so no
        `executescript`), and again, alone, if a neighbour raised. Fails with StoreError when the
        storage does, else with what `work` raised.
        """
        return self.gather(_each, work)

    def gather(
        self,
        work: Callable[[sqlite3.Connection, list[_Item]], list[_T]],
        item: _Item,
        rows: int = 1,
    ) -> Deferred[_T]:
        """As `run`, but `work` is called once for all the items that wait for it.

        It answers with one result an item. Every SQLite call gives the interpreter away and may
        wait milliseconds to get it back from a busy reactor: a few calls a group stay cheap, a
        few a message do not. Items of different works may pass each other.

        rows: how many this item is about; about GROUP of them at most are committed together.
        """
        if not self.running:
            return fail(StoreError("shutting down"))
        answer: Deferred[_T] = Deferred()
        self.waiting += 1
        self._asked.append(_Job(work, item, answer, rows))
        if not self._busy:
            self._busy = True
            self.reactor.callLater(0, self._hand_over)  # with all that this turn still brings
        return answer

    def _hand_over(self) -> None:
        """Let the thread do what has been asked for since it got the last."""
        asked, rows = list[_Job](), 0
        while self._asked and rows < self.GROUP:
            asked.append(self._asked.popleft())
            rows += asked[-1].weight
        self._busy = bool(asked)
        if asked:
            self._jobs.put(asked)

    def _deliver(self, jobs: list[_Job]) -> None:
        """A few answers a turn: whoever hears many at once must not keep everybody else waiting."""
        self.reactor.callLater(0, self._go_on)  # who hears an answer may ask again at once
        behind = bool(self._done)
        self._done.extend(jobs)
        if not behind:
            self._say()

    def _go_on(self) -> None:
        self._hand_over()
        if not (self._busy or self.running):
            self._jobs.put(None)

    def _say(self) -> None:
        for _ in range(min(self.SLICE, len(self._done))):
            job = self._done[0]
            self.waiting -= 1
            job.answer.callback(job.result)
            self._done.popleft()
        if self._done:
            self.reactor.callLater(0, self._say)
        elif self._ended:
            self._stopped.callback(None)

    def _end(self) -> None:
        self._thread.join()  # this was the last thing it did
        self._ended = True
        if not self._done:
            self._stopped.callback(None)

    # --- in the thread (opening: in the reactor's before there is one)

    def _serve(self) -> None:
        with suppress(_Down):
            self._trusted()
        while (jobs := self._jobs.get()) is not None:
            self._answer(jobs)
            self.reactor.callFromThread(self._deliver, jobs)
            if self._connection is not None and not self._doubted:
                self._tell(self._connection)
        self._close()
        self.reactor.callFromThread(self._end)

    def _answer(self, jobs: list[_Job]) -> None:
        """Commit them together; if one spoils that, each alone, so that it costs no neighbour."""
        groups = deque([jobs])
        while groups:
            group = groups.popleft()
            try:
                self._commit(group)
            except _Down as down:
                for job in chain(group, *groups):
                    job.result = Failure(StoreError(str(down)))
                return
            except Exception:
                if len(group) > 1:
                    groups.extend([job] for job in group)
                else:
                    group[0].result = Failure()

    def _commit(self, jobs: list[_Job]) -> None:
        """One transaction. Raises _Down, or what a work raised; then nothing was kept.

        A COMMIT that failed is not tried again: it may be found after a crash all the same.
        """
        connection = self._trusted()
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._down(error) from None
        kinds: dict[Any, list[_Job]] = {}
        for job in jobs:
            kinds.setdefault(job.work, []).append(job)
        try:
            for work, some in kinds.items():
                results = work(connection, [job.item for job in some])
                for job, result in zip(some, results, strict=True):
                    job.result = result
        except Exception as error:
            if _is_trouble(error):
                raise StoreError(str(self._down(error))) from None
            self._roll_back()
            raise
        try:
            with self.commits.timed():
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._down(error) from None
        if self._said:
            self._said = False
            log.info("{path} takes writes again", event="database.back", path=str(self.path))

    def _tell(self, connection: sqlite3.Connection) -> None:
        """Let those who follow the tables look."""
        for hook in self.after_commit:
            try:
                hook(connection)
            except sqlite3.Error as error:
                self._down(error)
            except Exception:
                log.failure(
                    "following {path} failed", event="database.follower", path=str(self.path)
                )

    def _trusted(self) -> sqlite3.Connection:
        """The connection, once what it stands on is known to be on disk. Raises _Down."""
        try:
            connection = self._connection = self._connection or self._open()
            if self._doubted:
                self._tell(connection)  # of what was there before anything new is
                checkpoint(connection)
                self._doubted = False
        except (sqlite3.Error, OSError, Unusable) as error:
            self._close()
            raise self._down(error) from None
        return connection

    def _down(self, error: Exception) -> _Down:
        """Trust nothing until a checkpoint succeeds; said once until a commit does."""
        self._doubted = True
        self.trouble.note(plain(error))
        self._roll_back()
        if not self._said:
            self._said = True
            log.error(
                "{path}: {error}; nothing is stored until that is over",
                event="database.down",
                path=str(self.path),
                error=f"{plain(error)} ({error})",
            )
        return _Down(plain(error))

    def _roll_back(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error:
                self._close()

    def _close(self) -> None:
        """SQLite checkpoints on the last close; a reader elsewhere may be in the way of that."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.execute("PRAGMA busy_timeout = 0")
                checkpoint(connection)
            with suppress(sqlite3.Error):
                connection.close()

    def _open(self) -> sqlite3.Connection:
        """Raises sqlite3.Error, OSError, Unusable. Never makes the file."""
        connection = sqlite3.connect(
            f"{self.path.resolve().as_uri()}?mode=rw",
            uri=True,
            timeout=LOCK_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,  # opened in the reactor's thread, then only the writer's
            factory=self.CONNECTION,
        )
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        self._accept(version)
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise Unusable(f"{self.path} lies where SQLite cannot keep a write-ahead log")
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
        for place, script in enumerate(self.migrations[version:], version + 1):
            connection.executescript(
                f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA user_version = {place};\nCOMMIT"
            )
        connection.execute("SELECT count(*) FROM sqlite_schema")  # a damaged one shows itself here
        connection.execute("BEGIN IMMEDIATE")  # and a file we may only read, here
        connection.execute("ROLLBACK")

    def _accept(self, version: int) -> None:
        ours = len(self.migrations)
        if not 0 <= version <= ours:
            raise Unusable(
                f"{self.path} is of version {version}, this program knows up to {ours}: start the"
                " program that wrote it, or put a backup of that version in its place"
            )
