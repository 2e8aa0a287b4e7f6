"""`logfile.log`: one line of JSON a message, following the table.

    {"time": "2026-11-21T09:30:00.123Z", "seq": 7, "id": "ana", "message": "hola"}

Lines are ASCII, everything else is escaped: no line break (U+2028 is one to some readers) and no
control character of a message can make a second record. They are in the order of seq, each once.

The table is the promise: an answer never waits for this file. After each commit what the table
has beyond the last line is appended; so after kill -9, or once a full disk has room again, the
file catches up by the same step. A torn line at its end is cut first. The file may be moved away
or deleted at any time: the next message begins a new one. A file that is there but empty begins
where the last new one did (`logfile.after`).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from attrs import define, field
from twisted.logger import Logger

from daemon.stores import files

log = Logger()
Row = tuple[int, str, str, str]  # seq, at, id, message


def lines(rows: Iterable[Row]) -> bytes:
    """The records, each with its LF."""
    text = "".join(
        json.dumps({"time": at, "seq": seq, "id": ident, "message": message}) + "\n"
        for seq, at, ident, message in rows
    )
    return text.replace("\x7f", "\\u007f").encode("ascii")  # DEL is all that json leaves


def sequence(line: bytes) -> int | None:
    """The seq of one of our lines (without its LF); None if it is none."""
    try:
        record = json.loads(line)
        return int(record["seq"]) if list(record) == ["time", "seq", "id", "message"] else None
    except (ValueError, TypeError, RecursionError):
        return None


@define(eq=False, repr=False)
class MessageLog:
    """The file behind the table. `follow` runs in the thread of the database, after its commits."""

    BATCH: ClassVar[int] = 128  # messages read and written at once
    TAIL: ClassVar[int] = 1 << 20  # bytes looked through for the last good line; one has < 400 KiB

    path: Path
    _file: int | None = field(default=None, init=False)
    _first: int | None = field(default=None, init=False)  # the highest seq when we began to follow
    _last: int | None = field(default=None, init=False)  # seq of the last line; None: not known yet
    _said: bool = field(default=False, init=False)

    def follow(self, connection: sqlite3.Connection) -> None:
        """Append what the table has more than the file; an OSError is logged and tried again."""
        try:
            if self._first is None:
                self._first = _highest(connection)
            if self._last is None:
                self._open(connection)
            while rows := self._after(connection):
                self._open(connection)
                self._write(connection, rows)
        except OSError as error:
            self.close()
            if not self._said:
                self._said = True
                log.error(
                    "{path}: {error}; the messages are safe in the database, their lines follow",
                    path=str(self.path),
                    error=error.strerror,
                )

    def close(self) -> None:
        """Only when the database's thread is gone; `follow` would open it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _after(self, connection: sqlite3.Connection) -> list[Row]:
        """The next messages the file lacks."""
        rows: list[Row] = connection.execute(
            "SELECT seq, at, id, message FROM messages WHERE seq > ? ORDER BY seq LIMIT ?",
            (self._last, self.BATCH),
        ).fetchall()
        return rows

    def _open(self, connection: sqlite3.Connection) -> None:
        """The file at the path, whole to its end, and the seq that ends it."""
        if self._file is not None:
            if self._in_place():
                return
            self.close()
        if not self.path.exists():
            if self._last is None:
                self._last = self._first
            self._begin(connection)  # first: an empty file alone would begin where an older one did
            os.close(files.open_new(str(self.path)))
            files.sync_folder(self.path.parent)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        found = self._mend(self._file)
        highest = _highest(connection)
        if found is not None and found <= highest:
            self._last = found
        elif found is not None:
            self._last = highest
            log.warn(
                "{path} ends with message {found}, the database with {highest}: it is another one",
                path=str(self.path),
                found=found,
                highest=highest,
            )
        elif self._last is None:
            (after,) = connection.execute("SELECT max(after) FROM logfile").fetchone()
            self._last = min(after or 0, highest)

    def _in_place(self) -> bool:
        assert self._file is not None
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _begin(self, connection: sqlite3.Connection) -> None:
        connection.execute("UPDATE logfile SET after = ? WHERE after != ?", [self._last] * 2)

    def _mend(self, file: int) -> int | None:
        """Cut what is no line of ours from the end; the seq of the last one that is."""
        size = os.fstat(file).st_size
        start = max(0, size - self.TAIL)
        keep, found = last_record(os.pread(file, self.TAIL, start))
        if start + keep < size:
            log.warn(
                "{path} ended in {count} bytes that are no whole line; they were cut",
                path=str(self.path),
                count=size - start - keep,
            )
            os.ftruncate(file, start + keep)
        return found

    def _write(self, connection: sqlite3.Connection, rows: list[Row]) -> None:
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if not size:
            self._begin(connection)
        try:
            files.write_all(self._file, lines(rows))
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise
        self._last = rows[-1][0]
        if self._said:
            self._said = False
            log.info("{path} is complete again", path=str(self.path))


def last_record(tail: bytes) -> tuple[int, int | None]:
    """How many bytes of `tail` to keep, and the seq of our line that ends them.

    Without a line of ours it is kept up to its last LF: somebody else's text.
    """
    end = whole = tail.rfind(b"\n") + 1
    while end:
        begin = tail.rfind(b"\n", 0, end - 1) + 1
        seq = sequence(tail[begin : end - 1])
        if seq is not None:
            return end, seq
        end = begin
    return whole, None


def _highest(connection: sqlite3.Connection) -> int:
    """The last seq the database gave, also if that message was deleted since."""
    (seq,) = connection.execute(
        "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'messages'"
    ).fetchone()
    return int(seq)
