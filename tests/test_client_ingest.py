"""ingest: what goes out, and which receipts are believed."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import socket
import threading
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest
from unittest.mock import patch

import pytest
from twisted.trial.unittest import SynchronousTestCase

from client.hashing import Beside
from tests.test_client import (
    ClientCase,
    Ended,
    Script,
    Server,
    after,
    everything,
    reset,
    saying,
    stall,
)


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

    def test_an_empty_file_is_sent_and_said_to_leave_none(self) -> None:
        receipt = f"OK 0 {sha256().hexdigest()} 0\n".encode()
        server, empty = Server((saying(receipt),)), self.file(b"")
        ended = self.call(server, "ingest", empty)
        said = f"Stored 0 bytes of {empty}: an empty stream makes no file there\n"
        assert ended == Ended(0, said.encode(), "")
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
        there, path = self.file(b"x"), self.folder / "none"
        ended = self.run_client("ingest", there, path, "--port", 1)
        assert ended == Ended(1, b"", f"Error: cannot read {path}: No such file or directory\n")

    def test_a_file_that_breaks_off_is_a_failure(self) -> None:
        class Failing(io.BytesIO):
            def read1(self, size: int | None = -1) -> bytes:
                if self.tell():
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return super().read1(5)

        server, disk = Server((everything,)), self.file(b"")
        with patch("builtins.open", return_value=Failing(b"hello world")):
            ended = self.call(server, "ingest", disk)
        assert ended == Ended(1, b"", f"Error: cannot read {disk}: Input/output error\n")
        assert server.over() == [b"helloRESET"]  # else it would look whole

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


class ManyTests(ClientCase):
    """Several files in one command."""

    def setUp(self) -> None:
        super().setUp()
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tree = Path(folder.name).resolve()
        self.contents = {"a.log": b"first\n", "b/c.log": bytes(200_000), "b/d/e.log": b"last\n"}
        for name, data in self.contents.items():
            path = self.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def told(self, text: str) -> dict[str, str]:
        """What was said of each file, by its path in the tree."""
        found = re.findall(r"^Stored (.*) of (\S+) in (.*)\nsha256 (.*)$", text, re.MULTILINE)
        return {
            str(Path(name).relative_to(self.tree)): f"{size}, {parts}, {digest}"
            for size, name, parts, digest in found
        }

    def test_a_folder_stands_for_all_files_below_it_and_each_is_a_stream_of_its_own(self) -> None:
        server, alone = Server((honest,) * 4), self.file(b"alone")
        ended = self.call(server, "ingest", alone, self.tree)
        assert sorted(server.over()) == sorted([b"alone", *self.contents.values()])
        assert ended.status == 0
        assert f"Stored 5 bytes of {alone} in 1 part\n" in ended.text
        assert self.told(ended.text.replace(alone, f"{self.tree}/alone")) == {
            name: f"{len(data):,} bytes, 1 part, {sha256(data).hexdigest()} (the server's too)"
            for name, data in {"alone": b"alone", **self.contents}.items()
        }
        assert re.fullmatch(r"4 files, 200,016 bytes in \d+\.\d s: [\d,.]+ MB/s\n", ended.err)

    def test_what_is_no_file_in_a_folder_is_left_out_and_named(self) -> None:
        os.mkfifo(self.tree / "pipe")
        (self.tree / "gone").symlink_to(self.tree / "nowhere")
        (self.tree / "way").symlink_to(self.tree / "b")
        server = Server((honest,) * 3)
        ended = self.call(server, "ingest", self.tree)
        assert (ended.status, len(server.over())) == (0, 3)
        for name in ("gone", "pipe"):
            assert f"Skipped {self.tree / name}: not a regular file\n" in ended.err
        assert f"Skipped {self.tree / 'way'}: a link to a folder\n" in ended.err

    def test_a_folder_without_files_or_that_cannot_be_read_is_a_failure(self) -> None:
        with TemporaryDirectory() as empty:
            ended = self.run_client("ingest", empty, "--port", 1)
            assert ended == Ended(1, b"", f"Error: no files in {empty}\n")
            locked = PermissionError(errno.EACCES, os.strerror(errno.EACCES), empty)
            with patch("os.scandir", side_effect=locked):
                ended = self.run_client("ingest", empty, "--port", 1)
            assert ended == Ended(1, b"", f"Error: cannot read {empty}: Permission denied\n")

    def test_a_receipt_that_differs_is_a_failure_and_the_others_are_stored(self) -> None:
        def short(peer: socket.socket) -> bytes:
            heard = everything(peer)
            digest = sha256(heard).hexdigest()
            less = len(heard) - (heard == b"last\n")
            peer.sendall(f"OK {less} {digest} 1\n".encode())
            return heard

        server = Server((short,) * 3)
        ended = self.call(server, "ingest", self.tree)
        assert len(server.over()) == 3
        assert ended.status == 1
        assert sorted(self.told(ended.text)) == ["a.log", "b/c.log"]
        assert ended.err == (
            f"Error: {self.tree}/b/d/e.log: the receipt differs: 5 bytes were sent, 4 were stored\n"
            "Error: 1 of 3 files not stored\n"
        )

    def test_scripts_get_an_object_for_each_stream(self) -> None:
        def picky(peer: socket.socket) -> bytes:
            heard = everything(peer)
            digest = sha256(heard).hexdigest()
            good = f"OK {len(heard)} {digest} 1\n".encode()
            peer.sendall(b"ERR busy\n" if heard == b"first\n" else good)
            return heard

        server = Server((picky,) * 3)
        ended = self.call(server, "ingest", "--json", self.tree)
        server.over()
        assert ended.status == 1
        stored = {one["file"]: one for one in map(json.loads, ended.text.splitlines())}
        assert sorted(stored) == [f"{self.tree}/b/c.log", f"{self.tree}/b/d/e.log"]
        assert stored[f"{self.tree}/b/c.log"]["bytes"] == 200_000
        refused, summary = map(json.loads, ended.err.splitlines())
        assert (refused["file"], refused["status"]) == (f"{self.tree}/a.log", 1)
        assert "busy" in refused["error"]
        assert summary == {"error": "1 of 3 files not stored", "status": 1}

    def test_where_nobody_listens_no_more_is_tried(self) -> None:
        tried: list[object] = []

        def refuse(*args: object) -> socket.socket:
            tried.append(args)
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))

        with patch("socket.create_connection", refuse):
            ended = self.run_client("ingest", "--streams", 1, self.tree, "--port", 5)
        assert ended.status == 69
        assert len(tried) == 1
        assert "a.log: nobody listens at 127.0.0.1:5: Connection refused\n" in ended.err
        assert ended.err.endswith("Error: 3 of 3 files not stored\n")

    def test_as_many_go_at_once_as_were_asked_for_and_no_more(self) -> None:
        for number in range(5):
            (self.tree / f"{number}").write_bytes(b"%d" % number)
        now, most, lock = 0, 0, threading.Lock()
        company = threading.Barrier(2)

        def together(peer: socket.socket) -> None:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            company.wait(10)  # one that is alone never passes
            with lock:
                now -= 1
            honest(peer)

        port = self.serve(together, 8)
        ended = self.run_client("ingest", "--streams", 2, self.tree, "--port", port)
        assert ended.status == 0, ended.err
        assert most == 2

    def serve(self, script: Script, peers: int) -> int:
        """Play it to so many peers at once; the port."""
        listener = socket.create_server(("127.0.0.1", 0))
        listener.settimeout(10)

        def play(peer: socket.socket) -> None:
            peer.settimeout(10)
            with peer:
                script(peer)

        def accept() -> None:
            threads = []
            with listener:
                for _ in range(peers):
                    threads.append(threading.Thread(target=play, args=(listener.accept()[0],)))
                    threads[-1].start()
            for thread in threads:
                thread.join()

        thread = threading.Thread(target=accept)
        thread.start()
        self.addCleanup(thread.join, 10)
        port: int = listener.getsockname()[1]
        return port

    def test_standard_input_cannot_be_sent_twice(self) -> None:
        assert "can be sent once" in self.run_client("ingest", "-", "-", typed=b"x").err

    def test_a_terminal_sees_the_results_after_the_bar(self) -> None:
        server = Server((honest,) * 3)
        shown = self.on_terminal("ingest", "--port", server.port, self.tree)
        server.over()
        assert shown.status == 0
        assert b"ingest 3 files" in shown.out
        plain = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", shown.out.decode())
        assert len(self.told(plain.replace("\r", "\n").replace("\n\n", "\n"))) == 3

    def test_ctrl_c_waits_for_no_server_and_leaves_no_stream_that_looks_whole(self) -> None:
        begun, over = threading.Barrier(3), threading.Event()
        ends: list[bytes] = []

        def slow(peer: socket.socket) -> None:
            heard = peer.recv(10)
            begun.wait(10)
            over.wait(10)
            ends.append((heard + everything(peer))[-5:])

        for name in ("one", "two"):
            (self.tree / name).write_bytes(bytes(20_000_000))
        process = self.start(
            "ingest", self.tree / "one", self.tree / "two", "--port", self.serve(slow, 2)
        )
        begun.wait(10)
        process.send_signal(signal.SIGINT)
        ended = self.ended(process)
        assert (ended.status, ended.out, ended.err.strip()) == (130, b"", "Interrupted")
        over.set()
        self.doCleanups()
        assert ends == [b"RESET", b"RESET"]

    def test_a_fault_of_ours_in_a_stream_is_no_silence(self) -> None:
        port = self.serve(everything, 3)
        with (
            patch("client.ingest.pour", side_effect=ZeroDivisionError),
            pytest.raises(ZeroDivisionError),
        ):
            self.run_client("ingest", self.tree, "--port", port)


class BesideTests(SynchronousTestCase):
    def test_small_and_large_pieces_make_the_digest_of_all_of_them_in_order(self) -> None:
        pieces = [b"a", bytes(100_000), b"b" * 70_000, b"c", b"", b"d" * 65_536] * 5
        with Beside() as digest:
            for piece in pieces:
                digest.update(piece)
            assert digest.hexdigest() == sha256(b"".join(pieces)).hexdigest()

    def test_its_thread_ends_with_it_also_where_nobody_asks_for_the_digest(self) -> None:
        before = threading.active_count()
        with Beside() as digest:
            digest.update(bytes(100_000))
            assert threading.active_count() == before + 1
        assert threading.active_count() == before
