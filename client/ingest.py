"""ingest: stream a file, then believe the receipt only where it matches what was sent."""

from __future__ import annotations

import re
from time import monotonic

import click
from attrs import frozen

from client.caller import Caller, calls
from client.files import Sent, Source, pour
from client.net import Failed, Reset, Wire
from client.terminal import counted, printable, progress, shown

LONGEST = 4096  # bytes of a receipt line
_OK = re.compile(rb"OK (\d{1,20}) ([0-9a-f]{64}|-) (\d{1,20})\r?\n")
_ERR = re.compile(rb"ERR (.*?)(?: stored=(\d{1,20}))?\r?\n?", re.DOTALL)


@frozen
class Receipt:
    """bytes that are durable; sha256 in hex, None: the server does not compute it; files."""

    size: int
    sha256: str | None
    parts: int


def receive(wire: Wire, sent: Sent) -> bytes:
    """Send our FIN and wait for the receipt line; b"": the peer closed without one."""
    try:
        if sent.whole:
            wire.finish()
        return wire.line(LONGEST)
    except Reset:
        if b"\n" not in wire.heard:
            raise
        return wire.line(LONGEST)


def judge(sent: Sent, line: bytes) -> Receipt:
    """Read a receipt and hold it against what was sent. Raise Failed."""
    if ok := _OK.fullmatch(line):
        size, digest, parts = int(ok[1]), ok[2].decode(), int(ok[3])
        if not sent.whole:
            raise Failed(f"the server sent a receipt for {size:,} bytes before the stream's end")
        if size != sent.size:
            raise Failed(
                f"the receipt differs: {sent.size:,} bytes were sent, {size:,} were stored"
            )
        if digest not in ("-", sent.sha256):
            raise Failed(f"the receipt differs: sha256 {sent.sha256} was sent, {digest} was stored")
        return Receipt(size, None if digest == "-" else digest, parts)
    if err := _ERR.fullmatch(line):
        kept = f"{int(err[2]):,} bytes of it are" if err[2] else "nothing of it is known to be"
        raise Failed(f"the server refused the stream: {shown(err[1])}; {kept} stored")
    if line:
        raise Failed(f"the server answered what is no receipt: {shown(line)}")
    raise Failed(
        "the server closed without a receipt: what it stored is unknown "
        "(one set to RECEIPT = off sends none: --no-receipt)"
        if sent.whole
        else f"the server closed after {sent.size:,} bytes were sent: what it stored is unknown"
    )


@click.command(short_help="Stream a file; verify the receipt.")
@click.argument("file")
@click.option("--no-receipt", is_flag=True, help="The server has RECEIPT = off: its FIN is enough.")
@calls
@click.pass_obj
def ingest(caller: Caller, file: str, no_receipt: bool) -> None:
    """Stream FILE ("-": standard input) to the server and verify its receipt.

    Exit status 0 means that the server has every byte on disk.

    \b
    Examples:
      roundhouse ingest backup.tar
      pg_dump shop | roundhouse ingest -
      roundhouse --host 10.0.0.5 ingest --json sensor.bin
    """
    with Source.open(file) as source, caller.call("ingest") as wire:
        started = monotonic()
        with progress("ingest", source.size, quiet=caller.as_json) as advance:
            sent = pour(wire, source, advance)
            line = receive(wire, sent)
        facts = {"file": file, "bytes": sent.size, "seconds": round(monotonic() - started, 3)}
        text = f"{counted(sent.size, 'byte')} of {printable(source.name)}"
        if no_receipt and sent.whole and not line:
            caller.tell(
                f"Sent {text}; the server closed without a receipt\nsha256 {sent.sha256} (of what "
                "was sent)",
                **facts,
                sha256=sent.sha256,
                verified=False,
            )
            return
        receipt = judge(sent, line)
        caller.tell(
            f"Stored {text} in {counted(receipt.parts, 'part')}\nsha256 {sent.sha256} "
            + ("(the server's too)" if receipt.sha256 else "(of what was sent: CHECKSUM = none)"),
            **facts,
            sha256=sent.sha256,
            parts=receipt.parts,
            verified=receipt.sha256 is not None,
        )
