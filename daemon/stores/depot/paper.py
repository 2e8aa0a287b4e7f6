"""What ON_COMPLETE is told of a file: JSON beside it, in a thread.

    <32 hex digits>.json    id (the hex digits, which name the file in its box, too), box, name,
                            size, sha256, sent, expires, file (the path of the bytes)
It stays until its file has left the box and the command has ended; the bytes may be gone before.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from daemon.stores import files
from daemon.stores.completed import MANIFEST, PENDING, Completed
from daemon.stores.depot.index import ParcelRow


def write(completed: Completed, folder: Path, row: ParcelRow) -> Path:
    """Durable, with its mark; before the row is. Raises OSError."""
    path = (folder / row.file).with_suffix(MANIFEST)
    told = {
        "id": path.stem,
        "box": row.box,
        "name": row.name,
        "size": row.size,
        "sha256": row.sha256,
        "sent": row.at,
        "expires": row.expires,
        "file": str(folder / row.file),
    }
    with files.opened(str(folder), os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        completed.mark(path.name, descriptor)
        fresh = path.with_suffix(".paper")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with files.opened(str(fresh), flags) as paper:
            files.write_all(paper, json.dumps(told, indent=1).encode() + b"\n")
            files.sync_data(paper)
        fresh.rename(path)
    files.sync_folder(folder)
    return path


def drop(path: Path, anyway: bool = False) -> None:
    """Its file is gone. The command may still have to be run for it, unless `anyway`."""
    with suppress(OSError):
        if anyway:
            path.with_suffix(PENDING).unlink(missing_ok=True)
        if not path.with_suffix(PENDING).exists():
            path.with_suffix(MANIFEST).unlink(missing_ok=True)
