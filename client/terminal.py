"""What reaches the user's eyes: text from strangers made harmless, and progress."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from unicodedata import category

Advance = Callable[[int], object]  # takes each count of bytes that moved

KEPT = "\t\u200c\u200d"  # TAB, and the joiners that scripts and emoji need


def printable(text: str) -> str:
    r"""Control, format (bidi) and line separator characters as escapes: ESC becomes \x1b."""
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode()
        if category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in KEPT
        else c
        for c in text
    )


def shown(data: bytes) -> str:
    """Bytes of the network as one harmless line."""
    return printable(data.decode(errors="replace").rstrip("\r\n"))


def counted(number: int, noun: str) -> str:
    """1,024 bytes; 1 byte."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def columns(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Cells in line, harmless; right: the columns that are numbers."""
    clean = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in clean
    )


@contextmanager
def progress(label: str, size: int | None, quiet: bool, done: int = 0) -> Iterator[Advance]:
    """A bar on standard error, where that is a terminal; yields what takes each count of bytes.

    size: all bytes there will be, None: unknown; done: how many of them are there already.
    """
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console  # slow to import, so only where it is seen
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(printable(label), total=size, completed=done)
        yield lambda count: bar.advance(task, count)
