"""relay under load over HTTP: 20 senders and 20 receivers on one box, and receivers are killed."""

from __future__ import annotations

import json
import random
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.client import HTTPException, HTTPResponse
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

from attrs import define, field

from tests.chaos.relay import SIZES, begins, excused
from tests.chaos.workload import Client, Heard, Verdict, damage
from tests.process import PATIENCE, Twistd

HTTP = 5012
SHORT = 0.3  # seconds that some files last
BOX, BRIEF = "box", "brief"


@define(eq=False)
class RelayHttp:
    """Acknowledged: an upload by its 201, a receipt by the 204 of its DELETE.

    Each is collected under load or at last, under the id that its sender was told. Files in a box
    of their own expire: in the end nothing is left of them.
    """

    SENDERS: ClassVar[int] = 20
    RECEIVERS: ClassVar[int] = 20
    KILLED: ClassVar[float] = 0.2  # of the receivers
    LEASE: ClassVar[float] = 5.0  # seconds

    settings: Mapping[str, str] = field(init=False)
    strikes: list[float] = field(factory=list)
    powerless: bool = False
    put: Heard[bytes, str] = field(factory=Heard)  # token, how a file begins: its id
    ended: Heard[str, float] = field(factory=Heard)  # id: when its DELETE had answered 204
    tried: dict[bytes, bytes] = field(factory=dict)  # token: file
    handed: list[tuple[float, str]] = field(factory=list)  # when, and the id, whole or not
    got: list[tuple[float, str, bytes]] = field(factory=list)  # when, the id, and the file
    left: list[str] = field(factory=list)  # what was there in the end
    _count: count[int] = field(factory=count, init=False)

    def __attrs_post_init__(self) -> None:
        self.settings = {"relay": f"LEASE = {self.LEASE}\nMAX_DELIVERIES = 1000000"}

    @property
    def heard(self) -> Sequence[Heard[Any, Any]]:
        return (self.put, self.ended)

    def clients(self, daemon: Twistd) -> Sequence[Client]:
        senders = [lambda: self._put(daemon)] * self.SENDERS
        return [*senders, *[lambda: self._get(daemon)] * self.RECEIVERS]

    def collect(self, daemon: Twistd) -> None:
        while self._take(daemon, wait=self.LEASE + 0.5, manual=False, killed=False):
            pass
        until = time.monotonic() + PATIENCE
        while (left := self._boxes(daemon)) and time.monotonic() < until:
            time.sleep(0.05)
        self.left += left

    def verify(self, data: Path) -> Verdict:
        times: dict[bytes, list[float]] = defaultdict(list)
        wrong = [f"box {name} was not empty in the end" for name in self.left]
        for when, ident, file in self.got:
            token = begins(file)
            if self.tried.get(token) != file:
                wrong.append(f"nobody sent the {len(file)} bytes that begin with {token!r}")
                continue
            times[token].append(when)
            if self.put.get(token, ident) != ident:
                wrong.append(f"{token!r} was {self.put[token]} and came as {ident}")
        twice = [repr(token) for token, seen in times.items() if not excused(seen, self.strikes)]
        for when, ident in self.handed:
            if when > self.ended.get(ident, when):
                twice.append(f"id {ident}, {when - self.ended[ident]:.3f} s after its DELETE")
        wrong += damage(data / "relay" / "index.db")
        wrong += [f"{path.name} is left" for path in (data / "relay").glob("*.parcel")]
        return Verdict(
            len(self.put) + len(self.ended),
            tuple(repr(token) for token in self.put if token not in times),
            tuple(twice),
            tuple(wrong),
        )

    def _put(self, daemon: Twistd) -> None:
        if random.random() < 0.05:
            with _asked(daemon, "PUT", f"/{BRIEF}/x?expires={SHORT}s", bytes(4_000)) as answer:
                self._wants(201, answer)
            return
        number = next(self._count)
        token = b"file %d." % number
        data = token + random.randbytes(random.choice(SIZES))
        self.tried[token] = data
        with _asked(daemon, "PUT", f"/{BOX}/{number}.bin", data) as answer:
            said = self._wants(201, answer)
        self.put[token] = json.loads(said)["id"]
        time.sleep(0.02)  # about as fast as they are collected

    def _get(self, daemon: Twistd) -> None:
        killed = random.random() < self.KILLED
        self._take(daemon, wait=0.5, manual=random.random() < 0.5, killed=killed)

    def _take(self, daemon: Twistd, wait: float, manual: bool, killed: bool) -> bool:
        """Whether there was one."""
        query = f"?wait={wait}" + "&ack=manual" * manual
        with _asked(daemon, "GET", f"/{BOX}/next{query}", reset=killed) as answer:
            if answer.status == 204:
                return False
            if answer.status != 200:
                self._wants(200, answer)
            ident = str(answer.headers["Content-Location"]).rpartition("/")[2]
            self.handed.append((time.monotonic(), ident))
            if killed:
                answer.read(random.randrange(1000))
                return True
            data = answer.read()
        self.got.append((time.monotonic(), ident, data))
        if manual:
            with _asked(daemon, "DELETE", f"/{BOX}/{ident}") as answer:
                self._wants(204, answer)
            self.ended[ident] = time.monotonic()
        return True

    def _wants(self, status: int, answer: HTTPResponse) -> bytes:
        said = answer.read()
        if self.powerless and answer.status == 503:  # its disk is gone, and it says so
            raise ConnectionAbortedError(said)
        assert answer.status == status, said
        return said

    def _boxes(self, daemon: Twistd) -> list[str]:
        with _asked(daemon, "GET", "/?format=json") as answer:
            return [one["box"] for one in json.load(answer)["boxes"]]


@contextmanager
def _asked(
    daemon: Twistd, method: str, path: str, body: bytes = b"", reset: bool = False
) -> Iterator[HTTPResponse]:
    """The answer, on a connection of its own. reset: in the end, as a program that is killed."""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    with daemon.connect(HTTP) as sock, closing(HTTPResponse(sock, method=method)) as answer:
        try:
            sock.sendall(head.encode() + body)
            answer.begin()
            yield answer
        except HTTPException as error:  # the daemon is gone
            raise ConnectionResetError(str(error)) from None
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
