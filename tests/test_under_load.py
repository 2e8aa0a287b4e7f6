"""A real twistd under load: many clients at once, and kill -9 while they send."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlencode

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from tests.process import PATIENCE, Twistd, everything

SEED = 20260711  # of what is random here, so that a failure can be seen again


def post(sock: socket.socket, **fields: str) -> tuple[int, str]:
    """One HTTP request on a connection that stays open: status and body."""
    body = urlencode(fields).encode()
    head = f"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body)
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(4096)
        if not chunk:
            raise ConnectionResetError("closed without an answer")
        data += chunk
    top, _, rest = data.partition(b"\r\n\r\n")
    length = int(top.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(rest) < length:
        rest += sock.recv(4096)
    return int(top.split(b" ")[1]), rest.decode()


class LoadCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.daemon = Twistd()
        self.addCleanup(self.daemon.discard)
        self.daemon.configure("MAX_FILE_SIZE = 10 KB", relay="RECEIVER_AFTER = 0.05")
        self.daemon.start()

    def ledger(self) -> tuple[Counter[str], Counter[str]]:
        """The messages in the table, and those in the log file."""
        database = sqlite3.connect(self.daemon.data / "roundhouse.db")
        rows = Counter(text for (text,) in database.execute("SELECT message FROM messages"))
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
        lines = (self.daemon.data / "logfile.log").read_text().splitlines()
        return rows, Counter(json.loads(line)["message"] for line in lines)


class ManyClientsTests(LoadCase):
    def test_500_simultaneous_clients_are_all_logged_once(self) -> None:
        count = 500
        ready = threading.Barrier(count)
        logged: list[str] = []
        wrong: list[object] = []

        def client(number: int) -> None:
            try:
                with self.daemon.connect(8000) as codes, self.daemon.connect(8001) as messages:
                    ready.wait(PATIENCE)
                    ident, text = f"client {number}", f"message {number}"
                    status, code = post(codes, client_uuid=ident)
                    fields = {"client_uuid": ident, "server_uuid": code}
                    if (status, post(messages, **fields, message=text)) == (200, (200, "")):
                        logged.append(text)
                    else:
                        wrong.append(status)
            except (OSError, threading.BrokenBarrierError) as error:
                wrong.append(error)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert self.daemon.stop() == 0
        rows, lines = self.ledger()
        assert rows == lines == Counter(logged)
        assert len(logged) == count


@define
class Traffic:
    """Clients that send and collect until told to stop, and what they know at the end."""

    daemon: Twistd
    over: threading.Event = field(factory=threading.Event)
    said: set[str] = field(factory=set)  # messages that were acknowledged
    tried: set[str] = field(factory=set)
    landed: set[str] = field(factory=set)  # the sha256 of streams with a receipt
    queued: set[bytes] = field(factory=set)  # files whose upload ended with our FIN
    sent: set[bytes] = field(factory=set)
    collected: list[tuple[float, bytes]] = field(factory=list)  # when, and the file

    def keeps(self, work: Callable[[int], None]) -> threading.Thread:
        def run() -> None:
            number = 0
            while not self.over.is_set():
                number += 1
                try:
                    work(number)
                except OSError:
                    time.sleep(0.01)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    def say(self, who: str) -> Callable[[int], None]:
        def once(number: int) -> None:
            with self.daemon.connect(8000) as codes, self.daemon.connect(8001) as messages:
                _, code = post(codes, client_uuid=who)
                for turn in range(50):
                    text = f"{who} {number} {turn}"
                    self.tried.add(text)
                    if post(messages, client_uuid=who, server_uuid=code, message=text)[0] == 200:
                        self.said.add(text)

        return once

    def stream(self, number: int) -> None:
        data = random.randbytes(random.choice((10, 5_000, 50_000)))
        receipt = self.daemon.ask(8080, data).split()
        assert not receipt or receipt[0] == b"OK", receipt
        if receipt:
            assert receipt[2].decode() == hashlib.sha256(data).hexdigest()
            self.landed.add(receipt[2].decode())

    def put(self, number: int) -> None:
        data = random.randbytes(100)
        self.sent.add(data)
        assert self.daemon.ask(5011, data) == b""
        self.queued.add(data)
        time.sleep(0.02)  # as fast as they are collected

    def collect(self, number: int) -> None:
        with self.daemon.connect(5011) as sock:
            sock.settimeout(0.3)
            data = everything(sock)
        self.collected.append((time.monotonic(), data))


class KillTests(LoadCase):
    def test_kill_9_while_clients_send_loses_nothing_that_was_acknowledged(self) -> None:
        random.seed(SEED)
        traffic = Traffic(self.daemon)
        works = (traffic.say("ana"), traffic.say("bob"), traffic.stream, traffic.stream)
        threads = [traffic.keeps(work) for work in (*works, traffic.put, traffic.collect)]
        kills = []
        try:
            for _ in range(2):
                time.sleep(random.uniform(0.2, 0.4))
                kills.append(time.monotonic())
                self.daemon.kill()
        finally:
            traffic.over.set()
            for thread in threads:
                thread.join(PATIENCE)
        late = self.rest_of_the_queue()
        assert self.daemon.stop(signal.SIGTERM) == 0

        rows, lines = self.ledger()
        assert traffic.said <= set(rows) <= traffic.tried
        assert max(rows.values()) == 1
        assert lines == rows

        series: dict[str, hashlib._Hash] = {}
        landed = sorted((self.daemon.data / "ingest").iterdir())
        assert {path.suffix for path in landed} == {".bin", ".json", ".sha256"}
        for path in landed:
            if path.suffix != ".bin":
                continue
            stem = path.name.partition("_parte_")[0]
            series.setdefault(stem, hashlib.sha256()).update(path.read_bytes())
        assert traffic.landed <= {digest.hexdigest() for digest in series.values()}

        got = [*traffic.collected, *late]
        assert traffic.queued <= {data for _, data in got} <= traffic.sent
        times: dict[bytes, list[float]] = {}
        for when, data in got:
            times.setdefault(data, []).append(when)
        for first, *again in times.values():
            # handed out twice only where the kill came before the removal was committed
            assert not again or any(-0.5 < kill - first < 0.5 for kill in kills)
        for done in (traffic.said, traffic.landed, traffic.queued, traffic.collected):
            assert len(done) > 5

    def rest_of_the_queue(self) -> list[tuple[float, bytes]]:
        rest = []
        while data := self.daemon.ask(5011):
            rest.append((time.monotonic(), data))
        return rest
