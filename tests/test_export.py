"""export: every message once, in a form that others read, while the daemon goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase

from daemon import export as module
from daemon.export import export
from daemon.stores.ledger import MIGRATIONS

HOSTILE = ['a "quoted", one\nwith lines\r\n', "=1+1", "\x00\x1b[2J\x7f", "ñ \u2028 😀", " x "]


class ExportTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name).resolve()
        self.database = self.folder / "data" / "roundhouse.db"
        self.database.parent.mkdir()
        self.env = {"ROUNDHOUSE_CONFIG": str(self.folder / "config.cfg")}
        (self.folder / "config.cfg").write_text("[DEFAULT]\nDATA_DIR = data\n")
        self.rows: list[tuple[int, str, str, str, str]] = []
        with closing(sqlite3.connect(self.database)) as table:
            table.executescript("PRAGMA journal_mode = WAL;" + "".join(MIGRATIONS))
            table.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            for code, ident in enumerate(("ana", "ñu"), 1):
                table.execute(
                    "INSERT INTO codes (id, hash, at) VALUES (?, ?, 'then')", (ident, bytes([code]))
                )
            for seq, text in enumerate(HOSTILE * 3, 1):
                code = seq % 2
                at = f"2026-11-{seq:02}T10:00:00.000Z"
                self.rows.append((seq, at, ("ana", "ñu")[code], text, "127.0.0.1:9"))
                table.execute(
                    "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)", (*self.rows[-1], code + 1)
                )
            table.commit()

    def run_it(self, *args: object) -> Result:
        runner = CliRunner(env=self.env)
        result = runner.invoke(export, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def test_json_lines_are_those_of_the_log_file(self) -> None:
        result = self.run_it()
        assert result.exit_code == 0
        assert all(32 <= byte < 127 or byte == 10 for byte in result.stdout_bytes)
        records = [json.loads(line) for line in result.stdout.splitlines()]
        assert [tuple(record.values()) for record in records] == [
            (at, seq, ident, text) for seq, at, ident, text, _ in self.rows
        ]

    def test_csv_says_everything_exactly(self) -> None:
        self.patch(module, "BATCH", 4)
        text = self.run_it("--format", "csv").stdout_bytes.decode()
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        assert header == ["seq", "at", "id", "message", "peer"]
        assert [(int(row[0]), *row[1:]) for row in rows] == self.rows

    def test_a_time_and_an_id_say_which(self) -> None:
        def seqs(*args: str) -> list[int]:
            return [json.loads(line)["seq"] for line in self.run_it(*args).stdout.splitlines()]

        assert seqs("--since", "2026-11-14") == [14, 15]
        assert seqs("--since", "2026-11-14T13:00+02:00") == [15]
        assert seqs("--since", "2026-11-14T10:00Z", "--id", "ana") == [14]
        assert seqs("--id", "ñu") == list(range(1, 16, 2))
        assert seqs("--id", "nobody") == []
        assert seqs("--since", "0300-01-01") == list(range(1, 16))
        for wrong in ("soon", "0001-01-01T00:00+05:00", "9999-12-31T23:59-05:00"):
            result = self.run_it("--since", wrong)
            assert result.exit_code == 2
            assert f"'{wrong}' is no time" in result.stderr

    def test_a_file_is_there_only_once_it_is_whole_and_is_not_replaced_unasked(self) -> None:
        path = self.folder / "out.csv"
        result = self.run_it("-o", path)
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == f"{path}: 15 messages\n"
        assert path.read_bytes().startswith(b"seq,at,id")  # as it is named
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        assert self.run_it("-o", path).exit_code == 2
        path.write_text("old")
        with patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            failed = self.run_it("-o", path, "--force")
        assert failed.exit_code == 1
        assert "No space left on device" in failed.stderr
        assert path.read_text() == "old"
        assert self.run_it("-o", path, "--force").exit_code == 0
        assert sorted(p.name for p in self.folder.iterdir()) == ["config.cfg", "data", "out.csv"]

    def test_an_empty_ledger_is_a_header_or_nothing(self) -> None:
        with closing(sqlite3.connect(self.database)) as table:
            table.execute("DELETE FROM messages")
            table.commit()
        assert self.run_it().stdout == ""
        assert self.run_it("--format", "csv").stdout == "seq,at,id,message,peer\n"

    def test_what_comes_meanwhile_is_left_and_nothing_holds_the_writer_up(self) -> None:
        self.patch(module, "BATCH", 2)
        batches = module.exported(self.database, module.Wanted())
        next(batches)
        with closing(sqlite3.connect(self.database, isolation_level=None)) as table:
            table.execute(
                "INSERT INTO messages (at, id, message, peer) VALUES ('now', 'ana', 'new', 'p')"
            )
            assert table.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        seen = [row[0] for rows, _ in batches for row in rows]
        assert seen == list(range(3, 16))

    def test_what_is_no_database_of_ours_is_named(self) -> None:
        result = self.run_it("--database", self.folder / "nix.db")
        assert (result.exit_code, "is not there" in result.stderr) == (66, True)
        result = self.run_it("--database", self.folder / "config.cfg")
        assert (result.exit_code, "not a database" in result.stderr) == (66, True)
        with closing(sqlite3.connect(self.database)) as table:
            table.execute("PRAGMA user_version = 1")
        result = self.run_it()
        assert (result.exit_code, "start its daemon once" in result.stderr) == (66, True)

    def test_a_wrong_config_is_said_line_by_line(self) -> None:
        (self.folder / "config.cfg").write_text("[handshake]\nPROT = 1\n")
        result = self.run_it()
        assert result.exit_code == 78
        assert "config.cfg:2" in result.stderr

    def test_a_reader_that_has_seen_enough_is_no_failure(self) -> None:
        code = (
            "from daemon import export as e; e.BATCH = 1; "
            "e.as_jsonl = lambda rows: b'x' * 70000; e.FORMS['jsonl'] = (b'', e.as_jsonl); "
            "e.export()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parent.parent,
            env={**os.environ, **self.env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.read(10)
            process.stdout.close()
            assert process.stderr is not None
            assert (process.stderr.read(), process.wait(20)) == (b"", 0)
