"""The tutorial and the how-to pages, read as their readers would follow them.

Conventions of a page
    ```console               is run. A line that begins with "$ " is typed, and goes on in lines
                             that begin with "> "; what stands beneath is what comes of it: "..."
                             in a line is any text, a line of it alone any lines. Status 0 is
                             expected; what fails on purpose is shown with `|| echo`, or `$?`.
    ^C                       in its place: Ctrl-C in the other terminal
    ```ini                   is read as a config.cfg is
    <!-- another terminal --> before a block: its last command goes on, and so does the reader once
                             the lines shown are there
    <!-- the other terminal says --> before a text: it comes there
    <!-- file: PATH -->      the block is the content of PATH
    <!-- needs: PROGRAM -->  where it is not installed, the section ends here
    <!-- quicker: A -> B --> a test types B where a person types A
    <!-- by hand: WHY -->    the block is shown and not run, because
    <!-- by hand from here: WHY -->  so are all commands up to the end of the page
    <!-- sections stand alone -->    each ## of the page is followed by itself, once the daemon is
                             there if one before started it; else all, one after the other

That is done in a copy of the checkout whose .venv is active, on ports of its own. Where a page
does not start a daemon itself, `./run_app.sh -run` serves.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from tempfile import mkdtemp

from attrs import define, evolve, field, frozen

from tests.process import HOME, PORTS, free_ports

DOCS = HOME / "docs"
MORE_PORTS = (2222, 6697, 7007, 8081, 8443, 9090)  # those that pages add to config.cfg
PATIENCE = 20.0  # seconds that one command may take
PARTS = ("client", "daemon", "protocols", "loadtest", "tests", "tac", "deploy", "requirements")
LEFT_OUT = shutil.ignore_patterns("reports", "fuzz", "foreign", "node_modules", "chaos", "*.svg")
SERVED = "Press Ctrl+C to stop."
STARTS = re.compile(r"^\$ (\./run_app\.sh -run|twistd|\S*/twistd)", re.MULTILINE)
_MARK = re.compile(r"<!--\s*([a-z ]+?)\s*(?::\s*(.*?))?\s*-->\s*", re.DOTALL)
_FENCE = re.compile(r"( *)(`{3,})([a-z]*|\{[a-z-]+\}.*)\s*")
_TOLD = {"file", "needs", "quicker", "by hand", "by hand from here"}  # what, or why
ALONE = "sections stand alone"
_KINDS = {"another terminal", "the other terminal says", ALONE, *_TOLD}
# What differs from run to run and nobody would take for a difference.
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\b\d\d:\d\d(:\d\d)?\b"), "<time>"),
    (re.compile(r"\b\d+(\.\d+)? ?(ms|s|seconds?)\b"), "<duration>"),
    (re.compile(r"\b\d+(\.\d+)? [kMG]i?B/s\b"), "<speed>"),
    (re.compile(r"\bpid \d+"), "pid <number>"),
    (re.compile(r"[ \t]+"), " "),
)


class Astray(AssertionError):
    """A page says something that is not so, or not what it must say."""


@frozen
class Command:
    """What is typed (nothing: Ctrl-C) and the lines that are shown beneath."""

    text: str
    shown: tuple[str, ...] = ()


@frozen
class Block:
    """One fence of a page. line: of its first line in the page; marks: kind and what it says."""

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str] = field(factory=dict)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.language == "console" and "by hand" not in self.marks

    @property
    def starts_the_daemon(self) -> bool:
        return self.runs and STARTS.search(self.text) is not None

    @property
    def typed(self) -> str:
        """Its text as a test types it."""
        old, arrow, new = self.marks.get("quicker", "").partition(" -> ")
        if arrow and old not in self.text:
            raise Astray(f"{self}: there is no {old!r} to make quicker")
        return self.text.replace(old, new) if arrow else self.text

    @property
    def commands(self) -> list[Command]:
        found: list[Command] = []
        for line in self.typed.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
            elif line == "^C":
                found.append(Command(""))
            elif not found:
                raise Astray(f"{self}: output without a command")
            elif line[:2].rstrip() == ">" and not found[-1].shown:
                found[-1] = evolve(found[-1], text=f"{found[-1].text}\n{line[2:]}")
            else:
                found[-1] = evolve(found[-1], shown=(*found[-1].shown, line))
        return found


@frozen
class Section:
    """What is followed by itself. opened: where the daemon was started before it."""

    title: str
    blocks: tuple[Block, ...]
    opened: tuple[Block, ...] = ()
    served: bool = True  # by us, before it begins

    @property
    def steps(self) -> tuple[Block, ...]:
        """Its blocks that are not left to people."""
        return tuple(block for block in self.blocks if "by hand" not in block.marks)

    @property
    def is_followed(self) -> bool:
        return any(block.runs for block in self.steps)


@frozen
class Page:
    """A page of docs/."""

    path: Path
    text: str
    sections: tuple[Section, ...]

    @classmethod
    def read(cls, path: Path) -> Page:
        """Raises Astray where it does not keep to the conventions."""
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(DOCS).as_posix() if path.is_relative_to(DOCS) else path.name
        return cls(path, text, tuple(_sections(_parsed(name, text), f"<!-- {ALONE} -->" in text)))

    @property
    def title(self) -> str:
        return self.path.stem


def _parsed(page: str, text: str) -> Iterator[str | Block]:
    """The blocks of a page, and between them the titles of its ## sections."""
    lines = iter(enumerate(text.splitlines(), 1))
    marks: dict[str, str] = {}
    by_hand: dict[str, str] = {}
    for number, line in lines:
        if line.startswith("## "):
            yield line[3:].strip()
        elif line.lstrip().startswith("<!--"):
            while "-->" not in line:
                line += " " + next(lines)[1].strip()
            kind, said = _mark(f"{page}:{number}", line.strip())
            if kind == "by hand from here":
                by_hand = {"by hand": said}
            elif kind != ALONE:
                marks[kind] = said
        elif fence := _FENCE.fullmatch(line):
            inside = [inner for _, inner in takewhile(lambda it: it[1].strip() != fence[2], lines)]
            content = "".join(f"{inner.removeprefix(fence[1])}\n" for inner in inside)
            if not fence[3].startswith("{"):  # else it is for Sphinx
                marks = marks if fence[3] == "ini" else marks | by_hand
                yield Block(page, number, fence[3], content, marks)
            marks = {}
        elif marks and line.strip():
            raise Astray(f"{page}:{number}: a mark stands right before its block")


def _mark(where: str, line: str) -> tuple[str, str]:
    mark = _MARK.fullmatch(line)
    if mark is None or mark[1] not in _KINDS:
        raise Astray(f"{where}: {line} is no mark, see tests/docs_pages.py")
    if mark[1] in _TOLD and not mark[2]:
        raise Astray(f"{where}: {mark[1]}: what, or why?")
    return mark[1], mark[2] or ""


def _sections(parsed: Iterator[str | Block], alone: bool) -> Iterator[Section]:
    found: list[tuple[str, list[Block]]] = [("all of it", [])]
    for one in parsed:
        if isinstance(one, Block):
            found[-1][1].append(one)
        elif alone:
            found.append((one, []))
    served = not any(block.starts_the_daemon for _, blocks in found for block in blocks)
    opened: list[Block] = []
    for title, blocks in found:
        yield Section(title, tuple(blocks), tuple(opened), served)
        opened += [
            block
            for block in blocks
            if block.starts_the_daemon and "another terminal" in block.marks
        ]


def pages() -> list[Page]:
    return [
        Page.read(path) for path in (DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md")))
    ]


def agree(shown: tuple[str, ...], seen: str) -> bool:
    """Whether a reader who is shown these lines would be content to see `seen`."""
    rows = _rows("\n".join(shown))
    wanted = "".join(
        r"(?:.*\n)*" if row == "..." else ".*".join(map(re.escape, row.split("..."))) + r"\n"
        for row in rows
    )
    return re.fullmatch(wanted, "".join(f"{row}\n" for row in _rows(seen))) is not None


def _rows(text: str) -> list[str]:
    """Lines without what varies, and without empty ones at the ends."""
    for pattern, instead in _VARYING:
        text = pattern.sub(instead, text)
    return [row.strip() for row in text.strip().splitlines()]


@define
class Checkout:
    """A copy of this checkout with a .venv that finds our packages, and ports of its own."""

    root: Path = field(factory=lambda: Path(mkdtemp(prefix="docs-")).resolve() / "roundhouse")
    ports: dict[str, str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        usual = (*PORTS.values(), *MORE_PORTS)
        found = free_ports(len(usual))
        self.ports = {str(a): str(b) for a, b in zip(usual, found, strict=True)}
        self.root.mkdir()
        for path in HOME.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy2(path, self.root)
        for part in PARTS:
            shutil.copytree(HOME / part, self.root / part, ignore=LEFT_OUT)
        config = self.root / "config.cfg"
        config.write_text(self.here(config.read_text(encoding="utf-8")), encoding="utf-8")
        self._make_venv()

    def here(self, text: str) -> str:
        """The ports of a page as those of this checkout."""
        return self._exchange(text, self.ports)

    def there(self, text: str) -> str:
        """And back; also the folder, which no page can know."""
        text = text.replace(str(self.root), "/opt/roundhouse")
        return self._exchange(text, {mine: usual for usual, mine in self.ports.items()})

    @staticmethod
    def _exchange(text: str, ports: dict[str, str]) -> str:
        one = r"(?<![\w.])(" + "|".join(ports) + r")(?!\w)"
        return re.sub(one, lambda found: ports[found[0]], text)

    def environ(self) -> dict[str, str]:
        keep = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("ROUNDHOUSE", "COV", "PYTHON", "PYTEST"))
        }
        return keep | {
            "PATH": f"{self.root / '.venv/bin'}:{keep['PATH']}:/usr/sbin",
            "PYTHONUNBUFFERED": "1",
            "XDG_STATE_HOME": str(self.root.parent / "state"),
            "HOME": str(self.root.parent),
            "LC_ALL": "C.UTF-8",
            "COLUMNS": "100",
        }

    def discard(self) -> None:
        pidfile = self.root / "twistd.pid"
        if pidfile.exists():
            os.kill(int(pidfile.read_text()), signal.SIGKILL)
        shutil.rmtree(self.root.parent, ignore_errors=True)

    def _make_venv(self) -> None:
        """As `run_app.sh -test` leaves it, so that nothing is installed, with our packages."""
        bins = self.root / ".venv/bin"
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        packages = self.root / ".venv/lib" / version / "site-packages"
        bins.mkdir(parents=True)
        packages.mkdir(parents=True)
        real = Path(os.path.realpath(sys.executable))
        (bins.parent / "pyvenv.cfg").write_text(f"home = {real.parent}\n")
        for name in ("python", "python3"):
            (bins / name).symlink_to(real)
        for script in Path(sys.executable).parent.iterdir():  # twistd, locust, ...
            if script.is_symlink() or not script.is_file():
                continue
            head, _, body = script.read_bytes().partition(b"\n")
            if head.startswith(b"#!") and b"python" in head:
                (bins / script.name).write_bytes(b"#!%s\n" % bytes(bins / "python") + body)
                (bins / script.name).chmod(0o755)
            elif script.name == "ruff":
                (bins / script.name).symlink_to(script)
        (bins / "activate").write_text(f"PATH={bins}:$PATH\n")
        ours = [path for path in sys.path if path.endswith("-packages")]
        lines = [str(self.root), *(f"import site; site.addsitedir({path!r})" for path in ours)]
        (packages / "first.pth").write_text("\n".join(lines) + "\n")
        (bins.parent / ".root").write_text(f"{self.root}\n")
        for level in ("daemon", "all"):
            asked = ["sh", "-ec", f'. "$0" >&2; recipe {level}', str(self.root / "run_app.sh")]
            done = subprocess.run(asked, capture_output=True, check=True)
            (bins.parent / f".installed-{level}").write_bytes(done.stdout)


@define
class Terminal:
    """bash in a checkout, and what came out of it. script: what it runs; empty: what it is told."""

    checkout: Checkout
    script: str = ""
    process: subprocess.Popen[bytes] = field(init=False)
    _out: bytes = field(default=b"", init=False)

    def __attrs_post_init__(self) -> None:
        self.process = subprocess.Popen(
            ["bash", "--norc", *(["-c", self.script] if self.script else [])],
            cwd=self.checkout.root,
            env=self.checkout.environ(),
            stdin=subprocess.DEVNULL if self.script else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def type(self, command: str) -> tuple[str, int]:
        """What comes of a command: text and exit status."""
        assert self.process.stdin is not None
        self._out = b""
        self.process.stdin.write(
            b"{ %s\n} </dev/null\nprintf '\\n\\0%%d\\0' $?\n" % command.encode()
        )
        self.process.stdin.flush()
        self.read_until(lambda: self._out.endswith(b"\0"))
        text, status, _ = self._out.rsplit(b"\0", 2)
        return self.checkout.there(text.decode(errors="replace")), int(status)

    @property
    def text(self) -> str:
        return self.checkout.there(self._out.decode(errors="replace"))

    def read_until(self, there: Callable[[], bool]) -> None:
        """Raises Astray where that does not come."""
        assert self.process.stdout is not None
        until = time.monotonic() + PATIENCE
        while not there():
            left = max(0.0, until - time.monotonic())
            if not select.select([self.process.stdout], [], [], left)[0]:
                raise Astray(f"no end after {PATIENCE:g} s:\n{self.text}")
            data = os.read(self.process.stdout.fileno(), 1 << 16)
            if not data:
                raise Astray(f"ended too early:\n{self.text}")
            self._out += data

    def interrupt(self) -> tuple[str, int]:
        """Ctrl-C: what it says then, and its exit status."""
        assert self.process.stdout is not None
        os.killpg(self.process.pid, signal.SIGINT)
        self._out = b""
        with suppress(Astray):
            self.read_until(lambda: False)
        return self.text, self.process.wait(PATIENCE)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@define
class Reader:
    """Follows one section, and raises Astray where it leads to something else than is shown."""

    checkout: Checkout = field(factory=Checkout)
    _terminals: list[Terminal] = field(factory=list)

    def follow(self, section: Section) -> str:
        """Why it was not followed to its end; nothing: it was."""
        if section.served:
            self._open("./run_app.sh -run").read_until(self._serves)
        for block in section.opened:
            self._do_elsewhere(block)
        shell = Terminal(self.checkout)
        self._terminals.insert(0, shell)
        for block in section.steps:
            for program in block.marks.get("needs", "").split():
                if not shutil.which(program, path=self.checkout.environ()["PATH"]):
                    return f"{block}: {program} is not installed"
            if "file" in block.marks:
                path = self.checkout.root / block.marks["file"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(self.checkout.here(block.typed), encoding="utf-8")
            elif "another terminal" in block.marks:
                self._do_elsewhere(block)
            elif "the other terminal says" in block.marks:
                self._hear(block, *block.text.splitlines())
            elif block.runs:
                self._do(shell, block)
        return ""

    def discard(self) -> None:
        for terminal in self._terminals:
            terminal.close()
        self.checkout.discard()

    def _open(self, script: str) -> Terminal:
        self._terminals.append(Terminal(self.checkout, script))
        return self._terminals[-1]

    def _serves(self) -> bool:
        return SERVED in self._terminals[-1].text

    def _do_elsewhere(self, block: Block) -> None:
        commands = block.commands
        self._open("\n".join(self.checkout.here(command.text) for command in commands))
        self._hear(block, *commands[-1].shown)

    def _hear(self, block: Block, *shown: str) -> None:
        terminal = self._terminals[-1]
        try:
            terminal.read_until(lambda: agree(("...", *shown, "..."), terminal.text))
        except Astray as error:
            raise Astray(f"{block}: {shown} never came: {error}") from None

    def _do(self, shell: Terminal, block: Block) -> None:
        for command in block.commands:
            if command.text:
                seen, status = shell.type(self.checkout.here(command.text))
            else:
                seen, status = self._terminals[-1].interrupt()
            if status or not agree(command.shown, seen):
                shown = "\n".join(command.shown)
                raise Astray(
                    f"{block}: $ {command.text}\n{seen}\n-- status {status}; shown is\n{shown}"
                )
