"""What the kernel tells of a peer: acknowledged, read, dead; on real sockets of this machine."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import frozen
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from daemon.kernel import LINUX, Meter, Sockets

PATIENCE = 5.0  # seconds for what a kernel does at once
BIG = 20_000_000  # bytes, more than the buffers of two sockets hold
SENDER = """
import os, socket, struct, sys
sys.path.insert(0, sys.argv[2])
from daemon.kernel import Sockets
from tests.test_kernel import Beneath
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(b"some")
for on in sys.argv[3:]:
    Sockets().reset_on_close(Beneath(sock), on == "on")
os.kill(os.getpid(), 9)
"""


@frozen
class Beneath:
    """As much of a transport as is needed."""

    socket: Any

    def getHandle(self) -> Any:
        return self.socket


class KernelCase(SynchronousTestCase):
    def open(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(PATIENCE)
        self.addCleanup(sock.close)
        return sock

    def tcp(self) -> tuple[socket.socket, socket.socket]:
        """Our side, accepted as a server does, and the peer's."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            peer = self.open(socket.create_connection(server.getsockname()))
            return self.open(server.accept()[0]), peer

    def unix(self) -> tuple[socket.socket, socket.socket]:
        ours, peers = socket.socketpair(socket.AF_UNIX)
        return self.open(ours), self.open(peers)

    def meter(self, sock: socket.socket, tells: bool = LINUX) -> Meter:
        meter = Meter(sock.dup(), tells)
        self.addCleanup(meter.close)
        return meter

    def comes(self, happened: Callable[[], object]) -> None:
        until = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < until, "it did not happen"
            time.sleep(0.005)

    def fill(self, sock: socket.socket) -> int:
        """Write until nothing more fits; the bytes that did."""
        sock.setblocking(False)
        sent = 0
        try:
            while sent < BIG:
                sent += sock.send(bytes(1 << 16))
        except BlockingIOError:
            return sent
        raise AssertionError("the buffers have no end")

    def has(self, meter: Meter, acknowledged: int) -> bool:
        return meter.acknowledged() == acknowledged

    def reset(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()


class LinuxCase(KernelCase):
    def setUp(self) -> None:
        if not LINUX:
            raise SkipTest("only Linux tells")


class TcpTests(LinuxCase):
    def test_what_went_before_it_is_not_counted(self) -> None:
        ours, _ = self.tcp()
        ours.sendall(b"a handshake")
        meter = self.meter(ours)
        assert meter.acknowledged() == 0
        ours.sendall(b"123")
        self.comes(lambda: self.has(meter, 3))

    def test_all_of_it_is_acknowledged_and_our_fin_counts_as_a_byte(self) -> None:
        ours, _ = self.tcp()
        meter = self.meter(ours)
        assert (meter.acknowledged(), meter.outstanding()) == (0, 0)
        ours.sendall(b"12345")
        self.comes(lambda: (meter.acknowledged(), meter.outstanding()) == (5, 0))
        ours.shutdown(socket.SHUT_WR)
        self.comes(lambda: (meter.acknowledged(), meter.outstanding()) == (6, 0))
        assert not meter.dead()

    def test_a_peer_that_does_not_read_leaves_bytes_outstanding(self) -> None:
        ours, peer = self.tcp()
        meter = self.meter(ours)
        sent = self.fill(ours)
        acked = meter.acknowledged()
        assert acked is not None
        assert 0 < acked < sent
        assert meter.outstanding() > 0
        left = sent
        while left:
            left -= len(peer.recv(1 << 20))
        self.comes(lambda: (meter.acknowledged(), meter.outstanding()) == (sent, 0))

    def test_a_reset_is_seen_and_what_was_acknowledged_before_is_still_known(self) -> None:
        ours, peer = self.tcp()
        meter = self.meter(ours)
        ours.sendall(b"12345")
        self.comes(lambda: meter.acknowledged() == 5)
        assert not meter.dead()
        self.reset(peer)
        self.comes(meter.dead)
        assert meter.acknowledged() == 5

    def test_it_tells_when_our_own_side_is_closed_already(self) -> None:
        ours, peer = self.tcp()
        meter = self.meter(ours)
        ours.sendall(b"12345")
        assert peer.recv(5, socket.MSG_WAITALL) == b"12345"
        self.reset(peer)
        self.comes(meter.dead)
        ours.close()
        assert meter.acknowledged() == 5

    def test_a_peer_that_closed_before_anything_was_sent_acknowledged_nothing(self) -> None:
        ours, peer = self.tcp()
        meter = self.meter(ours)
        peer.close()
        assert ours.recv(1) == b""
        assert not meter.dead()
        ours.sendall(b"12345")
        self.comes(meter.dead)
        assert meter.acknowledged() == 0

    def test_a_half_closed_peer_is_not_dead_until_it_resets(self) -> None:
        ours, peer = self.tcp()
        meter = self.meter(ours)
        peer.shutdown(socket.SHUT_WR)
        assert ours.recv(1) == b""
        sent = self.fill(ours)
        assert not meter.dead()
        peer.close()  # with bytes that it did not read
        self.comes(meter.dead)
        acked = meter.acknowledged()
        assert acked is not None
        assert 0 < acked < sent

    def test_a_peer_process_that_is_killed_with_bytes_unread_is_dead(self) -> None:
        for half_closed in (False, True):
            with socket.create_server(("127.0.0.1", 0)) as server:
                code = (
                    "import socket, time\n"
                    f"sock = socket.create_connection({server.getsockname()!r})\n"
                    f"if {half_closed}: sock.shutdown(socket.SHUT_WR)\n"
                    "time.sleep(60)"
                )
                with subprocess.Popen([sys.executable, "-c", code]) as process:
                    ours = self.open(server.accept()[0])
                    if half_closed:
                        assert ours.recv(1) == b""
                    meter = self.meter(ours)
                    ours.sendall(b"12345")
                    self.comes(partial(self.has, meter, 5))
                    assert not meter.dead()
                    process.kill()
            self.comes(meter.dead)
            assert meter.acknowledged() == 5


class UnixTests(LinuxCase):
    def test_what_is_outstanding_is_what_the_peer_has_not_read(self) -> None:
        ours, peer = self.unix()
        meter = self.meter(ours)
        assert meter.outstanding() == 0
        ours.sendall(b"12345")
        assert meter.outstanding() >= 5
        assert peer.recv(10) == b"12345"
        assert meter.outstanding() == 0
        assert meter.acknowledged() is None

    def test_a_peer_that_leaves_with_bytes_unread_is_dead_and_one_that_read_all_is_not(
        self,
    ) -> None:
        for reads in (True, False):
            ours, peer = self.unix()
            meter = self.meter(ours)
            peer.shutdown(socket.SHUT_WR)
            ours.sendall(b"12345")
            ours.shutdown(socket.SHUT_WR)
            if reads:
                assert peer.recv(10) == b"12345"
            peer.close()
            assert meter.dead() is not reads


class SilentTests(KernelCase):
    def test_where_the_system_does_not_tell_nothing_is_claimed(self) -> None:
        ours, peer = self.tcp()
        meter = self.meter(ours, tells=False)
        self.fill(ours)
        assert meter.acknowledged() is None
        assert meter.outstanding() == 0
        assert not meter.dead()
        self.reset(peer)
        self.comes(meter.dead)


class SocketsTests(KernelCase):
    def test_a_gauge_has_a_descriptor_of_its_own(self) -> None:
        ours, peer = self.tcp()
        gauge = Sockets().gauge(Beneath(ours))  # type: ignore[arg-type]
        ours.close()
        peer.settimeout(0.05)
        with pytest.raises(TimeoutError):
            peer.recv(1)
        gauge.close()
        peer.settimeout(PATIENCE)
        assert peer.recv(1) == b""

    def test_a_gauge_leaves_the_socket_of_the_loop_as_it_is(self) -> None:
        ours, _ = self.tcp()
        ours.setblocking(False)
        gauge = Sockets().gauge(Beneath(ours))  # type: ignore[arg-type]
        self.addCleanup(gauge.close)
        with pytest.raises(BlockingIOError):
            ours.recv(1)

    def test_without_a_descriptor_there_is_no_gauge(self) -> None:
        ours, _ = self.tcp()
        ours.close()
        with pytest.raises(OSError, match="descriptor"):
            Sockets().gauge(Beneath(ours))  # type: ignore[arg-type]

    def test_closing_resets_only_while_it_is_asked_to(self) -> None:
        for asked, is_reset in (((), False), ((True,), True), ((True, False), False)):
            ours, peer = self.tcp()
            ours.sendall(b"some")
            for on in asked:
                Sockets().reset_on_close(Beneath(ours), on)  # type: ignore[arg-type]
            assert peer.recv(4, socket.MSG_WAITALL) == b"some"
            ours.close()
            self.ends(peer, is_reset)

    def test_a_process_that_is_killed_resets_only_while_it_is_asked_to(self) -> None:
        home = str(Path(__file__).resolve().parents[1])
        for asked, is_reset in (((), False), (("on",), True), (("on", "off"), False)):
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = str(server.getsockname()[1])
                with subprocess.Popen([sys.executable, "-c", SENDER, port, home, *asked]):
                    peer = self.open(server.accept()[0])
                    assert peer.recv(4, socket.MSG_WAITALL) == b"some"
                self.ends(peer, is_reset)

    def test_a_peer_that_is_gone_need_not_be_told(self) -> None:
        ours, peer = self.tcp()
        self.reset(peer)
        ours.close()
        Sockets().reset_on_close(Beneath(ours), True)  # type: ignore[arg-type]

    def test_sockets_with_a_name_are_measured_too(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = str(Path(folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            server.listen()
            peer = self.open(socket.socket(socket.AF_UNIX))
            peer.connect(path)
            ours = self.open(server.accept()[0])
        gauge = Sockets().gauge(Beneath(ours))  # type: ignore[arg-type]
        self.addCleanup(gauge.close)
        assert gauge.acknowledged() is None
        assert not gauge.dead()
        assert gauge.outstanding() == 0

    def ends(self, peer: socket.socket, is_reset: bool) -> None:
        readable, _, _ = select.select([peer], [], [], PATIENCE)
        assert readable
        if is_reset:
            with pytest.raises(ConnectionResetError):
                peer.recv(1)
        else:
            assert peer.recv(1) == b""
