"""Where the client looks for the services."""

from __future__ import annotations

import os
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import pytest
from twisted.trial.unittest import SynchronousTestCase

from client import defaults
from client.defaults import PORTS, Misread, address
from client.net import Address
from client.terminal import counted, printable

SEED = "[DEFAULT]\nSERVER_IP = 127.0.0.7\nPORT = 9000  # where\nMAX_FILE_SIZE = 15\n"


class DefaultsTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.config = Path(folder.name).resolve() / "config.cfg"
        named = {"ROUNDHOUSE_CONFIG": str(self.config), "ROUNDHOUSE_HOST": ""}
        environment = patch.dict(os.environ, named)
        environment.start()
        self.addCleanup(environment.stop)

    def found(self, text: str, service: str = "echo", key: str = "PORT") -> Address:
        self.config.write_text(text)
        return address(service, key, None, None)

    def refusal(self, text: str) -> str:
        with pytest.raises(Misread) as refused:
            self.found(text)
        assert refused.value.exit_code == 78
        return refused.value.message

    def test_an_empty_file_leaves_the_defaults(self) -> None:
        for (service, key), port in PORTS.items():
            assert self.found("", service, key) == Address("127.0.0.1", port)

    def test_the_seeds_own_port_is_ingests_and_nobody_elses(self) -> None:
        assert self.found(SEED, "ingest") == Address("127.0.0.7", 9000)
        assert self.found(SEED + "[ingest]\nport = 9001\n", "ingest").port == 9001
        assert self.found(SEED, "echo") == Address("127.0.0.7", 5000)

    def test_an_address_for_every_interface_means_loopback(self) -> None:
        for interface, host in (("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("", "127.0.0.1")):
            assert self.found(f"[DEFAULT]\nSERVER_IP = {interface}\n").host == host

    def test_keys_of_two_ports_are_told_apart(self) -> None:
        text = "[handshake]\nCODE_PORT = 1800\nMESSAGE_LISTEN = tcp:1801\n"
        assert self.found(text, "handshake", "CODE_PORT").port == 1800
        assert self.found(text, "handshake", "MESSAGE_PORT").port == 1801

    def test_simple_endpoints_are_understood(self) -> None:
        for listen, wanted in (
            ("tcp:7000", Address("127.0.0.1", 7000)),
            ("tcp:port=7000:interface=10.0.0.5", Address("10.0.0.5", 7000)),
            ("tcp:7000:interface=0.0.0.0:backlog=5", Address("127.0.0.1", 7000)),
            (r"tcp6:7000:interface=\:\:1", Address("::1", 7000)),
            ("unix:/run/echo\n  tcp:7000", Address("127.0.0.1", 7000)),
        ):
            assert self.found(f"[echo]\nPORT = 1\nLISTEN = {listen}\n") == wanted

    def test_an_endpoint_that_cannot_be_called_asks_for_a_port(self) -> None:
        text = "[echo]\nLISTEN = unix:/run/echo\n"
        assert self.refusal(text) == (
            f"{self.config}: [echo] LISTEN = unix:/run/echo is no TCP port that can be called; "
            "give --port"
        )
        assert address("echo", "PORT", None, 7000) == Address("127.0.0.1", 7000)

    def test_a_port_that_is_none_is_named_with_what_would_be_right(self) -> None:
        for port in ("many", "0", "65536", "-1", "٣"):
            assert self.refusal(f"[echo]\nPORT = {port}\n") == (
                f"{self.config}: [echo] PORT = {port} is no port: 1 to 65535 would be, "
                "the default is 5000"
            )

    def test_a_file_that_cannot_be_read_is_named(self) -> None:
        assert f"cannot read {self.config}: File contains no section" in self.refusal("x\n")
        self.config.write_bytes(b"[echo]\nPORT = \xff\n")
        with pytest.raises(Misread, match="codec can't decode"):
            address("echo", "PORT", None, None)
        self.config.unlink()
        with pytest.raises(Misread, match="No such file"):
            address("echo", "PORT", None, None)

    def test_what_is_given_wins_then_the_environment_then_the_file(self) -> None:
        self.config.write_text("[DEFAULT]\nSERVER_IP = 10.0.0.1\n[echo]\nPORT = 7\n")
        assert address("echo", "PORT", None, None) == Address("10.0.0.1", 7)
        with patch.dict(os.environ, {"ROUNDHOUSE_HOST": "10.0.0.2"}):
            assert address("echo", "PORT", None, None) == Address("10.0.0.2", 7)
            assert address("echo", "PORT", "10.0.0.3", 8) == Address("10.0.0.3", 8)

    def test_the_file_is_looked_for_here_and_then_beside_the_package(self) -> None:
        away, package = self.config.parent / "away", self.config.parent / "home" / "client"
        away.mkdir()
        package.mkdir(parents=True)
        with (
            chdir(away),
            patch.dict(os.environ, {"ROUNDHOUSE_CONFIG": ""}),
            patch.object(defaults, "__file__", str(package / "defaults.py")),
        ):
            assert address("echo", "PORT", None, None).port == 5000
            (package.parent / "config.cfg").write_text("[echo]\nPORT = 1\n")
            assert address("echo", "PORT", None, None).port == 1
            (away / "config.cfg").write_text("[echo]\nPORT = 2\n")
            assert address("echo", "PORT", None, None).port == 2


class TerminalTests(SynchronousTestCase):
    def test_what_could_command_a_terminal_is_escaped(self) -> None:
        assert printable("a\x1b[2Jb\x07\x9b") == r"a\x1b[2Jb\x07\x9b"
        assert printable("\u202eevil\u2028\ufeff") == r"\u202eevil\u2028\ufeff"

    def test_ordinary_text_stays_as_it_is(self) -> None:
        for text in ("ñandú", "a\tb", "👩\u200d👧", "no\u00a0break", ""):
            assert printable(text) == text

    def test_counts_read_well(self) -> None:
        assert counted(1, "byte") == "1 byte"
        assert counted(13334, "part") == "13,334 parts"
