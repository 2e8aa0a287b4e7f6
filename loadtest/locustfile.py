"""One user class a protocol; a wrong answer is a failure, not only an error.

    locust -f loadtest/locustfile.py --headless -u 60 -r 60 -t 20s
    locust -f loadtest/locustfile.py --headless -u 500 -r 100 -t 1m EchoUser HandshakeUser
    locust -f loadtest/locustfile.py                      # and the browser: http://localhost:8089

Host and ports come from ROUNDHOUSE_HOST and config.cfg, as for the client. RelayUser puts files in
the relay's queue and takes them out again: do not run it where a queue holds files of somebody's.
Load shapes live in files of their own: one in here would make Locust ignore -u, -r and -t.
"""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from locust import FastHttpUser, User, between, task

from client import defaults

PATIENCE = 10.0  # seconds
RESET = struct.pack("ii", 1, 0)


class Wrong(Exception):
    """The daemon answered, but not what the wire promises."""


def same(got: bytes, wanted: bytes) -> None:
    if got != wanted:
        raise Wrong(f"{got[:80]!r} instead of {wanted[:80]!r}")


class RawUser(User):
    """A user with a socket: times a block of work and reports it as one request."""

    abstract = True
    wait_time = between(0.1, 0.5)
    service: ClassVar[str] = ""

    def connect(self, key: str = "PORT") -> socket.socket:
        at = defaults.address(self.service, key, None, None)
        return socket.create_connection((at.host, at.port), PATIENCE)

    @contextmanager
    def timed(self, name: str) -> Iterator[Callable[[int], None]]:
        """Report what happens inside as request `name`; call the yielded with its bytes."""
        size = 0

        def took(count: int) -> None:
            nonlocal size
            size += count

        error: Exception | None = None
        began = time.perf_counter()
        try:
            yield took
        except (OSError, Wrong) as caught:
            error = caught
        self.environment.events.request.fire(
            request_type=self.service,
            name=name,
            response_time=(time.perf_counter() - began) * 1000,
            response_length=size,
            exception=error,
            context={},
        )


def read_line(sock: socket.socket, rest: bytes = b"") -> tuple[bytes, bytes]:
    """The next line without its LF, and what came after it."""
    while b"\n" not in rest:
        data = sock.recv(1 << 16)
        if not data:
            raise Wrong(f"FIN after {rest[-80:]!r}")
        rest += data
    line, _, rest = rest.partition(b"\n")
    return line, rest


def read_all(sock: socket.socket) -> bytes:
    chunks = []
    while data := sock.recv(1 << 16):
        chunks.append(data)
    return b"".join(chunks)


class EchoUser(RawUser):
    """Keeps a connection, sends lines, wants them back in upper case."""

    service = "echo"

    def on_start(self) -> None:
        self.sock = self.connect()

    def on_stop(self) -> None:
        self.sock.close()

    @task
    def say(self) -> None:
        with self.timed("line") as took:
            text = f"hola señor {uuid.uuid4()}\n"
            self.sock.sendall(text.encode())
            line, rest = read_line(self.sock)
            same(line + b"\n" + rest, text.upper().encode())
            took(len(line))


class ChatUser(RawUser):
    """Keeps a connection, sends lines, wants each of its own back among the others'."""

    service = "chat"
    wait_time = between(0.5, 1.5)

    def on_start(self) -> None:
        self.sock = self.connect()
        self.rest = b""

    def on_stop(self) -> None:
        self.sock.close()

    @task
    def say(self) -> None:
        with self.timed("own line back") as took:
            text = f"{uuid.uuid4()} buenos días".encode()
            self.sock.sendall(text + b"\n")
            line = b""
            while line != text:
                line, self.rest = read_line(self.sock, self.rest)
                took(len(line))
                if line.startswith(b"ERR "):
                    raise Wrong(line.decode())


class IngestUser(RawUser):
    """A connection a stream: sends it, half-closes, and checks the receipt."""

    service = "ingest"
    data = os.urandom(20_000)

    @task
    def stream(self) -> None:
        with self.timed("stream") as took, self.connect() as sock:
            data = uuid.uuid4().bytes + self.data
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            digest = hashlib.sha256(data).hexdigest()
            receipt = read_all(sock).decode()
            took(len(receipt))
            if not receipt.startswith(f"OK {len(data)} {digest} "):
                raise Wrong(f"receipt {receipt!r}")


class RelayUser(RawUser):
    """Sends a file, then takes the oldest one; files prove themselves by the digest they carry."""

    service = "relay"
    wait_time = between(0.5, 1.5)

    @task
    def pass_on(self) -> None:
        body = os.urandom(5_000)
        with self.timed("put"), self.connect() as sock:
            sock.sendall(hashlib.sha256(body).digest() + body)
            sock.shutdown(socket.SHUT_WR)
            same(read_all(sock), b"")
        with self.timed("get") as took, self.connect() as sock:
            sock.shutdown(socket.SHUT_WR)  # a receiver that wants to be served now
            file = read_all(sock)
            took(len(file))
            if hashlib.sha256(file[32:]).digest() != file[:32]:
                # not ours, or damaged: give it back
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                raise Wrong("a file that no load test sent" if file else "no file")


class HandshakeUser(FastHttpUser):
    """Registers once, logs messages over HTTP, and tries a wrong code now and then."""

    wait_time = between(0.1, 0.5)
    host = "http://handshake"  # each request names its own

    def on_start(self) -> None:
        codes = defaults.address("handshake", "CODE_PORT", None, None)
        messages = defaults.address("handshake", "MESSAGE_PORT", None, None)
        self.codes, self.messages = (f"http://{at.host}:{at.port}/" for at in (codes, messages))
        self.ident = str(uuid.uuid4())
        with self.post(self.codes, "register", client_uuid=self.ident) as answer:
            self.code = answer.headers.get("Server-Uuid", "")
            if len(self.code) not in (32, 36):
                answer.failure(f"code {self.code!r}")

    @task(9)
    def say(self) -> None:
        fields = {"client_uuid": self.ident, "server_uuid": self.code}
        with self.post(self.messages, "message", **fields, message="qué tal") as answer:
            if answer.headers.get("Status") != "Authentication success":
                answer.failure(f"Status: {answer.headers.get('Status')}")

    @task(1)
    def say_with_a_wrong_code(self) -> None:
        fields = {"client_uuid": self.ident, "server_uuid": "wrong"}
        with self.post(self.messages, "wrong code", **fields, message="psst") as answer:
            if answer.status_code == 400 and answer.text.startswith("Error"):
                answer.success()
            else:
                answer.failure(f"{answer.status_code} for a wrong code")

    def post(self, url: str, name: str, **fields: str) -> Any:
        return self.client.post(url, data=fields, name=name, catch_response=True)
