"""relay over HTTP: real sockets, a real depot, and what anybody gets for what they ask."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import struct
from base64 import b64encode
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any
from urllib.parse import quote

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from daemon.gate import Gate
from daemon.kernel import Sockets
from daemon.stores import depot as depot_module
from daemon.stores import files
from daemon.stores.crew import Crew
from daemon.stores.depot import Depot
from daemon.stores.depot.upload import Laid, Upload
from protocols import http_fields, relay_http
from protocols.connection import LiveFactory
from protocols.options import Secret
from protocols.relay import SPEC
from protocols.relay_http import A_READ, A_TURN, RelayHttp
from protocols.relay_options import Options
from protocols.spec import Context
from protocols.stores import Stores

REACTOR: Any = reactor
BIG = 3_000_000  # bytes: more than a thread leaves to the reactor
HASTY = 0.2  # seconds of a lease that is to end
FORM = """\
--edge\r
Content-Disposition: form-data; name="expires"\r
\r
2d\r
--edge\r
Content-Disposition: form-data; name="file"; filename="C:\\docs\\a.txt"\r
Content-Type: text/plain\r
\r
first\r
--edge\r
Content-Disposition: form-data; name="file"; filename="b.txt"\r
\r
second\r
--edge--\r
"""


@frozen
class Answer:
    """headers: by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str]:
        said = self.json
        assert set(said) == {"error", "detail"}
        assert said["detail"].endswith(".")
        return self.status, said["error"]


class HttpCase(TestCase):
    timeout = 10

    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name) / "relay"
        self.factories: list[LiveFactory] = []

    async def serve(self, **options: Any) -> None:
        """Open the depot, and listen on a port of its own."""
        self.crew = Crew(reactor)
        self.depot = Depot(self.folder, self.crew, reactor)
        self.crew.startService()
        self.depot.startService()
        given = Options(**{"min_free": 0, **options})
        stores: Any = type("Stores", (), {"depot": self.depot})
        assert "depot" in Stores.__annotations__
        factories = SPEC.build(Context(REACTOR, given, stores, Sockets()))
        self.factory, self.raw = factories["HTTP_PORT"], factories["PORT"]
        self.ports = [REACTOR.listenTCP(0, f, interface="127.0.0.1") for f in factories.values()]
        self.raw_port, self.port = (one.getHost().port for one in self.ports)
        self.addCleanup(self.stop, self.depot)

    async def stop(self, depot: Depot | None = None) -> None:
        if depot in (None, self.depot) and self.depot.running:
            for port in self.ports:
                await port.stopListening()
            for factory in (self.factory, self.raw):
                await factory.drain(0.05)
            await self.depot.stopService()
            await self.crew.stopService()

    async def restart(self, **options: Any) -> None:
        await self.stop()
        await self.serve(**options)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """On a connection of its own."""
        return await deferToThread(self._ask, method, path, body, headers)

    def _ask(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=8)) as connection:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            return whole(connection.getresponse())

    async def put(self, data: bytes, path: str = "/box/x", **headers: str) -> Any:
        answer = await self.ask("PUT", path, data, **headers)
        assert answer.status == 201, answer
        return answer.json

    async def takes(self, data: bytes, path: str = "/box/next") -> Answer:
        """Collect and acknowledge a file, which must be this."""
        answer = await self.ask("GET", path)
        assert (answer.status, answer.body) == (200, data)
        return answer

    async def listed(self, box: str = "box") -> list[dict[str, Any]]:
        return [dict(one) for one in (await self.ask("GET", f"/{box}")).json["parcels"]]

    async def states(self, box: str = "box") -> list[tuple[str, int, str]]:
        return [(p["id"], p["deliveries"], p["state"]) for p in await self.listed(box)]

    def dial(self, *said: bytes) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), 8)
        self.addCleanup(sock.close)
        for one in said:
            sock.sendall(one)
        return sock

    async def hears(self, sock: socket.socket) -> bytes:
        """Everything up to its FIN."""

        def read() -> bytes:
            return b"".join(iter(lambda: sock.recv(1 << 16), b""))

        return await deferToThread(read)

    async def head_of(self, sock: socket.socket, **cut: Any) -> HTTPResponse:
        def read() -> HTTPResponse:
            response = HTTPResponse(sock)
            response.begin()
            return response

        return await deferToThread(read)

    async def comes(self, happened: Callable[[], object]) -> None:
        for _ in range(1000):
            if happened():
                return
            await deferLater(REACTOR, 0.005)
        raise AssertionError("it did not happen")

    async def becomes(self, wanted: list[tuple[str, int, str]]) -> None:
        for _ in range(400):
            if (found := await self.states()) == wanted:
                return
            await deferLater(REACTOR, 0.01)
        raise AssertionError(f"{found} is not {wanted}")

    @property
    def kept(self) -> list[str]:
        """The files in the depot's folder, but for the index."""
        return [path.name for path in self.folder.iterdir() if "index" not in path.name]


def whole(response: HTTPResponse) -> Answer:
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def digest(data: bytes) -> str:
    return f"sha-256=:{b64encode(hashlib.sha256(data).digest()).decode()}:"


class PutTests(HttpCase):
    async def test_the_answer_proves_what_came_and_says_how_it_is_collected(self) -> None:
        await self.serve()
        answer = await self.ask("PUT", "/box/caf%C3%A9%20%231.txt", b"12345")
        sha256 = hashlib.sha256(b"12345").hexdigest()
        site = f"http://127.0.0.1:{self.port}"
        assert answer.status == 201
        assert answer.headers["location"] == "/box/1"
        assert answer.headers["etag"] == f'"{sha256}"'
        assert answer.headers["repr-digest"] == digest(b"12345")
        said = answer.json
        assert said.pop("sent").endswith("+00:00")
        assert said == {
            "id": "1",
            "box": "box",
            "name": "caf\u00e9 #1.txt",
            "size": 5,
            "sha256": sha256,
            "expires": None,
            "url": f"{site}/box/1",
            "collect": f"curl -OJ {site}/box/next",
        }

    async def test_a_long_body_goes_past_the_reactor_and_the_next_request_is_answered(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        head = f"PUT /box/big HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {BIG}\r\n\r\n"
        listing = b"GET /box HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        sock = self.dial()
        await deferToThread(sock.sendall, head.encode() + data + listing)
        heard = await self.hears(sock)
        assert heard.count(b"HTTP/1.1 201 ") == 1
        listed = json.loads(heard.rpartition(b"\r\n\r\n")[2])
        assert [one["sha256"] for one in listed["parcels"]] == [hashlib.sha256(data).hexdigest()]

    async def test_chunks_do_as_well(self) -> None:
        await self.serve()
        said = await self.put(iter([b"abc", bytes(200_000), b"def"]))  # type: ignore[arg-type]
        assert said["size"] == 200_006

    async def test_without_a_length_nothing_is_read(self) -> None:
        await self.serve()
        sock = self.dial(b"PUT /box/x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await self.hears(sock)).startswith(b"HTTP/1.1 411 ")

    async def test_a_digest_is_proved_before_anything_is_kept(self) -> None:
        await self.serve()
        for name in ("Repr_Digest", "Content_Digest"):
            answer = await self.ask("PUT", "/box/x", b"abc", **{name: digest(b"abd")})
            assert answer.error == (400, "digest")
            assert await self.listed() == []
            await self.put(b"abc", **{name: digest(b"abc")})
            await self.takes(b"abc")
        await self.comes(lambda: self.kept == [])
        answer = await self.ask("PUT", "/box/x", b"abc", Repr_Digest="sha-256=:short:")
        assert answer.error == (400, "malformed")

    async def test_100_continue_is_said_once_it_is_wanted_and_not_before_a_refusal(self) -> None:
        await self.serve(max_file=5)
        head = (
            "PUT /box/x HTTP/1.1\r\nHost: 127.0.0.1\r\nExpect: 100-continue\r\n"
            "Connection: close\r\nContent-Length: {}\r\n\r\n"
        )
        sock = self.dial(head.format(5).encode())
        assert (await deferToThread(sock.recv, 100)) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"12345")
        assert (await self.hears(sock)).startswith(b"HTTP/1.1 201 ")
        refused = await self.hears(self.dial(head.format(6).encode()))
        assert refused.startswith(b"HTTP/1.1 413 ")

    async def test_an_upload_that_is_cut_off_leaves_nothing(self) -> None:
        await self.serve()
        for length, part in ((1000, 10), (BIG, BIG // 2)):
            head = f"PUT /box/x HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: {length}\r\n\r\n"
            sock = self.dial()
            await deferToThread(sock.sendall, head.encode() + bytes(part))
            await self.comes(lambda: self.kept)
            ((listed),) = await self.listed()
            assert (listed["state"], listed["size"]) == ("uploading", length)
            reset(sock)
            await self.comes(lambda: not self.kept)
            await self.becomes([])
        assert self.depot.stock.total == 0

    async def test_a_refusal_names_what_would_be_right(self) -> None:
        await self.serve()
        for path, error in (
            ("/box/next", "malformed"),
            ("/box/", "malformed"),
            ("/box", "malformed"),
            ("/box/a%2Fb", "malformed"),
            ("/box/%00", "malformed"),
            ("/box/%FF", "malformed"),
            ("/box/x?expires=soon", "malformed"),
        ):
            answer = await self.ask("PUT", path, b"x")
            assert answer.error == (400, error), path
        for path in ("/Box/x", "/tus/x", "/next/x", "/b_x/x", "/box/a/b", f"/{'b' * 65}/x"):
            assert (await self.ask("PUT", path, b"x")).status == 404, path
        assert (await self.ask("PATCH", "/box/x", b"x")).status in (404, 405)
        await self.put(b"x")
        answer = await self.ask("PATCH", "/box/x", b"x")
        assert answer.error == (405, "method")
        assert "DELETE" in answer.headers["allow"]
        assert (await self.ask("POST", "/", b"x")).error == (404, "no-such-box")


class LimitTests(HttpCase):
    async def refused(self, status: int, error: str, size: int, path: str = "/box/x") -> None:
        """By its length, and in chunks, too."""
        for body in (bytes(size), iter([bytes(size)])):
            answer = await self.ask("PUT", path, body)
            assert answer.error == (status, error)
        shelves = self.depot._shelves
        await self.comes(lambda: "box" not in shelves or not shelves["box"].arriving)

    async def test_of_one_file(self) -> None:
        await self.serve(max_file=100_000)
        await self.put(bytes(100_000))
        await self.refused(413, "too-large", 100_001)

    async def test_of_a_box_and_what_left_it_makes_room(self) -> None:
        await self.serve(box_quota=100_000)
        await self.put(bytes(60_000))
        await self.put(bytes(100_000), "/other/x")
        await self.refused(507, "quota", 40_001)
        await self.put(iter([bytes(40_000)]))  # type: ignore[arg-type]
        assert (await self.ask("DELETE", "/box/1")).status == 204
        await self.put(bytes(60_000))

    async def test_of_all_boxes_together_with_what_is_on_its_way(self) -> None:
        await self.serve(quota=100_000)
        await self.put(bytes(50_000), "/other/x")
        sock = self.dial(b"PUT /two/y HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 40000\r\n\r\n")
        await self.comes(lambda: self.depot.stock.total == 90_000)
        await self.refused(507, "quota", 10_001)
        reset(sock)
        await self.comes(lambda: self.depot.stock.total == 50_000)
        await self.put(bytes(50_000))
        await self.restart(quota=100_000)
        assert len(await self.listed()) == 1
        await self.refused(507, "quota", 1)

    async def test_a_disk_that_refuses_gives_back_what_was_counted(self) -> None:
        await self.serve()
        write_all = files.write_all

        def full(descriptor: int, data: bytes | memoryview) -> None:
            raise OSError(28, "no space left")

        self.patch(files, "write_all", full)
        await self.refused(507, "disk-full", 1000)
        assert self.depot.stock.total == 0
        self.patch(files, "write_all", write_all)
        await self.put(b"x")

    async def test_of_what_stays_free_on_the_disk(self) -> None:
        await self.serve(min_free=1 << 60)
        answer = await self.ask("PUT", "/box/x", b"x")
        assert answer.error == (507, "disk-full")

    async def test_of_boxes_and_an_empty_one_is_none(self) -> None:
        await self.serve(boxes=2)
        await self.put(b"x", "/one/x")
        await self.put(b"y", "/two/x")
        assert (await self.ask("PUT", "/three/x", b"x")).error == (507, "boxes")
        await self.put(b"z", "/two/y")
        await self.takes(b"x", "/one/next")
        await self.comes(lambda: "one" not in self.depot._shelves)
        await self.put(b"x", "/three/x")

    async def test_one_connection_too_many_hears_429(self) -> None:
        await self.serve()
        self.factory.busy, self.factory.live.gate = SPEC.ports[1].busy, Gate(REACTOR, most=1)
        inside = self.dial()
        await self.comes(lambda: len(self.factory.live._open) == 1)
        heard = await self.hears(self.dial(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"))
        head, _, body = heard.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert b"\r\nConnection: close" in head
        assert json.loads(body)["error"] == "busy"
        inside.close()


class NameTests(HttpCase):
    async def test_of_a_thousand_hostile_names_none_is_a_path(self) -> None:
        for name in ("sync_data", "sync_folder"):
            self.patch(files, name, lambda _: None)
        await self.serve()
        dice = random.Random(7)
        parts = ["..", "/", "\\", "\0", "%", "~", "-rf", " ", "a", "\u00e9", "\n", "\u202e", "CON"]
        parts += ["etc/passwd", "x" * 300, ".", "'", '"', ";", "&", "$(id)", "\u2028", "\ud800"]
        names = ["".join(dice.choices(parts, k=dice.randint(1, 4))) for _ in range(1000)]
        before = set(self.folder.parent.rglob("*"))

        def put_all() -> dict[str, int]:
            found = {}
            with closing(HTTPConnection("127.0.0.1", self.port, timeout=8)) as connection:
                for name in names:
                    told = quote(name.encode(errors="surrogatepass"), safe="")
                    connection.request("PUT", f"/box/{told}", b"x")
                    answer = whole(connection.getresponse())
                    found[name] = answer.status
                    if answer.status == 201:
                        assert answer.json["name"] == name
            return found

        found = await deferToThread(put_all)
        assert set(found.values()) == {201, 400}
        taken = sum(status == 201 for status in (found[name] for name in names))
        fresh = set(self.folder.parent.rglob("*")) - before
        assert {path.parent for path in fresh} == {self.folder}
        assert {path.suffix for path in fresh} == {".parcel"}
        assert len(fresh) == taken

    async def test_a_name_may_be_asked_for_and_saved_under(self) -> None:
        await self.serve()
        name = '"x";\u00e9 & $(id).txt'
        await self.put(b"data", f"/box/{quote(name, safe='')}")
        answer = await self.ask("GET", f"/box/{quote(name, safe='')}")
        assert answer.body == b"data"
        assert f"filename*=UTF-8''{quote(name, safe='')}" in answer.headers["content-disposition"]


class FieldTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=300)
    @given(st.text(max_size=300))
    def test_a_name_that_is_taken_is_one_plain_name(self, name: str) -> None:
        try:
            taken = http_fields.file_name(name)
        except ValueError:
            return
        assert taken == name == Path("/folder", name).name
        assert len(os.fsencode(name)) <= 255

    @settings(deadline=None, max_examples=300)
    @given(st.text(alphabet="bytes=-0123456789, ", max_size=20), st.integers(0, 1000))
    def test_a_range_is_within_the_file_or_none(self, value: str, size: int) -> None:
        span = http_fields.span(value, size)
        if span is not None:
            assert 0 <= span.start <= span.end <= size

    def test_ranges_mean_what_they_say(self) -> None:
        for value, found in (
            ("bytes=0-0", (0, 1)),
            ("bytes=2-", (2, 10)),
            ("bytes=-3", (7, 10)),
            ("bytes=-30", (0, 10)),
            ("bytes=5-99", (5, 10)),
            ("bytes=10-", (10, 10)),
        ):
            span = http_fields.span(value, 10)
            assert span is not None
            assert (span.start, span.end) == found, value
        for value in ("bytes=5-4", "bytes=-", "lines=1-2", "bytes=0-1,3-4", ""):
            assert http_fields.span(value, 10) is None

    def test_a_host_is_ours_by_address_or_by_name(self) -> None:
        for value in ("127.0.0.1:5012", "[::1]:5012", "[fe80::1]", "localhost", "x.localhost:1"):
            assert http_fields.ours(value, ()), value
        assert http_fields.ours("Files.example:80", ("files.example",))
        for value in ("evil.example", "[::1", "127.0.0.1.evil.example", "localhost.evil.example"):
            assert not http_fields.ours(value, ("files.example",)), value


class NextTests(HttpCase):
    async def test_the_oldest_is_handed_out_with_its_name_and_digest_and_leaves(self) -> None:
        await self.serve()
        await self.put(b"first", "/box/one.txt")
        await self.put(b"second", "/box/two.txt")
        answer = await self.takes(b"first")
        assert answer.headers["content-location"] == "/box/1"
        assert answer.headers["repr-digest"] == digest(b"first")
        assert answer.headers["content-disposition"].startswith('attachment; filename="one.txt"')
        assert answer.headers["lease"] == "60"
        await self.becomes([("2", 0, "waiting")])
        await self.takes(b"second")
        await self.becomes([])
        await self.comes(lambda: self.kept == [])
        assert (await self.ask("GET", "/box/next")).status == 204

    async def test_a_range_is_ignored_for_the_file_is_consumed(self) -> None:
        await self.serve()
        await self.put(b"12345")
        answer = await self.ask("GET", "/box/next", Range="bytes=2-")
        assert (answer.status, answer.body) == (200, b"12345")

    async def test_who_waits_is_served_as_soon_as_something_comes_or_told_that_not(self) -> None:
        await self.serve()
        waiting = Deferred.fromCoroutine(self.takes(b"x", "/box/next?wait=8"))
        await self.comes(lambda: "box" in self.depot._shelves)
        await self.put(b"x")
        await waiting
        assert (await self.ask("GET", "/box/next?wait=0.05")).status == 204
        for query in ("wait=soon", "ack=perhaps", "as=a%20b", f"as={'a' * 65}"):
            assert (await self.ask("GET", f"/box/next?{query}")).error == (400, "malformed"), query

    async def test_who_leaves_while_waiting_gets_nothing(self) -> None:
        await self.serve()
        sock = self.dial(b"GET /box/next?wait=9 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self.comes(lambda: "box" in self.depot._shelves)
        reset(sock)
        await self.comes(lambda: "box" not in self.depot._shelves)
        await self.put(b"x")
        await self.takes(b"x")

    async def broken_off(self, count: int = 100) -> None:
        """A receiver that reads so many bytes, and is killed."""
        sock = self.dial(b"GET /box/next HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        response = await self.head_of(sock)
        assert response.status == 200
        await deferToThread(response.read, count)
        reset(sock)
        response.close()

    async def test_a_receiver_that_dies_gives_the_file_back_under_its_id(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        await self.put(data)
        await self.put(b"later")
        await self.broken_off()
        await self.becomes([("1", 1, "waiting"), ("2", 0, "waiting")])
        answer = await self.takes(data)
        assert answer.headers["content-location"] == "/box/1"

    async def test_what_breaks_off_too_often_is_parked_until_it_is_requeued(self) -> None:
        await self.serve(max_deliveries=2)
        data = os.urandom(BIG)
        await self.put(data)
        await self.broken_off()
        await self.becomes([("1", 1, "waiting")])
        await self.broken_off()
        await self.becomes([("1", 2, "parked")])
        assert (await self.ask("GET", "/box/next")).status == 204
        await self.restart(max_deliveries=2)
        assert await self.states() == [("1", 2, "parked")]
        answer = await self.ask("POST", "/box/1", b"action=explode")
        assert answer.error == (400, "malformed")
        answer = await self.ask("POST", "/box/1", b"action=requeue")
        assert (answer.status, answer.json["state"]) == (200, "waiting")
        await self.becomes([("1", 0, "waiting")])
        html = await self.ask("POST", "/box/1", b"action=requeue", Accept="text/html")
        assert (html.status, html.headers["location"]) == (303, "/?box=box")
        await self.takes(data)

    async def test_the_raw_port_is_the_box_queue(self) -> None:
        await self.serve(receiver_after=0.05)
        await self.put(b"for nc", "/queue/x")

        def nc(data: bytes) -> bytes:
            with closing(socket.create_connection(("127.0.0.1", self.raw_port), 8)) as sock:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                return b"".join(iter(lambda: sock.recv(1 << 16), b""))

        assert await deferToThread(nc, b"") == b"for nc"
        assert await deferToThread(nc, b"from nc") == b""
        (listed,) = await self.listed("queue")
        assert listed["name"] == "queue-2"
        await self.takes(b"from nc", "/queue/next")

    async def test_one_that_makes_no_progress_for_the_lease_gives_it_back(self) -> None:
        await self.serve(lease=HASTY)
        await self.put(os.urandom(20_000_000))
        self.dial(b"GET /box/next HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await self.becomes([("1", 0, "claimed")])
        await self.becomes([("1", 1, "waiting")])

    async def test_several_receivers_may_get_each_but_none_gets_it_twice(self) -> None:
        await self.serve(copies=2)
        await self.put(b"x")
        await self.takes(b"x", "/box/next?as=ana")
        await self.becomes([("1", 0, "waiting")])
        assert (await self.ask("GET", "/box/next?as=ana")).status == 204
        await self.restart(copies=2)
        assert (await self.ask("GET", "/box/next?as=ana")).status == 204
        await self.takes(b"x")  # its name is its address
        await self.becomes([])
        await self.comes(lambda: self.kept == [])

    async def test_in_a_shared_box_every_receiver_gets_each_once(self) -> None:
        await self.serve(mode="shared", expires=60.0)
        await self.put(b"1")
        await self.put(b"2")
        for name in ("ana", "bob", "eva"):
            for data in (b"1", b"2"):
                await self.takes(data, f"/box/next?as={name}")
            assert (await self.ask("GET", f"/box/next?as={name}")).status == 204
        assert len(await self.listed()) == 2
        assert (await self.ask("DELETE", "/box/1")).status == 204
        await self.takes(b"2", "/box/next?as=zoe")


class ManualTests(HttpCase):
    """?ack=manual: acknowledged by DELETE alone."""

    async def leased(self, data: bytes, query: str = "") -> Answer:
        return await self.takes(data, f"/box/next?ack=manual{query}")

    async def test_delete_acknowledges_and_it_is_never_handed_out_again(self) -> None:
        await self.serve()
        await self.put(b"x")
        place = (await self.leased(b"x")).headers["content-location"]
        assert await self.states() == [("1", 0, "claimed")]
        assert (await self.ask("GET", "/box/next")).status == 204
        assert (await self.ask("DELETE", place)).status == 204
        assert (await self.ask("DELETE", place)).error == (404, "not-found")
        await self.restart()
        assert await self.listed() == []

    async def test_what_is_not_acknowledged_within_the_lease_comes_again(self) -> None:
        await self.serve(lease=HASTY)
        await self.put(b"x")
        await self.leased(b"x")
        await self.becomes([("1", 1, "waiting")])
        await self.leased(b"x")

    async def test_a_cut_download_goes_on_and_that_renews_the_lease(self) -> None:
        await self.serve(lease=2 * HASTY)
        await self.put(b"12345")
        place = (await self.leased(b"12345")).headers["content-location"]
        for method, status in (("GET", 206), ("HEAD", 200), ("GET", 206), ("HEAD", 200)):
            await deferLater(REACTOR, 1.2 * HASTY)
            answer = await self.ask(method, place, Range="bytes=3-")
            assert answer.status == status
            assert answer.body == (b"45" if method == "GET" else b"")
            assert await self.states() == [("1", 0, "claimed")]
        assert (await self.ask("DELETE", place)).status == 204

    async def test_a_connection_that_breaks_keeps_the_lease(self) -> None:
        await self.serve()
        data = os.urandom(20_000_000)
        await self.put(data)
        sock = self.dial(b"GET /box/next?ack=manual HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        response = await self.head_of(sock)
        got = await deferToThread(response.read, 1_000_000)
        reset(sock)
        response.close()
        assert await self.states() == [("1", 0, "claimed")]
        rest = await self.ask("GET", "/box/1", Range=f"bytes={len(got)}-")
        assert got + rest.body == data
        assert (await self.ask("DELETE", "/box/1")).status == 204

    async def test_a_named_receiver_acknowledges_for_itself_alone(self) -> None:
        await self.serve(copies=2)
        await self.put(b"x")
        place = (await self.leased(b"x", "&as=ana")).headers["content-location"]
        assert place == "/box/1?as=ana"
        assert (await self.ask("DELETE", place)).status == 204
        await self.takes(b"x", "/box/next?as=bob")


class CopyTests(HttpCase):
    async def test_a_copy_consumes_nothing(self) -> None:
        await self.serve()
        await self.put(b"old", "/box/a.txt")
        await self.put(b"12345", "/box/a.txt")
        for path in ("/box/2", "/box/a.txt"):
            answer = await self.takes(b"12345", path)
            assert answer.headers["accept-ranges"] == "bytes"
            assert answer.headers["cache-control"] == "no-store"
        head = await self.ask("HEAD", "/box/2")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "5")
        assert len(await self.listed()) == 2
        assert (await self.ask("GET", "/box/3")).error == (404, "not-found")
        assert (await self.ask("GET", "/none/1")).error == (404, "not-found")

    async def test_parts_of_it(self) -> None:
        await self.serve()
        etag = f'"{(await self.put(b"0123456789"))["sha256"]}"'
        for asked, place, data in (
            ("bytes=2-4", "bytes 2-4/10", b"234"),
            ("bytes=-2", "bytes 8-9/10", b"89"),
        ):
            answer = await self.ask("GET", "/box/1", Range=asked)
            assert (answer.status, answer.body) == (206, data)
            assert answer.headers["content-range"] == place
        answer = await self.ask("GET", "/box/1", Range="bytes=10-")
        assert answer.error == (416, "range")
        assert answer.headers["content-range"] == "bytes */10"
        for condition, status in ((etag, 206), ('"other"', 200)):
            answer = await self.ask("GET", "/box/1", Range="bytes=2-", If_Range=condition)
            assert answer.status == status
        answer = await self.ask("GET", "/box/1", If_None_Match=etag)
        assert (answer.status, answer.body) == (304, b"")

    async def test_a_stream_of_copies_goes_over_one_connection(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        await self.put(data)

        def three() -> bytes:
            got = b""
            with closing(HTTPConnection("127.0.0.1", self.port, timeout=8)) as connection:
                for _ in range(3):
                    connection.request("GET", "/box/1")
                    got += connection.getresponse().read()
            return got

        assert await deferToThread(three) == 3 * data

    async def test_one_that_is_deleted_meanwhile_is_cut(self) -> None:
        await self.serve()
        await self.put(os.urandom(20_000_000))
        sock = self.dial(b"GET /box/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        response = await self.head_of(sock)
        assert (await self.ask("DELETE", "/box/1")).status == 204
        await self.comes(lambda: self.kept == [])
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            await deferToThread(response.read)
        response.close()
        assert self.factory.live.outcomes["unread"] == 1

    async def test_one_that_makes_no_progress_for_the_lease_is_cut(self) -> None:
        await self.serve(lease=HASTY)
        await self.put(os.urandom(20_000_000))
        self.dial(b"GET /box/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        await self.comes(lambda: self.factory.live.outcomes["stuck"])


class FollowTests(HttpCase):
    async def uploading(self, head: str, *data: bytes) -> socket.socket:
        sock = self.dial(f"PUT /box/x HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n\r\n".encode())
        for piece in data:
            await deferToThread(sock.sendall, piece)
        await self.comes(lambda: self.depot.stock.total)
        return sock

    async def follower(self) -> tuple[HTTPResponse, Deferred[bytes]]:
        sock = self.dial(b"GET /box/x?follow=1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        response = await self.head_of(sock)
        self.addCleanup(response.close)
        assert response.status == 200
        return response, deferToThread(response.read)

    async def test_what_is_still_uploaded_is_read_along(self) -> None:
        await self.serve()
        sender = await self.uploading("Content-Length: 200000", bytes(100_000))
        assert (await self.ask("GET", "/box/x")).error == (409, "uploading")
        response, reading = await self.follower()
        assert response.getheader("Content-Length") == "200000"
        await deferToThread(sender.sendall, b"\1" * 100_000)
        assert await reading == bytes(100_000) + b"\1" * 100_000

    async def test_also_when_nobody_knows_how_long_it_will_be(self) -> None:
        await self.serve()
        sender = await self.uploading("Transfer-Encoding: chunked", b"5\r\nfirst\r\n")
        response, reading = await self.follower()
        assert response.getheader("Transfer-Encoding") == "chunked"
        await deferToThread(sender.sendall, b"6\r\nsecond\r\n0\r\n\r\n")
        assert await reading == b"firstsecond"

    async def test_only_who_sends_it_can_break_it_off(self) -> None:
        await self.serve()
        sender = await self.uploading("Content-Length: 10", bytes(5))
        answer = await self.ask("DELETE", "/box/x")
        assert answer.error == (409, "uploading")
        assert answer.json["detail"] == "Not done: it is being uploaded."
        assert (await self.ask("POST", "/box/x", b"action=requeue")).error == (404, "not-found")
        sender.sendall(bytes(5))
        assert (await self.head_of(sender)).status == 201

    async def test_in_http_1_0_its_length_must_be_known(self) -> None:
        await self.serve()
        await self.uploading("Transfer-Encoding: chunked", b"5\r\nfirst\r\n")
        heard = await self.hears(self.dial(b"GET /box/x?follow=1 HTTP/1.0\r\n\r\n"))
        assert heard.startswith(b"HTTP/1.1 409 ")

    async def test_an_upload_that_is_discarded_resets_it(self) -> None:
        await self.serve()
        sender = await self.uploading("Content-Length: 200000", bytes(100_000))
        _, reading = await self.follower()
        reset(sender)
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            await reading

    async def test_nobody_has_all_of_it_before_its_digest_was_proved(self) -> None:
        await self.serve()
        go, commit = Event(), Upload.commit

        def late(upload: Upload) -> Laid:
            assert go.wait(5)
            return commit(upload)

        self.patch(Upload, "commit", late)
        told = f"Repr-Digest: {digest(b'other')}"
        sender = await self.uploading(f"Content-Length: 10\r\n{told}", bytes(5))
        _, reading = await self.follower()
        sender.sendall(bytes(5))
        await deferLater(REACTOR, 0.2)
        assert not reading.called
        go.set()
        with pytest.raises((ConnectionResetError, IncompleteRead)):
            await reading


class ExpiryTests(HttpCase):
    async def test_what_expires_is_really_deleted(self) -> None:
        await self.serve()
        said = await self.put(bytes(1000), "/box/a?expires=100ms")
        assert said["expires"] > said["sent"]
        await self.put(bytes(1000), "/box/b", Expires_In="100 ms")
        await self.put(b"stays", "/box/c", Expires_In="1h")
        await self.becomes([("3", 0, "waiting")])
        await self.comes(lambda: len(self.kept) == 1)
        assert self.depot.stock.total == 5

    async def test_by_default_as_the_settings_say(self) -> None:
        await self.serve(expires=0.1)
        await self.put(b"x")
        await self.put(b"y", "/box/y", Expires_In="1h")
        await self.becomes([("2", 0, "waiting")])

    async def test_what_is_just_collected_may_be_collected_to_its_end(self) -> None:
        await self.serve(lease=2 * HASTY)
        await self.put(b"x", "/box/x?expires=100ms")
        await self.takes(b"x", "/box/next?ack=manual")
        await deferLater(REACTOR, 0.15)
        assert await self.states() == [("1", 0, "claimed")]
        await self.becomes([])
        await self.comes(lambda: self.kept == [])

    async def test_across_a_restart_by_the_wall_clock(self) -> None:
        await self.serve()
        await self.put(b"x", "/box/x?expires=300ms")
        await self.put(b"y", "/box/y?expires=1h")
        await self.stop()
        await deferLater(REACTOR, 0.3)
        await self.serve()
        await self.becomes([("2", 0, "waiting")])
        await self.comes(lambda: len(self.kept) == 1)


class FormTests(HttpCase):
    def form(self, text: str = FORM, **headers: str) -> Deferred[Answer]:
        kind = "multipart/form-data; boundary=edge"
        asked = self.ask("POST", "/box", text.encode(), **{"Content_Type": kind, **headers})
        return Deferred.fromCoroutine(asked)

    async def test_a_plain_form_brings_files_and_leads_back_to_the_page(self) -> None:
        await self.serve()
        answer = await self.form(Accept="text/html")
        assert (answer.status, answer.headers["location"]) == (303, "/?box=box")
        listed = await self.listed()
        assert [one["name"] for one in listed] == ["a.txt", "b.txt"]
        assert all(one["expires"] for one in listed)
        await self.takes(b"first")
        await self.takes(b"second")

    async def test_a_program_is_told_in_json(self) -> None:
        await self.serve()
        answer = await self.form(Accept="application/json")
        assert answer.status == 201
        assert [one["id"] for one in answer.json["parcels"]] == ["1", "2"]

    async def test_what_is_no_form_is_refused_and_keeps_nothing(self) -> None:
        await self.serve()
        assert (await self.form(Content_Type="text/plain")).error == (415, "form")
        assert (await self.form("no form")).error == (400, "malformed")
        assert (await self.form(FORM.replace("a.txt", ".."))).error == (400, "malformed")
        assert (await self.form(FORM.replace("2d", "soon"))).error == (400, "malformed")
        assert (await self.form(FORM[:-6])).error == (400, "malformed")
        await self.comes(lambda: self.kept == [])
        many = FORM.replace("--edge--", "") + 101 * FORM[FORM.rindex("--edge\r") : -8]
        assert (await self.form(many + "--edge--\r\n")).error == (400, "malformed")
        await self.comes(lambda: self.kept == [])
        await self.restart(max_file=3)
        assert (await self.form()).error == (413, "too-large")
        await self.restart(boxes=1)
        await self.put(b"x", "/other/x")
        assert (await self.form()).error == (507, "boxes")

    async def test_a_form_that_is_cut_off_leaves_nothing(self) -> None:
        await self.serve()
        sock = self.dial(
            b"POST /box HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9000\r\n"
            b"Content-Type: multipart/form-data; boundary=edge\r\n\r\n",
            FORM.encode()[:-60],
        )
        await self.comes(lambda: len(self.kept) > 0)
        reset(sock)
        await self.comes(lambda: not (self.kept or self.depot._shelves))


class AdmissionTests(HttpCase):
    async def test_a_host_that_is_not_ours_is_refused(self) -> None:
        await self.serve(hosts=("files.example",))
        for host, status in (
            ("127.0.0.1:9", 200),
            ("[::1]", 200),
            ("localhost", 200),
            ("files.example:80", 200),
            (socket.gethostname(), 200),
            ("evil.example", 403),
        ):
            answer = await self.ask("GET", "/box", Host=host)
            assert answer.status == status, host

    async def test_the_page_of_somebody_else_may_ask_for_nothing(self) -> None:
        await self.serve()
        host = f"127.0.0.1:{self.port}"
        await self.put(b"x", Origin=f"http://{host}", Sec_Fetch_Site="same-origin")
        for headers in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
        ):
            for method, path in (("PUT", "/box/y"), ("GET", "/box/next"), ("POST", "/tus/")):
                answer = await self.ask(method, path, b"", Host=host, **headers)
                assert answer.error == (403, "origin")
        assert await self.states() == [("1", 0, "waiting")]

    async def test_a_link_on_another_page_may_show_something_but_consume_nothing(self) -> None:
        await self.serve()
        await self.put(b"x")
        link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
        for path, status in (("/", 200), ("/box", 200), ("/box/1", 200), ("/box/n%65xt", 403)):
            answer = await self.ask("GET", path, **link, Sec_Fetch_Dest="document")
            assert answer.status == status, path
            framed = await self.ask("GET", path, **link, Sec_Fetch_Dest="iframe")
            assert framed.error == (403, "origin"), path
        posted = await self.ask(
            "POST", "/box/1", b"action=requeue", **link, Sec_Fetch_Dest="document"
        )
        assert posted.error == (403, "origin")

    async def test_a_box_with_a_token_opens_to_who_has_it(self) -> None:
        await self.serve(token={"locked": Secret("sesame-sesame")})
        right = [
            {"Authorization": "Bearer sesame-sesame"},
            {"Authorization": f"Basic {b64encode(b'me:sesame-sesame').decode()}"},
        ]
        wrong = [
            {},
            {"Authorization": "Bearer sesame"},
            {"Authorization": "Basic !"},
            {"Authorization": "Digest sesame-sesame"},
        ]
        await self.put(b"x", "/locked/x", **right[0])
        for headers in wrong:
            for method, path in (
                ("PUT", "/locked/x"),
                ("GET", "/locked"),
                ("GET", "/locked/next"),
                ("GET", "/locked/1"),
                ("DELETE", "/locked/1"),
                ("POST", "/locked/1"),
                ("POST", "/locked"),
                ("GET", "/?box=locked"),
            ):
                answer = await self.ask(method, path, b"", **headers)
                assert answer.error == (401, "token"), (method, path)
                assert 'Bearer realm="locked"' in answer.headers["www-authenticate"]
            assert (await self.ask("GET", "/?format=json", **headers)).json == {"boxes": []}
        for headers in right:
            listed = (await self.ask("GET", "/?format=json", **headers)).json["boxes"]
            assert listed == [{"box": "locked", "parcels": 1, "bytes": 1}]
            assert (await self.ask("GET", "/locked/1", **headers)).body == b"x"
        await self.put(b"open")


class FrontTests(HttpCase):
    async def test_people_get_a_page_and_programs_every_box(self) -> None:
        await self.serve()
        await self.put(b"12345", "/photos/a.jpg")
        page = await self.ask("GET", "/?box=photos", Accept="text/html,*/*;q=0.8")
        assert page.status == 200
        assert b"a.jpg" in page.body
        assert "default-src 'none'" in page.headers["content-security-policy"]
        boxes = [{"box": "photos", "parcels": 1, "bytes": 5}]
        for path, accept in (("/", "application/json"), ("/?format=json", "*/*")):
            assert (await self.ask("GET", path, Accept=accept)).json == {"boxes": boxes}
        assert (await self.ask("GET", "/?box=..")).error == (404, "no-such-box")

    async def test_a_long_list_is_told_a_few_at_a_time(self) -> None:
        self.patch(relay_http, "BATCH", 7)
        self.patch(depot_module, "BATCH", 8)
        await self.serve()
        for number in range(20):
            await self.put(b"x", f"/box/{number}")
        assert [one["name"] for one in await self.listed()] == [str(n) for n in range(20)]
        page = (await self.ask("GET", "/?box=box", Accept="text/html")).body
        assert all(b"/box/%d" % ident in page for ident in range(1, 21))

    async def test_answers_go_out_in_the_order_of_the_requests(self) -> None:
        await self.serve()
        data = os.urandom(300_000)
        await self.put(data)
        asked = (
            "GET /box/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            "HEAD /box/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            "DELETE /box/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            "GET /box/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        )
        heard = await self.hears(self.dial(asked.encode()))
        first, _, rest = heard.partition(data)
        lines = [line for line in (first + rest).split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert [int(line.split()[1]) for line in lines] == [200, 200, 204, 404]

    async def test_a_drain_lets_what_is_in_hand_end_and_wakes_who_waits(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        await self.put(data)
        waiting = Deferred.fromCoroutine(self.ask("GET", "/other/next?wait=60"))
        loading = self.dial(b"GET /box/1 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        idle = self.dial()
        response = await self.head_of(loading)
        await self.comes(lambda: "other" in self.depot._shelves)
        drained = Deferred.fromCoroutine(self.factory.drain(5))
        assert await deferToThread(response.read) == data
        response.close()
        loading.close()
        assert (await waiting).status == 204
        assert await self.hears(idle) == b""
        idle.close()
        await drained

    async def test_a_head_that_trickles_has_no_more_time_than_others(self) -> None:
        await self.serve(request_timeout=HASTY)
        kept = self.dial()
        first = self.dial(b"GET /box HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET")
        began = REACTOR.seconds()
        for _ in range(100):
            await deferLater(REACTOR, 0.02)
            try:
                kept.sendall(b"G")
                first.sendall(b" ")
            except OSError:
                break
            if self.factory.live.lingering == 2:
                break
        assert HASTY <= REACTOR.seconds() - began < 1
        assert (await self.hears(kept)).startswith(b"HTTP/1.1 408 ")
        heard = await self.hears(first)
        assert heard.count(b"HTTP/1.1 200 ") == heard.count(b"HTTP/1.1 408 ") == 1
        kept.close()
        first.close()
        await self.comes(lambda: self.factory.live.outcomes["slow"] == 2)

    async def test_a_file_may_trickle_and_so_may_what_waits_behind_an_answer(self) -> None:
        await self.serve(request_timeout=HASTY)
        head = "PUT /box/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 20\r\n\r\n"
        body = self.dial(head.encode())
        waits = self.dial(
            b"GET /other/next?wait=0.8 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /box HTTP/1.1\r\n"
        )
        for _ in range(20):
            await deferLater(REACTOR, 2 * HASTY / 20)
            body.sendall(b"x")
        body.shutdown(socket.SHUT_WR)
        assert (await self.hears(body)).startswith(b"HTTP/1.1 201 ")
        await deferLater(REACTOR, 0.45)
        waits.sendall(b"Host: 127.0.0.1\r\nConnection: close\r\n\r\n")
        heard = await self.hears(waits)
        assert heard.startswith(b"HTTP/1.1 204 ")
        assert b"HTTP/1.1 200 " in heard

    async def test_many_requests_in_one_read_are_answered_in_order_over_many_turns(self) -> None:
        await self.serve()
        data = os.urandom(BIG)
        count = 3 * A_READ
        asked = b"".join(
            b"GET /box/%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % n for n in range(count)
        )
        put = b"PUT /box/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % BIG
        begun: list[int] = []
        answer = RelayHttp._answer
        turn = 0

        def next_turn() -> None:
            nonlocal turn
            turn += 1
            self.turns = REACTOR.callLater(0, next_turn)

        def counting(relay: RelayHttp, exchange: Any) -> Any:
            begun.append(turn)
            return answer(relay, exchange)

        self.patch(RelayHttp, "_answer", counting)
        next_turn()
        sock = self.dial(asked)
        await deferToThread(sock.sendall, put + data)
        sock.shutdown(socket.SHUT_WR)
        heard = await self.hears(sock)
        self.turns.cancel()
        assert heard.count(b"HTTP/1.1 404 ") == count
        assert heard.count(b"HTTP/1.1 201 ") == 1
        assert hashlib.sha256(data).hexdigest().encode() in heard
        # what we count as one turn may be parts of two
        assert max(begun.count(n) for n in begun) <= 2 * A_TURN

    async def test_a_head_that_never_ends_is_told_so(self) -> None:
        await self.serve(lease=HASTY)
        heard = await self.hears(self.dial(b"GET /box HTTP/1.1\r\n"))
        assert heard.startswith(b"HTTP/1.1 408 ")


class ManyTests(HttpCase):
    async def test_they_come_out_in_the_order_in_which_they_were_complete(self) -> None:
        await self.serve()
        whole: list[int] = []

        def send(sender: int) -> None:
            for _ in range(5):
                data = os.urandom(random.Random(sender).choice((1, 1000, 200_000)))
                whole.append(int(self._ask("PUT", "/box/x", data, {}).json["id"]))

        await gatherResults([deferToThread(send, sender) for sender in range(10)])
        listed = await self.listed()
        assert [one["id"] for one in listed] == [str(n) for n in range(1, 51)]
        assert [one["sent"] for one in listed] == sorted(one["sent"] for one in listed)
        for ident in range(1, 51):
            answer = await self.ask("GET", "/box/next")
            assert answer.headers["content-location"] == f"/box/{ident}"
        assert sorted(whole) == list(range(1, 51))

    async def test_of_many_at_once_each_file_is_acknowledged_by_one_receiver(self) -> None:
        """20 senders, 20 receivers on one box; some are killed, and their file comes again."""
        self.patch(Upload, "WRITE_BACK", 1 << 30)
        await self.serve(max_deliveries=1000)
        total = 200
        sizes = (1, 1000, 300_000)
        got: list[tuple[str, bytes]] = []
        broken: list[str] = []

        def send(sender: int) -> None:
            dice = random.Random(sender)
            for number in range(sender, total, 20):
                data = dice.randbytes(dice.choice(sizes)) + b"%d" % number
                answer = self._ask("PUT", f"/box/{number}.bin", data, {})
                assert answer.status == 201
                sent.append((answer.json["name"], data))

        def receive(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(total * 3):
                if len(got) >= total:
                    return
                with closing(socket.create_connection(("127.0.0.1", self.port), 8)) as sock:
                    sock.sendall(b"GET /box/next?wait=0.2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
                    response = HTTPResponse(sock)
                    response.begin()
                    if response.status == 204:
                        response.close()
                        continue
                    place = response.headers["Content-Location"]
                    if int(response.headers["Content-Length"]) > 1000 and dice.random() < 0.4:
                        broken.append(place)
                        response.close()
                        reset(sock)
                        continue
                    got.append((place, response.read()))

        sent: list[tuple[str, bytes]] = []
        REACTOR.suggestThreadPoolSize(40)
        self.addCleanup(REACTOR.suggestThreadPoolSize, 10)
        works = [deferToThread(work, n) for n in range(20) for work in (send, receive)]
        await gatherResults(works, consumeErrors=True)
        assert sorted(data for _, data in got) == sorted(data for _, data in sent)
        places = [place for place, _ in got]
        assert len(set(places)) == total
        assert broken
        assert set(broken) <= set(places)
        await self.becomes([])
        await self.comes(lambda: self.kept == [])
