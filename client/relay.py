"""put, get, ls, rm, requeue: files in the boxes of the relay.

Over HTTP, which knows names, boxes and resuming; with --raw over the port that carries nothing but
the bytes of files.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, TypeVar

import click

from client import completion, raw
from client.caller import Caller, calls
from client.files import Source
from client.http import Site
from client.landing import Landing, NewFile, Stdout, named, refuse_taken
from client.net import Failed, Nobody, Wire
from client.stamina import Stamina
from client.terminal import columns, counted, printable, progress
from client.upload import parcel, upload

C = TypeVar("C", bound=Callable[..., Any])

BOX = re.compile(r"[a-z0-9-]{1,64}")
RESERVED = {"next", "tus"}
QUEUE = "queue"  # the box of the raw port


def _box(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not BOX.fullmatch(value) or value in RESERVED):
        raise click.BadParameter(f"{value!r} is no box: use 1 to 64 of a-z, 0-9 and -")
    return value


def _box_option(name: str, means: str) -> Callable[[C], C]:
    return click.option(
        name, "box", metavar="BOX", callback=_box, shell_complete=completion.boxes, help=means
    )


_idents = click.argument(
    "idents", metavar="ID...", nargs=-1, required=True, shell_complete=completion.parcels
)
_token_file = click.option(
    "--token-file",
    metavar="FILE",
    shell_complete=completion.files,
    help="Read the box's token from FILE (or ROUNDHOUSE_TOKEN).",
)


def _site(caller: Caller, token_file: str | None) -> Site:
    """The relay's HTTP port. The token never is an argument: every user could read it."""
    if token_file is None:
        token = os.environ.get("ROUNDHOUSE_TOKEN", "").strip()
    else:
        with Source.open(token_file) as source:
            token = source.read().decode(errors="replace").strip()
        if not token:
            raise Failed(f"{printable(token_file)} holds no token")
    if not (token.isascii() and token.isprintable()):
        raise Failed("the token is not plain ASCII")
    return Site(caller.address("relay", "HTTP_PORT"), caller.timeout, token or None)


@click.command(short_help="Leave files in a box of the relay.")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, shell_complete=completion.files
)
@_box_option("--to", "The box to leave them in (queue).")
@click.option("--name", help="Another name for the file.")
@click.option("--expires", metavar="TIME", help="Delete what nobody collected after TIME: 12h, 2d.")
@click.option("--raw", "plain", is_flag=True, help="Over the raw port: no names, no resuming.")
@_token_file
@calls
@click.pass_context
def put(
    context: click.Context,
    files: tuple[str, ...],
    box: str | None,
    name: str | None,
    expires: str | None,
    plain: bool,
    token_file: str | None,
) -> None:
    """Leave each FILE ("-": standard input) with the relay, for the next one who gets.

    Exit status 0 means that the relay keeps them all. A transfer that is cut goes on where it
    was, also when the server is started again meanwhile; what comes from standard input cannot.

    \b
    Examples:
      roundhouse put report.pdf
      roundhouse put --to photos --expires 2d *.jpg
      tar cz photos | roundhouse put --name photos.tgz -
      roundhouse put --raw report.pdf
    """
    caller = context.ensure_object(Caller)
    if name is not None and len(files) > 1:
        raise click.UsageError("--name names one file, and this is several")
    if plain and (box or name or expires or token_file):
        raise click.UsageError("the raw port knows no boxes, names, times or tokens")
    one = (
        partial(_put_raw, caller)
        if plain
        else partial(_put, caller, _site(caller, token_file), box or QUEUE, name, expires)
    )
    _each(context, files, one)


def _each(context: click.Context, names: Sequence[str], act: Callable[[str], None]) -> None:
    """Do it for every name, also after one that failed; the exit status tells of those."""
    failed = False
    for name in names:
        try:
            act(name)
        except Nobody:
            raise
        except Failed as error:
            if len(names) == 1:
                raise
            which = "" if name in error.message else f"{printable(name)}: "
            context.ensure_object(Caller).fail(Failed(which + error.message))
            failed = True
    context.exit(int(failed))


def _put(
    caller: Caller, site: Site, box: str, name: str | None, expires: str | None, file: str
) -> None:
    name = name or ("stdin" if file == "-" else os.path.basename(file))
    with (
        Source.open(file) as source,
        progress(name, source.size, quiet=caller.as_json) as advance,
    ):
        stamina = Stamina.lasting(caller.timeout, caller.note)
        kept, digest = upload(site, box, name, source, expires, advance, stamina)
    tls = site.address.tls
    collect = f"curl -OJ http{'s' if tls else ''}://{site.address}/{box}/next"
    if tls is not None and tls.cafile is not None:
        collect += f" --cacert {quote(tls.cafile)}"
    if site.token is not None:
        collect += ' -H "Authorization: Bearer $ROUNDHOUSE_TOKEN"'
    ident = f", id {printable(kept.ident)}" if kept.ident else ""
    until = f", until {printable(kept.expires)}" if kept.expires else ""
    caller.tell(
        f"Kept: {counted(kept.size, 'byte')} of {printable(name)} in {box}{ident}{until}\n"
        f"sha256 {digest}\ncollect it: {collect}",
        file=file,
        name=name,
        box=box,
        id=kept.ident,
        bytes=kept.size,
        sha256=digest,
        expires=kept.expires,
        collect=collect,
    )


def _put_raw(caller: Caller, file: str) -> None:
    with Source.open(file) as source:
        first = source.read()
        if not first:
            raise Failed(f"{printable(source.name)} is empty: this port cannot carry an empty file")
        with (
            caller.call("relay") as wire,
            progress("put", source.size, quiet=caller.as_json) as advance,
        ):
            sent = raw.leave(wire, source, first, advance)
        caller.tell(
            f"Kept: {counted(sent.size, 'byte')} of {printable(source.name)}\nsha256 {sent.sha256}",
            file=file,
            bytes=sent.size,
            sha256=sent.sha256,
        )


@click.command(short_help="Collect a file from a box of the relay.")
@click.argument("ident", metavar="[ID]", required=False, shell_complete=completion.parcels)
@_box_option("--from", "The box to look in (queue).")
@click.option(
    "-o",
    "--output",
    metavar="PATH",
    shell_complete=completion.files,
    help='A file or a folder to store it in ("-": stdout).',
)
@click.option("--wait", is_flag=True, help="Wait for a sender, --timeout seconds or for ever.")
@click.option("--force", is_flag=True, help="Let it replace a file that is there.")
@click.option("--as", "receiver", metavar="NAME", help="Who collects, where each gets a copy.")
@click.option("--raw", "plain", is_flag=True, help="Over the raw port: waits, knows no names.")
@_token_file
@calls
@click.pass_obj
def get(
    caller: Caller,
    ident: str | None,
    box: str | None,
    output: str | None,
    wait: bool,
    force: bool,
    receiver: str | None,
    plain: bool,
    token_file: str | None,
) -> None:
    """Collect the oldest file of a box, or the one with this ID.

    Without -o it goes to standard output where that is no terminal, else to the current folder
    under the name it was sent with. It leaves the box once it is on disk here and its sha256 is
    right. A transfer that is cut goes on where it was; what came is kept in NAME.<sha256>.part,
    and a later `get` of the same file takes it up. No file is ever replaced without --force.

    Exit status 66 means that nothing waits in the box.

    \b
    Examples:
      roundhouse get
      roundhouse get --from photos -o .
      roundhouse get --wait --timeout 60 | tar xz
      roundhouse get 17 -o report.pdf
    """
    if caller.as_json and output == "-":
        raise click.UsageError("with --json the result takes standard output: name a file with -o")
    if plain:
        if ident or box or wait or force or receiver or token_file:
            raise click.UsageError("the raw port hands out its oldest file, to whoever waits")
        _get_raw(caller, output)
    else:
        query = {"as": receiver} if receiver else {}
        patience = caller.timeout if wait else 0.0
        _get(caller, _site(caller, token_file), box or QUEUE, query, ident, output, patience, force)


def _get(
    caller: Caller,
    site: Site,
    box: str,
    query: dict[str, str],
    ident: str | None,
    output: str | None,
    patience: float | None,
    force: bool,
) -> None:
    from client.download import Offer, acknowledge, offered, receive, wanted

    if output not in (None, "-") and not os.path.isdir(output):
        refuse_taken(Path(output), force)
    if patience != 0:
        caller.note("Waiting for sender...")
    if ident is None:
        first = offered(site, box, query, patience)
    else:
        first = wanted(site, box, query, ident)
    with first:
        offer = Offer.of(first, box, query, ident)
        stamina = Stamina.lasting(caller.timeout, caller.note)
        with _landing(caller, output, offer.name, offer.ident, offer.sha256, force) as landing:
            try:
                label = offer.name or offer.ident
                with progress(label, offer.size, caller.as_json, landing.size) as advance:
                    receive(site, first, offer, landing, advance, stamina)
                path = landing.keep()
            except BaseException:  # Ctrl-C, too
                if landing.lasting and landing.size:
                    caller.note(
                        f"{landing.size:,} of {counted(offer.size, 'byte')} came and are kept; "
                        f"`get --from {box} {printable(offer.ident)}` goes on from there"
                    )
                raise
            acknowledge(site, offer, stamina)
    _received(caller, path, landing, name=offer.name, box=box, id=offer.ident)


def _landing(
    caller: Caller, output: str | None, name: str, ident: str, digest: str, force: bool
) -> Landing:
    if _passed_on(caller, output):
        return Stdout()
    own = named(name, f"parcel-{ident}" if ident.isalnum() else "parcel")
    if output is None or os.path.isdir(output):
        return NewFile.at(Path(output or "", own), not force, force, digest)
    return NewFile.at(output, False, force, digest)


def _passed_on(caller: Caller, output: str | None) -> bool:
    """Whether the bytes go to standard output."""
    return output == "-" or (output is None and not caller.as_json and not sys.stdout.isatty())


def _received(caller: Caller, path: str | None, landing: Landing, **facts: object) -> None:
    if path is None:
        caller.note(f"Received {counted(landing.size, 'byte')}, sha256 {landing.sha256}")
    else:
        text = f"Received {counted(landing.size, 'byte')} in {printable(path)}"
        facts = {"file": path, "bytes": landing.size, "sha256": landing.sha256, **facts}
        caller.tell(f"{text}\nsha256 {landing.sha256}", **facts)


def _get_raw(caller: Caller, output: str | None) -> None:
    address = caller.address("relay")
    if _passed_on(caller, output):
        opened: Landing = Stdout()
    elif output is None:
        opened = NewFile.at(time.strftime("parcel-%Y%m%d-%H%M%S.bin"), spare=True)
    else:
        opened = NewFile.at(output)
    with opened as landing, Wire.to(address, caller.timeout) as wire:
        wire.fragile()
        caller.note("Waiting for sender...")
        first = raw.wait(wire)
        with progress("get", None, quiet=caller.as_json) as advance:
            raw.take(wire, landing, first, advance)
        path = landing.keep()
        wire.fragile(False)  # from here on our FIN says: delivered
    _received(caller, path, landing)


@click.command(short_help="List the boxes of the relay, or what is in one.")
@click.argument(
    "box", metavar="[BOX]", required=False, callback=_box, shell_complete=completion.boxes
)
@_token_file
@calls
@click.pass_obj
def ls(caller: Caller, box: str | None, token_file: str | None) -> None:
    """List all boxes of the relay, or the files in BOX in the order in which they are collected.

    A parked file could not be delivered too often; `requeue` lets it be collected again.

    \b
    Examples:
      roundhouse ls
      roundhouse ls photos
      roundhouse ls --json photos | jq -r '.parcels[].name'
    """
    site = _site(caller, token_file)
    with site.ask("GET", f"/{box}" if box else "/?format=json") as answer:
        listing = answer.json()
    try:
        rows = _parcels(listing) if box else _boxes(listing)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise Failed(f"{site.address} sent no listing: is it a relay?") from None
    caller.tell(rows, **listing)


def _boxes(listing: dict[str, Any]) -> str:
    boxes = listing["boxes"]
    if not boxes:
        return "No files wait."
    rows = [("box", "files", "bytes")]
    rows += [(str(box["box"]), f"{box['parcels']:,}", f"{box['bytes']:,}") for box in boxes]
    return columns(rows, right={1, 2})


def _parcels(listing: dict[str, Any]) -> str:
    parcels = listing["parcels"]
    if not parcels:
        return "No files wait."
    rows = [("id", "bytes", "state", "sent (UTC)", "expires (UTC)", "name")]
    for one in parcels:
        state, size = one["state"], one["size"]
        if state == "uploading":
            state += f" {100 * one['received'] // size} %" if size else ""
            size = one["received"]
        times = _minute(one["sent"]), _minute(one["expires"])
        rows.append((str(one["id"]), f"{size:,}", state, *times, str(one["name"])))
    return columns(rows, right={1})


def _minute(at: str | None) -> str:
    return str(at or "-")[:16].replace("T", " ")


@click.command(short_help="Remove files from a box of the relay.")
@_idents
@_box_option("--from", "The box they are in (queue).")
@_token_file
@calls
@click.pass_context
def rm(
    context: click.Context, idents: tuple[str, ...], box: str | None, token_file: str | None
) -> None:
    """Remove files by the IDs that `ls` shows: nobody gets them any more.

    \b
    Examples:
      roundhouse rm 17
      roundhouse rm --from photos 3 4 5
    """
    caller = context.ensure_object(Caller)
    site, box = _site(caller, token_file), box or QUEUE

    def remove(ident: str) -> None:
        with site.ask("DELETE", parcel(box, ident)):
            caller.tell(f"Removed {printable(ident)} from {box}", id=ident, box=box, removed=True)

    _each(context, idents, remove)


@click.command(short_help="Let parked files be collected again.")
@_idents
@_box_option("--from", "The box they are in (queue).")
@_token_file
@calls
@click.pass_context
def requeue(
    context: click.Context, idents: tuple[str, ...], box: str | None, token_file: str | None
) -> None:
    """Let files that were parked, for their deliveries broke off, be collected again.

    \b
    Examples:
      roundhouse requeue 17
      roundhouse requeue --from photos 3 4
    """
    caller = context.ensure_object(Caller)
    site, box = _site(caller, token_file), box or QUEUE
    form = {"Content-Type": "application/x-www-form-urlencoded"}

    def again(ident: str) -> None:
        with site.ask("POST", parcel(box, ident), form, b"action=requeue") as answer:
            facts = answer.json()
        if not isinstance(facts, dict):
            raise Failed(f"{site.address} did not say what became of it")
        state = printable(str(facts.get("state", "unknown")))
        caller.tell(f"{printable(ident)} is {state} in {box}", **facts)

    _each(context, idents, again)


@click.command(short_help="Put or get a file, asking for everything.")
@click.option("--ask", is_flag=True, help="Ask for port, host, file and role, then do it.")
@calls
@click.pass_context
def relay(context: click.Context, ask: bool) -> None:
    """Put or get a file over the raw port, asking for everything (see also: put, get).

    \b
    Examples:
      roundhouse relay --ask
    """
    caller = context.ensure_object(Caller)
    if not ask:
        raise click.UsageError(
            "nothing to do without --ask; `put` and `get` take arguments", context
        )
    here = caller.address("relay")
    caller.port = click.prompt("Port", here.port, type=click.IntRange(1, 65535), err=True)
    caller.host = click.prompt("Host", here.host, err=True)
    file = click.prompt("File", "parcel.bin", err=True)
    role = click.prompt(
        "Sender or receiver [S/R]",
        "R",
        type=click.Choice(["S", "R"], case_sensitive=False),
        show_choices=False,
        err=True,
    )
    (_put_raw if role == "S" else _get_raw)(caller, file)
