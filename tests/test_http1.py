"""HTTP/1.1 without a socket: what is read as a request, what is refused, what goes out and when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import pytest
from attrs import define, field
from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.http1 import CHUNK_LINE, RANGES, Exchange, Http1, Limits, Request, Response

GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED = CHUNKS + b"3;why=x\r\nhel\r\n2\r\nlo\r\n0\r\nDigest: y\r\n\r\n"
PIPELINE = POST + CHUNKED + GET + HEAD + b"\r\n" + POST
TERSE = [  # short, for there are many pairs of cuts
    b"POST / HTTP/1.1\r\nHost:\r\nContent-Length:2\r\n\r\nhi",
    b"PUT / HTTP/1.1\r\nHost:\r\nTransfer-Encoding:chunked\r\n\r\n2;a\r\nyo\r\n0\r\nA:\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    b"\r\nHEAD / HTTP/1.1\r\nHost:\r\n\r\n",
]
HUNDRED = b"HTTP/1.1 100 Continue\r\n\r\n"

SMALL = Limits(head=300, headers=5, target=40, body=20)


def head(line: str, *headers: str) -> bytes:
    return "\r\n".join((line, "Host: x", *headers, "", "")).encode("latin-1")


@define(eq=False)
class Owner:
    """Answers every request at once, with what it understood of it."""

    http: Http1 = field(factory=Http1)
    heard: list[Request] = field(factory=list, init=False)
    out: bytes = field(default=b"", init=False)

    def reads(self, *pieces: bytes) -> Owner:
        for piece in pieces:
            for exchange in self.http.feed(piece):
                self.heard.append(exchange.request)
                exchange.answer(echo(exchange.request))
            self.out += self.http.ready()
        return self

    @property
    def answers(self) -> list[tuple[int, dict[str, str], bytes]]:
        return answers(self.out, [request.method for request in self.heard])

    @property
    def statuses(self) -> list[int]:
        return [status for status, _, _ in self.answers]


def echo(request: Request) -> Response:
    return Response(200, f"{request.method} {request.target} ".encode() + request.body)


def answers(out: bytes, methods: Iterable[str] = ()) -> list[tuple[int, dict[str, str], bytes]]:
    """The responses in `out` to `methods`, read as strictly as a client could.

    The one behind them is a refusal; without a body it is one of a HEAD.
    """
    found = []
    asked = iter(methods)
    while out:
        top, blank, out = out.partition(b"\r\n\r\n")
        assert blank, top
        line, *lines = top.decode("latin-1").split("\r\n")
        version, status, _ = line.split(" ", 2)
        assert version == "HTTP/1.1"
        headers = dict(each.split(": ", 1) for each in lines)
        assert len(headers) == len(lines)
        size = int(headers.get("Content-Length", 0))
        if status == "100" or next(asked, "GET" if out else "HEAD") == "HEAD":
            size = 0
        assert len(out) >= size
        found.append((int(status), headers, out[:size]))
        out = out[size:]
    return found


def singly(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@define(eq=False)
class Sink:
    """A body in pieces, and how it ended."""

    pieces: list[bytes] = field(factory=list, init=False)
    ends: list[str] = field(factory=list, init=False)
    on_write: Callable[[], object] = field(default=lambda: None, init=False)

    def write(self, data: bytes) -> None:
        assert not self.ends
        assert data
        self.pieces.append(data)
        self.on_write()

    def end(self) -> None:
        self.ends.append("end")

    def cut(self) -> None:
        self.ends.append("cut")


@define(eq=False)
class Streams:
    """Streams every PUT into a sink of its own."""

    exchanges: list[Exchange] = field(factory=list, init=False)
    sinks: list[Sink] = field(factory=list, init=False)

    def __call__(self, exchange: Exchange) -> Sink | None:
        if exchange.request.method != "PUT":
            return None
        self.exchanges.append(exchange)
        self.sinks.append(Sink())
        return self.sinks[-1]


class RequestTests(SynchronousTestCase):
    def test_a_request_is_heard_whole(self) -> None:
        (request,) = Owner().reads(POST).heard
        assert request == Request(
            "POST",
            "/p",
            "1.1",
            {"host": "x", "content-length": "5"},
            keep_alive=True,
            body=b"hello",
        )

    def test_header_names_fold_values_are_stripped_and_repeated_ones_join(self) -> None:
        (request,) = Owner().reads(head("GET / HTTP/1.1", "A:  \xf1 \t", "a: 2", "B:")).heard
        assert request.headers == {"host": "x", "a": "\xf1, 2", "b": ""}

    def test_a_target_splits_into_path_and_query_without_being_decoded(self) -> None:
        for method, target, path, query in (
            ("GET", "/a%2Fb?c=%20&d=?", "/a%2Fb", "c=%20&d=?"),
            ("GET", "/", "/", ""),
            ("GET", "//a//b", "//a//b", ""),
            ("GET", "http://host:80/a/b?c", "/a/b", "c"),
            ("GET", "HTTPS://host", "/", ""),
            ("GET", "http://host?c=/", "/", "c=/"),
            ("OPTIONS", "*", "*", ""),
        ):
            (request,) = Owner().reads(head(f"{method} {target} HTTP/1.1")).heard
            assert (request.target, request.path, request.query) == (target, path, query)

    def test_chunks_become_one_body_and_their_trailers_are_forgotten(self) -> None:
        (request,) = Owner().reads(CHUNKED).heard
        assert request.body == b"hello"
        assert "digest" not in request.headers

    def test_one_empty_line_before_a_request_is_ignored(self) -> None:
        owner = Owner().reads(b"\r\n" + GET + b"\r\n" + GET)
        assert len(owner.heard) == 2
        assert Owner().reads(b"\r\n\r\n" + GET).statuses == [400]

    def test_an_upgrade_is_ignored_and_its_body_belongs_to_the_request(self) -> None:
        asks = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        sized = head("POST /u HTTP/1.1", *asks, "Content-Length: 5") + b"GET /"
        chunked = head("POST /u HTTP/1.1", *asks, "Transfer-Encoding: chunked")
        owner = Owner().reads(sized + head("GET / HTTP/1.1", *asks))
        owner.reads(chunked + b"2\r\nhi\r\n0\r\n\r\n", GET)
        assert [request.body for request in owner.heard] == [b"GET /", b"", b"hi", b""]
        assert owner.statuses == [200] * 4

    def test_what_only_just_fits_is_taken(self) -> None:
        plain = head("GET / HTTP/1.1", "A: ")
        fits = plain.replace(b"A: ", b"A: " + b"a" * (SMALL.head - len(plain)))
        for raw in (
            fits,
            head("GET / HTTP/1.1", *["a: b"] * (SMALL.headers - 1)),
            head(f"GET /{'a' * (SMALL.target - 1)} HTTP/1.1"),
            head("POST / HTTP/1.1", f"Content-Length: {SMALL.body}") + b"b" * SMALL.body,
            CHUNKS + b"A\r\n0123456789\r\n" * 2 + b"0\r\n\r\n",
            CHUNKS + b"0\r\nA: " + b"a" * (SMALL.head - 7) + b"\r\n\r\n",
            CHUNKS + b"0\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            CHUNKS + b"0;" + b"e" * (CHUNK_LINE - 4) + b"\r\n\r\n",
            CHUNKS + b'00000a\r\n0123456789\r\n0 ; a = "b"\r\n\r\n',
        ):
            for pieces in ([raw], singly(raw)):
                assert Owner(Http1(SMALL)).reads(*pieces).statuses == [200], raw

    def test_a_body_may_hold_anything(self) -> None:
        body = bytes(range(256)) + GET + b"\r\n\r\n0\r\n\r\n"
        raw = head("POST / HTTP/1.1", f"Content-Length: {len(body)}") + body
        raw += CHUNKS + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        assert [request.body for request in Owner().reads(raw).heard] == [body, body]

    def test_the_media_type_comes_without_parameters(self) -> None:
        (form,) = Owner().reads(head("GET / HTTP/1.1", "Content-Type: Text/JSON ; charset=x")).heard
        (none,) = Owner().reads(GET).heard
        assert (form.media_type, none.media_type) == ("text/json", "")


class AcceptTests(SynchronousTestCase):
    def test_the_peer_gets_what_it_likes_best(self) -> None:
        text, json = "text/plain", "application/json"
        for accept, chosen in (
            (None, text),
            ("", text),
            ("*/*", text),
            ("*", text),
            ("application/json", json),
            ("Application/JSON; charset=utf-8", json),
            ("application/*", json),
            ("image/png", None),
            ("text/plain;q=0, application/json;q=0.0", None),
            ("application/json, text/plain", json),
            ("text/plain, application/json", text),
            ("application/json;q=0.5, text/plain;q=0.4", json),
            ("application/json;q=0.5, */*;q=0.8", text),
            ("application/json, */*", json),
            ("*/*, application/json;q=0.1", text),
            ("text/*;q=0, */*;q=0.1", json),
            ("text/html, image/gif, *; q=.2, */*; q=.2", text),
            ("text/plain;q=nan, application/json;q=0.1", json),
            ("text/plain;q=7, application/json;q=0.1", json),
            ("text/plain;q=, application/json;q=0.1", json),
            (",,;;,application/json", json),
            ("image/png," * RANGES + "application/json", None),
        ):
            headers = [] if accept is None else [f"Accept: {accept}"]
            (request,) = Owner().reads(head("GET / HTTP/1.1", *headers)).heard
            assert request.accepts(text, json) == chosen, accept


REFUSED = {
    400: [
        b"GET / HTTP/1.1\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\rA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\x7fc\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\0: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n\tc\r\n\r\n",
        b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA\xf1: b\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n",
        head("GET  / HTTP/1.1"),
        head("GET / HTTP/1.1 "),
        head("GET / / HTTP/1.1"),
        head("GET\t/ HTTP/1.1"),
        head("GET /"),
        head("GET / http/1.1"),
        head("GET / HTTP/1.10"),
        head("GET / RTSP/1.0"),
        head("SOURCE / ICE/1.0"),
        head("G@T / HTTP/1.1"),
        head("DESCRIBE / HTTP/1.1"),
        head("GET foo HTTP/1.1"),
        head("GET * HTTP/1.1"),
        head("GET /a#b HTTP/1.1"),
        head("GET /\xf1 HTTP/1.1"),
        head("GET ftp://a/ HTTP/1.1"),
        b"\x16\x03\x01\x02\x00\x01\x00",
        *(
            head("POST / HTTP/1.1", *lengths)
            for lengths in (
                ["Content-Length: 5", "Content-Length: 6"],
                ["Content-Length: 5", "Content-Length: 5"],
                ["Content-Length: 5, 5"],
                ["Content-Length: 5 5"],
                ["Content-Length: +5"],
                ["Content-Length: -5"],
                ["Content-Length: 0x5"],
                ["Content-Length: 1_0"],
                ["Content-Length: 5.0"],
                ["Content-Length: \xb2"],
                ["Content-Length:"],
                ["Content-Length: " + "9" * 30],
                ["Content-Length: 5", "Transfer-Encoding: chunked"],
                ["Transfer-Encoding: chunked", "Content-Length: 5"],
                ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
                ["Transfer-Encoding: chunked, chunked"],
                ["Transfer-Encoding:"],
                ["Transfer-Encoding: chunked,"],
                ["Transfer-Encoding: ,chunked"],
                ["Transfer-Encoding : chunked"],
                ["Transfer-Encoding: \x0bchunked"],
            )
        ),
        head("POST / HTTP/1.0", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        *(
            CHUNKS + chunks
            for chunks in (
                b"5\nhello\n0\n\n",
                b"\r\n",
                b";x\r\nhello\r\n",
                b"x\r\n",
                b"-5\r\nhello\r\n",
                b"0x5\r\nhello\r\n",
                b" 5\r\nhello\r\n",
                b"1_0\r\nhello\r\n",
                b"5 \r\nhello\r\n",
                b"5;a\x00\r\nhello\r\n",
                b"5;a\rb\r\nhello\r\n",
                b"5\r\nhello!\r\n",
                b"5\r\nhello\n0\r\n\r\n",
                b"5\r\nhello\r0\r\n\r\n",
                b"5\r\nhello0\r\n\r\n",
                b"0" * 16 + b"5\r\nhello\r\n",
                b"5;" + b"a" * CHUNK_LINE + b"\r\nhello\r\n",
                b"0\r\nno colon\r\n\r\n",
                b"0\r\nA: b\n\r\n",
                b"0\r\nA: b\r\n c\r\n\r\n",
                b"0\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
            )
        ),
    ],
    413: [
        head("POST / HTTP/1.1", f"Content-Length: {SMALL.body + 1}"),
        head("POST / HTTP/1.1", "Content-Length: 18446744073709551615"),
        CHUNKS + b"%x\r\n" % (SMALL.body + 1),
        CHUNKS + b"A\r\n0123456789\r\n" * 2 + b"1\r\n",
        CHUNKS + b"f" * 15 + b"\r\n",
    ],
    414: [head(f"GET /{'a' * SMALL.target} HTTP/1.1")],
    417: [
        head("POST / HTTP/1.1", "Content-Length: 5", "Expect: 200-maybe"),
        head("GET / HTTP/1.1", "Expect:"),
    ],
    431: [
        b"GET /" + b"a" * SMALL.head,
        head("GET / HTTP/1.1", "A: " + "a" * SMALL.head),
        head("GET / HTTP/1.1", *["a: b"] * SMALL.headers),
        CHUNKS + b"0\r\nA: " + b"a" * SMALL.head,
    ],
    501: [
        head("CONNECT x:443 HTTP/1.1"),
        head("CONNECT / HTTP/1.1"),
        head("BREW /pot HTTP/1.1"),
        head("get / HTTP/1.1"),
        head("POST / HTTP/1.1", "Transfer-Encoding: gzip"),
        head("POST / HTTP/1.1", "Transfer-Encoding: gzip, chunked"),
        head("POST / HTTP/1.1", "Transfer-Encoding: identity"),
        head("POST / HTTP/1.1", "Transfer-Encoding: xchunked"),
    ],
    505: [
        head("GET / HTTP/0.9"),
        head("GET / HTTP/1.2"),
        head("GET / HTTP/2.0"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
}


class RefusalTests(SynchronousTestCase):
    def test_what_breaks_a_rule_is_refused_in_its_place_and_nothing_behind_it_is_read(self) -> None:
        for status, streams in REFUSED.items():
            for raw in streams:
                whole = Owner(Http1(SMALL)).reads(GET + raw + GET)
                assert whole.statuses == [200, status], raw
                assert whole.http.closing, raw
                _, headers, body = whole.answers[-1]
                assert headers["Connection"] == "close"
                assert body.endswith(b".\n")
                dribbled = Owner(Http1(SMALL)).reads(*singly(GET + raw + GET))
                assert dribbled.out == whole.out, raw
                assert dribbled.reads(GET).out == whole.out, raw

    def test_a_refusal_waits_for_the_answers_owed_before_it(self) -> None:
        http = Http1()
        first, second = http.feed(GET + GET + b"\0")
        assert http.ready() == b""
        second.answer(Response(200))
        assert http.ready() == b""
        assert http.waiting == 2
        assert not http.closing
        first.answer(Response(200))
        assert [status for status, _, _ in answers(http.ready())] == [200, 200, 400]
        assert http.closing

    def test_a_refused_head_is_answered_without_a_body(self) -> None:
        owner = Owner().reads(b"\r\nHEAD / HTTP/1.1\r\n\r\n")
        ((status, headers, _),) = answers(owner.out, ["HEAD"])
        assert status == 400
        assert int(headers["Content-Length"]) > 0
        assert owner.out.endswith(b"\r\n\r\n")

    def test_a_body_too_large_is_refused_before_it_comes(self) -> None:
        owner = Owner(Http1(SMALL)).reads(
            head("POST / HTTP/1.1", "Content-Length: 21", "Expect: 100-continue")
        )
        assert owner.statuses == [413]
        assert owner.http.closing

    def test_an_endless_line_is_refused_at_the_limit_and_not_kept(self) -> None:
        owner = Owner()
        for _ in range(3):
            assert owner.reads(b"a" * 8192).out == b""
        owner.reads(b"a" * 8192)
        assert owner.statuses == [431]
        owner.reads(b"a" * 8192)
        assert owner.statuses == [431]

    def test_a_peer_that_cannot_be_speaking_http_hears_so_at_once(self) -> None:
        for raw in (b"\x16\x03", b"GET / HTTP/1.1\n", b"\r\r", b"\n"):
            assert Owner().reads(raw).statuses == [400], raw


class PersistenceTests(SynchronousTestCase):
    def test_the_connection_stays_or_closes_as_the_peer_asked(self) -> None:
        for version, asked, stays, said in (
            ("1.1", None, True, None),
            ("1.1", "close", False, "close"),
            ("1.1", "Keep-Alive", True, None),
            ("1.1", "foo, Close", False, "close"),
            ("1.1", "closed", True, None),
            ("1.0", None, False, "close"),
            ("1.0", "keep-alive", True, "keep-alive"),
            ("1.0", "foo,Keep-Alive", True, "keep-alive"),
            ("1.0", "keep-alive, close", False, "close"),
        ):
            headers = [] if asked is None else [f"Connection: {asked}"]
            owner = Owner().reads(head(f"GET / HTTP/{version}", *headers))
            assert owner.answers[0][1].get("Connection") == said, (version, asked)
            assert owner.http.closing is not stays
            owner.reads(GET)
            assert len(owner.heard) == 1 + stays

    def test_http_1_0_needs_no_host(self) -> None:
        (request,) = Owner().reads(b"GET / HTTP/1.0\r\n\r\n").heard
        assert request.version == "1.0"

    def test_nothing_is_read_after_the_last_request(self) -> None:
        owner = Owner().reads(head("GET / HTTP/1.1", "Connection: close") + GET + b"\0")
        assert len(owner.heard) == 1
        assert owner.statuses == [200]
        assert owner.http.closing

    def test_an_answer_that_closes_is_the_last(self) -> None:
        http = Http1()
        first, second, third = http.feed(GET + GET + GET + POST[:-1])
        third.answer(Response(200))
        second.answer(Response(503, close=True))
        first.answer(Response(200))
        out = answers(http.ready())
        assert [status for status, _, _ in out] == [200, 503]
        assert out[1][1]["Connection"] == "close"
        assert http.closing
        assert http.feed(b"o" + GET) == []
        assert http.ready() == b""

    def test_an_answer_that_closes_silences_a_refusal_behind_it(self) -> None:
        http = Http1()
        (exchange,) = http.feed(GET + b"\0")
        exchange.answer(Response(200, close=True))
        assert [status for status, _, _ in answers(http.ready())] == [200]
        assert http.closing

    def test_answers_go_out_in_the_order_of_the_requests(self) -> None:
        http = Http1()
        exchanges = http.feed(b"".join(head(f"GET /{n} HTTP/1.1") for n in range(4)))
        assert http.waiting == 4
        out = []
        for n in (2, 0, 3, 1):
            exchanges[n].answer(echo(exchanges[n].request))
            out.append([body for _, _, body in answers(http.ready())])
        assert out == [[], [b"GET /0 "], [], [b"GET /1 ", b"GET /2 ", b"GET /3 "]]
        assert http.waiting == 0
        assert http.ready() == b""
        assert not http.closing

    def test_no_cut_changes_requests_or_answers_where_a_length_frames_them(self) -> None:
        sized, chunked, _, _ = TERSE
        self.cuts(sized + chunked, [b"hi", b"yo"])

    def test_no_cut_changes_requests_or_answers_where_chunks_frame_them(self) -> None:
        _, chunked, get, top = TERSE
        self.cuts(chunked + get + top, [b"yo", b"", b""])

    def test_no_cut_changes_requests_or_answers_that_are_of_every_kind(self) -> None:
        sized, chunked, get, top = TERSE
        self.cuts(top + sized + get, [b"", b"hi", b""])
        stream = sized + chunked + get + top
        self.cuts(stream, [b"hi", b"yo", b"", b""], step=3)

    def cuts(self, stream: bytes, bodies: list[bytes], step: int = 1) -> None:
        whole = Owner().reads(stream)
        assert [request.body for request in whole.heard] == bodies
        assert whole.statuses == [200] * len(bodies)
        for cut in range(len(stream)):
            for again in range(cut, len(stream), step):
                owner = Owner().reads(stream[:cut], stream[cut:again], stream[again:])
                assert owner.out == whole.out
                assert owner.heard == whole.heard


class EndTests(SynchronousTestCase):
    def test_fin_between_requests_closes_once_everything_is_answered(self) -> None:
        http = Http1()
        (exchange,) = http.feed(GET + b"\r\n")
        http.eof()
        http.eof()
        assert not http.closing
        exchange.answer(Response(200))
        assert [status for status, _, _ in answers(http.ready())] == [200]
        assert http.closing
        assert http.feed(GET) == []

    def test_fin_inside_a_request_is_answered_400_after_the_answers_owed(self) -> None:
        for part in range(1, len(POST)):
            owner = Owner().reads(GET, POST[:part])
            owner.http.eof()
            owner.reads(b"")
            assert owner.statuses == [200, 400], part
            assert owner.http.closing

    def test_it_tells_which_request_has_begun_and_is_not_whole(self) -> None:
        http = Http1()
        for number in (1, 2):
            for at in range(len(POST)):
                http.feed(POST[at : at + 1])
                assert http.awaited == (number if at < len(POST) - 1 else 0)
        http.feed(b"\r\n")
        assert http.awaited == 0  # an empty line is no beginning
        http.feed(b"\r\nno request\r\n\r\n")
        assert http.awaited == 0

    def test_a_streamed_body_is_not_awaited(self) -> None:
        http = Http1(stream=lambda exchange: Sink())
        http.feed(POST[:-6])
        assert http.awaited == 1
        http.feed(POST[-6:-1])
        assert http.awaited == 0

    def test_the_owner_may_say_why_it_reads_no_further(self) -> None:
        owner = Owner().reads(POST[:-1])
        owner.http.eof(Response(408))
        owner.reads(b"o")
        ((status, headers, _),) = owner.answers
        assert (status, headers["Connection"]) == (408, "close")


class ContinueTests(SynchronousTestCase):
    EXPECTS = head("POST / HTTP/1.1", "Content-Length: 5", "Expect: 100-Continue")

    def test_the_body_is_asked_for_once(self) -> None:
        owner = Owner().reads(self.EXPECTS)
        assert owner.out == HUNDRED
        owner.reads(b"", b"hel", b"lo")
        assert owner.statuses == [100, 200]

    def test_chunks_are_asked_for_too(self) -> None:
        owner = Owner().reads(CHUNKS.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert owner.out == HUNDRED

    def test_a_body_that_has_begun_to_come_is_not_asked_for(self) -> None:
        assert Owner().reads(self.EXPECTS + b"h", b"ello").statuses == [200]

    def test_nothing_is_asked_for_where_no_body_is_announced_or_the_peer_is_old(self) -> None:
        for raw in (
            head("GET / HTTP/1.1", "Expect: 100-continue"),
            head("POST / HTTP/1.1", "Expect: 100-continue", "Content-Length: 0"),
            head("POST / HTTP/1.0", "Expect: 100-continue", "Content-Length: 5"),
            head("POST / HTTP/1.0", "Expect: the unexpected", "Content-Length: 5"),
        ):
            assert HUNDRED not in Owner().reads(raw, b"hello").out, raw

    def test_it_waits_for_the_answers_owed_before_it(self) -> None:
        http = Http1()
        (exchange,) = http.feed(GET + self.EXPECTS)
        assert http.ready() == b""
        exchange.answer(Response(204))
        assert http.ready().endswith(HUNDRED)
        assert http.ready() == b""

    def test_it_is_dropped_when_the_body_comes_while_it_waits(self) -> None:
        http = Http1()
        (exchange,) = http.feed(GET + self.EXPECTS)
        http.feed(b"h")
        exchange.answer(Response(204))
        assert HUNDRED not in http.ready()

    def test_a_stop_takes_its_place(self) -> None:
        http = Http1()
        http.feed(self.EXPECTS)
        http.eof()
        assert [status for status, _, _ in answers(http.ready())] == [400]


class ResponseTests(SynchronousTestCase):
    def test_a_response_is_framed_by_its_length(self) -> None:
        response = Response(200, b"hi", (("Content-Type", "text/plain"), ("X", "\xf1")))
        assert response.encode() == (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nX: \xf1\r\nContent-Length: 2\r\n\r\nhi"
        )

    def test_head_says_the_length_and_sends_nothing(self) -> None:
        owner = Owner().reads(HEAD + GET)
        assert owner.answers[0][1]["Content-Length"] == str(len("HEAD /h "))
        assert owner.statuses == [200, 200]

    def test_some_answers_have_no_body(self) -> None:
        for status in (204, 304):
            assert b"Content-Length" not in Response(status).encode()
            with pytest.raises(ValueError, match="no body"):
                Response(status, b"x").encode()
        assert b"Content-Length: 0" in Response(205).encode()

    def test_a_status_without_a_name_goes_out_all_the_same(self) -> None:
        assert Response(299).encode().startswith(b"HTTP/1.1 299 \r\n")

    def test_only_final_statuses_are_answers(self) -> None:
        for status in (0, 100, 101, 199, 600, 2000):
            with pytest.raises(ValueError, match="final"):
                Response(status).encode()

    def test_no_header_can_split_a_response(self) -> None:
        for name, value in (
            ("A", "b\r\nSet-Cookie: c"),
            ("A", "b\r\n\r\n<html>"),
            ("A", "b\nc"),
            ("A", "b\rc"),
            ("A", "b\0c"),
            ("A", "\u010a"),
            ("A\r\nB", "c"),
            ("A: b", "c"),
            ("", "c"),
            ("\xf1", "c"),
            ("Content-Length", "5"),
            ("transfer-encoding", "chunked"),
            ("Connection", "close"),
        ):
            http = Http1()
            (exchange,) = http.feed(GET)
            with pytest.raises(ValueError, match=r"header|latin-1"):
                exchange.answer(Response(200, headers=((name, value),)))
            assert http.ready() == b""
            exchange.answer(Response(500))
            assert [status for status, _, _ in answers(http.ready())] == [500]

    def test_a_request_is_answered_once(self) -> None:
        (exchange,) = Http1().feed(GET)
        exchange.answer(Response(200))
        with pytest.raises(RuntimeError, match="already"):
            exchange.answer(Response(200))


class StreamTests(SynchronousTestCase):
    PUT = head("PUT /f HTTP/1.1", "Content-Length: 10")

    def setUp(self) -> None:
        self.streams = Streams()
        self.http = Http1(SMALL, self.streams)

    def sink(self) -> tuple[Exchange, Sink]:
        return self.streams.exchanges[-1], self.streams.sinks[-1]

    def sent(self) -> list[int]:
        return [status for status, _, _ in answers(self.http.ready())]

    def test_a_body_of_any_size_passes_in_pieces(self) -> None:
        size = 1 << 22
        raw = head("PUT /f HTTP/1.1", f"Content-Length: {size}")
        assert self.http.feed(raw + b"a") == []
        exchange, sink = self.sink()
        assert exchange.request.path == "/f"
        for _ in range(63):
            assert self.http.feed(b"a" * 65536) == []
        assert sink.ends == []
        (get,) = self.http.feed(b"a" * 65535 + GET)
        assert (sum(map(len, sink.pieces)), sink.ends) == (size, ["end"])
        get.answer(Response(200))
        assert self.sent() == []
        exchange.answer(Response(201))
        assert self.sent() == [201, 200]
        assert not self.http.closing

    def test_chunks_pass_in_pieces_without_a_limit(self) -> None:
        raw = CHUNKS + b"1e\r\n" + b"a" * 30 + b"\r\n" + b"3\r\nend\r\n0\r\nA: b\r\n\r\n"
        for pieces in ([raw], singly(raw)):
            for piece in pieces:
                self.http.feed(piece)
            exchange, sink = self.sink()
            assert (b"".join(sink.pieces), sink.ends) == (b"a" * 30 + b"end", ["end"])
            exchange.answer(Response(201))
            assert self.sent() == [201]

    def test_what_is_not_streamed_is_collected_and_bounded(self) -> None:
        (exchange,) = self.http.feed(POST)
        assert exchange.request.body == b"hello"
        exchange.answer(Response(200))
        self.http.feed(head("POST / HTTP/1.1", "Content-Length: 21"))
        assert self.sent() == [200, 413]

    def test_an_empty_body_ends_at_once(self) -> None:
        assert self.http.feed(head("PUT /f HTTP/1.1")) == []
        exchange, sink = self.sink()
        assert (sink.pieces, sink.ends) == ([], ["end"])
        exchange.answer(Response(201))
        assert self.sent() == [201]
        assert not self.http.closing

    def test_the_last_request_of_a_connection_may_be_streamed(self) -> None:
        raw = head("PUT /f HTTP/1.1", "Content-Length: 2", "Connection: close")
        self.http.feed(raw + b"hi" + GET)
        exchange, sink = self.sink()
        assert sink.ends == ["end"]
        exchange.answer(Response(201))
        assert self.sent() == [201]
        assert self.http.closing

    def test_the_body_is_asked_for_after_the_owner_took_the_request(self) -> None:
        raw = head("PUT /f HTTP/1.1", "Content-Length: 2", "Expect: 100-continue")
        (get,) = self.http.feed(GET + raw)
        assert self.http.ready() == b""
        get.answer(Response(204))
        assert self.http.ready().endswith(HUNDRED)

    def test_an_answer_at_the_head_refuses_the_body_unread(self) -> None:
        for taken, length in ((True, 10), (False, 10), (True, 0), (False, 0), (False, 1 << 40)):
            sink = Sink()

            def refuse(
                exchange: Exchange, body: Sink | None = sink if taken else None
            ) -> Sink | None:
                exchange.answer(Response(403))
                return body

            self.http = Http1(stream=refuse)
            raw = head("PUT /f HTTP/1.1", f"Content-Length: {length}", "Expect: 100-continue")
            assert self.http.feed(raw + b"0123456789" + GET) == []
            ((status, headers, _),) = answers(self.http.ready())
            assert (status, headers["Connection"]) == (403, "close")
            assert self.http.closing
            assert (sink.pieces, sink.ends) == ([], ["cut"] * taken)

    def test_an_answer_before_the_end_of_the_body_is_the_last(self) -> None:
        self.http.feed(self.PUT + b"012")
        exchange, sink = self.sink()
        exchange.answer(Response(507))
        assert self.sent() == [507]
        assert self.http.closing
        assert sink.ends == ["cut"]
        assert self.http.feed(b"3456789" + GET) == []
        assert sink.pieces == [b"012"]

    def test_an_answer_while_a_piece_is_written_is_the_last(self) -> None:
        self.http.feed(self.PUT)
        exchange, sink = self.sink()
        sink.on_write = lambda: exchange.answer(Response(507))
        assert self.http.feed(b"0123456789" + GET) == []
        assert self.sent() == [507]
        assert self.http.closing
        assert sink.ends == ["cut"]

    def test_an_early_answer_counts_before_the_end_of_the_stream(self) -> None:
        self.http.feed(self.PUT)
        exchange, sink = self.sink()
        exchange.answer(Response(507))
        self.http.eof()
        assert self.sent() == [507]
        assert sink.ends == ["cut"]

    def test_a_body_that_breaks_off_is_cut_and_refused_in_its_place(self) -> None:
        for raw, last in ((self.PUT + b"012", b""), (CHUNKS + b"3\r\n012", b"x")):
            self.setUp()
            (get,) = self.http.feed(GET + raw)
            exchange, sink = self.sink()
            self.http.feed(last) if last else self.http.eof()
            assert (sink.pieces, sink.ends) == ([b"012"], ["cut"])
            exchange.answer(Response(201))
            assert self.sent() == []
            get.answer(Response(200))
            assert self.sent() == [200, 400]
            assert self.http.closing

    def test_an_earlier_answer_that_closes_cuts_the_body_behind_it(self) -> None:
        (get,) = self.http.feed(GET + self.PUT + b"012")
        get.answer(Response(200, close=True))
        assert self.sent() == [200]
        assert self.http.closing
        assert self.sink()[1].ends == ["cut"]

    def test_no_cut_of_the_stream_changes_what_is_streamed(self) -> None:
        raw = self.PUT + b"0123456789" + CHUNKED + GET
        for cut in range(len(raw)):
            streams = Streams()
            http = Http1(stream=streams)
            heard = http.feed(raw[:cut]) + http.feed(raw[cut:])
            assert [exchange.request.method for exchange in heard] == ["GET"]
            assert [b"".join(sink.pieces) for sink in streams.sinks] == [b"0123456789", b"hello"]
            assert [sink.ends for sink in streams.sinks] == [["end"], ["end"]]


def sliced(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(edges)]


SNIPPETS = [
    *(GET, HEAD, POST, CHUNKED, CHUNKS, b"\r\n", b"\n", b"\r", b"\0", b" ", b":", b"0\r\n\r\n"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"GET / HTTP/1.1\r\n"),
    *(b"Host: x\r\n", b"Expect: 100-continue\r\n", b"5\r\nhello\r\n", b"HTTP/2.0\r\n", b"\x80"),
    *(b"Connection: close\r\n", b"Upgrade: h2c\r\nConnection: upgrade\r\n", b"POST / HTTP/1.0\r\n"),
]
hostile = st.lists(st.sampled_from(SNIPPETS) | st.binary(max_size=12), max_size=12).map(b"".join)
damaged = st.builds(
    lambda at, gone, junk: PIPELINE[:at] + junk + PIPELINE[at + gone :],
    st.integers(0, len(PIPELINE)),
    st.integers(0, 8),
    st.sampled_from(SNIPPETS) | st.binary(max_size=4),
)
cuts = st.lists(st.integers(0, 2000), max_size=6)


class PropertyTests(SynchronousTestCase):
    @given(body=st.binary(max_size=200), sizes=st.lists(st.integers(1, 60)), cuts=cuts)
    @settings(deadline=None, max_examples=100)
    def test_a_body_survives_any_chunking(
        self, body: bytes, sizes: list[int], cuts: list[int]
    ) -> None:
        raw, rest = CHUNKS, body
        for size in sizes:
            if rest:
                raw += b"%x\r\n%b\r\n" % (len(rest[:size]), rest[:size])
                rest = rest[size:]
        if rest:
            raw += b"%X;last\r\n%b\r\n" % (len(rest), rest)
        owner = Owner().reads(*sliced(raw + b"0\r\n\r\n" + GET, cuts))
        assert [request.body for request in owner.heard] == [body, b""]

    @given(data=hostile | damaged, cuts=cuts)
    @example(data=b"\n" + HEAD, cuts=[1])
    @settings(deadline=None, max_examples=400)
    def test_hostile_bytes_are_read_alike_however_they_are_cut(
        self, data: bytes, cuts: list[int]
    ) -> None:
        whole = Owner(Http1(SMALL)).reads(data)
        pieces = Owner(Http1(SMALL)).reads(*sliced(data, cuts))
        for owner in (whole, pieces):
            refusals = [status for status in owner.statuses if status >= 400]
            assert len(refusals) <= 1
            assert owner.statuses.count(200) == len(owner.heard)
            if refusals:
                assert owner.statuses[-1] == refusals[0]
                assert owner.http.closing
        assert pieces.heard == whole.heard
        assert pieces.out.replace(HUNDRED, b"") == whole.out.replace(HUNDRED, b"")

    @given(data=hostile | damaged, cuts=cuts)
    @settings(deadline=None, max_examples=200)
    def test_every_streamed_body_ends_exactly_once(self, data: bytes, cuts: list[int]) -> None:
        streams = Streams()
        http = Http1(SMALL, streams)
        for piece in sliced(data, cuts):
            http.feed(piece)
        http.eof()
        assert all(len(sink.ends) == 1 for sink in streams.sinks)
        assert http.feed(GET) == []
