"""Endpoints that put a layer between the socket and the service: TLS, and the PROXY protocol.

    ssl:PORT:privateKey=FILE[:certKey=FILE][:extraCertChain=FILE][:clientCA=FILE]
            [:interface=IP][:backlog=N]             TLS; tls: is the same
    haproxy:ENDPOINT                                PROXY header first, before TLS if that is ssl:

The names are Twisted's, the layers our own: Twisted's take a peer's half-close for the end of the
connection, and the answer that is still owed would be lost. Here it becomes `readConnectionLost`,
as on plain TCP, so every service works behind them as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

from twisted.internet.interfaces import IProtocolFactory

from daemon.wrappers.proxy import Proxy
from daemon.wrappers.tls import Credentials, Secure
from protocols.connection import LiveFactory

PROXY = "haproxy:"
TLS = ("ssl", "tls")
_PIECE = re.compile(r"((?:\\.|[^:\\])*)(?::|\Z)")  # of an endpoint string; \: is no border
_FILES = {
    "privateKey": "private_key",
    "certKey": "certificate",
    "extraCertChain": "chain",
    "clientCA": "client_ca",
}
_OTHERS = ("port", "interface", "backlog")


def wrap(endpoint: str, factory: LiveFactory, home: Path) -> tuple[str, IProtocolFactory]:
    """The plain endpoint beneath `endpoint`, and the factory that shall serve it.

    home: where relative files begin. Raises ValueError for what TLS cannot be spoken with.
    """
    plain = endpoint.removeprefix(PROXY)
    within: IProtocolFactory = factory
    if plain.partition(":")[0] in TLS:
        plain, files = _secured(plain, home)
        within = Secure(within, factory, files)
    if endpoint.startswith(PROXY):
        within = Proxy(within, factory)
    return plain, within


def credentials(endpoint: str, home: Path) -> Credentials | None:
    """What TLS is spoken with there; None: it is not. Raises ValueError for what it cannot be."""
    plain = endpoint.removeprefix(PROXY)
    return _secured(plain, home)[1] if plain.partition(":")[0] in TLS else None


def _secured(endpoint: str, home: Path) -> tuple[str, Credentials]:
    kept: list[str] = []
    files = {"private_key": home / "server.pem"}  # Twisted's default
    for piece in _PIECE.findall(endpoint.partition(":")[2])[:-1]:
        key, given, value = piece.partition("=")
        if given and key in _FILES:
            files[_FILES[key]] = home / re.sub(r"\\(.)", r"\1", value)
        elif given and key not in _OTHERS:
            raise ValueError(f"it takes no {key}, only {', '.join((*_FILES, *_OTHERS))}")
        else:
            kept.append(piece)
    return ":".join(("tcp", *kept)), Credentials(**files)
