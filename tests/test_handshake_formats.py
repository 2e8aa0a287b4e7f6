"""What the handshake's peers may send, without a connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.handshake_formats import (
    ALIASES,
    FORM_FIELDS,
    IDENT,
    MESSAGE,
    AfterLines,
    AfterObject,
    Fields,
    Malformed,
    Tongue,
    form,
    json_object,
    line_id,
    message,
    registrant,
    text_message,
    tongue,
    words,
)

FULL = {"id": "a", "code": "c", "message": "m"}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
BITS = st.text(st.sampled_from('{}[]"\\: \nñu')) | st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | BITS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(BITS, inner, max_size=3),
    max_leaves=8,
)


def refused(parse: Callable[[Any], object], value: Any, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse(value)


class TongueTests(SynchronousTestCase):
    def said(self, stream: bytes) -> Tongue | None:
        """What `stream` is, and that it is the same however many bytes show it first."""
        early = [tongue(stream[:end]) for end in range(1, len(stream) + 1)]
        known = [found for found in early if found is not None]
        assert len(set(known)) <= 1, early
        assert known == early[len(early) - len(known) :]
        return early[-1]

    def test_a_request_line_of_http_1_is_http(self) -> None:
        for method in (
            "GET",
            "POST",
            "PUT",
            "HEAD",
            "DELETE",
            "OPTIONS",
            "PATCH",
            "TRACE",
            "CONNECT",
        ):
            assert self.said(f"{method} / HTTP/1.1\r\n".encode()) is Tongue.HTTP
        assert self.said(b"GET /a b?c HTTP/1.0\n") is Tongue.HTTP

    def test_a_line_that_only_begins_so_is_text(self) -> None:
        for line in (
            b"GET /\n",
            b"POST / HTTP/2.0\r\n",
            b"GET / HTTP/1.1 x\n",
            b"PUT / http/1.1\n",
        ):
            assert self.said(line) is Tongue.TEXT

    def test_a_line_is_waited_for(self) -> None:
        for begun in (b"P", b"POST", b"POST /", b"POST / HTTP/1.1\r"):
            assert self.said(begun) is None

    def test_a_line_that_is_longer_than_any_text_is_left_to_http(self) -> None:
        endless = b"GET /" + b"a" * (MESSAGE + 2)
        assert tongue(endless) is Tongue.HTTP
        assert tongue(endless[:MESSAGE]) is None
        assert tongue(endless[:MESSAGE] + b"\r\n") is Tongue.TEXT

    def test_other_methods_and_targets_are_text(self) -> None:
        for line in (b"post / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n", b"POST x", b"POSTAL"):
            assert self.said(line) is Tongue.TEXT

    def test_a_brace_blanks_and_a_quote_or_a_brace_are_json(self) -> None:
        for begun in (b'{"', b"{}", b'{ \t\r\n "', b"{\n}"):
            assert self.said(begun) is Tongue.JSON
        for begun in (b"{a", b"{{", b"{ 1", b"{[", b" {", b"["):
            assert self.said(begun) is Tongue.TEXT
        assert self.said(b"{ \n ") is None

    def test_blanks_without_end_are_text(self) -> None:
        assert tongue(b"{" + b" " * 2000) is Tongue.TEXT
        assert tongue(b"{" + b" " * 2000 + b'"') is Tongue.TEXT

    def test_keep_is_a_line_of_its_own(self) -> None:
        assert self.said(b"KEEP\n") is Tongue.KEEP
        assert self.said(b"KEEP\r\n") is Tongue.KEEP
        for begun in (b"KEEP\r", b"KEEP", b"KE"):
            assert self.said(begun) is None
        for begun in (b"KEEP ", b"KEEPS", b"KEEP\rx", b"keep\n"):
            assert self.said(begun) is Tongue.TEXT

    def test_a_pickle_shows_with_its_first_byte(self) -> None:
        assert self.said(b"\x80") is Tongue.PICKLE

    def test_all_else_is_text(self) -> None:
        for begun in (b"\n", b"\xff", b'"a', b"\x00", b"client-77", "ñ".encode()):
            assert self.said(begun) is Tongue.TEXT

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.sampled_from([b"GET", b"KEEP", b" /", b"{", b'"', b" ", b"\n", b"x"])))
    def test_no_cut_changes_what_a_stream_is(self, pieces: list[bytes]) -> None:
        if stream := b"".join(pieces):
            self.said(stream)


class EndTests(SynchronousTestCase):
    def ends(self, make: Callable[[], AfterLines | AfterObject], stream: bytes) -> int:
        """Where the request at the head of `stream` ends (0: nowhere), by every pair of cuts."""
        whole = make().feed(stream)
        for cut in range(len(stream)):
            for again in range(cut, len(stream)):
                until, at, end = make(), 0, 0
                for piece in (stream[:cut], stream[cut:again], stream[again:]):
                    if found := until.feed(piece):
                        end = at + found
                        break
                    at += len(piece)
                assert end == whole, (cut, again)
        return whole

    def test_lines_end_a_text(self) -> None:
        assert self.ends(lambda: AfterLines(1), b"id\r\nrest\n") == 4
        assert self.ends(lambda: AfterLines(3), b"a\n\nb\nrest\n") == 5
        assert self.ends(lambda: AfterLines(3), b"a\nb\nc") == 0

    def test_the_last_brace_ends_an_object_at_once(self) -> None:
        for whole in (
            b"{}",
            b'{"a": {"b": [1, {}]}, "c": "d"}',
            b'{"}": "{"}',
            rb'{"\"}\\": "\\"}',
        ):
            assert self.ends(AfterObject, whole) == len(whole)
            assert self.ends(AfterObject, whole + b'{"') == len(whole)
            assert self.ends(AfterObject, whole[:-1]) == 0

    def test_where_a_line_feed_follows_it_is_part_of_the_request(self) -> None:
        for rest in (b"\n", b" \r\n", b" x\ny\n"):
            stream = b'{"a":\n"}"\n}' + rest
            assert self.ends(lambda: AfterObject(line=True), stream) == stream.index(b"\n", 11) + 1
        assert self.ends(lambda: AfterObject(line=True), b'{"a":\n"\n"}') == 0

    @settings(deadline=None, max_examples=200)
    @given(st.dictionaries(BITS, VALUES), st.booleans())
    def test_every_object_ends_where_json_says(self, value: dict[str, object], ascii: bool) -> None:
        whole = json.dumps(value, ensure_ascii=ascii).encode()
        assert AfterObject().feed(whole + b"}{") == len(whole)
        assert AfterObject().feed(whole[:-1]) == 0


class FormTests(SynchronousTestCase):
    def test_every_alias_names_its_field(self) -> None:
        for name, key in ALIASES.items():
            assert form(f"{name}=x".encode()) == {key: "x"}
            assert json_object(json.dumps({name: "x"}).encode()) == {key: "x"}
        assert [*ALIASES.values()].count("code") == 5

    @settings(deadline=None, max_examples=100)
    @given(TEXTS, TEXTS, TEXTS)
    def test_a_form_comes_back_as_it_was_written(self, ident: str, code: str, text: str) -> None:
        written = urlencode({"client_uuid": ident, "server_uuid": code, "message": text})
        assert form(written.encode()) == {"id": ident, "code": code, "message": text}

    def test_text_that_is_not_percent_encoded_is_taken_too(self) -> None:
        assert form("message=ñandú +x%26".encode()) == {"message": "ñandú  x&"}

    def test_other_fields_are_ignored(self) -> None:
        assert form(b"id=a&color=red&=&&x") == {"id": "a"}

    def test_a_field_that_comes_twice_is_refused_under_any_name(self) -> None:
        refused(form, b"id=a&id=a", "twice")
        refused(form, b"id=a&client_uuid=a", "twice: id")
        refused(form, b"x=1&x=2", "twice")

    def test_bytes_that_are_not_utf8_are_refused(self) -> None:
        for body in (b"id=\xff", b"id=%ff", b"%ff=a", b"id=%ed%a0%80"):
            refused(form, body, "not UTF-8")

    def test_the_number_of_fields_is_bounded(self) -> None:
        assert form(b"&".join(b"f%d=" % n for n in range(FORM_FIELDS))) == {}
        refused(form, b"&" * FORM_FIELDS, "at most")


class JsonTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=100)
    @given(TEXTS, TEXTS, TEXTS, st.booleans())
    def test_an_object_comes_back_as_it_was_written(
        self, ident: str, code: str, text: str, ascii: bool
    ) -> None:
        fields = {"id": ident, "code": code, "message": text}
        assert json_object(json.dumps(fields, ensure_ascii=ascii).encode()) == fields

    def test_a_number_is_an_id_as_it_was_written(self) -> None:
        for number in ("7", "-0", "1.50", "1E5", "9" * 5000):
            fields = json_object(b'{"id": %b}' % number.encode())
            assert fields == {"id": number}
            assert type(fields["id"]) is str

    def test_nothing_else_but_text_is_taken_where_it_matters(self) -> None:
        for value in ("true", "null", "[]", '{"id": "a"}'):
            refused(json_object, b'{"id": %b}' % value.encode(), "not text")
        refused(json_object, b'{"code": 7}', "not text: code")
        refused(json_object, b'{"message": 7}', "not text: message")

    def test_other_fields_hold_what_they_like(self) -> None:
        assert json_object(b'{"id": "a", "n": [null, {"id": 1.5}, true]}') == {"id": "a"}

    def test_a_key_that_comes_twice_is_refused(self) -> None:
        refused(json_object, b'{"id": "a", "id": "b"}', "twice")
        refused(json_object, b'{"id": "a", "uid": "a"}', "twice: id")
        refused(json_object, b'{"x": {"y": 1, "y": 2}}', "twice")

    def test_half_a_surrogate_pair_is_refused_wherever_it_stands(self) -> None:
        for body in (rb'{"id": "\ud800"}', rb'{"x": ["\uDC00"]}', rb'{"x": {"\uDBFFa": 1}}'):
            refused(json_object, body, "surrogate")
        assert json_object(rb'{"id": "\ud83d\ude00"}') == {"id": "😀"}
        assert json_object(rb'{"id": "\\ud800"}') == {"id": r"\ud800"}

    def test_what_is_no_json_object_is_refused(self) -> None:
        for body in (
            b'{"id": NaN}',
            b'{"id": -Infinity}',
            b"{'id': 'a'}",
            b'{"id": "a"',
            b'{"id": "a"} x',
            b'{"id": "a\nb"}',
            b'\xef\xbb\xbf{"id": "a"}',
            b'"id"',
            b"[]",
            b"7",
            b"",
        ):
            refused(json_object, body, "not (a )?JSON")
        refused(json_object, '{"id": "a"}'.encode("utf-16"), "not UTF-8")
        refused(json_object, b'{"id": "\xff"}', "not UTF-8")

    def test_nesting_without_end_is_refused(self) -> None:
        for deep in (b"[" * 60_000, b'{"a":' * 40_000, b'{"id": "a", "x": ' + b"[" * 60_000):
            refused(json_object, deep, "deep")


class TextTests(SynchronousTestCase):
    def test_words_are_cut_at_their_first_two_blanks(self) -> None:
        assert words("a c m") == FULL
        assert words("a c  m  n ") == FULL | {"message": " m  n "}
        assert words("a  c m") == {"id": "a", "code": "", "message": "c m"}
        for text in ("", "a", "a c", "a\tc\tm"):
            refused(words, text, "ID CODE TEXT")

    def test_the_last_line_ending_is_no_part_of_the_text(self) -> None:
        for end in ("", "\n", "\r\n"):
            assert text_message("a c m" + end) == FULL
            assert text_message('"m" a c' + end) == FULL
            assert text_message("m\na\nc" + end) == FULL
            assert text_message("m\r\na\r\nc" + end) == FULL
            assert line_id("a" + end) == {"id": "a"}
        assert text_message("a c m\n\n") == FULL | {"message": "m\n"}
        assert text_message("a c m\r") == FULL | {"message": "m\r"}

    def test_exactly_three_lines_are_text_id_and_code(self) -> None:
        assert text_message("x y z\na\nc\n") == FULL | {"message": "x y z"}
        assert text_message('"m"\na\nc\n') == FULL | {"message": '"m"'}
        assert text_message("a c m\nn\n") == FULL | {"message": "m\nn"}
        assert text_message("\n\n\n") == {"id": "", "code": "", "message": ""}

    def test_a_quoted_text_is_followed_by_its_pair(self) -> None:
        assert text_message('"one two" a c') == FULL | {"message": "one two"}
        assert text_message('"a\nb" a c') == FULL | {"message": "a\nb"}
        assert text_message('"" a c') == FULL | {"message": ""}
        for text in ('"m', '"', '" a c', '"m"', '"m" a', '"m"a c', '"m" a c d'):
            refused(text_message, text, "quoted")

    def test_a_pair_inside_the_text_is_text(self) -> None:
        assert text_message('"x" b d" a c') == FULL | {"message": 'x" b d'}
        assert text_message('a c "x" b d') == FULL | {"message": '"x" b d'}
        assert text_message("a c b d e") == FULL | {"message": "b d e"}


class FieldTests(SynchronousTestCase):
    def test_an_id_is_1_to_128_printable_characters(self) -> None:
        for ident in ("a", " a b ", "ñ" * IDENT, "😀"):
            assert registrant({"id": ident}) == (ident, None)
            assert message(FULL | {"id": ident}) == (ident, "c", "m")
        for ident in ("", " ", "a" * (IDENT + 1), "a\n", "\x00", "\x7f", "a\u202eb", "a\u2028b"):
            refused(registrant, {"id": ident}, "printable")
            refused(message, FULL | {"id": ident}, "printable|needs")

    def test_a_code_is_asked_for_with_an_id_alone(self) -> None:
        strange: list[Fields] = [{}, FULL, {"id": "a", "code": "c"}, {"message": "m"}]
        for fields in strange:
            refused(registrant, fields, "nothing else")

    def test_a_message_needs_its_three_fields(self) -> None:
        assert message(FULL) == ("a", "c", "m")
        for key in FULL:
            refused(message, FULL | {key: ""}, "needs")
            rest = {name: text for name, text in FULL.items() if name != key}
            refused(message, rest, "needs")

    def test_a_message_holds_64_kib(self) -> None:
        for whole in ("x" * MESSAGE, "ñ" * (MESSAGE // 2), "😀" * (MESSAGE // 4)):
            assert message(FULL | {"message": whole})[2] == whole
            refused(message, FULL | {"message": whole + "x"}, "65536")

    def test_a_message_may_hold_control_characters(self) -> None:
        assert message(FULL | {"message": "\x00\r\n\x1b"})[2] == "\x00\r\n\x1b"
