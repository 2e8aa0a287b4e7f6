"""ingest under load: big streams, many small ones, slow ones and cut ones, in several parts."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

from daemon.stores.landing.manifest import SUFFIX, Manifest
from daemon.verify import look, prove
from tests.chaos.workload import Client, Heard, Verdict
from tests.process import Twistd, everything

PART = 1 << 20  # MAX_FILE_SIZE, bytes
TOKEN = 16  # bytes that begin a stream and belong to no other
FINISHED = 5.0  # seconds after which what a crash left has its manifest
RESET = struct.pack("ii", 1, 0)


@frozen
class Landed:
    """A series that was found."""

    stem: str
    size: int
    parts: int


@frozen
class Promise:
    """What a receipt said: so many bytes of a stream are durable. parts: of a whole one, else 0."""

    size: int
    parts: int = 0

    def kept_by(self, found: Landed) -> bool:
        if self.parts:
            return (found.size, found.parts) == (self.size, self.parts)
        return found.size >= self.size


@define(eq=False)
class Ingest:
    """Acknowledged: `OK <bytes> <sha256> <parts>`, and of a failed stream the bytes `stored`."""

    settings: Mapping[str, str] = field(factory=lambda: {"default": f"MAX_FILE_SIZE = {PART}"})
    strikes: list[float] = field(factory=list)
    powerless: bool = False
    sent: dict[bytes, int] = field(factory=dict)  # token: bytes of the whole stream
    promised: Heard[bytes, Promise] = field(factory=Heard)
    _count: count[int] = field(factory=count, init=False)

    @property
    def heard(self) -> Sequence[Heard[Any, Any]]:
        return (self.promised,)

    def clients(self, daemon: Twistd) -> Sequence[Client]:
        def sends(least: int, most: int, pause: float = 0.0) -> Client:
            return lambda: self._send(daemon, random.randint(least, most), pause)

        big, middle, slow = sends(PART, 6 * PART), sends(70_000, 300_000), sends(100, 9_000, 0.05)
        small = sends(TOKEN, 2_000)
        return [big, big, middle, slow, small, small, small, small, lambda: self._cut(daemon)]

    def collect(self, daemon: Twistd) -> None:
        """The files say it all, once what the crash left is finished beside the serving."""
        until = time.monotonic() + FINISHED
        while any(look(daemon.data / "ingest").strays()) and time.monotonic() < until:
            time.sleep(0.05)

    def verify(self, data: Path) -> Verdict:
        series: dict[str, list[Path]] = defaultdict(list)
        for path in sorted((data / "ingest").glob("*_parte_*.bin")):
            series[path.name.partition("_parte_")[0]].append(path)
        wrong = [str(one) for one in prove(look(data / "ingest"), threads=2).problems]
        landed: dict[bytes, list[Landed]] = defaultdict(list)
        for stem, parts in series.items():
            body = b"".join(part.read_bytes() for part in parts)
            landed[body[:TOKEN]].append(Landed(stem, len(body), len(parts)))
            if not (self._sent(body) or (self.powerless and self._cut_short(data, stem))):
                wrong.append(f"{stem}: its bytes are not those that anybody sent")
        return Verdict(
            len(self.promised),
            tuple(
                f"stream {token.hex()}: {promise}, there is {landed[token] or 'nothing'}"
                for token, promise in self.promised.items()
                if promise.size and not any(map(promise.kept_by, landed[token]))
            ),
            tuple(f"stream {t.hex()}: {found}" for t, found in landed.items() if len(found) > 1),
            tuple(wrong),
        )

    def _sent(self, body: bytes) -> bool:
        """Whether a stream began so; one that was cut may be short of its token even."""
        size = self.sent.get(body[:TOKEN])
        if size is None:
            return len(body) < TOKEN and any(token.startswith(body) for token in self.sent)
        return stream(body[:TOKEN], size).startswith(body)

    def _cut_short(self, data: Path, stem: str) -> bool:
        """Whether its manifest says that it may not be all: nobody had a receipt for it."""
        manifest = data / "ingest" / f"{stem}{SUFFIX}"
        return manifest.exists() and not Manifest.from_json(manifest.read_bytes()).complete

    def _send(self, daemon: Twistd, size: int, pause: float) -> None:
        token = hashlib.sha256(b"%d" % next(self._count)).digest()[:TOKEN]
        data = stream(token, size)
        self.sent[token] = size
        with daemon.connect(8080) as sock:
            for piece in pieces(data, 1000 if pause else 1 << 16):
                sock.sendall(piece)
                time.sleep(pause)
            sock.shutdown(socket.SHUT_WR)
            said = everything(sock).split()
        self._hear(said, token, data)

    def _hear(self, said: Sequence[bytes], token: bytes, data: bytes) -> None:
        """The words of its answer; nothing: it ended in the middle."""
        size = len(data)
        if said and said[0] == b"OK":
            right = [b"OK", b"%d" % size, hashlib.sha256(data).hexdigest().encode()]
            assert said[:3] == right, said
            assert int(said[3]) == -(-size // PART), said
            self.promised[token] = Promise(size, int(said[3]))
        elif said:
            assert said[0] == b"ERR", said
            self.promised[token] = Promise(int(said[-1].partition(b"=")[2]))
            raise ConnectionError(said)

    def _cut(self, daemon: Twistd) -> None:
        """A peer that dies: what it sent may be kept or not, in any length."""
        token = hashlib.sha256(b"%d" % next(self._count)).digest()[:TOKEN]
        size = random.randint(TOKEN, 2 * PART)
        self.sent[token] = size
        with daemon.connect(8080) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.sendall(stream(token, size)[: random.randint(1, size)])
        time.sleep(0.05)


@define(eq=False)
class IngestFin(Ingest):
    """Acknowledged: our FIN, of which nobody waits for the disk. It outlives us, not the power."""

    settings: Mapping[str, str] = field(
        factory=lambda: {"default": f"MAX_FILE_SIZE = {PART}\nRECEIPT = off\nWAIT_FOR_DISK = off"}
    )

    def _hear(self, said: Sequence[bytes], token: bytes, data: bytes) -> None:
        assert not said, said  # and no reset, which is an error
        self.promised[token] = Promise(len(data), -(-len(data) // PART))


def stream(token: bytes, size: int) -> bytes:
    """The bytes that `token` begins; they can be made again to compare."""
    return token + random.Random(token).randbytes(size - TOKEN)


def pieces(data: bytes, length: int) -> Iterator[bytes]:
    for start in range(0, len(data), length):
        yield data[start : start + length]
