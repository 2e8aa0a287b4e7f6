"""Programs made of the C and Go sources beside this package, kept in a cache outside the tree.

The name of a program holds a digest of its source, the headers beside it, its compiler and its
flags, so what is found there is what would be built.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp

from attrs import field, frozen

SOURCES = Path(__file__).resolve().parents[1]
FLAGS = ("-O2", "-Wall")
PATIENCE = 300.0  # seconds for a build; Go's first one compiles its library


class Missing(Exception):
    """Something that is needed is not installed; says what would help."""


class Unbuilt(Exception):
    """A compiler does not take a source."""


def cache(environ: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME/roundhouse, or a fresh temporary folder where that cannot be written."""
    home = environ.get("XDG_CACHE_HOME")
    folder = (Path(home) if home else Path.home() / ".cache") / "roundhouse"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(mkdtemp(prefix="roundhouse-"))


@frozen
class Workshop:
    """Builds into `folder`, each thing once."""

    folder: Path
    environ: Mapping[str, str] = field(factory=lambda: dict(os.environ))

    def tool(self, *names: str, package: str) -> str:
        """The path of the first of `names` that is installed. Raise Missing."""
        for name in names:
            if found := shutil.which(name, path=self.environ.get("PATH")):
                return found
        raise Missing(f"{' or '.join(names)} is not installed (apt install {package})")

    def c(self, name: str) -> Path:
        """c/<name>.c as a program. Raise Missing or Unbuilt."""
        compiler = self.tool("gcc", "cc", package="gcc libc6-dev")
        return self._build(SOURCES / "c" / f"{name}.c", [compiler, *FLAGS, "-o"])

    def go(self, name: str, c: bool = False) -> Path:
        """go/<name>.go as a program; nothing is downloaded. Raise Missing or Unbuilt.

        c: it binds a C library, so a C compiler is needed, too.
        """
        compiler = self.tool("go", package="golang-go")
        if c:
            self.tool("gcc", "cc", package="gcc libc6-dev")
        quiet = {
            "GOCACHE": str(self.folder / "go"),
            "GOTOOLCHAIN": "local",
            "GOPROXY": "off",
            "GOFLAGS": "",
            "CGO_ENABLED": "1" if c else "0",
        }
        return self._build(SOURCES / "go" / f"{name}.go", [compiler, "build", "-o"], quiet)

    def said(self, *argv: str) -> str:
        """The first line that a tool prints, of its version for example."""
        return self.all_said(*argv).partition("\n")[0].strip()

    def all_said(self, *argv: str) -> str:
        done = subprocess.run(
            argv, env=self.environ, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        return done.stdout or done.stderr

    def _build(
        self, source: Path, command: Sequence[str], environ: Mapping[str, str] | None = None
    ) -> Path:
        compiler = Path(command[0]).resolve()
        made_of = [path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h")))]
        made_of.append(repr((command, compiler.stat().st_mtime_ns)).encode())
        digest = sha256(b"\0".join(made_of)).hexdigest()
        program = self.folder / f"{source.stem}-{source.suffix[1:]}-{digest[:16]}"
        if program.exists():
            return program
        fresh = program.with_suffix(f".{os.getpid()}")
        done = subprocess.run(
            [*command, str(fresh), str(source)],
            env={**self.environ, **(environ or {})},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode:
            raise Unbuilt(f"{' '.join(command)} ... {source.name}:\n{done.stderr.strip()[-2000:]}")
        return fresh.rename(program)  # whole or not there, also while others build the same
