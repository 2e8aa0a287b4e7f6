"""What is behind protocols/stores.py in this daemon: files, SQLite and memory, in one process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from attrs import define, field, frozen
from twisted.application.service import Service

from daemon.stores.crew import Crew
from daemon.stores.depot import Depot
from daemon.stores.files import FILE_MODE, Unusable, make_folder
from daemon.stores.history import History, Past
from daemon.stores.landing import Landing
from daemon.stores.ledger import Ledger
from daemon.stores.ring import Ring
from daemon.stores.roster import Names
from protocols.stores import Stores


@frozen
class Absent:
    """Stands where a store would be that no Spec asked for."""

    store: str

    def __getattr__(self, name: str) -> Any:
        raise LookupError(f"the {self.store} is not open: name it in Spec.stores")


@define(eq=False)
class Lock(Service):
    """One daemon at a time uses a store of DATA_DIR; two may share the folder with others each.

    Taken while the tac loads, so that the refusal reaches the terminal; it survives the fork.
    """

    path: Path
    _descriptor: int = field(default=-1, init=False)

    def check(self) -> None:
        """Take it. Raises Unusable when another process has it, or the folder cannot be used."""
        try:
            make_folder(self.path.parent)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, FILE_MODE)
        except OSError as error:
            raise Unusable(
                f"DATA_DIR {self.path.parent} cannot be used: {error.strerror}; set DATA_DIR to a"
                " folder that this user may write to"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            by = f"by process {holder}" if holder.isdecimal() else "by another process"
            raise Unusable(
                f"DATA_DIR {self.path.parent} is in use {by}: stop it, or set another DATA_DIR"
            ) from None
        self._descriptor = descriptor

    def startService(self) -> None:
        super().startService()
        os.fchmod(self._descriptor, FILE_MODE)
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def stopService(self) -> None:
        super().stopService()
        os.close(self._descriptor)
        self._descriptor = -1


@frozen
class House:
    """The stores a daemon needs, and their services in the order in which they start."""

    stores: Stores
    services: tuple[Service, ...]
    ring: Ring

    def check(self) -> None:
        """Look at what is on disk, before anything is served. Raises Unusable."""
        for service in self.services:
            if (check := getattr(service, "check", None)) is not None:
                check()


def build(names: Collection[str], data: Path, reactor: Any) -> House:
    """The stores called `names` (landing, depot, ledger, broadcast) on the folder `data`.

    Nothing is opened yet: threads, databases and files begin with startService.
    """
    crew = Crew(reactor)
    on_disk: dict[str, Any] = {
        "landing": lambda: Landing(data / "ingest", crew),
        "depot": lambda: Depot(data / "relay", crew, reactor),
        "ledger": lambda: Ledger(data, reactor),
        "broadcast": lambda: History(data / "chat.db", reactor),
    }
    made = {name: make() for name, make in on_disk.items() if name in names}
    services: list[Service] = [Lock(data / f".{name}.lock") for name in made]
    if "landing" in made or "depot" in made:
        services.append(crew)
    services += made.values()
    ring = Ring(reactor, made.get("broadcast") or Past())
    absent = {name: Absent(name) for name in on_disk}
    stores: dict[str, Any] = {**absent, **made, "broadcast": ring, "roster": Names()}
    return House(Stores(**stores), tuple(services), ring)
