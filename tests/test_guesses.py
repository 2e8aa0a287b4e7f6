"""Who guesses waits; who knows the code, or comes from elsewhere, does not notice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from protocols.guesses import Guesses, source

HERE, THERE = "192.0.2.1", "2001:db8::2"


class GuessesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.guesses = Guesses(self.clock.seconds)

    def wrong(self, times: int, ident: str = "ana", address: str = HERE) -> None:
        for _ in range(times):
            assert self.guesses.pause(ident, address) == 0
            self.guesses.wrong(ident, address)

    def test_after_five_wrong_codes_an_id_waits_a_minute_at_that_address_alone(self) -> None:
        self.guesses.right("ana", HERE)
        self.wrong(5)
        assert self.guesses.pause("ana", HERE) == 60
        assert self.guesses.pause("ana", THERE) == 0
        self.clock.advance(59.5)
        assert self.guesses.pause("ana", HERE) == 0.5
        self.clock.advance(0.5)
        self.wrong(5)
        assert self.guesses.pause("ana", HERE) == 60

    def test_an_address_waits_too_whatever_id_it_tries(self) -> None:
        told = [self.guesses.wrong(ident, HERE) for ident in "abcde"]
        assert told == [False] * 4 + [True]
        assert self.guesses.pause("f", HERE) == 60
        assert self.guesses.pause("f", THERE) == 0

    def test_who_showed_the_right_code_does_not_suffer_from_others_at_its_address(self) -> None:
        self.guesses.right("bea", HERE)
        self.wrong(5)
        assert self.guesses.pause("bea", HERE) == 0
        assert self.guesses.pause("eve", HERE) == 60
        self.wrong(5, "bea")  # but is held to its own count
        assert self.guesses.pause("bea", HERE) == 60

    def test_a_wrong_code_now_and_then_is_no_guessing(self) -> None:
        for _ in range(50):
            self.wrong(4)
            self.clock.advance(60)

    def test_what_is_remembered_is_bounded_and_the_latest_stays(self) -> None:
        self.patch(Guesses, "MOST", 10)
        for number in range(100):
            self.wrong(1, str(number), str(number))
            self.guesses.right(str(number), str(number))
        self.wrong(5)
        assert self.guesses.pause("ana", HERE) == 60
        for table in (self.guesses._counts, self.guesses._addresses, self.guesses._proven):
            assert len(table) <= 10

    @settings(deadline=None, max_examples=200)
    @given(
        st.lists(st.tuples(st.sampled_from("ab"), st.booleans(), st.integers(0, 40)), max_size=60)
    )
    def test_no_more_than_five_wrong_ones_are_heard_in_any_minute(
        self, acts: list[tuple[str, bool, int]]
    ) -> None:
        clock = Clock()
        guesses = Guesses(clock.seconds)
        heard: list[tuple[str, float]] = []
        for ident, right, seconds in acts:
            clock.advance(seconds)
            if guesses.pause(ident, HERE):
                continue
            if right:
                guesses.right(ident, HERE)
            else:
                guesses.wrong(ident, HERE)
                heard.append((ident, clock.seconds()))
        for ident in "ab":
            times = [at for who, at in heard if who == ident]
            for first, sixth in zip(times, times[5:], strict=False):
                assert sixth - first >= 60

    def test_an_ipv6_network_is_one_address_and_a_mapped_one_is_ipv4(self) -> None:
        for host, counted in (
            ("2001:db8:0:1:a:b:c:d", "2001:db8:0:1::"),
            ("2001:db8:0:2::1", "2001:db8:0:2::"),
            ("fe80::1%eth0", "fe80::"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("192.0.2.1", "192.0.2.1"),
            ("x", "x"),
        ):
            assert source(host) == counted
