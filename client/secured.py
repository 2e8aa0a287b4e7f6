"""TLS 1.2 and 1.3 on a client's socket, with half-close.

Our close_notify is what FIN is on plain TCP: that was all, and what the server says after it is
still read, up to its own. A FIN without close_notify is a stream that was cut, so that half a file
is never taken for a whole one. A connection that was to reset when it is closed says nothing.

`ssl.SSLSocket` can do neither, so the protocol runs in memory here, and the socket is our own.
"""

from __future__ import annotations

import errno
import io
import socket
import ssl
import struct
from contextlib import suppress
from typing import Any

from attrs import define, field, frozen

from client.net import CHUNK, Address, Failed, Reset, Silent, Socket, fragile, reason
from client.terminal import printable

RECORD = 1 << 14  # bytes of plain text in a record, at most
BURST = 4 * RECORD  # bytes encrypted at once
CUT = "TLS ended without close_notify: something may be missing"
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
UNTRUSTED = {2, 18, 19, 20, 21}  # OpenSSL's numbers for a chain that ends nowhere we know
MISNAMED = {62, 64}
EXPIRED, NOT_YET = 10, 9
FAILURE = "handshake failure"  # how TLS 1.2 asks for a certificate that was not shown


@frozen(eq=False)
class Trust:
    """Whom TLS is spoken with, and as whom.

    cafile: PEM file of who may vouch for the server, None: who this system trusts. cert, key: ours,
    shown where the server asks; the key may lie in cert's file. servername: what the server's
    certificate must name, None: the host. Made with files that are of no use: raise Failed.
    """

    cafile: str | None = None
    cert: str | None = None
    key: str | None = None
    servername: str | None = None
    context: ssl.SSLContext = field(init=False, repr=False)

    @context.default
    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cafile is None:
            context.load_default_certs()
        else:
            _look(self.cafile, CERTIFICATE, "certificate")
            try:
                context.load_verify_locations(self.cafile)
            except ssl.SSLError as error:
                raise Failed(f"{printable(self.cafile)}: {_words(error)}") from None
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be a root
        if self.cert is not None:
            self._identify(context, self.cert, self.key or self.cert)
        return context

    @staticmethod
    def _identify(context: ssl.SSLContext, cert: str, key: str) -> None:
        _look(cert, CERTIFICATE, "certificate")
        if b"ENCRYPTED" in _look(key, b"PRIVATE KEY-----", "private key"):
            raise Failed(f"{printable(key)} needs a passphrase: `openssl pkey` removes it")
        try:
            context.load_cert_chain(cert, key)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                why = f"is not the key of the certificate in {printable(cert)}"
                raise Failed(f"{printable(key)} {why}") from None
            raise Failed(f"{printable(cert)}, {printable(key)}: {_words(error)}") from None

    def name(self, address: Address) -> str:
        """What the certificate of the server at `address` must be for."""
        return self.servername or address.host

    def session(
        self, address: Address, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> ssl.SSLObject:
        """The protocol in memory. Raise Failed where the name can be nobody's."""
        name = self.name(address)
        try:
            return self.context.wrap_bio(incoming, outgoing, server_hostname=name)
        except ValueError:
            raise Failed(f"'{printable(name)}' is no name that a certificate can have") from None

    def secure(self, sock: Socket, address: Address) -> Secured:
        """Shake hands on `sock`, within its timeout. Raise Failed."""
        # What a server without TLS has got by then must not count as a stream that ended.
        fragile(sock, True)
        try:
            secured = Secured(sock, address, self)
            secured.shake()
        except BaseException:
            sock.close()
            raise
        fragile(sock, False)
        return secured

    def failure(self, address: Address, error: ssl.SSLError) -> Failed:
        """What went wrong in the handshake with `address`, and what would be right."""
        if refusal := self.refusal(address, error):
            return refusal
        if isinstance(error, ssl.SSLCertVerificationError):
            return Failed(f"{address} is not trusted: {self._distrust(address, error)}")
        if isinstance(error, ssl.SSLEOFError):
            return Reset(f"{address} closed in the middle of TLS's handshake: does it speak TLS?")
        return Failed(f"{address} does not speak TLS 1.2 or 1.3: --no-tls? ({_words(error)})")

    def refusal(self, address: Address, error: OSError) -> Failed | None:
        """What `address` has against us, where that is what `error` is about."""
        words = _words(error)
        if not isinstance(error, ssl.SSLError) or "alert" not in words:
            return None
        if "certificate required" in words or (words.endswith(FAILURE) and not self.cert):
            with_what = "another certificate than ours" if self.cert else "a certificate"
            return Failed(f"{address} serves only who shows {with_what}: --cert and --key")
        if self.cert and ("certificate" in words or words.endswith("ca")):
            return Failed(f"{address} refused the certificate in {printable(self.cert)}: {words}")
        return Failed(f"{address} refused TLS: {words}")

    def broken_off(self, address: Address, error: OSError) -> Failed:
        """What any other end of a handshake means."""
        if isinstance(error, TimeoutError):
            return Silent(f"{address} did not answer TLS's handshake: does it speak TLS?")
        return Reset(f"{address} broke off TLS's handshake: {reason(error)}: does it speak TLS?")

    def _distrust(self, address: Address, error: ssl.SSLCertVerificationError) -> str:
        if error.verify_code in MISNAMED:
            names = ", ".join(self._names(address)) or "another name"
            name = printable(self.name(address))
            return f"its certificate is for {names}, not for {name}: --servername NAME"
        if error.verify_code in UNTRUSTED:
            whom = "anybody this system trusts" if self.cafile is None else printable(self.cafile)
            return f"its certificate was not issued by {whom}: --cafile FILE of who did"
        if error.verify_code == EXPIRED:
            return "its certificate has expired, or this clock is wrong"
        if error.verify_code == NOT_YET:
            return "its certificate is not valid yet, or this clock is wrong"
        return f"its certificate: {error.verify_message}"

    def _names(self, address: Address) -> list[str]:
        """What its certificate is for, of a server that is trusted but for that."""
        context = Trust(self.cafile, self.cert, self.key).context
        context.check_hostname = False
        with suppress(OSError):
            sock = socket.create_connection((address.host, address.port), 5)
            with sock, context.wrap_socket(sock, server_hostname=self.name(address)) as probe:
                fragile(probe, True)  # type: ignore[arg-type]
                named: Any = probe.getpeercert() or {}
                return [printable(name) for _, name in named.get("subjectAltName", ())]
        return []


def _look(path: str, mark: bytes, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise Failed(f"cannot read {printable(path)}: {error.strerror}") from None
    if mark not in content:
        raise Failed(f"{printable(path)} holds no {what} in PEM form")
    return content


def _words(error: OSError) -> str:
    """What OpenSSL has to say, without its numbers: `wrong version number`."""
    return printable((getattr(error, "reason", "") or reason(error)).replace("_", " ").lower())


@define(eq=False, repr=False)
class Secured:
    """What `Socket` is, over TLS; with as much of a socket as http.client wants."""

    _sock: Socket
    _address: Address
    _trust: Trust
    _incoming: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _outgoing: ssl.MemoryBIO = field(factory=ssl.MemoryBIO, init=False)
    _tls: ssl.SSLObject = field(init=False)
    _plain: bytearray = field(factory=bytearray, init=False)  # came, and nobody took it yet
    _ended: bool = field(default=False, init=False)  # after it came close_notify,
    _fault: Exception | None = field(default=None, init=False)  # or this
    _unsent: bytearray = field(factory=bytearray, init=False)  # encrypted, of
    _sealed: int = field(default=0, init=False)  # so many bytes, which the caller still has
    _shut: bool = field(default=False, init=False)  # our close_notify is made
    _users: int = field(default=1, init=False)

    def __attrs_post_init__(self) -> None:
        self._tls = self._trust.session(self._address, self._incoming, self._outgoing)

    def shake(self) -> None:
        """Raise Failed."""
        try:
            while not self._shaken():
                self._flush()
                self._fill()
            self._flush()
        except ssl.SSLError as error:
            with suppress(OSError):
                self._flush()  # so that it hears why
            raise self._trust.failure(self._address, error) from None
        except OSError as error:
            raise self._trust.broken_off(self._address, error) from None
        self._decrypt()

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    # what came

    @property
    def held(self) -> bool:
        return bool(self._plain) or self._ended or self._fault is not None

    def spoke(self) -> bool:
        while not self.held and self._sock.spoke():
            self._fill()
            self._decrypt()
        return self.held

    def recv(self, size: int) -> bytes:
        """Some bytes; b"" after close_notify. Raise OSError as a socket does, or Failed."""
        while not self.held:
            self._fill()
            self._decrypt()
        if self._plain:
            data = bytes(self._plain[:size])
            del self._plain[:size]
            return data
        if self._fault is not None:
            raise self._fault
        return b""

    def _fill(self) -> None:
        if data := self._sock.recv(CHUNK):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _decrypt(self) -> None:
        """All that came, so that what is left inside can always wait for more of it."""
        try:
            while data := self._tls.read(RECORD):
                self._plain += data
            self._ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._ended = True
        except ssl.SSLEOFError:
            self._fault = ConnectionResetError(errno.ECONNRESET, CUT)
        except ssl.SSLError as error:
            # TLS 1.3 refuses our certificate only after the handshake
            self._fault = self._trust.refusal(self._address, error) or ConnectionResetError(
                errno.ECONNRESET, f"TLS: {_words(error)}"
            )
        with suppress(OSError):  # an answer about keys: with what is sent next at the latest
            self._flush()

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        self._users += 1
        return io.BufferedReader(_Reading(self), CHUNK)

    # what goes

    def send(self, data: memoryview | bytes) -> int:
        """How many of the bytes are out; 0: the next call must begin with the same ones."""
        if not self._sealed:
            self._sealed = self._tls.write(memoryview(data)[:BURST])
        if not self._flush():
            return 0
        sent, self._sealed = self._sealed, 0
        return sent

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.send(view) :]

    def finish(self) -> bool:
        if not self._shut:
            self._shut = True
            with suppress(ssl.SSLError):  # it would wait for the server's
                self._tls.unwrap()
        if not self._flush():
            return False
        self._sock.shutdown(socket.SHUT_WR)
        return True

    def _flush(self) -> bool:
        """Whether all that is encrypted is out."""
        self._unsent += self._outgoing.read()
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return False
            del self._unsent[:sent]
        return True

    # the socket beneath

    def fileno(self) -> int:
        return self._sock.fileno()

    def setsockopt(self, level: int, name: int, value: int | bytes) -> None:
        self._sock.setsockopt(level, name, value)

    def setblocking(self, yes: bool) -> None:
        self._sock.setblocking(yes)

    def settimeout(self, seconds: float | None) -> None:
        self._sock.settimeout(seconds)

    def close(self) -> None:
        """Close once every file made of it is closed, too."""
        self._users -= 1
        if self._users:
            return
        with suppress(OSError):
            if not (self._shut or self._resets):
                self._sock.setblocking(False)
                self.finish()
        self._sock.close()

    @property
    def _resets(self) -> bool:
        lingers = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
        return struct.unpack("ii", lingers) == (1, 0)


class _Reading(io.RawIOBase):
    def __init__(self, secured: Secured) -> None:
        self._secured = secured

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._secured.recv(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._secured.close()
