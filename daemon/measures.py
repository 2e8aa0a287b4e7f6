"""What a daemon can say about itself in numbers, read when somebody asks and kept by nobody else.

Whatever has numbers offers `measures()`: each is named as a metric is, without the `roundhouse_`
before it, beginning with the service it belongs to (`ingest_stored_bytes_total`). Names that end
in `_total` only rise; units are seconds and bytes. How long things took is counted by `Durations`,
by the thread that did them.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from threading import Lock
from typing import Protocol, runtime_checkable

from attrs import define, field, frozen

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0)  # seconds


@define(eq=False, repr=False)
class Durations:
    """How often something took how long. Any thread may add to it.

    bounds: seconds, rising; what took longer than the last is counted beyond it.
    """

    bounds: Sequence[float] = BOUNDS
    total: float = field(default=0.0, init=False)  # seconds
    _counts: list[int] = field(init=False)
    _lock: Lock = field(factory=Lock, init=False)

    def __attrs_post_init__(self) -> None:
        self._counts = [0] * (len(self.bounds) + 1)

    def add(self, seconds: float) -> None:
        place = bisect_left(self.bounds, seconds)
        with self._lock:
            self._counts[place] += 1
            self.total += seconds

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add how long what is done within took, also where it failed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(time.perf_counter() - began)

    @property
    def count(self) -> int:
        return sum(self._counts)

    def up_to(self) -> list[int]:
        """How many took no longer than each of the bounds; last: all."""
        with self._lock:
            return [*accumulate(self._counts)]


@frozen
class Measure:
    """One number, or how often something took how long. meaning: a line for its reader."""

    name: str
    meaning: str
    value: float | Durations


@runtime_checkable
class Measured(Protocol):
    """Has numbers to show. Called in the reactor's thread: it must be quick, and never raises."""

    def measures(self) -> Iterable[Measure]: ...
