"""The tables of a depot: every file that was acknowledged, who had it, and every draft.

SQLite, for anybody to read. Times are ISO 8601 in UTC.
    parcels   ident (the place in the queue, never given twice), box, name (as sent), file, size,
              sha256, at (when it became durable), expires (or NULL), deliveries (counted ones that
              broke off), parked (0 or 1), copies (receivers who may still have it, 0: each once)
    received  parcel, receiver: named ones who have it
    drafts    key, box, name, file, size (when it will be whole), synced (durable bytes of it),
              sha256 (that it must have, or empty), lasts (seconds from when it is whole until it
              is deleted), copies, touched (when somebody went on with it), idle (seconds after
              that until it is deleted; 0: never), boot (of the machine, in which all that was
              written is good; empty: only what is synced)
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from attrs import frozen

MIGRATIONS = (
    """
    CREATE TABLE parcels (
        ident INTEGER PRIMARY KEY AUTOINCREMENT,
        box TEXT NOT NULL, file TEXT NOT NULL UNIQUE, size INTEGER NOT NULL,
        sha256 TEXT NOT NULL, at TEXT NOT NULL,
        deliveries INTEGER NOT NULL DEFAULT 0, parked INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX parcels_box ON parcels (box, ident);
    """,
    """
    ALTER TABLE parcels ADD COLUMN name TEXT NOT NULL DEFAULT '';
    ALTER TABLE parcels ADD COLUMN expires TEXT;
    ALTER TABLE parcels ADD COLUMN copies INTEGER NOT NULL DEFAULT 1;
    DROP INDEX parcels_box;
    CREATE TABLE received (
        parcel INTEGER NOT NULL, receiver TEXT NOT NULL, PRIMARY KEY (parcel, receiver)
    ) WITHOUT ROWID;
    CREATE TABLE drafts (
        key TEXT PRIMARY KEY, box TEXT NOT NULL, name TEXT NOT NULL, file TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL, synced INTEGER NOT NULL, sha256 TEXT NOT NULL, lasts REAL NOT NULL,
        copies INTEGER NOT NULL, touched TEXT NOT NULL, idle REAL NOT NULL,
        boot TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
)

PARCELS = (
    "SELECT ident, box, name, file, size, sha256, at, expires, deliveries, parked, copies"
    " FROM parcels ORDER BY ident"
)
_RECEIVED = "SELECT parcel, receiver FROM received"
_DRAFTS = (
    "SELECT key, box, name, file, size, synced, sha256, lasts, copies, touched, idle, boot"
    " FROM drafts"
)
_ENTER = (
    "INSERT INTO parcels (box, name, file, size, sha256, at, expires, parked, copies)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REMOVE = "DELETE FROM parcels WHERE ident = ?"
_FORGET = "DELETE FROM received WHERE parcel = ?"
_DELIVERIES = "UPDATE parcels SET deliveries = ?, parked = ? WHERE ident = ?"
_COPIES = "UPDATE parcels SET copies = ? WHERE ident = ?"
_RECEIVE = "INSERT OR IGNORE INTO received (parcel, receiver) VALUES (?, ?)"
_BEGIN = (
    "INSERT INTO drafts (key, box, name, file, size, synced, sha256, lasts, copies, touched, idle,"
    " boot) VALUES (?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?)"
)
_SYNCED = "UPDATE drafts SET synced = ?, touched = ?, boot = ? WHERE key = ?"
_DISCARD = "DELETE FROM drafts WHERE key = ?"

_HELD = (
    "SELECT box, sum(size) FROM"
    " (SELECT box, size FROM parcels UNION ALL SELECT box, size FROM drafts) GROUP BY box"
)

Work = Callable[[sqlite3.Connection], Any]


@frozen
class ParcelRow:
    """A row of parcels, without the ident that the table gives."""

    box: str
    name: str
    file: str
    size: int
    sha256: str
    at: str
    expires: str | None
    parked: bool
    copies: int


@frozen
class DraftRow:
    key: str
    box: str
    name: str
    file: str
    size: int
    synced: int
    sha256: str
    lasts: float
    copies: int
    touched: str
    idle: float
    boot: str


@frozen
class Contents:
    """Everything. parcels: ident, deliveries, row, named receivers."""

    parcels: list[tuple[int, int, ParcelRow, set[str]]]
    drafts: list[DraftRow]


def held(path: Path) -> dict[str, int]:
    """Bytes by box, of files and drafts. Raises sqlite3.Error; blocks."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as reader:
        return dict(reader.execute(_HELD))


def contents(connection: sqlite3.Connection) -> Contents:
    received = defaultdict[int, set[str]](set)
    for parcel, receiver in connection.execute(_RECEIVED):
        received[parcel].add(receiver)
    parcels = [
        (
            ident,
            deliveries,
            ParcelRow(box, name, file, size, sha256, at, expires, bool(parked), copies),
            received.pop(ident, set()),
        )
        for (
            ident,
            box,
            name,
            file,
            size,
            sha256,
            at,
            expires,
            deliveries,
            parked,
            copies,
        ) in connection.execute(PARCELS)
    ]
    return Contents(parcels, [DraftRow(*row) for row in connection.execute(_DRAFTS)])


def enter(row: ParcelRow, draft: str = "") -> Work:
    """Gives the ident. draft: the key of the one that is whole now."""

    def work(connection: sqlite3.Connection) -> int:
        values = (row.box, row.name, row.file, row.size, row.sha256, row.at, row.expires)
        ident = connection.execute(_ENTER, (*values, row.parked, row.copies)).lastrowid
        if draft:
            connection.execute(_DISCARD, (draft,))
        assert ident is not None
        return ident

    return work


def remove(ident: int) -> Work:
    def work(connection: sqlite3.Connection) -> None:
        connection.execute(_REMOVE, (ident,))
        connection.execute(_FORGET, (ident,))

    return work


def receive(ident: int, copies: int, receiver: str) -> Work:
    """It has fewer copies to give, and this one, if it has a name, needs no other."""

    def work(connection: sqlite3.Connection) -> None:
        connection.execute(_COPIES, (copies, ident))
        if receiver:
            connection.execute(_RECEIVE, (ident, receiver))

    return work


def deliver(ident: int, deliveries: int, parked: bool) -> Work:
    return lambda connection: connection.execute(_DELIVERIES, (deliveries, parked, ident)) and None


def begin(row: DraftRow) -> Work:
    values = (row.key, row.box, row.name, row.file, row.size)
    more = (row.sha256, row.lasts, row.copies, row.touched, row.idle, row.boot)
    return lambda connection: connection.execute(_BEGIN, (*values, *more)) and None


def synced(key: str, offset: int, touched: str, boot: str) -> Work:
    values = (offset, touched, boot, key)
    return lambda connection: connection.execute(_SYNCED, values) and None


def discard(key: str) -> Work:
    return lambda connection: connection.execute(_DISCARD, (key,)) and None
