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
    ABOUT: ClassVar[int] = 1000  # different ones a second, at most

    clock: IReactorTime
    most: int = 0
    per_address: int = 0
    loopback: bool = False
    refusals: Counter[str] = field(  # by reason
        factory=lambda: Counter({"all": 0, "address": 0}), init=False
    )
    _here: dict[str, int] = field(factory=dict, init=False)
    _count: int = field(default=0, init=False)
    _refused: Counter[str] = field(factory=Counter, init=False)  # since they were last told of
    _told: dict[str, float] = field(factory=dict, init=False)

    def full(self, address: IAddress) -> bool:
        if self.most and self._count >= self.most:
            self.refusals["all"] += 1
            self._say(f"{self._count} connections are open, as many as may be")
            return True
        host = getattr(address, "host", "")
        here = self._here.get(host, 0)
        if not self.per_address or here < self.per_address or self._exempt(host):
            return False
        self.refusals["address"] += 1
        self._say(f"{host} has {here} connections open, as many as one address may")
        return True

    def enter(self, address: IAddress) -> None:
        self._count += 1
        host = getattr(address, "host", "")
        self._here[host] = self._here.get(host, 0) + 1

    def leave(self, address: IAddress) -> None:
        self._count -= 1
        host = getattr(address, "host", "")
        if left := self._here[host] - 1:
            self._here[host] = left
        else:
            del self._here[host]

    def _exempt(self, host: str) -> bool:
        """A unix socket has no address to count, and this machine is trusted unless set."""
        if not host:
            return True
        try:
            address = ip_address(host)
        except ValueError:  # a PROXY header may say anything
            return False
        # a port for both families has IPv4 in IPv6, of which Python knows only since 3.13
        known = getattr(address, "ipv4_mapped", None) or address
        return bool(known.is_loopback) and not self.loopback

    def _say(self, why: str) -> None:
        """Tell of it now, or when a second is over since that was done."""
        now = self.clock.seconds()
        if len(self._told) >= self.ABOUT and why not in self._told:
            self._told = {one: at for one, at in self._told.items() if now - at < self.EVERY}
            if len(self._told) >= self.ABOUT:
                why = "many addresses have as many connections open as one may"
        self._refused[why] += 1
        if self._refused[why] > 1:
            return  # a line is due
        wait = self._told.get(why, float("-inf")) + self.EVERY - now
        if wait <= 0:
            self._tell(why)
        else:
            self.clock.callLater(wait, self._tell, why)

    def _tell(self, why: str) -> None:
        self._told[why] = self.clock.seconds()
        log.warn(
            "refused {count}: {why}", event="gate.refused", count=self._refused.pop(why), why=why
        )
