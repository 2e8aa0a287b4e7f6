"""python -m daemon: commands on this box's files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from daemon.__main__ import main

HOME = Path(__file__).resolve().parents[1]


class CheckConfigTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.config = Path(folder.name) / "config.cfg"

    def check(self, text: str, *options: str, named: bool = False) -> Result:
        self.config.write_text(text)
        command = ["check-config", *options, *([] if named else [str(self.config)])]
        environ = {"ROUNDHOUSE_CONFIG": str(self.config) if named else ""}
        return CliRunner().invoke(main, command, env=environ)

    def test_it_says_what_is_in_force_with_what_each_key_means(self) -> None:
        shown = self.check("[ingest]\nMAX_FILE_SIZE = 1 KiB\nRECEIPT = no\n[chat]\nENABLED = no\n")
        assert shown.exit_code == 0
        lines = [" ".join(line.split()) for line in shown.output.splitlines()]
        assert lines[0] == str(self.config)
        assert f"DATA_DIR {self.config.parent / 'data'}" in lines
        assert "MAX_FILE_SIZE = 1024 most bytes of one file" in lines
        assert any(line.startswith("RECEIPT = off ") for line in lines)
        assert any(line.startswith("LEASE = 60 ") for line in lines)
        assert "chat disabled" in lines
        assert not any("FLUSH_AFTER" in line for line in lines)
        assert "echo tcp:5000:interface=127.0.0.1" in lines

    def test_the_environment_names_the_file_as_for_the_daemon(self) -> None:
        shown = self.check("[daemon]\nGRACE = 7\nLOG_FORMAT = json\n", named=True)
        assert "GRACE      7 s" in shown.output
        assert "LOG        json, info, where twistd logs" in shown.output

    def test_the_limits_and_the_user_of_the_daemon_are_said(self) -> None:
        shown = self.check("[daemon]\n")
        assert "connections: as descriptors allow; from one address: 1000" in shown.output
        assert "USER" not in shown.output
        text = "[daemon]\nCONNECTIONS = 50\nPER_ADDRESS = 0\nLIMIT_LOOPBACK = on\nUSER = root\n"
        shown = self.check(text)
        assert "LIMITS     connections: 50; from one address: any, also from here" in shown.output
        assert "USER       0, group 0\n" in shown.output
        found = json.loads(self.check(text, "--json").stdout)
        assert (found["connections"], found["per_address"], found["user"]) == (50, 0, [0, 0])
        assert found["limit_loopback"]

    def test_what_is_wrong_is_a_line_each_on_stderr_with_status_78(self) -> None:
        shown = self.check("[chat]\nPORT = x\n[relay]\nLEES = 3\n")
        assert shown.exit_code == 78
        assert shown.stdout == ""
        first, second = shown.stderr.splitlines()
        assert first.startswith(f"{self.config}:2: [chat] PORT = x: ")
        assert second == f"{self.config}:4: [relay] has no LEES; did you mean LEASE?"

    def test_scripts_get_one_json_object_either_way(self) -> None:
        good = json.loads(self.check("[echo]\nPORT = 7\n", "--json").stdout)
        assert good["ok"]
        assert good["services"]["echo"] == {
            "enabled": True,
            "listen": {"PORT": ["tcp:7:interface=127.0.0.1"]},
            "options": {"idle_timeout": 0.0},
        }
        bad = self.check("[echo]\nPORT = x\n", "--json")
        assert bad.exit_code == 78
        assert json.loads(bad.stdout)["problems"][0].startswith(str(self.config))

    def test_a_file_that_is_not_there_is_named(self) -> None:
        shown = CliRunner().invoke(main, ["check-config", str(self.config)])
        assert shown.exit_code == 78
        assert shown.stderr == f"{self.config}: cannot be read: No such file or directory\n"

    def test_it_runs_as_a_module_and_its_help_shows_examples(self) -> None:
        shown = subprocess.run(
            [sys.executable, "-m", "daemon", "check-config", "-h"],
            cwd=HOME,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "python -m daemon check-config --json" in shown.stdout
