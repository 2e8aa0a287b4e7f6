"""ingest with its threads: large streams over real sockets, on Twisted's reactor and on ours."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred

from daemon.stores.crew import Crew, QueuedIntake
from daemon.stores.landing import Landing
from daemon.stores.landing import series as series_module
from daemon.stores.landing.manifest import Manifest
from daemon.stores.landing.series import Parts
from protocols.ingest import SPEC, Options
from protocols.spec import Context
from protocols.stores import Stores
from tests.reactors import Net, OnOurs, OnTwisted, Peer, driven
from tests.wire import MemoryKernel

STREAM = os.urandom(3_000_000)


class LargeStreams:
    """A stream that is lent after its first bytes."""

    patch: Any
    addCleanup: Any
    folder: Path

    async def serve(self, net: Net, **options: Any) -> Peer:
        """A daemon of its own, and somebody who is connected to it."""
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.crew = Crew(net.reactor)
        self.crew.startService()
        self.landing = Landing(self.folder, self.crew)
        self.landing.startService()
        given = Options(**{"min_free": 0, "max_file_size": 1_000_000, **options})
        stores: Any = type("Stores", (), {"landing": self.landing})
        assert "landing" in Stores.__annotations__
        (self.factory,) = SPEC.build(Context(net.reactor, given, stores, MemoryKernel())).values()
        self.port = net.reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        return net.dial(self.port)

    async def close(self) -> None:
        await Deferred.fromCoroutine(self.factory.drain(1))
        await self.landing.stopService()
        await self.crew.stopService()

    async def send(self, net: Net, peer: Peer, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[peer.sock.send(rest) :]
            except BlockingIOError:
                await net.a_while(0.001)

    def landed(self) -> bytes:
        return b"".join(path.read_bytes() for path in sorted(self.folder.glob("*.bin")))

    def manifest(self) -> Manifest:
        (path,) = self.folder.glob("*.json")
        return Manifest.from_json(path.read_bytes())

    @property
    def connection(self) -> Any:
        (connection,) = self.factory.live._open
        return connection

    async def lent(self, net: Net, peer: Peer, data: bytes = bytes(100_000)) -> None:
        """The first bytes are there, and the socket is with the crew."""
        await self.send(net, peer, data)
        await net.until(lambda: self.factory.live._open)
        await net.until(lambda: self.connection._lent and self.connection._size == len(data))

    @driven
    async def test_a_stream_lands_byte_for_byte_with_and_without_a_checksum(self, net: Net) -> None:
        self.patch(series_module, "TINY", 100_000)  # what was spliced is read back for its sum
        for checksum in ("sha256", "none"):
            peer = await self.serve(net, checksum=checksum)
            await self.send(net, peer, STREAM)
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            digest = hashlib.sha256(STREAM).hexdigest() if checksum == "sha256" else "-"
            assert peer.heard == f"OK 3000000 {digest} 3\n".encode()
            assert self.landed() == STREAM
            manifest = self.manifest()
            assert (manifest.outcome, manifest.size) == ("whole", 3_000_000)
            assert manifest.peer.startswith("127.0.0.1:")
            await self.close()

    @driven
    async def test_where_there_is_no_splice_the_bytes_are_the_same(self, net: Net) -> None:
        self.patch(series_module, "SPLICES", False)
        peer = await self.serve(net, checksum="none", buffer_size=5000)
        await self.send(net, peer, STREAM)
        peer.ends()
        await net.until(lambda: peer.fin)
        assert peer.heard == b"OK 3000000 - 3\n"
        assert self.landed() == STREAM
        await self.close()

    @driven
    async def test_a_stream_is_cut_at_any_limit(self, net: Net) -> None:
        for checksum in ("sha256", "none"):
            peer = await self.serve(net, checksum=checksum, max_file_size=9_973)
            await self.send(net, peer, STREAM[:1_000_000])
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            assert peer.heard.endswith(b" 101\n")
            sizes = {path.stat().st_size for path in self.folder.glob("*.bin")}
            assert sizes == {9_973, 1_000_000 % 9_973}
            assert self.landed() == STREAM[:1_000_000]
            await self.close()

    @driven
    async def test_what_came_before_a_reset_is_kept(self, net: Net) -> None:
        peer = await self.serve(net)
        await self.lent(net, peer)
        peer.resets()
        await net.until(lambda: self.factory.live.outcomes)
        await self.crew.idle()
        assert self.factory.live.outcomes == {"reset": 1}
        assert self.landed() == bytes(100_000)
        assert (self.manifest().outcome, self.manifest().complete) == ("reset", False)
        await self.close()

    @driven
    async def test_one_that_sends_is_not_silent_and_one_that_stops_is(self, net: Net) -> None:
        peer = await self.serve(net, idle_timeout=0.2)
        await self.lent(net, peer)
        for _ in range(12):
            await net.a_while(0.05)
            peer.send(b"x")
        assert not self.factory.live.outcomes
        assert not peer.fin
        await net.until(lambda: peer.fin)
        assert peer.heard == b"ERR idle stored=100012\n"
        peer.ends()
        await net.until(lambda: self.factory.live.outcomes)
        assert self.manifest().outcome == "silent"
        await self.close()

    @driven
    async def test_a_drain_recalls_it_and_says_how_far_it_got(self, net: Net) -> None:
        peer = await self.serve(net)
        await self.lent(net, peer)
        draining = Deferred.fromCoroutine(self.factory.drain(0.4))
        await net.until(lambda: peer.fin)
        assert peer.heard == b"ERR stopping stored=100000\n"
        peer.ends()
        await draining
        assert self.manifest().outcome == "drained"
        await self.close()

    @driven
    async def test_more_than_max_stream_is_not_kept(self, net: Net) -> None:
        for limit in (10, 150_000):  # before and after it is lent
            peer = await self.serve(net, max_stream=limit)
            await self.send(net, peer, STREAM[:300_000])
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            assert peer.heard == f"ERR stream too long stored={limit}\n".encode()
            await net.until(lambda: self.factory.live.outcomes)
            assert self.factory.live.outcomes == {"overlong": 1}
            await self.crew.work(self.landing.journal.stop)
            assert self.landed() == STREAM[:limit]
            assert self.manifest().outcome == "overlong"
            await self.close()

    @driven
    async def test_a_stream_of_exactly_max_stream_is_whole(self, net: Net) -> None:
        peer = await self.serve(net, max_stream=300_000)
        await self.send(net, peer, STREAM[:300_000])
        peer.ends()
        await net.until(lambda: peer.fin)
        assert peer.heard.startswith(b"OK 300000 ")
        await self.close()

    @driven
    async def test_one_that_rests_gives_its_socket_back_and_may_go_on(self, net: Net) -> None:
        self.patch(Landing, "BEAT", 0.01)
        for checksum in ("sha256", "none"):
            peer = await self.serve(net, checksum=checksum)
            await self.lent(net, peer)
            await net.until(lambda: not self.connection._lent)
            await net.a_while(0.05)
            assert not self.held(), "who rests holds no file"
            await self.send(net, peer, STREAM[:200_000])
            await net.until(lambda: self.connection._size == 300_000)
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            assert peer.heard.startswith(b"OK 300000 ")
            assert self.landed() == bytes(100_000) + STREAM[:200_000]
            await self.close()

    def held(self) -> list[str]:
        """The parts this process has open."""
        links = []
        for number in os.listdir("/proc/self/fd"):
            try:
                links.append(os.readlink(f"/proc/self/fd/{number}"))
            except FileNotFoundError:
                continue
        return [link for link in links if "_parte_" in link]

    @driven
    async def test_a_full_disk_pauses_the_stream_and_costs_it_nothing(self, net: Net) -> None:
        self.patch(QueuedIntake, "RETRY", 0.02)
        for checksum in ("sha256", "none"):
            peer = await self.serve(net, checksum=checksum)
            full = self.fill_up(after=500_000, times=3)
            await self.send(net, peer, STREAM)
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            assert peer.heard.startswith(b"OK 3000000 ")
            assert full == [0]
            assert self.landed() == STREAM
            assert net.logged("No space left") == 1
            net.events.clear()
            await self.close()

    @driven
    async def test_a_disk_that_stays_full_is_told_with_what_is_kept(self, net: Net) -> None:
        self.patch(QueuedIntake, "RETRY", 0.02)
        self.patch(Parts, "PATIENCE", 0.1)
        for checksum in ("sha256", "none"):
            peer = await self.serve(net, checksum=checksum)
            self.fill_up(after=1_500_000, times=10_000)
            await self.send(net, peer, STREAM)
            peer.ends()
            await net.until(lambda p=peer: p.fin)
            stored = len(self.landed())
            assert peer.heard == f"ERR disk full stored={stored}\n".encode()
            assert stored >= 1_000_000
            assert self.landed() == STREAM[:stored]
            assert self.manifest().size == stored
            await self.close()

    def fill_up(self, after: int, times: int) -> list[int]:
        """Once a stream has that many bytes its next writes fail; how many still will."""
        left = [times]
        room = Parts._room

        def full(parts: Parts, count: int) -> Any:
            if parts._size >= after and left[0]:
                left[0] -= 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return room(parts, count)

        self.patch(Parts, "_room", full)
        self.addCleanup(setattr, Parts, "_room", room)
        return left

    @driven
    async def test_streams_side_by_side_each_land_whole(self, net: Net) -> None:
        first = await self.serve(net, checksum="none")
        peers = [first, *[net.dial(self.port) for _ in range(11)]]
        streams = [STREAM[n * 1000 : 600_000 + n * 1001] for n in range(12)]
        for start in range(0, 700_000, 65_536):
            for peer, stream in zip(peers, streams, strict=True):
                await self.send(net, peer, stream[start : start + 65_536])
        for peer in peers:
            peer.ends()
        await net.until(lambda: all(peer.fin for peer in peers))
        sizes = [f"OK {len(stream)} - 1\n".encode() for stream in streams]
        assert [peer.heard for peer in peers] == sizes
        landed = sorted(path.read_bytes() for path in self.folder.glob("*.bin"))
        assert landed == sorted(streams)
        await self.close()


class LargeOnTwistedTests(LargeStreams, OnTwisted): ...


class LargeOnOursTests(LargeStreams, OnOurs): ...
