"""relay: files put and got over HTTP, many at once, and what echo notices of them.

Every sample has a server and a folder of its own. Afterwards the folder must hold every file that
was put, as long as it was, one of them compared byte for byte; of what was got, the length was
looked at, and one file was got once more and compared.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import attrs

from loadtest.compare.build import Missing, Workshop
from loadtest.compare.bulk import MIB, pieces, same
from loadtest.compare.harness import Comparison, Launch, Peer, Server, Wrong
from loadtest.compare.ingest import OF_THE_CLOCK, nginx
from loadtest.compare.roundhouse import roundhouse
from loadtest.compare.table import CPU_PER_GB, GBPS, LIMIT, P50, PEAK, Bound, Case, Figure, Sample

PATIENCE = 20.0  # seconds in which the last file must appear
OURS = "roundhouse"
TUS = "roundhouse-tus"
NODE = "tus-node"
NPM = ("@tus/server", "@tus/file-store")

TALK = {  # how each is spoken to, where, and what it answers
    LIMIT: ("put", "/", "HTTP/1.1 201 "),
    "nginx": ("put", "/", "HTTP/1.1 201 "),
    OURS: ("put", "/bench/", "HTTP/1.1 201 "),
    TUS: ("tus", "/tus/", "HTTP/1.1 204 "),
    NODE: ("tus", "/files", "HTTP/1.1 204 "),
}


def transfers(
    name: str,
    title: str,
    mode: str,
    count: int,
    size: int,
    *bounds: Bound,
    peers: tuple[str, ...],
    figure: Figure = GBPS,
    columns: tuple[Figure, ...] = (CPU_PER_GB, PEAK),
) -> Case:
    load = (mode, str(count), str(size))
    return Case(name, title, load, "files", figure, bounds, 0, True, columns, peers)


def beside(name: str, title: str, mode: str) -> Case:
    bound = Bound(OURS, 6000, against=None)
    columns = (P50, GBPS)
    return transfers(
        name, title, mode, 4, 256 * MIB, bound, peers=(OURS,), figure=OF_THE_CLOCK, columns=columns
    )


GET = (LIMIT, OURS, "nginx")
CASES = (
    transfers(
        "upload",
        "4 uploads of 256 MiB",
        "streams",
        4,
        256 * MIB,
        Bound(OURS, 2.0, against=NODE),
        peers=(*TALK,),
    ),
    transfers(
        "download 1",
        "downloads of 256 MiB, 1 at a time",
        "fetch",
        1,
        256 * MIB,
        Bound(OURS, 1.2, against="nginx"),
        peers=GET,
    ),
    transfers(
        "download 4",
        "downloads of 256 MiB, 4 at a time",
        "fetch",
        4,
        256 * MIB,
        Bound(OURS, 1.2, against="nginx"),
        peers=GET,
    ),
    transfers(
        "64 up",
        "64 uploads of 32 MiB",
        "streams",
        64,
        32 * MIB,
        Bound(OURS, 96, against=None, figure=PEAK),
        peers=(*TALK,),
    ),
    transfers(
        "64 down",
        "downloads of 32 MiB, 64 at a time",
        "fetch",
        64,
        32 * MIB,
        Bound(OURS, 96, against=None, figure=PEAK),
        peers=GET,
    ),
    beside("echo up", "echo beside 4 uploads of 256 MiB", "streams"),
    beside("echo down", "echo beside 4 downloads of 256 MiB", "fetch"),
)


def load(case: Case, server: Server) -> Sequence[str]:
    """What the generator is told, in its words."""
    echo = case.name.startswith("echo")
    port = [str(server.launch.ports["echo PORT"])] if echo else []
    return [*case.load, *TALK[server.peer.name], *port]


def check(case: Case, server: Server, sample: Sample) -> None:
    """Every file that was put must lie in the folder, whole. Raise Wrong."""
    until = time.monotonic() + PATIENCE
    while why := wrong(case, server.folder):
        if time.monotonic() > until:
            raise Wrong(f"{case.name}: {server.peer.name}: {why}")
        time.sleep(0.1)


def wrong(case: Case, folder: Path) -> str:
    """What is wrong with the files a sample left; empty: nothing."""
    _, count, size = case.load
    files = [path for path in folder.rglob("*") if path.is_file()]
    whole = [path for path in files if path.stat().st_size == int(size)]
    if len(whole) != int(count):
        return f"{count} files of {int(size):,} bytes were put, {len(whole)} are there"
    name = random.choice(whole)
    return "" if same(pieces([name]), int(size)) else f"{name.name} is not what was put"


def limit(workshop: Workshop) -> Peer:
    program = workshop.c("relay_server")
    return Peer(
        LIMIT,
        "splice in, sendfile out, a thread a request, nothing synced: the limit",
        workshop.said(workshop.tool("gcc", "cc", package="gcc"), "--version"),
        lambda folder, port: Launch([str(program), str(port), str(folder)]),
    )


def ours(workshop: Workshop) -> Peer:
    about = "durable, with sha256"
    return roundhouse("relay", "HTTP_PORT", name=OURS, about=f"PUT and GET: {about}")


def ours_by_tus(workshop: Workshop) -> Peer:
    return roundhouse("relay", "HTTP_PORT", name=TUS, about="the same by tus")


def web(workshop: Workshop) -> Peer:
    return attrs.evolve(nginx(workshop), about="PUT and GET, sendfile, nothing synced")


def node(workshop: Workshop) -> Peer:
    program = workshop.tool("node", package="nodejs")
    modules = workshop.folder / "node"
    package = modules / "node_modules" / NPM[0] / "package.json"
    if not package.exists():
        command = f"npm install --prefix {modules} {' '.join(NPM)}"
        raise Missing(f"{NPM[0]} is not installed ({command})")
    script = Path(__file__).resolve().parents[1] / "node" / "tus.mjs"

    def launch(folder: Path, port: int) -> Launch:
        return Launch([program, str(script), str(port), str(folder), str(modules)])

    version = json.loads(package.read_text())["version"]
    below = f"Node {workshop.said(program, '--version')}"
    return Peer(NODE, "tus with its file store, nothing synced", f"{version} on {below}", launch)


COMPARISON = Comparison(
    name="relay",
    help="Relay against C, nginx PUT and GET, and the Node tus server.",
    cases=CASES,
    peers={LIMIT: limit, OURS: ours, TUS: ours_by_tus, "nginx": web, NODE: node},
    generator="bulk_load",
    load=load,
    check=check,
    proof="{ops:,} files with {bytes:,} bytes in all were put or got: the length of each is right, "
    "and so are the bytes of one a sample.",
    pinned=False,
    room=4 << 30,
    quick="4 minutes",
)
