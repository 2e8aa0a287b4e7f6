"""Worker threads for bulk bytes, and the intake that feeds them from the reactor.

The reactor only hands bytes or a whole socket over and hears how it went: reading, hashing,
writing and syncing happen in threads. There are two kinds of them, so that the end of one stream
never keeps another from being read.

    crew.work(task, ...)            a task that may block as long as the disk does: a commit
    crew.pursue(step, descriptor)   work on a socket that never blocks on it, in steps: each does
                                    one slice and says what the next one waits for (Pause)

A step that has more to do queues behind the others; one whose socket is empty, or full, is parked
until it is ready: ten thousand open connections need no thread each. One stream is worked on by
one thread at a time, so that what is behind it (a `Sink`) needs no locks.
"""

from __future__ import annotations

import errno
import os
import select
import selectors
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from enum import Enum
from queue import SimpleQueue
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from attrs import define, field
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool

from daemon.measures import Measure
from daemon.reactor.lending import Loan, NotLendable, lend
from daemon.stores.files import plain
from daemon.stores.trouble import Trouble
from protocols.stores import Kept, Source, StoreError

log = Logger()
_T = TypeVar("_T")
_Out = TypeVar("_Out", covariant=True)

SLICE = 8 << 20  # bytes of one stream before it is another's turn
BLOCK = 1 << 19  # bytes of one read into memory
READ = 1 << 17  # of what was written: they are in the core's cache when they are hashed
PIPE = 1 << 20  # bytes of one splice
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
NICE = 10  # of the threads that do that, beside the reactor's
SPLICES = hasattr(os, "splice")
REST = 0.002  # seconds a thread waits for its socket before it is parked, if nobody else waits

# Trouble that others may end: a sink that is patient is asked again for a while.
PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE})


def stand_back() -> None:
    """From now on this thread lets others go first where cores are short: the reactor, above all.

    Its turns are microseconds, those of bulk bytes milliseconds. With the same claim to a core they
    would double the time that the slowest of its answers take. Where a thread has no priority of
    its own nothing changes.
    """
    if sys.platform == "linux":
        usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(19, usual + NICE))


class Pause(Enum):
    """What the next step waits for."""

    TURN = 0
    READABLE = selectors.EVENT_READ
    WRITABLE = selectors.EVENT_WRITE


class Kit(threading.local):
    """What a thread works with: memory for what comes, and for what is read back while that is
    still in hand; a pipe once it is asked for."""

    def __init__(self) -> None:
        self.block = memoryview(bytearray(BLOCK))
        self.back = memoryview(bytearray(READ))
        self._pipe: tuple[int, int] | None = None

    def pipe(self) -> tuple[int, int]:
        """Its reading and its writing end, neither of which blocks. Raises OSError."""
        if self._pipe is None:
            import fcntl

            self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            with suppress(OSError, AttributeError):  # over a user's limit: 64 KiB do, too
                fcntl.fcntl(self._pipe[1], fcntl.F_SETPIPE_SZ, PIPE)
        return self._pipe

    def close(self) -> None:
        pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)


KIT = Kit()


@define(eq=False, repr=False)
class Errand(Generic[_T]):
    """Work on a socket in steps. done: fires with what the last step returned or raised.

    step: called in a thread of the crew, by one at a time; a Pause asks for another.
    """

    crew: Crew
    step: Callable[[], _T | Pause]
    descriptor: int
    done: Deferred[_T] = field(factory=Deferred, init=False)
    parked: bool = field(default=False, init=False)
    hurried: bool = field(default=False, init=False)

    def hurry(self) -> None:
        """Take the next step now, whatever it waits for."""
        self.crew.hurry(self)


@define(eq=False, repr=False)
class Crew(Service):
    """A few threads; stops when every intake that it serves has ended."""

    SIZE: ClassVar[int] = 4
    QUIET: ClassVar[float] = 10.0  # seconds in which the same trouble is not logged again

    reactor: Any
    _pool: ThreadPool = field(init=False)
    _steps: SimpleQueue[Errand[Any] | None] = field(factory=SimpleQueue, init=False)
    _lock: threading.Lock = field(factory=threading.Lock, init=False)
    _selector: selectors.BaseSelector = field(init=False)
    _ear: int = field(init=False)
    _bell: int = field(init=False)  # closing it ends the thread that watches `_ear`
    _threads: list[threading.Thread] = field(factory=list, init=False)
    _intakes: int = field(default=0, init=False)
    _idle: list[Deferred[None]] = field(factory=list, init=False)
    trouble: Trouble = field(factory=Trouble, init=False)
    _troubles: dict[str, tuple[float, int]] = field(factory=dict, init=False)
    toiling: int = field(default=0, init=False)  # threads that are at a step

    def startService(self) -> None:
        super().startService()
        self._pool = ThreadPool(0, self.SIZE, "crew")  # threads come with the first work
        self._pool.start()
        self._ear, self._bell = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._ear, selectors.EVENT_READ)

    async def _stop(self) -> None:
        await self.idle()
        self._pool.stop()
        os.close(self._bell)
        for _ in self._threads:
            self._steps.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self._selector.close()
        os.close(self._ear)

    def stopService(self) -> Deferred[None]:
        super().stopService()
        return Deferred.fromCoroutine(self._stop())

    def work(self, task: Callable[..., _T], *args: Any) -> Deferred[_T]:
        """Run `task` in a thread; it may block."""
        return deferToThreadPool(self.reactor, self._pool, task, *args)

    def pursue(self, step: Callable[[], _T | Pause], descriptor: int) -> Errand[_T]:
        """Take `step` after `step` on a socket until one returns something else than a Pause.

        The descriptor has to stay open until `done` fires.
        """
        if not self._threads:
            self._hire()
        errand = Errand(self, step, descriptor)
        self._steps.put(errand)
        return errand

    def hurry(self, errand: Errand[Any]) -> None:
        with self._lock:
            if errand.parked:
                self._wake(errand)
            else:
                errand.hurried = True

    def idle(self) -> Deferred[None]:
        """Fires when no intake is left that has something to lose."""
        idle = Deferred[None]()
        if self._intakes:
            self._idle.append(idle)
        else:
            idle.callback(None)
        return idle

    def measures(self) -> Iterator[Measure]:
        yield Measure("crew_streams", "Streams that threads work on.", self._intakes)
        yield Measure(
            "crew_waiting_steps", "Steps on sockets that wait for a thread.", self._steps.qsize()
        )
        yield Measure(
            "crew_storage_errors_total", "Errors of disks met by threads.", self.trouble.count
        )

    def begin(self) -> None:
        """An intake has something to lose."""
        self._intakes += 1

    def end(self) -> None:
        """It has ended, one way or the other."""
        self._intakes -= 1
        if not self._intakes:
            waiting, self._idle = self._idle, []
            for idle in waiting:
                idle.callback(None)

    def complain(self, error: Exception) -> None:
        """Log what went wrong: at once, but not for each of the streams that a flood brings."""
        self.trouble.note(plain(error) if isinstance(error, OSError) else "storage failed")
        now = self.reactor.seconds()
        kind = f"{type(error).__name__} {getattr(error, 'errno', '')}"
        last, more = self._troubles.get(kind, (-self.QUIET, 0))
        if now - last < self.QUIET:
            self._troubles[kind] = (last, more + 1)
            return
        self._troubles[kind] = (now, 0)
        again = f" ({more} more such since)" if more else ""
        log.error(
            "storing failed: {error}{again}", event="store.failed", error=str(error), again=again
        )

    # The threads of `pursue`.

    def _hire(self) -> None:
        tasks = [self._watch, *[self._toil] * self.SIZE]
        for number, task in enumerate(tasks):
            thread = threading.Thread(target=task, name=f"crew-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _toil(self) -> None:
        stand_back()
        try:
            while (errand := self._steps.get()) is not None:
                with self._lock:
                    self.toiling += 1
                self._step(errand)
                with self._lock:
                    self.toiling -= 1
        finally:
            KIT.close()

    def _step(self, errand: Errand[Any]) -> None:
        errand.hurried = False
        try:
            result = errand.step()
            while result in _SOCKET and self._steps.empty() and _ready(errand.descriptor, result):
                result = errand.step()
            if result in _SOCKET:
                self._park(errand, result)
                return
        except BaseException:
            self.reactor.callFromThread(errand.done.errback, Failure())
            return
        if result is Pause.TURN:
            self._steps.put(errand)
        else:
            self.reactor.callFromThread(errand.done.callback, result)

    def _park(self, errand: Errand[Any], pause: Pause) -> None:
        with self._lock:
            if errand.hurried:
                self._steps.put(errand)
            else:
                self._selector.register(errand.descriptor, pause.value, errand)
                errand.parked = True

    def _wake(self, errand: Errand[Any]) -> None:
        errand.parked = False
        self._selector.unregister(errand.descriptor)
        self._steps.put(errand)

    def _watch(self) -> None:
        """One thread for all that are parked."""
        while True:
            ready = [key.data for key, _ in self._selector.select()]
            with self._lock:
                for errand in ready:
                    if errand is not None and errand.parked:
                        self._wake(errand)
            if None in ready:  # the bell
                return


_SOCKET = (Pause.READABLE, Pause.WRITABLE)


def _ready(descriptor: int, pause: Pause) -> bool:
    """Whether it is within REST seconds, which is cheaper than being parked."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN if pause is Pause.READABLE else select.POLLOUT)
    return bool(poll.poll(REST * 1000))


class Hands(ThreadPoolExecutor):
    """Threads that work beside those of a crew."""

    def __init__(self, crew: Crew, size: int, name: str) -> None:
        super().__init__(size, name, stand_back)
        self._crew, self._size = crew, size
        self._tasks = 0  # given out and not done
        self._lock = threading.Lock()

    @property
    def free(self) -> bool:
        """There is one, and a core for it; else what could be handed over is sooner done by us."""
        return self._tasks < self._size and self._crew.toiling + self._tasks <= CORES

    @property
    def wanted(self) -> bool:
        """A task waits for one that is at another."""
        return self._tasks > self._size

    def submit(self, task: Callable[..., _T], /, *args: Any, **named: Any) -> Future[_T]:
        with self._lock:
            self._tasks += 1
        future = super().submit(task, *args, **named)
        future.add_done_callback(self._done)
        return future

    def _done(self, _: Future[Any]) -> None:
        with self._lock:
            self._tasks -= 1


@define(eq=False, repr=False)
class Lent:
    """The socket of a stream while it is lent, as a sink reads from it in a thread.

    Trouble of the socket is its end (`reset` says so), so that what a sink raises is the disk's.
    size: bytes read so far. most: bytes that may be read in all. over: nothing more comes.
    stopping: enough; what is here already may be read.
    """

    loan: Loan
    most: int | None
    size: int = field(default=0, init=False)
    over: bool = field(default=False, init=False)
    reset: bool = field(default=False, init=False)
    stopping: bool = field(default=False, init=False)

    def room(self, length: int) -> int:
        """Of `length` bytes, how many may still be read."""
        return length if self.most is None else min(length, self.most - self.size)

    def read(self, length: int = BLOCK) -> memoryview:
        """Some bytes, in the block of this thread's Kit; none: it is over.

        Raises BlockingIOError when nothing is here.
        """
        block = KIT.block[: self.room(min(length, BLOCK))]
        return block[: self._took(self.loan.socket.recv_into, block)]

    def splice(self, pipe: int, length: int) -> int:
        """Move some bytes into a pipe; 0: it is over. Raises BlockingIOError as `read` does."""
        return self._took(_splice, self.loan.socket.fileno(), pipe, self.room(length))

    def _took(self, take: Callable[..., int], *args: Any) -> int:
        if self.over:
            return 0
        try:
            count = take(*args) if self.most is None or self.size < self.most else 0
        except BlockingIOError:
            raise
        except OSError:
            self.reset, count = True, 0
        self.size += count
        self.over = not count
        return count


def _splice(source: int, pipe: int, length: int) -> int:
    return os.splice(source, pipe, length, flags=os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK)


class Sink(Protocol[_Out]):
    """The blocking side of an intake, called by one thread at a time; may raise OSError.

    Inherit from it: `pull` is there already, for every sink that can `write`. A BlockingIOError
    from it means that the socket is empty, every other OSError that the disk failed.

    PATIENCE: seconds for which trouble that others may end (PASSING) is tried again before it
    fails the stream. A sink that has any keeps what it could not write, and begins with that when
    it is called again.
    """

    PATIENCE: ClassVar[float] = 0.0

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        """Take them all. A memoryview is only good for the call: its memory is used again."""

    def pull(self, lent: Lent, most: int) -> None:
        """Take about `most` bytes from a socket, fewer if it is over or has no more now."""
        until = lent.size + most
        while lent.size < until and (block := lent.read()):
            self.write([block])

    def commit(self) -> _Out:
        """All of it is durable."""

    def fail(self) -> int:
        """Something was raised: keep what can be kept. The bytes that are durable."""

    def abort(self) -> None:
        """Leave nothing behind."""


@define(eq=False, repr=False)
class QueuedIntake(Generic[Kept]):
    """`protocols.stores.Intake` in front of a Sink; lives in the reactor's thread.

    Bytes come by `write`: at most `high` of them wait for the disk, and one read more; then the
    source is paused until no more than a quarter of it do. Or a thread reads them from the lent
    socket, and what waits is in the kernel. ended: called once it is over, however that came.
    """

    HIGH: ClassVar[int] = 1 << 20
    RETRY: ClassVar[float] = 0.5  # seconds

    sink: Sink[Kept]
    source: Source
    crew: Crew
    high: int = HIGH
    ended: Callable[[], object] = lambda: None
    _written: int = field(default=0, init=False)
    _queue: list[bytes] = field(factory=list, init=False)
    _queued: int = field(default=0, init=False)  # bytes, with those the thread has now
    _taking: int = field(default=0, init=False)  # those
    _lent: Lent | None = field(default=None, init=False)
    _errand: Errand[None] | None = field(default=None, init=False)  # on the lent socket
    _begun: bool = field(default=False, init=False)
    _busy: bool = field(default=False, init=False)
    _paused: bool = field(default=False, init=False)
    _since: float | None = field(default=None, init=False)  # when trouble that may pass began
    _over: bool = field(default=False, init=False)
    _aborted: bool = field(default=False, init=False)
    _error: StoreError | None = field(default=None, init=False)
    _committed: Deferred[Kept] | None = field(default=None, init=False)
    _commit: Callable[[], Kept] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._commit = self.sink.commit

    @property
    def size(self) -> int:
        return self._written + (0 if self._lent is None else self._lent.size)

    @property
    def starved(self) -> bool:
        """A lent socket is empty: the crew waits for its peer, not the peer for the crew."""
        return self._errand is not None and self._errand.parked

    def write(self, data: bytes) -> None:
        if self._over or self._aborted or self._error is not None:
            return
        self._queue.append(data)
        self._written += len(data)
        self._queued += len(data)
        if self._queued > self.high:
            self._pause()
        self._next()

    def lend(self, transport: Any, most: int | None = None) -> bool:
        if self._over or self._aborted or self._error or self._lent or self._committed:
            return False
        try:
            self._lent = Lent(lend(transport), most)
        except (NotLendable, OSError):  # no plain socket, or no descriptor left: it is fed
            return False
        self._next()
        return True

    def commit(self, commit: Callable[[], Kept] | None = None) -> Deferred[Kept]:
        """commit: in place of the sink's own, where its end has to be told more."""
        self._commit = commit or self.sink.commit
        self._committed = Deferred()
        committed = self._committed
        if self._error is not None and self._over:
            self._committed = None
            committed.errback(self._error)
        else:
            self.recall()
            self._next()
        return committed

    def abort(self) -> None:
        self._aborted = True
        self._queue.clear()
        self.recall()
        self._next()

    def nudge(self) -> None:
        """Call the sink though nothing came: it has something to do that depends on the time."""
        if self._errand is not None:
            self._errand.hurry()
        elif not (self._busy or self._over or self._aborted):
            self._work(self.sink.write, []).addCallbacks(self._landed, self._failed)

    def recall(self) -> None:
        """The thread shall bring back the socket, after it has read what is here."""
        if self._lent is not None:
            self._lent.stopping = True
            if self._errand is not None:
                self._errand.hurry()

    def _next(self) -> None:
        """Give the crew whatever is to be done now, unless it is at work on this stream."""
        if self._busy or self._over:
            return
        if self._aborted:
            self._return()
            self._work(self.sink.abort).addBoth(self._end)
        elif self._queue or self._since is not None:
            chunks, self._queue = self._queue, []
            self._taking += sum(map(len, chunks))
            self._work(self.sink.write, chunks).addCallbacks(self._landed, self._failed)
        elif self._lent is not None:
            self._begin()
            self._errand = self.crew.pursue(self._pull, self._lent.loan.socket.fileno())
            self._errand.done.addBoth(self._free).addCallbacks(self._pulled, self._failed)
        elif self._committed is not None:
            self._work(self._commit).addCallbacks(self._end, self._failed)

    def _work(self, task: Callable[..., _T], *args: Any) -> Deferred[_T]:
        self._begin()
        return self.crew.work(task, *args).addBoth(self._free)

    def _begin(self) -> None:
        self._busy = True
        if not self._begun:
            self._begun = True
            self.crew.begin()

    def _free(self, result: _T) -> _T:
        self._busy, self._errand = False, None
        return result

    def _pull(self) -> Pause | None:
        """In a thread: a slice of what is in the lent socket."""
        lent = self._lent
        assert lent is not None
        if self._aborted:
            return None
        last = lent.stopping
        pause = Pause.TURN
        try:
            self.sink.pull(lent, SLICE)
        except BlockingIOError:
            pause = Pause.READABLE
        return None if last or lent.over else pause

    def _pulled(self, _: None) -> None:
        self._relieved()
        self._return()
        self._next()

    def _return(self) -> None:
        """The reactor has the socket again, and the source is told before anything else."""
        lent, self._lent = self._lent, None
        if lent is not None:
            self._written += lent.size
            lent.loan.give_back(lent.reset)
            self.source.returned()

    def _landed(self, _: None) -> None:
        self._queued -= self._taking
        self._taking = 0
        self._relieved()
        self._next()

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self.source.pauseProducing()

    def _relieved(self) -> None:
        """The disk takes what it is given."""
        self._since = None
        if self._paused and self._queued <= self.high // 4:
            self._resume()

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self.source.resumeProducing()

    def _failed(self, failure: Failure) -> None:
        """The disk refused. Try again if that may help, else keep what can be kept."""
        error = failure.value
        if isinstance(error, OSError):
            self.crew.complain(error)
            if error.errno in PASSING and self._waits() and not self._aborted:
                return
            reason = plain(error)
        else:
            reason = "storage failed"
            log.failure("storing failed", event="store.broken", failure=failure)
        self._queue.clear()
        self._error = StoreError(reason)
        self._work(self.sink.fail).addCallbacks(self._salvaged, lambda _: self._salvaged(0))

    def _waits(self) -> bool:
        """Whether there is patience left; if so it will be tried again."""
        now = self.crew.reactor.seconds()
        since = now if self._since is None else self._since
        if now - since >= self.sink.PATIENCE:
            return False
        self._since = since
        self._pause()
        self._busy = True
        self.crew.reactor.callLater(self.RETRY, self._again)
        return True

    def _again(self) -> None:
        self._busy = False
        self._next()

    def _salvaged(self, stored: int) -> None:
        assert self._error is not None
        self._error.stored = stored
        self._return()
        self._resume()
        self._end(Failure(self._error))

    def _end(self, result: Kept | Failure | None) -> None:
        """Over: a result, a failure or nothing left behind."""
        self._over = True
        self.ended()
        committed, self._committed = self._committed, None
        if committed is not None and not self._aborted:
            committed.callback(result)  # type: ignore[arg-type]  # a Failure goes the errback way
        elif isinstance(result, Failure) and not self._aborted:
            self.source.broken(self._error or StoreError("storage failed"))
        elif isinstance(result, Failure) and self._error is None:
            log.failure(
                "an aborted stream may have left files behind", event="store.left", failure=result
            )
        self.crew.end()
