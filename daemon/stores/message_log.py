"""`logfile.log`: one line of JSON a message, following the table.

    {"time": "2026-11-21T09:30:00.123Z", "seq": 7, "id": "ana", "message": "hola"}

Lines are records of protocols/handshake_formats.py, in the order of seq, each once.

The table is the promise: an answer never waits for this file. After each commit what the table
has beyond the last line is appended; so after kill -9, or once a full disk has room again, the
file catches up by the same step. A torn line at its end is cut first. The file may be moved away
or deleted at any time: the next message begins a new one. A file that is there but empty begins
where the last new one did (`logfile.after`); one that is gone at the start, behind the newest
rotation, if that is there.

A file that would grow beyond a size is renamed to logfile.log.1, that one to logfile.log.2, and so
on; those beyond a number are deleted.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import ClassVar

from attrs import define, field
from twisted.logger import Logger

from daemon.stores import files
from protocols.handshake_formats import records

log = Logger()
Row = tuple[int, str, str, str]  # seq, at, id, message


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
    FRESH: ClassVar[int] = 1024  # messages written at once, when they need not be read
    TAIL: ClassVar[int] = 1 << 20  # bytes looked through for the last good line; one has < 400 KiB

    path: Path
    _file: int | None = field(default=None, init=False)
    _first: int | None = field(default=None, init=False)  # the highest seq when we began to follow
    _last: int | None = field(default=None, init=False)  # seq of the last line; None: not known yet
    _said: bool = field(default=False, init=False)
    _size: int = field(default=0, init=False)
    _keep: int = field(default=0, init=False)

    def rotate(self, size: int, keep: int) -> None:
        """From now on no file grows beyond `size` bytes (0: it may), and `keep` old ones stay."""
        self._size, self._keep = size, keep

    def follow(self, connection: sqlite3.Connection, fresh: Sequence[Row] = ()) -> None:
        """Append what the table has more than the file; an OSError is logged and tried again.

        fresh: what was inserted since the last call. It need not be read again, unless it turns
        out that some of it was rolled back, or that the file lacks more than that.
        """
        try:
            if self._first is None:
                self._first = _highest(connection)
            if self._last is None:
                self._open(connection)
            if fresh and self._is_next(connection, fresh):
                for place in range(0, len(fresh), self.FRESH):
                    self._open(connection)
                    self._write(connection, fresh[place : place + self.FRESH])
                return
            while rows := self._after(connection):
                self._open(connection)
                self._write(connection, rows)
        except OSError as error:
            self.close()
            if not self._said:
                self._said = True
                log.error(
                    "{path}: {error}; the messages are safe in the database, their lines follow",
                    event="logfile.down",
                    path=str(self.path),
                    error=error.strerror,
                )

    def close(self) -> None:
        """Only when the database's thread is gone; `follow` would open it again."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _is_next(self, connection: sqlite3.Connection, fresh: Sequence[Row]) -> bool:
        """Whether these are exactly the messages the file lacks."""
        first, last = fresh[0][0], fresh[-1][0]
        return (
            first - 1 == self._last
            and last - first + 1 == len(fresh)
            and last == _highest(connection)
            and not any(row[0] != seq for seq, row in enumerate(fresh, first))
        )

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
                self._last = self._newest_rotation()
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
                event="logfile.other",
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
                event="logfile.torn",
                path=str(self.path),
                count=size - start - keep,
            )
            os.ftruncate(file, start + keep)
        return found

    def _newest_rotation(self) -> int | None:
        """The seq that ends it; None if there is none, or if it is no file of ours."""
        path = next((path for path in self._rotations() if path.exists()), None)
        if path is None:
            return None
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - self.TAIL))
            _, found = last_record(file.read())
        return found

    def _rotations(self) -> list[Path]:
        """Where older files are, the newest first, and where one more would be."""
        paths = (self.path.with_name(f"{self.path.name}.{number}") for number in count(1))
        found = []
        for path in paths:
            found.append(path)
            if not path.exists():
                return found
        raise AssertionError

    def _rotate(self, connection: sqlite3.Connection) -> None:
        paths = self._rotations()
        self.close()
        for path in paths[max(self._keep, 1) - 1 : -1]:
            path.unlink()
        for older, newer in reversed(list(zip(paths[1 : self._keep], paths, strict=False))):
            if newer.exists():
                newer.rename(older)
        if self._keep:
            self.path.rename(paths[0])
        else:
            self.path.unlink()
        self._open(connection)

    def _write(self, connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
        assert self._file is not None
        data = records(rows)
        size = os.fstat(self._file).st_size
        if size and 0 < self._size < size + len(data):
            self._rotate(connection)
            size = 0
        if not size:
            self._begin(connection)
        try:
            files.write_all(self._file, data)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise
        self._last = rows[-1][0]
        if self._said:
            self._said = False
            log.info("{path} is complete again", event="logfile.back", path=str(self.path))


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
