"""chat, echo, register, say and selftest against servers that keep to the wire, or do not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs

import pytest

from client import codes
from client.net import Address, Failed
from tests.test_client import (
    ClientCase,
    Script,
    Server,
    after,
    everything,
    nobody,
    reset,
    saying,
    speaking,
    stall,
)
from tests.test_client_ingest import honest

CODE = "0123456789abcdef0123456789abcdef"


def louder(line: bytes) -> bytes:
    return line.decode(errors="surrogateescape").upper().encode(errors="surrogateescape")


def lines(answer: bytes = b"", upper: bool = False) -> Script:
    """Answers line by line, in upper case or as it came, until the word or the FIN."""

    def script(peer: socket.socket) -> bytes:
        heard = b""
        peer.sendall(answer)
        with peer.makefile("rb") as stream:
            for line in stream:
                if upper and line.strip() == b"DESCONEXION":
                    break
                heard += line
                peer.sendall(louder(line) if upper else line)
        return heard

    return script


def once(peer: socket.socket) -> bytes:
    return peer.recv(1 << 16)


def asked(peer: socket.socket) -> bytes:
    """A whole request: to close with half of it unread would reset the peer."""
    data = once(peer)
    while not (found := re.search(rb"(?is)content-length: (\d+).*?\r\n\r\n(.*)", data)) or len(
        found[2]
    ) < int(found[1]):
        more = once(peer)
        if not more:
            break
        data += more
    return data


class ChatTests(ClientCase):
    def test_in_a_pipe_everything_is_sent_and_what_is_owed_is_printed(self) -> None:
        server = Server((saying(b"hi\n\x1bhola\n"),))
        ended = self.call(server, "chat", typed=b"hi\nhola")
        assert (ended.status, ended.out, ended.err) == (0, b"hi\n\x1bhola\n", "")
        assert server.over() == [b"hi\nhola"]

    def test_host_and_port_can_be_arguments(self) -> None:
        server = Server((everything,))
        assert self.run_client("chat", "localhost", server.port, typed=b"x\n").status == 0
        assert server.over() == [b"x\n"]

    def test_lines_are_json_objects_when_asked_and_a_last_one_needs_no_end(self) -> None:
        server = Server((saying("ñ\nlast".encode()),))
        ended = self.call(server, "chat", "--json", typed=b"")
        assert [json.loads(line)["line"] for line in ended.out.splitlines()] == ["ñ", "last"]
        server.over()

    def test_a_flood_reads_on_while_it_sends(self) -> None:
        flood = b"x" * 99 + b"\n"
        server = Server((lines(),))
        process = self.start("chat", "--port", server.port)
        ended = self.ended(process, flood * 10_000)
        assert (ended.status, len(ended.out)) == (0, 1_000_000)
        assert len(server.over()[0]) == 1_000_000

    def test_lines_are_shown_as_they_come(self) -> None:
        met = threading.Barrier(2, timeout=5)

        def script(peer: socket.socket) -> bytes:
            peer.sendall(b"early\n")
            met.wait()
            return everything(peer)

        server = Server((script,))
        process = self.start("chat", "--port", server.port)
        assert process.stdout is not None
        assert process.stdout.readline() == b"early\n"
        met.wait()
        assert self.ended(process, b"bye\n").status == 0
        assert server.over() == [b"bye\n"]

    def test_a_dumb_terminal_is_a_pipe_that_is_never_commanded_by_the_network(self) -> None:
        self.env["TERM"] = "dumb"
        server = Server((lambda peer: peer.sendall(b"\x1b[2Jhi\nlong" + b"x" * 70_000),))
        shown = self.on_terminal("chat", "--port", server.port)
        assert b"\\x1b[2Jhi\r\nlongxxx" in shown.out
        assert b"\x1b[2J" not in shown.out
        server.over()

    def test_a_server_that_leaves_first_is_a_failure_unless_it_was_asked_to(self) -> None:
        for typed, status in ((b"hello\n", 1), (b"hello\n/quit\n", 0)):
            server = Server((lambda peer: peer.sendall(peer.recv(100)),))
            process = self.start("chat", "--port", server.port)
            assert process.stdin is not None
            process.stdin.write(typed)
            process.stdin.flush()
            assert process.wait(10) == status
            ended = self.ended(process)
            assert ended.out == typed
            assert ("closed the chat" in ended.err) is bool(status)
            server.over()

    def test_a_refusal_is_shown_even_when_a_reset_follows(self) -> None:
        server = Server((after(speaking(b"ERR busy\n"), reset),))
        ended = self.call(server, "chat", typed=b"hello\n")
        assert (ended.status, ended.out) == (1, b"ERR busy\n")
        server.over()

    def test_a_server_that_never_ends_is_left(self) -> None:
        server = Server((after(everything, stall),))
        assert self.call(server, "chat", "--timeout", "0.2", typed=b"x\n").status == 1
        server.over()


class EchoTests(ClientCase):
    def test_text_is_sent_as_a_line_and_the_answer_printed(self) -> None:
        server = Server((lines(upper=True),))
        ended = self.call(server, "echo", "hola", "señor\nadiós")
        assert (ended.status, ended.text) == (0, "HOLA SEÑOR\nADIÓS\n")
        assert server.over() == ["hola señor\nadiós\n".encode()]

    def test_a_pipe_goes_line_by_line_and_the_word_ends_it(self) -> None:
        server = Server((lines(upper=True),))
        ended = self.call(server, "echo", typed=b"uno\r\n\xff\n DESCONEXION\ntres")
        assert (ended.status, ended.out) == (0, b"UNO\r\n\xff\n")
        server.over()
        server = Server((lines(upper=True),))
        assert self.call(server, "echo", typed=b"last").out == b"LAST\n"
        server.over()

    def test_a_line_larger_than_every_buffer_comes_back(self) -> None:
        def streaming(peer: socket.socket) -> None:
            while data := peer.recv(1 << 16):
                peer.sendall(data.upper())

        server = Server((streaming,))
        ended = self.call(server, "echo", typed=b"x" * 20_000_000 + b"\n")
        assert ended.out == b"X" * 20_000_000 + b"\n"
        server.over()

    def test_answers_are_json_when_asked(self) -> None:
        server = Server((lines(upper=True),))
        ended = self.call(server, "echo", "--json", "hola")
        assert ended.facts == {"sent": "hola", "answer": "HOLA"}
        server.over()

    def test_a_terminal_gets_a_prompt(self) -> None:
        for last in (b"DESCONEXION\n", b"\x04"):
            server = Server((lines(upper=True),))
            shown = self.on_terminal("echo", "--port", server.port, typed=b"hola\n" + last)
            assert shown.status == 0
            assert b"> HOLA\r\n> " in shown.out
            server.over()

    def test_a_close_or_a_reset_before_the_answer_is_a_failure(self) -> None:
        for script, text in (
            (once, "closed the connection before it had answered"),
            (after(once, lambda peer: peer.sendall(b"HO")), "closed the connection before"),
            (after(once, reset), "Connection reset by peer"),
        ):
            server = Server((script,))
            ended = self.call(server, "echo", "hola")
            assert ended.status == 1
            assert text in ended.err
            server.over()


def http(status: str, headers: str = "", body: str = "") -> Script:
    """Answers one request; says its path and form."""

    def script(peer: socket.socket) -> tuple[str, dict[str, list[str]]]:
        with peer.makefile("rb") as stream:
            start = stream.readline().decode().split()
            length = 0
            while (line := stream.readline().strip().lower()) != b"":
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            form = parse_qs(stream.read(length).decode(), strict_parsing=True)
        head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(body.encode())}\r\n\r\n"
        peer.sendall((head + body).encode())
        return " ".join(start[:2]), form

    return script


GIVEN = http("200 OK", f"Server-Uuid: {CODE}\r\n", CODE)
STORED = http("200 OK", "Status: Authentication success\r\n")
REFUSED = http("400 Bad Request", "Status: Authentication error\r\n", "Error: no\n\x1bdetails")


class HandshakeTests(ClientCase):
    @property
    def kept(self) -> Path:
        return self.folder / "state" / "roundhouse" / "codes.json"

    def remember(self, port: int, code: str = CODE) -> None:
        with patch.dict(os.environ, XDG_STATE_HOME=str(self.folder / "state")):
            codes.keep(Address("localhost", port), "ana", code)

    def test_a_code_is_printed_and_kept_privately(self) -> None:
        server = Server((GIVEN,))
        ended = self.call(server, "register", "ana")
        assert ended.text == f"id    ana\ncode  {CODE}\n"
        assert ended.err == f"The code is kept in {self.kept}\n"
        assert server.over() == [("POST /", {"client_uuid": ["ana"]})]
        assert json.loads(self.kept.read_text()) == {f"127.0.0.1:{server.port}": {"ana": CODE}}
        assert self.kept.stat().st_mode & 0o777 == 0o600
        assert self.kept.parent.stat().st_mode & 0o777 == 0o700

    def test_without_an_id_a_fresh_one_is_made(self) -> None:
        server = Server((GIVEN, GIVEN))
        first, second = (self.call(server, "register", "--json").facts for _ in "12")
        assert first["id"] != second["id"]
        assert (len(first["id"]), first["code"]) == (36, CODE)
        assert server.over()[0] == ("POST /", {"client_uuid": [first["id"]]})

    def test_a_code_that_cannot_be_kept_is_still_printed(self) -> None:
        self.file(b"no folder", "state")
        server = Server((GIVEN,))
        ended = self.call(server, "register", "ana")
        assert (ended.status, CODE in ended.text) == (1, True)
        assert f"the code could not be kept in {self.kept}" in ended.err
        server.over()

    def test_an_answer_without_a_code_registers_nothing(self) -> None:
        for script, text in (
            (http("200 OK", "Server-Uuid: ../../x\r\n"), "answered without a code"),
            (http("409 Conflict", "", "Error: taken\nmore"), "refused: 409 - Error: taken\n"),
            (
                after(once, lambda peer: peer.sendall(b"\x1bwhat\r\n")),
                r"did not answer in HTTP: \x1bwhat",
            ),
            (asked, "closed the connection without an answer"),
            (after(once, reset), "Connection reset by peer"),
            (stall, "did not answer within 0.3 s"),
        ):
            server = Server((script,))
            ended = self.call(server, "register", "ana", "--timeout", "0.3")
            assert (ended.status, ended.out) == (1, b"")
            assert text in ended.err
            assert "\x1b" not in ended.err
            server.over()
        assert not self.kept.exists()

    def test_a_message_goes_out_under_the_kept_code(self) -> None:
        server = Server((STORED,))
        self.remember(8000)
        self.config.write_text(f"[handshake]\nMESSAGE_PORT = {server.port}\n")
        ended = self.run_client("say", "ana", "hola", "señor & co")
        assert (ended.status, ended.text) == (0, "Stored\n")
        form = {"client_uuid": ["ana"], "server_uuid": [CODE], "message": ["hola señor & co"]}
        assert server.over() == [("POST /", form)]

    def test_with_a_port_the_code_of_any_server_there_will_do_if_it_is_one(self) -> None:
        server = Server((STORED,))
        self.remember(9000)
        assert self.call(server, "say", "ana", "x").status == 0
        server.over()
        self.remember(9001, CODE[::-1])
        ended = self.run_client("say", "ana", "x", "--port", 1)
        assert "several servers on 127.0.0.1 gave ana a code" in ended.err
        assert "no code of bo for 127.0.0.1:8000" in self.run_client("say", "bo", "x").err

    def test_the_code_can_come_from_a_file_or_the_environment(self) -> None:
        server = Server((STORED, STORED))
        self.env["ROUNDHOUSE_CODE"] = "env-code"
        self.call(server, "say", "ana", "x")
        path = self.file(b"file-code\n")
        self.call(server, "say", "ana", "x", "--code-file", path)
        assert [form["server_uuid"] for _, form in server.over()] == [["env-code"], ["file-code"]]
        assert "holds no code" in self.run_client("say", "a", "x", "--code-file", "/dev/null").err
        assert self.run_client("say", "a", "x", "--code-file", path + "x").status == 1

    def test_the_message_can_come_from_standard_input(self) -> None:
        self.env["ROUNDHOUSE_CODE"] = CODE
        server = Server((STORED,))
        assert self.call(server, "say", "ana", "-", typed=b"two\nlines\r\n").status == 0
        assert server.over()[0][1]["message"] == ["two\nlines"]
        for typed, text in ((b"\xff", "not UTF-8: byte 0"), (b"x" * 65537, "longer than 65,536")):
            ended = self.run_client("say", "ana", "-", typed=typed)
            assert ended.status == 1
            assert text in ended.err

    def test_an_argument_that_is_not_utf8_is_wrong_usage(self) -> None:
        self.env["ROUNDHOUSE_CODE"] = CODE
        assert self.run_client("say", "ana", "\udcff").status == 2

    def test_a_refused_message_is_a_failure_and_its_answer_shown_harmlessly(self) -> None:
        self.env["ROUNDHOUSE_CODE"] = CODE
        for script, text in (
            (REFUSED, "refused: 400 - Authentication error - Error: no\n"),
            (http("200 OK"), "refused: 200\n"),
            (http("400 Bad", "", "\x1b[2J"), r"refused: 400 - \x1b[2J"),
        ):
            server = Server((script,))
            ended = self.call(server, "say", "ana", "x")
            assert (ended.status, ended.out) == (1, b"")
            assert text in ended.err
            server.over()


class CodesTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        environment = patch.dict(os.environ, XDG_STATE_HOME=str(self.folder))
        environment.start()
        self.addCleanup(environment.stop)

    def test_registrations_at_once_all_keep_their_codes(self) -> None:
        here = Address("127.0.0.1", 8000)

        def keep(ident: str) -> None:
            codes.keep(here, ident, f"code of {ident}")

        threads = [threading.Thread(target=keep, args=(str(number),)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(16):
            assert codes.find(here, str(number)) == f"code of {number}"

    def test_a_later_code_takes_the_place_of_an_earlier_one(self) -> None:
        for host in ("::1", "LOCALHOST"):
            codes.keep(Address(host, 8000), "ana", host)
        assert codes.find(Address("127.0.0.1", 8000), "ana") == "LOCALHOST"

    def test_what_a_killed_writer_left_is_no_obstacle(self) -> None:
        file = codes.keep(Address("h", 1), "ana", "a")
        file.with_suffix(".new").write_text("half")
        codes.keep(Address("h", 1), "bo", "b")
        assert codes.find(Address("h", 1), "ana") == "a"

    def test_a_file_that_holds_something_else_is_refused_and_left(self) -> None:
        file = codes.keep(Address("h", 1), "ana", "a")
        for text in ("no json", "[]", '{"h:1": 3}', '{"h:1": {"ana": 3}}', "[" * 100_000):
            file.write_text(text)
            with pytest.raises(Failed, match="does not hold codes"):
                codes.keep(Address("h", 1), "ana", "a")
            assert file.read_text() == text

    def test_a_file_that_cannot_be_read_is_named(self) -> None:
        codes.path().parent.mkdir()
        codes.path().mkdir()
        with pytest.raises(Failed, match=r"cannot read .*codes\.json: Is a directory"):
            codes.find(Address("h", 1), "ana")

    def test_without_xdg_it_is_in_the_home_folder(self) -> None:
        with patch.dict(os.environ, XDG_STATE_HOME="relative", HOME=str(self.folder)):
            assert codes.path() == self.folder / ".local/state/roundhouse/codes.json"
        with (
            patch.dict(os.environ, XDG_STATE_HOME=""),
            patch("pathlib.Path.expanduser", side_effect=RuntimeError),
            pytest.raises(Failed, match="set HOME"),
        ):
            codes.path()


def segments(peer: socket.socket) -> None:
    """An echo as the seed had it."""
    while (data := peer.recv(1 << 16)) and data.strip() != b"DESCONEXION":
        peer.sendall(data.upper())


def chatting(peer: socket.socket) -> None:
    peer.sendall(b"somebody else\n")
    with peer.makefile("rb") as stream:
        for line in stream:
            peer.sendall(line if line.strip() else b"ERR Invalid message\n")


class SelftestTests(ClientCase):
    def configure(self, **ports: int) -> None:
        keys = {"codes": ("handshake", "CODE_PORT"), "messages": ("handshake", "MESSAGE_PORT")}
        sections: dict[str, list[str]] = {}
        for name, port in ports.items():
            section, key = keys.get(name, (name, "PORT"))
            sections.setdefault(section, []).append(f"{key} = {port}\n")
        self.config.write_text("".join(f"[{s}]\n{''.join(k)}" for s, k in sections.items()))

    def test_echo_is_the_default_and_passes(self) -> None:
        server = Server((segments,))
        ended = self.call(server, "selftest")
        assert (ended.status, ended.text) == (
            0,
            "ok    echo: 'hola servidor' is answered 'HOLA SERVIDOR'\n"
            "ok    echo: DESCONEXION closes\n",
        )
        server.over()

    def test_an_echo_that_is_none_fails(self) -> None:
        def deaf_to_the_word(peer: socket.socket) -> None:
            for _ in "12":
                peer.sendall(peer.recv(100).upper())

        for script, text in (
            (
                after(once, lambda peer: peer.sendall(b"hola \x1bservidor")),
                r"was answered 'hola \x1bservidor'",
            ),
            (deaf_to_the_word, "DESCONEXION was answered 'DESCONEXION'"),
            (stall, "did nothing for 0.2 s"),
            (after(once, reset), "broke the connection"),
        ):
            server = Server((script,))
            ended = self.call(server, "selftest", "--timeout", "0.2", "echo")
            assert ended.status == 1
            assert ended.text.splitlines()[-1].startswith("FAIL  echo: ")
            assert text in ended.text
            server.over()

    def test_nobody_listening_is_a_failed_check_and_a_broken_config_is_not(self) -> None:
        assert self.run_client("selftest", "--port", nobody()).status == 1
        self.config.write_text("[echo]\nPORT = x\n")
        assert self.run_client("selftest").status == 78

    def test_all_of_them_pass_against_servers_that_keep_to_the_wire(self) -> None:
        servers = {
            "echo": Server((segments,)),
            "ingest": Server((honest,)),
            "chat": Server((chatting,)),
            "codes": Server((GIVEN,)),
            "messages": Server((REFUSED, STORED)),
        }
        self.configure(**{name: server.port for name, server in servers.items()})
        with patch.dict("client.selftest.CHECKS", relay=lambda caller: iter(["played below"])):
            ended = self.run_client("selftest", "all", "--json")
        assert ended.status == 0
        checks = [json.loads(line) for line in ended.out.splitlines()]
        assert {check["result"] for check in checks} == {"ok"}
        assert len(checks) == 10
        for server in servers.values():
            server.over()

    def test_the_rest_of_them_fail_where_the_wire_is_not_kept(self) -> None:
        for service, script, text in (
            ("ingest", saying(b""), "closed without a receipt"),
            ("chat", lines(), "'ERR Invalid message' did not come"),
            ("chat", once, "'ERR Invalid message' did not come"),
        ):
            server = Server((script,))
            ended = self.call(server, "selftest", service, "--timeout", "0.3")
            assert ended.status == 1
            assert text in ended.text
            server.over()

    def test_a_chat_that_does_not_close_fails(self) -> None:
        def lingering(peer: socket.socket) -> None:
            chatting(peer)
            for _ in range(20):
                peer.sendall(b"and another thing\n")
                time.sleep(0.02)

        server = Server((lingering,))
        ended = self.call(server, "selftest", "chat", "--timeout", "0.2")
        assert ended.status == 1
        assert "did not close after the last line" in ended.text
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            server.over()

    def test_a_handshake_that_takes_any_code_fails(self) -> None:
        given, taken = Server((GIVEN,)), Server((STORED,))
        self.configure(codes=given.port, messages=taken.port)
        ended = self.run_client("selftest", "handshake")
        assert ended.status == 1
        assert "a wrong code was answered with 200, not 400" in ended.text
        given.over()
        taken.over()

    def test_one_port_is_not_enough_for_several(self) -> None:
        for services in (["all"], ["echo", "chat"], ["handshake"]):
            assert self.run_client("selftest", "--port", 7000, *services).status == 2
        assert self.run_client("selftest", "nothing").status == 2


class RelaySelftestTests(ClientCase):
    """A relay of two connections: who waits, and who brings the parcel."""

    def tested(self, hand: bytes | None = None, cut: int | None = None) -> tuple[str, int, bytes]:
        """What is said, the status, and how the receiver closed."""
        closed: list[bytes] = []
        receiver: list[socket.socket] = []

        def wait(peer: socket.socket) -> None:
            receiver.append(peer.dup())

        def take(peer: socket.socket) -> None:
            parcel = everything(peer)
            assert parcel.startswith(b"roundhouse selftest ")
            peer.close()
            with receiver[0] as waiting:
                waiting.settimeout(5)
                waiting.sendall(parcel[:cut] if hand is None else hand)
                with contextlib.suppress(OSError):  # who wanted something else has reset it already
                    waiting.shutdown(socket.SHUT_WR)
                closed.append(everything(waiting))

        server = Server((wait, take))
        with patch("client.selftest.SETTLED", 0.1):
            ended = self.call(server, "selftest", "relay")
        server.over()
        return ended.text.splitlines()[-1], ended.status, closed[0]

    def test_its_own_parcel_comes_back_and_is_taken(self) -> None:
        assert self.tested() == (
            "ok    relay: the waiting receiver gets it, and nothing else",
            0,
            b"",
        )

    def test_somebody_elses_file_is_given_back(self) -> None:
        said, status, closed = self.tested(hand=b"precious")
        assert said.startswith("skip  relay: another file came and was given back; left in the")
        assert (status, closed) == (0, b"RESET")

    def test_a_cut_parcel_fails(self) -> None:
        said, status, closed = self.tested(cut=10)
        assert said.startswith("FAIL  relay: the file was cut: 10 of ")
        assert (status, closed) == (1, b"RESET")

    def test_a_queue_that_is_not_empty_is_left_alone(self) -> None:
        server = Server((speaking(b"precious"),))
        ended = self.call(server, "selftest", "relay")
        assert (ended.status, ended.text) == (
            0,
            "skip  relay: a file waits in the queue; it was given back\n",
        )
        assert server.over() == [b"RESET"]

    def test_a_relay_that_closes_on_a_receiver_or_hands_out_nothing_fails(self) -> None:
        server = Server((lambda peer: None,))
        assert "closed on a waiting receiver" in self.call(server, "selftest", "relay").text
        server.over()
        held: list[socket.socket] = []
        server = Server((lambda peer: held.append(peer.dup()), everything))
        with patch("client.selftest.SETTLED", 0.1):
            ended = self.call(server, "selftest", "relay", "--timeout", "0.3")
        assert ended.status == 1
        assert "FAIL  relay: the file did not come: 0 of" in ended.text
        held[0].close()
        server.over()
