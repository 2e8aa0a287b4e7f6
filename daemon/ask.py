"""python -m daemon.ask: asks for host, ports and sizes, and writes them into config.cfg.

Every question shows what config.cfg says now, or else the default; an empty answer keeps it, the
end of the input keeps all that is left. Only values change: comments, order and all other keys
stay, and the old file is kept as config.cfg.<time>.bak. Ctrl-C changes nothing.

It needs the standard library alone, so that it runs before anything is installed; it accepts what
daemon/settings.py accepts. Exit status: 0, 1 (config.cfg cannot be written), 78 (what it says, or
what was answered, cannot be used), 130 (Ctrl-C).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from configparser import ConfigParser
from configparser import Error as SyntaxFault
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:b|([kmgt])(b|ib)?)?", re.ASCII)

Sections = Mapping[str, Mapping[str, str]]  # keys in lower case


class Unusable(Exception):
    """config.cfg, or what was answered, cannot be used; the text says what would be right."""


def host(text: str) -> None:
    """An address of this machine to listen on."""
    with contextlib.suppress(ValueError):
        if text.lower() == "localhost" or ip_address(text):
            return
    raise ValueError(
        f"{text!r} is not an IP address such as 127.0.0.1 (this machine only) or 0.0.0.0 (all)"
    )


def port(text: str) -> None:
    """A TCP port."""
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII) or int(text) > 65535:
        raise ValueError(f"{text!r} is not a port from 1 to 65535")


def size(least: int, most: int, right: str) -> Callable[[str], None]:
    """Bytes from `least` to `most`; `right` says so in words."""

    def check(text: str) -> None:
        if found := _SIZE.fullmatch(text.lower()):
            number, letter, rest = found.groups()
            unit = 1000 if rest == "b" else 1024  # kB, but KiB and k
            if least <= round(float(number) * unit ** " kmgt".index(letter or " ")) <= most:
                return
        raise ValueError(f"{text!r} is not {right}, such as 65536, 64 KiB or 1 MB")

    return check


@dataclass(frozen=True)
class Question:
    """One key of config.cfg; `check` raises ValueError, with what would be right."""

    about: str
    section: str
    key: str
    default: str
    check: Callable[[str], None]

    def home(self, sections: Sections) -> str:
        """The section the key stands in; for ingest, as the seed wrote it, perhaps [DEFAULT]."""
        places = ("ingest", "DEFAULT") if self.section == "ingest" else (self.section,)
        holding = (place for place in places if self.key.lower() in sections.get(place, {}))
        return next(holding, self.section)

    def held(self, sections: Sections) -> str:
        """What config.cfg says, or else the default."""
        return sections.get(self.home(sections), {}).get(self.key.lower(), self.default)

    def idle(self, sections: Sections) -> str | None:
        """Why this key says nothing at present, if so."""
        section = sections.get(self.section, {})
        if section.get("enabled", "").lower() in ("no", "off", "false", "0"):
            return f"[{self.section}] is not enabled"
        listen = self.key.removesuffix("PORT") + "LISTEN"
        if self.check is port and listen.lower() in section:
            return f"[{self.section}] {listen} says where it listens"
        return None


buffer_size = size(1 << 10, 16 << 20, "a size from 1 KiB to 16 MiB")
file_size = size(1, 1 << 50, "a size of at least one byte")

QUESTIONS = (
    Question("Host to listen on (IP address)", "DEFAULT", "SERVER_IP", "127.0.0.1", host),
    Question("Port of ingest", "ingest", "PORT", "8080", port),
    Question("Port of relay", "relay", "PORT", "5011", port),
    Question("Port of chat", "chat", "PORT", "60060", port),
    Question("Port of handshake, codes", "handshake", "CODE_PORT", "8000", port),
    Question("Port of handshake, messages", "handshake", "MESSAGE_PORT", "8001", port),
    Question("Port of echo", "echo", "PORT", "5000", port),
    Question("Buffer size of ingest", "ingest", "BUFFER_SIZE", "1 MiB", buffer_size),
    Question("Size limit of one file", "ingest", "MAX_FILE_SIZE", "64 MiB", file_size),
)


def parse(text: str, name: str) -> Sections:
    """Raises Unusable, naming the file and the line."""
    parser = ConfigParser(default_section="", inline_comment_prefixes=("#",), interpolation=None)
    try:
        parser.read_string(text, name)
    except SyntaxFault as fault:
        raise Unusable(" ".join(str(fault).split())) from None
    return {section: dict(parser[section]) for section in parser.sections()}


def ask(sections: Sections, hear: TextIO, tell: TextIO) -> dict[Question, str]:
    """The answer to every question that matters now. Raises Unusable when no input is left."""
    answers: dict[Question, str] = {}
    for question in QUESTIONS:
        if why := question.idle(sections):
            print(f"{question.about}: not asked, {why}", file=tell)
            continue
        offer = question.held(sections)
        try:
            question.check(offer)
        except ValueError as error:
            print(f"{question.about}: {error}", file=tell)
            offer = question.default
        while question not in answers:
            print(f"{question.about} [{offer}]: ", end="", file=tell, flush=True)
            line = hear.readline()
            answer = " ".join(line.split()) or offer
            if not hear.isatty():
                print(answer, file=tell)  # a pipe echoes nothing
            try:
                question.check(answer)
                for other, taken in answers.items():
                    if question.check is other.check is port and taken == answer:
                        raise ValueError(f"{answer} is the {other.about.lower()} already")
            except ValueError as error:
                if not line:
                    raise Unusable(f"{question.about}: {error}") from None
                print(f"  {error}", file=tell)
            else:
                answers[question] = answer
    return answers


def put(text: str, section: str, key: str, value: str) -> str:
    """`text` with one value changed where it stands, or added at the end of its section."""
    lines = text.splitlines(keepends=True)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += end
    heads = [n for n, line in enumerate(lines) if line.startswith("[")]
    head = next((n for n in heads if lines[n].startswith(f"[{section}]")), None)
    if head is None:
        return "".join([*lines, *[end][: len(lines)], f"[{section}]{end}", f"{key} = {value}{end}"])
    after = next((n for n in heads if n > head), len(lines))
    entry = re.compile(
        rf"(\s*{key}\s*[=:][ \t]*)([^\n]*?)([ \t]*)((?:(?<=\s)#.*)?\s*)", re.IGNORECASE
    )
    for n in range(head + 1, after):
        if old := entry.fullmatch(lines[n]):
            start, was, gap, comment = old.groups()
            if comment.strip():  # keeps its column if it can
                value = value.ljust(len(was + gap) - 1) + " "
            lines[n] = start + value + comment
            return "".join(lines)
    last = max(n for n in range(head, after) if not re.match(r"\s*([#;]|$)", lines[n]))
    lines.insert(last + 1, f"{key} = {value}{end}")
    return "".join(lines)


def edit(text: str, name: str, hear: TextIO, tell: TextIO) -> str:
    """The new text of config.cfg: the same where nothing else was answered. Raises Unusable."""
    sections = parse(text, name)
    answers = ask(sections, hear, tell)
    new = text
    for question, answer in answers.items():
        if not text or answer != question.held(sections):
            new = put(new, question.home(sections), question.key, answer)
    written = parse(new, name)
    for question, answer in answers.items():
        if question.held(written) != answer:
            raise Unusable(f"{name}: {question.key} cannot be set here; please edit it by hand")
    return new


def save(path: Path, text: str) -> Path | None:
    """Replace the file whole, for a daemon may be reading it. The copy of the old one, if any."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text, encoding="utf-8", newline="")
    if not path.exists():
        fresh.replace(path)
        return None
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S.%f")
    copy = Path(shutil.copy2(path, path.with_name(f"{path.name}.{stamp}.bak")))
    shutil.copymode(path, fresh)
    with contextlib.suppress(OSError):  # only root gives files away
        os.chown(fresh, path.stat().st_uid, path.stat().st_gid)
    fresh.replace(path)
    return copy


def main() -> int:
    path = Path(os.environ.get("ROUNDHOUSE_CONFIG") or ROOT / "config.cfg").resolve()
    try:
        text = path.read_bytes().decode("utf-8-sig") if path.exists() else ""
        new = edit(text, str(path), sys.stdin, sys.stdout)
        if new == text:
            print(f"{path} says so already.")
        else:
            copy = save(path, new)
            print(f"Wrote {path}" + (f"; the old one is {copy.name}" if copy else ""))
    except KeyboardInterrupt:
        print("\nNothing was changed.", file=sys.stderr)
        return 130
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        print(f"{path}:{line}: not UTF-8; nothing was changed.", file=sys.stderr)
        return 78
    except Unusable as error:
        print(f"{error}. Nothing was changed.", file=sys.stderr)
        return 78
    except OSError as error:
        print(f"{error.filename}: {error.strerror}. Nothing was changed.", file=sys.stderr)
        return 1
    print("A running daemon follows by itself; new addresses and ports need a restart.")
    print("Start: ./run_app.sh -run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
