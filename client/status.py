"""status: what a daemon serves, who is there, and what is not right with it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import click

from client import completion
from client.caller import Caller, calls, colour
from client.files import Source
from client.http import Refused, Site
from client.net import Failed
from client.terminal import columns, printable

INTERVAL = 2.0  # seconds between two looks of --watch
PATIENCE = 10.0  # seconds for an answer, without --timeout
HEADS = ("SERVICE", "PORT", "LISTENING", "OPEN", "ENDED", "IN", "OUT", "HOW THEY ENDED")
NUMBERS = range(3, 7)


@click.command(short_help="Show what the daemon does, and whether it is well.")
@click.option(
    "--watch",
    type=click.FloatRange(0.1, 3600),
    is_flag=False,
    flag_value=INTERVAL,
    metavar="[SECONDS]",
    help=f"Look again every so often ({INTERVAL:g} s), until Ctrl-C.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    shell_complete=completion.files,
    help="Read the TOKEN of [admin] from FILE (or ROUNDHOUSE_ADMIN_TOKEN).",
)
@click.option("--ready", is_flag=True, help="Only whether it is ready, in a line; needs no token.")
@calls
@click.pass_obj
def status(caller: Caller, watch: float | None, token_file: str | None, ready: bool) -> None:
    """Ask the admin port of a daemon: a line for each port it serves, and every warning.

    Exit status 0: it is ready; 1: it starts, drains, or cannot keep what it is sent; 69: nobody
    answers. In JSON: the object that /status gives, one a line.

    \b
    Examples:
      roundhouse status
      roundhouse status --watch
      roundhouse status --ready && echo "send work here"
      roundhouse status --json | jq .services.ingest
    """
    if ready:
        if watch is not None:
            raise click.UsageError("--ready looks once, --watch again and again: take one")
        site = Site(caller.address("admin"), caller.timeout)
        check(site)
        caller.tell(f"{site.address} is ready", ready=True)
        return
    site = Site(caller.address("admin"), caller.timeout, _token(token_file))
    while True:
        try:
            found = ask(site)
            text = "" if caller.as_json else shown(found, str(site.address))
        except Failed as error:
            if watch is None:
                raise
            found, text = {"error": error.format_message()}, f"{error.format_message()}\n"
        if watch is not None and not caller.as_json:
            click.clear()
        click.echo(json.dumps(found) if caller.as_json else text, nl=caller.as_json, color=colour())
        if watch is None:
            break
        time.sleep(watch)
    if not found.get("ready"):
        raise SystemExit(1)


def check(site: Site) -> None:
    """Raise Failed: what is there is not ready, or no daemon."""
    try:
        with site.ask("GET", "/readyz", patience=site.timeout or PATIENCE) as answer:
            found = answer.json()
    except Refused as refused:
        if refused.status == HTTPStatus.SERVICE_UNAVAILABLE:
            raise Failed(f"{site.address} is not ready: `roundhouse status` says why") from None
        raise
    if not isinstance(found, dict) or found.get("ready") is not True:
        raise Failed(f"{site.address} is no admin port of Roundhouse")


def ask(site: Site) -> Mapping[str, Any]:
    """What /status says. Raise Failed."""
    try:
        with site.ask("GET", "/status", patience=site.timeout or PATIENCE) as answer:
            found = answer.json()
    except Refused as refused:
        if refused.status == HTTPStatus.UNAUTHORIZED:
            raise Failed(
                f"{site.address} wants its token: --token-file, or ROUNDHOUSE_ADMIN_TOKEN"
            ) from None
        raise
    if not isinstance(found, dict) or found.get("name") != "roundhouse":
        raise Failed(f"{site.address} is no admin port of Roundhouse")
    return found


def shown(found: Mapping[str, Any], address: str) -> str:
    """The object for people, with a newline at its end. Raise Failed: it is not as ours."""
    try:
        return "".join(f"{line}\n" for line in _lines(found, address))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Failed(
            f"{address} is of another version, and cannot be shown: --json has what it says"
        ) from None


def _lines(found: Mapping[str, Any], address: str) -> Iterator[str]:
    well = "ready" if found["ready"] else "not ready"
    up = timedelta(seconds=int(found["uptime_seconds"]))
    reactor = (found["reactor"] or {}).get("name", "?")
    yield printable(
        f"roundhouse {found['version']} at {address}: {well}, {found['state']}, up {up},"
        f" pid {found['pid']}, {reactor}, {found['lag_seconds'] * 1000:.1f} ms late"
    )
    limits = found["limits"]
    yield (
        f"{found['connections']:,} connections of {limits['connections']:,},"
        f" {limits['descriptors_open']:,} descriptors of {limits['descriptors']:,}"
    )
    yield ""
    rows = [
        _row(service, key, port)
        for service, one in found["services"].items()
        for key, port in one["ports"].items()
    ]
    yield columns([HEADS, *rows], right=NUMBERS)
    yield ""
    checks = found["checks"].items()
    yield printable("checks: " + ", ".join(f"{name} {check}" for name, check in checks))
    if reload := found["reload"]:
        said = "not used" if reload["problems"] else ", ".join(reload["changed"]) or "no change"
        yield printable(f"config.cfg read again at {reload['at']}: {said}")
    for warning in found["warnings"]:
        yield click.style("warning: ", fg="yellow") + printable(warning)


def _row(service: str, key: str, port: Mapping[str, Any]) -> list[str]:
    outcomes = port["outcomes"]
    return [
        service,
        key,
        ", ".join(port["listening"]) or "-",
        f"{port['connections']:,}",
        f"{sum(outcomes.values()):,}",
        size(port["received_bytes"]),
        size(port["sent_bytes"]),
        ", ".join(f"{name} {count:,}" for name, count in sorted(outcomes.items())),
    ]


def size(count: float) -> str:
    """Bytes for people: 512 B, 1.2 MiB."""
    unit = ""
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if count < 1024:
            break
        count, unit = count / 1024, larger
    return f"{count:,.1f} {unit}" if unit else f"{count:,.0f} B"


def _token(file: str | None) -> str | None:
    """The token never is an argument: every user could read it."""
    if file is None:
        token = os.environ.get("ROUNDHOUSE_ADMIN_TOKEN", "").strip()
    else:
        with Source.open(file) as source:
            token = source.read().decode(errors="replace").strip()
        if not token:
            raise Failed(f"{printable(file)} holds no token")
    if not (token.isascii() and token.isprintable()):
        raise Failed("the token is not plain ASCII")
    return token or None
