"""chat: every line goes to everyone.

Wire (TCP, port 60060, UTF-8 lines; LF ends one, CRLF is taken)
    -> line LF            <- line LF, to everyone connected, the sender too, in one order
    -> line FIN           the same; whoever half-closed still gets what was published up to then
Blanks are kept. Joining and leaving are silent.

Errors, to the sender only, in their place between the lines
    ERR Invalid message   the line is blank, longer than LONGEST characters, not UTF-8, or holds a
                          control character other than TAB, or a bidi override (U+202D, U+202E)
A line without end gets its ERR as soon as it is too long, and is skipped to its LF.
Silence for IDLE_TIMEOUT seconds closes the connection (0: never).

FLUSH_AFTER (milliseconds, 0: off)
    For clients that never send a newline: what has begun counts as a line after that silence. Not
    for a peer that has sent an LF; and one LF right after such a line only ends it. A character
    that is cut waits for its rest, and the line with it.

Who had connected before a line was sent gets it. Who reads too slowly is cut by the room.

Outcomes
    left, reset, slow, silent, drained, cut

Source: "TCP Chat" (port 60060, 256 characters, ERR Invalid message). Bounds, order and the idle
flush are ours.
"""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import ClassVar

from attrs import define, field, frozen

from protocols.connection import Connection, Live, LiveFactory
from protocols.framing import Lines, Overlong
from protocols.options import count, duration, option
from protocols.spec import Context, Port, Spec
from protocols.stores import Broadcast, Following, Line

ROOM = "main"
ERR = b"ERR Invalid message\n"
LONGEST = 256  # characters
LONGEST_BYTES = LONGEST * 4 + 1  # and a CR
A_TURN = 2048  # lines of one peer: a flood of tiny ones leaves room for the others

_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n"
_FORBIDDEN = re.compile("[\0-\x08\x0a-\x1f\x7f-\x9f\u202d\u202e]")


def valid(text: bytes) -> bool:
    """Whether a line, without its ending, may go to everyone. Pure."""
    try:
        characters = text.decode()
    except UnicodeDecodeError:
        return False
    return (
        len(characters) <= LONGEST
        and bool(characters.strip())
        and _FORBIDDEN.search(characters) is None
    )


def judged(lines: Sequence[bytes | Overlong]) -> Iterator[tuple[bytes, int]]:
    """Runs of lines: valid ones joined by LF and 0, or nothing and how many are invalid. Pure.

    lines: as they were cut at LF, so that of a CRLF the CR is still there.
    """
    texts = [b"" if isinstance(line, Overlong) else line for line in lines]  # blank is invalid, too
    whole = b"\n".join(texts)
    if b"\r" in whole:
        whole = (whole + b"\n").replace(b"\r\n", b"\n")[:-1]
        texts = whole.split(b"\n")
    if whole.translate(None, _PRINTABLE) or max(map(len, texts)) > LONGEST:
        verdicts = [*map(valid, texts)]
    else:  # nearly every read
        verdicts = [*map(bool, map(bytes.strip, texts))]
    if all(verdicts):
        yield whole, 0
        return
    first = 0
    for good, run in groupby(verdicts):
        last = first + len([*run])
        yield (b"\n".join(texts[first:last]), 0) if good else (b"", last - first)
        first = last


def plain(lines: Sequence[Line]) -> bytes:
    """The dialect of this wire."""
    return b"".join([line.text + b"\n" for line in lines])


@define(eq=False, repr=False)
class Chat(Connection):
    """One client."""

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"left", "reset"})
    PACED: ClassVar[bool] = False

    room: Broadcast
    flush_after: float  # seconds; 0: never
    _following: Following = field(init=False)
    _lines: Lines = field(factory=partial(Lines, LONGEST_BYTES), init=False)
    _waiting: list[bytes | Overlong] = field(factory=list, init=False)  # for the turns to come
    _flushed: bool = field(default=False, init=False)  # an LF now would only end what was flushed

    def opened(self) -> None:
        self._following = self.room.follow(ROOM, plain, self.transport, self.abort)

    def received(self, data: bytes) -> None:
        lines = self._lines.feed(data)
        if self.flush_after:
            if b"\n" in data:
                self.flush_after = 0.0
                if self._flushed and lines and lines[0] in (b"", b"\r"):
                    del lines[0]
            elif self._lines.begun:
                self._flushed = self._flushed and self._lines.pending == b"\r"
                self.later(self.flush_after, self._flush)
        if lines:
            self._say(lines)

    def finished(self) -> None:
        last = self._lines.take()
        if last and not (self._flushed and last == b"\r"):
            self._say([last])
        self.close("left")

    def close(self, outcome: str, detail: str = "") -> None:
        """Close once what it said was published, and it has got everything published so far."""
        if self._waiting:
            self._publish(self._waiting)
            self._waiting = []
        close = partial(super().close, outcome, detail)
        self._following.stop(after=close)

    def closed(self, reason: object) -> None:
        self._following.stop()

    def _say(self, lines: list[bytes | Overlong]) -> None:
        if self._waiting:
            self._waiting += lines
            return
        self._publish(lines[:A_TURN])
        if len(lines) > A_TURN:
            self._waiting = lines[A_TURN:]
            self.transport.pauseProducing()
            self.live.clock.callLater(0, self._go_on)

    def _go_on(self) -> None:
        if self.closing:
            return
        lines, self._waiting = self._waiting[:A_TURN], self._waiting[A_TURN:]
        self._publish(lines)
        if self._waiting:
            self.live.clock.callLater(0, self._go_on)
        elif not (self._following.muted or self.ended):
            self.transport.resumeProducing()

    def _publish(self, lines: Sequence[bytes | Overlong]) -> None:
        for text, wrong in judged(lines):
            if text:
                self.room.publish(ROOM, [Line(text)])
            else:
                self._following.private(ERR * wrong)

    def _flush(self) -> None:
        """The silence that ends a line."""
        pending = self._lines.pending
        cut = utf_8_decode(pending, "replace", False)[1] < len(pending)
        if cut or (self._flushed and pending == b"\r"):
            return
        self._flushed = True
        if last := self._lines.take():
            self._say([last])


@frozen
class Options:
    flush_after: int = option(
        0,
        partial(count, most=60_000),
        "milliseconds of silence that end a line without LF; 0 never does",
    )
    idle_timeout: float = option(0.0, duration, "seconds of silence that close; 0 never does")


def build(context: Context) -> dict[str, LiveFactory]:
    options, room = context.options, context.stores.broadcast
    return {
        "PORT": LiveFactory(
            Live("chat", context.clock, options.idle_timeout),
            lambda live: Chat(live, room, options.flush_after / 1000),
        )
    }


SPEC = Spec(
    name="chat",
    ports=(Port("PORT", 60060, broadcasts=True),),
    build=build,
    options=Options,
    stores={"broadcast"},
)
