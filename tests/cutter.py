"""A TCP proxy that cuts a connection in the middle, as bad networks do."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from threading import Thread

from attrs import define, field

CHUNK = 1 << 16
PATIENCE = 20.0  # seconds before a connection through it is given up


@define(eq=False)
class Cutter:
    """Passes connections on to `target` on 127.0.0.1; cuts once, `after` bytes one way.

    upwards: whether bytes towards the target count, else those it sends. stale: whether the target
    is left in the belief that its peer is still there. meanwhile: called at the cut, before its
    end can be seen. up, down: bytes that went through.
    back: seconds from the cut until bytes beyond a head went that way again, None: they did not.
    """

    target: int
    after: int
    upwards: bool = True
    stale: bool = False
    meanwhile: Callable[[], object] | None = None
    up: int = field(default=0, init=False)
    down: int = field(default=0, init=False)
    back: float | None = field(default=None, init=False)
    port: int = field(init=False)
    _cut_at: float | None = field(default=None, init=False)
    _listener: socket.socket = field(init=False)
    _open: list[socket.socket] = field(factory=list, init=False)
    _threads: list[Thread] = field(factory=list, init=False)

    def __attrs_post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._run(self._accept)

    def close(self) -> None:
        """End everything; back once no thread is left."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._open:
            _end(sock)
        for thread in self._threads:
            thread.join(PATIENCE)
        for sock in self._open:
            sock.close()

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                peer = self._listener.accept()[0]
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target), PATIENCE)
            except OSError:
                peer.close()
                continue
            for sock in (peer, server):
                sock.settimeout(PATIENCE)
                self._open.append(sock)
            self._run(self._pass, peer, server, True)
            self._run(self._pass, server, peer, False)

    def _pass(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        passed, counts = 0, upwards == self.upwards
        try:
            while data := source.recv(CHUNK):
                if counts and self._cut_at is None and passed + len(data) > self.after:
                    sink.sendall(data[: self.after - passed])
                    self._count(upwards, self.after - passed)
                    self._cut(*((source, sink) if upwards else (sink, source)))
                    return
                sink.sendall(data)
                passed += len(data)
                self._count(upwards, len(data))
                if counts and self._cut_at is not None and passed >= CHUNK and self.back is None:
                    self.back = time.monotonic() - self._cut_at
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for sock in (source, sink):
                _end(sock)

    def _count(self, upwards: bool, size: int) -> None:
        if upwards:
            self.up += size
        else:
            self.down += size

    def _cut(self, peer: socket.socket, server: socket.socket) -> None:
        self._cut_at = time.monotonic()
        if self.meanwhile is not None:
            self.meanwhile()
        for sock in (peer,) if self.stale else (peer, server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._open.remove(sock)
            _end(sock)
            sock.close()


def _end(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
