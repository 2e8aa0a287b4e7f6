"""register and say: a code for an id, and messages under both, over HTTP forms."""

from __future__ import annotations

import os
import re

import click
from attrs import frozen

from client import codes
from client.caller import Caller, calls
from client.files import Source
from client.net import Address, Failed, Reset, Silent, connect
from client.terminal import printable

PATIENCE = 30.0  # seconds for an answer, without --timeout
LONGEST = 65536  # bytes of a message, and of an answer that is read
SUCCESS = "Authentication success"
_CODE = re.compile(r"[0-9a-f-]{32,36}")


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
    from http.client import HTTPConnection, HTTPException, RemoteDisconnected
    from urllib.parse import urlencode

    try:
        form = urlencode(fields)
    except UnicodeEncodeError:
        raise click.UsageError("the text is not UTF-8") from None
    connection = HTTPConnection(address.host, address.port)
    connection.sock = connect(address, timeout)
    connection.sock.settimeout(timeout or PATIENCE)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Connection": "close"}
    try:
        connection.request("POST", "/", form, headers)
        response = connection.getresponse()
        body = response.read(LONGEST).decode(errors="replace")
    except TimeoutError:
        raise Silent(f"{address} did not answer within {timeout or PATIENCE:g} s") from None
    except RemoteDisconnected:
        raise Reset(f"{address} closed the connection without an answer") from None
    except HTTPException as error:
        reason = printable(str(error)[:80]) or type(error).__name__
        raise Failed(f"{address} did not answer in HTTP: {reason}") from None
    except OSError as error:
        raise Reset(f"{address} broke the connection: {error.strerror}") from None
    finally:
        connection.close()
    return Answer(
        address,
        response.status,
        response.headers.get("Status", ""),
        response.headers.get("Server-Uuid", ""),
        body,
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
@click.argument("ident", metavar="ID")
@click.argument("text", nargs=-1, required=True)
@click.option("--code-file", metavar="FILE", help="Read the code from FILE.")
@calls
@click.pass_obj
def say(caller: Caller, ident: str, text: tuple[str, ...], code_file: str | None) -> None:
    """Leave the message TEXT ("-": standard input, less its last line end) under ID.

    The code comes from --code-file, else from the environment (ROUNDHOUSE_CODE), else from what
    `register` kept; never from an argument, which every user of the machine can read.

    \b
    Examples:
      roundhouse say ana hello there
      uptime | roundhouse say ana -
      roundhouse say ana --code-file /run/secrets/ana hello
    """
    message = _stdin() if text == ("-",) else " ".join(text)
    address = caller.address("handshake", "MESSAGE_PORT")
    tell(address, caller.timeout, ident, _code(caller, ident, code_file), message)
    caller.tell("Stored", id=ident, stored=True)


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
