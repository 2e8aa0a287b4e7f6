"""handshake: a code for an id (port 8000), then messages logged under that pair (port 8001).

Wire (TCP); the first bytes of a connection say how it speaks
    GET /, POST /, ...  HTTP/1.x, if the line that begins so says it: keep-alive, pipelining
    { then " or }       a JSON object
    KEEP LF             many messages, a line each (8001)
    0x80                a pickle: refused unread
    anything else       text
What each of them may hold is the specification of protocols/handshake_formats.py.

    HTTP   -> POST /, a form or JSON (by media type, or by its first byte)
    8000   <- 200, Server-Uuid: CODE; CODE as text, or {"id", "code"} if Accept prefers JSON
    8001   <- 200, Status: Authentication success, Server-Uuid, Client-Uuid; no body
           -> GET /?after=SEQ&limit=N with Authorization: Basic ID:CODE (curl -u ID:CODE)
           <- 200 and up to N (100, at most 1000) records of what was logged with that code after
              SEQ (0), or with that id where REGISTRATION is exclusive; none: there is no more

    raw
    8000   -> ID, or {"id": ID}; ends at LF, FIN or CODE_SILENCE
           <- CODE, with LF only if one came, FIN
    8001   -> {"id", "code", "message"}; ends with its last brace, or FIN
           <- FIN alone
           -> text in one of its three formats; ends at its third LF, FIN or MESSAGE_SILENCE
           <- OK LF, FIN
    KEEP   -> ID SP CODE SP TEXT LF, as many as they come; FIN ends an unfinished last one
           <- OK SEQ LF for each, in order; after their FIN and the last answer: FIN

A 200, an OK, a code and a FIN alone mean that it is on disk; busy and not stored, a reset and
silence mean that it is not, or that nobody can tell. FIN alone is an answer on 8001, so
whoever has not yet spoken there as anything but JSON is reset, never closed.

Errors
    HTTP   400 with Status: Authentication error for anything wrong with the fields or the pair;
           401 for a GET without its pair, or with a wrong one; 404 and 405 for another path or
           method; 409 id taken; 429 and Retry-After for an id or address that showed too many
           wrong codes; 503 busy, not stored, or the daemon stops; 408 for a request that silence
           cut. The body begins with Error and repeats nothing of the request. What is no HTTP is
           refused by protocols/http1.py
    raw    ERR REASON LF, FIN; in KEEP, ERR REASON LF in the place of the answer
A wrong code and an unknown id are told alike. No code and no message is ever logged.

Codes
    open       an id that registers again gets one more; earlier ones stay valid
    exclusive  it is refused, unless it shows its present code (server_uuid or code beside the id,
               over HTTP or in JSON). That one ends when the new one is first used
    CODE_EXPIRES ends codes that were never used. Wrong ones are counted (protocols/guesses.py),
    those from loopback only if LIMIT_LOOPBACK. Whatever is sent after the answer to the last one
    that may be is refused, right or wrong; of what was pipelined before it, what is wrong.

Limits
    256 KiB a request, 64 KiB a message, 128 characters an id. When too many requests of one
    connection wait for the ledger, no more of it is read until half of them are answered; a read
    that holds very many is served over several turns, so that others get in between. While the
    ledger is behind, KEEP is not read at all; only single requests can come too many (busy).
    IDLE_TIMEOUT closes silent HTTP connections and those that never spoke, REQUEST_TIMEOUT those
    whose request over HTTP does not come to its end; STALL ends a JSON object that stays
    unfinished. Silence never ends a KEEP.

Outcomes
    answered, refused, left, silent, slow (its HTTP request was not whole in time), drained, cut

Source: three seeds that send these two ports a form, JSON or bare text, each in its own words
(hence the aliases). KEEP, quoted texts and the rule of the fixed place are the wire's own.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import ceil
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import quote

from attrs import define, evolve, field, frozen
from twisted.internet.defer import Deferred, gatherResults, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols.connection import Connection, Live, LiveFactory, spoken
from protocols.deadline import Deadline
from protocols.framing import Lines, Overlong
from protocols.guesses import Guesses, source
from protocols.handshake_formats import (
    MESSAGE,
    REQUEST,
    AfterLines,
    AfterObject,
    Fields,
    Malformed,
    Tongue,
    awaits_line,
    basic,
    form,
    json_object,
    line_id,
    message,
    one_pair,
    records,
    registrant,
    span,
    text_message,
    tongue,
    utf8,
    words,
)
from protocols.http1 import Exchange, Http1, Limits, Request, Response
from protocols.options import Retention, choice, count, duration, flag, option, retention, size
from protocols.spec import Context, Port, Spec
from protocols.stores import Claim, Entry, Kernel, Ledger, Query, Record, Refused, Rules

log = Logger()

CODE_SILENCE = 0.04  # seconds that end an id
MESSAGE_SILENCE = 0.3  # seconds that end a text
STALL = 10.0  # seconds after which an unfinished JSON object is given up
KEPT_LINE = MESSAGE + 1024  # bytes: a message, an id of 128 characters, a code

Asked = TypeVar("Asked", bound=Claim | Entry | Query)
Kept = TypeVar("Kept")


@frozen
class Options:
    registration: str = option(
        "open", choice("open", "exclusive"), "open: an id may be registered again; exclusive: once"
    )
    code_expires: float = option(
        0.0, duration, "seconds after which a code that was never used ends; 0: never"
    )
    limit_loopback: bool = option(
        False, flag, "wrong codes from this machine are limited, too; off: only those from others"
    )
    keep_messages: Retention = option(  # noqa: RUF009 - a default that cannot change
        Retention(), retention, "how many messages stay in the table, or how long; 0: all, for ever"
    )
    message_log_size: int = option(
        0, size, "bytes beyond which logfile.log begins anew, the old one kept as .1; 0: never"
    )
    message_log_keep: int = option(5, count, "old log files that stay: .1, the newest, to .5")
    idle_timeout: float = option(
        300.0, duration, "silence that closes an HTTP connection, or one that never spoke; 0: never"
    )
    request_timeout: float = option(
        30.0, partial(duration, least=0.1), "seconds in which an HTTP request must be whole"
    )


# --- what the two ports do ----------------------------------------------------------------------


@define(eq=False, repr=False)
class Desk(ABC, Generic[Asked, Kept]):
    """What is asked for on a port, and how the answer is said."""

    SILENCE: ClassVar[float]  # seconds that end a text
    KEEPS: ClassVar[bool] = False  # KEEP is spoken
    FIN_ANSWERS: ClassVar[bool] = False  # success of JSON is told by FIN alone

    ledger: Ledger
    exclusive: bool = False

    @abstractmethod
    def until(self, as_json: bool) -> AfterLines | AfterObject:
        """Where a raw request ends."""

    @abstractmethod
    def read(self, text: str) -> Fields:
        """The fields of a raw text. Raises Malformed."""

    @abstractmethod
    def asked(self, fields: Fields, peer: str) -> Asked:
        """What the fields ask for. Raises Malformed."""

    @abstractmethod
    def keep(self, asked: Sequence[Asked]) -> Deferred[list[Kept | Refused]]:
        """Have the ledger do it: what one read brought is one call."""

    def wish(self, request: Request, peer: str) -> Asked | Response:
        """What a request for / asks for, or the answer to one that is refused. Raises Malformed."""
        if request.method == "POST":
            return self.asked(_fields(request), peer)
        return _error(405, "everything here is POST /", ("Allow", "POST"))

    @abstractmethod
    def response(self, asked: Asked, kept: Kept, request: Request) -> Response:
        """Success, over HTTP."""

    @abstractmethod
    def raw(self, kept: Kept, as_json: bool, line: bool) -> str:
        """Success, raw. as_json: it was asked for in JSON; line: an LF ended the request."""


@define(eq=False, repr=False)
class Codes(Desk[Claim, str]):
    """Port 8000: an id gets a code."""

    SILENCE = CODE_SILENCE

    def until(self, as_json: bool) -> AfterLines | AfterObject:
        return AfterObject(line=True) if as_json else AfterLines(1)

    def read(self, text: str) -> Fields:
        return line_id(text)

    def asked(self, fields: Fields, peer: str) -> Claim:
        return Claim(*registrant(fields, renews=self.exclusive), self.exclusive)

    def keep(self, asked: Sequence[Claim]) -> Deferred[list[str | Refused]]:
        return gatherResults([self.ledger.claim(claim) for claim in asked])

    def response(self, asked: Claim, kept: str, request: Request) -> Response:
        body, media_type = kept, "text/plain"
        if request.accepts("text/plain", "application/json") == "application/json":
            body, media_type = json.dumps({"id": asked.ident, "code": kept}), "application/json"
        headers = (("Server-Uuid", kept), ("Content-Type", media_type))
        return Response(200, body.encode(), headers)

    def raw(self, kept: str, as_json: bool, line: bool) -> str:
        return f"{kept}\n" if line else kept


@define(eq=False, repr=False)
class Messages(Desk[Entry | Query, Any]):
    """Port 8001: a message is logged, or what was logged is read."""

    SILENCE = MESSAGE_SILENCE
    KEEPS = True
    FIN_ANSWERS = True

    def until(self, as_json: bool) -> AfterLines | AfterObject:
        return AfterObject() if as_json else AfterLines(3)

    def read(self, text: str) -> Fields:
        return text_message(text)

    def asked(self, fields: Fields, peer: str) -> Entry:
        ident, code, text = message(fields)
        return Entry(ident, code, (text,), peer)

    def keep(self, asked: Sequence[Entry | Query]) -> Deferred[list[Any]]:
        entries = [one for one in asked if isinstance(one, Entry)]
        if len(entries) == len(asked):
            return self.ledger.append(entries)
        calls: list[Deferred[Any]] = [self.ledger.append(entries)] if entries else []
        calls += [self.ledger.read(one) for one in asked if isinstance(one, Query)]
        return gatherResults(calls).addCallback(_merged, asked)

    def wish(self, request: Request, peer: str) -> Entry | Query | Response:
        if request.method == "POST":
            return self.asked(_fields(request), peer)
        if request.method != "GET":
            return _error(405, "POST / or GET /", ("Allow", "GET, POST"))
        pair = basic(request.headers.get("authorization", ""))
        if pair is None:
            return _error(401, "a GET shows ID:CODE as user and password", _CHALLENGE)
        return Query(*pair, *span(request.query), self.exclusive)

    def response(self, asked: Entry | Query, kept: Any, request: Request) -> Response:
        if isinstance(asked, Query):
            return Response(200, records(kept), (("Content-Type", "application/x-ndjson"),))
        return _logged(asked.ident, asked.code)

    def raw(self, kept: Any, as_json: bool, line: bool) -> str:
        return "" if as_json else "OK\n"


def _merged(
    results: list[Any], asked: Sequence[Entry | Query]
) -> list[int | Sequence[Record] | Refused]:
    """The results of all entries, then one a query, in the order in which they were asked for."""
    appended = iter(results.pop(0) if any(isinstance(one, Entry) for one in asked) else ())
    read = iter(results)
    return [next(appended if isinstance(one, Entry) else read) for one in asked]


# --- a connection -------------------------------------------------------------------------------


@define(eq=False, repr=False)
class Turnstile:
    """Those who wait until the ledger has less to do are let in a few a turn, in their order."""

    AT_ONCE: ClassVar[int] = 4
    PAUSE: ClassVar[float] = 0.01  # seconds between two looks at a ledger that is behind

    ledger: Ledger
    clock: IReactorTime
    _waiting: deque[Callable[[], object]] = field(factory=deque, init=False)

    def wait(self, admitted: Callable[[], object]) -> None:
        if not self._waiting:
            self.clock.callLater(self.PAUSE, self._turn)
        self._waiting.append(admitted)

    def _turn(self) -> None:
        behind = self.ledger.behind
        for _ in range(0 if behind else min(self.AT_ONCE, len(self._waiting))):
            self._waiting.popleft()()
        if self._waiting:
            self.clock.callLater(self.PAUSE if behind else 0, self._turn)


@define(eq=False, repr=False)
class Handshake(Connection):
    """A peer of either port. What it does with its bytes is up to the way it speaks."""

    ORDINARY = frozenset({"left", "answered", "refused", "silent", "drained"})
    WAITING: ClassVar[int] = 1 << 20  # bytes of requests that may wait for the ledger

    desk: Desk[Any, Any]
    kernel: Kernel
    turnstile: Turnstile
    guesses: Guesses
    limited: Callable[[str], bool]  # whether wrong codes from a host are counted
    request_timeout: float
    deadline: Deadline = field(init=False)  # of a request over HTTP
    speech: Speech = field(init=False)
    draining: bool = field(default=False, init=False)
    _resets: bool = field(default=False, init=False)
    _held: bytes = field(default=b"", init=False)  # read, and left for the next turns
    _behind: bool = field(default=False, init=False)  # the ledger is, with what we asked
    _outside: bool = field(default=False, init=False)  # we wait at the turnstile
    _full: bool = field(default=False, init=False)  # our output is
    name: str = field(default="", init=False)  # host:port of the peer
    _host: str = field(default="", init=False)  # empty: its wrong codes are not counted

    def opened(self) -> None:
        address = self.transport.getPeer()
        host = getattr(address, "host", "")
        self.name = spoken(address)
        self._host = source(host) if self.limited(host) else ""
        self.speech = Opening(self)
        self.deadline = Deadline(
            self.live.clock,
            self.request_timeout,
            lambda: 0 if self.closing or self._paused else self.speech.awaited,
            lambda: self.speech.late(),
        )
        self._resets = self.desk.FIN_ANSWERS  # the listening port has it so

    def received(self, data: bytes) -> None:
        if self._held:
            self._held += data
            self._read_on()
        else:
            self._take(data)

    def finished(self) -> None:
        if self._held:
            self._read_on()
        else:
            self.speech.finished()

    def silent(self) -> None:
        if self.closing:
            self.abort("silent")  # it does not even read what was left to say
        else:
            self.speech.silent()

    def drain(self, grace: float) -> None:
        self.draining = True
        if not self.closing:
            self.speech.drain()

    def closed(self, reason: Failure) -> None:
        self.deadline.end()

    def means_fin(self) -> None:
        """From here on our FIN can mean only that we have said everything."""
        if self._resets:
            self._resets = False
            self.kernel.reset_on_close(self.transport, False)

    def refuse(self, reason: str) -> None:
        """One error, then the end."""
        self.means_fin()
        self.transport.write(f"ERR {reason}\n".encode())
        self.close("refused", reason)

    def ask(self, asked: Sequence[Any], then: Callable[[list[Any]], None]) -> None:
        """Call `then` with what the ledger made of it, unless the peer is gone by then."""
        kept = self._ask_limited(asked) if self._host else self.desk.keep(asked)
        kept.addBoth(self._answered, then)

    def _answered(self, results: list[Any] | Failure, then: Callable[[list[Any]], None]) -> None:
        """In one step: there are ten thousands of them a second."""
        if isinstance(results, Failure):
            self._failed(results)
        elif not self.closing:
            try:
                then(results)
            except Exception:
                self._failed()

    def patience(self, ident: str) -> int:
        """Seconds for which nothing is taken of `ident` from here."""
        return ceil(self.guesses.pause(ident, self._host))

    def _ask_limited(self, asked: Sequence[Any]) -> Deferred[list[Any]]:
        """Leave out those who showed too many wrong codes, and count."""
        slow = [one.code is not None and self.patience(one.ident) > 0 for one in asked]
        heard = [one for one, waits in zip(asked, slow, strict=True) if not waits]
        kept: Deferred[list[Any]] = self.desk.keep(heard) if heard else succeed([])

        def judged(results: list[Any]) -> list[Any]:
            found = iter(results)
            return [
                Refused.SLOW if waits else self._judged(one, next(found))
                for one, waits in zip(asked, slow, strict=True)
            ]

        return kept.addCallback(judged)

    def _judged(self, asked: Any, result: Any) -> Any:
        if asked.code is None:
            return result
        if result is Refused.WRONG or result is Refused.TAKEN:
            if self.patience(asked.ident):  # it came in the same breath as those before it
                return Refused.SLOW
            if self.guesses.wrong(asked.ident, self._host):
                log.warn(
                    "{name}: {count} wrong codes from {host}, which now waits {pause:g} s",
                    event="handshake.guesses",
                    name=self.live.name,
                    count=Guesses.WRONG,
                    host=self._host,
                    pause=Guesses.PAUSE,
                )
        elif not isinstance(result, Refused):
            self.guesses.right(asked.ident, self._host)
        return result

    def pace(self, waiting: int, most: int, size: int) -> None:
        """Read on only while at most `most` requests of at most WAITING bytes wait for the ledger.

        waiting, size: how many wait now, and their bytes; both must fall to half again.
        """
        share = 2 if self._behind else 1
        behind = waiting > most // share or size > self.WAITING // share
        if behind is not self._behind:
            self._behind = behind
            self._read_on()

    def waits(self, data: bytes) -> bool:
        """Whether the ledger is behind with everything; then `data` comes again later."""
        if not self.desk.ledger.behind:
            return False
        self._held, self._outside = data + self._held, True
        self._read_on()
        self.turnstile.wait(self._admitted)
        return True

    def _admitted(self) -> None:
        self._outside = False
        self._read_on()

    def pauseProducing(self) -> None:
        self._full = True
        self._read_on()

    def resumeProducing(self) -> None:
        self._full = False
        self._read_on()

    def _take(self, data: bytes) -> None:
        count = data.count(self.speech.MARK)
        if count > self.speech.TURN:
            cut = len(data) * self.speech.TURN // count
            data, self._held = data[:cut], data[cut:]
            self._read_on()
        self.speech.received(data)

    @property
    def _paused(self) -> bool:
        return self._full or self._behind or self._outside

    def _go_on(self) -> None:
        if self._paused:
            return
        data, self._held = self._held, b""
        self._take(data)
        if not self._held and not self.closing:
            self._read_on()
            if self.ended:
                self.speech.finished()

    def _read_on(self) -> None:
        """Read on, or go on with what is held, unless we are behind."""
        if self.closing:
            return
        if self._paused:
            super().pauseProducing()
        elif self._held:
            super().pauseProducing()
            self.later(0, self._go_on)
        else:
            super().resumeProducing()

    def _failed(self, why: Failure | None = None) -> None:
        """why: None is what is being handled."""
        log.failure(
            "{name}: a request got no answer",
            why,
            event="handshake.unanswered",
            name=self.live.name,
        )
        self.abort("failed")


@define(eq=False, repr=False)
class Speech:
    """One way to speak: what its bytes, its FIN, its silence and a stop of the daemon mean.

    A read with more than about TURN times MARK in it is heard over several turns of the reactor.
    """

    MARK: ClassVar[bytes] = b"\n"
    TURN: ClassVar[int] = 1 << 30

    peer: Handshake

    def received(self, data: bytes) -> None:
        """As Connection.received."""
        raise NotImplementedError

    def finished(self) -> None:
        """As Connection.finished."""
        raise NotImplementedError

    @property
    def awaited(self) -> int:
        """As `http1.Http1.awaited`."""
        return 0

    def late(self) -> None:
        """What was awaited did not come in time."""

    def silent(self) -> None:
        """Nothing came for IDLE_TIMEOUT."""

    def drain(self) -> None:
        """As Connection.drain."""


@define(eq=False, repr=False)
class Opening(Speech):
    """Listens until it is clear which way the peer speaks."""

    _begun: bytes = field(default=b"", init=False)

    def received(self, data: bytes) -> None:
        self._begun += data
        speaks = tongue(self._begun)
        if speaks is not None:
            self._choose(speaks)
        elif awaits_line(self._begun):
            self.peer.deadline.look()
        else:
            self.peer.later(self.peer.desk.SILENCE, self._take_as_text)

    def finished(self) -> None:
        if self._begun:
            self._take_as_text()
        else:
            self.peer.means_fin()
            self.peer.close("left")

    @property
    def awaited(self) -> int:
        return int(awaits_line(self._begun))

    def late(self) -> None:
        self._choose(Tongue.HTTP)
        self.peer.speech.late()

    def silent(self) -> None:
        self.peer.abort("silent")

    def drain(self) -> None:
        if not self._begun or awaits_line(self._begun):
            self.peer.abort("drained")

    def _take_as_text(self) -> None:
        self._choose(Tongue.TEXT)
        if not self.peer.closing:
            self.peer.speech.finished()

    def _choose(self, speaks: Tongue) -> None:
        peer, begun = self.peer, self._begun
        if speaks is Tongue.PICKLE:
            peer.refuse("pickles are not read: send JSON or text")
            return
        if not (speaks is Tongue.JSON and peer.desk.FIN_ANSWERS):
            peer.means_fin()
        if speaks is Tongue.HTTP:
            peer.speech = Http(peer)
        elif speaks is Tongue.KEEP and peer.desk.KEEPS:
            peer.speech = Keep(peer)
            begun = begun[begun.index(b"\n") + 1 :]
        else:
            peer.speech = Raw(peer, as_json=speaks is Tongue.JSON)
        peer.received(begun)


@define(eq=False, repr=False)
class Raw(Speech):
    """One request without a frame, JSON or text, and its answer."""

    as_json: bool
    _until: AfterLines | AfterObject = field(init=False)
    _patience: float = field(init=False)  # seconds of silence that end the request
    _heard: bytearray = field(factory=bytearray, init=False)
    _asked: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        desk = self.peer.desk
        self._until = desk.until(self.as_json)
        self._patience = STALL if self.as_json and desk.FIN_ANSWERS else desk.SILENCE

    def received(self, data: bytes) -> None:
        if self._asked:
            return
        end = self._until.feed(data)
        self._heard += data[:end] if end else data
        if len(self._heard) > REQUEST:
            self.peer.refuse(f"a request holds at most {REQUEST} bytes")
        elif end:
            self._ask()
        else:
            self.peer.later(self._patience, self._ask)

    def finished(self) -> None:
        if not self._asked:
            self._ask()

    def _ask(self) -> None:
        peer, desk, data = self.peer, self.peer.desk, bytes(self._heard)
        self._asked = True
        try:
            fields = json_object(data) if self.as_json else desk.read(utf8(data))
            asked = desk.asked(fields, peer.name)
        except Malformed as why:
            peer.refuse(why.reason)
        else:
            peer.ask([asked], self._answer)

    def _answer(self, kept: list[Any]) -> None:
        peer = self.peer
        if isinstance(kept[0], Refused):
            peer.refuse(kept[0].value)
            return
        peer.means_fin()
        answer = peer.desk.raw(kept[0], self.as_json, self._heard.endswith(b"\n"))
        if answer:
            peer.transport.write(answer.encode())
        peer.close("answered")


@define(eq=False, repr=False)
class Keep(Speech):
    """Many messages, a line each."""

    TURN = 2048
    MOST: ClassVar[int] = 8192  # lines that may wait for their answers

    _lines: Lines = field(factory=lambda: Lines(KEPT_LINE), init=False)
    _reads: deque[Read] = field(factory=deque, init=False)
    _waiting: int = field(default=0, init=False)
    _size: int = field(default=0, init=False)
    _last: str = field(default="", init=False)  # the outcome, once no more is taken

    def received(self, data: bytes) -> None:
        if self._last or self.peer.waits(data):
            return
        if lines := self._lines.feed(data):
            self._take(lines, len(data))

    def finished(self) -> None:
        rest = self._lines.take()
        if rest and not self._last:
            self._take([rest], len(rest))
        self._end("left")

    def drain(self) -> None:
        self._end("drained")

    def _end(self, outcome: str) -> None:
        self._last = self._last or outcome
        self._say()

    def _take(self, lines: Sequence[bytes | Overlong], size: int) -> None:
        read = Read(self._heard(lines), len(lines), size)
        self._reads.append(read)
        self._waiting += read.count
        self._size += size
        if entries := [entry for entry in read.parts if isinstance(entry, Entry)]:
            self.peer.ask(entries, lambda kept: self._kept(read, kept))
        else:
            read.kept = []
        self._say()

    def _heard(self, lines: Sequence[bytes | Overlong]) -> list[Entry | str]:
        """Lines that follow one another under one pair become one entry."""
        name = self.peer.name
        if (run := one_pair(lines)) is not None:
            return [Entry(*run, name)]
        parts: list[Entry | str] = []
        pair: tuple[str, str] | None = None
        messages: list[str] = []
        for line in lines:
            try:
                ident, code, text = _words(line)
            except Malformed as why:
                pair = None
                parts.append(why.reason)
                continue
            if pair != (ident, code):
                pair, messages = (ident, code), []
                parts.append(Entry(ident, code, messages, name))
            messages.append(text)
        return parts

    def _kept(self, read: Read, kept: list[int | Refused]) -> None:
        read.kept = kept
        self._say()

    def _say(self) -> None:
        """Say what is ready, in order, with one write."""
        answers: list[str] = []
        while self._reads and (kept := self._reads[0].kept) is not None:
            read = self._reads.popleft()
            self._waiting -= read.count
            self._size -= read.size
            results = iter(kept)
            for part in read.parts:
                if isinstance(part, str):
                    answers.append(f"ERR {part}\n")
                    continue
                result, count = next(results), len(part.messages)
                if isinstance(result, Refused):
                    answers.append(f"ERR {result.value}\n" * count)
                else:
                    answers += [f"OK {seq}\n" for seq in range(result, result + count)]
        if answers:
            self.peer.transport.write("".join(answers).encode())
        self.peer.pace(self._waiting, self.MOST, self._size)
        if self._last and not self._reads:
            self.peer.close(self._last)


@define(eq=False, repr=False)
class Read:
    """What one read brought: entries, and in their places what is wrong with other lines.

    count: its lines. kept: what the ledger made of the entries, once it has.
    """

    parts: list[Entry | str]
    count: int
    size: int
    kept: list[int | Refused] | None = None


def _words(line: bytes | Overlong) -> tuple[str, str, str]:
    """The id, the code and the text of a line. Raises Malformed."""
    if isinstance(line, Overlong):
        raise Malformed(f"a line holds at most {KEPT_LINE} bytes")
    return message(words(utf8(line.removesuffix(b"\r"))))


# --- HTTP ---------------------------------------------------------------------------------------


_LIMITS = Limits(body=REQUEST)


@define(eq=False, repr=False)
class Http(Speech):
    """HTTP/1.x."""

    MARK = b"\r\n\r\n"
    TURN = 256
    MOST: ClassVar[int] = 256  # requests that may wait for their answers

    _http: Http1 = field(factory=lambda: Http1(_LIMITS), init=False)
    _size: int = field(default=0, init=False)
    _latest: Exchange | None = field(default=None, init=False)

    def received(self, data: bytes) -> None:
        if exchanges := self._http.feed(data):
            self._latest = exchanges[-1]
            self._take(exchanges)
        self._say()

    def finished(self) -> None:
        self._http.eof()
        self._say()

    @property
    def awaited(self) -> int:
        return 0 if self._http.waiting else self._http.awaited

    def late(self) -> None:
        self._http.eof(_TOO_SLOW)
        self._say("slow")

    def silent(self) -> None:
        if not self._http.waiting:
            self._http.eof(_TOO_SLOW)
            self._say("silent")

    def drain(self) -> None:
        self._http.eof(_STOPPING)
        self._say()

    def _take(self, exchanges: Sequence[Exchange]) -> None:
        peer, desk = self.peer, self.peer.desk
        asked: list[tuple[Exchange, Any]] = []
        size = 0
        for exchange in exchanges:
            request = exchange.request
            try:
                wish = desk.wish(request, peer.name) if request.path == "/" else _ELSEWHERE
            except Malformed as why:
                wish = _error(400, why.reason)
            if isinstance(wish, Response):
                exchange.answer(wish)
            else:
                asked.append((exchange, wish))
                size += len(request.body)
        if asked:
            self._size += size
            wishes = [wish for _, wish in asked]
            peer.ask(wishes, lambda kept: self._kept(asked, kept, size))

    def _kept(self, asked: list[tuple[Exchange, Any]], kept: list[Any], size: int) -> None:
        self._size -= size
        desk = self.peer.desk
        for (exchange, wish), result in zip(asked, kept, strict=True):
            if isinstance(result, Refused):
                response = self._refusal(wish, result)
            else:
                response = desk.response(wish, result, exchange.request)
            if self.peer.draining and exchange is self._latest:
                response = evolve(response, close=True)
            exchange.answer(response)
        self._say()

    def _refusal(self, wish: Any, why: Refused) -> Response:
        if why is Refused.SLOW:
            wait = ("Retry-After", str(max(1, self.peer.patience(wish.ident))))
            return _error(429, why.value, wait)
        if why is Refused.WRONG and isinstance(wish, Query):
            return _error(401, why.value, _CHALLENGE)
        return _error(_STATUS[why], why.value)

    def _say(self, outcome: str = "answered") -> None:
        """Say what is ready, in order, with one write."""
        peer = self.peer
        if answers := self._http.ready():
            peer.transport.write(answers)
        peer.pace(self._http.waiting, self.MOST, self._size)
        if self._http.awaited or peer.deadline.number:
            peer.deadline.look()
        if self._http.closing:
            peer.close("drained" if peer.draining else "left" if peer.ended else outcome)


def _fields(request: Request) -> Fields:
    body = request.body
    if request.media_type.endswith("json") or body[:64].lstrip().startswith(b"{"):
        return json_object(body)
    return form(body)


@lru_cache(1024)  # a client says who it is each time
def _logged(ident: str, code: str) -> Response:
    headers = (
        ("Status", "Authentication success"),
        ("Server-Uuid", _header(code)),
        ("Client-Uuid", _header(ident)),
    )
    return Response(200, b"", headers)


def _error(status: int, reason: str, *headers: tuple[str, str]) -> Response:
    if status == 400:
        headers += (("Status", "Authentication error"),)
    elif status == 503:
        headers += (("Retry-After", "1"),)
    headers += (("Content-Type", "text/plain"),)
    return Response(status, f"Error: {reason}\n".encode(), headers)


_STATUS = {Refused.WRONG: 400, Refused.TAKEN: 409, Refused.BUSY: 503, Refused.BROKEN: 503}
_CHALLENGE = ("WWW-Authenticate", 'Basic realm="roundhouse", charset="UTF-8"')
_ELSEWHERE = _error(404, "there is nothing but /")
_STOPPING = _error(503, "the daemon is stopping")
_TOO_SLOW = _error(408, "the request did not come to its end")

_ASCII = "".join(map(chr, range(128)))


def _header(text: str) -> str:
    """`text` as the value of a header: percent-encoded beyond ASCII."""
    return text if text.isascii() else quote(text, safe=_ASCII)


# --- the protocol -------------------------------------------------------------------------------


def build(context: Context) -> dict[str, LiveFactory]:
    options: Options = context.options
    ledger = context.stores.ledger
    ledger.rule(
        Rules(
            options.code_expires,
            options.keep_messages.seconds,
            options.keep_messages.most,
            options.message_log_size,
            options.message_log_keep,
        )
    )
    exclusive = options.registration == "exclusive"
    turnstile = Turnstile(ledger, context.clock)
    guesses = Guesses(context.clock.seconds)
    limited = _from_anywhere if options.limit_loopback else _from_elsewhere

    def factory(name: str, desk: Desk[Any, Any]) -> LiveFactory:
        live = Live(name, context.clock, options.idle_timeout)
        return LiveFactory(
            live,
            lambda live: Handshake(
                live, desk, context.kernel, turnstile, guesses, limited, options.request_timeout
            ),
        )

    return {
        "CODE_PORT": factory("handshake codes", Codes(ledger, exclusive)),
        "MESSAGE_PORT": factory("handshake messages", Messages(ledger, exclusive)),
    }


_LOOPBACK = ("127.", "::ffff:127.")  # as the kernel writes the address of a peer


def _from_anywhere(host: str) -> bool:
    return bool(host)


def _from_elsewhere(host: str) -> bool:
    """Whether a peer is on another machine. host: its address; empty: of a Unix socket."""
    return not host.startswith(_LOOPBACK) and host not in ("", "::1")


SPEC = Spec(
    name="handshake",
    ports=(
        Port("CODE_PORT", 8000, means="where an id gets its code"),
        Port("MESSAGE_PORT", 8001, resets=True, means="where messages are logged, and read back"),
    ),
    build=build,
    options=Options,
    stores=frozenset({"ledger"}),
)
