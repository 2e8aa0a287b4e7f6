"""All comparisons on a page, and the ratios that must not decay."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from loadtest import guard
from loadtest.__main__ import COMPARISONS, cli, finders
from loadtest.compare import every
from loadtest.compare.command import Failed, Unavailable
from loadtest.compare.harness import Comparison, Cores, Peer
from loadtest.compare.report import Report, Skipped
from loadtest.compare.table import LIMIT, P99, Bound, Case, Sample, Spread, Table
from loadtest.guard import Ratio

PING = Case("ping", "64 B", (), "messages", bounds=(Bound("roundhouse", 0.8),))
RATE = Case("rate", "at a rate", (), "messages", P99, bounds=(Bound("roundhouse", 1.3),))


def nobody(*_: Any) -> Any:
    raise AssertionError("never started")


def report(name: str = "echo", skipped: tuple[Skipped, ...] = ()) -> Report:
    table = Table()
    for case in (PING, RATE):
        for cpu in (1.0, 1.1, 0.9):
            table.add(case, LIMIT, Sample(1000, 1.0, cpu, 30.0, 80.0))
            table.add(case, "roundhouse", Sample(900, 1.0, 1.0, 33.0, 160.0))
    peers = [Peer(LIMIT, "the limit", "gcc 12", nobody), Peer("roundhouse", "ours", "0.1", nobody)]
    return Report(name, table, peers, 3, 1.0, Cores(), skipped)


class PageTests(SynchronousTestCase):
    def test_it_has_a_picture_peers_and_a_table_for_each_case(self) -> None:
        text = every.page({"echo": report(skipped=(Skipped("go", "go is not installed"),))})
        assert "![echo](echo.svg)" in text
        assert "- **C**: the limit (gcc 12)" in text
        assert "- go: skipped, go is not installed" in text
        assert "| **roundhouse** | 0.90 | 0.81..0.99 | ≥ 0.8 met | 900 | 33 | 160 |" in text
        assert "| **roundhouse** | 2.00 | 2.00..2.00 | ≤ 1.3 **missed** | 160 | 33 | 160 |" in text
        assert "Bounds met: 1 of 2." in text

    def test_what_could_not_run_says_why(self) -> None:
        text = every.page({"chat": Unavailable("skipped: gcc is not installed")})
        assert "## chat\n\nskipped: gcc is not installed\n" in text


class AllTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.out = Path(folder.name) / "compare"

    def run_all(self, outcomes: dict[str, Report | Failed], *arguments: str) -> tuple[int, str]:
        def run(comparison: Comparison, cases: Any, names: Any, rounds: int, seconds: float) -> Any:
            assert (rounds, seconds) == (3, 0.5)
            found = outcomes[comparison.name]
            if isinstance(found, Failed):
                raise found
            return found

        self.patch(every, "run_comparison", run)
        comparisons = {
            name: lambda name=name: Comparison(name, "", (PING,), {LIMIT: nobody}, "x")
            for name in outcomes
        }
        command = every.command(comparisons)
        ran = CliRunner().invoke(command, ["--seconds", "0.5", "--out", str(self.out), *arguments])
        return ran.exit_code, ran.output

    def test_each_leaves_a_picture_and_its_figures(self) -> None:
        status, said = self.run_all({"echo": report(), "chat": Unavailable("skipped: no gcc")})
        assert status == 0, said
        names = {path.name for path in self.out.iterdir()}
        assert names == {"README.md", "echo.json", "echo.svg"}
        assert json.loads((self.out / "echo.json").read_text())["comparison"] == "echo"
        assert "skipped: no gcc" in (self.out / "README.md").read_text()

    def test_a_wrong_answer_does_not_stop_the_others_but_the_status_is_1(self) -> None:
        status, said = self.run_all({"chat": Failed("a wrong answer"), "echo": report()})
        assert status == 1
        assert "did not run to the end: chat" in said
        assert (self.out / "echo.svg").exists()

    def test_a_missed_bound_is_an_error_only_when_asked(self) -> None:
        assert self.run_all({"echo": report()}, "--check")[0] == 1


class GuardTests(SynchronousTestCase):
    def guard(self, *ratios: Ratio, shown: Report | None = None) -> tuple[int, str]:
        self.patch(guard, "read", lambda: [*ratios])
        self.patch(guard, "run_comparison", lambda *_: shown or report())
        peers = {LIMIT: nobody, "roundhouse": nobody}
        known = {"echo": lambda: Comparison("echo", "", (PING, RATE), peers, "x")}
        ran = CliRunner().invoke(guard.command(known), ["--json"])
        return ran.exit_code, ran.output

    def test_ratios_within_their_bounds_are_kept(self) -> None:
        status, said = self.guard(
            Ratio("echo", "ping", "roundhouse", LIMIT, at_least=0.7),
            Ratio("echo", "rate", "roundhouse", LIMIT, at_most=2.5),
        )
        assert status == 0, said
        assert "echo, ping: roundhouse to C >= 0.7: 0.90 (0.81..0.99) kept" in said

    def test_one_beyond_its_bound_has_decayed(self) -> None:
        status, said = self.guard(Ratio("echo", "rate", "roundhouse", LIMIT, at_most=1.5))
        assert status == 1
        assert "DECAYED" in said

    def test_a_case_that_is_not_there_is_an_error(self) -> None:
        status, said = self.guard(Ratio("echo", "pong", "roundhouse", LIMIT, at_most=1.5))
        assert status == 1
        assert "there is no such case or peer" in said

    def test_what_cannot_be_measured_has_status_69(self) -> None:
        missing = report(skipped=(Skipped("roundhouse", "no twistd"),))
        ratio = Ratio("echo", "ping", "roundhouse", LIMIT, at_least=0.7)
        status, said = self.guard(ratio, shown=missing)
        assert (status, "roundhouse: no twistd" in said) == (69, True)

    def test_the_medians_decide(self) -> None:
        assert Ratio("", "", "", "", at_least=0.8).kept(Spread(0.8, 0.1, 2))
        assert not Ratio("", "", "", "", at_most=0.8).kept(Spread(0.81, 0.1, 2))

    def test_every_ratio_of_the_file_names_a_case_and_peers_that_are_there(self) -> None:
        known = finders()
        for ratio in guard.read():
            comparison = known[ratio.comparison]()
            assert ratio.case in {case.name for case in comparison.cases}
            assert {ratio.peer, ratio.against} <= {*comparison.peers}
            assert (ratio.at_least is None) != (ratio.at_most is None)


class CommandTests(SynchronousTestCase):
    def test_help_names_every_command(self) -> None:
        said = CliRunner().invoke(cli, ["--help"]).output
        for name in ("compare", "guard", "report"):
            assert f"\n  {name} " in said
        said = CliRunner().invoke(cli, ["compare", "--help"]).output
        for name in (*COMPARISONS, "all"):
            assert f"\n  {name} " in said
