"""irssi and weechat, as people use them, on a real daemon: they join, talk and read history."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from tests.process import Twistd
from tests.screen import Screen, absent


class IrcClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.daemon = Twistd(tac="tac/chat.tac")
        self.addCleanup(self.daemon.discard)
        self.daemon.start()

    def converse(self, command: Sequence[str], *first: str) -> None:
        """zoe is on the plain wire, ana on an IRC client that connects, if need be by `first`."""
        program = command[0]
        if why := absent(program, "tmux"):
            raise SkipTest(why)
        with self.daemon.connect(60060) as zoe, zoe.makefile("rb") as heard:

            def says(text: str) -> None:
                zoe.sendall(f"{text}\n".encode())

            def hears() -> str:
                return heard.readline().decode().rstrip("\n")

            says(f"/nick zoe\nbefore {program}")
            assert hears() == "*** You are zoe"
            assert hears() == f"zoe: before {program}"
            ana = Screen(command)
            self.addCleanup(ana.close)
            ana.joins(*first)
            ana.shows("zoe", f"before {program}")
            says("hola, ñandú")
            ana.shows("zoe", "hola, ñandú")
            assert hears() == "zoe: hola, ñandú"
            ana.types("¿qué tal?")
            assert hears() == "ana: ¿qué tal?"
            ana.shows("ana", "¿qué tal?")
            ana.types("/me waves")
            assert hears() == "* ana waves"
            ana.types("/msg zoe psst")
            assert hears() == "*ana* psst"
            says("/me nods")
            ana.shows("zoe nods")
            assert hears() == "* zoe nods"
            says("/nick bea")
            ana.shows("zoe", "bea")
            ana.types("/quit")
            assert hears() == "*** You are bea"

    def test_irssi(self) -> None:
        port = self.daemon.ports[6667]
        hasty = "/set cmds_max_at_once 100"  # else it sends a line every two seconds
        self.converse(["irssi", "-!", "-n", "ana"], hasty, f"/connect 127.0.0.1 {port}")

    def test_weechat(self) -> None:
        port = self.daemon.ports[6667]
        hasty = "/set irc.server_default.anti_flood_prio_high 0"
        adding = f"/server add rh 127.0.0.1/{port} -nicks=ana"
        self.converse(["weechat", "-a", "-r", hasty, "-r", adding, "-r", "/connect rh"])
