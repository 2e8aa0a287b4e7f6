"""chat on a terminal: lines above, the input line below; and what the client makes of lines."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from io import StringIO
from unittest import SkipTest
from unittest.mock import Mock, patch

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output
from twisted.trial.unittest import SynchronousTestCase

from client import chat_lines, chat_screen
from client.chat_lines import COMMANDS, Known, colour_of, dated, painted
from client.chat_screen import MOST, Screen
from client.net import Address, dial
from protocols.chat import HELP
from tests.screen import Screen as Terminal
from tests.screen import absent
from tests.test_client import HOME, PATIENCE, ClientCase, Server, everything, speaking

NOON = datetime(2026, 11, 21, 12, 0)
HERE = timezone(timedelta(hours=2))
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|\][^\x07]*\x07|[=>])")


def text(fragments: chat_lines.Fragments) -> str:
    return "".join([part for _, part in fragments])


class LineTests(SynchronousTestCase):
    def test_an_author_has_a_colour_and_the_text_stays(self) -> None:
        for line, part in (
            ("ana: hola: x", (f"{colour_of('ana')} bold", "ana:")),
            ("* ana waves", (colour_of("ana"), "ana")),
            ("*ana* psst", (f"{colour_of('ana')} italic", "*ana*")),
            ("-> *ana* psst", (f"{colour_of('ana')} italic", "*ana*")),
            ("*** You are ana", ("fg:ansibrightblack", "*** You are ana")),
            ("ERR Invalid message", ("bold fg:ansired", "ERR Invalid message")),
            ("http://x.org: see", ("", "http://x.org: see")),
        ):
            assert text(painted(line)) == line
            assert part in painted(line)
        assert colour_of("Ana") == colour_of("ana") != colour_of("ben")

    def test_a_line_has_the_local_time_and_one_of_the_past_its_own(self) -> None:
        assert text(dated("hi", NOON)) == "12:00 hi"
        past = "*** 2026-11-21 08:30:59 ana: hi"
        assert text(dated(past, NOON, HERE)) == "10:30 ana: hi"
        assert (f"{colour_of('ana')} bold", "ana:") in dated(past, NOON, HERE)
        assert text(dated(past.replace("-21", "-20"), NOON, HERE)) == "2026-11-20 10:30 ana: hi"
        forged = "*** 2026-99-99 08:30:59 x"
        assert text(dated(forged, NOON)) == f"12:00 {forged}"

    def test_names_and_rooms_are_learned_from_what_is_said(self) -> None:
        known = Known()
        for line in ("ana: hi", "* ben waves", "*eva* psst", "-> *zoe* x", "no name", "a b: x"):
            known.heard(line)
        assert known.completions("") == ["zoe:", "eva:", "ben:", "ana:"]
        known.heard("*** In main: ana, Bea, 3 without a name")
        assert known.completions("hi b") == ["Bea", "ben"]
        known.heard("*** Rooms: dev (2), main (1)")
        assert known.completions("/join ") == ["dev", "main"]
        assert known.completions("/join D") == ["dev"]
        assert known.completions("/msg e") == ["eva"]
        assert known.completions("/m") == ["/me", "/msg"]

    def test_only_the_server_says_how_one_is_called_and_where_one_is(self) -> None:
        known = Known()
        known.typed("/nick ana")
        assert known.nick == ""
        known.heard("*** You are ana")
        known.heard("*** You are somebody else")  # a line like any other, for all one knows
        known.heard("*** In dev: ana")
        assert (known.nick, known.room) == ("ana", "")
        known.typed("/join dev")
        known.heard("*** In dev: ana")
        assert known.room == "dev"
        known.typed("/join a,b")
        known.heard("*** Not done: a name has no ,")
        known.heard("*** In other: ben")
        assert known.room == "dev"

    def test_only_the_latest_names_are_remembered(self) -> None:
        known = Known()
        for number in range(1010):
            known.heard(f"n{number}: x")
        known.heard("n10: y")
        assert len(known.names) == 1000
        assert known.completions("x n10")[0] == "n10"

    def test_the_commands_are_those_of_the_server(self) -> None:
        helped = {line.split()[0] for line in HELP.splitlines()}
        assert helped == {*COMMANDS, "//text"}


Script = Callable[["Line", PipeInput], object]


class Line:
    """The server's side of one connection."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.stream = peer.makefile("rb")

    def says(self, data: str) -> None:
        self.peer.sendall(data.encode())

    def hears(self) -> str:
        return self.stream.readline().decode()


class ScreenTests(SynchronousTestCase):
    """With prompt_toolkit's own input and output."""

    def talk(self, *scripts: Script, nick: str = "", room: str = "") -> str:
        """What is shown while the server plays `scripts`, one a connection; the last leaves."""
        self.shown = shown = StringIO()
        output = Vt100_Output(shown, lambda: Size(24, 80), enable_cpr=False)
        with create_pipe_input() as keys:

            def played(script: Script) -> Callable[[socket.socket], object]:
                def play(peer: socket.socket) -> None:
                    line = Line(peer)
                    with line.stream:
                        try:
                            script(line, keys)
                        except BaseException:
                            keys.send_text("\x15\x04")
                            raise

                return play

            server = Server(tuple(map(played, scripts)))
            address = Address("127.0.0.1", server.port)
            with create_app_session(keys, output), patch.object(chat_screen, "WAITS", (0.3,)):
                sock = dial(address, PATIENCE)
                asyncio.run(Screen(address, nick, room, lambda: NOON).talk(sock))
            server.over()
        return ESCAPES.sub("", shown.getvalue())

    def shows(self, words: str, times: int = 1) -> None:
        until = time.monotonic() + PATIENCE
        while ESCAPES.sub("", self.shown.getvalue()).count(words) < times:
            assert time.monotonic() < until, self.shown.getvalue()
            time.sleep(0.005)

    def test_what_is_typed_goes_out_and_what_comes_is_shown_harmlessly(self) -> None:
        def script(line: Line, keys: PipeInput) -> None:
            line.says("ana: hi \x1b[2J\nlast")
            keys.send_text("hola, ñandú\r")
            assert line.hears() == "hola, ñandú\n"
            keys.send_text("   \r/quit\r")
            assert line.hears() == ""

        shown = self.talk(script)
        assert "12:00 ana: hi \\x1b[2J" in shown

    def test_a_name_and_a_room_are_asked_for_again_after_a_lost_connection(self) -> None:
        def first(line: Line, keys: PipeInput) -> None:
            assert (line.hears(), line.hears()) == ("/nick ana\n", "/join dev\n")
            line.says("*** You are ana\n*** In dev: ana\n")
            keys.send_text("/nick bea\r/join x\r")
            assert (line.hears(), line.hears()) == ("/nick bea\n", "/join x\n")
            line.says("*** You are bea\n*** In x: bea\n")
            self.shows("In x: bea")

        def second(line: Line, keys: PipeInput) -> None:
            assert (line.hears(), line.hears()) == ("/nick bea\n", "/join x\n")
            keys.send_text("\x04")
            assert line.hears() == ""

        shown = self.talk(first, second, nick="ana", room="dev")
        assert "closed the chat; trying to connect again" in shown
        assert re.search("connected to 127.0.0.1:[0-9]+ again", shown)
        assert "bea>" in shown

    def test_after_a_lost_connection_the_name_is_ours_once_the_server_says_so(self) -> None:
        screen = Screen(Address("127.0.0.1", 1), "ana", "")
        screen.known.nick, screen.known.room = "bea", "dev"
        screen._writer = writer = Mock()
        screen._introduce()
        said = [call.args[0] for call in writer.write.call_args_list]
        assert said == [b"/nick bea\n", b"/join dev\n"]
        assert (screen.known.nick, screen.known.room) == ("", "")
        for line in ("*** You are bea", "*** In dev: bea"):
            screen.known.heard(line)
        assert (screen.known.nick, screen.known.room) == ("bea", "dev")

    def test_tab_completes_and_the_up_arrow_brings_back(self) -> None:
        def script(line: Line, keys: PipeInput) -> None:
            line.says("anastasia: hi\n")
            self.shows("anastasia: hi")
            keys.send_text("/rooms\r")
            assert line.hears() == "/rooms\n"
            keys.send_text("/ms\t")
            self.shows("/msg")
            keys.send_text("an\t")
            self.shows("astasia", times=2)
            keys.send_text("psst\r")
            assert line.hears() == "/msg anastasia psst\n"
            keys.send_text("\x1b[A\x1b[A\r")
            assert line.hears() == "/rooms\n"
            keys.send_text("\x04")

        self.talk(script)

    def test_what_is_typed_while_nobody_is_connected_is_kept(self) -> None:
        def first(line: Line, keys: PipeInput) -> None:
            line.peer.shutdown(socket.SHUT_WR)
            self.shows("closed the chat; trying to connect again")
            keys.send_text("still here\r")
            self.shows("not connected: press Enter again later")

        def second(line: Line, keys: PipeInput) -> None:
            self.shows("connected to")
            keys.send_text("\r")
            assert line.hears() == "still here\n"
            keys.send_text("\x04")

        self.talk(first, second)

    def test_what_comes_too_fast_is_counted(self) -> None:
        def script(line: Line, keys: PipeInput) -> None:
            line.says("".join([f"n{number}\n" for number in range(MOST + 250)]))
            line.says("x" * 70_000)
            keys.send_text("a\r")
            line.hears()
            keys.send_text("\x04")

        shown = self.talk(script)
        counts = [int(count) for count in re.findall(r"\*\*\* ([0-9,]+) lines? went by", shown)]
        assert len(re.findall(r"12:00 n\d+", shown)) + sum(counts) == MOST + 250
        assert f"n{MOST + 249}" in shown

    def test_ctrl_c_ends_it(self) -> None:
        def script(line: Line, keys: PipeInput) -> None:
            keys.send_text("half a line\x03")
            assert line.hears() == ""

        with pytest.raises(KeyboardInterrupt):
            self.talk(script)

    def test_a_fault_of_ours_is_not_hidden(self) -> None:
        def script(line: Line, keys: PipeInput) -> None:
            line.says("x\n")
            line.hears()

        fault = patch.object(Known, "heard", side_effect=ZeroDivisionError)
        with fault, pytest.raises(ZeroDivisionError):
            self.talk(script)


class TerminalTests(ClientCase):
    """On a terminal that looks like one."""

    def terminal(self, server: Server) -> Terminal:
        command = [sys.executable, "-m", "client", "chat", "--port", str(server.port)]
        environ = {**self.environment(), "PYTHONPATH": str(HOME), "TERM": "screen-256color"}
        terminal = Terminal(command, environ)
        self.addCleanup(terminal.close)
        return terminal

    def test_the_input_line_stays_put_under_a_flood(self) -> None:
        if why := absent("tmux"):
            raise SkipTest(why)
        flood = b"".join([b"ana: line %d\n" % number for number in range(20_000)])

        def script(peer: socket.socket) -> bytes:
            peer.sendall(b"ana: ready\n")
            assert peer.recv(100) == b"go\n"
            peer.sendall(flood)
            return everything(peer)

        server = Server((script,))
        terminal = self.terminal(server)
        terminal.shows("ana: ready")
        terminal.types("go")
        terminal.types("half a lin", enter=False)
        terminal.shows("ana: line 19999")
        terminal.types("e", enter=False)
        terminal.shows("> half a line")
        lines = [line for line in terminal.lines if line]
        assert lines[-2] == "> half a line"
        assert lines[-1].endswith("Ctrl-D leaves")
        assert lines[-3].endswith("ana: line 19999")
        terminal.presses("Enter", "C-d")
        assert server.over() == [b"half a line\n"]

    def test_names_have_colours_unless_no_color_says_otherwise(self) -> None:
        if why := absent("tmux"):
            raise SkipTest(why)
        for no_color in (None, "1"):
            self.env["NO_COLOR"] = no_color
            server = Server((speaking(b"ana: ready\n"),))
            terminal = self.terminal(server)
            terminal.shows("ana: ready")
            (line,) = (one for one in terminal.painted.splitlines() if "ready" in one)
            coloured = re.search(r"\x1b\[[0-9;]*[39][0-7]m", line) is not None
            assert coloured is (no_color is None)
            terminal.presses("C-d")
            server.over()

    def test_names_that_cannot_be_are_wrong_usage(self) -> None:
        for option in ("--nick", "--room"):
            ended = self.run_client("chat", option, "a b", typed=b"")
            assert ended.status == 2
            assert "'a b' is no name" in ended.err

    def test_in_a_pipe_a_name_and_a_room_are_asked_for_first(self) -> None:
        server = Server((everything,))
        ended = self.call(server, "chat", "--nick", "bot", "--room", "dev", typed=b"done\n")
        assert ended.status == 0
        assert server.over() == [b"/nick bot\n/join dev\ndone\n"]
