"""The daemon in one JSON object: what runs, where it listens, who is there, what is not right.

name version pid python reactor     what it is; reactor: {name, why}
state ready checks                  `readiness`; lag_seconds: of the reactor
restarts                            SIGUSR2 is understood
started uptime_seconds              ISO 8601, UTC
config data_dir                     paths; config is null where there is none
connections limits                  in all; limits: what the gate lets in, and descriptors
services                            by name: ports, and options as config.cfg would say them
    ports                           by key: listening (addresses), connections, outcomes,
                                    received_bytes, sent_bytes
stores                              every measure that is one number
reload                              the last one: at, changed, restart (keys that only a
                                    restart changes), problems (then nothing changed); or null
warnings                            a line each
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs
import psutil

from daemon.admin.metrics import release
from daemon.admin.readiness import OK
from daemon.binding import beyond_loopback
from daemon.gate import descriptors
from daemon.measures import Durations
from protocols.connection import spoken

if TYPE_CHECKING:
    from daemon.roundhouse import Roundhouse


def describe(daemon: Roundhouse, checks: Mapping[str, str]) -> dict[str, Any]:
    """checks: what `readiness` found."""
    services = {name: _service(daemon, name) for name in daemon.factories}
    now = daemon.settings
    return {
        "name": "roundhouse",
        "version": release(),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "reactor": attrs.asdict(daemon.chosen) if daemon.chosen else None,
        "state": daemon.state,
        "restarts": True,
        "ready": ready(checks),
        "checks": dict(checks),
        "lag_seconds": round(daemon.pulse.lag, 6),
        "started": daemon.started.isoformat(timespec="seconds") if daemon.started else None,
        "uptime_seconds": round(daemon.uptime, 1),
        "config": None if now.path is None else str(now.path),
        "data_dir": str(daemon.begun.data_dir),
        "connections": sum(
            port["connections"]
            for service in services.values()
            for port in service["ports"].values()
        ),
        "limits": {
            "connections": daemon.gate.most,
            "per_address": daemon.gate.per_address,
            "limit_loopback": daemon.gate.loopback,
            "descriptors": descriptors(),
            "descriptors_open": psutil.Process().num_fds(),
        },
        "services": services,
        "stores": {
            measure.name: measure.value
            for source in daemon.measured
            for measure in source.measures()
            if not isinstance(measure.value, Durations)
        },
        "reload": attrs.asdict(daemon.last_reload) if daemon.last_reload else None,
        "warnings": [*_warnings(daemon, checks)],
    }


def ready(checks: Mapping[str, str]) -> bool:
    return all(found == OK for found in checks.values())


def _service(daemon: Roundhouse, name: str) -> dict[str, Any]:
    ports = {}
    for key, factory in daemon.factories[name].items():
        moved = daemon.traffic[name, key].so_far(*factory.lives)
        ports[key] = {
            "listening": [spoken(address) for address in _addresses(daemon, name, key)],
            "connections": sum(map(len, factory.lives)),
            "outcomes": dict(factory.live.outcomes),
            "received_bytes": moved.received,
            "sent_bytes": moved.sent,
        }
    options = attrs.asdict(
        daemon.settings.services[name].options, recurse=False, value_serializer=_harmless
    )
    return {"ports": ports, "options": options}


def _harmless(_: object, __: object, value: object) -> object:
    """What JSON knows as it is, all else as text; no secret is shown."""
    if isinstance(value, Mapping):
        return {key: str(one) for key, one in value.items()}
    return value if isinstance(value, (bool, int, float, str, tuple)) else str(value)


def _addresses(daemon: Roundhouse, name: str, key: str) -> list[Any]:
    factory = daemon.factories[name][key]
    return [at for each in daemon.listeners if each.factory is factory for at in each.addresses]


def _warnings(daemon: Roundhouse, checks: Mapping[str, str]) -> Iterator[str]:
    for what, found in checks.items():
        if found != OK and what != "state":
            yield f"{what}: {found}"
    for name, ports in daemon.factories.items():
        for key in ports:
            there = _addresses(daemon, name, key)
            if not there and daemon.running:
                yield f"[{name}] {key} is not served: it was taken when the daemon started"
            for address in there:
                if beyond_loopback(address):
                    yield f"{name} is open beyond this machine at {spoken(address)}"
    for key in daemon.begun.needing_restart(daemon.settings):
        yield f"{key} was changed, and only a restart can follow"
    if daemon.last_reload is not None:
        for problem in daemon.last_reload.problems:
            yield f"config.cfg cannot be used: {problem}"
