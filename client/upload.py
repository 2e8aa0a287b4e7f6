"""Into a box of the relay: a file by tus, which goes on after a cut; a pipe as one PUT."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import quote, urlsplit

from attrs import define, evolve, field, frozen

from client.files import Source
from client.hashing import Beside
from client.http import Answer, Refused, Site
from client.net import Failed, Nobody, Reset
from client.stamina import Stamina
from client.terminal import Advance, counted, printable

TUS = {"Tus-Resumable": "1.0.0"}
GONE = {404, 410}
PARTING = 1.0  # seconds for taking back an upload that is given up


@frozen
class Kept:
    """A parcel is in its box. ident: None, where somebody had it before we could ask; sha256: in
    hex, as the server has it, None likewise; expires: ISO 8601, None: never or likewise.
    """

    size: int
    ident: str | None
    sha256: str | None
    expires: str | None


def upload(
    site: Site,
    box: str,
    name: str,
    source: Source,
    expires: str | None,
    advance: Advance,
    stamina: Stamina,
) -> tuple[Kept, str]:
    """Put all of `source` into `box` under `name`: what the server keeps, and the sha256 of what
    was sent. Raise Failed, also where they differ.

    advance: told of the bytes that went out, less those that have to go again.
    """
    put = _by_tus if source.repeatable else _in_one_go
    with Beside() as sha256:
        kept = put(site, box, name, _Sending(source, advance, stamina, sha256), expires)
        digest = sha256.hexdigest()
    if kept.sha256 not in (None, digest):
        with suppress(Failed), site.ask("DELETE", parcel(box, kept.ident or "")):
            pass
        raise Failed(
            f"the relay kept something else, and was told to remove it: sha256 {digest} was "
            f"sent, {kept.sha256} came"
        )
    return kept, digest


def parcel(box: str, ident: str) -> str:
    """The target of one parcel of a box."""
    return f"/{quote(box, safe='')}/{quote(ident, safe='')}"


@define(eq=False, repr=False)
class _Sending:
    """A source as bodies of requests; each byte is hashed once, however often it goes."""

    source: Source
    _advance: Advance
    stamina: Stamina
    _sha256: Beside
    at: int = field(default=0, init=False)  # of the bytes that went out last
    _hashed: int = field(default=0, init=False)

    def body(self, offset: int = 0, size: int | None = None) -> Iterator[bytes]:
        """From `offset` up to `size` bytes of the source, or to its end."""
        self._advance(offset - self.at)
        self.at = offset
        if offset or self._hashed:
            self.source.seek(offset)
        while (size is None or self.at < size) and (data := self.source.read()):
            data = data if size is None else data[: size - self.at]
            if (fresh := self.at + len(data) - self._hashed) > 0:
                self._sha256.update(data[-fresh:])
                self._hashed += fresh
            self.at += len(data)
            self._advance(len(data))
            yield data
        if size is not None and self.at < size:
            raise Failed(
                f"{printable(self.source.name)} became shorter while it was sent: "
                f"{counted(self.at, 'byte')} of {size:,}"
            )


def _in_one_go(site: Site, box: str, name: str, sent: _Sending, expires: str | None) -> Kept:
    """A pipe cannot be read again, so what is cut has failed."""
    headers = {"Expires-In": expires} if expires else {}
    try:
        with site.ask("PUT", parcel(box, name), headers, sent.body()) as answer:
            facts = answer.json()
    except Refused:
        raise
    except Failed as error:
        raise type(error)(
            f"{error.message}: not kept after {counted(sent.at, 'byte')}; only a file can go on"
        ) from None
    try:
        return Kept(facts["size"], facts["id"], facts["sha256"], facts["expires"])
    except (KeyError, TypeError):
        raise Failed(f"{site.address} did not say what it keeps") from None


def _by_tus(site: Site, box: str, name: str, sent: _Sending, expires: str | None) -> Kept:
    size = sent.source.size or 0
    described = {"box": box.encode(), "filename": os.fsencode(name)}
    headers = {
        "Upload-Length": str(size),
        "Upload-Metadata": ",".join(f"{k} {b64encode(v).decode()}" for k, v in described.items()),
    }
    if expires:
        headers["Expires-In"] = expires
    with site.ask("POST", "/tus/", TUS | headers) as answer:
        draft = urlsplit(answer.headers.get("Location", "")).path
        if not draft:
            raise Failed(f"{site.address} did not say where to send the file")
        if size == 0:
            return _kept(site, box, draft, size, answer)
    try:
        return _send(site, box, draft, sent, size)
    except BaseException as error:  # Ctrl-C, too: nobody would go on with it
        if not isinstance(error, Nobody):
            with suppress(Failed), evolve(site, timeout=PARTING).ask("DELETE", draft, TUS):
                pass
        raise


def _send(site: Site, box: str, draft: str, sent: _Sending, size: int) -> Kept:
    offset, known = 0, True
    while True:
        try:
            if not known:
                with site.ask("HEAD", draft, TUS) as answer:
                    there = _offset(answer)
                if there > offset:
                    sent.stamina.moved()
                offset, known = there, True
            headers = TUS | {
                "Content-Type": "application/offset+octet-stream",
                "Content-Length": str(size - offset),
                "Upload-Offset": str(offset),
            }
            with site.ask("PATCH", draft, headers, sent.body(offset, size)) as answer:
                there = _offset(answer)
                if there == size:
                    return _kept(site, box, draft, size, answer)
                if there <= offset:
                    raise Reset(f"{site.address} took nothing")
                offset = there
        except Failed as error:
            whole = sent.at == size and isinstance(error, Refused) and error.status in GONE
            if whole and not known:  # only the last answer was lost
                return _kept(site, box, draft, size)
            sent.stamina.again(error)
            known = False


def _offset(answer: Answer) -> int:
    """Raise Failed where the server does not tell."""
    told = answer.headers.get("Upload-Offset", "")
    if not told.isascii() or not told.isdigit():
        raise Failed(f"{answer.address} did not say how much it has")
    return int(told)


def _kept(site: Site, box: str, draft: str, size: int, answer: Answer | None = None) -> Kept:
    """What became of a draft that is whole."""
    if answer is None or "Content-Location" not in answer.headers:
        try:
            answer = site.ask("HEAD", parcel(box, draft.rpartition("/")[2]))
        except Refused as error:
            if error.status not in GONE:
                raise
            return Kept(size, None, None, None)
    with answer:
        return Kept(size, answer.ident, answer.sha256, answer.headers.get("Expires-At"))
