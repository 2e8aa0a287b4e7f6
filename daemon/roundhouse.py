"""The whole daemon: settings read, ports claimed, stores below, listeners on top; and reload.

While the tac loads, everything that may be wrong is found: settings (exit status 78), ports (69),
what is on disk (73). What starts threads or opens files waits for startService, for `twistd -y`
forks in between.
"""

from __future__ import annotations

import atexit
import gc
import os
import pwd
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from attrs import define, evolve, field, frozen
from twisted.application.service import Application, MultiService
from twisted.internet.defer import Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized

from daemon import admin, binding, logs, settings, stores, succession
from daemon.admin import site
from daemon.admin.pulse import Pulse
from daemon.admin.readiness import SERVING, Readiness
from daemon.binding import PortsTaken
from daemon.catalogue import CATALOGUE
from daemon.gate import Gate, places
from daemon.kernel import Sockets
from daemon.logs import Log
from daemon.measures import Measured
from daemon.reactor import Chosen
from daemon.services import Listener, Stack
from daemon.settings import ConfigError, Settings
from daemon.stores import files
from daemon.stores.files import Unusable
from daemon.succession import Inheritance, Inherited
from daemon.systemd import Systemd
from daemon.traffic import Traffic
from protocols.connection import LiveFactory
from protocols.spec import Context, Spec

log = Logger()

EX_CONFIG = 78
EX_UNAVAILABLE = 69
EX_CANTCREAT = 73
WATCH = 0.25  # seconds between looks at config.cfg; it is read once it stood still for one
DRAIN_SHARE = 0.8  # of the grace; the rest is for the stores
RESTART_GRACE = 2.0  # seconds; or GRACE, if that is less
UMASK = 0o027
ADMIN_PLACES = 64  # connections to the admin port at once
ADMIN_GRACE = 1.0  # seconds for those who ask when all else has stopped
SWITCH_INTERVAL = 0.001  # seconds; the default of 5 ms lets a busy thread delay the reactor
GARBAGE = 10_000  # objects made and not freed between two looks for cycles: we make hardly any


def application(home: Path, reactor: Any, chosen: Chosen, *only: str) -> Componentized:
    """What a .tac file calls `application`: all protocols of the catalogue, or those in `only`.

    Bad settings, taken ports and an unusable DATA_DIR end the process here, with a line each.
    """
    try:
        left = Inheritance.take(os.environ)
        daemon = Roundhouse.assemble(home, reactor, CATALOGUE, os.environ, only, left)
        daemon.log = _begin_log(daemon.settings, reactor)
    except ConfigError as error:
        _leave(EX_CONFIG, error.problems)
    except PortsTaken as error:
        _leave(EX_UNAVAILABLE, error.problems)
    except Unusable as error:
        _leave(EX_CANTCREAT, [str(error)])
    daemon.chosen = chosen
    user = daemon.settings.user
    become = user if user and user[0] != os.geteuid() else ()  # a successor is that user already
    made: Componentized = Application("roundhouse", *become)
    if daemon.log is not None:
        made.setComponent(ILogObserver, daemon.log)
        reactor.addSystemEventTrigger("after", "shutdown", daemon.log.close)
    daemon.setServiceParent(made)
    gc.collect()
    gc.freeze()  # what was imported stays: a twelfth of each connection's cost was looking at it
    gc.set_threshold(GARBAGE, *gc.get_threshold()[1:])
    return made


def _begin_log(now: Settings, reactor: Any) -> Log | None:
    """Raises Unusable when its file cannot be written."""

    def later(seconds: float, call: Callable[[], object]) -> object:
        return reactor.callFromThread(reactor.callLater, seconds, call)

    try:
        return logs.begin(sys.argv, now.log, later, now.user)
    except OSError as error:
        file = now.log.file or "the log"
        raise Unusable(f"{file} cannot be written ({error.strerror}); set LOG_FILE") from None


def _leave(status: int, problems: Sequence[str]) -> NoReturn:
    for problem in problems:
        print(problem, file=sys.stderr)
    raise SystemExit(status)


@frozen
class Reload:
    """What came of reading config.cfg again. at: ISO 8601, UTC; restart: keys that wait for one.

    problems: why nothing changed.
    """

    at: str
    changed: Sequence[str] = ()
    restart: Sequence[str] = ()
    problems: Sequence[str] = ()


@define(eq=False, repr=False)
class Roundhouse(Stack):
    """One daemon: storage first, listeners last, one reactor.

    The admin port is below all of it: it is there while the rest starts, and while it stops.
    traffic: by service and key of a port. begun: the settings it started with.
    """

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
    traffic: dict[tuple[str, str], Traffic] = field(factory=dict)
    pulse: Pulse = field(init=False)
    readiness: Readiness = field(init=False)
    desk: LiveFactory = field(init=False)  # of the admin port
    front: MultiService = field(factory=MultiService)  # its listener
    begun: Settings = field(init=False)
    alone: bool = False  # some services of the file, not all
    state: str = "starting"  # then readiness.SERVING, then draining
    started: datetime | None = None
    last_reload: Reload | None = None
    _since: float = 0.0  # monotonic
    chosen: Chosen | None = None
    log: Log | None = None
    _loader: int = field(factory=os.getpid)
    _folder: str = field(factory=os.getcwd)  # twistd may go elsewhere
    _terminal: int | None = field(factory=lambda: _terminal())
    _watch: LoopingCall | None = None
    _seen: tuple[object, object] = (None, None)  # config.cfg as it was read, and at the last look
    _stopping: bool = False
    _rehearsing: bool = False

    def __attrs_post_init__(self) -> None:
        MultiService.__init__(self)
        self.gate = Gate(self.reactor)
        self.pulse = Pulse(self.reactor)
        self.readiness = Readiness(self, self.reactor, self._in_thread)
        self.begun = self.settings
        self.desk = self._build_desk()
        for service, factories in self.factories.items():
            for key, factory in factories.items():
                factory.live.tally = self.traffic[service, key] = Traffic()

    @classmethod
    def assemble(
        cls,
        home: Path,
        reactor: Any,
        catalogue: Sequence[Spec],
        environ: Mapping[str, str],
        only: Sequence[str] = (),
        left: Inheritance | None = None,
    ) -> Roundhouse:
        """Read the settings, look at the disk, claim the ports, those that were left to us first.

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
        _hand_over(now)
        needed = frozenset[str]().union(*(spec.stores for spec in served))
        house = stores.build(needed, now.data_dir, reactor)
        house.check()
        _hand_over(now)
        factories = {spec.name: _build(spec, now, reactor, house) for spec in served}
        systemd = Systemd.of(environ, reactor)
        daemon = cls(home, reactor, catalogue, served, environ, now, house, factories, systemd)
        daemon.alone = bool(only)
        daemon._limit()
        for service in (daemon.pulse, daemon.front, *house.services):
            daemon.addService(service)
        daemon._listen(left)
        daemon.addService(daemon.listeners)
        daemon.addService(systemd)
        daemon._seen = (daemon._look(), daemon._look())
        return daemon

    def _listen(self, left: Inheritance | None) -> None:
        asked = [
            (listen, self.factories[spec.name][listen.port.key])
            for spec in self.served
            for listen in self.settings.services[spec.name].listens
        ]
        shown = self.settings.services[admin.NAME]
        for listen in shown.listens if shown.enabled else ():
            # another service on the same file may have it already, in a process of its own
            named = listen.named and not self.alone
            asked.append((evolve(listen, named=named), self.desk))
        claims = binding.claim(asked, self.settings.home, left)
        if self.settings.user is not None and self.settings.user[0] != os.geteuid():
            for one in chain.from_iterable(claims):
                one.give(self.settings.user)
        greeters = []
        for (listen, factory), claimed in zip(asked, claims, strict=True):
            if factory is self.desk:
                factory.live.gate = Gate(self.reactor, ADMIN_PLACES)
                listener = Listener(listen.service, claimed, factory, self.reactor, ADMIN_GRACE)
                listener.setServiceParent(self.front)
                continue
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

    def _build_desk(self) -> LiveFactory:
        options = self.settings.services[admin.NAME].options
        return site.build(self, options, Sockets().names(), self.readiness)

    def _in_thread(self, task: Callable[..., Any], *args: Any) -> Deferred[Any]:
        return deferToThreadPool(self.reactor, self.reactor.getThreadPool(), task, *args)

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._since if self.started else 0.0

    @property
    def measured(self) -> list[Measured]:
        """Whatever has numbers to show, besides the services themselves."""
        sources = (self.pulse, *self.house.services, self.house.ring)
        return [source for source in sources if isinstance(source, Measured)]

    def _limit(self) -> None:
        """Let the gate do as the settings say."""
        self.gate.most = places(self.settings.connections)
        self.gate.per_address = self.settings.per_address
        self.gate.loopback = self.settings.limit_loopback

    def startService(self) -> None:
        self.started, self._since = datetime.now(UTC), time.monotonic()
        os.umask(UMASK)
        sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            super().startService()
        except Unusable as error:  # found only by opening it, after `twistd -y` forked
            log.critical("{error}", event="daemon.unusable", error=str(error))
            raise SystemExit(EX_CANTCREAT) from None
        if self.chosen is not None:
            log.info(
                "reactor: {name} ({why})",
                event="daemon.reactor",
                name=self.chosen.name,
                why=self.chosen.why,
            )
        self._watch = LoopingCall(self._follow_file)
        self._watch.clock = self.reactor
        self._watch.start(WATCH, now=False)
        self.reactor.callWhenRunning(self._take_signals)
        self.state = SERVING
        self._say_ready()

    def stopService(self) -> Any:
        self.state = "draining"
        if self._watch is not None and self._watch.running:
            self._watch.stop()
        return super().stopService()

    def reload(self) -> bool:
        """Read config.cfg again. All of it is accepted or none of it is."""
        seen = self._look()
        self._seen = (seen, seen)
        self.systemd.reloading()
        try:
            return self._reload()
        finally:
            self._say_ready()

    def _say_ready(self) -> None:
        self.systemd.ready(f"serving {', '.join(spec.name for spec in self.served)}")

    def _reload(self) -> bool:
        path = self.settings.path
        if path is not None and _is_gone(path):
            log.warn(
                "{path} is gone; the settings stay as they are", event="config.gone", path=str(path)
            )
            return False
        try:
            if path is None:
                path = settings.locate(self.home, self.environ)
            now = settings.read(path, self.home, self.catalogue, self.environ)
        except ConfigError as error:
            for problem in error.problems:
                log.error("{problem}", event="config.bad", problem=problem)
            log.error("nothing changed: the settings in force stay", event="config.kept")
            self.last_reload = Reload(_now(), problems=error.problems)
            return False
        was, self.settings = self.settings, now
        if self.log is not None:
            self.log.follow(now.log)
        for spec in self.served:
            for key, fresh in _build(spec, now, self.reactor, self.house).items():
                self.factories[spec.name][key].adopt(fresh)
        self.desk.adopt(self._build_desk())
        for listener in self.listeners:
            listener.grace = now.grace * DRAIN_SHARE
        self._limit()
        changes, waiting = was.changes(now), self.begun.needing_restart(now)
        self.last_reload = Reload(_now(), changes, waiting)
        log.info(
            "{path} read again: {changes}",
            event="config.read",
            path=str(path),
            changes=", ".join(changes) or "nothing to change in the running daemon",
        )
        if waiting:
            log.warn(
                "only a restart can change: {keys}", event="config.restart", keys=", ".join(waiting)
            )
        return True

    def _follow_file(self) -> None:
        """Reload once the file changed and then stood still for a moment."""
        read, before = self._seen
        now = self._look()
        self._seen = (read, now)
        if now != read and now == before:
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
            signal.signal(signal.SIGUSR2, lambda *_: self.reactor.callFromThread(self._replace))
            if self.log is not None:
                roll = self.log.roll
                signal.signal(signal.SIGUSR1, lambda *_: self.reactor.callFromThread(roll))
        if os.getpid() == self._loader:  # not daemonised
            log.info("Press Ctrl+C to stop.", event="daemon.started")

    def _stop(self, number: int, frame: object) -> None:
        if self._stopping:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._stopping = True
        self.reactor.callFromThread(self._stop_politely, signal.Signals(number).name)

    def _stop_politely(self, name: str) -> None:
        self.state = "draining"
        log.info(
            "{name}: finishing what is in hand, {s:g} s at most; once more ends at once",
            event="daemon.stopping",
            name=name,
            s=self.settings.grace,
        )
        with suppress(ReactorNotRunning):  # a restart was on its way
            self.reactor.stop()

    def _replace(self) -> None:
        """SIGUSR2: restart."""
        Deferred.fromCoroutine(self.restart()).addErrback(
            lambda failure: log.failure("not restarted", failure, event="restart.failed")
        )

    async def restart(self) -> None:
        """Become the program that is on disk now, on the sockets of this one; or say why not."""
        if self._stopping or self._rehearsing:
            return
        self._rehearsing = True
        try:
            problem = await self._in_thread(succession.rehearse, self.home, self.settings.path)
        finally:
            self._rehearsing = False
        if problem:
            log.error("not restarted: {problem}", event="restart.refused", problem=problem)
        elif not self._stopping:
            self._hand_on()

    def _hand_on(self) -> None:
        grace = min(RESTART_GRACE, self.settings.grace)
        log.info(
            "restart: finishing what is in hand, {s:g} s at most", event="restart.begun", s=grace
        )
        self.systemd.staying = True
        self.systemd.reloading()
        listeners = [*self.front, *self.listeners]
        for listener in listeners:
            listener.grace = min(listener.grace, grace * DRAIN_SHARE)
        left = [one for listener in listeners for one in listener.bequeath()]
        atexit.register(self._become, left)  # twistd has tidied up by then
        self.reactor.stop()

    def _become(self, left: Sequence[Inherited]) -> None:
        if not self._stopping:  # by a signal that came since
            succession.become(left, self._folder)

    def _hang_up(self) -> None:
        """SIGHUP: reload; but a foreground daemon whose terminal is gone stops."""
        if self._terminal is not None and os.getpid() == self._loader and _gone(self._terminal):
            self._stop(signal.SIGHUP, None)
        else:
            self.reload()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _build(
    spec: Spec, now: Settings, reactor: Any, house: stores.House
) -> Mapping[str, LiveFactory]:
    options = now.services[spec.name].options
    return spec.build(Context(reactor, options, house.stores, Sockets()))


def _hand_over(now: Settings) -> None:
    """Let DATA_DIR belong to USER. Raises ConfigError, or Unusable where it is another's."""
    if now.user is None or now.user[0] == os.geteuid():
        return
    name = pwd.getpwuid(now.user[0]).pw_name
    if os.geteuid():
        raise ConfigError([f"{now.path}: [daemon] USER = {name}: only root may become {name}"])
    folder = now.data_dir
    if not folder.exists():
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            files.make_folder(folder)
            for each in missing:  # nobody else may go through what is above it, either
                os.chown(each, *now.user)
        except OSError as error:
            raise Unusable(f"{folder} cannot be made: {error.strerror}; set DATA_DIR") from None
    owner = folder.stat().st_uid
    if owner != now.user[0]:
        raise Unusable(
            f"{folder} belongs to uid {owner}, and USER is {name}; chown -R {name} {folder}"
        )
    for lock in folder.glob(".*.lock"):  # all that is made before privileges are dropped
        os.chown(lock, *now.user, follow_symlinks=False)


def _is_gone(path: Path) -> bool:
    """Whether there is no such file; one that cannot be reached may be there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _terminal() -> int | None:
    """The descriptor of the terminal that this process would miss, if any."""
    return next((number for number in (0, 1, 2) if not _gone(number)), None)


def _gone(terminal: int) -> bool:
    try:
        os.tcgetpgrp(terminal)
    except OSError:
        return True
    return False
