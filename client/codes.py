"""The codes a user was given: one private file, keyed by server and id.

    $XDG_STATE_HOME/roundhouse/codes.json     {"127.0.0.1:8000": {"ana": "5f0c..."}}

0600 in a folder of 0700. Written beside and renamed, under a lock, so that two registrations at
once keep both codes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

from client.net import Address, Failed
from client.terminal import printable

LOOPBACK = {"localhost", "::1"}  # names of 127.0.0.1

Codes = dict[str, dict[str, str]]


def path() -> Path:
    """In $XDG_STATE_HOME, where it is absolute as its standard asks, or ~/.local/state.

    Raise Failed where there is no home folder.
    """
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        home = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()
    except RuntimeError:
        raise Failed("no home folder to keep codes in: set HOME or XDG_STATE_HOME") from None
    return home / "roundhouse" / "codes.json"


def keep(address: Address, ident: str, code: str) -> Path:
    """Remember the code `address` gave to `ident`; where it is kept. Raise Failed."""
    file = path()
    try:
        with _locked(file.parent):
            codes = _read(file)
            codes.setdefault(_key(address), {})[ident] = code
            _write(file, codes)
    except OSError as error:
        raise Failed(f"the code could not be kept in {file}: {error.strerror}") from None
    return file


def find(address: Address, ident: str, any_port: bool = False) -> str:
    """The code of `ident`; any_port: of any server on that host. Raise Failed."""
    file = path()
    try:
        codes = _read(file)
    except OSError as error:
        raise Failed(f"cannot read {file}: {error.strerror}") from None
    host = _key(address).rpartition(":")[0]
    found = {
        clients[ident]
        for server, clients in codes.items()
        if ident in clients
        and (server.rpartition(":")[0] == host if any_port else server == _key(address))
    }
    if len(found) > 1:
        raise Failed(
            f"several servers on {host} gave {printable(ident)} a code: name one with --code-file"
        )
    if not found:
        raise Failed(
            f"no code of {printable(ident)} for {host if any_port else address} in {file}: "
            "run `register`, or give --code-file or ROUNDHOUSE_CODE"
        )
    return found.pop()


def idents() -> list[str]:
    """Whom any server gave a code. Raise Failed or OSError."""
    return sorted({ident for clients in _read(path()).values() for ident in clients})


def _key(address: Address) -> str:
    host = address.host.lower()
    return str(Address("127.0.0.1" if host in LOOPBACK else host, address.port))


def _read(file: Path) -> Codes:
    try:
        codes = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        codes = None
    if not isinstance(codes, dict) or not all(
        isinstance(clients, dict) and all(isinstance(code, str) for code in clients.values())
        for clients in codes.values()
    ):
        raise Failed(f"{file} does not hold codes as this program writes them: move it away")
    return codes


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    descriptor = os.open(folder / "codes.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        flock(descriptor, LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, codes: Codes) -> None:
    fresh = file.with_suffix(".new")
    fresh.unlink(missing_ok=True)  # left by a killed one; the lock makes it ours
    descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as text:
        json.dump(codes, text, indent=1)
        text.flush()
        os.fsync(descriptor)
    fresh.replace(file)
