"""The comparison of handshakes: what is counted, what is refused, what its load believes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from loadtest.compare import handshake
from loadtest.compare.build import Workshop, cache
from loadtest.compare.handshake import CASES, COMPARISON, Alone, check, load
from loadtest.compare.harness import Launch, Wrong
from loadtest.compare.table import LIMIT, PER_SECOND, Sample

SAMPLE = Sample(3, 1.0, 1.0, 1.0, 1.0)


class CheckTests(SynchronousTestCase):
    """Rows, lines and acknowledgements of one run's measured phase must be the same number."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.server: Any = SimpleNamespace(
            folder=self.folder, peer=SimpleNamespace(name="x"), port=1, launch=Launch([])
        )

    def kept(self, *texts: str, lines: int | None = None) -> None:
        with closing(sqlite3.connect(self.folder / "messages.db")) as table:
            table.execute("CREATE TABLE messages (seq INTEGER PRIMARY KEY, id TEXT, message TEXT)")
            table.executemany(
                "INSERT INTO messages (id, message) VALUES (?, ?)",
                [(f"load-{text.split()[0]}-0", text) for text in texts],
            )
            table.commit()
        records = [json.dumps({"seq": 1, "message": text}) + "\n" for text in texts]
        (self.folder / "logfile.log").write_text("".join(records[:lines]))

    TEXTS = ("11 m 0 1 x", "22 w 0 1 x", "22 m 0 1 x", "22 m 1 1 x", "22 m 0 2 x")

    def test_only_the_latest_run_and_its_measured_phase_count(self) -> None:
        self.kept(*self.TEXTS)
        check(CASES[0], self.server, SAMPLE)

    def test_a_row_or_a_line_too_few_or_too_many_ends_the_comparison(self) -> None:
        self.patch(handshake, "PATIENCE", 0.05)
        for texts, lines in (
            (self.TEXTS[:-1], None),
            ((*self.TEXTS, "22 m 9 9 x"), None),
            (self.TEXTS, -1),
        ):
            (self.folder / "messages.db").unlink(missing_ok=True)
            self.kept(*texts, lines=lines)
            with pytest.raises(Wrong, match="3 acknowledged"):
                check(CASES[0], self.server, SAMPLE)


class ComparisonTests(SynchronousTestCase):
    def test_the_limit_is_measured_and_the_goal_follows_from_it(self) -> None:
        self.patch(handshake, "ALONE", 0.05)
        alone = Alone()
        limit = alone.sample(CASES[0])
        assert limit.ops % handshake.BATCH == 0
        assert limit.ops > 0
        for ops, goal in ((1_000_000, 100_000), (100_000, 30_000)):
            alone.last = Sample(ops, 1.0, 1.0, 1.0, 1.0)
            assert PER_SECOND.of(alone.goal(CASES[0])) == goal

    def test_every_case_has_peers_that_are_there_and_bounds_on_them(self) -> None:
        for case in CASES:
            assert {*case.peers} <= {*COMPARISON.peers}
            for bound in case.bounds:
                assert bound.peer in case.peers
                assert bound.against is None or bound.against in case.peers
        assert next(iter(COMPARISON.peers)) == LIMIT

    def test_codes_come_from_the_port_for_codes_where_there_is_one(self) -> None:
        ours: Any = SimpleNamespace(port=8001, launch=Launch([], {}, {"handshake CODE_PORT": 8000}))
        other: Any = SimpleNamespace(port=8001, launch=Launch([]))
        assert load(CASES[0], ours)[-1] == "8000"
        assert load(CASES[0], other)[-1] == "8001"


def ok(body: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


class LoadTests(SynchronousTestCase):
    """handshake_load.c against a server that answers as it is told."""

    def setUp(self) -> None:
        if shutil.which("gcc") is None and shutil.which("cc") is None:
            raise SkipTest("a C compiler is needed (apt install gcc libc6-dev)")
        self.program = Workshop(cache(os.environ)).c("handshake_load")

    def run_it(self, mode: str, answer: Callable[[bytes, int], bytes]) -> dict[str, Any]:
        """What it tells; answer: of a message, and how many came before on its connection."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        port = listener.getsockname()[1]

        def serve(peer: socket.socket) -> None:
            heard, count, kept = b"", 0, mode == "keep"
            with peer, contextlib.suppress(ConnectionError):
                while data := peer.recv(1 << 16):
                    heard += data
                    while True:
                        line, ending, rest = heard.partition(b"\n")
                        if heard.startswith(b"POST"):
                            head, blank, body = heard.partition(b"\r\n\r\n")
                            size = int(head.lower().partition(b"content-length: ")[2].split()[0])
                            if not blank or len(body) < size:
                                break
                            heard, line = body[size:], body[:size]
                        elif kept and ending:
                            heard = rest
                            if line == b"KEEP":
                                continue
                        else:
                            break
                        if b"server_uuid" in line or (kept and not line.startswith(b"client")):
                            peer.sendall(answer(line, count))
                            count += 1
                        else:
                            peer.sendall(ok(b"c0de"))

        def accept() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                Thread(target=serve, args=(peer,), daemon=True).start()

        Thread(target=accept, daemon=True).start()
        self.addCleanup(listener.close)
        self.addCleanup(listener.shutdown, socket.SHUT_RDWR)
        done = subprocess.run(
            [self.program, str(port), "0.1", mode, "2", "1", str(port)],
            input="\n",
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        ready, _, told = done.stdout.partition("\n")
        return {"ready": ready == "ready", "err": done.stderr, **json.loads(told or "{}")}

    def test_right_answers_are_counted_in_every_mode(self) -> None:
        for mode in ("keep", "http", "once"):
            seen: list[bytes] = []

            def answer(line: bytes, count: int, mode: str = mode, seen: Any = seen) -> bytes:
                seen.append(line)
                return b"OK %d\n" % (count + 1) if mode == "keep" else ok()

            told = self.run_it(mode, answer)
            assert (told["ready"], told["wrong"], told["err"]) == (True, 0, "")
            measured = [line for line in seen if b" m " in line or b"+m+" in line]
            assert 0 < told["ops"] == len(measured) == len({*measured})

    def test_wrong_answers_end_the_load(self) -> None:
        for mode, wrong in (
            ("keep", b"ERR busy\n"),
            ("keep", b"OK 1\n"),  # again and again: it does not rise
            ("http", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"),
            ("http", b"HTTP/1.1 200 OK\r\n\r\n"),
            ("once", b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n"),
        ):

            def answer(line: bytes, count: int, wrong: bytes = wrong) -> bytes:
                return wrong

            told = self.run_it(mode, answer)
            assert not told["ready"]
            assert "handshake_load: connection" in told["err"]
