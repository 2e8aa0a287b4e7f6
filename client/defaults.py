"""Where the services are when nobody says: ROUNDHOUSE_HOST, then config.cfg, then the defaults.

Of config.cfg only SERVER_IP, the ports and simple LISTEN strings are read, leniently: the daemon
judges the rest (`python -m daemon check-config`). Only the seed's [DEFAULT] PORT has a meaning
there: it is ingest's. Whether TLS is spoken with a port: ROUNDHOUSE_TLS, then a LISTEN.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from configparser import ConfigParser, Error
from pathlib import Path
from typing import TYPE_CHECKING

from client.net import Address, Failed

if TYPE_CHECKING:
    from client.secured import Trust

PORTS = {
    ("echo", "PORT"): 5000,
    ("ingest", "PORT"): 8080,
    ("relay", "PORT"): 5011,
    ("relay", "HTTP_PORT"): 5012,
    ("chat", "PORT"): 60060,
    ("chat", "IRC_PORT"): 6667,
    ("handshake", "CODE_PORT"): 8000,
    ("handshake", "MESSAGE_PORT"): 8001,
    ("admin", "PORT"): 8088,
}
WORD = "DESCONEXION"  # ends an echo connection
LOOPBACK = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
ENDPOINTS = {"tcp": False, "tcp6": False, "ssl": True, "tls": True}  # whether it speaks TLS
SWITCH = {
    **dict.fromkeys(("1", "yes", "true", "on"), True),
    **dict.fromkeys(("0", "no", "false", "off"), False),
}


class Misread(Failed):
    """config.cfg cannot be read, or names no port that can be called. Exit status 78."""

    exit_code = 78


def address(
    service: str,
    key: str,
    host: str | None,
    port: int | None,
    tls: bool | None = None,
    trust: Callable[[], Trust | None] = lambda: None,
) -> Address:
    """Where `service` is: `host` and `port` where given, config.cfg for the rest. Raise Misread.

    tls: whether to speak it, None: as found; trust: how, asked only where it is spoken.
    """
    host = host or os.environ.get("ROUNDHOUSE_HOST") or None
    listed = False
    if host is None or port is None:
        found, port, listed = _read(service, key, port)
        host = host or found
    if tls is None:
        tls = _switched("ROUNDHOUSE_TLS", listed)
    return Address(host, port, trust() if tls else None)


def _switched(name: str, otherwise: bool) -> bool:
    value = os.environ.get(name, "").strip().lower()
    if value and value not in SWITCH:
        raise Misread(f"{name} = {value} is neither yes nor no")
    return SWITCH.get(value, otherwise)


def _read(service: str, key: str, port: int | None) -> tuple[str, int, bool]:
    """Host, port, and whether it speaks TLS."""
    path = _path()
    parser = ConfigParser(
        default_section="", inline_comment_prefixes=("#",), interpolation=None, strict=False
    )
    if path is not None:
        try:
            with path.open(encoding="utf-8") as text:
                parser.read_file(text)
        except OSError as error:
            raise Misread(f"cannot read {path}: {error.strerror}") from None
        except (Error, UnicodeDecodeError) as error:
            raise Misread(f"cannot read {path}: {' '.join(str(error).split())}") from None
    host = parser.get("DEFAULT", "SERVER_IP", fallback="").strip() if service != "admin" else ""
    secured = False
    if port is None:
        interface, port, secured = _listening(parser, service, key, path)
        host = interface or host
    return LOOPBACK.get(host, host), port, secured


def _path() -> Path | None:
    if named := os.environ.get("ROUNDHOUSE_CONFIG"):
        return Path(named)
    places = Path("config.cfg"), Path(__file__).resolve().parents[1] / "config.cfg"
    return next((place for place in places if os.path.isfile(place)), None)


def _listening(
    parser: ConfigParser, service: str, key: str, path: Path | None
) -> tuple[str | None, int, bool]:
    """The interface, where one is named, the port of a service, and whether it speaks TLS."""
    listen = key.removesuffix("PORT") + "LISTEN"
    if endpoints := parser.get(service, listen, fallback="").strip():
        for endpoint in endpoints.splitlines():
            # tcp:5000, tcp6:port=5000:interface=\:\:1 (Twisted writes a colon of its own as \:)
            kind, first, *rest = [*re.split(r"(?<!\\):", endpoint.strip()), ""]
            options = {name: value for name, _, value in (o.partition("=") for o in [first, *rest])}
            number = options.get("port", first)
            if kind in ENDPOINTS and _is_port(number):
                interface = options.get("interface", "").replace("\\:", ":") or None
                return interface, int(number), ENDPOINTS[kind]
        raise Misread(
            f"{path}: [{service}] {listen} = {' '.join(endpoints.split())} is no TCP port that "
            "can be called; give --port"
        )
    number = parser.get(service, key, fallback="").strip()
    where = service
    if not number and service == "ingest":
        number, where = parser.get("DEFAULT", key, fallback="").strip(), "DEFAULT"
    if not number:
        return None, PORTS[service, key], False
    if not _is_port(number):
        raise Misread(
            f"{path}: [{where}] {key} = {number} is no port: 1 to 65535 would be, "
            f"the default is {PORTS[service, key]}"
        )
    return None, int(number), False


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536
