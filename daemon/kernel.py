"""What only the operating system knows about a connection, read from the socket beneath it.

On Linux, for TCP: TCP_INFO and SIOCOUTQ. Both count our FIN as one byte. For a Unix socket
SIOCOUTQ is what the peer has not read yet; what it confirmed is not known. Elsewhere nothing is
known: a receiver's FIN alone says then that it has the file, and no broken delivery is counted.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import termios
from collections.abc import Collection
from contextlib import suppress
from typing import Any, ClassVar

from attrs import define, field, frozen
from twisted.internet.interfaces import ITransport

from protocols.stores import Gauge

LINUX = sys.platform.startswith("linux")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_FIN_ON_CLOSE = struct.pack("ii", 0, 0)


@define(eq=False, repr=False)
class Meter:
    """A descriptor of our own on the peer's socket: it tells even after the transport closed its.

    Where `tells` is off, what only Linux can say is left open.
    """

    BYTES_ACKED: ClassVar[int] = 120  # where struct tcp_info has tcpi_bytes_acked, 64 bits

    _socket: socket.socket
    tells: bool = LINUX
    _errors: select.poll = field(factory=select.poll, init=False)
    _before: int = field(default=0, init=False)  # bytes written before us: a TLS handshake

    def __attrs_post_init__(self) -> None:
        self._errors.register(self._socket, 0)
        self._before = (self.acknowledged() or 0) + self.outstanding()

    def acknowledged(self) -> int | None:
        if not self.tells or self._socket.family == socket.AF_UNIX:
            return None
        size = self.BYTES_ACKED + 8
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        acked: int = struct.unpack_from("Q", info, self.BYTES_ACKED)[0]
        return max(0, acked - self._before)

    def outstanding(self) -> int:
        if not self.tells:
            return 0
        waiting: int = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0]
        return waiting

    def dead(self) -> bool:
        return any(event & select.POLLERR for _, event in self._errors.poll(0))

    def close(self) -> None:
        self._socket.close()


@frozen
class Sockets:
    """`protocols.stores.Kernel` for transports on a socket, which `getHandle` returns."""

    def gauge(self, transport: ITransport) -> Gauge:
        return Meter(_handle(transport).dup())

    def reset_on_close(self, transport: ITransport, on: bool) -> None:
        linger = _RESET_ON_CLOSE if on else _FIN_ON_CLOSE
        with suppress(OSError):  # macOS: the peer is gone, so there is nothing left to tell it
            _handle(transport).setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def names(self) -> Collection[str]:
        name = socket.gethostname().lower()
        return {name, name.partition(".")[0]}


def _handle(transport: Any) -> Any:
    return transport.getHandle()
