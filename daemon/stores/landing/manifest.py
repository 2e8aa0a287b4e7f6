"""What proves a series: `<series>.json` for programs, `<series>.sha256` for `sha256sum -c`.

    {
     "series": "data_20261121070000_abcdefgh",
     "bytes": 100000000,             in all parts
     "sha256": "..." | null,         of them one after the other; null: CHECKSUM = none, or not
                                     everything that came could be kept
     "complete": true,               the peer said that this was all (FIN)
     "outcome": "whole",             or why not: reset, silent, drained, cut, failed, crash, ...
     "peer": "127.0.0.1:54321",
     "opened": "2026-11-21T07:00:00.000Z",    when the first byte came, and when the last part
     "closed": "2026-11-21T07:00:01.500Z",    was closed; UTC
     "parts": [{"name": "..._parte_000001.bin", "bytes": 67108864, "sha256": "..." | null}, ...]
    }
A part is missing in the list if it could not be kept (`.damaged` lies in its place then).
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

from attrs import frozen

SUFFIX = ".json"
SUMS = ".sha256"

_HEX = re.compile(r"[0-9a-f]{64}")


@frozen
class Piece:
    """A part as the manifest has it."""

    name: str
    size: int
    sha256: str | None

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name or "/" in self.name or "\0" in self.name:
            raise ValueError("the name of a part is no file name")
        _check(self.size, self.sha256)


@frozen
class Manifest:
    """One series. opened, closed: seconds since the epoch."""

    series: str
    size: int
    sha256: str | None
    parts: tuple[Piece, ...]
    peer: str
    opened: float
    closed: float
    outcome: str

    @property
    def complete(self) -> bool:
        return self.outcome == "whole"

    def to_json(self) -> bytes:
        """Its text, as json.dumps(..., indent=1) would write it in four times the time.

        Each small stream has one, and while its thread runs Python the reactor does not.
        """
        parts = ",\n".join(
            [
                f'  {{\n   "name": {_text(part.name)},\n   "bytes": {part.size},\n'
                f'   "sha256": {_digest(part.sha256)}\n  }}'
                for part in self.parts
            ]
        )
        listed = f"[\n{parts}\n ]" if parts else "[]"
        return (
            f'{{\n "series": {_text(self.series)},\n "bytes": {self.size},\n'
            f' "sha256": {_digest(self.sha256)},\n'
            f' "complete": {"true" if self.complete else "false"},\n'
            f' "outcome": {_text(self.outcome)},\n "peer": {_text(self.peer)},\n'
            f' "opened": "{_spoken(self.opened)}",\n "closed": "{_spoken(self.closed)}",\n'
            f' "parts": {listed}\n}}\n'
        ).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Raises ValueError, in one line, for what no daemon wrote."""
        try:
            told: Any = json.loads(data)
            parts = tuple(Piece(p["name"], p["bytes"], p["sha256"]) for p in told["parts"])
            _check(told["bytes"], told["sha256"])
            texts = [told[key] for key in ("series", "peer", "outcome")]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError("series, peer and outcome are texts")
            return cls(
                series=told["series"],
                size=told["bytes"],
                sha256=told["sha256"],
                parts=parts,
                peer=told["peer"],
                opened=datetime.fromisoformat(told["opened"]).timestamp(),
                closed=datetime.fromisoformat(told["closed"]).timestamp(),
                outcome=told["outcome"],
            )
        except KeyError as error:
            raise ValueError(f"no manifest: {error} is missing") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"no manifest: {error}") from None

    def sums(self) -> bytes | None:
        """As `sha256sum` prints them; None if no part has one."""
        lines = []
        for part in self.parts:
            if part.sha256 is not None:
                name = part.name.replace("\\", "\\\\")
                lines.append(f"{'' if name == part.name else chr(92)}{part.sha256}  {name}\n")
        return "".join(lines).encode() if lines else None


def _check(size: Any, sha256: Any) -> None:
    if type(size) is not int or size < 0:
        raise ValueError(f"{size!r} is no number of bytes")
    if sha256 is not None and not (isinstance(sha256, str) and _HEX.fullmatch(sha256)):
        raise ValueError("a sha256 is 64 hex digits or null")


_text = json.encoder.encode_basestring  # quoted, and no character of it escaped needlessly


def _digest(sha256: str | None) -> str:
    return "null" if sha256 is None else f'"{sha256}"'


def _spoken(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
