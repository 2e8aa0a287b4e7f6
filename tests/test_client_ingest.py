"""ingest: what goes out, and which receipts are believed."""

from __future__ import annotations

import errno
import io
import os
import re
import socket
from hashlib import sha256
from pathlib import Path
from unittest import SkipTest
from unittest.mock import patch

from tests.test_client import ClientCase, Ended, Server, after, everything, reset, saying, stall


def honest(peer: socket.socket) -> bytes:
    heard = everything(peer)
    peer.sendall(f"OK {len(heard)} {sha256(heard).hexdigest()} 1\n".encode())
    return heard


class IngestTests(ClientCase):
    def refused(self, answer: bytes, data: bytes = b"hello") -> str:
        """What is said when a server answers `data` so; never a success."""
        server = Server((saying(answer),))
        ended = self.call(server, "ingest", self.file(data))
        assert server.over() == [data]
        assert (ended.status, ended.out) == (1, b"")
        return ended.err.removeprefix("Error: ").rstrip()

    def test_a_file_is_stored_and_the_receipt_agrees(self) -> None:
        data = bytes(range(256)) * 5000
        server, sent = Server((honest,)), self.file(data)
        ended = self.call(server, "ingest", sent)
        assert server.over() == [data]
        assert ended == Ended(
            0,
            f"Stored 1,280,000 bytes of {sent} in 1 part\n"
            f"sha256 {sha256(data).hexdigest()} (the server's too)\n".encode(),
            "",
        )

    def test_standard_input_is_a_file_too(self) -> None:
        server = Server((honest,))
        ended = self.call(server, "ingest", "--json", "-", typed=b"abc\0")
        assert server.over() == [b"abc\0"]
        assert ended.facts["seconds"] >= 0
        del (facts := ended.facts)["seconds"]
        assert facts == {
            "file": "-",
            "bytes": 4,
            "sha256": sha256(b"abc\0").hexdigest(),
            "parts": 1,
            "verified": True,
        }

    def test_an_empty_file_is_stored_too(self) -> None:
        server = Server((honest,))
        assert "Stored 0 bytes" in self.call(server, "ingest", self.file(b"")).text
        assert server.over() == [b""]

    def test_a_live_pipe_is_passed_on_at_once_and_a_refusal_ends_the_waiting(self) -> None:
        def busy_later(peer: socket.socket) -> bytes:
            heard = peer.recv(100)
            peer.sendall(b"ERR busy\n")
            return heard

        server = Server((busy_later,))
        process = self.start("ingest", "-", "--port", server.port)
        assert process.stdin is not None
        process.stdin.write(b"first line\n")
        process.stdin.flush()
        assert process.wait(10) == 1  # though the pipe stays open
        assert server.over() == [b"first line\n"]
        assert "refused the stream: busy; nothing of it" in self.ended(process).err

    def test_a_receipt_for_other_bytes_is_a_failure(self) -> None:
        digest = sha256(b"hello").hexdigest().encode()
        assert self.refused(b"OK 4 %s 1\n" % digest) == (
            "the receipt differs: 5 bytes were sent, 4 were stored"
        )
        other = sha256(b"HELLO").hexdigest()
        assert self.refused(f"OK 5 {other} 1\n".encode()) == (
            f"the receipt differs: sha256 {digest.decode()} was sent, {other} was stored"
        )

    def test_a_receipt_without_a_digest_vouches_for_the_count_alone(self) -> None:
        server = Server((saying(b"OK 5 - 2\n"),))
        ended = self.call(server, "ingest", self.file(b"hello"))
        assert ended.status == 0
        assert "in 2 parts\n" in ended.text
        assert ended.text.endswith("(of what was sent: CHECKSUM = none)\n")
        assert server.over() == [b"hello"]

    def test_an_error_says_how_much_is_kept(self) -> None:
        assert self.refused(b"ERR No space left stored=1024\n") == (
            "the server refused the stream: No space left; 1,024 bytes of it are stored"
        )
        assert self.refused(b"ERR busy\n").endswith("busy; nothing of it is known to be stored")

    def test_an_answer_that_is_no_receipt_is_shown_harmlessly(self) -> None:
        assert self.refused(b"\x1b[2JHOLA\n").endswith(r"what is no receipt: \x1b[2JHOLA")

    def test_a_receipt_that_was_cut_is_none(self) -> None:
        digest = sha256(b"hello").hexdigest()
        assert "what is no receipt: OK 5" in self.refused(f"OK 5 {digest} 1".encode())

    def test_a_line_without_end_is_not_collected_for_ever(self) -> None:
        assert "what is no receipt: xxxx" in self.refused(b"x" * 50_000)

    def test_a_missing_receipt_is_a_failure_unless_none_was_expected(self) -> None:
        assert "closed without a receipt: what it stored is unknown" in self.refused(b"")
        server = Server((saying(b""),))
        ended = self.call(server, "ingest", "--no-receipt", self.file(b"hello"))
        assert ended.status == 0
        assert "Sent 5 bytes" in ended.text
        assert server.over() == [b"hello"]

    def test_a_reset_instead_of_a_receipt_is_a_failure(self) -> None:
        server = Server((after(everything, reset),))
        ended = self.call(server, "ingest", "--no-receipt", self.file(b"hello"))
        assert ended.status == 1
        assert "broke the connection: Connection reset by peer" in ended.err
        server.over()

    def test_a_receipt_that_came_whole_before_a_reset_is_believed(self) -> None:
        def scripted(peer: socket.socket) -> None:
            honest(peer)
            reset(peer)

        server = Server((scripted,))
        assert self.call(server, "ingest", self.file(b"hello")).status == 0
        server.over()

    def test_an_error_in_the_midst_of_the_stream_ends_the_sending(self) -> None:
        def full(peer: socket.socket) -> None:
            peer.recv(1000)
            peer.sendall(b"ERR disk full stored=1000\n")

        server = Server((full,))
        ended = self.call(server, "ingest", self.file(bytes(16_000_000)))
        assert ended.status == 1
        assert "disk full; 1,000 bytes" in ended.err
        server.over()

    def test_a_close_or_an_early_receipt_in_the_midst_of_the_stream_is_a_failure(self) -> None:
        for answer, text in (
            (b"OK 1000 - 1\n", "a receipt for 1,000 bytes before the stream's end"),
            (b"", "unknown"),
        ):

            def hasty(peer: socket.socket, answer: bytes = answer) -> None:
                heard = peer.recv(1000)
                peer.sendall(answer)
                peer.shutdown(socket.SHUT_WR)
                assert heard
                everything(peer)

            server = Server((hasty,))
            ended = self.call(server, "ingest", self.file(bytes(64_000_000)))
            assert ended.status == 1
            assert text in ended.err
            server.over()

    def test_a_server_that_stalls_is_given_up_when_asked(self) -> None:
        server = Server((after(everything, stall),))
        ended = self.call(server, "ingest", "--timeout", "0.2", self.file(b"x"))
        assert ended.status == 1
        assert "did nothing for 0.2 s" in ended.err
        server.over()

    def test_a_file_that_cannot_be_read_is_named_before_anybody_is_called(self) -> None:
        for path, reason in (
            (self.folder / "none", "No such file or directory"),
            (self.folder, "Is a directory"),
        ):
            ended = self.run_client("ingest", path, "--port", 1)
            assert ended == Ended(1, b"", f"Error: cannot read {path}: {reason}\n")

    def test_a_file_that_breaks_off_is_a_failure(self) -> None:
        class Failing(io.BytesIO):
            def read1(self, size: int | None = -1) -> bytes:
                if self.tell():
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return super().read1(5)

        for command, closed in (("ingest", b"hello"), ("put", b"helloRESET")):
            server = Server((everything,))
            with patch("builtins.open", return_value=Failing(b"hello world")):
                ended = self.call(server, command, "disk")
            assert ended == Ended(1, b"", "Error: cannot read disk: Input/output error\n")
            assert server.over() == [closed]

    def test_a_terminal_sees_progress(self) -> None:
        server = Server((honest,))
        shown = self.on_terminal("ingest", "--port", server.port, self.file(bytes(900_000)))
        assert shown.status == 0
        assert b"ingest" in shown.out
        assert b"Stored 900,000 bytes" in shown.out
        server.over()

    def test_a_gigabyte_would_fit_in_constant_memory(self) -> None:
        if not Path("/proc/self/status").exists():
            raise SkipTest("only Linux tells the peak memory of another process")
        seen, peak = 0, ""

        def count(peer: socket.socket) -> None:
            nonlocal seen, peak
            digest = sha256()
            while data := peer.recv(1 << 18):
                digest.update(data)
                seen += len(data)
            # not wait4's: that begins with the memory of whoever forked
            peak = Path(f"/proc/{command.pid}/status").read_text()
            peer.sendall(f"OK {seen} {digest.hexdigest()} 1\n".encode())

        server = Server((count,))
        huge = self.folder / "huge"
        with huge.open("wb") as file:
            file.truncate(256 << 20)
        command = self.start("ingest", huge, "--port", server.port, "--json")
        assert self.ended(command).status == 0
        server.over()
        assert seen == 256 << 20
        found = re.search(r"VmHWM:\s+(\d+) kB", peak)
        assert found
        assert int(found[1]) < 80 << 10
