"""handshake under load: codes, and messages over HTTP, KEEP and raw text."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from io import BufferedRWPair
from itertools import count
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode

from attrs import define, field

from tests.chaos.workload import Client, Heard, Verdict, damage
from tests.process import Twistd

DEEP = 16  # lines that a KEEP client has under way
BATCH = 12  # requests on one connection


@define(eq=False)
class Handshake:
    """Acknowledged: a code with its 200, a message with its 200, `OK <seq>` or `OK`."""

    settings: Mapping[str, str] = field(factory=dict)
    strikes: list[float] = field(factory=list)
    powerless: bool = False
    codes: Heard[str, str] = field(factory=Heard)  # code: id
    tried: set[str] = field(factory=set)
    said: Heard[str, int | None] = field(factory=Heard)  # message: its number, where it was told
    _wrong: list[str] = field(factory=list, init=False)
    _count: count[int] = field(factory=count, init=False)

    @property
    def heard(self) -> Sequence[Heard[Any, Any]]:
        return self.codes, self.said

    def clients(self, daemon: Twistd) -> Sequence[Client]:
        works: list[Callable[[Twistd, str, str], None]] = [self._http, self._keep, self._text]
        return [
            self._client(daemon, f"{work.__name__[1:]}-{number}", work)
            for work in works
            for number in range(2)
        ]

    def collect(self, daemon: Twistd) -> None:
        """Every code that was ever given still serves."""
        for code, ident in self.codes.items():
            text = self._fresh(f"at last {ident}")
            answer = daemon.ask(8001, f"{ident} {code} {text}\n".encode())
            if answer == b"OK\n":
                self.said[text] = None
            else:
                self._wrong.append(f"a code of {ident} is refused: {answer!r}")

    def verify(self, data: Path) -> Verdict:
        path = data / "roundhouse.db"
        with closing(sqlite3.connect(path)) as database:
            rows = database.execute("SELECT seq, message FROM messages ORDER BY seq").fetchall()
        lines = [
            (record["seq"], record["message"])
            for record in map(json.loads, (data / "logfile.log").read_text().splitlines())
        ]
        numbers = {text: seq for seq, text in rows}
        wrong = [*self._wrong, *damage(path)]
        if lines != rows:
            odd = sorted(set(lines) ^ set(rows))[:5]
            wrong.append(f"table ({len(rows)}) and log ({len(lines)}) differ, such as in {odd}")
        wrong += [f"{text!r} was never sent" for text in numbers if text not in self.tried]
        wrong += [
            f"{text!r} has number {numbers[text]}, acknowledged was {seq}"
            for text, seq in self.said.items()
            if seq is not None and numbers.get(text, seq) != seq
        ]
        return Verdict(
            len(self.said) + len(self.codes),
            tuple(repr(text) for text in self.said if text not in numbers),
            tuple(repr(t) for t, times in Counter(text for _, text in rows).items() if times > 1),
            tuple(wrong),
        )

    def _client(self, daemon: Twistd, who: str, work: Callable[[Twistd, str, str], None]) -> Client:
        held: list[str] = []

        def once() -> None:
            if not held or next(self._count) % 20 == 0:
                held[:] = [self._code(daemon, who)]
            work(daemon, who, held[0])

        return once

    def _fresh(self, who: str) -> str:
        text = f"{who}, {next(self._count)} ñ"
        self.tried.add(text)
        return text

    def _code(self, daemon: Twistd, who: str) -> str:
        with daemon.connect(8000) as sock, sock.makefile("rwb") as wire:
            status, body = _post(wire, {"client_uuid": who})
            if status != 200:
                _refused(b"%d %s" % (status, body))
        code = body.decode()
        self.codes[code] = who
        return code

    def _http(self, daemon: Twistd, who: str, code: str) -> None:
        with daemon.connect(8001) as sock, sock.makefile("rwb") as wire:
            for _ in range(BATCH):
                text = self._fresh(who)
                fields = {"client_uuid": who, "server_uuid": code, "message": text}
                status, body = _post(wire, fields)
                if status != 200:
                    _refused(b"%d %s" % (status, body))
                self.said[text] = None

    def _keep(self, daemon: Twistd, who: str, code: str) -> None:
        with daemon.connect(8001) as sock, sock.makefile("rwb") as wire:
            wire.write(b"KEEP\n")
            for _ in range(BATCH):
                texts = [self._fresh(who) for _ in range(DEEP)]
                wire.write("".join(f"{who} {code} {text}\n" for text in texts).encode())
                wire.flush()
                for text in texts:
                    answer = wire.readline()
                    if not answer.startswith(b"OK "):
                        _refused(answer)
                    self.said[text] = int(answer[3:])

    def _text(self, daemon: Twistd, who: str, code: str) -> None:
        text = self._fresh(who)
        answer = daemon.ask(8001, f"{who} {code} {text}\n".encode())
        if answer != b"OK\n":
            _refused(answer)
        self.said[text] = None


def _post(wire: BufferedRWPair, fields: Mapping[str, str]) -> tuple[int, bytes]:
    """One HTTP request on a connection that stays open: status and body."""
    body = urlencode(fields).encode()
    wire.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    wire.flush()
    status, length = wire.readline(), 0
    while (line := wire.readline()).strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    if line != b"\r\n" or len(answer := wire.read(length)) < length:
        raise ConnectionError("the answer was cut")
    return int(status.split()[1]), answer


def _refused(answer: bytes) -> NoReturn:
    """Not acknowledged: the connection broke, or the disk did. Nobody may be called a stranger."""
    if b"wrong id or code" in answer or answer.startswith(b"400"):
        raise AssertionError(f"a right code was refused: {answer!r}")
    raise ConnectionError(answer)
