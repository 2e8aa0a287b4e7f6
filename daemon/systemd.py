"""What systemd wants to hear from a service of Type=notify (sd_notify(3)), and its watchdog.

    READY=1       every port listens; also after a reload or a restart
    RELOADING=1   config.cfg is read again, or the process becomes its successor
    STOPPING=1    what is in hand is being finished
    WATCHDOG=1    the reactor turns; twice as often as WATCHDOG_USEC asks

Without NOTIFY_SOCKET in the environment nothing is said. What cannot be delivered is logged once:
the daemon serves all the same.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

log = Logger()


@define(eq=False, repr=False)
class Systemd(Service):
    """Started after all others and stopped before them.

    address: of its socket, a path or an abstract name after `@`; empty: nobody listens.
    watchdog: seconds in which it wants to hear of us; 0: it does not.
    staying: what stops goes on as its successor, in the same process.
    """

    reactor: Any
    address: str = ""
    watchdog: float = 0.0
    staying: bool = field(default=False, init=False)
    _beat: LoopingCall | None = field(default=None, init=False)
    _said: bool = field(default=False, init=False)  # that it does not hear us

    @classmethod
    def of(cls, environ: Mapping[str, str], reactor: Any) -> Systemd:
        """As the environment of a unit has it."""
        seconds = 0.0
        with suppress(ValueError):  # set by hand, and wrongly: as if it were not there
            seconds = int(environ.get("WATCHDOG_USEC", "0")) / 1e6
        return cls(reactor, environ.get("NOTIFY_SOCKET", ""), seconds)

    def startService(self) -> None:
        super().startService()
        if self.address and self.watchdog > 0:
            self._beat = LoopingCall(self.tell, "WATCHDOG=1")
            self._beat.clock = self.reactor
            self._beat.start(self.watchdog / 2, now=False)

    def stopService(self) -> None:
        """The watchdog goes on: a stop that hangs is one, too."""
        super().stopService()
        if not self.staying:
            self.tell("STOPPING=1")

    def ready(self, status: str) -> None:
        """status: one line for `systemctl status`."""
        self.tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        self.tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def tell(self, *lines: str) -> None:
        if not self.address:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), name)
        except OSError as error:
            if not self._said:
                self._said = True
                log.warn(
                    "systemd does not hear us at {at}: {why}",
                    event="systemd.deaf",
                    at=self.address,
                    why=str(error),
                )
