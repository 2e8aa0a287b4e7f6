"""The whole daemon: settings read, ports claimed, stores below, listeners on top; and reload.

While the tac loads, everything that may be wrong is found: settings (exit status 78), ports (69),
what is on disk (73). What starts threads or opens files waits for startService, for `twistd -y`
forks in between.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from attrs import define, field
from twisted.application.service import Application, MultiService
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.components import Componentized

from daemon import binding, settings, stores
from daemon.binding import PortsTaken
from daemon.catalogue import CATALOGUE
from daemon.gate import Gate, places
from daemon.kernel import Sockets
from daemon.reactor import Chosen
from daemon.services import Listener, Stack
from daemon.settings import ConfigError, Settings
from daemon.stores.files import Unusable
from daemon.systemd import Systemd
from protocols.connection import LiveFactory
from protocols.spec import Context, Spec

log = Logger()

EX_CONFIG = 78
EX_UNAVAILABLE = 69
EX_CANTCREAT = 73
WATCH = 0.25  # seconds between looks at config.cfg; it is read once it stood still for one
DRAIN_SHARE = 0.8  # of the grace; the rest is for the stores
UMASK = 0o027
SWITCH_INTERVAL = 0.001  # seconds; the default of 5 ms lets a busy thread delay the reactor


def application(home: Path, reactor: Any, chosen: Chosen, *only: str) -> Componentized:
    """What a .tac file calls `application`: all protocols of the catalogue, or those in `only`.

    Bad settings, taken ports and an unusable DATA_DIR end the process here, with a line each.
    """
    try:
        daemon = Roundhouse.assemble(home, reactor, CATALOGUE, os.environ, only)
    except ConfigError as error:
        _leave(EX_CONFIG, error.problems)
    except PortsTaken as error:
        _leave(EX_UNAVAILABLE, error.problems)
    except Unusable as error:
        _leave(EX_CANTCREAT, [str(error)])
    daemon.chosen = chosen
    made: Componentized = Application("roundhouse")
    daemon.setServiceParent(made)
    return made


def _leave(status: int, problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        print(problem, file=sys.stderr)
    raise SystemExit(status)


@define(eq=False, repr=False)
class Roundhouse(Stack):
    """One daemon: storage first, listeners last, one reactor."""

    home: Path
    reactor: Any
    catalogue: Sequence[Spec]  # what config.cfg may speak of
    served: Sequence[Spec]
    environ: Mapping[str, str]
    settings: Settings
    house: stores.House
    factories: dict[str, Mapping[str, LiveFactory]]
    systemd: Systemd
    gate: Gate = field(init=False)
    listeners: MultiService = field(factory=MultiService)
    chosen: Chosen | None = None
    _loader: int = field(factory=os.getpid)
    _terminal: int | None = field(factory=lambda: _terminal())
    _watch: LoopingCall | None = None
    _seen: tuple[object, object] = (None, None)  # config.cfg as it was read, and at the last look
    _stopping: bool = False

    def __attrs_post_init__(self) -> None:
        MultiService.__init__(self)
        self.gate = Gate(self.reactor)

    @classmethod
    def assemble(
        cls,
        home: Path,
        reactor: Any,
        catalogue: Sequence[Spec],
        environ: Mapping[str, str],
        only: Sequence[str] = (),
    ) -> Roundhouse:
        """Read the settings, look at the disk, claim the ports.

        Raises ConfigError, Unusable or PortsTaken; nothing is held then.
        """
        now = settings.read(settings.locate(home, environ), home, catalogue, environ)
        served = [
            spec
            for spec in catalogue
            if (spec.name in only or not only) and now.services[spec.name].enabled
        ]
        if not served:
            raise ConfigError([f"{now.path or 'config.cfg'}: nothing to serve: all are disabled"])
        needed = frozenset[str]().union(*(spec.stores for spec in served))
        house = stores.build(needed, now.data_dir, reactor)
        house.check()
        factories = {spec.name: _build(spec, now, reactor, house) for spec in served}
        systemd = Systemd.of(environ, reactor)
        daemon = cls(home, reactor, catalogue, served, environ, now, house, factories, systemd)
        daemon._limit()
        for service in house.services:
            daemon.addService(service)
        daemon._listen()
        daemon.addService(daemon.listeners)
        daemon.addService(systemd)
        daemon._seen = (daemon._look(), daemon._look())
        return daemon

    def _listen(self) -> None:
        listens = [one for spec in self.served for one in self.settings.services[spec.name].listens]
        factories = [self.factories[listen.service][listen.port.key] for listen in listens]
        claims = binding.claim(list(zip(listens, factories, strict=True)), self.settings.home)
        greeters = []
        for listen, factory, claimed in zip(listens, factories, claims, strict=True):
            grace = self.settings.grace * DRAIN_SHARE
            listener = Listener(listen.service, claimed, factory, self.reactor, grace)
            listener.setServiceParent(self.listeners)
            factory.busy, factory.live.gate = listen.port.busy, self.gate
            if listen.port.broadcasts:
                greeters.append(listener.accept_waiting)

        def accept() -> None:
            for greet in greeters:
                greet()

        self.house.ring.accept = accept

    def _limit(self) -> None:
        """Let the gate do as the settings say."""
        self.gate.most = places(self.settings.connections)
        self.gate.per_address = self.settings.per_address
        self.gate.loopback = self.settings.limit_loopback

    def startService(self) -> None:
        os.umask(UMASK)
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            super().startService()
        except Unusable as error:  # found only by opening it, after `twistd -y` forked
            log.critical("{error}", error=str(error))
            raise SystemExit(EX_CANTCREAT) from None
        if self.chosen is not None:
            log.info("reactor: {name} ({why})", name=self.chosen.name, why=self.chosen.why)
        self._watch = LoopingCall(self._follow_file)
        self._watch.clock = self.reactor
        self._watch.start(WATCH, now=False)
        self.reactor.callWhenRunning(self._take_signals)
        self._say_ready()

    def stopService(self) -> Any:
        if self._watch is not None and self._watch.running:
            self._watch.stop()
        return super().stopService()

    def reload(self) -> bool:
        """Read config.cfg again. All of it is accepted or none of it is."""
        self.systemd.reloading()
        try:
            return self._reload()
        finally:
            self._say_ready()

    def _say_ready(self) -> None:
        self.systemd.ready(f"serving {', '.join(spec.name for spec in self.served)}")

    def _reload(self) -> bool:
        path = self.settings.path
        if path is not None and not path.exists():
            log.warn("{path} is gone; the settings stay as they are", path=str(path))
            return False
        try:
            if path is None:
                path = settings.locate(self.home, self.environ)
            now = settings.read(path, self.home, self.catalogue, self.environ)
        except ConfigError as error:
            for problem in error.problems:
                log.error("{problem}", problem=problem)
            log.error("nothing changed: the settings in force stay")
            return False
        was, self.settings = self.settings, now
        for spec in self.served:
            for key, fresh in _build(spec, now, self.reactor, self.house).items():
                self.factories[spec.name][key].adopt(fresh)
        for listener in self.listeners:
            listener.grace = now.grace * DRAIN_SHARE
        self._limit()
        log.info(
            "{path} read again: {changes}",
            path=str(path),
            changes=", ".join(was.changes(now)) or "nothing to change in the running daemon",
        )
        if waiting := was.needing_restart(now):
            log.warn("only a restart can change: {keys}", keys=", ".join(waiting))
        return True

    def _follow_file(self) -> None:
        """Reload once the file changed and then stood still for a moment."""
        read, before = self._seen
        now = self._look()
        self._seen = (read, now)
        if now != read and now == before:
            self._seen = (now, now)
            self.reload()

    def _look(self) -> object:
        path = self.settings.path or settings.locate(self.home, self.environ)
        try:
            found = os.stat(path) if path else None
        except OSError:
            return None
        return found and (found.st_mtime_ns, found.st_size, found.st_ino)

    def _take_signals(self) -> None:
        """Ours in place of Twisted's: a polite stop ends with status 0, SIGHUP reloads."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._stop)
            signal.signal(signal.SIGINT, self._stop)
            signal.signal(signal.SIGHUP, lambda *_: self.reactor.callFromThread(self._hang_up))
        if os.getpid() == self._loader:  # not daemonised
            log.info("Press Ctrl+C to stop.")

    def _stop(self, number: int, frame: object) -> None:
        if self._stopping:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stopping = True
        self.reactor.callFromThread(self._stop_politely, signal.Signals(number).name)

    def _stop_politely(self, name: str) -> None:
        log.info(
            "{name}: finishing what is in hand, {s:g} s at most; once more ends at once",
            name=name,
            s=self.settings.grace,
        )
        self.reactor.stop()

    def _hang_up(self) -> None:
        """SIGHUP: reload; but a foreground daemon whose terminal is gone stops."""
        if self._terminal is not None and os.getpid() == self._loader and _gone(self._terminal):
            self._stop(signal.SIGHUP, None)
        else:
            self.reload()


def _build(
    spec: Spec, now: Settings, reactor: Any, house: stores.House
) -> Mapping[str, LiveFactory]:
    options = now.services[spec.name].options
    return spec.build(Context(reactor, options, house.stores, Sockets()))


def _terminal() -> int | None:
    """The descriptor of the terminal this process was started from, if any."""
    return next((number for number in (0, 1, 2) if os.isatty(number)), None)


def _gone(terminal: int) -> bool:
    try:
        os.tcgetpgrp(terminal)
    except OSError:
        return True
    return False
