"""The client over TLS: every command with a real daemon, and what it says when trust is missing."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import time
import warnings
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from threading import Event
from typing import cast
from unittest.mock import patch

import pytest
import trustme
from prompt_toolkit.application import create_app_session
from prompt_toolkit.data_structures import Size
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output.vt100 import Vt100_Output

from client import chat_screen, secured
from client.__main__ import COMMANDS
from client.chat_screen import Screen
from client.defaults import Misread, address
from client.net import Address, Failed, Reset, Wire, dial
from client.secured import Trust
from tests.cutter import Cutter
from tests.test_client import (
    PATIENCE,
    ClientCase,
    Ended,
    Script,
    Server,
    after,
    everything,
    nobody,
    reset,
)
from tests.test_client_chat import ESCAPES
from tests.test_tls_end_to_end import SecureHouse
from tests.tls import Authority

HTTP = 5012
SIZE = 6_000_000
CUT = 3_000_000
LONG = 12_000_000  # bytes that no buffers of the kernel's hold
SINCE, UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)
PLAINLY = "speaks TLS, and was spoken to without: --tls"


class DaemonCase(ClientCase):
    """With a daemon that speaks TLS on every port, to clients of our CA alone."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon = SecureHouse(client_ca="root.pem")
        self.addCleanup(self.daemon.discard)
        self.daemon.configure(relay="RECEIVER_AFTER = 0.1\nMAX_DELIVERIES = 1\nLEASE = 1")
        self.daemon.start()
        self.env["ROUNDHOUSE_CONFIG"] = str(self.daemon.config)
        self.root = self.daemon.authority.root
        self.cert = self.daemon.authority.client("ana.pem")
        self.ours = ("--tls", "--cafile", self.root, "--cert", self.cert)

    def done(self, *args: object, typed: bytes | None = None) -> Ended:
        ended = self.run_client(*args, *self.ours, typed=typed)
        assert ended.status == 0, ended
        return ended


class EveryCommandTests(DaemonCase):
    COVERED = (
        {"echo", "selftest", "status", "chat"},
        {"ingest", "put", "get", "relay"},
        {"put", "get", "ls", "rm"},
        {"requeue"},
        {"register", "say", "tail"},
    )

    def setUp(self) -> None:
        super().setUp()
        self.ran: set[str] = set()

    def whole(self, part: int) -> None:
        """The part's commands, and no others, were run; and the daemon saw nothing break."""
        assert self.ran == self.COVERED[part]
        assert set().union(*self.COVERED) == {*COMMANDS} - {"completion"}  # it calls nobody
        assert self.daemon.stop() == 0
        assert "Traceback" not in self.daemon.log
        assert "TLS broke off" not in self.daemon.log

    def does(self, *args: object, typed: bytes | None = None) -> Ended:
        self.ran.add(str(args[0]))
        return self.done(*args, typed=typed)

    def test_each_service_answers_its_check_and_its_status(self) -> None:
        assert self.does("echo", "hola").text == "HOLA\n"
        assert self.does("echo", typed=b"uno\ndos").text == "UNO\nDOS\n"
        assert self.does("selftest", "all").text.count("ok ") == 12
        assert self.does("status", "--json").facts["ready"] is True
        assert self.does("chat", typed=b"one\ntwo").text == "one\ntwo\n"
        self.whole(0)

    def test_streams_and_raw_files_go_in_and_out(self) -> None:
        data = os.urandom(SIZE)
        stored = self.does("ingest", "--json", self.file(data)).facts
        assert (stored["bytes"], stored["verified"]) == (SIZE, True)
        many = self.folder / "many"
        many.mkdir()
        for number in range(8):
            (many / str(number)).write_bytes(b"x" * number)
        assert self.does("ingest", many).text.count("the server's too") == 7
        self.does("put", "--raw", self.file(data))
        assert self.does("get", "--raw").out == data
        self.does("relay", "--ask", typed=b"\n\n%s\nS\n" % self.file(data, "asked").encode())
        self.does("relay", "--ask", typed=b"\n\n%s\nR\n" % str(self.folder / "got").encode())
        assert (self.folder / "got").read_bytes() == data
        self.whole(1)

    def test_boxes_are_filled_listed_and_emptied(self) -> None:
        data = os.urandom(SIZE)
        kept = self.does("put", "--to", "photos", self.file(data, "a.bin"))
        url = f"https://127.0.0.1:{self.daemon.ports[HTTP]}/photos/next"
        assert f"curl -OJ {url} --cacert {self.root}" in kept.text
        self.does("put", "--to", "photos", "--name", "piped", "-", typed=data)
        first, second = self.does("ls", "--json", "photos").facts["parcels"]
        assert self.does("get", "--from", "photos", first["id"]).out == data
        self.does("rm", "--from", "photos", second["id"])
        assert self.does("ls").text == "No files wait.\n"
        self.whole(2)

    def test_a_parked_file_is_requeued(self) -> None:
        self.done("put", self.file(bytes(LONG)))
        stopped = self.start("get", "-o", "-", *self.ours)
        assert stopped.stdout is not None
        stopped.stdout.read(1000)
        stopped.kill()
        until = time.monotonic() + PATIENCE
        while True:
            (parcel,) = self.done("ls", "--json", "queue").facts["parcels"]
            if parcel["state"] == "parked":
                break
            assert time.monotonic() < until, parcel
            time.sleep(0.05)
        self.does("requeue", parcel["id"])
        assert self.done("get").out == bytes(LONG)
        self.whole(3)

    def test_messages_are_logged_and_read_back(self) -> None:
        self.does("register", "ana")
        self.does("say", "ana", "hola", "todos")
        lines = b"".join(b"line %d\n" % number for number in range(5000))
        assert self.does("say", "ana", "--stdin", typed=lines).text == "Stored 5,000 messages\n"
        tailed = self.does("tail", "ana").text.splitlines()
        assert [line.split("  ")[2] for line in tailed[:2]] == ["hola todos", "line 0"]
        assert len(tailed) == 5001
        self.whole(4)

    def test_tail_follows_what_is_logged_meanwhile(self) -> None:
        self.done("register", "ana")
        follower = self.start("tail", "ana", "-f", *self.ours)
        assert follower.stdout is not None
        for word in ("one", "two"):
            self.done("say", "ana", word)
            assert follower.stdout.readline().endswith(f"  {word}\n".encode())
        follower.send_signal(signal.SIGINT)
        assert self.ended(follower).status == 130

    def test_lines_of_the_chat_go_to_who_listens(self) -> None:
        listener = self.start("chat", *self.ours)
        assert listener.stdin is not None
        assert listener.stdout is not None
        listener.stdin.write(b"here\n")
        listener.stdin.flush()
        assert listener.stdout.readline() == b"here\n"
        self.done("chat", "--nick", "ana", typed=b"hola\n")
        assert listener.stdout.readline() == b"ana: hola\n"
        assert self.ended(listener).status == 0


class CutTests(DaemonCase):
    def cut(self, upwards: bool) -> Cutter:
        proxy = Cutter(self.daemon.ports[HTTP], CUT, upwards)
        self.addCleanup(proxy.close)
        return proxy

    def test_an_upload_goes_on_where_it_was_cut(self) -> None:
        data, proxy = os.urandom(SIZE), self.cut(upwards=True)
        ended = self.done("put", "--port", proxy.port, self.file(data))
        assert "trying again" in ended.err
        assert proxy.up < 2 * SIZE
        assert self.done("get").out == data

    def test_a_download_goes_on_where_it_was_cut(self) -> None:
        data, proxy = os.urandom(SIZE), self.cut(upwards=False)
        self.done("put", self.file(data))
        got = self.folder / "got"
        ended = self.done("get", "-o", got, "--port", proxy.port)
        assert "trying again" in ended.err
        assert proxy.down < SIZE + CUT
        assert got.read_bytes() == data

    def test_a_stream_to_ingest_that_is_cut_is_no_whole_one(self) -> None:
        proxy = Cutter(self.daemon.ports[8080], CUT)
        self.addCleanup(proxy.close)
        sent = self.file(os.urandom(SIZE))
        ended = self.run_client("ingest", *self.ours, "--port", proxy.port, sent)
        assert ended.status == 1
        assert "broke the connection" in ended.err
        self.daemon.says("ingest 127.0.0.1:", "reset (")

    def test_a_client_that_is_stopped_in_the_middle_leaves_no_whole_stream(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            process = self.start("ingest", "-", *self.ours)
            assert process.stdin is not None
            process.stdin.write(bytes(200_000))
            process.stdin.flush()
            parts = self.daemon.data / "ingest"
            until = time.monotonic() + PATIENCE
            while not sum(part.stat().st_size for part in parts.glob("*.partial")):
                assert time.monotonic() < until
                time.sleep(0.01)
            process.send_signal(number)
            self.ended(process)
            self.daemon.says("ingest 127.0.0.1:", "reset (")
            while [*parts.glob("*.partial")]:
                assert time.monotonic() < until
                time.sleep(0.01)
        assert not self.daemon.log.count("whole")


class ServerCase(ClientCase):
    """With servers that are scripts, and an authority that vouches for some of them."""

    def setUp(self) -> None:
        super().setUp()
        self.authority = Authority(self.folder)
        self.root = self.authority.root
        self.ours: tuple[object, ...] = ("--cafile", self.root)

    def context(
        self,
        *hosts: str,
        ca: trustme.CA | None = None,
        since: datetime = SINCE,
        until: datetime = UNTIL,
    ) -> ssl.SSLContext:
        """A server's, whose certificate `ca` issued (ours) to `hosts` (127.0.0.1)."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        issuer, named = ca or self.authority.ca, hosts or ("127.0.0.1",)
        issuer.issue_cert(*named, not_before=since, not_after=until).configure_cert(context)
        return context

    def secure(self, *scripts: Script, context: ssl.SSLContext | None = None) -> Server:
        """Each script with a peer that speaks TLS, and may fail to."""
        context = context or self.context()

        def secured(script: Script) -> Script:
            def play(peer: socket.socket) -> object:
                try:
                    with context.wrap_socket(
                        peer, server_side=True, suppress_ragged_eofs=False
                    ) as tls:
                        return script(tls)
                except (ssl.SSLError, ConnectionError) as error:
                    return error

            return play

        return Server(tuple(map(secured, scripts)))

    def fails(self, server: Server, *args: object, typed: bytes | None = None) -> str:
        """The one line a command ends with."""
        ended = self.call(server, *args, *self.ours, typed=typed)
        server.over()
        assert (ended.status, ended.out) == (1, b""), ended
        assert ended.err.count("\n") == 1
        return ended.err.removeprefix("Error: ").rstrip().replace(f"127.0.0.1:{server.port}", "IT")


def unwrapped(script: Script) -> Script:
    """A script that ends with close_notify."""

    def play(peer: socket.socket) -> object:
        assert isinstance(peer, ssl.SSLSocket)
        said = script(peer)
        peer.unwrap()
        return said

    return play


def answering(answer: bytes, asked: bytes = b"") -> Script:
    """A server that answers what ends in `asked`."""

    def script(peer: socket.socket) -> bytes:
        heard = peer.recv(1 << 16)
        while not heard.endswith(asked):
            heard += peer.recv(1 << 16)
        peer.sendall(answer)
        return heard

    return script


class TrustTests(ServerCase):
    """What is said where there is no trust; none of it is sent before there is."""

    def test_a_server_that_nobody_we_know_vouches_for(self) -> None:
        server = self.secure(everything, context=self.context(ca=trustme.CA()))
        told = self.fails(server, "echo", "secret")
        assert told == (
            f"IT is not trusted: its certificate was not issued by {self.root}: --cafile FILE of "
            "who did"
        )
        assert b"secret" not in repr(server.said).encode()

    def test_a_server_that_this_system_does_not_know(self) -> None:
        self.ours = ("--tls",)
        told = self.fails(self.secure(everything), "echo", "x")
        assert "was not issued by anybody this system trusts: --cafile FILE" in told

    def test_a_certificate_with_another_name_is_told_with_the_names_it_has(self) -> None:
        context = self.context("chat.example.org", "10.0.0.5")
        for name in ((), ("--servername", "other.example.org")):
            server = self.secure(everything, everything, context=context)
            called = name[1] if name else "127.0.0.1"
            assert self.fails(server, "echo", "x", *name) == (
                "IT is not trusted: its certificate is for chat.example.org, 10.0.0.5, "
                f"not for {called}: --servername NAME"
            )
        server = self.secure(unwrapped(answering(b"X\n")), context=context)
        ended = self.call(server, "echo", "x", *self.ours, "--servername", "chat.example.org")
        assert ended.text == "X\n"

    def test_a_name_that_cannot_be_looked_at_again_is_told_as_another(self) -> None:
        server = self.secure(everything, context=self.context("chat.example.org"))
        with patch(
            "client.secured.socket.create_connection", side_effect=[dialed(server), OSError]
        ):
            assert "its certificate is for another name, not for" in self.fails(server, "echo", "x")

    def test_a_certificate_whose_time_is_over_or_has_not_come(self) -> None:
        now, day = datetime.now(UTC), timedelta(days=1)
        for since, until, words in (
            (SINCE, now - day, "has expired"),
            (now + day, UNTIL, "is not valid yet"),
        ):
            server = self.secure(everything, context=self.context(since=since, until=until))
            told = self.fails(server, "echo", "x")
            assert told == f"IT is not trusted: its certificate {words}, or this clock is wrong"

    def test_any_other_fault_of_a_certificate_is_told_in_openssls_words(self) -> None:
        with patch.object(secured, "UNTRUSTED", set()):
            stranger = self.secure(everything, context=self.context(ca=trustme.CA()))
            told = self.fails(stranger, "echo", "x")
        assert told.startswith("IT is not trusted: its certificate: unable to get local issuer")

    def test_a_server_of_tls_1_1_is_none(self) -> None:
        context = self.context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        told = self.fails(self.secure(everything, context=context), "echo", "x")
        assert told.startswith("IT refused TLS: ") or "does not speak TLS 1.2 or 1.3" in told

    def test_a_server_without_tls(self) -> None:
        for answer in (b"ERR Invalid message\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 99):
            told = self.fails(Server((answering(answer),)), "echo", "x")
            assert told.startswith("IT does not speak TLS 1.2 or 1.3: --no-tls? (")

    def test_a_server_without_tls_that_says_nothing_or_leaves(self) -> None:
        def leaves(peer: socket.socket) -> None:
            peer.recv(1 << 16)

        told = self.fails(Server((leaves,)), "echo", "x")
        assert told == "IT closed in the middle of TLS's handshake: does it speak TLS?"
        told = self.fails(Server((after(answering(b""), reset),)), "echo", "x")
        assert "IT broke off TLS's handshake: Connection reset by peer: does it speak" in told
        server = Server((everything,))
        told = self.fails(server, "echo", "x", "--timeout", 0.2)
        assert told == "IT did not answer TLS's handshake: does it speak TLS?"

    def test_what_a_server_without_tls_heard_does_not_look_like_a_whole_stream(self) -> None:
        server = Server((everything,))
        self.fails(server, "put", "--raw", self.file(b"x"), "--timeout", 0.2)
        assert server.said[0].endswith(b"RESET")

    def test_a_server_that_wants_another_certificate_than_it_is_shown(self) -> None:
        foreign = trustme.CA().issue_cert("ana@example.org")
        shown = self.authority.write("foreign.pem", foreign.private_key_and_cert_chain_pem)
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = self.context()
            context.maximum_version = version
            context.verify_mode = ssl.CERT_REQUIRED
            self.authority.ca.configure_trust(context)
            told = self.fails(self.secure(everything, context=context), "echo", "x")
            assert told == "IT serves only who shows a certificate: --cert and --key"
            cert = ("--cert", shown)
            told = self.fails(self.secure(everything, context=context), "echo", "x", *cert)
            assert told == f"IT refused the certificate in {shown}: tlsv1 alert unknown ca"
            ours = ("--cert", self.authority.client("ana.pem"))
            server = self.secure(unwrapped(answering(b"X\n")), context=context)
            assert self.call(server, "echo", "x", *self.ours, *ours).text == "X\n"

    def test_every_way_to_be_refused_has_words(self) -> None:
        trust, it = Trust(cert=str(self.authority.client("c.pem"))), Address("h", 1)
        for name, words in {
            "TLSV13_ALERT_CERTIFICATE_REQUIRED": "only who shows another certificate than ours",
            "SSLV3_ALERT_CERTIFICATE_EXPIRED": "refused the certificate in ",
            "TLSV1_ALERT_INTERNAL_ERROR": "h:1 refused TLS: tlsv1 alert internal error",
        }.items():
            error = ssl.SSLError(1, name)
            error.reason = name
            refusal = trust.refusal(it, error)
            assert refusal is not None
            assert words in refusal.message
        assert trust.refusal(it, ConnectionResetError()) is None


def dialed(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


class AlertTests(ServerCase):
    """A client without TLS at other people's port with it."""

    def setUp(self) -> None:
        super().setUp()
        self.ours = ()

    def test_an_alert_means_the_same(self) -> None:
        for args, asked in {
            ("echo", "x"): b"x\n",
            ("ls",): b"\r\n\r\n",
            ("register", "ana"): b"client_uuid=ana",
        }.items():
            server = Server((answering(b"\x15\x03\x01\0\2\2\x46", asked),))
            assert self.fails(server, *args) == f"IT {PLAINLY}"

    def test_a_file_may_hold_anything_an_alert_too(self) -> None:
        file = b"\x15\x03\x01\0\2\2\x46"
        server = Server((lambda peer: peer.sendall(file),))
        assert self.call(server, "get", "--raw").out == file


class PlainTests(ClientCase):
    """A client without TLS at a port of ours with it."""

    def setUp(self) -> None:
        super().setUp()
        self.daemon = SecureHouse()
        self.addCleanup(self.daemon.discard)
        self.daemon.start()
        self.env["ROUNDHOUSE_CONFIG"] = str(self.daemon.config)

    def test_every_command_says_what_is_missing(self) -> None:
        big = self.file(bytes(3_000_000))
        self.env["ROUNDHOUSE_CODE"] = "0" * 32
        for args in (
            ("echo", "x"),
            ("ingest", big),
            ("put", big),
            ("put", "-"),
            ("put", "--raw", big),
            ("ls",),
            ("get",),
            ("chat",),
            ("register", "ana"),
            ("say", "ana", "hola"),
            ("say", "ana", "--stdin"),
            ("tail", "ana"),
            ("status",),
        ):
            ended = self.run_client("--no-tls", *args, typed=b"hola\n")
            assert (ended.status, ended.out) == (1, b""), (args, ended)
            assert PLAINLY in ended.err, (args, ended)


class StreamTests(ServerCase):
    """Ends, halves and pieces."""

    def test_a_file_that_was_cut_is_never_taken_for_whole(self) -> None:
        server = self.secure(lambda peer: peer.sendall(b"half of it"))
        got = self.folder / "got"
        told = self.fails(server, "get", "--raw", "-o", got, "--json")
        why = json.loads(told.replace("IT", "x"))["error"]
        assert "broke the connection: TLS ended without close_notify" in why
        assert "the file is incomplete after 10 bytes, and none of it was kept" in why
        assert not got.exists()

    def test_a_file_that_ends_with_close_notify_is_whole(self) -> None:
        data = os.urandom(SIZE)
        server = self.secure(unwrapped(lambda peer: peer.sendall(data)))
        assert self.call(server, "get", "--raw", *self.ours).out == data
        server.over()

    def test_an_answer_of_http_that_was_cut_is_told(self) -> None:
        answers = (
            b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
            b"HTTP/1.1 200 OK\r\n\r\n{",
            b"",
        )
        for answer in answers:
            server = self.secure(answering(answer))
            assert "broke the connection: TLS ended without close_notify" in self.fails(
                server, "ls"
            )
            server = self.secure(answering(answer, b"client_uuid=ana"))
            told = self.fails(server, "register", "ana")
            assert "broke the connection: TLS ended without close_notify" in told

    def test_an_answer_with_a_length_needs_no_close_notify(self) -> None:
        body = b'{"boxes": []}'
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
        server = self.secure(answering(head + body))
        assert self.call(server, "ls", *self.ours).text == "No files wait.\n"

    def test_what_the_server_says_after_our_end_is_heard(self) -> None:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = self.context()
            context.maximum_version = version
            heard = self.secure(halves(b"OK 3 - 1\n"), context=context)
            ended = self.call(heard, "ingest", self.file(b"abc"), *self.ours)
            assert heard.over() == [b"abc"]
            assert ended.text.startswith("Stored 3 bytes")

    def test_tickets_are_no_answer(self) -> None:
        """A server of Python's sends two; whoever takes one for an answer waits for ever."""

        facts = {"size": 3_000_000, "id": "1", "sha256": None, "expires": None}
        body = json.dumps(facts).encode()
        head = b"HTTP/1.1 201 Created\r\nContent-Length: %d\r\n\r\n" % len(body)

        def late(peer: socket.socket) -> bytes:
            time.sleep(0.1)
            return cast(bytes, answering(head + body, b"\r\n0\r\n\r\n")(peer))

        server = self.secure(late)
        ended = self.call(server, "put", "-", *self.ours, typed=bytes(3_000_000))
        assert ended.text.startswith("Kept: 3,000,000 bytes")
        assert len(server.over()[0]) > 3_000_000

    def test_much_goes_both_ways_at_once(self) -> None:
        lines = b"".join(b"line %06d\n" % n for n in range(50_000))

        def play(peer: socket.socket) -> int:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            count = 0
            while data := peer.recv(1 << 14):
                peer.sendall(data)
                count += len(data)
            return count

        address = self.trusted(self.secure(play))
        with Wire.to(address, PATIENCE) as wire:
            wire._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            wire.send(lines)
            while len(wire.heard) < len(lines):
                wire.wait()
                wire.take()
            assert wire.heard == lines

    def trusted(self, server: Server) -> Address:
        return Address("127.0.0.1", server.port, Trust(str(self.root)))

    def test_a_broken_record_breaks_the_connection_after_what_was_good(self) -> None:
        def play(peer: socket.socket) -> None:
            assert isinstance(peer, ssl.SSLSocket)
            peer.sendall(b"good")
            time.sleep(0.05)
            os.write(peer.fileno(), b"\x17\x03\x03\0\x20" + bytes(32))
            everything(peer)

        with Wire.to(self.trusted(self.secure(play)), PATIENCE) as wire:
            assert wire.hear() == b"good"
            with pytest.raises(Reset, match="broke the connection: TLS: decryption failed or bad"):
                wire.hear()
            with pytest.raises(Reset):
                wire.send(b"more")

    def test_an_end_waits_for_room_behind_what_was_sent(self) -> None:
        go = Event()

        def slow(peer: socket.socket) -> int:
            assert go.wait(PATIENCE)
            return len(everything(peer))

        server = self.secure(slow)
        with Wire.to(self.trusted(server), PATIENCE) as wire:
            sent, chunk = 0, bytes(1 << 16)
            while size := wire._sock.send(chunk):
                sent += size
            assert not wire._sock.finish()
            go.set()
            wire.finish()
            assert server.over() == [sent + len(chunk)]  # the last one was sealed already

    def test_a_wire_says_that_it_leaves_unless_it_is_to_reset(self) -> None:
        for fragile in (False, True):
            server = self.secure(everything)
            with Wire.to(self.trusted(server), PATIENCE) as wire:
                wire.send(b"x")
                wire.fragile(fragile)
            (said,) = server.over()
            assert isinstance(said, ssl.SSLEOFError) if fragile else said == b"x"


def halves(answer: bytes) -> Script:
    """A server that hears all up to close_notify, and answers then; ssl.SSLSocket cannot."""

    def script(peer: socket.socket) -> bytes:
        assert isinstance(peer, ssl.SSLSocket)
        heard = everything(peer)
        peer.sendall(answer)
        peer.unwrap()
        return heard

    return script


class FileTests(ServerCase):
    """The files TLS is spoken with, and where they are named."""

    def told(self, **files: object) -> str:
        with pytest.raises(Failed) as refused:
            Trust(**{name: str(path) for name, path in files.items()})
        return refused.value.message

    def write(self, name: str, *blobs: trustme.Blob) -> Path:
        return self.authority.write(name, *blobs)

    def test_a_file_of_no_use_is_named_with_what_is_wrong(self) -> None:
        gone, text = self.folder / "gone.pem", self.file(b"hello")
        half = self.file(b"-----BEGIN CERTIFICATE-----\nhalf", "half.pem")
        leaf = self.authority.ca.issue_cert("ana@example.org")
        cert = self.write("cert.pem", *leaf.cert_chain_pems)
        other = self.write("other.pem", self.authority.ca.issue_cert("b@x").private_key_pem)
        locked = self.file(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n", "locked.pem")
        assert self.told(cafile=gone) == f"cannot read {gone}: No such file or directory"
        assert self.told(cafile=text) == f"{text} holds no certificate in PEM form"
        assert self.told(cafile=half).startswith(f"{half}: ")
        assert self.told(cert=cert) == f"{cert} holds no private key in PEM form"
        assert self.told(cert=cert, key=gone) == f"cannot read {gone}: No such file or directory"
        assert (
            self.told(cert=cert, key=other)
            == f"{other} is not the key of the certificate in {cert}"
        )
        assert self.told(cert=half, key=other).startswith(f"{half}, {other}: ")
        assert self.told(cert=cert, key=locked) == (
            f"{locked} needs a passphrase: `openssl pkey` removes it"
        )

    def test_a_command_ends_with_that_line_before_it_calls_anybody(self) -> None:
        ended = self.run_client("echo", "x", "--cafile", "/gone.pem", "--port", nobody())
        assert (ended.status, ended.err) == (
            1,
            "Error: cannot read /gone.pem: No such file or directory\n",
        )

    def test_a_key_without_its_certificate_is_wrong_usage(self) -> None:
        ended = self.run_client("echo", "x", "--key", self.file(b""))
        assert ended.status == 2
        assert "--key is the key of a certificate: --cert FILE, too" in ended.err

    def test_a_name_that_no_certificate_can_have_is_told(self) -> None:
        told = self.fails(Server((everything,)), "echo", "x", "--servername", ".")
        assert told == "'.' is no name that a certificate can have"

    def test_a_chain_and_a_key_of_its_own_and_a_ca_that_is_no_root(self) -> None:
        between = self.authority.ca.create_child_ca()
        leaf = between.issue_cert("ana@example.org")
        cert = self.write("cert.pem", *leaf.cert_chain_pems)
        key = self.write("key.pem", leaf.private_key_pem)
        context = self.context(ca=between)
        context.verify_mode = ssl.CERT_REQUIRED
        self.authority.ca.configure_trust(context)
        server = self.secure(unwrapped(answering(b"X\n")), context=context)
        self.ours = "--cafile", self.write("between.pem", between.cert_pem)
        shown = ("--cert", cert, "--key", key)
        assert self.call(server, "echo", "x", *self.ours, *shown).text == "X\n"

    def test_all_of_it_can_come_from_the_environment(self) -> None:
        context = self.context("chat.example.org")
        context.verify_mode = ssl.CERT_REQUIRED
        self.authority.ca.configure_trust(context)
        leaf = self.authority.ca.issue_cert("ana@example.org")
        self.env |= {
            "ROUNDHOUSE_TLS": "yes",
            "ROUNDHOUSE_CAFILE": str(self.root),
            "ROUNDHOUSE_CERT": str(self.write("cert.pem", *leaf.cert_chain_pems)),
            "ROUNDHOUSE_KEY": str(self.write("key.pem", leaf.private_key_pem)),
            "ROUNDHOUSE_SERVERNAME": "chat.example.org",
        }
        server = self.secure(unwrapped(answering(b"X\n")), context=context)
        assert self.call(server, "echo", "x").text == "X\n"
        plain = Server((answering(b"X\n"),))
        assert self.call(plain, "--no-tls", "echo", "x").text == "X\n"

    def test_options_count_before_and_after_the_command_and_over_the_environment(self) -> None:
        self.env["ROUNDHOUSE_CAFILE"] = "/gone.pem"
        for first, last in ((("--cafile", self.root), ()), ((), ("--cafile", self.root))):
            server = self.secure(unwrapped(answering(b"X\n")))
            ended = self.run_client(*first, "echo", "x", "--port", server.port, *last)
            assert ended.text == "X\n", ended


class ConfigTests(ServerCase):
    """Whether TLS is spoken where nobody says so."""

    def found(self, text: str, *given: object) -> bool:
        self.config.write_text(text)
        trust = Trust(str(self.root))
        host, port, tls = (*given, None, None, None)[:3]
        environment = {name: value or "" for name, value in self.env.items()}
        with patch.dict(os.environ, environment):
            return address("echo", "PORT", host, port, tls, lambda: trust).tls is trust  # type: ignore[arg-type]

    def test_an_endpoint_in_the_file_says_it(self) -> None:
        for kind, speaks in {"ssl": True, "tls": True, "tcp": False, "tcp6": False}.items():
            text = f"[echo]\nLISTEN = {kind}:7000:interface=127.0.0.1\n"
            assert self.found(text) is speaks
            assert self.found(text, "10.0.0.5") is speaks  # the port is the file's
            assert self.found(text, "10.0.0.5", 7000) is False
            assert self.found(text, None, 7000) is False
            for tls in (True, False):
                assert self.found(text, None, None, tls) is tls
        assert self.found("[echo]\nPORT = 7000\n") is False

    def test_the_environment_says_it_for_every_port(self) -> None:
        for value, speaks in {"1": True, "On": True, "no": False, "FALSE": False}.items():
            self.env["ROUNDHOUSE_TLS"] = value
            for kind in ("ssl", "tcp"):
                assert self.found(f"[echo]\nLISTEN = {kind}:7000\n") is speaks
            assert self.found("", "10.0.0.5", 7000) is speaks
        self.env["ROUNDHOUSE_TLS"] = "maybe"
        with pytest.raises(Misread, match="ROUNDHOUSE_TLS = maybe is neither yes nor no"):
            self.found("")

    def test_each_service_is_spoken_to_as_its_endpoint_says(self) -> None:
        daemon = SecureHouse()
        self.addCleanup(daemon.discard)
        super(SecureHouse, daemon).configure(
            chat=f"LISTEN = {daemon.endpoint(60060)}", relay="RECEIVER_AFTER = 0.1"
        )
        daemon.start()
        self.env |= {
            "ROUNDHOUSE_CONFIG": str(daemon.config),
            "ROUNDHOUSE_CAFILE": str(daemon.authority.root),
        }
        ended = self.run_client("selftest", "echo", "chat", "handshake")
        assert ended.status == 0, ended
        daemon.says("chat listening")


class ScreenTests(ServerCase):
    """The terminal client: asyncio speaks TLS there."""

    def talk(self, port: int, *keys: str, context: Trust | None = None) -> str:
        shown = StringIO()
        output = Vt100_Output(shown, lambda: Size(24, 80), enable_cpr=False)
        there = Address("127.0.0.1", port, context or Trust(str(self.root)))
        with create_pipe_input() as typed:
            for key in keys:
                typed.send_text(key)
            self.typed = typed
            with create_app_session(typed, output), patch.object(chat_screen, "WAITS", (0.1,)):
                asyncio.run(Screen(there, "", "").talk(dial(there, PATIENCE)))
        return ESCAPES.sub("", shown.getvalue())

    def test_lines_go_both_ways_and_leaving_is_said(self) -> None:
        def script(peer: socket.socket) -> bytes:
            peer.sendall(b"ana: hi\n")
            heard = peer.recv(100)
            self.typed.send_text("/quit\r")
            return heard + everything(peer)

        server = self.secure(script)
        assert "ana: hi" in self.talk(server.port, "hola\r")
        assert server.over() == [b"hola\n"]

    def test_a_lost_connection_is_made_again_over_tls(self) -> None:
        def leaves(peer: socket.socket) -> None:
            peer.sendall(b"ana: first\n")

        def stays(peer: socket.socket) -> bytes:
            peer.sendall(b"ana: second\n")
            time.sleep(0.1)
            self.typed.send_text("/quit\r")
            return everything(peer)

        shown = self.talk(self.secure(leaves, stays).port)
        assert "ana: first" in shown
        assert "trying to connect again" in shown
        assert "ana: second" in shown

    def test_a_broken_connection_is_made_again_too(self) -> None:
        def breaks(peer: socket.socket) -> None:
            os.write(peer.fileno(), b"\x17\x03\x03\0\x20" + bytes(32))
            everything(peer)

        def stays(peer: socket.socket) -> bytes:
            self.typed.send_text("/quit\r")
            return everything(peer)

        shown = self.talk(self.secure(breaks, stays).port)
        assert "broke the connection (" in shown
        assert "trying to connect again" in shown

    def test_what_stands_against_tls_is_told_instead_of_a_screen(self) -> None:
        stranger = self.secure(everything, context=self.context(ca=trustme.CA()))
        with pytest.raises(Failed, match="is not trusted: its certificate was not issued by"):
            self.talk(stranger.port)
        with pytest.raises(Failed, match=r"does not speak TLS 1\.2 or 1\.3: --no-tls"):
            self.talk(Server((answering(b"ERR Invalid message\n"),)).port)
        with pytest.raises(Reset, match="broke off TLS's handshake"):
            self.talk(Server((after(answering(b""), reset),)).port)
        with pytest.raises(Failed, match=r"'\.' is no name that a certificate can have"):
            self.talk(Server((everything,)).port, context=Trust(servername="."))
        silent = Server((everything,))
        with patch.object(chat_screen, "PATIENCE", 0.2), pytest.raises(Failed, match="TLS"):
            self.talk(silent.port)

    def test_a_refusal_that_comes_after_the_handshake_ends_it_with_a_line(self) -> None:
        context = self.context()
        context.verify_mode = ssl.CERT_REQUIRED
        self.authority.ca.configure_trust(context)
        for _ in range(3):  # before the prompt is there, or after
            with pytest.raises(Failed, match="serves only who shows a certificate: --cert and"):
                self.talk(self.secure(everything, context=context).port)

    def test_a_port_with_tls_is_not_spoken_to_again_and_again_without(self) -> None:
        for answer in (b"\x15\x03\x01\0\2\2\x46", b"ERR this port speaks TLS\n"):
            server = Server((answering(answer),))
            there = Address("127.0.0.1", server.port)
            shown = StringIO()
            output = Vt100_Output(shown, lambda: Size(24, 80), enable_cpr=False)
            with (
                create_pipe_input() as typed,
                create_app_session(typed, output),
                pytest.raises(Failed, match=PLAINLY),
            ):
                asyncio.run(Screen(there, "ana", "").talk(dial(there, PATIENCE)))

    def test_the_command_shows_it_on_a_terminal(self) -> None:
        stranger = self.secure(everything, context=self.context(ca=trustme.CA()))
        ended = self.on_terminal("chat", "--port", stranger.port, *self.ours)
        assert ended.status == 1
        assert b"is not trusted" in ended.out
