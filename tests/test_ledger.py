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
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from attrs import evolve
from twisted.internet.defer import Deferred, fail, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from daemon.stores import ledger as ledger_module
from daemon.stores.files import Unusable
from daemon.stores.ledger import MIGRATIONS, Ledger
from protocols.stores import Claim, Entry, Query, Record, Refused, Rules, StoreError


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
        code = await ledger.claim(Claim(ident))
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
        codes = await gatherResults([ledger.claim(Claim("ana")), ledger.claim(Claim("ana"))])
        assert len(set(codes)) == 2
        for code in codes:
            assert isinstance(code, str)
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f-]{17}", code)
            answer = await ledger.append([Entry("ana", code, ("hola",), "p")])
            assert isinstance(answer[0], int)
        await ledger.stopService()
        assert self.select("SELECT id FROM clients") == [("ana",)]
        assert self.select("SELECT id, length(hash) FROM codes") == [("ana", 32)] * 2
        everything = b"".join(path.read_bytes() for path in self.data.iterdir())
        assert not any(str(code).encode() in everything for code in codes)

    async def test_an_exclusive_claim_is_refused_when_the_id_has_a_code(self) -> None:
        ledger = self.ledger()
        first, second, other = await gatherResults(
            [ledger.claim(Claim("ana", exclusive=True)) for _ in range(2)]
            + [ledger.claim(Claim("bea", exclusive=True))]
        )
        assert isinstance(first, str)
        assert second is Refused.TAKEN
        assert isinstance(other, str)
        assert await ledger.claim(Claim("ana", exclusive=True)) is Refused.TAKEN
        assert isinstance(await ledger.claim(Claim("ana")), str)

    async def test_an_id_that_cannot_be_written_is_refused(self) -> None:
        ledger = self.ledger()
        assert await ledger.claim(Claim("\ud800")) is Refused.BROKEN

    async def test_five_hundred_at_once_get_a_code_each_that_is_theirs_alone(self) -> None:
        ledger = self.ledger()
        idents = [f"client {n}" for n in range(500)]
        codes = [
            str(code) for code in await gatherResults([ledger.claim(Claim(i)) for i in idents])
        ]
        assert len(set(codes)) == 500
        own = [Entry(i, code, ("hola",), "p") for i, code in zip(idents, codes, strict=True)]
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
        entries = [Entry("ana", code, (text,), "127.0.0.1:9") for text in texts]
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
        good = Entry("ana", code, ("hola",), "p")
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
        good = Entry("ana", code, ("hola",), "p")
        bad = [evolve(good, **{key: "\ud800"}) for key in ("ident", "code", "messages", "peer")]
        assert await ledger.append([*bad, good]) == [*[Refused.BROKEN] * 4, 1]
        assert await ledger.append(bad) == [Refused.BROKEN] * 4

    async def test_a_code_taken_back_with_sql_is_worth_nothing_any_more(self) -> None:
        self.patch(Ledger, "LOOK", 0.05)
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), ("hola",), "p")
        assert [await ledger.append([entry]) for _ in range(3)] == [[1], [2], [3]]
        assert ledger._known
        with closing(sqlite3.connect(self.data / "roundhouse.db")) as shell:
            shell.execute("UPDATE codes SET ended = datetime() WHERE id = 'ana'")
            shell.commit()
        await deferLater(ledger.reactor, 0.06)
        assert await ledger.append([entry]) == [Refused.WRONG]

    async def test_a_number_is_never_given_twice(self) -> None:
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), ("hola",), "p")
        assert await ledger.append([entry] * 3) == [1, 2, 3]
        await ledger.database.run(lambda c: c.execute("DELETE FROM messages") and None)
        await ledger.stopService()
        again = self.ledger()
        assert await again.append([entry]) == [4]
        await again.stopService()
        assert [record["seq"] for record in self.logged()] == [1, 2, 3, 4]

    async def test_too_much_that_waits_is_busy_at_once(self) -> None:
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), ("hola",), "p")
        for name, limit in (("MOST", 3), ("MOST_BYTES", 3 * len("ana-hola-p") + 3 * 36)):
            self.patch(Ledger, name, limit)
            taken = [ledger.append([entry] * 2), ledger.append([entry] * 2)]
            assert self.successResultOf(ledger.append([entry] * 2)) == [Refused.BUSY] * 2
            assert self.successResultOf(ledger.claim(Claim("bea"))) is Refused.BUSY
            assert ledger.behind
            assert all(isinstance(n, int) for a in await gatherResults(taken) for n in a)
            assert not ledger.behind
            assert isinstance((await ledger.append([entry]))[0], int)
            self.patch(Ledger, name, 1 << 30)

    async def test_trouble_is_a_value_and_what_waited_counts_no_more(self) -> None:
        ledger = self.ledger()
        entry = Entry("ana", await self.registered(ledger), ("hola",), "p")
        for error, logged in ((StoreError("disk full"), 0), (ZeroDivisionError(), 1)):
            self.patch(type(ledger.database), "gather", lambda *_, error=error: fail(error))
            assert await ledger.append([entry] * 2) == [Refused.BROKEN] * 2
            assert await ledger.claim(Claim("ana")) is Refused.BROKEN
            assert len(self.flushLoggedErrors(ZeroDivisionError)) == 2 * logged
        assert (ledger._waiting, ledger._bytes) == (0, 0)


class ExclusiveTests(Case):
    """One code an id, which is the key to the next."""

    async def says(self, ledger: Ledger, code: object) -> bool:
        [answer] = await ledger.append([Entry("ana", str(code), ("hola",), "p")])
        return answer is not Refused.WRONG

    async def test_the_present_code_is_needed_and_ends_when_the_next_one_is_used(self) -> None:
        ledger = self.ledger()
        first = await ledger.claim(Claim("ana", exclusive=True))
        for shown in (None, "", "guess", str(first).upper()):
            assert await ledger.claim(Claim("ana", shown, True)) is Refused.TAKEN
        assert await ledger.claim(Claim("bea", "nobody's", True)) is not Refused.TAKEN
        second = await ledger.claim(Claim("ana", str(first), True))
        third = await ledger.claim(Claim("ana", str(first), True))  # the answer was lost: again
        assert isinstance(second, str)
        assert isinstance(third, str)
        assert await self.says(ledger, first)
        assert await self.says(ledger, third)
        assert not await self.says(ledger, first)
        assert not await self.says(ledger, second)
        assert await self.says(ledger, third)
        assert await ledger.claim(Claim("ana", str(first), True)) is Refused.TAKEN

    async def test_that_is_so_after_a_restart(self) -> None:
        ledger = self.ledger()
        first = await ledger.claim(Claim("ana", exclusive=True))
        second = await ledger.claim(Claim("ana", str(first), True))
        assert await self.says(ledger, second)
        await ledger.stopService()
        again = self.ledger()
        assert not await self.says(again, first)
        assert await self.says(again, second)
        assert await again.claim(Claim("ana", str(second), True)) is not Refused.TAKEN


class RulesTests(Case):
    async def old(self, ledger: Ledger, table: str) -> None:
        await ledger.database.run(
            lambda c: c.execute(f"UPDATE {table} SET at = '2001-01-01T00:00:00.000Z'") and None
        )

    async def test_a_code_that_was_never_used_expires_and_its_id_is_free_again(self) -> None:
        ledger = self.ledger()
        code = await ledger.claim(Claim("ana", exclusive=True))
        used = await self.registered(ledger, "bea")
        await ledger.append([Entry("bea", used, ("hola",), "p")])
        await self.old(ledger, "codes")
        assert await ledger.claim(Claim("ana", exclusive=True)) is Refused.TAKEN
        ledger.rule(Rules(code_expires=3600))
        entries = [Entry("ana", str(code), ("hola",), "p"), Entry("bea", used, ("hola",), "p")]
        refused, taken = await ledger.append(entries)
        assert refused is Refused.WRONG
        assert isinstance(taken, int)
        assert isinstance(await ledger.claim(Claim("bob")), str)
        await ledger.database.run(
            lambda c: c.execute("UPDATE codes SET at = '2001' WHERE id = 'bob'") and None
        )
        fresh = await ledger.claim(Claim("ana", exclusive=True))
        assert isinstance(fresh, str)
        await Deferred.fromCoroutine(ledger._sweep())
        assert self.select("SELECT id FROM codes ORDER BY id") == [("ana",), ("bea",)]
        assert self.select("SELECT id FROM clients ORDER BY id") == [("ana",), ("bea",)]
        assert isinstance((await ledger.append([Entry("ana", fresh, ("x",), "p")]))[0], int)

    async def test_the_newest_so_many_messages_stay(self) -> None:
        self.patch(Ledger, "SWEEP", 10)
        ledger = self.ledger()
        code = await self.registered(ledger)
        await ledger.append([Entry("ana", code, [str(n) for n in range(100)], "p")])
        await Deferred.fromCoroutine(ledger._sweep())
        assert len(self.select("SELECT seq FROM messages")) == 100
        ledger.rule(Rules(keep_count=7))
        await Deferred.fromCoroutine(ledger._sweep())
        assert self.select("SELECT seq FROM messages") == [(seq,) for seq in range(94, 101)]
        assert await ledger.append([Entry("ana", code, ("next",), "p")]) == [101]
        await ledger.stopService()  # the log follows the answer
        assert len(self.logged()) == 101

    async def test_messages_that_are_too_old_go(self) -> None:
        ledger = self.ledger()
        code = await self.registered(ledger)
        await ledger.append([Entry("ana", code, ("old", "older"), "p")])
        await self.old(ledger, "messages")
        await ledger.append([Entry("ana", code, ("young",), "p")])
        ledger.rule(Rules(keep_seconds=86400))
        await Deferred.fromCoroutine(ledger._sweep())
        assert self.select("SELECT message FROM messages") == [("young",)]

    async def test_the_sweep_comes_by_itself_and_survives_trouble(self) -> None:
        self.patch(Ledger, "REST", 0.02)
        ledger = self.ledger()
        code = await self.registered(ledger)
        await ledger.append([Entry("ana", code, ("a", "b"), "p")])
        with patch.object(type(ledger.database), "run", lambda *_: fail(ZeroDivisionError())):
            ledger.rule(Rules(keep_count=1))
            while not (met := self.flushLoggedErrors(ZeroDivisionError)):
                await deferLater(ledger.reactor, 0.01)
        assert met
        while self.select("SELECT message FROM messages") != [("b",)]:
            await deferLater(ledger.reactor, 0.01)

    async def test_codes_in_memory_are_bounded_and_the_table_knows_the_rest(self) -> None:
        self.patch(Ledger, "KNOWN", 3)
        ledger = self.ledger()
        codes = {i: await self.registered(ledger, i) for i in map(str, range(9))}
        for _ in range(3):
            entries = [Entry(ident, code, ("x",), "p") for ident, code in codes.items()]
            assert not any(isinstance(one, Refused) for one in await ledger.append(entries))
            assert len(ledger._known) <= 3

    async def test_a_code_that_was_first_used_in_what_failed_counts_as_unused(self) -> None:
        ledger = self.ledger()
        code = await self.registered(ledger)
        self.patch(ledger_module, "_insert", lambda *_: (_ for _ in ()).throw(ZeroDivisionError()))
        assert await ledger.append([Entry("ana", code, ("x",), "p")]) == [Refused.BROKEN]
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1
        assert self.select("SELECT used FROM codes") == [(None,)]
        assert not ledger._known


class ReadTests(Case):
    async def test_messages_are_read_back_with_the_code_they_were_logged_with(self) -> None:
        ledger = self.ledger()
        one, two = await self.registered(ledger), await self.registered(ledger)
        texts = ["first\n\u2028", 'NUL\0 "quoted" \\', "😀", "last"]
        await ledger.append([Entry("ana", one, texts[:2], "p"), Entry("ana", two, ("hers",), "p")])
        await ledger.append([Entry("ana", one, texts[2:], "p")])
        found = await ledger.read(Query("ana", one))
        assert not isinstance(found, Refused)
        assert [(r.seq, r.ident, r.message) for r in found] == [
            (seq, "ana", text) for seq, text in zip((1, 2, 4, 5), texts, strict=True)
        ]
        assert found == [
            Record(*row)
            for row in self.select("SELECT seq, at, id, message FROM messages WHERE seq != 3")
        ]
        for after, limit, seqs in ((0, 2, [1, 2]), (2, 9, [4, 5]), (4, 1, [5]), (5, 9, [])):
            found = await ledger.read(Query("ana", one, after, limit))
            assert not isinstance(found, Refused)
            assert [record.seq for record in found] == seqs
        whole = await ledger.read(Query("ana", one, 1, 3, whole=True))
        assert not isinstance(whole, Refused)
        assert [record.seq for record in whole] == [2, 3, 4]

    async def test_nobody_reads_with_a_wrong_pair_and_reading_is_use(self) -> None:
        ledger = self.ledger()
        code = await self.registered(ledger)
        other = await self.registered(ledger, "bea")
        for ident, shown in (("ana", other), ("bea", code), ("ana", "x"), ("\ud800", code)):
            assert await ledger.read(Query(ident, shown)) is Refused.WRONG
        assert await ledger.read(Query("ana", code)) == []
        assert self.select("SELECT id FROM codes WHERE used IS NOT NULL") == [("ana",)]
        self.patch(Ledger, "MOST", 0)
        assert await ledger.read(Query("ana", code)) is Refused.BUSY

    async def test_one_reading_brings_about_a_megabyte_at_most(self) -> None:
        self.patch(Ledger, "READ", 1000)
        ledger = self.ledger()
        code = await self.registered(ledger)
        await ledger.append([Entry("ana", code, ["x" * 300] * 10, "p")])
        seen: list[int] = []
        while found := await ledger.read(Query("ana", code, max(seen, default=0), 100)):
            assert not isinstance(found, Refused)
            assert len(found) <= 4
            seen += [record.seq for record in found]
        assert seen == list(range(1, 11))


class DurabilityTests(Case):
    # sends without end, at most ten calls at once, and prints the number of what was answered
    CLIENT = """
import sys
from pathlib import Path
from twisted.internet import reactor
from daemon.stores.ledger import Ledger
from protocols.stores import Claim, Entry

ledger = Ledger(Path(sys.argv[1]), reactor)

def more(code):
    def answered(seqs):
        for seq in seqs:
            print(seq, flush=True)
        more(code)
    entries = [Entry("ana", code, (f"text \\u2028 {n}",), "p") for n in range(7)]
    ledger.append(entries).addCallback(answered)

def start():
    ledger.startService()
    ledger.claim(Claim("ana")).addCallback(lambda code: [more(code) for _ in range(10)])

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
            entry = Entry("ana", await self.registered(ledger), ("hola",), "p")
            assert isinstance((await ledger.append([entry]))[0], int)
            await ledger.stopService()

    async def test_a_file_of_the_first_version_keeps_codes_and_messages(self) -> None:
        self.data.mkdir()
        ana, bea, bob = "a" * 32, "b" * 32, "c" * 32
        with closing(sqlite3.connect(self.data / "roundhouse.db")) as old:
            old.executescript(MIGRATIONS[0])
            for ident, code in (("ana", ana), ("bea", bea), ("bea", bob)):
                digest = sha256(f"{ident}\n{code}".encode()).digest()
                old.execute("INSERT OR IGNORE INTO clients VALUES (?, 'then')", (ident,))
                old.execute("INSERT INTO codes VALUES (?, ?, 'then')", (ident, digest))
            for ident in ("ana", "bea", "ana"):
                old.execute(
                    "INSERT INTO messages (at, id, message, peer) VALUES ('then', ?, 'hola', 'p')",
                    (ident,),
                )
            old.execute("PRAGMA user_version = 1")
            old.commit()
        ledger = self.ledger()
        ledger.rule(
            Rules(code_expires=1.0)
        )  # the old ones do not: who knows whether they were used
        mine = await ledger.read(Query("ana", ana))
        assert mine == [Record(1, "then", "ana", "hola"), Record(3, "then", "ana", "hola")]
        assert await ledger.read(Query("bea", bea)) == []  # with which code it was is not known
        assert await ledger.read(Query("bea", bea, whole=True)) == [
            Record(2, "then", "bea", "hola")
        ]
        assert await ledger.append([Entry("bea", bob, ("adiós",), "p")]) == [4]

    async def test_a_newer_database_is_refused_at_load(self) -> None:
        ledger = self.ledger()
        await ledger.database.run(lambda c: c.execute("PRAGMA user_version = 99") and None)
        await ledger.stopService()
        with pytest.raises(Unusable, match=r"roundhouse\.db is of version 99"):
            ledger.check()
