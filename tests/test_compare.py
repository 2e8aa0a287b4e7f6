"""The comparisons of the load tests: their arithmetic, their tables, and real runs."""

from __future__ import annotations

import atexit
import io
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from types import SimpleNamespace
from unittest import SkipTest
from unittest.mock import patch

import attrs
import psutil
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from twisted.trial.unittest import SynchronousTestCase

from loadtest.__main__ import cli
from loadtest.compare import build, echo, harness
from loadtest.compare.build import Missing, Unbuilt, Workshop
from loadtest.compare.echo import CASES, COMPARISON, ping
from loadtest.compare.harness import Broken, Cores, Launch, Peer, Server, Wrong, measure
from loadtest.compare.report import Report, Skipped
from loadtest.compare.table import MEMORY, P99, PER_CPU, Bound, Case, Figure, Sample, Spread, Table

HOME = Path(__file__).resolve().parents[1]
PATIENCE = 20.0  # seconds
OURS = "roundhouse"


def case(*bounds: Bound, figure: Figure = PER_CPU) -> Case:
    return Case("some", "some messages", ("ping",), "messages", figure, bounds)


def sample(per_cpu: float = 1000.0, p99_us: float = 100.0, memory: int = 0) -> Sample:
    return Sample(int(per_cpu), 1.0, 1.0, p99_us / 2, p99_us, memory)


def table(measured: Case, samples: Mapping[str, Sequence[Sample]]) -> Table:
    """As `harness.compare` fills it: round after round."""
    made = Table()
    for number in range(max(map(len, samples.values()))):
        for peer, taken in samples.items():
            made.add(measured, peer, taken[number])
    return made


def rates(measured: Case, **peers: Sequence[float]) -> Table:
    return table(measured, {name: [sample(r) for r in taken] for name, taken in peers.items()})


class TableTests(SynchronousTestCase):
    def test_ratios_are_those_of_one_round_so_that_noise_in_a_round_cancels(self) -> None:
        measured = case()
        drifting = rates(measured, C=[1000, 500, 2000, 100, 1500], ours=[800, 400, 1600, 80, 1200])
        limit, ours = drifting.rows(measured)
        assert ours.ratio == Spread(0.8, 0.8, 0.8)
        assert ours.value == Spread(800, 80, 1600)
        assert limit.ratio == Spread(1, 1, 1)

    def test_a_spread_is_the_median_and_both_ends_of_the_rounds(self) -> None:
        measured = case()
        found = rates(measured, C=[1000] * 5, ours=[900, 100, 850, 700, 800])
        assert found.ratio(measured, "ours", "C") == Spread(0.8, 0.1, 0.9)

    def test_a_figure_is_operations_for_each_second_of_the_servers_cpu_not_of_the_clock(
        self,
    ) -> None:
        measured = case()
        made = Table()
        made.add(measured, "C", Sample(ops=3000, seconds=10.0, cpu=1.5, p50_us=1, p99_us=2))
        (row,) = made.rows(measured)
        assert row.value.median == 2000
        assert measured.unit(measured.figure) == "messages/CPU-s"
        assert made.ops == 3000

    def test_a_lower_bound_is_met_by_a_median_that_reaches_it(self) -> None:
        for bound, met in ((0.8, True), (0.79, True), (0.81, False)):
            measured = case(Bound("ours", bound))
            (verdict,) = rates(measured, C=[1000] * 3, ours=[100, 800, 900]).verdicts(measured)
            assert verdict.met is met

    def test_latency_is_bounded_from_above(self) -> None:
        for slow, met in ((129, True), (130, True), (131, False)):
            measured = case(Bound("ours", 1.3), figure=P99)
            peers = {"C": [sample(p99_us=100)], "ours": [sample(p99_us=slow)]}
            (verdict,) = table(measured, peers).verdicts(measured)
            assert verdict.met is met

    def test_memory_is_told_as_it_is_and_for_each_connection(self) -> None:
        measured = case(Bound("ours", 4.0, against=None), figure=MEMORY)
        peers = {"C": [sample()], "ours": [sample(per_cpu=100, memory=100 * 3 * 1024)]}
        found = table(measured, peers)
        _, ours = found.rows(measured)
        assert ours.value.median == 3.0
        assert ours.ratio is None
        (verdict,) = found.verdicts(measured)
        assert verdict.met

    def test_a_bound_against_another_peer_takes_that_ones_ratio(self) -> None:
        measured = case(Bound("ours", 2.0, against="slow"))
        found = rates(measured, C=[1000, 1000], ours=[800, 900], slow=[400, 300])
        (verdict,) = found.verdicts(measured)
        assert verdict.shown == Spread(2.5, 2.0, 3.0)
        assert verdict.met

    def test_a_bound_whose_peers_were_not_measured_says_nothing(self) -> None:
        measured = case(Bound("ours", 0.8), Bound("C", 2.0, against="slow"), Bound("C", 1, None))
        (verdict,) = rates(measured, C=[1000]).verdicts(measured)
        assert verdict.bound.against is None


class ReportTests(SynchronousTestCase):
    def report(self, *bounds: Bound) -> Report:
        measured = case(*bounds)
        found = rates(measured, C=[100_000] * 3, roundhouse=[79_000, 81_000, 82_500])
        peers = [
            Peer(name, f"about {name}", "1.0", lambda folder, port: Launch([]))
            for name in ("C", OURS)
        ]
        left_out = [Skipped("go", "go is not installed")]
        return Report("echo", found, peers, 3, 1.5, Cores(1, 0), left_out)

    def test_plain_text_holds_medians_spread_bounds_and_what_was_left_out(self) -> None:
        text = self.report(Bound(OURS, 0.8), Bound(OURS, 0.9, against="C")).text()
        assert "\x1b" not in text
        assert text.startswith("echo: 3 rounds of 1.5 s, server on core 1, load on core 0; ")
        assert re.search(r"^  go +skipped: go is not installed$", text, re.MULTILINE)
        assert re.search(
            r"^some messages +to C +min\.\.max +bound +messages/CPU-s ", text, re.MULTILINE
        )
        assert re.search(r"^  C +1\.00 +100,000 +50 +100$", text, re.MULTILINE)
        assert re.search(
            r"^  roundhouse +0\.81 +0\.79\.\.0\.82 +>= 0\.80 met +81,000 +50 +100$",
            text,
            re.MULTILINE,
        )
        assert "542,500 answers were compared" in text

    def test_missed_bounds_and_ratios_to_others_have_their_place(self) -> None:
        report = self.report(Bound(OURS, 0.82), Bound("C", 2.0, against=OURS))
        text = report.text()
        assert re.search(r"^  roundhouse .* >= 0\.82 missed ", text, re.MULTILINE)
        assert re.search(
            r"^  C .*\n    to roundhouse +1\.23 +1\.21\.\.1\.27 +>= 2\.00 missed$",
            text,
            re.MULTILINE,
        )
        assert text.endswith("Bounds met: 0 of 2.\n")
        assert len(report.missed) == 2

    def test_a_terminal_has_colours_unless_no_color_is_set_and_a_narrow_one_loses_nothing(
        self,
    ) -> None:
        for environ, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
            out = io.StringIO()
            terminal = {"TERM": "xterm-256color", "COLUMNS": "60", **environ}
            console = Console(file=out, force_terminal=True, _environ=terminal)
            self.report(Bound(OURS, 0.9)).show(console)
            assert ("\x1b[1;31m" in out.getvalue()) is coloured
            assert ">= 0.90 missed" in out.getvalue()
            assert "…" not in out.getvalue()

    def test_json_holds_every_sample_and_the_verdicts(self) -> None:
        told = json.loads(json.dumps(self.report(Bound(OURS, 0.8)).as_json()))
        (one,) = told["cases"]
        assert [row["peer"] for row in one["rows"]] == ["C", OURS]
        assert one["rows"][1]["ratio"] == {"median": 0.81, "least": 0.79, "most": 0.825}
        assert [s["ops"] for s in one["rows"][1]["samples"]] == [79_000, 81_000, 82_500]
        (bound,) = one["bounds"]
        assert (bound["at_least"], bound["met"], told["missed"]) == (0.8, True, 0)
        assert told["skipped"] == [{"name": "go", "why": "go is not installed"}]


class CommandTests(SynchronousTestCase):
    def run_cli(self, *words: str, **environ: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["compare", "echo", *words], env=environ)
        return result.exit_code, result.output

    def test_an_unknown_case_or_peer_is_named_with_those_there_are(self) -> None:
        status, said = self.run_cli("--only", "pong")
        assert status == 2
        assert "no case 'pong' in echo; there are: ping 1, ping 50, " in said
        status, said = self.run_cli("--peers", "roundhouse,netcat")
        assert status == 2
        assert "no peer 'netcat' in echo; there are: C, roundhouse, " in said

    def test_without_a_c_compiler_one_line_says_what_is_missing(self) -> None:
        with TemporaryDirectory() as empty:
            status, said = self.run_cli("--only", "ping 1", PATH=empty, XDG_CACHE_HOME=empty)
        assert status == 69
        assert said == "Error: skipped: gcc or cc is not installed (apt install gcc libc6-dev)\n"

    def test_without_epoll_one_line_says_so(self) -> None:
        with patch.object(sys, "platform", "darwin"):
            status, said = self.run_cli()
        assert status == 69
        assert "Linux is needed" in said

    def test_comparisons_are_listed_and_others_are_refused(self) -> None:
        listed = CliRunner().invoke(cli, ["compare", "-h"])
        assert re.search(r"^  echo +Echo against a C loop", listed.output, re.MULTILINE)
        assert CliRunner().invoke(cli, ["compare", "telex"]).exit_code == 2

    def test_help_names_every_case_and_every_peer(self) -> None:
        status, said = self.run_cli("-h")
        assert status == 0
        for one in CASES:
            assert f"  {one.name} " in said
            assert f"  {one.title}\n" in said
        assert f"Peers:\n    {', '.join(COMPARISON.peers)}\n" in said


class BuildTests(SynchronousTestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)

    def test_programs_lie_in_the_users_cache_or_where_there_is_none_in_a_fresh_folder(
        self,
    ) -> None:
        folder = build.cache({"XDG_CACHE_HOME": str(self.scratch)})
        assert folder == self.scratch / "roundhouse"
        (self.scratch / "file").write_text("in the way")
        fresh = build.cache({"XDG_CACHE_HOME": str(self.scratch / "file")})
        self.addCleanup(shutil.rmtree, fresh)
        assert fresh.is_dir()
        assert fresh.parent != self.scratch

    def test_a_source_is_compiled_once_and_again_when_it_or_a_header_changes(self) -> None:
        needs_compiler()
        (self.scratch / "c").mkdir()
        source = self.scratch / "c" / "one.c"
        header = self.scratch / "c" / "status.h"
        header.write_text("#define STATUS 0")
        source.write_text('#include "status.h"\nint main(void) { return STATUS; }')
        shop = Workshop(self.scratch)
        with patch.object(build, "SOURCES", self.scratch):
            first = shop.c("one")
            stamp = first.stat().st_mtime_ns
            assert shop.c("one").stat().st_mtime_ns == stamp
            header.write_text("#define STATUS 6")
            other = shop.c("one")
            assert subprocess.run([other], check=False).returncode == 6
            source.write_text("int main(void) { return 7; }")
            again = shop.c("one")
            assert subprocess.run([again], check=False).returncode == 7
            source.write_text("int main(void) { return")
            with pytest.raises(Unbuilt, match=r"one\.c"):
                shop.c("one")
        made = {first.name, other.name, again.name}
        assert {path.name for path in self.scratch.iterdir()} == {"c", *made}

    def test_go_is_missing_or_builds_without_the_network(self) -> None:
        shop = Workshop(self.scratch, {"PATH": str(self.scratch)})
        with pytest.raises(Missing, match="apt install golang-go"):
            shop.go("echo")
        go = self.scratch / "go"
        go.write_text('#!/bin/sh\necho "$GOPROXY $GOTOOLCHAIN $*" > "$3"\n')
        go.chmod(0o755)
        said = shop.go("echo").read_text()
        assert said.startswith("off local build -o ")
        assert said.endswith("/go/echo.go\n")


def needs_compiler() -> None:
    if not sys.platform.startswith("linux"):
        raise SkipTest("servers and load use epoll: Linux only")
    if not (shutil.which("gcc") or shutil.which("cc")):
        raise SkipTest("no C compiler: gcc or cc")


@cache
def workshop() -> Workshop:
    folder = mkdtemp(prefix="roundhouse-test-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Workshop(Path(folder))


SERVER = """
import socket, sys, threading
def serve(peer):
    while data := peer.recv(1 << 16):
        answer = {answer}
        if not answer:
            break
        peer.sendall(answer)
    peer.close()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
served = 0
while True:
    served += 1
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def server(answer: str, name: str = "python") -> Peer:
    """Answers with the value of an expression of `data`, and of `served` connections."""
    argv = [sys.executable, "-c", SERVER.format(answer=answer)]
    return Peer(name, "", "", lambda folder, port: Launch([*argv, str(port)]))


class HarnessTests(SynchronousTestCase):
    def setUp(self) -> None:
        needs_compiler()
        self.generator = workshop().c("echo_load")

    def measured(self, answer: str, one: Case) -> Sample:
        with Server(server(answer)) as running:
            self.pid = running.pid
            return measure(running, one, self.generator, 0.1)

    def test_a_server_that_answers_rightly_is_measured_in_every_mode(self) -> None:
        for one in CASES:
            mode, *_, last = one.load
            small = {
                "ping": ("ping", "3", "64", last),
                "rate": ("rate", "3", "64", "500"),
                "once": ("once", "3", "64"),
                "idle": ("idle", "3", "64"),
            }[mode]
            load = ("ping", "3", "50000", "4") if one.name == "stream" else small
            quick = Case(one.name, one.title, load, one.ops)
            taken = self.measured("data.upper()", quick)
            assert taken.ops >= 3, one.name
            assert taken.cpu > 0, one.name
            assert 0 < taken.p50_us <= taken.p99_us, one.name
            assert not psutil.pid_exists(self.pid)

    def test_a_fixed_rate_is_kept_and_no_faster(self) -> None:
        fixed = Case("rate", "", ("rate", "5", "64", "1000"), "messages")
        taken = self.measured("data.upper()", fixed)
        assert taken.ops == 100
        assert taken.seconds == pytest.approx(0.1, abs=0.09)

    def test_a_wrong_byte_a_missing_one_and_one_too_many_end_the_comparison(self) -> None:
        for answer, why in (
            ("data.upper() if served < 6 else data.upper()[:-2] + b'!!'", "in upper case"),
            ("data", "in upper case"),
            ("data.upper() * 2", "more bytes than were sent"),
            ("data.upper() if served < 6 else b''", "closed"),
        ):
            with pytest.raises(Wrong, match=why):
                self.measured(answer, ping(5))
            assert not psutil.pid_exists(self.pid)

    def test_a_short_connection_that_is_answered_wrongly_counts_too(self) -> None:
        with pytest.raises(Wrong, match="closed"):
            self.measured("b''", Case("connect", "", ("once", "2", "64"), "connections"))

    def test_a_server_that_ends_at_once_is_quoted(self) -> None:
        argv = [sys.executable, "-c", "raise SystemExit('no room here')"]
        ends = Peer("brief", "", "", lambda folder, port: Launch(argv))
        with pytest.raises(Broken, match="brief ended with status 1: no room here"), Server(ends):
            pass

    def test_a_server_that_never_listens_is_given_up_and_ended(self) -> None:
        code = "import sys, time; print('dreaming', flush=True); time.sleep(99)"
        deaf = Peer("deaf", "", "", lambda folder, port: Launch([sys.executable, "-c", code]))
        one = Server(deaf)
        with (
            patch.object(harness, "START", 0.5),
            pytest.raises(Broken, match=r"does not listen after 0\.5 s: dreaming"),
            one,
        ):
            pass
        assert not psutil.pid_exists(one.pid)
        assert not one.folder.exists()

    def test_a_program_that_is_not_there_is_named(self) -> None:
        nothing = Peer("nothing", "", "", lambda folder, port: Launch(["/nonexistent"]))
        one = Server(nothing)
        with pytest.raises(Broken, match=r"nothing cannot be started: .*/nonexistent"), one:
            pass
        assert not one.folder.exists()

    def test_a_server_that_does_not_heed_sigterm_is_killed(self) -> None:
        stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER
        argv = [sys.executable, "-c", stubborn.format(answer="data")]
        peer = Peer("stubborn", "", "", lambda folder, port: Launch([*argv, str(port)]))
        with patch.object(harness, "STOP", 0.1), Server(peer) as running:
            pass
        assert not psutil.pid_exists(running.pid)

    def test_thousands_of_files_stay_until_all_is_measured(self) -> None:
        made: list[Path] = []

        def launch(folder: Path, port: int) -> Launch:
            assert all(earlier.exists() for earlier in made)
            made.append(folder)
            return server("data.upper()").launch(folder, port)

        harness.compare(
            COMPARISON,
            [attrs.evolve(ping(1), fresh=True, many=True)],
            [Peer("python", "", "", launch)],
            self.generator,
            rounds=3,
            seconds=0.05,
            cores=Cores(),
        )
        assert len(made) == 3
        assert not any(folder.exists() for folder in (*made, made[0].parent))

    def test_a_signal_while_the_files_are_cleared_away_leaves_none_behind(self) -> None:
        def interrupted(path: Path, ignore_errors: bool) -> None:
            signal.raise_signal(signal.SIGINT)
            shutil.rmtree(path, ignore_errors)

        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)
        one = Server(server("data"))
        with (
            patch("loadtest.compare.harness.shutil", SimpleNamespace(rmtree=interrupted)),
            pytest.raises(KeyboardInterrupt),
            one,
        ):
            pass
        assert not one.folder.exists()

    def test_a_load_that_cannot_begin_is_quoted(self) -> None:
        with (
            Server(server("data.upper()")) as running,
            pytest.raises(Broken, match=r"the load could not begin.*usage: echo_load"),
        ):
            measure(running, Case("bad", "", ("dance",), ""), self.generator, 0.1)

    def test_cpu_of_children_that_have_ended_counts_too(self) -> None:
        burn = "import time\nwhile time.process_time() < 0.3: pass"
        script = SERVER.format(answer="data")
        words = f"'{sys.executable}' -c '{burn}'; exec '{sys.executable}' -c '{script}' $0"
        peer = Peer("sh", "", "", lambda folder, port: Launch(["sh", "-c", words, str(port)]))
        with Server(peer) as running:
            assert running.cpu() >= 0.3

    def test_cpu_of_children_counts_and_a_fresh_case_has_a_server_of_its_own(self) -> None:
        starts: list[Path] = []

        def launch(folder: Path, port: int) -> Launch:
            starts.append(folder)
            script = SERVER.format(answer="data.upper()")
            return Launch(["sh", "-c", f"'{sys.executable}' -c '{script}' {port}; true"])

        peer = Peer("shell", "", "", launch)
        once = Case("idle", "", ("idle", "3", "64"), "", fresh=True)
        steps: list[tuple[str, int, str]] = []
        found = harness.compare(
            COMPARISON,
            [ping(2), once],
            [peer],
            self.generator,
            rounds=2,
            seconds=0.05,
            cores=Cores(),
            before=lambda c, n, p: steps.append((c.name, n, p.name)),
        )
        assert steps == [(n, i, "shell") for n in ("ping 2", "idle") for i in (0, 1)]
        assert len(starts) == 3
        assert all(s.cpu > 0.001 for s in found.samples(ping(2), "shell"))
        assert not any(folder.exists() for folder in starts)


class RunTests(SynchronousTestCase):
    def setUp(self) -> None:
        needs_compiler()
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.scratch = Path(scratch.name)
        self.cache = str(workshop().folder.parent / f"{workshop().folder.name}-cache")
        self.addCleanup(shutil.rmtree, self.cache, ignore_errors=True)

    def start(self, *words: str, files: int = 1024) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "loadtest", "compare", "echo", *words]
        process = subprocess.Popen(
            ["sh", "-c", 'ulimit -n "$0" && exec "$@"', str(files), *argv],
            cwd=HOME,
            env={**os.environ, "TMPDIR": str(self.scratch), "XDG_CACHE_HOME": self.cache},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_a_real_comparison_starts_the_peers_checks_the_answers_and_leaves_nothing(
        self,
    ) -> None:
        words = ("--only", "ping 1", "--rounds", "1", "--seconds", "0.3", "--json")
        process = self.start(*words, "--peers", "roundhouse,twisted")
        out, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said
        assert said == "1/1  64 B, 1 connection\n"
        told = json.loads(out)
        (one,) = told["cases"]
        assert [row["peer"] for row in one["rows"]] == ["C", OURS, "twisted"]
        assert all(row["samples"][0]["ops"] > 100 for row in one["rows"])
        assert told["answers"] == sum(row["samples"][0]["ops"] for row in one["rows"])
        assert not [*self.scratch.iterdir()]

    def test_a_missed_bound_is_status_1_with_check(self) -> None:
        for bound, status in ((0.5, 0), (2.0, 1)):  # the limit to itself is 1
            done = self.invoke(Bound("C", bound))
            assert done.exit_code == status, done.output
            assert f">= {bound:.2f} {'missed' if status else 'met'}" in done.stdout
            assert done.stderr.endswith("Error: Bounds missed: 1 of 1\n") is bool(status)

    def test_a_peer_that_is_not_installed_is_left_out_and_named(self) -> None:
        def nowhere(workshop: Workshop) -> Peer:
            raise Missing("rust is not installed")

        done = self.invoke(Bound("C", 0.5), rust=nowhere)
        assert done.exit_code == 0, done.output
        assert re.search(r"^  rust +skipped: rust is not installed$", done.stdout, re.MULTILINE)

    def test_a_wrong_answer_is_status_1_and_no_table(self) -> None:
        done = self.invoke(Bound("C", 0.5), liar=lambda workshop: server("data", "liar"))
        assert done.exit_code == 1
        assert (
            "Error: ping 1: liar: a wrong answer; echo_load: connection 0, after 0" in done.stderr
        )
        assert not done.stdout

    def invoke(self, bound: Bound, **peers: Callable[[Workshop], Peer]) -> Result:
        """One short case against the limit and `peers`, in this process."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, files)
        changed = attrs.evolve(COMPARISON, cases=[ping(1, bound)], peers={"C": echo.c, **peers})
        words = ["compare", "echo", "--rounds", "1", "--seconds", "0.05", "--check"]
        with patch.object(echo, "COMPARISON", changed):
            return CliRunner().invoke(cli, words, env={"XDG_CACHE_HOME": self.cache})

    def test_a_terminal_shows_how_far_it_is(self) -> None:
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        words = ["--only", "ping 1", "--rounds", "2", "--seconds", "0.05", "--peers", "C"]
        done = subprocess.run(
            [sys.executable, "-m", "loadtest", "compare", "echo", *words],
            cwd=HOME,
            env={**os.environ, "XDG_CACHE_HOME": self.cache, "TERM": "xterm", "COLUMNS": "80"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=PATIENCE,
            check=False,
        )
        os.close(theirs)
        shown = os.read(ours, 1 << 16).decode()
        assert done.returncode == 0, shown
        assert "ping 1, round 2, C" in shown
        assert b"\x1b" not in done.stdout

    def test_too_few_descriptors_are_explained(self) -> None:
        process = self.start("--only", "ping 5000", "--only", "idle", "--peers", "C", files=512)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 69
        assert "ping 5000 needs ulimit -n 5100, here it is 512; idle needs " in said

    def test_ctrl_c_ends_everything_that_was_started(self) -> None:
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            process = self.start("--only", "ping 50", "--seconds", "60", "--peers", "roundhouse")
            assert process.stderr is not None
            assert process.stderr.readline() == "1/1  64 B, 50 connections\n"
            until = time.monotonic() + PATIENCE
            while len(children := psutil.Process(process.pid).children()) < 3:
                assert time.monotonic() < until
                time.sleep(0.02)
            process.send_signal(number)
            process.communicate(timeout=PATIENCE)
            assert process.returncode == status
            assert not [child for child in children if child.is_running()]
            assert not [*self.scratch.iterdir()]
