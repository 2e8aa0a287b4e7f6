"""Services that stop in order, and a listener that stops politely."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Any

from attrs import define, field
from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred
from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from daemon import binding
from daemon.binding import Claim
from daemon.succession import Inherited
from protocols.connection import LiveFactory

log = Logger()

MOST_ROUNDS = 64


class Stack(MultiService):
    """Children start in order and stop in reverse, each after the one above it.

    MultiService stops all of them at once: a store could close under a listener that is still
    draining. Here what was added first outlives the rest.
    """

    def stopService(self) -> Deferred[None]:
        Service.stopService(self)
        return Deferred.fromCoroutine(self._stop_in_turn())

    async def _stop_in_turn(self) -> None:
        for service in reversed(list(self)):
            try:
                await maybeDeferred(service.stopService)
            except Exception:
                log.failure(
                    "{service!r} did not stop cleanly", event="daemon.unstopped", service=service
                )


@define(eq=False, repr=False)
class Listener(Service):
    """One port of one protocol, on however many endpoints.

    grace: seconds its connections have to finish when it stops.
    """

    service: str
    claims: Sequence[Claim]
    factory: LiveFactory
    reactor: Any
    grace: float
    _ports: list[Any] = field(factory=list, init=False)

    def startService(self) -> None:
        super().startService()
        for claim in self.claims:
            if binding.beyond_loopback(claim.getHost()):
                log.warn(
                    "{name} is open beyond this machine: whoever reaches {where} may use it",
                    event="service.open",
                    name=self.service,
                    where=binding.names([claim]),
                )
        where = binding.names(self.claims)
        for claim in self.claims:
            port = claim.serve(self.reactor)
            self._ports.append(port)
        if where:  # a secondary port may be somebody else's
            log.info(
                "{name} listening on {where}",
                event="service.listening",
                name=self.service,
                where=where,
            )

    @property
    def addresses(self) -> list[IAddress]:
        """Where it listens now."""
        return [port.getHost() for port in self._ports]

    def bequeath(self) -> list[Inherited]:
        """Its sockets, to go on listening when it has stopped."""
        return [claim.bequeath(port) for claim, port in zip(self.claims, self._ports, strict=True)]

    @property
    def starved(self) -> int:
        """Connections refused for want of descriptors, where the reactor counts them."""
        return sum(getattr(port, "refused", 0) for port in self._ports)

    def accept_waiting(self) -> None:
        """Accept whoever waits in the backlog, now rather than in the reactor's next turn."""
        for port in self._ports:
            if hasattr(port, "acceptWaiting"):
                port.acceptWaiting()
            else:
                _accept_waiting(port)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._drain())

    async def _drain(self) -> None:
        ports, self._ports = self._ports, []
        await DeferredList([maybeDeferred(port.stopListening) for port in ports])
        await self.factory.drain(self.grace)


def _accept_waiting(port: Any) -> None:
    """The same on a port of Twisted's own, which takes up to a hundred at a time."""
    backlog = select.poll()
    backlog.register(port.fileno(), select.POLLIN)
    for _ in range(MOST_ROUNDS):
        if not backlog.poll(0):
            return
        port.doRead()
