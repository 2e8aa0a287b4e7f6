"""echo: answer every message in UPPERCASE.

Wire (TCP, port 5000, UTF-8 text)
    -> text               <- TEXT, at once; line endings come back as they came
    -> DESCONEXION        connection closed, nothing sent; blanks, CR and LF around it do not matter
A message is what one segment brought; where that holds LFs, each line is one. Once a peer has
sent an LF, only lines are messages, and no cut of the stream changes an answer.

The word
    A message that is a proper beginning of the word, blanks before it aside, may still become it:
    it is held back until more comes or HOLD seconds pass in silence.
    A last line that is the word but has no LF yet may still go on, too (`DESCONEXION aqui`). It
    closes the connection when its LF comes, at FIN, or when HOLD passes: then it was a segment
    of a client that mixes both.
    What follows the word is dropped; what was said before it is answered first.

Errors
    none: bytes that are not UTF-8 come back unchanged. A character cut by a segment border is
    held until the rest of it comes.
Silence for IDLE_TIMEOUT seconds closes the connection (0: never).

Limits
    A line of more than LONGEST bytes is never the word: nothing longer is held.

Outcomes
    word, left, reset, silent, drained, cut

Source: "TCP Server and Client" (port 5000, upper case, DESCONEXION). The seed compares one
recv() with the word; lines, and holding back what may become the word, are ours.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import ClassVar

from attrs import define, field, frozen

from protocols.connection import Connection, Live, LiveFactory
from protocols.options import duration, option
from protocols.spec import Context, Port, Spec

WORD = b"DESCONEXION"
HOLD = 0.1  # seconds
GLUT = 1 << 17  # bytes of a read after which it is the turn of others: more lie there
LONGEST = 4096  # bytes

_LF = 0x0A
_RARE = 0x58  # X, the letter of the word that other texts have least
# A segment that ends so cannot still become the word.
_INNOCENT = bytes({*range(0x21, 0x80)} - {*WORD})


@frozen
class Heard:
    """What a piece of the stream comes to: text to answer, bytes to hold back, the end or not."""

    text: bytes
    held: bytes = b""
    ends: bool = False


def hear_segment(data: bytes) -> Heard:
    """One message of a peer that has never sent an LF. Pure."""
    if data.strip() == WORD and len(data) <= LONGEST:
        return Heard(b"", ends=True)
    return Heard(b"", held=data) if _may_become_word(data) else Heard(data)


def hear_lines(data: bytes, inside: bool) -> Heard:
    """Lines, the last of them perhaps without its LF yet. Pure.

    inside: `data` goes on with a line begun earlier that is not the word.
    """
    last = data.rfind(b"\n") + 1
    if WORD in data:
        start = 0
        for line in data[:last].split(b"\n"):
            if line.strip() == WORD and len(line) <= LONGEST and (start or not inside):
                return Heard(data[:start], ends=True)
            start += len(line) + 1
    begun = data[last:]
    if begun and (last or not inside) and _may_become_word(begun):
        return Heard(data[:last], held=begun)
    return Heard(data)


def upper(data: bytes, final: bool = False) -> tuple[bytes, bytes]:
    """`data` in upper case, and the beginning of a character cut off at its end. Pure.

    final: nothing follows, so a cut character is bytes like any others.
    """
    text, used = utf_8_decode(data, "surrogateescape", final)
    return text.upper().encode(errors="surrogateescape"), data[used:]


def _may_become_word(begun: bytes) -> bool:
    if len(begun) > LONGEST:
        return False
    start = begun.lstrip()
    return WORD.startswith(start) or start.rstrip() == WORD


@define(eq=False, repr=False)
class Echo(Connection):
    """One client."""

    ORDINARY: ClassVar[frozenset[str]] = frozenset({"left", "word", "reset"})

    _held: bytes = field(default=b"", init=False)  # a message that may become the word
    _cut: bytes = field(default=b"", init=False)  # the beginning of a character
    _lines: bool = field(default=False, init=False)  # the peer has sent an LF
    _inside: bool = field(default=False, init=False)  # of a line that is not the word
    _easy: bool = field(default=True, init=False)  # nothing is held, cut, inside or ended
    _full: bool = field(default=False, init=False)  # our output is

    def dataReceived(self, data: bytes) -> None:
        if len(data) > GLUT:
            self.transport.pauseProducing()
            self.live.clock.callLater(0, self._read_on)
        # Nearly every read, so this is all that happens: whole ASCII lines, or a segment of a
        # peer without lines, and in them no trace of the word.
        if self._easy and data.isascii() and _RARE not in data:
            last = data[-1]
            if last == _LF:
                self._lines = True
                self.quiet = 0
                self.transport.write(data.upper())
                return
            if last in _INNOCENT and not self._lines and _LF not in data:
                self.quiet = 0
                self.transport.write(data.upper())
                return
        super().dataReceived(data)

    def received(self, data: bytes) -> None:
        self._hear(data)
        self._easy = not (self._held or self._cut or self._inside or self.closing)

    def pauseProducing(self) -> None:
        self._full = True
        super().pauseProducing()

    def resumeProducing(self) -> None:
        self._full = False
        super().resumeProducing()

    def _read_on(self) -> None:
        if not self._full:
            super().resumeProducing()

    def close(self, outcome: str, detail: str = "") -> None:
        self._easy = False
        super().close(outcome, detail)

    def finished(self) -> None:
        if self._held.strip() == WORD:
            self.close("word")
        else:
            self._release(final=True)
            self.close("left")

    def _hear(self, data: bytes) -> None:
        held, self._held = self._held, b""
        whole = held + data
        self._lines = self._lines or _LF in data
        if self._lines:
            heard = hear_lines(whole, self._inside)
            self._inside = not heard.held and whole[-1] != _LF
        else:
            heard = hear_segment(whole)
            if held and heard.text:  # they were two messages
                self._answer(held)
                heard = hear_segment(data)
        self._answer(heard.text, final=heard.ends)
        if heard.ends:
            self.close("word")
        elif heard.held:
            self._held = heard.held
            self.later(HOLD, self._silence)

    def _silence(self) -> None:
        if self._held.strip() == WORD:
            self.close("word")
        else:
            self._release()

    def _release(self, final: bool = False) -> None:
        held, self._held = self._held, b""
        self._inside = self._lines
        self._answer(held, final)

    def _answer(self, data: bytes, final: bool = False) -> None:
        data = self._cut + data
        if data.isascii():
            self._cut = b""
            answer = data.upper()
        else:
            answer, self._cut = upper(data, final)
        if answer:
            self.transport.write(answer)


@frozen
class Options:
    idle_timeout: float = option(0.0, duration, "seconds of silence that close; 0 never does")


def build(context: Context) -> dict[str, LiveFactory]:
    live = Live("echo", context.clock, context.options.idle_timeout)
    return {"PORT": LiveFactory(live, Echo)}


SPEC = Spec(name="echo", ports=(Port("PORT", 5000),), build=build, options=Options)
