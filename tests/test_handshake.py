"""handshake, without a socket, a disk and without waiting."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar
from unittest.mock import patch
from urllib.parse import quote, urlencode

from attrs import define, field
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from protocols.handshake import (
    CODE_SILENCE,
    KEPT_LINE,
    MESSAGE_SILENCE,
    SPEC,
    STALL,
    Handshake,
    Http,
    Keep,
    Options,
    Turnstile,
)
from protocols.handshake_formats import MESSAGE, REQUEST
from protocols.options import retention
from protocols.stores import Entry, Refused, Rules
from tests.ledger_double import MemoryLedger
from tests.wire import House, Memory, Peer

CODES, MESSAGES = "CODE_PORT", "MESSAGE_PORT"
PEER = "127.0.0.1:54321"


def post(body: bytes | str | dict[str, Any], *headers: str, line: str = "POST / HTTP/1.1") -> bytes:
    """A request; a dict is sent as a form."""
    if isinstance(body, dict):
        body = urlencode(body)
    if isinstance(body, str):
        body = body.encode()
    head = (line, "Host: x", f"Content-Length: {len(body)}", *headers, "", "")
    return "\r\n".join(head).encode() + body


@define
class Answer:
    status: int
    headers: dict[str, str]
    body: str


def answers(out: bytes) -> list[Answer]:
    """The responses in `out`, whole ones only."""
    found = []
    while out:
        head, blank, out = out.partition(b"\r\n\r\n")
        assert blank, head
        line, *fields = head.decode().split("\r\n")
        protocol, status, _ = line.split(" ", 2)
        assert protocol == "HTTP/1.1"
        headers = dict(entry.split(": ", 1) for entry in fields)
        length = int(headers["Content-Length"])
        assert len(out) >= length
        found.append(Answer(int(status), headers, out[:length].decode()))
        out = out[length:]
    return found


def cuts(stream: bytes) -> Iterator[list[bytes]]:
    """Every way to send `stream` in up to three pieces."""
    for cut in range(1, len(stream)):
        for again in range(cut, len(stream)):
            yield [piece for piece in (stream[:cut], stream[cut:again], stream[again:]) if piece]


@define(eq=False)
class Desk:
    """Both ports, and the ledger behind them, in which ana has a code."""

    ledger: MemoryLedger = field(factory=MemoryLedger)
    options: Options = field(factory=Options)
    house: House = field(init=False)
    ana: str = "c0de"

    def __attrs_post_init__(self) -> None:
        self.ledger.codes["ana"] = {self.ana}
        self.house = House(SPEC, stores=self.ledger.stores, options=self.options)

    def peer(self, port: str, *chunks: bytes) -> Peer:
        peer = self.house.peer(port)
        peer.says(*chunks)
        return peer

    def peer_from(self, host: str, port: str) -> Peer:
        """One that connects from another machine."""
        connection = self.house.factories[port].buildProtocol(None)
        transport = Memory(connection, peer=IPv4Address("TCP", host, 54321))
        connection.makeConnection(transport)
        return Peer(connection, transport, self.house.clock)

    def answer(self, port: str, request: bytes) -> Answer:
        """The one answer to an HTTP request, on a connection that stays."""
        peer = self.peer(port, request)
        [answer] = answers(peer.heard)
        assert not peer.hung_up
        return answer

    def kept(self) -> list[tuple[str, str, str]]:
        return self.ledger.kept

    def resets(self, peer: Peer) -> bool:
        """Whether a killed daemon would reset this peer."""
        from_accept_on = peer.connection.live is self.house.factories[MESSAGES].live
        return self.house.kernel.resets.get(peer.transport, from_accept_on)


class HttpCodeTests(SynchronousTestCase):
    def test_a_form_gets_a_code_as_header_and_as_text(self) -> None:
        desk = Desk()
        answer = desk.answer(CODES, post({"client_uuid": "bob"}))
        assert answer.status == 200
        assert {answer.body} == desk.ledger.codes["bob"]
        assert answer.headers["Server-Uuid"] == answer.body
        assert answer.headers["Content-Type"] == "text/plain"

    def test_json_is_known_by_its_media_type_or_its_first_byte(self) -> None:
        for headers in (["Content-Type: application/json"], ["Content-Type: text/x"], []):
            desk = Desk()
            answer = desk.answer(CODES, post('{"id": "bob"}', *headers))
            assert {answer.body} == desk.ledger.codes["bob"]
        typed = post("id=bob", "Content-Type: application/vnd.x+json; charset=utf-8")
        assert Desk().answer(CODES, typed).status == 400

    def test_a_number_is_an_id(self) -> None:
        desk = Desk()
        assert desk.answer(CODES, post('{"id": 77}')).status == 200
        assert "77" in desk.ledger.codes

    def test_who_prefers_json_gets_json(self) -> None:
        desk = Desk()
        asks = "Accept: application/json, text/plain, */*"
        answer = desk.answer(CODES, post({"id": "ñandú"}, asks))
        assert json.loads(answer.body) == {"id": "ñandú", "code": answer.headers["Server-Uuid"]}
        assert answer.headers["Content-Type"] == "application/json"
        for accept in ("*/*", "text/plain, application/json", "application/json;q=0.5, text/*"):
            answer = desk.answer(CODES, post({"id": "bob"}, f"Accept: {accept}"))
            assert answer.body == answer.headers["Server-Uuid"]

    def test_every_registration_gives_another_code_and_all_stay_valid(self) -> None:
        desk = Desk()
        one, two = (desk.answer(CODES, post({"id": "bob"})).body for _ in range(2))
        assert one != two
        assert desk.ledger.codes["bob"] == {one, two}

    def test_exclusive_registration_refuses_a_second_one(self) -> None:
        desk = Desk(options=Options(registration="exclusive"))
        assert desk.answer(CODES, post({"id": "bob"})).status == 200
        answer = desk.answer(CODES, post({"id": "bob"}))
        assert (answer.status, answer.body) == (409, "Error: id taken\n")

    def test_a_reload_changes_registration_for_new_connections_only(self) -> None:
        desk = Desk()
        old = desk.house.peer(CODES)
        desk.house.set(registration="exclusive")
        old.says(post({"id": "ana"}))
        new = desk.peer(CODES, post({"id": "ana"}))
        assert [answers(peer.heard)[0].status for peer in (old, new)] == [200, 409]

    def test_fields_of_the_other_port_are_an_error(self) -> None:
        for more in ({"server_uuid": "x"}, {"message": "x"}, {"code": ""}):
            answer = Desk().answer(CODES, post({"id": "bob"} | more))
            assert answer.status == 400
            assert answer.headers["Status"] == "Authentication error"
            assert answer.body.startswith("Error")


class HttpMessageTests(SynchronousTestCase):
    def test_a_form_with_the_three_fields_is_logged(self) -> None:
        desk = Desk()
        request = post(
            {"client_uuid": "ana", "server_uuid": desk.ana, "message": "Some message\r\n"}
        )
        answer = desk.answer(MESSAGES, request)
        assert (answer.status, answer.body) == (200, "")
        assert answer.headers["Status"] == "Authentication success"
        assert answer.headers["Server-Uuid"] == desk.ana
        assert answer.headers["Client-Uuid"] == "ana"
        assert desk.ledger.logged == [Entry("ana", desk.ana, ("Some message\r\n",), PEER)]

    def test_json_under_any_of_its_names_is_logged(self) -> None:
        for key in ("uuid", "code", "token", "unique_code", "server_uuid"):
            desk = Desk()
            body = json.dumps({"id": "ana", key: desk.ana, "msg": "hola", "extra": [1]})
            assert desk.answer(MESSAGES, post(body)).status == 200
            assert desk.kept() == [("ana", desk.ana, "hola")]

    def test_an_id_beyond_ascii_is_percent_encoded_in_the_answer(self) -> None:
        desk = Desk()
        desk.ledger.codes["ñu 100%"] = {"c"}
        answer = desk.answer(MESSAGES, post({"id": "ñu 100%", "code": "c", "message": "m"}))
        assert answer.headers["Client-Uuid"] == "%C3%B1u 100%"

    def test_a_wrong_code_and_an_unknown_id_are_told_alike(self) -> None:
        desk = Desk()
        wrong = desk.answer(MESSAGES, post({"id": "ana", "code": "wrong", "message": "m"}))
        assert wrong == desk.answer(MESSAGES, post({"id": "eve", "code": "c0de", "message": "m"}))
        assert wrong.status == 400
        assert wrong.headers["Status"] == "Authentication error"
        assert wrong.body == "Error: wrong id or code\n"
        assert desk.ledger.logged == []

    def test_an_error_repeats_nothing_of_the_request(self) -> None:
        secret = "s3cr3t"
        full = {"id": "ana", "code": "c0de", "message": "m"}
        bodies: list[bytes | str | dict[str, Any]] = [
            full | {"code": secret},
            full | {"id": secret * 50},
            full | {"message": secret * MESSAGE},
            {"id": secret, "message": secret},
            f"id={secret}&id={secret}",
            f'{{"{secret}": 1, "{secret}": 2}}',
            f'{{"id": "{secret}\\ud800"}}',
            f'{{"id": {secret}}}',
            f'{{"code": ["{secret}"]}}',
            secret.encode() + b"=\xff",
        ]
        desk = Desk()
        for body in bodies:
            peer = desk.peer(MESSAGES, post(body))
            [answer] = answers(peer.heard)
            assert answer.status in (400, 413)
            assert secret not in peer.heard.decode()
        assert desk.ledger.logged == []

    def test_what_is_malformed_never_reaches_the_ledger(self) -> None:
        full = {"id": "ana", "code": "c0de", "message": "m"}
        desk = Desk()
        bodies: list[bytes | str | dict[str, Any]] = [
            {},
            b"",
            {"id": "ana", "code": "c0de"},
            *(full | {key: ""} for key in full),
            full | {"uid": "ana"},
            full | {"message": "x" * (MESSAGE + 1)},
            b"id=ana&code=c0de&message=%ff",
            b"id=ana&code=c0de&message=\xff",
            rb'{"id": "ana", "code": "c0de", "message": "\ud800"}',
            b'{"id": "ana", "code": "c0de", "message": NaN}',
            b'{"id": "ana", "code": "c0de", "message": "a", "message": "b"}',
            b'{"id": "ana", "code": "c0de", "message": "m", "x": ' + b"[" * 60_000,
            b"[" * 60_000,
        ]
        for body in bodies:
            answer = desk.answer(MESSAGES, post(body))
            assert answer.status == 400, body[:60] if isinstance(body, bytes) else body
            assert answer.headers["Status"] == "Authentication error"
            assert answer.body.startswith("Error: ")
        assert desk.ledger.appends == []

    def test_a_message_of_64_kib_fits(self) -> None:
        desk = Desk()
        request = post({"id": "ana", "code": "c0de", "message": "ñ" * (MESSAGE // 2)})
        assert desk.answer(MESSAGES, request).status == 200
        assert len(*desk.ledger.logged[0].messages) == MESSAGE // 2

    def test_a_request_of_more_than_256_kib_is_refused(self) -> None:
        peer = Desk().peer(MESSAGES, post(b"x" * (REQUEST + 1)))
        assert [answer.status for answer in answers(peer.heard)] == [413]
        assert peer.hung_up


class HttpTests(SynchronousTestCase):
    def test_everything_is_post_to_the_root(self) -> None:
        desk = Desk()
        for line, status in {
            "POST /?x=y HTTP/1.1": 200,
            "POST http://x/ HTTP/1.1": 200,
            "POST /x HTTP/1.1": 404,
            "GET /favicon.ico HTTP/1.1": 404,
            "GET / HTTP/1.1": 405,
            "PUT / HTTP/1.1": 405,
            "OPTIONS / HTTP/1.1": 405,
        }.items():
            # after a first request, so that any line is HTTP
            peer = desk.peer(CODES, post({"id": "bob"}), post({"id": "bob"}, line=line))
            _, answer = answers(peer.heard)
            assert answer.status == status, line
            assert (answer.headers.get("Allow") == "POST") is (status == 405)

    def test_what_the_ledger_says_becomes_a_status(self) -> None:
        for trouble, status, body in (
            (Refused.BUSY, 503, "Error: busy\n"),
            (Refused.BROKEN, 503, "Error: not stored\n"),
        ):
            desk = Desk(MemoryLedger(trouble=trouble))
            for port, more in ((CODES, {}), (MESSAGES, {"code": "c0de", "message": "m"})):
                answer = desk.answer(port, post({"id": "ana"} | more))
                assert (answer.status, answer.body) == (status, body)
                assert answer.headers["Retry-After"] == "1"
                assert "Status" not in answer.headers

    def test_requests_of_one_read_are_one_call_and_one_write(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        full = {"id": "ana", "code": "c0de"}
        peer = desk.peer(
            MESSAGES,
            post(full | {"message": "1"})
            + post(full)
            + post(full | {"code": "x", "message": "2"})
            + post(full | {"message": "3"}),
        )
        assert desk.ledger.appends == [["1", "2", "3"]]
        assert peer.heard == b""
        with patch.object(Memory, "write", autospec=True, side_effect=Memory.write) as write:
            desk.ledger.answer()
        write.assert_called_once()
        assert [answer.status for answer in answers(peer.heard)] == [200, 400, 400, 200]

    def test_answers_keep_the_order_of_the_requests_whatever_the_ledger_does(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(CODES, post({"id": "a"}) + post({}), post({"id": "b"}), post({"id": "c"}))
        desk.ledger.answer(2)
        desk.ledger.answer(1)
        assert peer.heard == b""
        desk.ledger.answer()
        heard = answers(peer.heard)
        assert [answer.status for answer in heard] == [200, 400, 200, 200]
        assert [answer.body for answer in heard if answer.status == 200] == [
            *desk.ledger.codes["a"],
            *desk.ledger.codes["b"],
            *desk.ledger.codes["c"],
        ]

    def test_no_cut_of_pipelined_requests_changes_the_answers(self) -> None:
        stream = (
            b"POST / HTTP/1.1\r\nHost:\r\nContent-Length:22\r\n\r\nid=ana&code=c0de&msg=1"
            b"POST / HTTP/1.1\r\nHost:\r\n\r\n"
            b"POST / HTTP/1.0\r\nTransfer-Encoding: x\r\nContent-Length: 3\r\n\r\nid="
        )
        whole = Desk().peer(MESSAGES, stream).heard
        assert [answer.status for answer in answers(whole)] == [200, 400, 501]
        for pieces in cuts(stream):
            desk = Desk()
            peer = desk.peer(MESSAGES, *pieces)
            assert peer.heard == whole
            assert desk.kept() == [("ana", "c0de", "1")]
            assert peer.hung_up
            assert peer.outcome == "answered"

    def test_a_half_closed_peer_gets_what_it_is_owed(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(CODES, post({"id": "a"}) + post({"id": "b"}))
        peer.ends()
        assert not peer.hung_up
        desk.ledger.answer()
        desk.ledger.answer()
        assert [answer.status for answer in answers(peer.heard)] == [200, 200]
        assert peer.hung_up
        assert peer.outcome == "left"

    def test_a_request_cut_off_by_fin_is_told_so(self) -> None:
        peer = Desk().peer(CODES, post({"id": "a"})[:-1])
        peer.ends()
        assert [answer.status for answer in answers(peer.heard)] == [400]
        assert peer.hung_up

    def test_what_http_cannot_mean_is_one_error_and_the_end(self) -> None:
        peer = Desk().peer(
            CODES, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n" * 2 + b"\r\n"
        )
        assert [answer.status for answer in answers(peer.heard)] == [400]
        assert peer.hung_up

    def test_an_endless_request_line_is_one_error_and_the_end(self) -> None:
        for port in (CODES, MESSAGES):
            peer = Desk().peer(port, b"GET /", *[b"a" * 5000] * 14)
            assert [answer.status for answer in answers(peer.heard)] == [431]
            assert peer.hung_up

    def test_reading_pauses_while_many_requests_wait_and_goes_on_at_half(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        one = post({"id": "ana", "code": "c0de", "message": "m"})
        peer = desk.peer(MESSAGES, *[one * 64] * (Http.MOST // 64))
        assert peer.transport.reading
        peer.says(one)
        assert not peer.transport.reading
        desk.ledger.answer()
        assert not peer.transport.reading
        desk.ledger.answer()
        assert not peer.transport.reading
        desk.ledger.answer()
        assert peer.transport.reading
        while desk.ledger.waiting:
            desk.ledger.answer()
        assert len(answers(peer.heard)) == Http.MOST + 1

    def test_reading_pauses_while_many_bytes_wait(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        one = post({"id": "ana", "code": "c0de", "message": "m" * 60_000})
        peer = desk.peer(MESSAGES)
        sent = 0
        while peer.transport.reading:
            peer.says(one)
            sent += 1
        assert sent == Handshake.WAITING // 60_000 + 1
        for _ in range(sent // 2 + 1):
            assert not peer.transport.reading
            desk.ledger.answer()
        assert peer.transport.reading

    def test_a_read_with_very_many_requests_is_served_over_several_turns(self) -> None:
        desk = Desk()
        tiny = b"GET / HTTP/1.1\r\nHost:\r\n\r\n"
        peer = desk.peer(CODES, tiny * 1000)
        assert not peer.transport.reading
        assert Http.TURN - 1 <= len(answers(peer.heard)) <= Http.TURN
        peer.waits(0)
        assert peer.transport.reading
        assert len(answers(peer.heard)) == 1000

    def test_an_expectation_is_met(self) -> None:
        request = post({"id": "bob"}, "Expect: 100-continue")
        body = request.index(b"id=bob")
        peer = Desk().peer(CODES, request[:body])
        assert peer.heard == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.says(request[body:])
        assert answers(peer.heard.partition(b"\r\n\r\n")[2])[0].status == 200


class RawCodeTests(SynchronousTestCase):
    def test_an_id_ends_at_lf_and_the_code_has_lf_then_too(self) -> None:
        for end in (b"\n", b"\r\n", b"\nmore\n"):
            desk = Desk()
            peer = desk.peer(CODES, b"bob" + end)
            assert peer.heard == f"{next(iter(desk.ledger.codes['bob']))}\n".encode()
            assert peer.hung_up
            assert peer.outcome == "answered"

    def test_an_id_ends_at_fin_and_the_code_has_no_lf_then(self) -> None:
        desk = Desk()
        peer = desk.peer(CODES, "ñandú".encode())
        assert peer.heard == b""
        peer.ends()
        assert peer.heard.decode() in desk.ledger.codes["ñandú"]
        assert peer.hung_up

    def test_an_id_ends_at_40_ms_of_silence_counted_from_its_last_byte(self) -> None:
        desk = Desk()
        peer = desk.house.peer(CODES)
        for byte in b"ab-7":
            peer.says(bytes([byte]))
            peer.waits(CODE_SILENCE * 0.9)
        assert peer.heard == b""
        peer.waits(CODE_SILENCE * 0.1)
        assert peer.heard.decode() in desk.ledger.codes["ab-7"]
        assert peer.hung_up

    def test_json_ends_as_text_does(self) -> None:
        for said, end in (
            (b'{"id": "bob"}', b"\n"),
            (b'{\n "uid"\n: 77\n}', b""),
            (b'{"id":7}', b" \r\n"),
        ):
            desk = Desk()
            peer = desk.peer(CODES, said)
            assert not peer.hung_up
            if end:
                peer.says(end)
            else:
                peer.waits(CODE_SILENCE)
            [ident] = desk.ledger.codes.keys() - {"ana"}
            assert ident in ("bob", "77", "7")
            assert peer.heard == next(iter(desk.ledger.codes[ident])).encode() + end[-1:]
            assert peer.hung_up

    def test_what_only_begins_like_http_json_or_keep_is_an_id(self) -> None:
        for ident in ("POS", "POST", "POST ", "GET /", "DELETE /x", "{", "KEEP", "KE", "{x"):
            desk = Desk()
            peer = desk.peer(CODES, ident.encode())
            peer.waits(CODE_SILENCE)
            peer.ends()
            assert peer.heard.decode() in desk.ledger.codes[ident]
        for line in (b"KEEP\n", b"GET /\n", b"POST / HTTP/2.0\r\n", b"{x\n"):
            desk = Desk()
            assert re.fullmatch(rb"[0-9a-f]{32}\n", desk.peer(CODES, line).heard)
            assert line.strip().decode() in desk.ledger.codes

    def test_a_request_line_is_waited_for(self) -> None:
        peer = Desk().peer(CODES, b"POST /")
        peer.waits(29)
        peer.says(post({"id": "bob"})[6:])
        assert [answer.status for answer in answers(peer.heard)] == [200]

    def test_no_cut_changes_the_answer(self) -> None:
        for stream in ("ñandú 7\r\nrest".encode(), b'{ "id" : "\\"}{" \n, "x": {}}\nrest'):
            whole = Desk().peer(CODES, stream).heard
            assert len(whole) == 33
            for pieces in cuts(stream):
                desk = Desk()
                peer = desk.house.peer(CODES)
                for piece in pieces:
                    peer.says(piece)
                    peer.waits(CODE_SILENCE / 2)
                assert peer.heard == whole
                assert len(desk.ledger.codes) == 2

    def test_what_is_no_id_gets_one_error(self) -> None:
        for said in (
            b"\n",
            b" \n",
            b"\r\n",
            b"a\tb\n",
            b"\xff\n",
            b"\x00\n",
            b"a" * 129 + b"\n",
            b'{"id": "a", "code": "b"}\n',
            b'{"id": ""}\n',
            b'{"id": "a"} x\n',
            b'{"id": "\\ud800"}\n',
            b"{}\n",
            b'{"x": ' + b"[" * 60_000 + b"}\n",
        ):
            desk = Desk()
            peer = desk.peer(CODES, said)
            assert re.fullmatch(rb"ERR [^\n]+\n", peer.heard), said[:20]
            assert peer.hung_up
            assert peer.outcome == "refused"
            assert desk.ledger.codes.keys() == {"ana"}

    def test_json_that_stays_unfinished_is_an_error(self) -> None:
        peer = Desk().peer(CODES, b'{"id": "a\n')
        peer.waits(CODE_SILENCE)
        assert peer.heard == b"ERR not JSON\n"

    def test_what_the_ledger_refuses_is_one_error(self) -> None:
        desk = Desk(options=Options(registration="exclusive"))
        assert desk.peer(CODES, b"ana\n").heard == b"ERR id taken\n"
        desk = Desk(MemoryLedger(trouble=Refused.BUSY))
        assert desk.peer(CODES, b"ana\n").heard == b"ERR busy\n"

    def test_what_comes_after_the_id_is_dropped(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(CODES, b"bob\n", b"eve\n")
        peer.ends()
        assert not peer.hung_up
        desk.ledger.answer()
        assert len(peer.heard) == 33
        assert desk.ledger.codes.keys() == {"ana", "bob"}

    def test_a_peer_that_leaves_without_a_word_is_owed_nothing(self) -> None:
        for port in (CODES, MESSAGES):
            peer = Desk().house.peer(port)
            peer.ends()
            assert peer.heard == b""
            assert peer.hung_up
            assert not peer.transport.reset
            assert peer.outcome == "left"


class RawMessageTests(SynchronousTestCase):
    def test_three_lines_end_at_the_third_lf(self) -> None:
        for end in (b"\n", b"\r\n"):
            desk = Desk()
            peer = desk.peer(MESSAGES, end.join((b"hola y adios", b"ana", b"c0de", b"more")))
            assert peer.heard == b"OK\n"
            assert peer.hung_up
            assert desk.kept() == [("ana", "c0de", "hola y adios")]

    def test_words_and_quoted_texts_end_at_fin_or_300_ms_of_silence(self) -> None:
        for said, text in (
            (b"ana c0de words with blanks", "words with blanks"),
            (b"ana c0de  two lines\r\nof text\r\n", " two lines\r\nof text"),
            (b'"one text" ana c0de', "one text"),
            (b'"one\ntext" ana c0de\n', "one\ntext"),
            (b"three\nana\nc0de", "three"),
        ):
            desk = Desk()
            peer = desk.peer(MESSAGES, said)
            peer.waits(MESSAGE_SILENCE * 0.9)
            assert peer.heard == b""
            peer.waits(MESSAGE_SILENCE * 0.1)
            assert peer.heard == b"OK\n"
            other = desk.peer(MESSAGES, said)
            other.ends()
            assert other.heard == b"OK\n"
            assert other.hung_up
            assert desk.kept() == [("ana", "c0de", text)] * 2

    def test_no_cut_changes_what_is_kept(self) -> None:
        for stream in (
            "a ñ b\r\nana\r\nc0de\r\n".encode(),
            b'{ "id":"ana","code":"c0de",\n"message":"\\"}{\\\\"}',
        ):
            whole = Desk()
            assert len(whole.peer(MESSAGES, stream).heard) in (0, 3)
            assert len(whole.kept()) == 1
            for pieces in cuts(stream):
                desk = Desk()
                peer = desk.house.peer(MESSAGES)
                for piece in pieces:
                    peer.says(piece)
                    peer.waits(MESSAGE_SILENCE / 2)
                assert desk.kept() == whole.kept()
                assert peer.hung_up

    def test_success_of_json_is_told_by_fin_alone(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(MESSAGES, b'{"uid": "ana", "token": "c0de", "msg": "m"}')
        assert not peer.hung_up
        assert desk.resets(peer)
        desk.ledger.answer()
        assert peer.heard == b""
        assert peer.hung_up
        assert not peer.transport.reset
        assert not desk.resets(peer)
        assert peer.outcome == "answered"
        assert desk.kept() == [("ana", "c0de", "m")]

    def test_fin_can_mean_success_only_of_what_is_kept(self) -> None:
        def reset(desk: Desk, *said: bytes) -> bool:
            return desk.resets(desk.peer(MESSAGES, *said))

        late = Desk(MemoryLedger(late=True))
        for waiting in (b"", b"PO", b"POST /", b"{", b'{"', b'{"id": "ana", "message": "m"'):
            assert reset(late, *filter(None, [waiting]))
        for spoken in (b"ana c0de m", b"KEEP\n", post({}), b"\x80", b"POST / x\n", b'{"id": 7}'):
            assert not reset(late, spoken)
        assert SPEC.ports[1].resets

    def test_json_takes_its_time_but_not_for_ever(self) -> None:
        desk = Desk()
        peer = desk.peer(MESSAGES, b'{"id": "ana", "code": "c0de"')
        peer.waits(STALL * 0.9)
        peer.says(b',"message": "m"')
        peer.waits(STALL * 0.9)
        assert not peer.hung_up
        peer.waits(STALL * 0.1)
        assert peer.heard == b"ERR not JSON\n"
        assert peer.hung_up
        assert not desk.resets(peer)

    def test_json_cut_off_by_fin_is_an_error(self) -> None:
        peer = Desk().peer(MESSAGES, b'{"id": "ana"')
        peer.ends()
        assert peer.heard == b"ERR not JSON\n"

    def test_keep_without_its_lf_is_a_text_and_no_message(self) -> None:
        for said in (b"KEEP", b"KEEP\r"):
            peer = Desk().peer(MESSAGES, said)
            peer.waits(MESSAGE_SILENCE)
            assert peer.heard.startswith(b"ERR ")
            assert peer.hung_up

    def test_the_pair_is_never_searched_for_in_the_text(self) -> None:
        for said in (
            b"hola ana c0de",
            b"hola ana c0de m",
            b'"hola" ana c0de m',
            b" ana c0de m",
            b"ana\nc0de\nhola\n",
            b"ana c0de line\nline\nline\n",
        ):
            desk = Desk()
            peer = desk.peer(MESSAGES, said)
            peer.ends()
            assert re.fullmatch(rb"ERR [^\n]+\n", peer.heard), said
            assert desk.ledger.logged == []

    def test_what_is_no_message_gets_one_error(self) -> None:
        for said in (
            b"\n\n\n",
            b"ana c0de",
            b"ana c0de ",
            b"ana  m",
            b" c0de m",
            b"ana c0de \xff",
            b"ana nope m",
            b"\x80\x04\x95" + b"x" * 100,
            b"ana c0de " + b"x" * (MESSAGE + 1),
            b"a" * 129 + b" c0de m",
            b'{"id": "ana", "code": "c0de"}',
            b'{"id": "ana", "code": "c0de", "message": 7}',
            b'{"id": "ana", "code": "c0de", "message": ' + b"[" * 60_000 + b"}",
        ):
            desk = Desk()
            peer = desk.peer(MESSAGES, said)
            peer.ends()
            assert re.fullmatch(rb"ERR [^\n]+\n", peer.heard), said[:20]
            assert peer.hung_up
            assert desk.ledger.logged == []

    def test_a_pickle_is_refused_with_its_first_byte(self) -> None:
        for port in (CODES, MESSAGES):
            peer = Desk().peer(port, b"\x80")
            assert peer.heard.startswith(b"ERR pickles")
            assert peer.hung_up

    def test_a_request_is_bounded_while_it_arrives(self) -> None:
        for begun in (b"ana c0de ", b'{"id": "', b"x\n"):
            desk = Desk()
            peer = desk.peer(MESSAGES, begun)
            sent = 0
            while not peer.hung_up:
                peer.says(b"x" * 1000)
                sent += 1000
                assert sent <= REQUEST + 1000
            assert re.fullmatch(rb"ERR [^\n]+\n", peer.heard)
            peer.says(b"x" * 1000)
            assert peer.heard.count(b"ERR") == 1

    def test_a_message_of_64_kib_fits_however_it_is_written(self) -> None:
        text = "\x01" * (MESSAGE // 4)
        full = {"id": "ana", "code": "c0de", "message": text}
        for said in (
            b"ana c0de " + text.encode() * 4,
            b'"' + text.encode() * 4 + b'" ana c0de',
            text.encode() * 4 + b"\nana\nc0de\n",
            json.dumps(full).encode(),
        ):
            desk = Desk()
            peer = desk.peer(MESSAGES, said)
            peer.ends()
            assert peer.heard in (b"OK\n", b"")
            assert desk.kept()[0][2][: len(text)] == text

    def test_what_the_ledger_refuses_is_one_error(self) -> None:
        for said in (b"ana c0de m\n\n\n", b'{"id": "ana", "code": "c0de", "message": "m"}'):
            desk = Desk(MemoryLedger(trouble=Refused.BROKEN))
            peer = desk.peer(MESSAGES, said)
            peer.waits(MESSAGE_SILENCE)
            assert b"ERR" in peer.heard
            assert not desk.resets(peer)
        assert peer.heard == b"ERR not stored\n"


class KeepTests(SynchronousTestCase):
    STREAM = (
        b"KEEP\r\nana c0de one\nana c0de two words\r\nana nope three\n\n"
        b"ana c0de\nana c0de \xff\nana c0de \r\nana c0de  four"
    )

    def test_each_line_gets_its_line_in_order(self) -> None:
        desk = Desk()
        peer = desk.peer(MESSAGES, self.STREAM)
        peer.ends()
        starts = [line[:6] for line in peer.heard.decode().splitlines()]
        bad = "ERR a "
        assert starts == ["OK 1", "OK 2", "ERR wr", bad, bad, "ERR no", bad, "OK 3"]
        assert [text for _, _, text in desk.kept()] == ["one", "two words", " four"]
        assert len(desk.ledger.appends) == 2
        assert peer.hung_up
        assert peer.outcome == "left"

    def test_no_cut_changes_the_answers(self) -> None:
        whole = Desk().peer(MESSAGES, self.STREAM)
        whole.ends()
        for pieces in cuts(self.STREAM):
            desk = Desk()
            peer = desk.peer(MESSAGES, *pieces)
            peer.ends()
            assert peer.heard == whole.heard
            assert len(desk.ledger.logged) == 3

    def test_answers_wait_for_the_ledger_and_keep_their_order(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        line = b"ana c0de m\n"
        peer = desk.peer(MESSAGES, b"KEEP\n" + line + b"\n", line * 2, b"\n", line)
        assert [len(call) for call in desk.ledger.appends] == [1, 2, 1]
        desk.ledger.answer(2)
        desk.ledger.answer(1)
        assert peer.heard == b""
        peer.ends()
        assert not peer.hung_up
        desk.ledger.answer()
        assert re.fullmatch(rb"OK 1\nERR .*\nOK 2\nOK 3\nERR .*\nOK 4\n", peer.heard)
        assert peer.hung_up

    def test_no_silence_ends_it(self) -> None:
        desk = Desk()
        peer = desk.peer(MESSAGES, b"KEEP\n", b"ana c0de be")
        peer.waits(1)
        desk.house.clock.pump([100.0] * 60)
        assert not peer.hung_up
        peer.says(b"gun\n")
        assert peer.heard == b"OK 1\n"
        assert desk.kept() == [("ana", "c0de", "begun")]

    def test_an_overlong_line_is_one_error_in_its_place(self) -> None:
        desk = Desk()
        peer = desk.peer(MESSAGES, b"KEEP\nana c0de one\n", b"x" * 50_000, b"x" * 50_000)
        peer.says(b"x" * KEPT_LINE + b"\nana c0de two\n")
        peer.says(b"ana c0de " + b"x" * (MESSAGE + 1) + b"\nana c0de " + b"x" * MESSAGE + b"\n")
        assert re.fullmatch(rb"OK 1\nERR .*\nOK 2\nERR .*\nOK 3\n", peer.heard)

    def test_an_overlong_line_that_fin_ends_has_had_its_answer(self) -> None:
        peer = Desk().peer(MESSAGES, b"KEEP\n" + b"x" * (KEPT_LINE + 1))
        peer.ends()
        assert peer.heard.count(b"\n") == 1
        assert peer.hung_up

    def test_trouble_is_told_line_by_line(self) -> None:
        for trouble in (Refused.BUSY, Refused.BROKEN):
            desk = Desk(MemoryLedger(trouble=trouble))
            peer = desk.peer(MESSAGES, b"KEEP\n" + b"ana c0de m\n" * 2)
            assert peer.heard == f"ERR {trouble.value}\n".encode() * 2
            assert not peer.hung_up

    def test_reading_pauses_while_many_lines_wait_and_goes_on_at_half(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        line = b"ana c0de m\n"
        peer = desk.peer(MESSAGES, b"KEEP\n", *[line * 1024] * (Keep.MOST // 1024))
        assert peer.transport.reading
        peer.says(line)
        for _ in range(Keep.MOST // 1024 // 2 + 1):
            assert not peer.transport.reading
            desk.ledger.answer()
        assert peer.transport.reading
        while desk.ledger.waiting:
            desk.ledger.answer()
        assert peer.heard.count(b"OK") == Keep.MOST + 1

    def test_a_peer_that_does_not_read_is_not_read(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(MESSAGES, b"KEEP\nana c0de m\n")
        peer.transport.full = True
        desk.ledger.answer()
        assert not peer.transport.reading
        peer.connection.resumeProducing()
        assert peer.transport.reading

    def test_a_slow_ledger_and_a_slow_reader_must_both_have_caught_up(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(MESSAGES, b"KEEP\n", b"\n" * 1000, b"ana c0de " + b"m" * 60_000 + b"\n")
        while peer.transport.reading:
            peer.says(b"ana c0de " + b"m" * 60_000 + b"\n")
        peer.connection.pauseProducing()
        peer.connection.resumeProducing()
        assert not peer.transport.reading
        peer.connection.pauseProducing()
        while desk.ledger.waiting:
            desk.ledger.answer()
        assert not peer.transport.reading
        peer.connection.resumeProducing()
        assert peer.transport.reading

    def test_a_flood_of_tiny_lines_is_served_over_several_turns(self) -> None:
        desk = Desk()
        peer = desk.peer(MESSAGES, b"KEEP\n" + b"ana c0de m\n" * 5000 + b"ana c0de last")
        assert not peer.transport.reading
        first = peer.heard.count(b"\n")
        assert 1000 < first <= Keep.TURN
        peer.connection.dataReceived(b" words\n")  # had been read before the pause
        peer.ends()
        assert not peer.hung_up
        desk.house.clock.pump([0] * 3)
        assert peer.heard.count(b"OK") == 5001
        assert desk.kept()[-1] == ("ana", "c0de", "last words")
        assert peer.hung_up
        assert peer.outcome == "left"

    def test_while_the_ledger_is_behind_lines_wait_unread_and_none_is_refused(self) -> None:
        desk = Desk()
        clock = desk.house.clock
        peers = [desk.peer(MESSAGES, b"KEEP\nana c0de first\n") for _ in range(10)]
        desk.ledger.behind = True
        for peer in peers:
            peer.says(b"ana c0de second\nana c0de thi")
            assert not peer.transport.reading
        peers[0].connection.dataReceived(b"rd\n")  # had been read before the pause
        peers[0].ends()
        peers[1].connection.drain(1)
        peers[2].resets()
        clock.pump([Turnstile.PAUSE] * 20)
        assert [peer.heard.count(b"OK") for peer in peers] == [1] * 10
        assert [peer.hung_up for peer in peers] == [False, True] + [False] * 8
        desk.ledger.behind = False
        clock.advance(Turnstile.PAUSE)
        assert peers[0].heard.count(b"OK") == 3
        assert peers[0].hung_up
        for peer in peers[3:]:
            assert peer.heard.count(b"OK") == 2
            assert peer.transport.reading

    def test_few_pass_before_the_ledger_is_looked_at_again(self) -> None:
        clock, ledger, passed = Clock(), MemoryLedger(behind=True), list[int]()
        turnstile = Turnstile(ledger, clock)

        def comes(number: int) -> None:
            passed.append(number)
            ledger.behind = True

        for number in range(10):
            turnstile.wait(partial(comes, number))
        clock.advance(Turnstile.PAUSE)
        assert passed == []
        for count in (4, 8, 10):
            ledger.behind = False
            clock.advance(Turnstile.PAUSE)
            assert passed == list(range(count))
        assert clock.getDelayedCalls() == []

    def test_a_flood_waits_for_a_ledger_that_is_behind(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(MESSAGES, b"KEEP\n" + b"ana c0de m\n" * 20_000)
        desk.house.clock.pump([0] * 50)
        asked = sum(map(len, desk.ledger.appends))
        assert Keep.MOST < asked <= Keep.MOST + Keep.TURN
        peer.ends()
        for _ in range(40):
            while desk.ledger.waiting:
                desk.ledger.answer()
            peer.waits(0)
        assert peer.heard.count(b"OK") == 20_000
        assert peer.hung_up

    def test_a_peer_that_goes_in_the_middle_of_a_flood_leaves_nothing_behind(self) -> None:
        desk = Desk(options=Options(idle_timeout=0))
        peer = desk.peer(MESSAGES, b"KEEP\n" + b"\n" * 60_000)
        peer.resets()
        assert desk.house.clock.getDelayedCalls() == []
        assert len(peer.connection.live) == 0


class EndingTests(SynchronousTestCase):
    """How connections end when nobody asked them to."""

    SILENCE = 300.0

    def wait(self, desk: Desk, seconds: float = SILENCE) -> None:
        desk.house.clock.pump([seconds / 4] * 5)

    def test_silence_closes_an_http_connection_in_between_requests(self) -> None:
        desk = Desk()
        peer = desk.peer(CODES, post({"id": "bob"}))
        before = peer.heard
        self.wait(desk)
        assert peer.hung_up
        assert peer.heard == before
        assert peer.outcome == "silent"

    def test_silence_within_a_request_is_told_so(self) -> None:
        desk = Desk()
        peer = desk.peer(CODES, post({"id": "bob"})[:-1])
        self.wait(desk)
        assert [answer.status for answer in answers(peer.heard)] == [408]
        assert peer.hung_up
        assert peer.outcome == "slow"

    def test_a_request_that_trickles_has_no_more_time_than_others(self) -> None:
        whole = post({"id": "bob"}, f"X: {'x' * 60}")
        for gap, heard in ((0.2, [200]), (1.0, [408])):
            desk = Desk()
            peer = desk.peer(CODES, whole[:6])
            for byte in whole[6:]:
                if peer.transport.reading:
                    peer.says(bytes([byte]))
                    peer.waits(gap)
            assert [answer.status for answer in answers(peer.heard)] == heard, gap
            assert peer.hung_up is (heard == [408])
            assert peer.outcome == ("slow" if gap == 1.0 else "left")

    def test_each_request_has_its_own_time(self) -> None:
        desk = Desk()
        whole = post({"id": "bob"})
        peer = desk.peer(CODES, whole[:9])
        for _ in range(9):  # each read ends one and begins the next
            peer.waits(20)
            peer.says(whole[9:] + whole[:9])
        assert [answer.status for answer in answers(peer.heard)] == [200] * 9
        peer.waits(31)
        assert answers(peer.heard)[-1].status == 408

    def test_who_is_not_read_loses_no_time(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        whole = post({"id": "ana", "code": "c0de", "message": "m"})
        peer = desk.peer(MESSAGES, whole + whole[:9])
        peer.waits(200)
        desk.ledger.answer()
        peer.waits(29)
        peer.says(whole[9:])
        desk.ledger.answer()
        assert [answer.status for answer in answers(peer.heard)] == [200, 200]

    def test_silence_while_the_ledger_works_ends_nothing(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        full = {"id": "ana", "code": "c0de", "message": "m"}
        said = (post(full), b"m\nana\nc0de\n", json.dumps(full).encode(), b"KEEP\nana c0de m\n")
        peers = [desk.peer(MESSAGES, first) for first in said]
        self.wait(desk)
        assert not any(peer.hung_up for peer in peers)
        while desk.ledger.waiting:
            desk.ledger.answer()
        assert [peer.heard[:4] for peer in peers] == [b"HTTP", b"OK\n", b"", b"OK 4"]

    def test_a_peer_that_never_speaks_is_reset(self) -> None:
        for port in (CODES, MESSAGES):
            desk = Desk()
            peer = desk.house.peer(port)
            self.wait(desk)
            assert peer.hung_up
            assert peer.transport.reset
            assert desk.house.factories[port].live.outcomes == {"silent": 1}

    def test_a_peer_that_does_not_even_take_its_answer_is_reset_in_the_end(self) -> None:
        desk = Desk()
        peer = desk.peer(CODES, post({"id": "bob"}))
        peer.connection.close("answered")  # its FIN never gets out: the output is full
        peer.transport._due.clear()
        self.wait(desk)
        assert peer.transport.reset
        assert peer.outcome == "answered"

    def test_idle_timeout_0_waits_for_ever(self) -> None:
        desk = Desk(options=Options(idle_timeout=0))
        peers = [desk.house.peer(CODES), desk.peer(CODES, post({"id": "bob"}))]
        self.wait(desk, 1e6)
        assert not any(peer.hung_up for peer in peers)

    def test_a_drain_closes_idle_connections_at_once(self) -> None:
        desk = Desk()
        http, keep = desk.peer(MESSAGES, post({})), desk.peer(MESSAGES, b"KEEP\nana c0de m\n")
        heard = http.heard
        for peer in (http, keep):
            peer.connection.drain(5)
            assert peer.hung_up
            assert not peer.transport.reset
            assert peer.outcome == "drained"
        assert http.heard == heard

    def test_a_drain_resets_who_has_not_spoken(self) -> None:
        for said in (b"", b"POST /"):
            peer = Desk().peer(MESSAGES, *filter(None, [said]))
            peer.connection.drain(5)
            peer.transport.settle()
            assert peer.transport.reset
            assert peer.outcome == "drained"

    def test_a_drain_lets_raw_requests_come_to_their_end(self) -> None:
        for said in (b"ana c0de m", b'{"id": "ana", "code": "c0de", "message": "m"', b"{", b"KE"):
            peer = Desk().peer(MESSAGES, said)
            peer.connection.drain(5)
            assert not peer.hung_up
            peer.waits(STALL)
            assert peer.hung_up
        for said in (b"ana\nc0", b"m\nana\nc0de\n"):
            desk = Desk(MemoryLedger(late=True))
            peer = desk.peer(MESSAGES, said)
            peer.connection.drain(5)
            peer.waits(MESSAGE_SILENCE)
            assert peer.hung_up is (desk.ledger.waiting == [])

    def test_a_drain_answers_what_waits_and_closes_with_the_last_answer(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(CODES, post({"id": "a"}), post({"id": "b"}) + post({"id": "c"})[:-1])
        peer.connection.drain(5)
        assert not peer.hung_up
        desk.ledger.answer()
        desk.ledger.answer()
        heard = answers(peer.heard)
        assert [answer.status for answer in heard] == [200, 200]
        assert ["Connection" in answer.headers for answer in heard] == [False, True]
        assert peer.hung_up
        assert peer.outcome == "drained"

    def test_a_drain_tells_a_request_that_is_not_whole_to_come_again(self) -> None:
        peer = Desk().peer(CODES, post({"id": "a"})[:-1])
        peer.connection.drain(5)
        [answer] = answers(peer.heard)
        assert answer.status == 503
        assert answer.headers["Retry-After"] == "1"
        assert peer.hung_up

    def test_a_drain_of_keep_answers_what_it_took_and_takes_no_more(self) -> None:
        desk = Desk(MemoryLedger(late=True))
        peer = desk.peer(MESSAGES, b"KEEP\nana c0de m\nana c0de n")
        peer.connection.drain(5)
        peer.says(b"\nana c0de o\n")
        peer.ends()
        assert not peer.hung_up
        desk.ledger.answer()
        assert peer.heard == b"OK 1\n"
        assert peer.hung_up
        assert peer.outcome == "drained"

    def test_a_drain_leaves_alone_what_is_closing(self) -> None:
        peer = Desk().peer(CODES, b"bob\n")
        peer.connection.drain(5)
        assert peer.outcome == "answered"

    def test_an_answer_for_a_peer_that_is_gone_is_harmless(self) -> None:
        full = {"id": "ana", "code": "c0de", "message": "m"}
        for said in (
            post(full),
            b"m\nana\nc0de\n",
            json.dumps(full).encode(),
            b"KEEP\nana c0de m\n",
        ):
            desk = Desk(MemoryLedger(late=True))
            peer = desk.peer(MESSAGES, said)
            peer.resets()
            desk.ledger.answer()
            assert peer.heard == b""
            assert peer.outcome == "reset"
            assert len(desk.ledger.logged) == 1

    def test_a_ledger_that_fails_costs_the_connection_and_says_why(self) -> None:
        class Failing(MemoryLedger):
            def append(self, entries: Any) -> Deferred[list[int | Refused]]:
                return fail(ZeroDivisionError("by nobody"))

        for said in (
            post({"id": "a", "code": "c", "message": "m"}),
            b"KEEP\na c m\n",
            b"m\na\nc\n",
        ):
            peer = Desk(Failing()).peer(MESSAGES, said)
            assert peer.heard == b""
            assert peer.transport.reset
            assert peer.outcome == "failed"
            assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1


PIECES = st.lists(
    st.sampled_from(
        [
            b"POST / HTTP/1.1\r\n",
            b"Host: x\r\n",
            b"Content-Length: 4\r\n\r\n",
            b"\r\n",
            b"id=a",
            post({"id": "ana", "code": "c0de", "message": "m"}),
            post({"id": "ana", "code": "nope", "message": "m"}),
            post('{"id": "ana"}'),
            b"KEEP\n",
            b"ana c0de m\n",
            b"ana c0de ",
            b'"m" ana c0de',
            b"ana\n",
            b"c0de\n",
            b'{"id": "ana", "code": "c0de", "message": "m"}',
            b'{"id": ',
            b'"ana"}',
            b"\\ud800",
            b"\x80",
            b"\xff",
            b"\x00\n",
            b" ",
            b"\n",
        ]
    )
    | st.binary(max_size=12),
    max_size=8,
)


class HostileTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=300)
    @given(st.sampled_from([CODES, MESSAGES]), PIECES, st.booleans(), st.booleans())
    @example(MESSAGES, [b'"m" ana c0de', b"ana\n", b"c0de\n"], True, False)
    @example(MESSAGES, [b'{"id": "\\ud800", "code": "c0de", "message": "m"}'], True, False)
    def test_whatever_comes_is_answered_well_or_not_at_all(
        self, port: str, pieces: list[bytes], ends: bool, late: bool
    ) -> None:
        desk = Desk(MemoryLedger(late=late))
        peer = desk.house.peer(port)
        for piece in filter(None, pieces):
            if peer.transport.reading:
                peer.says(piece)
        if ends:
            peer.ends()
        while desk.ledger.waiting:
            desk.ledger.answer(-1)
        peer.waits(STALL)
        heard, sent = peer.heard, b"".join(pieces)
        if heard.startswith(b"HTTP/"):
            # a 100 Continue cannot be among these: nobody expects
            assert all(answer.status in range(200, 506) for answer in answers(heard))
        elif port == CODES:
            assert re.fullmatch(rb"([0-9a-f]{32}\n?|ERR [ -~]+\n)?", heard)
        else:
            assert re.fullmatch(rb"(OK\n|((OK [0-9]+|ERR [ -~]+)\n)*)", heard)
        assert not self.flushLoggedErrors()
        for entry in desk.ledger.asked:
            # whatever reached the ledger stood there word by word
            assert all(part.encode() in sent for part in (entry.ident, entry.code))
        if ends and sent:
            assert peer.hung_up

    @settings(deadline=None, max_examples=200)
    @given(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
        st.sampled_from(["{0} evil x", '"{0}" evil x', "m\n{0}\nevil", "{0}", 'x" ana c0de "{0}']),
    )
    def test_no_text_passes_for_a_pair(self, inner: str, shape: str) -> None:
        text = shape.format(inner)
        escaped = json.dumps({"id": "ana", "code": "c0de", "message": text}).encode()
        said = [f'"{text}" ana c0de'.encode(), f"ana c0de {text}".encode(), escaped]
        if "\n" in text:
            del said[:2]  # more lines than one may be another format
        for request in said:
            desk = Desk()
            peer = desk.peer(MESSAGES, request)
            peer.ends()
            assert desk.kept() == [("ana", "c0de", text)]


class GuessingTests(SynchronousTestCase):
    """Wrong codes of other machines are counted; of this one only if that is asked for."""

    WRONG: ClassVar = {"client_uuid": "ana", "server_uuid": "guess", "message": "m"}
    RIGHT: ClassVar = {**WRONG, "server_uuid": "c0de"}

    def said(self, desk: Desk, host: str, *requests: bytes, port: str = MESSAGES) -> list[Answer]:
        peer = desk.peer_from(host, port)
        peer.says(b"".join(requests))
        return answers(peer.heard)

    def test_the_sixth_wrong_code_is_refused_for_a_minute_and_so_is_the_right_one(self) -> None:
        desk = Desk()
        wrong, right = post(self.WRONG), post(self.RIGHT)
        for host in ("192.0.2.1", "192.0.2.2"):
            found = [self.said(desk, host, wrong)[0] for _ in range(6)]
            assert [answer.status for answer in found] == [400] * 5 + [429]
            assert found[-1].headers["Retry-After"] == "60"
            assert found[-1].body == "Error: slow down\n"
        assert self.said(desk, "192.0.2.1", right)[0].status == 429
        assert self.said(desk, "192.0.2.3", right)[0].status == 200
        desk.house.clock.advance(59.2)
        assert self.said(desk, "192.0.2.1", right)[0].headers["Retry-After"] == "1"
        desk.house.clock.advance(0.8)
        assert self.said(desk, "192.0.2.1", right)[0].status == 200
        assert len(desk.kept()) == 2

    def test_pipelined_ones_are_held_to_the_same_count(self) -> None:
        desk = Desk()
        found = self.said(desk, "192.0.2.1", *[post(self.WRONG)] * 9)
        assert [answer.status for answer in found] == [400] * 5 + [429] * 4
        peer = desk.peer_from("192.0.2.9", MESSAGES)
        peer.says(b"KEEP\n" + b"".join(b"ana guess%d m\n" % n for n in range(7)))
        assert peer.heard == b"ERR wrong id or code\n" * 5 + b"ERR slow down\n" * 2

    def test_an_ipv6_network_is_counted_as_one_and_named_in_the_log(self) -> None:
        desk = Desk()
        with capturedLogs() as events:
            for number in range(5):
                self.said(desk, f"2001:db8::{number}", post(self.WRONG))
        [event] = [event for event in events if "wrong codes" in event["log_format"]]
        assert formatEvent(event) == (
            "handshake messages: 5 wrong codes from 2001:db8::, which now waits 60 s"
        )
        assert self.said(desk, "2001:db8::9", post(self.RIGHT))[0].status == 429
        assert self.said(desk, "2001:db8:0:1::9", post(self.RIGHT))[0].status == 200

    def test_what_is_sent_after_the_last_wrong_code_was_answered_is_refused(self) -> None:
        desk = Desk()
        peer = desk.peer_from("192.0.2.1", MESSAGES)
        peer.says(b"KEEP\n" + b"".join(b"ana guess%d m\n" % n for n in range(5)))
        peer.says(b"ana c0de m\n")
        assert peer.heard == b"ERR wrong id or code\n" * 5 + b"ERR slow down\n"
        assert desk.kept() == []

    def test_a_raw_peer_is_told_to_slow_down(self) -> None:
        desk = Desk()
        for expected in [b"ERR wrong id or code\n"] * 5 + [b"ERR slow down\n"]:
            peer = desk.peer_from("192.0.2.1", MESSAGES)
            peer.says(b"m\nana\nguess\n")
            assert peer.heard == expected

    def test_a_client_that_knows_its_code_does_not_suffer_from_its_neighbour(self) -> None:
        desk = Desk()
        assert self.said(desk, "192.0.2.1", post(self.RIGHT))[0].status == 200
        other = {**self.WRONG, "client_uuid": "eve"}
        self.said(desk, "192.0.2.1", *[post(other)] * 6)
        assert self.said(desk, "192.0.2.1", post(self.RIGHT))[0].status == 200
        assert self.said(desk, "192.0.2.1", post({**other, "client_uuid": "bob"}))[0].status == 429

    def test_loopback_is_exempt_unless_it_is_limited_too(self) -> None:
        for limited, hosts in (
            (False, ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"]),
            (True, []),
        ):
            for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "fe80::1%eth0", "x"):
                desk = Desk(options=Options(limit_loopback=limited))
                found = self.said(desk, host, *[post(self.WRONG)] * 6)
                exempt = host in hosts
                assert [answer.status for answer in found][5:] == [400 if exempt else 429], host

    def test_guesses_at_an_id_that_is_taken_count_and_asking_for_a_code_does_not_wait(self) -> None:
        desk = Desk(options=Options(registration="exclusive"))
        guess = post({"client_uuid": "ana", "server_uuid": "guess"})
        found = self.said(desk, "192.0.2.1", *[guess] * 7, port=CODES)
        assert [answer.status for answer in found] == [409] * 5 + [429] * 2
        fresh = post({"client_uuid": "bob"})
        assert self.said(desk, "192.0.2.1", fresh, port=CODES)[0].status == 200


class ExclusiveTests(SynchronousTestCase):
    def test_a_taken_id_gets_another_code_for_its_present_one(self) -> None:
        desk = Desk(options=Options(registration="exclusive"))
        for name in ("server_uuid", "code"):
            assert desk.answer(CODES, post({"client_uuid": "ana"})).status == 409
            assert desk.answer(CODES, post({"client_uuid": "ana", name: "x"})).status == 409
            assert desk.answer(CODES, post({"client_uuid": "ana", name: ""})).status == 400
            answer = desk.answer(CODES, post({"client_uuid": "ana", name: "c0de"}))
            assert answer.status == 200
            assert answer.body in desk.ledger.codes["ana"]
        peer = desk.peer(CODES, b'{"id": "ana", "code": "c0de"}\n')
        assert peer.heard.strip().decode() in desk.ledger.codes["ana"]
        assert desk.peer(CODES, b"ana\n").heard == b"ERR id taken\n"

    def test_a_code_shown_where_ids_are_open_is_a_field_of_the_other_port(self) -> None:
        desk = Desk()
        answer = desk.answer(CODES, post({"client_uuid": "ana", "server_uuid": "c0de"}))
        assert answer.status == 400
        assert answer.headers["Status"] == "Authentication error"


class ReadingTests(SynchronousTestCase):
    def get(
        self, desk: Desk, query: str = "", user: str | None = "ana:c0de", port: str = MESSAGES
    ) -> Answer:
        lines = [f"GET /{query} HTTP/1.1", "Host: x"]
        if user is not None:
            lines.append("Authorization: Basic " + b64encode(user.encode()).decode())
        return desk.answer(port, "\r\n".join([*lines, "", ""]).encode())

    def desk(self, **options: Any) -> Desk:
        desk = Desk(options=Options(**options))
        desk.ledger.codes["ana"].add("other")
        peer = desk.peer(
            MESSAGES, b"KEEP\nana c0de one\nana other hers\nana c0de a\xe2\x80\xa8b\x7f\n"
        )
        peer.ends()
        return desk

    def test_messages_of_a_code_come_back_as_records(self) -> None:
        answer = self.get(self.desk())
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        assert answer.body == (
            '{"time": "now", "seq": 1, "id": "ana", "message": "one"}\n'
            '{"time": "now", "seq": 3, "id": "ana", "message": "a\\u2028b\\u007f"}\n'
        )

    def test_where_ids_are_exclusive_all_of_an_id_come_back(self) -> None:
        body = self.get(self.desk(registration="exclusive")).body
        assert [json.loads(line)["seq"] for line in body.splitlines()] == [1, 2, 3]

    def test_after_and_limit_say_which(self) -> None:
        desk = self.desk(registration="exclusive")
        for query, seqs in (
            ("?after=1", [2, 3]),
            ("?limit=2", [1, 2]),
            ("?after=1&limit=1&other=x", [2]),
            ("?after=3", []),
            ("?limit=0", []),
        ):
            body = self.get(desk, query).body
            assert [json.loads(line)["seq"] for line in body.splitlines()] == seqs

    def test_numbers_that_are_none_are_refused(self) -> None:
        desk = self.desk()
        for query in (
            "after=x",
            "after=-1",
            "limit=1001",
            "after=1&after=2",
            "limit=",
            "after=٣",
            "after=99999999999999999999",
            "%ff=1",
            "&" * 100,
        ):
            answer = self.get(desk, "?" + quote(query, safe="=&%-"))
            assert (query, answer.status) == (query, 400)

    def test_without_the_right_pair_nothing_is_read(self) -> None:
        desk = self.desk()
        bodies = set()
        for user in ("ana:x", "eve:c0de", "ana:", "ana", "", ":c0de", "a\nb:c0de"):
            answer = self.get(desk, user=user)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
            if user in ("ana:x", "eve:c0de"):
                bodies.add(answer.body)
        assert len(bodies) == 1
        assert self.get(desk, user=None).status == 401
        assert self.get(desk, "elsewhere").status == 404
        assert self.get(desk, port=CODES).status == 405
        assert (
            desk.answer(MESSAGES, b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n").headers["Allow"]
            == "GET, POST"
        )

    def test_an_id_may_hold_a_colon(self) -> None:
        desk = self.desk()
        desk.ledger.codes["a:b"] = {"c"}
        assert self.get(desk, user="a:b:c").status == 200

    def test_posts_and_gets_of_one_read_are_answered_in_their_order(self) -> None:
        desk = self.desk()
        auth = "Authorization: Basic " + b64encode(b"ana:c0de").decode()
        get = f"GET /?after=3 HTTP/1.1\r\nHost: x\r\n{auth}\r\n\r\n".encode()
        message = post({"client_uuid": "ana", "server_uuid": "c0de", "message": "four"})
        found = answers(desk.peer(MESSAGES, get + message + get + message).heard)
        assert [answer.status for answer in found] == [200] * 4
        assert found[1].headers["Status"] == "Authentication success"
        assert len(desk.kept()) == 5

    def test_guessing_by_get_is_counted_too(self) -> None:
        desk = self.desk()
        peer = desk.peer_from("192.0.2.1", MESSAGES)
        auth = "Authorization: Basic " + b64encode(b"ana:x").decode()
        peer.says(f"GET / HTTP/1.1\r\nHost: x\r\n{auth}\r\n\r\n".encode() * 6)
        assert [answer.status for answer in answers(peer.heard)] == [401] * 5 + [429]


class RulesTests(SynchronousTestCase):
    def test_the_ledger_is_told_what_to_keep_at_the_start_and_at_a_reload(self) -> None:
        desk = Desk(options=Options(code_expires=60.0, message_log_size=1 << 20))
        assert desk.ledger.rules == Rules(code_expires=60.0, log_size=1 << 20)
        desk.house.set(keep_messages=retention("30d"), message_log_keep=9)
        assert desk.ledger.rules == Rules(60.0, 30 * 86400.0, 0, 1 << 20, 9)
        desk.house.set(keep_messages=retention("1000000"))
        assert desk.ledger.rules.keep_count == 1_000_000
