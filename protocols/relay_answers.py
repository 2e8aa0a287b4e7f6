"""What the relay says over HTTP: parcels in headers and in JSON, errors in words."""

from __future__ import annotations

import json
from collections.abc import Sequence

from attrs import define, frozen
from twisted.logger import Logger
from twisted.python.failure import Failure

from protocols import http_fields
from protocols.http1 import Request, Response, Streamed
from protocols.relay_options import box_name
from protocols.stores import (
    NO_BOX,
    NO_QUOTA,
    NO_SPACE,
    NOT_THE_DIGEST,
    SUPERSEDED,
    TOO_LARGE,
    UPLOADING,
    Box,
    Shelved,
    StoreError,
)

log = Logger()

_JSON = ("Content-Type", "application/json")
PRIVATE = ("Cache-Control", "no-store")
_REASONS = {
    TOO_LARGE: (413, "too-large"),
    NO_QUOTA: (507, "quota"),
    NO_SPACE: (507, "disk-full"),
    NO_BOX: (507, "boxes"),
    NOT_THE_DIGEST: (400, "digest"),
    SUPERSEDED: (409, "superseded"),
    UPLOADING: (409, "uploading"),
}

Answer = Response | Streamed
Headers = tuple[tuple[str, str], ...]


@define(eq=False)
class Refused(Exception):
    """An error for the peer. code: a short word for programs; detail: a sentence for people."""

    status: int
    code: str
    detail: str
    headers: Headers = ()

    def response(self) -> Response:
        body = json.dumps({"error": self.code, "detail": self.detail}) + "\n"
        return Response(self.status, body.encode(), (_JSON, PRIVATE, *self.headers))

    @classmethod
    def by(cls, why: StoreError) -> Refused:
        status, code = _REASONS.get(why.reason, (503, "storage"))
        what = "done" if status == 409 else "kept"
        return cls(status, code, f"Not {what}: {why.reason}.")


def malformed(why: object) -> Refused:
    return Refused(400, "malformed", sentence(why))


def sentence(why: object) -> str:
    text = str(why)
    return text[:1].upper() + text[1:300].rstrip(".") + "."


def check_box(name: str, status: int = 404) -> None:
    """Raises Refused."""
    try:
        box_name(name)
    except ValueError as why:
        raise Refused(status, "no-such-box", sentence(why)) from None


@frozen
class Place:
    """Where a request points: a box, a key in it (an ident or a name); both may be empty."""

    box: str
    key: str

    @classmethod
    def of(cls, path: str) -> Place:
        """Raises Refused."""
        box, _, key = path[1:].partition("/")
        check_box(box)
        if "/" in key:
            raise Refused(404, "not-found", "There is /BOX and /BOX/NAME, and nothing below.")
        try:
            return cls(box, http_fields.decoded(key))
        except ValueError:
            raise malformed("a name is percent-encoded UTF-8") from None


def is_tus(request: Request) -> bool:
    return request.path == "/tus" or request.path.startswith("/tus/")


def method_of(request: Request) -> str:
    if is_tus(request):  # for browsers of old, which know no PATCH
        return request.headers.get("x-http-method-override", request.method).upper()
    return request.method


def allow(method: str, *known: str) -> None:
    if method not in known:
        allowed = ("Allow", ", ".join(known))
        raise Refused(405, "method", f"{method} means nothing here.", (allowed,))


def with_headers(response: Response, headers: Headers) -> Response:
    more = tuple(pair for pair in headers if pair not in response.headers)
    return Response(response.status, response.body, (*response.headers, *more), response.close)


def refusal(why: Refused | StoreError | ValueError, own: Headers = ()) -> Response:
    """The answer to a request that cannot be served. own: headers it has in any case."""
    if isinstance(why, StoreError):
        why = Refused.by(why)
    elif isinstance(why, ValueError):
        why = malformed(why)
    return with_headers(why.response(), own)


def as_json(value: object, status: int = 200, headers: Headers = ()) -> Response:
    text = json.dumps(value, ensure_ascii=False) + "\n"
    return Response(status, text.encode(), (_JSON, PRIVATE, *headers))


def page_of(box: str) -> Response:
    return Response(303, b"", (("Location", f"/?box={box}"), PRIVATE))


def fields(parcel: Shelved, *names: str) -> dict[str, object]:
    """As JSON has it: `names` of it, else all that it is listed with."""
    fields: dict[str, object] = {
        "id": parcel.ident,
        "box": parcel.box,
        "name": parcel.name,
        "size": parcel.size,
        "sha256": parcel.sha256,
        "sent": parcel.sent,
        "expires": parcel.expires,
        "deliveries": parcel.deliveries,
        "state": parcel.state,
    }
    if names:
        return {name: fields[name] for name in names}
    del fields["box"]
    if parcel.state == "uploading":
        fields["received"] = parcel.received
    return fields


def parcel_in_json(parcel: Shelved) -> str:
    return json.dumps(fields(parcel), ensure_ascii=False)


def listing(box: str, parcels: Sequence[str]) -> Response:
    """parcels: in JSON."""
    text = f'{{"box": "{box}", "parcels": [{", ".join(parcels)}]}}\n'
    return Response(200, text.encode(), (_JSON, PRIVATE))


def boxes_in_json(boxes: Sequence[Box]) -> list[dict[str, object]]:
    return [{"box": box.name, "parcels": box.parcels, "bytes": box.size} for box in boxes]


def proof(parcel: Shelved) -> Headers:
    """What a file is, in headers, and until when."""
    headers: Headers = ()
    if parcel.sha256:
        digest = http_fields.repr_digest(parcel.sha256)
        headers = (("ETag", f'"{parcel.sha256}"'), ("Repr-Digest", digest))
    if parcel.expires:
        headers = (*headers, ("Expires-At", parcel.expires))
    return headers


def about(parcel: Shelved) -> Headers:
    return (
        ("Content-Type", "application/octet-stream"),
        ("Content-Disposition", http_fields.disposition(parcel.name)),
        ("X-Content-Type-Options", "nosniff"),
        *proof(parcel),
    )


def reason(failure: Failure) -> StoreError:
    """What a store says went wrong; anything but its own error is a defect, shown whole."""
    if isinstance(failure.value, StoreError):
        return failure.value
    log.failure("a store failed in a way it must not", failure, event="relay.broken")
    return StoreError("storage failed")
