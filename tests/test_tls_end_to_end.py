"""TLS on every port of a daemon: who is refused, and certificates that change while lines go."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import warnings
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from unittest import SkipTest

import pytest
import trustme
from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from daemon.doctor import Finding, examine
from tests.process import HOME, PATIENCE, PORTS, Twistd, everything
from tests.screen import Screen, absent
from tests.tls import Authority

STEADY = 8  # connections that stay
HTTP = {5012, 8088}


@define
class SecureHouse(Twistd):
    """Every port of every service speaks TLS. client_ca: who may vouch for clients, if any."""

    client_ca: str = ""
    authority: Authority = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.authority = Authority(self.home)
        self.renew()
        super().__attrs_post_init__()

    def renew(self) -> None:
        """A fresh certificate, the key first, as tools write them: not both at once."""
        leaf = self.authority.ca.issue_cert("localhost", "127.0.0.1")
        self.authority.write("key.pem", leaf.private_key_pem)
        time.sleep(0.05)
        self.authority.write("cert.pem", *leaf.cert_chain_pems)

    def configure(self, default: str = "", **sections: str) -> None:
        for (section, key), usual in PORTS.items():
            listen = f"{key.removesuffix('PORT')}LISTEN = {self.endpoint(usual)}"
            sections[section] = f"{listen}\n{sections.get(section, '')}"
        super().configure(default, **sections)

    def endpoint(self, usual: int) -> str:
        files = "privateKey=key.pem:certKey=cert.pem"
        asks = f":clientCA={self.client_ca}" if self.client_ca else ""
        return f"ssl:{self.ports[usual]}:{files}{asks}:interface=127.0.0.1"

    def speak(self, usual: int, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Handshake with the service at the usual port."""
        sock = self.connect(usual)
        try:
            return context.wrap_socket(sock, server_hostname="localhost")
        except BaseException:
            sock.close()
            raise


class HouseCase(SynchronousTestCase):
    def start(self, client_ca: str = "") -> SecureHouse:
        self.daemon = SecureHouse(client_ca=client_ca)
        self.addCleanup(self.daemon.discard)
        self.daemon.start()
        return self.daemon

    def stops(self) -> None:
        assert self.daemon.stop() == 0
        assert "Traceback" not in self.daemon.log


class RefusalTests(HouseCase):
    def test_tls_1_1_is_refused_at_every_port_and_1_2_and_1_3_are_not(self) -> None:
        daemon = self.start()
        for usual in PORTS.values():
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
                old = daemon.authority.context()
                old.set_ciphers("ALL:@SECLEVEL=0")
                with warnings.catch_warnings(action="ignore"):
                    old.minimum_version = old.maximum_version = version
                with pytest.raises(ssl.SSLError) as refused:
                    daemon.speak(usual, old)
                assert refused.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION", usual
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                good = daemon.authority.context()
                good.minimum_version = good.maximum_version = version
                with daemon.speak(usual, good) as sock:
                    assert sock.version() == version.name.replace("_", ".")
        daemon.says("echo 127.0.0.1:", "refused (TLS: unsupported protocol)")
        self.stops()

    def test_openssls_own_client_is_refused_with_tls_1_1(self) -> None:
        if shutil.which("openssl") is None:
            raise SkipTest("no openssl here")
        daemon = self.start()
        where = f"127.0.0.1:{daemon.ports[5000]}"
        command = ("openssl", "s_client", "-connect", where, "-cipher", "ALL:@SECLEVEL=0")
        for version, status in {"-tls1_1": 1, "-tls1_2": 0, "-tls1_3": 0}.items():
            ran = subprocess.run(
                [*command, version, "-verify_return_error", "-CAfile", daemon.authority.root],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
            )
            assert ran.returncode == status, (version, ran.stderr)
            assert (b"alert protocol version" in ran.stderr) is bool(status)

    def test_only_clients_that_our_ca_vouches_for_are_served_at_every_port(self) -> None:
        daemon = self.start(client_ca="root.pem")
        ours = daemon.authority.ca.issue_cert("ana@example.org")
        foreign = trustme.CA().issue_cert("ana@example.org")
        for usual in PORTS.values():
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                for client in (None, foreign):
                    self.refuses(usual, version, client)
            with daemon.speak(usual, daemon.authority.context(ours)) as sock:
                if usual == 5000:
                    sock.sendall(b"hola")
                    assert sock.recv(10) == b"HOLA"
                elif usual in HTTP:
                    sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                    assert everything(sock).startswith(b"HTTP/1.1 ")
        daemon.says("ingest 127.0.0.1:", "refused (TLS: peer did not return a certificate)")
        daemon.says("ingest 127.0.0.1:", "refused (TLS: its certificate: ")
        self.stops()

    def refuses(self, usual: int, version: ssl.TLSVersion, client: trustme.LeafCert | None) -> None:
        context = self.daemon.authority.context(client)
        context.minimum_version = context.maximum_version = version
        with pytest.raises(ssl.SSLError) as refused, self.daemon.speak(usual, context) as sock:
            sock.recv(1)  # with TLS 1.3 the client is done before the server has looked
        assert "ALERT" in (refused.value.reason or ""), refused.value

    def test_what_speaks_no_tls_hears_why(self) -> None:
        daemon = self.start()
        for usual in PORTS.values():
            assert daemon.ask(usual, b"hola\n") == b"ERR this port speaks TLS\n"
            http = daemon.ask(usual, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert http.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
        self.stops()


@define(eq=False)
class Talker:
    """Sends lines to echo, one after the other, until `enough`; each must come back."""

    daemon: SecureHouse
    context: ssl.SSLContext
    enough: Event
    anew: bool  # a connection for each line
    lines: int = 0
    seen: set[bytes | None] = field(factory=set)
    fault: BaseException | None = None
    thread: Thread = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.thread = Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.enough.is_set():
                with self.daemon.speak(5000, self.context) as sock:
                    self.seen.add(sock.getpeercert(True))
                    self._say(sock)
                    while not (self.anew or self.enough.is_set()):
                        self._say(sock)
                    sock.unwrap().close()
        except BaseException as fault:
            self.fault = fault

    def _say(self, sock: ssl.SSLSocket) -> None:
        sock.sendall(b"line %d\n" % self.lines)
        assert sock.recv(100) == b"LINE %d\n" % self.lines
        self.lines += 1
        time.sleep(0.002)


class ReloadTests(HouseCase):
    def test_certificates_change_under_load_and_nobody_is_dropped(self) -> None:
        daemon, enough = self.start(), Event()
        context = daemon.authority.context()
        staying = [Talker(daemon, context, enough, anew=False) for _ in range(STEADY)]
        coming = [Talker(daemon, context, enough, anew=True) for _ in range(2)]
        shown = [self.shown(context)]
        for says in (signal.SIGHUP, None, signal.SIGHUP):
            self.more(staying + coming)
            daemon.renew()
            if says is not None:
                daemon.send(says)
            shown.append(self.shown(context))
            self.more(staying + coming)
        enough.set()
        for talker in staying + coming:
            talker.thread.join(PATIENCE)
            assert talker.fault is None, repr(talker.fault)
        assert len(set(shown)) == 4
        assert all(len(talker.seen) == 1 for talker in staying)  # and so never came anew
        assert all(talker.seen >= set(shown) for talker in coming)
        assert daemon.log.count("cert.pem read again") >= 3
        self.stops()

    def shown(self, context: ssl.SSLContext) -> bytes | None:
        with self.daemon.speak(5000, context) as sock:
            return sock.getpeercert(True)

    def more(self, talkers: list[Talker]) -> None:
        """Wait until each has said five lines more."""
        wanted = [talker.lines + 5 for talker in talkers]
        until = time.monotonic() + PATIENCE
        while any(t.lines < w for t, w in zip(talkers, wanted, strict=True)):
            assert time.monotonic() < until, [(t.lines, t.fault) for t in talkers]
            time.sleep(0.01)

    def test_every_port_shows_the_new_certificate_also_to_who_speaks_http(self) -> None:
        daemon = self.start()
        context = daemon.authority.context()

        def shown() -> set[bytes | None]:
            with ExitStack() as peers:
                socks = [peers.enter_context(daemon.speak(n, context)) for n in PORTS.values()]
                return {sock.getpeercert(True) for sock in socks}

        before = shown()
        daemon.renew()
        after = shown()
        assert len(before) == len(after) == 1
        assert not before & after
        self.stops()

    def test_a_certificate_that_cannot_be_read_any_more_costs_no_connection(self) -> None:
        daemon = self.start()
        context = daemon.authority.context()
        (daemon.home / "key.pem").unlink()
        daemon.send(signal.SIGHUP)
        with daemon.speak(5000, context) as sock:
            sock.sendall(b"hola")
            assert sock.recv(10) == b"HOLA"
        daemon.says("echo: the certificate in force stays: ", "key.pem: cannot be read: No such")
        self.stops()


class DoctorTests(SynchronousTestCase):
    """What the doctor says of certificates, before a daemon starts."""

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.authority = Authority(Path(folder.name).resolve())
        self.home = self.authority.folder

    def found(self, *listens: str) -> list[Finding]:
        config = self.home / "config.cfg"
        lines = "".join(f"    {listen}\n" for listen in listens)
        config.write_text(f"[DEFAULT]\nDATA_DIR = {self.home}\n[echo]\nLISTEN =\n{lines}")
        return [finding for finding in examine(config) if finding.about == "certificate"]

    def issue(self, left: timedelta) -> datetime:
        until = datetime.now(UTC) + left
        cert = self.authority.ca.issue_cert("localhost", not_after=until)
        self.authority.write("server.pem", cert.private_key_and_cert_chain_pem)
        return until

    def test_a_certificate_is_told_with_its_end_once(self) -> None:
        until = self.issue(timedelta(days=100))
        asks = "ssl:7001:interface=127.0.0.1:clientCA=root.pem"
        for listens, times in (
            (("ssl:7000:interface=127.0.0.1", "haproxy:tls:7001:interface=127.0.0.1"), 1),
            (("ssl:7000:interface=127.0.0.1", asks), 2),
            (("tcp:7000:interface=127.0.0.1",), 0),
        ):
            text = f"{self.home}/server.pem: until {until:%Y-%m-%d}"
            assert self.found(*listens) == [Finding("ok", "certificate", text)] * times

    def test_one_that_ends_soon_is_a_warning_and_one_that_ended_is_bad(self) -> None:
        self.issue(timedelta(days=13))
        (soon,) = self.found("ssl:7000:interface=127.0.0.1")
        assert (soon.level, soon.remedy) == ("warning", "renew it")
        self.issue(timedelta(days=-1))
        (ended,) = self.found("ssl:7000:interface=127.0.0.1")
        assert ended == Finding(
            "bad",
            "certificate",
            f"[echo] LISTEN: {self.home}/server.pem: its certificate: certificate has expired",
        )

    def test_files_that_cannot_be_used_are_bad(self) -> None:
        (gone,) = self.found("ssl:7000:interface=127.0.0.1")
        assert (gone.level, gone.text) == (
            "bad",
            f"[echo] LISTEN: {self.home}/server.pem: cannot be read: No such file or directory",
        )
        self.issue(timedelta(days=100))
        (wrong,) = self.found("ssl:7000:interface=127.0.0.1:clientCert=x.pem")
        assert "it takes no clientCert, only privateKey, " in wrong.text


class PathTests(HouseCase):
    def test_a_key_that_only_root_may_read_is_told_while_there_is_time(self) -> None:
        if os.geteuid():
            raise SkipTest("only root may become another user")
        self.daemon = daemon = SecureHouse()
        self.addCleanup(daemon.discard)
        daemon.home.chmod(0o755)
        (daemon.home / "key.pem").chmod(0o600)
        daemon.configure(daemon="USER = nobody")
        daemon.config.chmod(0o644)
        daemon.start()
        daemon.says("echo: the certificate in force stays: ", "key.pem: cannot be read: Permission")
        with daemon.speak(5000, daemon.authority.context()) as sock:
            sock.sendall(b"hola")
            assert sock.recv(10) == b"HOLA"
        self.stops()

    def test_certbots_links_are_followed_when_they_change(self) -> None:
        """live/NAME/*.pem are links into archive/NAME; a renewal turns them."""
        daemon = SecureHouse()
        self.addCleanup(daemon.discard)
        self.daemon = daemon
        live, archive = daemon.home / "live", daemon.home / "archive"
        live.mkdir()
        archive.mkdir()

        def renewal(number: int) -> None:
            daemon.renew()
            for name, made in {"privkey": "key.pem", "fullchain": "cert.pem"}.items():
                target = archive / f"{name}{number}.pem"
                shutil.copy(daemon.home / made, target)
                link = live / f"{name}.pem.new"
                link.symlink_to(Path("..", "archive", target.name))
                link.rename(live / f"{name}.pem")

        renewal(1)
        listen = f"ssl:{daemon.ports[5000]}:privateKey=live/privkey.pem:certKey=live/fullchain.pem"
        Twistd.configure(daemon, echo=f"LISTEN = {listen}")
        daemon.start()
        context, shown = daemon.authority.context(), []
        for number in (2, 3):
            with daemon.speak(5000, context) as sock:
                shown.append(sock.getpeercert(True))
            renewal(number)
        with daemon.speak(5000, context) as sock:
            shown.append(sock.getpeercert(True))
        assert len({*shown}) == 3
        self.stops()


class ToolTests(HouseCase):
    """What people have, as the page on TLS shows it."""

    def run_tool(self, *command: object, given: bytes = b"", works: bool = True) -> bytes:
        ran = subprocess.run(
            [*map(str, command)], input=given, capture_output=True, timeout=PATIENCE, check=False
        )
        assert (ran.returncode == 0) is works, ran
        return ran.stdout

    def needs(self, *programs: str) -> None:
        if why := absent(*programs):
            raise SkipTest(why)

    def test_socat_sends_a_stream_and_gets_its_receipt(self) -> None:
        self.needs("socat")
        daemon = self.start()
        to = f"OPENSSL:127.0.0.1:{daemon.ports[8080]},cafile={daemon.authority.root}"
        assert self.run_tool("socat", "-t", "9", "-", to, given=b"abc").startswith(b"OK 3 ")
        assert "broke off" not in daemon.log

    def test_ncat_ends_without_close_notify_and_so_it_sends_no_whole_stream(self) -> None:
        self.needs("ncat")
        daemon = self.start()
        trust = ("--ssl-verify", "--ssl-trustfile", daemon.authority.root, "localhost")
        self.run_tool("ncat", *trust, daemon.ports[8080], given=b"abc", works=False)
        daemon.says("TLS broke off (FIN without close_notify)")
        word = b"hola\nDESCONEXION\n"
        assert self.run_tool("ncat", *trust, daemon.ports[5000], given=word) == b"HOLA\n"

    def test_curl_puts_and_gets_with_a_certificate_of_its_own(self) -> None:
        self.needs("curl")
        daemon = self.start(client_ca="root.pem")
        shown = daemon.authority.client("ana.pem")
        base = ("curl", "-sS", "--fail", "--noproxy", "*", "--cacert", daemon.authority.root)
        url = f"https://127.0.0.1:{daemon.ports[5012]}/photos"
        sent = daemon.home / "sent"
        sent.write_bytes(bytes(3_000_000))
        self.run_tool(*base, "--cert", shown, "-T", sent, f"{url}/x")
        assert self.run_tool(*base, "--cert", shown, f"{url}/next") == bytes(3_000_000)
        self.run_tool(*base, f"{url}/next", works=False)

    def joins(self, command: list[str], *first: str) -> None:
        """An IRC client that connects, if need be by `first`, talks with our own on a terminal."""
        self.needs(command[0], "tmux")
        ana = Screen(command)
        self.addCleanup(ana.close)
        ana.joins(*first)
        environ = {
            "ROUNDHOUSE_CONFIG": str(self.daemon.config),
            "ROUNDHOUSE_CAFILE": str(self.daemon.authority.root),
        }
        ours = [sys.executable, "-m", "client", "chat", "--nick", "zoe"]
        zoe = Screen(ours, environ | {"PYTHONPATH": str(HOME)})
        self.addCleanup(zoe.close)
        zoe.shows("zoe>")
        zoe.types("hola, ñandú")
        zoe.shows("zoe:", "hola, ñandú")
        ana.shows("zoe", "hola, ñandú")
        ana.types("¿qué tal?")
        zoe.shows("ana:", "¿qué tal?")
        zoe.types("/quit")
        ana.types("/quit")

    def test_irssi_talks_with_the_terminal_client(self) -> None:
        daemon = self.start()
        trust = f"-tls_verify -tls_cafile {daemon.authority.root}"
        hasty = "/set cmds_max_at_once 100"  # else it sends a line every two seconds
        connect = f"/connect {trust} localhost {daemon.ports[6667]}"
        self.joins(["irssi", "-!", "-n", "ana"], hasty, connect)

    def test_weechat_talks_with_the_terminal_client(self) -> None:
        daemon = self.start()
        adding = f"/server add rh localhost/{daemon.ports[6667]} -tls -nicks=ana"
        if weechat_says_ssl():
            adding = adding.replace("-tls", "-ssl")
        lines = [
            f"/set weechat.network.gnutls_ca_user {daemon.authority.root}",
            "/set irc.server_default.anti_flood_prio_high 0",
            adding,
            "/connect rh",
        ]
        self.joins(["weechat", "-a", *chain.from_iterable(("-r", line) for line in lines)])


def weechat_says_ssl() -> bool:
    """Before 4.0 it called TLS so."""
    ran = subprocess.run(["weechat", "--version"], capture_output=True, text=True, check=False)
    return int(ran.stdout.split(".")[0] or 0) < 4
