"""The catalogue of events agrees with the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen
from twisted.logger import LogLevel
from twisted.trial.unittest import SynchronousTestCase

from daemon import logs
from daemon.events import EVENTS, LIBRARY

HOME = Path(__file__).resolve().parents[1]
LEVELS = {"debug", "info", "warn", "error", "critical", "failure"}
OURS = {"time", "level", "event", "message", "system", "more", "traceback"}  # in JSON
SECRET = {"code", "token", "password", "text", "body", "data"}


@frozen
class Call:
    """One call of a logger: what it says, and with what."""

    where: str
    level: str
    sentence: str
    event: object
    fields: frozenset[str]


def calls() -> Iterator[Call]:
    for package in ("daemon", "protocols"):
        for path in sorted((HOME / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and is_logging(node.func):
                    yield call(f"{path.relative_to(HOME)}:{node.lineno}", node)


def is_logging(function: ast.expr) -> bool:
    """Whether it is `log.warn`, `self._log.info` or the like."""
    if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
        return False
    owner = function.value
    name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
    return name.lstrip("_") == "log"


def call(where: str, node: ast.Call) -> Call:
    assert isinstance(node.func, ast.Attribute)
    assert isinstance(node.args[0], ast.Constant), f"{where}: the sentence is no literal"
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    event = given.pop("event", None)
    given.pop("failure", None)
    return Call(
        where,
        "critical" if node.func.attr == "failure" else node.func.attr,
        str(node.args[0].value),
        event.value if isinstance(event, ast.Constant) else None,
        frozenset(str(name) for name in given),
    )


class CatalogueTests(SynchronousTestCase):
    def test_each_line_that_is_logged_has_a_name_level_and_fields_of_the_catalogue(self) -> None:
        found = list(calls())
        assert len(found) > 60
        for one in found:
            known = EVENTS.get(str(one.event))
            assert known is not None, f"{one.where}: {one.event} is not in the catalogue"
            assert known.level == one.level, one.where
            assert {*known.fields} == one.fields, one.where
            named = re.findall(r"\{(\w+)", one.sentence)
            assert {*named} <= one.fields, one.where

    def test_each_event_of_the_catalogue_is_logged_somewhere(self) -> None:
        assert {one.event for one in calls()} | {LIBRARY} == {*EVENTS}

    def test_names_and_fields_are_what_searches_and_machines_can_rely_on(self) -> None:
        for name, event in EVENTS.items():
            assert name == LIBRARY or re.fullmatch(r"[a-z]+\.[a-z_]+", name)
            assert not {*event.fields} & (OURS | SECRET)
            assert {*(event.alike or ())} <= {*event.fields}
            assert event.means.endswith(".")
            if event.level:
                assert LogLevel.lookupByName(event.level).name in logs.LEVELS
