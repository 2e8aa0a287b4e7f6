"""How many may connect: in all, for descriptors are few, and from one address.

One gate stands before all ports. It is asked once a connection, so a flood costs an accept, a
look-up and a reset each. What it refuses is logged at most once a second and reason, summed up.
"""

from __future__ import annotations

import resource
import sys
from collections import Counter
from contextlib import suppress
from ipaddress import ip_address
from typing import ClassVar

from attrs import define, field
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger

log = Logger()

RESERVE = 0.25  # of the descriptors: parts, parcels, databases, and copies of sockets that are lent


def descriptors() -> int:
    """Raise the limit of open files as far as this process may: what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # a sandbox may forbid it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def places(asked: int) -> int:
    """Connections there may be in all: `asked`, or for 0 what the descriptors allow."""
    return asked or int(descriptors() * (1 - RESERVE))


@define(eq=False, repr=False)
class Gate:
    """`protocols.connection.Gate`. most, per_address: connections; 0: as many as come.

    loopback: whether those from this machine are limited, too.
    """

    EVERY: ClassVar[float] = 1.0  # seconds between two lines about the same

    clock: IReactorTime
    most: int = 0
    per_address: int = 0
    loopback: bool = False
    refusals: Counter[str] = field(  # by reason
        factory=lambda: Counter({"all": 0, "address": 0}), init=False
    )
    _here: Counter[str] = field(factory=Counter, init=False)
    _count: int = field(default=0, init=False)
    _refused: Counter[str] = field(factory=Counter, init=False)  # since they were last told of
    _told: dict[str, float] = field(factory=dict, init=False)

    def full(self, address: IAddress) -> bool:
        if self.most and self._count >= self.most:
            self.refusals["all"] += 1
            self._say(f"{self._count} connections are open, as many as may be")
            return True
        host = getattr(address, "host", "")
        if not self.per_address or self._here[host] < self.per_address or self._exempt(host):
            return False
        self.refusals["address"] += 1
        self._say(f"{host} has {self._here[host]} connections open, as many as one address may")
        return True

    def enter(self, address: IAddress) -> None:
        self._count += 1
        self._here[getattr(address, "host", "")] += 1

    def leave(self, address: IAddress) -> None:
        self._count -= 1
        host = getattr(address, "host", "")
        self._here[host] -= 1
        if not self._here[host]:
            del self._here[host]

    def _exempt(self, host: str) -> bool:
        """A unix socket has no address to count, and this machine is trusted unless set."""
        if not host:
            return True
        try:
            return ip_address(host).is_loopback and not self.loopback
        except ValueError:  # a PROXY header may say anything
            return False

    def _say(self, why: str) -> None:
        self._refused[why] += 1
        now = self.clock.seconds()
        if now - self._told.get(why, -self.EVERY) < self.EVERY:
            return
        if len(self._told) > 1000:  # many addresses, each once
            self._told.clear()
            self._refused = Counter({why: self._refused[why]})
        self._told[why] = now
        log.warn(
            "refused {count}: {why}", event="gate.refused", count=self._refused.pop(why), why=why
        )
