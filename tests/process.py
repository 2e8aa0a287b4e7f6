"""A real daemon: twistd on service.tac, in a folder and on ports of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from attrs import define, field

HOME = Path(__file__).resolve().parents[1]
PORTS = {
    ("ingest", "PORT"): 8080,
    ("relay", "PORT"): 5011,
    ("relay", "HTTP_PORT"): 5012,
    ("chat", "PORT"): 60060,
    ("chat", "IRC_PORT"): 6667,
    ("handshake", "CODE_PORT"): 8000,
    ("handshake", "MESSAGE_PORT"): 8001,
    ("echo", "PORT"): 5000,
    ("admin", "PORT"): 8088,
}
PATIENCE = 20.0  # seconds for anything that a healthy daemon does at once


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return found


@define
class Twistd:
    """One daemon. `ports` maps the usual port of a service to the one it has here.

    traced: the lines that it runs count for the coverage, which costs it half of its speed.
    """

    home: Path = field(factory=lambda: Path(mkdtemp(prefix="roundhouse-")))
    tac: str = "service.tac"
    traced: bool = True
    ports: dict[int, int] = field(init=False)
    process: subprocess.Popen[bytes] | None = None
    _starts: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.ports = dict(zip(PORTS.values(), free_ports(len(PORTS)), strict=True))
        self.configure()

    @property
    def config(self) -> Path:
        return self.home / "config.cfg"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> str:
        path = self.home / "out.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def configure(self, default: str = "", **sections: str) -> None:
        """Write config.cfg: our ports, `default` in [DEFAULT], more lines for each section."""
        lines = ["[DEFAULT]", "SERVER_IP = 127.0.0.1", default, "[daemon]"]
        lines.append(sections.pop("daemon", ""))
        for (section, key), usual in PORTS.items():
            if f"[{section}]" not in lines:
                lines += [f"[{section}]", sections.pop(section, "")]
            lines.append(f"{key} = {self.ports[usual]}")
        assert not sections
        fresh = self.config.with_suffix(".new")
        fresh.write_text("\n".join(lines) + "\n")
        fresh.rename(self.config)

    def environ(self) -> dict[str, str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith("ROUNDHOUSE_")}
        if reactor := os.environ.get("ROUNDHOUSE_REACTOR"):
            keep["ROUNDHOUSE_REACTOR"] = reactor
        if not self.traced:
            keep = {k: v for k, v in keep.items() if not k.startswith("COVERAGE_")}
        return keep | {"ROUNDHOUSE_CONFIG": str(self.config), "PYTHONUNBUFFERED": "1"}

    def spawn(self, *options: str) -> subprocess.Popen[bytes]:
        """twistd with `options` (`-n` for the foreground), output in out.log; not waited for."""
        twistd = Path(sys.executable).with_name("twistd")
        with (self.home / "out.log").open("ab") as out:
            return subprocess.Popen(
                [str(twistd), *options, "-y", str(HOME / self.tac)],
                cwd=self.home,
                env=self.environ(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def start(self) -> Twistd:
        self._starts += 1
        self.process = self.spawn("-n", "--pidfile=")
        self.wait_until_served()
        return self

    def wait_until_served(self) -> None:
        until = time.monotonic() + PATIENCE
        while self.log.count("Press Ctrl+C to stop.") < self._starts:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the daemon ended: {self.log[-2000:]}")
            if time.monotonic() > until:
                raise AssertionError(f"not all services listen: {self.log[-2000:]}")
            time.sleep(0.02)

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """kill -9, and start again on the same folder and ports."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)
        self.start()

    def discard(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE)
        shutil.rmtree(self.home, ignore_errors=True)

    def connect(self, usual: int) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.ports[usual]), PATIENCE)

    def ask(self, usual: int, *chunks: bytes) -> bytes:
        """Send, half-close, and read to the end."""
        with self.connect(usual) as sock:
            for chunk in chunks:
                sock.sendall(chunk)
            sock.shutdown(socket.SHUT_WR)
            return everything(sock)

    def says(self, *words: str) -> str:
        """Wait for a line of the log that holds all of `words`."""
        until = time.monotonic() + PATIENCE
        while True:
            for line in self.log.splitlines():
                if all(word in line for word in words):
                    return line
            if time.monotonic() > until:
                raise AssertionError(f"{words} not in the log: {self.log[-3000:]}")
            time.sleep(0.02)


def everything(sock: socket.socket) -> bytes:
    """Read to FIN; raises ConnectionResetError where the peer reset."""
    sock.settimeout(PATIENCE)
    chunks = []
    while chunk := sock.recv(1 << 16):
        chunks.append(chunk)
    return b"".join(chunks)


def open_files() -> list[str]:
    """What the descriptors of this process are on."""
    links = []
    for entry in os.scandir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(entry))
    return links
