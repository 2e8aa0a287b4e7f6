"""relay over HTTP: boxes of files, with names, ranges, digests, expiry and resumed uploads.

Wire (HTTP/1.1, port 5012; BOX is [a-z0-9-]{1,64}, not `tus` or `next`; raw port 5011 is `queue`)
    PUT /BOX/NAME           a file, with Content-Length or chunked (curl -T). 201, Location and
                            JSON: id, box, name, size, sha256, sent, expires, url, collect. Asked
                            for by Expires-In: 2d (or ?expires=2d) and by Repr-Digest or
                            Content-Digest, whose sha-256 is proved before anything is kept
    POST /BOX               files of a form, field `file`. 303 to the page, or 201 and JSON
    GET /BOX                JSON: every parcel, in the order of the queue
    GET /BOX/next           the oldest parcel, leased; 204: there is none. ?wait=SECONDS waits for
                            one, ?as=NAME says who asks: a name gets no parcel twice. It is
                            acknowledged when the peer's kernel has every byte and its FIN came;
                            with ?ack=manual by DELETE alone, and until then a cut download goes
                            on at Content-Location, under the lease of that many seconds (Lease)
                            which GET and HEAD there renew
    GET, HEAD /BOX/ID       a copy; consumes nothing. Range, If-Range, ETag. NAME in place of ID
                            is the newest of that name. ?follow=1: also while it is uploaded
    DELETE /BOX/ID          204: acknowledged by whoever leased it or says ?as=NAME, else deleted
                            for everybody; durable, it is never handed out again
    POST /BOX/ID            form field action=requeue: a parked one waits again
    GET /                   the page, or JSON: every box with something in it
    /tus/                   tus 1.0: POST creates (Upload-Metadata: box, filename, sha256), then
                            OPTIONS, HEAD, PATCH, DELETE /tus/KEY. The newest writer wins: what
                            the one before it brought is synced, and an offset is never more
A file has several receivers where COPIES is more than 1, each named one where MODE is shared.
Whoever gives no name there goes by its address. Links on other sites may lead to the page, to a
list and to a copy; nothing else is done for them.

Errors: JSON {"error": a short code, "detail": a sentence}, with 400, 401 (the box has a token),
403 (asked by the page of somebody else, or of a Host that is not ours), 404, 405, 409, 411, 413,
415, 416, 429 (a connection too many: nothing was read), 460 (tus: the checksum differs), 503 and
507 (no room); and those of http1.py.

Outcomes
    answered, received (a parcel was acknowledged by its receiver's FIN), reset, stuck (no progress
    for LEASE seconds), slow (its request was not whole within REQUEST_TIMEOUT), unread (the file
    could not be read), superseded (a newer writer went on
    with its upload), busy (no descriptor was left), left, silent, drained, cut
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from hmac import compare_digest
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qs, quote

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, ISSLTransport
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols import http_fields, relay_page, tus
from protocols.connection import Connection
from protocols.deadline import Deadline
from protocols.http1 import (
    LAST_CHUNK,
    Body,
    Exchange,
    Http1,
    Limits,
    Request,
    Response,
    Streamed,
    chunk,
)
from protocols.options import duration
from protocols.relay_answers import (
    PRIVATE,
    Answer,
    Headers,
    Place,
    Refused,
    about,
    allow,
    as_json,
    boxes_in_json,
    check_box,
    fields,
    is_tus,
    listing,
    malformed,
    method_of,
    page_of,
    parcel_in_json,
    proof,
    reason,
    refusal,
)
from protocols.relay_bodies import Form, Uploading, form_parser
from protocols.relay_delivery import Delivery
from protocols.relay_options import BOX, Options
from protocols.stores import (
    Depot,
    Draft,
    Kernel,
    Label,
    Parcel,
    Progress,
    Reading,
    Shelved,
    StoreError,
)

log = Logger()
_T = TypeVar("_T")

LONGEST = 3600.0  # seconds one question may wait for a parcel
LEND = 1 << 16  # bytes from which on a thread takes a body
BATCH = 200  # parcels of a long list that are told in one go
MANY = 8  # requests of one peer that may wait for their turn
A_TURN = 4  # requests of one peer that are begun in a turn of the reactor: others have theirs
A_READ = 32  # heads that are read in one, about
BUSY = (
    Refused(429, "busy", "Too many connections are open; try again later.", (("Retry-After", "1"),))
    .response()
    .encode(connection="close")
)
_TOO_SLOW = Refused(408, "too-slow", "The request did not come to its end in time.").response()
_RECEIVER = re.compile(r"[A-Za-z0-9._:%@-]{1,64}")


@define(eq=False, repr=False)
class RelayHttp(Connection):
    """A peer. Its requests are begun one after the other, each when those before are answered."""

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"answered", "received", "left", "silent"})
    FRAMED: ClassVar[bool] = True

    options: Options
    depot: Depot
    kernel: Kernel
    uploading: dict[Exchange, Uploading | Form] = field(factory=dict, init=False)
    _http: Http1 = field(init=False)
    _deadline: Deadline = field(init=False)  # of a head, or a small body
    _asked: dict[Exchange, None] = field(factory=dict, init=False)  # not begun yet
    _going: bool = field(default=False, init=False)
    _planned: bool = field(default=False, init=False)  # to go on in the next turn
    _held: bytes = field(default=b"", init=False)  # read, and left for the next turns
    _full: bool = field(default=False, init=False)  # our output is
    _draining: bool = field(default=False, init=False)
    _claim: Deferred[Parcel | None] | None = field(default=None, init=False)
    _sending: Deferred[None] | None = field(default=None, init=False)
    _sent: Callable[[], int] = field(default=int, init=False)  # bytes of what is being sent
    _renew: Callable[[], object] = field(default=int, init=False)  # the lease it is sent under
    _delivery: Delivery | None = field(default=None, init=False)
    _beat: IDelayedCall | None = field(default=None, init=False)
    _seen: tuple[int, int] = field(default=(0, 0), init=False)
    _since: float = field(default=0.0, init=False)

    # The connection.

    @property
    def lease(self) -> float:
        return self.options.lease

    def opened(self) -> None:
        self._http = Http1(Limits(body=1 << 16), self._stream)
        patience = self.options.request_timeout
        self._deadline = Deadline(
            self.live.clock, patience, lambda: self._awaited, lambda: self._too_slow("slow")
        )

    def received(self, data: bytes) -> None:
        data, self._held = self._held + data, b""
        if (count := data.count(b"\r\n\r\n")) > A_READ:
            cut = len(data) * A_READ // count
            data, self._held = data[:cut], data[cut:]
        for exchange in self._http.feed(data):
            self._asked[exchange] = None
        if self.ended and not self._held:
            self._http.eof()
        self._go()
        self.lend()

    def finished(self) -> None:
        if self._delivery is not None:
            self._delivery.look()
            return
        if not self._held:
            self._http.eof()
        self._go()

    def writeConnectionLost(self) -> None:
        if self._delivery is not None:
            self._delivery.handed()
        else:
            super().writeConnectionLost()

    def silent(self) -> None:
        if self._busy:
            self.quiet = 0
        else:
            self._too_slow("silent")

    def drain(self, grace: float) -> None:
        self._draining = True
        if self._claim is not None:
            self._claim.cancel()
        self._go()

    def abort(self, outcome: str, detail: str = "") -> None:
        # A transport that is lent is aborted once it is back.
        if not self.closing:
            self._end(outcome, detail)
        self._break_off()
        self.transport.abortConnection()

    def closed(self, reason: Failure) -> None:
        self._deadline.end()
        self._break_off()
        if self._delivery is not None:
            self._delivery.break_off()
            self._delivery = None

    def pauseProducing(self) -> None:
        self._full = True
        self.read_on()

    def resumeProducing(self) -> None:
        self._full = False
        self.quiet = 0
        self.read_on()
        self._go()

    def read_on(self) -> None:
        """Read, unless somebody is behind: our peer, the disk, or we with what was asked."""
        if self.closing or self.ended or self._sending is not None:
            return
        held = any(one.paused for one in self.uploading.values())
        if held or self._full or self._held or self._http.waiting > MANY:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def lend(self) -> None:
        """Let a thread read the rest of a long body, if its turn has come."""
        front = self._http.front
        up = None if front is None else self.uploading.get(front)
        if up is None or self.closing or self.ended or self._full or self._held:
            return
        if isinstance(up, Form) or up.paused:
            return
        if (missing := self._http.missing) >= LEND:
            up.lend(missing)
            self._look_again()

    def returned_from(self, count: int) -> None:
        """`count` bytes of a body were read by a thread."""
        self._http.took(count)
        self.quiet = 0
        if not self.closing:
            self._go()

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        if not (self.closing or exchange.answered):
            exchange.answer(answer)
            self._go()

    @property
    def _busy(self) -> bool:
        """Something is under way that has its own end."""
        taken = any(one.lent or one.whole or one.paused for one in self.uploading.values())
        waits = self._http.front is not None and not self.uploading
        return taken or waits or self._sending is not None or self._delivery is not None

    @property
    def _awaited(self) -> int:
        paused = self.closing or self._full or self._held or self._http.waiting
        return 0 if paused else self._http.awaited

    def _too_slow(self, outcome: str) -> None:
        self._http.eof(_TOO_SLOW)
        if data := self._http.ready():
            self.transport.write(data)
        self.close(outcome)

    def _go(self) -> None:
        """Write what is ready, begin what is next, close when that was all."""
        if self._going:
            return
        self._going = True
        begun = 0
        while not self.closing:
            if data := self._http.ready():
                self.transport.write(data)
            front = self._http.front
            if front is None or front not in self._asked or self._full or self._planned:
                break
            if begun == A_TURN:
                self._plan()
                break
            begun += 1
            del self._asked[front]
            Deferred.fromCoroutine(self._serve(front)).addErrback(self._defect)
        self._going = False
        self._deadline.look()
        if self.closing or self._sending is not None or self._delivery is not None:
            return
        if self._http.closing:
            self.close("drained" if self._draining else "answered")
        elif self._draining and not self._http.waiting:
            self.close("drained")
        else:
            if self._held and self._http.waiting <= MANY:
                self._plan()
            self.read_on()

    def _plan(self) -> None:
        """Go on in the next turn."""
        if not self._planned:
            self._planned = True
            self.live.clock.callLater(0, self._go_again)

    def _go_again(self) -> None:
        self._planned = False
        if self._held and self._http.waiting <= MANY and not self.closing:
            self.received(b"")
        else:
            self._go()

    def _defect(self, failure: Failure) -> None:
        log.failure("relay: a request was not served", failure, event="relay.broken")
        self.abort("failed")

    def _break_off(self) -> None:
        if self._beat is not None and self._beat.active():
            self._beat.cancel()
        if self._claim is not None:
            self._claim.cancel()
        for up in list(self.uploading.values()):
            up.cut()
        self._http.eof()
        if self._delivery is not None:
            self._delivery.stop()
        if self._sending is not None:
            self._sending.cancel()

    # What is sent and what is read by threads: whether it goes on.

    def _look_again(self) -> None:
        if self._beat is None or not self._beat.active():
            self._since = self.live.clock.seconds()
            self._beat = self.live.clock.callLater(self.lease / 8, self._look)

    def _look(self) -> None:
        lent = [one.intake.size for one in self.uploading.values() if one.lent and one.intake]
        if self.closing or not (lent or self._sending is not None):
            return
        seen, now = (sum(lent), self._sent()), self.live.clock.seconds()
        if seen != self._seen:
            self._seen, self._since = seen, now
            self._renew()
        if now - self._since >= self.lease:
            self.abort("stuck")
        else:
            self._beat = self.live.clock.callLater(self.lease / 8, self._look)

    async def _send(
        self,
        what: Reading | Parcel,
        sending: Callable[[], Deferred[None]],
        renew: Callable[[], object],
    ) -> bool:
        """Whether all of it was written."""
        self.transport.unregisterProducer()
        self.transport.pauseProducing()
        self._sent, self._renew = lambda: what.sent, renew
        self._sending = sending()
        self._look_again()
        try:
            await self._sending
        except CancelledError:
            return False
        except StoreError as why:
            self.abort("unread", why.reason)
            return False
        finally:
            self._sending, self._sent, self._renew = None, int, int
        if self.closing:
            return False
        self._full = False
        self.transport.registerProducer(self, True)
        self.read_on()
        renew()
        return True

    # What is asked.

    def _stream(self, exchange: Exchange) -> Body | None:
        """At the end of every head: who may not ask is told so, long bodies go to the depot."""
        request = exchange.request
        own = (tus.RESUMABLE,) if is_tus(request) else ()
        try:
            self._admit(request)
            match method_of(request), request.path:
                case "PUT", path:
                    return self._put(exchange, Place.of(path))
                case "PATCH", path if is_tus(request):
                    return self._patch(exchange, path.removeprefix("/tus/"))
                case "POST", "/tus" | "/tus/":
                    return self._create(exchange)
                case "POST", path if not (place := self._place(request)).key:
                    return self._form(exchange, place.box)
        except (Refused, StoreError, ValueError) as why:
            exchange.answer(refusal(why, own))
        return None

    async def _serve(self, exchange: Exchange) -> None:
        """Answer a request whose turn has come and whose body, if any, is whole."""
        try:
            answer = await self._answer(exchange)
        except (Refused, StoreError, ValueError) as why:
            answer = refusal(why, (tus.RESUMABLE,) if is_tus(exchange.request) else ())
        if answer is not None:
            self.answer(exchange, answer)

    async def _answer(self, exchange: Exchange) -> Answer | None:
        """None: it was answered already."""
        request = exchange.request
        method, path = method_of(request), request.path
        if path == "/":
            allow(method, "GET", "HEAD")
            return await self._front(request)
        if is_tus(request):
            return await self._tus(request, path.removeprefix("/tus").removeprefix("/"))
        place = self._place(request)
        if not place.key:
            allow(method, "GET", "HEAD", "POST")
            return listing(place.box, await self._listed(place.box, parcel_in_json))
        if place.key == "next":
            allow(method, "GET")
            return await self._hand_out(exchange, place.box)
        allow(method, "GET", "HEAD", "DELETE", "POST", "PUT")
        reading = await self.depot.find(place.box, place.key)
        if reading is None:
            raise Refused(404, "not-found", "Nothing of that name or id is in the box.")
        if method == "DELETE":
            return await self._delete(request, reading)
        if method == "POST":
            return await self._requeue(request, reading)
        return await self._copy(exchange, reading)

    async def _listed(self, box: str, told: Callable[[Shelved], _T]) -> list[_T]:
        """A few at a time: a box may hold very many, and others wait for the reactor."""
        listed, found = await self.depot.list(box), list[_T]()
        for start in range(0, len(listed), BATCH):
            if start:
                await deferLater(self.live.clock, 0)
            found += map(told, listed[start : start + BATCH])
        return found

    def _admit(self, request: Request) -> None:
        """Raises Refused for what the page of somebody else asks, in a browser of our users."""
        host = request.headers.get("host")
        names = {"", *self.options.hosts, *self.kernel.names()}
        if host is not None and not http_fields.ours(host, names):
            raise Refused(
                403,
                "host",
                "This Host is not known here: use an address, or name it in HOSTS of config.cfg.",
            )
        if not (request.method == "GET" and http_fields.followed(request.headers)):
            self._check_origin(request)

    def _check_origin(self, request: Request) -> None:
        if http_fields.foreign(request.headers):
            raise Refused(403, "origin", "Another site's page may not ask for this.")

    def _place(self, request: Request) -> Place:
        """Raises Refused, also for whoever has not the token of the box."""
        place = Place.of(request.path)
        self._check_token(request, place.box)
        return place

    def _knows(self, request: Request, box: str) -> bool:
        secret = self.options.token.get(box)
        if secret is None:
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip()
        if scheme.lower() == "basic":  # what browsers can do: any user, the token for password
            with suppress(ValueError):
                given = b64decode(given, validate=True).decode().partition(":")[2]
        elif scheme.lower() != "bearer":
            given = ""
        return compare_digest(given.encode(), secret.text.encode())

    def _check_token(self, request: Request, box: str) -> None:
        if not self._knows(request, box):
            challenge = ("WWW-Authenticate", f'Bearer realm="{box}", Basic realm="{box}"')
            raise Refused(401, "token", f"The box {box} wants its token.", (challenge,))

    # Files in.

    def label(self, name: str, size: int | None, sha256: str, expires: float) -> Label:
        copies = 0 if self.options.mode == "shared" else self.options.copies
        return Label(name, size, sha256, expires, copies)

    def _expires(self, text: str) -> float:
        """Raises ValueError."""
        return duration(text) if text else self.options.expires

    def _put(self, exchange: Exchange, place: Place) -> Body:
        request = exchange.request
        if not place.key:
            raise malformed("PUT /BOX/NAME: with a slash after BOX, curl -T adds the name")
        self._check_token(request, place.box)
        if place.key == "next":
            raise malformed("next is no name for a file")
        name = http_fields.file_name(place.key)
        length = request.headers.get("content-length")
        if length is None and "transfer-encoding" not in request.headers:
            raise Refused(411, "length", "Say how long it is, or send it in chunks.")
        asked = http_fields.query(request.query).get("expires", "")
        expires = self._expires(request.headers.get("expires-in", asked))
        size = None if length is None else int(length)
        label = self.label(name, size, http_fields.sha256(request.headers), expires)
        up = self._upload(exchange, partial(self._created, request))
        up.open(self.depot.deposit(place.box, up, label, self.options.allowance))
        return up

    def _created(self, request: Request, parcel: Shelved) -> Response:
        at = f"/{parcel.box}/{parcel.ident}"
        site = self._site(request)
        answer = {
            **fields(parcel, "id", "box", "name", "size", "sha256", "sent", "expires"),
            "url": site + at,
            "collect": f"curl -OJ {site}/{parcel.box}/next",
        }
        return as_json(answer, 201, (("Location", at), *proof(parcel)))

    def _form(self, exchange: Exchange, box: str) -> Body:
        form = Form(self, exchange, box, form_parser(exchange.request))
        self.uploading[exchange] = form
        return form

    def _upload(
        self, exchange: Exchange, then: Callable[[Any], Answer], own: Headers = ()
    ) -> Uploading:
        up = self.uploading[exchange] = Uploading(self, exchange, then, own)
        return up

    def _site(self, request: Request) -> str:
        scheme = "https" if ISSLTransport.providedBy(self.transport) else "http"
        host = request.headers.get("host")
        if not host:
            here: Any = self.transport.getHost()
            host = f"{getattr(here, 'host', 'localhost')}:{getattr(here, 'port', 80)}"
        return f"{scheme}://{host}"

    # tus.

    def _create(self, exchange: Exchange) -> Body:
        request = exchange.request
        asked = tus.creation(request.headers)
        box = asked.box or BOX
        check_box(box, 400)
        self._check_token(request, box)
        name = http_fields.file_name(asked.name) if asked.name else ""
        length = int(request.headers.get("content-length", 0))
        if length and request.media_type != tus.TYPE:
            raise Refused(415, "type", f"What comes with a creation is of type {tus.TYPE}.")
        if length > asked.size:
            raise Refused(413, "too-large", "More came than Upload-Length says.")
        label = self.label(name, asked.size, asked.sha256, self._expires(asked.expires))
        drafts: list[Draft] = []

        def created(progress: Progress) -> Answer:
            draft = drafts[0]
            location = ("Location", f"/tus/{draft.key}")
            return self._progress(draft, progress, 201, (location,))

        up = self._upload(exchange, created, (tus.RESUMABLE,))
        checksum = tus.checksum(request.headers)

        async def begin() -> None:
            draft = await self.depot.begin(box, label, self.options.allowance)
            drafts.append(draft)
            up.open(await draft.write(up, checksum))

        self._when(up, begin())
        return up

    def _patch(self, exchange: Exchange, key: str) -> Body:
        request = exchange.request
        if request.media_type != tus.TYPE:
            raise Refused(415, "type", f"A part is of type {tus.TYPE}.")
        offset = tus.number(request.headers, "Upload-Offset")
        checksum = tus.checksum(request.headers)
        length = request.headers.get("content-length")
        drafts: list[Draft] = []

        def patched(progress: Progress) -> Answer:
            return self._progress(drafts[0], progress, 204)

        up = self._upload(exchange, patched, (tus.RESUMABLE,))

        async def go_on() -> None:
            draft = await self._draft(request, key)
            drafts.append(draft)
            await draft.settle()
            if draft.offset != offset:
                there = ("Upload-Offset", str(draft.offset))
                detail = f"The upload stands at {draft.offset}; ask for it by HEAD and go on."
                raise Refused(409, "offset", detail, (tus.RESUMABLE, there))
            if length is not None and offset + int(length) > draft.length:
                raise Refused(413, "too-large", "More came than Upload-Length said.")
            up.open(await draft.write(up, checksum))

        self._when(up, go_on())
        return up

    def _when(self, up: Uploading, opening: Awaitable[None]) -> None:
        """An upload that is opened later, or not at all."""

        async def work() -> None:
            try:
                await opening
            except (Refused, StoreError) as why:
                up.refuse(why)

        Deferred.fromCoroutine(work()).addErrback(self._defect)

    def _progress(
        self, draft: Draft, progress: Progress, status: int, headers: Headers = ()
    ) -> Answer:
        headers = (tus.RESUMABLE, ("Upload-Offset", str(progress.offset)), *headers)
        if progress.refused:
            refused = Refused(
                tus.MISMATCH, "checksum", "The part is not the one of its checksum.", headers
            )
            return refused.response()
        if (parcel := progress.shelved) is not None:
            at = ("Content-Location", f"/{parcel.box}/{parcel.ident}")
            return Response(status, b"", (*headers, at, *proof(parcel)))
        return Response(status, b"", (*headers, *tus.expires(draft.expires)))

    async def _draft(self, request: Request, key: str) -> Draft:
        draft = await self.depot.draft(key)
        if draft is None:
            raise Refused(404, "not-found", "There is no such upload.", (tus.RESUMABLE,))
        self._check_token(request, draft.box)
        return draft

    async def _tus(self, request: Request, key: str) -> Answer:
        method = method_of(request)
        if method == "OPTIONS":
            return Response(204, b"", tus.OPTIONS)
        if not key:
            allow(method, "POST", "OPTIONS")
        allow(method, "HEAD", "PATCH", "DELETE", "OPTIONS")
        draft = await self._draft(request, key)
        if method == "DELETE":
            await draft.discard()
            return Response(204, b"", (tus.RESUMABLE,))
        await draft.settle()
        headers = (
            tus.RESUMABLE,
            ("Upload-Offset", str(draft.offset)),
            ("Upload-Length", str(draft.length)),
            PRIVATE,
            *tus.expires(draft.expires),
        )
        return Response(200, b"", headers)

    # Files out.

    def _receiver(self, asked: Mapping[str, str]) -> str:
        """Who asks, where that matters. Raises ValueError."""
        name = asked.get("as", "")
        if name and not _RECEIVER.fullmatch(name):
            raise ValueError("?as=NAME is 1 to 64 letters, digits, or one of . _ : % @ -")
        if name or not self.options.told_apart:
            return name
        return str(getattr(self.transport.getPeer(), "host", "") or "local")

    async def _hand_out(self, exchange: Exchange, box: str) -> Answer | None:
        request = exchange.request
        self._check_origin(request)  # a link elsewhere shall consume nothing
        asked = http_fields.query(request.query)
        wait = min(duration(asked["wait"]), LONGEST) if asked.get("wait") else 0.0
        if asked.get("ack", "auto") not in ("auto", "manual"):
            raise ValueError("?ack is auto or manual")
        receiver = self._receiver(asked)
        parcel = await self._take(box, wait, receiver)
        if parcel is None:
            return Response(204, b"", (PRIVATE,))
        if self.closing:
            parcel.release().addErrback(reason)
            return None
        manual = asked.get("ack") == "manual"
        shelved = parcel.shelved
        again = f"?as={quote(receiver, safe='')}" if receiver else ""
        headers = (
            *about(shelved),
            ("Content-Location", f"/{box}/{shelved.ident}{again}"),
            ("Lease", f"{self.lease:g}"),
            PRIVATE,
        )
        if manual:
            parcel.lease(self.lease)
            reading = await self.depot.find(box, shelved.ident)
            renew = (lambda: None) if reading is None else partial(reading.renew, receiver)
            exchange.answer(Streamed(200, headers, parcel.size))
            if await self._send(
                parcel, lambda: parcel.send(self.transport, exchange.head, watch=False), renew
            ):
                exchange.finish()
                self._go()
            return None
        exchange.answer(Streamed(200, headers, parcel.size, close=True))
        self._deliver(parcel, exchange)
        return None

    async def _take(self, box: str, wait: float, receiver: str) -> Parcel | None:
        """The oldest, once it is there; None: it did not come in time, or our time is over."""
        if self._draining:
            return None
        claim = self.depot.take(box, self.options.max_deliveries, wait > 0, receiver)
        self._claim = claim
        timer = self.live.clock.callLater(wait, claim.cancel) if wait and not claim.called else None
        try:
            return await claim
        except CancelledError:
            return None
        finally:
            self._claim = None
            if timer is not None and timer.active():
                timer.cancel()

    def _deliver(self, parcel: Parcel, exchange: Exchange) -> None:
        """Acknowledged by the peer's kernel and its FIN; then the connection is over."""
        try:
            gauge = self.kernel.gauge(self.transport)
        except OSError as error:
            parcel.release().addErrback(reason)
            self.abort("busy", str(error))
            return
        self.transport.unregisterProducer()
        self.detail = f"file {parcel.ident} was given back"
        head = exchange.head
        self._delivery = Delivery(self, parcel, gauge, len(head))
        self._delivery.begin(partial(parcel.send, self.transport, head, watch=False))

    def arrived(self) -> None:
        """The peer has all of what was delivered to it."""
        self._delivery = None
        self._end("received", "")
        self.transport.loseConnection()

    async def _copy(self, exchange: Exchange, reading: Reading) -> Answer | None:
        request, shelved = exchange.request, reading.shelved
        asked = http_fields.query(request.query)
        receiver = self._receiver(asked)
        reading.renew(receiver)
        arriving = shelved.state == "uploading"
        if arriving and asked.get("follow") not in ("1", "yes", "on"):
            raise Refused(409, "uploading", "It is being uploaded; ?follow=1 reads along.")
        if shelved.size is None and request.version == "1.0":
            raise Refused(409, "uploading", "Nobody knows how long it is; ask in HTTP/1.1.")
        headers = (*about(shelved), ("Accept-Ranges", "bytes"), PRIVATE)
        etag = f'"{shelved.sha256}"'
        if not arriving and http_fields.same(request.headers.get("if-none-match", ""), etag):
            return Response(304, b"", (("ETag", etag), PRIVATE))
        status, start, end = 200, 0, shelved.size
        condition = request.headers.get("if-range", etag).strip()
        if end is not None and condition == etag and request.method == "GET":
            span = http_fields.span(request.headers.get("range", ""), end)
            if span is not None:
                if span.start >= span.end:
                    unmet = ("Content-Range", f"bytes */{end}")
                    detail = f"The file has {end} bytes."
                    raise Refused(416, "range", detail, (unmet, ("Accept-Ranges", "bytes")))
                place = ("Content-Range", f"bytes {span.start}-{span.end - 1}/{end}")
                status, start, headers = 206, span.start, (*headers, place)
                end = span.end
        length = None if end is None else end - start
        exchange.answer(Streamed(status, headers, length))
        if request.method == "HEAD":
            self._go()
            return None
        frame = chunk if end is None else None
        send = partial(reading.send, self.transport, exchange.head, start, end, frame)
        if await self._send(reading, send, partial(reading.renew, receiver)):
            if end is None:
                self.transport.write(LAST_CHUNK)
            exchange.finish()
            self._go()
        return None

    async def _delete(self, request: Request, reading: Reading) -> Answer:
        asked = http_fields.query(request.query)
        receiver = self._receiver(asked)
        if asked.get("as") or reading.leased(receiver):
            gone = not await reading.acknowledge(receiver)
        else:
            gone = not await reading.cancel()
        if gone:
            raise Refused(404, "not-found", "It was acknowledged or deleted before.")
        return Response(204)

    async def _requeue(self, request: Request, reading: Reading) -> Answer:
        form = parse_qs(request.body.decode(errors="replace"))
        if form.get("action") != ["requeue"]:
            raise ValueError("POST /BOX/ID takes a form with action=requeue")
        if not await reading.requeue():
            raise Refused(404, "not-found", "It was acknowledged or deleted before.")
        shelved = reading.shelved
        if request.accepts("application/json", "text/html") == "text/html":
            return page_of(shelved.box)
        return as_json(fields(shelved))

    async def _front(self, request: Request) -> Answer:
        boxes = [box for box in await self.depot.boxes() if self._knows(request, box.name)]
        asked = http_fields.query(request.query)
        listed = boxes_in_json(boxes)
        json_liked = request.accepts("text/html", "application/json") == "application/json"
        if asked.get("format") == "json" or json_liked:
            return as_json({"boxes": listed})
        box = asked.get("box", BOX)
        check_box(box)
        self._check_token(request, box)
        parcels = await self._listed(box, fields)
        body = relay_page.page(listed, {"box": box, "parcels": parcels})
        return Response(200, body, tuple(relay_page.HEADERS.items()))
