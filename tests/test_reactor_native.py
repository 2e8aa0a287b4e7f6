"""What our reactor does better than Twisted's own, what only it has, and how it is chosen."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from twisted.internet import default
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from tests.reactors import BIG, Halves, Net, OnOurs, Pulled, Pushed, Watch, driven

HOME = Path(__file__).resolve().parents[1]
PATIENCE = 20.0  # seconds
DEFAULT = default.install.__module__.split(".")[-1].removesuffix("reactor")  # Twisted's: epoll


class Oops(Exception):
    """Raised by a Protocol under test."""


class BetterTests(OnOurs):
    """The differences that the package lists."""

    @driven
    async def test_a_peer_that_half_closes_gets_everything_all_the_same(self, net: Net) -> None:
        class Generous(Watch):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(bytes(2 * BIG))

        generous, peer = await net.pair(Generous)
        peer.send(b"x")
        peer.ends()
        await net.a_while()
        await net.until(lambda: peer.fin or peer.reset)
        assert len(peer.heard) == 2 * BIG
        await net.until(lambda: isinstance(generous.reason, ConnectionDone))

    @driven
    async def test_what_is_written_after_a_close_is_dropped(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.write(b"before")
        watch.transport.loseConnection()
        watch.transport.write(b"after")
        watch.transport.writeSequence([b"after"])
        await net.until(lambda: peer.fin)
        assert peer.heard == b"before"

    @driven
    async def test_the_end_is_told_once_however_often_reading_is_resumed(self, net: Net) -> None:
        halves, peer = await net.pair(Halves)
        peer.ends()
        await net.until(lambda: "read lost" in halves.events)
        halves.transport.pauseProducing()
        halves.transport.resumeProducing()
        await net.a_while()
        assert halves.events == ["made", "read lost"]

    @driven
    async def test_an_exception_in_connectionMade_closes_the_connection(self, net: Net) -> None:
        def fail(watch: Watch) -> None:
            raise Oops

        watch, peer = await net.pair(Watch, fail)
        await net.until(lambda: peer.fin and watch.reason)
        assert isinstance(watch.reason, Oops)
        assert watch.events == ["made", "lost"]
        assert len(self.flushLoggedErrors(Oops)) == 1

    @driven
    async def test_an_exception_in_buildProtocol_closes_the_connection(self, net: Net) -> None:
        def refuse() -> None:
            raise Oops

        peer = net.dial(net.listen(refuse))
        await net.until(lambda: peer.fin)
        assert len(self.flushLoggedErrors(Oops)) == 1

    @driven
    async def test_an_exception_in_pauseProducing_closes_the_connection(self, net: Net) -> None:
        class Faulty(Pushed):
            def pauseProducing(self) -> None:
                raise Oops

        watch, _ = await net.pair(Watch)
        watch.transport.registerProducer(Faulty(), True)
        watch.transport.write(bytes(BIG))
        await net.until(lambda: isinstance(watch.reason, Oops))
        assert len(self.flushLoggedErrors(Oops)) == 1

    @driven
    async def test_an_exception_in_stopProducing_does_not_hide_the_end(self, net: Net) -> None:
        class Faulty(Pushed):
            def stopProducing(self) -> None:
                raise Oops

        watch, peer = await net.pair(Watch)
        watch.transport.registerProducer(Faulty(), True)
        peer.ends()
        await net.until(lambda: isinstance(watch.reason, ConnectionDone))
        assert len(self.flushLoggedErrors(Oops)) == 1

    @driven
    async def test_a_protocol_may_change_its_mind_in_connectionMade(self, net: Net) -> None:
        heard: list[bytes] = []

        def change(watch: Any) -> None:
            watch.dataReceived = heard.append

        _, peer = await net.pair(Watch, change)
        peer.send(b"x")
        await net.until(lambda: heard == [b"x"])

    @driven
    async def test_a_half_close_waits_for_a_pull_producer_and_happens(self, net: Net) -> None:
        halves, peer = await net.pair(Halves)
        Pulled(halves.transport, BIG)
        halves.transport.loseWriteConnection()
        await net.until(lambda: peer.fin)
        assert len(peer.heard) == BIG
        await net.until(lambda: "write lost" in halves.events)

    @driven
    async def test_a_paused_push_producer_is_waited_for_until_it_unregisters(
        self, net: Net
    ) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.write(bytes(BIG))
        watch.transport.registerProducer(pushed := Pushed(), True)
        assert pushed.told == ["pause"]
        watch.transport.loseConnection()
        await net.until(lambda: len(peer.heard) == BIG and pushed.told == ["pause", "resume"])
        for chunk in (b"some", b" more"):
            watch.transport.write(chunk)
            await net.a_while()
        assert not peer.fin
        watch.transport.unregisterProducer()
        await net.until(lambda: peer.fin)
        assert peer.heard == bytes(BIG) + b"some more"

    @driven
    async def test_any_buffer_can_be_written(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.write(bytearray(b"one"))
        watch.transport.write(memoryview(b" two"))
        with pytest.raises(TypeError):
            watch.transport.write("three")
        await net.until(lambda: peer.heard == b"one two")

    @driven
    async def test_a_copy_of_the_socket_does_not_keep_it_open(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        with watch.transport.getHandle().dup():
            watch.transport.loseConnection()
            await net.until(lambda: peer.fin)
        assert watch.transport.fileno() == -1
        assert watch.transport.getHandle().fileno() == -1

    @driven
    async def test_the_clock_is_monotonic(self, net: Net) -> None:
        assert abs(net.reactor.seconds() - time.monotonic()) < 1


class PushTests(OnOurs):
    """`push`: a write that goes out at once."""

    @driven
    async def test_it_keeps_its_place_among_writes(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        sent = b""
        for number in range(400):
            piece = b"%d," % number * (1 + number * 20)
            (watch.transport.push if number % 3 else watch.transport.write)(piece)
            sent += piece
        await net.until(lambda: len(peer.heard) == len(sent))
        assert peer.heard == sent

    @driven
    async def test_it_is_out_before_the_turn_ends(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.push(b"now")
        assert peer.heard == b"now"

    @driven
    async def test_a_producer_is_paused_when_much_is_left_over(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        watch.transport.registerProducer(pushed := Pushed(), True)
        watch.transport.push(bytes(4 * BIG))
        watch.transport.push(b"last")
        assert pushed.told == ["pause"]
        await net.until(lambda: len(peer.heard) == 4 * BIG + 4 and pushed.told[-1] == "resume")
        assert peer.heard.endswith(b"\0last")

    @driven
    async def test_after_a_close_it_is_dropped(self, net: Net) -> None:
        for close in ("loseConnection", "loseWriteConnection"):
            watch, peer = await net.pair(Halves)
            watch.transport.push(b"before")
            getattr(watch.transport, close)()
            watch.transport.push(b"after")
            await net.until(lambda peer=peer: peer.fin)
            assert peer.heard == b"before"
            peer.ends()

    @driven
    async def test_a_peer_that_is_gone_ends_the_connection(self, net: Net) -> None:
        watch, peer = await net.pair(Watch)
        peer.resets()
        watch.transport.push(b"x")
        await net.until(lambda: watch.reason)
        watch.transport.push(b"x")


class AcceptTests(OnOurs):
    """Accepting by hand."""

    @driven
    async def test_everybody_who_waits_is_there_when_it_returns(self, net: Net) -> None:
        port = net.reactor.listenTCP(0, net.factory(Watch), 500, "127.0.0.1")
        for turn in range(3):
            peers = [net.dial(port) for _ in range(100)]
            port.acceptWaiting()
            assert len(net.made) == 100 * (turn + 1)
            for watch in net.made:
                watch.transport.write(b"news")
            await net.until(lambda these=peers: all(peer.heard[:4] == b"news" for peer in these))

    @driven
    async def test_after_the_port_is_closed_nobody_is_taken(self, net: Net) -> None:
        port = net.listen(Watch)
        net.dial(port)
        closing = port.stopListening()
        port.acceptWaiting()
        await closing
        port.acceptWaiting()
        assert net.made == []

    @driven
    async def test_a_blocking_socket_is_adopted_and_does_not_block(self, net: Net) -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = net.reactor.adoptStreamPort(sock.fileno(), sock.family, net.factory(Watch))
            assert not sock.getblocking() or not os.get_blocking(sock.fileno())
        port.acceptWaiting()
        net.dial(port)
        await net.until(lambda: net.made)

    @driven
    async def test_a_socket_that_the_loop_refuses_is_closed_quietly(self, net: Net) -> None:
        port = net.listen(Watch)
        loop, net.reactor.loop = net.reactor.loop, None

        class Broken:
            def connect_accepted_socket(self, *about: object) -> None:
                raise OSError

        net.reactor.loop = Broken()
        peer = net.dial(port)
        port.acceptWaiting()
        net.reactor.loop = loop
        await net.until(lambda: peer.fin)
        assert net.made[0].events == []

    @driven
    async def test_a_link_local_peer_says_on_which_interface(self, net: Net) -> None:
        port = net.listen(Watch, family=socket.AF_INET6)
        name = socket.if_indextoname(1)
        assert port.address(("fe80::1", 80, 0, 1)).host == f"fe80::1%{name}"

    @driven
    async def test_without_descriptors_it_refuses_rests_and_recovers(self, net: Net) -> None:
        port = net.reactor.listenTCP(0, net.factory(Watch), 500, "127.0.0.1")
        with Shortage() as shortage:
            peers = [net.dial(port) for _ in range(30)]
            shortage.begin(net)
            before = time.process_time()
            await net.until(lambda: all(peer.fin or peer.reset for peer in peers))
            await net.a_while(0.2)
            assert time.process_time() - before < 0.2
            assert net.made == []
            assert net.logged("cannot accept (Too many open files)") == 1
        late = net.dial(port)
        await net.until(lambda: net.made)
        net.made[0].transport.write(b"welcome")
        await net.until(lambda: late.heard == b"welcome")

    @driven
    async def test_without_even_a_spare_one_they_wait(self, net: Net) -> None:
        port = net.reactor.listenTCP(0, net.factory(Watch), 500, "127.0.0.1")
        with Shortage() as shortage:
            peer = net.dial(port)
            shortage.begin(net)
            held = net.reactor.spare.release() and os.open(os.devnull, os.O_RDONLY)
            port.acceptWaiting()
            port.acceptWaiting()
            await net.a_while(0.15)
            assert net.made == []
            assert not peer.fin
            os.close(held)
        await net.until(lambda: net.made)

    @driven
    async def test_it_can_be_closed_while_it_rests(self, net: Net) -> None:
        port = net.listen(Watch)
        with Shortage() as shortage:
            net.dial(port)
            shortage.begin(net)
            port.doRead()
        await port.stopListening()
        assert net.reactor.getDelayedCalls() is not None
        await net.a_while(0.15)
        assert net.made == []


class LoopTests(OnOurs):
    """What the loop has to say."""

    @driven
    async def test_what_nobody_catches_is_in_the_log(self, net: Net) -> None:
        net.reactor.loop.call_soon(lambda: 1 / 0)
        net.reactor.loop.call_exception_handler({"message": "something odd"})
        await net.until(lambda: self.flushLoggedErrors(ZeroDivisionError))
        assert net.logged("something odd") == 1


class Shortage:
    """From `begin` to the end of the block no descriptor can be opened, or one a spare gives up."""

    def __init__(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.held: list[int] = []

    def __enter__(self) -> Shortage:
        return self

    def begin(self, net: Net) -> None:
        while (number := os.dup(0)) <= net.reactor.spare.descriptor:
            self.held.append(number)
        os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, self.limits[1]))

    def __exit__(self, *about: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self.limits)
        for number in self.held:
            os.close(number)


TAC = """
import os, signal, sys
sys.path.insert(0, {home!r})
from daemon import reactor as ours
chosen = ours.install()
from twisted.application import internet, service
from twisted.internet import endpoints, protocol, reactor
from twisted.python import log

class Line(protocol.Protocol):
    def dataReceived(self, data):
        if data == b"child":
            child = protocol.ProcessProtocol()
            child.processEnded = lambda why: self.transport.write(str(why.value.exitCode).encode())
            reactor.spawnProcess(child, "/bin/sh", ["sh", "-c", "exit 7"])
        elif data == b"thread":
            reactor.callInThread(lambda: reactor.callFromThread(self.transport.write, b"woken"))
        elif data == b"who":
            self.transport.write(type(self.transport).__name__.encode())
        else:
            self.transport.write(data.upper())

class Hup(service.Service):
    def startService(self):
        service.Service.startService(self)
        log.msg(f"reactor: {{chosen.name}}: {{chosen.why}}")
        reactor.callWhenRunning(
            lambda: signal.signal(signal.SIGHUP, lambda *_: log.msg("SIGHUP heard"))
        )

application = service.Application("small")
Hup().setServiceParent(application)
endpoint = endpoints.serverFromString(reactor, {endpoint!r})
internet.StreamServerEndpointService(
    endpoint, protocol.Factory.forProtocol(Line)
).setServiceParent(application)
"""


class TwistdTests(SynchronousTestCase):
    """A small daemon under a real twistd."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.socket = self.home / "socket"
        self.log = self.home / "twistd.log"
        self.pid = self.home / "twistd.pid"
        self.tac = self.home / "small.tac"
        self.tac.write_text(TAC.format(home=str(HOME), endpoint=f"unix:{self.socket}"))

    def start(self, *options: str, **environ: str) -> subprocess.Popen[bytes]:
        twistd = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]
        files = ["-y", str(self.tac), f"--logfile={self.log}", f"--pidfile={self.pid}"]
        self.process = subprocess.Popen(
            [*twistd, *options, *files],
            cwd=self.home,
            env={**os.environ, "ROUNDHOUSE_REACTOR": "", **environ},
        )
        self.addCleanup(self.end)
        self.until(self.socket.exists)
        return self.process

    def end(self) -> None:
        if self.pid.exists():
            os.kill(int(self.pid.read_text()), signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def until(self, happened: Callable[[], object], seconds: float = PATIENCE) -> None:
        due = time.monotonic() + seconds
        while not happened():
            assert time.monotonic() < due, self.log.read_text() if self.log.exists() else "no log"
            time.sleep(0.01)

    def ask(self, question: bytes) -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.socket))
            sock.sendall(question)
            return sock.recv(100)

    def lives(self, transport: bytes) -> None:
        """Everything that a signal, a thread or a child has to do with, while the loop idles."""
        assert self.ask(b"hola") == b"HOLA"
        assert self.ask(b"who") == transport
        assert self.ask(b"thread") == b"woken"
        assert self.ask(b"child") == b"7"
        time.sleep(0.1)
        pid = int(self.pid.read_text())
        os.kill(pid, signal.SIGHUP)
        self.until(lambda: "SIGHUP heard" in self.log.read_text(), 2)
        assert self.ask(b"still here") == b"STILL HERE"
        os.kill(pid, signal.SIGTERM)
        self.until(lambda: not self.pid.exists(), 2)
        assert "Server Shut Down" in self.log.read_text()
        assert "Traceback" not in self.log.read_text()

    def test_in_the_foreground(self) -> None:
        process = self.start("-n")
        self.until(self.pid.exists)
        self.lives(b"Stream")
        assert process.wait(PATIENCE) == -signal.SIGTERM, "as with any reactor of Twisted's"
        assert "reactor: uvloop: the fastest here" in self.log.read_text()

    def test_daemonised(self) -> None:
        process = self.start("--umask=022")
        assert process.wait(PATIENCE) == 0
        self.lives(b"Stream")

    def test_on_twisteds_default_when_the_environment_says_so(self) -> None:
        self.start("-n", ROUNDHOUSE_REACTOR="epoll")
        self.until(self.pid.exists)
        self.lives(b"Server")
        assert f"reactor: {DEFAULT}: ROUNDHOUSE_REACTOR = epoll" in self.log.read_text()

    def test_on_the_reactor_that_twistd_was_told_to_use(self) -> None:
        self.start("-r", "poll", "-n")
        self.until(self.pid.exists)
        self.lives(b"Server")
        assert "reactor: poll: it was installed before" in self.log.read_text()


class InstallTests(SynchronousTestCase):
    """Which reactor it is to be."""

    def chosen(self, before: str = "", **environ: str) -> tuple[str, str, str]:
        """The name, the reason, and the class of what is installed then."""
        script = f"""
import sys
{before}
from daemon.reactor import install
chosen = install()
from twisted.internet import reactor
print(chosen.name, chosen.why, type(reactor).__name__, sep="|")
"""
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            cwd=HOME,
            env={**os.environ, "ROUNDHOUSE_REACTOR": "", **environ},
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        name, why, kind = done.stdout.strip().split("|")
        return name, why, kind

    def test_it_is_uvloops_where_there_is_one(self) -> None:
        assert self.chosen() == ("uvloop", "the fastest here", "UvloopReactor")

    def test_the_environment_decides(self) -> None:
        for wanted, is_so in (("uvloop", "uvloop"), ("epoll", DEFAULT)):
            name, why, kind = self.chosen(ROUNDHOUSE_REACTOR=wanted)
            assert (name, kind.lower()) == (is_so, f"{is_so}reactor")
            assert why == f"ROUNDHOUSE_REACTOR = {wanted}"

    def test_what_is_no_reactor_is_said_and_passed_over(self) -> None:
        name, why, _ = self.chosen(ROUNDHOUSE_REACTOR="iocp")
        assert name == "uvloop"
        assert "'iocp' is neither epoll nor uvloop" in why

    def test_one_that_is_installed_stays(self) -> None:
        name, why, kind = self.chosen(
            "from twisted.internet import pollreactor; pollreactor.install()",
            ROUNDHOUSE_REACTOR="uvloop",
        )
        assert (name, kind) == ("poll", "PollReactor")
        assert "installed before" in why

    def test_without_uvloop_it_is_twisteds_default(self) -> None:
        name, why, kind = self.chosen("sys.modules['uvloop'] = None")
        assert (name, kind.lower()) == (DEFAULT, f"{DEFAULT}reactor")
        assert why.startswith("no uvloop: ")
