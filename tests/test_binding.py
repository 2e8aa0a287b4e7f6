"""Ports claimed at load: all or none, named with who has them, served after the fork."""

from __future__ import annotations

import errno
import os
import platform
import re
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import SkipTest

import psutil
import pytest
from twisted.internet import endpoints
from twisted.internet.address import UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon import binding
from daemon.binding import Claim, PortsTaken
from daemon.settings import Listen
from protocols.connection import Connection, Live, LiveFactory
from protocols.spec import Port

LOCAL = "interface=127.0.0.1"


def number(claim: Claim) -> int:
    port: int = claim.socket.getsockname()[1]
    return port


class BindingCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.factory = LiveFactory(Live("s", Clock()), Connection)

    def claim(self, *listens: Sequence[str], **about: Any) -> list[list[Claim]]:
        port = Port("PORT", 1, **about)
        wanted = [
            Listen(f"s{n}", port, tuple(each), "PORT", f"config.cfg:{n}")
            for n, each in enumerate(listens)
        ]
        taken = binding.claim([(one, self.factory) for one in wanted], self.home)
        for claims in taken:
            for one in claims:
                self.addCleanup(one.stopListening)
        return taken

    def problems(self, *listens: Sequence[str]) -> tuple[str, ...]:
        with pytest.raises(PortsTaken) as caught:
            self.claim(*listens)
        return caught.value.problems

    def listening(self) -> int:
        sock = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(sock.close)
        port: int = sock.getsockname()[1]
        return port


class SecondaryTests(BindingCase):
    def listen(self, number: int, named: bool) -> Listen:
        port = Port("HTTP_PORT", number, secondary=True)
        return Listen("s", port, (f"tcp:{number}:{LOCAL}",), "HTTP_PORT", "config.cfg", named)

    def test_a_taken_secondary_port_that_nobody_named_is_gone_without(self) -> None:
        taken = self.listening()
        with capturedLogs() as events:
            assert binding.claim([(self.listen(taken, False), self.factory)], self.home) == [[]]
        (event,) = events
        said = formatEvent(event)
        assert re.fullmatch(rf"going on without it: s: tcp:{taken}.* is taken by .*", said)

    def test_one_that_is_named_stops_the_start(self) -> None:
        taken = self.listening()
        with pytest.raises(PortsTaken):
            binding.claim([(self.listen(taken, True), self.factory)], self.home)

    def test_a_free_one_is_served(self) -> None:
        ((claim,),) = binding.claim([(self.listen(0, False), self.factory)], self.home)
        claim.stopListening()


class ClaimTests(BindingCase):
    def test_who_connects_before_the_start_waits_in_the_backlog(self) -> None:
        ((claim,),) = self.claim([f"tcp:0:{LOCAL}"])
        with socket.create_connection(claim.socket.getsockname(), 5) as peer:
            claim.socket.setblocking(True)
            accepted, address = claim.socket.accept()
            accepted.close()
            assert address == peer.getsockname()

    def test_accepted_sockets_inherit_what_finds_dead_peers(self) -> None:
        ((claim,),) = self.claim([f"tcp:0:{LOCAL}"], resets=True, unsent=65536, unread=32768)
        with socket.create_connection(claim.socket.getsockname(), 5):
            claim.socket.setblocking(True)
            accepted, _ = claim.socket.accept()
        with accepted:
            held = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            assert held in (65536, 2 * 65536)  # Linux counts its own bookkeeping, too
            held = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
            assert held in (32768, 2 * 32768)
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            linger = accepted.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            assert linger == binding.RESET_ON_CLOSE
            if sys.platform == "linux":
                timeout = accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
                assert timeout == binding.USER_TIMEOUT

    def test_a_peer_that_lives_and_takes_nothing_is_cut_by_the_kernel(self) -> None:
        version = re.match(r"(\d+)\.(\d+)", platform.release())
        if sys.platform != "linux" or not version or (*map(int, version.groups()),) < (5, 11):
            raise SkipTest("Linux counts a closed window since 5.11")
        assert binding.USER_TIMEOUT == 60_000
        self.patch(binding, "USER_TIMEOUT", 1000)
        ((claim,),) = self.claim([f"tcp:0:{LOCAL}"])
        with socket.create_connection(claim.socket.getsockname(), 5):
            claim.socket.setblocking(True)
            accepted, _ = claim.socket.accept()
            with accepted:
                accepted.settimeout(5)
                with pytest.raises(TimeoutError) as caught:
                    accepted.sendall(bytes(16 << 20))
        assert caught.value.errno == errno.ETIMEDOUT  # and not our own five seconds

    def test_several_endpoints_serve_one_port(self) -> None:
        ((one, two),) = self.claim([f"tcp:0:{LOCAL}", "unix:here.sock:mode=600"])
        assert number(one) != 0
        assert two.getHost() == UNIXAddress(os.fsencode(self.home / "here.sock"))
        assert stat.S_IMODE((self.home / "here.sock").stat().st_mode) == 0o600
        assert binding.names([one]) == f"127.0.0.1:{number(one)}"

    def test_a_unix_socket_is_given_to_whom_root_becomes_and_no_link_in_its_place(self) -> None:
        given: list[object] = []
        self.patch(os, "chown", lambda *args, **how: given.append((args, how)))
        (claims,) = self.claim([f"tcp:0:{LOCAL}", "unix:here.sock"])
        for one in claims:
            one.give((4711, 4712))
        path = str(self.home / "here.sock")
        assert given == [((path, 4711, 4712), {"follow_symlinks": False})]

    def test_ipv6_is_claimed_beside_ipv4_on_the_same_port(self) -> None:
        if not socket.has_ipv6:
            raise SkipTest("no IPv6 here")
        ((four,),) = self.claim([f"tcp:0:{LOCAL}"])
        ((six,),) = self.claim([rf"tcp6:{number(four)}:interface=\:\:1"])
        assert binding.names([six]) == f"[::1]:{number(four)}"
        assert not binding.beyond_loopback(six.getHost())

    def test_an_address_that_others_reach_is_known_as_one(self) -> None:
        ((claim,),) = self.claim(["tcp:0:interface=0.0.0.0"])
        claim.startListening()
        assert binding.beyond_loopback(claim.getHost())

    def test_a_unix_socket_that_nobody_listens_on_is_replaced_and_removed_at_the_end(self) -> None:
        path = self.home / "old.sock"
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(path))
        ((claim,),) = self.claim(["unix:old.sock"])
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
        claim.stopListening()
        assert not path.exists()

    def test_a_socket_from_systemd_is_taken_as_it_is(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as passed:
            binder = binding.Binder(self.home)
            endpoint = endpoints.AdoptedStreamServerEndpoint(
                binder, os.dup(passed.fileno()), socket.AF_INET
            )
            claim = self.successResultOf(endpoint.listen(self.factory))
            self.addCleanup(claim.stopListening)
            assert number(claim) == passed.getsockname()[1]


class RefusalTests(BindingCase):
    def test_all_taken_ports_are_named_at_once_with_their_holder_and_the_remedy(self) -> None:
        one, two = self.listening(), self.listening()
        me = f"{psutil.Process().name()} (pid {os.getpid()})"
        assert self.problems(
            [f"tcp:{one}:{LOCAL}"], [f"tcp:0:{LOCAL}"], [f"tcp:{two}:{LOCAL}"]
        ) == (
            f"s0: tcp:{one}:{LOCAL} is taken by {me} "
            "(config.cfg:0: [s0] PORT moves it, ENABLED = no switches it off)",
            f"s2: tcp:{two}:{LOCAL} is taken by {me} "
            "(config.cfg:2: [s2] PORT moves it, ENABLED = no switches it off)",
        )

    def test_nothing_is_held_after_a_refusal(self) -> None:
        free = self.listening()
        spare = socket.create_server(("127.0.0.1", 0))
        port = spare.getsockname()[1]
        spare.close()
        self.problems([f"tcp:{port}:{LOCAL}"], [f"tcp:{free}:{LOCAL}"])
        socket.create_server(("127.0.0.1", port)).close()

    def test_an_outgoing_connection_on_the_port_is_waited_for_and_then_explained(self) -> None:
        self.patch(binding, "RETRY", 0.1)
        self.patch(binding, "RETRY_EVERY", 0.02)
        self.patch(binding, "ephemeral", lambda port: True)
        target = self.listening()
        with socket.create_connection(("127.0.0.1", target), 5) as outgoing:
            port = outgoing.getsockname()[1]
            (problem,) = self.problems([f"tcp:{port}:{LOCAL}"])
        assert "is held by an outgoing connection of " in problem
        assert f"net.ipv4.ip_local_reserved_ports={port}" in problem

    def test_a_port_that_becomes_free_while_we_wait_is_taken(self) -> None:
        self.patch(binding, "RETRY_EVERY", 0.02)
        self.patch(binding, "ephemeral", lambda port: True)
        target = self.listening()
        # bound, so that it shares its port with no other connection of this machine
        outgoing = socket.create_connection(("127.0.0.1", target), 5, ("127.0.0.1", 0))
        port = outgoing.getsockname()[1]

        def leaves(port: int, among: object) -> binding.Holder:
            if outgoing.fileno() >= 0:  # RST, so that no TIME_WAIT stays behind
                outgoing.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, binding.RESET_ON_CLOSE)
                outgoing.close()
            return binding.Holder("", False)

        self.patch(binding, "holder", leaves)
        ((claim,),) = self.claim([f"tcp:{port}:{LOCAL}"])
        assert number(claim) == port

    def test_other_troubles_are_said_in_plain_words(self) -> None:
        (self.home / "file").write_text("precious")
        for endpoint, wanted in {
            "tcp:0:interface=192.0.2.1": "is no address of this machine: see SERVER_IP",
            "unix:file": "is in the way: something is there already, or still listens on it",
            "unix:no/such/folder": "failed: No such file or directory",
            "tcp:http": "is not an endpoint that can be used here: ",
            "systemd:domain=INET:index=0": "is not an endpoint that can be used here: ",
        }.items():
            (problem,) = self.problems([endpoint])
            assert problem.startswith(f"s0: {endpoint} {wanted}"), problem
        assert (self.home / "file").read_text() == "precious"

    def test_a_port_that_needs_root_is_said_to(self) -> None:
        listen = Listen("s", Port("PORT", 1), ("tcp:80",), "PORT", "config.cfg:1")
        for endpoint, wanted in {
            "tcp:80": "ports below 1024 need root",
            "unix:/x": "is not allowed here",
        }.items():
            assert wanted in binding._explain(listen, endpoint, PermissionError(13, "denied"), ())

    def test_on_a_mac_port_5000_is_airplays(self) -> None:
        self.patch(sys, "platform", "darwin")
        listen = Listen("echo", Port("PORT", 5000), ("tcp:5000",), "PORT", "config.cfg:1")
        taken = OSError(98, "taken")
        assert "is taken by AirPlay" in binding._explain(listen, "tcp:5000", taken, ())

    def test_a_holder_that_cannot_be_known_is_left_out(self) -> None:
        port = self.listening()

        def denied(kind: str) -> Any:
            raise psutil.AccessDenied

        found = psutil.net_connections
        self.patch(psutil, "net_connections", denied)
        assert binding.holder(port, binding.connections()) is binding.Holder.NOBODY

        def strangers(kind: str) -> Any:
            return [c._replace(pid=None) for c in found(kind)]

        self.patch(psutil, "net_connections", strangers)
        assert binding.holder(port, binding.connections()) == binding.Holder(
            "a process of another user", True
        )

        def gone(kind: str) -> Any:
            return [c._replace(pid=2**22 + 1) for c in found(kind)]

        self.patch(psutil, "net_connections", gone)
        assert binding.holder(port, binding.connections()) is binding.Holder.NOBODY

    def test_without_procfs_no_port_counts_as_ephemeral(self) -> None:
        def missing(self: Path) -> str:
            raise FileNotFoundError

        self.patch(Path, "read_text", missing)
        assert not binding.ephemeral(60060)

    def test_only_listening_sockets_can_be_claimed(self) -> None:
        with pytest.raises(NotImplementedError):
            binding.Binder(self.home).adoptStreamConnection(1, 2, self.factory)


class ServingTests(TestCase):
    async def test_a_unix_claim_keeps_its_mode_while_served_and_goes_with_the_port(self) -> None:
        from twisted.internet import reactor

        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "s.sock"
        listen = Listen("s", Port("PORT", 1), (f"unix:{path}:mode=600",), "LISTEN", "config.cfg:1")
        connected: Deferred[None] = Deferred()

        class Greets(Connection):
            def opened(self) -> None:
                self.close("left")
                connected.callback(None)

        factory = LiveFactory(Live("s", Clock()), Greets)
        ((claim,),) = binding.claim([(listen, factory)], Path(folder.name))
        port = claim.serve(reactor)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            await connected
        await port.stopListening()
        assert not path.exists()

    async def test_a_unix_socket_of_systemd_stays_when_we_stop(self) -> None:
        from twisted.internet import reactor

        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name) / "s.sock"
        with socket.socket(socket.AF_UNIX) as passed:
            passed.bind(str(path))
            passed.listen()
            binder = binding.Binder(Path(folder.name))
            claim = binder.adoptStreamPort(
                passed.fileno(), socket.AF_UNIX, Factory.forProtocol(Protocol)
            )
            await claim.serve(reactor).stopListening()
            assert path.exists()
