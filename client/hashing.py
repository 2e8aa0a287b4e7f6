"""A sha256 that is computed beside the sending: both take as long as each other."""

from __future__ import annotations

from hashlib import sha256
from queue import Queue
from threading import Thread
from typing import Any

from attrs import define, field

BESIDE = 64 * 1024  # bytes for which handing them to a thread is worth its while
BEHIND = 8  # pieces that may wait, so that memory stays bounded


@define(eq=False, repr=False)
class Beside:
    """sha256 of pieces, by a thread of its own once a large one comes. Ends with its `with`."""

    _made: Any = field(factory=sha256, init=False)
    _waiting: Queue[bytes] | None = field(default=None, init=False)
    _thread: Thread | None = field(default=None, init=False)

    def update(self, piece: bytes) -> None:
        """Add a piece, which nobody changes any more; waits where the thread is far behind."""
        if self._waiting is None and len(piece) < BESIDE:
            self._made.update(piece)
            return
        if self._waiting is None:
            self._waiting = Queue(BEHIND)
            self._thread = Thread(target=self._work, args=(self._waiting,), daemon=True)
            self._thread.start()
        if piece:
            self._waiting.put(piece)

    def hexdigest(self) -> str:
        """Of all pieces; there are no more."""
        self.end()
        digest: str = self._made.hexdigest()
        return digest

    def end(self) -> None:
        if self._waiting is not None and self._thread is not None:
            self._waiting.put(b"")
            self._thread.join()
            self._waiting = self._thread = None

    def _work(self, waiting: Queue[bytes]) -> None:
        while piece := waiting.get():
            self._made.update(piece)

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()
