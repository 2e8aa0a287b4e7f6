"""put and get: hand a file over through the relay's raw port.

The port knows senders and receivers only by who speaks first, so `put` connects with its first
bytes in hand, and `get` never says a word. Our ends mean something too: a connection that is
closed before its time resets (SO_LINGER, so even a killed client does), which discards an upload
and gives a delivery back.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from hashlib import sha256

import click

from client.caller import Caller, calls
from client.files import Landing, NewFile, Sent, Source, Stdout, pour
from client.net import Failed, Reset, Silent, Wire
from client.terminal import counted, printable, progress


def leave(wire: Wire, source: Source, first: bytes, advance: Callable[[int], object]) -> Sent:
    """Hand `first` and the rest of `source` to the relay; back once it is kept. Raise Failed."""
    wire.fragile()
    try:
        # deaf: who seemed silent for too long may be handed a file that is not meant for it
        sent = pour(wire, source, advance, first, deaf=True)
        if not sent.whole:
            raise Reset(f"{wire.address} closed before the end")
        wire.finish()
        while wire.hear():
            pass
    except Reset as error:
        raise Reset(f"{error.message}: the file was not kept") from None
    except Silent as error:
        raise Silent(f"{error.message}: the file was not kept, or that is unknown") from None
    wire.fragile(False)
    return sent


@click.command(short_help="Leave a file with the relay.")
@click.argument("file")
@calls
@click.pass_obj
def put(caller: Caller, file: str) -> None:
    """Leave FILE ("-": standard input) with the relay, for the next one who gets.

    Exit status 0 means that the relay keeps it.

    \b
    Examples:
      roundhouse put report.pdf
      tar cz photos | roundhouse put -
    """
    _put(caller, file)


def _put(caller: Caller, file: str) -> None:
    with Source.open(file) as source:
        first = source.read()
        if not first:
            raise Failed(f"{printable(source.name)} is empty: this port cannot carry an empty file")
        with (
            caller.call("relay") as wire,
            progress("put", source.size, quiet=caller.as_json) as advance,
        ):
            sent = leave(wire, source, first, advance)
        caller.tell(
            f"Kept: {counted(sent.size, 'byte')} of {printable(source.name)}\nsha256 {sent.sha256}",
            file=file,
            bytes=sent.size,
            sha256=sent.sha256,
        )


@click.command(short_help="Take the oldest file from the relay.")
@click.option("-o", "--output", metavar="FILE", help='Where to store it ("-": standard output).')
@calls
@click.pass_obj
def get(caller: Caller, output: str | None) -> None:
    """Take the oldest file from the relay; wait for a sender where there is none.

    Without -o the file goes to standard output where that is no terminal, else to
    parcel-<date>-<time>.bin. An existing file is never overwritten. A transfer that breaks
    keeps nothing, and the relay gives the file to the next receiver.

    \b
    Examples:
      roundhouse get -o report.pdf
      roundhouse get | tar xz
      roundhouse get --timeout 5 -o report.pdf     # do not wait longer for a sender
    """
    _get(caller, output)


def _get(caller: Caller, output: str | None) -> None:
    if caller.as_json and output == "-":
        raise click.UsageError("with --json the result takes standard output: name a file with -o")
    address = caller.address("relay")
    with _landing(caller, output) as landing, Wire.to(address, caller.timeout) as wire:
        wire.fragile()
        caller.note("Waiting for sender...")
        size, digest = _take(caller, wire, landing)
        name = landing.keep()
        wire.fragile(False)  # from here on our FIN says: delivered
    if name is None:
        caller.note(f"Received {counted(size, 'byte')}, sha256 {digest}")
    else:
        text = f"Received {counted(size, 'byte')} in {printable(name)}\nsha256 {digest}"
        caller.tell(text, file=name, bytes=size, sha256=digest)


def _landing(caller: Caller, output: str | None) -> Landing:
    if output == "-" or (output is None and not caller.as_json and not sys.stdout.isatty()):
        return Stdout()
    if output is None:
        return NewFile.at(time.strftime("parcel-%Y%m%d-%H%M%S.bin"), spare=True)
    return NewFile.at(output)


def _take(caller: Caller, wire: Wire, landing: Landing) -> tuple[int, str]:
    """Receive up to the FIN: bytes, and their sha256. Raise Failed."""
    data = _first(wire)
    size, digest = 0, sha256()
    with progress("get", None, quiet=caller.as_json) as advance:
        try:
            while data:
                landing.write(data)
                digest.update(data)
                size += len(data)
                advance(len(data))
                data = wire.hear()
        except (Reset, Silent) as error:
            raise type(error)(
                f"{error.message}: the file is incomplete after {counted(size, 'byte')}, "
                "and none of it was kept"
            ) from None
    return size, digest.hexdigest()


def _first(wire: Wire) -> bytes:
    try:
        data = wire.hear()
    except Silent:
        raise Silent(f"no sender at {wire.address} within {wire.silence:g} s") from None
    if not data:
        raise Failed(f"{wire.address} closed without a file")
    return data


@click.command(short_help="Put or get a file, asking for everything.")
@click.option("--ask", is_flag=True, help="Ask for port, host, file and role, then do it.")
@calls
@click.pass_context
def relay(context: click.Context, ask: bool) -> None:
    """Put or get a file, asking for everything (see also: put, get).

    \b
    Examples:
      roundhouse relay --ask
    """
    caller = context.ensure_object(Caller)
    if not ask:
        raise click.UsageError(
            "nothing to do without --ask; `put` and `get` take arguments", context
        )
    here = caller.address("relay")
    caller.port = click.prompt("Port", here.port, type=click.IntRange(1, 65535), err=True)
    caller.host = click.prompt("Host", here.host, err=True)
    file = click.prompt("File", "parcel.bin", err=True)
    role = click.prompt(
        "Sender or receiver [S/R]",
        "R",
        type=click.Choice(["S", "R"], case_sensitive=False),
        show_choices=False,
        err=True,
    )
    (_put if role == "S" else _get)(caller, file)
