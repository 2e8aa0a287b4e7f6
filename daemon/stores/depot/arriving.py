"""Files on their way in: those of one connection, and drafts that may take several."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from daemon.stores.crew import QueuedIntake
from daemon.stores.depot.parcel import Item
from daemon.stores.depot.upload import AHEAD, Laid, Share, Shared, Upload
from protocols.stores import SUPERSEDED, Label, Progress, Shelved, Source, StoreError

if TYPE_CHECKING:
    from daemon.stores.depot import Depot

DISCARDED = "its upload was given up"


@define(eq=False, repr=False)
class Arriving:
    """What is being uploaded, as those see it who list it or read along.

    promised: bytes the stock holds for it whatever came so far. item: what it became.
    """

    depot: Depot
    key: str
    box: str
    label: Label
    upload: Upload
    began: str
    promised: int = 0
    item: Item | None = field(default=None, init=False)
    gone: bool = field(default=False, init=False)

    @property
    def path(self) -> Path:
        return self.upload.path

    @property
    def size(self) -> int:
        """Bytes so far, but for those that a checksum may still drop; see `sending.Supply`."""
        return self.upload.size

    @property
    def whole(self) -> bool:
        if self.gone and self.item is None:
            raise StoreError(DISCARDED)
        return self.item is not None

    @property
    def held(self) -> int:
        """Bytes of the stock."""
        return self.promised or self.upload.charged

    @property
    def over(self) -> bool:
        return self.gone

    @property
    def expires(self) -> float | None:
        """Seconds since 1970."""
        return None

    @property
    def shelved(self) -> Shelved:
        expires = self.expires
        return Shelved(
            ident=self.key,
            box=self.box,
            name=self.label.name or self.key,
            size=self.label.size,
            sha256="",
            sent=self.began,
            expires=None if expires is None else self.depot.spoken(expires),
            deliveries=0,
            state="uploading",
            received=self.upload.size,
        )


@define(eq=False, repr=False)
class Incoming(Arriving):
    """`protocols.stores.Deposit`: a file that comes in one connection or not at all."""

    intake: QueuedIntake[Laid] = field(kw_only=True)

    def write(self, data: bytes) -> None:
        self.intake.write(data)

    def lend(self, transport: Any, most: int | None = None) -> bool:
        return self.intake.lend(transport, most)

    def commit(self, parked: bool = False) -> Deferred[Shelved]:
        return self.depot.enter(self, self.intake.commit(), parked)

    def abort(self) -> None:
        self.intake.abort()


@define(eq=False, repr=False)
class Draft(Arriving):
    """`protocols.stores.Draft`. due: when it is deleted unless somebody goes on with it.

    touched: when somebody did last, in seconds since 1970; idle: how many after that it lives.
    boot: of the machine, in which all that was written may be trusted to be there; or empty.
    """

    synced: int = 0
    idle: float = 0.0
    touched: float = 0.0
    boot: str = ""
    due: float | None = field(default=None, init=False)
    writing: Writing | None = field(default=None, init=False)

    @property
    def size(self) -> int:
        proving = self.writing is not None and self.writing.share.checksum is not None
        return self.synced if proving else self.upload.size

    @property
    def length(self) -> int:
        return self.promised

    @property
    def offset(self) -> int:
        return self.synced

    @property
    def expires(self) -> float | None:
        return self.touched + self.idle if self.idle else None

    def settle(self) -> Deferred[None]:
        return succeed(None) if self.writing is None else self.writing.supersede()

    def write(self, source: Source, checksum: tuple[str, bytes] | None = None) -> Deferred[Writing]:
        return Deferred.fromCoroutine(self._write(source, checksum))

    def discard(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._discard())

    async def _write(self, source: Source, checksum: tuple[str, bytes] | None) -> Writing:
        await self._settled()
        if self.gone:
            raise StoreError(DISCARDED)
        if checksum is not None:
            await self.depot.distrust(self)
            await self._settled()

        def told(synced: int) -> None:
            self.depot.reactor.callFromThread(self.depot.note, self, synced)

        share = Share(self.upload, self.promised, told, checksum)
        intake = QueuedIntake[Shared](share, source, self.depot.crew, AHEAD)
        self.writing = Writing(self, share, intake, source)
        self.depot.touch(self)
        return self.writing

    async def _discard(self) -> None:
        await self._settled()
        await self.depot.cancel(self)

    async def _settled(self) -> None:
        while self.writing is not None:  # somebody else may be there first again
            await self.writing.supersede()


@define(eq=False, repr=False)
class Writing:
    """`protocols.stores.Intake` of one connection into a draft."""

    draft: Draft
    share: Share
    intake: QueuedIntake[Shared]
    source: Source
    _ended: bool = field(default=False, init=False)
    _waiting: list[Deferred[Progress]] = field(factory=list, init=False)

    def write(self, data: bytes) -> None:
        if not self._ended:
            self.intake.write(data)

    @property
    def size(self) -> int:
        return self.intake.size

    def lend(self, transport: Any, most: int | None = None) -> bool:
        return not self._ended and self.intake.lend(transport, most)

    def commit(self) -> Deferred[Progress]:
        """Also while it is ending already, for whoever else wants to know."""
        waiting: Deferred[Progress] = Deferred()
        self._waiting.append(waiting)
        if not self._ended:
            self._ended = True
            self.draft.depot.share(self.draft, self.intake.commit()).addBoth(self._tell)
        return waiting

    def abort(self) -> None:
        self.share.cut_off = True
        self.commit().addErrback(lambda _: None)  # whoever goes on sees what is synced

    def supersede(self) -> Deferred[None]:
        """Somebody else goes on, or nobody. Fires when what came is synced, never fails."""
        if not self._ended:
            self.share.cut_off = True
            over = self.commit()
            self.source.broken(StoreError(SUPERSEDED))
        else:
            over = self.commit()
        return over.addBoth(lambda _: None)

    def _tell(self, result: Progress | Failure) -> None:
        self.draft.writing = None
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            one.callback(result)  # a Failure goes the errback way
