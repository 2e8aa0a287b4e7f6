"""relay under load on its raw port: files put, files collected, queue order aside."""

from __future__ import annotations

import random
import socket
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from attrs import define, field

from tests.chaos.workload import Client, Heard, Verdict, damage
from tests.process import Twistd, everything

SILENCE = 0.05  # RECEIVER_AFTER, seconds
NEAR = 1.0  # seconds between a death and a delivery that it may undo
SIZES = (40, 400, 4_000, 70_000, 300_000)  # bytes


@define(eq=False)
class Relay:
    """Acknowledged: an upload that our FIN answered. Each is collected under load or at last."""

    settings: Mapping[str, str] = field(factory=lambda: {"relay": f"RECEIVER_AFTER = {SILENCE}"})
    strikes: list[float] = field(factory=list)
    powerless: bool = False
    put: Heard[bytes, int] = field(factory=Heard)  # token, how a file begins: its bytes
    tried: dict[bytes, bytes] = field(factory=dict)  # token: file
    got: list[tuple[float, bytes]] = field(factory=list)  # when, and the file
    _count: count[int] = field(factory=count, init=False)

    @property
    def heard(self) -> Sequence[Heard[Any, Any]]:
        return (self.put,)

    def clients(self, daemon: Twistd) -> Sequence[Client]:
        return [*[lambda: self._put(daemon)] * 4, *[lambda: self._get(daemon)] * 2]

    def collect(self, daemon: Twistd) -> None:
        while data := daemon.ask(5011):
            self.got.append((time.monotonic(), data))

    def verify(self, data: Path) -> Verdict:
        times: dict[bytes, list[float]] = defaultdict(list)
        wrong = damage(data / "relay" / "index.db")
        for when, file in self.got:
            token = begins(file)
            if self.tried.get(token) == file:
                times[token].append(when)
            else:
                wrong.append(f"nobody sent the {len(file)} bytes that begin with {token!r}")
        return Verdict(
            len(self.put),
            tuple(repr(token) for token in self.put if token not in times),
            tuple(repr(token) for token, seen in times.items() if not excused(seen, self.strikes)),
            tuple(wrong),
        )

    def _put(self, daemon: Twistd) -> None:
        token = b"file %d." % next(self._count)
        data = token + random.randbytes(random.choice(SIZES))
        self.tried[token] = data
        with daemon.connect(5011) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            answer = everything(sock)
        assert answer == b"", answer
        self.put[token] = len(data)
        time.sleep(0.02)  # about as fast as they are collected

    def _get(self, daemon: Twistd) -> None:
        with daemon.connect(5011) as sock:
            data = everything(sock)
        self.got.append((time.monotonic(), data))


def begins(file: bytes) -> bytes:
    """The token of a file."""
    return file[: file.find(b".") + 1]


def excused(seen: Sequence[float], strikes: Sequence[float]) -> bool:
    """Handed out again only because a death came before its removal was durable."""
    return all(any(abs(strike - when) < NEAR for strike in strikes) for when in sorted(seen)[:-1])
