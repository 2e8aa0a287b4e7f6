"""The relay with the clients people already have, unchanged: curl, wget, nc, tuspy, tus-js-client.

Cuts come from a proxy in the middle (tests/cutter.py). The node client is what `npm ci` in
tests/foreign installs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any
from urllib.request import urlopen

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests.cutter import Cutter
from tests.process import PATIENCE, Twistd

FOREIGN = Path(__file__).with_name("foreign")
RAW, HTTP = 5011, 5012
SIZE = 12_000_000
CUT = 7_000_000
LOST = 4_000_000  # bytes that may be under way when a connection is cut
RESUMED = 0.5  # seconds
TUSPY = """
import sys
from tusclient.client import TusClient
url, path, box = sys.argv[1:]
metadata = {"box": box, "filename": "tuspy.bin"}
uploader = TusClient(url).uploader(path, metadata=metadata, retries=5, retry_delay=0)
uploader.upload()
print(uploader.url)
"""


class ForeignCase(SynchronousTestCase):
    box = "photos"

    def setUp(self) -> None:
        self.daemon = Twistd()
        self.addCleanup(self.daemon.discard)
        self.daemon.configure(relay="RECEIVER_AFTER = 0.1")
        self.daemon.start()
        self.folder = self.daemon.home / "work"
        self.folder.mkdir()
        self.sent = self.folder / "sent.bin"
        self.data = os.urandom(SIZE)
        self.sent.write_bytes(self.data)

    def url(self, *parts: str, port: int | None = None) -> str:
        return "/".join([f"http://127.0.0.1:{port or self.daemon.ports[HTTP]}", *parts])

    def run_tool(self, *command: object, stdin: IO[bytes] | None = None) -> str:
        """Run it in the test's folder: what it printed."""
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            capture_output=True,
            timeout=PATIENCE,
            stdin=stdin,
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        return done.stdout.decode()

    def needs(self, tool: str) -> str:
        path = shutil.which(tool)
        if path is None:
            raise SkipTest(f"{tool} is not installed")
        return path

    def through(self, cutter: Cutter) -> Cutter:
        self.addCleanup(cutter.close)
        return cutter

    def parcels(self) -> list[dict[str, Any]]:
        with urlopen(self.url(self.box), timeout=PATIENCE) as answer:
            listing: dict[str, Any] = json.load(answer)
        found: list[dict[str, Any]] = listing["parcels"]
        return found

    def put(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(
            self.run_tool(self.needs("curl"), "-sST", self.sent, self.url(self.box, "sent.bin"))
        )
        return facts


class CurlTests(ForeignCase):
    def test_curl_puts_and_the_line_it_is_told_collects_it(self) -> None:
        facts = self.put()
        assert facts["size"] == SIZE
        assert facts["name"] == "sent.bin"
        command = facts["collect"].split()
        assert command == ["curl", "-OJ", self.url(self.box, "next")]
        self.sent.unlink()
        self.run_tool(*command)
        assert self.sent.read_bytes() == self.data
        assert self.parcels() == []

    def test_curl_puts_what_it_reads_from_a_pipe(self) -> None:
        with self.sent.open("rb") as stream:
            self.run_tool(
                self.needs("curl"), "-sST", "-", self.url(self.box, "piped"), stdin=stream
            )
        assert [(one["name"], one["size"]) for one in self.parcels()] == [("piped", SIZE)]

    def test_curl_goes_on_with_a_download_that_was_cut(self) -> None:
        ident = str(self.put()["id"])
        proxy = self.through(Cutter(self.daemon.ports[HTTP], CUT, upwards=False))
        fetch = ["curl", "-sS", "-C", "-", "-o", "got", self.url(self.box, ident, port=proxy.port)]
        cut = subprocess.run(fetch, cwd=self.folder, stderr=subprocess.PIPE, timeout=PATIENCE)
        assert cut.returncode in (18, 56)
        self.run_tool(*fetch)
        assert (self.folder / "got").read_bytes() == self.data
        assert proxy.down < SIZE + LOST

    def test_wget_goes_on_by_itself(self) -> None:
        wget = self.needs("wget")
        ident = str(self.put()["id"])
        proxy = self.through(Cutter(self.daemon.ports[HTTP], CUT, upwards=False))
        url = self.url(self.box, ident, port=proxy.port)
        self.run_tool(wget, "-q", "-c", "--tries=3", "--waitretry=0", "-O", "got", url)
        assert (self.folder / "got").read_bytes() == self.data
        assert proxy.down < SIZE + LOST
        assert proxy.back is not None
        assert proxy.back < 2  # wget itself waits a while


class NcTests(ForeignCase):
    def raw(self, sent: Path | None, received: Path | None) -> None:
        """nc -N < sent > received"""
        with open(sent or os.devnull, "rb") as stdin, open(received or os.devnull, "wb") as stdout:
            done = subprocess.run(
                [self.needs("nc"), "-N", "127.0.0.1", str(self.daemon.ports[RAW])],
                stdin=stdin,
                stdout=stdout,
                timeout=PATIENCE,
            )
        assert done.returncode == 0

    def test_nc_hands_a_file_to_nc(self) -> None:
        self.raw(self.sent, None)
        self.raw(None, self.folder / "got")
        assert (self.folder / "got").read_bytes() == self.data

    def test_nc_and_curl_meet_in_the_box_queue(self) -> None:
        self.box = "queue"
        self.raw(self.sent, None)
        self.run_tool(self.needs("curl"), "-sSo", "got", self.url("queue", "next"))
        assert (self.folder / "got").read_bytes() == self.data
        self.put()
        self.raw(None, self.folder / "again")
        assert (self.folder / "again").read_bytes() == self.data


class TusTests(ForeignCase):
    """An upload that is cut in the middle is resumed at once, and only the rest is sent.

    stale: the server has not noticed the cut, and still believes in the old connection.
    """

    def uploads(self, stale: bool, *command: object) -> None:
        """Run `command` ENDPOINT FILE BOX."""
        proxy = self.through(Cutter(self.daemon.ports[HTTP], CUT, stale=stale))
        self.run_tool(*command, self.url("tus", "", port=proxy.port), self.sent, self.box)
        (one,) = self.parcels()
        assert one["size"] == SIZE
        with urlopen(self.url(self.box, str(one["id"])), timeout=PATIENCE) as answer:
            assert answer.read() == self.data
        assert CUT < proxy.up < SIZE + LOST
        assert proxy.back is not None
        assert proxy.back < RESUMED

    def js(self, stale: bool) -> None:
        node = self.needs("node")
        if not (FOREIGN / "node_modules" / "tus-js-client").is_dir():
            raise SkipTest("tus-js-client is not installed: npm ci in tests/foreign")
        self.uploads(stale, node, FOREIGN / "tus.js")

    def py(self, stale: bool) -> None:
        if find_spec("tusclient") is None:
            raise SkipTest("tuspy is not installed: pip install tuspy")
        self.uploads(stale, sys.executable, "-c", TUSPY)

    def test_tus_js_client_goes_on_after_a_cut(self) -> None:
        self.js(stale=False)

    def test_tus_js_client_goes_on_while_its_old_connection_seems_alive(self) -> None:
        self.js(stale=True)

    def test_tuspy_goes_on_after_a_cut(self) -> None:
        self.py(stale=False)

    def test_tuspy_goes_on_while_its_old_connection_seems_alive(self) -> None:
        self.py(stale=True)
