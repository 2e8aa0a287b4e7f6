"""What proves a folder of landed series, and each way in which it can differ."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import evolve
from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from daemon import verify
from daemon.__main__ import main
from daemon.stores.landing.manifest import Manifest, Piece

HOME = Path(__file__).resolve().parents[1]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def manifest_of(stem: str, *parts: bytes, summed: bool = True, complete: bool = True) -> Manifest:
    return Manifest(
        stem,
        sum(map(len, parts)),
        sha(b"".join(parts)) if summed else None,
        tuple(
            Piece(f"{stem}_parte_{number:06d}.bin", len(part), sha(part) if summed else None)
            for number, part in enumerate(parts, 1)
        ),
        peer="127.0.0.1:4711",
        opened=1_800_000_000.0,
        closed=1_800_000_001.0,
        outcome="whole" if complete else "reset",
    )


class VerifyCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "ingest"
        self.folder.mkdir()

    def land(
        self, stem: str, *parts: bytes, summed: bool = True, complete: bool = True
    ) -> Manifest:
        manifest = manifest_of(stem, *parts, summed=summed, complete=complete)
        for part, data in zip(manifest.parts, parts, strict=True):
            (self.folder / part.name).write_bytes(data)
        (self.folder / f"{stem}.json").write_bytes(manifest.to_json())
        if (sums := manifest.sums()) is not None:
            (self.folder / f"{stem}.sha256").write_bytes(sums)
        return manifest

    def serve(self, pid: int | None = None, since: float | None = None) -> None:
        """As if a daemon served the folder since then (seconds since the epoch; None: now)."""
        lock = self.folder.parent / ".landing.lock"
        lock.write_text(f"{os.getpid() if pid is None else pid}\n")
        if since is not None:
            os.utime(lock, (since, since))

    def proof(self) -> verify.Proof:
        return verify.prove(verify.look(self.folder), threads=2)

    def problems(self) -> list[str]:
        return [str(problem) for problem in self.proof().problems]

    def run_it(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["verify", *arguments])


class ProofTests(VerifyCase):
    def test_a_sound_folder_is_proven(self) -> None:
        self.land("a", b"12345", b"678", b"9")
        self.land("b", os.urandom(3 * verify.CHUNK // 2), complete=False)
        self.land("c", b"x", summed=False)
        (self.folder / "a.pending").touch()
        (self.folder / ".journal").write_bytes(b"the landing's own")
        seen: list[int] = []
        proof = verify.prove(verify.look(self.folder), 2, seen.append)
        assert proof.problems == ()
        assert (proof.series, proof.parts, proof.cut, proof.unsummed) == (3, 5, 1, 1)
        assert proof.size == sum(seen) == 10 + 3 * verify.CHUNK // 2

    def test_a_missing_part_a_wrong_size_and_a_wrong_byte_are_named(self) -> None:
        self.land("a", b"12345", b"678", b"9")
        self.land("b", b"12345", b"678")
        self.land("c", b"12345")
        (self.folder / "a_parte_000002.bin").unlink()
        (self.folder / "a_parte_000003.bin").write_bytes(b"99")
        (self.folder / "b_parte_000002.bin").write_bytes(b"6x8")
        (self.folder / "c_parte_000001.bin").write_bytes(b"1234x")
        assert sorted(self.problems()) == [
            "a_parte_000002.bin: is missing",
            "a_parte_000003.bin: holds 2 bytes, its manifest says 1",
            f"b_parte_000002.bin: its sha256 is {sha(b'6x8')}, its manifest says {sha(b'678')}",
            f"c_parte_000001.bin: its sha256 is {sha(b'1234x')}, its manifest says {sha(b'12345')}",
        ]

    def test_without_sums_the_sizes_are_proven(self) -> None:
        self.land("a", b"12345", b"678", summed=False)
        (self.folder / "a_parte_000001.bin").write_bytes(b"1234")
        assert self.problems() == ["a_parte_000001.bin: holds 4 bytes, its manifest says 5"]

    def test_a_series_of_which_not_all_could_be_kept_has_sums_of_what_was(self) -> None:
        manifest = self.land("a", b"12345", b"678")
        (self.folder / "a.json").write_bytes(evolve(manifest, sha256=None).to_json())
        assert self.problems() == []
        (self.folder / "a_parte_000002.bin").write_bytes(b"6x8")
        assert len(self.problems()) == 1

    def test_parts_that_do_not_add_up_are_a_fault(self) -> None:
        manifest = self.land("a", b"12345", b"678")
        (self.folder / "a.json").write_bytes(evolve(manifest, size=9).to_json())
        assert self.problems() == ["a.json: says 9 bytes, and 8 in its parts"]

    def test_the_sum_of_the_whole_and_the_list_for_sha256sum_must_agree(self) -> None:
        manifest = self.land("a", b"1", b"2")
        other = evolve(manifest, sha256=sha(b"21"))
        (self.folder / "a.json").write_bytes(other.to_json())
        self.land("b", b"1")
        (self.folder / "b.sha256").unlink()
        self.land("c", b"1")
        (self.folder / "c.sha256").write_bytes(b"x")
        assert sorted(self.problems()) == [
            f"a.json: the sha256 of all its parts is {sha(b'12')}, it says {sha(b'21')}",
            "b.sha256: is missing",
            "c.sha256: differs from the manifest",
        ]

    def test_what_is_no_manifest_and_what_cannot_be_read_is_named(self) -> None:
        (self.folder / "a.json").write_bytes(b"{}")
        self.land("b", b"1")
        (self.folder / "b_parte_000001.bin").unlink()
        (self.folder / "b_parte_000001.bin").symlink_to("/etc/hostname")
        (self.folder / "b.sha256").unlink()
        (self.folder / "b.sha256").mkdir()
        (self.folder / "c.json").mkdir()
        assert sorted(self.problems()) == [
            "a.json: no manifest: 'parts' is missing",
            "b.sha256: cannot be read: Is a directory",
            "b_parte_000001.bin: cannot be read: Too many levels of symbolic links",
            "c.json: cannot be read: Is a directory",
        ]

    def test_what_no_manifest_names_is_extra(self) -> None:
        self.land("a", b"1")
        for name in ("b_parte_000001.bin", "c.bin.partial", "d.bin.damaged", "no\x1btes"):
            (self.folder / name).touch()
        (self.folder / "folder").mkdir()
        assert self.problems() == [
            "b_parte_000001.bin: no manifest names it",
            "c.bin.partial: left by a crash; the next start of the daemon finishes it",
            "d.bin.damaged: its sync failed: what is in it is for you to judge",
            "folder: no manifest names it",
            "no\\x1btes: no manifest names it",
        ]

    def test_a_series_that_is_deleted_meanwhile_is_no_fault(self) -> None:
        self.land("a", b"1")
        found = verify.look(self.folder)
        for path in self.folder.iterdir():
            path.unlink()
        assert verify.prove(found, threads=1).problems == ()


class RunningDaemonTests(VerifyCase):
    def test_what_the_running_daemon_has_not_finished_is_in_progress(self) -> None:
        self.serve(since=time.time() - 1)
        self.land("a", b"1")
        (self.folder / "b_parte_000001.bin").touch()
        (self.folder / "b_parte_000002.bin.partial").touch()
        proof = self.proof()
        assert proof.problems == ()
        assert proof.in_progress == ("b_parte_000001.bin", "b_parte_000002.bin.partial")

    def test_a_manifest_that_is_being_written_is_read_again(self) -> None:
        self.serve(since=time.time() - 1)
        path = self.folder / "a.json"
        manifest = self.land("a", b"1").to_json()
        path.write_bytes(manifest[:10])
        waits: list[float] = []

        def goes_on(seconds: float) -> None:
            waits.append(seconds)
            path.write_bytes(manifest)

        self.patch(time, "sleep", goes_on)
        assert self.problems() == []
        assert len(waits) == 1
        path.write_bytes(b"{}")
        self.patch(time, "sleep", waits.append)
        assert self.problems() == ["a.json: no manifest: 'parts' is missing"]

    def test_what_is_older_than_the_running_daemon_or_damaged_is_a_fault_all_the_same(self) -> None:
        (self.folder / "b_parte_000001.bin").touch()
        os.utime(self.folder / "b_parte_000001.bin", (1, 1))
        self.serve(since=time.time() - 1)
        (self.folder / "c.damaged").touch()
        assert len(self.problems()) == 2

    def test_a_process_that_has_the_number_of_a_dead_daemon_is_not_taken_for_it(self) -> None:
        self.serve(since=1.0)
        assert verify.serving_since(self.folder) is None
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        self.serve(pid=gone.pid)
        assert verify.serving_since(self.folder) is None
        (self.folder.parent / ".landing.lock").write_text("")
        assert verify.serving_since(self.folder) is None


class CommandTests(VerifyCase):
    def test_all_proven_is_status_0_and_a_line(self) -> None:
        self.land("a", b"12345", b"678")
        self.land("b", b"9", complete=False)
        self.land("c", b"9", summed=False)
        shown = self.run_it(str(self.folder))
        assert shown.exit_code == 0
        assert shown.stdout.startswith(f"{self.folder}: 3 series, 4 parts, 10 bytes in 0.")
        assert shown.stdout.endswith(
            " s: all proven; 1 of the series were cut by their peer;"
            " 1 without sums, proven by their sizes alone\n"
        )

    def test_a_difference_is_status_1_and_a_line_each(self) -> None:
        self.land("a", b"1")
        (self.folder / "a_parte_000001.bin").unlink()
        (self.folder / "b.partial").touch()
        shown = self.run_it(str(self.folder), "--threads", "1")
        assert shown.exit_code == 1
        assert shown.stdout.splitlines()[1] == "a_parte_000001.bin: is missing"
        assert shown.stdout.splitlines()[2].endswith("s: 2 problems")

    def test_an_empty_folder_says_that_there_was_nothing(self) -> None:
        shown = self.run_it(str(self.folder))
        assert (shown.exit_code, "nothing to prove" in shown.stdout) == (0, True)

    def test_no_such_folder_is_status_66_and_nothing_is_read(self) -> None:
        shown = self.run_it(str(self.folder), str(self.folder / "gone"), __file__)
        assert shown.exit_code == 66
        assert shown.stdout == ""
        assert shown.stderr == (
            f"{self.folder / 'gone'}: no such file or directory\n{__file__}: not a directory\n"
        )

    def test_scripts_get_one_json_object(self) -> None:
        self.serve(since=time.time() - 1)
        self.land("a", b"12345")
        (self.folder / "b.partial").touch()
        (self.folder / "c.damaged").touch()
        shown = self.run_it(str(self.folder), "--json")
        assert shown.exit_code == 1
        said = json.loads(shown.stdout)
        (folder,) = said["folders"]
        assert (said["ok"], folder["ok"]) == (False, False)
        assert (folder["series"], folder["bytes"], folder["in_progress"]) == (1, 5, ["b.partial"])
        assert [one["name"] for one in folder["problems"]] == ["c.damaged"]

    def test_without_a_folder_it_is_wrong_usage_and_help_has_examples(self) -> None:
        assert self.run_it().exit_code == 2
        shown = self.run_it("--help")
        assert "python -m daemon verify data/ingest" in shown.stdout
        assert "sha256sum --quiet -c *.sha256" in shown.stdout

    def test_a_terminal_sees_a_bar_without_colour_where_none_is_wanted(self) -> None:
        import pty

        self.land("a", os.urandom(2 * verify.CHUNK))
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        done = subprocess.run(
            [sys.executable, "-m", "daemon", "verify", str(self.folder)],
            cwd=HOME,
            env={**os.environ, "NO_COLOR": "1", "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=theirs,
            check=True,
        )
        os.close(theirs)
        assert b"all proven" in done.stdout
        bar = os.read(ours, 1 << 16)
        assert b"MiB" in bar
        assert b"\x1b[3" not in bar
