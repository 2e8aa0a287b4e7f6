"""HTTP to a service: a connection a request, bodies in pieces, refusals in the server's words."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from email.utils import collapse_rfc2231_value
from http import HTTPStatus
from http.client import (
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    RemoteDisconnected,
)
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from attrs import define, field, frozen

from client.net import CHUNK, Address, Failed, Reset, Silent, connect, no_http, reason, wants_tls
from client.terminal import printable

if TYPE_CHECKING:
    from client.net import Stream

PATIENCE = 60.0  # seconds for a sign of life, without --timeout
LONGEST = 16 << 20  # bytes of an answer that is read whole


class Refused(Failed):
    """The server answered with an error. status: HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Answered(Exception):
    """The server answered before it had the whole body."""


@define(eq=False, repr=False)
class Answer:
    """What came back. status, headers: HTTP's; size: bytes of the body, None: unknown."""

    address: Address
    _connection: HTTPConnection
    _response: HTTPResponse
    status: int = field(init=False)
    headers: HTTPMessage = field(init=False)
    size: int | None = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.status = self._response.status
        self.headers = self._response.headers
        self.size = self._response.length

    @property
    def name(self) -> str | None:
        """The file name the server gives it: data, never to be used as a path."""
        # with `filename` for old clients and `filename*` for all others, the email package
        # would take the one that comes first
        named = self.headers.get_params(header="Content-Disposition") or []
        found = [value for name, value in named if name.lower() == "filename"]
        return collapse_rfc2231_value(found[-1]) if found else None

    @property
    def ident(self) -> str | None:
        """The last part of the Content-Location: which of several things this is."""
        path = urlsplit(self.headers.get("Content-Location", "")).path
        return unquote(path.rpartition("/")[2]) or None

    @property
    def sha256(self) -> str | None:
        """In hex, of the whole thing, by its Repr-Digest."""
        for part in self.headers.get("Repr-Digest", "").split(","):
            algorithm, _, digest = part.strip().partition("=")
            if algorithm == "sha-256":
                with suppress(ValueError):
                    return b64decode(digest.strip(":"), validate=True).hex()
        return None

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes. Raise Reset or Silent, also where it ends too early."""
        left = self.size
        while left != 0:
            try:
                data = self._response.read1(CHUNK)
            except TimeoutError:
                raise Silent(f"{self.address} went silent") from None
            except (OSError, HTTPException) as error:
                raise Reset(f"{self.address} broke the connection: {reason(error)}") from None
            if not data:
                if left is None:
                    return
                raise Reset(f"{self.address} closed before the end")
            left = None if left is None else left - len(data)
            yield data

    def json(self) -> Any:
        """The body as JSON. Raise Failed."""
        body = bytearray()
        for data in self.chunks():
            body += data
            if len(body) > LONGEST:
                raise Failed(f"{self.address} answered more than {LONGEST:,} bytes")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise Failed(f"{self.address} did not answer in JSON") from None

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._response.close()
        self._connection.close()


@frozen
class Site:
    """A server of HTTP. timeout: seconds of its silence that are borne; token: a bearer's."""

    address: Address
    timeout: float | None = None
    token: str | None = field(default=None, repr=False)

    def ask(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: Iterable[bytes] | bytes | None = None,
        patience: float | None = None,
    ) -> Answer:
        """One request; `body` without a Content-Length among the headers goes in chunks.

        patience: seconds in which the answer may begin, None: as for everything.
        Raise Nobody, Reset, Silent, or Refused for every status from 400 on.
        """
        fields = {"Accept": "application/json, */*;q=0.5", "Connection": "close", **(headers or {})}
        if self.token is not None:
            fields["Authorization"] = f"Bearer {self.token}"
        connection = HTTPConnection(self.address.host, self.address.port)
        connection.sock = sock = connect(self.address, self.timeout)
        patience = patience or self.timeout or PATIENCE
        sock.settimeout(patience)
        whole = body if body is None or isinstance(body, bytes) else _while_unanswered(sock, body)
        try:
            with suppress(_Answered, BrokenPipeError, ConnectionResetError):
                connection.request(method, target, whole, fields)
            # after such an end, why may be there to be read
            response = connection.getresponse()
            sock.settimeout(self.timeout or PATIENCE)
        except TimeoutError:
            connection.close()
            raise Silent(f"{self.address} did not answer within {patience:g} s") from None
        except RemoteDisconnected:
            connection.close()
            raise Reset(f"{self.address} closed the connection without an answer") from None
        except HTTPException as error:
            connection.close()
            raise no_http(self.address, error) from None
        except OSError as error:
            connection.close()
            raise Reset(f"{self.address} broke the connection: {reason(error)}") from None
        except BaseException:
            connection.close()
            raise
        answer = Answer(self.address, connection, response)
        if answer.status >= 400:
            with answer:
                raise _refusal(answer)
        return answer


def _while_unanswered(sock: Stream, body: Iterable[bytes]) -> Iterator[bytes]:
    for data in body:
        yield data
        if sock.spoke():
            raise _Answered


def _refusal(answer: Answer) -> Failed:
    if answer.status == HTTPStatus.UPGRADE_REQUIRED and answer.address.tls is None:
        return wants_tls(answer.address)
    detail = ""
    try:
        said = answer.json()
        if isinstance(said, dict):
            detail = str(said.get("detail") or said.get("error") or "")
    except Failed:  # an answer to HEAD, a proxy's page
        pass
    why = printable(detail[:300]) or answer._response.reason or "no reason given"
    return Refused(f"{answer.address} refused: {why} ({answer.status})", answer.status)
