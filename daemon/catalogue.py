"""The protocols this daemon serves. A new one is one import and one entry."""

from __future__ import annotations

from protocols import chat, echo, handshake, ingest, relay
from protocols.spec import Spec

CATALOGUE: tuple[Spec, ...] = (ingest.SPEC, relay.SPEC, chat.SPEC, handshake.SPEC, echo.SPEC)
