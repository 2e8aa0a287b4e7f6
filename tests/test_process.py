"""A real twistd: started from any folder, reloaded, stopped, killed and started again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.process import HOME, PATIENCE, PORTS, Twistd, everything

FOREGROUND = ("-n", "--pidfile=")


class ProcessCase(SynchronousTestCase):
    def daemon(self, tac: str = "service.tac") -> Twistd:
        daemon = Twistd(tac=tac)
        self.addCleanup(daemon.discard)
        return daemon

    def refused(self, daemon: Twistd, *options: str) -> tuple[int, str]:
        """The status and the output of a daemon that does not start."""
        daemon.process = daemon.spawn(*options)
        return daemon.process.wait(PATIENCE), daemon.log


class StartTests(ProcessCase):
    def test_a_first_start_in_an_empty_folder_serves_all_five_and_stops_with_status_0(self) -> None:
        daemon = self.daemon().start()
        for (name, _), usual in PORTS.items():
            daemon.says(f"{name} listening on 127.0.0.1:{daemon.ports[usual]}")
        daemon.says("Press Ctrl+C to stop.")
        assert daemon.ask(5000, b"hola") == b"HOLA"
        assert daemon.ask(60060, b"hola\n") == b"hola\n"
        assert daemon.ask(8080, b"abc").startswith(b"OK 3 ba7816bf")
        assert daemon.stop(signal.SIGINT) == 0
        assert "Traceback" not in daemon.log

    def test_plain_twistd_daemonises_and_still_serves_reloads_and_stops(self) -> None:
        daemon = self.daemon()
        pidfile = daemon.home / "twistd.pid"
        log = daemon.home / "twistd.log"
        assert daemon.spawn().wait(PATIENCE) == 0
        pid = int(pidfile.read_text())
        self.addCleanup(self.end, pid)
        assert daemon.ask(5000, b"hola") == b"HOLA"
        assert daemon.ask(8080, b"abc").startswith(b"OK 3 ba7816bf")
        modes = {p.name: p.stat().st_mode & 0o777 for p in (daemon.data / "ingest").iterdir()}
        assert set(modes.values()) == {0o640}
        assert daemon.data.stat().st_mode & 0o777 == 0o750
        os.kill(pid, signal.SIGHUP)
        self.wait_for(lambda: "read again" in log.read_text())
        assert "Press Ctrl+C" not in log.read_text()
        os.kill(pid, signal.SIGTERM)
        self.wait_for(lambda: not pidfile.exists())

    def test_one_service_runs_alone_from_its_own_tac(self) -> None:
        daemon = self.daemon("tac/echo.tac")
        process = daemon.process = daemon.spawn(*FOREGROUND)
        daemon.says("echo listening on")
        assert daemon.ask(5000, b"x") == b"X"
        assert daemon.log.count("listening on") == 2  # and the admin port
        assert not daemon.data.exists()
        assert daemon.stop() == process.returncode == 0

    def test_the_collector_of_garbage_leaves_alone_what_was_imported(self) -> None:
        daemon = self.daemon()
        look = "import gc, runpy, sys; runpy.run_path(sys.argv[1]); print(gc.get_freeze_count())"
        shown = subprocess.run(
            [sys.executable, "-c", look, str(HOME / daemon.tac)],
            env=daemon.environ(),
            capture_output=True,
            check=True,
        )
        assert int(shown.stdout) > 50_000

    def test_all_taken_ports_are_named_in_both_modes_with_status_69(self) -> None:
        daemon = self.daemon()
        with (
            socket.create_server(("127.0.0.1", daemon.ports[5000])),
            socket.create_server(("127.0.0.1", daemon.ports[8001])),
        ):
            for options in (FOREGROUND, ()):
                status, said = self.refused(daemon, *options)
                assert status == 69
                assert re.search(r"handshake: tcp:\d+:.* is taken by .*\(pid \d+\) ", said)
                assert re.search(r"config.cfg:\d+: \[echo\] PORT moves it", said)
                assert "Traceback" not in said

    def test_bad_settings_end_with_status_78_in_both_modes(self) -> None:
        daemon = self.daemon()
        daemon.configure("MAX_FILE_SIZE = lots")
        for options in (FOREGROUND, ()):
            status, said = self.refused(daemon, *options)
            assert status == 78
            assert "config.cfg:3: [DEFAULT] MAX_FILE_SIZE = lots: " in said
            assert "Traceback" not in said

    def test_a_database_of_a_newer_version_is_refused_in_one_line_and_left_alone(self) -> None:
        daemon = self.daemon()
        daemon.data.mkdir()
        path = daemon.data / "roundhouse.db"
        newer = sqlite3.connect(path)
        newer.executescript("PRAGMA user_version = 999; CREATE TABLE future (x)")
        newer.close()
        before = path.read_bytes()
        status, said = self.refused(daemon, *FOREGROUND)
        assert status == 73
        (line,) = [line for line in said.splitlines() if "roundhouse.db" in line]
        assert "999" in line
        assert path.read_bytes() == before
        assert {p.name for p in daemon.data.glob("roundhouse*")} == {"roundhouse.db"}

    def end(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        until = time.monotonic() + PATIENCE
        while not happened():
            assert time.monotonic() < until
            time.sleep(0.02)

    def test_a_damaged_database_is_refused_in_one_line(self) -> None:
        daemon = self.daemon()
        daemon.data.mkdir()
        path = daemon.data / "roundhouse.db"
        sound = sqlite3.connect(path)
        sound.executescript("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(20000))")
        sound.close()
        path.write_bytes(path.read_bytes()[:100] + os.urandom(8000))
        status, said = self.refused(daemon, *FOREGROUND)
        assert status == 73
        assert said.count("roundhouse.db cannot be used") == 1
        assert "Traceback" not in said


class StopTests(ProcessCase):
    def test_a_stop_lets_a_stream_finish_and_acknowledges_it(self) -> None:
        daemon = self.daemon().start()
        with daemon.connect(8080) as sock:
            sock.sendall(b"begun ")
            time.sleep(0.2)
            daemon.send(signal.SIGTERM)
            daemon.says("SIGTERM: finishing what is in hand")
            time.sleep(0.2)
            sock.sendall(b"and ended")
            sock.shutdown(socket.SHUT_WR)
            sha = hashlib.sha256(b"begun and ended").hexdigest()
            assert everything(sock) == f"OK 15 {sha} 1\n".encode()
        assert daemon.process is not None
        assert daemon.process.wait(PATIENCE) == 0

    def test_a_stream_without_end_is_told_what_is_kept_within_the_grace(self) -> None:
        daemon = self.daemon()
        daemon.configure(daemon="GRACE = 2")
        daemon.start()
        with daemon.connect(8080) as sock:
            sock.sendall(b"for ever")
            time.sleep(0.2)
            began = time.monotonic()
            daemon.send(signal.SIGTERM)
            assert everything(sock) == b"ERR stopping stored=8\n"
        assert daemon.process is not None
        assert daemon.process.wait(PATIENCE) == 0
        assert time.monotonic() - began < 2.5

    def test_a_second_signal_ends_at_once(self) -> None:
        daemon = self.daemon().start()
        with daemon.connect(8080) as sock:
            sock.sendall(b"for ever")
            time.sleep(0.2)
            daemon.send(signal.SIGTERM)
            daemon.says("once more ends at once")
            assert daemon.stop() == -signal.SIGTERM

    def on_a_terminal(self, daemon: Twistd, *command: str) -> int:
        """Start it in the foreground, by a command before it; our end of its terminal."""
        ours, theirs = pty.openpty()
        twistd = Path(sys.executable).with_name("twistd")
        tac = Path(__file__).resolve().parents[1] / "service.tac"
        daemon.process = subprocess.Popen(
            [*command, str(twistd), *FOREGROUND, "-l", "out.log", "-y", str(tac)],
            cwd=daemon.home,
            env=daemon.environ(),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        daemon.says("Press Ctrl+C to stop.")
        daemon.send(signal.SIGHUP)
        daemon.says("read again")
        return ours

    def test_a_foreground_daemon_whose_terminal_is_gone_stops(self) -> None:
        daemon = self.daemon()
        os.close(self.on_a_terminal(daemon, "setsid", "--ctty"))
        assert daemon.process is not None
        assert daemon.process.wait(PATIENCE) == 0
        daemon.says("SIGHUP: finishing")

    def test_a_terminal_that_is_not_its_own_is_not_missed(self) -> None:
        daemon = self.daemon()
        ours = self.on_a_terminal(daemon, "setsid")
        assert daemon.stop() == 0
        os.close(ours)


class LiveSettingsTests(ProcessCase):
    def test_a_changed_file_rules_the_connections_that_come_after_it(self) -> None:
        daemon = self.daemon().start()
        with daemon.connect(8080) as early:
            early.sendall(b"1234567")
            time.sleep(0.1)
            daemon.configure("MAX_FILE_SIZE = 3  # bytes\nFILE_PREFIX = tiny")
            daemon.says("[ingest] MAX_FILE_SIZE = 3")
            assert daemon.ask(8080, b"1234567").endswith(b" 3\n")
            early.shutdown(socket.SHUT_WR)
            assert everything(early).endswith(b" 1\n")
        tiny = sorted((daemon.data / "ingest").glob("tiny_*"))
        assert [p.stat().st_size for p in tiny] == [3, 3, 1]

    def test_reloads_under_load_drop_nothing_and_a_bad_file_keeps_the_settings(self) -> None:
        daemon = self.daemon().start()
        with daemon.connect(60060) as member:
            for number in range(20):
                daemon.configure(f"MAX_FILE_SIZE = {'x' if number % 2 else number + 1}")
                daemon.send(signal.SIGHUP)
                line = b"line %d\n" % number
                member.sendall(line)
                assert member.recv(len(line), socket.MSG_WAITALL) == line
        daemon.says("nothing changed")
        assert daemon.stop() == 0


class KillTests(ProcessCase):
    def test_what_was_acknowledged_survives_kill_9(self) -> None:
        daemon = self.daemon()
        daemon.configure(relay="RECEIVER_AFTER = 0.1")
        daemon.start()
        code = urlopen(self.post(daemon, 8000, client_uuid="ana")).read().decode()
        fields = {"client_uuid": "ana", "server_uuid": code}
        kept: list[bytes] = []
        for number in range(5):
            text = f"before {number}"
            assert urlopen(self.post(daemon, 8001, **fields, message=text)).status == 200
            assert daemon.ask(5011, b"file %d" % number) == b""
            assert daemon.ask(8080, b"stream %d" % number).startswith(b"OK 8 ")
            kept.append(b"stream %d" % number)
        assert self.collect(daemon) == b"file 0"
        time.sleep(0.3)
        with daemon.connect(8080) as torn:
            torn.sendall(b"never acknowledged")
            until = time.monotonic() + PATIENCE
            while not list((daemon.data / "ingest").glob("*.partial")):  # a rest of two seconds
                assert time.monotonic() < until
                time.sleep(0.05)
            time.sleep(0.1)
            daemon.kill()
        daemon.says("1", "adopted")
        for number in range(1, 5):
            assert self.collect(daemon) == b"file %d" % number
        parts = [p.read_bytes() for p in (daemon.data / "ingest").glob("*_parte_*.bin")]
        assert sorted(parts) == sorted([*kept, b"never acknowledged"])
        assert not list((daemon.data / "ingest").glob("*.partial"))
        assert urlopen(self.post(daemon, 8001, **fields, message="after")).status == 200
        assert daemon.stop() == 0
        with sqlite3.connect(daemon.data / "roundhouse.db") as database:
            rows = database.execute("SELECT seq, id, message FROM messages").fetchall()
        database.close()
        assert [message for _, _, message in rows] == [*(f"before {n}" for n in range(5)), "after"]
        lines = (daemon.data / "logfile.log").read_text().splitlines()
        assert [json.loads(line)["seq"] for line in lines] == [seq for seq, _, _ in rows]

    def test_a_stream_nobody_waited_for_survives_a_kill_at_the_same_moment(self) -> None:
        daemon = self.daemon()
        daemon.configure(ingest="RECEIPT = off\nWAIT_FOR_DISK = off\nMAX_FILE_SIZE = 1 MiB")
        daemon.start()
        sent = []
        for _ in range(2):
            data = os.urandom(5_000_000)
            assert daemon.ask(8080, data) == b""
            daemon.kill()
            sent.append(hashlib.sha256(data).digest())
        assert daemon.stop() == 0
        series: dict[str, bytes] = {}
        for path in sorted((daemon.data / "ingest").glob("*_parte_*.bin")):
            stem = path.name.partition("_parte_")[0]
            series[stem] = series.get(stem, b"") + path.read_bytes()
        assert sorted(hashlib.sha256(data).digest() for data in series.values()) == sorted(sent)

    def test_a_killed_daemon_resets_a_receiver_instead_of_seeming_to_have_finished(self) -> None:
        daemon = self.daemon().start()
        with daemon.connect(5011) as waiting, daemon.connect(5011) as sender:
            sender.sendall(b"half a fi")
            time.sleep(0.2)
            assert daemon.process is not None
            daemon.process.kill()
            for sock in (waiting, sender):
                with pytest.raises(ConnectionResetError):
                    everything(sock)

    def collect(self, daemon: Twistd) -> bytes:
        with daemon.connect(5011) as receiver:
            return everything(receiver)

    def post(self, daemon: Twistd, usual: int, **fields: str) -> Request:
        return Request(f"http://127.0.0.1:{daemon.ports[usual]}/", urlencode(fields).encode())


class NeighbourTests(ProcessCase):
    def test_thousands_of_parts_of_15_bytes_are_right_while_echo_answers(self) -> None:
        daemon = self.daemon()
        daemon.configure("MAX_FILE_SIZE = 15")
        daemon.start()
        sent = os.urandom(30_000)
        with daemon.connect(8080) as stream, daemon.connect(5000) as echo:
            stream.sendall(sent)
            stream.shutdown(socket.SHUT_WR)
            stream.setblocking(False)
            late, receipt = 0.0, b""
            while not receipt.endswith(b"\n"):
                began = time.monotonic()
                echo.sendall(b"ping")
                assert echo.recv(4, socket.MSG_WAITALL) == b"PING"
                late = max(late, time.monotonic() - began)
                try:
                    receipt += stream.recv(1000)
                except BlockingIOError:
                    time.sleep(0.001)
        assert receipt == f"OK 30000 {hashlib.sha256(sent).hexdigest()} 2000\n".encode()
        parts = sorted((daemon.data / "ingest").glob("*.bin"))
        assert len(parts) == 2000
        assert b"".join(p.read_bytes() for p in parts) == sent
        assert late < 1.0
