"""Listening ports: Twisted's own, but what they accept goes to the loop.

Twisted binds, adopts, locks, logs and closes. Accepting is by hand, from the listening socket: the
loop would take one connection a turn, and whoever must know everybody who waits (a broadcast)
could not ask for them.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, cast

from twisted.internet import tcp, unix
from twisted.internet.address import IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IDelayedCall, IFileDescriptorReceiver
from twisted.logger import Logger

from daemon.reactor.stream import Stream

if TYPE_CHECKING:
    from daemon.reactor.uv import UvloopReactor

log = Logger()

# the peer was gone or netfilter refused it; the next one may be fine
PASSING = frozenset({errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.EINTR})


class Spare:
    """A descriptor kept open, to be given up for a moment when there are no others."""

    def __init__(self) -> None:
        self.descriptor = -1
        self.keep()

    def keep(self) -> None:
        if self.descriptor < 0:
            with suppress(OSError):
                self.descriptor = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def release(self) -> bool:
        """Whether there was one."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)
        return descriptor >= 0


class NativePort(tcp.Port):
    """What TCP and UNIX ports share."""

    AT_ONCE: ClassVar[int] = 16  # connections a turn of the reactor, at most: others wait for it
    REFUSED: ClassVar[int] = 64  # of those that are only closed
    WAITING: ClassVar[int] = 4096  # at most, when asked for all of them
    REST: ClassVar[float] = 0.1  # seconds without accepting, when there are no descriptors
    TELL_EVERY: ClassVar[float] = 1.0  # seconds

    reactor: UvloopReactor
    factory: Any
    family: int  # as uvloop likes it, a plain number
    _accept_one: Callable[[], tuple[int, Any]]
    _burst: int = 1
    _rest: IDelayedCall | None = None
    refused: int = 0  # for want of descriptors
    _told: float = float("-inf")

    def startListening(self) -> None:
        super().startListening()
        self.socket.setblocking(False)  # an adopted one may not have been
        self._accept_one = cast(Any, self.socket)._accept  # a descriptor, no socket object
        self.family = int(self.addressFamily)

    def doRead(self) -> None:
        """As many as came last time, while that was enough: the call that finds nobody costs."""
        accepted = self._accept(self._burst)
        if accepted == self._burst:
            self._burst = min(2 * accepted, self.AT_ONCE)
        else:
            self._burst = max(1, accepted)

    def acceptWaiting(self) -> None:
        """Connect everybody who waits in the backlog, before this returns."""
        if self.connected and not self.disconnecting and self._rest is None:
            self._accept(self.WAITING)

    def _accept(self, most: int) -> int:
        accept = self._accept_one
        for accepted in range(most):
            try:
                descriptor, name = accept()
            except BlockingIOError:
                return accepted
            except OSError as error:
                if error.errno in PASSING:
                    continue
                self._starve(error)
                return accepted
            try:
                self._welcome(descriptor, self.address(name))
            except BaseException:
                log.failure(
                    "{factory} could not take a connection",
                    event="accept.failed",
                    factory=self.factory,
                )
                os.close(descriptor)
        return most

    def _welcome(self, descriptor: int, peer: Any) -> None:
        protocol = self.factory.buildProtocol(peer)
        if protocol is None:
            os.close(descriptor)
            return
        self.sessionno += 1
        self._connect(descriptor, peer, protocol)

    def _connect(self, descriptor: int, peer: Any, protocol: Any) -> None:
        try:
            Stream(self, descriptor, peer, protocol, self.sessionno).join()
        except OSError:  # reset while it waited, on systems that mind
            os.close(descriptor)

    def address(self, name: Any) -> IAddress:
        """What the socket calls a peer or itself, as an address."""
        raise NotImplementedError

    @property
    def where(self) -> object:
        raise NotImplementedError

    def _starve(self, error: OSError) -> None:
        """No descriptor left, or worse: refuse who waits now, then rest, and do not shout."""
        self._refuse()
        now = self.reactor.seconds()
        if now - self._told >= self.TELL_EVERY:
            self._told = now
            log.warn(
                "{where}: cannot accept ({reason}); {refused} refused so far",
                event="accept.starved",
                where=self.where,
                reason=error.strerror,
                refused=self.refused,
            )
        self.stopReading()
        if self._rest is None:
            self._rest = self.reactor.callLater(self.REST, self._resume)

    def _refuse(self) -> None:
        if not self.reactor.spare.release():
            return
        try:
            for _ in range(self.REFUSED):
                os.close(self._accept_one()[0])
                self.refused += 1
        except OSError:
            pass
        finally:
            self.reactor.spare.keep()

    def _resume(self) -> None:
        self._rest = None
        self.reactor.spare.keep()
        self.startReading()

    def loseConnection(self, connDone: Any = None) -> Any:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        return super().loseConnection()

    stopListening = loseConnection


class TCPPort(NativePort):
    """A TCP port, IPv4 or IPv6."""

    def address(self, name: Any) -> IAddress:
        if self.addressFamily == socket.AF_INET6 and name[3]:  # link-local: say on which interface
            host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
            return IPv6Address("TCP", host, *name[1:])
        return self._addressType("TCP", *name)

    @property
    def where(self) -> object:
        return self._realPortNumber


class UNIXPort(NativePort, unix.Port):
    """A UNIX port. Protocols that take descriptors keep Twisted's own transport."""

    def _connect(self, descriptor: int, peer: Any, protocol: Any) -> None:
        if IFileDescriptorReceiver.providedBy(protocol):
            sock, twisteds = socket.socket(fileno=descriptor), cast(Any, self.transport)
            cast(Any, protocol).makeConnection(
                twisteds(sock, protocol, sock.getpeername(), self, self.sessionno, self.reactor)
            )
        else:
            super()._connect(descriptor, peer, protocol)

    def address(self, name: Any) -> IAddress:
        return UNIXAddress(name or None)

    @property
    def where(self) -> object:
        return os.fsdecode(self._bindPath)
