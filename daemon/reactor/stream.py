"""A connection that the loop and the Protocol share, with nothing of ours in between.

One object is the loop's protocol and the Protocol's transport at once. `data_received`, which the
loop keeps, is the Protocol's own bound `dataReceived`; `write`, which the Protocol calls, is the
loop's own bound `write`. Everything else here happens a few times in the life of a connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IHalfCloseableProtocol,
    ILoggingContext,
    IProtocol,
    IPushProducer,
    ISSLTransport,
    ISystemHandle,
    ITCPTransport,
    ITLSTransport,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import classImplements, directlyProvides, implementer, providedBy

if TYPE_CHECKING:
    from daemon.reactor.ports import NativePort

log = Logger()

STREAM = int(socket.SOCK_STREAM)
BUFFER = 65536  # bytes of output that wait before a producer is paused; uvloop's own default
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
DONE = Failure(ConnectionDone())
LOST = Failure(ConnectionLost())


def _drop(data: object) -> None:
    """`write` where nothing can be written any more."""


@lru_cache(maxsize=256)
def _hears_of_fins(kind: Hashable) -> bool:
    return bool(IHalfCloseableProtocol.implementedBy(kind))


def _half_closeable(protocol: Any) -> Any:
    """`protocol` as IHalfCloseableProtocol, or None. Every connection asks: classes are known."""
    if _hears_of_fins(type(protocol)):  # type: ignore[arg-type]  # a class is hashable
        return protocol
    return IHalfCloseableProtocol(protocol, None)


@implementer(ITCPTransport, ISystemHandle, IConsumer, IPushProducer, ILoggingContext)
class Stream:
    """An accepted connection, TCP or UNIX, from `join` to the Protocol's `connectionLost`.

    What few connections ever change is a default of the class, so that the others do not carry it.
    """

    type: int = STREAM  # to uvloop the Stream is also the socket that it is given, hence
    family: int  # type, family, fileno, close; a real one is made when somebody asks for it

    connected: bool = True
    disconnected: bool = False
    disconnecting: bool = False
    producer: Any = None
    streamingProducer: bool = False
    TLS: bool = False

    _protocol: Any
    _transport: Any  # uvloop's
    _reading: bool = True  # what the Protocol wants
    _joined: bool = False  # the loop reads, or would
    _ended: bool = False  # the peer's FIN was told
    _half: bool = False  # loseWriteConnection was asked for
    _fin: bool = False  # and nothing is written after what is queued
    _full: bool = False  # more than `bufferSize` bytes of output wait
    _buffer: int = BUFFER
    _pulling: bool = False
    _why: Failure | None = None
    _shared: bool = False  # others may know the descriptor
    _socket: socket.socket | None = None
    _beneath: _Beneath | None = None  # the plain transport of one that speaks TLS

    def __init__(
        self, port: NativePort, descriptor: int, peer: Any, protocol: IProtocol, number: int
    ) -> None:
        self.port = port
        self.family = port.family
        self.reactor = port.reactor
        self.number = number
        self._descriptor = descriptor
        self._peer = peer
        self._protocol = protocol
        self.data_received: Callable[[bytes], object] = protocol.dataReceived

    def join(self) -> None:
        """Hand the descriptor to the loop and connect the Protocol, both before this returns.

        The coroutine that makes uvloop's transport waits for nothing but a Future that a later
        turn of the loop fulfils. We fulfil it ourselves, which yields the transport now, and then
        make it a Future again, for the loop will want to do the same.
        Raises OSError when the socket is of no use.
        """
        loop = self.reactor.loop
        joining = loop.connect_accepted_socket(lambda: self, self)
        waiter: asyncio.Future[None] = joining.send(None)
        waiter.set_result(None)
        try:
            joining.send(None)
        except StopIteration as joined:
            self._transport = joined.value[0]
        waiter.__init__(loop=loop)  # type: ignore[misc]
        # runs right behind the loop's first reading, in the same turn, before anything is read
        loop.call_soon(self._begin)
        self.write: Callable[[bytes], None] = self._transport.write
        self._usual = self.write  # until it closes, speaks TLS or has a pull producer
        self.reactor.streams.add(self)
        self._tell(self._protocol.makeConnection, self)

    # what the loop tells

    def connection_made(self, transport: object) -> None:
        """`join` knew it already."""

    def _begin(self) -> None:
        self._joined = True
        if not self._reading:
            self._transport.pause_reading()
        elif self.connected and self.data_received != self._protocol.dataReceived:
            self.protocol = self._protocol  # it changed its mind in connectionMade

    def eof_received(self) -> bool:
        self._ended = True
        protocol = _half_closeable(self._protocol)
        if protocol is not None:
            self._tell(protocol.readConnectionLost)
        else:
            self._close()
        return True  # the rest is ours to do

    def pause_writing(self) -> None:
        self._full = True
        if self.producer is not None and self.streamingProducer:
            self._tell(self.producer.pauseProducing)

    def resume_writing(self) -> None:
        self._full = False
        if self._fin:
            self.reactor.loop.call_soon(self._wrote_fin)
        elif self.producer is not None:
            if self.streamingProducer:
                self._tell(self.producer.resumeProducing)
            else:
                self._pull_soon()

    def connection_lost(self, error: BaseException | None) -> None:
        self._write_by(_drop)  # a lent one is told of its end later
        if self._why is None:
            if error is None:
                self._why = DONE
            elif error.__traceback__ is None:  # made by the loop, not raised in a Protocol
                self._why = LOST
            else:
                self._why = Failure(error)
                self._complain(self._why)
        self.connectionLost(self._why)

    def close(self) -> None:
        """The loop has closed the descriptor."""
        self._descriptor = -1
        if self._socket is not None:
            self._socket.detach()

    @property
    def unsent(self) -> int:
        """Bytes that were written, and that the kernel has not taken yet."""
        return int(self._transport.get_write_buffer_size())

    # ITCPTransport

    def writeSequence(self, iovec: Iterable[bytes]) -> None:
        self.write(b"".join(iovec))

    def loseConnection(self, _connDone: object = None) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self.stopReading()
            self._finish()

    def loseWriteConnection(self) -> None:
        if self.connected and not self._half:
            self._half = True
            self._finish()

    def abortConnection(self) -> None:
        if self.connected:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._break(Failure(ConnectionAborted()))

    def getHost(self) -> Any:
        return self.port.address(self._transport.get_extra_info("sockname"))

    def getPeer(self) -> Any:
        return self._peer

    def getHandle(self) -> Any:
        """The socket. With it known outside, closing shuts it down, whoever holds a copy."""
        self._shared = True
        return self.socket

    def getTcpNoDelay(self) -> bool:
        return self.family != socket.AF_UNIX and bool(
            self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        )

    def setTcpNoDelay(self, enabled: bool) -> None:
        if self.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(enabled))

    def getTcpKeepAlive(self) -> bool:
        return bool(self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(enabled))

    def startTLS(self, contextFactory: Any, normal: bool = True) -> None:
        """From now on this transport speaks TLS to the peer; as server if `normal`."""
        from twisted.protocols.tls import TLSMemoryBIOFactory

        producer, streaming = self.producer, self.streamingProducer
        if producer is not None:
            self.unregisterProducer()
        nothing: Any = None  # it wraps a Protocol that is connected already
        factory = TLSMemoryBIOFactory(contextFactory, not normal, nothing, self.reactor)
        tls = factory.protocol(factory, self._protocol, False)
        beneath = self._beneath = _Beneath(self)
        self.protocol = tls
        self.TLS = True
        directlyProvides(self, ISSLTransport)
        tls.makeConnection(beneath)
        for name in _SECURED:
            setattr(self, name, getattr(tls, name))
        if producer is not None:
            self.registerProducer(producer, streaming)

    def push(self, data: bytes) -> None:
        """As `write`, but at once where nothing waits: cheaper for who writes to many in a row."""
        if self.write is not self._usual or self._transport.get_write_buffer_size():
            self.write(data)
            return
        try:
            sent = (self._socket or self.socket).send(data)
        except OSError:  # the loop will meet it as well, and knows what to do
            sent = 0
        if sent < len(data):
            self.write(data[sent:])

    # IConsumer

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError(
                f"cannot register {producer!r}: {self.producer!r} was never unregistered"
            )
        if self.disconnected:
            producer.stopProducing()
            return
        self.producer, self.streamingProducer = producer, streaming
        if streaming:
            if self._full:
                producer.pauseProducing()
            return
        self._limit(0)
        self._write_by(self._write_pulled)
        producer.resumeProducing()

    def unregisterProducer(self) -> None:
        pulled = self.producer is not None and not self.streamingProducer
        self.producer = None
        if pulled and self.connected:
            self._limit(self._buffer)
            self._write_by(self._transport.write)
        self._finish()

    def stopConsuming(self) -> None:
        self.unregisterProducer()
        self.loseConnection()

    @property
    def bufferSize(self) -> int:
        """Bytes of output beyond which a push producer is paused."""
        return self._buffer

    @bufferSize.setter
    def bufferSize(self, size: int) -> None:
        self._buffer = size
        self._limit(size)

    # IPushProducer

    def pauseProducing(self) -> None:
        self.stopReading()

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.startReading()

    def stopProducing(self) -> None:
        self.loseConnection()

    # what Twisted's own transports have besides; lending and the reactor call it

    @property
    def protocol(self) -> Any:
        return self._protocol

    @protocol.setter
    def protocol(self, protocol: Any) -> None:
        self._protocol = protocol
        self.data_received = protocol.dataReceived
        self._transport.set_protocol(self)  # which keeps the method, not us

    @property
    def reading(self) -> bool:
        return self._reading and not self._ended

    def startReading(self) -> None:
        self._reading = True
        if self._joined and not self._ended:
            self._transport.resume_reading()

    def stopReading(self) -> None:
        self._reading = False
        if self._joined:
            self._transport.pause_reading()

    def fileno(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self._descriptor

    @property
    def socket(self) -> socket.socket:
        """A socket object on the descriptor, which stays the loop's to close."""
        if self._socket is None:
            self._socket = socket.socket(self.family, STREAM, 0, self._descriptor)
            self._socket.setblocking(False)
        return self._socket

    def connectionLost(self, reason: Failure) -> None:
        """The end, told to the Protocol once."""
        if not self.connected:
            return
        self.connected, self.disconnected = False, True
        self.reactor.streams.discard(self)
        self._write_by(_drop)
        self.data_received = _drop
        protocol, self._protocol = self._protocol, None
        producer, self.producer = self.producer, None
        if self._shared and not reason.check(ConnectionAborted):
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
        self._transport.abort()  # at shutdown nobody else would
        if producer is not None:
            self._tell(producer.stopProducing)
        protocol.connectionLost(reason)

    def logPrefix(self) -> str:
        host = getattr(self._peer, "host", "")
        return f"{type(self._protocol).__name__},{self.number},{host}"

    def __repr__(self) -> str:
        return f"<{type(self._protocol).__name__} #{self.number} on {self.port.where}>"

    # inside

    def _tell(self, call: Callable[..., object], *about: object) -> None:
        """Call what is not ours: what it raises is logged and ends the connection."""
        try:
            call(*about)
        except BaseException:
            failure = Failure()
            self._complain(failure)
            self._break(failure)

    def _complain(self, failure: Failure) -> None:
        log.failure("{what!r} failed and is closed", failure, event="connection.broken", what=self)

    def _break(self, why: Failure) -> None:
        """End at once for `why`; unsent output is lost."""
        if self.connected:
            self._why = why
            self.disconnecting = True
            self._write_by(_drop)
            self._transport.abort()

    def _write_by(self, write: Callable[[bytes], None]) -> None:
        """From now on the plain transport writes so; what does not write any more never will."""
        plain = self._beneath or self
        if plain.write is not _drop:
            plain.write = write

    def _close(self) -> None:
        """End once everything queued is sent."""
        self.disconnecting = True
        self._write_by(_drop)
        self._transport.close()

    def _limit(self, size: int) -> None:
        """Be told when more than `size` bytes of output wait, and when none does any more."""
        if not self._transport.is_closing():
            self._transport.set_write_buffer_limits(size, 0)

    def _finish(self) -> None:
        """Do what was asked for, unless a producer has more to write."""
        if not self.connected or (
            self.producer is not None and (self._full or not self.streamingProducer)
        ):
            return
        if self.disconnecting:
            self._close()
        elif self._half and not self._fin:
            self._fin = True
            self._write_by(_drop)
            self._transport.write_eof()
            if self._transport.get_write_buffer_size():
                self._limit(0)  # resume_writing tells when it is sent
            else:
                self.reactor.loop.call_soon(self._wrote_fin)

    def _wrote_fin(self) -> None:
        protocol = _half_closeable(self._protocol)
        if protocol is not None and not self.disconnecting:
            self._tell(protocol.writeConnectionLost)

    def _write_pulled(self, data: bytes) -> None:
        """A pull producer wrote: it is asked for more once this has gone out, not before."""
        self._transport.write(data)
        self._pull_soon()

    def _pull_soon(self) -> None:
        if not self._pulling:
            self._pulling = True
            self.reactor.loop.call_soon(self._pull)

    def _pull(self) -> None:
        self._pulling = False
        if self.producer is not None and not (self.streamingProducer or self._full):
            self._tell(self.producer.resumeProducing)


_SECURED = (
    "write",
    "loseConnection",
    "registerProducer",
    "unregisterProducer",
    "getHandle",
    "getPeerCertificate",
)

if find_spec("OpenSSL") is not None:
    classImplements(Stream, ITLSTransport)


class _Beneath:
    """The plain transport of a Stream that speaks TLS, known to its TLS layer alone."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.write = stream.write
        directlyProvides(self, providedBy(stream))

    def loseConnection(self) -> None:
        Stream.loseConnection(self._stream)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        Stream.registerProducer(self._stream, producer, streaming)

    def unregisterProducer(self) -> None:
        Stream.unregisterProducer(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(cast(Any, self._stream), name)
