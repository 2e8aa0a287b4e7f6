"""The comparison of files put and got: the load, the servers, and what counts as right."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import SkipTest
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from loadtest.__main__ import cli
from loadtest.compare import relay
from loadtest.compare.build import Missing, Workshop, cache
from loadtest.compare.bulk import DATA, MIB
from loadtest.compare.harness import Broken, Launch, Peer, Server, Wrong, free_ports, measure
from loadtest.compare.relay import CASES, COMPARISON, OURS, TUS, check, load
from loadtest.compare.table import GBPS, Case, Sample
from tests.test_compare import needs_compiler, workshop

SIZE = 3 * MIB // 2  # bytes of a file: not a whole number of DATA

SERVER = """
import re, socket, sys, threading
files = {{}}
def serve(peer):
    head, _, data = peer.recv(65536).partition(b"\\r\\n\\r\\n")
    if head:
        method, path, _ = head.split(b" ", 2)
        size = int((re.search(rb"Content-Length: (\\d+)", head) or [0, 0])[1])
        data = bytearray(data)
        while len(data) < size:
            data += peer.recv(1 << 20)
        data = bytes(data)
        if method == b"GET":
            data = files[path]
            peer.sendall(b"HTTP/1.1 200 OK\\r\\n\\r\\n" + ({give}))
        elif method == b"POST":
            peer.sendall(b"HTTP/1.1 201 Made\\r\\n{location}\\r\\nContent-Length: 0\\r\\n\\r\\n")
        else:
            files[path] = data
            with open(path.rpartition(b"/")[2].decode(), "wb") as file:
                file.write(data)
            peer.sendall(b"HTTP/1.1 {status}\\r\\n\\r\\n")
    peer.close()
def echo(port):
    listener = socket.create_server(("127.0.0.1", port))
    peer = listener.accept()[0]
    while data := peer.recv(65536):
        peer.sendall(data.upper())
threading.Thread(target=echo, args=(int(sys.argv[2]),), daemon=True).start()
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=100)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


def server(
    name: str = OURS,
    status: str = "201 Made",
    give: str = "data",
    location: str = "Location: /tus/one",
) -> Peer:
    code = SERVER.format(status=status, give=give, location=location)

    def launch(folder: Path, port: int) -> Launch:
        (other,) = free_ports(1)
        argv = [sys.executable, "-c", code, str(port), str(other)]
        return Launch(argv, ports={"echo PORT": other})

    return Peer(name, "", "", launch)


def files(mode: str, count: int = 2, name: str = "some") -> Case:
    return Case(name, name, (mode, str(count), str(SIZE)), "files", GBPS, fresh=True)


class MeasuredTests(SynchronousTestCase):
    def setUp(self) -> None:
        needs_compiler()
        self.generator = workshop().c("bulk_load")

    def measured(self, peer: Peer, case: Case) -> Sample:
        with Server(peer) as running:
            sample = measure(running, case, self.generator, 0.1, load_of=load)
            check(case, running, sample)
        return sample

    def test_the_limit_takes_files_and_gives_them_back(self) -> None:
        put = self.measured(relay.limit(workshop()), files("streams", 3))
        assert (put.ops, put.bytes) == (3, 3 * SIZE)
        got = self.measured(relay.limit(workshop()), files("fetch", 3))
        assert got.ops > 3
        assert got.bytes == got.ops * SIZE
        assert 0 < got.p50_us <= got.p99_us

    def test_an_upload_must_be_answered_by_its_status(self) -> None:
        assert self.measured(server(), files("streams")).ops == 2
        with pytest.raises(Wrong, match=r"the answer to a stream is: HTTP/1\.1 500"):
            self.measured(server(status="500 No"), files("streams"))
        with pytest.raises(Broken, match=r"the load could not begin.* HTTP/1\.1 500"):
            self.measured(server(status="500 No"), files("fetch"))

    def test_what_is_got_must_be_what_was_put(self) -> None:
        assert self.measured(server(), files("fetch")).ops >= 2
        for give, said in (
            ("data[:-1]", "not as many bytes as were stored"),
            ("data + b'more'", "not as many bytes as were stored"),
            ("b'x' + data[1:]", "the first bytes are not what was stored"),
            ("data[:-1] + b'x'", "the bytes are not what was stored"),
        ):
            with pytest.raises(Wrong, match=said):
                self.measured(server(give=give), files("fetch", 1))

    def test_tus_goes_where_the_answer_to_its_post_says(self) -> None:
        for location in ("Location: /a/one", "location: http://127.0.0.1:1/a/one"):
            peer = server(TUS, "204 Kept", location=location)
            assert self.measured(peer, files("streams", 1)).ops == 1
        for location, said in (
            ("Elsewhere: /a/one", "the answer to a POST is: HTTP"),
            ("Location: http://nowhere", "no path in: ://nowhere"),
        ):
            with pytest.raises(Wrong, match=said):
                self.measured(server(TUS, "204 Kept", location=location), files("streams", 1))

    def test_echo_goes_on_beside(self) -> None:
        for mode in ("streams", "fetch"):
            taken = self.measured(server(), files(mode, name="echo up"))
            assert 0 < taken.p50_us <= taken.p99_us

    def test_nginx_puts_and_gets(self) -> None:
        try:
            peer = COMPARISON.peers["nginx"](workshop())
        except Missing as missing:
            raise SkipTest(str(missing)) from None
        assert isinstance(peer, Peer)
        for mode in ("streams", "fetch"):
            assert self.measured(peer, files(mode)).ops >= 2

    def test_the_node_server_takes_uploads_by_tus(self) -> None:

        try:
            peer = relay.node(Workshop(cache(os.environ)))
        except Missing as missing:
            raise SkipTest(str(missing)) from None
        assert self.measured(peer, files("streams")).ops == 2


class CheckTests(SynchronousTestCase):
    def test_files_that_are_cut_missing_or_other_ones_are_found(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        folder = Path(scratch.name)
        data = (DATA * 2)[:SIZE]
        (folder / "index.db").write_bytes(b"not a file of anybody's")
        for number in range(2):
            (folder / f"{number}").write_bytes(data)
        put = files("streams")
        assert relay.wrong(put, folder) == ""
        (folder / "1").write_bytes(data[:-1])
        assert relay.wrong(put, folder) == "2 files of 1,572,864 bytes were put, 1 are there"
        for name in "01":
            (folder / name).write_bytes(data[:-1] + b"x")
        assert relay.wrong(put, folder).endswith(" is not what was put")
        running = Server(Peer("C", "", "", lambda folder, port: Launch([])))
        running.folder = folder
        with patch.object(relay, "PATIENCE", 0.15), pytest.raises(Wrong, match="some: C: "):
            check(put, running, Sample(2, 1, 1, 0, 0))


class PeerTests(SynchronousTestCase):
    def test_the_node_server_is_found_where_npm_put_it_or_the_command_is_told(self) -> None:
        if not shutil.which("node"):
            raise SkipTest("node is not installed")
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        shop = Workshop(Path(scratch.name))
        with pytest.raises(Missing, match=r"npm install --prefix .*/node @tus/server @tus/file-"):
            relay.node(shop)
        package = shop.folder / "node" / "node_modules" / "@tus" / "server" / "package.json"
        package.parent.mkdir(parents=True)
        package.write_text(json.dumps({"version": "9.8.7"}))
        assert relay.node(shop).version.startswith("9.8.7 on Node v")

    def test_ours_are_the_relay_over_http(self) -> None:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        for make in (relay.ours, relay.ours_by_tus):
            launch = make(workshop()).launch(Path(scratch.name), 12345)
            assert launch.ports["relay HTTP_PORT"] == 12345

    def test_help_names_every_case_and_every_peer(self) -> None:
        said = CliRunner().invoke(cli, ["compare", "relay", "-h"]).output
        for case in CASES:
            assert f"  {case.name} " in said
        assert f"Peers:\n    {', '.join(COMPARISON.peers)}\n" in said
