"""Ten thousand hostile inputs, and every one that ever broke something."""

from __future__ import annotations

import random
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.stores import Entry
from tests.fuzz.__main__ import WORDS, corpus, mutated
from tests.fuzz.handshake import CODE, PORTS, Wrong, judge, play
from tests.ledger_double import MemoryLedger

PAIR = f"ana {CODE} "
EXAMPLES, EACH = 250, 10  # of each of four kinds of stream
CUT = 255


def streams(*words: bytes) -> st.SearchStrategy[list[list[bytes]]]:
    """EACH streams in pieces, made of `words` and of anything.

    A byte is a word or itself, CUT begins another piece: one draw a stream, which is quick.
    """
    known = [*words, *words, *WORDS]

    def spelt(data: bytes) -> list[bytes]:
        return [
            b"".join([known[b] if b < len(known) else bytes([b]) for b in piece])
            for piece in data.split(bytes([CUT]))
            if piece
        ]

    return st.lists(st.binary(max_size=40).map(spelt), min_size=EACH, max_size=EACH)


HOW = (st.sampled_from(PORTS), st.booleans(), st.booleans())
hostile = settings(deadline=None, max_examples=EXAMPLES)


class HostileTests(SynchronousTestCase):
    @hostile
    @given(streams(b"POST / HTTP/1.1\r\nHost: x\r\n", b"Content-Length: 9\r\n\r\n"), *HOW)
    def test_http(self, inputs: list[list[bytes]], port: str, ends: bool, late: bool) -> None:
        form = f"client_uuid=ana&server_uuid={CODE}&message=m".encode()
        good = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(form), form)
        for pieces in inputs:
            judge(port, [good, *pieces], ends, late)

    @hostile
    @given(streams(b'{"id": "ana", ', f'"code": "{CODE}"'.encode(), b'"message": "m"}'), *HOW)
    def test_json(self, inputs: list[list[bytes]], port: str, ends: bool, late: bool) -> None:
        for pieces in inputs:
            judge(port, pieces, ends, late)

    @hostile
    @given(streams(b"KEEP\n", PAIR.encode() + b"m\n", PAIR.encode()), *HOW)
    def test_keep(self, inputs: list[list[bytes]], port: str, ends: bool, late: bool) -> None:
        for pieces in inputs:
            judge(port, [b"KEEP\n", *pieces], ends, late)

    @hostile
    @given(streams(b"m\nana\n", CODE.encode() + b"\n", f'"m" ana {CODE}'.encode()), *HOW)
    def test_text(self, inputs: list[list[bytes]], port: str, ends: bool, late: bool) -> None:
        for pieces in inputs:
            judge(port, pieces, ends, late)

    def test_what_once_broke_something_does_not_again(self) -> None:
        assert len(corpus()) > 20
        for data in corpus():
            play(data)

    def test_what_is_like_it_does_not_either(self) -> None:
        dice, seeds = random.Random(20261121), corpus()
        for _ in range(2000):
            play(mutated(seeds, dice))


class JudgeTests(SynchronousTestCase):
    """The judge is not blind."""

    LINE = f"KEEP\n{PAIR}m\n".encode()

    def test_a_ledger_that_takes_any_code_is_caught(self) -> None:
        def careless(ledger: MemoryLedger, entry: Entry) -> int:
            ledger.logged.append(entry)
            return 1

        with patch.object(MemoryLedger, "_append", careless):
            judge(PORTS[1], [self.LINE])
            with pytest.raises(Wrong, match="without the code"):
                judge(PORTS[1], [b"KEEP\nana x m\n"])
            with pytest.raises(Wrong, match="another id"):
                judge(PORTS[1], [self.LINE.replace(b"ana", b"bob")])

    def test_an_answer_for_nothing_is_caught(self) -> None:
        with (
            patch.object(MemoryLedger, "_append", lambda ledger, entry: 1),
            pytest.raises(Wrong, match="1 answers for 0"),
        ):
            judge(PORTS[1], [self.LINE])

    def test_a_forged_record_is_caught(self) -> None:
        with (
            patch("tests.fuzz.handshake.records", lambda rows: b"{}\n{}\n"),
            pytest.raises(Wrong, match="forged"),
        ):
            judge(PORTS[1], [self.LINE])

    def test_an_exception_is_caught(self) -> None:
        with (
            patch.object(MemoryLedger, "append", side_effect=ZeroDivisionError),
            pytest.raises(ZeroDivisionError),
        ):
            judge(PORTS[1], [self.LINE])
        with (
            patch.object(MemoryLedger, "_append", lambda ledger, entry: "seven"),
            pytest.raises(Wrong, match="logged"),
        ):
            judge(PORTS[1], [self.LINE])
        assert len(self.flushLoggedErrors(TypeError)) == 1
