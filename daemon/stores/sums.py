"""sha256 sums of a file, or of a series of them, worked out behind who writes.

The bytes are read back out of the page cache in long stretches: by other hands while there is a
core for them, else by the thread that wrote them. So what was spliced, and never was in this
process, is hashed as well, reading and hashing do not wait for each other at every block, and a
sum is that of what the file holds. Bytes in hand that are few, as those of tiny parts, are hashed
as they are.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from attrs import define, field

from daemon.stores.crew import KIT, READ, Hands

STRETCH = 1 << 20  # bytes from which on it is worth while to begin
BEHIND = 32 << 20  # bytes that may wait to be hashed; then who writes waits


@define(eq=False)
class Stretch:
    """Bytes of a file that are to be hashed."""

    descriptor: int
    start: int
    end: int

    def hash(self, *shas: Any) -> None:
        """Raises OSError."""
        at, block = self.start, KIT.back[:READ]
        while at < self.end:
            count = os.preadv(self.descriptor, [block[: self.end - at]], at)
            if not count:
                raise OSError(errno.EIO, "a file became shorter while it was written")
            for sha in shas:
                sha.update(block[:count])
            at += count


@define(eq=False)
class Cut:
    """A part ends, and its descriptor (-1: none was copied) is not needed any more."""

    descriptor: int
    tell: Callable[[str], object]


@define(eq=False, repr=False)
class Sums:
    """The sum of the whole, and that of each part if it is cut in parts.

    hands: None: everything is done by the thread that calls. That is one at a time.
    """

    hands: Hands | None = None
    _whole: Any = field(factory=hashlib.sha256)
    _part: Any = None  # the first part's is that of the whole until it ends
    _steps: deque[Stretch | Cut] = field(factory=deque, init=False)  # for other hands
    _behind: int = field(default=0, init=False)  # bytes of those, and of the one they are at
    _working: bool = field(default=False, init=False)
    _turn: threading.Condition = field(factory=threading.Condition, init=False)
    _copy: int = field(default=-1, init=False)  # of the descriptor in hand: ours to close
    _broken: Exception | None = field(default=None, init=False)

    def update(self, data: bytes | memoryview) -> None:
        """Bytes in hand. Raises OSError."""
        self.wait()
        for sha in self._shas:
            sha.update(data)

    def follow(self, descriptor: int, start: int, end: int) -> None:
        """Bytes that were written to a file. It may be closed after this. Raises OSError.

        What failed once fails from then on.
        """
        if start == end or self._taken(descriptor, start, end):
            return
        self.wait()
        try:
            Stretch(descriptor, start, end).hash(*self._shas)
        except OSError as error:
            self._broken = error
            raise

    def cut(self, tell: Callable[[str], object]) -> None:
        """A part ends here: `tell` gets its sum before `wait` returns."""
        cut, self._copy = Cut(self._copy, tell), -1
        with self._turn:
            if self._working:
                self._steps.append(cut)
                return
        self._end(cut)

    def hexdigest(self) -> str:
        """Of all so far. Raises OSError."""
        self.wait()
        return str(self._whole.hexdigest())

    def wait(self) -> None:
        """Until everything so far is hashed. Raises OSError."""
        self._wait(0)

    def let_go(self) -> None:
        """Wait, and keep no descriptor."""
        with suppress(Exception):  # it is told again
            self.wait()
        copy, self._copy = self._copy, -1
        if copy >= 0:
            os.close(copy)

    @property
    def _shas(self) -> tuple[Any, ...]:
        return (self._whole,) if self._part is None else (self._whole, self._part)

    def _wait(self, most: int) -> None:
        with self._turn:
            while self._working and (self._behind > most or not most):
                self._turn.wait()
            if self._broken is not None:
                raise self._broken

    def _taken(self, descriptor: int, start: int, end: int) -> bool:
        """Whether other hands take it."""
        if self.hands is None or not (self._working or self.hands.free):
            return False
        if self._copy < 0:
            try:
                self._copy = os.dup(descriptor)
            except OSError:  # out of descriptors
                return False
        with self._turn:
            last = self._steps[-1] if self._steps else None
            if isinstance(last, Stretch) and (last.descriptor, last.end) == (self._copy, start):
                last.end = end
            else:
                self._steps.append(Stretch(self._copy, start, end))
            self._behind += end - start
            begun, self._working = self._working, True
        if not begun:
            self.hands.submit(self._work)
        self._wait(BEHIND)
        return True

    # In a thread of `hands`.

    def _work(self) -> None:
        """Whatever is to be hashed; if others wait, one stretch of it and the rest behind them."""
        while True:
            with self._turn:
                self._turn.notify_all()
                if not self._steps:
                    self._working = False
                    return
                step = self._steps.popleft()
            if isinstance(step, Cut):
                self._end(step)
                continue
            try:
                if self._broken is None:
                    self._hash(step)
            except Exception as error:  # whatever it is: others wait for this thread
                self._broken = error
            with self._turn:
                self._behind -= step.end - step.start
            if self.hands is not None and self.hands.wanted:  # a stream that is fast never ends
                self.hands.submit(self._work)
                return

    def _hash(self, stretch: Stretch) -> None:
        """Both sums at once if there is a core for the second one."""
        assert self.hands is not None
        if self._part is None or not self.hands.free:
            stretch.hash(*self._shas)
            return
        beside = self.hands.submit(stretch.hash, self._part)
        try:
            stretch.hash(self._whole)
        finally:
            mine = beside.cancel()  # it did not begin: all hands are busy
            if not mine:
                beside.result()
        if mine:
            stretch.hash(self._part)

    def _end(self, cut: Cut) -> None:
        if cut.descriptor >= 0:
            os.close(cut.descriptor)
        if self._broken is None:
            cut.tell((self._whole if self._part is None else self._part).hexdigest())
        self._part = hashlib.sha256()
