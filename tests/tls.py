"""The other end of TLS: certificates made on the spot, and a peer that closes by halves."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trustme
from attrs import define, field

PATIENCE = 10.0  # seconds


@define
class Authority:
    """Vouches for servers and clients. Everything it issues lies in `folder`, as PEM."""

    folder: Path
    ca: trustme.CA = field(factory=trustme.CA)
    root: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.root = self.write("root.pem", self.ca.cert_pem)

    def write(self, name: str, *blobs: trustme.Blob) -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(blob.bytes() for blob in blobs))
        return path

    def server(self, name: str = "server.pem", *hosts: str) -> Path:
        """Key, certificate and chain in one file; of localhost where no host is named."""
        cert = self.ca.issue_cert(*hosts or ("localhost",))
        return self.write(name, cert.private_key_and_cert_chain_pem)

    def client(self, name: str, who: str = "ana@example.org") -> Path:
        """Key and certificate of a client in one file."""
        return self.write(name, self.ca.issue_cert(who).private_key_and_cert_chain_pem)

    def context(self, client: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """A client's: it trusts the root, and shows `client` when it is asked for a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        if client is not None:
            client.configure_cert(context)
        return context


@define(eq=False)
class TLSPeer:
    """A client on a socket that never blocks. It reads and writes only when it is looked at."""

    sock: socket.socket
    context: ssl.SSLContext
    got: bytearray = field(factory=bytearray)
    notified: bool = False  # close_notify came
    ended: bool = False  # FIN came
    was_reset: bool = False
    shaken: bool = False
    error: ssl.SSLError | None = None
    raw: int = 0  # bytes that came
    _incoming: ssl.MemoryBIO = field(factory=ssl.MemoryBIO)
    _outgoing: ssl.MemoryBIO = field(factory=ssl.MemoryBIO)
    _tls: ssl.SSLObject = field(init=False)
    _unsent: bytes = b""

    def __attrs_post_init__(self) -> None:
        self.sock.setblocking(False)
        self._tls = self.context.wrap_bio(self._incoming, self._outgoing, False, "localhost")

    def look(self) -> TLSPeer:
        """Take what came, send what can be sent."""
        return self.take().flush()

    def take(self) -> TLSPeer:
        try:
            while not self.ended and (data := self.sock.recv(1 << 18)):
                self.raw += len(data)
                self._incoming.write(data)
                self._digest()
            self.ended = True
        except BlockingIOError:
            self._digest()
        except ConnectionError:
            self.was_reset = True
        return self

    def _digest(self) -> None:
        if self.error is not None:
            return
        try:
            if not self.shaken:
                self._tls.do_handshake()
                self.shaken = True
            while not self.notified:
                self.notified = not (chunk := self._tls.read(1 << 14))
                self.got += chunk
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.notified = True
        except ssl.SSLError as error:
            self.error = error

    def flush(self) -> TLSPeer:
        self._unsent += self._outgoing.read()
        with suppress(BlockingIOError, ConnectionError):
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        return self

    @property
    def over(self) -> bool:
        self.look()
        return self.ended or self.was_reset

    @property
    def heard(self) -> bytes:
        return bytes(self.look().got)

    def encrypted(self, data: bytes = b"", last: bool = False) -> bytes:
        """What `send` and `notify` would send."""
        if data:
            self._tls.write(data)
        if last:
            with suppress(ssl.SSLError):
                self._tls.unwrap()
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        self._unsent += self.encrypted(data)
        self.flush()

    def notify(self) -> None:
        """close_notify: half-close, as TLS does it."""
        self._unsent += self.encrypted(last=True)
        self.flush()

    def ends(self) -> None:
        """FIN, whatever was sent before."""
        self.sock.shutdown(socket.SHUT_WR)

    def certificate(self) -> bytes:
        """The server's, DER."""
        shown = self._tls.getpeercert(True)
        assert shown is not None
        return shown

    def wait(self, happened: Callable[[], object]) -> TLSPeer:
        """Look until it has happened, without a reactor."""
        due = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < due, (self.got[-200:], self.error, self.ended)
            time.sleep(0.002)
        return self
