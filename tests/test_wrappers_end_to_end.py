"""The whole daemon behind TLS and the PROXY protocol: every wire that ends by FIN ends all the
same, for a client of ours and for the tools people have."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
from unittest import SkipTest

from attrs import define, field
from twisted.trial.unittest import SynchronousTestCase

from tests.process import PATIENCE, Twistd
from tests.tls import Authority, TLSPeer

DATA = os.urandom(3_000_000)
FROM = b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 8001\r\n"


@define
class SecureTwistd(Twistd):
    """All services speak TLS; handshake's message port is behind a load balancer, too."""

    reactor: str = "uvloop"
    authority: Authority = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.authority = Authority(self.home)
        self.authority.server("keys.pem")
        super().__attrs_post_init__()

    def configure(self, default: str = "", **sections: str) -> None:
        def listen(usual: int) -> str:
            return f"ssl:{self.ports[usual]}:privateKey=keys.pem:interface=127.0.0.1"

        secured = {
            "ingest": f"LISTEN = {listen(8080)}",
            "relay": f"LISTEN = {listen(5011)}\nRECEIVER_AFTER = 0.3",
            "chat": f"LISTEN = {listen(60060)}",
            "echo": f"LISTEN = {listen(5000)}",
            "handshake": f"CODE_LISTEN = {listen(8000)}\nMESSAGE_LISTEN = haproxy:{listen(8001)}",
        }
        super().configure(default, **(secured | sections))

    def environ(self) -> dict[str, str]:
        return super().environ() | {"ROUNDHOUSE_REACTOR": self.reactor}

    def dial(self, usual: int) -> TLSPeer:
        sock = self.connect(usual)
        if usual == 8001:
            sock.sendall(FROM)
        peer = TLSPeer(sock, self.authority.context())
        return peer.wait(lambda: peer.look().shaken)

    def asks(self, usual: int, data: bytes = b"") -> bytes:
        """Send, say close_notify, read to the end; the other end must say close_notify as well."""
        peer = self.dial(usual)
        if data:
            peer.send(data)
        peer.notify()
        peer.wait(lambda: peer.over)
        peer.sock.close()
        assert (peer.notified, peer.was_reset) == (True, False)
        return bytes(peer.got)


class EndToEndCase(SynchronousTestCase):
    def daemon(self, reactor: str = "uvloop") -> SecureTwistd:
        daemon = SecureTwistd(reactor=reactor)
        self.addCleanup(daemon.discard)
        return daemon


class WireTests(EndToEndCase):
    def test_every_wire_that_ends_by_fin_gives_its_answer_over_tls(self) -> None:
        self.every_wire(self.daemon("uvloop"))

    def test_so_it_does_on_twisteds_own_reactor(self) -> None:
        self.every_wire(self.daemon("epoll"))

    def every_wire(self, daemon: SecureTwistd) -> None:
        daemon.start()
        daemon.says(f"reactor: {daemon.reactor}")
        self.ingest(daemon)
        self.relay(daemon)
        self.chat(daemon)
        self.handshake(daemon)
        assert daemon.asks(5000, "señor".encode()) == "SEÑOR".encode()
        self.stop(daemon)
        assert "Traceback" not in daemon.log

    def ingest(self, daemon: SecureTwistd) -> None:
        digest = hashlib.sha256(DATA).hexdigest()
        assert daemon.asks(8080, DATA) == f"OK {len(DATA)} {digest} 1\n".encode()
        cut = daemon.dial(8080)
        cut.send(b"half of it")
        cut.ends()
        cut.wait(lambda: cut.over)
        assert not cut.got
        cut.sock.close()
        daemon.says("ingest 127.0.0.1:", "TLS broke off (FIN without close_notify)")
        daemon.says("ingest 127.0.0.1:", "reset (10 bytes had been read)")

    def relay(self, daemon: SecureTwistd) -> None:
        assert daemon.asks(5011) == b""
        cut = daemon.dial(5011)
        cut.send(b"half of it")
        cut.ends()
        cut.wait(lambda: cut.over)
        cut.sock.close()
        daemon.says("relay 127.0.0.1:", "reset (its upload was dropped)")
        assert daemon.asks(5011, DATA) == b""
        assert daemon.asks(5011) == DATA  # one that had half-closed before
        assert daemon.asks(5011, b"another") == b""
        receiver = daemon.dial(5011)  # one that is silent, and half-closes after the file
        receiver.wait(lambda: receiver.over)
        assert bytes(receiver.got) == b"another"
        receiver.notify()
        receiver.sock.close()
        assert daemon.asks(5011, b"the last") == b""
        hasty = daemon.dial(5011)  # one that closes without close_notify of its own
        hasty.wait(lambda: hasty.over)
        assert bytes(hasty.got) == b"the last"
        hasty.sock.close()
        assert daemon.asks(5011) == b""

    def chat(self, daemon: SecureTwistd) -> None:
        other = daemon.dial(60060)
        other.send(b"here\n")
        other.wait(lambda: other.heard == b"here\n")
        assert daemon.asks(60060, b"hola\na todos") == b"hola\na todos\n"
        other.wait(lambda: other.heard == b"here\nhola\na todos\n")
        other.sock.close()

    def handshake(self, daemon: SecureTwistd) -> None:
        code = daemon.asks(8000, b"ana").decode()
        assert len(code) in range(32, 37)
        assert daemon.asks(8001, f"ana {code} hola".encode()) == b"OK\n"
        keep = f"KEEP\nana {code} one\nana {code} two".encode()
        assert daemon.asks(8001, keep) == b"OK 2\nOK 3\n"
        with sqlite3.connect(daemon.data / "roundhouse.db") as connection:
            peers = connection.execute("SELECT DISTINCT peer FROM messages").fetchall()
        connection.close()
        assert [str(peer).partition(":")[0] for (peer,) in peers] == ["192.0.2.7"]

    def stop(self, daemon: SecureTwistd) -> None:
        """With somebody at the door, and somebody inside."""
        inside = daemon.dial(5000)
        with daemon.connect(5000):
            daemon.send(signal.SIGTERM)
            inside.wait(lambda: inside.over)
            assert (inside.notified, inside.was_reset) == (True, False)
            inside.sock.close()
            assert daemon.process is not None
            assert daemon.process.wait(PATIENCE) == 0

    def test_a_certificate_that_cannot_be_used_stops_the_start_in_a_line(self) -> None:
        daemon = self.daemon()
        (daemon.home / "keys.pem").write_text("-----BEGIN CERTIFICATE-----\n")
        daemon.process = daemon.spawn("-n", "--pidfile=")
        assert daemon.process.wait(PATIENCE) == 69
        lines = daemon.log.splitlines()
        assert len(lines) == 6
        for line in lines:
            assert f"{daemon.home}/keys.pem: holds no private key in PEM form" in line
            assert "config.cfg:" in line


class ToolTests(EndToEndCase):
    def run_tool(self, *command: str, given: bytes = b"") -> bytes:
        if shutil.which(command[0]) is None:
            raise SkipTest(f"no {command[0]} here")
        ran = subprocess.run(
            command, input=given, capture_output=True, timeout=PATIENCE, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def test_curl_and_openssl_are_served(self) -> None:
        daemon = self.daemon()
        daemon.start()
        root = str(daemon.authority.root)
        curl = ("curl", "-sS", "--fail", "--noproxy", "*", "--cacert", root)
        codes, messages = (f"https://localhost:{daemon.ports[n]}/" for n in (8000, 8001))
        to = ("--resolve", f"localhost:{daemon.ports[8000]}:127.0.0.1")
        code = self.run_tool(*curl, *to, "-d", "client_uuid=ana", codes).decode()
        message = ("-d", f"client_uuid=ana&server_uuid={code}&message=hola")
        to = ("--resolve", f"localhost:{daemon.ports[8001]}:127.0.0.1")
        self.run_tool(*curl, *to, "--haproxy-protocol", *message, messages)
        where = f"127.0.0.1:{daemon.ports[8080]}"
        client = ("openssl", "s_client", "-quiet", "-CAfile", root, "-connect", where)
        for version in ("-tls1_2", "-tls1_3"):
            # at the end of its input s_client says close_notify and leaves at once
            self.run_tool(*client, "-no_ign_eof", version, given=version.encode() * 1000)
        parts = [*daemon.data.glob("ingest/*_parte_*.bin")]
        assert sorted(part.read_bytes()[:7] for part in parts) == [b"-tls1_2", b"-tls1_3"]
        assert daemon.stop(signal.SIGTERM) == 0
        assert "Traceback" not in daemon.log
