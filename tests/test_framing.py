"""Bytes to lines: every cut of a stream comes to the same lines."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.framing import OVERLONG, Lines, Overlong

LIMIT = 5


def naive(stream: bytes) -> tuple[list[bytes | Overlong], bytes]:
    """What `Lines(LIMIT)` should make of a whole stream: the lines, and what has begun."""
    *whole, rest = stream.split(b"\n")
    lines: list[bytes | Overlong] = [OVERLONG if len(w) > LIMIT else w for w in whole]
    return (lines, rest) if len(rest) <= LIMIT else ([*lines, OVERLONG], b"")


def cuts(stream: bytes) -> list[list[bytes]]:
    """Every way to cut `stream` in three."""
    return [
        [stream[:one], stream[one:two], stream[two:]]
        for one in range(len(stream) + 1)
        for two in range(one, len(stream) + 1)
    ]


class LinesTests(SynchronousTestCase):
    def test_lines_come_without_their_lf_and_the_rest_waits(self) -> None:
        lines = Lines(LIMIT)
        assert lines.feed(b"a\n\nb\r\nc") == [b"a", b"", b"b\r"]
        assert lines.pending == b"c"
        assert lines.begun
        assert lines.feed(b"d\n") == [b"cd"]
        assert not lines.begun

    def test_a_line_of_the_limit_passes_and_one_more_byte_does_not(self) -> None:
        lines = Lines(LIMIT)
        assert lines.feed(b"12345\n123456\nx\n") == [b"12345", OVERLONG, b"x"]

    def test_an_endless_line_is_told_once_as_soon_as_it_is_known(self) -> None:
        lines = Lines(LIMIT)
        assert lines.feed(b"12345") == []
        assert lines.feed(b"6") == [OVERLONG]
        assert lines.feed(b"7" * 1000) == []
        assert lines.pending == b""
        assert lines.begun
        assert lines.feed(b"8\nok\n") == [b"ok"]

    def test_good_lines_that_share_a_read_with_an_overlong_one_are_kept(self) -> None:
        assert Lines(LIMIT).feed(b"a\n123456\nb\n1234567") == [b"a", OVERLONG, b"b", OVERLONG]

    def test_what_has_begun_can_be_taken_out(self) -> None:
        lines = Lines(LIMIT)
        lines.feed(b"a\nbc")
        assert lines.take() == b"bc"
        assert lines.take() == b""
        assert lines.feed(b"d\n") == [b"d"]

    def test_taking_ends_an_overlong_line_too(self) -> None:
        lines = Lines(LIMIT)
        lines.feed(b"1234567")
        assert lines.take() == b""
        assert lines.feed(b"a\n") == [b"a"]

    def test_an_overlong_line_prints_as_what_it_is(self) -> None:
        assert repr([OVERLONG]) == "[OVERLONG]"

    def test_no_pair_of_cuts_changes_the_lines(self) -> None:
        stream = b"a\n\n12345\n123456\nxy\r\n1234567890\nend"
        for pieces in cuts(stream):
            lines = Lines(LIMIT)
            assert [line for piece in pieces for line in lines.feed(piece)] == naive(stream)[0]
            assert lines.take() == naive(stream)[1]

    @settings(deadline=None, max_examples=300)
    @given(st.lists(st.text("ab\n", max_size=9).map(str.encode), max_size=8))
    def test_however_a_stream_is_cut_its_lines_are_those_of_the_whole(
        self, pieces: list[bytes]
    ) -> None:
        lines = Lines(LIMIT)
        told = [line for piece in pieces for line in lines.feed(piece)]
        assert (told, lines.take()) == naive(b"".join(pieces))
