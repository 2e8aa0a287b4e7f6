"""python -m daemon restart: have the running daemon become the program that is on disk now."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import psutil
from attrs import frozen

from daemon import settings
from daemon.admin import NAME
from daemon.binding import port_of
from daemon.catalogue import CATALOGUE
from daemon.settings import ConfigError, Settings

HOME = Path(__file__).resolve().parents[1]
LOOK_EVERY = 0.05  # seconds
ANSWERS = 1.0  # seconds a look may take
_INTERFACE = re.compile(r":interface=((?:\\.|[^:\\])*)")  # of an endpoint string
_EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Failed(click.ClickException):
    """The daemon was not restarted; the message says why."""


class Absent(Failed):
    exit_code = 69


class Foreign(Failed):
    exit_code = 77


class Misread(Failed):
    exit_code = 78


@frozen
class Desk:
    """The admin port of the daemon, as config.cfg has it."""

    host: str
    port: int
    token: str

    @classmethod
    def of(cls, now: Settings) -> Desk:
        """Raises Absent where it speaks no plain TCP."""
        shown = now.services[NAME]
        for endpoint in shown.listens[0].endpoints if shown.enabled else ():
            number = port_of(endpoint)
            if number is not None and endpoint.startswith("tcp"):
                found = _INTERFACE.search(endpoint)
                host = re.sub(r"\\(.)", r"\1", found[1]) if found else ""
                return cls(_EVERYWHERE.get(host, host), number, shown.options.token.text)
        raise Absent(
            f"{now.path or 'config.cfg'} has no admin port that could be asked: kill -USR2 PID"
        )

    def is_of(self, pid: int) -> bool:
        """Whether that process listens there: who merely answers must not have us signal others."""
        return any(
            one.status == psutil.CONN_LISTEN and one.laddr.port == self.port
            for one in psutil.Process(pid).net_connections("tcp")
        )

    def status(self) -> Mapping[str, Any] | None:
        """What /status says; None: nobody answers."""
        head = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            with closing(http.client.HTTPConnection(self.host, self.port, timeout=ANSWERS)) as ask:
                ask.request("GET", "/status", headers=head)
                answer = ask.getresponse()
                found = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        ours = (
            answer.status == 200 and isinstance(found, dict) and found.get("name") == "roundhouse"
        )
        return found if ours else None


@click.command(
    epilog="""\b
Examples:
  git pull && python -m daemon restart
  python -m daemon restart --json | jq .seconds"""
)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="To be ready again.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def restart(path: Path | None, timeout: float, as_json: bool) -> None:
    """Have the running daemon become the program and the settings on disk, its ports open.

    What is in hand is finished, for two seconds at most; who connects meanwhile waits. Without
    PATH: the config.cfg that ROUNDHOUSE_CONFIG names, else the one beside service.tac.

    Exit status 0: it is ready again; 1: it is not, in time; 69: no daemon answers on its admin
    port; 77: it belongs to another user; 78: config.cfg is wrong, and nothing was restarted.
    """
    path = path.absolute() if path else settings.locate(HOME, os.environ)
    try:
        now = settings.read(path, HOME, CATALOGUE, os.environ)
    except ConfigError as error:
        raise Misread("\n".join(error.problems)) from None
    desk = Desk.of(now)
    before = desk.status()
    if before is None:
        raise Absent(f"no daemon answers at {desk.host}:{desk.port}")
    if not before.get("restarts"):
        raise Absent(f"pid {before['pid']} is of a version that cannot be restarted so: stop it")
    began = time.monotonic()
    try:
        if not desk.is_of(before["pid"]):
            raise Foreign(f"pid {before['pid']} does not listen at {desk.host}:{desk.port}")
        os.kill(before["pid"], signal.SIGUSR2)
    except (PermissionError, psutil.Error):
        raise Foreign(f"pid {before['pid']} belongs to another user") from None
    while True:
        time.sleep(LOOK_EVERY)
        found = desk.status()
        took = time.monotonic() - began
        if found is not None and found["uptime_seconds"] < took - LOOK_EVERY and found["ready"]:
            break
        if took > timeout:
            raise Failed(f"not restarted within {timeout:g} s: its log says why")
    done = {"pid": found["pid"], "version": found["version"], "seconds": round(took, 2)}
    click.echo(
        json.dumps(done)
        if as_json
        else f"Restarted in {took:.1f} s: {found['version']}, pid {found['pid']}, ready"
    )
