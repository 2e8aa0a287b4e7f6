"""The chat comparison: its peers are asked in their own wire, and no fault goes unnoticed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest

import pytest
from twisted.trial.unittest import SynchronousTestCase

from loadtest.compare import chat
from loadtest.compare.build import Missing, Workshop
from loadtest.compare.chat import CASES, COMPARISON, OURS, STUCK, load
from loadtest.compare.harness import Launch, Peer, Server, Wrong, measure
from loadtest.compare.table import LIMIT, Case, Sample

SMALL = Case("small", "", ("loop", "6", "3", "24"), "deliveries")

ROOM = """
import selectors, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
watch = selectors.DefaultSelector()
watch.register(listener, selectors.EVENT_READ)
members, lines = [], 0
while True:
    for key, _ in watch.select():
        if key.fileobj is listener:
            members.append(listener.accept()[0])
            watch.register(members[-1], selectors.EVENT_READ)
            continue
        data = key.fileobj.recv(65536)
        if not data:
            watch.unregister(key.fileobj)
            members.remove(key.fileobj)
            continue
        lines += data.count(b"\\n")
        for number, member in enumerate(members):
            member.sendall({what})
"""
SWAPPED = 'b"".join([x + b"\\n" for x in data[:-1].split(b"\\n")[::-1 if number == 2 else 1]])'


def server(what: str) -> Peer:
    script = ROOM.format(what=what)
    argv = [sys.executable, "-c", script]
    return Peer("python", "", "", lambda folder, port: Launch([*argv, str(port)]))


class LoadTests(SynchronousTestCase):
    def words(self, case: str, peer: str) -> str:
        one = Server(Peer(peer, "", "", lambda folder, port: Launch([])))
        one.launch = Launch([], {}, {"chat IRC_PORT": 6667, "echo PORT": 5000})
        (chosen,) = [found for found in CASES if found.name == case]
        return " ".join(load(chosen, one))

    def test_every_peer_is_spoken_to_in_its_wire(self) -> None:
        assert self.words("loop 100", LIMIT) == "line loop 100 4 256"
        assert self.words("loop 100", chat.NGIRCD) == "irc loop 100 4 256"
        assert self.words("lone", chat.MOSQUITTO) == "mqtt rate 100 4 1000"
        assert self.words("lone", chat.NATS) == "nats rate 100 1 1000"
        assert self.words("wires", OURS) == "line,irc:6667 loop 100 8 256"
        assert self.words("stuck", OURS) == "line stuck 10 4 256 0 100"
        assert self.words("stuck", STUCK) == "line stuck 10 4 256 20 100"
        assert self.words("flood", OURS) == "line flood 2000 5000"

    def test_every_case_has_peers_that_there_are(self) -> None:
        for case in CASES:
            assert {*case.peers} <= {*COMPARISON.peers}
            assert {bound.peer for bound in case.bounds} <= {*case.peers}


class GeneratorTests(SynchronousTestCase):
    """Real servers under the real generator."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.workshop = Workshop(Path(folder.name))
        try:
            self.generator = self.workshop.c("chat_load")
        except Missing as missing:
            raise SkipTest(str(missing)) from None
        if not sys.platform.startswith("linux"):
            raise SkipTest("the generator uses epoll")

    def measured(self, peer: Peer, case: Case = SMALL, seconds: float = 0.1) -> Sample:
        with Server(peer) as running:
            return measure(running, case, self.generator, seconds, load_of=load)

    def test_the_limit_serves_a_loop_a_rate_and_the_stuck(self) -> None:
        limit = chat.c(self.workshop)
        assert self.measured(limit).ops % 6 == 0
        rate = Case("rate", "", ("rate", "5", "2", "500"), "deliveries")
        assert self.measured(limit, rate, 0.2).ops == 500
        some = Case("some", "", ("stuck", "3", "1", "64", "0", "1"), "deliveries")
        assert 12_000 <= self.measured(limit, some).ops <= 12_000 + 3 * 64

    def test_a_plain_room_passes(self) -> None:
        assert self.measured(server("data")).ops > 0

    def test_what_is_lost_changed_added_swapped_or_said_twice_ends_the_comparison(self) -> None:
        for what, why in (
            ("data if number != 2 or lines < 20 else data.replace(b'w$', b'v$')", "not sent so"),
            ("data + (b'* hi\\n' if number == 2 else b'')", "between two lines"),
            (SWAPPED, "in another order"),
            ("data + data * (number == 2 and lines > 40)", "in another order|not sent so"),
        ):
            with pytest.raises(Wrong, match=why):
                self.measured(server(what))

    def test_redis_and_nats_are_measured_where_they_are_installed(self) -> None:
        self.installed(chat.redis, chat.nats)

    def test_so_is_mosquitto(self) -> None:
        self.installed(chat.mosquitto)

    def test_so_is_ngircd(self) -> None:
        self.installed(chat.ngircd)

    def test_so_is_stock_twisted(self) -> None:
        self.installed(chat.twisted)

    def installed(self, *peers: Callable[[Workshop], Peer]) -> None:
        path = os.environ.get("PATH", "") + ":/usr/sbin"
        workshop = Workshop(self.workshop.folder, {**os.environ, "PATH": path})
        for make in peers:
            try:
                peer = make(workshop)
            except Missing as missing:
                raise SkipTest(str(missing)) from None
            assert self.measured(peer, seconds=0.05).ops > 0, peer.name
            assert peer.version
