"""ingest: stream files, several at once, and believe only the receipts that match what was sent."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from queue import SimpleQueue
from threading import Thread
from time import monotonic

import click
from attrs import frozen

from client import completion
from client.caller import Caller, calls
from client.files import Sent, Source, pour
from client.net import Failed, Nobody, Reset, Wire
from client.terminal import counted, printable, progress, shown

LONGEST = 4096  # bytes of a receipt line
STREAMS = 4  # at once
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


@frozen
class Stored:
    """One stream that went well. receipt: None: none was expected, and the server's FIN came."""

    file: str
    sent: Sent
    receipt: Receipt | None
    seconds: float

    @property
    def text(self) -> str:
        name, receipt = printable(_called(self.file)), self.receipt
        what = f"{counted(self.sent.size, 'byte')} of {name}"
        digest = f"sha256 {self.sent.sha256}"
        if receipt is None:
            said = "the server closed without a receipt"
            return f"Sent {what}; {said}\n{digest} (of what was sent)"
        if not receipt.parts:
            return f"Stored {what}: an empty stream makes no file there"
        whose = "the server's too" if receipt.sha256 else "of what was sent: CHECKSUM = none"
        return f"Stored {what} in {counted(receipt.parts, 'part')}\n{digest} ({whose})"

    @property
    def facts(self) -> dict[str, object]:
        facts: dict[str, object] = {
            "file": self.file,
            "bytes": self.sent.size,
            "seconds": round(self.seconds, 3),
            "sha256": self.sent.sha256,
        }
        if self.receipt is None:
            return facts | {"verified": False}
        return facts | {"parts": self.receipt.parts, "verified": self.receipt.sha256 is not None}


@frozen
class Lost:
    """One stream that did not, and why."""

    file: str
    error: Failed


@click.command(short_help="Stream files; verify the receipts.")
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", shell_complete=completion.files
)
@click.option(
    "--streams",
    type=click.IntRange(1, 64),
    default=STREAMS,
    metavar="N",
    help=f"Send so many files at once.  [default: {STREAMS}]",
)
@click.option("--no-receipt", is_flag=True, help="The server has RECEIPT = off: its FIN is enough.")
@calls
@click.pass_obj
def ingest(caller: Caller, files: Sequence[str], streams: int, no_receipt: bool) -> None:
    """Stream every FILE to the server, each on a connection of its own, and verify the receipts.

    A folder stands for all files in it and below; "-" is standard input. Names do not go along:
    the server makes its own. Exit status 0 means that the server has every byte on disk.

    This wire knows no resuming: of a stream that broke, the server keeps what it has, and sending
    it again makes another series. A failed file does not keep the others from being sent; with
    --json there is one object for each, on standard error for the failed ones.

    \b
    Examples:
      roundhouse ingest backup.tar
      roundhouse ingest --streams 8 *.log photos/
      pg_dump shop | roundhouse ingest -
      roundhouse --host 10.0.0.5 ingest --json sensor.bin
    """
    names = [*chain.from_iterable(_named(file, caller) for file in files)]
    if not names:
        raise Failed(f"no files in {', '.join(map(printable, files))}")
    if names.count("-") > 1:
        raise click.UsageError("standard input can be sent once")
    sizes = [*map(_size, names)]
    size = None if None in sizes else sum(filter(None, sizes))
    label = "ingest" if len(names) == 1 else f"ingest {len(names):,} files"
    at_once = caller.as_json or not sys.stderr.isatty()  # else results wait for the bar's end
    began = monotonic()
    ended: list[Stored | Lost] = []
    try:
        with progress(label, size, quiet=caller.as_json) as advance:

            def send(file: str) -> Stored | Lost:
                return _send(caller, file, advance, no_receipt)

            for one in _all(send, names, streams):
                ended.append(one)
                if at_once:
                    _tell(caller, one, len(names))
    finally:
        if not at_once:
            for one in ended:
                _tell(caller, one, len(names))
    _sum_up(caller, names, ended, monotonic() - began)


def _named(file: str, caller: Caller) -> Iterator[str]:
    """A file, or the files in a folder, in order. Raise Failed where there is none."""

    def unreadable(error: OSError) -> None:
        raise Failed(f"cannot read {printable(error.filename)}: {error.strerror}") from None

    try:
        folder = file != "-" and stat.S_ISDIR(os.stat(file).st_mode)
    except OSError as error:
        raise Failed(f"cannot read {printable(file)}: {error.strerror}") from None
    if not folder:
        yield file
        return
    for above, below, here in os.walk(file, onerror=unreadable):
        below.sort()
        for name in below:
            if os.path.islink(path := os.path.join(above, name)):
                caller.note(f"Skipped {printable(path)}: a link to a folder")
        for name in sorted(here):
            path = os.path.join(above, name)
            if os.path.isfile(path):
                yield path
            else:
                caller.note(f"Skipped {printable(path)}: not a regular file")


def _size(file: str) -> int | None:
    """Bytes; None: nobody knows."""
    try:
        status = os.fstat(sys.stdin.fileno()) if file == "-" else os.stat(file)
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _called(file: str) -> str:
    return "standard input" if file == "-" else file


def _all(
    send: Callable[[str], Stored | Lost], names: Sequence[str], streams: int
) -> Iterator[Stored | Lost]:
    """Send `streams` at a time: each result as it comes. Once nobody listens no more are begun."""
    if len(names) == 1:
        yield send(names[0])
        return
    waiting, ended = deque(names), SimpleQueue[Stored | Lost | BaseException | None]()

    def work() -> None:
        try:
            while True:
                try:
                    file = waiting.popleft()
                except IndexError:
                    break
                one = send(file)
                if isinstance(one, Lost) and isinstance(one.error, Nobody):
                    waiting.clear()
                ended.put(one)
            ended.put(None)
        except BaseException as error:
            ended.put(error)

    workers = min(streams, len(names))
    try:
        for _ in range(workers):
            Thread(target=work, daemon=True).start()  # Ctrl-C waits for no server
        while workers:
            result = ended.get()
            if isinstance(result, BaseException):
                raise result
            if result is None:
                workers -= 1
            else:
                yield result
    finally:
        waiting.clear()


def _send(
    caller: Caller, file: str, advance: Callable[[int], object], no_receipt: bool
) -> Stored | Lost:
    """One stream, from connecting to its receipt."""
    try:
        with Source.open(file) as source, caller.call("ingest") as wire:
            began = monotonic()
            wire.fragile()  # a stream that breaks off here must not look whole there
            sent = pour(wire, source, advance)
            line = receive(wire, sent)
            bare = no_receipt and sent.whole and not line
            receipt = None if bare else judge(sent, line)
            wire.fragile(False)
            return Stored(file, sent, receipt, monotonic() - began)
    except Failed as error:
        return Lost(file, error)


def _tell(caller: Caller, one: Stored | Lost, of: int) -> None:
    if isinstance(one, Stored):
        caller.tell(one.text, **one.facts)
    elif of > 1:  # the only one ends the command, and is told there
        said = f"{printable(_called(one.file))}: {one.error.format_message()}"
        caller.fail(type(one.error)(said), file=one.file)


def _sum_up(
    caller: Caller, names: Sequence[str], ended: Sequence[Stored | Lost], seconds: float
) -> None:
    """Raise Failed where not all went well; its status is theirs, where they have one."""
    lost = [one for one in ended if isinstance(one, Lost)]
    if lost and len(names) == 1:
        raise lost[0].error
    if lost:
        whole = len(ended) - len(lost)
        alike = len({one.error.exit_code for one in lost}) == 1
        kind = type(lost[0].error) if alike else Failed
        raise kind(f"{len(names) - whole:,} of {counted(len(names), 'file')} not stored")
    if len(names) > 1:
        size = sum(one.sent.size for one in ended if isinstance(one, Stored))
        rate = f"{size / max(seconds, 1e-6) / 1e6:,.1f} MB/s"
        caller.note(
            f"{counted(len(names), 'file')}, {counted(size, 'byte')} in {seconds:.1f} s: {rate}"
        )
