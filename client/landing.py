"""Where a received file goes: a new file, whole or not at all, or standard output."""

from __future__ import annotations

import errno
import os
import sys
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, BinaryIO, Protocol
from unicodedata import category

from attrs import define, field

from client.files import regular_size
from client.hashing import Beside
from client.net import CHUNK, Failed
from client.terminal import printable

LONGEST = 200  # bytes of a name that the network gave, so that a number and a suffix still fit
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


class Landing(Protocol):
    """Takes the bytes of one file. size, sha256: of what it has, some perhaps from an earlier
    try. lasting: what came stays for a later one. Leaving the `with` without `keep` gives nothing
    a name.
    """

    size: int
    lasting: bool

    @property
    def sha256(self) -> str: ...

    def write(self, data: bytes) -> None: ...

    def restart(self) -> None:
        """Forget what came; raise Failed where that cannot be."""

    def keep(self) -> str | None:
        """Make it durable; the name it got."""

    def __enter__(self) -> Landing: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


@define(eq=False, repr=False)
class NewFile:
    """A file that appears whole under its name, or never.

    spare: where the name is taken at the end, `name-2` and so on will do. replace: what has the
    name gives way. lasting: what came is kept beside it when the transfer breaks.
    """

    target: Path
    spare: bool
    replace: bool
    partial: Path
    lasting: bool
    _file: BinaryIO
    size: int = field(default=0, init=False)
    _hash: Beside = field(factory=Beside, init=False)

    @classmethod
    def at(
        cls, path: str | Path, spare: bool = False, replace: bool = False, digest: str | None = None
    ) -> NewFile:
        """Open a partial file beside `path`. Raise Failed, also where `path` exists.

        digest: the hex sha256 of what shall come. The partial file is called by it, so that a
        later try goes on where an earlier one ended, and never takes another's file for its own.
        """
        target = Path(path)
        if not target.name:
            raise Failed(f"'{printable(str(path))}' is no name for a file")
        if not spare:
            refuse_taken(target, replace)
        if digest is None:
            name, mode = f".roundhouse-{token_hex(6)}.partial", "xb"
        else:
            fitting = os.fsdecode(os.fsencode(target.name)[:LONGEST])
            name, mode = f"{fitting}.{digest[:12]}.part", "a+b"
        partial = target.with_name(name)
        try:
            file: Any = open(partial, mode, opener=_no_link)  # noqa: SIM115
        except OSError as error:
            raise Failed(f"cannot write {printable(str(path))}: {error.strerror}") from None
        landing = cls(target, spare, replace, partial, digest is not None, file)
        try:
            landing._take_up()
        except BaseException:
            file.close()
            raise
        return landing

    def _take_up(self) -> None:
        if not self.lasting:
            return
        try:
            flock(self._file, LOCK_EX | LOCK_NB)
            self._file.seek(0)
            while data := self._file.read(CHUNK):
                self.size += len(data)
                self._hash.update(data)
        except BlockingIOError:
            raise Failed(f"another transfer writes {printable(str(self.partial))}") from None
        except OSError as error:
            raise self._unkept(error) from None

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise self._unkept(error) from None
        self.size += len(data)
        self._hash.update(data)

    def restart(self) -> None:
        try:
            self._file.flush()
            self._file.truncate(0)
            self._file.seek(0)
        except OSError as error:
            raise self._unkept(error) from None
        self._hash.end()
        self.size, self._hash = 0, Beside()

    def keep(self) -> str:
        """Fsync, then give it its name."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            name = self._name()
            self.partial.unlink(missing_ok=True)
            _sync(self.target.parent)
        except OSError as error:
            raise self._unkept(error) from None
        return str(name)

    def _name(self) -> Path:
        if self.replace and not self.spare:
            os.replace(self.partial, self.target)
            return self.target
        for number in range(1, 1000):
            stem = self.target.stem if number == 1 else f"{self.target.stem}-{number}"
            name = self.target.with_name(stem + self.target.suffix)
            try:
                _give(self.partial, name)
                return name
            except FileExistsError:
                if not self.spare:
                    raise
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _unkept(self, error: OSError) -> Failed:
        name = printable(str(self.target))
        return Failed(f"cannot store {name}: {error.strerror}; the server keeps the file")

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hash.end()
        try:
            self._file.close()
        except OSError:  # a full disk: what is still buffered was not to be kept
            pass
        finally:
            if not (self.lasting and self.size):
                self.partial.unlink(missing_ok=True)


def refuse_taken(target: Path, replace: bool = False) -> None:
    """Raise Failed where `target` exists, unless it is a file that may be replaced."""
    if not os.path.lexists(target) or (replace and not target.is_dir()):
        return
    name = printable(str(target))
    if replace:
        raise Failed(f"{name} is a folder")
    raise Failed(f"{name} exists, and nothing is overwritten: name another file")


def named(name: str, instead: str) -> str:
    """A file name made of one that came from the network: no folder, nothing hidden, no option,
    no control or bidi character, at most LONGEST bytes; `instead` where nothing is left of it.
    """
    base = "".join(
        "_" if c == "\\" or category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") else c
        for c in name.rpartition("/")[2]
    ).strip()
    if base[:1] in (".", "-"):
        base = base.lstrip(".-") and "_" + base.lstrip(".-")
    if not base.strip("_ "):
        return instead
    stem, suffix = os.path.splitext(base)
    if len(suffix.encode()) > 20:
        stem, suffix = base, ""
    return stem.encode()[: LONGEST - len(suffix.encode())].decode(errors="ignore") + suffix


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _give(partial: Path, name: Path) -> None:
    """Name a file, never replacing one. Raise FileExistsError."""
    try:
        os.link(partial, name)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        open(name, "xb").close()  # a file system without links: claim the name first
        os.replace(partial, name)


def _sync(folder: Path) -> None:
    """Make a new name durable, where the folder lets itself be opened and synced at all."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a drop box
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@define(eq=False, repr=False)
class Stdout:
    """Standard output as a landing: bytes that were passed on cannot be taken back."""

    lasting: bool = field(default=False, init=False)
    size: int = field(default=0, init=False)
    _hash: Beside = field(factory=Beside, init=False)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        self.size += len(data)
        self._hash.update(data)

    def restart(self) -> None:
        if self.size:
            raise Failed("the file changed on the way, and half of it is already passed on")

    def keep(self) -> None:
        sys.stdout.buffer.flush()
        if regular_size(sys.stdout.buffer) is not None:
            os.fsync(sys.stdout.fileno())

    def __enter__(self) -> Stdout:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hash.end()
