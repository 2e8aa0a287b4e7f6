"""The roster, and what may be a name in it."""

from __future__ import annotations

import unicodedata

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores.roster import Names
from protocols.rooms import LONGEST_NAME, as_name, as_room, folded, wrapped
from protocols.stores import Line, Sighting


def wide(text: str) -> str:
    """The same in full-width letters."""
    return "".join([chr(ord(character) + 0xFEE0) for character in text])


@define(eq=False)
class Ear:
    """Somebody who may bear a name."""

    heard: list[Line] = field(factory=list)
    behind: bool = False

    def told(self, line: Line) -> bool:
        self.heard.append(line)
        return self.behind


class RosterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.roster = Names()
        self.ana, self.ben = Ear(), Ear()

    def claims(self, who: Ear, name: str) -> bool:
        return self.now(self.roster.claim(name, who))

    def now(self, answer: Deferred[bool]) -> bool:
        return bool(self.successResultOf(answer))

    def found(self, name: str) -> Sighting | None:
        seen: Sighting | None = self.successResultOf(self.roster.find(name))
        return seen

    def present(self, room: str | None = None) -> list[str]:
        return [one.name for one in self.successResultOf(self.roster.present(room))]

    def test_a_name_is_borne_by_one_however_it_is_written(self) -> None:
        assert self.claims(self.ana, "Straße")
        for alike in ("straße", "STRASSE", wide("stra") + "ße", "strasse"):
            assert not self.claims(self.ben, alike)
            assert self.found(alike) == Sighting("Straße")

    def test_a_name_may_be_written_anew_or_given_up_for_another(self) -> None:
        for name in ("ana", "ana", "ANA", "bea"):
            assert self.claims(self.ana, name)
        assert self.claims(self.ben, "ana")
        assert self.present() == ["ana", "bea"]

    def test_one_whose_claim_failed_keeps_what_it_had(self) -> None:
        self.claims(self.ana, "ana")
        self.claims(self.ben, "ben")
        assert not self.claims(self.ben, "Ana")
        assert self.present() == ["ana", "ben"]

    def test_whoever_is_released_is_nowhere_and_its_name_free(self) -> None:
        self.claims(self.ana, "ana")
        self.roster.enter("main", self.ana)
        self.roster.release(self.ana)
        self.roster.release(self.ana)
        assert self.present("main") == self.present() == []
        assert self.claims(self.ben, "ana")

    def test_rooms_hold_who_entered_and_did_not_leave_by_name(self) -> None:
        for who, name in ((self.ben, "ben"), (self.ana, "Ana")):
            self.claims(who, name)
            self.roster.enter("main", who)
            self.roster.enter("main", who)
        self.roster.enter("dev", self.ana)
        assert self.present("main") == ["Ana", "ben"]
        assert self.found("ana") == Sighting("Ana", ("main", "dev"))
        self.claims(self.ana, "eva")
        self.roster.leave("main", self.ana)
        self.roster.leave("main", self.ana)
        assert self.present("main") == ["ben"]
        assert self.found("eva") == Sighting("eva", ("dev",))
        assert self.present("nowhere") == []

    def test_who_has_no_name_is_nowhere(self) -> None:
        self.roster.enter("main", self.ana)
        self.roster.away(self.ana, "lunch")
        self.roster.leave("main", self.ana)
        assert self.present("main") == []
        self.claims(self.ana, "ana")
        assert self.found("ana") == Sighting("ana")

    def test_one_can_be_told_something_by_its_name(self) -> None:
        self.claims(self.ana, "Ana")
        self.roster.away(self.ana, "lunch")
        line = Line(b"hi", "ben")
        told = self.successResultOf(self.roster.tell("ANA", line))
        assert told == Sighting("Ana", (), "lunch")
        assert self.ana.heard == [line]
        assert self.successResultOf(self.roster.tell("ben", line)) is None
        self.ana.behind = True
        told = self.successResultOf(self.roster.tell("Ana", line))
        assert told == Sighting("Ana", (), "lunch", behind=True)
        assert self.found("Ana") == Sighting("Ana", (), "lunch")

    @settings(deadline=None, max_examples=100)
    @given(st.lists(st.tuples(st.sampled_from("cerl"), st.integers(0, 3), st.integers(0, 2))))
    def test_no_history_leaves_a_room_or_a_name_behind(
        self, acts: list[tuple[str, int, int]]
    ) -> None:
        roster, ears = Names(), [Ear() for _ in range(4)]
        for act, ear, number in acts:
            match act:
                case "c":
                    roster.claim(f"n{number}", ears[ear])
                case "e":
                    roster.enter(f"r{number}", ears[ear])
                case "l":
                    roster.leave(f"r{number}", ears[ear])
                case _:
                    roster.release(ears[ear])
            seen = self.successResultOf(roster.present())
            assert len({one.name for one in seen}) == len(seen)
            for room in ("r0", "r1", "r2"):
                here = {one.name for one in self.successResultOf(roster.present(room))}
                assert here == {one.name for one in seen if room in one.rooms}
        for one in ears:
            roster.release(one)
        assert (roster._bearers, roster._seen, roster._rooms) == ({}, {}, {})


class NameTests(SynchronousTestCase):
    def test_names_of_people_everywhere_are_names(self) -> None:
        for name in ("ana", "José", "李小龍", "x" * 32, "O'Brien", "r2-d2_[x]", "🦊", "7", "नमस्ते"):
            assert as_name(name) == name

    def test_what_would_break_a_wire_or_deceive_is_none(self) -> None:
        refused = ["", "x" * 33, "a b", "a\tb", "a\nb", "a\u00a0b", "a\u3000b", "a\x00", "a\x1b"]
        refused += [f"a{mark}" for mark in "!#$%&*+,./:;<=>?@~"]
        refused += ["a\u202eb", "a\u200bb", "a\u200db", "a\u2066", "\ufeffa", "a\u2028", "a\ue000"]
        refused += ["\uff20a", "a\uff1a", "\u0301a", "a\ufe0f", "a\u3164", "\u115f", "a\u034fb"]
        refused += ["guest", "GUEST", wide("GUEST"), "Roundhouse", "history"]
        for name in refused:
            with pytest.raises(ValueError, match=r"name|called"):
                as_name(name)

    def test_a_room_is_called_by_what_its_spellings_have_in_common(self) -> None:
        for text in ("main", "#main", "MAIN", "#" + wide("main")):
            assert as_room(text) == "main"
        for text in ("", "#", "##x", "a b", "x" * 33, "ﷺ" * 2):
            with pytest.raises(ValueError, match="name"):
                as_room(text)

    @settings(deadline=None, max_examples=500)
    @given(st.text(max_size=40))
    def test_whatever_is_a_name_is_one_word_on_both_wires(self, text: str) -> None:
        try:
            name = as_name(text)
        except ValueError:
            return
        assert 0 < len(name) <= LONGEST_NAME
        assert name.split() == [name]
        for form in (name, folded(name)):
            assert not set("!@#:,*?. \r\n\0\x01") & set(form)
        assert all(unicodedata.category(c)[0] not in "CZ" for c in name)
        assert folded(folded(name)) == folded(name)

    @settings(deadline=None, max_examples=200)
    @given(st.lists(st.text("ab🦊", min_size=1, max_size=9), min_size=1), st.integers(1, 60))
    def test_wrapping_loses_no_word(self, words: list[str], size: int) -> None:
        lines = wrapped(" ".join(words), size)
        assert " ".join(lines).split(" ") == words
        assert all(len(line.encode()) <= size or " " not in line for line in lines)
