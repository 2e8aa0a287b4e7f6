"""The fragments in changelog.d become a part of CHANGELOG.md."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

HOME = Path(__file__).resolve().parents[1]


class ChangelogTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        for name in ("pyproject.toml", "CHANGELOG.md"):
            shutil.copy(HOME / name, self.root)
        shutil.copytree(HOME / "changelog.d", self.root / "changelog.d")

    def towncrier(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "towncrier", "build", "--version", "9.9.9", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True)

    def test_each_of_them_is_a_sentence_of_a_type_that_there_is(self) -> None:
        config = tomllib.loads((HOME / "pyproject.toml").read_text())["tool"]["towncrier"]
        types = "|".join(one["directory"] for one in config["type"])
        for path in (HOME / "changelog.d").iterdir():
            if path.name not in config["ignore"]:
                assert re.fullmatch(rf"\+[a-z0-9-]+\.({types})\.md", path.name), path.name
                assert path.read_text(encoding="utf-8").endswith(".\n"), path.name

    def test_a_release_puts_them_on_top_and_leaves_the_rest_as_it_was(self) -> None:
        before = (self.root / "CHANGELOG.md").read_text(encoding="utf-8")
        (self.root / "changelog.d" / "+toy.fixed.md").write_text("It toys\nno more.\n")
        run = self.towncrier("--yes")
        assert run.returncode == 0, run.stderr
        after = (self.root / "CHANGELOG.md").read_text(encoding="utf-8")
        head, mark, rest = before.partition("<!-- towncrier: new releases below -->\n")
        assert mark
        assert after.startswith(f"{head}{mark}\n## [9.9.9] - ")
        assert after.endswith(f"\n{rest}")
        assert re.search(r"(?m)^### Fixed\n\n(- .*\n(  .*\n)*)*- It toys\n  no more\.\n", after)

    def test_a_name_that_says_no_type_is_refused(self) -> None:
        (self.root / "changelog.d" / "toys.md").write_text("It toys no more.\n")
        run = self.towncrier("--draft")
        assert run.returncode == 1
        assert "Invalid news fragment name: toys.md" in run.stderr
