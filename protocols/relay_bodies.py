"""Bodies on their way into the depot: a file, a part of one, or a form with several."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from attrs import define, field
from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    PushMultipartParser,
    parse_options_header,
)
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from protocols import http_fields
from protocols.http1 import Exchange, Request
from protocols.options import duration
from protocols.relay_answers import (
    Answer,
    Headers,
    Refused,
    as_json,
    fields,
    malformed,
    page_of,
    reason,
    refusal,
)
from protocols.stores import SUPERSEDED, Deposit, Intake, Shelved, StoreError

if TYPE_CHECKING:
    from protocols.relay_http import RelayHttp

FORM_FILES = 100  # of one form


@define(eq=False, repr=False)
class Uploading:
    """A body on its way into the depot; `protocols.stores.Source` and `http1.Body` at once.

    then: what the intake's commit means as an answer. own: headers of every error.
    """

    to: RelayHttp
    exchange: Exchange
    then: Callable[[Any], Answer]
    own: Headers = ()
    intake: Intake[Any] | None = field(default=None, init=False)
    lent: bool = field(default=False, init=False)
    paused: bool = field(default=False, init=False)
    whole: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)
    _held: list[bytes] = field(factory=list, init=False)
    _taken: int = field(default=0, init=False)  # bytes that were written to the intake, or lent

    def open(self, intake: Intake[Any]) -> None:
        """Here is where it goes; what came before goes first."""
        if self.over:
            intake.abort()
            return
        self.intake = intake
        held, self._held = self._held, []
        for data in held:
            self.write(data)
        self.resumeProducing()
        if self.whole:
            self._commit(intake)
        else:
            self.to.lend()

    def write(self, data: bytes) -> None:
        if self.intake is None:
            self._held.append(data)
            self.pauseProducing()
        else:
            self._taken += len(data)
            self.intake.write(data)

    def end(self) -> None:
        self.whole = True
        if self.intake is not None:
            self._commit(self.intake)

    def cut(self) -> None:
        if self.over or self.whole:
            return
        self._over()
        if self.intake is not None:
            self.intake.abort()

    def lend(self, most: int) -> None:
        """Let a thread read the rest."""
        if self.intake is not None and not self.lent:
            self.lent = self.intake.lend(self.to.transport, most)

    def returned(self) -> None:
        """The thread has taken what it was to take, or the peer broke off."""
        assert self.intake is not None
        self.lent = False
        count, self._taken = self.intake.size - self._taken, self.intake.size
        self.to.returned_from(count)

    def pauseProducing(self) -> None:
        self.paused = True
        self.to.read_on()

    def resumeProducing(self) -> None:
        self.paused = False
        self.to.read_on()

    def broken(self, why: StoreError) -> None:
        if why.reason == SUPERSEDED:
            self._over()
            self.to.abort("superseded")
        else:
            self.refuse(why)

    def refuse(self, why: Refused | StoreError) -> None:
        self._over()
        self.to.answer(self.exchange, refusal(why, self.own))

    def _commit(self, intake: Intake[Any]) -> None:
        intake.commit().addCallbacks(self._kept, self._not_kept)

    def _kept(self, result: Any) -> None:
        self._over()
        self.to.answer(self.exchange, self.then(result))

    def _not_kept(self, failure: Failure) -> None:
        self.refuse(reason(failure))

    def _over(self) -> None:
        self.over = True
        self.to.uploading.pop(self.exchange, None)


@define(eq=False, repr=False)
class Form:
    """A multipart/form-data body: each of its files is a deposit, kept in the order of the form
    once all of it is there; where one cannot be kept, only those before it are.

    paused: of the files, some wait for the disk.
    """

    lent: ClassVar[bool] = False
    intake: ClassVar[None] = None

    to: RelayHttp
    exchange: Exchange
    box: str
    _parser: Any
    _deposit: Deposit | None = field(default=None, init=False)
    _name: str = field(default="", init=False)
    _expires: float = field(init=False)
    _field: bytearray | None = field(default=None, init=False)
    _deposits: list[Deposit] = field(factory=list, init=False)  # that are whole
    _behind: int = field(default=0, init=False)  # deposits that want no more for now
    whole: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._expires = self.to.options.expires

    @property
    def paused(self) -> bool:
        return self._behind > 0

    def write(self, data: bytes) -> None:
        if self.over:
            return
        try:
            for piece in self._parser.parse(data):
                self._take(piece)
        except MultipartError as error:
            self._refuse(malformed(f"the form is malformed: {error}"))
        except (Refused, StoreError, ValueError) as why:
            self._refuse(why)

    def end(self) -> None:
        if self.over:
            return
        self.whole = True
        try:
            self._parser.close()
        except MultipartError as error:
            self._refuse(malformed(f"the form is malformed: {error}"))
            return
        Deferred.fromCoroutine(self._answer()).addErrback(reason)

    def cut(self) -> None:
        if not self.whole:
            self._drop()

    def pauseProducing(self) -> None:
        self._behind += 1
        self.to.read_on()

    def resumeProducing(self) -> None:
        self._behind -= 1
        self.to.read_on()

    def returned(self) -> None:
        """Forms are not lent."""

    def broken(self, why: StoreError) -> None:
        self._refuse(why)

    def _take(self, piece: Any) -> None:
        if isinstance(piece, MultipartSegment):
            if piece.filename and piece.name == "file":
                name = http_fields.file_name(re.split(r"[/\\]", piece.filename)[-1])
                if len(self._deposits) >= FORM_FILES:
                    raise ValueError(f"a form holds at most {FORM_FILES} files")
                label = self.to.label(name, None, "", self._expires)
                allowance = self.to.options.allowance
                self._deposit = self.to.depot.deposit(self.box, self, label, allowance)
            elif piece.name == "expires":
                self._field = bytearray()
        elif piece is None:
            deposit, self._deposit = self._deposit, None
            if deposit is not None:
                self._deposits.append(deposit)
            if self._field is not None:
                text, self._field = self._field.decode(errors="replace").strip(), None
                self._expires = duration(text) if text else self._expires
        elif self._deposit is not None:
            self._deposit.write(bytes(piece))
        elif self._field is not None and len(self._field) < 64:
            self._field += piece

    def _refuse(self, why: Refused | StoreError | ValueError) -> None:
        self._drop()
        self.to.answer(self.exchange, refusal(why))

    def _drop(self) -> None:
        """What is not kept yet will not be."""
        self._over()
        deposit, self._deposit = self._deposit, None
        for one in (*self._deposits, *([deposit] if deposit else ())):
            one.abort()
        self._deposits.clear()

    def _over(self) -> None:
        self.over = True
        self.to.uploading.pop(self.exchange, None)

    async def _answer(self) -> None:
        parcels: list[Shelved] = []
        try:
            while self._deposits:
                parcels.append(await self._deposits.pop(0).commit())
        except StoreError as why:
            self._refuse(why)
            return
        self._over()
        request = self.exchange.request
        if request.accepts("text/html", "application/json") == "application/json":
            listed = {"box": self.box, "parcels": [fields(parcel) for parcel in parcels]}
            self.to.answer(self.exchange, as_json(listed, 201))
        else:
            self.to.answer(self.exchange, page_of(self.box))


def form_parser(request: Request) -> Any:
    """For the body of a request. Raises Refused."""
    media, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get("boundary", "")
    if media != "multipart/form-data" or not boundary:
        raise Refused(
            415, "form", "POST /BOX takes multipart/form-data with files in the field `file`."
        )
    return PushMultipartParser(boundary, max_segment_count=2 * FORM_FILES, strict=True)
