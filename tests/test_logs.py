"""What the log looks like, where it goes, and what it survives."""

from __future__ import annotations

import json
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import LogEvent, Logger, LogLevel, globalLogPublisher
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from daemon import logs
from daemon.logs import File, Log, Stream, Wanted, as_json, as_text, escape

HOSTILE = "a\nb\r\x1b[31mred\x9b\x00\u202egnp\u2028\u2066\ufeff\ud800\U000e0041z"


def event(level: str = "info", text: str = "{said}", **fields: object) -> LogEvent:
    made: list[LogEvent] = []
    logger: Any = Logger(namespace="daemon.toy", observer=made.append)  # type: ignore[arg-type]
    logger.emit(LogLevel.lookupByName(level), text, **{"log_time": 0.0, **fields})
    return {**made[0], **fields}


def ended(peer: str, outcome: str = "reset") -> LogEvent:
    return event(
        text="{name} {peer}: {outcome}{detail}",
        event="connection.ended",
        name="echo",
        peer=peer,
        outcome=outcome,
        detail="",
    )


class FormatTests(SynchronousTestCase):
    def test_a_line_for_people_has_time_event_level_and_sentence(self) -> None:
        said = as_text(event("warn", "refused {count}", event="gate.refused", count=3))
        when, line = said.split(" ", 1)
        assert line == "[gate.refused#warn] refused 3"
        assert when[4] == "-"
        assert as_text(event(event="x", said="y"), timed=False) == "[x#info] y"

    def test_a_line_for_machines_is_one_object_with_the_fields_of_its_event(self) -> None:
        line = as_json(
            event("warn", "{count}: {why}", event="gate.refused", count=3, why="ñ", log_time=1.5)
        )
        assert json.loads(line) == {
            "time": "1970-01-01T00:00:01.500Z",
            "level": "warn",
            "event": "gate.refused",
            "message": "3: ñ",
            "count": 3,
            "why": "ñ",
        }

    def test_what_a_library_says_is_marked_as_such_and_its_chatter_is_debug(self) -> None:
        found = json.loads(as_json(event(said="Starting factory")))
        assert (found["event"], found["level"]) == ("library", "debug")
        assert found["system"] == "daemon.toy"
        assert json.loads(as_json(event("warn", said="x")))["level"] == "warn"

    def test_nothing_that_a_terminal_or_a_reader_of_lines_would_obey_is_left(self) -> None:
        for line in (
            as_text(event(event="x", said=HOSTILE), timed=False),
            as_json(event(event="gate.refused", count=HOSTILE, said=HOSTILE)),
        ):
            assert line.isprintable()
            assert len(line.splitlines()) == 1
        assert escape("a\n\x1bb\u202e") == r"a\n\x1bb\u202e"
        assert escape("¿Qué tal? 日本 🎉\\n") == "¿Qué tal? 日本 🎉\\n"

    @settings(deadline=None, max_examples=200)
    @given(st.text(st.characters()))
    def test_any_text_stays_on_its_line(self, text: str) -> None:
        assert len(f"x{escape(text)}x".splitlines()) == 1
        assert "\x1b" not in escape(text)
        assert json.loads(as_json(event(event="x", said=text)))["event"] == "x"

    def test_an_exception_is_one_line_too_and_is_told_whole_to_machines(self) -> None:
        made: list[LogEvent] = []
        logger = Logger(observer=made.append)  # type: ignore[arg-type]
        try:
            raise ValueError("no\nway")
        except ValueError:
            logger.failure("it failed", event="store.broken")
        line = as_text(made[0], timed=False)
        assert line.startswith("[store.broken#critical] it failed - Traceback: test_logs.py:")
        assert line.endswith(r": ValueError: no\nway")
        found = json.loads(as_json(made[0]))
        assert found["message"] == "it failed"
        assert "Traceback (most recent call last)" in found["traceback"]

    def test_an_old_fashioned_error_of_a_library_is_one_line(self) -> None:
        made: list[LogEvent] = []
        observer: Any = made.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        legacy.err(Failure(ValueError("no\nway")), "it failed")
        self.flushLoggedErrors(ValueError)
        line = as_text(made[0], timed=False)
        assert line.startswith(
            r"[log_legacy#critical] it failed\nTraceback (most recent call last)"
        )
        assert r"ValueError: no\nway" in line

    def test_a_very_long_sentence_is_cut(self) -> None:
        line = as_text(event(event="x", said="y" * 100_000))
        assert len(line) < logs.MOST + 100
        assert (
            len(as_json(event(event="gate.refused", said="y" * 99_999, why="z" * 99_999))) < 20_000
        )

    def test_a_broken_sentence_is_no_broken_log(self) -> None:
        assert "x" in as_text(event(text="{missing}", event="x"))


class LogCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "roundhouse.log"
        self.clock = Clock()

    def later(self, seconds: float, call: Callable[[], object]) -> object:
        return self.clock.callLater(seconds, call)

    def log(self, **wanted: Any) -> Log:
        log = Log(self.later, wanted=Wanted(**{"file": self.path, **wanted}))
        log.open()
        self.addCleanup(lambda: log._sink.close())
        return log

    def lines(self, path: Path | None = None) -> list[str]:
        return (path or self.path).read_text().splitlines()


class LogTests(LogCase):
    def test_events_below_the_level_are_left_out(self) -> None:
        log = self.log(level="warn")
        log(event("info", event="x", said="quiet"))
        log(event("warn", event="x", said="loud"))
        log(event("critical", said="a library fails"))
        assert [line.split("] ")[1] for line in self.lines()] == ["loud", "a library fails"]

    def test_a_reload_changes_file_format_and_level(self) -> None:
        log = self.log()
        log(event(event="x", said="before"))
        other = self.path.with_name("other.log")
        log.follow(Wanted("json", "debug", other))
        log(event("debug", event="x", said="after"))
        assert len(self.lines()) == 1
        assert json.loads(self.lines(other)[0])["message"] == "after"

    def test_a_file_that_cannot_be_had_leaves_the_log_where_it_is(self) -> None:
        log = self.log()
        log.follow(Wanted(file=self.path / "below" / "a.log"))
        (line,) = self.lines()
        assert "[log.unusable#error] LOG_FILE " in line
        assert "(Not a directory); the log stays as it is" in line
        with pytest.raises(NotADirectoryError):
            Log(self.later, wanted=Wanted(file=self.path / "x")).open()

    def test_lines_that_are_alike_are_written_once_a_second_with_their_number(self) -> None:
        log = self.log()
        for port in range(5000):
            log(ended(f"10.0.0.1:{port}"))
        log(ended("10.0.0.1:1", "silent"))
        assert [line.split("] ")[1] for line in self.lines()] == [
            "echo 10.0.0.1:0: reset",
            "echo 10.0.0.1:1: silent",
        ]
        self.clock.advance(1)
        assert self.lines()[2].endswith("echo 10.0.0.1:4999: reset (and 4998 more like it)")
        log(ended("10.0.0.1:7"))
        assert len(self.lines()) == 3
        self.clock.advance(1)
        assert self.lines()[3].endswith("10.0.0.1:7: reset")
        self.clock.advance(5)
        assert self.clock.getDelayedCalls() == []
        log(ended("10.0.0.1:8"))
        assert len(self.lines()) == 5

    def test_the_number_of_different_lines_a_second_is_bounded(self) -> None:
        log = self.log(format="json")
        for number in range(3 * Log.ABOUT):
            log(ended("10.0.0.1:1", f"why {number}"))
        assert len(self.lines()) == Log.ABOUT + 1
        self.clock.advance(1)
        assert json.loads(self.lines()[-1])["more"] == 2 * Log.ABOUT - 2

    def test_what_waits_is_written_when_the_daemon_ends(self) -> None:
        log = self.log()
        for port in (1, 2, 3):
            log(ended(f"10.0.0.1:{port}"))
        log.close()
        assert self.lines()[1].endswith("10.0.0.1:3: reset (and 1 more like it)")
        log(ended("10.0.0.1:4"))
        log(ended("10.0.0.1:5"))
        assert len(self.lines()) == 4

    def test_threads_log_whole_lines(self) -> None:
        log = self.log()

        def say(who: str) -> None:
            for _ in range(200):
                log(event(event="x", said=who * 50))

        threads = [threading.Thread(target=say, args=(who,)) for who in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {line.split("] ")[1] for line in self.lines()} == {who * 50 for who in "abc"}
        assert len(self.lines()) == 600


class FileTests(LogCase):
    def file(self, **options: Any) -> File:
        file = File(self.path, **options)
        file.open()
        self.addCleanup(file.close)
        return file

    def test_a_new_file_has_mode_0640_whatever_the_umask_and_an_old_one_keeps_its_own(self) -> None:
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        file = self.file()
        assert self.path.stat().st_mode & 0o777 == 0o640
        self.path.chmod(0o600)
        file.open()
        assert self.path.stat().st_mode & 0o777 == 0o600

    def test_it_is_opened_anew_when_it_was_moved_away_or_deleted(self) -> None:
        file = self.file()
        file.write(b"one\n")
        moved = self.path.rename(self.path.with_name("moved"))
        file.write(b"two\n")
        self.path.unlink()
        file.write(b"three\n")
        assert moved.read_text() == "one\n"
        assert self.path.read_text() == "three\n"

    def test_it_is_rotated_before_it_is_too_large_and_only_so_many_stay(self) -> None:
        file = self.file(size=10, keep=2)
        for number in range(6):
            file.write(b"line %d\n" % number)
        found = {path.name: path.read_text() for path in self.path.parent.iterdir()}
        assert found == {
            "roundhouse.log": "line 5\n",
            "roundhouse.log.1": "line 4\n",
            "roundhouse.log.2": "line 3\n",
        }
        file.keep = 1
        file.write(b"line 6\n")
        assert [path.name for path in sorted(self.path.parent.iterdir())] == [
            "roundhouse.log",
            "roundhouse.log.1",
        ]
        file.keep = 0
        file.write(b"line 7\n")
        assert self.path.read_text() == "line 7\n"

    def test_a_line_larger_than_a_file_may_be_has_one_to_itself(self) -> None:
        file = self.file(size=4)
        file.write(b"much too long\n")
        file.write(b"x\n")
        assert self.path.read_text() == "x\n"
        assert self.path.with_name("roundhouse.log.1").read_text() == "much too long\n"

    def test_where_rotating_fails_it_grows_on(self) -> None:
        file = self.file(size=4)
        with mock.patch.object(Path, "rename", side_effect=PermissionError):
            file.write(b"one\n")
            file.write(b"two\n")
        assert self.path.read_text() == "one\ntwo\n"

    def test_no_descriptor_is_left_when_it_cannot_be_given_to_its_owner(self) -> None:
        file = File(self.path, owner=(1, 1))
        before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
        with (
            mock.patch("os.fchown", side_effect=PermissionError),
            pytest.raises(PermissionError),
        ):
            file.open()
        if before:
            assert len(os.listdir("/proc/self/fd")) == before

    def test_a_full_disk_costs_lines_that_are_counted_and_leaves_none_in_half(self) -> None:
        log = self.log()
        log(event(event="x", said="before"))

        def torn(descriptor: int, data: bytes) -> None:
            os.write(descriptor, data[:5])
            raise OSError(28, "No space left on device")

        with mock.patch("daemon.stores.files.write_all", torn):
            for _ in range(4):
                log(event(event="x", said="lost"))
        assert log.lost == 4
        log(event(event="x", said="after"))
        assert [line.split(" ", 1)[1] for line in self.lines()] == [
            "[x#info] before",
            "[log.lost#warn] 4 lines of this log are lost: No space left on device",
            "[x#info] after",
        ]

    def test_a_pipe_with_a_name_that_nobody_reads_is_an_error_and_no_wait(self) -> None:
        os.mkfifo(self.path)
        with pytest.raises(OSError, match="No such device"):
            self.file()


class StreamTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ear, self.mouth = os.pipe()
        self.addCleanup(os.close, self.mouth)
        self.addCleanup(lambda: os.close(self.ear) if self.ear >= 0 else None)

    def full(self, stream: Stream) -> int:
        """Write until nobody reads it; how many lines went."""
        for count in range(100_000):
            try:
                stream.write(b"x" * 99 + b"\n")
            except BlockingIOError:
                return count
        raise AssertionError("a pipe without end")

    def test_a_reader_that_is_stuck_costs_lines_and_no_time(self) -> None:
        stream = Stream(self.mouth)
        count = self.full(stream)
        assert count > 100
        heard = b""
        while len(heard) < count * 100:
            heard += os.read(self.ear, 65536)
        stream.write(b"goes on\n")
        assert os.read(self.ear, 99) == b"goes on\n"

    def test_a_line_that_broke_off_ends_before_the_next(self) -> None:
        stream = Stream(self.mouth)
        with (
            mock.patch.object(logs, "PATIENCE", 1),
            pytest.raises(BlockingIOError),
        ):
            stream.write(b"y" * (1 << 20) + b"\n")
        while select.select([self.ear], [], [], 0)[0]:
            heard = os.read(self.ear, 65536)
        assert heard.endswith(b"y")
        stream.write(b"whole\n")
        assert os.read(self.ear, 99) == b"\nwhole\n"

    def test_a_reader_that_is_gone_is_an_error_like_any_other(self) -> None:
        os.close(self.ear)
        self.ear = -1
        with pytest.raises(BrokenPipeError):
            Stream(self.mouth).write(b"x\n")

    def test_for_the_journal_a_line_has_its_priority_in_place_of_the_time(self) -> None:
        status = os.fstat(self.mouth)
        log = Log(lambda seconds, call: None)
        log._sink = Stream(self.mouth)
        with mock.patch.dict(os.environ, JOURNAL_STREAM=f"{status.st_dev}:{status.st_ino}"):
            log(event("warn", event="x", said="y"))
            assert os.read(self.ear, 99) == b"<4>[x#warn] y\n"
        with mock.patch.dict(os.environ, JOURNAL_STREAM="1:2"):
            log(event("warn", event="x", said="y"))
            assert b"<" not in os.read(self.ear, 99)


class BeginTests(LogCase):
    def begun(self, *arguments: str, **wanted: Any) -> Log | None:
        log = logs.begin(["/usr/bin/twistd", *arguments], Wanted(**wanted), self.later)
        if log is not None:
            self.addCleanup(lambda: log._sink.close())
        return log

    def test_it_goes_where_twistd_would_log(self) -> None:
        tac = ("-y", "service.tac")
        for arguments, usual in {
            ("-n", *tac): None,
            ("--nodaemon", "--pidfile=", "-l", "-", *tac): None,
            ("-nl", str(self.path), *tac): self.path,
            ("--reactor=epoll", "--logfile", str(self.path), *tac): self.path,
        }.items():
            log = self.begun(*arguments)
            assert log is not None
            assert log.usual == usual

    def test_a_daemon_of_twistd_logs_in_its_folder(self) -> None:
        before = Path.cwd()
        self.addCleanup(os.chdir, before)
        os.chdir(self.path.parent)
        log = self.begun("-y", "service.tac")
        assert log is not None
        os.chdir(before)
        log(event(event="x", said="y"))
        assert self.path.with_name("twistd.log").read_text().endswith("[x#info] y\n")

    def test_the_configured_file_goes_before_that(self) -> None:
        log = self.begun("-nl", str(self.path), "-y", "service.tac", file=self.path.with_name("a"))
        assert log is not None
        assert self.path.with_name("a").exists()
        assert not self.path.exists()

    def test_syslog_and_a_logger_of_the_operators_own_are_left_alone(self) -> None:
        assert self.begun("--syslog", "-y", "service.tac") is None
        assert self.begun("--logger", "twisted.logger.textFileLogObserver", "-y", "x") is None

    def test_without_twistd_it_is_standard_output(self) -> None:
        log = logs.begin(["pytest", "-q"], Wanted(), self.later)
        assert log is not None
        assert log.usual is None
        log = self.begun("--no-such-option")
        assert log is not None
        assert log.usual is None
