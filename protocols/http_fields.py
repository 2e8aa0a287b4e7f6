"""What some header fields of HTTP mean: ranges, digests, names of files, origins. Text in, values
out; what is malformed raises ValueError where a peer should hear of it, else counts as absent."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Collection, Mapping
from ipaddress import ip_address
from unicodedata import category
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

from attrs import frozen

_RANGE = re.compile(r"bytes\s*=\s*([0-9]{0,18})\s*-\s*([0-9]{0,18})", re.IGNORECASE)
_DIGEST = re.compile(r"\s*sha-256\s*=\s*:([A-Za-z0-9+/]{43}=):\s*", re.IGNORECASE)
_PLAIN = re.compile(r"[^A-Za-z0-9._ ()+=@~,-]")
NAME = 255  # bytes of a file's name: more fit no folder of whoever collects it


@frozen
class Span:
    """Bytes `start` up to, not with, `end`. An empty one: nothing of what is there was meant."""

    start: int
    end: int


def span(value: str, size: int) -> Span | None:
    """What a Range means for `size` bytes; None: all of them (also for several ranges)."""
    found = _RANGE.fullmatch(value.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return Span(max(0, size - int(found[2])), size)
    start, last = int(found[1]), int(found[2]) if found[2] else size - 1
    if found[2] and last < start:
        return None
    return Span(start, min(size, last + 1)) if start < size else Span(size, size)


def same(condition: str, etag: str) -> bool:
    """Whether an If-None-Match names this strong ETag."""
    return any(item.strip() in (etag, "*") for item in condition.split(","))


def sha256(headers: Mapping[str, str]) -> str:
    """The hex digest that Repr-Digest or Content-Digest asks for, or empty. Raises ValueError."""
    wanted = set()
    for field in ("repr-digest", "content-digest"):
        for item in headers.get(field, "").split(","):
            if item.strip().lower().startswith("sha-256"):
                found = _DIGEST.fullmatch(item)
                if found is None:
                    raise ValueError("a digest is sha-256=:<base64 of 32 bytes>:")
                wanted.add(b64decode(found[1]).hex())
    if len(wanted) > 1:
        raise ValueError("the digests of one file differ")
    return wanted.pop() if wanted else ""


def repr_digest(sha256_hex: str) -> str:
    return f"sha-256=:{b64encode(bytes.fromhex(sha256_hex)).decode()}:"


def disposition(name: str) -> str:
    """A Content-Disposition that saves under `name`, for old and for new clients."""
    plain = _PLAIN.sub("_", name).lstrip(".") or "file"
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def decoded(text: str) -> str:
    """A percent-encoded part of a target. Raises ValueError unless it is UTF-8."""
    return unquote_to_bytes(text).decode()


def query(text: str) -> dict[str, str]:
    """The first of each name. Raises ValueError."""
    return dict(reversed(parse_qsl(text, keep_blank_values=True, errors="strict")))


def file_name(text: str) -> str:
    """`text`, if it may be a file's name in any folder. Raises ValueError with what is wrong."""
    if text in ("", ".", ".."):
        raise ValueError("a file needs a name of its own")
    if len(text.encode(errors="surrogatepass")) > NAME:
        raise ValueError(f"a name has at most {NAME} bytes of UTF-8")
    for character in text:
        if character == "/" or category(character) in ("Cc", "Cs", "Zl", "Zp"):
            raise ValueError("a name has no / and no control characters")
        if "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069":
            raise ValueError("a name does not turn the direction of text")
    return text


def host(value: str) -> str:
    """A Host without its port, in lower case; an address in brackets without them."""
    return (urlsplit(f"//{value}").hostname or "").rstrip(".")


def ours(value: str, names: Collection[str]) -> bool:
    """Whether a Host may be this machine: an address, localhost, or one of `names`.

    Any other name may be a stranger's that resolves to us, in the browser of one of our users.
    """
    try:
        name = host(value)
    except ValueError:
        return False
    try:
        ip_address(name.partition("%")[0])
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name in names
    return True


def followed(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that somebody follows a link, wherever it stands, to see this."""
    wanted = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    return wanted == ("navigate", "document") and "origin" not in headers


def foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that the page of somebody else asks for this."""
    if headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return False
    parts = origin.partition("://")
    return (
        parts[0].lower() not in ("http", "https")
        or parts[2].lower() != headers.get("host", "").lower()
    )
