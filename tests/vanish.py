"""python -m tests.vanish: peers that go without a word, on the loopback of its own namespace.

Started by test_guards.py under `unshare --net`, as root. Prints how long it took until echo knew
that both were gone, one that was silent and one that was owed an answer; seconds.
"""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall

from daemon import binding, stores
from daemon.kernel import Sockets
from daemon.reactor import install
from daemon.settings import Listen
from protocols import echo
from protocols.spec import Context

FASTER = 1.0 / 30  # than the daemon: the kernel counts in whole seconds


def link(state: str) -> None:
    subprocess.run(["ip", "link", "set", "lo", state], check=True, timeout=5)


def main() -> None:
    install()
    from twisted.internet import reactor as installed

    reactor: Any = installed
    link("up")
    binding.KEEPALIVE = (("TCP_KEEPIDLE", 1), ("TCP_KEEPINTVL", 1), ("TCP_KEEPCNT", 1))
    binding.USER_TIMEOUT = int(binding.USER_TIMEOUT * FASTER)
    house = stores.build((), Path(), reactor)
    factory = echo.build(Context(reactor, echo.Options(), house.stores, Sockets()))["PORT"]
    listen = Listen("echo", echo.SPEC.ports[0], ("tcp:0:interface=127.0.0.1",), "PORT", "")
    ((claim,),) = binding.claim([(listen, factory)], Path())
    port = claim.serve(reactor)
    address = port.getHost()
    silent = socket.create_connection((address.host, address.port), 5)
    owed = socket.create_connection((address.host, address.port), 5)
    began = 0.0

    def vanish() -> None:
        nonlocal began
        if len(factory.live) < 2:
            reactor.callLater(0.05, vanish)
            return
        began = reactor.seconds()
        owed.sendall(b"hola")  # we are the reactor: it is read once the link is down
        link("down")
        look.start(0.05)

    def gone() -> None:
        if not factory.live or reactor.seconds() - began > 30:
            print(reactor.seconds() - began)
            reactor.stop()

    look = LoopingCall(gone)
    reactor.callLater(0, vanish)
    reactor.run()
    silent.close()
    owed.close()


if __name__ == "__main__":
    main()
