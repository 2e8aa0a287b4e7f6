"""The page about libraries names what is asked for, in the versions that are locked."""

from __future__ import annotations

import re
import tomllib
from collections import defaultdict
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

HOME = Path(__file__).resolve().parents[1]
PAGE = HOME / "docs" / "explanation" / "libraries.md"
REQUIREMENTS = HOME / "requirements"
LOCKS = (HOME / "requirements.txt", REQUIREMENTS / "daemon.txt")
CALLED = {"myst": "myst-parser"}  # on the page: in the locks
ROW = re.compile(r"^\| \[([^\]]+)\]\(https://[^)]+\) \| ([^|]+) \|", re.MULTILINE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;]+)", re.MULTILINE)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def shown() -> list[tuple[str, str]]:
    """Each library of the page, and the version it has there."""
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    return [(CALLED.get(name.lower(), normal(name)), version.strip()) for name, version in rows]


def asked_for() -> set[str]:
    project = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for path in REQUIREMENTS.glob("*.in"):
        lines += path.read_text(encoding="utf-8").splitlines()
    return {normal(found[0]) for line in lines if (found := NAME.match(line))}


def locked() -> dict[str, set[str]]:
    """Each library, and its versions: another Python may need another one."""
    found = defaultdict(set)
    for path in LOCKS:
        for name, version in PIN.findall(path.read_text(encoding="utf-8")):
            found[normal(name)].add(version)
    return found


class LibrariesTests(SynchronousTestCase):
    def test_every_library_that_is_asked_for_has_one_line_and_no_other_has(self) -> None:
        assert sorted(name for name, _ in shown()) == sorted(asked_for())

    def test_versions_are_those_of_the_locks(self) -> None:
        pins = locked()
        for name, version in shown():
            assert set(version.split(", ")) == pins[name], f"{PAGE.name}: {name}"
