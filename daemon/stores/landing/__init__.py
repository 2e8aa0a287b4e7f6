"""Streams into local files: each a series of parts, named for good only once it is durable.

On disk, in one folder
    <prefix>_<YYYYmmddHHMMSS>_<unique>_parte_<n>.bin            a durable part
    ....bin.partial     being written, or left by a crash: the next start gives it its name
    ....bin.damaged     its sync failed: what is in it is for a person to judge
Order: a part is synced, then renamed; the folder is synced; only then is there a receipt.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from attrs import define
from twisted.application.service import Service
from twisted.logger import Logger

from daemon.stores import files
from daemon.stores.crew import Crew, QueuedIntake
from daemon.stores.landing.recovery import adopt
from daemon.stores.landing.series import Parts
from protocols.stores import Receipt, Series, Source

log = Logger()


@define(eq=False, repr=False)
class Landing(Service):
    """`protocols.stores.Landing` in `folder`. now: seconds since the epoch, for the names."""

    TINY: ClassVar[int] = 4096  # a turn of the crew lays down about that many parts at most

    folder: Path
    crew: Crew
    now: Callable[[], float] = time.time

    def check(self) -> None:
        """Raise files.Unusable when no stream could be kept."""
        files.check_folder(self.folder)

    def startService(self) -> None:
        """Finish what a crash left. A folder that fails now fails each stream until it is back."""
        super().startService()
        try:
            files.make_folder(self.folder)
            adopted, removed = adopt(self.folder)
        except OSError as error:
            log.error("{folder} cannot be used: {error}", folder=self.folder, error=str(error))
            return
        if adopted or removed:
            log.info(
                "{folder}: parts that a crash left: {adopted} adopted, {removed} empty and removed",
                folder=self.folder,
                adopted=adopted,
                removed=removed,
            )

    def open(self, series: Series, source: Source) -> QueuedIntake[Receipt]:
        # Tiny parts cost thousands of files a read: less of them may wait in a turn.
        high = min(QueuedIntake.HIGH, max(1 << 16, series.max_part * self.TINY))
        return QueuedIntake(Parts(self.folder, series, self.now), source, self.crew, high)
