"""The bounds of a Locust run, and whether it kept them. Pure, but for reading `bounds.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs
from attrs import frozen

FILE = Path(__file__).with_name("bounds.toml")
DEFAULT = "default"


@frozen
class Requests:
    """The requests of one kind. p99_ms: None when there were none."""

    name: str
    count: int
    failures: int
    p99_ms: float | None


@frozen
class Bounds:
    """What `bounds.toml` says of a run; None bounds nothing."""

    failures: float = 0.0
    p99_ms: float | None = None
    requests: int = 0
    memory_mib: float | None = None
    descriptors: float | None = None

    @classmethod
    def named(cls, name: str, path: Path = FILE) -> Bounds:
        """Raise ValueError for a name that is not there, or a key that bounds nothing."""
        runs = tomllib.loads(path.read_text(encoding="utf-8"))["locust"]
        if name not in runs:
            raise ValueError(f"no bounds {name!r} in {path.name}; there are: {', '.join(runs)}")
        known = {each.name for each in attrs.fields(cls)}
        if strange := sorted(set(runs[name]) - known):
            raise ValueError(
                f"{path.name}: [locust.{name}] has no {', '.join(strange)};"
                f" there are: {', '.join(sorted(known))}"
            )
        return cls(**runs[name])

    def outgrown(self, memory_mib: float, descriptors: float) -> Iterator[str]:
        """A line for each bound that a daemon missed which grew so much in ten minutes."""
        if self.memory_mib is not None and memory_mib > self.memory_mib:
            yield (
                f"its memory grew by {memory_mib:.2f} MiB in ten minutes,"
                f" at most {self.memory_mib:g} is allowed"
            )
        if self.descriptors is not None and descriptors > self.descriptors:
            yield (
                f"its descriptors grew by {descriptors:.1f} in ten minutes,"
                f" at most {self.descriptors:g} is allowed"
            )

    def missed(self, kinds: Iterable[Requests]) -> Iterator[str]:
        """A line for each bound that a run missed."""
        kinds = list(kinds)
        count = sum(kind.count for kind in kinds)
        failed = sum(kind.failures for kind in kinds)
        if count < self.requests:
            yield f"{count} requests, at least {self.requests} are asked for"
        if failed > self.failures * count:
            yield f"{failed} of {count} requests failed, at most {self.failures:.2%} may"
        for kind in kinds:
            if self.p99_ms is not None and kind.p99_ms is not None and kind.p99_ms > self.p99_ms:
                yield f"{kind.name}: p99 is {kind.p99_ms:g} ms, at most {self.p99_ms:g} is allowed"
