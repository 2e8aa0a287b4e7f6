"""The PROXY protocol, versions 1 and 2: a load balancer says who the peer really is.

Wire (https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt)
    -> PROXY TCP4 192.0.2.7 10.0.0.1 40000 8080 CRLF, the stream        version 1
    -> 12 fixed bytes, command, family, length, addresses, the stream   version 2
The peer's address is then the one in the header: in the log, in the ledger, wherever an address
counts. UNKNOWN and LOCAL (the balancer itself, looking whether we live) keep the real one.

Whoever reaches such a port can claim any address: only the balancer should.

Errors
    RST: the stream begins with anything else, or the header is longer than MOST bytes, or it is
    not whole after `wrapper.PATIENCE` seconds. The log says which.

Twisted's parsers want the first 16 bytes in one piece, refuse the bare `PROXY UNKNOWN` that the
specification asks for, and take any text for an address, so the header is read here.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, ClassVar

from attrs import define, field, frozen
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from daemon.wrappers.wrapper import Wrapped, Wrapper

V1 = b"PROXY "
V2 = b"\r\n\r\n\0\r\nQUIT\n"
MOST_V1 = 107  # bytes, with CRLF; the specification's
MOST_V2 = 4096  # bytes: addresses and what balancers like to add
UNKNOWN = frozenset({0x00, 0x12, 0x22, 0x32})  # families: none, and datagrams


@frozen
class Header:
    """Who the peer is and whom it called, if that is known; in so many bytes."""

    size: int
    source: IAddress | None = None
    destination: IAddress | None = None


def read(data: bytes) -> Header | None:
    """The header at the beginning of `data`; None: it is not whole yet.

    Raises ValueError in plain words: it is none, and more bytes will not make it one.
    """
    if data.startswith(V1[: len(data)]):
        return _read_line(data)
    if data.startswith(V2[: len(data)]):
        return _read_binary(data)
    raise ValueError("no PROXY header, but something else")  # which may be secret


def _read_line(data: bytes) -> Header | None:
    end = data.find(b"\r\n", 0, MOST_V1)
    if end < 0:
        if len(data) >= MOST_V1:
            raise ValueError(f"a PROXY line longer than {MOST_V1} bytes")
        return None
    match data[:end].split(b" "):
        case [_, b"UNKNOWN", *_]:
            return Header(end + 2)
        case [_, b"TCP4" | b"TCP6" as kind, source, destination, of_source, of_destination]:
            family = socket.AF_INET if kind == b"TCP4" else socket.AF_INET6
            return Header(
                end + 2,
                _address(family, _packed(family, source), _number(of_source)),
                _address(family, _packed(family, destination), _number(of_destination)),
            )
    raise ValueError("a PROXY line that is neither UNKNOWN nor TCP4 or TCP6 and what they need")


def _packed(family: socket.AddressFamily, text: bytes) -> bytes:
    try:
        return socket.inet_pton(family, text.decode("ascii"))
    except (OSError, ValueError):
        raise ValueError(f"a PROXY line with {ascii(text)[1:]} for an address") from None


def _number(text: bytes) -> int:
    if not (text.isdigit() and int(text) <= 65535):
        raise ValueError(f"a PROXY line with {ascii(text)[1:]} for a port")
    return int(text)


def _read_binary(data: bytes) -> Header | None:
    if len(data) < 16:
        return None
    command, family, length = struct.unpack_from("!BBH", data, 12)
    if command not in (0x20, 0x21):
        raise ValueError(f"a PROXY header of an unknown version or command: {command:#x}")
    size = 16 + length
    if size > MOST_V2:
        raise ValueError(f"a PROXY header longer than {MOST_V2} bytes")
    if len(data) < size:
        return None
    if command == 0x20 or family in UNKNOWN:  # LOCAL, or nothing that we could tell
        return Header(size)
    try:
        match family:
            case 0x11:
                source, destination, *ports = struct.unpack_from("!4s4s2H", data[:size], 16)
                kind = socket.AF_INET
            case 0x21:
                source, destination, *ports = struct.unpack_from("!16s16s2H", data[:size], 16)
                kind = socket.AF_INET6
            case 0x31:
                paths = struct.unpack_from("108s108s", data[:size], 16)
                return Header(size, *(UNIXAddress(p.rstrip(b"\0") or None) for p in paths))
            case _:
                raise ValueError(f"a PROXY header of an unknown family: {family:#x}")
    except struct.error:
        raise ValueError("a PROXY header too short for its addresses") from None
    return Header(size, _address(kind, source, ports[0]), _address(kind, destination, ports[1]))


def _address(family: socket.AddressFamily, packed: bytes, port: int) -> IAddress:
    kind = IPv4Address if family == socket.AF_INET else IPv6Address
    return kind("TCP", socket.inet_ntop(family, packed), port)


@define(eq=False, repr=False)
class Proxied(Wrapped):
    """A peer behind a load balancer."""

    OWES: ClassVar[str] = "PROXY header"

    _header: Header | None = field(default=None, init=False)

    @property
    def counts_for(self) -> IAddress:
        """None: a balancer speaks for many."""
        return UNIXAddress(None)

    def dataReceived(self, data: bytes) -> None:
        if self._header is not None:
            super().dataReceived(data)
            return
        self._heard = True
        self._pending += data
        try:
            self._header = read(self._pending)
        except ValueError as why:
            self.refuse(str(why))
            self.transport.abortConnection()
        else:
            if self._header is not None:
                self._pending = self._pending[self._header.size :]
                self.let_in()

    def getPeer(self) -> Any:
        return (self._header and self._header.source) or super().getPeer()

    def getHost(self) -> Any:
        return (self._header and self._header.destination) or super().getHost()


@define(eq=False, repr=False)
class Proxy(Wrapper):
    """Serves `within` to peers that a load balancer speaks for."""

    def buildProtocol(self, addr: IAddress | None) -> Proxied:
        return Proxied(self)
