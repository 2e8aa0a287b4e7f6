"""A file that is being written, from a socket in hand: hashed beside, bounded, resumed."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from daemon.stores.crew import KIT, SPLICES, Hands, Lent
from daemon.stores.depot import upload as upload_module
from daemon.stores.depot.upload import Share, Upload
from tests.process import open_files

DATA = bytes(range(256)) * 400  # 100 KiB
MOST = 1 << 20  # bytes of one slice


class UploadCase(SynchronousTestCase):
    def setUp(self) -> None:
        if not SPLICES:
            raise SkipTest("there is no splice here")
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "parcel"
        crew: Any = SimpleNamespace(toiling=0)
        hands = Hands(crew, 2, "hashing")
        self.addCleanup(hands.shutdown)
        self.hands: Hands | None = hands
        self.addCleanup(KIT.close)
        self.patch(upload_module, "STRETCH", 1000)

    def upload(self, **about: Any) -> Upload:
        return Upload(self.path, self.hands, **about)

    def peer(self, data: bytes, fin: bool = True) -> Lent:
        """A socket from which `data` can be read at once."""
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.setblocking(False)
        assert theirs.send(data) == len(data)
        if fin:
            theirs.shutdown(socket.SHUT_WR)
        loan: Any = SimpleNamespace(socket=ours)
        return Lent(loan, None)


class UploadTests(UploadCase):
    def test_a_stream_is_in_the_file_and_so_is_its_sum(self) -> None:
        upload = self.upload()
        upload.pull(self.peer(DATA), MOST)
        laid = upload.commit()
        assert (laid.size, laid.sha256) == (len(DATA), hashlib.sha256(DATA).hexdigest())
        assert self.path.read_bytes() == DATA
        assert not [link for link in open_files() if link.endswith("/parcel")]

    def test_an_empty_socket_says_so_and_what_came_counts(self) -> None:
        upload = self.upload()
        lent = self.peer(DATA, fin=False)
        with pytest.raises(BlockingIOError):
            upload.pull(lent, MOST)
        assert upload.size == len(DATA)
        upload.abort()
        assert not self.path.exists()

    def test_what_is_too_much_is_refused_and_nothing_stays_in_the_pipe(self) -> None:
        def charge(count: int) -> None:
            raise OSError(errno.EDQUOT, "quota used up")

        for about, code in (({"most": 1000}, errno.EFBIG), ({"charge": charge}, errno.EDQUOT)):
            upload = self.upload(**about)
            with pytest.raises(OSError) as met:  # noqa: PT011  # its code is what matters
                upload.pull(self.peer(DATA), MOST)
            assert met.value.errno == code
            with pytest.raises(BlockingIOError):
                os.read(KIT.pipe()[0], 1)
            upload.abort()

    def test_a_disk_that_fails_leaves_nothing_in_the_pipe(self) -> None:
        splice, lent = os.splice, self.peer(DATA)

        def fails(source: int, target: int, count: int, **how: Any) -> int:
            if source != lent.loan.socket.fileno():
                raise OSError(errno.EIO, "no such sector")
            return splice(source, target, count, **how)

        upload = self.upload()
        self.patch(os, "splice", fails)
        with pytest.raises(OSError, match="no such sector"):
            upload.pull(lent, MOST)
        with pytest.raises(BlockingIOError):
            os.read(KIT.pipe()[0], 1)
        upload.abort()

    def test_one_that_goes_on_is_hashed_from_its_first_byte(self) -> None:
        self.patch(upload_module, "SLICE", 5000)
        self.path.write_bytes(DATA)
        upload = self.upload(size=len(DATA))
        upload.pull(self.peer(DATA[:3000]), MOST)
        assert upload._summed == 10_000  # some at a time: others wait for this thread
        laid = upload.commit()
        assert laid.size == len(DATA) + 3000
        assert laid.sha256 == hashlib.sha256(DATA + DATA[:3000]).hexdigest()

    def test_what_was_cut_off_is_hashed_anew(self) -> None:
        upload = self.upload()
        upload.pull(self.peer(DATA), MOST)
        upload.sync()
        upload.cut(50_000)
        upload.pull(self.peer(b"other"), MOST)
        assert upload.commit().sha256 == hashlib.sha256(DATA[:50_000] + b"other").hexdigest()


class ShareTests(UploadCase):
    """One connection's share of a draft."""

    def share(self, whole: int, **about: Any) -> Share:
        self.told: list[int] = []
        return Share(self.upload(), whole, self.told.append, **about)

    def test_what_is_durable_is_told_meanwhile(self) -> None:
        self.patch(Share, "CHECKPOINT", 40_000)
        share = self.share(len(DATA))
        lent = self.peer(DATA)
        while not lent.over:
            share.pull(lent, MOST)
        assert self.told
        assert share.upload.synced == self.told[-1] >= 40_000
        laid = share.commit().laid
        assert laid is not None
        assert laid.sha256 == hashlib.sha256(DATA).hexdigest()

    def test_a_share_with_a_checksum_of_its_own_is_kept_or_dropped_by_it(self) -> None:
        right = hashlib.sha1(DATA).digest()
        for digest, refused in ((right, False), (bytes(20), True)):
            share = self.share(2 * len(DATA), checksum=("sha1", digest))
            share.pull(self.peer(DATA), MOST)
            shared = share.commit()
            assert (shared.refused, shared.offset) == (refused, 0 if refused else len(DATA))

    def test_what_is_read_back_meanwhile_is_not_taken_for_what_came(self) -> None:
        """By the same thread: no core is free for other hands."""
        self.hands = None
        self.patch(upload_module, "STRETCH", 10_000)
        share = self.share(2 * len(DATA), checksum=("sha1", hashlib.sha1(DATA).digest()))
        lent = self.peer(DATA)
        read = lent.read
        self.patch(Lent, "read", lambda lent, length=4000: read(4000))
        share.pull(lent, MOST)
        assert not share.commit().refused

    def test_more_than_was_announced_is_refused(self) -> None:
        share = self.share(1000)
        with pytest.raises(OSError) as met:  # noqa: PT011  # its code is what matters
            share.pull(self.peer(DATA), MOST)
        assert met.value.errno == errno.EFBIG
        assert share.fail() == 0
