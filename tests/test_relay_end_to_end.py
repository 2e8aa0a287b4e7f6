"""relay on a real daemon: what plain programs on real connections get, and what is never lost."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from daemon.kernel import LINUX
from tests.process import PATIENCE, Twistd, everything

RELAY = 5011
SILENCE = 0.1  # seconds: RECEIVER_AFTER here
BIG = 20_000_000  # bytes, more than the buffers of two sockets hold
READER = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
print(len(sock.recv(1000)), flush=True)
sys.stdin.read()
"""


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Plain(Twistd):
    """A daemon on Twisted's own reactor."""

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        return super().spawn("--reactor=default", *options)


class DaemonCase(SynchronousTestCase):
    make: ClassVar[type[Twistd]] = Twistd

    def start(self, *settings: str, daemon: str = "") -> None:
        self.daemon = self.make()
        self.addCleanup(self.daemon.discard)
        lines = "\n".join([f"RECEIVER_AFTER = {SILENCE}", *settings])
        self.daemon.configure(relay=lines, daemon=daemon)
        self.daemon.start()

    def connect(self) -> socket.socket:
        sock = self.daemon.connect(RELAY)
        self.addCleanup(sock.close)
        return sock

    def put(self, data: bytes) -> None:
        """Send a file; it is kept when this returns."""
        assert self.daemon.ask(RELAY, data) == b""

    def get(self) -> bytes:
        """Receive one, however long that takes."""
        with self.daemon.connect(RELAY) as sock:
            return everything(sock)

    def get_now(self) -> bytes:
        """Receive one as `nc </dev/null` does; nothing if none is there."""
        return self.daemon.ask(RELAY)

    def handed(self, count: int) -> socket.socket:
        """A silent peer that was handed the first `count` bytes of a file."""
        sock = self.connect()
        assert len(sock.recv(count, socket.MSG_WAITALL)) == count
        return sock

    def rows(self, what: str = "ident, deliveries, parked") -> list[tuple[int, ...]]:
        path = self.daemon.data / "relay" / "index.db"
        with contextlib.closing(sqlite3.connect(path)) as index:
            return index.execute(f"SELECT {what} FROM parcels ORDER BY ident").fetchall()

    def comes(self, happened: Callable[[], object], what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < until, what
            time.sleep(0.01)

    def needs_counts(self) -> None:
        if not LINUX:
            raise SkipTest("only Linux tells what was acknowledged")

    def nothing_is_left(self) -> None:
        self.comes(lambda: not self.rows(), "files stay in the index")
        folder = self.daemon.data / "relay"
        self.comes(
            lambda: {path.name.partition("-")[0] for path in folder.iterdir()} == {"index.db"},
            "files stay in the folder",
        )


class QueueTests(DaemonCase):
    def test_files_come_out_in_the_order_in_which_they_were_complete(self) -> None:
        self.start()
        first, second = self.connect(), self.connect()
        first.sendall(b"begun first, ")
        second.sendall(b"begun second")
        second.shutdown(socket.SHUT_WR)
        assert everything(second) == b""
        first.sendall(b"whole second")
        first.shutdown(socket.SHUT_WR)
        assert everything(first) == b""
        assert self.get() == b"begun second"
        assert self.get() == b"begun first, whole second"
        self.nothing_is_left()

    def test_who_waits_gets_the_next_file_first_come_first_served(self) -> None:
        self.start()
        waiting = []
        for _ in range(3):
            waiting.append(self.connect())
            time.sleep(0.02)
        time.sleep(2 * SILENCE)
        for number in range(3):
            self.put(b"file %d" % number)
        for number, receiver in enumerate(waiting):
            assert everything(receiver) == b"file %d" % number
            receiver.close()
        self.nothing_is_left()

    def test_an_upload_that_ends_in_a_reset_leaves_nothing(self) -> None:
        self.start()
        sender = self.connect()
        sender.sendall(os.urandom(100_000))
        folder = self.daemon.data / "relay"
        self.comes(lambda: list(folder.glob("*.parcel")), "no upload was begun")
        reset(sender)
        self.daemon.says("reset (its upload was dropped)")
        self.put(b"whole")
        assert self.get() == b"whole"
        self.nothing_is_left()

    def test_the_queue_survives_kill_9_and_what_was_received_does_not_come_back(self) -> None:
        self.start()
        for number in range(3):
            self.put(b"file %d" % number)
        assert self.get() == b"file 0"
        self.comes(lambda: len(self.rows()) == 2, "it was not removed")
        sender = self.connect()
        sender.sendall(b"never acknowledged")
        self.handed(3)
        self.daemon.kill()
        with pytest.raises(ConnectionResetError):
            everything(sender)
        assert [self.get_now() for _ in range(3)] == [b"file 1", b"file 2", b""]
        self.nothing_is_left()


class HalfClosedTests(DaemonCase):
    def test_it_is_served_now_or_not_at_all(self) -> None:
        self.start()
        assert self.get_now() == b""
        self.put(b"for nc")
        assert self.get_now() == b"for nc"
        assert self.get_now() == b""
        self.nothing_is_left()

    def test_netcat_without_input_receives_and_with_input_sends(self) -> None:
        self.start()
        where = ["nc", "127.0.0.1", str(self.daemon.ports[RELAY])]
        try:
            usage = subprocess.run(["nc", "-h"], capture_output=True, timeout=PATIENCE).stderr
        except FileNotFoundError:
            raise SkipTest("no nc here") from None
        if b"OpenBSD" not in usage:
            raise SkipTest("another nc than that of OpenBSD")
        where[1:1] = ["-N"]
        subprocess.run(where, input=b"by nc\n", timeout=PATIENCE, check=True)
        got = subprocess.run(
            where, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=True
        )
        assert got.stdout == b"by nc\n"
        self.nothing_is_left()

    def test_a_file_whose_fin_had_come_is_there_however_busy_the_daemon_was(self) -> None:
        self.start()
        for size in (1, 10_000, 100_000):
            self.daemon.send(signal.SIGSTOP)
            try:
                with self.daemon.connect(RELAY) as sender:
                    sender.sendall(bytes(size))
                receiver = self.connect()
                receiver.shutdown(socket.SHUT_WR)
            finally:
                self.daemon.send(signal.SIGCONT)
            assert len(everything(receiver)) == size
        self.nothing_is_left()

    def test_it_waits_for_uploads_that_are_being_committed(self) -> None:
        self.start()
        folder = self.daemon.data / "relay"
        for size in (1, 300_000, 3_000_000):
            with self.daemon.connect(RELAY) as sender:
                sender.sendall(bytes(size))
                self.comes(partial(self.has, folder, size), "the upload was not read")
                sender.shutdown(socket.SHUT_WR)
                assert len(self.get_now()) == size
        self.nothing_is_left()

    def has(self, folder: Path, size: int) -> bool:
        """Whether `size` bytes of the one upload under way are laid down."""
        try:
            return [path.stat().st_size for path in folder.glob("*.parcel")] == [size]
        except FileNotFoundError:  # one that was received is just being removed
            return False


class SlowSenderTests(DaemonCase):
    def test_what_it_was_handed_goes_to_the_next_receiver_and_its_upload_is_kept(self) -> None:
        self.start()
        self.put(b"theirs")
        slow = self.handed(6)
        slow.sendall(b"mi")
        assert self.get() == b"theirs"
        slow.sendall(b"ne")
        slow.shutdown(socket.SHUT_WR)
        assert everything(slow) == b""
        assert self.get() == b"mine"
        self.nothing_is_left()
        assert "parked" not in self.daemon.log.replace("0 are parked", "")

    def test_a_big_file_that_it_does_not_read_is_taken_back_all_the_same(self) -> None:
        self.start()
        big = os.urandom(BIG)
        self.put(big)
        slow = self.handed(1)
        slow.sendall(b"mine")
        slow.shutdown(socket.SHUT_WR)
        assert self.get() == big
        assert self.get() == b"mine"
        beginning = everything(slow)  # what was on its way when it spoke cannot be unsent
        assert len(beginning) < BIG // 2
        assert big[1:].startswith(beginning)
        self.nothing_is_left()

    def test_its_reset_parks_the_upload(self) -> None:
        self.start()
        self.put(b"theirs")
        slow = self.handed(6)
        slow.sendall(b"min")
        assert self.get() == b"theirs"
        reset(slow)
        self.daemon.says("file 2 of queue (3 bytes) is parked: its upload may be cut")
        self.comes(lambda: self.rows() == [(2, 0, 1)], "it was not parked")
        assert self.get_now() == b""


class GiveBackTests(DaemonCase):
    def test_deliveries_that_break_off_are_capped_and_the_file_is_parked(self) -> None:
        self.needs_counts()
        self.start()
        self.put(b"bad" * 100)
        self.put(b"good")
        for _ in range(5):
            assert "is parked" not in self.daemon.log
            reset(self.handed(2))
        self.daemon.says("file 1 of queue (300 bytes) is parked: 5 deliveries of it broke off")
        assert self.get() == b"good"
        assert self.get_now() == b""
        assert self.rows() == [(1, 5, 1)]

    def test_probes_that_connect_and_close_cost_nothing(self) -> None:
        self.start("MAX_DELIVERIES = 1")
        self.put(b"x" * 1000)
        for number in range(20):
            probe = self.connect()
            time.sleep(SILENCE / 50 * (number % 5))
            if number % 2:
                reset(probe)
            else:
                probe.close()
        assert self.get() == b"x" * 1000
        self.nothing_is_left()

    def test_a_receiver_that_never_reads_gives_the_file_back_after_the_lease(self) -> None:
        self.start("LEASE = 1")
        big = os.urandom(BIG)
        self.put(big)
        began = time.monotonic()
        stuck = self.handed(1)
        assert self.get() == big
        assert time.monotonic() - began > 1
        self.daemon.says("stuck (file 1 was given back)")
        with pytest.raises(ConnectionResetError):
            everything(stuck)
        self.nothing_is_left()

    def test_a_receiver_that_stays_open_is_believed_after_the_lease(self) -> None:
        self.start("LEASE = 1")
        self.put(b"x")
        stays = self.handed(1)
        time.sleep(0.8)
        assert len(self.rows()) == 1
        self.nothing_is_left()
        assert everything(stays) == b""

    def test_a_receiver_that_is_killed_gives_the_file_back(self) -> None:
        self.needs_counts()
        self.start()
        big = os.urandom(BIG)
        self.put(big)
        with subprocess.Popen(
            [sys.executable, "-c", READER, str(self.daemon.ports[RELAY])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"1000\n"
            reader.kill()
        self.daemon.says("reset (file 1 was given back)")
        self.comes(lambda: self.rows() == [(1, 1, 0)], "it was not counted")
        assert self.get() == big
        self.nothing_is_left()

    def test_what_the_end_of_the_grace_cuts_is_counted_before_the_index_closes(self) -> None:
        self.needs_counts()
        self.start(daemon="GRACE = 1")
        self.put(os.urandom(BIG))
        self.handed(1)
        assert self.daemon.stop() == 0
        self.daemon.says("relay", "1 cut after")
        assert self.rows() == [(1, 1, 0)]
        assert "not stored" not in self.daemon.log


class PlainHalfClosedTests(HalfClosedTests):
    make = Plain


class LoadTests(DaemonCase):
    def test_a_slow_reader_of_20_megabytes_costs_little_memory(self) -> None:
        self.start()
        assert self.daemon.process is not None
        process = psutil.Process(self.daemon.process.pid)
        self.put(os.urandom(1_000_000))
        assert len(self.get()) == 1_000_000
        before = most = process.memory_info().rss
        data = os.urandom(BIG)
        self.put(data)
        most = max(most, process.memory_info().rss)
        digest = hashlib.sha256()
        receiver = self.connect()
        for turn in range(BIG):
            chunk = receiver.recv(1 << 16)
            if not chunk:
                break
            digest.update(chunk)
            time.sleep(0.001)
            if not turn % 20:
                most = max(most, process.memory_info().rss)
        receiver.close()
        assert digest.digest() == hashlib.sha256(data).digest()
        assert most - before < 6 << 20
        self.nothing_is_left()

    def test_20_senders_and_20_receivers_of_whom_some_break_off_lose_nothing(self) -> None:
        """Each file is acknowledged by exactly one receiver."""
        self.start("MAX_DELIVERIES = 1000")
        dice = random.Random(2)
        files = [dice.randbytes(dice.choice((1, 1000, 300_000))) + b"%d" % n for n in range(60)]
        got: list[bytes] = []
        broken: list[bytes] = []
        errors: list[BaseException] = []

        def send(mine: Iterable[bytes]) -> None:
            for data in mine:
                self.put(data)

        def receive(seed: int) -> None:
            dice = random.Random(seed)
            until = time.monotonic() + PATIENCE / 2
            while len(got) < len(files):
                assert time.monotonic() < until, "files are missing"
                with self.daemon.connect(RELAY) as sock:
                    if dice.random() < 0.3:
                        time.sleep(dice.random() * 3 * SILENCE)
                        sock.setblocking(False)
                        with contextlib.suppress(BlockingIOError):
                            broken.append(sock.recv(1 << 16))
                        reset(sock)
                        continue
                    if dice.random() < 0.5:  # otherwise it waits, but not for ever
                        sock.shutdown(socket.SHUT_WR)
                    sock.settimeout(0.5)
                    try:
                        data = b"".join(iter(lambda: sock.recv(1 << 16), b""))
                    except TimeoutError:
                        reset(sock)
                        continue
                    if data:
                        got.append(data)

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                errors.append(error)

        works: list[Callable[[], None]] = [
            *(lambda n=n: send(files[n::20]) for n in range(20)),
            *(lambda n=n: receive(n) for n in range(20)),
        ]
        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
        assert errors == []
        assert sorted(got) == sorted(files)
        assert broken
        self.nothing_is_left()
