"""ingest: large streams, many streams, silent ones, tiny ones, and what echo notices of them.

Every sample has a server and a folder of its own, and afterwards the folder must hold what was
sent: as many series as streams, each as long as its stream, one of them compared byte for byte.
The speed is that of the clock, until the server has said that it is done: by a receipt, a status
or its FIN. The server's CPU is told beside it.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from loadtest.compare.build import Missing, Workshop
from loadtest.compare.bulk import DATA, MIB, digest, pieces, same
from loadtest.compare.harness import Comparison, Launch, Peer, Reference, Server, Wrong
from loadtest.compare.roundhouse import python, roundhouse
from loadtest.compare.table import (
    CPU_PER_GB,
    GBPS,
    LIMIT,
    P50,
    P99,
    PEAK,
    PER_CPU,
    PER_SECOND,
    Bound,
    Case,
    Figure,
    Sample,
)

PART = 64 * MIB  # MAX_FILE_SIZE
PATIENCE = 60.0  # seconds in which the last file must appear
HASHED = 512 * MIB  # bytes, by the reference
SPARE = 500  # descriptors a server needs beside its connections

DURABLE = "C-fdatasync"
OURS = "roundhouse"
RECEIPT = "roundhouse-receipt"
PLAIN = "roundhouse-plain"
LINES = "rsyslog"
HASH = "sha256"
SHARE = {LINES: 16}  # of the bytes of a stream: it is that slow

FIN = ("raw", "", "")
TALK = {  # how each is spoken to, where, and what it answers; without an entry by FIN
    OURS: ("raw", "", "OK {size} {sha256} {parts}\n"),
    RECEIPT: ("raw", "", "OK {size} - {parts}\n"),
    "nginx": ("put", "/", "HTTP/1.1 201 "),
}
EVERYBODY = (LIMIT, DURABLE, PLAIN, RECEIPT, OURS, "nginx", "socat", "go")
OF_THE_CLOCK = Figure("p99_us", "p99 µs", False, P99.of, related=False)
RESIDENT = Figure("peak", "MB in all", False, PEAK.of, related=False)


def streams(count: int, size: int, *bounds: Bound, peers: tuple[str, ...]) -> Case:
    some = "1 stream" if count == 1 else f"{count} streams"
    return Case(
        name=some,
        title=f"{some} of {size // MIB:,} MiB",
        load=("streams", str(count), str(size)),
        ops="streams",
        figure=GBPS,
        bounds=bounds,
        fresh=True,
        columns=(CPU_PER_GB, PEAK),
        peers=peers,
    )


CASES = (
    streams(
        8,
        256 * MIB,
        Bound(PLAIN, 0.85),
        Bound(PLAIN, 3.0, against="nginx"),
        Bound(PLAIN, 3.0, against="socat"),
        Bound(OURS, 1.1, against="nginx"),
        peers=(*EVERYBODY, LINES),
    ),
    streams(
        1, 1024 * MIB, Bound(OURS, 0.5, against=HASH), peers=(LIMIT, PLAIN, RECEIPT, OURS, HASH)
    ),
    streams(
        64,
        32 * MIB,
        Bound(PLAIN, 0.8),
        Bound(PLAIN, 96, against=None, figure=PEAK),
        Bound(OURS, 96, against=None, figure=PEAK),
        peers=EVERYBODY,
    ),
    Case(
        name="small",
        title="connect, 100 B, FIN, answer",
        load=("small", "50", "100"),
        ops="connections",
        figure=PER_SECOND,
        bounds=(Bound(OURS, 0.7), Bound(OURS, 1.1, against=DURABLE)),
        fresh=True,
        columns=(P50, P99, PER_CPU),
        peers=(LIMIT, DURABLE, PLAIN, RECEIPT, OURS, "nginx", "go"),
        many=True,
    ),
    Case(
        name="idle",
        title="10,000 idle streams of 100 B",
        load=("idle", "10000", "100"),
        ops="connections",
        figure=RESIDENT,
        bounds=(Bound(OURS, 150, against=None),),
        descriptors=10_000 + SPARE,
        fresh=True,
        columns=(),
        peers=(OURS,),
        many=True,
    ),
    Case(
        name="echo",
        title="echo beside 8 streams of 256 MiB",
        load=("streams", "8", str(256 * MIB)),
        ops="streams",
        figure=OF_THE_CLOCK,
        bounds=tuple(
            bound
            for peer in (PLAIN, OURS)
            for bound in (Bound(peer, 300, None, P50), Bound(peer, 6000, None))
        ),
        fresh=True,
        columns=(P50, GBPS),
        peers=(PLAIN, OURS),
    ),
)


def amount(case: Case, peer: str) -> tuple[int, int]:
    """Streams at once, and bytes of each."""
    _, count, size = case.load
    return int(count), int(size) // SHARE.get(peer, 1)


def load(case: Case, server: Server) -> Sequence[str]:
    """What the generator is told, in its words."""
    mode, count, _ = case.load
    _, size = amount(case, server.peer.name)
    how, where, answer = TALK.get(server.peer.name, FIN)
    told = answer.format(size=size, sha256=digest(size), parts=-(-size // PART))
    beside = [str(server.launch.ports["echo PORT"])] if case.name == "echo" else []
    return [mode, count, str(size), how, where, told, *beside]


def check(case: Case, server: Server, sample: Sample) -> None:
    """Every stream must lie in the folder, whole. Raise Wrong.

    Waits for files that are made after the answer, and of streams that ended with the load.
    """
    until = time.monotonic() + PATIENCE
    while why := wrong(case, server, sample):
        if time.monotonic() > until:
            raise Wrong(f"{case.name}: {server.peer.name}: {why}")
        time.sleep(0.1)


def wrong(case: Case, server: Server, sample: Sample) -> str:
    """What is wrong with the files a sample left; empty: nothing."""
    _, size = amount(case, server.peer.name)
    series = stored(server.folder)
    if server.peer.name == LINES:
        return wrong_lines(series, size * sample.ops)
    if len(series) != sample.ops:
        return f"{sample.ops:,} streams were answered, {len(series):,} are there"
    for name, parts in series.items():
        if (there := sum(length for _, length in parts)) != size:
            return f"{name} has {there:,} bytes of {size:,}"
    name = random.choice([*series])
    if not same(pieces(path for path, _ in series[name]), size):
        return f"{name} is not what was sent"
    return ""


def wrong_lines(series: dict[str, list[tuple[Path, int]]], size: int) -> str:
    """Lines of all streams lie in one file, in any order."""
    parts = series.get("lines", [])
    if (there := sum(length for _, length in parts)) != size:
        return f"there are {there:,} bytes of {size:,}"
    with parts[0][0].open("rb") as file:
        if not {*file.read(MIB).splitlines()} <= {*DATA.splitlines()}:
            return "what is there is not what was sent"
    return ""


def stored(folder: Path) -> dict[str, list[tuple[Path, int]]]:
    """The files of each series in order, with their lengths; empty ones tell nothing."""
    found: dict[str, list[tuple[Path, int]]] = {}
    for path in sorted(folder.rglob("*.bin")):
        if length := path.stat().st_size:
            name = re.sub(r"_parte_\d+$", "", path.stem)
            found.setdefault(name, []).append((path, length))
    return found


def c(how: str, name: str, about: str, workshop: Workshop) -> Peer:
    program = workshop.c("ingest_server")
    compiler = workshop.said(workshop.tool("gcc", "cc", package="gcc"), "--version")
    return Peer(
        name,
        about,
        compiler,
        lambda folder, port: Launch([str(program), str(port), str(folder), str(PART), how]),
    )


def limit(workshop: Workshop) -> Peer:
    return c("splice", LIMIT, "splice, a thread a stream, nothing synced: the limit", workshop)


def durable(workshop: Workshop) -> Peer:
    return c("durable", DURABLE, "recv, write, fdatasync of every file", workshop)


def ours(workshop: Workshop) -> Peer:
    return roundhouse("ingest", name=OURS, about="the default: durable receipt with sha256")


def receipt(workshop: Workshop) -> Peer:
    settings = {"CHECKSUM": "none"}
    return roundhouse("ingest", name=RECEIPT, about="durable receipt", settings=settings)


def plain(workshop: Workshop) -> Peer:
    settings = {"CHECKSUM": "none", "RECEIPT": "off", "WAIT_FOR_DISK": "off"}
    about = "no checksum, no receipt, synced behind its end"
    return roundhouse("ingest", name=PLAIN, about=about, settings=settings)


def go(workshop: Workshop) -> Peer:
    program = workshop.go("ingest")
    return Peer(
        "go",
        "io.CopyN to files, a goroutine a stream",
        workshop.said(workshop.tool("go", package="golang-go"), "version"),
        lambda folder, port: Launch([str(program), str(port), str(folder), str(PART)]),
    )


NGINX = """daemon off; user {user}; pid {folder}/nginx.pid; error_log stderr; worker_processes auto;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    client_max_body_size 0;
    client_body_temp_path {folder}/temp;
    server {{
        listen 127.0.0.1:{port};
        root {folder};
        location / {{ dav_methods PUT; }}
    }}
}}
"""


def nginx(workshop: Workshop) -> Peer:
    program = workshop.tool("nginx", "/usr/sbin/nginx", package="nginx-light")
    if "http_dav_module" not in workshop.all_said(program, "-V"):
        raise Missing(f"{program} has no http_dav_module (apt install nginx-light)")

    def launch(folder: Path, port: int) -> Launch:
        config = folder / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, port=port, user=folder.owner()))
        return Launch([program, "-e", "stderr", "-p", str(folder), "-c", str(config)])

    about = "PUT, a file a stream, nothing synced"
    return Peer("nginx", about, workshop.said(program, "-v"), launch)


def socat(workshop: Workshop) -> Peer:
    program = workshop.tool("socat", package="socat")

    def launch(folder: Path, port: int) -> Launch:
        listen = f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=128"
        return Launch([program, "-u", listen, "SYSTEM:cat > $$.bin"])

    about = "a process and a cat > file a stream, nothing synced"
    _, version, *_ = workshop.all_said(program, "-V").splitlines()
    return Peer("socat", about, version.partition(" on ")[0], launch)


RSYSLOG = """module(load="imptcp")
global(workDirectory="{folder}" maxMessageSize="64k")
template(name="raw" type="string" string="%rawmsg%\\n")
ruleset(name="land" queue.type="Direct") {{
    action(type="omfile" file="{folder}/lines.bin" template="raw" ioBufferSize="256k")
}}
input(type="imptcp" port="{port}" address="127.0.0.1" ruleset="land")
"""


def rsyslog(workshop: Workshop) -> Peer:
    program = workshop.tool("rsyslogd", "/usr/sbin/rsyslogd", package="rsyslog")

    def launch(folder: Path, port: int) -> Launch:
        config = folder / "rsyslog.conf"
        config.write_text(RSYSLOG.format(folder=folder, port=port))
        return Launch([program, "-n", "-f", str(config), "-i", str(folder / "rsyslog.pid")])

    about = f"imptcp, lines of 256 B, to one file; 1/{SHARE[LINES]} of the bytes"
    version, *_ = workshop.said(program, "-v").partition(" compiled")
    return Peer(LINES, about, version, launch)


def hashing(workshop: Workshop) -> Reference:
    def sample(case: Case) -> Sample:
        began, spent = time.monotonic(), time.thread_time()
        made = sha256()
        for _ in range(HASHED // MIB):
            made.update(DATA)
        seconds, cpu = time.monotonic() - began, time.thread_time() - spent
        return Sample(1, seconds, cpu, 0, 0, bytes=HASHED // MIB * len(DATA))

    return Reference(HASH, "one thread, of memory, no server", python(), sample)


COMPARISON = Comparison(
    name="ingest",
    help="Ingest against C, nginx PUT, socat, Go and rsyslog.",
    cases=CASES,
    peers={
        LIMIT: limit,
        DURABLE: durable,
        PLAIN: plain,
        RECEIPT: receipt,
        OURS: ours,
        "nginx": nginx,
        "socat": socat,
        "go": go,
        LINES: rsyslog,
        HASH: hashing,
    },
    generator="bulk_load",
    load=load,
    check=check,
    proof="{ops:,} streams with {bytes:,} bytes in all were found in the servers' folders: the "
    "length of each is right, and so are the bytes of one a sample.",
    pinned=False,
    room=8 << 30,
    quick="6 minutes",
)
