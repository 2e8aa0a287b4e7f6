"""The admin port: who may ask, what is answered, what it says while the daemon comes and goes."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, cast

import pytest
from attrs import define, field, frozen
from click.testing import CliRunner
from twisted.internet import endpoints
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from daemon import admin, settings
from daemon.__main__ import check_config
from daemon.admin import readiness
from daemon.admin.pulse import Pulse
from daemon.admin.readiness import Readiness
from daemon.binding import PortsTaken
from daemon.roundhouse import Roundhouse
from daemon.settings import ConfigError, Settings
from daemon.stores import files
from daemon.stores.trouble import Trouble
from protocols import chat, handshake, ingest, relay
from protocols.connection import Connection, Live, LiveFactory
from protocols.spec import Context, Port, Spec
from protocols.stores import StoreError
from tests import toy
from tests.test_roundhouse import Client, RoundhouseCase
from tests.wire import Memory

TOY = "[toy]\nPORT = 0\n"
ADMIN = "[admin]\nPORT = 0\n"
SECRET = "correct-horse-battery"


@frozen
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, data: bytes) -> Reply:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (x.partition(": ") for x in lines)}
        return cls(int(first.split(" ")[1]), headers, body)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@define(eq=False, repr=False)
class Stubborn(Connection):
    """Goes on through a drain, until its grace is over."""

    def received(self, data: bytes) -> None:
        self.transport.write(data)

    def drain(self, grace: float) -> None:
        """Not yet."""


STUBBORN = Spec(
    "stubborn",
    (Port("PORT", 7008),),
    lambda context: {"PORT": LiveFactory(Live("stubborn", context.clock), Stubborn)},
)


class AdminCase(RoundhouseCase):
    def admin_port(self, daemon: Roundhouse) -> int:
        [listener] = daemon.front
        [address] = listener.addresses
        return int(address.port)

    async def send(self, daemon: Roundhouse, data: bytes) -> bytes:
        at = f"tcp:127.0.0.1:{self.admin_port(daemon)}"
        endpoint = endpoints.clientFromString(self.reactor, at)
        client: Client = await endpoint.connect(Factory.forProtocol(Client))
        client.transport.write(data)  # type: ignore[union-attr]
        return await client.gone

    async def ask(
        self,
        daemon: Roundhouse,
        target: str,
        *headers: str,
        method: str = "GET",
        host: str = "[::1]",
    ) -> Reply:
        head = [f"{method} {target} HTTP/1.1", f"Host: {host}", *headers, "", ""]
        return Reply.of(await self.send(daemon, "\r\n".join(head).encode()))


class PageTests(AdminCase):
    async def test_what_is_not_there_is_a_404_with_the_list_of_what_is(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        for target in ("/", "/metric", "/metrics/", "/status.json"):
            reply = await self.ask(daemon, target)
            assert reply.status == 404
            assert reply.body.split()[-4:] == [b"/metrics", b"/healthz", b"/readyz", b"/status"]

    async def test_head_says_the_same_without_a_body(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        for target in ("/metrics", "/healthz", "/readyz", "/status"):
            whole = await self.ask(daemon, target)
            head = await self.ask(daemon, target, method="HEAD")
            assert (whole.status, head.status, head.body) == (200, 200, b"")
            assert head.headers["content-type"] == whole.headers["content-type"]
            assert int(whole.headers["content-length"]) == len(whole.body)
            assert whole.headers["cache-control"] == "no-store"

    async def test_nothing_can_be_changed(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        for method in ("POST", "DELETE", "OPTIONS"):
            reply = await self.ask(daemon, "/status", method=method)
            assert (reply.status, reply.headers["allow"]) == (405, "GET, HEAD")

    async def test_the_query_does_not_matter(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        assert (await self.ask(daemon, "/healthz?verbose")).json["ok"]

    async def test_the_name_of_a_stranger_is_refused(self) -> None:
        daemon = self.start(TOY + ADMIN + "HOSTS = ops.example.org\n", toy.SPEC)
        for host in ("evil.example.com", "evil.example.com:8088", "localhost.evil.com"):
            reply = await self.ask(daemon, "/status", host=host)
            assert (reply.status, b"HOSTS" in reply.body) == (403, True)
        for host in ("127.0.0.1:8088", "localhost", "[::1]:8088", "10.1.2.3", "ops.example.org"):
            assert (await self.ask(daemon, "/status", host=host)).status == 200
        assert (await self.send(daemon, b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(
            b"HTTP/1.1 200 "
        )

    async def test_the_token_guards_what_tells_more_than_yes_or_no(self) -> None:
        daemon = self.start(f"{TOY}{ADMIN}TOKEN = {SECRET}\n", toy.SPEC)
        for target in ("/metrics", "/status"):
            for given in ("", "Authorization: Bearer wrong", f"Authorization: Basic {SECRET}"):
                reply = await self.ask(daemon, target, *filter(None, [given]))
                assert reply.status == 401
                assert reply.headers["www-authenticate"] == 'Bearer realm="roundhouse"'
            right = await self.ask(daemon, target, f"Authorization: bearer {SECRET}")
            assert right.status == 200
            assert SECRET.encode() not in right.body
        for target in ("/healthz", "/readyz"):
            assert (await self.ask(daemon, target)).status == 200

    async def test_one_request_a_connection(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        one = b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answers = await self.send(daemon, one * 50)
        assert answers.count(b"HTTP/1.1 ") == 1
        assert b"\r\nConnection: close\r\n" in answers

    async def test_what_is_no_request_is_refused_politely(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        assert (await self.send(daemon, b"hola\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        big = b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
        assert (await self.send(daemon, big)).startswith(b"HTTP/1.1 413 ")

    async def test_a_page_that_fails_costs_one_connection(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        good, daemon.gate = daemon.gate, None  # type: ignore[assignment]
        assert await self.send(daemon, b"GET /status HTTP/1.0\r\n\r\n") == b""
        assert self.flushLoggedErrors(AttributeError)
        daemon.gate = good
        assert (await self.ask(daemon, "/status")).status == 200


class VisitorTests(AdminCase):
    def visit(self, clock: Clock | None = None) -> tuple[Memory, Connection]:
        daemon = self.start(TOY + "[admin]\nENABLED = no\n", toy.SPEC)
        daemon.state = "starting"
        if clock is not None:
            daemon.desk.live.clock = clock
        connection = daemon.desk.buildProtocol(None)
        memory = Memory(connection)
        connection.makeConnection(memory)
        self.addCleanup(lambda: Deferred.fromCoroutine(daemon.desk.drain(0.1)))
        self.addCleanup(memory.die)
        return memory, connection

    def test_who_never_asks_is_closed(self) -> None:
        clock = Clock()
        memory, connection = self.visit(clock)
        clock.advance(29.9)
        assert not memory.fin
        clock.advance(0.2)
        assert (bytes(memory.sent), memory.fin, connection.outcome) == (b"", True, "silent")

    def test_who_asks_byte_by_byte_has_no_more_time_than_others(self) -> None:
        clock = Clock()
        memory, connection = self.visit(clock)
        for byte in (b"G", b"E", b"T", b" ", b"/", b"s"):
            assert not memory.fin
            connection.dataReceived(byte)
            clock.advance(5.1)
        assert (memory.fin, connection.outcome) == (True, "silent")
        assert memory.sent.startswith(b"HTTP/1.1 408 ")

    def test_a_drain_does_not_wait_for_who_asks_nothing(self) -> None:
        memory, connection = self.visit()
        connection.drain(1.0)
        assert (memory.fin, connection.outcome) == (True, "drained")

    def test_who_leaves_without_asking_has_left(self) -> None:
        memory, connection = self.visit()
        connection.readConnectionLost()
        assert (bytes(memory.sent), memory.closed, connection.outcome) == (b"", True, "left")

    def test_who_asked_and_half_closed_is_still_answered(self) -> None:
        memory, connection = self.visit()
        connection.dataReceived(b"GET /readyz HTTP/1.0\r\n\r\n")
        connection.readConnectionLost()
        assert memory.sent.startswith(b"HTTP/1.1 503 ")  # it has not been started
        assert b'"state": "starting"' in memory.sent
        assert connection.outcome == "answered"


class HealthTests(AdminCase):
    async def test_a_reactor_that_is_late_is_not_well(self) -> None:
        daemon = self.start(TOY + ADMIN + "MAX_LAG = 500 ms\n", toy.SPEC)
        reply = await self.ask(daemon, "/healthz")
        assert (reply.status, reply.json["ok"]) == (200, True)
        daemon.pulse._recent.append(0.75)
        reply = await self.ask(daemon, "/healthz")
        assert (reply.status, reply.json) == (503, {"ok": False, "lag_ms": 750.0})


class PulseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.late = 0.0
        self.pulse = Pulse(self.clock, lambda: self.clock.seconds() + self.late)
        self.pulse.startService()

    def test_it_knows_how_late_the_last_beats_came(self) -> None:
        self.clock.pump([0.25] * 3)
        assert self.pulse.lag == 0
        self.late = 0.5
        self.clock.advance(0.25)
        assert self.pulse.lag == pytest.approx(0.5)
        assert self.pulse.lags.count == 4

    def test_what_is_overdue_counts_before_it_comes(self) -> None:
        self.late = 3.25
        assert self.pulse.lag == pytest.approx(3.0)

    def test_after_five_seconds_it_is_forgotten(self) -> None:
        self.late = 1.0
        self.clock.advance(0.25)
        self.clock.pump([0.25] * Pulse.RECENT)
        assert self.pulse.lag == 0

    def test_it_ends(self) -> None:
        self.pulse.stopService()
        assert not self.clock.getDelayedCalls()
        assert self.pulse.lag == 0


@define(eq=False)
class Store:
    """A store whose answer a test gives."""

    service: ClassVar[str] = "shelf"

    answers: list[Deferred[object]] = field(factory=list)

    def ready(self) -> Deferred[object]:
        self.answers.append(Deferred())
        return self.answers[-1]


@define(eq=False)
class Daemon:
    """As much of a daemon as readiness looks at."""

    home: Path
    store: Store = field(factory=Store)
    state: str = "serving"
    services: tuple[Any, ...] = field(init=False)
    settings: Settings = field(init=False)
    begun: Settings = field(init=False)
    factories: dict[str, Any] = field(factory=dict, init=False)
    house: Daemon = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.services, self.house = (self.store,), self
        self.begun = self.settings = settings.read(None, self.home, (), {})


class ReadinessTests(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.daemon = Daemon(Path(folder.name))
        (Path(folder.name) / "data").mkdir()
        self.clock = Clock()
        self.disk: list[Deferred[Any]] = []
        self.tasks: list[Any] = []
        self.readiness = Readiness(cast(Any, self.daemon), self.clock, self.in_thread)

    def in_thread(self, task: Any, *args: Any) -> Deferred[Any]:
        self.tasks.append(lambda: task(*args))
        self.disk.append(Deferred())
        return self.disk[-1]

    def answer(self, disk: object = None, store: object = None) -> None:
        self.tasks.pop()()
        for waiting, result in ((self.disk.pop(), disk), (self.daemon.store.answers.pop(), store)):
            if isinstance(result, Exception):
                waiting.errback(result)
            else:
                waiting.callback(result)

    def test_all_is_well(self) -> None:
        asked = self.readiness.ask()
        self.answer()
        assert self.successResultOf(asked) == {"state": "ok", "disk": "ok", "shelf": "ok"}

    def test_what_is_wrong_is_said_in_plain_words(self) -> None:
        asked = self.readiness.ask()
        self.answer(OSError(28, "No space left on device"), StoreError("disk full"))
        assert self.successResultOf(asked) == {
            "state": "ok",
            "disk": "No space left on device",
            "shelf": "disk full",
        }

    def test_a_check_that_is_broken_is_not_ready_and_logged(self) -> None:
        asked = self.readiness.ask()
        self.answer(None, ZeroDivisionError())
        assert self.successResultOf(asked)["shelf"] == "failed: see the log"
        assert len(self.flushLoggedErrors(ZeroDivisionError)) == 1

    def test_who_asks_meanwhile_or_soon_after_gets_the_same_answer(self) -> None:
        asked = [self.readiness.ask() for _ in range(3)]
        assert len(self.tasks) == 1
        self.answer()
        self.clock.advance(Readiness.KEEP - 0.1)
        asked.append(self.readiness.ask())
        assert [self.successResultOf(each)["disk"] for each in asked] == ["ok"] * 4
        self.clock.advance(0.2)
        self.assertNoResult(self.readiness.ask())
        self.answer()

    def test_what_gives_no_answer_does_not_work(self) -> None:
        asked = self.readiness.ask()
        self.clock.advance(Readiness.PATIENCE)
        assert self.successResultOf(asked) == {
            "state": "ok",
            "disk": "no answer",
            "shelf": "no answer",
        }

    def test_a_thread_that_hangs_is_the_only_one_that_does(self) -> None:
        for _ in range(3):
            self.readiness.ask()
            self.clock.advance(Readiness.PATIENCE)
            self.clock.advance(Readiness.KEEP)
        assert len(self.tasks) == 1
        self.tasks.pop()()  # it came back
        self.readiness.ask()
        assert len(self.tasks) == 1
        self.clock.advance(Readiness.PATIENCE)

    def test_while_it_starts_or_drains_nothing_else_is_tried(self) -> None:
        self.daemon.state = "draining"
        assert self.successResultOf(self.readiness.ask()) == {"state": "draining"}
        assert not self.tasks

    def test_without_a_store_there_is_no_disk_to_try(self) -> None:
        self.daemon.services = ()
        assert self.successResultOf(self.readiness.ask()) == {"state": "ok"}

    def test_the_disk_is_tried_for_real(self) -> None:
        folder = self.daemon.home / "data"
        readiness.probe(folder, 0)
        assert list(folder.iterdir()) == []
        with pytest.raises(OSError, match="MIN_FREE is"):
            readiness.probe(folder, 1 << 60)
        with pytest.raises(FileNotFoundError):
            readiness.probe(folder / "gone", 0)


class TroubleTests(SynchronousTestCase):
    def test_it_counts_for_a_while(self) -> None:
        clock = Clock()
        trouble = Trouble(clock.seconds)
        assert trouble.recent == ""
        trouble.note("disk error")
        clock.advance(Trouble.LASTS - 0.1)
        assert (trouble.recent, trouble.count) == ("disk error", 1)
        clock.advance(0.2)
        assert (trouble.recent, trouble.count) == ("", 1)


class ReadyTests(AdminCase):
    async def test_a_daemon_whose_stores_work_is_ready(self) -> None:
        text = "[ingest]\nPORT = 0\nMIN_FREE = 0\n[relay]\nPORT = 0\nHTTP_PORT = 0\nMIN_FREE = 0\n"
        text += "[handshake]\nCODE_PORT = 0\nMESSAGE_PORT = 0\n"
        daemon = self.start(text + ADMIN, ingest.SPEC, relay.SPEC, handshake.SPEC)
        reply = await self.ask(daemon, "/readyz")
        names = ("state", "disk", "ingest", "relay", "handshake")
        assert reply.json == {"ready": True, "checks": dict.fromkeys(names, "ok")}
        assert reply.status == 200

    async def test_too_little_space_is_not_ready(self) -> None:
        text = "[ingest]\nPORT = 0\nMIN_FREE = 900 TB\n" + ADMIN
        daemon = self.start(text, ingest.SPEC)
        reply = await self.ask(daemon, "/readyz")
        assert reply.status == 503
        assert "MIN_FREE is" in reply.json["checks"]["disk"]
        status = (await self.ask(daemon, "/status")).json
        assert any(line.startswith("disk: ") for line in status["warnings"])

    async def test_what_a_service_that_is_not_served_wants_free_does_not_matter(self) -> None:
        text = "[chat]\nPORT = 0\nIRC_PORT = 0\n[ingest]\nENABLED = no\nMIN_FREE = 900 TB\n"
        daemon = self.start(text + ADMIN, ingest.SPEC, chat.SPEC)
        reply = await self.ask(daemon, "/readyz")
        assert (reply.status, reply.json["checks"]["disk"]) == (200, "ok")

    async def test_a_folder_that_only_a_restart_would_use_is_neither_tried_nor_shown(self) -> None:
        text = f"[ingest]\nPORT = 0\nMIN_FREE = 0\n{ADMIN}"
        daemon = self.start(text, ingest.SPEC)
        self.config.write_text(f"[DEFAULT]\nDATA_DIR = elsewhere\n{text}")
        assert daemon.reload()
        reply = await self.ask(daemon, "/readyz")
        assert (reply.status, reply.json["checks"]["disk"]) == (200, "ok")
        status = (await self.ask(daemon, "/status")).json
        assert status["data_dir"] == str(self.home / "data")
        assert status["warnings"] == ["DATA_DIR was changed, and only a restart can follow"]

    async def test_trouble_of_a_disk_is_remembered_for_some_seconds(self) -> None:
        text = "[ingest]\nPORT = 0\nMIN_FREE = 0\n[handshake]\nCODE_PORT = 0\nMESSAGE_PORT = 0\n"
        daemon = self.start(text + ADMIN, ingest.SPEC, handshake.SPEC)
        stores: Any = daemon.house.stores
        stores.landing.crew.complain(OSError(5, "Input/output error"))
        stores.ledger.database.trouble.note("disk error")
        reply = await self.ask(daemon, "/readyz")
        assert (reply.status, reply.json["checks"]["disk"]) == (503, "ok")
        assert reply.json["checks"]["ingest"] == "disk error"
        assert reply.json["checks"]["handshake"] == "disk error"
        measures = (await self.ask(daemon, "/status")).json["stores"]
        assert measures["crew_storage_errors_total"] == 1
        assert measures["handshake_storage_errors_total"] == 1

    async def test_a_sync_that_fails_once_is_seen_within_a_second(self) -> None:
        daemon = self.start("[ingest]\nPORT = 0\nMIN_FREE = 0\n" + ADMIN, ingest.SPEC)
        assert (await self.ask(daemon, "/readyz")).status == 200
        failed: list[int] = []
        sync = files.sync_data

        def fails_once(descriptor: int) -> None:
            if not failed:
                failed.append(descriptor)
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            sync(descriptor)

        self.patch(files, "sync_data", fails_once)
        client = await self.connect(daemon, "ingest")
        client.transport.write(b"abc")  # type: ignore[union-attr]
        client.transport.loseWriteConnection()  # type: ignore[union-attr]
        assert await client.gone == b"ERR disk error stored=0\n"
        await self.sleep(Readiness.KEEP)
        reply = await self.ask(daemon, "/readyz")
        assert (reply.status, reply.json["checks"]["ingest"]) == (503, "disk error")

    async def test_who_drains_says_so_until_the_last_has_gone(self) -> None:
        text = "[daemon]\nGRACE = 1\n[stubborn]\nPORT = 0\n" + ADMIN
        daemon = self.start(text, STUBBORN)
        client = await self.connect(daemon, "stubborn")
        client.transport.write(b"here")  # type: ignore[union-attr]
        await client.hears(b"here")
        stopped = daemon.stopService()
        reply = await self.ask(daemon, "/readyz")
        assert reply.status == 503
        assert reply.json == {"ready": False, "checks": {"state": "draining"}}
        assert (await self.ask(daemon, "/healthz")).status == 200
        status = (await self.ask(daemon, "/status")).json
        assert (status["state"], status["connections"]) == ("draining", 1)
        port = self.admin_port(daemon)
        await stopped
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 1)


class StatusTests(AdminCase):
    async def test_it_tells_what_runs_where_and_who_is_there(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        client = await self.connect(daemon, "toy")
        client.transport.write(b"abc\n")  # type: ignore[union-attr]
        await client.hears(b"cba\n")
        status = (await self.ask(daemon, "/status")).json
        assert (status["name"], status["state"], status["ready"]) == ("roundhouse", "serving", True)
        assert status["config"] == str(self.config)
        assert status["connections"] == 1
        assert status["limits"]["per_address"] == settings.PER_ADDRESS
        assert status["limits"]["descriptors_open"] > 3
        assert status["services"]["toy"]["options"] == {"idle_timeout": 0.0}
        port = status["services"]["toy"]["ports"]["PORT"]
        assert port["listening"] == [f"127.0.0.1:{self.port(daemon, 'toy')}"]
        assert (port["connections"], port["outcomes"]) == (1, {})
        assert (port["received_bytes"], port["sent_bytes"]) == (4, 4)
        assert (status["reload"], status["warnings"]) == (None, [])
        client.transport.loseConnection()  # type: ignore[union-attr]
        await client.gone
        await self.sleep(0.05)
        port = (await self.ask(daemon, "/status")).json["services"]["toy"]["ports"]["PORT"]
        assert (port["connections"], port["outcomes"]) == (0, {"left": 1})
        assert (port["received_bytes"], port["sent_bytes"]) == (4, 4)

    async def test_it_tells_what_the_last_reload_came_to(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        more = "IDLE_TIMEOUT = 5\n[daemon]\nPER_ADDRESS = 7\n[admin]\nPORT = 9\n"
        self.config.write_text(TOY + more)
        assert daemon.reload()
        status = (await self.ask(daemon, "/status")).json
        assert status["reload"]["changed"] == [
            "[daemon] PER_ADDRESS = 7",
            "[toy] IDLE_TIMEOUT = 5.0",
        ]
        assert status["reload"]["restart"] == ["[admin] PORT"]
        assert status["limits"]["per_address"] == 7
        assert status["warnings"] == ["[admin] PORT was changed, and only a restart can follow"]
        self.config.write_text("[toy]\nPROT = 0\n")
        assert not daemon.reload()
        status = (await self.ask(daemon, "/status")).json
        [problem] = status["reload"]["problems"]
        assert problem in status["warnings"][-1]
        assert status["warnings"][0].startswith("[admin] PORT was changed")

    async def test_a_reload_changes_who_may_ask(self) -> None:
        daemon = self.start(TOY + ADMIN, toy.SPEC)
        self.config.write_text(f"{TOY}{ADMIN}TOKEN = {SECRET}\n")
        assert daemon.reload()
        assert (await self.ask(daemon, "/status")).status == 401
        assert not any(SECRET in line for line in self.said)

    async def test_what_is_open_and_what_is_not_served_is_warned_of(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            number = taken.getsockname()[1]
            ports = (Port("PORT", 7007), Port("X_PORT", number, secondary=True))

            def build(context: Context) -> dict[str, LiveFactory]:
                live = Live("toy", context.clock)
                return {port.key: LiveFactory(live, toy.Toy) for port in ports}

            spec = Spec("toy", ports, build)
            daemon = self.start("[toy]\nLISTEN = tcp:0\n" + ADMIN, spec)
            warnings = (await self.ask(daemon, "/status")).json["warnings"]
        assert len(warnings) == 2
        assert warnings[0].startswith("toy is open beyond this machine at 0.0.0.0:")
        assert warnings[1] == "[toy] X_PORT is not served: it was taken when the daemon started"

    async def test_no_secret_is_shown(self) -> None:
        text = f"[relay]\nPORT = 0\nHTTP_PORT = 0\nTOKEN_box = {SECRET}\n{ADMIN}TOKEN = {SECRET}\n"
        daemon = self.start(text, relay.SPEC)
        reply = await self.ask(daemon, "/status", f"Authorization: Bearer {SECRET}")
        assert reply.json["services"]["relay"]["options"]["token"] == {"box": "(hidden)"}
        assert SECRET.encode() not in reply.body
        for options in ([], ["--json"]):
            shown = CliRunner().invoke(check_config, [str(self.config), *options])
            assert shown.exit_code == 0
            assert "(hidden)" in shown.output
            assert SECRET not in shown.output


class PortTests(AdminCase):
    async def test_it_stays_on_loopback_whatever_server_ip_says(self) -> None:
        daemon = self.start("[DEFAULT]\nSERVER_IP = 0.0.0.0\n" + TOY + ADMIN, toy.SPEC)
        [listener] = daemon.front
        assert listener.addresses[0].host == "127.0.0.1"

    async def test_listen_opens_it_further(self) -> None:
        daemon = self.start(TOY + "[admin]\nLISTEN = tcp:0:interface=0.0.0.0\n", toy.SPEC)
        [listener] = daemon.front
        assert listener.addresses[0].host == "0.0.0.0"
        await self.says("admin is open beyond this machine")

    def test_it_can_be_switched_off(self) -> None:
        daemon = self.start(TOY + "[admin]\nENABLED = no\n", toy.SPEC)
        assert list(daemon.front) == []

    def test_a_port_that_is_named_and_taken_is_an_error_like_any_other(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(PortsTaken) as caught:
                self.assemble(f"{TOY}[admin]\nPORT = {port}\n", toy.SPEC)
        [problem] = caught.value.problems
        assert problem.startswith(f"admin: tcp:{port}:interface=127.0.0.1 is taken by ")
        assert "config.cfg:4: [admin] PORT moves it" in problem

    async def test_a_service_that_runs_alone_goes_without_it_where_another_has_it(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            text = f"{TOY}[admin]\nPORT = {taken.getsockname()[1]}\n"
            daemon = self.assemble(text, toy.SPEC, only=("toy",))
            daemon.startService()
            assert [one.addresses for one in daemon.front] == [[]]
            await daemon.stopService()

    def test_it_is_secondary_so_an_upgrade_never_stops_yesterdays_daemon(self) -> None:
        [port] = admin.SPEC.ports
        assert (port.number, port.secondary) == (8088, True)

    def test_a_bad_token_is_refused_and_not_repeated(self) -> None:
        with pytest.raises(ConfigError) as caught:
            self.assemble(f"{TOY}[admin]\nTOKEN = short\n", toy.SPEC)
        assert caught.value.problems == (
            f"{self.config}:4: [admin] TOKEN: a secret has 8 to 256 printable ASCII characters"
            " and no blanks",
        )
