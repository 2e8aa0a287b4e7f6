"""A daemon whose disk is full, or that may open no more files: what is lost, and who notices."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

from tests.process import PATIENCE, Twistd, everything
from tests.test_guards import GuardCase

MIB = 1 << 20


class DiskTests(GuardCase):
    def setUp(self) -> None:
        super().setUp()
        if os.geteuid() or not shutil.which("mount"):
            raise SkipTest("a small disk of its own needs root, and mount")

    @contextlib.contextmanager
    def small_disk(self, size: int) -> Iterator[Path]:
        daemon = Twistd()  # for its folder
        self.addCleanup(daemon.discard)
        folder = daemon.home / "disk"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            raise SkipTest("this container may not mount a small disk")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    def test_a_full_disk_is_told_after_five_seconds_and_nobody_else_notices(self) -> None:
        with self.small_disk(8 * MIB) as folder:
            daemon = self.daemon(
                f"DATA_DIR = {folder / 'data'}", ingest="MIN_FREE = 0", relay="MIN_FREE = 0"
            ).start()
            try:
                self.fill(daemon, folder)
            finally:
                daemon.discard()

    def fill(self, daemon: Twistd, folder: Path) -> None:
        kept = os.urandom(MIB)
        assert daemon.ask(8080, kept).startswith(b"OK ")
        with self.peer(daemon, 8080) as stream:
            began = time.monotonic()
            stream.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                while True:
                    stream.send(bytes(MIB))
            while self.ready(daemon):
                assert time.monotonic() - began < 3
            self.answers_within(0.05, daemon, "echo")
            self.answers_within(0.05, daemon, "chat", usual=60060)
            assert time.monotonic() - began < 5
            stream.settimeout(PATIENCE)
            with contextlib.suppress(OSError):
                while True:  # it reads and drops now
                    stream.sendall(bytes(MIB))
            heard = everything(stream)
        assert heard.startswith(b"ERR disk full stored="), heard
        assert 4.5 < time.monotonic() - began < 15
        for path in (folder / "data" / "ingest").glob("*"):
            if path.stat().st_size > 4 * MIB:
                path.unlink()
        began = time.monotonic()
        while not self.ready(daemon):
            assert time.monotonic() - began < 5
            time.sleep(0.05)
        assert daemon.ask(8080, b"again").startswith(b"OK 5 ")
        assert time.monotonic() - began < 5
        found = [path.read_bytes() for path in (folder / "data" / "ingest").glob("*.bin")]
        assert kept in found
        assert daemon.stop() == 0

    def ready(self, daemon: Twistd) -> bool:
        answer = daemon.ask(8088, b"GET /readyz HTTP/1.0\r\n\r\n")
        return bool(json.loads(answer.partition(b"\r\n\r\n")[2])["ready"])


class DescriptorTests(GuardCase):
    def is_over(self, sock: socket.socket) -> bool:
        try:
            sock.setblocking(False)
            return sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True

    def test_without_descriptors_the_excess_is_refused_at_little_cost(self) -> None:
        daemon = self.daemon(daemon="CONNECTIONS = 100000").start()
        process = self.process(daemon)
        assert daemon.ask(5000, b"hola") == b"HOLA"
        old = self.peer(daemon, 5000)
        old.sendall(b"hola")
        assert old.recv(9) == b"HOLA"
        limits = process.rlimit(resource.RLIMIT_NOFILE)
        most = process.num_fds() + 20
        process.rlimit(resource.RLIMIT_NOFILE, (most, limits[1]))
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        crowd = [self.peer(daemon, 5000) for _ in range(200)]
        refused = 0
        while refused < 100 or time.monotonic() < began + 2:
            assert time.monotonic() < began + PATIENCE, refused
            refused = sum(map(self.is_over, crowd))
            time.sleep(0.1)
        used = sum(process.cpu_times()[:2]) - before
        assert used < 0.05 * (time.monotonic() - began)
        old.sendall(b"adios")
        assert old.recv(9) == b"ADIOS"
        lines = [line for line in daemon.log.splitlines() if "accept.starved" in line]
        assert len(lines) <= 2 + (time.monotonic() - began)
        assert lines or "reactor: uvloop" not in daemon.log  # Twisted's own does not tell us
        for sock in (old, *crowd):
            sock.close()
        until = time.monotonic() + 5
        while True:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", daemon.ports[8080]), 1) as sock,
            ):
                sock.sendall(b"again")
                sock.shutdown(socket.SHUT_WR)
                if everything(sock).startswith(b"OK 5 "):
                    break
            assert time.monotonic() < until
            time.sleep(0.05)
        assert daemon.stop() == 0
