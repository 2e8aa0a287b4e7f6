"""ON_COMPLETE: a command for each thing that became durable, with its manifest as last argument.

On disk, beside the manifest <name>.json
    <name>.pending      empty: the command has still to run for it
    <name>.failed       empty: it failed every time and is left to a person; renamed back to
                        .pending it runs again at the next start
A mark is made before its manifest has its name and before the one sync of their folder, so it
costs no sync, and what is left to do survives kill -9 and a power cut. It goes once the command
has ended with status 0: a command runs once, and again only where it failed, was cut short by a
stop or by LIMIT, or where the daemon died between its end and the removal of the mark.

No shell: the command is a program and its arguments. At most AT_ONCE run; stdin is empty, what
they print goes to the log, OUTPUT bytes a run. A reload changes the command for every run that
has not begun; while there is none, what is marked waits.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.stores import files
from daemon.stores.crew import Crew

log = Logger()

MANIFEST = ".json"
PENDING = ".pending"
FAILED = ".failed"
LOST = 3600.0  # seconds after which a mark without a manifest waits for none


def _mark(manifest: str, suffix: str = PENDING) -> str:
    return manifest.removesuffix(MANIFEST) + suffix


@define(eq=False, repr=False)
class Completed(Service):
    """Runs the command for the manifests in `folder`.

    For each series: `mark`, name its manifest, sync the folder, `add`. `use` at every reading of
    the settings. Start it when what a crash left in the folder is finished: it looks there for
    marks. Memory holds MOST names; more wait on disk alone.

    what: the section of config.cfg, for the log.
    """

    AT_ONCE: ClassVar[int] = 4
    MOST: ClassVar[int] = 10_000
    PAUSES: ClassVar[Sequence[float]] = (5.0, 30.0, 180.0)  # seconds before each next try
    LIMIT: ClassVar[float] = 3600.0  # seconds a run may take
    STOP: ClassVar[float] = 1.0  # seconds a run has to end by itself when the daemon stops

    what: str
    folder: Path
    crew: Crew
    command: tuple[str, ...] = ()  # `use` changes it
    _waiting: deque[str] = field(factory=deque, init=False)  # names of manifests
    _tries: dict[str, int] = field(factory=dict, init=False)  # of every name in memory
    _runs: set[Run] = field(factory=set, init=False)
    _settling: int = field(default=0, init=False)  # marks on their way out
    _pauses: set[IDelayedCall] = field(factory=set, init=False)
    _more: bool = field(default=False, init=False)  # there may be marks that memory knows not
    _looking: bool = field(default=False, init=False)

    def mark(self, manifest: str, folder: int) -> None:
        """In any thread, before the manifest called `manifest` is named in the folder.

        folder: a descriptor of it; whoever named the manifest syncs it after both. Raises OSError.
        """
        if self.command:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
            os.close(os.open(_mark(manifest), flags, files.FILE_MODE, dir_fd=folder))

    def add(self, manifest: Path) -> None:
        """It is durable: run the command for it, soon and once. In the reactor's thread."""
        if not self.command:
            return
        self._remember(manifest.name)
        self._next()

    def use(self, command: Sequence[str]) -> None:
        """From now on this is the command; empty: none."""
        command, was = tuple(command), self.command
        self.command = command
        if command and not was:
            self._more = True
        self._next()

    def startService(self) -> None:
        super().startService()
        self._more = True
        self._next()

    def stopService(self) -> Deferred[None]:
        """Begin nothing more; what is running has STOP seconds, then SIGTERM, then SIGKILL."""
        super().stopService()
        for pause in self._pauses:
            pause.cancel()
        self._pauses.clear()
        for run in self._runs:
            run.end_within(self.STOP)
        return DeferredList([run.over for run in self._runs]).addCallback(lambda _: None)

    def _remember(self, name: str) -> None:
        if name in self._tries:
            return
        if len(self._tries) >= self.MOST:
            self._more = True
        else:
            self._tries[name] = 0
            self._waiting.append(name)

    def _next(self) -> None:
        if not self.running or not self.command:
            return
        # What has run counts until its mark is gone: a crash repeats no more than AT_ONCE.
        while self._waiting and len(self._runs) + self._settling < self.AT_ONCE:
            self._begin(self._waiting.popleft())
        if self._more and not self._looking and len(self._tries) <= self.MOST // 2:
            self._more, self._looking = False, True
            self.crew.work(_marked, self.folder).addCallbacks(self._found, self._unread)

    def _found(self, names: list[str]) -> None:
        self._looking = False
        for name in names:
            self._remember(name)
        self._next()

    def _unread(self, failure: Failure) -> None:
        """The folder is gone or broken: each stream says so, and the next start looks again."""
        self._looking = False
        log.error(
            "[{what}] ON_COMPLETE: {folder}: {error}",
            event="hook.unreadable",
            what=self.what,
            folder=str(self.folder),
            error=failure.getErrorMessage(),
        )

    def _begin(self, name: str) -> None:
        manifest = self.folder / name
        if not (manifest.exists() and manifest.with_name(_mark(name)).exists()):
            self._settle(name)  # somebody took it away, or it was found twice and is done
            return
        run = Run(self.crew.reactor, self.LIMIT)
        self._runs.add(run)
        run.over.addCallback(self._ended, name, run)
        run.begin([*self.command, str(manifest)])

    def _ended(self, trouble: str, name: str, run: Run) -> None:
        self._runs.discard(run)
        for line in run.said():
            log.info(
                "[{what}] ON_COMPLETE {name}: {line}",
                event="hook.said",
                what=self.what,
                name=name,
                line=line,
            )
        if not trouble:
            self._settle(name)
        elif self.running:
            self._failed(name, trouble)
        else:
            log.warn(
                "[{what}] ON_COMPLETE {name}: {trouble}; the next start runs it again",
                event="hook.postponed",
                what=self.what,
                name=name,
                trouble=trouble,
            )
        self._next()

    def _failed(self, name: str, trouble: str) -> None:
        self._tries[name] += 1
        tries = self._tries[name]
        if tries > len(self.PAUSES):
            log.error(
                "[{what}] ON_COMPLETE {name}: {trouble}; given up after {tries} runs, see {mark}",
                event="hook.given_up",
                what=self.what,
                name=name,
                trouble=trouble,
                tries=tries,
                mark=str(self.folder / _mark(name, FAILED)),
            )
            self._settle(name, failed=True)
            return
        seconds = self.PAUSES[tries - 1]
        log.warn(
            "[{what}] ON_COMPLETE {name}: {trouble}; again in {seconds:g} s",
            event="hook.failed",
            what=self.what,
            name=name,
            trouble=trouble,
            seconds=seconds,
        )

        def again() -> None:
            self._pauses.discard(pause)
            self._waiting.append(name)
            self._next()

        pause = self.crew.reactor.callLater(seconds, again)
        self._pauses.add(pause)

    def _settle(self, name: str, failed: bool = False) -> None:
        """It needs no further run."""

        def settled(result: object) -> None:
            self._settling -= 1
            if isinstance(result, Failure):
                log.error(
                    "[{what}] ON_COMPLETE {name}: its mark stays, so it runs again: {error}",
                    event="hook.unmarked",
                    what=self.what,
                    name=name,
                    error=result.getErrorMessage(),
                )
            self._tries.pop(name, None)
            self._next()

        self._settling += 1
        self.crew.work(_unmark, self.folder, name, failed).addBoth(settled)


@define(eq=False, repr=False)
class Run(ProcessProtocol):
    """One process. over: fires with "" when it ended with status 0, else with what happened."""

    OUTPUT: ClassVar[int] = 8192  # bytes of what it prints that are kept
    PATIENCE: ClassVar[float] = 0.5  # seconds for the rest of what it printed, once it is gone
    HARD: ClassVar[float] = 1.0  # seconds from SIGTERM to SIGKILL

    reactor: Any
    limit: float  # seconds
    transport: Any = field(default=None, init=False)
    over: Deferred[str] = field(factory=Deferred, init=False)
    _output: bytearray = field(factory=bytearray, init=False)
    _dropped: int = field(default=0, init=False)
    _timer: IDelayedCall | None = field(default=None, init=False)
    _overdue: bool = field(default=False, init=False)

    def begin(self, argv: Sequence[str]) -> None:
        with open(os.devnull, "rb") as nothing:
            fds: dict[int, Any] = {0: nothing.fileno(), 1: "r", 2: "r"}
            try:
                self.reactor.spawnProcess(self, argv[0], argv, env=None, childFDs=fds)
            except OSError as error:  # no such program any more, or no process or pipe left
                # A turn later: behind it thousands may wait that cannot be run either.
                trouble = f"{argv[0]} cannot be run: {error.strerror}"
                self.reactor.callLater(0, self.over.callback, trouble)
                return
        self._after(self.limit, self._too_long)

    def end_within(self, seconds: float) -> None:
        if self.transport is not None:  # else it could not be run, and is about to say so
            self._after(seconds, self._terminate)

    def said(self) -> list[str]:
        """What it printed, in lines that are safe in a log."""
        text = self._output.decode(errors="replace")
        lines = [one if one.isprintable() else ascii(one)[1:-1] for one in text.splitlines()]
        if self._dropped:
            lines.append(f"... and {self._dropped} bytes more")
        return [line for line in lines if line]

    def outReceived(self, data: bytes) -> None:
        room = self.OUTPUT - len(self._output)
        self._output += data[:room]
        self._dropped += max(0, len(data) - room)

    errReceived = outReceived

    def processExited(self, reason: Failure) -> None:
        # What it left running may hold its pipes for ever.
        self._after(self.PATIENCE, self.transport.loseConnection)

    def processEnded(self, reason: Failure) -> None:
        self._after(None)
        code, number = getattr(reason.value, "exitCode", 0), getattr(reason.value, "signal", None)
        if self._overdue:
            trouble = f"took longer than {self.limit:g} s"
        elif number is not None:
            trouble = f"ended by signal {number}"
        else:
            trouble = f"exit status {code}" if code else ""
        self.over.callback(trouble)

    def _too_long(self) -> None:
        self._overdue = True
        self._terminate()

    def _terminate(self) -> None:
        self._signal("TERM")
        self._after(self.HARD, lambda: self._signal("KILL"))

    def _signal(self, name: str) -> None:
        with suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)

    def _after(self, seconds: float | None, act: Any = None) -> None:
        """One timer at a time; None: none."""
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None if seconds is None else self.reactor.callLater(seconds, act)


def _marked(folder: Path) -> list[str]:
    """In a thread: the manifests that have a mark, durable, in the order of their names."""
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries if entry.name.endswith((PENDING, MANIFEST))}
    files.sync_folder(folder)  # whoever named the last of them may not have come to it yet
    marked = {name.removesuffix(PENDING) + MANIFEST for name in names if name.endswith(PENDING)}
    for manifest in marked - names:
        mark = folder / _mark(manifest)
        with suppress(OSError):  # one alone is about to have its manifest, or has lost it
            if time.time() - mark.stat().st_mtime > LOST:
                mark.unlink()
    return sorted(marked & names)


def _unmark(folder: Path, manifest: str, failed: bool) -> None:
    """In a thread: it is done, or given up."""
    mark = folder / _mark(manifest)
    with suppress(FileNotFoundError):
        if failed:
            mark.rename(folder / _mark(manifest, FAILED))
        else:
            mark.unlink()
