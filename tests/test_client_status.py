"""status: a table of what the daemon does, and an exit status that scripts can use."""

from __future__ import annotations

import json
import signal
import socket
import time
from typing import Any
from unittest.mock import patch

from twisted.trial.unittest import SynchronousTestCase

from client.status import size
from tests.process import Twistd
from tests.test_client import ClientCase, Ended, Script, Server, nobody

FOUND: dict[str, Any] = {
    "name": "roundhouse",
    "version": "1.2.3",
    "pid": 4242,
    "python": "3.12.1",
    "reactor": {"name": "uvloop", "why": "the fastest here"},
    "state": "serving",
    "ready": True,
    "checks": {"state": "ok", "disk": "ok"},
    "lag_seconds": 0.00123,
    "uptime_seconds": 93_784.2,
    "connections": 1200,
    "limits": {"connections": 15000, "descriptors": 20000, "descriptors_open": 1234},
    "services": {
        "ingest": {
            "ports": {
                "PORT": {
                    "listening": ["127.0.0.1:8080", "[::1]:8080"],
                    "connections": 1200,
                    "outcomes": {"whole": 12_345, "reset": 2},
                    "received_bytes": 5 << 30,
                    "sent_bytes": 77,
                }
            }
        },
        "chat": {
            "ports": {
                "IRC_PORT": {
                    "listening": [],
                    "connections": 0,
                    "outcomes": {},
                    "received_bytes": 0,
                    "sent_bytes": 0,
                }
            }
        },
    },
    "reload": None,
    "warnings": [],
}
TOKEN = "correct-horse-battery"


def answering(found: object, status: str = "200 OK") -> Script:
    """Hears one request and answers it in JSON."""

    def script(peer: socket.socket) -> bytes:
        heard = b""
        while not heard.endswith(b"\r\n\r\n"):
            heard += peer.recv(1 << 16)
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        peer.sendall(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status.encode(), len(body)))
        peer.sendall(body)
        return heard

    return script


class StatusCase(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.env["ROUNDHOUSE_ADMIN_TOKEN"] = None

    def ask(self, found: object, *args: object, status: str = "200 OK") -> Ended:
        server = Server((answering(found, status),))
        ended = self.call(server, "status", *args)
        [self.heard] = server.over()
        return ended


class TableTests(StatusCase):
    def test_each_port_is_a_line(self) -> None:
        ended = self.ask(FOUND)
        assert ended.status == 0
        first, limits, empty, heads, ingest, chat, _, checks = ended.text.splitlines()
        assert first.startswith("roundhouse 1.2.3 at 127.0.0.1:")
        assert first.endswith(": ready, serving, up 1 day, 2:03:04, pid 4242, uvloop, 1.2 ms late")
        assert limits == "1,200 connections of 15,000, 1,234 descriptors of 20,000"
        assert empty == ""
        assert heads == (
            "SERVICE  PORT      LISTENING                    OPEN   ENDED       IN   OUT"
            "  HOW THEY ENDED"
        )
        assert ingest == (
            "ingest   PORT      127.0.0.1:8080, [::1]:8080  1,200  12,347  5.0 GiB  77 B"
            "  reset 2, whole 12,345"
        )
        assert chat.startswith("chat     IRC_PORT  -  ")
        assert checks == "checks: state ok, disk ok"

    def test_what_is_not_right_is_said_and_is_status_1(self) -> None:
        found = {
            **FOUND,
            "ready": False,
            "state": "draining",
            "reactor": None,
            "checks": {"state": "draining"},
            "warnings": ["chat is open beyond this machine at \x1b[2J0.0.0.0:60060"],
            "reload": {"at": "2026-11-21T08:00:00+00:00", "changed": [], "problems": ["bad"]},
        }
        ended = self.ask(found)
        assert ended.status == 1
        assert ": not ready, draining, " in ended.text
        assert "warning: chat is open beyond this machine at \\x1b[2J0.0.0.0:60060\n" in ended.text
        assert "config.cfg read again at 2026-11-21T08:00:00+00:00: not used\n" in ended.text

    def test_a_reload_is_told(self) -> None:
        reload = {"at": "2026-11-21T08:00:00+00:00", "changed": ["[daemon] GRACE = 3"]}
        ended = self.ask({**FOUND, "reload": {**reload, "problems": []}})
        assert "08:00:00+00:00: [daemon] GRACE = 3\n" in ended.text
        ended = self.ask({**FOUND, "reload": {**reload, "changed": [], "problems": []}})
        assert "08:00:00+00:00: no change\n" in ended.text

    def test_json_is_what_the_daemon_said(self) -> None:
        ended = self.ask(FOUND, "--json")
        assert (ended.status, ended.facts) == (0, FOUND)

    def test_sizes_are_easy_to_compare(self) -> None:
        sizes = (0, 999, 1000, 1536, 123_456, 5 << 30, 1 << 60)
        assert [size(count) for count in sizes] == [
            "0 B",
            "999 B",
            "1,000 B",
            "1.5 KiB",
            "120.6 KiB",
            "5.0 GiB",
            "1,024.0 PiB",
        ]


class TroubleTests(StatusCase):
    def test_nobody_there_is_69(self) -> None:
        ended = self.run_client("--port", nobody(), "status")
        assert (ended.status, ended.out) == (69, b"")
        assert "nobody listens at 127.0.0.1:" in ended.err

    def test_a_token_is_asked_for(self) -> None:
        ended = self.ask(b"no", status="401 Unauthorized")
        assert ended.status == 1
        assert "wants its token: --token-file, or ROUNDHOUSE_ADMIN_TOKEN" in ended.err

    def test_the_token_comes_from_a_file_or_the_environment(self) -> None:
        self.ask(FOUND)
        assert b"Authorization" not in self.heard
        self.ask(FOUND, "--token-file", self.file(f"{TOKEN}\n".encode()))
        assert f"Authorization: Bearer {TOKEN}\r\n".encode() in self.heard
        self.env["ROUNDHOUSE_ADMIN_TOKEN"] = TOKEN
        self.ask(FOUND)
        assert f"Authorization: Bearer {TOKEN}\r\n".encode() in self.heard

    def test_a_file_that_holds_no_token_is_said(self) -> None:
        for data, why in ((b" \n", "holds no token"), ("ñ".encode(), "not plain ASCII")):
            ended = self.run_client("--port", 1, "status", "--token-file", self.file(data))
            assert (ended.status, why in ended.err) == (1, True)

    def test_it_looks_on_loopback_whatever_server_ip_says(self) -> None:
        self.config.write_text("[DEFAULT]\nSERVER_IP = 192.0.2.1\n[admin]\nPORT = 1\n")
        ended = self.run_client("status")
        assert (ended.status, "nobody listens at 127.0.0.1:1: " in ended.err) == (69, True)

    def test_a_daemon_of_another_version_is_said_to_be_one(self) -> None:
        others: tuple[dict[str, object], ...] = (
            {"name": "roundhouse", "ready": True},
            {**FOUND, "limits": None},
            {**FOUND, "services": {"echo": {"ports": []}}},
            {**FOUND, "uptime_seconds": "long"},
        )
        for found in others:
            ended = self.ask(found)
            assert (ended.status, ended.out) == (1, b"")
            assert "is of another version, and cannot be shown: --json" in ended.err
            ended = self.ask(found, "--json")
            assert (ended.status, ended.facts) == (0, found)

    def test_whoever_else_answers_is_not_taken_for_a_daemon(self) -> None:
        others: tuple[object, ...] = ({}, [], {"name": "nginx"})
        for found in others:
            ended = self.ask(found)
            assert (ended.status, "is no admin port of Roundhouse" in ended.err) == (1, True)
        assert "did not answer in JSON" in self.ask(b"<html>").err
        assert "refused: Not Found (404)" in self.ask(b"", status="404 Not Found").err


class ReadyTests(StatusCase):
    def test_one_that_is_ready_is_a_line_and_status_0(self) -> None:
        self.env["ROUNDHOUSE_ADMIN_TOKEN"] = TOKEN
        ended = self.ask({"ready": True, "checks": {"state": "ok"}}, "--ready")
        assert (ended.status, ended.err) == (0, "")
        assert ended.text.endswith(" is ready\n")
        assert self.heard.startswith(b"GET /readyz HTTP/1.1\r\n")
        assert b"Authorization" not in self.heard
        assert self.ask({"ready": True, "checks": {}}, "--ready", "--json").facts == {"ready": True}

    def test_one_that_is_not_is_said_with_where_to_look(self) -> None:
        checks = {"state": "ok", "disk": "No space left on device"}
        found = {"ready": False, "checks": checks}
        ended = self.ask(found, "--ready", status="503 Service Unavailable")
        assert (ended.status, ended.out) == (1, b"")
        assert " is not ready: `roundhouse status` says why" in ended.err
        ended = self.run_client("--port", nobody(), "status", "--ready")
        assert (ended.status, "nobody listens at" in ended.err) == (69, True)

    def test_whoever_else_answers_is_not_taken_for_a_ready_daemon(self) -> None:
        others: tuple[object, ...] = ({}, [], {"ready": "yes"})
        for found in others:
            ended = self.ask(found, "--ready")
            assert (ended.status, "is no admin port of Roundhouse" in ended.err) == (1, True)
        assert "refused: Not Found (404)" in self.ask(b"", "--ready", status="404 Not Found").err

    def test_it_is_asked_once(self) -> None:
        ended = self.run_client("status", "--ready", "--watch")
        assert (ended.status, "--ready looks once" in ended.err) == (2, True)


class WatchTests(StatusCase):
    def watch(self, server: Server, rounds: int, *args: object) -> tuple[Ended, list[float]]:
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == len(server.scripts):
                server.over()
            if len(slept) == rounds:
                raise KeyboardInterrupt

        with patch("client.status.time.sleep", sleep):
            return self.call(server, "status", *args), slept

    def test_it_looks_again_until_ctrl_c(self) -> None:
        server = Server((answering(FOUND), answering({**FOUND, "pid": 7})))
        ended, slept = self.watch(server, 2, "--watch")
        assert (ended.status, slept) == (130, [2.0, 2.0])
        assert "pid 4242" in ended.text
        assert "pid 7" in ended.text

    def test_a_daemon_that_is_restarted_does_not_end_it(self) -> None:
        server = Server((answering(b""), answering(FOUND)))
        ended, slept = self.watch(server, 3, "--watch", "0.5", "--json")
        bad, good, gone = (json.loads(line) for line in ended.text.splitlines())
        assert "did not answer in JSON" in bad["error"]
        assert good == FOUND
        assert "nobody listens" in gone["error"]
        assert slept == [0.5] * 3


class RealTests(SynchronousTestCase):
    def test_a_real_daemon_is_watched_from_start_to_end(self) -> None:
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        daemon.configure(ingest="MIN_FREE = 0", relay="MIN_FREE = 0", admin=f"TOKEN = {TOKEN}")
        daemon.start()
        assert daemon.ask(5000, b"hola") == b"HOLA"
        case = StatusCase()
        case.setUp()
        self.addCleanup(case.doCleanups)
        case.env["ROUNDHOUSE_CONFIG"] = str(daemon.config)
        assert case.run_client("status").status == 1
        assert case.run_client("status", "--ready").status == 0
        case.env["ROUNDHOUSE_ADMIN_TOKEN"] = TOKEN
        ended = case.run_client("status")
        assert (ended.status, ended.err) == (0, "")
        assert "checks: state ok, disk ok, ingest ok, relay ok, handshake ok, chat ok" in ended.text
        [echo] = [line for line in ended.text.splitlines() if line.startswith("echo ")]
        assert echo.split()[:5] == ["echo", "PORT", f"127.0.0.1:{daemon.ports[5000]}", "0", "1"]
        with daemon.connect(5011) as sock:  # a transfer in hand is what a drain waits for
            sock.sendall(b"half a file")
            time.sleep(0.2)
            daemon.send(signal.SIGTERM)
            daemon.says("SIGTERM: finishing what is in hand")
            assert "is not ready" in case.run_client("status", "--ready").err
            drains = case.run_client("status", "--json")
            assert (drains.status, drains.facts["state"]) == (1, "draining")
        assert daemon.process is not None
        assert daemon.process.wait(20) == 0
        assert case.run_client("status").status == 69
        assert TOKEN not in daemon.log
