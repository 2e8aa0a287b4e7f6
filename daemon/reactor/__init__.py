"""The reactor this daemon runs on: uvloop's loop, with native ports behind Twisted's interfaces.

`install` chooses it, or leaves Twisted's own in place. Ports of `listenTCP`, `listenUNIX` and
`adoptStreamPort`, and so of every endpoint string, then serve connections in which the loop calls
the Protocol's own `dataReceived` and the Protocol the loop's own `write` (`stream`, `ports`).
Outgoing connections stay Twisted's own. `lending` works on every reactor.

How these connections differ from Twisted's own transports
    reading     - `dataReceived` is looked up when the connection begins and when
                  `transport.protocol` is set; one that is replaced later is not noticed.
                - A read brings up to 250 KiB, not 64; `bufferSize` does not change that.
                - The peer's FIN is told once, however often reading is resumed.
    writing     - `write` tries to send at once. A push producer is therefore paused when more
                  than `bufferSize` bytes are left over, not when as many were written.
                - A `write` that was kept from before bypasses what `transport.write` has become:
                  it raises RuntimeError once the connection is lost or half-closed. Ask the
                  transport for it, or drop it in connectionLost.
                - A bytearray or memoryview is taken too, and must not be changed afterwards.
                - What is written after loseConnection is dropped, unless a producer is registered.
    closing     - A peer that half-closes gets all that was written before a Protocol without
                  IHalfCloseableProtocol is closed; Twisted drops what was not sent yet.
                - loseConnection waits for a paused push producer to be unregistered; Twisted
                  closes after its next write. loseWriteConnection does not forget the FIN when a
                  pull producer is unregistered.
                - connectionLost is never called from within loseConnection.
                - An exception in connectionMade closes the connection; Twisted leaves it open.
                - The socket is closed just after connectionLost, not before. Only if getHandle
                  was called is it shut down as well, so that copies do not keep it open.
    the socket  - TCP_NODELAY is on. getHandle makes its socket object when it is first called.
                - sendFileDescriptor: only for Protocols that provide IFileDescriptorReceiver;
                  these keep Twisted's own transport.
    logging     - What is logged in `dataReceived` does not carry the connection as log system.
    accepting   - Without descriptors, who waits is refused, and accepting rests for 0.1 s.
    the clock   - `reactor.seconds` is monotonic; Twisted's own follow the wall clock, and so
                  `install` has them do the same.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from attrs import frozen
from twisted.internet.base import ReactorBase
from twisted.internet.main import installReactor

VARIABLE = "ROUNDHOUSE_REACTOR"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@frozen
class Chosen:
    """The reactor in use, and why this one: for one line of the log."""

    name: str
    why: str


def install(environ: Mapping[str, str] = os.environ) -> Chosen:
    """Install the best reactor there is, before anything imports `twisted.internet.reactor`.

    ROUNDHOUSE_REACTOR = epoll (Twisted's default) or uvloop decides. A reactor that is installed
    already (twistd -r epoll) stays. Without uvloop it is Twisted's default.
    """
    if "twisted.internet.reactor" in sys.modules:
        _count_monotonically()
        return Chosen(_installed(), "it was installed before (twistd -r, or an early import)")
    wanted = environ.get(VARIABLE, "")
    if wanted == "epoll":
        return Chosen(_install_default(), f"{VARIABLE} = epoll")
    why = f"{VARIABLE} = uvloop" if wanted == "uvloop" else "the fastest here"
    if wanted not in ("", "uvloop"):
        why += f"; {VARIABLE} = {wanted!r} is neither epoll nor uvloop"
    try:
        from daemon.reactor.uv import UvloopReactor

        reactor = UvloopReactor()
    except Exception as error:  # not built for this platform, or for this Python
        return Chosen(_install_default(), f"no uvloop: {error}")
    installReactor(reactor)
    _keep_memory()
    return Chosen("uvloop", why)


def _install_default() -> str:
    from twisted.internet.default import install as install_default

    install_default()
    _count_monotonically()
    return _installed()


def _count_monotonically() -> None:
    """A clock that is set must not stop timers, or fire them all at once."""
    reactor: Any = sys.modules["twisted.internet.reactor"]
    if getattr(type(reactor), "seconds", None) is ReactorBase.seconds:
        reactor.seconds = time.monotonic


def _installed() -> str:
    name = type(sys.modules["twisted.internet.reactor"]).__name__
    return name.removesuffix("Reactor").lower()


def _keep_memory() -> None:
    """Let glibc keep what a large read needed for the next one.

    By default it gives pieces of that size back to the system each time, and the page faults cost
    more than the bytes: streaming is half as fast.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 4 << 20)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 20)
