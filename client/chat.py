"""chat: a plain line client. What is typed goes out, what comes is shown; nothing else."""

from __future__ import annotations

import sys

import click

from client.caller import Caller, calls
from client.files import Source
from client.net import Failed, Wire
from client.terminal import shown

LEAVE = 10.0  # seconds to wait for the server's FIN, or for it to read on, without --timeout
LONGEST = 65536  # bytes of a line that are held back for its end


@click.command(short_help="Talk with everybody.")
@click.argument("server", metavar="[HOST]", required=False)
@click.argument("number", metavar="[PORT]", required=False, type=click.IntRange(1, 65535))
@calls
@click.pass_obj
def chat(caller: Caller, server: str | None, number: int | None) -> None:
    """Talk: a line typed is a message, and what everybody says is shown.

    Ctrl-D leaves. In a pipe, standard input is sent, and what is still owed is printed
    before it ends.

    \b
    Examples:
      roundhouse chat
      roundhouse chat chat.example.org 60060
      echo "deploy done" | roundhouse chat
    """
    caller.host, caller.port = server or caller.host, number or caller.port
    with Source.open("-") as source, caller.call("chat", LEAVE) as wire:
        _talk(caller, wire, source)


def _talk(caller: Caller, wire: Wire, source: Source) -> None:
    typing, leaving, pending = True, False, b""
    try:
        while not wire.ended:
            if pending:
                # Sent piece by piece, because who floods must keep reading what comes back.
                pending = pending[wire.offer(pending) :]
            elif typing:
                ready = wire.wait(source)
                if ready.heard:
                    wire.take()
                elif ready.source:
                    pending = source.read()
                    if pending:
                        leaving = pending.rstrip().rpartition(b"\n")[2].startswith(b"/quit")
                    else:
                        typing = False
                        wire.finish()
            else:
                wire.wait()
                wire.take()
            _show(caller, wire)
    finally:
        _show(caller, wire, rest=True)
    if pending or (typing and not leaving):
        raise Failed(f"{wire.address} closed the chat")


def _show(caller: Caller, wire: Wire, rest: bool = False) -> None:
    raw = not caller.as_json and not sys.stdout.isatty()
    whole = raw or rest or len(wire.heard) > LONGEST
    data = bytes(wire.heard if whole else wire.heard[: wire.heard.rfind(b"\n") + 1])
    del wire.heard[: len(data)]
    if data and raw:
        click.echo(data, nl=False)
    elif data:
        for line in data.removesuffix(b"\n").split(b"\n"):
            caller.tell(shown(line), line=line.decode(errors="replace"))
