"""Ports are claimed while the tac loads, and served once the daemon runs.

At load every endpoint string is bound and listens: a taken port is an error that still reaches the
terminal, also under plain `twistd -y`, and all of them are named at once. Who connects meanwhile
waits in the backlog. After the fork and with the stores open, each socket is adopted by the
reactor.

It works for every kind of endpoint: `Binder` stands in for the reactor when the endpoint asks to
listen, binds a socket and keeps the factory it was given. TLS and the PROXY protocol are layers
around that factory (`wrappers`).
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import sys
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ClassVar

import psutil
from attrs import define, field, frozen
from twisted.internet import tcp
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.endpoints import serverFromString
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IProtocolFactory,
    IReactorSocket,
    IReactorTCP,
    IReactorUNIX,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from daemon import wrappers
from daemon.settings import Listen
from daemon.succession import Inheritance, Inherited
from daemon.traffic import Server
from protocols.connection import LiveFactory, spoken

log = Logger()

BACKLOG = 1024
RETRY = 3.0  # seconds: an outgoing connection may hold a port of the ephemeral range for a moment
RETRY_EVERY = 0.25
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))  # seconds, probes
USER_TIMEOUT = 60_000  # ms in which a peer must acknowledge what we sent
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_NOTHING = b"\0"  # for Twisted's unix.Port to remove at its end


class PortsTaken(Exception):
    """Some endpoints cannot be had. problems: a line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@implementer(IListeningPort)
@define(eq=False)
class Claim:
    """A listening socket and the factory that will serve it; a port, as far as endpoints know."""

    factory: IProtocolFactory
    socket: socket.socket
    mode: int | None = None  # of a unix socket that we made; None: it is not ours to remove
    origin: str = ""  # the service and the endpoint string it was made for

    def serve(self, reactor: Any) -> Any:
        """Let the reactor accept from it: its IListeningPort, with a descriptor to poll."""
        unix = self.socket.family == socket.AF_UNIX
        port: Any = reactor.adoptStreamPort(self.socket.fileno(), self.socket.family, self.factory)
        if type(port) is tcp.Port:
            port.transport = Server
        if unix:
            self._undo_what_adopting_did(port)
        self.socket.close()
        return port

    def bequeath(self, port: Any) -> Inherited:
        """The socket of `port`, which serves it, to go on listening when that has stopped."""
        port._shouldShutdown = False
        if self.mode is not None:
            port._bindPath = _NOTHING
        return Inherited(self.origin, os.dup(port.fileno()), self.mode)

    def _undo_what_adopting_did(self, port: Any) -> None:
        """Twisted's unix.Port listens again with a short backlog, opens the mode to everyone, and
        removes the path at the end, also that of a socket that belongs to systemd."""
        path = self.socket.getsockname()
        self.socket.listen(BACKLOG)
        if self.mode is not None:
            os.chmod(path, self.mode)
        elif path:
            port._bindPath = _NOTHING

    def give(self, owner: tuple[int, int]) -> None:
        """Let a unix socket that we made belong to uid and gid, who will serve and remove it."""
        if self.mode is not None:
            os.chown(self.socket.getsockname(), *owner, follow_symlinks=False)

    def startListening(self) -> None:
        """It does, from the beginning."""

    def stopListening(self) -> None:
        """Give it up, if the reactor did not take it over."""
        if self.mode is not None and self.socket.fileno() >= 0:
            Path(self.socket.getsockname()).unlink(missing_ok=True)
        self.socket.close()

    def getHost(self) -> IPv4Address | IPv6Address | UNIXAddress:
        name = self.socket.getsockname()
        match self.socket.family:
            case socket.AF_INET6:
                return IPv6Address("TCP", *name)
            case socket.AF_INET:
                return IPv4Address("TCP", *name)
        return UNIXAddress(os.fsencode(name))


@implementer(IReactorTCP, IReactorUNIX, IReactorSocket)
@define(eq=False)
class Binder:
    """What an endpoint takes for the reactor. home: where relative paths begin."""

    home: Path
    resets: bool = False
    unsent: int = 0
    unread: int = 0
    claims: list[Claim] = field(factory=list)

    def listenTCP(
        self, port: int, factory: IProtocolFactory, backlog: int = BACKLOG, interface: str = ""
    ) -> Claim:
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            _bind(sock, (interface, port))
            return self._keep(sock, factory, max(backlog, BACKLOG))
        except BaseException:
            sock.close()
            raise

    def listenUNIX(
        self,
        address: str,
        factory: IProtocolFactory,
        backlog: int = BACKLOG,
        mode: int = 0o666,
        wantPID: bool = False,
    ) -> Claim:
        path = self.home / address
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _clear_stale(path)
            sock.bind(str(path))
            path.chmod(mode)
            return self._keep(sock, factory, max(backlog, BACKLOG), mode)
        except BaseException:
            sock.close()
            raise

    def adoptStreamPort(
        self, fileDescriptor: int, addressFamily: int, factory: IProtocolFactory
    ) -> Claim:
        # a dup: the endpoint closes the descriptor it was given
        return self._keep(socket.socket(fileno=os.dup(fileDescriptor)), factory, BACKLOG)

    def inherit(self, left: Inherited, factory: IProtocolFactory) -> Claim:
        return self._keep(socket.socket(fileno=left.descriptor), factory, BACKLOG, left.mode)

    def _keep(
        self, sock: socket.socket, factory: IProtocolFactory, backlog: int, mode: int | None = None
    ) -> Claim:
        sock.setblocking(False)
        os.set_inheritable(sock.fileno(), False)
        if sock.family != socket.AF_UNIX:
            _inherit(sock, self.resets, self.unsent, self.unread)
        sock.listen(backlog)
        claim = Claim(factory, sock, mode)
        self.claims.append(claim)
        return claim

    def adoptStreamConnection(self, *_: Any) -> Any:
        raise NotImplementedError("only listening sockets are claimed")

    adoptDatagramPort = connectTCP = connectUNIX = adoptStreamConnection


def _inherit(sock: socket.socket, resets: bool, unsent: int, unread: int) -> None:
    """Accepted sockets inherit these from the one that listens: no system call a connection."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (*KEEPALIVE, ("TCP_USER_TIMEOUT", USER_TIMEOUT)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    if resets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    if unsent:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, unsent)
    if unread:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, unread)


def _clear_stale(path: Path) -> None:
    """Remove a socket that nobody listens on any more; any other file stays and is in the way."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def _bind(sock: socket.socket, address: tuple[str, int]) -> None:
    until = time.monotonic() + RETRY
    while True:
        try:
            sock.bind(address)
            # with SO_REUSEADDR a port that is bound, but not listened on, is refused only here
            sock.listen(1)
            return
        except OSError as error:
            held = error.errno == errno.EADDRINUSE and ephemeral(address[1])
            if not held or holder(address[1], connections()).listens or time.monotonic() > until:
                raise
        time.sleep(RETRY_EVERY)


def claim(
    listens: Sequence[tuple[Listen, LiveFactory]],
    home: Path,
    inheritance: Inheritance | None = None,
) -> list[list[Claim]]:
    """Take every endpoint of every port, or none: raises PortsTaken with a line for each.

    A secondary port that config.cfg does not name is only warned of: an upgrade that brings one
    never stops yesterday's daemon.
    """
    left = inheritance or Inheritance()
    left.keep({_origin(listen, endpoint) for listen, _ in listens for endpoint in listen.endpoints})
    taken: list[list[Claim]] = []
    refused: list[tuple[Listen, str, Exception]] = []
    skipped: list[tuple[Listen, str, Exception]] = []
    for listen, factory in listens:
        port = listen.port
        binder = Binder(home, port.resets, port.unsent, port.unread)
        problems = skipped if listen.port.secondary and not listen.named else refused
        problems += [
            (listen, endpoint, problem)
            for endpoint in listen.endpoints
            if (problem := _listen(binder, listen, endpoint, factory, left)) is not None
        ]
        taken.append(binder.claims)
    if skipped:
        among = connections()
        for skip in skipped:
            log.warn(
                "going on without it: {problem}",
                event="service.skipped",
                problem=_explain(*skip, among),
            )
    if refused:
        for claims in taken:
            for one in claims:
                one.stopListening()
        among = connections()  # once: a busy machine has tens of thousands
        raise PortsTaken([_explain(*refusal, among) for refusal in refused])
    return taken


def _origin(listen: Listen, endpoint: str) -> str:
    return f"{listen.service} {endpoint}"


def _listen(
    binder: Binder, listen: Listen, endpoint: str, factory: LiveFactory, left: Inheritance
) -> Exception | None:
    failures: list[Failure] = []
    origin = _origin(listen, endpoint)
    try:
        plain, wrapped = wrappers.wrap(endpoint, factory, binder.home)
        if (mine := left.pop(origin)) is not None:
            binder.inherit(mine, wrapped)
        else:
            serverFromString(binder, plain).listen(wrapped).addErrback(failures.append)
    except Exception as error:  # endpoint parsers raise whatever they like
        return error
    if failures:
        return failures[0].value  # type: ignore[return-value]
    binder.claims[-1].origin = origin
    return None


@frozen
class Holder:
    """Who has a port: `python3 (pid 4242)`, and whether it listens or merely connects from it."""

    NOBODY: ClassVar[Holder]

    who: str
    listens: bool


Holder.NOBODY = Holder("", False)


def connections() -> Sequence[Any]:
    """The TCP sockets of this machine, as far as this user may know of them."""
    try:
        return psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return ()


def holder(port: int, among: Sequence[Any]) -> Holder:
    """Who has TCP `port`."""
    found = [one for one in among if one.laddr and one.laddr.port == port]
    found.sort(key=lambda c: c.status != psutil.CONN_LISTEN)
    for connection in found:
        listens = connection.status == psutil.CONN_LISTEN
        if connection.pid is None:
            return Holder("a process of another user", listens)
        try:
            return Holder(
                f"{psutil.Process(connection.pid).name()} (pid {connection.pid})", listens
            )
        except psutil.Error:
            continue
    return Holder.NOBODY


def ephemeral(port: int) -> bool:
    try:
        low, high = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    except (OSError, ValueError):
        return False
    return int(low) <= port <= int(high)


def _explain(listen: Listen, endpoint: str, error: Exception, among: Sequence[Any]) -> str:
    """One line: which service, what is the matter, what would help and where."""
    port = port_of(endpoint)
    remedy = (
        f"{listen.where}: [{listen.service}] {listen.key} moves it, ENABLED = no switches it off"
    )
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE and port is not None:
        who = holder(port, among)
        if who.listens or not ephemeral(port):
            by = f" by {who.who}" if who.who else ""
            if port == 5000 and sys.platform == "darwin":
                by = " by AirPlay (System Settings, General, AirDrop & Handoff)"
            what = f"is taken{by}"
        else:
            by = f" of {who.who}" if who.who else ""
            what = (
                f"is held by an outgoing connection{by}, for it lies in the ephemeral range:"
                f" try again, or keep it: sysctl -w net.ipv4.ip_local_reserved_ports={port}"
            )
    elif number == errno.EADDRINUSE:
        what = "is in the way: something is there already, or still listens on it"
    elif number == errno.EACCES:
        what = "is not allowed: ports below 1024 need root or CAP_NET_BIND_SERVICE"
        if port is None:
            what = "is not allowed here"
    elif number == errno.EADDRNOTAVAIL:
        what = "is no address of this machine: see SERVER_IP"
    elif isinstance(error, OSError):
        what = f"failed: {error.strerror}"
    else:
        what = f"is not an endpoint that can be used here: {error or type(error).__name__}"
    return f"{listen.service}: {endpoint} {what} ({remedy})"


def port_of(endpoint: str) -> int | None:
    kind, _, rest = endpoint.removeprefix(wrappers.PROXY).partition(":")
    first = rest.partition(":")[0].removeprefix("port=")
    return int(first) if kind in ("tcp", "tcp6", *wrappers.TLS) and first.isdecimal() else None


def beyond_loopback(address: IAddress) -> bool:
    """Whether others than this machine reach what listens there."""
    host = getattr(address, "host", None)
    return host is not None and not ip_address(host.partition("%")[0]).is_loopback


def names(claims: Sequence[Claim]) -> str:
    """Where a service listens, as people write it."""
    return ", ".join(spoken(one.getHost()) for one in claims)
