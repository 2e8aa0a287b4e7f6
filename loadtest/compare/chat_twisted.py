"""The chat comparison's stock Twisted: a room as a tutorial has it, on the default reactor.

usage: python chat_twisted.py PORT
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.protocol import ServerFactory
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure

members: set[Chat] = set()


class Chat(LineReceiver):
    delimiter = b"\n"
    MAX_LENGTH = 1024

    def connectionMade(self) -> None:
        members.add(self)

    def lineReceived(self, line: bytes) -> None:
        if 0 < len(line.decode()) <= 256:
            for member in members:
                member.sendLine(line)  # type: ignore[no-untyped-call]
        else:
            self.sendLine(b"ERR Invalid message")  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        members.discard(self)


if __name__ == "__main__":
    factory = ServerFactory()
    factory.protocol = Chat
    reactor.listenTCP(int(sys.argv[1]), factory, backlog=4096, interface="127.0.0.1")
    reactor.run()
