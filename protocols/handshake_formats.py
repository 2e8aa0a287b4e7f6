"""What a peer of the handshake may send, as text: bytes in, fields or a refusal out. Pure.

Fields are named `id`, `code` and `message`, whatever name they came under:

    id        client_uuid, id, uid                              1 to 128 printable characters
    code      server_uuid, code, uuid, token, unique_code
    message   message, msg                                      1 byte to 64 KiB of UTF-8

    form      client_uuid=ID&server_uuid=CODE&message=TEXT
    JSON      {"id": ID, "code": CODE, "message": TEXT}; a number as ID is taken as its text
    words     ID SP CODE SP TEXT
    quoted    "TEXT" SP ID SP CODE
    lines     TEXT LF ID LF CODE

    record    {"time": AT, "seq": 7, "id": ID, "message": TEXT} LF: how a logged message is told

A record is ASCII, everything else is escaped: no line break (U+2028 is one to some readers) and no
control character of a message can make a second one.

Every format has the pair (id, code) in a fixed place, so no text can pass for one. Other fields
are ignored; a field that comes twice, under one name or two, is refused, and so is whatever could
not be stored and read again: bytes that are not UTF-8, half a surrogate pair, nesting without end.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final, NoReturn
from urllib.parse import unquote

from attrs import define, field

from protocols.framing import Overlong

REQUEST: Final = 256 * 1024  # bytes of one request, framing aside
MESSAGE: Final = 64 * 1024  # bytes of a text
IDENT: Final = 128  # characters of an id
FORM_FIELDS: Final = 64
READ: Final = 1000  # messages that are read back at once

ALIASES: Final = {
    name: key
    for key, names in {
        "id": "client_uuid id uid",
        "code": "server_uuid code uuid token unique_code",
        "message": "message msg",
    }.items()
    for name in names.split()
}

Fields = dict[str, str]


@define(eq=False)
class Malformed(Exception):
    """Not a request. reason: what is wrong in general; it repeats nothing that was sent."""

    reason: str

    def __str__(self) -> str:
        return self.reason


# --- which language a peer speaks ---------------------------------------------------------------


class Tongue(Enum):
    """What the first bytes of a peer can be."""

    HTTP = auto()
    JSON = auto()
    KEEP = auto()
    PICKLE = auto()
    TEXT = auto()


_METHODS = b"GET POST PUT HEAD DELETE OPTIONS PATCH TRACE CONNECT".split()
_REQUESTS = tuple(method + b" /" for method in _METHODS)
_KEEPS = (b"KEEP\n", b"KEEP\r\n")
_BEGINNINGS = _REQUESTS + _KEEPS
_LONGEST = max(map(len, _BEGINNINGS))
_VERSION = re.compile(rb" HTTP/1\.[0-9]\r?\Z")
_BLANKS = b" \t\r\n"
_BLANK_MOST = 1024
_LINE_MOST = MESSAGE + 2


def awaits_line(begun: bytes) -> bool:
    """Whether `begun` is the beginning of what HTTP calls a request line: worth any wait."""
    return begun.startswith(_REQUESTS)


def tongue(begun: bytes) -> Tongue | None:
    """What a stream that begins with `begun` is; None while more bytes could still decide.

    When no more come, it is TEXT.
    """
    if begun.startswith(_REQUESTS):
        end = begun.find(b"\n", 0, _LINE_MOST)
        if end < 0:
            # No text could be that long: let HTTP say that its line is.
            return None if len(begun) < _LINE_MOST else Tongue.HTTP
        return Tongue.HTTP if _VERSION.search(begun, 0, end) else Tongue.TEXT
    if begun.startswith(b"{"):
        inside = begun[1:_BLANK_MOST].lstrip(_BLANKS)
        if not inside:
            return None if len(begun) < _BLANK_MOST else Tongue.TEXT
        return Tongue.JSON if inside[0] in b'"}' else Tongue.TEXT
    if begun.startswith(_KEEPS):
        return Tongue.KEEP
    if begun.startswith(b"\x80"):
        return Tongue.PICKLE
    if len(begun) < _LONGEST and any(start.startswith(begun) for start in _BEGINNINGS):
        return None
    return Tongue.TEXT


# --- where a request ends -----------------------------------------------------------------------


@define(eq=False)
class AfterLines:
    """A request that ends with its LF number `missing`."""

    missing: int

    def feed(self, data: bytes) -> int:
        """How many of the next bytes, `data`, end the request; 0: it takes all, and goes on."""
        count = data.count(b"\n")
        if count < self.missing:
            self.missing -= count
            return 0
        end = 0
        for _ in range(self.missing):
            end = data.index(b"\n", end) + 1
        return end


_MARKS = re.compile(rb'["\\{}]')


@define(eq=False)
class AfterObject:
    """A request that ends with the JSON object it begins with, or with the LF that follows it.

    Only braces and strings are looked at; whether it is JSON shows when it is whole.
    """

    line: bool = False  # the LF is part of it
    _depth: int = field(default=0, init=False)
    _quoted: bool = field(default=False, init=False)
    _escaped: int = field(default=-1, init=False)  # offset of the byte behind a backslash
    _seen: int = field(default=0, init=False)
    _whole: bool = field(default=False, init=False)

    def feed(self, data: bytes) -> int:
        """As AfterLines.feed."""
        end = 0
        if not self._whole:
            end = self._object(data)
            self._seen += len(data)
            self._whole = end > 0
        if self._whole and self.line:
            return data.find(b"\n", end) + 1
        return end

    def _object(self, data: bytes) -> int:
        for found in _MARKS.finditer(data):
            mark, at = found[0], found.start()
            if self._seen + at == self._escaped:
                continue
            if self._quoted:
                if mark == b"\\":
                    self._escaped = self._seen + at + 1
                elif mark == b'"':
                    self._quoted = False
            elif mark == b'"':
                self._quoted = True
            elif mark == b"{":
                self._depth += 1
            elif mark == b"}":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        return 0


# --- named fields -------------------------------------------------------------------------------


def utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Malformed("not UTF-8") from None


def form(body: bytes) -> Fields:
    """The fields of an application/x-www-form-urlencoded body. Raises Malformed."""
    text = utf8(body)
    if text.count("&") >= FORM_FIELDS:
        raise Malformed(f"a form has at most {FORM_FIELDS} fields")
    return _known(_pairs(text).items())


def _pairs(text: str) -> dict[str, str]:
    """The fields of a form or a query. Raises Malformed."""
    parts = [part.partition("=") for part in text.replace("+", " ").split("&") if part]
    if "%" not in text:
        return _unique([(name, value) for name, _, value in parts])
    try:
        return _unique(
            [(unquote(name, errors="strict"), unquote(v, errors="strict")) for name, _, v in parts]
        )
    except UnicodeDecodeError:
        raise Malformed("not UTF-8") from None


def json_object(data: bytes) -> Fields:
    """The fields of a JSON object. Raises Malformed."""
    text = utf8(data)
    try:
        value = _JSON.decode(text)
        if _HALVES.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise Malformed("JSON nested too deeply") from None
    except UnicodeEncodeError:
        raise Malformed("half a surrogate pair is no character") from None
    except ValueError:
        raise Malformed("not JSON") from None
    if not isinstance(value, dict):
        raise Malformed("not a JSON object")
    return _known(value.items())


class _Number(str):
    """A number of JSON, as it was written."""

    __slots__ = ()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Malformed("a field is there twice")
    return fields


def _no_number(_: str) -> NoReturn:
    raise Malformed("not JSON")


_HALVES = re.compile(rb"\\u[dD][89a-fA-F]")
_JSON = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_int=_Number,
    parse_float=_Number,
    parse_constant=_no_number,
)


def _known(items: Iterable[tuple[str, Any]]) -> Fields:
    fields: Fields = {}
    for name, value in items:
        key = ALIASES.get(name)
        if key is None:
            continue
        if key in fields:
            raise Malformed(f"a field is there twice: {key}")
        if type(value) is _Number and key == "id":
            value = str(value)
        if type(value) is not str:
            raise Malformed(f"a field is not text: {key}")
        fields[key] = value
    return fields


# --- fields by their place ----------------------------------------------------------------------


def line_id(text: str) -> Fields:
    """A line that is an id and nothing else."""
    return {"id": _chomp(text)}


def words(text: str) -> Fields:
    """`ID SP CODE SP TEXT`, one blank each; TEXT is all the rest. Raises Malformed."""
    parts = text.split(" ", 2)
    if len(parts) < 3:
        raise Malformed("a message is: ID CODE TEXT, one blank between")
    return {"id": parts[0], "code": parts[1], "message": parts[2]}


def one_pair(lines: Sequence[bytes | Overlong]) -> tuple[str, str, list[str]] | None:
    """The id, the code and the messages of lines that are words under one pair.

    None where a line is not, or is wrong in any way: then each must be looked at. Costs next to
    nothing a line, and says what `message(words(line))` would.
    """
    try:
        text = b"\n".join(lines).decode()  # type: ignore[arg-type]
        ident, code, _ = text.split(" ", 2)
        _checked_id(ident)
    except (TypeError, ValueError, Malformed):
        return None
    pair = f"{ident} {code} "
    messages = text[len(pair) :].split(f"\n{pair}")
    if (
        len(messages) < len(lines)
        or not code
        or "" in messages
        or "\r\n" in text
        or text.endswith("\r")
        or (len(text) > MESSAGE // 4 and len(max(messages, key=len)) > MESSAGE // 4)
    ):
        return None
    return ident, code, messages


def text_message(text: str) -> Fields:
    """Three lines, a quoted text and its pair, or words, by that order. Raises Malformed."""
    text = _chomp(text)
    if text.count("\n") == 2:
        message, ident, code = (line.removesuffix("\r") for line in text.split("\n"))
        return {"message": message, "id": ident, "code": code}
    if not text.startswith('"'):
        return words(text)
    quoted, *pair = text.rsplit(" ", 2)
    if len(pair) < 2 or len(quoted) < 2 or not quoted.endswith('"'):
        raise Malformed('a quoted message is: "TEXT" ID CODE, one blank between')
    return {"message": quoted[1:-1], "id": pair[0], "code": pair[1]}


def _chomp(text: str) -> str:
    """`text` without its last line ending, if it has one."""
    return text[:-1].removesuffix("\r") if text.endswith("\n") else text


# --- what the fields must hold ------------------------------------------------------------------


def registrant(fields: Fields, renews: bool = False) -> tuple[str, str | None]:
    """The id that asks for a code, and its present code. Raises Malformed.

    renews: that code may be there.
    """
    code = fields.get("code") if renews else None
    if fields.keys() - ({"code"} if renews else set()) != {"id"} or code == "":
        raise Malformed("a code is given for an id (client_uuid) and nothing else")
    return _checked_id(fields["id"]), code


def message(fields: Fields) -> tuple[str, str, str]:
    """The id, the code and the text of a message. Raises Malformed."""
    ident, code, text = fields.get("id"), fields.get("code"), fields.get("message")
    if not (ident and code and text):
        raise Malformed("a message needs client_uuid, server_uuid and message")
    # No character takes more than four bytes.
    if len(text) > MESSAGE // 4 and len(text.encode()) > MESSAGE:
        raise Malformed(f"a message holds at most {MESSAGE} bytes")
    return _checked_id(ident), code, text


def basic(authorization: str) -> tuple[str, str] | None:
    """The id and the code of an Authorization header of HTTP (RFC 7617); None: there is no pair.

    An id may hold a colon, a code does not.
    """
    scheme, _, token = authorization.partition(" ")
    try:
        pair = b64decode(token.strip(), validate=True).decode()
        ident, colon, code = pair.rpartition(":")
        if scheme.lower() == "basic" and colon and code:
            return _checked_id(ident), code
    except (ValueError, Malformed):
        pass
    return None


def span(query: str) -> tuple[int, int]:
    """`after` and `limit` of a query string. Raises Malformed."""
    if query.count("&") >= FORM_FIELDS:
        raise Malformed(f"a query has at most {FORM_FIELDS} fields")
    fields = _pairs(query)
    numbers = []
    for name, usual, most in (("after", 0, (1 << 63) - 1), ("limit", 100, READ)):
        text = fields.get(name, str(usual))
        if not (text.isascii() and text.isdigit() and len(text) < 20 and int(text) <= most):
            raise Malformed(f"{name} is a number up to {most}")
        numbers.append(int(text))
    return numbers[0], numbers[1]


def _checked_id(ident: str) -> str:
    if not 0 < len(ident) <= IDENT or not ident.isprintable() or ident.isspace():
        raise Malformed(f"an id is 1 to {IDENT} printable characters")
    return ident


# --- what was logged ----------------------------------------------------------------------------


def records(rows: Iterable[tuple[int, str, str, str]]) -> bytes:
    """A line for each (seq, at, id, message)."""
    lines = [
        f'{{"time": "{at}", "seq": {seq}, "id": {_quoted(ident)}, "message": {_quoted(text)}}}\n'
        for seq, at, ident, text in rows
    ]
    return "".join(lines).replace("\x7f", "\\u007f").encode("ascii")  # DEL is all JSON leaves
