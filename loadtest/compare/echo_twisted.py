"""The echo comparison's stock Twisted: a Protocol as a tutorial has it, on the default reactor.

usage: python echo_twisted.py PORT
"""

from __future__ import annotations

import sys

from twisted.internet import reactor
from twisted.internet.protocol import Protocol, ServerFactory


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        if data.strip() == b"DESCONEXION":
            self.transport.loseConnection()
        else:
            self.transport.write(data.upper())


if __name__ == "__main__":
    factory = ServerFactory()
    factory.protocol = Echo
    reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1")
    reactor.run()
