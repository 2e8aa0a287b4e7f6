"""A file of a box, whoever claims it, and whoever only looks at it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from daemon.stores.depot.sending import Sent, send
from protocols.stores import Shelved

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.stores.depot import Depot
    from daemon.stores.depot.arriving import Arriving
    from daemon.stores.depot.index import ParcelRow


@define(eq=False, repr=False)
class Item:
    """A whole file, and who has it: claims are those under way, receivers the names that had it.

    due: when it is deleted, by the depot's clock, None: never. leaving: its removal is being
    stored, or was.
    """

    whole: ClassVar[bool] = True

    depot: Depot
    ident: int
    row: ParcelRow
    deliveries: int = 0
    receivers: set[str] = field(factory=set)
    due: float | None = None
    parked: bool = field(init=False)
    copies: int = field(init=False)
    leaving: bool = field(default=False, init=False)
    on_shelf: bool = field(default=False, init=False)
    claims: set[Parcel] = field(factory=set, init=False)

    def __attrs_post_init__(self) -> None:
        self.parked, self.copies = self.row.parked, self.row.copies

    @property
    def path(self) -> Path:
        return self.depot.folder / self.row.file

    @property
    def key(self) -> str:
        """What it was called while it was uploaded."""
        return self.row.file.partition(".")[0]

    @property
    def name(self) -> str:
        return self.row.name or f"{self.row.box}-{self.ident}"

    @property
    def size(self) -> int:
        return self.row.size

    @property
    def over(self) -> bool:
        return self.leaving

    @property
    def spoken_for(self) -> bool:
        """As many claim it as may have it."""
        return 0 < self.copies <= len(self.claims)

    @property
    def shelved(self) -> Shelved:
        row = self.row
        state = "parked" if self.parked else "claimed" if self.claims else "waiting"
        return Shelved(
            ident=str(self.ident),
            box=row.box,
            name=self.name,
            size=row.size,
            sha256=row.sha256,
            sent=row.at,
            expires=row.expires,
            deliveries=self.deliveries,
            state=state,
            received=row.size,
        )

    def is_for(self, receiver: str) -> bool:
        if not receiver:
            return True
        claimed = any(claim.receiver == receiver for claim in self.claims)
        return not (claimed or receiver in self.receivers)

    def claim(self, most: int, receiver: str) -> Parcel:
        parcel = Parcel(self, most, receiver)
        self.claims.add(parcel)
        return parcel

    def claimed_by(self, receiver: str) -> Parcel | None:
        return next((claim for claim in self.claims if claim.receiver == receiver), None)


@define(eq=False, repr=False)
class Parcel:
    """`protocols.stores.Parcel`: one claim. most: deliveries, as whoever has it now counts."""

    item: Item
    most: int
    receiver: str = ""
    _sending: Sent | None = field(default=None, init=False)
    _seconds: float = field(default=0.0, init=False)  # of its lease
    _lapse: IDelayedCall | None = field(default=None, init=False)

    @property
    def ident(self) -> int:
        return self.item.ident

    @property
    def size(self) -> int:
        return self.item.size

    @property
    def deliveries(self) -> int:
        return self.item.deliveries

    @property
    def path(self) -> Path:
        return self.item.path

    @property
    def shelved(self) -> Shelved:
        return self.item.shelved

    @property
    def sent(self) -> int:
        return 0 if self._sending is None else self._sending.sent

    def send(self, transport: Any, head: bytes = b"", watch: bool = True) -> Deferred[None]:
        crew = self.item.depot.crew
        self._sending, over = send(self.item, crew, transport, head, watch=watch)
        return over

    def lease(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self.hold()
        if self._seconds:
            self._lapse = self.item.depot.reactor.callLater(self._seconds, self._lapsed)

    def hold(self) -> None:
        """The lease does not run on by itself."""
        timer, self._lapse = self._lapse, None
        if timer is not None and timer.active():
            timer.cancel()

    def done(self) -> Deferred[None]:
        return self.item.depot.received(self.item, self.receiver).addCallback(lambda _: None)

    def release(self, counted: bool = False, park: bool = False) -> Deferred[bool]:
        return self.item.depot.take_back(self, counted, park)

    def _lapsed(self) -> None:
        self.item.depot.lapsed(self)


@define(eq=False, repr=False)
class Look:
    """`protocols.stores.Reading`: a file, whole or being uploaded, and nobody's claim."""

    depot: Depot
    _of: Item | Arriving
    _sending: Sent | None = field(default=None, init=False)

    @property
    def shelved(self) -> Shelved:
        return self._now.shelved

    @property
    def sent(self) -> int:
        return 0 if self._sending is None else self._sending.sent

    @property
    def _now(self) -> Item | Arriving:
        """What was being uploaded may be whole meanwhile."""
        if not isinstance(self._of, Item) and self._of.item is not None:
            self._of = self._of.item
        return self._of

    @property
    def _item(self) -> Item | None:
        now = self._now
        return now if isinstance(now, Item) else None

    def send(
        self,
        transport: Any,
        head: bytes = b"",
        start: int = 0,
        end: int | None = None,
        frame: Callable[[bytes], bytes] | None = None,
    ) -> Deferred[None]:
        self._sending, over = send(self._now, self.depot.crew, transport, head, start, end, frame)
        return over

    def leased(self, receiver: str) -> bool:
        return (item := self._item) is not None and item.claimed_by(receiver) is not None

    def renew(self, receiver: str) -> None:
        if (item := self._item) and (claim := item.claimed_by(receiver)):
            claim.renew()

    def acknowledge(self, receiver: str) -> Deferred[bool]:
        if (item := self._item) is None:
            return self.cancel()
        return self.depot.received(item, receiver)

    def cancel(self) -> Deferred[bool]:
        return self.depot.cancel(self._now)

    def requeue(self) -> Deferred[bool]:
        if (item := self._item) is None:
            return self.depot.never()
        return self.depot.requeue(item)
