"""How late the reactor is: one timer, and how long after it was due it came."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from daemon.measures import Durations, Measure


@define(eq=False, repr=False)
class Pulse(Service):
    """Beats every EVERY seconds while it runs. now: seconds, of a clock that nobody sets.

    RECENT: beats whose lags `lag` looks back on, five seconds of them.
    """

    EVERY: ClassVar[float] = 0.25
    RECENT: ClassVar[int] = 20

    reactor: IReactorTime
    now: Callable[[], float] = time.monotonic
    lags: Durations = field(factory=Durations, init=False)
    _recent: deque[float] = field(init=False)
    _due: float = field(default=0.0, init=False)
    _next: IDelayedCall | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self._recent = deque(maxlen=self.RECENT)

    @property
    def lag(self) -> float:
        """The worst of the last seconds, with what the next beat is late already."""
        late = self.now() - self._due if self._next is not None else 0.0
        return max(0.0, late, *self._recent)

    def startService(self) -> None:
        super().startService()
        self._wait()

    def stopService(self) -> None:
        super().stopService()
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def measures(self) -> Iterable[Measure]:
        yield Measure(
            "reactor_lag_seconds", "How late the reactor came to a timer of ours.", self.lags
        )

    def _wait(self) -> None:
        self._due = self.now() + self.EVERY
        self._next = self.reactor.callLater(self.EVERY, self._beat)

    def _beat(self) -> None:
        lag = max(0.0, self.now() - self._due)
        self._recent.append(lag)
        self.lags.add(lag)
        self._wait()
