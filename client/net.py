"""One TCP connection seen from the client: bytes out while bytes come in, and plain errors.

Every failure of the network becomes a `Failed` here, so that an OSError met elsewhere in the
client is about a file or about standard output.
"""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, TypeVar

import click
from attrs import define, field, frozen

T = TypeVar("T")

CHUNK = 256 * 1024  # bytes
CONNECT = 10.0  # seconds
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Failed(click.ClickException):
    """The command did not do what it was asked; the message says why. Exit status 1."""

    exit_code = 1


class Nobody(Failed):
    """Nobody listens there: refused, unreachable, unknown host. Exit status 69."""

    exit_code = 69


class Reset(Failed):
    """The connection broke: what was sent is unknown or not kept."""


class Silent(Failed):
    """The server said nothing for too long."""


class Readable(Protocol):
    """What `Wire.wait` can watch beside the socket."""

    def fileno(self) -> int: ...


@frozen
class Address:
    """Where a service listens; host: a name or an address of either family."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Ready:
    """What can go on without waiting."""

    heard: bool
    writable: bool
    source: bool


def connect(address: Address, timeout: float | None = None) -> socket.socket:
    """Connect within `timeout` seconds (default 10). Raise Nobody."""
    patience = timeout or CONNECT
    try:
        sock = socket.create_connection((address.host, address.port), patience)
    except TimeoutError:
        raise Nobody(f"nobody answers at {address} ({patience:g} s)") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name IDNA cannot spell
        raise Nobody(f"nobody listens at {address}: {_reason(error)}") from None
    with suppress(OSError):  # a peer that reset at once has no name
        if sock.getsockname() == sock.getpeername():
            # 60060 is an ephemeral port: without a listener TCP can connect it to itself.
            sock.close()
            raise Nobody(f"nobody listens at {address}: Connection refused")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return sock


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


@define(eq=False, repr=False)
class Wire:
    """A connection; `with` closes it.

    address: the peer, for messages. silence: seconds to wait for the peer before Silent, None:
    for ever (keep-alive still finds a dead host). heard: bytes that came and nobody took yet.
    ended: the peer's FIN came.
    """

    address: Address
    silence: float | None
    _sock: socket.socket
    heard: bytearray = field(factory=bytearray, init=False)
    ended: bool = field(default=False, init=False)

    @classmethod
    def to(cls, address: Address, timeout: float | None, silence: float | None = None) -> Wire:
        """Connect; `timeout` rules the connecting, and the silence too unless that is given."""
        sock = connect(address, timeout)
        sock.setblocking(False)
        return cls(address, silence if timeout is None else timeout, sock)

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.close()

    def fragile(self, yes: bool = True) -> None:
        """Closing shall reset, even when this process is killed, until `fragile(False)`."""
        self._try(
            lambda: self._sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", yes, 0)
            )
        )

    def wait(self, source: Readable | None = None, writing: bool = False) -> Ready:
        """Wait until the peer spoke, `source` has bytes, or (writing) there is room to send.

        While `source` is awaited the peer may be silent for ever. Raise Silent.
        """
        fds: list[Readable] = [self._sock]
        if source is not None:
            try:
                source.fileno()
                fds.append(source)
            except OSError:  # a stream in memory: never a reason to wait
                return Ready(heard=False, writable=False, source=True)
        patience = self.silence if source is None else None
        read, write, _ = select.select(fds, [self._sock] if writing else [], [], patience)
        if not read and not write:
            raise Silent(f"{self.address} did nothing for {self.silence:g} s")
        return Ready(self._sock in read, bool(write), source is not None and source in read)

    def send(self, data: bytes) -> None:
        """Send it all, collecting what comes meanwhile; stop at the peer's FIN.

        Raise Reset (what the peer said before is in `heard`) or Silent.
        """
        view = memoryview(data)
        while view and not self.ended:
            view = view[self.offer(view) :]

    def offer(self, data: memoryview | bytes) -> int:
        """Wait for one turn, hear what came, and send what goes; the bytes sent."""
        ready = self.wait(writing=True)
        if ready.heard:
            self.take()
        if ready.writable and not self.ended:
            return self._try(lambda: self._sock.send(data))
        return 0

    def take(self) -> None:
        """Add what came to `heard`. Raise Reset."""
        data = self._try(lambda: self._sock.recv(CHUNK))
        self.heard += data
        self.ended = not data

    def hear(self) -> bytes:
        """The next bytes; b"" after the peer's FIN. Raise Reset or Silent."""
        if not self.heard and not self.ended:
            self.wait()
            self.take()
        data = bytes(self.heard)
        self.heard.clear()
        return data

    def line(self, most: int | None = None) -> bytes:
        """Up to and with the next LF; what there is once `most` bytes or the FIN came."""
        seen = 0
        while (end := self.heard.find(b"\n", seen) + 1) == 0:
            if self.ended or (most is not None and len(self.heard) >= most):
                end = len(self.heard)
                break
            seen = len(self.heard)
            self.wait()
            self.take()
        line = bytes(self.heard[:end])
        del self.heard[:end]
        return line

    def finish(self) -> None:
        """Our FIN: that was all; the peer may still answer. Raise Reset."""
        self._try(lambda: self._sock.shutdown(socket.SHUT_WR))

    def _try(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except OSError as error:
            with suppress(OSError):  # what came before a reset can still be read
                while data := self._sock.recv(CHUNK):
                    self.heard += data
            raise Reset(f"{self.address} broke the connection: {_reason(error)}") from None
