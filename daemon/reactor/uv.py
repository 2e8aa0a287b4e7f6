"""The reactor: Twisted's asyncio reactor on a uvloop loop, with native listening ports.

Outgoing connections, datagrams, processes and other descriptors are Twisted's own, watched by
uvloop.
"""

from __future__ import annotations

import math
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import uvloop
from attrs import frozen
from twisted.internet import process
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.error import UnsupportedAddressFamily
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.reactor.ports import NativePort, Spare, TCPPort, UNIXPort
from daemon.reactor.stream import Stream

log = Logger()


class UvloopReactor(AsyncioSelectorReactor):
    """The package says how it differs from Twisted's own reactors."""

    seconds = staticmethod(time.monotonic)  # Twisted's own follow the wall clock

    def __init__(self) -> None:
        self.loop: Any = uvloop.new_event_loop()
        self.loop.set_exception_handler(_log_unhandled)
        self.streams: set[Stream] = set()
        self.spare = Spare()
        super().__init__(self.loop)

    def listenTCP(
        self, port: Any, factory: Any, backlog: int = 50, interface: str = ""
    ) -> NativePort:
        return self._listen(TCPPort(port, factory, backlog, interface, self))

    def listenUNIX(
        self,
        address: Any,
        factory: Any,
        backlog: int = 50,
        mode: int = 0o666,
        wantPID: int = 0,
    ) -> NativePort:
        return self._listen(UNIXPort(address, factory, backlog, mode, self, wantPID))

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> NativePort:
        match addressFamily:
            case socket.AF_INET | socket.AF_INET6:
                return self._listen(
                    TCPPort._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
                )
            case socket.AF_UNIX:
                return self._listen(
                    UNIXPort._fromListeningDescriptor(self, fileDescriptor, factory)
                )
        raise UnsupportedAddressFamily(addressFamily)

    @staticmethod
    def _listen(port: NativePort) -> NativePort:
        port.startListening()
        return port

    def addReader(self, reader: Any) -> None:
        readers: dict[Any, int] = self._readers
        if isinstance(reader, NativePort) and reader not in readers:
            readers[reader] = reader.fileno()
            self.loop.add_reader(reader.fileno(), reader.doRead)
        else:
            super().addReader(reader)

    def removeAll(self) -> list[Any]:
        """Everything that is read or written, native connections, too; disconnectAll asks."""
        streams, self.streams = self.streams, set()
        for stream in streams:
            stream.stopReading()
        return [*super().removeAll(), *streams]

    def callFromThread(  # type: ignore[override]  # what is above disagrees about the names
        self, callable: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> None:
        self.loop.call_soon_threadsafe(_call_and_log, callable, args, kwargs)

    def _reschedule(self) -> None:
        """As Twisted's, but late rather than early.

        uvloop rounds to the nearest millisecond; woken too early, the reactor would find nothing
        due and spin until something is.
        """
        timeout = self.timeout()
        if timeout is not None:
            self._scheduledAt = self.loop.time() + timeout
            if self._timerHandle is not None:
                self._timerHandle.cancel()
            self._timerHandle = self.loop.call_later(
                math.ceil(timeout * 1000) / 1000, self._onTimer
            )

    def _signalsFactory(self) -> _Signals:
        return _Signals(super()._signalsFactory(), self.loop)


@frozen
class _Signals:
    """Twisted's signal handling, and SIGCHLD made to work.

    Twisted learns of SIGCHLD by `signal.set_wakeup_fd`, of which there is one, and uvloop has it.
    """

    twisted: Any
    loop: Any

    def install(self) -> None:
        self.twisted.install()
        signal.signal(signal.SIGCHLD, self._reap_soon)
        signal.siginterrupt(signal.SIGCHLD, False)

    def uninstall(self) -> None:
        self.twisted.uninstall()

    def _reap_soon(self, number: int, frame: object) -> None:
        self.loop.call_soon_threadsafe(process.reapAllProcesses)


def _call_and_log(call: Callable[..., object], args: Any, kwargs: Any) -> None:
    try:
        call(*args, **kwargs)
    except BaseException:
        log.failure("{what}", event="reactor.failed", what="while calling from thread")


def _log_unhandled(loop: object, context: dict[str, Any]) -> None:
    """What the loop has to say goes to Twisted's log; a Stream speaks for itself."""
    if isinstance(context.get("protocol"), Stream):
        return
    error = context.get("exception")
    if error is None:
        log.error("{what}", event="reactor.error", what=context.get("message"))
    else:
        log.failure("{what}", Failure(error), event="reactor.failed", what=context.get("message"))
