"""Worker threads for bulk bytes, and the intake that feeds them from the reactor.

The reactor only hands bytes over and hears how it went: writing, hashing and syncing happen in a
thread of the crew. One stream is worked on by one thread at a time, so that what is behind it
(a `Sink`) needs no locks; a stream that has much waiting gets one turn, then queues again behind
the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from daemon.stores.files import plain
from protocols.stores import Kept, Source, StoreError

log = Logger()
_T = TypeVar("_T")
_Out = TypeVar("_Out", covariant=True)


@define(eq=False, repr=False)
class Crew(Service):
    """A few threads; stops when every intake that it serves has ended."""

    SIZE: ClassVar[int] = 4

    reactor: Any
    _pool: ThreadPool = field(init=False)
    _intakes: int = field(default=0, init=False)
    _idle: Deferred[None] | None = field(default=None, init=False)

    def startService(self) -> None:
        super().startService()
        self._pool = ThreadPool(0, self.SIZE, "crew")  # threads come with the first work
        self._pool.start()

    async def _stop(self) -> None:
        if self._intakes:
            self._idle = Deferred()
            await self._idle
        self._pool.stop()

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def work(self, task: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """Run `task` in a thread of the crew."""
        return deferToThreadPool(self.reactor, self._pool, task, *args)

    def begin(self) -> None:
        """An intake has something to lose."""
        self._intakes += 1

    def end(self) -> None:
        """It has ended, one way or the other."""
        self._intakes -= 1
        if not self._intakes and self._idle is not None:
            idle, self._idle = self._idle, None
            idle.callback(None)


class Sink(Protocol[_Out]):
    """The blocking side of an intake, called by one thread at a time; may raise OSError."""

    def write(self, chunks: list[bytes]) -> None: ...

    def commit(self) -> _Out:
        """All of it is durable."""

    def fail(self) -> int:
        """Something was raised: keep what can be kept. The bytes that are durable."""

    def abort(self) -> None:
        """Leave nothing behind."""


@define(eq=False, repr=False)
class QueuedIntake(Generic[Kept]):
    """`protocols.stores.Intake` in front of a Sink; lives in the reactor's thread.

    At most `high` bytes wait for the disk, and one read more: then the source is paused until no
    more than a quarter of it do.
    """

    HIGH: ClassVar[int] = 1 << 20

    sink: Sink[Kept]
    source: Source
    crew: Crew
    high: int = HIGH
    _queue: list[bytes] = field(factory=list, init=False)
    _queued: int = field(default=0, init=False)  # bytes, with those the thread has now
    _begun: bool = field(default=False, init=False)
    _busy: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)
    _over: bool = field(default=False, init=False)
    _aborted: bool = field(default=False, init=False)
    _error: StoreError | None = field(default=None, init=False)
    _committed: Deferred[Kept] | None = field(default=None, init=False)

    def write(self, data: bytes) -> None:
        if self._over or self._aborted or self._error is not None:
            return
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > self.high and not self._paused:
            self._paused = True
            self.source.pauseProducing()
        self._next()

    def commit(self) -> Deferred[Kept]:
        self._committed = Deferred()
        committed = self._committed
        if self._error is not None and self._over:
            self._committed = None
            committed.errback(self._error)
        else:
            self._next()
        return committed

    def abort(self) -> None:
        self._aborted = True
        self._queue.clear()
        self._next()

    def _next(self) -> None:
        """Give the crew whatever is to be done now, unless it is at work on this stream."""
        if self._busy or self._over:
            return
        if self._aborted:
            self._work(self.sink.abort).addBoth(self._end)
        elif self._queue:
            chunks, self._queue = self._queue, []
            self._work(self.sink.write, chunks).addCallbacks(
                lambda _: self._landed(sum(map(len, chunks))), self._failed
            )
        elif self._committed is not None:
            self._work(self.sink.commit).addCallbacks(self._end, self._failed)

    def _work(self, task: Callable[..., _T], *args: Any) -> Deferred[_T]:
        if not self._begun:
            self._begun = True
            self.crew.begin()
        self._busy = True

        def free(result: _T) -> _T:
            self._busy = False
            return result

        return self.crew.work(task, *args).addBoth(free)

    def _landed(self, count: int) -> None:
        self._queued -= count
        if self._paused and self._queued <= self.high // 4:
            self._paused = False
            self.source.resumeProducing()
        self._next()

    def _failed(self, failure: Failure) -> None:
        """The disk refused. Keep what can be kept, then tell whoever waits for us."""
        if isinstance(failure.value, OSError):
            reason = plain(failure.value)
            log.error("storing failed: {error}", error=str(failure.value))
        else:
            reason = "storage failed"
            log.failure("storing failed", failure=failure)
        self._queue.clear()
        self._error = StoreError(reason)
        self._work(self.sink.fail).addCallbacks(self._salvaged, lambda _: self._salvaged(0))

    def _salvaged(self, stored: int) -> None:
        assert self._error is not None
        self._error.stored = stored
        if self._paused:
            self._paused = False
            self.source.resumeProducing()
        self._end(Failure(self._error))

    def _end(self, result: Kept | Failure | None) -> None:
        """Over: a result, a failure or nothing left behind."""
        self._over = True
        committed, self._committed = self._committed, None
        if committed is not None and not self._aborted:
            committed.callback(result)  # type: ignore[arg-type]  # a Failure goes the errback way
        elif isinstance(result, Failure) and not self._aborted:
            self.source.broken(self._error or StoreError("storage failed"))
        elif isinstance(result, Failure):
            log.failure("an aborted stream may have left files behind", failure=result)
        self.crew.end()
