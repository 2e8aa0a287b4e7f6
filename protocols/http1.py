"""HTTP/1.1, the server's side: bytes in, requests out; responses in, bytes out in order.

No I/O. The owner of a connection feeds what it reads, answers the exchanges it is given in any
order, writes what `ready` returns after every feed and every answer, and closes once `closing`.

Wire (RFC 9110, RFC 9112)
    keep-alive and pipelining: answers go out in the order of the requests. HTTP/1.0 closes unless
    asked to stay; the answer then says so. An Upgrade is ignored, the request answered as it is.
    HEAD, 204 and 304 are answered without a body. No Date is sent: there is no clock here.
    Expect: 100-continue is answered once, in its place among the answers, while the body has not
    begun to arrive and the request is neither answered nor refused.
    A body has a Content-Length or is chunked; chunk extensions and trailers are read and dropped.
    Before a request line one empty line is ignored.

Errors: each is answered in its place, after the answers owed; then the connection closes, and
nothing behind a refused request is ever read as another one
    400  anything malformed: bare CR or LF, control characters, folded headers, blanks before a
         colon, Host missing, repeated or impossible, lengths that are repeated or no plain
         number, a length beside chunks, bad chunks, chunks in HTTP/1.0; a request cut off by FIN
    413  a collected body passes Limits.body; told before it is read when its length says so
    414  a target longer than Limits.target
    417  an expectation other than 100-continue
    431  a head, or trailers, of more than Limits.head bytes; more header lines than Limits.headers
    501  CONNECT, a method or transfer coding nobody knows
    505  a version other than 1.0 and 1.1

llhttp (httptools) judges every head and is handed each whole: the end of a head is found, and
its size bounded, here, so that no limit depends on how TCP cuts the stream, no callback sees half
a header, and llhttp's own ideas (upgrades, messages of HTTP/0.9, RTSP) never reach the stream.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache
from http import HTTPStatus
from typing import Protocol

from attrs import define, field, frozen
from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

CHUNK_LINE = 1024  # bytes of a chunk's size and extensions
COMMON = 1024  # bytes of a head that is worth remembering
RANGES = 64  # of an Accept; what follows is not looked at

_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_OURS = frozenset({"connection", "content-length", "transfer-encoding"})
_TEXT = bytes({9, *range(32, 256)} - {127})
_HOST = re.compile(r"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
_VERSION = re.compile(rb"HTTP/\d\.\d")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")


@frozen
class Limits:
    """What one request may hold: bytes, and lines of headers. body: of one that is collected."""

    head: int = 32 * 1024
    headers: int = 100
    target: int = 8 * 1024
    body: int = 256 * 1024


@frozen
class Request:
    """What a peer asked for.

    headers: by lower-case name, values as latin-1, repeated ones joined by ", ".
    body: whole, decoded from chunks; empty when it is streamed.
    """

    method: str
    target: str
    version: str
    headers: Mapping[str, str]
    keep_alive: bool
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target up to its "?", still percent-encoded: split it first, decode then."""
        path = self.target.partition("?")[0]
        if path[0] in "/*":
            return path
        return "/" + path.partition("://")[2].partition("/")[2]

    @property
    def query(self) -> str:
        """What follows the "?" of the target, still percent-encoded."""
        return self.target.partition("?")[2]

    @property
    def media_type(self) -> str:
        """The media type of the body in lower case, without parameters; empty if none is named."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def accepts(self, *offered: str) -> str | None:
        """Which of the media types offered (best first) the peer likes best; None: none of them.

        The nearest range decides how much a type is liked (its q); among equals the peer's order
        counts, then ours. Without an Accept everything is liked.
        """
        ranges = _ranges(self.headers.get("accept", "")) or {"*/*": (1.0, 0)}
        best, rank = None, (0.0, 0)
        for media_type in offered:
            for liked in (media_type, media_type.partition("/")[0] + "/*", "*/*"):
                if liked in ranges:
                    if ranges[liked] > rank:
                        best, rank = media_type, ranges[liked]
                    break
        return best


def _ranges(accept: str) -> dict[str, tuple[float, int]]:
    """Media ranges by name, each with its q and a number that falls along the list."""
    ranges: dict[str, tuple[float, int]] = {}
    for place, item in enumerate(accept.lower().split(",", RANGES)[:RANGES]):
        name, *parameters = (part.strip() for part in item.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = -1.0
        if name and 0 <= quality <= 1:
            ranges.setdefault("*/*" if name == "*" else name, (quality, -place))
    return ranges


@frozen
class Response:
    """An answer. headers: pairs; what frames it on the wire is added here, not by the caller.

    close: this is the last answer of its connection.
    """

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    close: bool = False

    def encode(self, method: str = "GET", connection: str = "") -> bytes:
        """As bytes, in answer to `method`; connection: the value of that header, if any.

        Raises ValueError for a status that is not final, and for a header that could be read as
        anything but one header of its own.
        """
        if self.status not in (204, 304):
            framing = b"Content-Length: %d\r\n" % len(self.body)
        elif self.body:
            raise ValueError(f"a response of status {self.status} has no body")
        else:
            framing = b""
        head = _encode(self.status, self.headers, connection, framing)
        return head if method == "HEAD" else head + self.body


@frozen
class Streamed:
    """An answer whose body the owner of the connection writes, when its turn has come.

    length: bytes of it; None: nobody knows yet, so it goes in chunks (`chunk`, LAST_CHUNK).
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    length: int | None
    close: bool = False

    def encode(self, connection: str = "") -> bytes:
        """Its head, as `Response.encode`."""
        if self.length is None:
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            framing = b"Content-Length: %d\r\n" % self.length
        return _encode(self.status, self.headers, connection, framing)


LAST_CHUNK = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """Some bytes (at least one) of a body whose length nobody knows, framed."""
    return b"%x\r\n%b\r\n" % (len(data), data)


@lru_cache(1024)  # the same client hears much the same each time
def _encode(
    status: int, headers: tuple[tuple[str, str], ...], connection: str, framing: bytes
) -> bytes:
    """The head of an answer; raises ValueError."""
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not the status of a final response")
    for name, _ in headers:
        if not (name.isascii() and name.replace("-", "").isalnum()) or name.lower() in _OURS:
            raise ValueError(f"{name!r} cannot be a header of a response")
    fields = "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1")
    if not _clean(fields) or fields.count(b"\n") != len(headers):
        raise ValueError(f"control characters in a header: {fields!r}")
    if connection:
        fields += b"Connection: %b\r\n" % connection.encode()
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"%b%b%b\r\n" % (line, fields, framing)


class Body(Protocol):
    """Who takes a body in pieces. Exactly one of `end` and `cut` is called, and it is the last."""

    def write(self, data: bytes) -> object:
        """The next bytes of it."""

    def end(self) -> object:
        """It is whole."""

    def cut(self) -> object:
        """No more will come: the peer left or broke the rules, or the request was answered."""


@define(eq=False, repr=False)
class Exchange:
    """One request and the answer it waits for."""

    request: Request
    _arriving: bool = False
    _answer: bytes | None = field(default=None, init=False)
    _last: bool = field(default=False, init=False)
    _streamed: bool = field(default=False, init=False)

    @property
    def answered(self) -> bool:
        return self._answer is not None

    @property
    def last(self) -> bool:
        """Its answer, already given, ends the connection."""
        return self._last

    @property
    def head(self) -> bytes:
        """Of a streamed answer."""
        return self._answer or b""

    def finish(self) -> None:
        """The body of a streamed answer was written; the next answer may follow."""
        self._answer, self._streamed = b"", False

    def answer(self, response: Response | Streamed) -> None:
        """Answer once; `Http1.ready` gives the bytes when their turn has come.

        A streamed one is for its owner to write when it is at the `Http1.front`, and to `finish`.

        An answer given while the body still arrives is the last one of its connection. One that
        has no place any more (the request was cut off, an earlier answer closed) goes nowhere.
        Raises ValueError for a response that cannot be sent, RuntimeError for a second one.
        """
        if self._answer is not None:
            raise RuntimeError("this request is answered already")
        request = self.request
        last = response.close or self._arriving or not request.keep_alive
        stays = "keep-alive" if request.version == "1.0" else ""
        connection = "close" if last else stays
        if isinstance(response, Response):
            self._answer = response.encode(request.method, connection)
        else:
            self._answer = response.encode(connection)
            self._streamed = request.method != "HEAD"
        self._last = last


@define(eq=False)
class _Refused(Exception):
    """Why a request is not taken."""

    status: int
    reason: str

    def response(self) -> Response:
        text = f"{self.reason}\n".encode("latin-1")
        return Response(self.status, text, (("Content-Type", "text/plain"),), close=True)


_CUT_OFF = _Refused(400, "The request was cut off.").response()

_Head = tuple[str, str, str, Mapping[str, str], bool]


class _Fields:
    """The header lines of one head, as llhttp reads them; those past `most` are only counted."""

    __slots__ = ("count", "headers", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0
        self.headers: dict[str, str] = {}

    def read(self, raw: bytes) -> None:
        """Read a whole head. Raises HttpParserError."""
        try:
            HttpRequestParser(self).feed_data(raw)
        except HttpParserUpgrade:
            return  # nobody has to follow one

    def on_header(self, name: bytes, value: bytes) -> None:
        self.count += 1
        if self.count > self.most:
            return
        key = name.decode().lower()
        text = value.decode("latin-1").strip(" \t")
        if key in self.headers:
            text = f"{self.headers[key]}, {text}"
        self.headers[key] = text


def _clean(section: bytes) -> bool:
    """Whether every CR and LF is half of a CRLF, and TAB the only other control character."""
    return len(section.translate(None, _TEXT)) == 2 * section.count(b"\r\n")


def _listed(value: str) -> list[str]:
    return [item.strip(" \t") for item in value.lower().split(",")]


def _read(raw: bytes, limits: Limits) -> _Head:
    """What a whole head says: a Request's fields, without the body. Raises _Refused."""
    words = raw[: raw.find(b"\r\n")].split(b" ")
    if len(words) != 3:
        raise _Refused(400, "A request begins with METHOD TARGET HTTP/1.1 and one blank between.")
    method, target, version = words
    newer = version == b"HTTP/1.1"
    if not newer and version != b"HTTP/1.0":
        if _VERSION.fullmatch(version):
            raise _Refused(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        raise _Refused(400, "A request line ends with HTTP/1.1.")
    if len(target) > limits.target:
        raise _Refused(414, f"The target of a request may hold {limits.target} bytes.")
    fields = _Fields(limits.headers)
    headers = fields.headers
    try:
        fields.read(raw)
    except HttpParserInvalidMethodError:
        status = 501 if method.isalpha() else 400
        raise _Refused(status, "This method is not known.") from None
    except HttpParserError as error:
        # llhttp objects to a transfer coding it does not know as to anything malformed.
        _check_coding(headers.get("transfer-encoding", "chunked"))
        raise _Refused(400, f"The head of the request is malformed: {error}.") from None
    if fields.count > limits.headers:
        raise _Refused(431, f"A request may hold {limits.headers} header lines.")
    if method == b"CONNECT":
        raise _Refused(501, "This is no proxy.")
    if b"#" in target or not (
        target.startswith(b"/")
        or (target == b"*" and method == b"OPTIONS")
        or target.lower().startswith((b"http://", b"https://"))
    ):
        raise _Refused(400, "The target must be a path or an http URL, without a fragment.")
    host = headers.get("host", None if newer else "")
    if host is None or not _HOST.fullmatch(host):  # two of them were joined with a blank
        raise _Refused(400, "The request must name one Host.")
    if newer and headers.get("expect", "100-continue").lower() != "100-continue":
        raise _Refused(417, "Only 100-continue can be expected.")
    keep_alive = newer
    if "connection" in headers:
        listed = _listed(headers["connection"])
        keep_alive = "close" not in listed and (newer or "keep-alive" in listed)
    return method.decode(), target.decode(), "1.1" if newer else "1.0", headers, keep_alive


_read_again = lru_cache(256)(_read)  # for those that come again and again, on any connection


def _bad_chunk() -> _Refused:
    return _Refused(400, "A chunk is SIZE CRLF DATA CRLF, its SIZE in hexadecimal digits.")


def _check_coding(value: str) -> None:
    """Raises _Refused unless a Transfer-Encoding is "chunked"."""
    codings = _listed(value)
    if not {"chunked", ""}.issuperset(codings):
        raise _Refused(501, "The only transfer coding known is chunked.")
    if codings != ["chunked"]:
        raise _Refused(400, "A body is chunked once.")


@define(eq=False, repr=False)
class Http1:
    """One connection.

    stream: called at the end of every good head; a Body takes that request's body in pieces,
    without a limit, and the exchange is then not among those of `feed`: its `Body.end` says that
    the request is whole. None: the body is collected.

    The only exceptions out of here are those of `stream` and of a Body.
    """

    _limits: Limits = Limits()
    _stream: Callable[[Exchange], Body | None] | None = None

    # What is being read: the step that reads on, what it could not use yet, how much of that it
    # has searched already; whether that was all.
    _step: Callable[[Http1, bytes, int], int] = field(init=False)
    _rest: bytes = field(default=b"", init=False)
    _searched: int = field(default=0, init=False)
    _over: bool = field(default=False, init=False)
    _came: int = field(default=0, init=False)  # requests that are whole

    # The request being read: what its head said; if it is streamed, its exchange and who takes its
    # body, else what came of it; how many bytes of the body, or of its chunk, are still to come.
    _head: _Head = field(init=False)
    _raw: bytes = field(default=b"", init=False)  # that head as it came
    _exchange: Exchange | None = field(default=None, init=False)
    _body: Body | None = field(default=None, init=False)
    _collected: bytearray = field(factory=bytearray, init=False)
    _chunks: bool = field(default=False, init=False)
    _missing: int = field(default=0, init=False)

    # What goes out.
    _whole: list[Exchange] = field(factory=list, init=False)
    _waiting: deque[Exchange] = field(factory=deque, init=False)
    _continue: bool = field(default=False, init=False)
    _refusal: bytes = field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self._step = Http1._read_head

    @property
    def waiting(self) -> int:
        """Requests whose answers `ready` has not given yet. Pause reading while they are many."""
        return len(self._waiting)

    @property
    def awaited(self) -> int:
        """The number of the request that has begun and is not whole, from 1; 0: there is none.

        A streamed body is not awaited: it takes its time.
        """
        if self._step is Http1._read_head:
            begun = bool(self._rest.strip(b"\r\n"))
        else:
            begun = self._body is None
        return self._came + 1 if begun and not self._over else 0

    @property
    def closing(self) -> bool:
        """Everything that will ever be answered was given by `ready`: write it, then close."""
        return self._over and not self._waiting and not self._refusal

    def feed(self, data: bytes) -> list[Exchange]:
        """The requests that `data` completes."""
        self._heed()
        if data:
            self._continue = False
        data = self._rest + data if self._rest else data
        at = 0
        try:
            while not self._over and at < len(data):
                start, at = at, self._step(self, data, at)
                if start == at:
                    break
        except _Refused as refused:
            method = "HEAD" if data[at:].removeprefix(b"\r\n").startswith(b"HEAD ") else ""
            self._refuse(refused.response().encode(method, "close"))
        self._rest = b"" if self._over else data[at:]
        whole, self._whole = self._whole, []
        return whole

    def eof(self, cut_off: Response = _CUT_OFF) -> None:
        """Nothing more will be read: the peer half-closed, is gone, or is to go.

        What is owed still goes out by `ready`. A request that is here only in part is answered
        with `cut_off` (400; 408 would fit a silence, 503 a stop), its streamed body is cut.
        """
        self._heed()
        if self._over:
            return
        if self._step is Http1._read_head and not self._rest.strip(b"\r\n"):
            self._stop()
        else:
            self._refuse(cut_off.encode(connection="close"))

    def ready(self) -> bytes:
        """The bytes to write now: every answer whose turn has come."""
        self._heed()
        out: list[bytes] = []
        waiting = self._waiting
        while waiting and (answer := waiting[0]._answer) is not None:
            if waiting[0]._streamed:
                break
            out.append(answer)
            if waiting.popleft()._last:
                waiting.clear()
                self._stop()
                self._refusal = b""
        if self._continue and (not waiting or waiting[0] is self._exchange):
            self._continue = False
            out.append(_CONTINUE)
        if self._refusal and not waiting:
            out.append(self._refusal)
            self._refusal = b""
        return b"".join(out)

    @property
    def front(self) -> Exchange | None:
        """The oldest that has not been answered wholly. If its answer is streamed, its owner may
        write `head` and body once everything that `ready` gave is written."""
        self._heed()
        return self._waiting[0] if self._waiting else None

    @property
    def missing(self) -> int:
        """Bytes of the streamed body that is being read, if its length was said: they alone come
        next. Who reads them elsewhere says so by `took`."""
        known = self._body is not None and not self._chunks and not self._rest
        return self._missing if known and not self._over else 0

    def took(self, count: int) -> None:
        """So many of the `missing` bytes went to where the body goes, past `feed`."""
        self._heed()
        if not self._over and self._body is not None:
            self._continue = False
            self._missing -= count
            if not self._missing:
                self._end()

    # The steps: each reads on in `data` from `at` and returns how far it came, `at` itself when it
    # needs more than is there.

    def _read_head(self, data: bytes, at: int) -> int:
        start = at + 2 if data.startswith(b"\r\n", at) else at
        if self._raw and data.startswith(self._raw, start):  # a client says much the same each time
            head, end, self._searched = self._head, start + len(self._raw), 0
        else:
            end = self._section(data, start)
            if end == start:
                return at
            raw = data[start:end]
            read = _read_again if len(raw) <= COMMON else _read
            self._head = head = read(raw, self._limits)
            self._raw = raw
        _, _, version, headers, _ = head
        chunks = "transfer-encoding" in headers
        if chunks:
            _check_coding(headers["transfer-encoding"])
            if version == "1.0":
                raise _Refused(400, "HTTP/1.0 has no chunks.")
        length = int(headers.get("content-length", 0))
        if self._stream is not None:
            exchange = Exchange(Request(*head), arriving=True)
            self._body = self._stream(exchange)
            if self._body is not None or exchange._answer is not None:
                self._exchange = exchange
                self._waiting.append(exchange)
                self._heed()
        if self._over:
            return end
        if self._body is None and length > self._limits.body:
            raise self._too_large()
        self._chunks, self._missing = chunks, length
        if chunks:
            self._step = Http1._read_chunk
        elif length:
            self._step = Http1._read_body
        else:
            self._end()
            return end
        self._continue = "expect" in headers and version == "1.1" and end == len(data)
        return end

    def _read_body(self, data: bytes, at: int) -> int:
        piece = data[at : at + self._missing]
        self._missing -= len(piece)
        if self._body is not None:
            self._body.write(piece)
            self._heed()
        else:
            self._collected += piece
        if not self._missing and not self._over:
            if self._chunks:
                self._step = Http1._read_chunk_end
            else:
                self._end()
        return at + len(piece)

    def _read_chunk(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at, at + CHUNK_LINE)
        if end < 0:
            line = data[at : at + CHUNK_LINE]
            if len(line) == CHUNK_LINE or not _clean(line.removesuffix(b"\r")):
                raise _bad_chunk()
            return at
        match = _CHUNK.fullmatch(data, at, end)
        if match is None:
            raise _bad_chunk()
        self._missing = int(match[1], 16)
        if self._body is None and len(self._collected) + self._missing > self._limits.body:
            raise self._too_large()
        self._step = Http1._read_body if self._missing else Http1._read_trailers
        return end + 2

    def _read_chunk_end(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._step = Http1._read_chunk
            return at + 2
        if data.endswith(b"\r") and at + 1 == len(data):
            return at
        raise _bad_chunk()

    def _read_trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._end()
            return at + 2
        end = self._section(data, at)
        if end > at:
            try:
                _Fields(0).read(b"GET / HTTP/1.0\r\n" + data[at:end])
            except HttpParserError as error:
                raise _Refused(400, f"The trailers are malformed: {error}.") from None
            self._end()
        return end

    def _section(self, data: bytes, at: int) -> int:
        """Where the lines from `at` up to an empty one end; `at` if they go on. Bounds them."""
        most = self._limits.head
        blank = data.find(b"\r\n\r\n", at + max(self._searched - 3, 0), at + most)
        end = blank + 4 if blank >= 0 else at + most
        lines = data[at + self._searched : end].removesuffix(b"\r")
        if not _clean(lines):
            raise _Refused(400, "Lines end with CRLF; no other control characters may be there.")
        if blank >= 0:
            self._searched = 0
            return end
        if len(data) - at >= most:
            raise _Refused(431, f"The head of a request may hold {most} bytes.")
        self._searched += len(lines)
        return at

    def _end(self) -> None:
        """The request is whole."""
        exchange, body = self._exchange, self._body
        self._came += 1
        self._exchange = self._body = None
        self._step = Http1._read_head
        if exchange is None:
            exchange = Exchange(Request(*self._head, bytes(self._collected)))
            self._collected.clear()
            self._waiting.append(exchange)
            self._whole.append(exchange)
        exchange._arriving = False
        if not exchange.request.keep_alive:
            self._stop()
        if body is not None:
            body.end()

    def _heed(self) -> None:
        """An answer that did not wait for its body ends the reading."""
        if self._exchange is not None and self._exchange._answer is not None:
            self._stop()

    def _refuse(self, answer: bytes) -> None:
        """Read no more; `answer` takes the place of the request that is being read."""
        if self._exchange is not None:
            self._waiting.pop()
        self._stop()
        self._refusal = answer

    def _stop(self) -> None:
        """Read no more; whatever has come of a body is dropped."""
        body = self._body
        self._over, self._continue, self._rest = True, False, b""
        self._exchange = self._body = None
        self._collected.clear()
        if body is not None:
            body.cut()

    def _too_large(self) -> _Refused:
        return _Refused(413, f"A body may hold {self._limits.body} bytes.")
