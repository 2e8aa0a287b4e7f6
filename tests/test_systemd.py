"""What systemd hears of the daemon, and its unit."""

from __future__ import annotations

import os
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

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from daemon.systemd import Systemd
from tests.process import HOME, PATIENCE, Twistd, free_ports

DEPLOY = HOME / "deploy"


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        raise SkipTest(f"{program} is not installed (apt install systemd)")
    return found


class Notified(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "notify"
        self.manager = self.listen(str(self.path))

    def listen(self, name: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.bind(name)
        sock.settimeout(PATIENCE)
        return sock

    def heard(self) -> list[str]:
        return self.manager.recv(4096).decode().split("\n")

    def heard_nothing(self) -> bool:
        self.manager.setblocking(False)
        try:
            self.manager.recv(4096)
        except BlockingIOError:
            return True
        return False


class SystemdTests(Notified):
    def systemd(self, **environ: str) -> Systemd:
        self.clock = Clock()
        systemd = Systemd.of({"NOTIFY_SOCKET": str(self.path), **environ}, self.clock)
        systemd.startService()
        return systemd

    def test_ready_and_stopping_are_said(self) -> None:
        systemd = self.systemd()
        systemd.ready("serving echo")
        assert self.heard() == ["READY=1", "STATUS=serving echo"]
        systemd.stopService()
        assert self.heard() == ["STOPPING=1"]

    def test_a_reload_says_when_it_began(self) -> None:
        self.systemd().reloading()
        first, second = self.heard()
        assert first == "RELOADING=1"
        began = int(second.removeprefix("MONOTONIC_USEC=")) / 1e6
        assert 0 <= time.monotonic() - began < PATIENCE

    def test_the_watchdog_is_fed_twice_as_often_as_it_asks(self) -> None:
        systemd = self.systemd(WATCHDOG_USEC="4000000")
        assert self.heard_nothing()
        self.clock.advance(2)
        assert self.manager.recv(99) == b"WATCHDOG=1"
        systemd.stopService()
        assert self.manager.recv(99) == b"STOPPING=1"
        self.clock.advance(2)
        assert self.manager.recv(99) == b"WATCHDOG=1"

    def test_without_a_watchdog_there_is_no_timer(self) -> None:
        for usec in ("", "0", "often", "-1"):
            self.systemd(WATCHDOG_USEC=usec)
            assert self.clock.getDelayedCalls() == []

    def test_an_abstract_socket_is_found(self) -> None:
        name = f"@roundhouse-{os.getpid()}"
        self.manager = self.listen("\0" + name[1:])
        Systemd(Clock(), name).ready("x")
        assert self.heard() == ["READY=1", "STATUS=x"]

    def test_without_a_socket_nothing_is_said(self) -> None:
        Systemd.of({}, Clock()).ready("x")
        assert self.heard_nothing()

    def test_a_manager_that_is_gone_is_said_once(self) -> None:
        systemd = self.systemd()
        self.path.unlink()
        with capturedLogs() as events:
            systemd.ready("x")
            systemd.ready("x")
        (event,) = events
        assert f"systemd does not hear us at {self.path}: " in formatEvent(event)


class DaemonTests(Notified):
    def daemon(self) -> Twistd:
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        return daemon

    def test_it_is_ready_once_every_port_listens_and_says_reload_and_stop(self) -> None:
        daemon = self.daemon()
        before = os.environ.get("NOTIFY_SOCKET")
        os.environ["NOTIFY_SOCKET"] = str(self.path)
        try:
            daemon.process = daemon.spawn("-n", "--pidfile=")
        finally:
            del os.environ["NOTIFY_SOCKET"]
            if before is not None:
                os.environ["NOTIFY_SOCKET"] = before
        ready, status = self.heard()
        assert (ready, status) == (
            "READY=1",
            "STATUS=serving ingest, relay, chat, handshake, echo",
        )
        assert daemon.ask(5000, b"hola\n") == b"HOLA\n"
        daemon.says("Press Ctrl+C to stop.")
        daemon.send(signal.SIGHUP)
        assert self.heard()[0] == "RELOADING=1"
        assert self.heard()[0] == "READY=1"
        assert daemon.stop() == 0
        assert self.heard() == ["STOPPING=1"]

    def test_systemd_may_open_the_ports(self) -> None:
        activate = needs("systemd-socket-activate")
        daemon = self.daemon()
        (port,) = free_ports(1)
        daemon.config.write_text(
            "[echo]\nLISTEN = systemd:domain=INET:index=0\n"
            + "".join(f"[{each}]\nENABLED = no\n" for each in ("ingest", "relay", "chat"))
            + "[handshake]\nENABLED = no\n"
        )
        twistd = Path(sys.executable).with_name("twistd")
        command = [
            activate,
            "-l",
            f"127.0.0.1:{port}",
            "--fdname=echo",
            "-E",
            f"ROUNDHOUSE_CONFIG={daemon.config}",
        ]
        command += [str(twistd), "-n", "--pidfile=", "-y", str(HOME / "service.tac")]
        with (daemon.home / "out.log").open("ab") as out:
            daemon.process = subprocess.Popen(command, cwd=daemon.home, stdout=out, stderr=out)
        daemon.says("Listening on 127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.settimeout(PATIENCE)
            sock.sendall(b"hola\n")
            assert sock.recv(99) == b"HOLA\n"


class UnitTests(SynchronousTestCase):
    def test_the_unit_exposes_little(self) -> None:
        analyze = needs("systemd-analyze")
        ran = subprocess.run(
            [
                analyze,
                "security",
                "--offline=true",
                "--threshold=15",
                DEPLOY / "roundhouse.service",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-300:] + ran.stderr

    def test_a_lasting_user_of_the_units_name_can_be_made(self) -> None:
        make = needs("systemd-sysusers")
        if os.geteuid():
            raise SkipTest("only root can make a user, also in a folder")
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        (Path(folder.name) / "etc").mkdir()
        ran = subprocess.run(
            [make, f"--root={folder.name}", "--inline", *self.lines("sysusers.conf")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        made = (Path(folder.name) / "etc" / "passwd").read_text()
        assert re.search("roundhouse:.*:/var/lib/roundhouse:.*nologin\n", made)
        assert {"User=roundhouse", "Group=roundhouse"} < {*self.lines("roundhouse.service")}

    def lines(self, name: str) -> list[str]:
        lines = (DEPLOY / name).read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#")]

    def test_the_unit_hides_nothing_that_the_daemon_reads(self) -> None:
        unit = (DEPLOY / "roundhouse.service").read_text()
        assert "ProcSubset=" not in unit  # `pid` hides /proc/sys: boot_id, ip_local_port_range

    def test_every_line_of_the_units_is_understood(self) -> None:
        analyze = needs("systemd-analyze")
        ran = subprocess.run(
            [analyze, "verify", DEPLOY / "roundhouse.service", DEPLOY / "roundhouse.socket"],
            capture_output=True,
            text=True,
            check=False,
        )
        said = [
            line
            for line in ran.stderr.splitlines()
            if "roundhouse." in line and "is not executable" not in line
        ]
        assert said == []
