"""Where the events of `daemon.events` go: a line each, for people or for machines.

    text    2026-11-21T09:30:00+0000 [gate.refused#warn] refused 50: 10.0.0.1 has 1000 ...
    json    {"time": "2026-11-21T09:30:00.123Z", "level": "warn", "event": "gate.refused", ...}

They go to LOG_FILE, else to where twistd would log: the file of its -l, twistd.log once it has
daemonised, else standard output. A file is renamed to FILE.1 before it grows beyond LOG_SIZE, and
opened anew when it was moved away. Where the journal of systemd listens, each line has its
priority in front in place of the time.

A line is one line whatever a peer sent: control, bidirectional and invisible characters are
escaped. Lines that are alike are written once a second, with how many more there were. A reader
that is stuck, or a full disk, costs lines and never the daemon: how many is said once it goes on.
"""

from __future__ import annotations

import json
import os
import re
import select
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Any, ClassVar, Protocol

from attrs import define, field, frozen
from twisted.logger import ILogObserver, LogEvent, Logger, LogLevel, formatEvent, formatTime
from twisted.python.failure import Failure
from twisted.python.usage import UsageError
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]
from zope.interface import implementer

from daemon.events import EVENTS, LIBRARY
from daemon.stores import files

EVERY = 1.0  # seconds between two lines that are alike
MOST = 8192  # characters of a sentence or a field
PATIENCE = 100  # ms that a pipe may take to go on in the middle of a line
LEVELS = ("debug", "info", "warn", "error", "critical")
_PRIORITY = dict(zip(LEVELS, (7, 6, 4, 3, 2), strict=True))  # sd-daemon(3)
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff"
    r"\ufeff\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def escape(text: str) -> str:
    """`text` on one line, with nothing in it that a terminal would obey."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


@frozen
class Wanted:
    """What [daemon] says of the log. file: None is where twistd logs; size: bytes, 0: any."""

    format: str = "text"
    level: str = "info"
    file: Path | None = None
    size: int = 16 << 20
    keep: int = 5


class Sink(Protocol):
    def write(self, line: bytes) -> None:
        """All of it or, as far as that can be, nothing. Raises OSError; never waits for long."""

    def close(self) -> None: ...


@define(eq=False, repr=False)
class File:
    """path: opened for appending, with what is above it there already; mode 0640 if it is new.

    size, keep: bytes beyond which it becomes path.1, and how many of those stay. owner: uid and
    gid of who will write once privileges are gone.
    """

    path: Path
    size: int = 0
    keep: int = 5
    owner: tuple[int, int] | None = None
    _descriptor: int = field(default=-1, init=False)

    def open(self) -> None:
        """Raises OSError."""
        # a FIFO without a reader is an error, not a daemon that waits for one
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        if self.owner is not None:
            flags |= os.O_NOFOLLOW  # the folder may be theirs, and we be root
        fresh = not self.path.exists()
        descriptor = os.open(self.path, flags, files.FILE_MODE)
        try:
            if fresh:
                os.fchmod(descriptor, files.FILE_MODE)
                if self.owner is not None:
                    os.fchown(descriptor, *self.owner)
        except OSError:
            os.close(descriptor)
            raise
        self.close()
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def write(self, line: bytes) -> None:
        if not self._in_place():
            self.open()
        status = os.fstat(self._descriptor)
        regular = stat.S_ISREG(status.st_mode)
        if regular and 0 < self.size < status.st_size + len(line) and status.st_size:
            self.roll()
            status = os.fstat(self._descriptor)
        try:
            files.write_all(self._descriptor, line)
        except OSError:
            if regular:
                with suppress(OSError):
                    os.ftruncate(self._descriptor, status.st_size)
            raise

    def roll(self) -> None:
        """It becomes path.1, that one path.2, ...; where that fails it just grows on."""
        with suppress(OSError):
            number = max(self.keep, 1)
            while self._old(number).exists():
                self._old(number).unlink()
                number += 1
            for number in range(self.keep - 1, 0, -1):
                if self._old(number).exists():
                    self._old(number).rename(self._old(number + 1))
            if self.keep:
                self.path.rename(self._old(1))
            else:
                self.path.unlink()
            self.open()

    def _old(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _in_place(self) -> bool:
        try:
            return self._descriptor >= 0 and os.path.samestat(
                os.stat(self.path), os.fstat(self._descriptor)
            )
        except FileNotFoundError:
            return False


@define(eq=False, repr=False)
class Stream:
    """A pipe, a terminal or the journal; its other end may be stuck."""

    descriptor: int
    _torn: bool = field(default=False, init=False)  # the last line is not whole

    def write(self, line: bytes) -> None:
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        if self._torn:
            line = b"\n" + line
        for start in range(0, len(line), select.PIPE_BUF):
            if not poll.poll(PATIENCE if start else 0):
                self._torn = self._torn or start > 0
                raise BlockingIOError("nobody reads it")
            files.write_all(self.descriptor, line[start : start + select.PIPE_BUF])
        self._torn = False

    def close(self) -> None:
        """It is not ours."""


@define(eq=False)
class _Alike:
    """Lines that wait for the second to be over."""

    count: int = 0
    last: LogEvent = field(factory=dict)


@implementer(ILogObserver)
@define(eq=False, repr=False)
class Log:
    """The observer of a daemon, from its first line to its last; any thread may log.

    later(seconds, call): in the thread of the reactor, from any thread. usual: where twistd
    would log, None: standard output. owner: see `File`.
    """

    ABOUT: ClassVar[int] = 1000  # different lines a second; beyond that only their event counts

    later: Callable[[float, Callable[[], object]], object]
    usual: Path | None = None
    wanted: Wanted = field(factory=Wanted)
    owner: tuple[int, int] | None = None
    lost: int = field(default=0, init=False)
    _why: str = field(default="", init=False)
    _sink: Sink = field(init=False)
    _alike: dict[tuple[str, ...], _Alike] = field(factory=dict, init=False)
    _closed: bool = field(default=False, init=False)
    _lock: RLock = field(factory=RLock, init=False)
    _log: Logger = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._log = Logger(observer=self)

    def open(self) -> None:
        """Raises OSError when the file cannot be written to."""
        self._sink = self._opened(self.wanted)

    def follow(self, wanted: Wanted) -> None:
        """From here on as `wanted` says (reload)."""
        if wanted == self.wanted:
            return
        with self._lock:
            try:
                sink = self._opened(wanted)
            except OSError as error:
                self._log.error(
                    "LOG_FILE {path} cannot be written ({why}); the log stays as it is",
                    event="log.unusable",
                    path=str(wanted.file or self.usual),
                    why=error.strerror,
                )
                return
            self._sink.close()
            self._sink, self.wanted = sink, wanted

    def roll(self) -> None:
        """Begin a new file now."""
        with self._lock:
            if isinstance(self._sink, File):
                self._sink.roll()

    def close(self) -> None:
        """Write what waits for its second to be over; later lines are written at once."""
        with self._lock:
            self._closed = True
            for key in list(self._alike):
                self._sum_up(key)

    def __call__(self, event: LogEvent) -> None:
        level = _level(event)
        if level < LogLevel.lookupByName(self.wanted.level):
            return
        with self._lock:
            if not self._waits(event):
                self._write(event)

    def _waits(self, event: LogEvent) -> bool:
        """Whether one like this was written within the last second."""
        known = EVENTS.get(event.get("event", LIBRARY))
        if self._closed or known is None or known.alike is None:
            return False
        key = (known.name, *(str(event.get(name)) for name in known.alike))
        if key not in self._alike and len(self._alike) >= self.ABOUT:
            key = (known.name,)
        if (young := self._alike.get(key)) is not None:
            young.count += 1
            young.last = event
            return True
        self._wait(key)
        return False

    def _sum_up(self, key: tuple[str, ...]) -> None:
        with self._lock:
            young = self._alike.pop(key, None)
            if young is None or not young.count:
                return
            if not self._closed:
                self._wait(key)
            self._write(young.last, young.count - 1)

    def _wait(self, key: tuple[str, ...]) -> None:
        self._alike[key] = _Alike()
        self.later(EVERY, lambda: self._sum_up(key))

    def _write(self, event: LogEvent, more: int = 0) -> None:
        if self.lost:
            count, self.lost = self.lost, 0
            self._log.warn(
                "{count} lines of this log are lost: {why}",
                event="log.lost",
                count=count,
                why=self._why,
            )
            if self.lost:  # it still takes nothing
                self.lost = count + 1
                return
        try:
            self._sink.write(self._line(event, more))
        except OSError as error:
            self.lost += 1
            self._why = error.strerror or str(error)

    def _line(self, event: LogEvent, more: int = 0) -> bytes:
        journal = isinstance(self._sink, Stream) and _journal(self._sink.descriptor)
        if self.wanted.format == "json":
            line = as_json(event, more)
        else:
            line = as_text(event, more, timed=not journal)
        if journal:
            line = f"<{_PRIORITY[_level(event).name]}>{line}"
        return f"{line}\n".encode("utf-8", "backslashreplace")

    def _opened(self, wanted: Wanted) -> Sink:
        path = wanted.file or self.usual
        if path is None:
            return Stream(1)
        file = File(path, wanted.size, wanted.keep, self.owner)
        file.open()
        return file


def _level(event: LogEvent) -> Any:
    level = event.get("log_level", LogLevel.info)
    ours = "event" in event or event.get("log_namespace") in ("stdout", "stderr")
    return LogLevel.debug if level == LogLevel.info and not ours else level


def _sentence(event: LogEvent, more: int) -> str:
    said = formatEvent(event)
    if "log_failure" in event:  # what follows is a traceback, of which we have our own
        said = said.partition("\n")[0]
    if len(said) > MOST:
        said = f"{said[:MOST]}..."
    return f"{said} (and {more} more like it)" if more else said


def as_text(event: LogEvent, more: int = 0, timed: bool = True) -> str:
    """One line: when, which event at which level, the sentence."""
    name = event.get("event") or event.get("log_namespace", "-")
    trace = event.get("log_failure")
    said = escape(_sentence(event, more) + (_trace(trace) if trace is not None else ""))
    when = f"{formatTime(event.get('log_time'))} " if timed else ""
    return f"{when}[{escape(str(name))}#{_level(event).name}] {said}"


def as_json(event: LogEvent, more: int = 0) -> str:
    """One object in ASCII: `time`, `level`, `event`, `message`, and the fields of the event."""
    name = event.get("event", LIBRARY)
    when = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    record: dict[str, object] = {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": _level(event).name,
        "event": name,
        "message": _sound(_sentence(event, more)),
    }
    if name == LIBRARY:
        record["system"] = _sound(event.get("log_namespace", "-"))
    known = EVENTS.get(name)
    record |= {key: _sound(event[key]) for key in (known.fields if known else ()) if key in event}
    if more:
        record["more"] = more
    if "log_failure" in event:
        record["traceback"] = _sound(event["log_failure"].getTraceback())
    return json.dumps(record)


def _sound(value: object) -> object:
    """As JSON may hold it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)[:MOST].encode("utf-8", "backslashreplace").decode()


def _trace(failure: Failure) -> str:
    """The whole traceback on one line."""
    steps = "; ".join(f"{Path(frame[1]).name}:{frame[2]} {frame[0]}" for frame in failure.frames)
    what = failure.type.__name__ if failure.type is not None else "?"
    return f" - Traceback: {steps}: {what}: {failure.getErrorMessage()[:MOST]}"


def _journal(descriptor: int, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether it leads to the journal, see JOURNAL_STREAM in systemd.exec(5)."""
    device, _, inode = environ.get("JOURNAL_STREAM", "").partition(":")
    if not inode:
        return False
    status = os.fstat(descriptor)
    return (device, inode) == (str(status.st_dev), str(status.st_ino))


class _Options(ServerOptions):
    """twistd's own, read once more."""

    def opt_reactor(self, name: str) -> None:
        """It is installed."""

    opt_r = opt_reactor


def begin(
    arguments: Sequence[str],
    wanted: Wanted,
    later: Callable[[float, Callable[[], object]], object],
    owner: tuple[int, int] | None = None,
) -> Log | None:
    """The open log of a daemon that was started as `arguments` (sys.argv); None: it has another.

    That is so with --syslog and --logger. Raises OSError when the file cannot be written to.
    """
    options: Mapping[str, Any] = {"nodaemon": True}
    if Path(arguments[0]).stem == "twistd":
        read = _Options()
        with suppress(UsageError, SystemExit):  # twistd itself has told of it
            read.parseOptions(arguments[1:])
            options = read
    if options.get("syslog") or options.get("logger"):
        return None
    named = options.get("logfile")
    if not named and not options.get("nodaemon"):
        named = "twistd.log"
    log = Log(later, Path(named).absolute() if named and named != "-" else None, wanted, owner)
    log.open()
    return log
