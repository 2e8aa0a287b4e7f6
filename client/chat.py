"""chat: talk with everybody; on a terminal with an input line of its own, else as a plain pipe."""

from __future__ import annotations

import asyncio
import os
import sys

import click

from client.caller import Caller, calls
from client.files import Source
from client.net import Failed, Wire, dial
from client.terminal import shown

LEAVE = 10.0  # seconds to wait for the server's FIN, or for it to read on, without --timeout
LONGEST = 65536  # bytes of a line that are held back for its end


@click.command(short_help="Talk with everybody.")
@click.argument("server", metavar="[HOST]", required=False)
@click.argument("number", metavar="[PORT]", required=False, type=click.IntRange(1, 65535))
@click.option("--nick", metavar="NAME", default="", help="Be called NAME.")
@click.option("--room", metavar="ROOM", default="", help="Start in ROOM.")
@calls
@click.pass_obj
def chat(caller: Caller, server: str | None, number: int | None, nick: str, room: str) -> None:
    """Talk: a line typed is a message, and what everybody says is shown above it.

    TAB completes commands, names and rooms, the up arrow brings back what was typed, Ctrl-D or
    /quit leaves; /help tells the commands. A lost connection is made again by itself. In a
    pipe, standard input is sent, and what is still owed is printed before it ends.

    \b
    Examples:
      roundhouse chat --nick ana
      roundhouse chat chat.example.org 60060 --nick ana --room dev
      echo "deploy done" | roundhouse chat
    """
    for word in (nick, room):
        if not word.isprintable() or " " in word:
            raise click.UsageError(f"{word!r} is no name: leave out blanks and control characters")
    caller.host, caller.port = server or caller.host, number or caller.port
    if sys.stdin.isatty() and sys.stdout.isatty() and not caller.as_json and not _dumb():
        _converse(caller, nick, room)
        return
    with Source.open("-") as source, caller.call("chat", LEAVE) as wire:
        wire.send(f"/nick {nick}\n".encode() * bool(nick) + f"/join {room}\n".encode() * bool(room))
        _talk(caller, wire, source)


def _dumb() -> bool:
    return os.environ.get("TERM", "dumb") == "dumb"


def _converse(caller: Caller, nick: str, room: str) -> None:
    from prompt_toolkit.application import create_app_session  # slow: only where it is seen
    from prompt_toolkit.input import create_input
    from prompt_toolkit.output import create_output

    from client.chat_screen import Screen

    address = caller.address("chat")
    sock = dial(address, caller.timeout)
    with create_app_session(create_input(), create_output()):
        asyncio.run(Screen(address, nick, room).talk(sock))


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
