"""echo, without a socket and without waiting."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.echo import GLUT, HOLD, LONGEST, SPEC, WORD, Options, hear_lines, hear_segment, upper
from tests.wire import House, Peer


def peer(options: Options | None = None) -> Peer:
    return House(SPEC, options=options).peer()


def says(*chunks: bytes) -> Peer:
    """A peer that said `chunks`, each a segment."""
    ana = peer()
    for chunk in filter(None, chunks):
        if not ana.hung_up:
            ana.says(chunk)
    return ana


def shouted(text: bytes) -> bytes:
    """The answer, where nothing in `text` closes."""
    return text.decode(errors="surrogateescape").upper().encode(errors="surrogateescape")


class SegmentTests(SynchronousTestCase):
    """Clients that never send an LF."""

    def test_a_segment_is_answered_at_once_with_nothing_added(self) -> None:
        ana = peer()
        for text in ("hola servidor", "¿qué tal, ñandú?", "straße", " ", "D"):
            ana.transport.sent.clear()
            ana.says(text.encode())
            ana.waits(HOLD)
            assert ana.heard.decode() == text.upper()

    def test_the_word_closes_at_once_and_sends_nothing_for_it(self) -> None:
        for text in (b"DESCONEXION", b" \tDESCONEXION\r", b"DESCONEXION "):
            ana = says(b"hola", text)
            assert ana.heard == b"HOLA"
            assert ana.hung_up
            assert ana.outcome == "word"

    def test_what_follows_the_word_is_dropped(self) -> None:
        ana = peer()
        ana.says(b"DESCONEXION", b"hola", b"a\n")
        assert ana.heard == b""

    def test_other_cases_and_longer_texts_are_ordinary(self) -> None:
        for text in (b"desconexion", b"no DESCONEXION aqui", b"DESCONEXIONES", b"DESCONEXION!"):
            ana = says(text)
            assert ana.heard == text.upper()
            assert not ana.hung_up

    def test_the_word_cut_anywhere_still_closes(self) -> None:
        word = b"  DESCONEXION "
        for cut in range(1, len(word)):
            ana = says(word[:cut], word[cut:])
            assert (ana.heard, ana.outcome) == (b"", "word")
        assert says(*[WORD[i : i + 1] for i in range(len(WORD))]).outcome == "word"

    def test_a_beginning_of_the_word_is_answered_after_the_hold(self) -> None:
        ana = says(b" DES")
        ana.waits(HOLD / 2)
        assert ana.heard == b""
        ana.waits(HOLD / 2)
        assert ana.heard == b" DES"
        ana.says(b"CONEXION")
        assert ana.heard == b" DESCONEXION"
        assert not ana.hung_up

    def test_the_hold_counts_silence_so_that_a_slow_writer_still_closes(self) -> None:
        ana = peer()
        for part in (b"DES", b"CON", b"EX", b"ION"):
            ana.says(part)
            ana.waits(HOLD * 0.9)
        assert (ana.heard, ana.outcome) == (b"", "word")

    def test_a_message_that_does_not_go_on_with_what_was_held_is_its_own(self) -> None:
        assert says(b"D", b"DESCONEXION").heard == b"D"
        assert says(b"D", b"DESCONEXION").outcome == "word"
        assert says(b"DES", b"hola").heard == b"DESHOLA"
        ana = says(b"DES", b"DES")
        assert ana.heard == b"DES"
        ana.waits(HOLD)
        assert ana.heard == b"DESDES"

    def test_a_character_cut_by_a_segment_border_survives(self) -> None:
        ana = peer()
        ana.says(b"hol\xc3")
        assert ana.heard == b"HOL"
        ana.waits(10)
        ana.says(b"\xb1")
        assert ana.heard.decode() == "HOLÑ"
        for byte in "ñ€😀ß".encode():
            ana.says(bytes([byte]))
        assert ana.heard.decode() == "HOLÑÑ€😀SS"

    def test_bytes_that_are_not_utf8_come_back_unchanged(self) -> None:
        ana = says(b"a\xffb", b"x", b"\xed\xa0\x80", b"\xc3", b"y", b"\x00\x1b")
        assert ana.heard == b"A\xffBX\xed\xa0\x80\xc3Y\x00\x1b"
        assert not ana.hung_up

    def test_a_cut_character_is_owed_before_the_word_closes(self) -> None:
        assert says(b"a\xc3", b"DESCONEXION").heard == b"A\xc3"
        assert says(b"a\xc3", b"DESCO", b"NEXION").heard == b"A\xc3"

    def test_a_half_closed_peer_gets_all_it_is_owed(self) -> None:
        for text in (b"adios", b"DES", b"a\xc3", b"  "):
            ana = says(text)
            ana.ends()
            assert ana.heard == text.upper()
            assert ana.transport.closed
            assert ana.outcome == "left"


class LineTests(SynchronousTestCase):
    """Clients that have sent an LF."""

    def test_lf_and_crlf_come_back_as_they_came(self) -> None:
        assert says(b"a\r\n", b"b\n\n", "ñ\r\n".encode()).heard.decode() == "A\r\nB\n\nÑ\r\n"

    def test_each_line_of_a_segment_is_a_message(self) -> None:
        ana = says(b"uno\ndos\n DESCONEXION \r\ntres\n")
        assert ana.heard == b"UNO\nDOS\n"
        assert ana.outcome == "word"

    def test_a_segment_peer_may_turn_to_lines(self) -> None:
        ana = says(b"hola", b"DESCO", b"NEXIONES\nDESCONEXION\n")
        assert ana.heard == b"HOLADESCONEXIONES\n"
        assert ana.outcome == "word"

    def test_a_segment_is_no_message_any_more(self) -> None:
        ana = says(b"a\n", b"no ", b"DESCONEXION", b" aqui\n", b"b DES", b"CONEXION", b"\n")
        assert ana.heard == b"A\nNO DESCONEXION AQUI\nB DESCONEXION\n"
        assert not ana.hung_up

    def test_the_word_without_its_lf_may_still_go_on(self) -> None:
        ana = says(b"a\n", b"DESCONEXION", b" ", b"aqui\n")
        assert ana.heard == b"A\nDESCONEXION AQUI\n"

    def test_the_word_without_its_lf_closes_at_fin(self) -> None:
        for text in (b"a\nDESCONEXION", b"a\n DESCONEXION \r"):
            ana = says(text)
            assert not ana.hung_up
            ana.ends()
            assert (ana.heard, ana.outcome) == (b"A\n", "word")

    def test_the_word_without_its_lf_closes_after_the_hold(self) -> None:
        ana = says(b"a\n", b"DESCONEXION")
        ana.waits(HOLD)
        assert (ana.heard, ana.outcome) == (b"A\n", "word")

    def test_after_the_hold_a_beginning_of_the_word_is_inside_its_line(self) -> None:
        ana = says(b"a\nDESCO")
        ana.waits(HOLD)
        ana.says(b"NEXION\n", b"DESCONEXION\n")
        assert (ana.heard, ana.outcome) == (b"A\nDESCONEXION\n", "word")

    def test_blanks_before_the_word_may_be_cut_off_too(self) -> None:
        ana = says(b"a\n", b"  ", b" DES", b"CONEXION", b" \r", b"\nb\n")
        assert (ana.heard, ana.outcome) == (b"A\n", "word")

    def test_a_line_too_long_to_be_held_is_never_the_word(self) -> None:
        fits = WORD.rjust(LONGEST)
        assert says(b"a\n" + fits + b"\n").outcome == "word"
        assert says(b"a\n", fits[:-1], fits[-1:], b"\n").outcome == "word"
        assert says(fits).outcome == "word"
        for pieces in ([b" " + fits], [b" ", fits], [b" " * (LONGEST + 1), WORD]):
            ana = says(b"a\n", *pieces, b"\n")
            assert ana.heard == b"A\n" + b"".join(pieces) + b"\n"
            assert not ana.hung_up

    def test_a_half_closed_peer_gets_its_last_line(self) -> None:
        ana = says(b"a\nb\nDES")
        ana.ends()
        assert (ana.heard, ana.outcome) == (b"A\nB\nDES", "left")

    def test_no_pair_of_cuts_changes_the_answer(self) -> None:
        closes = " a\r\nñ\xff\nno DESCONEXION\n\n  b\nDESCONEXIONES\n DES\n€ DESCONEXION \r\nx\n"
        for text, end in ((closes.replace("€", ""), b"DES\n"), (closes, b"\r\nX\n")):
            stream = b"\xc3\xff\xe2\x82" + text.encode()
            whole = says(b"\n", stream)
            assert whole.heard.endswith(end)
            for one in range(len(stream)):
                for two in range(one, len(stream)):
                    ana = says(b"\n", stream[:one], stream[one:two], stream[two:])
                    assert ana.heard == whole.heard
                    assert ana.outcome == whole.outcome

    def test_a_stream_may_begin_with_the_word(self) -> None:
        stream = b"  DESCONEXION \r\nx\n"
        for one in range(len(stream)):
            for two in range(one, len(stream)):
                ana = says(stream[:one], stream[one:two], stream[two:])
                assert (ana.heard, ana.outcome) == (b"", "word")

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.sampled_from(["DESCONEXION", "DES", "CONEXION", " ", "\n", "\r", "ñ", "a"])))
    def test_whatever_is_said_is_answered_up_to_the_first_line_that_is_the_word(
        self, parts: list[str]
    ) -> None:
        stream = "".join(parts).encode()
        owed = b""
        for line in stream.replace(b"\n", b"\n\0").split(b"\0"):
            if line.strip() == WORD:
                break
            owed += line
        ana = says(b"\n", *(part.encode() for part in parts))
        if not ana.hung_up:
            ana.ends()
        assert ana.heard == b"\n" + shouted(owed)
        assert (ana.outcome == "word") == (owed != stream)


class PureTests(SynchronousTestCase):
    def test_hearing_is_pure(self) -> None:
        assert hear_lines(b"x\nDES", inside=True).held == b"DES"
        assert hear_lines(b"DESCONEXION", inside=True).text == b"DESCONEXION"
        assert hear_lines(b"x\n  ", inside=False).held == b"  "
        assert hear_segment(b"DESCO").held == b"DESCO"
        assert hear_segment(b"DESCONEXION").ends

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=12), st.integers(0, 12))
    def test_upper_case_never_depends_on_the_cut(self, data: bytes, at: int) -> None:
        first, cut = upper(data[:at])
        second, none = upper(cut + data[at:], final=True)
        assert first + second == upper(data, final=True)[0] == shouted(data)
        assert none == b""


class ConnectionTests(SynchronousTestCase):
    def test_after_a_glut_others_have_their_turn_before_more_is_read(self) -> None:
        ana = peer()
        for glut in (b"x\n" * GLUT, "ñ\n".encode() * GLUT):
            ana.says(glut)
            assert not ana.transport.reading
            ana.waits(0)
            assert ana.transport.reading

    def test_after_a_glut_who_takes_no_answers_is_not_read_either(self) -> None:
        ana = peer()
        ana.transport.full = True
        ana.says(b"x\n" * GLUT)
        ana.waits(0)
        assert not ana.transport.reading
        ana.transport.full = False
        ana.transport.producer.resumeProducing()
        assert ana.transport.reading

    def test_who_goes_in_the_middle_of_a_glut_leaves_nothing_behind(self) -> None:
        ana = peer()
        ana.says(b"x\n" * GLUT)
        ana.resets()
        ana.waits(0)
        assert ana.clock.getDelayedCalls() == []

    def test_silence_closes_only_if_it_is_asked_for(self) -> None:
        ana = peer()
        ana.waits(1e6)
        assert not ana.hung_up
        ana = peer(Options(idle_timeout=30.0))
        ana.clock.pump([7.5] * 5)
        assert ana.hung_up
        assert ana.outcome == "silent"

    def test_a_peer_that_does_not_read_is_not_read_either(self) -> None:
        ana = peer()
        ana.transport.full = True
        ana.says(b"hola")
        assert not ana.transport.reading
        ana.transport.full = False
        ana.transport.producer.resumeProducing()
        ana.says(b"x")
        assert ana.heard == b"HOLAX"

    def test_two_hundred_kilobytes_in_one_read_come_back_whole(self) -> None:
        ana = says("ñ".encode() * 100_000)
        assert ana.heard == "Ñ".encode() * 100_000

    def test_nothing_waits_for_a_peer_that_is_gone(self) -> None:
        ana = says(b"DES")
        ana.resets()
        assert ana.clock.getDelayedCalls() == []
        assert ana.connection.live.outcomes == {"reset": 1}
