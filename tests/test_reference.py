"""docs/reference says what the code does: every key, metric, event and command, none too many."""

from __future__ import annotations

import grp
import pwd
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import skipUnless

import click
from twisted.trial.unittest import SynchronousTestCase

from daemon import admin, settings
from daemon.catalogue import CATALOGUE
from daemon.events import EVENTS
from daemon.roundhouse import EX_CANTCREAT, EX_CONFIG, EX_UNAVAILABLE
from daemon.settings import ConfigError, Key, Settings
from daemon.stores import history, ledger
from daemon.stores.depot import index
from tests import reference
from tests.reference import HOME, MADE, PAGES, kind_name

ANEW = "python -m tests.reference writes it anew"
OTHER = {  # what each kind of value may be instead
    "address": "127.0.0.2",
    "command": "/bin/sh -c true",
    "count": "7",
    "duration": "7 s",
    "endpoint": "tcp:7",
    "file": "elsewhere.log",
    "file prefix": "other",
    "names": "files.example.org",
    "path": "elsewhere",
    "retention": "7",
    "secret": "open-sesame",
    "size": "2 MiB",
    "token": "open-sesame",
    "user": pwd.getpwuid(0).pw_name,
    "group": grp.getgrgid(pwd.getpwuid(0).pw_gid + 1).gr_name,
}


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def rows(text: str) -> Iterator[list[str]]:
    """The cells of the tables, without their heads and without the marks of code."""
    for line in re.findall(r"(?m)^\| (.*) \|$", text):
        cells = [cell.strip(" `").replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)]
        yield cells


def keys() -> dict[tuple[str, str], list[str]]:
    """default, value, meaning and effect of each key, by section and name, as the page has them."""
    found = {}
    for part in page("configuration").split("\n## ")[1:]:
        section = part.splitlines()[0].strip("`[]")
        for name, *rest in rows(part):
            if name != "key":
                found[section, name] = rest
    return found


class PageTests(SynchronousTestCase):
    def test_they_are_as_the_code_makes_them(self) -> None:
        for name in sorted({*reference.MAKERS} - {"metrics"}):
            assert page(name) == reference.page(name), f"{name}.md is old: {ANEW}"

    def test_each_is_in_the_index(self) -> None:
        listed = re.findall(r"\((\w+)\.md\)", page("index"))
        assert listed == [*reference.MAKERS, "files"]  # that one is written by hand


class ConfigurationTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.config = Path(folder.name) / "config.cfg"

    def read(self, *lines: str) -> Settings:
        self.config.write_text("\n".join(lines) + "\n")
        return settings.read(self.config, self.config.parent, CATALOGUE, {})

    def test_it_has_the_keys_that_the_daemon_names_to_who_mistypes_one(self) -> None:
        sections = ["DEFAULT", "daemon", *(spec.name for spec in CATALOGUE), admin.NAME]
        assert {*sections} == {section for section, _ in keys()}
        ingest = {name for section, name in keys() if section == "ingest"}
        for section in sections:
            try:
                self.read(f"[{section}]", "XXXXXXXX = 1")
            except ConfigError as error:
                known = {*error.problems[0].partition("; there are ")[2].split(", ")}
            shown = {name for where, name in keys() if where == section} - {"TOKEN_<name>"}
            assert shown == (known - ingest if section == "DEFAULT" else known), section
            assert section != "DEFAULT" or known - shown == ingest - {"ENABLED", "LISTEN"}

    def test_each_default_can_be_written_as_it_is_shown_and_changes_nothing(self) -> None:
        lines, section = [], ""
        for (where, name), (default, *_) in keys().items():
            if name.endswith(("LISTEN", "<name>")):
                assert default == ""
                continue
            lines += [f"[{where}]"] * (where != section) + [f"{name} = {default}"]
            section = where
        shown, bare = self.read(*lines), self.read("[daemon]")
        assert bare.needing_restart(shown) + bare.changes(shown) == []

    def test_a_change_takes_effect_when_it_says(self) -> None:
        for key in settings.keys(CATALOGUE):
            default, *_, effect = keys()[key.section, key.name]
            with_user = [f"USER = {OTHER['user']}"] if key.name == "GROUP" else []
            before = self.read(f"[{key.section}]", *with_user)
            name = key.name.replace("<name>", "photos")
            after = self.read(f"[{key.section}]", *with_user, f"{name} = {self.other(key)}")
            waits, at_once = before.needing_restart(after), before.changes(after)
            assert (bool(waits), bool(at_once)) == (
                effect == "after a restart",
                effect == "at once",
            ), name
            assert name in " ".join([*waits, *at_once]) or name == "GROUP", default

    def other(self, key: Key) -> str:
        """Another value than the default."""
        match kind_name(key.kind):
            case "flag":
                return "off" if key.default else "on"
            case "one of":
                allowed: tuple[str, ...] = key.kind.args[0]  # type: ignore[attr-defined]
                return next(word for word in allowed if word != key.default)
            case name:
                return OTHER[name]

    def test_kinds_of_values_are_told_below(self) -> None:
        told = {*re.findall(r"(?m)^- \*\*(.+)\*\*: .+\.$", page("configuration"))}
        values = {value.partition(",")[0] for _, value, *_ in keys().values()}
        assert {value for value in values if "`" not in value} <= told
        assert told <= {*OTHER, "flag"}


class MetricsTests(SynchronousTestCase):
    @skipUnless(sys.platform.startswith("linux"), "process_ metrics are of Linux")
    def test_it_has_what_a_daemon_says(self) -> None:
        text = reference.scraped()
        self.patch(reference, "scraped", lambda: text)
        assert page("metrics") == reference.page("metrics"), f"metrics.md is old: {ANEW}"
        said = {*re.findall(r"(?m)^# TYPE (\S+) (?:counter|gauge|histogram)$", text)}
        shown = set[str]()
        for name, kind, *_ in rows(page("metrics")):
            if kind in ("counter", "gauge", "histogram", "info"):
                shown |= {name.replace("SERVICE", spec.name) for spec in CATALOGUE}
        assert shown == said


class EventTests(SynchronousTestCase):
    def test_it_has_those_of_the_catalogue(self) -> None:
        found = {name: rest for name, *rest in rows(page("events")) if "." in name}
        assert {*found} | {"library"} == {*EVENTS}
        for name, (level, fields, means) in found.items():
            assert (level, means) == (EVENTS[name].level, EVENTS[name].means)
            assert tuple(re.findall(r"\w+", fields)) == EVENTS[name].fields


class CommandTests(SynchronousTestCase):
    def test_it_has_each_with_all_its_options(self) -> None:
        parts = dict(re.findall(r"(?s)\n###? `(.+?)`\n\n```text\n(.*?)\n```", page("commands")))
        found = {context.command_path: context.command for context in reference.every_command()}
        assert {*parts} == {*found, "./run_app.sh"}
        for path, command in found.items():
            for option in command.params:
                if isinstance(option, click.Option) and not option.hidden:
                    assert option.opts[0] in parts[path], f"{path}: {option.opts[0]}"


class EnvironmentTests(SynchronousTestCase):
    def test_it_has_every_variable_that_is_read(self) -> None:
        shown = {*re.findall(r"`(ROUNDHOUSE_\w+)`", page("commands").partition(MADE)[0])}
        read = {f"ROUNDHOUSE_{name}" for name in ("CAFILE", "CERT", "KEY", "SERVERNAME")}
        for package in ("client", "daemon"):
            for path in (HOME / package).rglob("*.py"):
                read |= {*re.findall(r"ROUNDHOUSE_[A-Z_]+[A-Z]", path.read_text("utf-8"))}
        ours = {"ROUNDHOUSE_COMPLETE", "ROUNDHOUSE_SOCKETS"}  # set by nobody
        assert shown == read - ours

    def test_it_has_every_status_with_which_the_daemon_ends(self) -> None:
        shown = {int(status) for status, *_ in rows(page("commands")) if status.isdecimal()}
        assert shown == {0, EX_UNAVAILABLE, EX_CANTCREAT, EX_CONFIG}


class WireTests(SynchronousTestCase):
    def test_a_line_above_what_is_indented_heads_it_and_what_is_aligned_stays_so(self) -> None:
        text = """toy: bytes back.

Wire (TCP)
    -> <a>    <- a

    -> b      <- b
What *is* said. See `<x>`, and protocols/echo.py.

Errors
    None, ever.

Source: a dream."""
        assert [*reference.specification(text)] == [
            "Bytes back.",
            "",
            "### Wire (TCP)",
            "",
            "```text",
            "-> <a>    <- a",
            "",
            "-> b      <- b",
            "```",
            "",
            "What \\*is\\* said. See `<x>`, and [echo](#echo).",
            "",
            "### Errors",
            "",
            "None, ever.",
            "",
        ]


class FilesTests(SynchronousTestCase):
    def test_every_table_is_there_with_all_its_columns(self) -> None:
        text = page("files")
        for name, migrations in (
            ("roundhouse.db", ledger.MIGRATIONS),
            ("relay/index.db", index.MIGRATIONS),
            ("chat.db", history.MIGRATIONS),
        ):
            told = text.split(f"### {name}\n")[1].split("\n###")[0]
            found = dict(re.findall(r"(?m)^\| `(\w+)` \| (.*) \|$", told))
            with closing(sqlite3.connect(":memory:")) as database:
                for migration in migrations:
                    database.executescript(migration)
                for (table,) in database.execute(
                    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '*_*'"
                ):
                    said = found.pop(table)
                    for _, column, *_ in database.execute(f"PRAGMA table_info({table})"):
                        assert f"`{column}`" in said, (table, column)
            assert found == {}, name
