"""Links between the pages of this checkout lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

HOME = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!`)\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")
FENCE = re.compile(r"(?ms)^ *(```+|~~~+).*?^ *\1 *$")


def pages() -> Iterator[Path]:
    yield from HOME.glob("*.md")
    for folder in ("docs", "changelog.d", "loadtest", "deploy"):
        yield from (HOME / folder).rglob("*.md")


@cache
def anchors(page: Path) -> frozenset[str]:
    """As GitHub and MyST name the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"(?m)^#+ +(.+)$", text)
    plain = (re.sub(r"\]\(.*?\)", "", title.lower()) for title in titles)
    return frozenset(re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in plain)


class LinkTests(SynchronousTestCase):
    def test_every_file_and_heading_that_is_linked_is_there(self) -> None:
        found = 0
        for page in pages():
            text = FENCE.sub("", page.read_text(encoding="utf-8"))
            for path, anchor in LINK.findall(text):
                target = (page.parent / path).resolve() if path else page
                where = f"{page.relative_to(HOME)}: {path}#{anchor}"
                assert target.exists(), where
                assert target.is_relative_to(HOME), where
                assert not anchor or target.suffix != ".md" or anchor in anchors(target), where
                found += 1
        assert found > 30
