"""echo: a line out, the same line in upper case back."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress

import click

from client.caller import Caller, calls
from client.defaults import WORD
from client.net import Failed, Wire

PATIENCE = 30.0  # seconds for an answer, without --timeout


@click.command(short_help="Send text; print the answer.")
@click.argument("text", nargs=-1)
@calls
@click.pass_obj
def echo(caller: Caller, text: tuple[str, ...]) -> None:
    """Send TEXT and print the answer. Without TEXT: a prompt, or the lines of a pipe.

    DESCONEXION ends it, as do Ctrl-D and the end of the pipe.

    \b
    Examples:
      roundhouse echo hola servidor
      roundhouse echo
      printf 'uno\\ndos\\n' | roundhouse echo
    """
    with caller.call("echo", PATIENCE) as wire:
        for line in _lines(text):
            answer = converse(wire, line)
            if not answer:
                break
            caller.relay(
                answer,
                sent=line.decode(errors="replace").rstrip("\r\n"),
                answer=answer.decode(errors="replace").rstrip("\r\n"),
            )


def converse(wire: Wire, line: bytes) -> bytes:
    """Send a line and wait for its answer; b"" where the word ended it. Raise Failed."""
    wire.send(line)
    answer = wire.line()
    if answer.endswith(b"\n"):
        return answer
    if not answer and line.strip() == WORD.encode():
        return b""
    raise Failed(f"{wire.address} closed the connection before it had answered")


def _lines(text: tuple[str, ...]) -> Iterator[bytes]:
    if text:
        for line in os.fsencode(" ".join(text)).split(b"\n"):
            yield line + b"\n"
    elif sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - importing it gives input() a line editor
        try:
            while True:
                yield os.fsencode(input("> ")) + b"\n"
        except EOFError:
            click.echo()
    else:
        for data in sys.stdin.buffer:
            yield data if data.endswith(b"\n") else data + b"\n"
