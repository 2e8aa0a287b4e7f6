"""Locust's scenarios: bounds, shapes, charts, and a small run against a real daemon."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import attrs
import pytest
from twisted.trial.unittest import SynchronousTestCase

from loadtest import charts
from loadtest.bounds import FILE, Bounds, Requests
from loadtest.charts import Bar, Bars, Lines
from loadtest.report import (
    HOME,
    SCENARIOS,
    SHAPES,
    Kind,
    Moment,
    Run,
    Scenario,
    all_kept,
    growth,
    kinds_of,
    page,
    perform,
    shares,
    write,
)
from tests.process import Twistd

QUICK = [Requests("echo line", 99, 0, 3.0), Requests("chat own line back", 1, 0, None)]
SHAPE = """
from loadtest.shape import Shape

class Brief(Shape):
    points = ((0, 8), (1.5, 8))
    options = {"each": 20.0, "room_size": 2}
"""


class Folder(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


class BoundsTests(Folder):
    def test_a_run_within_its_bounds_misses_nothing(self) -> None:
        assert [*Bounds(p99_ms=3.0, requests=100).missed(QUICK)] == []

    def test_each_missed_bound_is_a_line(self) -> None:
        kinds = [*QUICK, Requests("ingest stream", 100, 3, 12.5)]
        assert [*Bounds(failures=0.01, p99_ms=10, requests=201).missed(kinds)] == [
            "200 requests, at least 201 are asked for",
            "3 of 200 requests failed, at most 1.00% may",
            "ingest stream: p99 is 12.5 ms, at most 10 is allowed",
        ]

    def test_every_run_of_the_file_can_be_read(self) -> None:
        assert Bounds.named("51").p99_ms == 100
        for name in ("default", *SCENARIOS):
            assert Bounds.named(name).failures == 0

    def test_a_strange_name_or_key_says_what_there_is(self) -> None:
        with pytest.raises(
            ValueError, match=r"no bounds .52. in bounds\.toml; there are: default, 51"
        ):
            Bounds.named("52", FILE)
        path = self.folder / "bounds.toml"
        path.write_text("[locust.x]\np98_ms = 1\n")
        with pytest.raises(
            ValueError, match=r"\[locust.x\] has no p98_ms; there are: descriptors, fail"
        ):
            Bounds.named("x", path)


class ChartTests(Folder):
    def text(self, path: Path) -> str:
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
        return path.read_text(encoding="utf-8")

    def test_the_same_figures_make_the_same_file(self) -> None:
        panel = Lines("Latency", "ms", {"p50": [1, None, 3], "p99": [2, 4, 8]}, log=True)
        users = Lines("Users", "", {"users": [1, 5]}, step=True)
        paths = [self.folder / name for name in ("a.svg", "b.svg")]
        for path in paths:
            charts.over_time(path, "51 users", (0, 2), [((0, 1, 2), panel), ((0, 1), users)])
        assert self.text(paths[0]) == self.text(paths[1])

    def test_bars_have_their_limit_as_a_line(self) -> None:
        path = self.folder / "bars.svg"
        ours = Bar("roundhouse", 0.8, 0.7, 0.9, ours=True)
        charts.bars(path, "echo", "", [Bars("ping", [ours, Bar("go", 0.7, 0.7, 0.7)], limit=1.0)])
        text = self.text(path)
        assert charts.OURS in text
        assert charts.LIMIT in text


class PageTests(Folder):
    def run_of(self, rows: int, missed: list[str]) -> Run:
        kinds = [
            Kind("POST", "message", 1000, 0, 50.0, 2.0, 3.0, 4.0, 5.0),
            Kind("echo", "line", 2000, 0, 100.0, 1.0, 1.0, 2.0, 9.0),
        ]
        moments = [Moment(0.0, 1.0, 50 << 20, 40), Moment(1.0, 1.25, 60 << 20, 41)]
        line = {"Name": "Aggregated", "Timestamp": "0", "User Count": "51", "Failures/s": "0"}
        line |= {"Requests/s": "50", "50%": "N/A", "95%": "3", "99%": "4"}
        history = [line, line | {"Timestamp": "1", "50%": "2"}]
        return Run(SCENARIOS["51"], kinds, history, moments, 1000, rows, rows, missed)

    def test_it_says_that_everything_acknowledged_was_kept(self) -> None:
        text = page(self.run_of(1000, []))
        assert "1,000 messages were\nacknowledged: as many rows in the table" in text
        assert "All bounds were kept" in text
        assert "| POST message | 1,000 | 0 | 50.0 | 2 | 3 | 4 | 5 |" in text
        assert "at most 25 % of a core and 60 MiB of memory" in text

    def test_it_says_what_was_lost_or_missed(self) -> None:
        text = page(self.run_of(999, ["too slow"]))
        assert "**999 rows in the table, 999 lines in the log file**. **Missed: too slow.**" in text

    def test_several_processes_may_have_logged_more_than_they_counted(self) -> None:
        assert all_kept(SCENARIOS["5000"], 1000, 1007, 1007)
        for name, rows, lines in (("5000", 999, 999), ("5000", 1007, 1006), ("51", 1001, 1001)):
            assert not all_kept(SCENARIOS[name], 1000, rows, lines)
        run = attrs.evolve(self.run_of(1007, []), scenario=SCENARIOS["5000"])
        assert "in the log file, and 7 whose users had left. All bounds" in page(run)

    def test_charts_and_the_daemons_figures_are_written_beside_it(self) -> None:
        write(self.run_of(1000, []), self.folder)
        names = {path.name for path in self.folder.iterdir()}
        assert names == {"README.md", "daemon.csv", "over_time.svg", "latency.svg"}
        assert (self.folder / "daemon.csv").read_text().split() == [
            "seconds,cpu,memory,descriptors",
            f"1.0,0.250,{60 << 20},41",
        ]

    def test_percentiles_are_those_of_the_histogram(self) -> None:
        path = self.folder / "totals.json"
        each = {"method": "echo", "name": "line", "num_requests": 100, "num_failures": 1}
        each |= {"start_time": 10.0, "last_request_timestamp": 14.0, "max_response_time": 30.0}
        path.write_text(json.dumps([each | {"response_times": {"7": 9, "2": 90, "30": 1}}]))
        (kind,) = kinds_of(path)
        assert (kind.p50, kind.p95, kind.p99, kind.rate) == (2, 7, 7, 25.0)

    def test_cpu_is_a_share_of_the_time_between_two_looks(self) -> None:
        assert shares([Moment(0, 1, 0), Moment(2, 2, 0), Moment(3, 2, 0)]) == [0.5, 0.0]

    def test_a_daemon_grows_by_what_it_gains_once_it_is_warm(self) -> None:
        moments = [
            Moment(at, 0, (50 + at // 60) << 20, 40 + at // 300 + (at * at * at // 1000) % 7)
            for at in range(0, 1800, 5)
        ]
        warming = [Moment(at - 900, 0, at << 20, at) for at in range(180)]
        memory, descriptors = growth([*warming, *moments])
        assert memory == pytest.approx(10, rel=0.02)
        assert descriptors == pytest.approx(2, rel=0.1)
        busier = [attrs.evolve(m, descriptors=40 + 90 * (m.at % 60 > 5)) for m in moments]
        assert growth(busier)[1] == pytest.approx(0)
        assert growth(moments[:4]) == (0.0, 0.0)
        bounds = Bounds.named("soak")
        assert [*bounds.outgrown(0.9, 0.9)] == []
        assert [*bounds.outgrown(memory, descriptors + 2)] == [
            f"its memory grew by {memory:.2f} MiB in ten minutes, at most 1 is allowed",
            f"its descriptors grew by {descriptors + 2:.1f} in ten minutes, at most 1 is allowed",
        ]
        assert [*Bounds.named("51").outgrown(99, 99)] == []

    def test_a_soak_says_what_it_grew_by(self) -> None:
        run = attrs.evolve(self.run_of(1000, []), scenario=SCENARIOS["soak"])
        assert "its memory grew by 0.00 MiB and its descriptors by 0.0 in ten minutes" in page(run)


class ShapeTests(SynchronousTestCase):
    """In a process of their own: importing Locust patches sockets."""

    def test_every_shape_begins_ends_and_names_bounds_that_are_there(self) -> None:
        code = (
            "import importlib, json, sys\n"
            "from loadtest.shape import Shape\n"
            "for name in sys.argv[1:]:\n"
            "    module = importlib.import_module('loadtest.shapes.' + name)\n"
            "    (kind,) = [each for each in vars(module).values() if isinstance(each, type)\n"
            "               and issubclass(each, Shape) and each is not Shape]\n"
            "    last = kind.points[-1][0]\n"
            "    shape = kind()\n"
            "    ticks = [shape.at(second) for second in (0, last / 2, last - 0.01, last)]\n"
            "    print(json.dumps([ticks, kind.options]))\n"
        )
        names = sorted(path.stem for path in SHAPES.glob("[a-z]*.py"))
        assert names == ["ramp5000", "rate500", "rate51", "soak", "spike"]
        ran = subprocess.run(
            [sys.executable, "-c", code, *names],
            cwd=HOME,
            capture_output=True,
            text=True,
            check=True,
        )
        told = dict(zip(names, map(json.loads, ran.stdout.splitlines()), strict=True))
        assert told["rate51"] == [
            [[51, 51], [51, 51], [51, 51], None],
            {"each": 1.0, "bounds": "51"},
        ]
        for (first, middle, late, over), options in told.values():
            assert over is None
            assert min(first[0], middle[0], late[0], first[1], middle[1]) >= 1
            assert Bounds.named(options.get("bounds", "default"))
        assert told["ramp5000"][0][2][0] == 5000


class RunTests(Folder):
    def daemon(self) -> Twistd:
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        daemon.configure()
        daemon.start()
        return daemon

    def locust(self, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "locust", "-f", str(HOME / "loadtest" / "locustfile.py")]
        command += ["--headless", "-u", "12", "-r", "60", "-t", "1s", "--stop-timeout", "5"]
        command += ["--totals", str(self.folder / "totals.json"), *arguments]
        environ = {"PATH": "/usr/bin:/bin", "ROUNDHOUSE_CONFIG": str(config)}
        return subprocess.run(
            command, cwd=HOME, env=environ, capture_output=True, text=True, check=False
        )

    def test_all_users_are_served_and_the_totals_are_those_of_the_daemon(self) -> None:
        daemon = self.daemon()
        ran = self.locust(daemon.config, "--each", "20", "--processes", "2")
        assert ran.returncode == 0, ran.stderr
        kinds = {kind.label: kind for kind in kinds_of(self.folder / "totals.json")}
        assert sum(kind.failures for kind in kinds.values()) == 0
        assert {"echo line", "relay get", "ingest stream", "chat own line back"} <= {*kinds}
        with closing(sqlite3.connect(daemon.data / "roundhouse.db")) as database:
            (rows,) = database.execute("SELECT count(*) FROM messages").fetchone()
        assert rows == kinds["POST message"].requests > 0

    def test_tags_choose_and_a_missed_bound_ends_with_status_1(self) -> None:
        ran = self.locust(self.daemon().config, "--tags", "echo", "--bounds", "51")
        assert ran.returncode == 1
        assert "bound missed: " in ran.stderr
        assert "requests, at least 1000 are asked for" in ran.stderr
        methods = {kind.method for kind in kinds_of(self.folder / "totals.json")}
        assert methods == {"echo"}
        assert "Traceback" not in ran.stderr

    def test_a_daemon_that_is_not_there_is_a_failure_and_no_traceback(self) -> None:
        nowhere = self.folder / "config.cfg"
        nowhere.write_text("[echo]\nPORT = 9\n")
        ran = self.locust(nowhere, "EchoUser")
        assert ran.returncode == 1
        assert "requests failed, at most 0.00% may" in ran.stderr
        assert "Traceback" not in ran.stderr

    def test_a_report_is_whole(self) -> None:
        shape = self.folder / "brief.py"
        shape.write_text(SHAPE)
        out = self.folder / "report"
        out.mkdir()
        run = perform(Scenario("default", "Brief", shape, ("MixedUser",)), out)
        assert run.missed == []
        assert run.acknowledged == run.rows == run.lines > 0
        write(run, out)
        assert len({*out.iterdir()}) == 7
