"""What IRC lines look like: to read a client's, and to spell what happens in the chat. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from attrs import frozen

from protocols.rooms import GUEST, LONGEST, moment, valid
from protocols.stores import Kind, Line, Said

SERVER = "irc.roundhouse"
HOST = "chat@roundhouse"  # of everybody: where people are is nobody's business
LONGEST_LINE = 510  # bytes without its CR LF
LONGEST_TAGS = 8191  # bytes
TOO_LONG = f"a line has {LONGEST_LINE} bytes at most"

_FORMAT = re.compile(  # bold, colours and the like
    "\x03(?:[0-9]{1,2}(?:,[0-9]{1,2})?)?"
    "|\x04(?:[0-9A-Fa-f]{6}(?:,[0-9A-Fa-f]{6})?)?"
    "|[\x02\x0f\x11\x16\x1d\x1e\x1f]"
)
_BREAKS = re.compile("[\r\n\0]")
_TIMESTAMP = re.compile(r"timestamp=([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z)")


def parsed(line: bytes) -> tuple[str, list[str]]:
    """A line as its command, in upper case, and parameters; ("", []) if it is empty.

    Tags and source are dropped: we know who speaks. Raises ValueError with what is wrong.
    """
    if line.startswith(b"@"):
        tags, _, line = line.partition(b" ")
        if len(tags) > LONGEST_TAGS:
            raise ValueError(TOO_LONG)
    if len(line) > LONGEST_LINE:
        raise ValueError(TOO_LONG)
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise ValueError("only UTF-8 is spoken here") from None
    if "\0" in text or "\r" in text:
        raise ValueError("a line holds no NUL and no CR")
    text, colon, last = f" {text}".partition(" :") if text[:1] != ":" else _sourced(text)
    words = [word for word in text.split(" ") if word]
    if not words:
        return "", []
    return words[0].upper(), words[1:] + [last] * bool(colon)


def _sourced(text: str) -> tuple[str, str, str]:
    return (" " + text.partition(" ")[2]).partition(" :")


def message(*words: str, source: str = SERVER) -> bytes:
    """One line for a client, whatever the words hold; the last may have blanks. Pure."""
    *firsts, last = [_BREAKS.sub(" ", word) for word in words]
    middles = [word.replace(" ", "_").lstrip(":") or "*" for word in firsts]
    return cut(" ".join([f":{source}", *middles, f":{last}"]).encode(), LONGEST_LINE) + b"\r\n"


def cut(text: bytes, size: int) -> bytes:
    """At most `size` bytes of `text`, no character halved. Pure."""
    if len(text) <= size:
        return text
    while text[size] & 0xC0 == 0x80:
        size -= 1
    return text[:size]


def pieces(text: bytes, size: int) -> Iterator[bytes]:
    """All of `text`, in pieces of at most `size` bytes (4 or more)."""
    while text:
        piece = cut(text, size)
        text = text[len(piece) :]
        yield piece


def stamp(at: float) -> str:
    """Seconds since the epoch as server-time writes them."""
    seconds, milliseconds = divmod(int(at * 1000), 1000)
    return "{}T{}.{:03}Z".format(*moment(seconds), milliseconds)


def spelled(line: Line | Said, target: bytes, before: bytes = b"") -> list[bytes]:
    """The messages that tell `target` of `line`. before: goes before the text, and is no text."""
    source = f":{line.author or GUEST}!{HOST} ".encode()
    match line.kind:
        case Kind.JOIN:
            return [source + b"JOIN " + target + b"\r\n"]
        case Kind.NICK:
            return [source + b"NICK :" + line.text + b"\r\n"]
        case Kind.PART:
            return [cut(source + b"PART " + target + b" :" + line.text, LONGEST_LINE) + b"\r\n"]
        case Kind.QUIT:
            return [cut(source + b"QUIT :" + line.text, LONGEST_LINE) + b"\r\n"]
    head, tail = source + b"PRIVMSG " + target + b" :", b"\r\n"
    if line.kind is Kind.ACTION:
        head, tail = head + b"\x01ACTION ", b"\x01" + tail
    room = LONGEST_LINE + 2 - len(head) - len(tail)
    return [
        head + piece + tail
        for text in line.text.split(b"\n")
        for piece in pieces(before + text, room)
    ]


@frozen
class Dialect:
    """How a room is told on this wire. timed: with the time of each line."""

    room: str
    timed: bool

    def __call__(self, lines: Sequence[Line], at: float) -> bytes:
        target = b"#" + self.room.encode()
        said = [part for line in lines for part in spelled(line, target)]
        before = f"@time={stamp(at)} ".encode() if self.timed else b""
        return before + before.join(said) if said else b""


def lines_of(text: str) -> list[bytes]:
    """A text as lines of the chat, cut at blanks where there are any; [] if it may not be said."""
    rest, parts = _FORMAT.sub("", text), []
    while len(rest) > LONGEST:
        at = rest.rfind(" ", LONGEST // 2, LONGEST) + 1 or LONGEST
        parts.append(rest[:at])
        rest = rest[at:]
    said = [part.encode() for part in (*parts, rest)]
    return said if all(map(valid, said)) else []


def reason(text: str) -> str:
    """Why somebody leaves or is away; empty if it may not be said."""
    words = _FORMAT.sub("", text)
    return words if valid(words.encode()) else ""


def moment_of(text: str) -> str:
    """The stamp in a reference such as timestamp=2026-11-21T06:35:12.000Z. Raises ValueError."""
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        raise ValueError("a time is needed: timestamp=2026-11-21T06:35:12.000Z")
    return found[1]


def chosen(
    verb: str, past: Sequence[tuple[str, Said]], times: Sequence[str], most: int
) -> list[Said]:
    """What CHATHISTORY asks for, of `past` with its stamps. Pure."""
    one, other = [*times, "", ""][:2]
    before = [said for time, said in past if time < one]
    after = [said for time, said in past if time > one]
    match verb:
        case "BEFORE":
            return last(before, most)
        case "AFTER":
            return after[:most]
        case "AROUND":
            at = [said for time, said in past if time == one]
            return last([*last(before, most // 2), *at, *after][:most], most)
        case "BETWEEN" if one < other:
            return [said for time, said in past if one < time < other][:most]
        case "BETWEEN":
            return last([said for time, said in past if other < time < one], most)
        case _:
            return last(after if one else [said for _, said in past], most)


def last(said: list[Said], most: int) -> list[Said]:
    return said[-most:] if most else []
