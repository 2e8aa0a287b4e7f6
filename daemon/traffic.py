"""How many bytes the connections of a port have moved, as the kernel counted them.

The kernel counts anyway, also what a thread moves past the reactor, so nothing is counted per
read or write: each connection is asked once when it ends, and once a look while it is open. What
is counted is what went through the socket: with TLS, its records; what was sent again, once; what
the kernel was given and has not sent yet, too. Of a Unix socket, and where TCP_INFO is not
Linux's, nothing is known.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from itertools import chain
from typing import Any

from attrs import define, field, frozen
from twisted.internet import tcp

from daemon.wrappers.wrapper import Wrapped
from protocols.connection import Live

LINUX = sys.platform.startswith("linux")
# of struct tcp_info, tcpi_: state, bytes_acked, bytes_received, notsent_bytes; and since Linux
# 4.19 bytes_sent, bytes_retrans
_INFO = struct.Struct("=B119xQQ8xI52xQQ")
_FIN_CAME = frozenset({6, 8, 9, 11})  # TIME_WAIT, CLOSE_WAIT, LAST_ACK, CLOSING
_CLOSED = 7
_TCP, _TCP_INFO = int(socket.IPPROTO_TCP), int(getattr(socket, "TCP_INFO", 0))


@frozen
class Moved:
    """Bytes."""

    received: int = 0
    sent: int = 0


@define(eq=False, repr=False)
class TcpInfo:
    """getsockopt(TCP_INFO) on a descriptor, without a socket object for each: a look at thousands
    of connections takes milliseconds."""

    _found: bytearray = field(factory=lambda: bytearray(_INFO.size), init=False)
    _size: ctypes.c_uint32 = field(factory=lambda: ctypes.c_uint32(_INFO.size), init=False)
    _ask: Any = field(init=False)
    _place: Any = field(init=False)
    _at: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        # PyDLL keeps the lock of the interpreter: to give it up and get it back costs more
        self._ask, self._at = ctypes.PyDLL(None).getsockopt, ctypes.byref(self._size)
        self._place = (ctypes.c_char * _INFO.size).from_buffer(self._found)

    def moved(self, descriptor: int) -> tuple[int, int]:
        """The bytes received and sent by it so far; none where that is not known."""
        # an older kernel makes the size smaller than it was, for good
        if not LINUX or self._ask(descriptor, _TCP, _TCP_INFO, self._place, self._at):
            return 0, 0
        if self._size.value < _INFO.size:
            return 0, 0
        state, acked, received, queued, sent, again = _INFO.unpack(self._found)
        sent -= again
        # FINs count as a byte each in what was acknowledged and received, not in what was sent
        ended = state in _FIN_CAME or (state == _CLOSED and acked > sent)
        return received - ended, sent + queued


class Server(tcp.Server):
    """Twisted's own transport, which closes its socket before it says that it is lost."""

    moved: tuple[int, int] = 0, 0

    def _closeSocket(self, orderly: bool) -> None:
        self.moved = TcpInfo().moved(self.socket.fileno())
        super()._closeSocket(orderly)


@define(eq=False, repr=False)
class Traffic:
    """`protocols.connection.Tally`: what the connections of one port have moved."""

    _received: int = field(default=0, init=False)  # by those that have ended
    _sent: int = field(default=0, init=False)
    _info: TcpInfo = field(factory=TcpInfo, init=False)

    def add(self, transport: Any) -> None:
        received, sent = self._of(transport)
        self._received += received
        self._sent += sent

    def so_far(self, *lives: Live) -> Moved:
        """With what those that are open have moved."""
        received, sent, of = self._received, self._sent, self._of
        for peer in chain.from_iterable(lives):
            came, went = of(peer.transport)
            received += came
            sent += went
        return Moved(received, sent)

    def _of(self, transport: Any) -> tuple[int, int]:
        while isinstance(transport, Wrapped):
            transport = transport.transport
        try:
            descriptor = transport.fileno()
        except AttributeError:  # it has none
            return 0, 0
        if descriptor >= 0:
            return self._info.moved(descriptor)
        return transport.moved if isinstance(transport, Server) else (0, 0)
