"""python -m daemon doctor: what on this machine will hurt, before it does."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pwd
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import attrs
import click
import psutil
from attrs import frozen

from daemon import binding, settings, wrappers
from daemon.binding import Holder
from daemon.catalogue import CATALOGUE
from daemon.gate import descriptors, places
from daemon.settings import ConfigError, Listen, Settings
from daemon.stores import files
from protocols.options import Secret

HOME = Path(__file__).resolve().parents[1]
OK, WARNING, BAD = "ok", "warning", "bad"
COLOURS = {OK: "green", WARNING: "yellow", BAD: "red"}
RESERVED = Path("/proc/sys/net/ipv4/ip_local_reserved_ports")
FEW = 4096  # descriptors
LITTLE = 1 << 30  # bytes
SLOW = 0.05  # seconds a sync may take
RENEWED = timedelta(days=14)  # before its end a certificate should be
VOLATILE = {"tmpfs": "a restart of the machine empties it", "ramfs": "a restart empties it"}
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs"}


@frozen
class Finding:
    """One line: how bad, about what, what was found; remedy: what would be right."""

    level: str
    about: str
    text: str
    remedy: str = ""


@click.command(
    epilog="""\b
Examples:
  python -m daemon doctor
  python -m daemon doctor --json | jq '.[] | select(.level != "ok")'"""
)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def doctor(path: Path | None, as_json: bool) -> None:
    """Look at settings, ports, disk, permissions and limits of this machine.

    Reads the config.cfg that check-config would. Writes one small file into DATA_DIR, or above it
    where it is not there yet, and removes it. Exit status 1 when something is bad; warnings alone
    are 0.
    """
    path = path.absolute() if path else settings.locate(HOME, os.environ)
    found = [*examine(path)]
    if as_json:
        click.echo(json.dumps([attrs.asdict(finding) for finding in found], indent=2))
    else:
        colour = False if os.environ.get("NO_COLOR") else None
        for finding in found:
            mark = click.style(f"{finding.level:8}", fg=COLOURS[finding.level])
            click.echo(f"{mark} {finding.about:14} {finding.text}", color=colour)
            if finding.remedy:
                click.echo(f"{'':24}{finding.remedy}")
    if any(finding.level == BAD for finding in found):
        raise SystemExit(1)


def examine(path: Path | None) -> Iterator[Finding]:
    """Every finding about the daemon that `path` describes."""
    try:
        now = settings.read(path, HOME, CATALOGUE, os.environ)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding(BAD, "config.cfg", problem)
        return
    yield Finding(OK, "config.cfg", f"{path or 'there is none: the defaults hold'}")
    if path is not None and path.stat().st_mode & 0o007 and _holds_secrets(now):
        text = "holds secrets, and every user of this machine may read it"
        remedy = f"chmod 0640 {path}, and chgrp to the group of the user that serves"
        yield Finding(WARNING, "secrets", f"{path} {text}", remedy)
    running = _running(now.data_dir)
    if running:
        yield Finding(OK, "daemon", f"runs as process {running}")
    yield from _ports(now, running, binding.connections())
    yield from _certificates(now)
    yield from _disk(now)
    yield from _limits(now)
    yield _reactor()


def _holds_secrets(now: Settings) -> bool:
    for service in now.services.values():
        for value in attrs.asdict(service.options, recurse=False).values():
            some = value.values() if isinstance(value, Mapping) else (value,)
            if any(isinstance(one, Secret) and one.text for one in some):
                return True
    return False


def _running(data: Path) -> int | None:
    """The process that has a store of `data` open."""
    for lock in sorted(data.glob(".*.lock")):
        try:
            with lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = file.read(32).strip()
                    return int(holder) if holder.isdigit() else 0
        except OSError:
            continue
    return None


# --- ports ------------------------------------------------------------------------------------


def _ports(now: Settings, running: int | None, among: Sequence[object]) -> Iterator[Finding]:
    reserved = _reserved()
    for service in now.services.values():
        for listen in service.listens if service.enabled else ():
            for endpoint in listen.endpoints:
                number = binding.port_of(endpoint)
                if number is not None:
                    yield _port(listen, number, binding.holder(number, among), running)
                    if binding.ephemeral(number) and not _holds(reserved, number):
                        yield Finding(
                            WARNING,
                            f"port {number}",
                            "lies in the ephemeral range: an outgoing connection may take it",
                            f"sysctl -w net.ipv4.ip_local_reserved_ports={number}",
                        )


def _port(listen: Listen, number: int, holder: Holder, running: int | None) -> Finding:
    about, what = f"port {number}", f"[{listen.service}] {listen.key}"
    if not holder.listens:
        if running is not None:
            remedy = "a daemon that runs and does not listen there: see its log"
            return Finding(WARNING, about, f"{what}: nobody listens", remedy)
        return Finding(OK, about, f"{what}: free")
    if running and f"(pid {running})" in holder.who:
        return Finding(OK, about, f"{what}: served")
    remedy = f"stop it, or move this one: {listen.where}"
    return Finding(BAD, about, f"{what}: taken by {holder.who}", remedy)


def _certificates(now: Settings) -> Iterator[Finding]:
    endpoints = {
        endpoint: f"[{listen.service}] {listen.key}"
        for service in now.services.values()
        for listen in (service.listens if service.enabled else ())
        for endpoint in listen.endpoints
    }
    seen = set()
    for endpoint, what in endpoints.items():
        try:
            credentials = wrappers.credentials(endpoint, now.home)
            if credentials is None or credentials in seen:
                continue
            seen.add(credentials)
            left = (until := credentials.until()) - datetime.now(UTC)
        except ValueError as error:
            yield Finding(BAD, "certificate", f"{what}: {error}")
        else:
            text = f"{credentials.certificate}: until {until:%Y-%m-%d}"
            soon = left < RENEWED
            yield Finding(WARNING if soon else OK, "certificate", text, "renew it" if soon else "")


def _reserved() -> str:
    try:
        return RESERVED.read_text().strip()
    except OSError:
        return ""


def _holds(ranges: str, number: int) -> bool:
    """ranges: as the kernel writes them, `5000,60000-60100`."""
    for part in filter(None, ranges.split(",")):
        first, _, last = part.partition("-")
        if int(first) <= number <= int(last or first):
            return True
    return False


# --- disk -------------------------------------------------------------------------------------


def _disk(now: Settings) -> Iterator[Finding]:
    data = now.data_dir
    there = next(each for each in (data, *data.parents) if os.path.exists(each))
    try:
        took = _sync_time(there)
    except OSError as error:
        remedy = "set DATA_DIR to a folder that this user may write to"
        yield Finding(BAD, "DATA_DIR", f"{data}: {error.strerror}", remedy)
        return
    what = "can be written to" if there == data else "is not there yet, and can be made"
    yield Finding(OK, "DATA_DIR", f"{data} {what}")
    kind = _filesystem(data)
    if kind in VOLATILE:
        yield Finding(BAD, "filesystem", f"{kind}: {VOLATILE[kind]}", "use a disk")
    elif kind in REMOTE:
        remedy = "SQLite and locks want a local disk"
        yield Finding(WARNING, "filesystem", f"{kind}, over a network", remedy)
    elif kind:
        yield Finding(OK, "filesystem", kind)
    free = shutil.disk_usage(there).free
    level = OK if free >= LITTLE else WARNING
    yield Finding(level, "free space", f"{free / 2**30:.1f} GiB")
    level = OK if took < SLOW else WARNING
    remedy = "" if level == OK else "every OK waits for one: use a faster disk"
    yield Finding(level, "sync", f"{took * 1000:.1f} ms to make a small write durable", remedy)
    status = there.stat()
    if there == data and status.st_mode & 0o007:
        text = f"{data} is open to every user of this machine ({status.st_mode & 0o777:o})"
        yield Finding(WARNING, "permissions", text, f"chmod o= {data}")
    if there == data and now.user is not None and status.st_uid != now.user[0]:
        name = pwd.getpwuid(now.user[0]).pw_name
        text = f"{data} belongs to uid {status.st_uid}, and USER is {name}"
        yield Finding(BAD, "permissions", text, f"chown -R {name} {data}")


def _sync_time(folder: Path) -> float:
    """Seconds for a small write to be durable, the median of a few."""
    times = []
    with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=folder, buffering=0) as file:
        for _ in range(5):
            began = time.perf_counter()
            file.write(b"x" * 512)
            files.sync_data(file.fileno())
            times.append(time.perf_counter() - began)
    return median(times)


def _filesystem(path: Path) -> str:
    """Its type, as `mount` names it; empty where that is not known."""
    resolved = path.resolve()
    mounts = [
        one for one in psutil.disk_partitions(all=True) if resolved.is_relative_to(one.mountpoint)
    ]
    return max(mounts, key=lambda one: len(one.mountpoint)).fstype if mounts else ""


# --- limits -----------------------------------------------------------------------------------


def _limits(now: Settings) -> Iterator[Finding]:
    count = descriptors()
    text = f"{count:,} open files, so {places(now.connections):,} connections"
    remedy = "raise it: ulimit -n 65536, LimitNOFILE=65536 in a unit"
    yield (
        Finding(OK, "descriptors", text)
        if count >= FEW
        else Finding(WARNING, "descriptors", text, remedy)
    )
    if now.connections > count * 0.9:
        text = f"[daemon] CONNECTIONS = {now.connections} is more than {count} files allow"
        yield Finding(BAD, "descriptors", text, remedy)


def _reactor() -> Finding:
    if importlib.util.find_spec("uvloop") is None:
        remedy = "pip install uvloop makes small messages twice as cheap"
        return Finding(WARNING, "reactor", "uvloop is not installed: Twisted's own serves", remedy)
    return Finding(OK, "reactor", "uvloop")
