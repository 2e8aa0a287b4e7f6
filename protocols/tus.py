"""tus 1.0.0, resumable uploads over HTTP: what its headers say, and what is said back.

https://tus.io/protocols/resumable-upload: core, creation, creation-with-upload, termination,
expiration, checksum. Pure: headers in, values out.
"""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections.abc import Mapping
from email.utils import formatdate

from attrs import frozen

VERSION = "1.0.0"
RESUMABLE = ("Tus-Resumable", VERSION)
TYPE = "application/offset+octet-stream"
ALGORITHMS = ("sha1", "sha256", "md5")
OPTIONS = (
    RESUMABLE,
    ("Tus-Version", VERSION),
    ("Tus-Extension", "creation,creation-with-upload,termination,expiration,checksum"),
    ("Tus-Checksum-Algorithm", ",".join(ALGORITHMS)),
)
MISMATCH = 460  # the status of a part whose checksum is another
_DIGITS = 18


@frozen
class Upload:
    """What a creation asks for. sha256: hex, or empty; expires: as it was written, or empty."""

    size: int
    box: str
    name: str
    sha256: str
    expires: str


def number(headers: Mapping[str, str], field: str) -> int:
    """Raises ValueError."""
    value = headers.get(field.lower(), "")
    if not (value.isascii() and value.isdecimal() and len(value) <= _DIGITS):
        raise ValueError(f"{field} must be a whole number of bytes")
    return int(value)


def metadata(value: str) -> dict[str, str]:
    """Upload-Metadata: `key base64, key base64`. Raises ValueError."""
    fields = {}
    for item in filter(None, (item.strip() for item in value.split(","))):
        key, _, encoded = item.partition(" ")
        try:
            fields[key.lower()] = b64decode(encoded.strip(), validate=True).decode()
        except (Error, ValueError):
            raise ValueError(f"Upload-Metadata: {key[:32]} is no base64 of UTF-8") from None
    return fields


def creation(headers: Mapping[str, str]) -> Upload:
    """Raises ValueError."""
    fields = metadata(headers.get("upload-metadata", ""))
    sha256 = fields.get("sha256", "").lower()
    if sha256 and (len(sha256) != 64 or set(sha256) - set("0123456789abcdef")):
        raise ValueError("sha256 is 64 hexadecimal digits")
    return Upload(
        size=number(headers, "Upload-Length"),
        box=fields.get("box", ""),
        name=fields.get("filename") or fields.get("name", ""),
        sha256=sha256,
        expires=headers.get("expires-in") or fields.get("expires", ""),
    )


def checksum(headers: Mapping[str, str]) -> tuple[str, bytes] | None:
    """Upload-Checksum: `algorithm base64`. Raises ValueError."""
    value = headers.get("upload-checksum", "")
    if not value:
        return None
    algorithm, _, encoded = value.partition(" ")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"Upload-Checksum knows {', '.join(ALGORITHMS)}")
    try:
        return algorithm, b64decode(encoded.strip(), validate=True)
    except (Error, ValueError):
        raise ValueError("Upload-Checksum is an algorithm, a blank and base64") from None


def expires(seconds: float | None) -> tuple[tuple[str, str], ...]:
    """Upload-Expires, for seconds since 1970; none: it does not."""
    if seconds is None:
        return ()
    return (("Upload-Expires", formatdate(seconds, usegmt=True)),)
