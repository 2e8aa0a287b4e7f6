"""What the daemon must know to serve a protocol it has never heard of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen
from twisted.internet.interfaces import IReactorTime

from protocols.connection import LiveFactory
from protocols.stores import Kernel, Stores


@frozen
class Context:
    """Everything a protocol may reach for; nothing is global."""

    clock: IReactorTime
    options: Any  # an instance of the Spec's own `options` class
    stores: Stores
    kernel: Kernel


@frozen
class Port:
    """A listening port of a protocol.

    key: its name in config.cfg (PORT, CODE_PORT); number: the default.
    resets: SO_LINGER {1, 0} holds from the accept on, so that a killed daemon resets the peer
    instead of seeming to have finished (where FIN alone is the answer).
    broadcasts: whoever waits in its backlog is accepted before a broadcast goes out.
    busy: what one connection too many is told; without it, it is reset.
    unsent: bytes that the kernel may hold for a peer that does not read; 0: as it likes.
    unread: bytes that it may hold of what a peer said, about; 0: as it likes. A loop reads a socket
    until it is empty: so much of one flooding peer at a time is what the others wait for.
    secondary: where it is taken and config.cfg does not name it, the daemon starts without it.
    means: what it is for, to an operator.
    """

    key: str
    number: int
    resets: bool = False
    broadcasts: bool = False
    secondary: bool = False
    busy: bytes = b""
    unsent: int = 0
    unread: int = 0
    means: str = "the port it listens on"

    @property
    def listen_key(self) -> str:
        """PORT -> LISTEN, CODE_PORT -> CODE_LISTEN."""
        return self.key.removesuffix("PORT") + "LISTEN"


def _names(names: Iterable[str]) -> frozenset[str]:
    return frozenset(names)


@frozen
class NoOptions:
    """For a protocol that has nothing to set."""


@frozen
class Spec:
    """name: its section in config.cfg; build: a factory for each port's key.

    options: the frozen attrs class of its keys (protocols/options.py). also_default: [DEFAULT]
    may hold them too, as the seed of ingest wrote them. stores: which stores it needs.
    """

    name: str
    ports: tuple[Port, ...]
    build: Callable[[Context], Mapping[str, LiveFactory]]
    options: type[Any] = NoOptions
    stores: frozenset[str] = field(default=frozenset(), converter=_names)
    also_default: bool = False
