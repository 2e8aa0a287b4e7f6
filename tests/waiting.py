"""For tests on the real reactor: wait until something happened."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet import reactor
from twisted.internet.task import deferLater

PATIENCE = 4.0  # seconds
LOOK = 0.01


async def until(happened: Callable[[], object]) -> None:
    """Raises AssertionError when it does not."""
    for _ in range(round(PATIENCE / LOOK)):
        if happened():
            return
        await deferLater(reactor, LOOK)
    raise AssertionError("it did not happen")
