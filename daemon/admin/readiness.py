"""Whether work should be sent here: each thing that must hold, tried when somebody asks.

    state       the daemon serves: it neither starts still, nor drains
    disk        a small file in DATA_DIR can be written and synced, and MIN_FREE stays free
    ingest, relay, handshake, chat
                the store of that service takes writes (`Kept`), and did for some seconds

Whoever asks while the answer is being found, or within KEEP seconds after it, gets the same one:
asking often costs no disk. What gives no answer within PATIENCE seconds does not work.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from attrs import define, field
from twisted.internet.defer import Deferred, DeferredList, succeed
from twisted.internet.defer import TimeoutError as TooLate
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.stores import files
from protocols.stores import StoreError

if TYPE_CHECKING:
    from daemon.roundhouse import Roundhouse

log = Logger()

OK = "ok"
SERVING = "serving"


@runtime_checkable
class Kept(Protocol):
    """A store of `service` that can be tried."""

    service: str

    def ready(self) -> Deferred[Any]:
        """Fires when it takes writes, fails with StoreError when it does not."""


@define(eq=False, repr=False)
class Readiness:
    """in_thread: runs what may block, with its arguments, elsewhere."""

    KEEP: ClassVar[float] = 0.5
    PATIENCE: ClassVar[float] = 2.0

    daemon: Roundhouse
    clock: IReactorTime
    in_thread: Callable[..., Deferred[Any]]
    _known: Mapping[str, str] = field(factory=dict, init=False)
    _since: float | None = field(default=None, init=False)  # when that was known
    _waiting: list[Deferred[Mapping[str, str]]] = field(factory=list, init=False)
    _probing: bool = field(default=False, init=False)  # a thread is at the disk, maybe for ever

    def ask(self) -> Deferred[Mapping[str, str]]:
        """What each check comes to: OK, or what is wrong with it."""
        state = self.daemon.state
        if state != SERVING:
            return succeed({"state": state})
        if self._since is not None and self.clock.seconds() - self._since < self.KEEP:
            return succeed({"state": OK, **self._known})
        waiting: Deferred[Mapping[str, str]] = Deferred()
        self._waiting.append(waiting)
        if len(self._waiting) == 1:
            self._try_all()
        return waiting

    def _try_all(self) -> None:
        tried: dict[str, Deferred[Any]] = {}
        if self.daemon.house.services:
            tried["disk"] = self._try_disk()
        for store in self.daemon.house.services:
            if isinstance(store, Kept):
                tried[store.service] = store.ready()
        for each in tried.values():
            each.addTimeout(self.PATIENCE, self.clock)
        together = DeferredList([*tried.values()], consumeErrors=True)
        together.addCallback(lambda found: self._found([*tried], [one for _, one in found]))

    def _found(self, names: list[str], results: list[Any]) -> None:
        self._known = {
            name: _plain(result) if isinstance(result, Failure) else OK
            for name, result in zip(names, results, strict=True)
        }
        self._since = self.clock.seconds()
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback({"state": OK, **self._known})

    def _try_disk(self) -> Deferred[Any]:
        if self._probing:  # from before: another thread would only wait as well
            return Deferred()
        self._probing = True
        now = self.daemon.settings
        served = [now.services[name].options for name in self.daemon.factories]
        least = max((getattr(options, "min_free", 0) for options in served), default=0)
        return self.in_thread(self._probe, self.daemon.begun.data_dir, least)

    def _probe(self, folder: Path, least: int) -> None:
        try:
            probe(folder, least)
        finally:
            self._probing = False


def probe(folder: Path, least: int) -> None:
    """Make a small write durable where at least `least` bytes are free. Raises OSError; blocks."""
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(b"x" * 512)
        files.sync_data(file.fileno())
    with files.opened(str(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) as descriptor:
        files.check_free(descriptor, least)


def _plain(failure: Failure) -> str:
    match failure.value:
        case TooLate():
            return "no answer"
        case StoreError() as error:
            return error.reason
        case OSError() as error:
            return str(error.strerror or error)
    log.failure("a check of readiness failed", failure, event="admin.unchecked")
    return "failed: see the log"
