"""The pages of the admin port. `daemon.admin` says what is where, and who may ask for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Coroutine
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from daemon.admin import NAME, Options
from daemon.admin.metrics import Metrics
from daemon.admin.readiness import Readiness
from daemon.admin.status import describe, ready
from protocols import http_fields
from protocols.connection import Connection, Live, LiveFactory
from protocols.deadline import Deadline
from protocols.http1 import Exchange, Http1, Limits, Request, Response

if TYPE_CHECKING:
    from daemon.roundhouse import Roundhouse

log = Logger()

_LIMITS = Limits(body=1024)
Page = Callable[[Any, Request], Coroutine[Any, Any, Response]]
_OPEN = frozenset({"/healthz", "/readyz"})  # without the token
_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_FRESH = ("Cache-Control", "no-store")


def error(status: int, why: str, *headers: tuple[str, str]) -> Response:
    return Response(status, f"{why}\n".encode(), (_TEXT, *headers), close=True)


def as_json(value: object, status: int = 200) -> Response:
    body = json.dumps(value, indent=2).encode() + b"\n"
    return Response(status, body, (("Content-Type", "application/json"), _FRESH), close=True)


_TOO_SLOW = error(408, "The request did not come to its end in time.")


@define(eq=False, repr=False)
class Site:
    """Answers requests. names: of this machine."""

    daemon: Roundhouse
    options: Options
    names: Collection[str]
    metrics: Metrics
    readiness: Readiness

    async def answer(self, request: Request) -> Response:
        host = request.headers.get("host")
        if host is not None and not http_fields.ours(host, {"", *self.options.hosts, *self.names}):
            return error(
                403,
                "This Host is not known here: use an address, or name it in HOSTS of [admin].",
            )
        page = self._PAGES.get(request.path)
        if page is None:
            return error(404, "\n".join(["There is nothing there, only:", *self._PAGES]))
        if request.method not in ("GET", "HEAD"):
            return error(405, "Nothing can be changed from here.", ("Allow", "GET, HEAD"))
        if request.path not in _OPEN and not self._knows(request):
            challenge = ("WWW-Authenticate", 'Bearer realm="roundhouse"')
            return error(401, "This wants the TOKEN of [admin] as a bearer token.", challenge)
        return await page(self, request)

    def _knows(self, request: Request) -> bool:
        wanted = self.options.token.text
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        return not wanted or compare_digest(given.encode(), wanted.encode())

    async def _show_metrics(self, request: Request) -> Response:
        body, media_type = self.metrics.encode(request.headers.get("accept", ""))
        return Response(200, body, (("Content-Type", media_type), _FRESH), close=True)

    async def _show_health(self, request: Request) -> Response:
        lag = self.daemon.pulse.lag
        well = lag <= self.options.max_lag
        return as_json({"ok": well, "lag_ms": round(lag * 1000, 3)}, 200 if well else 503)

    async def _show_readiness(self, request: Request) -> Response:
        checks = await self.readiness.ask()
        well = ready(checks)
        return as_json({"ready": well, "checks": checks}, 200 if well else 503)

    async def _show_status(self, request: Request) -> Response:
        return as_json(describe(self.daemon, await self.readiness.ask()))

    _PAGES: ClassVar[dict[str, Page]] = {
        "/metrics": _show_metrics,
        "/healthz": _show_health,
        "/readyz": _show_readiness,
        "/status": _show_status,
    }


@define(eq=False, repr=False)
class Visitor(Connection):
    """Asks one thing, and is answered."""

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"left", "answered", "silent", "drained"})

    site: Site
    _http: Http1 = field(factory=lambda: Http1(_LIMITS), init=False)
    _asked: bool = field(default=False, init=False)
    _deadline: Deadline = field(init=False)

    def opened(self) -> None:
        patience = self.site.options.request_timeout
        self._deadline = Deadline(
            self.live.clock, patience, lambda: int(not self._asked), self._too_slow
        )
        self._deadline.look()

    def closed(self, reason: Failure) -> None:
        self._deadline.end()

    def received(self, data: bytes) -> None:
        for exchange in self._http.feed(data):
            if self._asked:
                break
            self._asked = True
            Deferred.fromCoroutine(self._serve(exchange)).addErrback(self._defect)
        self._say()

    def finished(self) -> None:
        self._http.eof()
        self._say()

    def drain(self, grace: float) -> None:
        if not self._http.waiting:
            self.close("drained")

    def _too_slow(self) -> None:
        self._http.eof(_TOO_SLOW)
        self._say("silent")

    async def _serve(self, exchange: Exchange) -> None:
        answer = await self.site.answer(exchange.request)
        if not self.closing:
            exchange.answer(answer)
            self._say()

    def _say(self, outcome: str = "") -> None:
        if self.closing:
            return
        if data := self._http.ready():
            self.transport.write(data)
        if self._http.closing:
            self.close(outcome or ("answered" if data else "left"))

    def _defect(self, failure: Failure) -> None:
        log.failure("admin: a request was not served", failure, event="admin.failed")
        self.abort("failed")


def build(
    daemon: Roundhouse, options: Options, names: Collection[str], readiness: Readiness
) -> LiveFactory:
    """What serves the port with these options."""
    site = Site(daemon, options, names, Metrics(daemon), readiness)
    return LiveFactory(Live(NAME, daemon.reactor), lambda live: Visitor(live, site))
