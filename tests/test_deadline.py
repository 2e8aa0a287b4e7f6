"""The time a request may take to come whole."""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from protocols.deadline import Deadline


class DeadlineTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.awaited = 0
        self.late: list[float] = []
        self.deadline = Deadline(
            self.clock, 10.0, lambda: self.awaited, lambda: self.late.append(self.clock.seconds())
        )

    def sees(self, awaited: int) -> None:
        self.awaited = awaited
        self.deadline.look()

    def test_without_a_request_there_is_no_timer(self) -> None:
        self.sees(0)
        assert self.clock.getDelayedCalls() == []

    def test_more_bytes_of_the_same_give_no_more_time(self) -> None:
        for _ in range(30):
            self.sees(1)
            self.clock.advance(0.5)
        assert self.late == [10.0]

    def test_the_next_one_has_all_of_it_again_and_one_timer_does_for_all(self) -> None:
        for number in range(1, 5):
            self.sees(number)
            assert len(self.clock.getDelayedCalls()) == 1
            self.clock.advance(4)
        assert self.late == []
        self.clock.pump([0.5] * 30)
        assert self.late == [22.0]  # the fourth began at 12

    def test_one_that_came_whole_is_not_late(self) -> None:
        self.sees(1)
        self.clock.advance(9)
        self.sees(0)
        self.clock.advance(30)
        assert self.late == []
        assert self.clock.getDelayedCalls() == []

    def test_what_began_unseen_has_all_of_it(self) -> None:
        self.sees(1)
        self.awaited = 2
        self.clock.advance(10)
        self.clock.advance(9.9)
        assert self.late == []
        self.clock.advance(0.1)
        assert self.late == [20.0]

    def test_an_end_leaves_no_timer(self) -> None:
        self.deadline.end()
        self.sees(1)
        self.deadline.end()
        assert self.clock.getDelayedCalls() == []
