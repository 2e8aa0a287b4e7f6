"""What a service brings to be tried, and what is found afterwards."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from attrs import define, field, frozen

from tests.process import PATIENCE, Twistd

_K = TypeVar("_K")
_V = TypeVar("_V")
Client = Callable[[], None]  # sends once; raises OSError where the daemon is gone


@frozen
class Verdict:
    """What became of the data. acknowledged: how many things were; the others: a line each."""

    acknowledged: int = 0
    lost: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()

    @property
    def good(self) -> bool:
        return not (self.lost or self.twice or self.wrong)

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            self.acknowledged + other.acknowledged,
            self.lost + other.lost,
            self.twice + other.twice,
            self.wrong + other.wrong,
        )


class Heard(dict[_K, _V]):
    """What was acknowledged, and how. deaf: the power is going, so nothing more is heard.

    In truth the daemon dies with its disk. Here it lives on for a moment, and the kernel lets an
    fsync that was under way when the disk went end well: what is acknowledged then proves nothing.
    """

    deaf = False

    def __setitem__(self, key: _K, value: _V) -> None:
        if not self.deaf:
            super().__setitem__(key, value)


def damage(database: Path) -> list[str]:
    """What SQLite finds wrong in a database, in a line; empty if it is sound."""
    with closing(sqlite3.connect(database)) as connection:
        (said,) = connection.execute("PRAGMA integrity_check").fetchone()
    return [] if said == "ok" else [f"PRAGMA integrity_check says {said}"]


class Workload(Protocol):
    """One service under load in one DATA_DIR. A fresh one remembers nothing.

    settings: lines for the sections of config.cfg, as for Twistd.configure. strikes: when the
    daemon was killed or its disk cut, in seconds of time.monotonic; the hazard fills it.
    heard: all that was acknowledged; the hazard makes it deaf for a moment. powerless: the disk
    was cut, so what was not acknowledged may hold anything.
    """

    settings: Mapping[str, str]
    strikes: list[float]
    powerless: bool

    @property
    def heard(self) -> Sequence[Heard[Any, Any]]: ...

    def clients(self, daemon: Twistd) -> Sequence[Client]:
        """At least four, each for a thread of its own, called again and again."""

    def collect(self, daemon: Twistd) -> None:
        """Nobody sends, the daemon serves: fetch what only the wire shows."""

    def verify(self, data: Path) -> Verdict:
        """The daemon has stopped politely: look at DATA_DIR."""


@define(eq=False)
class Load:
    """Clients at work, as long as the `with` lasts. wrong: what no client should ever see."""

    clients: Sequence[Client]
    wrong: list[str] = field(factory=list, init=False)
    _over: threading.Event = field(factory=threading.Event, init=False)
    _threads: list[threading.Thread] = field(factory=list, init=False)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._keep, args=(c,)) for c in self.clients]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE)
            if thread.is_alive():
                self.wrong.append("a client waits for ever")

    def _keep(self, client: Client) -> None:
        while not self._over.is_set():
            try:
                client()
            except OSError:
                self._over.wait(0.02)
            except Exception as error:
                self.wrong.append(f"a client met {error!r}")
                return
