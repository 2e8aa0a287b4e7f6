"""The log of a real daemon: its formats, its file, and who it runs as."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest

import psutil
from twisted.trial.unittest import SynchronousTestCase

from daemon.events import EVENTS
from tests.process import HOME, PATIENCE, Twistd

FOREGROUND = ("-n", "--pidfile=")


class DaemonCase(SynchronousTestCase):
    def daemon(self, settings: str = "", **sections: str) -> Twistd:
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        daemon.configure(daemon=settings, **sections)
        return daemon

    def says(self, path: Path, word: str) -> str:
        """The first line of a log in which `word` stands."""
        until = time.monotonic() + PATIENCE
        while True:
            for line in path.read_text().splitlines() if path.exists() else ():
                if word in line:
                    return line
            assert time.monotonic() < until, path.read_text() if path.exists() else "no log"
            time.sleep(0.02)

    def reload(self, daemon: Twistd, settings: str) -> None:
        daemon.configure(daemon=settings)
        daemon.send(signal.SIGHUP)


class FormatTests(DaemonCase):
    def test_for_machines_every_line_is_an_object_whose_event_is_in_the_catalogue(self) -> None:
        daemon = self.daemon("LOG_FORMAT = json\nLOG_LEVEL = debug").start()
        daemon.ask(8080, b"abc")
        with daemon.connect(60060) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.reload(daemon, "LOG_FORMAT = json\nLOG_LEVEL = debug\nGRACE = 3\nNO_SUCH = \x1b[31m")
        daemon.says("config.kept")
        self.reload(daemon, "LOG_FORMAT = json\nLOG_LEVEL = debug\nGRACE = 3")
        daemon.says("config.read")
        assert daemon.stop() == 0
        events = [json.loads(line) for line in daemon.log.splitlines()]
        names = [event["event"] for event in events]
        assert {"daemon.started", "service.listening", "config.bad", "daemon.stopping"} < {*names}
        for event in events:
            known = EVENTS[event["event"]]
            assert known.level in ("", event["level"])
            assert {*event} - {"time", "level", "event", "message", "system"} == {*known.fields}
        assert "[daemon] GRACE = 3" in events[names.index("config.read")]["changes"]
        assert events[names.index("daemon.stopping")]["s"] == 3

    def test_for_people_a_line_names_its_event_and_the_chatter_of_libraries_is_left_out(
        self,
    ) -> None:
        daemon = self.daemon().start()
        assert re.fullmatch(
            r"\S+ \[service.listening#info\] echo listening on 127.0.0.1:\d+",
            daemon.says("echo listening"),
        )
        self.reload(daemon, "NO_SUCH = \x1b[31m \u202e")
        line = daemon.says("has no NO_SUCH")
        assert line.isprintable()
        assert daemon.stop() == 0
        for line in daemon.log.splitlines():
            assert re.match(r"\S+ \[[a-z]+\.[a-z_]+#[a-z]+\] ", line), line


class FileTests(DaemonCase):
    def test_a_daemon_of_twistd_writes_its_file_and_goes_on_where_logrotate_left_it(self) -> None:
        daemon = self.daemon("LOG_FILE = own.log")
        path = daemon.home / "own.log"
        assert daemon.spawn().wait(PATIENCE) == 0
        pid = int((daemon.home / "twistd.pid").read_text())
        process = psutil.Process(pid)
        self.addCleanup(self.end, process)
        self.says(path, "echo listening on")
        assert path.stat().st_mode & 0o777 == 0o640
        assert not (daemon.home / "twistd.log").exists()
        self.rotate(daemon.home)
        os.kill(pid, signal.SIGHUP)
        self.says(path, "read again")
        assert "echo listening on" in path.with_name("own.log.1").read_text()
        os.kill(pid, signal.SIGTERM)
        process.wait(PATIENCE)
        self.says(path, "finishing what is in hand")

    def end(self, process: psutil.Process) -> None:
        if process.is_running():
            process.kill()

    def rotate(self, home: Path) -> None:
        """With the very lines of deploy/logrotate, where that is installed."""
        path = home / "own.log"
        program = shutil.which("logrotate")
        if program is None or os.geteuid():
            path.rename(home / "own.log.1")
            return
        text = (HOME / "deploy" / "logrotate").read_text()
        text = text.replace("/var/log/roundhouse/*.log", str(path))
        text = text.replace("/var/lib/roundhouse/logfile.log", str(home / "data" / "logfile.log"))
        text = re.sub(r"\bsu .*", "su root root", text)
        settings = home / "logrotate"
        settings.write_text(text)
        settings.chmod(0o600)
        subprocess.run(
            [program, "--force", "--state", str(home / "state"), str(settings)],
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )

    def test_it_rotates_by_size_and_at_sigusr1(self) -> None:
        settings = "LOG_FILE = own.log\nLOG_SIZE = 2000\nLOG_KEEP = 3"
        daemon = self.daemon(settings)
        daemon.process = daemon.spawn(*FOREGROUND)
        path = daemon.home / "own.log"
        self.says(path, "Press Ctrl+C")
        daemon.send(signal.SIGUSR1)
        self.says(path.with_name("own.log.1"), "Press Ctrl+C")
        until = time.monotonic() + PATIENCE
        while not path.with_name("own.log.3").exists():
            assert time.monotonic() < until
            more = f"IDLE_TIMEOUT = {time.monotonic():.3f}"
            daemon.configure(daemon=settings, echo=more)
            daemon.send(signal.SIGHUP)
            time.sleep(0.02)
        assert daemon.stop() == 0
        logs = sorted(found.name for found in daemon.home.glob("own.log*"))
        assert logs == ["own.log", "own.log.1", "own.log.2", "own.log.3"]
        assert all((daemon.home / name).stat().st_size <= 2000 for name in logs)

    def test_a_reload_moves_the_log_and_one_that_cannot_be_stays(self) -> None:
        daemon = self.daemon().start()
        self.reload(daemon, "LOG_FILE = own.log")
        self.says(daemon.home / "own.log", "[daemon] LOG_FILE = ")
        self.reload(daemon, "LOG_FILE = no/such/folder/own.log")
        self.says(daemon.home / "own.log", "log.unusable")
        self.reload(daemon, "")
        daemon.says("[daemon] LOG_FILE = ")
        assert daemon.stop() == 0

    def test_one_that_cannot_be_opened_ends_the_start_with_status_73(self) -> None:
        daemon = self.daemon("LOG_FILE = no/such/folder/own.log")
        assert daemon.spawn(*FOREGROUND).wait(PATIENCE) == 73
        (line,) = daemon.log.splitlines()
        assert line.endswith("own.log cannot be written (No such file or directory); set LOG_FILE")

    def test_a_stuck_reader_of_the_log_does_not_hold_up_the_daemon(self) -> None:
        daemon = self.daemon("LOG_LEVEL = debug")
        ear, mouth = os.pipe()
        self.addCleanup(os.close, ear)
        os.set_blocking(mouth, False)
        while True:
            try:
                os.write(mouth, b"x" * 4096)
            except BlockingIOError:
                break
        os.set_blocking(mouth, True)
        twistd = Path(sys.executable).with_name("twistd")
        daemon.process = subprocess.Popen(
            [str(twistd), *FOREGROUND, "-y", str(HOME / "tac" / "echo.tac")],
            cwd=daemon.home,
            env=daemon.environ(),
            stdin=subprocess.DEVNULL,
            stdout=mouth,
            stderr=subprocess.DEVNULL,
        )
        os.close(mouth)
        until = time.monotonic() + PATIENCE
        while True:
            try:
                assert daemon.ask(5000, b"hola") == b"HOLA"
                break
            except ConnectionRefusedError:
                assert time.monotonic() < until
                time.sleep(0.05)
        heard = os.read(ear, 1 << 20)
        assert heard.strip(b"x") == b""
        assert daemon.stop() == 0
        rest = b""
        while some := os.read(ear, 1 << 16):
            rest += some
        assert b"lines of this log are lost: nobody reads it" in rest


class DeployTests(SynchronousTestCase):
    def test_systemd_makes_the_folders_of_the_snippet_for_the_user_of_the_daemon(self) -> None:
        program = shutil.which("systemd-tmpfiles")
        if program is None or os.geteuid():
            raise SkipTest("systemd-tmpfiles is not installed (apt install systemd), or not root")
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        root = Path(folder.name)
        (root / "etc").mkdir()
        (root / "etc" / "passwd").write_text("roundhouse:x:4711:4712::/:/bin/false\n")
        (root / "etc" / "group").write_text("roundhouse:x:4712:\n")
        snippet = HOME / "deploy" / "tmpfiles.conf"
        subprocess.run(
            [program, "--create", f"--root={root}", str(snippet)], check=True, timeout=PATIENCE
        )
        for name in ("run", "var/log", "var/lib"):
            status = (root / name / "roundhouse").stat()
            assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o750, 4711, 4712)


class PrivilegeTests(DaemonCase):
    def test_root_binds_low_ports_and_then_becomes_somebody_else(self) -> None:
        if os.geteuid():
            raise SkipTest("only root may become another user")
        nobody = pwd.getpwnam("nobody")
        low = next(port for port in range(999, 900, -1) if self.free(port))
        daemon = self.daemon("USER = nobody\nLOG_FILE = out.log")
        daemon.home.chmod(0o755)
        daemon.configure(
            daemon="USER = nobody\nLOG_FILE = logs/out.log",
            echo=f"LISTEN = tcp:{low}:interface=127.0.0.1",
        )
        daemon.config.chmod(0o644)
        logs = daemon.home / "logs"
        logs.mkdir()
        os.chown(logs, nobody.pw_uid, nobody.pw_gid)
        daemon.process = daemon.spawn(*FOREGROUND)
        self.says(logs / "out.log", "Press Ctrl+C")
        process = psutil.Process(daemon.process.pid)
        assert set(process.uids()) == {nobody.pw_uid}
        assert set(process.gids()) == {nobody.pw_gid}
        with socket.create_connection(("127.0.0.1", low), PATIENCE) as sock:
            sock.sendall(b"hola")
            assert sock.recv(9) == b"HOLA"
        assert daemon.ask(8080, b"abc").startswith(b"OK 3 ")
        assert daemon.ask(60060, b"abc\n") == b"abc\n"
        for path in (daemon.data, *daemon.data.rglob("*"), logs / "out.log"):
            assert path.stat().st_uid == nobody.pw_uid, path
            assert path.stat().st_gid == nobody.pw_gid, path
        assert daemon.stop() == 0
        os.chown(daemon.data, 0, 0)
        assert daemon.spawn(*FOREGROUND).wait(PATIENCE) == 73
        assert "belongs to uid 0, and USER is nobody; chown -R nobody " in daemon.log

    def test_its_unix_sockets_and_all_the_way_to_its_data_are_theirs(self) -> None:
        if os.geteuid():
            raise SkipTest("only root may become another user")
        nobody = pwd.getpwnam("nobody")
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        daemon.home.chmod(0o755)
        daemon.configure(
            "DATA_DIR = one/two",
            daemon="USER = nobody",
            echo="LISTEN = unix:echo.sock:mode=600",
        )
        daemon.config.chmod(0o644)
        daemon.start()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(daemon.home / "echo.sock"))
            sock.sendall(b"hola")
            assert sock.recv(9) == b"HOLA"
        assert daemon.ask(8080, b"abc").startswith(b"OK 3 ")
        for name, mode in (("echo.sock", 0o600), ("one", 0o750), ("one/two", 0o750)):
            status = (daemon.home / name).stat()
            assert (status.st_uid, status.st_mode & 0o777) == (nobody.pw_uid, mode), name
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log

    def free(self, port: int) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", port)) != 0
