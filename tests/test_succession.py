"""What one daemon leaves to the next: sockets that go on listening."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from twisted.internet import reactor
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon import binding, succession
from daemon.binding import Claim
from daemon.services import Listener
from daemon.settings import Listen
from daemon.succession import VARIABLE, Inheritance, Inherited
from protocols.connection import Connection, Live, LiveFactory
from protocols.spec import Port
from tests.process import HOME

LOCAL = "interface=127.0.0.1"


def left(sock: socket.socket, origin: str, mode: int | None = None) -> dict[str, str]:
    """An environment in which `sock` is left; who takes it closes it."""
    return {VARIABLE: json.dumps([(origin, sock.detach(), mode)])}


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.factory = LiveFactory(Live("s", Clock()), Connection)

    def listening(self) -> socket.socket:
        sock = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(sock.close)
        return sock

    def claim(self, endpoint: str, environ: dict[str, str]) -> Claim:
        listen = Listen("s", Port("PORT", 1), (endpoint,), "PORT", "config.cfg:1")
        [[claim]] = binding.claim([(listen, self.factory)], self.home, Inheritance.take(environ))
        self.addCleanup(claim.stopListening)
        return claim


class InheritanceTests(Case):
    def test_who_waits_in_the_backlog_is_there_for_the_successor(self) -> None:
        old = self.listening()
        number = old.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number), 5) as waiting:
            endpoint = f"tcp:{number}:{LOCAL}"
            claim = self.claim(endpoint, left(old, f"s {endpoint}"))
            assert claim.socket.getsockname()[1] == number
            assert not claim.socket.get_inheritable()
            claim.socket.setblocking(True)
            accepted, peer = claim.socket.accept()
            accepted.close()
            assert peer == waiting.getsockname()

    def test_no_child_sees_what_was_taken(self) -> None:
        environ = left(self.listening(), "s tcp:1") | {"HOME": "/"}
        Inheritance.take(environ).keep(())
        assert environ == {"HOME": "/"}

    def test_what_nobody_asks_for_is_closed_before_anything_is_bound(self) -> None:
        old = self.listening()
        number = old.getsockname()[1]
        claim = self.claim(f"tcp:{number}:{LOCAL}", left(old, "another tcp:1"))
        assert claim.socket.getsockname()[1] == number

    def test_what_is_no_listening_socket_is_left_out(self) -> None:
        reading, writing = os.pipe()
        with socket.socket() as idle:
            text = json.dumps([("a", reading, None), ("b", idle.fileno(), None), ("c", 9999, None)])
            found = Inheritance.take({VARIABLE: text})
        os.close(reading)
        os.close(writing)
        assert [found.pop(name) for name in "abc"] == [None] * 3
        for nonsense in ("", "{", "7", "[7]", '[["a"]]', '[["a", "b", null]]'):
            assert Inheritance.take({VARIABLE: nonsense}).pop("a") is None

    def test_a_unix_socket_keeps_its_path_and_is_removed_by_the_last(self) -> None:
        path = self.home / "s.sock"
        old = socket.socket(socket.AF_UNIX)
        old.bind(str(path))
        old.listen()
        claim = self.claim("unix:s.sock", left(old, "s unix:s.sock", 0o600))
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
        claim.stopListening()
        assert not path.exists()


class BequestTests(TestCase):
    """On the real reactor, for its ports must let go."""

    async def test_a_stopped_listener_leaves_sockets_that_go_on_listening(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        home = Path(folder.name)
        factory = LiveFactory(Live("s", reactor), Connection)
        endpoints = (f"tcp:0:{LOCAL}", "unix:s.sock:mode=600")
        listen = Listen("s", Port("PORT", 1), endpoints, "PORT", "config.cfg:1")
        [claims] = binding.claim([(listen, factory)], home)
        listener = Listener("s", claims, factory, reactor, 1.0)
        listener.startService()
        number = listener.addresses[0].port  # type: ignore[attr-defined]
        kept = listener.bequeath()
        await listener.stopService()
        assert [(one.origin, one.mode) for one in kept] == [
            (f"s tcp:0:{LOCAL}", None),
            ("s unix:s.sock:mode=600", 0o600),
        ]
        with socket.create_connection(("127.0.0.1", number), 5):
            pass
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(home / "s.sock"))
        for one in kept:
            os.close(one.descriptor)


class SuccessorTests(Case):
    def test_a_program_that_would_start_is_no_problem(self) -> None:
        (self.home / "config.cfg").write_text("[echo]\nPORT = 5001\n")
        assert succession.rehearse(HOME, self.home / "config.cfg") == ""

    def test_one_that_would_not_says_why(self) -> None:
        (self.home / "config.cfg").write_text("[echo]\nPORT = x\n")
        assert "[echo] PORT" in succession.rehearse(HOME, self.home / "config.cfg")
        with patch.object(sys, "executable", "/nowhere/python"):
            assert "/nowhere/python" in succession.rehearse(HOME, None)

    def test_it_is_run_as_this_one_was_with_the_sockets(self) -> None:
        sock = self.listening()
        with patch.object(os, "execve") as run:
            succession.become([Inherited("s tcp:1", sock.fileno(), None)], os.getcwd())
        program, words, environ = run.call_args.args
        assert [program, *words[1:]] == [sys.executable, *sys.orig_argv[1:]]
        assert sock.get_inheritable()
        assert VARIABLE not in os.environ
        found = Inheritance.take(dict(environ)).pop("s tcp:1")
        assert found == Inherited("s tcp:1", sock.fileno(), None)
