"""The handshake comparison's Starlette on uvicorn: one writer thread commits whatever waits.

usage: uvicorn handshake_starlette:app, in the folder where messages.db and logfile.log shall be

A form with client_uuid gets a code; one with client_uuid, server_uuid and message is committed,
then answered. Codes are hashed, in memory; the log file follows the commits, as ours does.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sqlite3
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from hashlib import sha256
from queue import SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

SCHEMA = """
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE messages (seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL,
        id TEXT NOT NULL, message TEXT NOT NULL, peer TEXT NOT NULL);
    CREATE INDEX messages_id ON messages (id);
"""
codes: dict[str, bytes] = {}
waiting: SimpleQueue[Any] = SimpleQueue()


def write(loop: asyncio.AbstractEventLoop) -> None:
    connection = sqlite3.connect("messages.db", isolation_level=None)
    connection.executescript(SCHEMA)
    last = 0
    with open("logfile.log", "w", encoding="ascii") as lines:
        while (first := waiting.get()) is not None:
            group = [first, *(waiting.get() for _ in range(waiting.qsize()))]
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT INTO messages (at, id, message, peer) VALUES (?, ?, ?, ?)",
                [(at, *row) for row, _ in group],
            )
            connection.execute("COMMIT")
            loop.call_soon_threadsafe(answer, group)
            for (ident, text, _), _ in group:
                last += 1
                record = {"time": at, "seq": last, "id": ident, "message": text}
                lines.write(json.dumps(record) + "\n")
            lines.flush()


def answer(group: list[Any]) -> None:
    for _, kept in group:
        if not kept.done():
            kept.set_result(None)


def digest(code: str) -> bytes:
    return sha256(code.encode()).digest()


async def serve(request: Request) -> Response:
    form = dict(parse_qsl((await request.body()).decode()))
    ident, code = form["client_uuid"], form.get("server_uuid")
    if code is None:
        code = str(uuid4())
        codes[ident] = digest(code)
        return PlainTextResponse(code)
    if not hmac.compare_digest(codes.get(ident, bytes(32)), digest(code)):
        return PlainTextResponse("Error: wrong id or code", 400)
    kept = asyncio.get_running_loop().create_future()
    peer = f"{request.client.host}:{request.client.port}" if request.client else ""
    waiting.put(((ident, form["message"], peer), kept))
    await kept
    headers = {"Status": "Authentication success", "Server-Uuid": code, "Client-Uuid": ident}
    return Response(headers=headers)


@asynccontextmanager
async def lifespan(app: Starlette) -> Any:
    writer = Thread(target=write, args=(asyncio.get_running_loop(),))
    writer.start()
    yield
    waiting.put(None)
    writer.join()


app = Starlette(routes=[Route("/", serve, methods=["POST"])], lifespan=lifespan)
