"""Lines as messages over one connection: KEEP, with what may be lost under way bounded.

    -> KEEP LF, then ID SP CODE SP TEXT LF for each line
    <- OK SEQ LF or ERR REASON LF for each, in order

No more than WINDOW lines wait for their answers. A line without text is no message and is left out.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator

import click
from attrs import define, field

from client.files import Source
from client.net import Failed, Reset, Wire
from client.terminal import counted, shown

WINDOW = 4096  # lines that may wait for their answers
LONGEST = 65536  # bytes of a line's text
ANSWER = 4096  # bytes of an answer
SHOW = 0.2  # seconds between two counts


@define
class Stream:
    """What became of the lines so far. first: the first that was refused, and why."""

    wire: Wire
    pair: bytes  # ID SP CODE SP
    stored: int = 0
    refused: int = 0
    first: str = ""
    _number: int = 0  # lines read
    _waiting: deque[int] = field(factory=deque)  # their numbers
    _begun: bytes = b""

    def send(self, source: Source) -> Iterator[None]:
        """Send every line of `source`; yields whenever something moved. Raise Failed."""
        try:
            self.wire.send(b"KEEP\n")
            reading = True
            while reading or self._waiting:
                if self.wire.ended:
                    raise Reset(f"{self.wire.address} closed the connection")
                if reading and len(self._waiting) < WINDOW:
                    ready = self.wire.wait(source)
                    if ready.heard:
                        self.wire.take()
                    elif ready.source:
                        data = source.read()
                        reading = bool(data)
                        self.wire.send(self._framed(data))
                else:
                    self.wire.wait()
                    self.wire.take()
                self._hear()
                yield
        except Reset:
            self._hear()  # what was answered before counts
            raise
        self.wire.finish()

    def _framed(self, data: bytes) -> bytes:
        """The lines that are whole; the last one is, too, when no more comes."""
        *whole, self._begun = (self._begun + data).split(b"\n")
        if not data and self._begun:
            whole, self._begun = [self._begun], b""
        framed = []
        for line in whole:
            self._number += 1
            text = line.removesuffix(b"\r")
            if len(text) > LONGEST:
                raise Failed(f"line {self._number:,} is longer than {LONGEST:,} bytes")
            if text:
                self._waiting.append(self._number)
                framed.append(self.pair + text + b"\n")
        if len(self._begun) > LONGEST + 1:
            raise Failed(f"line {self._number + 1:,} is longer than {LONGEST:,} bytes")
        return b"".join(framed)

    def _hear(self) -> None:
        heard = self.wire.heard
        *answers, rest = bytes(heard).split(b"\n")
        del heard[: len(heard) - len(rest)]
        for answer in answers:
            if not self._waiting:
                raise Failed(f"{self.wire.address} answered more than was asked")
            number = self._waiting.popleft()
            if answer.startswith(b"OK "):
                self.stored += 1
                continue
            if not answer.startswith(b"ERR "):
                raise Failed(f"{self.wire.address} does not speak KEEP: {shown(answer[:80])}")
            self.refused += 1
            self.first = self.first or f"line {number:,}: {shown(answer[4:])}"
        if len(rest) > ANSWER:
            raise Failed(f"{self.wire.address} does not speak KEEP: {shown(rest[:80])}")


def stream_lines(wire: Wire, ident: str, code: str, source: Source, quiet: bool) -> Stream:
    """Leave every line of `source` as a message. Raise Failed, with what is stored by then."""
    if not all(word.isprintable() and " " not in word for word in (ident, code)):
        raise Failed(
            "an id or a code with blanks, or with what cannot be printed, cannot stream lines:"
            " leave messages one by one"
        )
    stream = Stream(wire, f"{ident} {code} ".encode())
    terminal = not quiet and sys.stderr.isatty()
    due = 0.0
    try:
        for _ in stream.send(source):
            if terminal and time.monotonic() >= due:
                due = time.monotonic() + SHOW
                click.echo(f"\r{counted(stream.stored, 'message')} stored", err=True, nl=False)
    except Failed as why:
        kept = f"{counted(stream.stored, 'message')} stored by then"
        raise type(why)(f"{why.message}; {kept}, what followed is unknown") from None
    finally:
        if terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
    return stream
