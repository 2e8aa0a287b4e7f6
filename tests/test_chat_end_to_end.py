"""A room of a real daemon: slow readers, stuck readers, a restart; plain and over TLS."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable

import psutil
from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from tests.process import PATIENCE, Twistd, free_ports
from tests.tls import Authority

LINE = b"%06d " + b"x" * 240 + b"\n"
SMALL = 4096  # bytes of a receive buffer that is soon full


@define
class Rooms(Twistd):
    """A daemon whose chat listens twice, on TCP and with TLS."""

    authority: Authority = field(init=False)
    secure: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.authority = Authority(self.home)
        self.authority.server("keys.pem")
        (self.secure,) = free_ports(1)
        super().__attrs_post_init__()

    def configure(self, default: str = "", **sections: str) -> None:
        listen = (
            f"LISTEN = tcp:{self.ports[60060]}:interface=127.0.0.1\n"
            f"  ssl:{self.secure}:privateKey=keys.pem:interface=127.0.0.1"
        )
        super().configure(default, **({"chat": listen} | sections))

    def enter(self, tls: bool = False, buffer: int = 0) -> socket.socket:
        sock = socket.socket()
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", self.secure if tls else self.ports[60060]))
        if tls:
            context: ssl.SSLContext = self.authority.context()
            sock = context.wrap_socket(sock, server_hostname="localhost")
        return sock


def read(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        data = sock.recv(min(1 << 16, size - len(got)))
        if not data:
            break
        got += data
    return bytes(got)


def beside(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


class SlowTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.daemon = Rooms()
        self.addCleanup(self.daemon.discard)
        self.daemon.start()

    def enter(self, tls: bool = False, buffer: int = 0) -> socket.socket:
        sock = self.daemon.enter(tls, buffer)
        self.addCleanup(sock.close)
        return sock

    def test_a_reader_that_pauses_for_a_while_gets_every_byte(self) -> None:
        for tls in (False, True):
            lazy, speaker = self.enter(tls, SMALL), self.enter(tls)
            said = b""
            for number in range(0, 500, 50):
                some = b"".join(LINE % one for one in range(number, number + 50))
                speaker.sendall(some)
                assert read(speaker, len(some)) == some
                said += some
            assert read(lazy, len(said)) == said
            lazy.close()
            speaker.close()

    def test_stuck_readers_are_cut_and_cost_nobody_a_line_nor_much_memory(self) -> None:
        stuck = [self.enter(number % 2 == 1, SMALL) for number in range(6)]
        healthy = [self.enter(), self.enter(tls=True)]
        said = b"".join(LINE % number for number in range(24_000))
        heard: list[bytes] = []
        assert self.daemon.process is not None
        process = psutil.Process(self.daemon.process.pid)
        before = process.memory_info().rss
        readers = [beside(lambda s=sock: heard.append(read(s, len(said)))) for sock in healthy]  # type: ignore[misc]
        speaker = self.enter()
        own = beside(lambda: heard.append(read(speaker, len(said))))
        speaker.sendall(said)
        most = 0
        while any(thread.is_alive() for thread in (*readers, own)):
            most = max(most, process.memory_info().rss - before)
            time.sleep(0.02)
        assert heard == [said] * 3
        assert most < 10_000_000
        self.daemon.says("chat 127.0.0.1:", "slow")
        assert len(stuck) == 6

    def test_a_flood_of_tiny_lines_is_heard_by_all_and_leaves_the_others_their_turn(self) -> None:
        quiet = [self.enter() for _ in range(20)]
        flooder = self.enter()
        said = b"x\n" * 300_000
        heard: list[bytes] = []
        readers = [
            beside(lambda s=sock: heard.append(read(s, len(said))))  # type: ignore[misc]
            for sock in (*quiet, flooder)
        ]
        writer = beside(lambda: flooder.sendall(said))
        with self.daemon.connect(5000) as echo:
            waits = []
            while any(thread.is_alive() for thread in readers):
                asked = time.monotonic()
                echo.sendall(b"p\n")
                assert echo.recv(10) == b"P\n"
                waits.append(time.monotonic() - asked)
        writer.join()
        assert heard == [said] * 21
        assert sorted(waits)[len(waits) // 2] < 0.1


class HistoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.daemon = Rooms()
        self.addCleanup(self.daemon.discard)

    def recall(self) -> bytes:
        return self.daemon.ask(60060, b"/history 5\n")

    def test_what_was_said_is_there_after_a_restart(self) -> None:
        self.daemon.start()
        assert self.daemon.ask(60060, b"one\ntwo\n") == b"one\ntwo\n"
        assert self.daemon.stop() == 0
        self.daemon.start()
        told = self.recall()
        assert told.index(b"one") < told.index(b"two")

    def test_a_moment_later_it_survives_a_kill_too(self) -> None:
        self.daemon.start()
        self.daemon.ask(60060, b"one\n")
        time.sleep(1.3)
        self.daemon.kill()
        assert self.recall().count(b"one") == 1

    def test_without_a_history_nothing_is_kept(self) -> None:
        listen = f"LISTEN = tcp:{self.daemon.ports[60060]}:interface=127.0.0.1"
        self.daemon.configure(chat=f"{listen}\nHISTORY = 0")
        self.daemon.start()
        self.daemon.ask(60060, b"one\n")
        assert b"one" not in self.recall()
        assert self.daemon.stop() == 0
        assert not (self.daemon.data / "chat.db").exists()
