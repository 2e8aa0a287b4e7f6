"""put and get over the raw port: what counts as kept, and what an unfinished transfer leaves."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from threading import Event
from unittest.mock import patch

from tests.test_client import (
    PATIENCE,
    ClientCase,
    Ended,
    Server,
    after,
    everything,
    nobody,
    reset,
    saying,
    stall,
)


def handing(data: bytes) -> Callable[[socket.socket], bytes]:
    """A relay that hands out a file and says how the receiver closed: b"" is kept."""

    def script(peer: socket.socket) -> bytes:
        try:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)
        except OSError:
            return b"RESET"
        return everything(peer)

    return script


class PutTests(ClientCase):
    def test_a_file_is_kept_when_the_server_closes_after_it(self) -> None:
        data = os.urandom(700_000)
        server, sent = Server((saying(b""),)), self.file(data)
        ended = self.call(server, "put", "--raw", sent)
        assert ended == Ended(
            0,
            f"Kept: 700,000 bytes of {sent}\nsha256 {sha256(data).hexdigest()}\n".encode(),
            "",
        )
        assert server.over() == [data]

    def test_standard_input_is_kept_and_told_in_json(self) -> None:
        server = Server((saying(b""),))
        ended = self.call(server, "put", "--raw", "--json", "-", typed=b"abc")
        assert ended.facts == {"file": "-", "bytes": 3, "sha256": sha256(b"abc").hexdigest()}
        assert server.over() == [b"abc"]

    def test_a_reset_means_not_kept(self) -> None:
        server = Server((after(everything, reset),))
        ended = self.call(server, "put", "--raw", self.file(b"abc"))
        assert (ended.status, ended.out) == (1, b"")
        assert "reset by peer: the file was not kept" in ended.err
        server.over()

    def test_an_end_that_comes_before_ours_means_not_kept(self) -> None:
        def hasty(peer: socket.socket) -> None:
            peer.recv(1000)
            peer.shutdown(socket.SHUT_WR)
            assert everything(peer).endswith(b"RESET")

        server = Server((hasty,))
        ended = self.call(server, "put", "--raw", self.file(bytes(64_000_000)))
        assert ended.status == 1
        assert "closed before the end: the file was not kept" in ended.err
        server.over()

    def test_silence_after_the_upload_is_no_promise(self) -> None:
        server = Server((after(everything, stall),))
        ended = self.call(server, "put", "--raw", "--timeout", "0.2", self.file(b"abc"))
        assert ended.status == 1
        assert "not kept, or that is unknown" in ended.err
        server.over()

    def test_an_empty_file_is_refused_before_it_could_take_somebody_elses(self) -> None:
        for path, typed in ((self.file(b""), None), ("-", b"")):
            ended = self.run_client("put", "--raw", path, "--port", nobody(), typed=typed)
            assert ended.status == 1
            assert "is empty: this port cannot carry an empty file" in ended.err

    def test_a_slow_pipe_connects_only_with_its_first_bytes_in_hand(self) -> None:
        called: list[float] = []

        def relay(peer: socket.socket) -> bytes:
            called.append(time.monotonic())
            return everything(peer)

        server = Server((relay,))
        process = self.start("put", "--raw", "-", "--port", server.port)
        assert process.stdin is not None
        time.sleep(0.3)
        began = time.monotonic()
        assert self.ended(process, b"slow").status == 0
        assert server.over() == [b"slow"]
        assert called[0] > began

    def test_a_file_handed_to_a_slow_sender_is_not_taken_for_an_answer(self) -> None:
        def mistaken(peer: socket.socket) -> bytes:
            peer.sendall(b"somebody else's")
            return everything(peer)

        data = os.urandom(3_000_000)
        server = Server((mistaken,))
        assert self.call(server, "put", "--raw", self.file(data)).status == 0
        assert server.over() == [data]

    def test_a_killed_or_interrupted_sender_resets_so_that_nothing_cut_is_kept(self) -> None:
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            coming = Event()

            def script(peer: socket.socket, coming: Event = coming) -> bytes:
                data = peer.recv(1000)
                coming.set()
                return data + everything(peer)

            server = Server((script,))
            process = self.start("put", "--raw", "-", "--port", server.port)
            assert process.stdin is not None
            process.stdin.write(b"half a file")
            process.stdin.flush()
            assert coming.wait(PATIENCE)
            process.send_signal(number)
            self.ended(process)
            assert server.over() == [b"half a fileRESET"], number


class GetTests(ClientCase):
    def partials(self) -> list[str]:
        return sorted(set(os.listdir(self.folder)) - {"config.cfg"})

    def test_a_file_is_there_whole_before_the_server_hears_the_end(self) -> None:
        data, target = os.urandom(700_000), self.folder / "got"

        def script(peer: socket.socket) -> tuple[bytes, bytes]:
            closed = handing(data)(peer)
            return closed, target.read_bytes()

        server = Server((script,))
        ended = self.call(server, "get", "--raw", "-o", target)
        assert ended == Ended(
            0,
            f"Received 700,000 bytes in {target}\nsha256 {sha256(data).hexdigest()}\n".encode(),
            "Waiting for sender...\n",
        )
        assert server.over() == [(b"", data)]
        assert self.partials() == ["got"]

    def test_the_result_can_be_json_and_then_nothing_else_is_said(self) -> None:
        server, target = Server((handing(b"abc"),)), self.folder / "got"
        ended = self.call(server, "--json", "get", "--raw", "-o", target)
        assert ended.err == ""
        assert ended.facts == {
            "file": str(target),
            "bytes": 3,
            "sha256": sha256(b"abc").hexdigest(),
        }
        server.over()

    def test_the_file_follows_the_umask(self) -> None:
        server = Server((handing(b"abc"),))
        before = os.umask(0o027)
        try:
            self.call(server, "get", "--raw", "-o", self.folder / "got")
        finally:
            os.umask(before)
        server.over()
        assert (self.folder / "got").stat().st_mode & 0o777 == 0o640

    def test_an_existing_file_is_refused_before_anybody_is_called(self) -> None:
        target = self.file(b"precious", "got")
        dangling = self.folder / "link"
        dangling.symlink_to(self.folder / "nowhere")
        for path in (target, dangling, self.folder):
            ended = self.run_client("get", "--raw", "-o", path, "--port", nobody())
            assert ended.status == 1
            assert f"{path} exists, and nothing is overwritten" in ended.err
        assert Path(target).read_bytes() == b"precious"

    def test_a_file_that_appears_meanwhile_stays_and_the_parcel_is_given_back(self) -> None:
        target = self.folder / "got"
        for linking in (True, False):
            target.unlink(missing_ok=True)

            def script(peer: socket.socket) -> bytes:
                target.write_bytes(b"theirs")
                return handing(b"ours")(peer)

            server = Server((script,))
            refusal = OSError(errno.EPERM, "no links here")
            with patch("os.link", side_effect=None if linking else refusal, wraps=os.link):
                ended = self.call(server, "get", "--raw", "-o", target)
            assert ended.status == 1
            assert f"cannot store {target}: File exists; the server keeps the file" in ended.err
            assert server.over() == [b"RESET"]
            assert target.read_bytes() == b"theirs"
            assert self.partials() == ["got"]

    def test_a_file_system_without_links_will_do(self) -> None:
        server = Server((handing(b"abc"),))
        with patch("os.link", side_effect=OSError(errno.ENOTSUP, "no links here")):
            assert self.call(server, "get", "--raw", "-o", self.folder / "got").status == 0
        assert server.over() == [b""]
        assert (self.folder / "got").read_bytes() == b"abc"
        assert self.partials() == ["got"]

    def test_a_disk_that_fails_keeps_nothing_and_gives_the_file_back(self) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for failing in ("os.fsync", "os.link"):
            server = Server((handing(b"abc"),))
            with patch(failing, side_effect=full):
                ended = self.call(server, "get", "--raw", "-o", self.folder / "got")
            assert ended.status == 1
            assert "No space left on device; the server keeps the file" in ended.err
            assert server.over() == [b"RESET"]
            assert self.partials() == []

    def test_a_disk_that_fills_up_on_the_way_gives_the_file_back(self) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            for size in (3_000_000, 100_001):  # while it comes; at its end
                server = Server((handing(bytes(size)),))
                ended = self.call(server, "get", "--raw", "-o", self.folder / "got")
                assert ended.status == 1
                assert "got: File too large; the server keeps the file" in ended.err
                assert server.over() == [b"RESET"]
                assert self.partials() == []
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_a_folder_that_cannot_be_synced_still_takes_files(self) -> None:
        def sync(descriptor: int) -> None:
            if os.path.isdir(f"/dev/fd/{descriptor}"):
                raise OSError(errno.EINVAL, "not here")

        opened = os.open

        def refuse(path: object, flags: int, *mode: int) -> int:
            if path == self.folder:
                raise PermissionError
            return opened(str(path), flags, *mode)

        for function, double in (("os.fsync", sync), ("os.open", refuse)):
            server, target = Server((handing(b"abc"),)), self.folder / function
            with patch(function, double):
                assert self.call(server, "get", "--raw", "-o", target).status == 0
            assert server.over() == [b""]

    def test_a_reset_means_incomplete_and_keeps_nothing(self) -> None:
        def cut(peer: socket.socket) -> None:
            peer.sendall(b"half")
            time.sleep(0.1)
            reset(peer)

        server = Server((cut,))
        ended = self.call(server, "get", "--raw", "-o", self.folder / "got")
        assert (ended.status, ended.out) == (1, b"")
        assert "incomplete after 4 bytes, and none of it was kept" in ended.err
        server.over()
        assert self.partials() == []

    def test_a_close_without_a_byte_is_no_file(self) -> None:
        server = Server((handing(b""),))
        ended = self.call(server, "get", "--raw", "-o", self.folder / "got")
        assert ended.status == 1
        assert "closed without a file" in ended.err
        assert server.over() == [b"RESET"]
        assert self.partials() == []

    def test_waiting_can_be_bounded(self) -> None:
        server = Server((everything,))
        ended = self.call(server, "get", "--raw", "--timeout", "0.2", "-o", self.folder / "got")
        assert ended.status == 1
        assert f"no sender at 127.0.0.1:{server.port} within 0.2 s" in ended.err
        assert server.over() == [b"RESET"]

    def test_a_folder_that_cannot_be_written_is_named_before_anybody_is_called(self) -> None:
        ended = self.run_client(
            "get", "--raw", "-o", self.folder / "no" / "got", "--port", nobody()
        )
        assert ended.status == 1
        assert "no/got: No such file or directory" in ended.err
        assert self.run_client("get", "--raw", "-o", "", "--port", nobody()).status == 1

    def test_a_pipe_gets_the_bytes_and_nothing_else(self) -> None:
        data = os.urandom(300_000)
        for output in ([], ["-o", "-"]):
            server = Server((handing(data),))
            ended = self.call(server, "get", "--raw", *output)
            assert (ended.status, ended.out) == (0, data)
            assert ended.err.endswith(f"300,000 bytes, sha256 {sha256(data).hexdigest()}\n")
            assert server.over() == [b""]

    def test_a_redirected_file_is_on_disk_before_the_server_hears_the_end(self) -> None:
        target = self.folder / "got"
        server = Server((lambda peer: (handing(b"abc")(peer), target.read_bytes()),))
        with target.open("wb") as out:
            assert (
                self.ended(self.start("get", "--raw", "--port", server.port, stdout=out)).status
                == 0
            )
        assert server.over() == [(b"", b"abc")]

    def test_json_and_the_bytes_cannot_both_have_standard_output(self) -> None:
        assert self.run_client("get", "--raw", "--json", "-o", "-").status == 2

    def test_on_a_terminal_the_file_gets_a_name_of_its_own(self) -> None:
        before = os.getcwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)
        server = Server((handing(b"one"), handing(b"two")))
        with patch("time.strftime", return_value="parcel-20260101-000000.bin"):
            for _ in range(2):
                shown = self.on_terminal("get", "--raw", "--port", server.port)
                assert shown.status == 0
                assert b"Received 3 bytes in parcel-20260101-000000" in shown.out
        server.over()
        assert self.partials() == ["parcel-20260101-000000-2.bin", "parcel-20260101-000000.bin"]
        with patch("os.link", side_effect=FileExistsError(errno.EEXIST, "File exists")):
            server = Server((handing(b"abc"),))
            assert self.on_terminal("get", "--raw", "--port", server.port).status == 1
        assert server.over() == [b"RESET"]


class AskTests(ClientCase):
    def test_a_sender_is_asked_for_everything(self) -> None:
        server, sent = Server((saying(b""),)), self.file(b"abc")
        typed = f"{server.port}\n127.0.0.1\n{sent}\ns\n".encode()
        ended = self.run_client("relay", "--ask", typed=typed)
        assert ended.status == 0
        assert server.over() == [b"abc"]
        for question in ("Port [5011]", "Host [127.0.0.1]", "File [parcel.bin]", "[S/R]"):
            assert question in ended.err

    def test_every_question_has_its_default(self) -> None:
        server, before = Server((handing(b"abc"),)), os.getcwd()
        self.config.write_text(f"[relay]\nPORT = {server.port}\n")
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)
        assert self.run_client("relay", "--ask", typed=b"\n\n\n\n").status == 0
        assert (self.folder / "parcel.bin").read_bytes() == b"abc"
        server.over()

    def test_without_ask_it_says_what_to_use(self) -> None:
        ended = self.run_client("relay")
        assert ended.status == 2
        assert "`put` and `get`" in ended.err
