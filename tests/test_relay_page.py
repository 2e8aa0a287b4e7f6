"""The relay's page: what a browser is shown, and two people who exchange a file with it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from protocols.relay_page import CSP, HEADERS, MOST, SCRIPT, STYLE, page
from tests.cutter import Cutter
from tests.process import Twistd

FOREIGN = Path(__file__).with_name("foreign")
HTTP = 5012
SIZE = 3_000_000


@define(eq=False)
class Tree(HTMLParser):
    """What a browser makes of a page: the elements with their attributes, and the text."""

    elements: list[tuple[str, dict[str, str | None]]] = field(factory=list)
    text: str = ""

    def __attrs_post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, html: bytes) -> Tree:
        tree = cls()
        tree.feed(html.decode())
        tree.close()
        return tree

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[Mapping[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def parcel(**facts: Any) -> dict[str, Any]:
    return {
        "id": "7",
        "name": "report.pdf",
        "size": 48_123_456,
        "sha256": "0" * 64,
        "sent": "2026-11-21T06:40:12Z",
        "expires": None,
        "deliveries": 0,
        "state": "waiting",
    } | facts


def shown(*parcels: dict[str, Any], box: str = "queue", boxes: Any = ()) -> Tree:
    return Tree.of(page(boxes, {"box": box, "parcels": parcels}))


class PageTests(SynchronousTestCase):
    def test_a_parcel_is_shown_with_a_copy_to_download(self) -> None:
        tree = shown(parcel(), box="photos")
        assert "45.9 MiB" in tree.text
        assert "waiting" in tree.text
        assert {"href": "/photos/7", "download": None} in tree.all("a")
        assert {"datetime": "2026-11-21T06:40:12Z"} in tree.all("time")

    def test_everything_works_by_plain_forms(self) -> None:
        tree = shown(parcel(state="parked"), box="photos")
        forms = {
            (form.get("method"), form["action"], form.get("enctype")) for form in tree.all("form")
        }
        assert forms == {
            ("get", "/", None),
            ("get", "/photos/next", None),
            ("post", "/photos", "multipart/form-data"),
            ("post", "/photos/7", None),
        }
        assert {"file", "box"} <= {one.get("name") for one in tree.all("input")}
        assert ("action", "requeue") in {
            (one.get("name"), one.get("value")) for one in tree.all("button")
        }

    def test_what_only_the_script_can_do_is_hidden_without_it(self) -> None:
        (remove,) = (one for one in shown(parcel()).all("button") if "data-remove" in one)
        assert "hidden" in remove

    def test_sizes_and_states_are_told_in_words(self) -> None:
        for facts, said in (
            ({"size": 1}, "1 byte"),
            ({"size": 0}, "0 bytes"),
            ({"size": 999}, "999 bytes"),
            ({"size": 1000}, "1.0 KiB"),
            ({"size": 3 << 50}, "3072.0 TiB"),
            ({"state": "claimed"}, "being picked up"),
            ({"state": "parked"}, "it could not be delivered"),
            ({"state": "uploading", "received": 100, "size": 400}, "arriving, 25 %"),
            ({"state": "uploading", "received": 2048, "size": None}, "2.0 KiB"),
            ({"expires": "2026-11-23T06:40:12Z"}, "to be deleted 2026-11-23 06:40 UTC"),
            ({"sent": None}, "report.pdf"),
        ):
            assert said in shown(parcel(**facts)).text, facts

    def test_what_is_still_arriving_cannot_be_fetched(self) -> None:
        tree = shown(parcel(state="uploading", received=1))
        assert not [link for link in tree.all("a") if "download" in link]

    def test_an_empty_box_says_so(self) -> None:
        assert "Nothing is here yet." in shown().text

    def test_a_long_list_is_cut_and_says_so(self) -> None:
        tree = shown(*[parcel()] * (MOST + 1234))
        assert len(tree.all("tr")) == MOST + 1
        assert "and 1,234 more" in tree.text

    def test_the_boxes_are_links_the_one_that_is_shown_is_marked(self) -> None:
        boxes = [{"box": "photos", "parcels": 1200, "bytes": 1}]
        tree = shown(box="new", boxes=boxes)
        assert {"href": "/?box=photos"} in tree.all("a")
        assert {"href": "/?box=new", "aria-current": "page"} in tree.all("a")
        assert "1,200" in tree.text
        assert not shown(box="photos", boxes=boxes).all("li")

    def test_names_are_text_and_nothing_else(self) -> None:
        hostile = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"
        tree = shown(parcel(name=hostile, state="parked"), box=hostile)
        assert len(tree.all("script")) == 1
        assert not tree.all("img")
        assert hostile in tree.text
        assert not any(name.startswith("on") for _, found in tree.elements for name in found)

    def test_a_name_cannot_pretend_to_be_another(self) -> None:
        text = shown(parcel(name="exe\u202efdp.bin\x1b\n\u200d")).text
        assert "exe\ufffdfdp.bin\ufffd\ufffd\u200d" in text

    @settings(deadline=None, max_examples=200)
    @given(*[st.text(st.characters(codec=None))] * 3)
    def test_no_text_adds_an_element(self, name: str, ident: str, box: str) -> None:
        plain = shown(parcel(), box="x")
        tree = shown(parcel(name=name, id=ident), box=box)
        assert [tag for tag, _ in tree.elements] == [tag for tag, _ in plain.elements]

    def test_the_policy_allows_this_script_and_this_style_alone(self) -> None:
        html = page([], {"box": "queue", "parcels": []}).decode()
        for tag, content in (("script", SCRIPT), ("style", STYLE)):
            (found,) = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
            assert found == content
            assert f"'sha256-{b64encode(sha256(found.encode()).digest()).decode()}'" in CSP
        assert CSP.startswith("default-src 'none'; ")
        assert "unsafe" not in CSP
        assert HEADERS["Content-Security-Policy"] == CSP
        assert not re.search(r"\sstyle=|https?:", html)


class BrowserTests(SynchronousTestCase):
    """Ana sends, Bob sees it come and picks it up, each in a Chromium of their own."""

    def setUp(self) -> None:
        chromium, node = shutil.which("chromium"), shutil.which("node")
        if chromium is None or node is None:
            raise SkipTest("chromium or node is not installed")
        if not (FOREIGN / "node_modules" / "playwright-core").is_dir():
            raise SkipTest("playwright-core is not installed: npm ci in tests/foreign")
        self.command = [node, str(FOREIGN / "page.js")]
        self.environ = os.environ | {"CHROMIUM": chromium}
        self.daemon = Twistd()
        self.addCleanup(self.daemon.discard)
        self.daemon.start()

    def exchange(self, mode: str, cut_after: int) -> tuple[dict[str, Any], Cutter]:
        scratch = TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        folder, data = Path(scratch.name), os.urandom(SIZE)
        sent = folder / "<b>r\u00e9sum\u00e9 & co.pdf"
        sent.write_bytes(data)
        proxy = Cutter(self.daemon.ports[HTTP], cut_after)
        self.addCleanup(proxy.close)
        url = f"http://127.0.0.1:{proxy.port}/?box=photos"
        done = subprocess.run(
            [*self.command, url, sent, folder, mode],
            env=self.environ,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        for name in ("copy", "picked"):
            assert (folder / name).read_bytes() == data
        saw: dict[str, Any] = json.loads(done.stdout)
        assert saw["empty"] == "Nothing is here yet."
        assert saw["landed"] == url
        assert saw["listed"] == sent.name
        return saw, proxy

    def test_two_people_exchange_a_file_though_the_connection_breaks(self) -> None:
        saw, proxy = self.exchange("script", cut_after=SIZE // 2)
        assert (saw["progress"], saw["removed"]) == (1, True)
        assert saw["sent"] == saw["listed"]
        assert proxy.back is not None
        assert all(line.startswith("Failed to load resource") for line in saw["complaints"])

    def test_two_people_exchange_a_file_without_any_script(self) -> None:
        saw, _ = self.exchange("plain", cut_after=10 * SIZE)
        assert saw["complaints"] == []
