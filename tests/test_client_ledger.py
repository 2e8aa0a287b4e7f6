"""say --stdin and tail: many messages out, and what was logged back in."""

from __future__ import annotations

import contextlib
import json
import socket
from base64 import b64decode
from unittest.mock import patch

from client import handshake, keep
from client.files import Source
from client.keep import LONGEST
from tests.test_client import ClientCase, Ended, Script, Server, everything, reset

CODE = "0123456789abcdef0123456789abcdef"
PAIR = b"ana " + CODE.encode() + b" "


def keeping(answer: bytes = b"OK %d\n", refuse: bytes = b"\xff", most: int = 1 << 30) -> Script:
    """Answers each line; refuses those that hold `refuse`; leaves after `most`, or left alone."""

    def script(peer: socket.socket) -> list[bytes]:
        heard = []
        with peer.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            assert lines.readline() == b"KEEP\n"
            for number, line in enumerate(lines, 1):
                heard.append(line)
                peer.sendall(b"ERR not \x1bstored\n" if refuse in line else answer % number)
                if number == most:
                    break
        return heard

    return script


def saying(data: bytes, then: Script = everything) -> Script:
    """Sends that once it was spoken to."""

    def script(peer: socket.socket) -> None:
        peer.recv(1)
        peer.sendall(data)
        then(peer)

    return script


class LedgerCase(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.env["ROUNDHOUSE_CODE"] = CODE


class StreamTests(LedgerCase):
    def streams(self, server: Server, typed: bytes, *args: str) -> Ended:
        return self.call(server, "say", "ana", "--stdin", *args, typed=typed)

    def test_every_line_is_a_message(self) -> None:
        server = Server((keeping(),))
        ended = self.streams(server, b"one\n  two words \r\n\n\r\nlast \xc3\xb1")
        assert (ended.status, ended.out) == (0, b"Stored 3 messages\n")
        [heard] = server.over()
        assert heard == [
            PAIR + b"one\n",
            PAIR + b"  two words \n",
            PAIR + "last ñ\n".encode(),
        ]

    def test_no_more_than_a_window_waits_for_its_answers(self) -> None:
        def stingy(peer: socket.socket) -> int:
            """Answers once there is nothing more to read; the most lines that came before."""
            most, heard, answered = 0, b"", 0
            peer.settimeout(0.2)
            while True:
                try:
                    data = peer.recv(1 << 20)
                    if not data:
                        return most
                    heard += data
                except TimeoutError:
                    lines = heard.count(b"\n") - 1
                    most = max(most, lines - answered)
                    peer.sendall(b"OK 1\n" * (lines - answered))
                    answered = lines

        self.patch(keep, "WINDOW", 10)
        chunks = iter([b"x\n"] * 35)
        with patch.object(Source, "read", lambda _: next(chunks, b"")):
            server = Server((stingy,))
            ended = self.streams(server, b"")
        assert (ended.status, ended.out) == (0, b"Stored 35 messages\n")
        assert server.over() == [10]

    def test_lines_that_are_refused_are_counted_and_the_first_is_told(self) -> None:
        server = Server((keeping(refuse=b"bad"),))
        ended = self.streams(server, b"one\n\nbad\nbad\nfour\n")
        assert (ended.status, ended.out) == (1, b"Stored 2 messages\n")
        assert "2 lines refused, the first: line 3: not \\x1bstored" in ended.err
        server.over()
        server = Server((keeping(refuse=b"bad"),))
        ended = self.streams(server, b"one\nbad\n", "--json")
        assert json.loads(ended.out) == {"id": "ana", "stored": 1, "refused": 1}
        server.over()

    def test_a_server_that_leaves_or_talks_nonsense_is_a_failure_that_says_what_is_stored(
        self,
    ) -> None:
        for script, said in (
            (keeping(most=2), "the connection"),  # closed, or broke with lines unread
            (saying(b"OK 1\n", then=reset), "broke the connection"),
            (keeping(answer=b"HTTP/1.1 400 Bad %d\r\n"), "does not speak KEEP: HTTP/1.1 400 Bad 1"),
            (saying(b"x" * 9000), "does not speak KEEP: xxx"),
            (saying(b"OK 1\n" * 9), "answered more than was asked"),
        ):
            server = Server((script,))
            ended = self.streams(server, b"1\n2\n3\n" * 2)
            assert ended.status == 1
            assert said in ended.err
            assert "stored by then, what followed is unknown" in ended.err
            server.over()

    def test_what_cannot_be_a_line_is_not_sent(self) -> None:
        for typed, said in (
            (b"ok\n" + b"x" * (LONGEST + 1) + b"\n", "line 2 is longer"),
            (b"ok\n" + b"x" * (LONGEST + 9), "line 2 is longer"),
        ):
            server = Server((keeping(),))
            ended = self.streams(server, typed)
            assert (ended.status, said in ended.err) == (1, True)
            server.over()
        for ident, code in (
            ("a b", CODE),
            ("a\nb", CODE),
            ("a\udcff", CODE),
            ("ana", "two codes"),
            ("ana", f"{CODE}\n{CODE}"),
        ):
            self.env["ROUNDHOUSE_CODE"] = code
            server = Server((everything,))
            ended = self.call(server, "say", ident, "--stdin", typed=b"x\n")
            assert (ended.status, "blanks" in ended.err) == (1, True)
            assert server.over() == [b""]

    def test_text_and_lines_exclude_each_other(self) -> None:
        assert self.run_client("say", "ana", "--stdin", "text").status == 2
        assert self.run_client("say", "ana").status == 2

    def test_a_terminal_sees_the_count(self) -> None:
        server = Server((keeping(),))
        shown = self.on_terminal("--port", server.port, "say", "ana", "--stdin", typed=b"one\n\x04")
        assert b"Stored 1 message\r\n" in shown.out
        assert b"messages stored" in shown.out
        server.over()


def logged(*batches: list[int], status: str = "200 OK") -> Script:
    """One answer a connection."""
    left = [*batches]

    def script(peer: socket.socket) -> tuple[str, str]:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += peer.recv(1 << 16)
        request, *fields = head.decode().split("\r\n")
        body = "".join(
            json.dumps({"time": "now", "seq": seq, "id": "ana", "message": f"m{seq} \x1b"}) + "\n"
            for seq in left.pop(0)
        )
        peer.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        user = next(one for one in fields if one.startswith("Authorization: Basic "))
        return request, b64decode(user.split(" ")[2]).decode()

    return script


def replying(body: bytes, status: bytes = b"200 OK") -> Script:
    def script(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        peer.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))

    return script


class TailTests(LedgerCase):
    def test_everything_is_shown_page_by_page_and_harmlessly(self) -> None:
        answer = logged([1, 4], [9], [])
        server = Server((answer,) * 3)
        ended = self.call(server, "tail", "ana")
        assert ended.status == 0
        assert ended.out.decode() == "".join(f"{n}  now  m{n} \\x1b\n" for n in (1, 4, 9))
        asked = server.over()
        assert [request for request, _ in asked] == [
            f"GET /?after={after}&limit=1000 HTTP/1.1" for after in (0, 4, 9)
        ]
        assert {user for _, user in asked} == {f"ana:{CODE}"}

    def test_json_is_the_record(self) -> None:
        answer = logged([8], [])
        server = Server((answer,) * 2)
        ended = self.call(server, "tail", "ana", "--after", "7", "--json")
        assert json.loads(ended.out) == {"time": "now", "seq": 8, "id": "ana", "message": "m8 \x1b"}
        assert "after=7&" in server.over()[0][0]

    def test_following_goes_on_and_looks_less_often_while_nothing_comes(self) -> None:
        pauses = self.pauses(6)
        answer = logged([1], [], [], [], [], [], [2], [])
        server = Server((answer,) * 8)
        ended = self.call(server, "tail", "ana", "-f")
        assert ended.status == 130
        assert ended.out.count(b"\n") == 2
        assert pauses == [0.2, 0.4, 0.8, 1.6, 2.0, 0.2]
        server.over()

    def test_following_waits_for_a_server_that_went_away_and_shows_all_once(self) -> None:
        self.pauses(5)
        answer = logged([1], [2, 3], [])
        stops = replying(b"Error: the daemon is stopping\n", b"503 Service Unavailable")
        server = Server((answer, stops, lambda peer: peer.recv(9), reset, answer, answer))
        ended = self.call(server, "tail", "ana", "-f")
        assert ended.status == 130
        assert ended.out.decode() == "".join(f"{n}  now  m{n} \\x1b\n" for n in (1, 2, 3))
        gone, back, gone_again, *_ = ended.err.splitlines()
        assert gone.endswith("refused: 503 - Error: the daemon is stopping; waiting for it")
        assert back.endswith(f"{server.port} is back")
        assert "nobody listens" in gone_again
        assert ended.err.count("waiting for it") == 2
        server.over()

    def test_who_was_never_there_is_not_waited_for(self) -> None:
        stops = replying(b"Error: the daemon is stopping\n", b"503 Service Unavailable")
        server = Server((stops,))
        ended = self.call(server, "tail", "ana", "-f")
        assert (ended.status, "waiting" in ended.err) == (1, False)
        server.over()

    def pauses(self, most: int) -> list[float]:
        """What is slept; the one after `most` is Ctrl-C."""
        found: list[float] = []

        def sleep(seconds: float) -> None:
            if len(found) == most:
                raise KeyboardInterrupt
            found.append(seconds)

        self.patch(handshake, "sleep", sleep)
        return found

    def test_a_refusal_is_told(self) -> None:
        server = Server((replying(b"Error: wrong id or code\n", b"401 Unauthorized"),))
        ended = self.call(server, "tail", "ana")
        assert (ended.status, "refused: 401 - Error: wrong id or code" in ended.err) == (1, True)
        server.over()

    def test_what_are_no_records_is_not_believed(self) -> None:
        record = '{"time": "t", "seq": %s, "id": "ana", "message": "m"}\n'
        for body in (
            "hello",
            "[1]\n",
            "{}\n",
            record % '"1"',
            record % 5,  # not after that
            record % 8 + record % 7,
            '{"time": 1, "seq": 8, "message": "m"}\n',
            "[" * 5000,
        ):
            server = Server((replying(body.encode()),))
            ended = self.call(server, "tail", "ana", "--after", "5")
            assert (body, ended.status) == (body, 1)
            assert "did not answer with records" in ended.err
            server.over()
