"""What an operator may write for each kind of option, and what is said of the rest."""

from __future__ import annotations

import contextlib

import pytest
from attrs import fields, frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from protocols.options import (
    KIND,
    MEANS,
    choice,
    command,
    count,
    duration,
    file_prefix,
    flag,
    option,
    retention,
    size,
)


class AmountTests(SynchronousTestCase):
    def test_a_size_is_bytes_unless_it_names_a_unit(self) -> None:
        for text, value in (
            ("1024", 1024),
            ("64 KiB", 65536),
            ("64k", 65536),
            ("1.5 GB", 1_500_000_000),
            (" 2 mIb ", 2 << 20),
            ("1TiB", 1 << 40),
            ("0", 0),
            ("7 B", 7),
        ):
            assert size(text) == value, text

    def test_a_time_is_seconds_unless_it_names_a_unit(self) -> None:
        for text, value in (
            ("30", 30.0),
            ("1.5 s", 1.5),
            ("250 ms", 0.25),
            ("10 min", 600.0),
            ("2m", 120.0),
            ("12h", 43200.0),
            ("7d", 604800.0),
        ):
            assert duration(text) == value, text

    def test_anything_else_is_refused_with_what_would_be_right(self) -> None:
        for text in ("", "ten", "-1", "1e3", "1 KiB KiB", "1,5", "0x10", "٣", "1.", ".5", "5 s"):
            with pytest.raises(ValueError, match="is not a number of bytes such as 1024, 64 KiB"):
                size(text)
        with pytest.raises(ValueError, match="is not seconds, or a time such as"):
            duration("5 KiB")

    def test_the_limits_are_said_in_full(self) -> None:
        with pytest.raises(ValueError, match=r"^0 is too little: at least 1 bytes$"):
            size("0", least=1)
        with pytest.raises(ValueError, match=r"^33554432 is too much: at most 16777216 bytes$"):
            size("32 MiB", most=16 << 20)
        with pytest.raises(ValueError, match=r"too much: at most 315360000 seconds$"):
            duration("4000d")

    def test_a_number_of_any_length_is_refused_like_any_other(self) -> None:
        for kind in (size, duration, count):
            with pytest.raises(ValueError, match=r"9{400}' is not "):
                kind("9" * 400)

    def test_a_count_is_a_whole_number_within_its_limits(self) -> None:
        assert count(" 12 ") == 12
        for text in ("1.5", "", "x", "-3", "٣"):
            with pytest.raises(ValueError, match="is not a whole number"):
                count(text)
        with pytest.raises(ValueError, match=r"^9 is too much: at most 8$"):
            count("9", most=8)

    @settings(deadline=None, max_examples=200)
    @given(st.text(max_size=20))
    def test_no_text_does_worse_than_a_value_error(self, text: str) -> None:
        for kind in (size, duration, count, flag, choice("a"), command, file_prefix):
            with contextlib.suppress(ValueError):
                kind(text)


class WordTests(SynchronousTestCase):
    def test_a_retention_is_shown_as_it_could_be_written(self) -> None:
        for text in ("30d", "3650d", "90 min", "1000000", "0"):
            kept = retention(text)
            assert "e+" not in str(kept)
            assert retention(str(kept)) == kept

    def test_a_flag_is_on_or_off_in_the_usual_words(self) -> None:
        for text in ("on", "Yes", "TRUE", "1", " on "):
            assert flag(text) is True
        for text in ("off", "No", "false", "0"):
            assert flag(text) is False
        with pytest.raises(ValueError, match="'maybe' is neither on nor off"):
            flag("maybe")

    def test_a_choice_is_one_of_the_words_in_any_case(self) -> None:
        assert choice("sha256", "none")(" SHA256 ") == "sha256"
        with pytest.raises(ValueError, match="'md5' is not one of: sha256, none"):
            choice("sha256", "none")("md5")

    def test_a_file_prefix_can_only_begin_a_name_in_the_folder_itself(self) -> None:
        for text in ("data", "año-2026", "a b", "x" * 100):
            assert file_prefix(text) == text
        for text in ("", "../x", "a/b", ".hidden", "a\nb", "a\x00b", "\ud800"):
            with pytest.raises(ValueError, match="cannot begin a file name"):
                file_prefix(text)
        with pytest.raises(ValueError, match="longer than 100 bytes"):
            file_prefix("ñ" * 51)

    def test_a_command_is_a_program_and_its_arguments_quoted_as_for_a_shell(self) -> None:
        assert command(" /bin/move --to 'a b' $HOME \"\" ") == (
            "/bin/move",
            "--to",
            "a b",
            "$HOME",
            "",
        )
        assert command(" ") == ()
        with pytest.raises(ValueError, match="is not a command: no closing quotation"):
            command("move 'a b")
        with pytest.raises(ValueError, match="line break or control character"):
            command("move\0")

    def test_an_option_carries_its_kind_and_its_meaning(self) -> None:
        @frozen
        class Options:
            limit: int = option(5, count, "how many")

        (limit,) = fields(Options)
        assert Options().limit == 5
        assert limit.metadata == {KIND: count, MEANS: "how many"}
