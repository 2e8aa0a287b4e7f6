"""A restart nobody notices: the process becomes the program that is there now, its ports stay open.

    1. A child of the daemon reads config.cfg with the program on disk: what would not start is
       refused, and the daemon goes on as it is.
    2. It drains as for a stop, for two seconds at most; its sockets go on listening, and who
       connects waits in their backlog. Members of the chat get their FIN at once: no room is split.
    3. Its stores are closed, the reactor has ended: it executes itself again, with the sockets.
    4. The new program takes those it is told to listen on and closes the rest, opens the stores,
       and serves who waits.

The data has one owner at a time, and the process id stays (unless `twistd` puts itself into the
background again), so a supervisor sees nothing but a reload. The sockets are named in
ROUNDHOUSE_SOCKETS, which no child of the daemon gets to see.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Collection, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

from attrs import define, field, frozen

VARIABLE = "ROUNDHOUSE_SOCKETS"
REHEARSAL = 30.0  # seconds


@frozen
class Inherited:
    """A listening socket that outlives its daemon.

    origin: the service and the endpoint string it was made for. mode: of a unix socket that we
    made; None: it is not ours to remove.
    """

    origin: str
    descriptor: int
    mode: int | None = None


@define(eq=False)
class Inheritance:
    """What a predecessor has left, by origin."""

    _left: dict[str, Inherited] = field(factory=dict)

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Inheritance:
        """The listening sockets that `environ` names, and no longer names afterwards."""
        found = cls()
        with suppress(ValueError, TypeError):  # set by hand, and wrongly: as if it were not there
            for origin, descriptor, mode in json.loads(environ.pop(VARIABLE, "[]")):
                if _listens(descriptor):
                    os.set_inheritable(descriptor, False)
                    found._left[origin] = Inherited(origin, descriptor, mode)
        return found

    def keep(self, origins: Collection[str]) -> None:
        """Close all but these: what nobody asks for any more must not be in the way."""
        for origin in self._left.keys() - origins:
            os.close(self._left.pop(origin).descriptor)

    def pop(self, origin: str) -> Inherited | None:
        return self._left.pop(origin, None)


def _listens(descriptor: int) -> bool:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def rehearse(home: Path, config: Path | None) -> str:
    """Why the program on disk would not start; empty: it would. Blocks for as long as that takes.

    home: the folder of service.tac. config: the file to be read, if there is one.
    """
    command = [sys.executable, "-m", "daemon", "check-config"]
    try:
        tried = subprocess.run(
            [*command, str(config)] if config else command,
            cwd=home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=REHEARSAL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not tried.returncode:
        return ""
    said = tried.stderr.split("\n")
    return next(filter(None, reversed(said)), f"status {tried.returncode}")


def become(sockets: Sequence[Inherited], folder: str) -> None:
    """Execute this program anew in this process, with `sockets`. Returns only where that fails.

    folder: where it was started, for paths on its command line.
    """
    for one in sockets:
        os.set_inheritable(one.descriptor, True)
    left = json.dumps([(one.origin, one.descriptor, one.mode) for one in sockets])
    try:
        os.chdir(folder)
        os.execve(
            sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {VARIABLE: left}
        )
    except OSError as error:
        print(f"{sys.executable} cannot be run again: {error.strerror}", file=sys.stderr)
