"""TLS 1.2 and 1.3 beneath any service, with half-close.

Wire
    -> close_notify         what FIN is on plain TCP: `readConnectionLost`; the answer still goes
                            out, encrypted
    -> FIN without it       the stream was cut, by whoever could: the connection ends as by a
                            reset, so that a truncated upload is never taken for a whole file.
                            Only one who got our close_notify, and said nothing since, may leave
                            like that: many clients do, and nothing can be missing
    <- close_notify, FIN    our half-close, after everything written
    <- alert, FIN           the handshake failed; the log says why, in a line
    <- ERR this port speaks TLS LF, FIN     what came was none; a request of HTTP is answered 426

No ticket for later sessions is sent under TLS 1.3, for it would lie unread in the receive buffer
of a client that only sends, and turn its FIN into a reset. No renegotiation. Every session takes
the files as they are: renewed certificates need no restart, and if they cannot be used, those
before them stay and the log says so.

It is the TLS of Python's standard library, as asyncio uses it, so it needs no other package.
"""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, ClassVar

from attrs import define, field, frozen
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IAddress, IPushProducer, ISSLTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from daemon.wrappers.wrapper import Wrapped, Wrapper
from protocols.connection import spoken

log = Logger()

RECORD = 1 << 14  # bytes of plain text in a record, at most
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
HANDSHAKE = 0x16  # what TLS begins with
PLAIN = b"ERR this port speaks TLS\n"
PLAIN_HTTP = (
    b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: TLS/1.2, HTTP/1.1\r\nConnection: Upgrade, close\r\n"
    b"Content-Type: text/plain\r\nContent-Length: 40\r\n\r\nThis port speaks TLS: ask with https://\n"
)
_REQUEST = re.compile(rb"[A-Z]{3,10} [/*]")


@frozen
class Credentials:
    """The PEM files TLS is spoken with. certificate: where it is not in private_key's file.

    chain: the certificates between ours and the root. client_ca: whose clients alone are served.
    """

    private_key: Path
    certificate: Path = field()
    chain: Path | None = None
    client_ca: Path | None = None

    @certificate.default
    def _beside_the_key(self) -> Path:
        return self.private_key

    def stamp(self) -> object:
        """Another one when a file changed."""
        files = (self.private_key, self.certificate, self.chain, self.client_ca)
        return {path: _look(path) for path in files if path is not None}

    def load(self) -> ssl.SSLContext:
        """Raises ValueError that names the file and what is wrong with it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.num_tickets = 0
        key = _content(self.private_key, b"PRIVATE KEY-----", "private key")
        if b"ENCRYPTED" in key:
            raise ValueError(f"{self.private_key}: needs a passphrase: `openssl pkey` removes it")
        whole = _content(self.certificate, CERTIFICATE, "certificate")
        if self.chain is not None:
            whole += b"\n" + _content(self.chain, CERTIFICATE, "certificate")
        try:
            with NamedTemporaryFile(suffix=".pem") as file:  # OpenSSL wants them in one
                file.write(whole)
                file.flush()
                context.load_cert_chain(file.name, self.private_key)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ValueError(
                    f"{self.private_key}: not the key of the certificate in {self.certificate}"
                ) from None
            files = ", ".join(str(p) for p in (self.private_key, self.certificate, self.chain) if p)
            raise ValueError(f"{files}: {_words(error)}") from None
        if self.client_ca is not None:
            self._ask_for_certificates(context, self.client_ca)
        return context

    def until(self) -> datetime:
        """When the certificate ends. Raises ValueError like `load`, or where it is past.

        The library tells that only of a peer's, so here is one that it is shown to, in memory.
        """
        peer = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        peer.check_hostname = False
        peer.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context, here, there = self.load(), ssl.MemoryBIO(), ssl.MemoryBIO()
        peer.load_verify_locations(self.certificate)
        ours = context.wrap_bio(here, there, server_side=True)
        theirs = peer.wrap_bio(there, here)
        try:
            for side in (theirs, ours, theirs):
                with suppress(ssl.SSLWantReadError):
                    side.do_handshake()
        except ssl.SSLError as error:
            raise ValueError(f"{self.certificate}: {_words(error)}") from None
        shown: Any = theirs.getpeercert()
        return datetime.fromtimestamp(ssl.cert_time_to_seconds(shown["notAfter"]), UTC)

    @staticmethod
    def _ask_for_certificates(context: ssl.SSLContext, client_ca: Path) -> None:
        _content(client_ca, CERTIFICATE, "certificate")
        try:
            context.load_verify_locations(client_ca)
        except ssl.SSLError as error:
            raise ValueError(f"{client_ca}: {_words(error)}") from None
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be a root


def _look(path: Path) -> object:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _content(path: Path, mark: bytes, what: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    if mark not in content:
        raise ValueError(f"{path}: holds no {what} in PEM form")
    return content


def _words(error: ssl.SSLError) -> str:
    """What OpenSSL has to say, without its numbers: `wrong version number`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()


@implementer(IPushProducer)
@define(eq=False, repr=False)
class Producer:
    """One of the protocol within. waits: it has more to write once it is asked."""

    _producer: Any
    _streaming: bool
    waits: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.waits = not self._streaming

    def pauseProducing(self) -> None:
        self.waits = True
        self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        self.waits = not self._streaming
        self._producer.resumeProducing()

    def stopProducing(self) -> None:
        self._producer.stopProducing()


@implementer(ISSLTransport)
@define(eq=False, repr=False)
class Secured(Wrapped):
    """A peer that speaks TLS.

    Once the handshake is done, encrypting never waits for the peer, so nothing is kept here: the
    transport's buffer is the only one, and a producer within is paced by the transport itself.
    """

    OWES: ClassVar[str] = "TLS handshake"

    context: ssl.SSLContext
    _incoming: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _outgoing: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _tls: ssl.SSLObject = field(init=False)
    _shaken: bool = field(default=False, init=False)  # the handshake is done
    _notified: bool = field(default=False, init=False)  # the peer's close_notify came
    _half: bool = field(default=False, init=False)  # loseWriteConnection was called
    _closing: bool = field(default=False, init=False)  # loseConnection was
    _shut: bool = field(default=False, init=False)  # our close_notify is out
    _spoke: bool = field(default=False, init=False)  # the peer did, after that
    _producer: Producer | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._tls = self.context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def dataReceived(self, data: bytes) -> None:
        if self._notified or self._refused or self._why is not None:
            return
        if not self._heard and data[0] != HANDSHAKE:
            self._answer_plainly(data)
            return
        self._heard = True
        self._incoming.write(data)
        if not (self._shaken or self._shake()):
            return
        broken = self._decrypt()
        if self._within is None:
            self.let_in()
        else:
            self._deliver()
        if broken is not None:
            self._cut(broken)

    def readConnectionLost(self) -> None:
        self._fin = True
        if self._notified:
            return
        within = self._within
        if within is None or within.FRAMED or (self._shut and not self._spoke):
            super().readConnectionLost()
        else:
            self._cut("FIN without close_notify")

    def _shake(self) -> bool:
        try:
            self._tls.do_handshake()
            self._shaken = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.refuse(f"TLS: {_words(error)}")
        self._flush()
        if self._refused:  # it shall read the alert: wait for its FIN, as long as it may wait here
            self.transport.loseWriteConnection()
        return self._shaken

    def _answer_plainly(self, data: bytes) -> None:
        self.refuse("it speaks no TLS")
        self.transport.write(PLAIN_HTTP if _REQUEST.match(data) else PLAIN)
        self.transport.loseWriteConnection()

    def _decrypt(self) -> str | None:
        """All that came, so that no record waits inside; what is wrong with the next one."""
        chunks: list[bytes] = []
        broken = None
        try:
            while chunk := self._tls.read(RECORD):
                chunks.append(chunk)
            self._notified = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._notified = True
        except ssl.SSLError as error:
            broken, self._shut = _words(error), True
        self._spoke |= self._shut and bool(chunks)
        self._pending += b"".join(chunks)
        self._ending = self._notified
        self._flush()
        return broken

    def _flush(self) -> None:
        if self._outgoing.pending:
            self.transport.write(self._outgoing.read())

    def _cut(self, why: str) -> None:
        """The stream ends where it must not: as by a reset. Say why, if resets are worth a line."""
        within = self._within
        if within is not None and not within.closing and "reset" not in within.ORDINARY:
            name, peer = self.wrapper.served.live.name, spoken(self.getPeer())
            log.info(
                "{name} {peer}: TLS broke off ({why})",
                event="tls.broken",
                name=name,
                peer=peer,
                why=why,
            )
        self._why, self._shut = Failure(ConnectionLost(why)), True
        self.transport.abortConnection()

    def write(self, data: bytes) -> None:
        if not data or self._shut or self._within is None:
            return
        rest = memoryview(data)
        while rest:
            rest = rest[self._tls.write(rest) :]
        self._flush()

    def loseConnection(self) -> None:
        self._closing = True
        self._finish()

    def loseWriteConnection(self) -> None:
        self._half = True
        self._finish()

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self._producer = Producer(producer, streaming)
        super().registerProducer(self._producer, streaming)

    def getPeerCertificate(self) -> bytes | None:
        """In DER, if it showed one."""
        return self._tls.getpeercert(binary_form=True)

    def unregisterProducer(self) -> None:
        self._producer = None
        super().unregisterProducer()
        self._finish()

    def _finish(self) -> None:
        """Close what was asked to be closed, unless a producer has more to write."""
        if not (self._closing or self._half) or (self._producer and self._producer.waits):
            return
        if not self._shut:
            self._shut = True
            self._notify()
        if self._closing:
            self.transport.loseConnection()
        else:
            self.transport.loseWriteConnection()

    def _notify(self) -> None:
        # Who knows by a length that all is there closes without reading on: what lies unread then
        # would make a reset of it.
        if self._closing or not self._within.FRAMED:
            with suppress(ssl.SSLError):  # it would like to wait for the peer's
                self._tls.unwrap()
            self._flush()


@define(eq=False, repr=False)
class Secure(Wrapper):
    """Serves `within` over TLS. Raises ValueError when made with files that are of no use."""

    credentials: Credentials
    _stamp: object = field(init=False)
    _context: ssl.SSLContext = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._stamp = self.credentials.stamp()
        self._context = self.credentials.load()

    def startFactory(self) -> None:
        super().startFactory()
        self._stamp = self.credentials.stamp()
        try:
            self.credentials.load()  # USER may not read what root could
        except ValueError as error:
            self._keep(error)

    def buildProtocol(self, addr: IAddress | None) -> Secured:
        self._renew()
        return Secured(self, self._context)

    def _renew(self) -> None:
        """Take the files anew if they changed, else go on as before."""
        stamp = self.credentials.stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._context = self.credentials.load()
        except ValueError as error:
            self._keep(error)
        else:
            log.info(
                "{name}: {file} read again",
                event="tls.read",
                name=self.served.live.name,
                file=self.credentials.certificate,
            )

    def _keep(self, error: ValueError) -> None:
        log.error(
            "{name}: the certificate in force stays: {error}",
            event="tls.kept",
            name=self.served.live.name,
            error=error,
        )
