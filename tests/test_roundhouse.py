"""The daemon as a whole, in this process: assembled, served, reloaded, stopped."""

from __future__ import annotations

import errno
import io
import os
import signal
import socket
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import pytest
from attrs import evolve
from twisted.internet import endpoints
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.logger import ILogObserver, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from daemon import roundhouse
from daemon.reactor import Chosen
from daemon.roundhouse import Roundhouse
from daemon.settings import ConfigError
from daemon.stores import Absent
from daemon.stores.files import Unusable
from protocols import chat, echo, ingest
from protocols.spec import Spec
from tests import toy

NO_ADMIN = "\n[admin]\nENABLED = no\n"


class Client(Protocol):
    """Collects; `gone` fires with everything once the daemon has closed."""

    def __init__(self) -> None:
        self.heard = b""
        self.waits: list[tuple[bytes, Deferred[None]]] = []
        self.gone: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.heard += data
        for wanted, found in [w for w in self.waits if w[0] in self.heard]:
            self.waits.remove((wanted, found))
            found.callback(None)

    def hears(self, wanted: bytes) -> Deferred[None]:
        found: Deferred[None] = Deferred()
        self.waits.append((wanted, found))
        self.dataReceived(b"")
        return found

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.gone.callback(self.heard)


class RoundhouseCase(TestCase):
    timeout = 20

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.config = self.home / "config.cfg"
        umask, interval = os.umask(0o022), sys.getswitchinterval()
        os.umask(umask)
        self.addCleanup(os.umask, umask)
        self.addCleanup(sys.setswitchinterval, interval)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        self.said: list[str] = []

        @implementer(ILogObserver)
        def hear(event: Any) -> None:
            self.said.append(str(formatEvent(event)))

        globalLogPublisher.addObserver(hear)
        self.addCleanup(globalLogPublisher.removeObserver, hear)

    def assemble(self, text: str, *specs: Spec, only: tuple[str, ...] = ()) -> Roundhouse:
        """Without an admin port, unless `text` speaks of it."""
        self.config.write_text(text if "[admin]" in text else f"{text}{NO_ADMIN}")
        return Roundhouse.assemble(self.home, self.reactor, specs, {}, only)

    def start(self, text: str, *specs: Spec) -> Roundhouse:
        daemon = self.assemble(text, *specs)
        daemon.startService()
        self.addCleanup(self.stop, daemon)
        return daemon

    def stop(self, daemon: Roundhouse) -> Deferred[Any]:
        return maybeDeferred(daemon.stopService if daemon.running else lambda: None)

    def port(self, daemon: Roundhouse, name: str) -> int:
        (port,) = next(one for one in daemon.listeners if one.service == name)._ports
        return int(port.getHost().port)

    async def connect(self, daemon: Roundhouse, name: str) -> Client:
        at = f"tcp:127.0.0.1:{self.port(daemon, name)}"
        endpoint = endpoints.clientFromString(self.reactor, at)
        client: Client = await endpoint.connect(Factory.forProtocol(Client))
        return client

    async def sleep(self, seconds: float) -> None:
        await deferLater(self.reactor, seconds)

    async def says(self, *words: str) -> None:
        for _ in range(200):
            if any(all(word in line for word in words) for line in self.said):
                return
            await self.sleep(0.02)
        raise AssertionError(f"{words} not in {self.said}")


class SixthProtocolTests(RoundhouseCase):
    async def test_one_file_and_one_catalogue_line_are_served_set_reloaded_and_drained(
        self,
    ) -> None:
        daemon = self.start("[toy]\nPORT = 0\nIDLE_TIMEOUT = 100\n", toy.SPEC)
        await self.says(f"toy listening on 127.0.0.1:{self.port(daemon, 'toy')}")
        client = await self.connect(daemon, "toy")
        client.transport.write(b"abc\nxyz\n")  # type: ignore[union-attr]
        await client.hears(b"cba\nzyx\n")
        factory = daemon.factories["toy"]["PORT"]
        self.config.write_text("[toy]\nPORT = 0\nIDLE_TIMEOUT = 50\n")
        await self.says("[toy] IDLE_TIMEOUT = 50.0")
        assert factory.live.idle == 50
        await daemon.stopService()
        assert factory.live.outcomes == {"drained": 1}
        assert await client.gone == b"cba\nzyx\n"

    async def test_it_listens_wherever_an_endpoint_string_says(self) -> None:
        path = self.home / "toy.sock"
        self.start("[toy]\nLISTEN =\n  unix:toy.sock\n  tcp:0:interface=127.0.0.1\n", toy.SPEC)
        endpoint = endpoints.UNIXClientEndpoint(self.reactor, str(path))
        client: Client = await endpoint.connect(Factory.forProtocol(Client))
        client.transport.write(b"12\n")  # type: ignore[union-attr]
        await client.hears(b"21\n")
        client.transport.loseConnection()  # type: ignore[union-attr]
        await client.gone


class ReloadTests(RoundhouseCase):
    async def test_a_bad_file_changes_nothing_and_says_why(self) -> None:
        daemon = self.start("[toy]\nPORT = 0\nIDLE_TIMEOUT = 9\n", toy.SPEC)
        self.config.write_text("[toy]\nPORT = 0\nIDLE_TIMEOUT = two\n")
        assert not daemon.reload()
        assert daemon.factories["toy"]["PORT"].live.idle == 9
        await self.says("config.cfg:3: [toy] IDLE_TIMEOUT = two: ")
        await self.says("nothing changed")

    async def test_what_only_a_restart_can_change_is_named(self) -> None:
        daemon = self.start("[toy]\nPORT = 0\n", toy.SPEC)
        self.config.write_text("[DEFAULT]\nDATA_DIR = x\n[daemon]\nGRACE = 3\n[toy]\nPORT = 7\n")
        assert daemon.reload()
        await self.says("only a restart can change: DATA_DIR, [toy] PORT")
        await self.says("read again: [daemon] GRACE = 3")

    async def test_what_waits_for_a_restart_is_named_until_it_is_taken_back(self) -> None:
        text = f"[toy]\nPORT = 0\n{NO_ADMIN}"
        daemon = self.start(text, toy.SPEC)
        for more, waiting in (
            ("[DEFAULT]\nDATA_DIR = x\n", ["DATA_DIR"]),
            ("[DEFAULT]\nDATA_DIR = x\n[daemon]\nGRACE = 3\n", ["DATA_DIR"]),
            ("", []),
        ):
            self.config.write_text(more + text)
            assert daemon.reload()
            assert daemon.last_reload is not None
            assert daemon.last_reload.restart == waiting

    async def test_what_a_signal_has_read_is_not_read_again_for_having_changed(self) -> None:
        daemon = self.start("[toy]\nPORT = 0\n", toy.SPEC)
        self.config.write_text(f"[toy]\nPORT = 0\nIDLE_TIMEOUT = 5\n{NO_ADMIN}")
        assert daemon.reload()
        await self.sleep(4 * roundhouse.WATCH)
        assert daemon.last_reload is not None
        assert daemon.last_reload.changed == ["[toy] IDLE_TIMEOUT = 5.0"]
        assert sum("read again" in line for line in self.said) == 1

    async def test_a_file_that_may_not_be_read_any_more_keeps_the_settings_and_says_why(
        self,
    ) -> None:
        daemon = self.start("[toy]\nPORT = 0\nIDLE_TIMEOUT = 9\n", toy.SPEC)
        denied = PermissionError(errno.EACCES, "Permission denied")  # whom root became
        with (
            mock.patch.object(Path, "stat", side_effect=denied),
            mock.patch.object(Path, "read_text", side_effect=denied),
        ):
            assert not daemon.reload()
        assert daemon.factories["toy"]["PORT"].live.idle == 9
        await self.says("config.cfg: cannot be read: Permission denied")
        await self.says("nothing changed")

    async def test_a_file_that_is_gone_keeps_the_settings(self) -> None:
        daemon = self.start("[toy]\nPORT = 0\nIDLE_TIMEOUT = 9\n", toy.SPEC)
        self.config.unlink()
        assert not daemon.reload()
        assert daemon.factories["toy"]["PORT"].live.idle == 9
        await self.says("is gone")

    async def test_a_file_that_appears_is_followed(self) -> None:
        daemon = self.start("[toy]\nPORT = 0\n", toy.SPEC)
        self.config.unlink()
        daemon.settings = evolve(daemon.settings, path=None)  # as if started without one
        daemon._seen = (daemon._look(), daemon._look())
        self.config.write_text("[toy]\nPORT = 0\nIDLE_TIMEOUT = 5\n")
        await self.says("[toy] IDLE_TIMEOUT = 5.0")

    async def test_sighup_reloads(self) -> None:
        self.start("[toy]\nPORT = 0\n", toy.SPEC)
        await self.sleep(0)
        os.kill(os.getpid(), signal.SIGHUP)
        await self.says("read again: nothing to change")


class AssemblyTests(RoundhouseCase):
    def test_nothing_to_serve_is_an_error(self) -> None:
        with pytest.raises(ConfigError) as caught:
            self.assemble("[toy]\nENABLED = no\n", toy.SPEC)
        assert "nothing to serve" in caught.value.problems[0]

    async def test_a_single_service_can_be_served_out_of_the_catalogue(self) -> None:
        text = "[toy]\nPORT = 0\n[echo]\nPORT = 0\n"
        daemon = self.assemble(text, toy.SPEC, echo.SPEC, only=("echo",))
        assert list(daemon.factories) == ["echo"]
        daemon.startService()
        await daemon.stopService()

    def test_a_store_that_no_spec_named_says_so(self) -> None:
        with pytest.raises(LookupError) as caught:
            _ = Absent("ledger").append
        assert "name it in Spec.stores" in str(caught.value)

    async def test_two_daemons_cannot_share_a_store(self) -> None:
        daemon = self.start("[ingest]\nPORT = 0\n", ingest.SPEC)
        with pytest.raises(Unusable) as caught:
            Roundhouse.assemble(self.home, self.reactor, (ingest.SPEC,), {})
        assert f"is in use by process {os.getpid()}" in str(caught.value)
        await daemon.stopService()
        again = Roundhouse.assemble(self.home, self.reactor, (ingest.SPEC,), {})
        again.startService()
        await again.stopService()

    def test_a_data_dir_that_cannot_be_made_is_an_error(self) -> None:
        (self.home / "data").write_text("a file")
        with pytest.raises(Unusable) as caught:
            self.assemble("[ingest]\nPORT = 0\n", ingest.SPEC)
        assert "set DATA_DIR to a folder" in str(caught.value)

    def test_bad_settings_ports_and_folders_end_the_loading_with_a_status_each(self) -> None:
        stderr = io.StringIO()
        self.patch(sys, "stderr", stderr)
        self.patch(roundhouse, "CATALOGUE", (toy.SPEC, ingest.SPEC))
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for text, status, wanted in (
                ("[toy]\nPORT = x\n", 78, "config.cfg:2: [toy] PORT = x: "),
                (f"[toy]\nPORT = {port}\n[ingest]\nENABLED=no", 69, "is taken by"),
                ("[DEFAULT]\nDATA_DIR = config.cfg\n", 73, "set DATA_DIR to a folder"),
            ):
                self.config.write_text(text + NO_ADMIN)
                with pytest.raises(SystemExit) as caught:
                    roundhouse.application(self.home, self.reactor, Chosen("test", "it is one"))
                assert caught.value.code == status
                assert wanted in stderr.getvalue()


class ServingTests(RoundhouseCase):
    async def test_a_service_beyond_loopback_is_warned_of(self) -> None:
        self.start("[DEFAULT]\nSERVER_IP = 0.0.0.0\n[toy]\nPORT = 0\n", toy.SPEC)
        await self.says("toy is open beyond this machine: whoever reaches 0.0.0.0:")

    async def test_who_waits_in_the_backlog_gets_the_broadcast(self) -> None:
        daemon = self.start("[chat]\nPORT = 0\n", chat.SPEC)
        ana = await self.connect(daemon, "chat")
        ana.transport.write(b"hola\n")  # type: ignore[union-attr]
        at = ("127.0.0.1", self.port(daemon, "chat"))
        # connected in one breath with the reactor not running: all of them wait in the backlog
        crowd = [socket.create_connection(at, 5) for _ in range(150)]
        await ana.hears(b"hola\n")
        for each in crowd:
            with each:
                assert each.recv(5) == b"hola\n"

    async def test_the_folder_modes_hold_whatever_the_umask(self) -> None:
        os.umask(0o077)
        daemon = self.start("[ingest]\nPORT = 0\n", ingest.SPEC)
        client = await self.connect(daemon, "ingest")
        client.transport.write(b"abc")  # type: ignore[union-attr]
        client.transport.loseWriteConnection()  # type: ignore[union-attr]
        assert (await client.gone).startswith(b"OK 3 ")
        data = self.home / "data"
        modes = {str(p.relative_to(data)): p.stat().st_mode & 0o777 for p in data.rglob("*")}
        modes |= {"data": data.stat().st_mode & 0o777}
        for name, mode in modes.items():
            assert mode == (0o750 if (self.home / name).is_dir() or name == "ingest" else 0o640)
