"""The relay's HTTP port behind TLS, where no thread can have the socket: on both reactors."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from http.client import HTTPResponse, HTTPSConnection

from twisted.trial.unittest import SynchronousTestCase

from tests.process import PATIENCE
from tests.test_wrappers_end_to_end import SecureTwistd

HTTP = 5012
DATA = os.urandom(3_000_000)


class SecureRelay(SecureTwistd):
    def configure(self, default: str = "", **sections: str) -> None:
        listen = f"ssl:{self.ports[HTTP]}:privateKey=keys.pem:interface=127.0.0.1"
        super().configure(default, relay=f"HTTP_LISTEN = {listen}", **sections)


class SecureTests(SynchronousTestCase):
    def asks(self, method: str, path: str, body: bytes = b"") -> tuple[int, HTTPResponse, bytes]:
        context = self.daemon.authority.context()
        port = self.daemon.ports[HTTP]
        with closing(HTTPSConnection("localhost", port, timeout=PATIENCE, context=context)) as peer:
            peer.request(method, path, body)
            answer = peer.getresponse()
            return answer.status, answer, answer.read()

    def hands_over(self, reactor: str) -> None:
        self.daemon = SecureRelay(reactor=reactor)
        self.addCleanup(self.daemon.discard)
        self.daemon.start()
        status, _, said = self.asks("PUT", "/box/x", DATA)
        assert status == 201
        assert json.loads(said)["url"] == f"https://localhost:{self.daemon.ports[HTTP]}/box/1"
        assert self.asks("GET", "/box/1")[2] == DATA
        status, answer, said = self.asks("GET", "/box/next")
        assert (status, answer.headers["Content-Location"], said) == (200, "/box/1", DATA)
        with closing(sqlite3.connect(self.daemon.data / "relay" / "index.db")) as index:
            until = time.monotonic() + PATIENCE
            while index.execute("SELECT count(*) FROM parcels").fetchone() != (0,):
                assert time.monotonic() < until, "it was not acknowledged"
                time.sleep(0.01)
        assert self.asks("GET", "/box/next")[0] == 204

    def test_a_file_goes_in_and_out_on_the_uvloop_reactor(self) -> None:
        self.hands_over("uvloop")

    def test_a_file_goes_in_and_out_on_twisteds_own_reactor(self) -> None:
        self.hands_over("epoll")
