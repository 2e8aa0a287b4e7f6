"""What a shell offers at TAB: asked as a shell asks, and in real shells."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from click.shell_completion import CompletionItem, ShellComplete
from click.testing import CliRunner, Result
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from client import completion
from client.__main__ import COMMANDS, cli
from client.caller import Caller
from client.completion import SHELLS
from tests.process import Twistd
from tests.screen import Screen, absent
from tests.test_client import Script, Server, nobody

SCRIPTS = {  # how each shell is started without anybody's settings, and can complete at all
    "bash": ("bash --noprofile --norc -i", ""),
    "zsh": ("zsh -f -i", "autoload -U compinit && compinit -u -D"),
    "fish": ("fish --no-config -i", ""),
}


class CompletionCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        environ = {"XDG_STATE_HOME": folder.name, "ROUNDHOUSE_CONFIG": "", "HOME": folder.name}
        there = patch.dict(os.environ, environ)
        there.start()
        self.addCleanup(there.stop)

    def items(self, *words: str) -> list[CompletionItem]:
        """What is offered for the last of the words."""
        *typed, begun = words
        asked = ShellComplete(cli, {"obj": Caller()}, "roundhouse", "_ROUNDHOUSE_COMPLETE")
        return asked.get_completions(typed, begun)

    def offered(self, *words: str) -> list[str]:
        return [item.value for item in self.items(*words)]


class WordTests(CompletionCase):
    def test_commands_options_and_words_that_are_the_only_right_ones(self) -> None:
        assert self.offered("") == [*COMMANDS]
        assert self.offered("re") == ["requeue", "relay", "register"]
        assert "--streams" in self.offered("ingest", "--")
        assert self.offered("selftest", "echo", "ha") == ["handshake"]
        assert self.offered("completion", "") == [*SHELLS]

    def test_files_are_left_to_the_shell(self) -> None:
        for words in (
            ("put", "re"),
            ("ingest", "a.log", "re"),
            ("get", "-o", "re"),
            ("put", "--token-file", "re"),
            ("say", "--code-file", "re"),
            ("status", "--token-file", "re"),
        ):
            assert [(item.type, item.value) for item in self.items(*words)] == [("file", "re")]

    def test_ids_are_those_whose_code_is_kept(self) -> None:
        assert self.offered("say", "") == []
        kept = self.folder / "roundhouse" / "codes.json"
        kept.parent.mkdir()
        kept.write_text(
            json.dumps({"a:1": {"ana": "x", "bob": "x", "a b": "x"}, "b:1": {"ana": "y"}})
        )
        assert self.offered("say", "") == ["ana", "bob"]
        assert self.offered("tail", "b") == ["bob"]
        kept.write_text("[1]")
        assert self.offered("say", "") == []


class RelayTests(CompletionCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(completion, "PATIENCE", 10.0)  # where many tests run at once

    def served(self, script: Script) -> list[str]:
        """What is offered as a box while the relay is played by a script."""
        server = Server((script,))
        found = self.offered("--host", "127.0.0.1", "--port", str(server.port), "ls", "")
        server.over()
        return found

    def test_boxes_and_what_is_in_them_are_asked_of_the_relay_that_runs(self) -> None:
        daemon = Twistd().start()
        self.addCleanup(daemon.discard)
        os.environ["ROUNDHOUSE_CONFIG"] = str(daemon.config)
        for box, name in ("photos", "a.jpg"), ("photos", "b.jpg"), ("papers", "c.pdf"):
            put = f"PUT /{box}/{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"
            assert b" 201 " in daemon.ask(5012, put.encode())
        assert self.offered("ls", "p") == ["papers", "photos"]
        assert self.offered("put", "--to", "ph") == ["photos"]
        first, second = self.items("rm", "--from", "photos", "")
        assert (first.help, second.help) == ("a.jpg", "b.jpg")
        assert self.offered("rm", "--from", "photos", first.value, "") == [second.value]
        assert self.offered("get", "--from", "photos", second.value) == [second.value]
        assert self.offered("requeue", "--from", "empty", "") == []

    def test_where_nobody_listens_nothing_is_offered(self) -> None:
        assert self.offered("--port", str(nobody()), "ls", "") == []
        os.environ["ROUNDHOUSE_CONFIG"] = str(self.folder / "missing.cfg")
        assert self.offered("ls", "") == []

    def test_who_says_nothing_is_not_waited_for(self) -> None:
        def silent(peer: socket.socket) -> None:
            while peer.recv(1 << 16):
                pass

        self.patch(completion, "PATIENCE", 0.2)
        began = time.monotonic()
        assert self.served(silent) == []
        assert 0.2 <= time.monotonic() - began < 4

    def test_what_is_no_list_of_boxes_is_not_offered(self) -> None:
        for body in (
            b"what?",
            b"[]",
            b'{"boxes": 1}',
            b'{"boxes": [{"box": 1}]}',
            b'{"boxes": [[]]}',
        ):
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)

            def says(peer: socket.socket, answer: bytes = head + body) -> None:
                peer.recv(1 << 16)
                peer.sendall(answer)

            assert self.served(says) == []

    def test_what_a_shell_would_obey_is_not_offered(self) -> None:
        bad = ["$(reboot)", "a b", "`id`", "a;b", "a\nb", ""]
        body = json.dumps(
            {"boxes": [{"box": box, "parcels": 1} for box in [*bad, "fine"]]}
        ).encode()

        def says(peer: socket.socket) -> None:
            peer.recv(1 << 16)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        assert self.served(says) == ["fine"]


class ScriptTests(CompletionCase):
    def run_command(self, *args: str, shell: str = "") -> Result:
        with patch.dict(os.environ, {"SHELL": shell}):
            return CliRunner().invoke(cli.get_command(None, "completion"), args)  # type: ignore[arg-type]

    def test_without_a_name_it_is_for_the_shell_in_use(self) -> None:
        for shell in SHELLS:
            named = self.run_command(shell)
            assert named.exit_code == 0
            assert "_ROUNDHOUSE_COMPLETE" in named.stdout
            assert self.run_command(shell=f"/usr/bin/{shell}").stdout == named.stdout
        assert len({self.run_command(shell).stdout for shell in SHELLS}) == 3

    def test_a_shell_it_does_not_know_is_wrong_usage(self) -> None:
        for shell in ("", "/bin/sh"):
            unknown = self.run_command(shell=shell)
            assert unknown.exit_code == 2
            assert "which shell? There are bash, zsh, fish" in unknown.stderr

    def test_tab_completes_commands_options_and_files_in_bash(self) -> None:
        self.complete("bash")

    def test_tab_completes_commands_options_and_files_in_zsh(self) -> None:
        self.complete("zsh")

    def test_tab_completes_commands_options_and_files_in_fish(self) -> None:
        self.complete("fish")

    def complete(self, shell: str) -> None:
        if missing := absent("tmux", shell):
            raise SkipTest(missing)
        start, prepare = SCRIPTS[shell]
        (self.folder / "quarterly report.txt").touch()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        screen = Screen(start.split(), {"PATH": path, "PWD": str(self.folder)})
        self.addCleanup(screen.close)
        screen.types(f"cd {self.folder}; {prepare}")
        if shell == "fish":
            screen.types("roundhouse completion fish | source; echo rea''dy")
        else:
            screen.types(f'eval "$(roundhouse completion {shell})"; echo rea""dy')
        screen.shows("ready")
        screen.types("roundhouse inge", enter=False)
        screen.presses("Tab")
        screen.shows("roundhouse ingest")
        screen.types("--no-rec", enter=False)
        screen.presses("Tab")
        screen.shows("roundhouse ingest --no-receipt")
        screen.types("quart", enter=False)
        screen.presses("Tab")
        screen.shows("roundhouse ingest --no-receipt quarterly\\ report.txt")
