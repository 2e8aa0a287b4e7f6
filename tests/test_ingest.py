"""ingest: one stream, one series, one line at the end."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import define, evolve, field, fields
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.logger import capturedLogs, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon.stores import files
from daemon.stores.crew import Crew
from daemon.stores.landing import Landing
from protocols import ingest
from protocols.ingest import DROP, LENT, SPEC, Ingest, Options
from protocols.options import KIND
from protocols.spec import Context
from protocols.stores import Receipt, Series, Source, StoreError, Stores
from tests.wire import House, Memory, MemoryKernel, Peer

NOTHING = hashlib.sha256().hexdigest()


@define(eq=False)
class MemoryIntake:
    series: Series
    source: Source
    peer: str
    stream: bytearray = field(factory=bytearray)
    asked: Deferred[Receipt] | None = None
    outcome: str = ""
    lendable: bool = False
    starved: bool = True
    lent: int | None = -1  # the most it may read; -1: nothing was lent

    @property
    def size(self) -> int:
        return len(self.stream)

    def lend(self, transport: Any, most: int | None = None) -> bool:
        self.lent = most
        return self.lendable

    def write(self, data: bytes) -> None:
        assert self.asked is None, "written to after the commit"
        self.stream += data

    def commit(self, outcome: str = "whole") -> Deferred[Receipt]:
        assert self.asked is None, "committed twice"
        self.outcome = outcome
        self.asked = Deferred()
        return self.asked

    def abort(self) -> None:
        raise AssertionError("nothing that came in is ever thrown away")

    def keeps(self) -> None:
        """All of it is durable now."""
        assert self.asked is not None
        digest = hashlib.sha256(self.stream).hexdigest() if self.series.checksum else None
        parts = -(-len(self.stream) // self.series.max_part)
        self.asked.callback(Receipt(len(self.stream), digest, parts))

    def loses(self, stored: int) -> None:
        """The commit fails."""
        assert self.asked is not None
        self.asked.errback(StoreError("disk error", stored))


@define(eq=False)
class MemoryLanding:
    intakes: list[MemoryIntake] = field(factory=list)
    command: Any = None

    def open(self, series: Series, source: Source, peer: str = "") -> MemoryIntake:
        self.intakes.append(MemoryIntake(series, source, peer))
        return self.intakes[-1]

    def on_complete(self, command: Any) -> None:
        self.command = command


class IngestCase(SynchronousTestCase):
    def house(self, **options: Any) -> House:
        self.landing = MemoryLanding()
        stores = Stores(self.landing, *[None] * 4)  # type: ignore[arg-type]
        return House(SPEC, stores=stores, options=Options(**options))

    def peer(self, *chunks: bytes, **options: Any) -> Peer:
        ana = self.house(**options).peer()
        ana.says(*chunks)
        return ana

    @property
    def intake(self) -> MemoryIntake:
        (intake,) = self.landing.intakes
        return intake

    def keeps(self, ana: Peer) -> None:
        self.intake.keeps()
        ana.transport.settle()

    def breaks(self, ana: Peer, stored: int = 3) -> None:
        self.intake.source.broken(StoreError("disk full", stored))
        ana.transport.settle()

    def is_gone(self, ana: Peer, outcome: str) -> None:
        """Its outcome is counted and no timer of it is left."""
        if not ana.transport.lost:
            ana.ends()
        assert ana.connection.live.outcomes == {outcome: 1}
        ana.waits(ana.connection.live.idle / ana.connection.live.BEATS)
        assert ana.clock.getDelayedCalls() == []


class StreamTests(IngestCase):
    def test_after_fin_one_line_says_bytes_checksum_and_parts_once_all_is_durable(self) -> None:
        ana = self.peer(b"Dados teste conexao ", b"servidor cliente", max_file_size=15)
        assert ana.heard == b""
        ana.ends()
        assert ana.heard == b""
        assert not ana.hung_up
        self.keeps(ana)
        digest = b"22eb257e710df48921f523d7393531917cf56a705add773435104f04a8523410"
        assert ana.heard == b"OK 36 " + digest + b" 3\n"
        assert ana.hung_up
        self.is_gone(ana, "whole")

    def test_the_series_opens_at_the_first_byte(self) -> None:
        ana = self.peer(file_prefix="mine", max_file_size=7)
        assert self.landing.intakes == []
        ana.says(b"\x00\n\xff")
        assert self.intake.series == evolve(Options().series, prefix="mine", max_part=7)
        assert self.intake.stream == b"\x00\n\xff"

    def test_a_fin_without_a_byte_is_an_empty_stream_and_makes_no_series(self) -> None:
        for options, digest in (({}, NOTHING), ({"checksum": "none"}, "-")):
            ana = self.peer(**options)
            ana.ends()
            assert ana.heard == f"OK 0 {digest} 0\n".encode()
            assert self.landing.intakes == []
            self.is_gone(ana, "left")

    def test_without_a_checksum_a_dash_stands_in_its_place(self) -> None:
        ana = self.peer(b"abc", checksum="none")
        ana.ends()
        self.keeps(ana)
        assert ana.heard == b"OK 3 - 1\n"

    def test_nothing_is_said_while_the_peer_is_still_sending(self) -> None:
        ana = self.peer(*[bytes(100)] * 50, max_file_size=10)
        ana.waits(3600)
        assert ana.heard == b""
        assert not ana.hung_up

    def test_the_settings_of_the_moment_it_connected_rule_a_stream(self) -> None:
        house = self.house(max_file_size=10, file_prefix="old")
        ana = house.peer()
        house.set(max_file_size=20, file_prefix="new", checksum="none")
        ben = house.peer()
        ana.says(b"a")
        ben.says(b"b")
        assert [i.series for i in self.landing.intakes] == [
            evolve(Options().series, prefix="old", max_part=10),
            evolve(Options().series, prefix="new", max_part=20, checksum=False),
        ]

    def test_reads_are_no_longer_than_the_buffer_size(self) -> None:
        @define(eq=False)
        class Sized(Memory):
            bufferSize: int = 65536

        house = self.house(buffer_size=4096)
        connection = house.factories["PORT"].buildProtocol(None)
        transport = Sized(connection)
        connection.makeConnection(transport)
        assert transport.bufferSize == 4096

    def test_the_peer_is_not_read_while_the_disk_is_behind(self) -> None:
        ana = self.peer(b"abc")
        self.intake.source.pauseProducing()
        assert not ana.transport.reading
        self.intake.source.resumeProducing()
        assert ana.transport.reading
        ana.says(b"def")
        ana.ends()
        self.keeps(ana)
        assert ana.heard.startswith(b"OK 6 ")


class GoneTests(IngestCase):
    def test_what_was_read_before_a_reset_is_kept_and_nothing_is_said(self) -> None:
        ana = self.peer(b"before the reset")
        with capturedLogs() as events:
            ana.resets()
        assert self.intake.asked is not None
        self.keeps(ana)
        assert ana.heard == b""
        assert "reset (16 bytes had been read)" in formatEvent(events[0])
        self.is_gone(ana, "reset")

    def test_a_reset_without_a_byte_makes_nothing(self) -> None:
        ana = self.peer()
        ana.resets()
        assert self.landing.intakes == []
        self.is_gone(ana, "reset")

    def test_a_peer_that_dies_while_its_stream_is_committed_loses_nothing(self) -> None:
        ana = self.peer(b"abc")
        ana.ends()
        ana.resets()
        self.keeps(ana)
        assert ana.heard == b""
        self.is_gone(ana, "reset")

    def test_what_could_not_be_kept_of_a_gone_peer_is_in_the_log(self) -> None:
        ana = self.peer(b"abcdef")
        ana.resets()
        with capturedLogs() as events:
            self.intake.loses(stored=2)
        assert formatEvent(events[0]) == (
            "ingest 127.0.0.1:54321, which is gone: disk error, 2 of 6 bytes kept"
        )

    def test_storage_that_breaks_when_the_peer_is_gone_needs_no_timer(self) -> None:
        ana = self.peer(b"abc")
        ana.connection.abort("cut")
        self.breaks(ana)
        self.is_gone(ana, "cut")


class BrokenTests(IngestCase):
    def test_when_storing_fails_the_rest_is_dropped_and_the_error_follows_the_fin(self) -> None:
        ana = self.peer(b"abc")
        self.breaks(ana)
        assert ana.heard == b""
        ana.says(*[bytes(65536)] * 20)
        assert self.intake.stream == b"abc"
        assert not ana.hung_up
        ana.ends()
        assert ana.heard == b"ERR disk full stored=3\n"
        assert ana.connection.detail == "disk full, 3 bytes kept"
        self.is_gone(ana, "failed")

    def test_a_peer_that_goes_on_hears_of_it_after_some_seconds(self) -> None:
        ana = self.peer(b"abc")
        self.breaks(ana)
        ana.waits(DROP - 0.1)
        ana.says(b"more")
        assert ana.heard == b""
        ana.waits(0.1)
        assert ana.heard == b"ERR disk full stored=3\n"
        assert ana.transport.fin
        assert ana.transport.reading
        self.is_gone(ana, "failed")

    def test_a_peer_that_goes_on_hears_of_it_after_some_megabytes(self) -> None:
        self.patch(ingest, "DROP_BYTES", 1000)
        ana = self.peer(b"abc")
        self.breaks(ana)
        ana.says(bytes(1000))
        assert ana.heard == b""
        ana.says(b"x")
        assert ana.heard == b"ERR disk full stored=3\n"
        ana.says(b"more")
        self.is_gone(ana, "failed")

    def test_one_too_long_is_read_on_and_dropped_also_where_the_disk_was_behind(self) -> None:
        ana = self.peer(b"abc", max_stream=5)
        self.intake.source.pauseProducing()
        ana.connection.dataReceived(b"defgh")
        self.intake.source.resumeProducing()
        assert self.intake.stream == b"abcde"
        self.keeps(ana)
        ana.says(b"more")
        ana.ends()
        assert ana.heard == b"ERR stream too long stored=5\n"
        self.is_gone(ana, "overlong")

    def test_a_commit_that_fails_is_an_error_with_what_is_kept(self) -> None:
        ana = self.peer(b"abcdef")
        ana.ends()
        self.intake.loses(stored=4)
        assert ana.heard == b"ERR disk error stored=4\n"
        self.is_gone(ana, "failed")

    def test_a_peer_that_resets_meanwhile_leaves_no_timer(self) -> None:
        ana = self.peer(b"abc")
        self.breaks(ana)
        ana.resets()
        assert ana.heard == b""
        self.is_gone(ana, "reset")


class SilentTests(IngestCase):
    def test_silence_is_off_by_default(self) -> None:
        ana = self.peer(b"abc")
        ana.waits(86400)
        assert not ana.hung_up
        assert ana.clock.getDelayedCalls() == []

    def test_silence_commits_what_came_and_says_so(self) -> None:
        ana = self.peer(b"abc", idle_timeout=4)
        for _ in range(5):
            ana.waits(1)
        assert not ana.transport.reading
        assert ana.heard == b""
        ana.waits(20)
        self.keeps(ana)
        assert ana.heard == b"ERR idle stored=3\n"
        assert ana.transport.fin
        assert ana.transport.reading
        self.is_gone(ana, "silent")

    def test_a_peer_that_never_spoke_is_closed_without_a_word(self) -> None:
        ana = self.peer(idle_timeout=4)
        for _ in range(5):
            ana.waits(1)
        assert ana.heard == b""
        self.is_gone(ana, "silent")

    def test_a_peer_that_is_held_back_by_the_disk_is_not_silent(self) -> None:
        ana = self.peer(b"abc", idle_timeout=4)
        self.intake.source.pauseProducing()
        for _ in range(20):
            ana.waits(1)
        assert self.intake.asked is None
        self.intake.source.resumeProducing()
        for _ in range(4):
            ana.waits(1)
        assert self.intake.asked is None
        ana.waits(1)
        assert self.intake.asked is not None

    def test_a_peer_that_no_thread_has_come_to_is_not_silent(self) -> None:
        ana = self.peer(b"abc", idle_timeout=4)
        self.intake.lendable, self.intake.starved = True, False
        ana.says(bytes(LENT))
        for _ in range(20):
            ana.waits(1)
        assert self.intake.asked is None
        self.intake.starved = True
        for _ in range(5):
            ana.waits(1)
        assert self.intake.outcome == "silent"

    def test_the_disk_does_not_make_us_read_on_after_we_ended_a_stream(self) -> None:
        ana = self.peer(b"abc", idle_timeout=4)
        for _ in range(5):
            ana.waits(1)
        self.intake.source.resumeProducing()
        assert not ana.transport.reading

    def test_a_peer_that_dies_while_we_end_its_stream_hears_nothing(self) -> None:
        ana = self.peer(b"abc", idle_timeout=4)
        for _ in range(5):
            ana.waits(1)
        ana.resets()
        self.keeps(ana)
        assert ana.heard == b""
        self.is_gone(ana, "reset")

    def test_a_fin_that_crosses_our_end_gets_the_same_answer(self) -> None:
        ana = self.peer(b"abc", idle_timeout=4)
        for _ in range(5):
            ana.waits(1)
        ana.connection.dataReceived(b"late")
        ana.ends()
        self.keeps(ana)
        assert ana.heard == b"ERR idle stored=3\n"
        self.is_gone(ana, "silent")

    def test_who_waits_for_a_receipt_is_not_silent(self) -> None:
        ana = self.peer(b"abc", idle_timeout=4)
        ana.ends()
        for _ in range(20):
            ana.waits(1)
        self.keeps(ana)
        assert ana.heard.startswith(b"OK 3 ")
        self.is_gone(ana, "whole")

    def test_a_timeout_that_a_reload_brings_does_not_end_older_streams(self) -> None:
        house = self.house()
        ana = house.peer()
        ana.says(b"abc")
        house.set(idle_timeout=4)
        ben = house.peer()
        for _ in range(5):
            ana.waits(1)
        ben.transport.settle()
        assert ben.outcome == "silent"
        assert self.intake.asked is None


class DrainTests(IngestCase):
    def test_a_peer_without_a_byte_is_let_go_without_a_word(self) -> None:
        ana = self.peer()
        ana.connection.drain(8)
        assert ana.heard == b""
        assert ana.transport.fin
        self.is_gone(ana, "drained")

    def test_a_stream_that_ends_within_most_of_the_grace_is_whole(self) -> None:
        ana = self.peer(b"abc")
        ana.connection.drain(8)
        ana.waits(5.9)
        ana.says(b"def")
        ana.ends()
        self.keeps(ana)
        assert ana.heard.startswith(b"OK 6 ")
        self.is_gone(ana, "whole")

    def test_a_longer_one_is_committed_and_told_how_far_it_got(self) -> None:
        ana = self.peer(b"abc")
        ana.connection.drain(8)
        ana.waits(6)
        assert not ana.transport.reading
        assert ana.heard == b""
        self.keeps(ana)
        assert ana.heard == b"ERR stopping stored=3\n"
        self.is_gone(ana, "drained")

    def test_one_whose_commit_is_under_way_gets_its_receipt(self) -> None:
        ana = self.peer(b"abc")
        ana.ends()
        ana.connection.drain(8)
        assert ana.clock.getDelayedCalls() == []
        self.keeps(ana)
        assert ana.heard.startswith(b"OK 3 ")

    def test_one_that_is_being_dropped_hears_its_error_at_once(self) -> None:
        ana = self.peer(b"abc")
        self.breaks(ana)
        ana.connection.drain(8)
        assert ana.heard == b"ERR disk full stored=3\n"
        self.is_gone(ana, "failed")

    def test_storage_that_breaks_during_the_drain_is_told_within_it(self) -> None:
        ana = self.peer(b"abc")
        ana.connection.drain(4)
        ana.waits(2)
        self.breaks(ana)
        ana.waits(1)
        assert ana.heard == b"ERR disk full stored=3\n"
        self.is_gone(ana, "failed")

    def test_a_commit_that_fails_is_told_as_such(self) -> None:
        ana = self.peer(b"abc")
        ana.connection.drain(4)
        ana.waits(3)
        self.intake.loses(stored=0)
        assert ana.heard == b"ERR disk error stored=0\n"
        self.is_gone(ana, "failed")

    def test_a_stream_that_is_cut_by_the_end_of_the_grace_is_kept(self) -> None:
        ana = self.peer(b"abc")
        ana.connection.abort("cut")
        ana.transport.settle()
        self.keeps(ana)
        assert ana.heard == b""
        self.is_gone(ana, "cut")


class WithoutReceiptTests(IngestCase):
    def peer(self, *chunks: bytes, **options: Any) -> Peer:
        house = self.house(receipt=False, **options)
        self.kernel = house.kernel
        ana = house.peer()
        ana.says(*chunks)
        return ana

    def resets(self, ana: Peer) -> bool:
        """Whether our end would reset this peer."""
        return self.kernel.resets[ana.transport]

    def test_success_is_our_fin_alone_and_until_then_our_end_would_reset_the_peer(self) -> None:
        ana = self.peer(b"abc")
        ana.ends()
        assert self.resets(ana)
        assert not ana.hung_up
        self.keeps(ana)
        assert not self.resets(ana)
        assert ana.heard == b""
        assert ana.transport.closed
        assert not ana.transport.reset
        self.is_gone(ana, "whole")

    def test_an_empty_stream_ends_in_fin(self) -> None:
        ana = self.peer()
        ana.ends()
        assert not self.resets(ana)
        assert ana.transport.closed
        assert not ana.transport.reset
        self.is_gone(ana, "left")

    def test_every_error_resets(self) -> None:
        ana = self.peer(b"abc")
        self.breaks(ana)
        assert ana.transport.reset
        self.is_gone(ana, "failed")

        ana = self.peer(b"abc")
        ana.ends()
        self.intake.loses(stored=0)
        ana.transport.settle()
        assert ana.transport.reset
        self.is_gone(ana, "failed")

    def test_an_end_that_is_ours_resets_for_our_fin_would_say_that_all_is_kept(self) -> None:
        for chunks in ((), (b"abc",)):
            ana = self.peer(*chunks)
            ana.connection.drain(4)
            ana.waits(3)
            if chunks:
                self.keeps(ana)
            assert ana.heard == b""
            assert ana.transport.reset
            self.is_gone(ana, "drained")

    def test_whether_the_disk_is_waited_for_is_asked_for_and_goes_without_saying_for_ok(
        self,
    ) -> None:
        for wait in (True, False):
            self.peer(b"abc", wait_for_disk=wait)
            assert self.intake.series.durable is wait
        assert Options(receipt=True, wait_for_disk=False).series.durable

    def test_with_receipts_nothing_is_asked_of_the_kernel(self) -> None:
        assert IngestCase.peer(self, b"abc").connection.transport is not None
        house = self.house()
        house.peer()
        assert house.kernel.resets == {}


class OptionsTests(SynchronousTestCase):
    def read(self, key: str, text: str) -> Any:
        kinds = {option.name: option.metadata[KIND] for option in fields(Options)}
        return kinds[key](text)

    def test_the_keys_take_what_an_operator_writes(self) -> None:
        for key, text, value in (
            ("max_file_size", "15", 15),
            ("max_file_size", "1 TiB", 1 << 40),
            ("receipt", "off", False),
            ("checksum", "none", "none"),
            ("idle_timeout", "10 min", 600.0),
            ("buffer_size", "256 KiB", 1 << 18),
            ("file_prefix", "prefixo", "prefixo"),
            ("max_stream", "1 GiB", 1 << 30),
            ("rotate_seconds", "1h", 3600.0),
            ("quota", "10 GB", 10**10),
            ("quota_policy", "Oldest", "oldest"),
            ("min_free", "1 GiB", 1 << 30),
            ("on_complete", "/bin/cp -v 'a b'", ("/bin/cp", "-v", "a b")),
        ):
            assert self.read(key, text) == value

    def test_values_that_make_no_sense_are_refused(self) -> None:
        for key, text in (
            ("max_file_size", "0"),
            ("checksum", "md5"),
            ("idle_timeout", "-1"),
            ("buffer_size", "1023"),
            ("buffer_size", "17 MiB"),
            ("file_prefix", "../up"),
            ("quota_policy", "newest"),
        ):
            with pytest.raises(ValueError, match=text.split()[0].strip(".")):
                self.read(key, text)

    def test_the_defaults_are_those_of_the_documentation(self) -> None:
        assert Options() == Options(64 << 20, "data", True, True, "sha256", 0.0, 1 << 20)
        assert SPEC.ports[0].number == 8080
        assert SPEC.stores == {"landing"}
        assert SPEC.also_default
        assert SPEC.ports[0].busy == b"ERR busy\n"

    def test_the_limits_reach_the_storage(self) -> None:
        options = Options(
            rotate_seconds=60, quota=10**9, quota_policy="oldest", min_free=7, buffer_size=4096
        )
        series = options.series
        assert (series.rotate, series.quota, series.oldest) == (60, 10**9, True)
        assert (series.free, series.read) == (7, 4096)

    def test_the_command_for_durable_series_follows_a_reload(self) -> None:
        landing = MemoryLanding()
        house = House(SPEC, stores=Stores(landing, *[None] * 4), options=Options())  # type: ignore[arg-type]
        assert landing.command == ()
        house.set(on_complete=("/bin/true", "x"))
        assert landing.command == ("/bin/true", "x")


@define(eq=False)
class Caller(Protocol):
    """A client on a real socket: says something, half-closes, hears the answer to its end."""

    heard: bytearray = field(factory=bytearray)
    ended: Deferred[bytes] = field(factory=Deferred)

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ConnectionDone):
            self.ended.callback(bytes(self.heard))
        else:
            self.ended.errback(reason)

    def says(self, stream: bytes) -> Deferred[bytes]:
        assert self.transport is not None
        self.transport.write(stream)
        self.transport.loseWriteConnection()  # type: ignore[attr-defined]
        return self.ended


class WholeTests(TestCase):
    """Real sockets, real threads, real files."""

    async def serve(self, **options: Any) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "ingest"
        crew = Crew(reactor)
        crew.startService()
        self.addCleanup(crew.stopService)
        landing = Landing(self.folder, crew)
        landing.startService()
        self.addCleanup(landing.stopService)
        context = Context(
            reactor,
            Options(**options),
            Stores(landing, *[None] * 4),  # type: ignore[arg-type]
            MemoryKernel(),
        )
        (self.factory,) = SPEC.build(context).values()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.factory.live.drain(1)))
        endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
        listening = await endpoint.listen(self.factory)
        self.addCleanup(listening.stopListening)
        self.port: int = listening.getHost().port

    async def caller(self) -> Caller:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port)
        caller: Caller = await connectProtocol(endpoint, Caller())
        return caller

    def landed(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(self.folder.glob("*.bin"))]

    async def test_a_stream_lands_in_exact_parts_and_its_receipt_proves_it(self) -> None:
        await self.serve(max_file_size=1_000_000)
        stream = bytes(range(256)) * 10_000
        heard = await (await self.caller()).says(stream)
        assert heard == f"OK 2560000 {hashlib.sha256(stream).hexdigest()} 3\n".encode()
        assert [len(part) for part in self.landed()] == [1_000_000, 1_000_000, 560_000]
        assert b"".join(self.landed()) == stream

    async def test_thousands_of_tiny_parts_do_not_hold_up_the_reactor(self) -> None:
        await self.serve(max_file_size=15)
        stream = bytes(range(200)) * 150
        heard: list[bytes] = []
        (await self.caller()).says(stream).addCallback(heard.append)
        late: list[float] = []
        for _ in range(4000):
            before = reactor.seconds()
            await deferLater(reactor, 0.001)
            late.append(reactor.seconds() - before - 0.001)
            if heard:
                break
        assert heard == [f"OK 30000 {hashlib.sha256(stream).hexdigest()} 2000\n".encode()]
        assert b"".join(self.landed()) == stream
        assert sorted(late)[len(late) * 9 // 10] < 0.05

    async def test_a_reset_keeps_what_was_read(self) -> None:
        await self.serve()
        ana = await self.caller()
        ana.ended.addErrback(lambda _: None)
        assert ana.transport is not None
        ana.transport.write(b"before the reset")
        for _ in range(200):
            await deferLater(reactor, 0.01)
            if [*self.folder.iterdir()]:
                break
        ana.transport.abortConnection()  # type: ignore[attr-defined]
        for _ in range(200):
            await deferLater(reactor, 0.01)
            if [*self.folder.glob("*.bin")]:
                break
        assert self.landed() == [b"before the reset"]

    async def test_a_disk_error_is_told_and_the_next_stream_is_fine(self) -> None:
        await self.serve()
        sync = files.sync_data

        def sync_data(descriptor: int) -> None:
            self.patch(files, "sync_data", sync)
            raise OSError(errno.EIO, "no such sector")

        self.patch(files, "sync_data", sync_data)
        assert await (await self.caller()).says(b"abc") == b"ERR disk error stored=0\n"
        heard = await (await self.caller()).says(b"abc")
        assert heard.startswith(b"OK 3 ")

    async def test_a_stream_that_outlasts_the_drain_is_kept_and_told(self) -> None:
        await self.serve()
        ana = await self.caller()
        assert ana.transport is not None
        ana.transport.write(b"abc")
        for _ in range(200):
            await deferLater(reactor, 0.01)
            if any(isinstance(c, Ingest) and c._size for c in self.factory.live._open):
                break
        await Deferred.fromCoroutine(self.factory.live.drain(0.4))
        assert await ana.ended == b"ERR stopping stored=3\n"
        assert self.landed() == [b"abc"]
