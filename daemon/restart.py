"""python -m daemon restart: have the running daemon become the program that is on disk now.

It is asked at its admin port, with the TOKEN of config.cfg. So that no program of another user who
took that port hears the token or has us signal somebody, only a process of ours is ever spoken to:
one of this user, of USER, or of whom DATA_DIR belongs to.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Collection, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import click
import psutil
from attrs import define

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


@define
class Desk:
    """The admin port of the daemon, as config.cfg has it. users: whose daemon it may be (uids)."""

    host: str
    port: int
    token: str
    users: Collection[int]
    pid: int = 0  # of the daemon, once it was seen

    @classmethod
    def of(cls, now: Settings) -> Desk:
        """Raises Absent where it speaks no plain TCP."""
        shown = now.services[NAME]
        for endpoint in shown.listens[0].endpoints if shown.enabled else ():
            number = port_of(endpoint)
            if number is not None and endpoint.startswith("tcp"):
                found = _INTERFACE.search(endpoint)
                host = re.sub(r"\\(.)", r"\1", found[1]) if found else ""
                token = shown.options.token.text
                return cls(_EVERYWHERE.get(host, host), number, token, _users(now))
        raise Absent(
            f"{now.path or 'config.cfg'} has no admin port that could be asked: kill -USR2 PID"
        )

    def look(self) -> bool:
        """Find the process of ours that listens there. False: nobody listens; raises Foreign."""
        for pid in (self.pid, *psutil.pids()):
            if self._listens(pid):
                self.pid = pid
                return True
        try:
            socket.create_connection((self.host, self.port), ANSWERS).close()
        except OSError:
            return False
        raise Foreign(
            f"what listens at {self.host}:{self.port} belongs to another user: run this as that"
            " user or as root; it was asked nothing"
        )

    def _listens(self, pid: int) -> bool:
        """Whether it is one of ours, and listens there."""
        everywhere = "::" if ":" in self.host else "0.0.0.0"
        at = {(self.host, self.port), (everywhere, self.port)}
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            return process.uids().effective in self.users and any(
                one.status == psutil.CONN_LISTEN and one.laddr in at
                for one in process.net_connections("tcp")
            )
        return False

    def status(self) -> Mapping[str, Any] | None:
        """What /status says; None: nobody answers. Raises Foreign."""
        if not self.look():
            return None
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


def _users(now: Settings) -> Collection[int]:
    found = {os.geteuid()}
    if now.user is not None:
        found.add(now.user[0])
    with suppress(OSError):  # it may be there only once a daemon was started
        found.add(now.data_dir.stat().st_uid)
    return found


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
        os.kill(desk.pid, signal.SIGUSR2)
    except OSError as error:
        raise Foreign(f"pid {desk.pid} cannot be told: {error.strerror}") from None
    while True:
        time.sleep(LOOK_EVERY)
        found = None
        with suppress(Foreign):  # a daemon that goes into the background is seen a moment later
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
