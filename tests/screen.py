"""A program on a real terminal, of which there is no display: tmux holds it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp

from attrs import define, field

PATIENCE = 10.0  # seconds


def absent(*programs: str) -> str:
    """Why a test that needs `programs` skips, or nothing."""
    missing = [program for program in programs if shutil.which(program) is None]
    return f"needs {' and '.join(missing)} (apt-get install {' '.join(missing)})" if missing else ""


@define
class Screen:
    """`command` in a terminal of 100 columns and 24 rows; end it with `close`."""

    command: Sequence[str]
    environ: Mapping[str, str] = field(factory=dict)
    folder: Path = field(factory=lambda: Path(mkdtemp(prefix="screen-")), init=False)

    def __attrs_post_init__(self) -> None:
        env = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": str(self.folder), **self.environ}
        env.pop("TMUX", None)
        options = ["-f", os.devnull, "new-session", "-d", "-x", "100", "-y", "24"]
        self._tmux(*options, shlex.join(self.command), env=env)

    def types(self, text: str, enter: bool = True) -> None:
        self._tmux("send-keys", "-l", "--", text)
        if enter:
            self.presses("Enter")

    def presses(self, *keys: str) -> None:
        """Enter, Up, Tab, C-d ..."""
        self._tmux("send-keys", *keys)

    @property
    def lines(self) -> list[str]:
        """What is to be seen, from the top."""
        return self._tmux("capture-pane", "-p").splitlines()

    @property
    def painted(self) -> str:
        """The same, with the escape sequences of its colours."""
        return self._tmux("capture-pane", "-p", "-e")

    def shows(self, *words: str) -> str:
        """Wait for a line that holds all of `words`, in this order."""
        until = time.monotonic() + PATIENCE
        while True:
            for line in self.lines:
                rest = line
                for word in words:
                    _, found, rest = rest.partition(word)
                    if not found:
                        break
                else:
                    return line
            if time.monotonic() > until:
                raise AssertionError(f"{words} is not shown:\n" + "\n".join(self.lines))
            time.sleep(0.02)

    def joins(self, *first: str) -> None:
        """It is an IRC client of ana's: in #main, connected by `first` if its command did not."""
        for line in first:
            self.shows("Irssi v")
            self.types(line)
        self.shows("Welcome to Roundhouse, ana")
        self.types("/join #main 10")

    def close(self) -> None:
        subprocess.run([*self._server, "kill-server"], capture_output=True, timeout=PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _server(self) -> list[str]:
        return ["tmux", "-u", "-S", str(self.folder / "tmux")]

    def _tmux(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        command = [*self._server, *words]
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE, env=env, check=True)
        return done.stdout.decode()
