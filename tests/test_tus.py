"""tus 1.0 on the relay: uploads that are cut, resumed, proved, given up and survive restarts."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from base64 import b64encode
from contextlib import closing
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores import depot as depot_module
from daemon.stores import files
from daemon.stores.depot.upload import Share
from protocols import tus
from protocols.options import Secret
from tests.test_relay_http import BIG, REACTOR, Answer, HttpCase, reset

TYPE = "application/offset+octet-stream"


def told(**fields: str) -> str:
    """Upload-Metadata."""
    return ",".join(f"{key} {b64encode(value.encode()).decode()}" for key, value in fields.items())


def checksum(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm} {b64encode(hashlib.new(algorithm, data).digest()).decode()}"


class TusCase(HttpCase):
    async def creates(self, size: int, data: bytes = b"", **headers: str) -> Answer:
        asked = {"Upload_Length": str(size), "Upload_Metadata": told(box="box", filename="x")}
        if data:
            asked["Content_Type"] = TYPE
        answer = await self.ask("POST", "/tus/", data, **{**asked, **headers})
        assert answer.headers["tus-resumable"] == "1.0.0"
        return answer

    async def begun(self, size: int, data: bytes = b"", **headers: str) -> str:
        """Where it goes on."""
        answer = await self.creates(size, data, **headers)
        assert answer.status == 201, answer
        assert answer.headers["upload-offset"] == str(len(data))
        return answer.headers["location"]

    async def patches(self, place: str, offset: int, data: Any, **headers: str) -> Answer:
        asked = {"Upload_Offset": str(offset), "Content_Type": TYPE, **headers}
        return await self.ask("PATCH", place, data, **asked)

    async def offset(self, place: str) -> int:
        answer = await self.ask("HEAD", place)
        assert answer.status == 200
        assert answer.headers["cache-control"] == "no-store"
        return int(answer.headers["upload-offset"])

    async def stalled(self, place: str, offset: int, length: int, data: bytes) -> Any:
        """A connection that has sent part of a PATCH, and seems alive."""
        sock = self.dial(
            f"PATCH {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {TYPE}\r\n"
            f"Upload-Offset: {offset}\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        await deferToThread(sock.sendall, data)
        key = place.rpartition("/")[2]
        await self.comes(lambda: self.depot._drafts[key].upload.size == offset + len(data))
        return sock


class UploadTests(TusCase):
    async def test_the_server_says_what_it_can(self) -> None:
        await self.serve()
        for path in ("/tus", "/tus/", "/tus/abc"):
            answer = await self.ask("OPTIONS", path)
            assert answer.status == 204
            assert answer.headers["tus-version"] == "1.0.0"
            known = set(answer.headers["tus-extension"].split(","))
            assert known >= {"creation", "creation-with-upload", "termination", "expiration"}
            assert "sha1" in answer.headers["tus-checksum-algorithm"].split(",")

    async def test_a_file_comes_in_parts_and_is_in_its_box_when_it_is_whole(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        metadata = told(box="photos", filename="caf\u00e9.jpg", relativePath="null")
        place = await self.begun(BIG, Upload_Metadata=metadata)
        assert await self.offset(place) == 0
        assert (await self.patches(place, 0, data[:1000])).headers["upload-offset"] == "1000"
        (listed,) = await self.listed("photos")
        assert (listed["state"], listed["received"], listed["size"]) == ("uploading", 1000, BIG)
        assert (await self.ask("GET", "/photos/next")).status == 204
        last = await self.patches(place, 1000, data[1000:])
        assert (last.status, last.headers["upload-offset"]) == (204, str(BIG))
        assert last.headers["content-location"] == "/photos/1"
        assert (await self.ask("HEAD", place)).status == 404
        answer = await self.takes(data, "/photos/next")
        assert "caf%C3%A9.jpg" in answer.headers["content-disposition"]

    async def test_it_may_come_with_its_creation_also_when_it_is_empty(self) -> None:
        await self.serve()
        answer = await self.creates(5, b"12345")
        assert answer.headers["content-location"] == "/box/1"
        assert (await self.creates(0)).headers["content-location"] == "/box/2"
        await self.begun(5, b"123")
        await self.takes(b"12345")
        await self.takes(b"")

    async def test_without_metadata_it_is_for_the_queue(self) -> None:
        await self.serve()
        await self.creates(1, b"x", Upload_Metadata="")
        (listed,) = await self.listed("queue")
        assert listed["name"] == "queue-1"

    async def test_an_old_browser_may_say_patch_in_a_header(self) -> None:
        await self.serve()
        place = await self.begun(3)
        headers = {"X_HTTP_Method_Override": "PATCH", "Content_Type": TYPE, "Upload_Offset": "0"}
        assert (await self.ask("POST", place, b"123", **headers)).status == 204
        await self.takes(b"123")

    async def test_what_is_wrong_is_refused_in_words(self) -> None:
        await self.serve(max_file=100, box_quota=150)
        place = await self.begun(10)
        for status, error, asked in (
            (400, "malformed", self.creates(5, Upload_Length="many")),
            (400, "malformed", self.creates(5, Upload_Metadata="filename ###")),
            (400, "malformed", self.creates(5, Upload_Metadata=told(filename="../x"))),
            (400, "malformed", self.creates(5, Upload_Metadata=told(sha256="12"))),
            (400, "malformed", self.creates(5, Expires_In="soon")),
            (400, "no-such-box", self.creates(5, Upload_Metadata=told(box="../x"))),
            (400, "no-such-box", self.creates(5, Upload_Metadata=told(box="tus"))),
            (413, "too-large", self.creates(101)),
            (413, "too-large", self.creates(3, b"1234")),
            (415, "type", self.creates(3, b"123", Content_Type="text/plain")),
            (400, "malformed", self.patches(place, 0, b"1", Upload_Offset="-1")),
            (400, "malformed", self.patches(place, 0, b"1", Upload_Checksum="crc32 AAAA")),
            (400, "malformed", self.patches(place, 0, b"1", Upload_Checksum="sha1 ###")),
            (415, "type", self.patches(place, 0, b"1", Content_Type="text/plain")),
            (413, "too-large", self.patches(place, 0, bytes(11))),
            (413, "too-large", self.patches(place, 0, iter([bytes(6), bytes(6)]))),
            (409, "offset", self.patches(place, 3, b"1")),
            (404, "not-found", self.patches("/tus/none", 0, b"1")),
            (405, "method", self.ask("GET", place)),
            (405, "method", self.ask("GET", "/tus/")),
        ):
            answer = await asked
            assert answer.error == (status, error), answer
            assert answer.headers["tus-resumable"] == "1.0.0"
        assert await self.offset(place) <= 6
        await self.begun(100)
        assert (await self.creates(100)).error == (507, "quota")

    async def test_a_token_guards_uploads_too(self) -> None:
        await self.serve(token={"box": Secret("sesame-sesame")})
        right = {"Authorization": "Bearer sesame-sesame"}
        assert (await self.creates(5)).error == (401, "token")
        place = await self.begun(5, b"", **right)
        assert (await self.ask("HEAD", place)).status == 401
        assert (await self.patches(place, 0, b"12345")).status == 401
        assert (await self.ask("DELETE", place)).status == 401
        assert (await self.patches(place, 0, b"12345", **right)).status == 204


class ResumeTests(TusCase):
    async def test_what_came_before_a_cut_stays(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        place = await self.begun(BIG)
        sock = await self.stalled(place, 0, BIG, data[:1_000_000])
        reset(sock)
        assert await self.offset(place) == 1_000_000
        assert (await self.patches(place, 1_000_000, data[1_000_000:])).status == 204
        await self.takes(data)

    async def test_the_newest_writer_wins_and_goes_on_from_what_is_synced(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        for part in (1000, 1_000_000):  # through the reactor, and past it
            place = await self.begun(BIG)
            stale = await self.stalled(place, 0, BIG, data[:part])
            assert await self.offset(place) == part
            assert (await self.patches(place, part, data[part:])).status == 204
            with pytest.raises(ConnectionResetError):
                await self.hears(stale)
            await self.takes(data)
        assert self.factory.live.outcomes["superseded"] == 2

    async def test_also_when_it_does_not_ask_for_the_offset_first(self) -> None:
        await self.serve()
        place = await self.begun(10)
        stale = await self.stalled(place, 0, 10, b"12345")
        assert (await self.patches(place, 0, b"12345")).error == (409, "offset")
        with pytest.raises(ConnectionResetError):
            await self.hears(stale)
        assert (await self.patches(place, 5, b"67890")).status == 204
        await self.takes(b"1234567890")

    async def test_an_offset_is_told_only_once_it_is_synced(self) -> None:
        await self.serve()
        synced: list[int] = []
        sync_data = files.sync_data

        def watched(descriptor: int) -> None:
            sync_data(descriptor)
            synced.append(os.fstat(descriptor).st_size)

        self.patch(files, "sync_data", watched)
        place = await self.begun(100_000)
        await self.stalled(place, 0, 100_000, bytes(70_000))
        assert 70_000 not in synced
        assert await self.offset(place) == 70_000
        assert 70_000 in synced

    async def test_a_long_part_is_synced_on_the_way(self) -> None:
        self.patch(Share, "CHECKPOINT", 100_000)
        await self.serve()
        place = await self.begun(BIG)
        await self.stalled(place, 0, BIG, bytes(1_000_000))
        with closing(sqlite3.connect(self.folder / "index.db")) as index:
            await self.comes(
                lambda: index.execute("SELECT synced FROM drafts").fetchone()[0] >= 100_000
            )

    async def test_a_draft_survives_a_restart(self) -> None:
        await self.serve()
        data = os.urandom(1000)
        sha256 = hashlib.sha256(data).hexdigest()
        asked = told(box="box", filename="x", expires="1h", sha256=sha256)
        place = await self.begun(1000, data[:300], Upload_Metadata=asked)
        await self.restart()
        assert await self.offset(place) == 300
        assert self.depot.stock.total == 1000
        assert (await self.patches(place, 300, data[300:])).status == 204
        (listed,) = await self.listed()
        assert listed["expires"]
        await self.takes(data)

    async def crashed(self, boot: str) -> int:
        """Bytes that are there after a crash in the middle of 70,000, when 30,000 were synced."""
        await self.serve()
        place = await self.begun(100_000, bytes(30_000))
        await self.stalled(place, 30_000, 70_000, bytes(40_000))
        left = self.folder.with_name("left")
        shutil.copytree(self.folder, left)
        await self.stop()
        self.patch(depot_module, "_boot", lambda: boot)
        self.folder = left
        await self.serve()
        return await self.offset(place)

    async def test_after_kill_9_all_that_was_written_is_there(self) -> None:
        self.patch(depot_module, "_boot", lambda: "one")
        assert await self.crashed("one") == 70_000

    async def test_after_a_power_cut_only_what_was_synced_is_trusted(self) -> None:
        self.patch(depot_module, "_boot", lambda: "one")
        assert await self.crashed("two") == 30_000


class ProofTests(TusCase):
    async def test_a_part_that_is_not_its_checksums_is_dropped(self) -> None:
        await self.serve()
        place = await self.begun(10, b"12345", Upload_Checksum=checksum(b"12345"))
        answer = await self.patches(place, 5, b"67890", Upload_Checksum=checksum(b"67891", "sha1"))
        assert answer.error == (460, "checksum")
        assert await self.offset(place) == 5
        answer = await self.patches(place, 5, b"67890", Upload_Checksum=checksum(b"67890", "md5"))
        assert answer.status == 204
        await self.takes(b"1234567890")

    async def test_a_part_that_broke_off_cannot_be_proved(self) -> None:
        await self.serve()
        place = await self.begun(10)
        sock = self.dial(
            f"PATCH {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {TYPE}\r\n"
            f"Upload-Offset: 0\r\nContent-Length: 10\r\n"
            f"Upload-Checksum: {checksum(b'1234567890')}\r\n\r\n12345".encode()
        )
        key = place.rpartition("/")[2]
        await self.comes(lambda: self.depot._drafts[key].upload.size == 5)
        reset(sock)
        assert await self.offset(place) == 0

    async def test_who_reads_along_sees_nothing_that_a_checksum_may_drop(self) -> None:
        await self.serve()
        place = await self.begun(10, b"12345")
        key = place.rpartition("/")[2]
        wrong = self.dial(
            f"PATCH {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {TYPE}\r\n"
            f"Upload-Offset: 5\r\nContent-Length: 5\r\n"
            f"Upload-Checksum: {checksum(b'67890')}\r\nConnection: close\r\n\r\nxxxx".encode()
        )
        await self.comes(lambda: self.depot._drafts[key].upload.size == 9)
        reading = Deferred.fromCoroutine(self.ask("GET", "/box/x?follow=1"))
        await deferLater(REACTOR, 0.2)
        wrong.sendall(b"x")
        assert (await self.hears(wrong)).startswith(b"HTTP/1.1 460 ")
        assert (await self.patches(place, 5, b"67890")).status == 204
        assert (await reading).body == b"1234567890"

    async def test_a_file_that_is_not_its_digest_is_not_kept(self) -> None:
        await self.serve()
        wanted = hashlib.sha256(b"other").hexdigest()
        answer = await self.creates(5, b"12345", Upload_Metadata=told(box="box", sha256=wanted))
        assert answer.error == (400, "digest")
        await self.becomes([])
        await self.comes(lambda: self.kept == [])
        assert self.depot.stock.total == 0


class EndTests(TusCase):
    async def test_one_that_is_given_up_leaves_nothing(self) -> None:
        await self.serve()
        place = await self.begun(10, b"12345")
        stale = await self.stalled(place, 5, 5, b"67")
        assert (await self.ask("DELETE", place)).status == 204
        with pytest.raises(ConnectionResetError):
            await self.hears(stale)
        assert (await self.ask("HEAD", place)).status == 404
        assert (await self.ask("DELETE", place)).status == 404
        assert (self.kept, await self.listed(), self.depot.stock.total) == ([], [], 0)
        place = await self.begun(10, b"12345")
        assert (await self.ask("DELETE", f"/box/{place.rpartition('/')[2]}")).status == 204
        assert (await self.patches(place, 5, b"67890")).status == 404

    async def test_one_that_nobody_goes_on_with_expires_and_frees_its_bytes(self) -> None:
        await self.serve(unfinished=0.3)
        answer = await self.creates(10, b"12345")
        assert parsedate_to_datetime(answer.headers["upload-expires"])
        place = answer.headers["location"]
        for offset in (5, 6, 7):
            await deferLater(REACTOR, 0.15)
            assert (await self.patches(place, offset, b"x")).status == 204
        await self.becomes([])
        await self.comes(lambda: self.kept == [])
        assert self.depot.stock.total == 0

    async def test_that_goes_on_across_a_restart(self) -> None:
        await self.serve(unfinished=0.3)
        await self.begun(10, b"12345")
        await self.stop()
        await deferLater(REACTOR, 0.3)
        await self.serve(unfinished=0.3)
        await self.comes(lambda: self.kept == [])
        assert await self.listed() == []

    async def test_one_that_is_just_written_does_not_expire(self) -> None:
        await self.serve(unfinished=0.15)
        place = await self.begun(10)
        sock = await self.stalled(place, 0, 10, b"12345")
        await deferLater(REACTOR, 0.4)
        sock.sendall(b"67890")
        assert (await self.head_of(sock)).status == 204
        await self.takes(b"1234567890")


class HeaderTests(SynchronousTestCase):
    @settings(deadline=None)
    @given(st.text(max_size=40))
    def test_headers_are_read_or_refused(self, text: str) -> None:
        headers = dict.fromkeys(("upload-length", "upload-metadata", "upload-checksum"), text)
        for read in (tus.creation, tus.checksum):
            try:
                read(headers)
            except ValueError:
                continue

    @settings(deadline=None)
    @given(st.dictionaries(st.sampled_from(["box", "filename", "other"]), st.text(max_size=40)))
    def test_metadata_comes_back_as_it_was_sent(self, fields: dict[str, str]) -> None:
        assert tus.metadata(told(**fields)) == fields
