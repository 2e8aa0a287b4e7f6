"""The ledger: codes that cannot be guessed, messages that are there once they were answered."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.defer import fail, gatherResults
from twisted.trial.unittest import TestCase

from daemon.stores.files import Unusable
from daemon.stores.ledger import MIGRATIONS, Ledger
from protocols.stores import Entry, Refused, StoreError


class Case(TestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.data = Path(folder.name) / "data"

    def ledger(self) -> Ledger:
        from twisted.internet import reactor

        ledger = Ledger(self.data, reactor)
        ledger.startService()
        self.addCleanup(ledger.stopService)
        return ledger

    async def registered(self, ledger: Ledger, ident: str = "ana") -> str:
        code = await ledger.claim(ident)
        assert isinstance(code, str)
        return code

    def select(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.data / "roundhouse.db")) as connection:
            return connection.execute(sql).fetchall()

    def logged(self) -> list[dict[str, Any]]:
        text = (self.data / "logfile.log").read_text()
        return [json.loads(line) for line in text.splitlines()]


class ClaimTests(Case):
    async def test_a_code_is_a_fresh_uuid4_and_only_its_hash_is_stored(self) -> None:
        ledger = self.ledger()
        codes = await gatherResults([ledger.claim("ana"), ledger.claim("ana")])
        assert len(set(codes)) == 2
        for code in codes:
            assert isinstance(code, str)
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f-]{17}", code)
            answer = await ledger.append([Entry("ana", code, "hola", "p")])
            assert isinstance(answer[0], int)
        await ledger.stopService()
        assert self.select("SELECT id FROM clients") == [("ana",)]
        assert self.select("SELECT id, length(hash) FROM codes") == [("ana", 32)] * 2
        everything = b"".join(path.read_bytes() for path in self.data.iterdir())
        assert not any(str(code).encode() in everything for code in codes)

    async def test_an_exclusive_claim_is_refused_when_the_id_has_a_code(self) -> None:
        ledger = self.ledger()
        first, second, other = await gatherResults(
            [ledger.claim("ana", exclusive=True) for _ in range(2)]
            + [ledger.claim("bea", exclusive=True)]
        )
        assert isinstance(first, str)
        assert second is Refused.TAKEN
        assert isinstance(other, str)
        assert await ledger.claim("ana", exclusive=True) is Refused.TAKEN
        assert isinstance(await ledger.claim("ana"), str)

    async def test_an_id_that_cannot_be_written_is_refused(self) -> None:
        ledger = self.ledger()
        assert await ledger.claim("\ud800") is Refused.BROKEN

    async def test_five_hundred_at_once_get_a_code_each_that_is_theirs_alone(self) -> None:
        ledger = self.ledger()
        idents = [f"client {n}" for n in range(500)]
        codes = [str(code) for code in await gatherResults([ledger.claim(i) for i in idents])]
        assert len(set(codes)) == 500
        own = [Entry(i, code, "hola", "p") for i, code in zip(idents, codes, strict=True)]
        stolen = [evolve(entry, ident="client 7") for entry in own]
        answers = await gatherResults(
            [ledger.append([*pair]) for pair in zip(own, stolen, strict=True)]
        )
        assert [answer[1] for answer in answers].count(Refused.WRONG) == 499
        assert sorted(s for answer in answers for s in answer if isinstance(s, int)) == list(
            range(1, 502)
        )


class AppendTests(Case):
    async def test_messages_are_numbered_in_order_and_stand_in_table_and_log(self) -> None:
        ledger = self.ledger()
        code = await self.registered(ledger)
        texts = [f"message {n}" for n in range(300)] + ["ñ\nNUL\0", "x" * 65536, "\u2028\U0001f600"]
        entries = [Entry("ana", code, text, "127.0.0.1:9") for text in texts]
        assert await ledger.append(entries[:200]) == list(range(1, 201))
        assert await ledger.append(entries[200:]) == list(range(201, 304))
        await ledger.stopService()
        rows = self.select("SELECT seq, id, message, peer FROM messages ORDER BY seq")
        assert rows == [(n, "ana", text, "127.0.0.1:9") for n, text in enumerate(texts, 1)]
        records = self.logged()
        assert [(r["seq"], r["id"], r["message"]) for r in records] == [row[:3] for row in rows]
        assert [r["time"] for r in records] == [
            at for (at,) in self.select("SELECT at FROM messages ORDER BY seq")
        ]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", records[0]["time"])

    async def test_a_wrong_pair_is_refused_and_costs_no_neighbour(self) -> None:
        ledger = self.ledger()
        code = await self.registered(ledger)
        other = await self.registered(ledger, "bea")
        good = Entry("ana", code, "hola", "p")
        assert await ledger.append(
            [
                good,
                evolve(good, code=other),
                evolve(good, ident="nobody"),
                evolve(good, code=""),
                evolve(good, ident="", code=f"ana\n{code}"),
                good,
            ]
        ) == [1, *[Refused.WRONG] * 4, 2]
        assert await ledger.append([]) == []

    async def test_what_cannot_be_written_as_utf8_is_refused_alone(self) -> None:
        ledger = self.ledger()
        code = await self.registered(ledger)
        good = Entry("ana", code, "hola", "p")
        bad = [evolve(good, **{key: "\ud800"}) for key in ("ident", "code", "message", "peer")]
        assert await ledger.append([*bad, good]) == [*[Refused.BROKEN] * 4, 1]
        assert await ledger.append(bad) == [Refused.BROKEN] * 4

    async def test_a_code_taken_back_with_sql_is_worth_nothing_any_more(self) -> None:
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), "hola", "p")
        assert await ledger.append([entry]) == [1]
        with closing(sqlite3.connect(self.data / "roundhouse.db")) as shell:
            shell.execute("DELETE FROM codes")
            shell.commit()
        assert await ledger.append([entry]) == [Refused.WRONG]

    async def test_a_number_is_never_given_twice(self) -> None:
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), "hola", "p")
        assert await ledger.append([entry] * 3) == [1, 2, 3]
        await ledger.database.run(lambda c: c.execute("DELETE FROM messages") and None)
        await ledger.stopService()
        again = self.ledger()
        assert await again.append([entry]) == [4]
        await again.stopService()
        assert [record["seq"] for record in self.logged()] == [1, 2, 3, 4]

    async def test_too_much_that_waits_is_busy_at_once(self) -> None:
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), "hola", "p")
        for name, limit in (("MOST", 3), ("MOST_BYTES", 3 * len("ana-hola-p") + 3 * 36)):
            self.patch(Ledger, name, limit)
            taken = [ledger.append([entry] * 2), ledger.append([entry] * 2)]
            assert self.successResultOf(ledger.append([entry] * 2)) == [Refused.BUSY] * 2
            assert self.successResultOf(ledger.claim("bea")) is Refused.BUSY
            assert all(isinstance(n, int) for a in await gatherResults(taken) for n in a)
            assert isinstance((await ledger.append([entry]))[0], int)
            self.patch(Ledger, name, 1 << 30)

    async def test_trouble_is_a_value_and_what_waited_counts_no_more(self) -> None:
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), "hola", "p")
        for error, logged in ((StoreError("disk full"), 0), (ZeroDivisionError(), 1)):
            self.patch(type(ledger.database), "gather", lambda *_, error=error: fail(error))
            assert await ledger.append([entry] * 2) == [Refused.BROKEN] * 2
            assert await ledger.claim("ana") is Refused.BROKEN
            assert len(self.flushLoggedErrors(ZeroDivisionError)) == 2 * logged
        assert (ledger._entries, ledger._bytes) == (0, 0)


class DurabilityTests(Case):
    # sends without end, at most ten calls at once, and prints the number of what was answered
    CLIENT = """
import sys
from pathlib import Path
from twisted.internet import reactor
from daemon.stores.ledger import Ledger
from protocols.stores import Entry

ledger = Ledger(Path(sys.argv[1]), reactor)

def more(code):
    def answered(seqs):
        for seq in seqs:
            print(seq, flush=True)
        more(code)
    entries = [Entry("ana", code, f"text \\u2028 {n}", "p") for n in range(7)]
    ledger.append(entries).addCallback(answered)

def start():
    ledger.startService()
    ledger.claim("ana").addCallback(lambda code: [more(code) for _ in range(10)])

reactor.callWhenRunning(start)
reactor.run()
"""

    async def test_nothing_answered_is_missing_after_kill_9_and_rows_are_lines(self) -> None:
        seen: list[int] = []
        for round_ in range(4):
            with subprocess.Popen(
                [sys.executable, "-c", self.CLIENT, str(self.data)],
                cwd=Path(__file__).parent.parent,
                stdout=subprocess.PIPE,
                text=True,
            ) as client:
                assert client.stdout is not None
                seen += [int(client.stdout.readline()) for _ in range(100 + 37 * round_)]
                os.kill(client.pid, signal.SIGKILL)
                seen += [int(line) for line in client.stdout if line.endswith("\n")]
            assert client.returncode == -signal.SIGKILL
            ledger = self.ledger()
            await ledger.stopService()
            rows = self.select("SELECT seq, message FROM messages ORDER BY seq")
            assert {seq for seq, _ in rows} >= set(seen)
            assert [(r["seq"], r["message"]) for r in self.logged()] == rows
        assert len(seen) == len(set(seen))

    async def test_every_version_of_the_file_becomes_the_newest(self) -> None:
        for version in range(len(MIGRATIONS)):
            folder = self.data / str(version)
            folder.mkdir(parents=True)
            with closing(sqlite3.connect(folder / "roundhouse.db")) as old:
                for script in MIGRATIONS[:version]:
                    old.executescript(script)
                old.execute(f"PRAGMA user_version = {version}")
            from twisted.internet import reactor

            ledger = Ledger(folder, reactor)
            ledger.startService()
            entry = Entry("ana", await self.registered(ledger), "hola", "p")
            assert isinstance((await ledger.append([entry]))[0], int)
            await ledger.stopService()

    async def test_a_newer_database_is_refused_at_load(self) -> None:
        ledger = self.ledger()
        await ledger.database.run(lambda c: c.execute("PRAGMA user_version = 99") and None)
        await ledger.stopService()
        with pytest.raises(Unusable, match=r"roundhouse\.db is of version 99"):
            ledger.check()
