"""What the tutorial and the how-to pages show is what happens."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest

import pytest
from twisted.trial.unittest import SynchronousTestCase

from daemon import settings
from daemon.catalogue import CATALOGUE
from tests.docs_pages import DOCS, Astray, Block, Page, Reader, Section, agree, pages


class PageTests(SynchronousTestCase):
    def test_every_block_is_followed_or_says_why_not(self) -> None:
        for page in pages():
            for section in page.sections:
                for block in section.steps:
                    marked = {"file", "the other terminal says"} & block.marks.keys()
                    assert block.runs or block.language == "ini" or marked, (
                        f"{block}: a test follows console, ini, and what is marked to be a file; "
                        "else say <!-- by hand: why -->"
                    )
                    assert not block.runs or block.commands, f"{block}: nothing is typed"

    def test_every_setting_that_is_shown_is_one(self) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder, "config.cfg")
            for page in pages():
                for section in page.sections:
                    for block in section.steps:
                        if block.language == "ini":
                            path.write_text(block.text, encoding="utf-8")
                            settings.read(path, Path(folder), CATALOGUE, {})

    def test_the_index_names_every_page(self) -> None:
        folder = DOCS / "how-to"
        index = (folder / "index.md").read_text(encoding="utf-8")
        for path in folder.glob("*.md"):
            assert path.name == "index.md" or f"({path.name})" in index, path.name


class AgreementTests(SynchronousTestCase):
    def test_what_is_shown_must_come(self) -> None:
        assert agree(("HOLA",), "HOLA\n")
        assert not agree(("HOLA",), "hola\n")
        assert not agree(("HOLA",), "HOLA\nmore\n")
        assert not agree((), "HOLA\n")
        assert agree((), "\n")

    def test_dots_are_any_text_of_a_line_or_any_lines(self) -> None:
        assert agree(("OK 5 ... 1",), "OK 5 2cf24dba5fb0a30e 1")
        assert not agree(("OK 5 ... 1",), "OK 5\n2cf24dba 1")
        assert agree(("a", "...", "z"), "a\nb\nc\nz")
        assert agree(("a", "...", "z"), "a\nz")
        assert not agree(("a", "...", "z"), "a\nb\nc")

    def test_times_durations_and_columns_may_differ(self) -> None:
        assert agree(("at 2026-11-21 09:30:00, 12 ms",), "at 2026-12-01 10:00:01,   0.5 s")
        assert not agree(("after 12 lines",), "after 13 lines")


class ReadingTests(SynchronousTestCase):
    def page(self, text: str) -> Page:
        with TemporaryDirectory() as folder:
            path = Path(folder, "page.md")
            path.write_text(text, encoding="utf-8")
            return Page.read(path)

    def test_a_block_is_commands_and_what_comes_of_them(self) -> None:
        (section,) = self.page("```console\n$ cat <<E\n> a\n> E\na\n$ ls\n^C\nbye\n```").sections
        found = [(command.text, command.shown) for command in section.blocks[0].commands]
        assert found == [("cat <<E\na\nE", ("a",)), ("ls", ()), ("", ("bye",))]

    def test_a_mark_is_for_the_next_block_alone(self) -> None:
        text = "<!-- by hand: no\n  root -->\n```console\n$ a\n```\n```console\n$ b\n```\n"
        (section,) = self.page(text).sections
        assert [block.text for block in section.steps] == ["$ b\n"]
        assert section.blocks[0].marks == {"by hand": "no root"}

    def test_a_mark_that_is_none_or_stands_alone_is_told(self) -> None:
        for text in ("<!-- skip -->", "<!-- by hand -->", "<!-- needs: x -->\ntext"):
            with pytest.raises(Astray):
                self.page(text)

    def test_a_command_that_does_something_else_is_told(self) -> None:
        reader = Reader()
        self.addCleanup(reader.discard)
        for wrong in ("$ echo one\ntwo", "$ false", "$ no-such-program", "$ echo 8000\n8001"):
            with pytest.raises(Astray):
                reader.follow(Section("", (Block("page", 1, "console", wrong),), served=False))
        right = Block("page", 1, "console", "$ echo one 8000\n...one 8000\n$ x=3\n$ echo $x\n3")
        assert reader.follow(Section("", (right,), served=False)) == ""

    def test_what_needs_a_program_that_is_not_here_says_so(self) -> None:
        reader = Reader()
        self.addCleanup(reader.discard)
        block = Block("page", 7, "console", "$ no-such-program", {"needs": "sh no-such-program"})
        why = reader.follow(Section("", (block,), served=False))
        assert why == "page:7: no-such-program is not installed"


def _followed(section: Section) -> Callable[[SynchronousTestCase], None]:
    def test(self: SynchronousTestCase) -> None:
        if os.environ.get("ROUNDHOUSE_REACTOR"):
            raise SkipTest("a page is read with the reactor that is taken when nobody names one")
        reader = Reader()
        self.addCleanup(reader.discard)
        if why := reader.follow(section):
            raise SkipTest(why)

    return test


def _class_of(page: Page) -> type[SynchronousTestCase]:
    tests = {}
    for section in page.sections:
        if section.is_followed:
            name = "_".join(re.findall("[a-z0-9]+", section.title.lower()))
            tests[f"test_{name}_goes_as_shown"] = _followed(section)
    words = re.findall("[a-z]+", page.title)
    return type("".join(map(str.title, words)) + "Tests", (SynchronousTestCase,), tests)


for _page in pages():
    _tests = _class_of(_page)
    _tests.__module__ = __name__
    globals()[_tests.__name__] = _tests
del _page, _tests
