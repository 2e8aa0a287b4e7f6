"""What the doctor finds on a machine."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import socket
from pathlib import Path
from tempfile import TemporaryDirectory

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from daemon import binding, doctor
from daemon.doctor import Finding
from tests.process import Twistd

QUIET = "".join(f"[{name}]\nENABLED = no\n" for name in ("ingest", "relay", "chat", "handshake"))


class DoctorTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.config = self.home / "config.cfg"

    def listening(self) -> int:
        sock = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(sock.close)
        return int(sock.getsockname()[1])

    def run_doctor(self, text: str, *options: str) -> Result:
        self.config.write_text(text)
        return CliRunner().invoke(doctor.doctor, [*options, str(self.config)])

    def found(self, text: str) -> dict[str, Finding]:
        told = json.loads(self.run_doctor(text, "--json").stdout)
        return {each["about"]: Finding(**each) for each in told}

    def echo_on(self, port: int, more: str = "") -> str:
        return f"{more}\n{QUIET}[echo]\nPORT = {port}\n"

    def test_a_healthy_machine_has_nothing_bad(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        shown = self.run_doctor(self.echo_on(port))
        assert shown.exit_code == 0, shown.output
        assert "bad" not in {line[:8].strip() for line in shown.output.splitlines()}
        found = self.found(self.echo_on(port))
        assert found["DATA_DIR"].text == f"{self.home}/data is not there yet, and can be made"
        assert found["sync"].text.endswith(" ms to make a small write durable")
        assert found["reactor"].level == "ok"
        assert list(self.home.iterdir()) == [self.config]  # it only looks
        (self.home / "data").mkdir(mode=0o750)
        found = self.found(self.echo_on(port))
        assert found["DATA_DIR"] == Finding("ok", "DATA_DIR", f"{self.home}/data can be written to")
        assert list((self.home / "data").iterdir()) == []

    def test_a_taken_port_is_bad_and_says_by_whom(self) -> None:
        self.patch(binding, "ephemeral", lambda port: False)
        port = self.listening()
        shown = self.run_doctor(self.echo_on(port))
        assert shown.exit_code == 1
        found = self.found(self.echo_on(port))
        assert [one.about for one in found.values() if one.level == "bad"] == [f"port {port}"]
        assert "[echo] PORT: taken by " in shown.output
        assert f"(pid {os.getpid()})" in shown.output
        assert f"stop it, or move this one: {self.config}:" in shown.output

    def test_a_port_of_the_ephemeral_range_is_a_warning_unless_reserved(self) -> None:
        self.patch(binding, "ephemeral", lambda port: True)
        self.patch(doctor, "_reserved", lambda: "")
        assert self.found(self.echo_on(60060))["port 60060"].remedy == (
            "sysctl -w net.ipv4.ip_local_reserved_ports=60060"
        )
        self.patch(doctor, "_reserved", lambda: "8080,60000-60100")
        assert self.found(self.echo_on(60060))["port 60060"].level == "ok"

    def test_settings_that_cannot_be_read_are_all_it_says(self) -> None:
        found = self.found("[echo]\nPROT = 1\n")
        assert list(found) == ["config.cfg"]
        assert found["config.cfg"].level == "bad"
        assert "did you mean PORT?" in found["config.cfg"].text

    def test_a_folder_that_cannot_be_used_is_bad(self) -> None:
        (self.home / "file").write_text("")
        found = self.found(self.echo_on(5000, "[DEFAULT]\nDATA_DIR = file/data"))
        assert found["DATA_DIR"].level == "bad"
        assert found["DATA_DIR"].text.startswith(f"{self.home}/file/data: ")

    def test_data_in_memory_or_far_away_is_said(self) -> None:
        for kind, level in (("tmpfs", "bad"), ("nfs4", "warning"), ("ext4", "ok")):
            self.patch(doctor, "_filesystem", lambda path, kind=kind: kind)
            assert self.found(self.echo_on(5000))["filesystem"].level == level

    def test_data_that_everybody_may_read_is_a_warning(self) -> None:
        (self.home / "data").mkdir(mode=0o755)
        found = self.found(self.echo_on(5000))
        assert found["permissions"].remedy == f"chmod o= {self.home}/data"

    def test_secrets_that_everybody_may_read_are_a_warning(self) -> None:
        for text, level in (
            ("[admin]\nTOKEN = very-secret-token\n", "warning"),
            ("[relay]\nENABLED = no\nTOKEN_vault = very-secret-token\n", "warning"),
            ("", ""),
        ):
            self.config.write_text(text)
            for mode in (0o644, 0o640):
                self.config.chmod(mode)
                found = [one for one in doctor.examine(self.config) if one.about == "secrets"]
                assert [one.level for one in found] == ([level] if level and mode == 0o644 else [])
                assert "very-secret" not in repr(found)

    def test_data_of_somebody_else_than_user_is_bad(self) -> None:
        (self.home / "data").mkdir(mode=0o750)
        other = next(one for one in pwd.getpwall() if one.pw_uid != os.getuid())
        found = self.found(self.echo_on(5000, f"[daemon]\nUSER = {other.pw_name}"))
        assert found["permissions"].level == "bad"
        assert found["permissions"].remedy == f"chown -R {other.pw_name} {self.home}/data"

    def test_more_connections_than_files_is_bad(self) -> None:
        self.patch(doctor, "descriptors", lambda: 1024)
        assert self.found(self.echo_on(5000))["descriptors"].level == "warning"
        wanted = self.echo_on(5000, "[daemon]\nCONNECTIONS = 1000")
        assert self.found(wanted)["descriptors"].level == "bad"

    def test_without_uvloop_it_says_what_would_help(self) -> None:
        self.patch(importlib.util, "find_spec", lambda name: None)
        assert self.found(self.echo_on(5000))["reactor"].level == "warning"

    def test_ports_of_the_daemon_that_runs_are_served(self) -> None:
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        daemon.start()
        found = {one.about: one for one in doctor.examine(daemon.config)}
        assert daemon.process is not None
        assert found["daemon"].text == f"runs as process {daemon.process.pid}"
        served = [one for one in doctor.examine(daemon.config) if one.text.endswith(": served")]
        assert len(served) >= 6
        assert not [one for one in found.values() if one.level == "bad"]
