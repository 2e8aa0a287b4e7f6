"""Work that nobody waits for: done a while later, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from daemon.stores.crew import stand_back

_T = TypeVar("_T")


class Leisure(ThreadPoolExecutor):
    """One thread, which begins with a task `delay` seconds after it came, or when it is hurried.

    So a burst has cores and disk for itself. delay: seconds.
    """

    def __init__(self, name: str, delay: float) -> None:
        super().__init__(1, name, stand_back)
        self._delay = delay
        self._turn = threading.Condition()
        self._given = 0  # tasks
        self._hurried = 0  # so many of these are not to wait

    def submit(self, task: Callable[..., _T], /, *args: Any, **named: Any) -> Future[_T]:
        with self._turn:
            self._given += 1
            number, due = self._given, time.monotonic() + self._delay
        return super().submit(self._in_time, number, due, partial(task, *args, **named))

    def hurry(self, always: bool = False) -> None:
        """What was given so far waits no longer. always: nor does what comes after it."""
        with self._turn:
            self._hurried = self._given
            if always:
                self._delay = 0.0
            self._turn.notify()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.hurry(always=True)
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _in_time(self, number: int, due: float, task: Callable[[], _T]) -> _T:
        with self._turn:
            self._turn.wait_for(lambda: number <= self._hurried, due - time.monotonic())
        return task()
