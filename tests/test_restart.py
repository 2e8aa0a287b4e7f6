"""Restarts of a real twistd under load: nobody is refused, and nothing that was kept is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unittest import SkipTest
from urllib.parse import urlencode
from urllib.request import urlopen

from twisted.trial.unittest import SynchronousTestCase

from tests.process import HOME, PATIENCE, Twistd, everything


class RestartCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.daemon = Twistd()
        self.addCleanup(self.daemon.discard)

    def restart(self, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "daemon", "restart", *options],
            cwd=HOME,
            env=self.daemon.environ(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )


class Load:
    """Threads that ask again and again, and count how each time ended."""

    def __init__(self, *tasks: Callable[[], str]) -> None:
        self.ends: Counter[str] = Counter()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(task,)) for task in tasks]

    def _repeat(self, task: Callable[[], str]) -> None:
        while not self._over.is_set():
            try:
                end = task()
            except Exception as error:
                end = type(error).__name__
            self.ends[end] += 1

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(PATIENCE)


class LoadTests(RestartCase):
    RESTARTS = 5

    def test_nobody_is_refused_and_every_receipt_holds(self) -> None:
        daemon = self.daemon.start()
        assert daemon.process is not None
        number = daemon.process.pid
        url = f"http://127.0.0.1:{daemon.ports[8000]}/"
        code = urlopen(url, urlencode({"client_uuid": "ana"}).encode(), PATIENCE).read().decode()
        said: list[str] = []
        stored: list[bytes] = []

        def echo() -> str:
            return "right" if daemon.ask(5000, b"hola") == b"HOLA" else "drained"

        def ingest() -> str:
            data = os.urandom(3000)
            if not daemon.ask(8080, data).startswith(b"OK 3000 "):
                return "drained"
            stored.append(data)
            return "right"

        def keep() -> str:
            text = str(time.monotonic_ns())
            answer = daemon.ask(8001, f"KEEP\nana {code} {text}\n".encode())
            if not answer.startswith(b"OK "):
                return "drained"
            said.append(text)
            return "right"

        with Load(echo, echo, ingest, keep) as load, daemon.connect(60060) as member:
            for _ in range(self.RESTARTS):
                done = self.restart("--json")
                assert done.returncode == 0, done.stderr + daemon.log[-3000:]
                told = json.loads(done.stdout)
                assert told["pid"] == number
                time.sleep(0.2)
            assert everything(member) == b""  # a FIN: rooms are never split
        assert set(load.ends) <= {"right", "drained", "ConnectionResetError"}, load.ends
        cut = load.ends["drained"] + load.ends["ConnectionResetError"]
        assert cut <= 4 * self.RESTARTS, load.ends  # of each thread: the one that was drained
        assert load.ends["right"] > 50
        assert daemon.stop() == 0
        files = (daemon.data / "ingest").glob("*.bin")
        assert {file.read_bytes() for file in files} >= set(stored)
        lines = (daemon.data / "logfile.log").read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        assert {line["message"] for line in logged} >= set(said)

    def test_a_connection_without_end_holds_a_restart_up_for_two_seconds(self) -> None:
        daemon = self.daemon.start()
        usual = json.loads(self.restart("--json").stdout)["seconds"]  # on this machine, just now
        with daemon.connect(5000) as idle, daemon.connect(8080) as stream:
            stream.sendall(b"half of it")
            assert idle.fileno() > 0
            done = self.restart("--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["seconds"] < 2 * usual + 2.5
        assert daemon.ask(5000, b"da") == b"DA"


class RefusalTests(RestartCase):
    def test_a_program_that_would_not_start_never_takes_over(self) -> None:
        daemon = self.daemon.start()
        assert daemon.process is not None
        good = daemon.config.read_text()
        daemon.config.write_text(good.replace(f"PORT = {daemon.ports[5000]}", "PORT = x"))
        daemon.send(signal.SIGUSR2)
        daemon.says("not restarted:", "PORT")
        assert daemon.ask(5000, b"da") == b"DA"
        done = self.restart()
        assert done.returncode == 78
        assert "PORT" in done.stderr
        assert daemon.stop() == 0

    def test_a_stop_that_comes_meanwhile_is_a_stop(self) -> None:
        daemon = self.daemon.start()
        assert daemon.process is not None
        with daemon.connect(8080) as stream:
            stream.sendall(b"x")
            daemon.send(signal.SIGUSR2)
            daemon.says("restart: finishing")
            daemon.send(signal.SIGTERM)
            assert daemon.process.wait(PATIENCE) == 0
        assert daemon.log.count("Press Ctrl+C") == 1

    def test_where_no_daemon_answers_that_is_said(self) -> None:
        done = self.restart()
        assert (done.returncode, done.stdout) == (69, "")
        assert "no daemon answers at 127.0.0.1:" in done.stderr
        self.daemon.config.write_text("[admin]\nENABLED = no\n")
        done = self.restart()
        assert done.returncode == 69
        assert "has no admin port that could be asked: kill -USR2 PID" in done.stderr


SQUATTER = """
import os, socket, sys
sock = socket.create_server(("127.0.0.1", int(sys.argv[1])))
os.setuid(65534)
sys.stdout.write("there"); sys.stdout.flush()
sys.stdout.buffer.write(sock.accept()[0].recv(9999))
"""


class SquatterTests(RestartCase):
    def test_who_took_the_admin_port_hears_no_token(self) -> None:
        if os.geteuid():
            raise SkipTest("only root can be two users")
        self.daemon.configure(admin="TOKEN = very-secret-token")
        port = str(self.daemon.ports[8088])
        command = [sys.executable, "-c", SQUATTER, port]
        squatter = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert squatter.stdout is not None
            assert squatter.stdout.read(5) == b"there"
            done = self.restart()
            assert (done.returncode, done.stdout) == (77, "")
            assert f"what listens at 127.0.0.1:{port} belongs to another user" in done.stderr
            assert squatter.stdout.read() == b""
        finally:
            squatter.kill()
            squatter.communicate()

    def test_a_program_of_ours_that_is_no_daemon_is_left_alone(self) -> None:
        with socket.create_server(("127.0.0.1", self.daemon.ports[8088])) as sock:
            sock.settimeout(PATIENCE)

            def answer() -> None:
                peer, _ = sock.accept()
                with peer:
                    peer.recv(9999)
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

            thread = threading.Thread(target=answer)
            thread.start()
            done = self.restart()
            thread.join()
        assert done.returncode == 69
        assert "no daemon answers at 127.0.0.1:" in done.stderr


class TailTests(RestartCase):
    def test_who_follows_the_messages_of_an_id_sees_those_after_the_restart_too(self) -> None:
        daemon = self.daemon.start()
        url = f"http://127.0.0.1:{daemon.ports[8000]}/"
        code = urlopen(url, urlencode({"client_uuid": "ana"}).encode(), PATIENCE).read().decode()
        assert daemon.ask(8001, f"ana {code} one".encode()) == b"OK\n"
        command = [sys.executable, "-m", "client", "tail", "ana", "-f", "--json"]
        with subprocess.Popen(
            [*command, "--port", str(daemon.ports[8001])],
            cwd=HOME,
            env=daemon.environ() | {"ROUNDHOUSE_CODE": code, "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
        ) as tail:
            try:
                assert tail.stdout is not None
                seen = [json.loads(tail.stdout.readline())]
                assert self.restart().returncode == 0
                assert daemon.ask(8001, f"ana {code} two".encode()) == b"OK\n"
                seen.append(json.loads(tail.stdout.readline()))
            finally:
                tail.terminate()
        assert [(line["seq"], line["message"]) for line in seen] == [(1, "one"), (2, "two")]


class BackgroundTests(RestartCase):
    def test_a_daemon_in_the_background_comes_back_with_its_pidfile(self) -> None:
        daemon = self.daemon
        daemon.process = daemon.spawn()
        assert daemon.process.wait(PATIENCE) == 0
        self.addCleanup(lambda: self.end(daemon.home / "twistd.pid"))
        until = time.monotonic() + PATIENCE
        while not self.serves():
            assert time.monotonic() < until
            time.sleep(0.05)
        done = self.restart()
        log = daemon.home / "twistd.log"
        assert done.returncode == 0, done.stderr + log.read_text()[-3000:]
        assert done.stdout.startswith("Restarted in ")
        assert int((daemon.home / "twistd.pid").read_text()) == int(
            done.stdout.partition("pid ")[2].partition(",")[0]
        )
        assert daemon.ask(5000, b"da") == b"DA"

    def serves(self) -> bool:
        try:
            return self.daemon.ask(5000, b"da") == b"DA"
        except OSError:
            return False

    def end(self, pidfile: Path) -> None:
        number = int(pidfile.read_text())
        os.kill(number, signal.SIGTERM)
        until = time.monotonic() + PATIENCE
        while pidfile.exists() and time.monotonic() < until:
            time.sleep(0.05)
