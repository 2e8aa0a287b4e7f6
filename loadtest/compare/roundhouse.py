"""The daemon of this checkout as a peer: all services, in a folder and on ports of its own."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from client.defaults import PORTS
from loadtest.compare.build import Missing
from loadtest.compare.harness import Launch, Peer, descriptors, free_ports

HOME = Path(__file__).resolve().parents[2]
GRACE = 1  # seconds a stop may take
RESERVE = 500  # descriptors for all but connections; the default, a quarter, is for any use


def roundhouse(
    service: str,
    key: str = "PORT",
    *,
    name: str,
    about: str,
    reactor: str = "",
    settings: Mapping[str, str] | None = None,
) -> Peer:
    """twistd on service.tac, measured on one port of one service. Raise Missing.

    reactor: as ROUNDHOUSE_REACTOR has it; empty: the daemon's own choice. settings: of the service,
    beside its port. The ports of the launch are all there are, by service and key.
    """
    tac, twistd = HOME / "service.tac", Path(sys.executable).with_name("twistd")
    for path in (tac, twistd):
        if not path.exists():
            raise Missing(f"{path} is not there: a checkout and its environment are needed")

    def launch(folder: Path, port: int) -> Launch:
        config = folder / "config.cfg"
        others = [number for number in free_ports(len(PORTS) + 1) if number != port]
        numbers = dict(zip(PORTS, others, strict=False)) | {(service, key): port}
        config.write_text(_config(numbers, {service: settings or {}}))
        return Launch(
            [str(twistd), "-n", "--pidfile=", "-y", str(tac)],
            {"ROUNDHOUSE_CONFIG": str(config)}
            | ({"ROUNDHOUSE_REACTOR": reactor} if reactor else {}),
            {f"{section} {key}": number for (section, key), number in numbers.items()},
        )

    below = ["twisted"] if reactor else ["twisted", "uvloop"]
    return Peer(name, about, f"{installed('roundhouse-daemon')} on {python(*below)}", launch)


def python(*distributions: str) -> str:
    """Versions of what Python code runs on."""
    below = [f"{name} {installed(name)}" for name in distributions]
    return ", ".join([f"Python {platform.python_version()}", *below])


def installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"


def _config(
    numbers: Mapping[tuple[str, str], int], settings: Mapping[str, Mapping[str, str]]
) -> str:
    most = max(min(descriptors(), 1 << 20) - RESERVE, RESERVE)
    lines = ["[DEFAULT]", "SERVER_IP = 127.0.0.1", "[daemon]", f"GRACE = {GRACE}"]
    lines.append(f"CONNECTIONS = {most}")
    for section in dict.fromkeys(service for service, _ in numbers):
        lines.append(f"[{section}]")
        lines += [f"{key} = {n}" for (service, key), n in numbers.items() if service == section]
        lines += [f"{key} = {value}" for key, value in settings.get(section, {}).items()]
    return "\n".join(lines) + "\n"
