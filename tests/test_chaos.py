"""The hazards of tests/chaos in short, and that each of their eyes sees.

The long runs are a command of their own: python -m tests.chaos.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from attrs import define, field
from click.testing import CliRunner
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from daemon.stores.landing.manifest import Manifest
from tests.chaos import __main__ as command
from tests.chaos import tools
from tests.chaos.__main__ import main
from tests.chaos.handshake import Handshake
from tests.chaos.hazards import Life, Outcome, Trial, Victim
from tests.chaos.ingest import Ingest, IngestFin
from tests.chaos.relay import Relay
from tests.chaos.relay_http import RelayHttp
from tests.chaos.tools import Impossible
from tests.chaos.workload import Client, Heard, Load, Verdict, Workload
from tests.process import PATIENCE, Twistd

SEED = 20261111


class HastyRelayHttp(RelayHttp):
    LEASE = 1.0


class ChaosCase(SynchronousTestCase):
    def trial(self, make: Callable[[], Workload], within: float = PATIENCE) -> Trial:
        self.steps: list[str] = []
        return Trial(make, random.Random(SEED), within, self.steps.append)

    def sound(self, outcome: Outcome) -> None:
        for home in outcome.kept:
            self.addCleanup(shutil.rmtree, home)
        assert outcome.verdict.good, str(outcome)[:2000]
        assert outcome.verdict.acknowledged > 0
        assert outcome.kept == []

    def possible(self, run: Callable[[], Outcome]) -> Outcome:
        try:
            return run()
        except Impossible as reason:
            raise SkipTest(str(reason)) from None


class KillTests(ChaosCase):
    def test_ingest_keeps_what_it_acknowledged_through_kill_9(self) -> None:
        self.sound(self.trial(Ingest).kills(1))

    def test_a_fin_that_does_not_wait_for_the_disk_outlives_kill_9(self) -> None:
        self.sound(self.trial(IngestFin).kills(3))

    def test_relay_keeps_what_it_acknowledged_through_kill_9(self) -> None:
        self.sound(self.trial(Relay).kills(1))

    def test_relay_over_http_keeps_what_it_acknowledged_through_kill_9(self) -> None:
        self.sound(self.trial(HastyRelayHttp).kills(1))


class CrowdTests(ChaosCase):
    def test_relay_over_http_hands_each_file_to_one_of_those_that_live(self) -> None:
        outcome = self.trial(HastyRelayHttp).crowd(100)
        self.sound(outcome)
        assert outcome.deaths == 0


class CrashPointTests(ChaosCase):
    def point(self, make: Callable[[], Workload], kind: str, number: int) -> None:
        trial = self.trial(make)
        outcome = self.possible(lambda: trial.points([number], [kind]))
        self.sound(outcome)
        assert outcome.notes == []
        assert outcome.deaths == 1

    def test_ingest_survives_the_end_in_place_of_a_rename(self) -> None:
        self.point(Ingest, "rename", 60)

    def test_a_fin_outlives_the_end_in_place_of_the_sync_that_nobody_waits_for(self) -> None:
        self.point(IngestFin, "fdatasync", 60)

    def test_handshake_survives_the_end_in_place_of_a_commits_sync(self) -> None:
        self.point(Handshake, "fdatasync", 40)

    def test_relay_survives_the_end_in_place_of_a_removal(self) -> None:
        self.point(Relay, "unlink", 12)

    def test_a_point_that_the_process_never_comes_to_is_said(self) -> None:
        trial = self.trial(Handshake)
        outcome = self.possible(lambda: trial.points([10**6, 10**7], ["rename"], patience=1.5))
        self.sound(outcome)
        assert outcome.notes == ["the process never came to rename 1000000"]
        assert self.steps == ["rename 1000000 of 10000000"]


class PowerTests(ChaosCase):
    def test_ingest_keeps_what_it_acknowledged_through_a_power_cut(self) -> None:
        self.sound(self.possible(lambda: self.trial(Ingest).power(1)))

    def test_a_handshake_that_never_syncs_loses_what_it_acknowledged(self) -> None:
        outcome = self.possible(self.trial(Handshake).control)
        assert outcome.verdict.good, str(outcome)[:2000]
        (note,) = outcome.notes
        assert note.endswith(", as it should")

    def test_a_disk_is_gone_afterwards_whatever_happened(self) -> None:
        places: list[Path] = []

        def fail() -> Outcome:
            with tools.mounted() as disk:
                places.append(disk.folder)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            self.possible(fail)
        assert not places[0].parent.exists()
        assert str(places[0]) not in Path("/proc/self/mounts").read_text()


class EyeTests(ChaosCase):
    """A workload that has seen a healthy run must see each thing that goes wrong afterwards."""

    def lived(self, workload: Workload) -> Path:
        """DATA_DIR after a moment under load and a polite stop, where nothing is wrong."""
        life = Life(workload, Victim(settings=workload.settings), PATIENCE)
        self.addCleanup(life.daemon.discard)
        life.serve()
        with Load(workload.clients(life.daemon)) as load:
            time.sleep(0.5)
        life.judge(load)
        assert life.verdict.good, str(life.verdict)[:2000]
        assert life.verdict.acknowledged > 10
        return life.daemon.data

    def test_of_ingest(self) -> None:
        workload = Ingest()
        data = self.lived(workload)
        folder = data / "ingest"
        whole = [
            path
            for path in sorted(folder.glob("*.json"))
            if Manifest.from_json(path.read_bytes()).complete
        ]
        gone, changed, doubled = (path.stem for path in whole[:3])
        for path in folder.glob(f"{gone}*"):
            path.unlink()
        part = folder / f"{changed}_parte_000001.bin"
        part.write_bytes(part.read_bytes()[:-1] + b"\0")
        for path in folder.glob(f"{doubled}*"):
            shutil.copy(path, folder / path.name.replace(doubled, "again"))
        verdict = workload.verify(data)
        assert len(verdict.lost) == 1
        assert len(verdict.twice) == 1
        assert any(changed in one for one in verdict.wrong)

    def test_of_handshake(self) -> None:
        workload = Handshake()
        data = self.lived(workload)
        with sqlite3.connect(data / "roundhouse.db") as database:
            texts = [t for (t,) in database.execute("SELECT message FROM messages LIMIT 2")]
            database.execute("DELETE FROM messages WHERE message = ?", texts[:1])
            database.execute("UPDATE messages SET seq = seq + 1e6 WHERE message = ?", texts[1:])
        database.close()
        verdict = workload.verify(data)
        assert verdict.lost == (repr(texts[0]),)
        assert any("table" in one and "differ" in one for one in verdict.wrong)
        workload.said[texts[1]] = 5
        assert any("acknowledged was 5" in one for one in workload.verify(data).wrong)

    def test_of_relay(self) -> None:
        workload = Relay()
        data = self.lived(workload)
        when, file = workload.got[0]
        workload.got.append((when + 9, file))
        workload.got.append((when, b"stranger"))
        del workload.got[1]
        verdict = workload.verify(data)
        assert [len(some) for some in (verdict.lost, verdict.twice, verdict.wrong)] == [1, 1, 1]

    def test_of_relay_over_http(self) -> None:
        workload = HastyRelayHttp()
        data = self.lived(workload)
        when, ident, file = workload.got[0]
        workload.got.append((when + 9, "0", file))
        workload.got.append((when, ident, b"stranger"))
        del workload.got[1]
        again = next(iter(workload.ended))
        workload.handed.append((when + 99, again))
        (data / "relay" / "more.parcel").write_bytes(b"")
        verdict = workload.verify(data)
        assert [len(some) for some in (verdict.lost, verdict.twice, verdict.wrong)] == [1, 2, 3]


@define(eq=False)
class Forgetful:
    """A service that loses everything, whose clients do not care."""

    settings: Mapping[str, str] = field(factory=dict)
    strikes: list[float] = field(factory=list)
    powerless: bool = False
    heard: Sequence[Heard[str, str]] = ()

    def clients(self, daemon: Twistd) -> Sequence[Client]:
        return [lambda: time.sleep(0.01)]

    def collect(self, daemon: Twistd) -> None:
        pass

    def verify(self, data: Path) -> Verdict:
        return Verdict(1, lost=("the only one",))


class FrameTests(ChaosCase):
    def test_a_client_that_meets_what_it_never_should_is_told(self) -> None:
        def odd() -> None:
            raise AssertionError("OK 3 for 4 bytes")

        def gone() -> None:
            raise ConnectionResetError

        with Load([odd, gone]) as load:
            time.sleep(0.05)
        assert load.wrong == ["a client met AssertionError('OK 3 for 4 bytes')"]

    def test_verdicts_add_up(self) -> None:
        total = Verdict(2, ("a",)) + Verdict(3, ("b",), ("c",))
        assert total == Verdict(5, ("a", "b"), ("c",))
        assert not total.good
        assert Verdict(7).good


class CommandTests(ChaosCase):
    def test_scripts_get_one_json_object(self) -> None:
        arguments = ["handshake", "--kills", "1", "--points", "0", "--power", "0", "--within", "20"]
        shown = CliRunner().invoke(main, [*arguments, "--seed", "7", "--json"])
        assert shown.exit_code == 0, shown.output
        said = json.loads(shown.stdout)
        (told,) = said["services"]["handshake"]
        assert (said["seed"], said["good"], told["hazard"]) == (7, True, "kill -9")
        assert shown.stderr == "seed 7\nhandshake: kill -9, 1 of 1\n"

    def test_what_cannot_be_had_here_is_skipped_with_the_reason(self) -> None:
        self.patch(os, "environ", {**os.environ, "PATH": "/nowhere"})
        arguments = ["ingest", "--kills", "0", "--points", "1", "--power", "1"]
        shown = CliRunner().invoke(main, arguments)
        assert shown.exit_code == 69
        points, power, control = shown.stdout.splitlines()
        assert points.endswith(" skipped: gcc is not installed (apt install gcc libc6-dev)")
        assert "power         skipped: " in power
        assert "control       skipped: " in control

    def test_a_power_cut_is_not_for_what_promises_nothing_about_it(self) -> None:
        arguments = ["ingest-fin", "--kills", "0", "--points", "0", "--power", "1"]
        shown = CliRunner().invoke(main, arguments)
        assert shown.exit_code == 69
        power, control = shown.stdout.splitlines()
        assert power.endswith(" skipped: it promises nothing about power")
        assert control.endswith(" skipped: it promises nothing about power")

    def test_a_loss_and_a_slow_start_are_status_1_and_the_home_of_that_daemon_is_kept(self) -> None:
        self.patch(command, "SERVICES", {"ingest": Forgetful})
        arguments = ["--kills", "1", "--points", "0", "--power", "0", "--seed", str(SEED)]
        shown = CliRunner().invoke(main, [*arguments, "--within", "0"])
        first, lost, *wrong, kept = shown.stdout.splitlines()
        home = Path(kept.removeprefix("  kept: "))
        self.addCleanup(shutil.rmtree, home)
        assert shown.exit_code == 1
        assert "1 deaths, 1 acknowledged: 1 lost, 0 twice, 2 wrong" in first
        assert lost == "  lost: the only one"
        assert all(line.startswith("  wrong: a start took ") for line in wrong)
        assert (home / "out.log").exists()

    def test_an_unknown_service_is_wrong_usage(self) -> None:
        shown = CliRunner().invoke(main, ["chat"])
        assert shown.exit_code == 2
        assert "there are: ingest, ingest-fin, handshake" in shown.stderr
