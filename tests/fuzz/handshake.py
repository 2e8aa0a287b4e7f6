"""One hostile peer of the handshake, and what must hold whatever it sends.

    no exception       none is raised, none is logged
    answers            well-formed, in a language of the wire; successes are as many as messages
                       were accepted, on the port for codes as many as codes were given
    acceptance         only under the one right pair, and only if its code stood in the input
    records            as many lines as messages, each of which says its message exactly

An input is a byte that says how (port, FIN at the end, whether the ledger is late), one that says
where the stream is cut, then the stream.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes

from twisted.logger import capturedLogs

from protocols.handshake import SPEC, STALL
from protocols.handshake_formats import records
from tests.ledger_double import MemoryLedger
from tests.wire import House

PORTS = ("CODE_PORT", "MESSAGE_PORT")
CODE = "0a1b2c3d4e5f60718293a4b5c6d7e8f9"
_ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})")
_RAW = {
    "CODE_PORT": re.compile(rb"([0-9a-f]{32}\n?|ERR [ -~]+\n)?"),
    "MESSAGE_PORT": re.compile(rb"(OK\n|((OK [0-9]+|ERR [ -~]+)\n)*)"),
}


class Wrong(AssertionError):
    """Something that must hold does not."""


def play(data: bytes) -> None:
    """Raise Wrong, or whatever the protocol raised."""
    how, cut = (*data[:2], 0, 0)[:2]
    stream, port = data[2:], PORTS[how & 1]
    pieces = [stream[:cut], stream[cut : 3 * cut], stream[3 * cut :]]
    judge(port, [piece for piece in pieces if piece], bool(how & 2), bool(how & 4))


def judge(port: str, pieces: list[bytes], ends: bool = True, late: bool = False) -> None:
    """Raise Wrong, or whatever the protocol raised."""
    ledger = MemoryLedger(late=late, codes={"ana": {CODE}})
    with capturedLogs() as events:
        peer = House(SPEC, stores=ledger.stores).peer(port)
        for piece in pieces:
            if peer.transport.reading:
                peer.says(piece)
        if ends:
            peer.ends()
        for _ in range(10_000):
            if not ledger.waiting:
                break
            ledger.answer(-1)
        peer.waits(STALL)
        peer.waits(STALL)
    failures = [event for event in events if "log_failure" in event]
    _must(not failures, f"logged {failures[:1]}")
    sent = b"".join(pieces)
    if peer.heard.startswith(b"HTTP/"):
        succeeded = sum(_succeeded(head, port) for head in _heads(peer.heard))
    else:
        _must(_RAW[port].fullmatch(peer.heard) is not None, f"answered {peer.heard[:200]!r}")
        succeeded = len(re.findall(rb"^(?:OK|[0-9a-f]{32})", peer.heard, re.MULTILINE))
        closed = peer.outcome == "answered" and not peer.heard
        succeeded += closed and port == "MESSAGE_PORT"  # JSON: FIN is the answer
    codes = sum(map(len, ledger.codes.values())) - 1
    done = codes if port == "CODE_PORT" else len(ledger.logged)
    # an answer that nobody can take any more is not sent; nothing is answered that was not done
    whole = ends and not peer.transport.reset
    _must(succeeded == done if whole else succeeded <= done, f"{succeeded} answers for {done}")
    if ledger.logged:
        plain = _ESCAPE.sub(lambda found: bytes([int(found[1], 16) & 255]), unquote_to_bytes(sent))
        _must(CODE.encode() in plain, "accepted without the code")
        _must({entry.ident for entry in ledger.logged} == {"ana"}, "accepted under another id")
    _forged([text for _, _, text in ledger.kept])


def _forged(texts: list[str]) -> None:
    lines = records([(seq, "now", "ana", text) for seq, text in enumerate(texts, 1)])
    told = [json.loads(line) for line in lines.decode("ascii").splitlines()]
    wanted = [
        {"time": "now", "seq": seq, "id": "ana", "message": text}
        for seq, text in enumerate(texts, 1)
    ]
    _must(told == wanted, "a record was forged")


def _heads(out: bytes) -> Iterator[bytes]:
    """The head of each response. Raise Wrong where that is no series of responses."""
    while out:
        head, blank, out = out.partition(b"\r\n\r\n")
        _must(bool(blank) and re.match(rb"HTTP/1\.1 [1-5][0-9]{2} ", head) is not None, "no head")
        if head == b"HTTP/1.1 100 Continue":
            continue
        length = re.search(rb"\r\nContent-Length: ([0-9]+)(?:\r|\Z)", head)
        _must(length is not None, "a response without its length")
        yield head
        # a HEAD has none of the body it speaks of: what follows is the next response, or the end
        size = int(length[1]) if length else 0
        if not out.startswith(b"HTTP/1.1 ") or out[size : size + 9] == b"HTTP/1.1 ":
            out = out[size:]


def _succeeded(head: bytes, port: str) -> bool:
    ours = b"\r\nServer-Uuid: " if port == "CODE_PORT" else b"\r\nStatus: Authentication success"
    return head.startswith(b"HTTP/1.1 200 ") and ours in head


def _must(holds: Any, what: str) -> None:
    if not holds:
        raise Wrong(what)
