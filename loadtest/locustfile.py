"""One user class a protocol and a mixed one; a wrong answer is a failure, not only an error.

    locust -f loadtest/locustfile.py --headless -u 60 -r 60 -t 20s --stop-timeout 10
    locust -f loadtest/locustfile.py --headless -u 500 -r 100 -t 1m EchoUser HandshakeUser
    locust -f loadtest/locustfile.py --headless -u 60 -r 60 -t 20s --tags echo chat
    locust -f loadtest/locustfile.py,loadtest/shapes/rate51.py --headless --stop-timeout 10
    locust -f loadtest/locustfile.py                      # and the browser: http://localhost:8089

Host and ports come from ROUNDHOUSE_HOST and config.cfg, as for the client. The exit status is 1
when a bound of bounds.toml is missed (--bounds). With --stop-timeout users finish what they have
begun, and the totals at the end are those of the daemon. --processes 2 loads with two cores.

RelayUser puts files in the relay's queue and takes them out again: do not run it where a queue
holds files of somebody's. Load shapes live in files of their own: one in here would make Locust
ignore -u, -r and -t.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from locust import FastHttpUser, User, constant_throughput, events, tag, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import WorkerRunner

from client import defaults
from loadtest.bounds import DEFAULT, Bounds, Requests

log = logging.getLogger(__name__)
Kind = TypeVar("Kind", bound=User)

PATIENCE = 10.0  # seconds
RESET = struct.pack("ii", 1, 0)


class Wrong(Exception):
    """The daemon answered, but not what the wire promises."""


def same(got: bytes, wanted: bytes) -> None:
    if got != wanted:
        raise Wrong(f"{got[:80]!r} instead of {wanted[:80]!r}")


@events.init_command_line_parser.add_listener
def _options(parser: LocustArgumentParser) -> None:
    ours = parser.add_argument_group("Roundhouse")
    ours.add_argument(
        "--each", type=float, help="How often a user acts, in times a second. Default: 2 to 10"
    )
    ours.add_argument(
        "--room-size", type=int, help="Chat in rooms of so many. Default: all in one room"
    )
    ours.add_argument("--totals", help="Write the figures here as JSON, once all has ended")
    ours.add_argument("--bounds", help=f"The bounds of bounds.toml to keep. Default: {DEFAULT}")


@events.init.add_listener
def _leave_out_who_has_nothing_to_do(environment: Environment, **_: Any) -> None:
    """--tags may leave a user class without a task; Locust would fail to make such a user."""
    said = environment.parsed_options
    wanted, unwanted = (set(getattr(said, name, None) or ()) for name in ("tags", "exclude_tags"))

    def has_work(user: type[User]) -> bool:
        sets: list[set[str]] = [getattr(one, "locust_tag_set", set()) for one in user.tasks]
        return any((not wanted or tags & wanted) and not tags & unwanted for tags in sets)

    environment.user_classes = [user for user in environment.user_classes if has_work(user)]


@events.quitting.add_listener
def _judge(environment: Environment, **_: Any) -> None:
    """Exit with 1 when a bound was missed."""
    if isinstance(environment.runner, WorkerRunner):
        return
    kinds = [
        Requests(
            f"{one.method} {one.name}",
            one.num_requests,
            one.num_failures,
            one.get_response_time_percentile(0.99) if one.num_requests else None,
        )
        for one in environment.stats.entries.values()
    ]
    try:
        bounds = Bounds.named(getattr(environment.parsed_options, "bounds", None) or DEFAULT)
        missed = list(bounds.missed(kinds))
    except ValueError as error:
        missed = [str(error)]
    for line in missed:
        log.error("bound missed: %s", line)
    environment.process_exit_code = 1 if missed else 0


@events.init.add_listener
def _tell_totals(environment: Environment, **_: Any) -> None:
    """Locust's CSV files lack the last seconds, and its JSON file is written by each process."""
    path = getattr(environment.parsed_options, "totals", None)
    if path and not isinstance(environment.runner, WorkerRunner):

        def tell(**_: Any) -> None:
            totals = [entry.serialize() for entry in environment.stats.entries.values()]
            Path(path).write_text(json.dumps(totals), encoding="utf-8")

        environment.events.quit.add_listener(tell)


class Paced(User):
    """Acts as often as --each says, else a bit later each time."""

    abstract = True
    lull: ClassVar[tuple[float, float]] = (0.1, 0.5)  # seconds

    def wait_time(self) -> float:
        each = getattr(self.environment.parsed_options, "each", None)
        return float(constant_throughput(each)(self) if each else random.uniform(*self.lull))


class RawUser(Paced):
    """A user with a socket: times a block of work and reports it as one request."""

    abstract = True
    service: ClassVar[str] = ""
    sock: socket.socket | None = None  # of those that stay

    def on_stop(self) -> None:
        self.leave()

    def connect(self, key: str = "PORT") -> socket.socket:
        at = defaults.address(self.service, key, None, None)
        return socket.create_connection((at.host, at.port), PATIENCE)

    def stay(self) -> socket.socket | None:
        """The connection to stay on, a new one where it broke; None when there is none to have."""
        if self.sock is None:
            with self.timed("connect"):
                self.sock = self.connect()
                self.entered(self.sock)
        return self.sock

    def entered(self, sock: socket.socket) -> None:
        """A connection to stay on was made."""

    def leave(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            sock.close()

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
            self.leave()
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

    @tag("echo")
    @task
    def say(self) -> None:
        if (sock := self.stay()) is None:
            return
        with self.timed("line") as took:
            text = f"hola señor {uuid.uuid4()}\n"
            sock.sendall(text.encode())
            line, rest = read_line(sock)
            same(line + b"\n" + rest, text.upper().encode())
            took(len(line))


class ChatUser(RawUser):
    """Keeps a connection, sends lines, wants each of its own back among the others'."""

    service = "chat"
    lull = (0.5, 1.5)

    def entered(self, sock: socket.socket) -> None:
        self.unread = b""
        size = getattr(self.environment.parsed_options, "room_size", None)
        runner = self.environment.runner
        if size and runner is not None:
            rooms = max(1, runner.target_user_count // size)
            sock.sendall(b"/join load-%d\n" % random.randrange(rooms))

    @tag("chat")
    @task
    def say(self) -> None:
        if (sock := self.stay()) is None:
            return
        with self.timed("own line back") as took:
            text = f"{uuid.uuid4()} buenos días".encode()
            sock.sendall(text + b"\n")
            line = b""
            while line != text:
                line, self.unread = read_line(sock, self.unread)
                took(len(line))
                if line.startswith(b"ERR "):
                    raise Wrong(line.decode())


class IngestUser(RawUser):
    """A connection a stream: sends it, half-closes, and checks the receipt."""

    service = "ingest"
    data = os.urandom(20_000)

    @tag("ingest")
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
    lull = (0.5, 1.5)

    @tag("relay")
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


class HandshakeUser(Paced, FastHttpUser):
    """Registers once, logs messages over HTTP, and tries a wrong code now and then."""

    host = "http://handshake"  # each request names its own

    def on_start(self) -> None:
        codes = defaults.address("handshake", "CODE_PORT", None, None)
        messages = defaults.address("handshake", "MESSAGE_PORT", None, None)
        self.codes, self.messages = (f"http://{at.host}:{at.port}/" for at in (codes, messages))
        self.ident = str(uuid.uuid4())
        with self.post(self.codes, "register", closes=True, client_uuid=self.ident) as answer:
            self.code = answer.headers.get("Server-Uuid", "")
            if len(self.code) not in (32, 36):
                answer.failure(f"code {self.code!r}")

    @tag("handshake")
    @task(9)
    def say(self) -> None:
        fields = {"client_uuid": self.ident, "server_uuid": self.code}
        with self.post(self.messages, "message", False, **fields, message="qué tal") as answer:
            if answer.headers.get("Status") != "Authentication success":
                answer.failure(f"Status: {answer.headers.get('Status')}")

    @tag("handshake")
    @task(1)
    def say_with_a_wrong_code(self) -> None:
        fields = {"client_uuid": self.ident, "server_uuid": "wrong"}
        with self.post(self.messages, "wrong code", False, **fields, message="psst") as answer:
            if answer.status_code == 400 and answer.text.startswith("Error"):
                answer.success()
            else:
                answer.failure(f"{answer.status_code} for a wrong code")

    def post(self, url: str, name: str, closes: bool = False, **fields: str) -> Any:
        """closes: it is asked once, so the connection is not kept for the next time."""
        headers = {"Connection": "close"} if closes else {}
        return self.client.post(url, data=fields, headers=headers, name=name, catch_response=True)


class MixedUser(Paced):
    """One person who uses everything, on connections that stay open where the wire lets them."""

    def on_start(self) -> None:
        self.users: dict[type[User], User] = {}

    def on_stop(self) -> None:
        for user in self.users.values():
            user.on_stop()

    def as_(self, kind: type[Kind]) -> Kind:
        """The user of that kind that this one is, too; it starts when it is first needed."""
        if kind not in self.users:
            self.users[kind] = user = kind(self.environment)
            user.on_start()
        return cast(Kind, self.users[kind])

    @tag("echo")
    @task(4)
    def say_to_echo(self) -> None:
        self.as_(EchoUser).say()

    @tag("chat")
    @task(2)
    def say_to_all(self) -> None:
        self.as_(ChatUser).say()

    @tag("ingest")
    @task(2)
    def stream(self) -> None:
        self.as_(IngestUser).stream()

    @tag("relay")
    @task(1)
    def pass_on(self) -> None:
        self.as_(RelayUser).pass_on()

    @tag("handshake")
    @task(4)
    def say_to_the_ledger(self) -> None:
        self.as_(HandshakeUser).say()

    @tag("handshake")
    @task(1)
    def say_with_a_wrong_code(self) -> None:
        self.as_(HandshakeUser).say_with_a_wrong_code()
