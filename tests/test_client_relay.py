"""put, get, ls, rm and requeue over HTTP: cuts, lies and losses that no real relay plays."""

from __future__ import annotations

import json
import os
import signal
import socket
from base64 import b64encode
from fcntl import LOCK_EX, flock
from hashlib import sha256
from pathlib import Path
from unicodedata import category
from unittest.mock import patch

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from client.http import Answer, Site
from client.landing import LONGEST, named
from client.net import Address, Failed
from tests.test_client import ClientCase, Script, Server, after, everything, nobody, reset, stall

DRAFT = "0123456789abcdef" * 2


@frozen
class Asked:
    """A request as the server saw it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


def heard(peer: socket.socket, most: int | None = None) -> Asked:
    """Read a request; most: bytes of its body after which we stop reading."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(peer)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if "transfer-encoding" in headers:
        while not body.endswith(b"0\r\n\r\n"):
            body += _more(peer)
        body = _unchunked(body)
    else:
        length = int(headers.get("content-length", 0))
        length = length if most is None else min(most, length)
        while len(body) < length:
            body += _more(peer)
        body = body[:length]
    return Asked(method, target, headers, body)


def _more(peer: socket.socket) -> bytes:
    data = peer.recv(1 << 16)
    assert data, "the request was cut"
    return data


def _unchunked(body: bytes) -> bytes:
    whole = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if not int(size, 16):
            return whole
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]


def replying(
    status: int, body: bytes = b"", length: int | None = None, /, **headers: object
) -> Script:
    """Hear a request and answer it; says the request."""

    def script(peer: socket.socket) -> Asked:
        asked = heard(peer)
        size = len(body) if length is None else length
        lines = [f"HTTP/1.1 {status} So", f"Content-Length: {size}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        peer.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return asked

    return script


def refusing(status: int, detail: str = "No.") -> Script:
    return replying(status, json.dumps({"error": "no", "detail": detail}).encode())


def cutting(most: int) -> Script:
    """Hear `most` bytes of a request's body, then reset; says the request."""

    def script(peer: socket.socket) -> Asked:
        asked = heard(peer, most)
        reset(peer)
        return asked

    return script


def digest_of(data: bytes) -> str:
    return f"sha-256=:{b64encode(sha256(data).digest()).decode()}:"


def kept(data: bytes, ident: int = 7) -> dict[str, object]:
    return {"Content_Location": f"/queue/{ident}", "Repr_Digest": digest_of(data)}


created = replying(201, Location=f"http://127.0.0.1/tus/{DRAFT}")


class PutTests(ClientCase):
    def test_a_file_goes_by_tus_and_the_line_that_collects_it_is_told(self) -> None:
        data = os.urandom(700_000)
        server = Server((created, replying(204, Upload_Offset=len(data), **kept(data))))
        ended = self.call(server, "put", "--expires", "2d", self.file(data, "r\u00e9sum\u00e9.pdf"))
        assert (ended.status, ended.err) == (0, "")
        assert ended.text == (
            "Kept: 700,000 bytes of r\u00e9sum\u00e9.pdf in queue, id 7\n"
            f"sha256 {sha256(data).hexdigest()}\n"
            f"collect it: curl -OJ http://127.0.0.1:{server.port}/queue/next\n"
        )
        post, send = server.over()
        assert (post.method, post.target, post.body) == ("POST", "/tus/", b"")
        assert post.headers["upload-length"] == "700000"
        assert post.headers["expires-in"] == "2d"
        name = b64encode("r\u00e9sum\u00e9.pdf".encode()).decode().lower()
        assert post.headers["upload-metadata"] == f"box cxvldwu=,filename {name}"
        assert (send.method, send.target) == ("PATCH", f"/tus/{DRAFT}")
        assert send.headers["upload-offset"] == "0"
        assert send.body == data

    def test_a_cut_upload_goes_on_from_what_the_server_has(self) -> None:
        data = os.urandom(3_000_000)
        server = Server(
            (
                created,
                cutting(1_500_000),
                replying(200, Upload_Offset=1_000_000),
                cutting(200_000),
                reset,
                replying(200, Upload_Offset=1_100_000),
                replying(204, Upload_Offset=len(data), **kept(data)),
            )
        )
        ended = self.call(server, "put", self.file(data))
        assert (ended.status, ended.err.count("trying again")) == (0, 2)
        _, first, _, second, _, look, last = server.over()
        assert first.body == data[:1_500_000]
        assert second.headers["upload-offset"] == "1000000"
        assert second.body == data[1_000_000:1_200_000]
        assert look.method == "HEAD"
        assert last.body == data[1_100_000:]

    def test_a_server_that_takes_only_part_gets_the_rest(self) -> None:
        data = b"0123456789"
        server = Server(
            (
                created,
                replying(204, Upload_Offset=4),
                replying(204, Upload_Offset=10, **kept(data)),
            )
        )
        assert self.call(server, "put", self.file(data)).status == 0
        assert [asked.body for asked in server.over()] == [b"", data, data[4:]]

    def test_a_lost_last_answer_is_asked_for(self) -> None:
        server = Server(
            (
                created,
                after(heard, reset),
                refusing(404),
                replying(200, ETag='"x"', **kept(b"abc", 9)),
            )
        )
        ended = self.call(server, "put", "--json", self.file(b"abc"))
        assert (ended.status, ended.facts["id"]) == (0, "9")
        assert server.over()[-1].target == f"/queue/{DRAFT}"

    def test_a_file_that_was_collected_at_once_is_kept_without_an_id(self) -> None:
        gone = (created, after(heard, reset), refusing(404), refusing(404))
        server = Server(gone)
        ended = self.call(server, "put", "--to", "photos", self.file(b"abc"))
        assert ended.text.startswith("Kept: 3 bytes of sent.bin in photos\n")
        server.over()

    def test_what_was_kept_wrongly_is_removed_and_told(self) -> None:
        server = Server((created, replying(204, Upload_Offset=3, **kept(b"abd")), replying(204)))
        ended = self.call(server, "put", self.file(b"abc"))
        assert ended.status == 1
        assert "the relay kept something else" in ended.err
        assert server.over()[-1].method == "DELETE"

    def test_a_refusal_is_told_in_the_servers_words(self) -> None:
        server = Server((refusing(507, "The box is full:\x1b[2J 1,000 bytes are free."),))
        ended = self.call(server, "put", self.file(b"abc"))
        assert (ended.status, ended.out) == (1, b"")
        assert "refused: The box is full:\\x1b[2J 1,000 bytes are free. (507)" in ended.err
        server.over()

    def test_a_refusal_in_the_middle_of_a_body_ends_it(self) -> None:
        def full(peer: socket.socket) -> object:
            heard(peer, 300_000)
            answer = b'{"detail": "The disk is full."}'
            peer.sendall(b"HTTP/1.1 507 No\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            return everything(peer)

        server = Server((created, full, replying(204)))
        ended = self.call(server, "put", self.file(bytes(30_000_000)))
        assert ended.status == 1
        assert "refused: The disk is full. (507)" in ended.err
        assert server.over()[-1].method == "DELETE"

    def test_a_file_that_shrinks_is_taken_back(self) -> None:
        path = Path(self.file(bytes(3_000_000)))

        def shrink(peer: socket.socket) -> object:
            path.write_bytes(b"")
            return created(peer)

        server = Server((shrink, everything, replying(204)))
        ended = self.call(server, "put", path)
        assert ended.status == 1
        assert "became shorter while it was sent: 0 bytes of 3,000,000" in ended.err
        assert server.over()[-1].method == "DELETE"

    def test_an_empty_file_is_one_request(self) -> None:
        server = Server((replying(201, Location=f"/tus/{DRAFT}", **kept(b"")),))
        assert self.call(server, "put", self.file(b"")).text.startswith("Kept: 0 bytes")
        server.over()

    def test_standard_input_goes_in_chunks_as_it_comes(self) -> None:
        data = os.urandom(600_000)
        digest = sha256(data).hexdigest()
        facts = {"id": "3", "size": len(data), "sha256": digest, "expires": "2027"}
        server = Server((replying(201, json.dumps(facts).encode()),))
        ended = self.call(server, "put", "--name", "a b/c", "-", "--json", typed=data)
        assert ended.facts == {
            "file": "-",
            "name": "a b/c",
            "box": "queue",
            "id": "3",
            "bytes": len(data),
            "sha256": digest,
            "expires": "2027",
            "collect": f"curl -OJ http://127.0.0.1:{server.port}/queue/next",
        }
        (asked,) = server.over()
        assert (asked.method, asked.target) == ("PUT", "/queue/a%20b%2Fc")
        assert asked.body == data

    def test_what_came_from_a_pipe_cannot_go_on(self) -> None:
        server = Server((after(heard, reset),))
        ended = self.call(server, "put", "-", typed=b"abc")
        assert ended.status == 1
        assert "only a file can go on" in ended.err
        server.over()

    def test_one_missing_file_does_not_stop_the_others(self) -> None:
        server = Server((created, replying(204, Upload_Offset=3, **kept(b"abc"))))
        ended = self.call(server, "put", self.folder / "nowhere", self.file(b"abc"))
        assert ended.status == 1
        assert "nowhere: No such file or directory" in ended.err
        assert "Kept: 3 bytes" in ended.text
        server.over()

    def test_it_gives_up_when_nothing_moves_for_the_timeout(self) -> None:
        server = Server((created, reset, reset))
        ended = self.call(server, "put", "--timeout", "0.3", self.file(b"abc"))
        assert ended.status == 69  # nobody listens any more
        assert "given up after 0.3 s without a byte" in ended.err
        server.over()

    def test_an_interrupted_upload_is_taken_back(self) -> None:
        def slow(peer: socket.socket) -> Asked:
            asked = heard(peer, 3)
            process.send_signal(signal.SIGINT)
            everything(peer)
            return asked

        server = Server((created, slow, replying(204)))
        process = self.start("put", "--port", server.port, self.file(b"abc"))
        assert self.ended(process).status == 130
        assert [asked.method for asked in server.over()] == ["POST", "PATCH", "DELETE"]

    def test_a_server_that_says_nothing_useful_is_named(self) -> None:
        for scripts, said in (
            ((replying(201),), "did not say where to send the file"),
            ((created, replying(204), replying(204)), "did not say how much it has"),
            ((saying_rubbish,), "did not answer in HTTP"),
            ((replying(404, b"<html>"),), "refused: So (404)"),
        ):
            server = Server(scripts)
            ended = self.call(server, "put", self.file(b"abc"))
            assert (ended.status, ended.out) == (1, b"")
            assert said in ended.err
            server.over()

    def test_a_pipe_whose_end_is_not_told_in_facts_is_an_error(self) -> None:
        for body, said in ((b"[]", "what it keeps"), (b"rubbish", "in JSON")):
            server = Server((replying(201, body),))
            ended = self.call(server, "put", "-", typed=b"abc")
            assert ended.status == 1
            assert said in ended.err
            server.over()

    def test_a_terminal_shows_how_far_it_is(self) -> None:
        server = Server((created, replying(204, Upload_Offset=3, **kept(b"abc"))))
        shown = self.on_terminal("put", "--port", server.port, self.file(b"abc", "a\x1bb"))
        assert shown.status == 0
        assert b"a\\x1bb" in shown.out
        assert b"/3 bytes" in shown.out
        server.over()

    def test_the_token_comes_from_a_file_or_the_environment(self) -> None:
        secret = self.file(b"s3cret\n", "token")
        self.env["ROUNDHOUSE_TOKEN"] = "other"
        for options, told in (([], "other"), (["--token-file", secret], "s3cret")):
            server = Server((created, replying(204, Upload_Offset=3, **kept(b"abc"))))
            ended = self.call(server, "put", *options, self.file(b"abc"))
            assert '-H "Authorization: Bearer $ROUNDHOUSE_TOKEN"' in ended.text
            assert {asked.headers["authorization"] for asked in server.over()} == {f"bearer {told}"}
        for content, said in ((b"\n", "holds no token"), (b"\xff", "not plain ASCII")):
            ended = self.run_client("put", "--token-file", self.file(content, "t"), "x")
            assert ended.status == 1
            assert said in ended.err

    def test_what_does_not_go_together_is_wrong_usage(self) -> None:
        for args in (
            ["--to", "No"],
            ["--to", "next"],
            ["--to", "x" * 65],
            ["--raw", "--to", "box"],
            ["--raw", "--name", "x"],
            ["--name", "x", "one", "two"],
        ):
            assert self.run_client("put", *args, "file").status == 2, args


def saying_rubbish(peer: socket.socket) -> None:
    heard(peer)
    peer.sendall(b"SSH-2.0-OpenSSH\r\n")


def handing(
    data: bytes, name: str = "got.bin", length: int | None = None, ident: int = 7, **more: object
) -> Script:
    """Hand out a file, or its beginning where `length` says so."""
    headers = {
        "ETag": f'"{sha256(data).hexdigest()}"',
        "Content_Disposition": f"attachment; filename*=UTF-8''{name}",
        "Lease": 60,
        **kept(data, ident),
        **more,
    }
    return replying(200, data[:length], len(data), **headers)


def going_on(data: bytes, start: int, end: int | None = None) -> Script:
    span = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return replying(206, data[start:end], len(data) - start, Content_Range=span)


class GetTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.into = self.folder / "into"
        self.into.mkdir()

    def here(self) -> list[str]:
        return sorted(os.listdir(self.into))

    def test_a_file_is_here_and_proved_before_it_leaves_the_box(self) -> None:
        data = os.urandom(700_000)
        seen: list[bytes] = []

        def acknowledged(peer: socket.socket) -> object:
            seen.append((self.into / "r\u00e9sum\u00e9.pdf").read_bytes())
            return replying(204)(peer)

        server = Server((handing(data, "r%C3%A9sum%C3%A9.pdf"), acknowledged))
        ended = self.call(server, "get", "--from", "photos", "-o", self.into)
        path = self.into / "r\u00e9sum\u00e9.pdf"
        assert ended.text == (
            f"Received 700,000 bytes in {path}\nsha256 {sha256(data).hexdigest()}\n"
        )
        assert ended.err == ""
        asked, done = server.over()
        assert asked.target == "/photos/next?ack=manual&wait=0.000"
        assert (done.method, done.target) == ("DELETE", "/photos/7")
        assert seen == [data]
        assert self.here() == ["r\u00e9sum\u00e9.pdf"]

    def test_a_cut_download_goes_on_where_it_was(self) -> None:
        data = os.urandom(900_000)
        server = Server(
            (
                handing(data, length=300_000),
                reset,
                going_on(data, 300_000, 500_000),
                going_on(data, 500_000),
                replying(204),
            )
        )
        ended = self.call(server, "get", "-o", self.into / "x", "--json")
        assert ended.facts == {
            "file": str(self.into / "x"),
            "bytes": len(data),
            "sha256": sha256(data).hexdigest(),
            "name": "got.bin",
            "box": "queue",
            "id": "7",
        }
        _, _, first, second, _ = server.over()
        assert (first.target, first.headers["range"]) == ("/queue/7", "bytes=300000-")
        assert first.headers["if-range"] == f'"{sha256(data).hexdigest()}"'
        assert second.headers["range"] == "bytes=500000-"
        assert (self.into / "x").read_bytes() == data

    def test_a_server_without_ranges_sends_it_all_again(self) -> None:
        data = os.urandom(300_000)
        server = Server((handing(data, length=100_000), handing(data), replying(204)))
        assert self.call(server, "get", "-o", self.into / "x").status == 0
        assert (self.into / "x").read_bytes() == data
        server.over()

    def test_what_is_not_what_was_sent_is_not_kept_and_stays_in_the_box(self) -> None:
        lie = handing(b"abc", Repr_Digest=digest_of(b"abd"))
        server = Server((lie,))
        ended = self.call(server, "get", "-o", self.into / "x")
        assert ended.status == 1
        assert "what came is not what was sent, and the relay keeps it" in ended.err
        assert self.here() == []
        server.over()

    def part(self, data: bytes, held: bytes, name: str = "got.bin") -> Path:
        path = self.into / f"{name}.{sha256(data).hexdigest()[:12]}.part"
        path.write_bytes(held)
        return path

    def test_what_an_earlier_get_left_is_taken_up(self) -> None:
        data = os.urandom(500_000)
        self.part(data, data[:200_000])
        server = Server((handing(data), going_on(data, 200_000), replying(204)))
        assert self.call(server, "get", "-o", self.into).status == 0
        assert server.over()[1].headers["range"] == "bytes=200000-"
        assert (self.into / "got.bin").read_bytes() == data
        assert self.here() == ["got.bin"]

    def test_a_whole_one_is_only_acknowledged(self) -> None:
        self.part(b"abc", b"abc")
        server = Server((handing(b"abc"), replying(204)))
        assert self.call(server, "get", "-o", self.into).status == 0
        assert server.over()[-1].method == "DELETE"
        assert (self.into / "got.bin").read_bytes() == b"abc"

    def test_an_earlier_part_that_is_wrong_is_dropped(self) -> None:
        data = os.urandom(1000)
        for held in (b"x" * 10, b"x" * 1000, b"x" * 2000):
            self.part(data, held)
            again = (
                (going_on(data, 10), handing(data))
                if len(held) == 10
                else (handing(data),)
                if len(held) == 1000
                else ()
            )
            server = Server((handing(data), *again, replying(204)))
            assert self.call(server, "get", "-o", self.into).status == 0
            assert (self.into / "got.bin").read_bytes() == data
            (self.into / "got.bin").unlink()
            server.over()

    def test_a_part_that_another_get_writes_is_left_alone(self) -> None:
        path = self.part(b"abc", b"a")
        with path.open("ab") as other:
            flock(other, LOCK_EX)
            server = Server((handing(b"abc"),))
            ended = self.call(server, "get", "-o", self.into)
            assert ended.status == 1
            assert f"another transfer writes {path}" in ended.err
            server.over()
        assert path.read_bytes() == b"a"

    def test_a_part_that_is_a_link_is_not_followed(self) -> None:
        victim = Path(self.file(b"precious"))
        path = self.into / f"got.bin.{sha256(b'abc').hexdigest()[:12]}.part"
        path.symlink_to(victim)
        server = Server((handing(b"abc"),))
        assert self.call(server, "get", "-o", self.into).status == 1
        assert victim.read_bytes() == b"precious"
        server.over()

    def test_ctrl_c_keeps_what_came_and_says_how_to_go_on(self) -> None:
        data = os.urandom(5000)

        def slow(peer: socket.socket) -> object:
            asked = handing(data, length=2000)(peer)
            for _ in range(500):
                if parts := list(self.into.glob("*.part")):
                    break
                stall(peer)
            assert parts
            process.send_signal(signal.SIGINT)
            everything(peer)
            return asked

        server = Server((slow,))
        process = self.start("get", "-o", self.into, "--port", server.port)
        ended = self.ended(process)
        assert ended.status == 130
        server.over()
        if "came and are kept" in ended.err:  # else it came before the first byte
            assert "`get --from queue 7` goes on from there" in ended.err
            assert self.here() == [f"got.bin.{sha256(data).hexdigest()[:12]}.part"]

    def test_one_parcel_can_be_asked_for(self) -> None:
        server = Server((handing(b"abc", ident=12), replying(204)))
        assert self.call(server, "get", "12", "--as", "ana b", "-o", self.into).status == 0
        asked, done = server.over()
        assert asked.target == "/queue/12?as=ana+b"
        assert done.target == "/queue/12?as=ana+b"

    def test_an_empty_box_is_status_66(self) -> None:
        server = Server((replying(204),))
        ended = self.call(server, "get", "--from", "photos", "-o", self.into)
        assert ended.status == 66
        assert "nothing waits in photos" in ended.err
        server.over()

    def test_waiting_asks_again_also_when_the_daemon_was_away(self) -> None:
        server = Server((replying(204), reset, replying(204), handing(b"abc"), replying(204)))
        ended = self.call(server, "get", "--wait", "-o", self.into)
        assert (ended.status, ended.err) == (0, "Waiting for sender...\n")
        assert server.over()[0].target == "/queue/next?ack=manual&wait=25.000"

    def test_waiting_can_be_bounded(self) -> None:
        server = Server((replying(204), after(stall, replying(204))))
        ended = self.call(server, "get", "--wait", "--timeout", "0.3", "-o", self.into)
        assert ended.status == 66
        server.over()

    def test_a_file_that_somebody_else_has_by_now_is_told(self) -> None:
        server = Server((handing(b"abc"), refusing(404)))
        ended = self.call(server, "get", "-o", self.into)
        assert ended.status == 1
        assert "it had left its box before that could be said" in ended.err
        assert self.here() == ["got.bin"]
        server.over()

    def test_a_lost_answer_to_the_acknowledgement_is_asked_for_again(self) -> None:
        server = Server((handing(b"abc"), after(heard, reset), refusing(503), refusing(404)))
        assert self.call(server, "get", "-o", self.into).status == 0
        assert [asked.method for asked in server.over()[1:]] == ["DELETE"] * 3

    def test_a_parcel_that_goes_away_in_the_middle_leaves_its_part(self) -> None:
        server = Server((handing(bytes(5000), length=1000), refusing(404, "Nothing is there.")))
        ended = self.call(server, "get", "-o", self.into)
        assert ended.status == 1
        assert "Nothing is there. (404): somebody else has it" in ended.err
        assert "1,000 of 5,000 bytes came and are kept" in ended.err
        assert [name.rpartition(".")[2] for name in self.here()] == ["part"]
        server.over()

    def test_answers_that_do_not_fit_are_refused(self) -> None:
        data = bytes(100)
        for scripts, said in (
            ((replying(200, b"hello"),), "did not say what it hands out"),
            ((handing(data, length=10), going_on(data, 20)), "another range than it was asked for"),
            ((handing(data, length=10), handing(data[:50])), "a file of another size"),
        ):
            server = Server(scripts)
            ended = self.call(server, "get", "-o", self.into / "x")
            assert ended.status == 1
            assert said in ended.err
            server.over()

    def test_nothing_is_replaced_without_force(self) -> None:
        (self.into / "got.bin").write_bytes(b"precious")
        ended = self.run_client("get", "-o", self.into / "got.bin", "--port", nobody())
        assert ended.status == 1
        assert "exists, and nothing is overwritten" in ended.err
        server = Server((handing(b"abc"), replying(204)))
        assert self.call(server, "get", "-o", self.into).status == 0
        server.over()
        assert (self.into / "got.bin").read_bytes() == b"precious"
        assert (self.into / "got-2.bin").read_bytes() == b"abc"
        (self.into / "folder").mkdir()
        ended = self.run_client("get", "--force", "-o", self.into / "folder/", "--port", nobody())
        assert ended.status == 69
        for output in (self.into, self.into / "got.bin"):
            server = Server((handing(b"new"), replying(204)))
            assert self.call(server, "get", "--force", "-o", output).status == 0
            server.over()
            assert (self.into / "got.bin").read_bytes() == b"new"

    def test_on_a_terminal_it_lands_in_the_current_folder_under_its_name(self) -> None:
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.into)
        server = Server((handing(b"abc", "..%2F..%2Fetc%2Fpasswd"), replying(204)))
        shown = self.on_terminal("get", "--port", server.port)
        assert b"Received 3 bytes in passwd" in shown.out
        assert self.here() == ["passwd"]
        assert sorted(os.listdir(self.folder)) == ["config.cfg", "into"]
        server.over()

    def test_a_pipe_gets_the_bytes_and_goes_on_after_a_cut(self) -> None:
        data = os.urandom(300_000)
        server = Server((handing(data, length=1000), going_on(data, 1000), replying(204)))
        ended = self.call(server, "get")
        assert (ended.status, ended.out) == (0, data)
        assert ended.err.endswith(f"300,000 bytes, sha256 {sha256(data).hexdigest()}\n")
        server.over()

    def test_half_of_another_file_is_not_passed_on(self) -> None:
        data = os.urandom(1000)
        server = Server((handing(data, length=10), handing(data)))
        ended = self.call(server, "get", "-o", "-")
        assert (ended.status, ended.out) == (1, data[:10])
        assert "half of it is already passed on" in ended.err
        server.over()

    def test_a_silent_server_is_given_up(self) -> None:
        def mute(peer: socket.socket) -> object:
            handing(bytes(1000), length=10)(peer)
            stall(peer)
            return None

        server = Server((mute,))
        ended = self.call(server, "get", "--timeout", "0.2", "-o", self.into / "x")
        assert ended.status in (1, 69)  # nobody listens any more, or the backlog was reset
        assert "went silent; trying again" in ended.err
        assert "given up after 0.2 s without a byte" in ended.err
        server.over()

    def test_what_does_not_go_together_is_wrong_usage(self) -> None:
        for args in (["--json", "-o", "-"], ["--raw", "--wait"], ["--raw", "7"], ["--from", "X"]):
            assert self.run_client("get", *args).status == 2, args


class HeaderTests(SynchronousTestCase):
    def answer(self, **headers: object) -> Answer:
        server = Server((replying(200, b"0123456789", **headers),))
        with Site(Address("127.0.0.1", server.port)).ask("GET", "/") as answer:
            server.over()
            return answer

    def test_only_a_sound_sha_256_is_believed(self) -> None:
        right = sha256(b"").digest()
        encoded = b64encode(right).decode()
        for told, read in (
            (f"md5=:AAAA:, sha-256=:{encoded}:", right.hex()),
            (f"sha-512=:{encoded}:", None),
            ("sha-256=:!:", None),
            ("", None),
        ):
            assert self.answer(Repr_Digest=told).sha256 == read, told
        assert self.answer(Content_Location="/box/a%2Fb").ident == "a/b"

    def test_the_full_name_is_preferred_to_the_one_for_old_clients(self) -> None:
        full = "filename*=UTF-8''r%C3%A9sum%C3%A9.pdf"
        for told, name in (
            (f'attachment; filename="r_sum_.pdf"; {full}', "r\u00e9sum\u00e9.pdf"),
            ('attachment; filename="plain.txt"', "plain.txt"),
            ("attachment", None),
            ("attachment; filename*=rubbish''%C3", "\xc3"),
        ):
            assert self.answer(Content_Disposition=told).name == name, told

    def test_an_endless_answer_is_not_read(self) -> None:
        server = Server((replying(200, b"[" * 2000),))
        site = Site(Address("127.0.0.1", server.port))
        with (
            patch("client.http.LONGEST", 1000),
            site.ask("GET", "/") as answer,
            pytest.raises(Failed, match="more than 1,000 bytes"),
        ):
            answer.json()
        server.over()


class ListingTests(ClientCase):
    def test_boxes_are_listed_with_what_is_in_them(self) -> None:
        listing = {"boxes": [{"box": "photos", "parcels": 12, "bytes": 3_000_000}]}
        for flags in ([], ["--json"]):
            server = Server((replying(200, json.dumps(listing).encode()),))
            ended = self.call(server, "ls", *flags)
            assert ended.status == 0
            assert server.over()[0].target == "/?format=json"
            if flags:
                assert ended.facts == listing
            else:
                assert ended.text == "box     files      bytes\nphotos     12  3,000,000\n"

    def test_parcels_are_listed_and_their_names_are_harmless(self) -> None:
        one = {
            "id": "7",
            "name": "a\x1b[2J",
            "size": 1234,
            "sha256": "",
            "sent": "2026-11-21T06:40:00Z",
            "expires": None,
            "deliveries": 0,
            "state": "waiting",
        }
        arriving = {**one, "id": "8", "name": "b", "state": "uploading", "received": 617}
        unknown = {**arriving, "id": "9", "size": None}
        listing = {"box": "photos", "parcels": [one, arriving, unknown]}
        server = Server((replying(200, json.dumps(listing).encode()),))
        assert self.call(server, "ls", "photos").text.splitlines() == [
            "id  bytes  state           sent (UTC)        expires (UTC)  name",
            "7   1,234  waiting         2026-11-21 06:40  -              a\\x1b[2J",
            "8     617  uploading 50 %  2026-11-21 06:40  -              b",
            "9     617  uploading       2026-11-21 06:40  -              b",
        ]
        assert server.over()[0].target == "/photos"

    def test_nothing_is_said_to_be_nothing(self) -> None:
        for args, listing in (([], {"boxes": []}), (["x"], {"box": "x", "parcels": []})):
            server = Server((replying(200, json.dumps(listing).encode()),))
            assert self.call(server, "ls", *args).text == "No files wait.\n"
            server.over()

    def test_what_is_no_listing_is_told(self) -> None:
        for body in (b"[]", b"{}", b'{"boxes": [1]}'):
            server = Server((replying(200, body),))
            ended = self.call(server, "ls")
            assert ended.status == 1
            assert "sent no listing: is it a relay?" in ended.err
            server.over()

    def test_files_are_removed_by_their_ids_all_that_can_be(self) -> None:
        server = Server((replying(204), refusing(404, "Nothing is there."), replying(204)))
        ended = self.call(server, "rm", "--from", "photos", "1", "../2", "3")
        assert ended.status == 1
        assert ended.text == "Removed 1 from photos\nRemoved 3 from photos\n"
        assert "../2: " in ended.err
        assert [asked.target for asked in server.over()] == [
            "/photos/1",
            "/photos/..%2F2",
            "/photos/3",
        ]

    def test_a_parked_file_is_put_back(self) -> None:
        facts = {"id": "7", "state": "waiting"}
        server = Server((replying(200, json.dumps(facts).encode()),) * 2)
        assert self.call(server, "requeue", "7").text == "7 is waiting in queue\n"
        assert self.call(server, "requeue", "--json", "7").facts == facts
        assert server.over()[0].body == b"action=requeue"
        server = Server((replying(200, b"[]"),))
        assert self.call(server, "requeue", "7").status == 1
        server.over()


class NameTests(SynchronousTestCase):
    def test_a_name_from_the_network_is_no_path_and_nothing_hidden(self) -> None:
        for name, safe in (
            ("report.pdf", "report.pdf"),
            ("r\u00e9sum\u00e9 2.pdf", "r\u00e9sum\u00e9 2.pdf"),
            ("../../etc/passwd", "passwd"),
            (".bashrc", "_bashrc"),
            ("-rf", "_rf"),
            ("a\0b\x1b\u202ec", "a_b__c"),
            ("..", "else"),
            ("", "else"),
            ("///", "else"),
            ("x" * 300 + ".txt", "x" * 196 + ".txt"),
            ("x." + "y" * 300, "x." + "y" * 198),
        ):
            assert named(name, "else") == safe, name

    @settings(deadline=None, max_examples=300)
    @given(st.text(max_size=300))
    def test_any_name_fits_in_a_folder(self, name: str) -> None:
        made = named(name, "else")
        assert 0 < len(made.encode()) <= LONGEST
        assert "/" not in made
        assert made[0] not in ".-"
        assert not {category(c) for c in made} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
