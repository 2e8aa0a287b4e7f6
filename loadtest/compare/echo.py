"""echo: small messages, many connections, short connections, a stream, a fixed rate, silence."""

from __future__ import annotations

import sys
from pathlib import Path

from loadtest.compare.build import Workshop
from loadtest.compare.harness import Comparison, Launch, Peer
from loadtest.compare.roundhouse import installed, python, roundhouse
from loadtest.compare.table import LIMIT, MEMORY, P99, Bound, Case

OURS = "roundhouse"
STOCK = "roundhouse-epoll"  # our service on Twisted's own reactor
SPARE = 100  # descriptors a server needs beside its connections


def ping(connections: int, *bounds: Bound, depth: int = 1) -> Case:
    deep = f" x{depth}" if depth > 1 else ""
    some = "1 connection" if connections == 1 else f"{connections:,} connections"
    return Case(
        name=f"ping {connections}{deep}",
        title=f"64 B, {some}" + (f", {depth} deep" if deep else ""),
        load=("ping", str(connections), "64", str(depth)),
        ops="messages",
        bounds=bounds,
        descriptors=connections + SPARE,
    )


CASES = (
    ping(1, Bound(OURS, 0.80)),
    ping(50, Bound(OURS, 0.80), Bound(OURS, 2.0, against=STOCK)),
    ping(500, Bound(OURS, 0.70)),
    ping(5000, Bound(OURS, 0.65)),
    ping(50, Bound(OURS, 0.75), depth=16),
    Case(
        name="connect",
        title="connect, 64 B, close",
        load=("once", "50", "64"),
        ops="connections",
        bounds=(Bound(OURS, 0.65),),
    ),
    Case(
        name="stream",
        title="64 KiB stream, 8 connections",
        load=("ping", "8", "65536", "16"),
        ops="64 KiB",
        bounds=(Bound(OURS, 0.50),),
    ),
    Case(
        name="rate",
        title="20,000 a second, 50 connections",
        load=("rate", "50", "64", "20000"),
        ops="messages",
        figure=P99,
        bounds=(Bound(OURS, 1.3),),
    ),
    Case(
        name="idle",
        title="10,000 idle connections",
        load=("idle", "10000", "64"),
        ops="connections",
        figure=MEMORY,
        bounds=(Bound(OURS, 4.0, against=None),),
        descriptors=10_000 + SPARE,
        fresh=True,
    ),
)


def c(workshop: Workshop) -> Peer:
    program = workshop.c("echo_server")
    compiler = workshop.said(workshop.tool("gcc", "cc", package="gcc"), "--version")
    return Peer(
        LIMIT,
        "one epoll loop: what it can cost at best",
        compiler,
        lambda folder, port: Launch([str(program), str(port)]),
    )


def ours(workshop: Workshop) -> Peer:
    return roundhouse("echo", name=OURS, about="service.tac, all services loaded")


def stock(workshop: Workshop) -> Peer:
    about = "the same on Twisted's own reactor"
    return roundhouse("echo", name=STOCK, about=about, reactor="epoll")


def twisted(workshop: Workshop) -> Peer:
    script = Path(__file__).with_name("echo_twisted.py")
    return Peer(
        "twisted",
        "a plain Protocol on the default reactor",
        f"{installed('twisted')} on {python()}",
        lambda folder, port: Launch([sys.executable, str(script), str(port)]),
    )


def go(workshop: Workshop) -> Peer:
    program = workshop.go("echo")
    return Peer(
        "go",
        "net, a goroutine a connection",
        workshop.said(workshop.tool("go", package="golang-go"), "version"),
        lambda folder, port: Launch([str(program), str(port)]),
    )


COMPARISON = Comparison(
    name="echo",
    help="Echo against a C loop, stock Twisted and Go.",
    cases=CASES,
    peers={LIMIT: c, OURS: ours, STOCK: stock, "twisted": twisted, "go": go},
    generator="echo_load",
)
