"""Out of a box of the relay: leased, resumed after a cut, proved by its sha256, then acknowledged.

A parcel that was cut is asked for again from where it ended, under the lease it was handed out
with. It leaves its box only when it is durable here and DELETE says so; whoever dies before leaves
it to the next receiver.
"""

from __future__ import annotations

import re
from time import monotonic
from urllib.parse import urlencode

from attrs import frozen

from client.http import PATIENCE, Answer, Refused, Site
from client.landing import Landing
from client.net import Failed, Nobody
from client.stamina import Stamina
from client.terminal import Advance
from client.upload import GONE, parcel

LONG_POLL = 25.0  # seconds of one question for a parcel that has not come yet
NOTHING = 204
PARTIAL = 206
_RANGE = re.compile(r"bytes (\d{1,20})-\d{1,20}/(\d{1,20})")


class Nothing(Failed):
    """No parcel waits in the box. Exit status 66."""

    exit_code = 66


@frozen
class Offer:
    """A parcel as it is handed out. target: where it is asked for again; name: data, no path."""

    ident: str
    target: str
    name: str
    size: int
    sha256: str
    etag: str

    @classmethod
    def of(cls, answer: Answer, box: str, query: dict[str, str], asked: str | None) -> Offer:
        """asked: the ident it was asked for by. Raise Failed where the server leaves out a fact."""
        ident, digest, etag = asked or answer.ident, answer.sha256, answer.headers.get("ETag", "")
        if ident is None or digest is None or answer.size is None or not etag:
            raise Failed(f"{answer.address} did not say what it hands out: is it a relay?")
        target = parcel(box, ident) + _query(query)
        return cls(ident, target, answer.name or "", answer.size, digest, etag)


def offered(site: Site, box: str, query: dict[str, str], patience: float | None) -> Answer:
    """The oldest parcel of `box`, leased to us until `acknowledge`. Raise Failed.

    patience: seconds in which one may still come, None: for ever; Nothing where none did.
    """
    until = None if patience is None else monotonic() + patience
    stamina = Stamina.lasting(None, lambda text: None)
    reached = False
    while True:
        wait = LONG_POLL if until is None else min(LONG_POLL, max(0.0, until - monotonic()))
        target = parcel(box, "next") + _query(query | {"ack": "manual", "wait": f"{wait:.3f}"})
        try:
            answer = site.ask("GET", target, patience=wait + (site.timeout or PATIENCE))
            if answer.status != NOTHING:
                return answer
            with answer:
                reached = True
                stamina.moved()
        except Failed as error:
            if not reached:
                raise
            stamina.again(error)  # a daemon that is restarted meanwhile
        if until is not None and monotonic() >= until:
            raise Nothing(f"nothing waits in {box} at {site.address}")


def wanted(site: Site, box: str, query: dict[str, str], ident: str) -> Answer:
    """One parcel of `box`, whoever was handed it."""
    return site.ask("GET", parcel(box, ident) + _query(query))


def _query(fields: dict[str, str]) -> str:
    return f"?{urlencode(fields)}" if fields else ""


def receive(
    site: Site, first: Answer, offer: Offer, landing: Landing, advance: Advance, stamina: Stamina
) -> None:
    """Fill `landing` with the parcel that `first` begins to bring, however often it is cut.

    What it holds of an earlier try is not asked for again. Raise Failed, also where what came is
    not what was sent.
    """
    if landing.size > offer.size:
        landing.restart()
    fresh = not landing.size
    answer: Answer | None = first if fresh else None
    while True:
        _fill(site, answer, offer, landing, advance, stamina)
        if landing.sha256 == offer.sha256:
            return
        came = landing.sha256
        advance(-landing.size)
        landing.restart()
        if fresh:
            raise Failed(
                f"what came is not what was sent, and the relay keeps it: sha256 {came} came, "
                f"{offer.sha256} was sent"
            )
        answer, fresh = None, True


def _fill(
    site: Site,
    answer: Answer | None,
    offer: Offer,
    landing: Landing,
    advance: Advance,
    stamina: Stamina,
) -> None:
    while landing.size < offer.size:
        try:
            with answer or _more(site, offer, landing.size) as arriving:
                if arriving is not answer:
                    _fit(arriving, offer, landing, advance)
                for data in arriving.chunks():
                    landing.write(data)
                    advance(len(data))
                    stamina.moved()
        except Failed as error:
            stamina.again(error)
        answer = None


def _more(site: Site, offer: Offer, start: int) -> Answer:
    """Ask for what follows the bytes that are there."""
    headers = {"Range": f"bytes={start}-", "If-Range": offer.etag} if start else {}
    try:
        return site.ask("GET", offer.target, headers)
    except Refused as error:
        if error.status not in GONE:
            raise
        raise Failed(
            f"{error.message}: somebody else has it, it was removed, or it expired"
        ) from None


def _fit(answer: Answer, offer: Offer, landing: Landing, advance: Advance) -> None:
    """See that `answer` goes on from the bytes that are there; forget those where it does not."""
    if answer.status == PARTIAL:
        span = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if span is None or (int(span[1]), int(span[2])) != (landing.size, offer.size):
            raise Failed(f"{answer.address} sent another range than it was asked for")
    elif landing.size:  # a server without ranges
        advance(-landing.size)
        landing.restart()
    if answer.size != offer.size - landing.size:
        raise Failed(f"{answer.address} sent a file of another size than it offered")


def acknowledge(site: Site, offer: Offer, stamina: Stamina) -> None:
    """Take the parcel out of its box: it is ours. Raise Failed where it was no longer there."""
    asked = False
    while True:
        try:
            with site.ask("DELETE", offer.target):
                return
        except Refused as error:
            if error.status not in GONE:
                stamina.again(error)
            elif asked:  # and only its answer was lost
                return
            else:
                raise Failed(
                    "the file is here, but it had left its box before that could be said: it "
                    "expired, was removed, or somebody else has it, too"
                ) from None
        except Failed as error:
            asked = asked or not isinstance(error, Nobody)
            stamina.again(error)
