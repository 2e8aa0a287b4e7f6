"""Proof of a folder of landed series: every part there, of its size and sha256, nothing extra.

Reads only, and names what it finds. While a daemon serves the folder, what that run of it has
begun and not finished is in progress, which is no fault; what an earlier run left behind is.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import psutil
from attrs import define, evolve, field, frozen

from daemon.stores.completed import FAILED, PENDING
from daemon.stores.landing.ground import DAMAGED, PARTIAL
from daemon.stores.landing.manifest import SUFFIX, SUMS, Manifest, Piece

EX_NOINPUT = 66
CHUNK = 1 << 20  # bytes read at once
WRITTEN = 0.1  # seconds within which the daemon has written the manifest of a small stream
Advance = Callable[[int], object]


@frozen
class Problem:
    """Something in the folder is not as it was acknowledged. name: the file."""

    name: str
    what: str

    def __str__(self) -> str:
        text = f"{self.name}: {self.what}"
        return text if text.isprintable() else ascii(text)[1:-1]


@frozen
class Proof:
    """What was proven of a folder, and what was not.

    size: bytes in all series. cut: series that their peer did not end. unsummed: series without
    sums, of which only the sizes are proven. in_progress: files of a running daemon.
    """

    folder: Path
    series: int = 0
    parts: int = 0
    size: int = 0
    cut: int = 0
    unsummed: int = 0
    in_progress: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "ok": not self.problems,
            "series": self.series,
            "parts": self.parts,
            "bytes": self.size,
            "cut": self.cut,
            "without_sums": self.unsummed,
            "in_progress": list(self.in_progress),
            "problems": [{"name": one.name, "what": one.what} for one in self.problems],
            "seconds": round(self.seconds, 3),
        }


@frozen
class Found:
    """A folder as it was listed, with the manifests read. since: of the daemon that serves it."""

    folder: Path
    ages: dict[str, float]  # every name: when it was last written, seconds since the epoch
    manifests: dict[str, Manifest]  # the name of the file: what is in it
    unread: tuple[Problem, ...]
    since: float | None

    @property
    def size(self) -> int:
        return sum(manifest.size for manifest in self.manifests.values())

    def strays(self) -> Iterator[Problem]:
        """What no manifest speaks of."""
        known = {one.name for one in self.unread} | self.manifests.keys()
        for name, manifest in self.manifests.items():
            stem = name.removesuffix(SUFFIX)
            known |= {stem + suffix for suffix in (SUMS, PENDING, FAILED)}
            known |= {part.name for part in manifest.parts}
        for name in sorted(self.ages.keys() - known):
            if name.endswith(DAMAGED):
                yield Problem(name, "its sync failed: what is in it is for you to judge")
            elif name.endswith(PARTIAL):
                yield Problem(name, "left by a crash; the next start of the daemon finishes it")
            else:
                yield Problem(name, "no manifest names it")

    def in_progress(self, stray: Problem) -> bool:
        """Whether the running daemon may still be at work on it."""
        young = self.since is not None and self.ages[stray.name] >= self.since
        return young and not stray.name.endswith(DAMAGED)


def look(folder: Path) -> Found:
    """Raises OSError when the folder cannot be read."""
    since = serving_since(folder)
    ages, manifests, unread = dict[str, float](), dict[str, Manifest](), list[Problem]()
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):  # the landing's own: it is no part of any series
                with suppress(FileNotFoundError):
                    ages[entry.name] = entry.stat(follow_symlinks=False).st_mtime
    for name in sorted(ages):
        if name.endswith(SUFFIX):
            try:
                young = since is not None and ages[name] >= since
                manifests[name] = _manifest(folder / name, again=young)
            except FileNotFoundError:  # its series was deleted meanwhile
                del ages[name]
            except OSError as error:
                unread.append(Problem(name, f"cannot be read: {error.strerror}"))
            except (ValueError, OverflowError) as error:
                unread.append(Problem(name, str(error)))
    return Found(folder, ages, manifests, tuple(unread), since)


def _manifest(path: Path, again: bool) -> Manifest:
    """again: the running daemon may have begun it at this moment. Raises what reading it does."""
    try:
        return Manifest.from_json(path.read_bytes())
    except (ValueError, OverflowError):
        if not again:
            raise
    time.sleep(WRITTEN)
    return _manifest(path, again=False)


def serving_since(folder: Path) -> float | None:
    """When the daemon that serves this folder of its DATA_DIR began, if one does."""
    lock = folder.parent / ".landing.lock"
    try:
        pid, since = int(lock.read_text()), lock.stat().st_mtime
        # The lock itself is not tried: a daemon that starts at this moment would be refused.
        return since if psutil.Process(pid).create_time() <= since else None
    except (OSError, ValueError, psutil.Error):
        return None


def prove(found: Found, threads: int, advance: Advance = lambda count: None) -> Proof:
    """Read everything. advance: told of bytes as they are read, in the threads."""
    began = time.monotonic()
    strays = [*found.strays()]
    proof = Proof(
        found.folder,
        series=len(found.manifests),
        parts=sum(len(manifest.parts) for manifest in found.manifests.values()),
        size=found.size,
        cut=sum(not manifest.complete for manifest in found.manifests.values()),
        unsummed=sum(manifest.sha256 is None for manifest in found.manifests.values()),
        in_progress=tuple(one.name for one in strays if found.in_progress(one)),
    )
    problems = [*found.unread, *(one for one in strays if not found.in_progress(one))]
    over = threading.Event()
    jobs = (
        Series(found.folder, name, manifest, advance, over).differences
        for name, manifest in found.manifests.items()
    )
    for some in _in_parallel(jobs, threads, over):
        problems += some
    return evolve(proof, problems=tuple(problems), seconds=time.monotonic() - began)


@define(eq=False)
class Series:
    """One series against its manifest. over: nobody waits for it any more."""

    folder: Path
    name: str
    manifest: Manifest
    advance: Advance
    over: threading.Event
    _whole: Any = field(factory=hashlib.sha256, init=False)

    def differences(self) -> list[Problem]:
        found = [Problem(name, what) for name, what in self._differences()]
        # The oldest series may be deleted at any time, its manifest first or last.
        return found if not found or (self.folder / self.name).exists() else []

    def _differences(self) -> Iterator[tuple[str, str]]:
        parts = self.manifest.parts
        sound = True
        if (size := sum(part.size for part in parts)) != self.manifest.size:
            yield self.name, f"says {self.manifest.size:,} bytes, and {size:,} in its parts"
        for part in parts:
            try:
                size, digest = self._read(part)
            except FileNotFoundError:
                yield part.name, "is missing"
            except OSError as error:
                yield part.name, f"cannot be read: {error.strerror}"
            else:
                if size != part.size:
                    yield part.name, f"holds {size:,} bytes, its manifest says {part.size:,}"
                elif part.sha256 not in (digest, None):
                    yield part.name, f"its sha256 is {digest}, its manifest says {part.sha256}"
                else:
                    continue
            sound = False
        if sound and self.manifest.sha256 not in (self._whole.hexdigest(), None):
            digest, said = self._whole.hexdigest(), self.manifest.sha256
            yield self.name, f"the sha256 of all its parts is {digest}, it says {said}"
        if (sums := self.manifest.sums()) is not None:
            yield from self._sums(sums)

    def _read(self, part: Piece) -> tuple[int, str | None]:
        """Size and sha256 of a part, which is added to the whole; None: its manifest has none."""
        digests = [self._whole] if self.manifest.sha256 is not None else []
        digest = self._whole
        if part.sha256 is not None and (not digests or len(self.manifest.parts) > 1):
            digests.append(digest := hashlib.sha256())
        size, buffer = 0, bytearray(min(CHUNK, part.size + 1))
        view = memoryview(buffer)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(self.folder / part.name, flags)
        with open(descriptor, "rb", buffering=0) as file:
            if not digests:
                size = os.fstat(descriptor).st_size
                self.advance(size)
                return size, None
            while not self.over.is_set() and (count := file.readinto(buffer)):
                size += count
                for one in digests:
                    one.update(view[:count])
                self.advance(count)
        return size, digest.hexdigest()

    def _sums(self, right: bytes) -> Iterator[tuple[str, str]]:
        name = self.name.removesuffix(SUFFIX) + SUMS
        try:
            if (self.folder / name).read_bytes() != right:
                yield name, "differs from the manifest"
        except FileNotFoundError:
            yield name, "is missing"
        except OSError as error:
            yield name, f"cannot be read: {error.strerror}"


def _in_parallel(
    jobs: Iterable[Callable[[], list[Problem]]], threads: int, over: threading.Event
) -> Iterator[list[Problem]]:
    """The results in order; a few jobs more than threads are under way. Sets `over` at the end."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque[Future[list[Problem]]]()
        try:
            for job in jobs:
                waiting.append(pool.submit(job))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            over.set()  # Ctrl-C, or nobody asks any more
            for future in waiting:
                future.cancel()


@click.command(
    short_help="Prove folders of landed series.",
    epilog="""\b
Examples:
  python -m daemon verify data/ingest
  python -m daemon verify /srv/landed /mnt/copy
  python -m daemon verify --json data/ingest | jq '.folders[].problems'
  cd data/ingest && sha256sum --quiet -c *.sha256

\b
Exit status: 0 all of it is proven, 1 something differs, is missing or left over,
2 wrong usage, 66 a folder is not there or cannot be read.""",
)
@click.argument(
    "folders", nargs=-1, required=True, metavar="DIR...", type=click.Path(path_type=Path)
)
@click.option(
    "--threads",
    type=click.IntRange(1, 256),
    default=lambda: os.cpu_count() or 1,
    help="That hash at the same time.  [default: one a core]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(folders: Sequence[Path], threads: int, as_json: bool) -> None:
    """Prove every series in each DIR by its manifest: parts, sizes, sha256, and nothing extra.

    DIR is where ingest lands its streams (DATA_DIR/ingest), or a copy of it. Nothing is changed,
    and the daemon may run meanwhile: what it has not finished yet is in progress, not an error.
    """
    found, missing = list[Found](), list[str]()
    for folder in folders:
        try:
            found.append(look(folder))
        except OSError as error:
            missing.append(f"{folder}: {(error.strerror or str(error)).lower()}")
    if missing:
        for line in missing:
            click.echo(line, err=True)
        raise SystemExit(EX_NOINPUT)
    with _progress(sum(one.size for one in found), quiet=as_json) as advance:
        proofs = [prove(one, threads, advance) for one in found]
    if as_json:
        good = all(not proof.problems for proof in proofs)
        click.echo(json.dumps({"ok": good, "folders": [p.as_json() for p in proofs]}, indent=2))
    else:
        for proof in proofs:
            for problem in proof.problems:
                click.echo(problem)
            click.echo(_summary(proof))
    raise SystemExit(1 if any(proof.problems for proof in proofs) else 0)


def _summary(proof: Proof) -> str:
    said = f"{_count(proof.series, 'series', 'series')}, {_count(proof.parts, 'part')}"
    text = f"{proof.folder}: {said}, {_count(proof.size, 'byte')} in {proof.seconds:.1f} s: "
    if proof.problems:
        text += _count(len(proof.problems), "problem")
    else:
        text += "all proven" if proof.series else "nothing to prove"
    if proof.cut:
        text += f"; {proof.cut:,} of the series were cut by their peer"
    if proof.unsummed:
        text += f"; {proof.unsummed:,} without sums, proven by their sizes alone"
    if proof.in_progress:
        text += f"; {_count(len(proof.in_progress), 'file')} in progress"
    return text


def _count(number: int, noun: str, nouns: str = "") -> str:
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


@contextmanager
def _progress(size: int, quiet: bool) -> Iterator[Advance]:
    """A bar on standard error, where that is a terminal; rich honours NO_COLOR."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console  # slow to import, so only where it is seen
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (BarColumn(), DownloadColumn(binary_units=True), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verify", total=size)
        yield lambda count: bar.advance(task, count)
