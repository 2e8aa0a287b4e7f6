"""Lending the socket of a connection to a thread, and taking it back, on any reactor.

A thread that works on a descriptor which the reactor closes meanwhile reads the next connection's
bytes, for the number is used again. So a loan is worked on through a copy of the descriptor, and
until it is given back the reactor reads nothing, and neither closes nor aborts the connection nor
tells the Protocol of its end: what is asked for meanwhile happens then.

    loan = lend(transport)              # in the reactor's thread, from dataReceived or anywhere
    ... loan.socket.recv(...)           # in the worker's
    reactor.callFromThread(loan.give_back)

What the reactor had queued for writing still goes out meanwhile. A transport whose bytes are not
those of the socket (TLS, PROXY and other wrappers) cannot be lent.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any, ClassVar

from attrs import define, field
from twisted.internet import tcp
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from daemon.reactor.stream import Stream


class NotLendable(Exception):
    """A transport cannot be lent: it is closing, lent already, or no plain socket."""


def lend(transport: Any) -> Loan:
    """Stop reading from `transport` and let a thread have its socket.

    Its calls never wait, for the descriptor itself does not: the reactor shares that.
    Raises NotLendable, and OSError when there is no descriptor left.
    """
    if not isinstance(transport, Stream | tcp.Connection):
        raise NotLendable(f"{type(transport).__name__} is no plain socket")
    if transport.TLS:
        raise NotLendable("its socket carries TLS")
    if not transport.connected or transport.disconnecting:
        raise NotLendable("it is closing")
    if "startReading" in vars(transport):
        raise NotLendable("it is lent already")
    copy = socket.socket(fileno=os.dup(transport.fileno()))
    copy.settimeout(0.0)
    if isinstance(transport, Stream):
        reads = transport.reading
    else:
        reads = transport in transport.reactor.getReaders()
    return Loan(transport, copy, reads)


def unsent(transport: Any) -> bool:
    """Whether something written to a transport has yet to reach its socket, or may have."""
    if isinstance(transport, Stream):
        return bool(transport.unsent)
    if isinstance(transport, tcp.Connection):
        return bool(transport.dataBuffer or transport._tempDataBuffer)
    return True


@define(eq=False, repr=False)
class Loan:
    """A socket lent to a thread. `socket` is the thread's until `give_back`, which closes it."""

    ENDS: ClassVar = ("loseConnection", "loseWriteConnection", "abortConnection", "connectionLost")

    _transport: Any
    socket: socket.socket
    _reads: bool  # whether the Protocol wants the reactor to read, after this
    _meanwhile: list[tuple[str, tuple[object, ...]]] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._transport.stopReading()
        for name in self.ENDS:
            setattr(self._transport, name, partial(self._later, name))
        self._transport.startReading = partial(setattr, self, "_reads", True)
        self._transport.stopReading = partial(setattr, self, "_reads", False)

    def give_back(self, reset: bool = False) -> None:
        """The thread is done with it. Only in the reactor's thread.

        A FIN that the thread saw is seen again by the reactor, and told to the Protocol; a reset
        is not, so it has to be said here.
        """
        transport = self._transport
        self.socket.close()
        for name in (*self.ENDS, "startReading", "stopReading"):
            delattr(transport, name)
        lost = [about for name, about in self._meanwhile if name == "connectionLost"]
        if reset:
            lost.append((Failure(ConnectionLost()),))
        if lost:  # never from inside this call
            transport.reactor.callLater(0, transport.connectionLost, *lost[0])
            return
        if self._reads:
            transport.startReading()
        for name, about in self._meanwhile:
            getattr(transport, name)(*about)

    def _later(self, name: str, *about: object) -> None:
        self._meanwhile.append((name, about))
