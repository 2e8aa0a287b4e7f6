"""python -m tests.reference: write the pages of docs/reference that are made from the code.

Each page begins with words of its own, down to the line `MADE`; whatever stands below is made from
settings, events, docstrings, commands and the metrics of a daemon, and compared by the tests.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from textwrap import dedent
from typing import Any

import click
from attrs import frozen
from prometheus_client.parser import text_string_to_metric_families

from client.__main__ import cli
from daemon import settings
from daemon.__main__ import main as daemon
from daemon.catalogue import CATALOGUE
from daemon.events import EVENTS
from daemon.settings import Key
from loadtest.__main__ import cli as loadtest
from tests.chaos.__main__ import main as chaos
from tests.fuzz.__main__ import main as fuzz
from tests.process import PATIENCE, Twistd

HOME = Path(__file__).resolve().parents[1]
PAGES = HOME / "docs" / "reference"
MADE = "<!-- what follows is made from the code: python -m tests.reference -->"
RESTART = {"SERVER_IP", "DATA_DIR", "USER", "GROUP", "ENABLED"}  # and ports
PORT_KINDS = ("PORT", "LISTEN")
WIRES = (
    ("Every connection", "connection"),
    ("ingest", "ingest"),
    ("relay, raw", "relay"),
    ("relay over HTTP", "relay_http"),
    ("relay: resumable uploads", "tus"),
    ("chat", "chat"),
    ("chat for IRC clients", "irc"),
    ("chat: texts and names", "rooms"),
    ("handshake", "handshake"),
    ("handshake: formats", "handshake_formats"),
    ("handshake: wrong codes", "guesses"),
    ("echo", "echo"),
    ("HTTP/1.1", "http1"),
)
COMMANDS: Mapping[str, click.Command] = {
    "roundhouse": cli,
    "python -m daemon": daemon,
    "python -m loadtest": loadtest,
    "python -m tests.chaos": chaos,
    "python -m tests.fuzz": fuzz,
}
EACH = (
    "SERVICE_open_connections",
    "SERVICE_connections_total",
    "SERVICE_received_bytes_total",
    "SERVICE_sent_bytes_total",
)
WIDTH = 96  # characters of a line of help
_ALIGNED = re.compile(r"\S {2,}\S|^ *(->|<-) ")


def table(*rows: Iterable[str]) -> Iterator[str]:
    """rows: the heads first."""
    for number, row in enumerate(rows):
        cells = [cell.replace("|", "\\|") for cell in row]
        yield "| " + " | ".join(cells) + " |"
        if number == 0:
            yield "|" + "---|" * len(cells)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


# configuration.md


def configuration() -> Iterator[str]:
    keys = [*settings.keys(CATALOGUE)]
    for section, members in groupby(keys, lambda key: key.section):
        yield f"## `[{section}]`"
        yield ""
        heads = ("key", "default", "value", "meaning", "takes effect")
        yield from table(heads, *map(_key, members))
        yield ""
    yield "## Values"
    yield ""
    for name, meaning in sorted({kind_name(key.kind): kind_text(key.kind) for key in keys}.items()):
        if name != "one of":
            yield f"- **{name}**: {meaning}"


def _key(key: Key) -> tuple[str, ...]:
    effect = "after a restart" if needs_restart(key) else "at once"
    return code(key.name), code(default(key)), _value(key), key.means, effect


def needs_restart(key: Key) -> bool:
    return key.name in RESTART or key.name.endswith(PORT_KINDS)


def default(key: Key) -> str:
    """As it could be written in config.cfg."""
    value, kind = key.default, kind_name(key.kind)
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if kind == "duration":
        days, rest = divmod(value, 86400)
        return "0" if not value else f"{value:g} s" if rest else f"{days:g}d"
    if kind == "size":
        for unit, shift in ("GiB", 30), ("MiB", 20), ("KiB", 10):
            if value and value % (1 << shift) == 0:
                return f"{value >> shift} {unit}"
    return str(value)


def kind_name(kind: Callable[..., Any]) -> str:
    name: str = _bare(kind).__name__.strip("_").replace("_", " ")
    return {"runnable": "command", "endpoints": "endpoint"}.get(name, name)


def kind_text(kind: Callable[..., Any]) -> str:
    """The first paragraph of its docstring."""
    return " ".join((inspect.getdoc(_bare(kind)) or "").partition("\n\n")[0].split())


def _bare(kind: Callable[..., Any]) -> Any:
    return kind.func if isinstance(kind, partial) else kind


def _value(key: Key) -> str:
    name = kind_name(key.kind)
    if not isinstance(key.kind, partial):
        return name
    if name == "one of":
        return ", ".join(map(code, key.kind.args[0]))
    shown = {
        edge: default(Key("", "", key.kind, value, "")) for edge, value in key.kind.keywords.items()
    }
    match shown:
        case {"least": least, "most": most}:
            return f"{name}, {least} to {most}"
        case {"least": least}:
            return f"{name}, at least {least}"
        case {"most": most}:
            return f"{name}, at most {most}"
    return name


# wire.md


def wire() -> Iterator[str]:
    for title, module in WIRES:
        yield f"## {title}"
        yield ""
        yield from specification(inspect.getdoc(import_module(f"protocols.{module}")) or "")
    yield "## admin"
    yield ""
    yield from specification(inspect.getdoc(import_module("daemon.admin")) or "")


@frozen
class Run:
    """Lines of a paragraph that are all indented, or all not."""

    paragraph: int
    indented: bool
    lines: Sequence[str]

    @property
    def aligned(self) -> bool:
        return self.indented and any(map(_ALIGNED.search, self.lines))

    def heads(self, after: Run | None) -> bool:
        below = after is not None and (after.paragraph, after.indented) == (self.paragraph, True)
        return below and len(self.lines) == 1


def specification(text: str) -> Iterator[str]:
    """A docstring as Markdown: a line above what is indented heads it; what is aligned stays so."""
    runs = [
        Run(number, indented, [*lines])
        for number, paragraph in enumerate(_title(text).split("\n\n"))
        if not paragraph.startswith("Source: ")  # of no use to whoever uses it
        for indented, lines in groupby(paragraph.splitlines(), lambda line: line.startswith(" "))
    ]
    following = zip(runs, [*runs[1:], None], strict=True)
    for aligned, some in groupby(following, lambda pair: pair[0].aligned):
        if aligned:
            paragraphs = (dedent("\n".join(run.lines)) for run, _ in some)
            yield from fenced("\n\n".join(paragraphs))
            continue
        for run, after in some:
            prose = (markdown(line.strip()) for line in run.lines)
            yield from (f"### {line}" for line in prose) if run.heads(after) else prose
            yield ""


def _title(text: str) -> str:
    """The heading has its name already."""
    found = re.match(r"[a-z]+(?: over HTTP)?: (.)", text)
    return found[1].upper() + text[found.end() :] if found else text


def markdown(text: str) -> str:
    """Prose, with what Markdown would take for its own escaped, outside of `code`."""
    parts = re.split(r"(``.+?``|`[^`]+`)", text)
    return "".join(part if number % 2 else _escaped(part) for number, part in enumerate(parts))


def _escaped(text: str) -> str:
    text = re.sub(r"([<*\[\]])", r"\\\1", text)
    return re.sub(r"(?:protocols/)?(\w+)\.py", _link, text)


def _link(found: re.Match[str]) -> str:
    """To the part of the page that a module is the source of."""
    title = next((title for title, module in WIRES if module == found[1]), None)
    if title is None:
        return found[0]
    anchor = re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
    return f"[{title}](#{anchor})"


# metrics.md


def metrics() -> Iterator[str]:
    families = [*text_string_to_metric_families(scraped())]
    yield from table(("metric", "type", "labels", "meaning"), *_families(families))


def scraped() -> str:
    """What /metrics of a daemon with all services says, after somebody was there."""
    twistd = Twistd()
    try:
        twistd.start()
        twistd.ask(5000, b"x\n")
        text = ""
        until = time.monotonic() + PATIENCE
        while "outcome=" not in text and time.monotonic() < until:
            head, _, body = twistd.ask(8088, b"GET /metrics HTTP/1.0\r\n\r\n").partition(
                b"\r\n\r\n"
            )
            assert b" 200 " in head
            text = body.decode()
        twistd.stop()
    finally:
        twistd.discard()
    return text


def _families(families: Iterable[Any]) -> Iterator[tuple[str, ...]]:
    """A row for each; those that each service has, once."""
    services = "|".join(spec.name for spec in CATALOGUE)
    each: dict[str, tuple[str, ...]] = {}
    rows = []
    for family in families:
        kind = "info" if family.name.endswith("_info") else family.type
        name = family.name + "_total" * (kind == "counter")
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        own = re.sub(f"^roundhouse_({services})_", "roundhouse_SERVICE_", name)
        is_each = own.endswith(EACH)
        shown = ", ".join(map(code, sorted(labels, reverse=True)))
        row = code(own if is_each else name), kind, shown, family.documentation
        if not is_each:
            rows.append(row)
        elif labels:  # without, nobody has been there yet
            each[own] = row
    yield from (*each.values(), *rows)


# events.md


def events() -> Iterator[str]:
    yield from table(
        ("event", "level", "fields", "meaning"),
        *(
            (code(one.name), one.level or "any", ", ".join(map(code, one.fields)), one.means)
            for one in EVENTS.values()
        ),
    )


# commands.md


def commands() -> Iterator[str]:
    for context in every_command():
        yield f"{'###' if context.parent else '##'} `{context.command_path}`"
        yield ""
        yield from fenced(context.get_help())
    yield "## `./run_app.sh`"
    yield ""
    run = subprocess.run([HOME / "run_app.sh", "-h"], capture_output=True, text=True, check=True)
    yield from fenced(run.stdout)


def every_command() -> Iterator[click.Context]:
    """A context for each, as for its help; a group before what is in it."""
    for name, command in COMMANDS.items():
        yield from _from(command, None, name)


def _from(
    command: click.Command, parent: click.Context | None, name: str
) -> Iterator[click.Context]:
    command = copy(command)
    command._help_option = None  # click keeps what it was called when somebody first asked
    shown = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, parent, name, **shown)
    yield context
    if isinstance(command, click.Group):
        for one in command.list_commands(context):
            below = command.get_command(context, one)
            assert below is not None
            yield from _from(below, context, one)


def fenced(text: str) -> Iterator[str]:
    yield "```text"
    yield from (line.rstrip() for line in text.strip().splitlines())
    yield "```"
    yield ""


MAKERS: Mapping[str, Callable[[], Iterator[str]]] = {
    "configuration": configuration,
    "wire": wire,
    "metrics": metrics,
    "events": events,
    "commands": commands,
}


def page(name: str) -> str:
    """The page as it should be: its own words as they are, the rest made anew."""
    own, found, _ = (PAGES / f"{name}.md").read_text(encoding="utf-8").partition(MADE)
    assert found, f"{name}.md: no line {MADE}"
    made = "\n".join(MAKERS[name]())
    return f"{own}{MADE}\n\n{made.strip()}\n"


def main() -> None:
    for name in MAKERS:
        (PAGES / f"{name}.md").write_text(page(name), encoding="utf-8")


if __name__ == "__main__":
    main()
