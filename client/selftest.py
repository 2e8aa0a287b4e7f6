"""selftest: does each service do what its wire promises? Nothing of anybody's is touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from secrets import token_hex
from time import monotonic, strftime

import click

from client import handshake
from client.caller import Caller, calls
from client.defaults import WORD, Misread
from client.files import Source, pour
from client.ingest import judge, receive
from client.net import Failed, Silent
from client.raw import leave
from client.terminal import shown

PATIENCE = 2.0  # seconds for each answer, without --timeout
SETTLED = 1.5  # seconds after which the relay takes who is silent for a receiver


class Skipped(Exception):
    """Not tested, because that would be in somebody's way."""


def echo(caller: Caller) -> Iterator[str]:
    asked, wanted = "hola servidor", b"HOLA SERVIDOR"
    with caller.call("echo") as wire:
        wire.send(asked.encode())
        heard = b""
        while len(heard) < len(wanted) and (data := wire.hear()):
            heard += data
        if heard != wanted:
            raise Failed(f"'{asked}' was answered '{shown(heard)}'")
        yield f"'{asked}' is answered '{wanted.decode()}'"
        wire.send(WORD.encode())
        if heard := wire.hear():
            raise Failed(f"{WORD} was answered '{shown(heard)}'")
        yield f"{WORD} closes"


def ingest(caller: Caller) -> Iterator[str]:
    with caller.call("ingest") as wire:
        sent = pour(wire, Source.of(_text()), lambda count: None)
        receipt = judge(sent, receive(wire, sent))
        yield f"{receipt.size} bytes are stored, the receipt agrees"


def relay(caller: Caller) -> Iterator[str]:
    parcel = _text()
    with caller.call("relay") as receiver:
        receiver.fragile()
        receiver.silence = SETTLED
        try:
            if receiver.hear():
                raise Skipped("a file waits in the queue; it was given back")
            raise Failed("it closed on a waiting receiver")
        except Silent:
            receiver.silence = caller.timeout
        yield "a receiver waits while the queue is empty"
        with caller.call("relay") as sender:
            leave(sender, Source.of(b""), parcel, lambda count: None)
        yield f"a file of {len(parcel)} bytes is kept"
        heard = b""
        try:
            while parcel.startswith(heard) and (data := receiver.hear()):
                heard += data
        except Silent:
            raise Failed(f"the file did not come: {len(heard)} of {len(parcel)} bytes") from None
        if not parcel.startswith(heard):
            name = shown(parcel)
            raise Skipped(f"another file came and was given back; left in the queue: '{name}'")
        if heard != parcel:
            raise Failed(f"the file was cut: {len(heard)} of {len(parcel)} bytes")
        receiver.fragile(False)
        yield "the waiting receiver gets it, and nothing else"


def chat(caller: Caller) -> Iterator[str]:
    message = _text()
    with caller.call("chat") as wire:
        wire.send(b"\n" + message)
        owed = [b"ERR Invalid message\n", message]
        until = monotonic() + (caller.timeout or PATIENCE)
        with suppress(Silent):
            while owed and monotonic() < until and (line := wire.line()):
                if line in owed:  # others may be talking
                    owed.remove(line)
        if owed:
            raise Failed(f"'{shown(owed[0])}' did not come")
        yield "a blank line is refused"
        yield "a message comes back to who sent it"
        wire.finish()
        while monotonic() < until and wire.hear():
            pass
        if not wire.ended:
            raise Failed("it did not close after the last line")
        yield "it closes after the last line"


def handshakes(caller: Caller) -> Iterator[str]:
    ident = f"selftest-{token_hex(4)}"
    code = handshake.enrol(caller.address("handshake", "CODE_PORT"), caller.timeout, ident)
    yield f"{ident} is given a code"
    messages = caller.address("handshake", "MESSAGE_PORT")
    wrong = "0" * len(code)
    answer = handshake.post(
        messages, caller.timeout, client_uuid=ident, server_uuid=wrong, message="no"
    )
    if answer.status != 400:
        raise Failed(f"a wrong code was answered with {answer.status}, not 400")
    yield "a wrong code is refused"
    handshake.tell(messages, caller.timeout, ident, code, _text().decode().strip())
    yield "a message is stored"


CHECKS: dict[str, Callable[[Caller], Iterator[str]]] = {
    "echo": echo,
    "ingest": ingest,
    "relay": relay,
    "chat": chat,
    "handshake": handshakes,
}


def _text() -> bytes:
    return f"roundhouse selftest {strftime('%Y-%m-%d %H:%M:%S')} {token_hex(8)}\n".encode()


@click.command(short_help="Check that services answer as they should.")
@click.argument("service", nargs=-1, type=click.Choice([*CHECKS, "all"]))
@calls
@click.pass_context
def selftest(context: click.Context, service: tuple[str, ...]) -> None:
    """Check SERVICE (echo, ingest, relay, chat, handshake or all; none: echo), a line a check.

    Exit status 0: everything that was tested works. It leaves a line of text named "roundhouse
    selftest" with ingest, chat and handshake. relay is tested only while its queue is empty: a
    file that waits there is given back, but counts as one delivery attempt.

    \b
    Examples:
      roundhouse selftest
      roundhouse selftest all --timeout 5
      roundhouse selftest chat --port 7000
    """
    caller = context.ensure_object(Caller)
    names = [*CHECKS] if "all" in service else list(dict.fromkeys(service)) or ["echo"]
    if caller.port is not None and (len(names) > 1 or "handshake" in names):
        raise click.UsageError("--port names one port, and this needs several: use config.cfg")
    caller.timeout = caller.timeout or PATIENCE
    failed = False
    for name in names:
        try:
            for check in CHECKS[name](caller):
                _report(caller, "ok", "green", name, check)
        except Skipped as reason:
            _report(caller, "skip", "yellow", name, str(reason))
        except Misread:
            raise
        except Failed as error:
            failed = True
            _report(caller, "FAIL", "red", name, error.message)
    context.exit(int(failed))


def _report(caller: Caller, result: str, colour: str, service: str, check: str) -> None:
    caller.tell(
        f"{click.style(f'{result:<4}', fg=colour)}  {service}: {check}",
        service=service,
        result=result.lower(),
        check=check,
    )
