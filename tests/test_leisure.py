"""Work that nobody waits for."""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future

import pytest
from twisted.trial.unittest import TestCase

from daemon.stores.leisure import Leisure

LONG = 60.0  # seconds: no test takes so long


class LeisureTests(TestCase):
    def leisure(self, delay: float) -> Leisure:
        leisure = Leisure("test", delay)
        self.addCleanup(leisure.shutdown)
        return leisure

    def test_a_task_is_begun_when_its_time_has_come_and_tells_what_it_returned(self) -> None:
        began = time.monotonic()
        done = self.leisure(0.1).submit(pow, 2, 5)
        assert done.result(5) == 32
        assert time.monotonic() - began >= 0.1

    def test_each_has_its_own_time_so_that_many_wait_no_longer_than_one(self) -> None:
        leisure, began = self.leisure(0.2), time.monotonic()
        for done in [leisure.submit(time.monotonic) for _ in range(20)]:
            assert done.result(5) - began >= 0.2
        assert time.monotonic() - began < 1.0

    def test_what_is_hurried_is_done_at_once_in_its_order_and_no_later_one(self) -> None:
        leisure, order = self.leisure(LONG), list[int]()
        hurried = [leisure.submit(order.append, number) for number in range(3)]
        leisure.hurry()
        later = leisure.submit(order.append, 3)
        for done in hurried:
            done.result(5)
        time.sleep(0.05)
        assert order == [0, 1, 2]
        assert not later.done()
        leisure.hurry()
        later.result(5)

    def test_who_always_hurries_never_waits_again(self) -> None:
        leisure = self.leisure(LONG)
        leisure.hurry(always=True)
        assert leisure.submit(abs, -1).result(5) == 1

    def test_what_it_raises_is_told(self) -> None:
        with pytest.raises(ZeroDivisionError):
            self.leisure(0.0).submit(divmod, 1, 0).result(5)

    def test_a_shutdown_does_at_once_what_is_left(self) -> None:
        leisure = Leisure("test", LONG)
        done: Future[int] = leisure.submit(abs, -1)
        leisure.shutdown()
        assert done.result(0) == 1

    def test_its_thread_stands_back(self) -> None:
        if sys.platform != "linux":
            self.skipTest("threads have a priority of their own on Linux only")

        def priority() -> int:
            return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

        assert self.leisure(0.0).submit(priority).result(5) > priority()
