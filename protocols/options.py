"""What config.cfg may say about a protocol: each option with its kind, its unit and its limits.

A protocol declares its options as one frozen attrs class whose fields are made by `option`; the
field `max_file_size` is the key MAX_FILE_SIZE of the protocol's section. The daemon reads the
text of each key with the option's `kind`, a function from text to value that raises ValueError
with what would be right.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import attrs

_N = TypeVar("_N", int, float)

KIND = "kind"
MEANS = "means"
EACH = "each"

_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12} | {
    unit: 1 << shift
    for shift, names in ((10, "k kib"), (20, "m mib"), (30, "g gib"), (40, "t tib"))
    for unit in names.split()
}
_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_AMOUNT = re.compile(r"\s*([0-9]{1,30}(?:\.[0-9]{1,30})?)\s*([A-Za-z]*)\s*", re.ASCII)


def option(default: Any, kind: Callable[[str], Any], means: str) -> Any:
    """One key of a section; `means` is the line that explains it to an operator."""
    return attrs.field(default=default, metadata={KIND: kind, MEANS: means})


def each(kind: Callable[[str], Any], means: str, of: Callable[[str], Any]) -> Any:
    """A key for each of something: the field `token` is TOKEN_<name>; its value a dict by name.

    of: raises ValueError for what is no name of one.
    """
    return attrs.field(factory=dict, metadata={KIND: kind, MEANS: means, EACH: of})


@attrs.frozen(repr=False)
class Secret:
    """What nobody else may read, in a log or anywhere."""

    text: str

    def __repr__(self) -> str:
        return "(hidden)" if self.text else ""

    __str__ = __repr__


class Unspoken(ValueError):
    """What is wrong with a text that may be a secret, so nobody repeats it."""


def secret(text: str) -> Secret:
    """8 to 256 printable ASCII characters without blanks.

    Raises Unspoken.
    """
    if not re.fullmatch(r"[!-~]{8,256}", text):
        raise Unspoken("a secret has 8 to 256 printable ASCII characters and no blanks")
    return Secret(text)


def names(text: str) -> tuple[str, ...]:
    """Host names in lower case: `files.example.org, files`."""
    found = tuple(name.strip().lower() for name in text.split(",") if name.strip())
    for name in found:
        if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", name):
            raise ValueError(f"{name!r} is not the name of a host")
    return found


def size(text: str, least: int = 0, most: int = 1 << 50) -> int:
    """Bytes: `1024`, `64 KiB`, `1.5 GB`."""
    number, unit = _amount(text, _SIZES, "a number of bytes such as 1024, 64 KiB or 1 GB")
    return _within(round(number * _SIZES[unit]), least, most, "bytes")


def duration(text: str, least: float = 0.0, most: float = 3650 * 86400.0) -> float:
    """Seconds: `30`, `1.5 s`, `10 min`, `7d`."""
    number, unit = _amount(text, _TIMES, "seconds, or a time such as 250 ms, 10 min, 12h or 7d")
    return _within(number * _TIMES[unit], least, most, "seconds")


def count(text: str, least: int = 0, most: int = 1 << 31) -> int:
    """A whole number."""
    if not re.fullmatch(r"[0-9]{1,12}", text.strip(), re.ASCII):
        raise ValueError(f"{text!r} is not a whole number")
    return _within(int(text), least, most, "")


def flag(text: str) -> bool:
    """`on` or `off` (yes/no, true/false, 1/0)."""
    match text.strip().lower():
        case "on" | "yes" | "true" | "1":
            return True
        case "off" | "no" | "false" | "0":
            return False
    raise ValueError(f"{text!r} is neither on nor off")


def choice(*allowed: str) -> Callable[[str], str]:
    """One of `allowed`, in lower case."""
    return partial(_one_of, allowed)


def _one_of(allowed: tuple[str, ...], text: str) -> str:
    if (word := text.strip().lower()) in allowed:
        return word
    raise ValueError(f"{text!r} is not one of: {', '.join(allowed)}")


def file_prefix(text: str) -> str:
    """The beginning of a file name: no folder, nothing hidden, at most 100 bytes of UTF-8."""
    if not text.isprintable() or "/" in text or text.startswith(".") or not text:
        raise ValueError(
            f"{text!r} cannot begin a file name: use letters, digits, - and _"
            " (no / and no leading dot)"
        )
    if len(text.encode()) > 100:
        raise ValueError(f"{text[:20]!r}... is longer than 100 bytes")
    return text


def command(text: str) -> tuple[str, ...]:
    """A program and its arguments, quoted as for a shell; none runs it. Empty: no command."""
    if not text.isprintable():
        raise ValueError(f"{text!r} is not a command: it has a line break or control character")
    try:
        return tuple(shlex.split(text))
    except ValueError as why:
        raise ValueError(f"{text!r} is not a command: {str(why).lower()}") from None


@attrs.frozen
class Retention:
    """How much of something stays: what is younger than `seconds`, the newest `most`; 0: all."""

    seconds: float = 0.0
    most: int = 0

    def __str__(self) -> str:
        return f"{self.seconds:.16g} s" if self.seconds else f"{self.most}"


def retention(text: str) -> Retention:
    """A number of them, or a time with its unit: `1000000`, `30d`; 0: all stay."""
    number, unit = _amount(text, _TIMES, "a number of messages, or a time such as 12h or 30d")
    if unit:
        return Retention(seconds=_within(number * _TIMES[unit], 1.0, 3650 * 86400.0, "seconds"))
    return Retention(most=count(text))


def _amount(text: str, units: dict[str, Any], right: str) -> tuple[float, str]:
    found = _AMOUNT.fullmatch(text)
    if found is None or found[2].lower() not in units:
        raise ValueError(f"{text!r} is not {right}")
    return float(found[1]), found[2].lower()


def _within(value: _N, least: _N, most: _N, unit: str) -> _N:
    if value < least:
        raise ValueError(f"{value:.16g} is too little: at least {least:.16g} {unit}".rstrip())
    if value > most:
        raise ValueError(f"{value:.16g} is too much: at most {most:.16g} {unit}".rstrip())
    return value
