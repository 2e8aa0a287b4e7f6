"""The comparison of landed streams: what counts as stored, the servers, and real runs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest
from unittest.mock import patch

import attrs
import pytest
from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from loadtest.__main__ import cli
from loadtest.compare import command, disk, harness, ingest
from loadtest.compare.build import Missing, Workshop
from loadtest.compare.bulk import DATA, MIB, digest
from loadtest.compare.disk import Disk
from loadtest.compare.harness import (
    Cores,
    Launch,
    Peer,
    Reference,
    Server,
    Wrong,
    free_ports,
    measure,
)
from loadtest.compare.ingest import CASES, COMPARISON, OURS, PART, check
from loadtest.compare.report import Report
from loadtest.compare.roundhouse import roundhouse
from loadtest.compare.table import GBPS, PEAK, Bound, Case, Sample, Table
from tests.test_compare import needs_compiler, workshop

SIZE = 3 * MIB // 2  # bytes of a stream: not a whole number of DATA, nor of buffers


def streams(count: int = 3, size: int = SIZE, mode: str = "streams", name: str = "some") -> Case:
    return Case(name, name, (mode, str(count), str(size)), "streams", GBPS, fresh=True)


class StoredTests(SynchronousTestCase):
    """What a folder must hold after a sample."""

    def setUp(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def put(self, name: str, data: bytes) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

    def wrong(self, ops: int, name: str = "C") -> str:
        running = Server(Peer(name, "", "", lambda folder, port: Launch([])))
        running.folder = self.folder
        return ingest.wrong(streams(), running, Sample(ops, 1, 1, 0, 0))

    def test_series_in_parts_and_in_one_file_are_what_was_sent(self) -> None:
        stream = (DATA * 2)[:SIZE]
        self.put("data/x_1_parte_000001.bin", stream[:MIB])
        self.put("data/x_1_parte_000002.bin", stream[MIB:])
        self.put("000002.bin", stream)
        self.put("empty.bin", b"")  # of who only looked whether somebody listens
        self.put("x_1.json", b"{}")
        assert self.wrong(2) == ""

    def test_a_byte_too_few_a_wrong_one_and_a_stream_too_many_are_found(self) -> None:
        stream = (DATA * 2)[:SIZE]
        self.put("one.bin", stream[:-1])
        assert self.wrong(1) == "one has 1,572,863 bytes of 1,572,864"
        for place in (0, MIB, SIZE - 1):
            self.put("one.bin", stream[:place] + b"!" + stream[place + 1 :])
            assert self.wrong(1) == "one is not what was sent"
        self.put("one.bin", stream)
        assert self.wrong(1) == ""
        assert self.wrong(2) == "2 streams were answered, 1 are there"
        self.put("two.bin", stream)
        assert self.wrong(1) == "1 streams were answered, 2 are there"

    def test_lines_of_all_streams_may_lie_in_one_file_but_whole(self) -> None:
        lines = DATA[: SIZE // 16]
        assert self.wrong(2, "rsyslog") == "there are 0 bytes of 196,608"
        self.put("lines.bin", lines + lines)
        assert self.wrong(2, "rsyslog") == ""
        self.put("lines.bin", lines + lines[:-9] + b"x" * 9)
        assert self.wrong(2, "rsyslog") == "what is there is not what was sent"

    def test_files_that_come_after_the_answer_are_waited_for_and_not_for_ever(self) -> None:
        running = Server(Peer("C", "", "", lambda folder, port: Launch([])))
        running.folder = self.folder
        one = Sample(1, 1, 1, 0, 0)
        with patch("time.sleep", lambda seconds: self.put("one.bin", (DATA * 2)[:SIZE])):
            check(streams(), running, one)
        self.put("one.bin", b"short")
        with patch.object(ingest, "PATIENCE", 0.15), pytest.raises(Wrong, match="some: C: one has"):
            check(streams(), running, one)

    def test_the_digest_is_that_of_the_stream(self) -> None:
        assert digest(SIZE) == sha256((DATA * 2)[:SIZE]).hexdigest()


HTTP = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    peer = listener.accept()[0]
    head, _, data = peer.recv(65536).partition(b"\\r\\n\\r\\n")
    if head:
        size = int(head.rpartition(b"Content-Length: ")[2].split()[0])
        while len(data) < size:
            data += peer.recv(65536)
        open(head.split()[1][1:].decode(), "wb").write(data)
        peer.sendall(b"HTTP/1.1 {status}\\r\\n\\r\\n")
    peer.close()
"""

RAW = """
import hashlib, socket, sys, threading
def serve(peer):
    data = bytearray()
    while piece := peer.recv(65536):
        data += piece
    if data:
        open(f"{{peer.getpeername()[0]}}-{{peer.fileno()}}.bin", "wb").write(data)
        peer.sendall({answer})
    peer.close()
def echo(peer):
    while data := peer.recv(65536):
        peer.sendall({echo})
def listen(port, act):
    listener = socket.create_server(("127.0.0.1", int(port)), backlog=100)
    while True:
        threading.Thread(target=act, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=listen, args=(sys.argv[2], echo), daemon=True).start()
listen(sys.argv[1], serve)
"""
RECEIPT = 'b"OK %d %s 1\\n" % (len(data), hashlib.sha256(data).hexdigest().encode())'


def python(code: str, name: str) -> Peer:
    def launch(folder: Path, port: int) -> Launch:
        (other,) = free_ports(1)
        argv = [sys.executable, "-c", code, str(port), str(other)]
        return Launch(argv, ports={"echo PORT": other})

    return Peer(name, "", "", launch)


def raw(answer: str = RECEIPT, echo: str = "data.upper()", name: str = OURS) -> Peer:
    return python(RAW.format(answer=answer, echo=echo), name)


class MeasuredTests(SynchronousTestCase):
    """Real servers under the real load, small."""

    def setUp(self) -> None:
        needs_compiler()
        self.generator = workshop().c("bulk_load")

    def measured(self, peer: Peer, case: Case) -> Sample:
        with Server(peer) as running:
            sample = measure(running, case, self.generator, 0.1, load_of=ingest.load)
            check(case, running, sample)
        return sample

    def test_both_c_servers_land_every_stream_in_exact_parts(self) -> None:
        for make in (ingest.limit, ingest.durable):
            for most in (PART, 400_000, SIZE):
                with patch.object(ingest, "PART", most):
                    taken = self.measured(make(workshop()), streams())
                assert (taken.ops, taken.bytes) == (3, 3 * SIZE)
                assert taken.cpu > 0
                assert taken.peak > 100_000
                assert 0 < taken.p50_us <= taken.p99_us <= taken.seconds * 1e6

    def test_short_connections_come_for_as_long_as_was_asked(self) -> None:
        taken = self.measured(ingest.limit(workshop()), streams(5, 100, "small"))
        assert taken.ops > 20
        assert taken.bytes == 100 * taken.ops
        assert taken.seconds >= 0.1

    def test_idle_streams_are_held_and_land_when_they_end(self) -> None:
        assert self.measured(ingest.limit(workshop()), streams(20, 100, "idle")).ops == 20

    def test_a_receipt_must_be_the_one_for_these_bytes(self) -> None:
        assert self.measured(raw(), streams()).ops == 3
        for answer, said in (
            (RECEIPT.replace("len(data)", "len(data) - 1"), "answer to a stream is: OK 1572863 "),
            (RECEIPT.replace("(data)", "(data[1:])"), "the answer to a stream is: OK "),
            (RECEIPT + ' + b"more"', "the answer to a stream is: OK "),
            ('b"ERR busy\\n"', "the answer to a stream is: ERR busy"),
            ('b""', "the answer to a stream is: a FIN alone"),
        ):
            with pytest.raises(Wrong, match=said):
                self.measured(raw(answer), streams(1))

    def test_who_is_to_answer_by_fin_must_say_nothing(self) -> None:
        assert self.measured(raw('b""', name="mute"), streams()).ops == 3
        with pytest.raises(Wrong, match="the answer to a stream is: hello"):
            self.measured(raw('b"hello"', name="mute"), streams())

    def test_a_put_must_be_answered_by_201(self) -> None:
        assert self.measured(python(HTTP.format(status="201 Made"), "nginx"), streams()).ops == 3
        with pytest.raises(Wrong, match=r"the answer to a stream is: HTTP/1\.1 500"):
            self.measured(python(HTTP.format(status="500 No"), "nginx"), streams())

    def test_echo_goes_on_beside_the_streams_and_its_answers_count(self) -> None:
        both = streams(2, 8 * MIB, name="echo")
        taken = self.measured(raw(), both)
        assert taken.bytes == 16 * MIB
        assert 10 < taken.p50_us <= taken.p99_us
        for echo, said in (("data", "not the line in upper case"), ("exit()", "echo: ")):
            with pytest.raises(Wrong, match=said):
                self.measured(raw(echo=echo), both)

    def test_other_peoples_servers_land_what_they_are_sent(self) -> None:
        found = 0
        for name in ("nginx", "socat", "rsyslog"):  # Go takes half a minute to build
            try:
                peer = COMPARISON.peers[name](workshop())
            except Missing:
                continue
            assert isinstance(peer, Peer)
            assert self.measured(peer, streams(size=MIB)).ops == 3
            found += 1
        if not found:
            raise SkipTest("none of nginx, socat and rsyslogd is installed")

    def test_a_reference_is_measured_without_a_server(self) -> None:
        made = Table()
        steps: list[str] = []
        hashing = ingest.hashing(workshop())
        small = attrs.evolve(streams(), bounds=(Bound("C", 0.0, against="sha256"),))
        with patch.object(ingest, "HASHED", 4 * MIB):
            made = harness.compare(
                COMPARISON,
                [small],
                [ingest.limit(workshop()), hashing],
                self.generator,
                rounds=2,
                seconds=0.1,
                cores=Cores(),
                before=lambda case, number, peer: steps.append(peer.name),
            )
        assert steps == ["C", "sha256"] * 2
        assert [s.bytes for s in made.samples(small, "sha256")] == [4 * len(DATA)] * 2
        (verdict,) = made.verdicts(small)
        assert verdict.met

    def test_a_case_is_for_those_it_names(self) -> None:
        steps: list[str] = []
        named = attrs.evolve(streams(1, 1000), peers=("C",))
        harness.compare(
            COMPARISON,
            [named],
            [ingest.limit(workshop()), ingest.durable(workshop())],
            self.generator,
            rounds=1,
            seconds=0.1,
            cores=Cores(),
            before=lambda case, number, peer: steps.append(peer.name),
        )
        assert steps == ["C"]


class PeerTests(SynchronousTestCase):
    def setUp(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.folder = Path(scratch.name)

    def test_each_form_of_ours_is_the_daemon_with_its_own_settings(self) -> None:
        for make, kept in (
            (ingest.ours, set()),
            (ingest.receipt, {"CHECKSUM = none"}),
            (ingest.plain, {"CHECKSUM = none", "RECEIPT = off", "WAIT_FOR_DISK = off"}),
        ):
            launch = make(workshop()).launch(self.folder, 12345)
            text = (self.folder / "config.cfg").read_text()
            section = text.partition("[ingest]\n")[2].partition("[")[0].splitlines()
            assert {*section} == {"PORT = 12345", *kept}
            assert launch.ports["ingest PORT"] == 12345
            assert f"[echo]\nPORT = {launch.ports['echo PORT']}\n" in text

    def test_a_web_server_that_cannot_put_is_missing(self) -> None:
        program = self.folder / "nginx"
        program.write_text("#!/bin/sh\necho 'configure arguments: --with-http_ssl_module' >&2\n")
        program.chmod(0o755)
        with pytest.raises(Missing, match="has no http_dav_module"):
            ingest.nginx(Workshop(self.folder, {"PATH": str(self.folder)}))

    def test_what_is_not_installed_is_named_with_its_package(self) -> None:
        bare = Workshop(self.folder, {"PATH": str(self.folder)})
        for make, package in (
            (ingest.socat, "socat"),
            (ingest.go, "golang-go"),
            (ingest.limit, "gcc"),
        ):
            with pytest.raises(Missing, match=f"apt install {package}"):
                make(bare)


class DiskTests(SynchronousTestCase):
    def test_the_first_place_on_a_disk_with_room_is_taken(self) -> None:
        kinds = {Path("/a"): "tmpfs", Path("/b"): "ext4", Path("/c"): "xfs"}
        free = {"/a": 1 << 40, "/b": 1 << 20, "/c": 1 << 40}

        def usage(path: str) -> object:
            return type("Usage", (), {"free": free[path]})

        with (
            patch.object(disk, "_kind", kinds.__getitem__),
            patch("psutil.disk_usage", usage),
        ):
            found = disk.disk(1 << 30, [*kinds])
            assert (found, str(found)) == (Disk(Path("/c"), "xfs"), "xfs (/c)")
            with pytest.raises(
                Missing, match=r"no 1\.1 GB free on a disk; tried tmpfs \(/a\), ext4"
            ):
                disk.disk(1 << 30, [Path("/a"), Path("/b")])

    def test_a_folder_is_on_what_is_mounted_nearest_above_it(self) -> None:
        def mounted(all: bool) -> list[object]:
            where = {"/": "ext4", "/run": "tmpfs", "/run/deep": "xfs"}
            return [type("Part", (), {"mountpoint": at, "fstype": k}) for at, k in where.items()]

        with patch("psutil.disk_partitions", mounted):
            for path, kind in (("/runner", "ext4"), ("/run/a/b", "tmpfs"), ("/run/deep", "xfs")):
                assert disk._kind(Path(path)) == kind


class CommandTests(SynchronousTestCase):
    def run_cli(self, *words: str, **environ: str) -> Result:
        return CliRunner().invoke(cli, ["compare", "ingest", *words], env=environ)

    def test_help_names_every_case_and_every_peer(self) -> None:
        said = self.run_cli("-h").output
        for case in CASES:
            assert f"  {case.name} " in said
        assert f"Peers:\n    {', '.join(COMPARISON.peers)}\n" in said
        assert "About 6 minutes: a rough picture." in said

    def test_peers_that_take_part_in_no_case_are_wrong_usage(self) -> None:
        done = self.run_cli("--only", "echo", "--peers", "go")
        assert done.exit_code == 2
        assert (
            "none of these peers takes part in these cases; there are: roundhouse-plain, roundhouse"
            in done.output
        )

    def test_without_room_on_a_disk_nothing_is_started(self) -> None:
        full = Missing("no 4.3 GB free on a disk")
        with patch.object(command, "disk", side_effect=full):
            done = self.run_cli("--only", "echo")
        assert done.exit_code == 69
        assert done.output == "Error: skipped: no 4.3 GB free on a disk\n"

    def test_the_report_tells_the_disk_the_other_figures_and_what_was_compared(self) -> None:
        case = attrs.evolve(
            streams(),
            columns=(PEAK,),
            bounds=(Bound("ours", 0.8), Bound("ours", 96, against=None, figure=PEAK)),
        )
        made = Table()
        for peer, seconds, peak in (("C", 1.0, 2e6), ("ours", 1.25, 120e6)):
            made.add(case, peer, Sample(1, seconds, 1.0, 1, 2, bytes=10**9, peak=int(peak)))
        made.add(case, "sha256", Sample(1, 1, 1, 0, 0, bytes=10**9))
        peers = [Reference("sha256", "a thread", "1", lambda case: Sample(1, 1, 1, 0, 0))]
        report = Report(
            "ingest", made, peers, 1, 1, Cores(), proof=COMPARISON.proof, where="ext4 (/tmp)"
        )
        text = report.text()
        assert "server and load anywhere, files on ext4 (/tmp); " in text
        assert re.search(r"^some +to C +min\.\.max +bound +GB/s +peak MB$", text, re.MULTILINE)
        assert re.search(
            r"^  ours +0\.80 +0\.80\.\.0\.80 +>= 0\.80 met +0\.8 +120\n"
            r"    peak MB +120 +120\.\.120 +<= 96\.00 missed$",
            text,
            re.MULTILINE,
        )
        assert "3 streams with 3,000,000,000 bytes in all were found" in text
        told = json.loads(json.dumps(report.as_json()))
        assert (told["bytes"], told["disk"]) == (3 * 10**9, "ext4 (/tmp)")
        (one,) = told["cases"]
        assert one["rows"][1]["peak"]["median"] == 120e6 / 1e6
        assert [b["figure"] for b in one["bounds"]] == ["gbps", "peak"]


class RunTests(SynchronousTestCase):
    def test_a_real_comparison_lands_streams_in_the_daemon_and_leaves_nothing(self) -> None:
        needs_compiler()
        cases = [
            attrs.evolve(streams(2, 4 * MIB, name=name), peers=peers)
            for name, peers in (("few", ()), ("echo", (OURS,)))
        ]
        peers: dict[str, Callable[[Workshop], Peer | Reference]] = {
            "C": lambda shop: ingest.limit(workshop()),
            OURS: lambda shop: roundhouse("ingest", name=OURS, about=""),
        }
        changed = attrs.evolve(COMPARISON, cases=cases, peers=peers, room=1)
        with TemporaryDirectory() as scratch:
            place = Disk(Path(scratch), "ext4")
            with (
                patch.object(ingest, "COMPARISON", changed),
                patch.object(command, "disk", lambda room, places: place),
            ):
                words = ["compare", "ingest", "--rounds", "1", "--json"]
                cached = str(workshop().folder)
                done = CliRunner().invoke(cli, words, env={"XDG_CACHE_HOME": cached})
            assert done.exit_code == 0, done.output
            assert not [*Path(scratch).iterdir()]
        told = json.loads(done.stdout)
        few, echo = told["cases"]
        assert [row["peer"] for row in few["rows"]] == ["C", OURS]
        assert [row["peer"] for row in echo["rows"]] == [OURS]
        assert told["bytes"] == 3 * 2 * 4 * MIB
