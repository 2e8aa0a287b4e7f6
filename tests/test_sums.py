"""Sums that are worked out behind who writes, on real files and in real threads."""

from __future__ import annotations

import errno
import os
from concurrent.futures import Future
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores import crew, sums
from daemon.stores.crew import Hands
from daemon.stores.sums import Stretch, Sums
from tests.process import open_files

DATA = bytes(range(256)) * 40


class SumsCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "followed"
        self.path.write_bytes(DATA)
        self.file = os.open(self.path, os.O_RDWR)
        self.addCleanup(os.close, self.file)
        self.crew = SimpleNamespace(toiling=0)
        self.patch(crew, "CORES", 8)
        self.patch(sums, "READ", 1000)

    def hands(self, size: int = 4) -> Hands:
        crew: Any = self.crew
        hands = Hands(crew, size, "hashing")
        self.addCleanup(hands.shutdown)
        return hands

    def copies(self) -> int:
        """Descriptors of the file that are open beside ours."""
        return [Path(link).name for link in open_files()].count("followed") - 1

    def held_up(self) -> tuple[Event, Event]:
        """Hashing begins when the second one is set; the first one tells that it would."""
        here, go = Event(), Event()
        hashing = Stretch.hash

        def wait(stretch: Stretch, *shas: Any) -> None:
            here.set()
            go.wait(5)
            hashing(stretch, *shas)

        self.patch(Stretch, "hash", wait)
        self.addCleanup(go.set)
        return here, go


class FollowTests(SumsCase):
    def test_what_is_in_a_file_is_hashed_by_other_hands(self) -> None:
        here, go = self.held_up()
        made = Sums(self.hands())
        made.follow(self.file, 0, len(DATA))
        assert here.wait(5)
        go.set()
        assert made.hexdigest() == sha256(DATA).hexdigest()

    def test_without_hands_or_a_core_for_them_it_is_hashed_at_once(self) -> None:
        self.crew.toiling = 9
        for hands in (None, self.hands()):
            made = Sums(hands)
            made.follow(self.file, 0, len(DATA))
            assert self.copies() == 0
            assert made.hexdigest() == sha256(DATA).hexdigest()

    def test_a_part_begins_where_the_last_one_ended(self) -> None:
        told: list[str] = []
        for hands in (None, self.hands()):
            made = Sums(hands)
            for start, end in ((0, 3000), (3000, 3001), (3001, len(DATA))):
                made.follow(self.file, start, end)
                made.cut(told.append)
            assert made.hexdigest() == sha256(DATA).hexdigest()
            assert [*told] == [
                sha256(DATA[start:end]).hexdigest()
                for start, end in ((0, 3000), (3000, 3001), (3001, None))
            ]
            told.clear()

    def test_the_descriptor_may_be_closed_before_its_bytes_are_hashed(self) -> None:
        _, go = self.held_up()
        made, told = Sums(self.hands()), list[str]()
        file = os.open(self.path, os.O_RDONLY)
        made.follow(file, 0, 5000)
        made.follow(file, 5000, len(DATA))
        os.close(file)
        made.cut(told.append)
        assert self.copies() == 1
        go.set()
        assert made.hexdigest() == sha256(DATA).hexdigest()
        assert told == [sha256(DATA).hexdigest()]
        assert self.copies() == 0

    def test_who_lets_go_waits_and_keeps_no_descriptor_and_may_go_on(self) -> None:
        made = Sums(self.hands())
        made.follow(self.file, 0, 5000)
        made.let_go()
        assert self.copies() == 0
        made.follow(self.file, 5000, len(DATA))
        assert made.hexdigest() == sha256(DATA).hexdigest()
        made.let_go()
        assert self.copies() == 0

    def test_who_writes_faster_than_can_be_hashed_waits(self) -> None:
        self.patch(sums, "BEHIND", 1000)
        here, go = self.held_up()
        made, hands = Sums(self.hands()), self.hands()
        made.follow(self.file, 0, 1000)
        assert here.wait(5)
        more: Future[None] = hands.submit(made.follow, self.file, 1000, 2000)
        with pytest.raises(TimeoutError):
            more.result(0.05)
        go.set()
        more.result(5)
        assert made.hexdigest() == sha256(DATA[:2000]).hexdigest()
        made.let_go()

    def test_one_that_never_ends_lets_another_in(self) -> None:
        here, go = self.held_up()
        hands = self.hands(1)
        endless, other = Sums(hands), list[str]()
        endless.follow(self.file, 0, 1000)
        assert here.wait(5)
        begun = hands.submit(other.append, "begun")  # more than one may have seen that one is free
        more = hands.submit(other.append, "done")
        endless.cut(lambda digest: other.append("cut"))
        endless.follow(self.file, 1000, 2000)
        go.set()
        assert more.result(5) is begun.result(5) is None
        endless.wait()
        assert other == ["begun", "done", "cut"]
        assert endless.hexdigest() == sha256(DATA[:2000]).hexdigest()
        endless.let_go()

    def test_where_all_hands_are_busy_nothing_is_left_waiting_for_them(self) -> None:
        here, go = self.held_up()
        hands = self.hands(1)
        first, second = Sums(hands), Sums(hands)
        first.follow(self.file, 0, 1000)
        assert here.wait(5)
        assert not hands.free
        go.set()
        second.follow(self.file, 0, len(DATA))
        assert second.hexdigest() == sha256(DATA).hexdigest()
        first.let_go()

    def test_out_of_descriptors_it_is_hashed_by_who_writes(self) -> None:
        def refuse(descriptor: int) -> int:
            raise OSError(errno.EMFILE, "too many open files")

        made = Sums(self.hands())
        made.follow(self.file, 0, 100)
        made.cut(lambda digest: None)
        self.patch(os, "dup", refuse)
        made.follow(self.file, 100, len(DATA))
        assert made.hexdigest() == sha256(DATA).hexdigest()

    def test_both_sums_are_made_whatever_becomes_of_the_hands(self) -> None:
        """With one thread the second sum finds no hands that are free, and is not waited for."""
        for size in (1, 2):
            made, told = Sums(self.hands(size)), list[str]()
            made.cut(lambda digest: None)
            made.follow(self.file, 0, len(DATA))
            made.cut(told.append)
            assert made.hexdigest() == sha256(DATA).hexdigest()
            assert told == [sha256(DATA).hexdigest()]

    @given(
        st.lists(
            st.tuples(st.integers(0, 2000), st.sampled_from(["follow", "update", "cut", "rest"])),
            max_size=12,
        ),
        st.sampled_from([0, 7, 8, 9]),
    )
    @settings(max_examples=100, deadline=None)
    def test_any_order_of_files_bytes_and_cuts_gives_the_same_sums(
        self, steps: list[tuple[int, str]], toiling: int
    ) -> None:
        self.crew.toiling = toiling
        made, at, began = Sums(self._hands), 0, 0
        told, right = list[str](), list[str]()
        for length, what in steps:
            end = min(at + length, len(DATA))
            if what == "follow":
                made.follow(self.file, at, end)
                at = end
            elif what == "update":
                made.update(DATA[at:end])
                at = end
            elif what == "rest":
                made.let_go()
            else:
                made.cut(told.append)
                right.append(sha256(DATA[began:at]).hexdigest())
                began = at
        assert made.hexdigest() == sha256(DATA[:at]).hexdigest()
        assert told == right
        made.let_go()
        assert self.copies() == 0

    @property
    def _hands(self) -> Hands:
        if not hasattr(self, "_shared"):
            self._shared = self.hands()
        return self._shared


class TroubleTests(SumsCase):
    def test_a_file_that_became_shorter_is_an_error_and_stays_one(self) -> None:
        _, go = self.held_up()
        made, told = Sums(self.hands()), list[str]()
        made.follow(self.file, 0, len(DATA) + 1)
        go.set()
        with pytest.raises(OSError, match="became shorter") as met:
            made.wait()
        assert met.value.errno == errno.EIO
        made.cut(told.append)
        for again in (made.wait, made.hexdigest, partial(made.update, b"x")):
            with pytest.raises(OSError, match="became shorter"):
                again()
        made.let_go()
        assert told == []
        assert self.copies() == 0

    def test_who_hashes_it_at_once_meets_it_at_once(self) -> None:
        with pytest.raises(OSError, match="became shorter"):
            Sums().follow(self.file, 0, len(DATA) + 1)

    def test_trouble_of_the_second_sum_is_no_less_trouble(self) -> None:
        hashing = Stretch.hash

        def fails(stretch: Stretch, *shas: Any) -> None:
            if shas == (made._part,):
                raise OSError(errno.EIO, "no such sector")
            hashing(stretch, *shas)

        made = Sums(self.hands())
        made.cut(lambda digest: None)
        self.patch(Stretch, "hash", fails)
        _, go = self.held_up()
        made.follow(self.file, 0, len(DATA))
        go.set()
        with pytest.raises(OSError, match="no such sector"):
            made.wait()
        made.let_go()

    def test_a_mistake_of_ours_keeps_nobody_waiting(self) -> None:
        def stumble(stretch: Stretch, *shas: Any) -> None:
            raise ZeroDivisionError

        self.patch(Stretch, "hash", stumble)
        _, go = self.held_up()
        made = Sums(self.hands())
        made.follow(self.file, 0, len(DATA))
        go.set()
        with pytest.raises(ZeroDivisionError):
            made.hexdigest()
        made.let_go()
        assert self.copies() == 0
