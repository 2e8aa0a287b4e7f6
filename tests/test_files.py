"""Files and folders: modes whatever the umask, syncs that say when they failed."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from attrs import define
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores import files


@define
class Release:
    """What os.uname() says of a kernel."""

    release: str


@define
class Libc:
    """A C library whose syncfs fails, and whose fstatfs tells of the filesystem `kind`."""

    kind: int = 0xEF53
    code: int = errno.EIO

    def syncfs(self, descriptor: int) -> int:
        ctypes.set_errno(self.code)
        return -1

    def fstatfs(self, descriptor: int, status: Any) -> int:
        status[0] = self.kind
        return 0


class FolderCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def umask(self, mask: int) -> None:
        self.addCleanup(os.umask, os.umask(mask))

    def descriptor(self) -> int:
        descriptor = os.open(self.folder, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        return descriptor


class FolderTests(FolderCase):
    def test_missing_folders_are_made_with_their_mode_whatever_the_umask(self) -> None:
        for mask, name in ((0o777, "closed"), (0, "open")):
            self.umask(mask)
            files.make_folder(self.folder / name / "below")
            for made in (self.folder / name, self.folder / name / "below"):
                assert made.stat().st_mode & 0o777 == 0o750

    def test_each_new_entry_is_durable_and_the_upper_one_first(self) -> None:
        synced: list[Path] = []
        self.patch(files, "sync_folder", synced.append)
        files.make_folder(self.folder / "a" / "b")
        assert synced == [self.folder, self.folder / "a"]

    def test_a_folder_that_is_there_keeps_its_mode(self) -> None:
        self.folder.chmod(0o700)
        files.make_folder(self.folder)
        assert self.folder.stat().st_mode & 0o777 == 0o700

    def test_a_file_in_the_way_is_an_error(self) -> None:
        (self.folder / "file").touch()
        with pytest.raises(OSError, match=r"exists|Not a directory"):
            files.make_folder(self.folder / "file")

    def test_a_folder_that_can_be_used_or_made_passes_the_check_and_nothing_is_made(self) -> None:
        files.check_folder(self.folder)
        files.check_folder(self.folder / "a" / "b")
        assert list(self.folder.iterdir()) == []

    def test_a_folder_that_cannot_is_named_with_the_remedy(self) -> None:
        (self.folder / "file").touch()
        with pytest.raises(files.Unusable, match=r"file is not a folder; .*DATA_DIR"):
            files.check_folder(self.folder / "file" / "below")
        self.patch(os, "access", lambda *_: False)
        with pytest.raises(files.Unusable, match=r"not writable for uid [0-9]+; .*DATA_DIR") as no:
            files.check_folder(self.folder / "below")
        assert "\n" not in str(no.value)

    def test_a_folder_is_synced_and_its_descriptor_given_back_also_when_that_fails(self) -> None:
        files.sync_folder(self.folder)
        opened: list[int] = []

        def broken(descriptor: int) -> None:
            opened.append(descriptor)
            raise OSError(errno.EIO, "broken")

        self.patch(os, "fsync", broken)
        with pytest.raises(OSError, match="broken"):
            files.sync_folder(self.folder)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(opened[0])


class FileTests(FolderCase):
    def test_a_new_file_has_its_mode_whatever_the_umask_and_nobody_elses_name(self) -> None:
        self.umask(0o777)
        place = self.descriptor()
        os.close(files.open_new("a", place))
        assert (self.folder / "a").stat().st_mode & 0o777 == 0o640
        with pytest.raises(FileExistsError):
            files.open_new("a", place)
        os.symlink("elsewhere", self.folder / "link")
        with pytest.raises(FileExistsError):
            files.open_new("link", place)

    def test_a_file_whose_mode_cannot_be_set_leaves_no_descriptor_open(self) -> None:
        tried: list[int] = []

        def refuse(descriptor: int, mode: int) -> None:
            tried.append(descriptor)
            raise PermissionError(errno.EPERM, "no modes here")

        self.patch(os, "fchmod", refuse)
        with pytest.raises(PermissionError):
            files.open_new(str(self.folder / "a"))
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(tried[0])

    def test_every_byte_is_written_where_the_system_takes_a_few_at_a_time(self) -> None:
        write: Callable[[int, memoryview], int] = os.write
        descriptor = files.open_new(str(self.folder / "a"))
        self.addCleanup(os.close, descriptor)
        self.patch(os, "write", lambda to, data: write(to, data[:3]))
        files.write_all(descriptor, b"0123456789")
        files.sync_data(descriptor)
        assert (self.folder / "a").read_bytes() == b"0123456789"

    def test_the_drive_may_begin_early_and_a_library_without_that_is_no_error(self) -> None:
        descriptor = files.open_new(str(self.folder / "a"))
        self.addCleanup(os.close, descriptor)
        files.write_all(descriptor, bytes(8192))
        files.begin_write_back(descriptor, 4096, 4096)
        self.patch(files, "_LIBC", Libc())
        files.begin_write_back(descriptor, 4096, 4096)
        assert (self.folder / "a").read_bytes() == bytes(8192)

    def test_forgetting_the_pages_of_a_file_forgets_none_of_its_bytes(self) -> None:
        descriptor = files.open_new(str(self.folder / "a"))
        self.addCleanup(os.close, descriptor)
        files.write_all(descriptor, bytes(8192))
        files.forget_pages(descriptor)
        assert (self.folder / "a").read_bytes() == bytes(8192)

    def test_errors_are_plain_words_without_path_or_number(self) -> None:
        for code, words in (
            (errno.ENOSPC, "disk full"),
            (errno.EIO, "disk error"),
            (errno.EDQUOT, "disk quota used up"),
            (errno.EFBIG, "file too large"),
        ):
            assert files.plain(OSError(code, "x", "/secret/path")) == words
        assert files.plain(OSError("without a number")) == "storage failed"


class SyncAllTests(FolderCase):
    def setUp(self) -> None:
        super().setUp()
        self.patch(sys, "platform", "linux")

    def test_it_is_trusted_only_on_filesystems_that_are_known_to_flush_the_drive(self) -> None:
        place = self.descriptor()
        self.patch(os, "uname", lambda: Release("6.1.0-generic"))
        for kind, trusted in ((0xEF53, True), (0x58465342, True), (0x65735546, False)):  # FUSE
            self.patch(files, "_LIBC", Libc(kind))
            assert files.syncs_at_once(place) is trusted

    def test_it_is_trusted_only_on_kernels_that_report_its_errors(self) -> None:
        place = self.descriptor()
        self.patch(files, "_LIBC", Libc())
        for release, trusted in (("5.7.19", False), ("5.8.0", True), ("10.0", True), ("?", False)):
            self.patch(os, "uname", lambda release=release: Release(release))
            assert files.syncs_at_once(place) is trusted, release

    def test_it_is_not_trusted_where_there_is_none(self) -> None:
        self.patch(files, "_LIBC", object())
        assert files.syncs_at_once(self.descriptor()) is False

    def test_an_error_is_raised_with_its_number(self) -> None:
        place = self.descriptor()
        self.patch(files, "_LIBC", Libc())
        with pytest.raises(OSError, match="rror") as error:
            files.sync_all(place)
        assert error.value.errno == errno.EIO
