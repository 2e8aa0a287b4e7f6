"""chat: lines to everybody, lone and many, slow readers, a flood.

A receiver of every peer gets each line once, whole and in the order of all others, or the
comparison ends: the generator checks that. Brokers get a topic, IRC servers a channel.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from loadtest.compare.build import Workshop
from loadtest.compare.harness import Comparison, Launch, Peer, Server
from loadtest.compare.roundhouse import installed, python, roundhouse
from loadtest.compare.table import GROWN, LIMIT, P50, P99, Bound, Case, Figure

OURS = "roundhouse"
STUCK = "roundhouse-stuck"
NGIRCD, REDIS, NATS, MOSQUITTO, TWISTED = "ngircd", "redis", "nats", "mosquitto", "twisted"
WIRES = {NGIRCD: "irc", REDIS: "redis", NATS: "nats", MOSQUITTO: "mqtt"}  # others: line
SMALL = (LIMIT, OURS, NGIRCD, REDIS, NATS, MOSQUITTO, TWISTED)  # whose connections are few
SPARE = 200  # descriptors a server needs beside its connections

ECHO = Figure("echo", "µs p99 of an echo", False, lambda s: s.p99_us, related=False)
SAID = "{ops:,} deliveries were checked, line by line and in their order: none is wrong."


def loop(receivers: int, *bounds: Bound, peers: Sequence[str] = SMALL) -> Case:
    return Case(
        name=f"loop {receivers}",
        title=f"256 lines under way, {receivers:,} receivers",
        load=("loop", str(receivers), "4", "256"),
        ops="deliveries",
        bounds=bounds,
        descriptors=receivers + SPARE,
        peers=tuple(peers),
    )


CASES = (
    loop(
        100,
        Bound(OURS, 1 / 1.25),
        Bound(OURS, 4.0, against=REDIS),
        Bound(OURS, 10.0, against=NGIRCD),
    ),
    loop(1000, Bound(OURS, 1 / 1.25), peers=(LIMIT, OURS, NGIRCD, REDIS, NATS)),
    loop(5000, Bound(OURS, 1 / 1.5), peers=(LIMIT, OURS)),
    Case(
        name="lone",
        title="1,000 lone lines a second, 100 receivers",
        load=("rate", "100", "4", "1000"),
        ops="deliveries",
        bounds=(Bound(OURS, 1 / 1.2),),
        peers=SMALL,
    ),
    Case(
        name="wires",
        title="256 lines under way on plain and IRC wires at once, 100 receivers: one order",
        load=("loop", "100", "8", "256"),
        ops="deliveries",
        peers=(OURS,),
    ),
    Case(
        name="stuck",
        title="100 MB to each of 10 receivers; -stuck: and to 20 that never read",
        load=("stuck", "10", "4", "256"),
        ops="deliveries",
        figure=P99,
        bounds=(Bound(STUCK, 1.5, against=OURS), Bound(STUCK, 10.0, against=None, figure=GROWN)),
        fresh=True,
        columns=(P50, GROWN),
        peers=(OURS, STUCK),
    ),
    Case(
        name="flood",
        title="2-byte lines of one client at full speed, 2,000 receivers: an echo beside it",
        load=("flood", "2000"),
        ops="echoes",
        figure=ECHO,
        bounds=(Bound(OURS, 25_000.0, against=None),),
        descriptors=2000 + SPARE,
        columns=(P50,),
        peers=(OURS,),
    ),
)


def load(case: Case, server: Server) -> Sequence[str]:
    name, ports = server.peer.name, server.launch.ports
    wires = WIRES.get(name, "line")
    mode, receivers, *numbers = case.load
    if name == NATS:
        numbers[0] = "1"  # sender: of several, each receiver has an order of its own
    more: tuple[str, ...] = ()
    if case.name == "wires":
        wires = f"line,irc:{ports['chat IRC_PORT']}"
    elif case.name == "stuck":
        more = ("20" if name == STUCK else "0", "100")
    elif case.name == "flood":
        more = (str(ports["echo PORT"]),)
    return (wires, mode, receivers, *numbers, *more)


def c(workshop: Workshop) -> Peer:
    program = workshop.c("chat_server")
    compiler = workshop.said(workshop.tool("gcc", "cc", package="gcc"), "--version")
    return Peer(
        LIMIT,
        "one epoll loop, the lines of a turn joined: what it can cost at best",
        compiler,
        lambda folder, port: Launch([str(program), str(port)]),
    )


def ours(workshop: Workshop) -> Peer:
    return roundhouse("chat", name=OURS, about="service.tac, all services loaded, HISTORY = 1000")


def stuck(workshop: Workshop) -> Peer:
    return roundhouse("chat", name=STUCK, about="the same, with 20 members that never read")


def twisted(workshop: Workshop) -> Peer:
    script = Path(__file__).with_name("chat_twisted.py")
    return Peer(
        TWISTED,
        "a room of LineReceivers on the default reactor",
        f"{installed('twisted')} on {python()}",
        lambda folder, port: Launch([sys.executable, str(script), str(port)]),
    )


def redis(workshop: Workshop) -> Peer:
    program = workshop.tool("redis-server", package="redis-server")
    words = "--bind 127.0.0.1 --protected-mode no --appendonly no --maxclients 10000"
    # nothing is written, and nobody is cut, as with the others
    rest = ["--save", "", "--client-output-buffer-limit", "pubsub 0 0 0"]
    return Peer(
        REDIS,
        "pub/sub, senders apart",
        workshop.said(program, "--version"),
        lambda folder, port: Launch([program, "--port", str(port), *words.split(), *rest]),
    )


def nats(workshop: Workshop) -> Peer:
    program = workshop.tool("nats-server", package="nats-server")
    return Peer(
        NATS,
        "core pub/sub; one sender, for it keeps no order between several",
        workshop.said(program, "--version"),
        lambda folder, port: Launch([program, "-a", "127.0.0.1", "-p", str(port)]),
    )


def mosquitto(workshop: Workshop) -> Peer:
    program = workshop.tool("mosquitto", package="mosquitto")
    lines = "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nuser root\n"
    lines += "max_queued_messages 0\n"
    return Peer(
        MOSQUITTO,
        "MQTT with QoS 0, senders apart",
        workshop.said(program, "-h"),
        _configured(lines, lambda path: [program, "-c", path]),
    )


def ngircd(workshop: Workshop) -> Peer:
    program = workshop.tool("ngircd", package="ngircd")
    lines = (
        "[Global]\nName = irc.compare.invalid\nInfo = load test\nListen = 127.0.0.1\n"
        "Ports = {port}\nServerUID = {user}\nServerGID = {group}\n"
        "[Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxPenaltyTime = 0\n"
        "MaxNickLength = 20\n[Options]\nPAM = no\nIdent = no\nDNS = no\n"
    )
    return Peer(
        NGIRCD,
        "a channel, senders in it; penalties off",
        workshop.said(program, "--version"),
        _configured(lines, lambda path: [program, "-n", "-f", path]),
    )


def _configured(lines: str, argv: Callable[[str], Sequence[str]]) -> Callable[[Path, int], Launch]:
    """A launch that writes a configuration file first."""

    def launch(folder: Path, port: int) -> Launch:
        path = folder / "server.conf"
        path.write_text(lines.format(port=port, user=os.getuid(), group=os.getgid()))
        return Launch(argv(str(path)))

    return launch


COMPARISON = Comparison(
    name="chat",
    help="Chat against a C loop, ngircd, redis, nats, mosquitto and stock Twisted.",
    cases=CASES,
    peers={
        LIMIT: c,
        OURS: ours,
        STUCK: stuck,
        NGIRCD: ngircd,
        REDIS: redis,
        NATS: nats,
        MOSQUITTO: mosquitto,
        TWISTED: twisted,
    },
    generator="chat_load",
    load=load,
    proof=SAID,
    quick="3 min",
)
