"""Clients, codes and messages in `roundhouse.db`, for one daemon and for anybody with sqlite3.

    clients   id, at     everybody who has a code, or had one that was used
    codes     code, id, hash, at, used, replaces, ended
              hash: sha256 of id, LF and the code as its client knows it, which is not kept
              used: when first; replaces: the code that was shown for this one: with all older
              ones of the id it ends then. Several of an id are valid until they ended
    messages  seq, at, id, message, peer, code
              seq rises; it is never given twice. code: the one it was logged with
    logfile   after      logfile.log holds the messages after this one

Times are ISO 8601, UTC, with milliseconds; at is the time of the commit's transaction. The newest
ten of ana, and how many messages each client has:

    SELECT at, message FROM messages WHERE code IN (SELECT code FROM codes WHERE id = 'ana')
        ORDER BY seq DESC LIMIT 10;
    SELECT codes.id, count(*) FROM messages JOIN codes USING (code) GROUP BY codes.id;

Ana's codes got into wrong hands; a moment after this they are worth nothing:

    UPDATE codes SET ended = datetime() WHERE id = 'ana' AND ended IS NULL;
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import uuid4

from attrs import define, field, frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.measures import Measure
from daemon.stores.database import Database
from daemon.stores.message_log import MessageLog, Row
from protocols.stores import Claim, Entry, Query, Record, Refused, Rules, StoreError

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
    # Which code a message was logged with was not kept: where an id has one, it was that one;
    # where it has several, one that nobody knows stands for all of them.
    """
    ALTER TABLE codes RENAME TO old_codes;
    CREATE TABLE codes (
        code INTEGER PRIMARY KEY,
        id TEXT NOT NULL, hash BLOB NOT NULL UNIQUE, at TEXT NOT NULL,
        used TEXT, replaces INTEGER, ended TEXT
    );
    INSERT INTO codes (id, hash, at, used) SELECT id, hash, at, at FROM old_codes ORDER BY at, id;
    INSERT INTO codes (id, hash, at, used, ended)
        SELECT id, randomblob(32), min(at), min(at), min(at) FROM old_codes
        GROUP BY id HAVING count(*) > 1;
    DROP TABLE old_codes;
    CREATE INDEX codes_id ON codes (id);
    CREATE INDEX codes_unused ON codes (at) WHERE used IS NULL;
    ALTER TABLE messages ADD COLUMN code INTEGER REFERENCES codes (code);
    UPDATE messages SET code = (SELECT max(code) FROM codes WHERE codes.id = messages.id);
    CREATE INDEX messages_code ON messages (code);
    """,
)

Pair = tuple[str, str]  # an id and a code
_STRIDE = 256  # rows a statement at most


@frozen
class Code:
    """A valid code, as the table has it."""

    number: int
    used: bool
    replaces: bool


@define(eq=False, repr=False)
class Ledger(Service):
    """`protocols.stores.Ledger`, durable. More than MOST messages or MOST_BYTES waiting is busy.

    KNOWN: codes whose hashes are kept in memory; LOOK: seconds for which one stays there that
    another program has ended. SWEEP: rows deleted at once; REST: seconds between two looks for
    what is too old.
    """

    MOST: ClassVar[int] = 50_000
    MOST_BYTES: ClassVar[int] = 64 << 20
    KNOWN: ClassVar[int] = 100_000
    LOOK: ClassVar[float] = 0.1
    READ: ClassVar[int] = 1 << 18  # characters that one reading brings, and one message more
    SWEEP: ClassVar[int] = 500
    REST: ClassVar[float] = 10.0

    service: ClassVar[str] = "handshake"

    data: Path
    reactor: Any
    database: Database = field(init=False)
    _messages: MessageLog = field(init=False)
    _rules: Rules = field(factory=Rules, init=False)
    _known: OrderedDict[bytes, Code] = field(factory=OrderedDict, init=False)  # used, by hash
    _foreign: int = field(default=0, init=False)  # changes with every write of another program
    _looked: float = field(default=0.0, init=False)  # when that was looked at
    _fresh: list[Row] = field(factory=list, init=False)  # inserted since the log was written
    _logged: int = field(default=0, init=False)  # messages acknowledged
    _waiting: int = field(default=0, init=False)  # messages; and their bytes
    _bytes: int = field(default=0, init=False)
    _sweeper: LoopingCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.database = Database(self.data / "roundhouse.db", MIGRATIONS, self.reactor)
        self.database.after_commit.append(self._follow)
        self._messages = MessageLog(self.data / "logfile.log")
        self._sweeper = LoopingCall(lambda: Deferred.fromCoroutine(self._sweep()))
        self._sweeper.clock = self.reactor

    def check(self) -> None:
        """Raises Unusable for a database that is not ours, or newer."""
        self.database.check()

    def startService(self) -> None:
        self.database.startService()
        super().startService()
        self._sweeper.start(self.REST, now=False)

    async def _stop(self) -> None:
        await self.database.stopService()
        self._messages.close()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        if self._sweeper.running:
            self._sweeper.stop()
        return Deferred.fromCoroutine(self._stop())

    def rule(self, rules: Rules) -> None:
        self._rules = rules
        self._messages.rotate(rules.log_size, rules.log_keep)

    def claim(self, claim: Claim) -> Deferred[str | Refused]:
        size = _size(claim.ident, claim.code or "")
        if size is None:
            return succeed(Refused.BROKEN)
        if self._full():
            return succeed(Refused.BUSY)
        claimed: Deferred[str | Refused] = self.database.gather(self._claim, claim)
        return self._counted(claimed, 1, size, Refused.BROKEN)

    def append(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        count, size = 0, 0
        try:
            for entry in entries:
                count += len(entry.messages)
                size += len(
                    f"{entry.ident}{entry.code}{entry.peer}{''.join(entry.messages)}".encode()
                )
        except UnicodeEncodeError:  # half a character: SQLite would refuse its neighbours, too
            return self._append_sound(entries)
        if self._full():
            return succeed([Refused.BUSY] * len(entries))
        appended: Deferred[list[int | Refused]] = self.database.gather(self._append, entries, count)
        self._waiting += count
        self._bytes += size
        return appended.addBoth(self._appended, entries, count, size)

    def _appended(
        self,
        answers: list[int | Refused] | Failure,
        entries: Sequence[Entry],
        count: int,
        size: int,
    ) -> list[int | Refused]:
        """In one step: there are ten thousands of them a second."""
        self._waiting -= count
        self._bytes -= size
        if isinstance(answers, Failure):
            return [self._broken(answers, Refused.BROKEN)] * len(entries)
        for entry, answer in zip(entries, answers, strict=True):
            if not isinstance(answer, Refused):
                self._logged += len(entry.messages)
        return answers

    def ready(self) -> Deferred[object]:
        return self.database.ready()

    def measures(self) -> Iterator[Measure]:
        yield Measure("handshake_messages_total", "Messages that were acknowledged.", self._logged)
        yield Measure("handshake_waiting_messages", "Messages not stored yet.", self._waiting)
        yield Measure("handshake_waiting_bytes", "Bytes of messages not stored yet.", self._bytes)
        yield from self.database.measures(self.service)

    def _append_sound(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        sound = [
            _size(entry.ident, entry.code, entry.peer, *entry.messages) is not None
            for entry in entries
        ]

        def spread(answers: list[int | Refused]) -> list[int | Refused]:
            taken = iter(answers)
            return [next(taken) if ok else Refused.BROKEN for ok in sound]

        keep = [entry for entry, ok in zip(entries, sound, strict=True) if ok]
        return self.append(keep).addCallback(spread)

    def read(self, query: Query) -> Deferred[Sequence[Record] | Refused]:
        size = _size(query.ident, query.code)
        if size is None:
            return succeed(Refused.WRONG)
        if self._full():
            return succeed(Refused.BUSY)
        found: Deferred[Sequence[Record] | Refused] = self.database.gather(self._read, query)
        return self._counted(found, 1, size, Refused.BROKEN)

    @property
    def behind(self) -> bool:
        return self._waiting >= self.MOST // 2 or self._bytes >= self.MOST_BYTES // 2

    def _full(self) -> bool:
        return self._waiting >= self.MOST or self._bytes >= self.MOST_BYTES

    def _counted(self, answer: Deferred[_T], count: int, size: int, broken: _T) -> Deferred[_T]:
        """Until it is there, it waits; when it fails, that is the value `broken`."""
        self._waiting += count
        self._bytes += size

        def answered(result: _T | Failure) -> _T:
            self._waiting -= count
            self._bytes -= size
            return self._broken(result, broken) if isinstance(result, Failure) else result

        return answer.addBoth(answered)

    def _broken(self, why: Failure, broken: _T) -> _T:
        self._failed(why)
        self._known = OrderedDict()  # what was rolled back is known no more
        return broken

    def _failed(self, why: Failure) -> None:
        if not why.check(StoreError):
            log.failure("the ledger failed", event="ledger.broken", failure=why)

    async def _sweep(self) -> None:
        """Delete what the rules do not keep, a few rows at a time: others get in between."""
        try:
            while self.running and self._forgets() and await self.database.run(self._delete):
                pass
        except Exception:
            self._failed(Failure())

    def _forgets(self) -> bool:
        rules = self._rules
        return bool(rules.code_expires or rules.keep_seconds or rules.keep_count)

    # --- in the writer's thread, once for all that waits

    def _claim(self, connection: sqlite3.Connection, claims: list[Claim]) -> list[str | Refused]:
        at = _now()
        shown = self._codes(
            connection, {(c.ident, c.code) for c in claims if c.exclusive and c.code is not None}
        )
        taken = self._registered(connection, {c.ident for c in claims if c.exclusive})
        answers: list[str | Refused] = []
        codes: list[tuple[str, bytes, str, int | None]] = []
        for claim in claims:
            present = None if claim.code is None else shown.get((claim.ident, claim.code))
            if claim.exclusive and claim.ident in taken and present is None:
                answers.append(Refused.TAKEN)
                continue
            code = str(uuid4())  # 122 random bits from the system
            answers.append(code)
            replaces = present.number if present is not None else None
            codes.append((claim.ident, _hash(claim.ident, code), at, replaces))
            taken.add(claim.ident)
        clients = [(ident, at) for ident, _, at, _ in codes]
        _insert(connection, "OR IGNORE INTO clients (id, at)", clients)
        _insert(connection, "INTO codes (id, hash, at, replaces)", codes)
        return answers

    def _append(
        self, connection: sqlite3.Connection, calls: list[Sequence[Entry]]
    ) -> list[list[int | Refused]]:
        at = _now()
        pairs = {(entry.ident, entry.code) for entries in calls for entry in entries}
        codes = self._used(connection, pairs, at)
        rows: list[tuple[str, str, str, str, int]] = []
        places: list[list[int | None]] = []
        for entries in calls:
            place: list[int | None] = []
            for entry in entries:
                ident, code = entry.ident, codes.get((entry.ident, entry.code))
                if code is None:
                    place.append(None)
                    continue
                place.append(len(rows))
                rows += [(at, ident, text, entry.peer, code) for text in entry.messages]
            places.append(place)
        first = _insert(connection, "OR FAIL INTO messages (at, id, message, peer, code)", rows)
        self._fresh += [
            (seq, at, ident, text) for seq, (at, ident, text, _, _) in enumerate(rows, first)
        ]
        return [
            [Refused.WRONG if place is None else first + place for place in some] for some in places
        ]

    def _read(
        self, connection: sqlite3.Connection, queries: list[Query]
    ) -> list[Sequence[Record] | Refused]:
        at = _now()
        codes = self._used(connection, {(query.ident, query.code) for query in queries}, at)
        found: list[Sequence[Record] | Refused] = []
        for query in queries:
            code = codes.get((query.ident, query.code))
            if code is None:
                found.append(Refused.WRONG)
                continue
            codes_read = _row(connection, _USED, query.ident) if query.whole else [code]
            seqs = sorted(
                seq
                for number in codes_read
                for seq in _row(connection, _SEQS, number, query.after, query.limit)
            )
            wanted = json.dumps(seqs[: query.limit])
            found.append([Record(*one) for one in _row(connection, _READ, wanted, self.READ)])
        return found

    def _delete(self, connection: sqlite3.Connection) -> bool:
        """One step; whether there may be more."""
        rules = self._rules
        steps: list[tuple[str, str | int]] = []
        if rules.code_expires:
            unused = "FROM codes WHERE used IS NULL AND at < ? ORDER BY at LIMIT ?"
            old = _now(rules.code_expires)
            # first the clients: those with no other code
            connection.execute(
                f"WITH old AS (SELECT code, id {unused}) DELETE FROM clients"
                " WHERE id IN (SELECT id FROM old) AND NOT EXISTS (SELECT 1 FROM codes"
                " WHERE codes.id = clients.id AND code NOT IN (SELECT code FROM old))",
                (old, self.SWEEP),
            )
            steps.append((f"DELETE FROM codes WHERE code IN (SELECT code {unused})", old))
        oldest = "seq IN (SELECT seq FROM messages ORDER BY seq LIMIT ?)"
        if rules.keep_seconds:
            steps.append(
                (f"DELETE FROM messages WHERE at < ? AND {oldest}", _now(rules.keep_seconds))
            )
        if rules.keep_count:
            newest = "(SELECT max(seq) FROM messages)"
            steps.append(
                (f"DELETE FROM messages WHERE seq <= {newest} - ? AND {oldest}", rules.keep_count)
            )
        counts = [connection.execute(sql, (bound, self.SWEEP)).rowcount for sql, bound in steps]
        return self.SWEEP in counts

    def _used(self, connection: sqlite3.Connection, pairs: set[Pair], at: str) -> dict[Pair, int]:
        """The numbers of those that are right; from now on they count as used."""
        codes = self._codes(connection, pairs)
        fresh = {pair: code for pair, code in codes.items() if not code.used}
        if fresh:
            numbers = json.dumps([code.number for code in fresh.values()])
            connection.execute(
                "UPDATE codes SET used = ? WHERE code IN (SELECT value FROM json_each(?))",
                (at, numbers),
            )
        for (ident, _), code in fresh.items():
            if code.replaces:
                connection.execute(
                    "UPDATE codes SET ended = ? WHERE id = ? AND code < ? AND ended IS NULL",
                    (at, ident, code.number),
                )
                self._known.clear()
        return {pair: code.number for pair, code in codes.items()}

    def _codes(self, connection: sqlite3.Connection, pairs: Iterable[Pair]) -> dict[Pair, Code]:
        """The codes that are right.

        What is right is mostly in memory; what is wrong, an unknown id as well as a wrong code, is
        looked for in the table by the one hash of both. No constant-time compare is needed: how
        far a hash agrees with a stored one tells nothing about the code that made it.
        """
        self._heed_others(connection)
        known, found = self._known, {}
        asked: dict[bytes, Pair] = {}
        for pair in pairs:
            digest = _hash(*pair)
            code = known.get(digest)
            if code is None:
                asked[digest] = pair
            else:
                found[pair] = code
        unused = _now(self._rules.code_expires) if self._rules.code_expires else ""
        for digests in _strides([*asked]):
            values = ", ".join([f"({place}, ?)" for place in range(len(digests))])
            for place, *code in _row(connection, _CODES.format(values), *digests, unused):
                digest = digests[place]
                found[asked[digest]] = valid = Code(*code)
                if valid.used:
                    known[digest] = valid
        while len(known) > self.KNOWN:
            known.popitem(last=False)
        return found

    def _heed_others(self, connection: sqlite3.Connection) -> None:
        """Forget what is in memory when another program has written, to take a code back perhaps.

        Not for every group: each call to SQLite may wait for a busy reactor (see Database).
        """
        if (now := time.monotonic()) < self._looked + self.LOOK:
            return
        self._looked = now
        (foreign,) = connection.execute("PRAGMA data_version").fetchone()
        if foreign != self._foreign:
            self._foreign = foreign
            self._known.clear()

    def _registered(self, connection: sqlite3.Connection, idents: Iterable[str]) -> set[str]:
        """Those that have a valid code."""
        unused = _now(self._rules.code_expires) if self._rules.code_expires else ""
        found: set[str] = set()
        for some in _strides([*idents]):
            values = ", ".join([f"({place}, ?)" for place in range(len(some))])
            found.update(
                some[place] for place in _row(connection, _HELD.format(values), *some, unused)
            )
        return found

    def _follow(self, connection: sqlite3.Connection) -> None:
        fresh, self._fresh = self._fresh, []
        self._messages.follow(connection, fresh)


# One row each: fetching one is a call, and every call gives the interpreter away (see Database).
_VALID = "ended IS NULL AND (used IS NOT NULL OR at >= ?)"
_CODES = f"""
    WITH asked (place, hash) AS (VALUES {{}})
    SELECT json_group_array(json_array(place, code, used IS NOT NULL, replaces IS NOT NULL))
    FROM asked CROSS JOIN codes USING (hash) WHERE {_VALID}
"""
_HELD = f"""
    WITH asked (place, id) AS (VALUES {{}})
    SELECT json_group_array(place) FROM asked
    WHERE EXISTS (SELECT 1 FROM codes WHERE codes.id = asked.id AND {_VALID})
"""
_USED = "SELECT json_group_array(code) FROM codes WHERE id = ? AND used IS NOT NULL"
_SEQS = """
    SELECT json_group_array(seq) FROM (
        SELECT seq FROM messages WHERE code = ? AND seq > ? ORDER BY seq LIMIT ?
    )
"""
_READ = """
    WITH measured AS (
        SELECT seq, at, id, message,
            sum(length(message)) OVER (ORDER BY seq) - length(message) AS before
        FROM messages WHERE seq IN (SELECT value FROM json_each(?))
    )
    SELECT json_group_array(json_array(seq, at, id, message)) FROM measured WHERE before < ?
"""


def _row(connection: sqlite3.Connection, sql: str, *values: object) -> list[Any]:
    """The JSON array that is the only value of the only row."""
    (text,) = connection.execute(sql, values).fetchone()
    found: list[Any] = json.loads(text)
    return found


def _insert(connection: sqlite3.Connection, into: str, rows: Sequence[tuple[Any, ...]]) -> int:
    """Insert them in that order; the rowid of the first.

    As few statements as may be, of few different texts: each has room for a power of two of rows,
    and those left over are NULL and not inserted. The first value of a row must not be.
    """
    last, width = 0, len(rows[0]) if rows else 0
    for some in _strides(rows):
        room = 1 << (len(some) - 1).bit_length()
        row = f"({', '.join('?' * width)})"
        values = [*chain.from_iterable(some), *[None] * (width * (room - len(some)))]
        cursor = connection.execute(
            f"INSERT {into} SELECT * FROM (VALUES {', '.join([row] * room)})"
            " WHERE column1 IS NOT NULL",
            values,
        )
        last = cursor.lastrowid or 0
    return last - len(rows) + 1


def _strides(rows: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for place in range(0, len(rows), _STRIDE):
        yield rows[place : place + _STRIDE]


def _size(*texts: str) -> int | None:
    """Their bytes in UTF-8; None if they have none."""
    try:
        return len("".join(texts).encode())
    except UnicodeEncodeError:
        return None


def _hash(ident: str, code: str) -> bytes:
    return sha256(f"{ident}\n{code}".encode()).digest()


def _now(ago: float = 0.0) -> str:
    """The time, or what it was `ago` seconds ago."""
    return told(datetime.now(UTC) - timedelta(seconds=ago))


def told(at: datetime) -> str:
    """A time in UTC, as the tables have it."""
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
