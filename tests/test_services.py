"""Services: stopped in order, drained before they go."""

from __future__ import annotations

from typing import ClassVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from daemon.services import Stack


@define(eq=False)
class Slow(Service):
    history: ClassVar[list[str]] = []
    name: str
    done: Deferred[None] = field(factory=Deferred, init=False)

    def stopService(self) -> Deferred[None]:
        self.history.append(self.name)
        return self.done


class StackTests(SynchronousTestCase):
    def test_storage_outlives_the_listener_above_it(self) -> None:
        Slow.history.clear()
        stack, store, listener = Stack(), Slow("store"), Slow("listener")
        stack.addService(store)
        stack.addService(listener)
        stopped = stack.stopService()
        assert Slow.history == ["listener"]
        listener.done.errback(OSError("stuck"))
        assert Slow.history == ["listener", "store"]
        store.done.callback(None)
        assert self.successResultOf(stopped) is None
        assert len(self.flushLoggedErrors(OSError)) == 1
