"""A stream whose socket is lent: threads read it in slices, park it, and bring it back."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from contextlib import suppress as unless
from typing import Any
from unittest.mock import patch

import pytest
from attrs import define, field
from twisted.internet.error import ConnectionLost

from daemon.stores import crew as crew_module
from daemon.stores.crew import KIT, Crew, Lent, Pause, QueuedIntake, Sink
from protocols.stores import StoreError
from tests.reactors import BIG, Halves, Net, OnOurs, OnTwisted, driven


@define(eq=False)
class Keeper(Sink[bytes]):
    """A sink in memory. trouble: raised by every write while it is set."""

    kept: bytearray = field(factory=bytearray)
    turns: int = 0
    trouble: OSError | None = None
    threads: set[int] = field(factory=set)
    aborted: bool = False

    def write(self, chunks: Any) -> None:
        self.threads.add(threading.get_ident())
        if self.trouble is not None:
            raise self.trouble
        for chunk in chunks:
            self.kept += chunk

    def pull(self, lent: Lent, most: int) -> None:
        self.turns += 1
        super().pull(lent, most)

    def commit(self) -> bytes:
        return bytes(self.kept)

    def fail(self) -> int:
        return len(self.kept)

    def abort(self) -> None:
        self.aborted = True


class Streamed(Halves):
    """Writes what it hears to an intake, and lends its transport at LEND."""

    intake: QueuedIntake[bytes]
    lent = False
    most: int | None = None
    why: StoreError | None = None

    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data)
        self.intake.write(data)
        if data.endswith(b"LEND") and not self.lent:
            self.lent = self.intake.lend(self.transport, self.most)

    def pauseProducing(self) -> None:
        self.events.append("paused")
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        self.events.append("resumed")
        self.transport.resumeProducing()

    def broken(self, why: StoreError) -> None:
        self.events.append("broken")
        self.why = why

    def returned(self) -> None:
        self.events.append("returned")


def parked(streamed: Any) -> bool:
    """Whether the crew waits for its socket."""
    errand = streamed.intake._errand
    return bool(errand and errand.parked)


class LentStreams:
    """Streams that are lent, on any reactor."""

    async def begin(self, net: Net, count: int = 1, most: int | None = None) -> Any:
        """Streams that were just lent, with their peers; the crew stops with the last."""
        self.crew = Crew(net.reactor)
        self.crew.startService()
        pairs = []
        for _ in range(count):
            streamed, peer = await net.pair(Streamed)
            streamed.most = most
            streamed.intake = QueuedIntake(Keeper(), streamed, self.crew)
            peer.send(b"LEND")
            await net.until(lambda s=streamed: s.lent)
            pairs.append((streamed, peer))
        return pairs[0] if count == 1 else pairs

    async def send(self, net: Net, peer: Any, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[peer.sock.send(rest) :]
            except BlockingIOError:
                await net.a_while(0.001)

    async def stop(self) -> None:
        await self.crew.stopService()

    @driven
    async def test_a_thread_reads_to_the_fin_which_the_protocol_then_hears(self, net: Net) -> None:
        streamed, peer = await self.begin(net)
        data = os.urandom(BIG)
        await self.send(net, peer, data)
        await net.until(lambda: streamed.intake.size == 4 + BIG)
        assert streamed.events == ["made", "data"]
        peer.ends()
        await net.until(lambda: "read lost" in streamed.events)
        assert streamed.events == ["made", "data", "returned", "read lost"]
        assert await streamed.intake.commit() == b"LEND" + data
        assert threading.get_ident() not in streamed.intake.sink.threads
        assert streamed.got == b"LEND", "the rest never came through the reactor"
        streamed.transport.loseConnection()
        await net.until(lambda: streamed.reason)
        await self.stop()

    @driven
    async def test_a_reset_is_told_after_the_return_and_what_came_is_there(self, net: Net) -> None:
        streamed, peer = await self.begin(net)
        peer.send(b"some")
        await net.until(lambda: streamed.intake.size == 8)
        peer.resets()
        await net.until(lambda: streamed.reason)
        assert streamed.events == ["made", "data", "returned", "lost"]
        assert isinstance(streamed.reason, ConnectionLost)
        assert await streamed.intake.commit() == b"LENDsome"
        await self.stop()

    @driven
    async def test_no_more_than_was_asked_for_is_read_and_the_reactor_goes_on(
        self, net: Net
    ) -> None:
        streamed, peer = await self.begin(net, most=300_000)
        body = os.urandom(300_000)
        await self.send(net, peer, body + b"next request")
        await net.until(lambda: streamed.got.endswith(b"next request"))
        assert streamed.events[:3] == ["made", "data", "returned"]
        assert await streamed.intake.commit() == b"LEND" + body + b"next request"
        peer.resets()
        await net.until(lambda: streamed.reason)
        await self.stop()

    @driven
    async def test_a_commit_recalls_the_socket_with_what_the_peer_has_sent(self, net: Net) -> None:
        streamed, peer = await self.begin(net)
        await net.until(lambda: parked(streamed))
        assert streamed.intake.starved
        streamed.transport.pauseProducing()
        peer.send(b"the last")
        assert await streamed.intake.commit() == b"LENDthe last"
        assert not streamed.intake.starved
        assert streamed.events == ["made", "data", "returned"]
        peer.send(b"too late")
        await net.a_while()
        assert streamed.got == b"LEND", "whoever did not want to read does not"
        streamed.transport.abortConnection()
        await net.until(lambda: streamed.reason)
        await self.stop()

    @driven
    async def test_a_commit_ends_also_a_stream_that_never_rests(self, net: Net) -> None:
        streamed, peer = await self.begin(net)
        peer.sock.setblocking(True)
        over = threading.Event()

        def flood() -> None:
            with unless(OSError):
                while not over.is_set():
                    peer.sock.send(bytes(65536))

        flooding = net.in_thread(flood)
        await net.until(lambda: streamed.intake.size > 1 << 20)
        streamed.transport.pauseProducing()
        kept = await streamed.intake.commit()
        assert len(kept) == streamed.intake.size
        over.set()
        streamed.transport.abortConnection()
        await flooding
        await net.until(lambda: streamed.reason)
        await self.stop()

    @driven
    async def test_an_abort_recalls_it_and_leaves_nothing(self, net: Net) -> None:
        streamed, _ = await self.begin(net)
        await net.until(lambda: parked(streamed))
        streamed.intake.abort()
        await net.until(lambda: streamed.intake.sink.aborted)
        assert streamed.events == ["made", "data", "returned"]
        streamed.transport.abortConnection()
        await net.until(lambda: streamed.reason)
        await self.stop()

    @driven
    async def test_a_disk_that_fails_gives_it_back_and_then_breaks_the_source(
        self, net: Net
    ) -> None:
        streamed, peer = await self.begin(net)
        await net.until(lambda: parked(streamed))
        streamed.intake.sink.trouble = OSError(errno.EIO, "no such sector")
        peer.send(b"lost")
        await net.until(lambda: streamed.why)
        assert streamed.events == ["made", "data", "returned", "broken"]
        assert (streamed.why.reason, streamed.why.stored) == ("disk error", 4)
        assert net.logged("no such sector") == 1
        peer.resets()
        await net.until(lambda: streamed.reason)
        await self.stop()

    @driven
    async def test_a_hundred_idle_streams_need_no_thread_each_and_delay_nobody(
        self, net: Net
    ) -> None:
        pairs = await self.begin(net, 100)
        assert len(self.crew._threads) == Crew.SIZE + 1
        await net.until(lambda: all(parked(s) for s, _ in pairs))
        began = time.process_time()
        await net.a_while(0.2)
        assert time.process_time() - began < 0.15
        streamed, peer = pairs[-1]
        peer.send(b"now")
        await net.until(lambda: streamed.intake.size == 7)
        for one, other in pairs:
            other.resets()
            await net.until(lambda s=one: s.reason)
            await one.intake.commit()
        await self.stop()

    @driven
    async def test_streams_take_turns(self, net: Net) -> None:
        slices = crew_module.SLICE
        crew_module.SLICE = 100_000
        try:
            pairs = await self.begin(net, 3)
            data = bytes(2_000_000)
            for _, peer in pairs:
                await self.send(net, peer, data)
            await net.until(lambda: all(s.intake.size == 2_000_004 for s, _ in pairs))
        finally:
            crew_module.SLICE = slices
        assert all(s.intake.sink.turns >= 7 for s, _ in pairs)
        for streamed, peer in pairs:
            peer.ends()
            await net.until(lambda s=streamed: "read lost" in s.events)
            assert len(await streamed.intake.commit()) == 2_000_004
            streamed.transport.loseConnection()
            await net.until(lambda s=streamed: s.reason)
        await self.stop()

    @driven
    async def test_what_cannot_be_lent_is_written(self, net: Net) -> None:
        streamed, _ = await self.begin(net)
        again = QueuedIntake(Keeper(), streamed, self.crew)
        assert not again.lend(streamed.transport), "it is lent already"
        assert not again.lend(object()), "it is no socket"
        assert not streamed.intake.lend(streamed.transport)
        streamed.intake.abort()
        await net.until(lambda: "returned" in streamed.events)
        assert not streamed.intake.lend(streamed.transport), "the intake is over"
        streamed.transport.abortConnection()
        await net.until(lambda: streamed.reason)
        await self.stop()

    @driven
    async def test_the_first_that_is_lent_needs_no_descriptor_but_its_own(self, net: Net) -> None:
        crew = Crew(net.reactor)
        crew.startService()
        streamed, peer = await net.pair(Streamed)
        streamed.intake = QueuedIntake(Keeper(), streamed, crew)
        none_left = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        with patch("os.pipe", side_effect=none_left), patch("os.dup", side_effect=none_left):
            assert not streamed.intake.lend(streamed.transport), "it is written instead"
        with patch("os.pipe", side_effect=none_left):
            assert streamed.intake.lend(streamed.transport)
        peer.send(b"lent")
        await net.until(lambda: streamed.intake.size == 4)
        assert streamed.got == b""
        peer.resets()
        await net.until(lambda: streamed.reason)
        assert await streamed.intake.commit() == b"lent"
        await crew.stopService()

    @driven
    async def test_a_step_can_wait_for_room_to_write(self, net: Net) -> None:
        crew = Crew(net.reactor)
        crew.startService()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        sent = 0

        def step() -> Pause | int:
            nonlocal sent
            try:
                sent += ours.send(bytes(min(100_000, BIG - sent)))
            except BlockingIOError:
                return Pause.WRITABLE
            return sent if sent == BIG else Pause.TURN

        errand = crew.pursue(step, ours.fileno())
        await net.until(lambda: errand.parked)
        got = 0
        while got < BIG:
            got += len(theirs.recv(1 << 20))
            await net.a_while(0)
        assert await errand.done == BIG
        ours.close()
        theirs.close()
        await crew.stopService()

    @driven
    async def test_a_socket_that_cannot_be_watched_ends_its_errand_and_no_thread(
        self, net: Net
    ) -> None:
        crew = Crew(net.reactor)
        crew.startService()
        ours, theirs = socket.socketpair()
        over: list[bool] = []

        def step() -> Pause | str:
            return "over" if over else Pause.READABLE

        first = crew.pursue(step, ours.fileno())
        await net.until(lambda: first.parked)
        for _ in range(2 * Crew.SIZE):
            with pytest.raises(KeyError, match="already registered"):
                await crew.pursue(step, ours.fileno()).done
        over.append(True)
        theirs.send(b"x")
        assert await first.done == "over"
        ours.close()
        theirs.close()
        await crew.stopService()

    @driven
    async def test_what_a_step_raises_is_its_end_and_the_thread_works_on(self, net: Net) -> None:
        crew = Crew(net.reactor)
        crew.startService()

        def fails() -> None:
            raise ValueError("a mistake")

        for _ in range(2 * Crew.SIZE):
            with pytest.raises(ValueError, match="a mistake"):
                await crew.pursue(fails, 0).done
        await crew.stopService()
        assert crew._threads == []


class LentOnTwistedTests(LentStreams, OnTwisted): ...


class LentOnOursTests(LentStreams, OnOurs): ...


class KitTests(OnOurs):
    @driven
    async def test_the_pipe_of_a_thread_stays_until_it_is_closed(self, net: Net) -> None:
        def toil() -> None:
            pipe = KIT.pipe()
            assert KIT.pipe() == pipe
            os.write(pipe[1], b"x")
            assert os.read(pipe[0], 10) == b"x"
            KIT.close()
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(pipe[0])

        await net.in_thread(toil)
