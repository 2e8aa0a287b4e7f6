"""register, say and tail: a code for an id, messages under both, and what was logged."""

from __future__ import annotations

import json
import os
import re
from base64 import b64encode
from time import sleep
from typing import Any

import click
from attrs import frozen

from client import codes, completion
from client.caller import Caller, calls
from client.files import Source
from client.net import (
    Address,
    Failed,
    Nobody,
    Reset,
    Silent,
    Wire,
    connect,
    no_http,
    reason,
    wants_tls,
)
from client.terminal import counted, printable

PATIENCE = 30.0  # seconds for an answer, without --timeout
LONGEST = 65536  # bytes of a message, and of an answer that is read
MANY = 1000  # messages asked for at once,
READ = 16 << 20  # and bytes of them: every character may be escaped
LEAST, MOST = 0.2, 2.0  # seconds between two looks for new ones
UPGRADE_REQUIRED = 426
SUCCESS = "Authentication success"
_CODE = re.compile(r"[0-9a-f-]{32,36}")
_code_file = click.option(
    "--code-file", metavar="FILE", shell_complete=completion.files, help="Read the code from FILE."
)


class Busy(Failed):
    """The server cannot answer now; asking again may help."""


@frozen
class Answer:
    """What the server said: its HTTP status, two of its headers, and the start of its body."""

    address: Address
    status: int
    outcome: str
    code: str
    body: str

    def refusal(self) -> Failed:
        parts = [f"{self.address} refused: {self.status}", self.outcome, *self.body.split("\n")[:1]]
        return Failed(printable(" - ".join(part.strip() for part in parts if part.strip())))


def post(address: Address, timeout: float | None, **fields: str) -> Answer:
    """Post a form to `address`. Raise Failed where no HTTP answer comes."""
    from urllib.parse import urlencode

    try:
        form = urlencode(fields)
    except UnicodeEncodeError:
        raise click.UsageError("the text is not UTF-8") from None
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Connection": "close"}
    return ask(address, timeout, "POST", "/", form, headers, LONGEST)


def ask(
    address: Address,
    timeout: float | None,
    method: str,
    target: str,
    body: str | None,
    headers: dict[str, str],
    longest: int,
) -> Answer:
    """One HTTP request; of the answer's body at most `longest` bytes. Raise Failed without one."""
    from http.client import HTTPConnection, HTTPException, RemoteDisconnected

    connection = HTTPConnection(address.host, address.port)
    connection.sock = sock = connect(address, timeout)
    sock.settimeout(timeout or PATIENCE)
    try:
        connection.request(method, target, body, headers)
        with connection.getresponse() as response:
            answered = response.read(longest).decode(errors="replace")
    except TimeoutError:
        raise Silent(f"{address} did not answer within {timeout or PATIENCE:g} s") from None
    except RemoteDisconnected:
        raise Reset(f"{address} closed the connection without an answer") from None
    except HTTPException as error:
        raise no_http(address, error) from None
    except OSError as error:
        raise Reset(f"{address} broke the connection: {reason(error)}") from None
    finally:
        connection.close()
    if response.status == UPGRADE_REQUIRED and address.tls is None:
        raise wants_tls(address)
    return Answer(
        address,
        response.status,
        response.headers.get("Status", ""),
        response.headers.get("Server-Uuid", ""),
        answered,
    )


def enrol(address: Address, timeout: float | None, ident: str) -> str:
    """Register `ident`: its code. Raise Failed."""
    answer = post(address, timeout, client_uuid=ident)
    if answer.status != 200:
        raise answer.refusal()
    if not _CODE.fullmatch(answer.code):
        raise Failed(f"{address} answered without a code: is it the port for codes?")
    return answer.code


def tell(address: Address, timeout: float | None, ident: str, code: str, message: str) -> None:
    """Leave a message; back once it is on the server's disk. Raise Failed."""
    answer = post(address, timeout, client_uuid=ident, server_uuid=code, message=message)
    if answer.status != 200 or answer.outcome != SUCCESS:
        raise answer.refusal()


@click.command(short_help="Register an id and keep its code.")
@click.argument("ident", metavar="[ID]", required=False)
@calls
@click.pass_obj
def register(caller: Caller, ident: str | None) -> None:
    """Register ID (none: a fresh one is made) and keep its code for `say`.

    The code is kept in codes.json in $XDG_STATE_HOME/roundhouse (~/.local/state/roundhouse),
    readable by you alone.

    \b
    Examples:
      roundhouse register ana
      roundhouse register
      roundhouse register --json | jq -r .id
    """
    if ident is None:
        from uuid import uuid4

        ident = str(uuid4())
    address = caller.address("handshake", "CODE_PORT")
    code = enrol(address, caller.timeout, ident)
    # Told before it is kept: a full disk must not lose the only copy.
    caller.tell(f"id    {printable(ident)}\ncode  {code}", id=ident, code=code)
    caller.note(f"The code is kept in {codes.keep(address, ident, code)}")


@click.command(short_help="Leave a message under an id.")
@click.argument("ident", metavar="ID", shell_complete=completion.idents)
@click.argument("text", nargs=-1)
@click.option("--stdin", "lines", is_flag=True, help="Each line of standard input is a message.")
@_code_file
@calls
@click.pass_obj
def say(
    caller: Caller, ident: str, text: tuple[str, ...], lines: bool, code_file: str | None
) -> None:
    """Leave the message TEXT ("-": standard input, less its last line end) under ID.

    With --stdin every line of standard input is a message of its own, on one connection; it is
    stored within a moment of being read, and a file of a million lines in a few seconds.

    The code comes from --code-file, else from the environment (ROUNDHOUSE_CODE), else from what
    `register` kept; never from an argument, which every user of the machine can read.

    \b
    Examples:
      roundhouse say ana hello there
      uptime | roundhouse say ana -
      roundhouse say ana --code-file /run/secrets/ana hello
      tail -F app.log | roundhouse say ana --stdin
    """
    if lines is bool(text):
        raise click.UsageError("give either TEXT or --stdin")
    if lines:
        _say_lines(caller, ident, _code(caller, ident, code_file))
        return
    message = _stdin() if text == ("-",) else " ".join(text)
    address = caller.address("handshake", "MESSAGE_PORT")
    tell(address, caller.timeout, ident, _code(caller, ident, code_file), message)
    caller.tell("Stored", id=ident, stored=True)


def _say_lines(caller: Caller, ident: str, code: str) -> None:
    from client.keep import stream_lines

    address = caller.address("handshake", "MESSAGE_PORT")
    with Wire.to(address, caller.timeout, PATIENCE) as wire, Source.open("-") as source:
        done = stream_lines(wire, ident, code, source, quiet=caller.as_json)
    stored = counted(done.stored, "message")
    caller.tell(f"Stored {stored}", id=ident, stored=done.stored, refused=done.refused)
    if done.refused:
        raise Failed(f"{counted(done.refused, 'line')} refused, the first: {done.first}")


@click.command(short_help="Show the messages of an id.")
@click.argument("ident", metavar="ID", shell_complete=completion.idents)
@click.option("-f", "--follow", is_flag=True, help="Go on with those that come.")
@click.option("--after", type=click.IntRange(0), default=0, metavar="SEQ", help="Later ones only.")
@_code_file
@calls
@click.pass_obj
def tail(caller: Caller, ident: str, follow: bool, after: int, code_file: str | None) -> None:
    """Show what was logged under ID, oldest first: its number, time and text, a line each.

    The server shows what was logged with the same code (REGISTRATION = exclusive: with the same
    id). The code comes from where `say` takes it. --json prints the records as they are logged.
    With --follow a server that goes away is waited for: nothing is left out or shown twice.

    \b
    Examples:
      roundhouse tail ana
      roundhouse tail ana -f
      roundhouse tail ana --after 1000 --json | jq -r .message
    """
    address = caller.address("handshake", "MESSAGE_PORT")
    code = _code(caller, ident, code_file)
    pause, there, lost = LEAST, False, False
    while True:
        found: list[dict[str, Any]] = []
        try:
            found = read_back(address, caller.timeout, ident, code, after)
        except (Nobody, Reset, Silent, Busy) as why:
            if not (follow and there):
                raise
            if not lost:
                caller.note(f"{why.message}; waiting for it")
            lost = True
        else:
            if lost:
                caller.note(f"{address} is back")
            there, lost = True, False
        for record in found:
            after = record["seq"]
            text = f"{after}  {record['time']}  {record['message']}"
            caller.tell(printable(text), **record)
        if found:
            pause = LEAST
        elif not follow:
            return
        else:
            sleep(pause)
            pause = min(2 * pause, MOST)


def read_back(
    address: Address, timeout: float | None, ident: str, code: str, after: int
) -> list[dict[str, Any]]:
    """Messages after number `after`; none: there is no more. Raise Failed."""
    token = b64encode(f"{ident}:{code}".encode(errors="surrogateescape")).decode()
    headers = {"Authorization": f"Basic {token}", "Connection": "close"}
    answer = ask(address, timeout, "GET", f"/?after={after}&limit={MANY}", None, headers, READ)
    if answer.status == 503:
        raise Busy(answer.refusal().message)
    if answer.status != 200:
        raise answer.refusal()
    try:
        records = [json.loads(line) for line in answer.body.splitlines()]
        numbers = [record["seq"] for record in records]
        good = all(type(r["time"]) is type(r["message"]) is str for r in records)
        if not good or numbers != sorted({*numbers}) or (numbers and numbers[0] <= after):
            raise ValueError
    except (ValueError, TypeError, LookupError, RecursionError):
        raise Failed(
            f"{address} did not answer with records: is it the port for messages?"
        ) from None
    return records


def _stdin() -> str:
    data = b""
    with Source.open("-") as source:
        while len(data) <= LONGEST + 2 and (chunk := source.read()):
            data += chunk
    data = data.removesuffix(b"\n").removesuffix(b"\r")
    if len(data) > LONGEST:
        raise Failed(f"the message is longer than {LONGEST:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Failed(f"the message is not UTF-8: byte {error.start} is wrong") from None


def _code(caller: Caller, ident: str, code_file: str | None) -> str:
    if code_file is not None:
        with Source.open(code_file) as source:
            code = source.read().decode(errors="replace").strip()
        if not code:
            raise Failed(f"{printable(code_file)} holds no code")
        return code
    if code := os.environ.get("ROUNDHOUSE_CODE", "").strip():
        return code
    # Codes are kept under the port that gave them; --port here names the other one.
    if caller.port is not None:
        return codes.find(caller.address("handshake", "MESSAGE_PORT"), ident, any_port=True)
    return codes.find(caller.address("handshake", "CODE_PORT"), ident)
