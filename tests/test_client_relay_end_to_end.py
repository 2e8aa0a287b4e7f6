"""The relay's client with a real daemon that is killed in the middle, and started again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tests.cutter import Cutter
from tests.process import Twistd
from tests.test_client import ClientCase, Ended

HTTP = 5012
BOX = "photos"
SIZE = 12_000_000
CUT = 7_000_000
LONG = 60_000_000
CHECKPOINT = 32 << 20  # bytes that a daemon may have to be sent again once it was killed
LOST = 4_000_000  # bytes that may be under way when a connection is cut


class DaemonTests(ClientCase):
    def setUp(self) -> None:
        super().setUp()
        self.daemon = Twistd()
        self.addCleanup(self.daemon.discard)
        settings = "RECEIVER_AFTER = 0.1", "MAX_DELIVERIES = 1", "LEASE = 1"
        self.daemon.configure(relay="\n".join([*settings, "TOKEN_locked = sesame-sesame"]))
        self.daemon.start()
        self.into = self.folder / "into"
        self.into.mkdir()
        self.env["ROUNDHOUSE_CONFIG"] = str(self.daemon.config)

    def done(self, *args: object, typed: bytes | None = None) -> Ended:
        ended = self.run_client(*args, typed=typed)
        assert ended.status == 0, ended
        return ended

    def ids(self) -> list[str]:
        return [one["id"] for one in self.done("ls", "--json", BOX).facts["parcels"]]

    def cut(self, upwards: bool, after: int = CUT) -> Cutter:
        """A proxy behind which the daemon is killed, and started again."""
        target = self.daemon.ports[HTTP]
        proxy = Cutter(target, after, upwards, meanwhile=self.daemon.kill)
        self.addCleanup(proxy.close)
        return proxy

    def test_files_come_out_in_the_order_and_under_the_names_they_went_in(self) -> None:
        names = ["one.txt", "\u00e1 two.txt", "-three.txt", "empty"]
        files = [self.file(name.encode() * (name != "empty"), name) for name in names]
        self.done("put", "--to", BOX, *files)
        listed = self.done("ls", BOX).text
        assert all(name in listed for name in names)
        assert BOX in self.done("ls").text
        for name in names:
            ended = self.done("get", "--from", BOX, "-o", self.into, "--json").facts
            assert ended["name"] == name
            assert Path(ended["file"]).read_bytes() == name.encode() * (name != "empty")
        assert self.run_client("get", "--from", BOX, "-o", self.into).status == 66

    def test_a_pipe_goes_in_and_out(self) -> None:
        data = os.urandom(1_000_000)
        self.done("put", "--to", BOX, "--name", "x", "--expires", "1h", "-", typed=data)
        assert self.done("get", "--from", BOX).out == data

    def test_an_upload_goes_on_after_the_daemon_was_killed(self) -> None:
        data, proxy = os.urandom(LONG), self.cut(upwards=True, after=LONG - CUT)
        ended = self.done("put", "--to", BOX, "--port", proxy.port, self.file(data))
        assert "trying again" in ended.err
        assert proxy.up < LONG + CHECKPOINT
        assert self.done("get", "--from", BOX).out == data

    def test_a_download_goes_on_after_the_daemon_was_killed(self) -> None:
        data, proxy = os.urandom(SIZE), self.cut(upwards=False)
        self.done("put", "--to", BOX, self.file(data))
        ended = self.done("get", "--from", BOX, "-o", self.into / "x", "--port", proxy.port)
        assert "trying again" in ended.err
        assert proxy.down < SIZE + LOST
        assert (self.into / "x").read_bytes() == data
        assert self.ids() == []

    def test_what_is_removed_is_gone_and_what_is_parked_comes_again(self) -> None:
        self.done("put", "--to", BOX, self.file(b"one"), self.file(bytes(SIZE), "two"))
        first, second = self.ids()
        self.done("rm", "--from", BOX, first)
        assert self.run_client("rm", "--from", BOX, first).status == 1
        proxy = self.cut(upwards=False)
        proxy.meanwhile = None
        process = self.start("get", "--from", BOX, "--port", proxy.port, "-o", "-")
        assert process.stdout is not None
        process.stdout.read(1000)
        process.kill()
        self.ended(process)
        until = time.monotonic() + 10
        while "parked" not in self.done("ls", BOX).text:
            assert time.monotonic() < until, self.done("ls", BOX).text
            time.sleep(0.05)
        assert self.run_client("get", "--from", BOX).status == 66
        self.done("requeue", "--from", BOX, second)
        assert self.done("get", "--from", BOX, "-o", self.into, "--json").facts["id"] == second

    def test_a_box_with_a_token_opens_to_who_has_it(self) -> None:
        sent = self.file(b"abc")
        for args in (["put", "--to", "locked", sent], ["get", "--from", "locked"]):
            ended = self.run_client(*args)
            assert (ended.status, ended.out) == (1, b"")
            assert "(401)" in ended.err
        self.env["ROUNDHOUSE_TOKEN"] = "sesame-sesame"
        self.done("put", "--to", "locked", sent)
        assert "locked" in self.done("ls").text
        assert self.done("get", "--from", "locked").out == b"abc"

    def test_a_refusal_is_told_in_the_servers_words(self) -> None:
        ended = self.run_client("put", "--to", BOX, "--name", "a/b", self.file(b"abc"))
        assert (ended.status, ended.out) == (1, b"")
        assert "a name has no /" in ended.err.lower()

    def test_what_is_still_on_its_way_is_listed(self) -> None:
        process = self.start("put", "--to", BOX, "--name", "slow", "-")
        assert process.stdin is not None
        process.stdin.write(bytes(1000))
        process.stdin.flush()
        until = time.monotonic() + 10
        while "uploading" not in self.done("ls", BOX).text:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert self.ended(process, b"end").status == 0
        assert self.done("get", "--from", BOX).out == bytes(1000) + b"end"

    def test_the_raw_port_is_the_box_queue(self) -> None:
        self.done("put", "--raw", self.file(b"abc"))
        assert self.done("get").out == b"abc"
        self.done("put", self.file(b"def"))
        assert self.done("get", "--raw").out == b"def"


class SharedTests(ClientCase):
    def test_each_named_receiver_gets_each_file_once(self) -> None:
        daemon = Twistd()
        self.addCleanup(daemon.discard)
        daemon.configure(relay="MODE = shared")
        daemon.start()
        self.env["ROUNDHOUSE_CONFIG"] = str(daemon.config)
        assert self.run_client("put", self.file(b"abc")).status == 0
        for name in ("ana", "bob"):
            ended = self.run_client("get", "--as", name)
            assert (ended.status, ended.out) == (0, b"abc")
            assert self.run_client("get", "--as", name).status == 66
