"""The client's surface: how it starts, fails and ends. Also the servers its tests talk to."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any
from unittest.mock import patch

from attrs import define, field, frozen
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from client.__main__ import COMMANDS, cli

HOME = Path(__file__).resolve().parents[1]
PATIENCE = 10.0  # seconds before a test gives up on a peer

Script = Callable[[socket.socket], object]


@define(eq=False)
class Server:
    """A server on 127.0.0.1 that plays one script a connection, one after the other.

    said: what each script returned, in order.
    """

    scripts: tuple[Script, ...]
    said: list[Any] = field(factory=list, init=False)
    port: int = field(init=False)
    _thread: Thread = field(init=False)
    _fault: BaseException | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(PATIENCE)
        self.port = listener.getsockname()[1]
        self._thread = Thread(target=self._serve, args=(listener,), daemon=True)
        self._thread.start()

    def _serve(self, listener: socket.socket) -> None:
        try:
            with ExitStack() as open_until_the_end:
                open_until_the_end.enter_context(listener)
                for script in self.scripts:
                    peer = listener.accept()[0]
                    peer.settimeout(PATIENCE)
                    with peer:
                        self.said.append(script(peer))
        except BaseException as fault:
            self._fault = fault

    def over(self) -> list[Any]:
        """What was said, once every script has been played."""
        self._thread.join(PATIENCE)
        if self._fault is not None:
            raise self._fault
        assert not self._thread.is_alive(), "nobody came, or somebody stayed"
        return self.said


def everything(peer: socket.socket) -> bytes:
    """All up to the peer's FIN; ends in b"RESET" where it was none."""
    heard = bytearray()
    try:
        while data := peer.recv(1 << 16):
            heard += data
    except ConnectionResetError:
        heard += b"RESET"
    return bytes(heard)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def saying(answer: bytes) -> Script:
    """A server that hears everything, answers, and closes."""

    def script(peer: socket.socket) -> bytes:
        heard = everything(peer)
        peer.sendall(answer)
        return heard

    return script


def speaking(data: bytes) -> Script:
    """A server that speaks at once, and then hears everything."""

    def script(peer: socket.socket) -> bytes:
        peer.sendall(data)
        return everything(peer)

    return script


def after(script: Script, act: Script) -> Script:
    """A script and what comes after it; says what the script returned."""

    def both(peer: socket.socket) -> object:
        said = script(peer)
        act(peer)
        return said

    return both


def stall(peer: socket.socket) -> None:
    """Longer than the tests' --timeout."""
    time.sleep(0.4)


def nobody() -> int:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@frozen
class Ended:
    """How a run of the client ended."""

    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.out)
        return facts


class ClientCase(SynchronousTestCase):
    """Runs the client in a folder of its own, out of reach of any real config.cfg or home."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.config = self.folder / "config.cfg"
        self.config.write_text("[DEFAULT]\nSERVER_IP = 127.0.0.1\n")
        self.env: dict[str, str | None] = {
            "ROUNDHOUSE_CONFIG": str(self.config),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "ROUNDHOUSE_HOST": None,
            "ROUNDHOUSE_CODE": None,
            "NO_COLOR": None,
            "TERM": "xterm",
        }

    def file(self, data: bytes, name: str = "sent.bin") -> str:
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    def run_client(self, *args: object, typed: bytes | None = None) -> Ended:
        """In this process."""
        runner = CliRunner(env=self.env)
        result = runner.invoke(cli, [str(arg) for arg in args], input=typed)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ended(result.exit_code, result.stdout_bytes, result.stderr)

    def call(self, server: Server, *args: object, typed: bytes | None = None) -> Ended:
        return self.run_client("--port", server.port, *args, typed=typed)

    def environment(self) -> Mapping[str, str]:
        ours = {name: value for name, value in self.env.items() if value is not None}
        return {k: v for k, v in os.environ.items() if k not in self.env} | ours

    def start(self, *args: object, **streams: Any) -> subprocess.Popen[bytes]:
        """As a process of its own; it ends with the test."""
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        command = [sys.executable, "-m", "client", *map(str, args)]
        process = subprocess.Popen(
            command, cwd=HOME, env=self.environment(), **{**pipes, **streams}
        )
        self.addCleanup(self._end, process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.kill()
        with process:
            pass

    def ended(self, process: subprocess.Popen[bytes], typed: bytes | None = None) -> Ended:
        out, err = process.communicate(typed, timeout=PATIENCE)
        return Ended(process.returncode, out or b"", (err or b"").decode())

    def on_terminal(self, *args: object, typed: bytes = b"") -> Ended:
        """In this process, with all three streams on a terminal; what it shows is `out`."""
        master, slave = pty.openpty()
        modes = termios.tcgetattr(slave)
        modes[3] &= ~termios.ECHO  # what is typed must not land among what is shown
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        shown = bytearray()

        def watch() -> None:
            while not shown.endswith(b"END"):
                shown.extend(os.read(master, 1 << 16))

        screen = Thread(target=watch, daemon=True)
        screen.start()
        os.write(master, typed)
        env = {name: value or "" for name, value in self.env.items()}
        with (
            open(slave, "rb+", buffering=0, closefd=False) as raw,
            open(slave, encoding="utf-8", closefd=False) as stdin,
            open(slave, "w", encoding="utf-8", closefd=False) as stdout,
            open(slave, "w", encoding="utf-8", closefd=False) as stderr,
            patch.multiple(sys, stdin=stdin, stdout=stdout, stderr=stderr),
            patch.dict(os.environ, env),
        ):
            try:
                cli.main([str(arg) for arg in args])
            except SystemExit as end:
                status = end.code
            stdout.flush()
            stderr.flush()
            raw.write(b"END")
        screen.join(PATIENCE)
        os.close(slave)
        os.close(master)
        assert isinstance(status, int)
        return Ended(status, bytes(shown).removesuffix(b"END"), "")


class SurfaceTests(ClientCase):
    def test_every_command_has_help_with_examples(self) -> None:
        for command in ([], *([name] for name in COMMANDS)):
            for flag in ("-h", "--help"):
                helped = self.run_client(*command, flag)
                assert helped.status == 0
                assert "Examples:\n    roundhouse" in helped.text.replace("\n      ", "\n    ")

    def test_the_version_is_the_distributions(self) -> None:
        with patch("importlib.metadata.version", {"roundhouse-daemon": "1.2.3"}.__getitem__):
            assert self.run_client("--version").text == "roundhouse 1.2.3\n"

    def test_the_version_of_a_bare_checkout_is_unknown(self) -> None:
        from importlib.metadata import PackageNotFoundError

        with patch("importlib.metadata.version", side_effect=PackageNotFoundError):
            assert self.run_client("--version").text == "roundhouse 0+unknown\n"

    def test_wrong_usage_is_status_2(self) -> None:
        for args in (["nothing"], ["ingest"], ["put"], ["--port", "0", "echo", "x"]):
            wrong = self.run_client(*args)
            assert wrong.status == 2, args
            assert "Usage:" in wrong.err

    def test_nobody_listening_is_status_69_for_every_command(self) -> None:
        sent, port = self.file(b"x"), nobody()
        for args in (
            ["ingest", sent],
            ["put", sent],
            ["get", "-o", self.folder / "got"],
            ["chat"],
            ["register", "ana"],
            ["echo", "x"],
        ):
            ended = self.run_client(*args, "--port", port)
            assert (ended.status, ended.out) == (69, b""), args
            assert f"127.0.0.1:{port}: Connection refused" in ended.err
        assert not (self.folder / "got").exists()

    def test_an_unknown_host_is_status_69(self) -> None:
        for host in ("nowhere.invalid", "a" * 70):
            ended = self.run_client("--host", host, "--port", 5000, "echo", "x")
            assert ended.status == 69
            assert f"nobody listens at {host}:5000" in ended.err

    def test_a_host_that_does_not_answer_is_status_69(self) -> None:
        with patch("socket.create_connection", side_effect=TimeoutError):
            ended = self.run_client("echo", "x", "--timeout", "0.5", "--host", "::9")
        assert ended.status == 69
        assert "nobody answers at [::9]:5000 (0.5 s)" in ended.err

    def test_a_port_that_tcp_connected_to_itself_counts_as_nobody(self) -> None:
        with socket.socket() as lonely:
            lonely.bind(("127.0.0.1", 0))
            lonely.connect(lonely.getsockname())
            port = lonely.getsockname()[1]
            with patch("socket.create_connection", return_value=lonely):
                assert self.run_client("chat", "--port", port).status == 69

    def test_errors_are_json_where_results_are(self) -> None:
        port = nobody()
        ended = self.run_client("echo", "--json", "--port", port, "x")
        assert ended.status == 69
        assert json.loads(ended.err) == {
            "error": f"nobody listens at 127.0.0.1:{port}: Connection refused",
            "status": 69,
        }

    def test_an_unreadable_config_is_status_78_unless_nothing_of_it_is_needed(self) -> None:
        self.config.write_text("no section\n")
        ended = self.run_client("echo", "x")
        assert ended.status == 78
        assert str(self.config) in ended.err
        assert self.run_client("--host", "127.0.0.1", "--port", nobody(), "echo", "x").status == 69

    def test_colours_are_for_terminals_without_no_color(self) -> None:
        failing = ["echo", "x", "--port", nobody()]
        assert b"\x1b[31mError:" in self.on_terminal(*failing).out
        self.env["NO_COLOR"] = "1"
        assert b"\x1b" not in self.on_terminal(*failing).out
        assert "\x1b" not in self.run_client(*failing).err


class ProcessTests(ClientCase):
    def test_a_refused_connection_is_one_line_and_a_status(self) -> None:
        ended = self.ended(self.start("echo", "x", "--port", nobody()))
        assert ended.status == 69
        assert ended.err.count("\n") == 1

    def test_ctrl_c_is_status_130_without_a_traceback(self) -> None:
        server = Server((everything,))
        process = self.start("get", "--raw", "-o", self.folder / "got", "--port", server.port)
        assert process.stderr is not None
        assert process.stderr.readline() == b"Waiting for sender...\n"
        process.send_signal(signal.SIGINT)
        ended = self.ended(process)
        assert ended.status == 130
        assert ended.err.strip() == "Interrupted"
        assert server.over() == [b"RESET"]
        assert os.listdir(self.folder) == ["config.cfg"]

    def test_a_terminated_client_leaves_no_partial_file(self) -> None:
        server = Server((everything,))
        process = self.start("get", "--raw", "-o", self.folder / "got", "--port", server.port)
        assert process.stderr is not None
        process.stderr.readline()
        process.terminate()
        assert self.ended(process) == Ended(128 + signal.SIGTERM, b"", "")
        assert server.over() == [b"RESET"]
        assert os.listdir(self.folder) == ["config.cfg"]

    def test_ctrl_c_and_the_end_of_input_at_a_question(self) -> None:
        process = self.start("relay", "--ask")
        assert process.stderr is not None
        assert process.stderr.read(4) == b"Port"
        process.send_signal(signal.SIGINT)
        assert self.ended(process).status == 130
        ended = self.run_client("relay", "--ask", typed=b"")
        assert (ended.status, ended.out) == (1, b"")
        assert ended.err.endswith("Nothing more to read: given up\n")

    def test_a_reader_that_left_ends_it_quietly(self) -> None:
        server = Server((speaking(b"x" * 4000),))
        process = self.start("get", "--raw", "--port", server.port)
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        ended = self.ended(process)
        assert (ended.status, ended.err) == (1, "Waiting for sender...\n")
        assert server.over() == [b"RESET"]

    def test_a_full_disk_under_standard_output_is_told_and_gives_the_file_back(self) -> None:
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full here")
        server = Server((speaking(b"x" * 4000),))
        with open("/dev/full", "wb") as full:
            ended = self.ended(self.start("get", "--raw", "--port", server.port, stdout=full))
        assert ended.status == 1
        assert ended.err.endswith("cannot write to standard output: No space left on device\n")
        assert server.over() == [b"RESET"]

    def test_it_starts_quickly(self) -> None:
        began = time.monotonic()
        self.ended(self.start("echo", "x", "--port", nobody()))
        assert time.monotonic() - began < 2  # about 0.1 on an idle machine
        script = "import client.__main__, client.echo, sys; print('rich' in sys.modules)"
        command = [sys.executable, "-c", script]
        assert subprocess.check_output(command, cwd=HOME) == b"False\n"
