"""The handshake comparison's seed: twisted.web, a commit a message, SQLite as it comes.

usage: python handshake_twisted.py PORT, in the folder where messages.db and logfile.log shall be
"""

from __future__ import annotations

import json
import sqlite3
import sys
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from twisted.internet import reactor
from twisted.web.resource import Resource
from twisted.web.server import Site

SCHEMA = """
    CREATE TABLE codes (id TEXT, code TEXT);
    CREATE TABLE messages (seq INTEGER PRIMARY KEY AUTOINCREMENT, at TEXT NOT NULL,
        id TEXT NOT NULL, message TEXT NOT NULL, peer TEXT NOT NULL);
    CREATE INDEX codes_id ON codes (id);
"""


class Messages(Resource):
    isLeaf = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = sqlite3.connect("messages.db", isolation_level=None)
        self.table.executescript(SCHEMA)
        self.log = open("logfile.log", "w", encoding="ascii")  # noqa: SIM115

    def render_POST(self, request: Any) -> bytes:
        form = {name.decode(): values[0].decode() for name, values in request.args.items()}
        ident, code = form["client_uuid"], form.get("server_uuid")
        if code is None:
            code = str(uuid4())
            self.table.execute("INSERT INTO codes VALUES (?, ?)", (ident, code))
            return code.encode()
        found = self.table.execute(
            "SELECT 1 FROM codes WHERE id = ? AND code = ?", (ident, code)
        ).fetchone()
        if found is None:
            request.setResponseCode(400)
            return b"Error: wrong id or code"
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        seq = self.table.execute(
            "INSERT INTO messages (at, id, message, peer) VALUES (?, ?, ?, ?)",
            (at, ident, form["message"], request.getClientAddress().host),
        ).lastrowid
        record = {"time": at, "seq": seq, "id": ident, "message": form["message"]}
        self.log.write(json.dumps(record) + "\n")
        self.log.flush()
        request.setHeader("Status", "Authentication success")
        request.setHeader("Server-Uuid", code)
        request.setHeader("Client-Uuid", ident)
        return b""


if __name__ == "__main__":
    site: Any = Site(Messages())  # type: ignore[no-untyped-call]
    reactor.listenTCP(int(sys.argv[1]), site, interface="127.0.0.1", backlog=5000)
    reactor.run()
