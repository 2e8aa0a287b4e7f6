"""Clients, codes and messages in `roundhouse.db`, for one daemon and for anybody with sqlite3.

    clients   id, at                       everybody who ever asked for a code
    codes     id, hash, at                 sha256 of id, LF and code; several an id are valid
    messages  seq, at, id, message, peer   seq rises; it is never given twice
    logfile   after                        logfile.log holds the messages after this one

at is ISO 8601, UTC, with milliseconds: the time of the commit's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from itertools import chain, count
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.stores.database import Database
from daemon.stores.message_log import MessageLog
from protocols.stores import Entry, Refused, StoreError

log = Logger()
_T = TypeVar("_T")

MIGRATIONS = (
    """
    CREATE TABLE clients (id TEXT NOT NULL PRIMARY KEY, at TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE codes (
        id TEXT NOT NULL, hash BLOB NOT NULL, at TEXT NOT NULL, PRIMARY KEY (id, hash)
    ) WITHOUT ROWID;
    CREATE TABLE messages (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL, id TEXT NOT NULL, message TEXT NOT NULL, peer TEXT NOT NULL
    );
    CREATE TABLE logfile (after INTEGER NOT NULL);
    INSERT INTO logfile VALUES (0);
    """,
)

Claim = tuple[str, bool]  # an id; whether it must be new
_STRIDES = (256, 32, 4, 1)  # rows a statement: few texts to keep prepared, few calls for many rows


@define(eq=False, repr=False)
class Ledger(Service):
    """`protocols.stores.Ledger`, durable. More than MOST entries or MOST_BYTES waiting is busy."""

    MOST: ClassVar[int] = 50_000
    MOST_BYTES: ClassVar[int] = 64 << 20

    data: Path
    reactor: Any
    database: Database = field(init=False)
    _messages: MessageLog = field(init=False)
    _entries: int = field(default=0, init=False)  # waiting; and their bytes
    _bytes: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.database = Database(self.data / "roundhouse.db", MIGRATIONS, self.reactor)
        self._messages = MessageLog(self.data / "logfile.log")
        self.database.after_commit.append(self._messages.follow)

    def check(self) -> None:
        """Raises Unusable for a database that is not ours, or newer."""
        self.database.check()

    def startService(self) -> None:
        self.database.startService()
        super().startService()

    async def _stop(self) -> None:
        await self.database.stopService()
        self._messages.close()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def claim(self, ident: str, exclusive: bool = False) -> Deferred[str | Refused]:
        size = _size(ident)
        if size is None:
            return succeed(Refused.BROKEN)
        if self._full():
            return succeed(Refused.BUSY)
        claimed: Deferred[str | Refused] = self.database.gather(_claim, (ident, exclusive))
        return self._counted(claimed, 1, size, Refused.BROKEN)

    def append(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        size = _size(*chain.from_iterable(map(_fields, entries)))
        if size is None:  # SQLite takes no lone surrogate: it must not cost its neighbours
            return self._append_sound(entries)
        if self._full():
            return succeed([Refused.BUSY] * len(entries))
        broken: list[int | Refused] = [Refused.BROKEN] * len(entries)
        appended: Deferred[list[int | Refused]] = self.database.gather(_append, entries)
        return self._counted(appended, len(entries), size, broken)

    def _append_sound(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        sound = [_size(*_fields(entry)) is not None for entry in entries]

        def spread(answers: list[int | Refused]) -> list[int | Refused]:
            taken = iter(answers)
            return [next(taken) if ok else Refused.BROKEN for ok in sound]

        keep = [entry for entry, ok in zip(entries, sound, strict=True) if ok]
        return self.append(keep).addCallback(spread)

    def _full(self) -> bool:
        return self._entries >= self.MOST or self._bytes >= self.MOST_BYTES

    def _counted(self, answer: Deferred[_T], entries: int, size: int, broken: _T) -> Deferred[_T]:
        """Until it is there, it waits; when it fails, that is the value `broken`."""
        self._entries += entries
        self._bytes += size

        def answered(result: _T | Failure) -> _T:
            self._entries -= entries
            self._bytes -= size
            if not isinstance(result, Failure):
                return result
            if not result.check(StoreError):
                log.failure("the ledger failed", failure=result)
            return broken

        return answer.addBoth(answered)


def _fields(entry: Entry) -> tuple[str, str, str, str]:
    return entry.ident, entry.code, entry.message, entry.peer


def _size(*texts: str) -> int | None:
    """Their bytes in UTF-8; None if they have none."""
    try:
        return len("".join(texts).encode())
    except UnicodeEncodeError:
        return None


# --- in the writer's thread, once for all that waits


def _claim(connection: sqlite3.Connection, claims: list[Claim]) -> list[str | Refused]:
    at = _now()
    held = _held(connection, ("id",), {(ident,) for ident, exclusive in claims if exclusive})
    answers: list[str | Refused] = []
    codes = []
    for ident, exclusive in claims:
        if exclusive and (ident,) in held:
            answers.append(Refused.TAKEN)
            continue
        code = str(uuid4())  # 122 random bits from the system
        answers.append(code)
        codes.append((ident, _hash(ident, code), at))
        held.add((ident,))
    _insert(connection, "OR IGNORE INTO clients (id, at)", [(ident, at) for ident, _, at in codes])
    _insert(connection, "INTO codes (id, hash, at)", codes)
    return answers


def _append(
    connection: sqlite3.Connection, calls: list[Sequence[Entry]]
) -> list[list[int | Refused]]:
    """A wrong code and an unknown id cost the same look-up and get the same answer.

    No constant-time compare is needed: what is looked for is a hash of the secret, and how far it
    agrees with a stored one tells nothing about the code that made it.
    """
    at = _now()
    pairs = {(entry.ident, entry.code) for entries in calls for entry in entries}
    hashes = {pair: (pair[0], _hash(*pair)) for pair in pairs}
    held = _held(connection, ("id", "hash"), set(hashes.values()))
    (last,) = connection.execute(
        "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'messages'"
    ).fetchone()
    numbers = count(last + 1)
    rows: list[tuple[int, str, str, str, str]] = []
    answers: list[list[int | Refused]] = []
    for entries in calls:
        answer: list[int | Refused] = []
        for entry in entries:
            if hashes[entry.ident, entry.code] in held:
                seq = next(numbers)
                rows.append((seq, at, entry.ident, entry.message, entry.peer))
                answer.append(seq)
            else:
                answer.append(Refused.WRONG)
        answers.append(answer)
    _insert(connection, "INTO messages (seq, at, id, message, peer)", rows)
    return answers


def _held(
    connection: sqlite3.Connection, columns: Sequence[str], asked: set[tuple[Any, ...]]
) -> set[tuple[Any, ...]]:
    """Which of these values stand in those columns of `codes`."""
    match = " AND ".join(f"codes.{column} = asked.{column}" for column in columns)
    held: set[tuple[Any, ...]] = set()
    for keys in _strides(list(asked)):
        marks = ", ?" * len(columns)
        values = ", ".join(f"({place}{marks})" for place in range(len(keys)))
        (places,) = connection.execute(
            f"WITH asked (place, {', '.join(columns)}) AS (VALUES {values})"
            " SELECT group_concat(place) FROM asked"  # one row: a step each would be a call each
            f" WHERE EXISTS (SELECT 1 FROM codes WHERE {match})",
            list(chain.from_iterable(keys)),
        ).fetchone()
        if places is not None:
            held.update(keys[int(place)] for place in str(places).split(","))
    return held


def _insert(connection: sqlite3.Connection, into: str, rows: list[Any]) -> None:
    for some in _strides(rows):
        row = f"({', '.join('?' * len(some[0]))})"
        values = ", ".join([row] * len(some))
        connection.execute(f"INSERT {into} VALUES {values}", list(chain.from_iterable(some)))


def _strides(rows: list[_T]) -> Iterator[list[_T]]:
    place = 0
    for stride in _STRIDES:
        while len(rows) - place >= stride:
            yield rows[place : place + stride]
            place += stride


def _hash(ident: str, code: str) -> bytes:
    return sha256(f"{ident}\n{code}".encode()).digest()


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
