"""What daemon/ask.py makes of answers, and that it agrees with what the daemon reads."""

from __future__ import annotations

import io
import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import Mock, patch

import attrs
import pytest
from twisted.trial.unittest import SynchronousTestCase

from daemon import settings
from daemon.ask import QUESTIONS, Unusable, ask, buffer_size, edit, file_size, host, main, parse
from daemon.catalogue import CATALOGUE
from protocols.options import KIND

HOME = Path(__file__).resolve().parents[1]


def answered(text: str, typed: str) -> str:
    return edit(text, "config.cfg", io.StringIO(typed), io.StringIO())


class EditTests(SynchronousTestCase):
    def test_the_end_of_the_input_keeps_every_byte(self) -> None:
        text = (HOME / "config.cfg").read_text()
        assert answered(text, "") == text
        assert answered(text, "\n" * 20) == text

    def test_only_the_value_changes_and_its_comment_keeps_its_column(self) -> None:
        text = "; ours\n[echo] # five\nport: 5000      # the line check\nIDLE_TIMEOUT = 9\n"
        assert answered(text, "\n" * 6 + "49152\n") == text.replace("5000 ", "49152")
        assert "PORT = 8080 # c\n" in answered("[ingest]\nPORT = 1 # c\n", "\n8080\n")
        assert answered("[ingest]\nPORT = # c\n", "") == "[ingest]\nPORT = 8080 # c\n"

    def test_what_is_not_there_comes_at_the_end_of_its_section(self) -> None:
        text = "[relay]\nLEASE = 5\n\n# about chat\n[chat]\nFLUSH_AFTER = 0"
        assert answered(text, "\n\n5012\n60061\n") == (
            "[relay]\nLEASE = 5\nPORT = 5012\n\n"
            "# about chat\n[chat]\nFLUSH_AFTER = 0\nPORT = 60061\n"
        )
        assert answered(text, "\n" * 6 + "5001").endswith(
            "FLUSH_AFTER = 0\n\n[echo]\nPORT = 5001\n"
        )

    def test_the_file_of_an_older_daemon_is_changed_where_its_keys_stand(self) -> None:
        text = "[DEFAULT]\r\nSERVER_IP = 127.0.0.1\r\nPORT = 8080\r\nMAX_FILE_SIZE = 15 # small\r\n"
        changed = answered(text, "0.0.0.0\n9000\n\n\n\n\n\n32 KiB\n1 MB\n")
        assert changed == (
            "[DEFAULT]\r\nSERVER_IP = 0.0.0.0\r\nPORT = 9000\r\nMAX_FILE_SIZE = 1 MB # small\r\n"
            "\r\n[ingest]\r\nBUFFER_SIZE = 32 KiB\r\n"
        )

    def test_a_key_of_ingest_in_its_section_wins_over_the_old_place(self) -> None:
        text = "[DEFAULT]\nPORT = 8080\n[ingest]\nPORT = 8081\n"
        assert answered(text, "\n8082\n") == text.replace("8081", "8082")

    def test_without_a_file_every_answer_is_written(self) -> None:
        sections = parse(answered("", ""), "config.cfg")
        assert [(q.key, q.held(sections)) for q in QUESTIONS] == [
            (q.key, q.default) for q in QUESTIONS
        ]

    def test_what_cannot_be_edited_line_by_line_is_left_alone(self) -> None:
        text = "[echo]\nPORT =\n  5000\n"
        with pytest.raises(Unusable, match="PORT cannot be set here; please edit it by hand"):
            answered(text, "\n" * 6 + "5001\n")


class AskTests(SynchronousTestCase):
    def dialogue(self, text: str, typed: str) -> tuple[dict[str, str], str]:
        told = io.StringIO()
        answers = ask(parse(text, "config.cfg"), io.StringIO(typed), told)
        return {f"{q.section} {q.key}": answer for q, answer in answers.items()}, told.getvalue()

    def test_a_wrong_answer_is_explained_and_asked_for_again(self) -> None:
        typed = "::zz\n::1\nx\n0\n65536\n080\n81\n" + "\n" * 5 + "9 kib\n1 b\n1023\n16 MiB\n0\n1"
        answers, told = self.dialogue("", typed)
        assert answers["DEFAULT SERVER_IP"] == "::1"
        assert answers["ingest PORT"] == "81"
        assert answers["ingest BUFFER_SIZE"] == "9 kib"
        assert answers["ingest MAX_FILE_SIZE"] == "1 b"
        assert "'::zz' is not an IP address such as 127.0.0.1" in told
        for wrong in ("x", "0", "65536", "080"):
            assert f"{wrong!r} is not a port from 1 to 65535" in told

    def test_two_services_cannot_have_one_port(self) -> None:
        answers, told = self.dialogue("", "\n8000\n\n\n\n8002\n")
        assert answers["handshake CODE_PORT"] == "8002"
        assert "8000 is the port of ingest already" in told

    def test_a_default_that_cannot_stand_at_the_end_of_the_input_is_refused(self) -> None:
        with pytest.raises(Unusable, match="Port of echo: 5000 is the port of ingest already"):
            self.dialogue("", "\n5000\n")

    def test_a_bad_value_in_the_file_is_said_and_the_default_offered(self) -> None:
        answers, told = self.dialogue("[chat]\nPORT = sixty\n", "")
        assert answers["chat PORT"] == "60060"
        assert "Port of chat: 'sixty' is not a port from 1 to 65535" in told

    def test_what_would_change_nothing_is_not_asked(self) -> None:
        text = "[echo]\nENABLED = No\n[handshake]\nCODE_LISTEN = unix:/run/codes\n"
        answers, told = self.dialogue(text, "")
        assert {"echo PORT", "handshake CODE_PORT"}.isdisjoint(answers)
        assert answers["handshake MESSAGE_PORT"] == "8001"
        assert "Port of echo: not asked, [echo] is not enabled" in told
        assert "not asked, [handshake] CODE_LISTEN says where it listens" in told


class AgreementTests(SynchronousTestCase):
    """The asking knows the rules by heart, for it runs before anything is installed."""

    def read(self, text: str) -> settings.Settings:
        with TemporaryDirectory() as folder:
            config = Path(folder) / "config.cfg"
            config.write_text(text)
            return settings.read(config, Path(folder), CATALOGUE, {})

    def test_the_defaults_are_those_of_the_daemon(self) -> None:
        ours, theirs = self.read(answered("", "")), self.read("")
        assert ours.server_ip == theirs.server_ip
        for name, service in theirs.services.items():
            assert ours.services[name].options == service.options
            assert [x.endpoints for x in ours.services[name].listens] == [
                x.endpoints for x in service.listens
            ]

    def test_every_port_that_the_daemon_cannot_do_without_is_asked_for(self) -> None:
        asked = {(question.section, question.key) for question in QUESTIONS}
        ports = {(spec.name, port) for spec in CATALOGUE for port in spec.ports}
        assert {(name, port.key) for name, port in ports if not port.secondary} <= asked

    def test_both_accept_the_same_sizes(self) -> None:
        [ingest] = (spec for spec in CATALOGUE if spec.name == "ingest")
        kinds = {a.name: a.metadata[KIND] for a in attrs.fields(ingest.options)}
        units = ("", "b", "k", "kb", "kib", "M", "MB", "MiB", "g", "GB", "Gib", "t", "TB", "tib")
        texts = [
            f"{n}{blank}{u}"
            for n in ("0", "1", "0.4", "15", "1.5", "1024", "16777217")
            for blank in ("", " ")
            for u in (*units, "ib", "ki", "pb", "s")
        ]
        for check, kind in (
            (file_size, kinds["max_file_size"]),
            (buffer_size, kinds["buffer_size"]),
        ):
            verdicts = {text: (accepts(check, text), accepts(kind, text)) for text in texts}
            assert {text: pair for text, pair in verdicts.items() if len({*pair}) > 1} == {}
            assert {pair[0] for pair in verdicts.values()} == {True, False}

    def test_both_accept_the_same_hosts(self) -> None:
        for text in ("127.0.0.1", "::", "localhost", "LOCALHOST", "0.0.0.0"):
            assert accepts(host, text)
            assert self.read(f"[DEFAULT]\nSERVER_IP = {text}\n").server_ip
        for text in ("example.org", "127.0.0", "1.2.3.4:80", "*"):
            assert not accepts(host, text)
            with pytest.raises(settings.ConfigError):
                self.read(f"[DEFAULT]\nSERVER_IP = {text}\n")


def accepts(check: Any, text: str) -> bool:
    try:
        check(text)
    except ValueError:
        return False
    return True


class MainTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.config = Path(folder.name) / "config.cfg"

    @property
    def others(self) -> list[Path]:
        return [path for path in self.config.parent.iterdir() if path != self.config]

    def run_with(self, typed: Any) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            patch.dict(os.environ, ROUNDHOUSE_CONFIG=str(self.config)),
            patch("sys.stdin", typed),
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            status = main()
        return status, out.getvalue(), err.getvalue()

    def test_the_old_file_is_kept_beside_the_new_one_with_its_mode(self) -> None:
        self.config.write_text("[echo]\nPORT = 5000\n")
        self.config.chmod(0o640)
        status, out, err = self.run_with(io.StringIO("\n" * 6 + "5001\n"))
        assert (status, err) == (0, "")
        assert self.config.read_text() == "[echo]\nPORT = 5001\n"
        assert self.config.stat().st_mode & 0o777 == 0o640
        [copy] = self.others
        assert copy.read_text() == "[echo]\nPORT = 5000\n"
        assert copy.match("config.cfg.*.bak")
        assert f"Wrote {self.config.resolve()}; the old one is {copy.name}\n" in out
        assert out.endswith("Start: ./run_app.sh -run\n")

    def test_nothing_new_writes_nothing(self) -> None:
        self.config.write_text("[echo]\nPORT = 5000\n")
        status, out, _ = self.run_with(io.StringIO())
        assert status == 0
        assert "says so already" in out
        assert self.others == []

    def test_a_first_file_needs_no_copy(self) -> None:
        status, out, _ = self.run_with(io.StringIO())
        assert status == 0
        assert f"Wrote {self.config.resolve()}\n" in out
        assert self.others == []

    def test_a_link_stays_a_link(self) -> None:
        real = self.config.with_name("real.cfg")
        real.write_text("[echo]\nPORT = 5000\n")
        self.config.symlink_to(real)
        assert self.run_with(io.StringIO("\n" * 6 + "5001\n"))[0] == 0
        assert self.config.is_symlink()
        assert real.read_text() == "[echo]\nPORT = 5001\n"

    def test_ctrl_c_changes_nothing(self) -> None:
        self.config.write_text("[echo]\nPORT = 5000\n")
        status, _, err = self.run_with(Mock(readline=Mock(side_effect=KeyboardInterrupt)))
        assert (status, err) == (130, "\nNothing was changed.\n")
        assert self.config.read_text() == "[echo]\nPORT = 5000\n"
        assert self.others == []

    def test_a_file_that_cannot_be_read_as_settings_is_left_alone(self) -> None:
        for content, said in (
            (b"[echo]\nPORT = 1\nPORT = 2\n", "line  3"),
            (b"[echo]\n# \xff\n", f"{self.config.resolve()}:2: not UTF-8"),
        ):
            self.config.write_bytes(content)
            status, _, err = self.run_with(io.StringIO())
            assert status == 78
            assert said.replace("  ", " ") in err
            assert "othing was changed" in err
            assert self.config.read_bytes() == content
            assert self.others == []

    def test_a_folder_that_takes_no_file_is_named(self) -> None:
        self.config = self.config.parent / "nowhere" / "config.cfg"
        status, _, err = self.run_with(io.StringIO())
        assert status == 1
        assert "nowhere/config.cfg.new: No such file or directory. Nothing was changed." in err
