"""One connection seen from the client, TCP or TLS: bytes out while bytes come in, and plain errors.

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
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import click
from attrs import define, field, frozen

from client.terminal import printable

if TYPE_CHECKING:  # slow: only where TLS is spoken
    from client.secured import Secured, Trust

    Stream: TypeAlias = "Socket | Secured"

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
    """Where a service listens. host: a name or an address of either family; tls: how TLS is
    spoken there, None: it is not."""

    host: str
    port: int
    tls: Trust | None = field(default=None, eq=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Socket(socket.socket):
    """Plain TCP, with what `client.secured.Secured` has beside."""

    @property
    def held(self) -> bool:
        """Whether something came that select cannot see."""
        return False

    def spoke(self) -> bool:
        """Whether the peer said something, or ended; without waiting."""
        return bool(select.select([self], [], [], 0)[0])

    def finish(self) -> bool:
        """Our end; False: it does not go out yet, so ask again."""
        self.shutdown(socket.SHUT_WR)
        return True


@frozen
class Ready:
    """What can go on without waiting."""

    heard: bool
    writable: bool
    source: bool


def connect(address: Address, timeout: float | None = None) -> Stream:
    """Connect within `timeout` seconds (default 10), TLS's handshake included. Raise Failed."""
    sock = dial(address, timeout)
    return sock if address.tls is None else address.tls.secure(sock, address)


def dial(address: Address, timeout: float | None = None) -> Socket:
    """The TCP below. Raise Nobody."""
    patience = timeout or CONNECT
    try:
        made = socket.create_connection((address.host, address.port), patience)
    except TimeoutError:
        raise Nobody(f"nobody answers at {address} ({patience:g} s)") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a host name IDNA cannot spell
        raise Nobody(f"nobody listens at {address}: {reason(error)}") from None
    sock = Socket(fileno=made.detach())
    sock.settimeout(patience)
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


def fragile(sock: Stream, yes: bool) -> None:
    """Whether closing resets, also when it is the kernel that closes."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", yes, 0))


def speaks_tls(data: bytes) -> bool:
    """Whether `data` is how TLS answers what is none: in words as ours does, or with an alert."""
    alert = len(data) == 7 and data.startswith(b"\x15\x03") and data[3:6] == b"\0\2\2"
    return alert or data == b"ERR this port speaks TLS\n"


def wants_tls(address: Address) -> Failed:
    return Failed(f"{address} speaks TLS, and was spoken to without: --tls")


def no_http(address: Address, error: Exception) -> Failed:
    """What http.client makes of an answer that is none."""
    if address.tls is None and speaks_tls(getattr(error, "line", "").encode("latin-1", "replace")):
        return wants_tls(address)
    return Failed(f"{address} did not answer in HTTP: {reason(error)}")


def reason(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or printable(str(error)[:80]) or type(error).__name__


@define(eq=False, repr=False)
class Wire:
    """A connection; `with` closes it.

    address: the peer, for messages. silence: seconds to wait for the peer before Silent, None:
    for ever (keep-alive still finds a dead host). heard: bytes that came and nobody took yet.
    ended: the peer's FIN came; over TLS its close_notify is that.
    """

    address: Address
    silence: float | None
    _sock: Stream
    heard: bytearray = field(factory=bytearray, init=False)
    ended: bool = field(default=False, init=False)
    _spoke: bool = field(default=False, init=False)  # we did

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
        self._try(lambda: fragile(self._sock, yes))

    def wait(self, source: Readable | None = None, writing: bool = False) -> Ready:
        """Wait until the peer spoke, `source` has bytes, or (writing) there is room to send.

        While `source` is awaited the peer may be silent for ever. Raise Silent.
        """
        if self._sock.held and not self.ended:
            return Ready(heard=True, writable=False, source=False)
        fds: list[Readable] = [] if self.ended else [self._sock]
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
            self._spoke = True
            return self._try(lambda: self._sock.send(data)) or 0
        return 0

    def take(self) -> None:
        """Add what came to `heard`: nothing, where it was half a record of TLS. Raise Reset."""
        data = self._try(lambda: self._sock.recv(CHUNK))
        if data is None:
            return
        if self._spoke and self.address.tls is None and speaks_tls(data):
            raise wants_tls(self.address)
        self.heard += data
        self.ended = not data

    def hear(self) -> bytes:
        """The next bytes; b"" after the peer's FIN. Raise Reset or Silent."""
        while not self.heard and not self.ended:
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
        """Our FIN: that was all; the peer may still answer. Raise Reset or Silent."""
        while not self._try(self._sock.finish):
            if self.wait(writing=True).heard:
                self.take()

    def _try(self, act: Callable[[], T]) -> T | None:
        """What it came to; None: nothing yet."""
        try:
            return act()
        except BlockingIOError:
            return None
        except OSError as error:
            with suppress(OSError):  # what came before a reset can still be read
                while data := self._sock.recv(CHUNK):
                    self.heard += data
            raise Reset(f"{self.address} broke the connection: {reason(error)}") from None
