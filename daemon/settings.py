"""config.cfg to frozen values; every error names its file, line and key, and what would be right.

The file is INI. [DEFAULT] may hold SERVER_IP, DATA_DIR and ingest's keys, as the seed wrote them;
nothing in it is inherited by other sections. Each protocol has a section with its own options
(protocols/options.py), its ports, `ENABLED = no`, and in place of a port `LISTEN` with Twisted
endpoint strings, one a line. Without a file the defaults hold.

The environment wins: ROUNDHOUSE_CONFIG names another file, ROUNDHOUSE_SERVER_IP and
ROUNDHOUSE_DATA_DIR replace those keys. Relative paths are relative to the folder of the
configuration file, never to the working directory.
"""

from __future__ import annotations

import configparser
import grp
import os
import pwd
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import attrs
from attrs import define, field, frozen
from twisted.internet.endpoints import quoteStringArgument

from daemon import admin
from daemon.logs import LEVELS, Wanted, escape
from protocols.options import (
    EACH,
    KIND,
    MEANS,
    Unspoken,
    choice,
    command,
    count,
    duration,
    flag,
    size,
)
from protocols.spec import Port, Spec

_T = TypeVar("_T")

PER_ADDRESS = 1000  # connections: fifty clients share a NAT, a load test has one address
ENDPOINTS = ("tcp", "tcp6", "unix", "systemd", "ssl", "tls")  # haproxy: goes before any of them
_SECTION = re.compile(r"\[(.+)\]")
_KEY = re.compile(r"([^\s#;=:\[][^=:]*?)\s*[=:]")


class ConfigError(Exception):
    """config.cfg cannot be used. problems: one line each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(escape, problems))
        super().__init__("\n".join(self.problems))


@frozen
class Key:
    """One key that config.cfg may have; TOKEN_<name> stands for one of each name.

    kind: from text to value; its docstring and limits are what the reference says of values.
    also_default: [DEFAULT] may hold it, too.
    """

    section: str
    name: str
    kind: Callable[[str], Any]
    default: Any
    means: str
    also_default: bool = False


@frozen
class Listen:
    """One port of one protocol: where it listens, and the keys that say so.

    endpoints: Twisted endpoint strings. where: file:line of the key, or just the file.
    named: config.cfg puts it elsewhere than it is by default.
    """

    service: str
    port: Port
    endpoints: tuple[str, ...]
    key: str
    where: str
    named: bool = True


@frozen
class Service:
    """One section, read."""

    enabled: bool
    listens: tuple[Listen, ...]
    options: Any


@frozen
class Settings:
    """One reading of everything that can be set.

    grace: seconds a drain may take. connections, per_address: how many may be open, in all and
    from one address, 0: as many as descriptors allow, or as come; limit_loopback: also from here.
    user: uid and gid that a daemon of root goes on with, once its ports are open.
    """

    path: Path | None  # None: there is no file
    home: Path  # relative paths are relative to it
    server_ip: str
    data_dir: Path
    grace: float
    connections: int
    per_address: int
    limit_loopback: bool
    user: tuple[int, int] | None
    log: Wanted
    services: Mapping[str, Service]

    def needing_restart(self, new: Settings) -> list[str]:
        """The keys in which `new` differs that a running daemon cannot follow."""
        keys = []
        if new.data_dir != self.data_dir:
            keys.append("DATA_DIR")
        if new.server_ip != self.server_ip:
            keys.append("SERVER_IP")
        if new.user != self.user:
            keys.append("[daemon] USER")
        for name, old in self.services.items():
            fresh = new.services[name]
            if old.enabled != fresh.enabled:
                keys.append(f"[{name}] ENABLED")
            for before, after in zip(old.listens, fresh.listens, strict=True):
                if before.endpoints != after.endpoints and new.server_ip == self.server_ip:
                    keys.append(f"[{name}] {after.key}")
        return keys

    def changes(self, new: Settings) -> list[str]:
        """What `new` changes at once, in words: `[ingest] MAX_FILE_SIZE = 15`."""
        changed = [
            f"[daemon] {key.upper()} = {getattr(new, key):.16g}"
            for key in ("grace", "connections", "per_address", "limit_loopback")
            if getattr(new, key) != getattr(self, key)
        ]
        changed += [
            f"[daemon] LOG_{key.upper()} = {getattr(new.log, key) or ''}"
            for key in (a.name for a in attrs.fields(Wanted))
            if getattr(new.log, key) != getattr(self.log, key)
        ]
        for name, old in self.services.items():
            fresh = new.services[name].options
            for option in attrs.fields(type(fresh)):
                key = option.name
                value = getattr(fresh, key)
                before = getattr(old.options, key)
                if isinstance(value, Mapping):
                    for one in sorted(value.keys() | before.keys()):
                        if value.get(one) != before.get(one):
                            said = value.get(one, "(none)")
                            changed.append(f"[{name}] {key.upper()}_{one} = {said}")
                elif value != before:
                    if isinstance(value, tuple):
                        runs = option.metadata[KIND] is command
                        value = shlex.join(value) if runs else ", ".join(value)
                    changed.append(f"[{name}] {key.upper()} = {value}")
        return changed


def locate(home: Path, environ: Mapping[str, str]) -> Path | None:
    """The file in force: ROUNDHOUSE_CONFIG, else config.cfg in `home` if it is there."""
    if named := environ.get("ROUNDHOUSE_CONFIG"):
        return Path(named).absolute()
    path = home / "config.cfg"
    return path if os.path.exists(path) else None


def read(
    path: Path | None, home: Path, specs: Sequence[Spec], environ: Mapping[str, str]
) -> Settings:
    """Read `path` for `specs`. Raises ConfigError with all that is wrong with it."""
    reader = _Reader(_File.load(path), home if path is None else path.parent, environ)
    settings = reader.settings(path, specs)
    reader.refuse_the_unknown(specs)
    if reader.problems:
        raise ConfigError([problem for _, problem in sorted(reader.problems)])
    return settings


def keys(specs: Sequence[Spec]) -> Sequence[Key]:
    """Every key there is, in the order of the sections."""
    reader = _Reader(_File("config.cfg"), Path(), {})
    reader.settings(None, specs)
    return reader.keys


@define
class _File:
    """The text of config.cfg, section by section, and the line each key stands on."""

    name: str
    sections: Mapping[str, Mapping[str, str]] = field(factory=dict)
    lines: Mapping[tuple[str, str], int] = field(factory=dict)

    @classmethod
    def load(cls, path: Path | None) -> _File:
        if path is None:
            return cls("config.cfg")
        parser = configparser.ConfigParser(
            default_section="", inline_comment_prefixes=("#",), interpolation=None
        )
        try:
            text = path.read_text(encoding="utf-8-sig")
            parser.read_string(text, str(path))
        except OSError as error:
            raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
        except UnicodeDecodeError as error:
            at = error.object[: error.start].count(b"\n") + 1
            raise ConfigError([f"{path}:{at}: not UTF-8; save the file as UTF-8"]) from None
        except configparser.Error as error:
            raise ConfigError(list(_complaints(path, error))) from None
        lines: dict[tuple[str, str], int] = {}
        section = ""
        for number, written in enumerate(text.splitlines(), 1):
            if found := _SECTION.match(written):
                section = found[1]
                lines.setdefault((section, ""), number)
            elif found := _KEY.match(written):
                lines.setdefault((section, found[1].lower()), number)
        return cls(str(path), {name: parser[name] for name in parser.sections()}, lines)

    def where(self, section: str, key: str = "") -> str:
        line = self.lines.get((section, key.lower()))
        return self.name if line is None else f"{self.name}:{line}"


def _complaints(path: Path, error: configparser.Error) -> Iterator[str]:
    match error:
        case configparser.DuplicateOptionError():
            yield f"{path}:{error.lineno}: [{error.section}] {error.option.upper()} stands twice"
        case configparser.DuplicateSectionError():
            yield f"{path}:{error.lineno}: section [{error.section}] stands twice"
        case configparser.MissingSectionHeaderError():
            yield f"{path}:{error.lineno}: a key before the first section; begin with [DEFAULT]"
        case configparser.ParsingError():
            for number, _ in error.errors:
                yield f"{path}:{number}: not `KEY = value`, a [section] or a # comment"
        case _:
            yield f"{path}: {error.message}"


@define
class _Reader:
    """Reads values and remembers what is wrong, so that all of it can be said at once."""

    file: _File
    home: Path  # relative paths are relative to it
    environ: Mapping[str, str]
    problems: list[tuple[int, str]] = field(factory=list)  # line, text
    keys: list[Key] = field(factory=list)  # all that were asked for
    _known: dict[str, set[str]] = field(factory=lambda: {"DEFAULT": set(), "daemon": set()})

    def settings(self, path: Path | None, specs: Sequence[Spec]) -> Settings:
        server_ip = self.value(
            "DEFAULT",
            "SERVER_IP",
            _address,
            "127.0.0.1",
            "where all services listen; 0.0.0.0 or :: opens them to the network",
        )
        data_dir = self.value(
            "DEFAULT", "DATA_DIR", _path, Path("data"), "the folder of all that is kept"
        )
        return Settings(
            path=path,
            home=self.home,
            server_ip=server_ip,
            data_dir=self.home / data_dir,
            grace=self.value(
                "daemon",
                "GRACE",
                partial(duration, most=3600.0),
                10.0,
                "seconds a stop may take to finish what is in hand",
            ),
            connections=self.value(
                "daemon",
                "CONNECTIONS",
                count,
                0,
                "most connections at once; 0: three quarters of the descriptors there may be",
            ),
            per_address=self.value(
                "daemon", "PER_ADDRESS", count, PER_ADDRESS, "most from one address; 0: no limit"
            ),
            limit_loopback=self.value(
                "daemon", "LIMIT_LOOPBACK", flag, False, "PER_ADDRESS holds for this machine, too"
            ),
            user=self.user(),
            log=self.log(),
            services={
                **{spec.name: self.service(spec, server_ip) for spec in specs},
                admin.NAME: self.service(admin.SPEC, admin.HOST),
            },
        )

    def value(
        self,
        section: str,
        key: str,
        kind: Callable[[str], _T],
        default: _T,
        means: str,
        *,
        also_default: bool = False,
    ) -> _T:
        """The value of a key: from the environment, its section, [DEFAULT] if that may hold it."""
        self.keys.append(Key(section, key, kind, default, means, also_default))
        self._known.setdefault(section, set()).add(key.lower())
        sections = [section]
        if also_default:
            self._known["DEFAULT"].add(key.lower())
            sections.append("DEFAULT")
        variable = f"ROUNDHOUSE_{key}"
        if section == "DEFAULT" and (text := self.environ.get(variable)):
            return self._read(kind, text, default, 0, variable, f"${variable}")
        for place in sections:
            held = self.file.sections.get(place, {}).get(key.lower())
            if held is not None:
                line = self.file.lines.get((place, key.lower()), 0)
                where = f"{self.file.where(place, key)}: [{place}] {key}"
                return self._read(kind, held, default, line, key, where)
        return default

    def user(self) -> tuple[int, int] | None:
        """uid and gid; the group is the user's own if none is named."""
        found = self.value(
            "daemon", "USER", _user, None, "who a daemon of root becomes; owns what is in DATA_DIR"
        )
        group = self.value("daemon", "GROUP", _group, None, "its group; empty: the group of USER")
        if found is None:
            if group is not None:
                line = self.file.lines.get(("daemon", "group"), 0)
                where = self.file.where("daemon", "GROUP")
                self.problems.append((line, f"{where}: [daemon] GROUP is set, but no USER is"))
            return None
        return found.pw_uid, found.pw_gid if group is None else group

    def log(self) -> Wanted:
        usual = Wanted()
        file = self.value(
            "daemon", "LOG_FILE", _file, None, "where the log goes; empty: where twistd logs"
        )
        return Wanted(
            format=self.value(
                "daemon",
                "LOG_FORMAT",
                choice("text", "json"),
                usual.format,
                "a sentence a line, or an object a line",
            ),
            level=self.value(
                "daemon", "LOG_LEVEL", choice(*LEVELS), usual.level, "what is less is not written"
            ),
            file=None if file is None else self.home / file,
            size=self.value(
                "daemon",
                "LOG_SIZE",
                size,
                usual.size,
                "bytes beyond which LOG_FILE begins anew, the old one kept as .1; 0: never",
            ),
            keep=self.value(
                "daemon", "LOG_KEEP", partial(count, most=1000), usual.keep, "old ones that stay"
            ),
        )

    def service(self, spec: Spec, server_ip: str) -> Service:
        also = spec.also_default
        enabled = self.value(spec.name, "ENABLED", flag, True, "whether there is this service")
        listens = tuple(self._listen(spec, port, server_ip) for port in spec.ports)
        options = {
            a.name: self._each(spec.name, a)
            if EACH in a.metadata
            else self.value(
                spec.name,
                a.name.upper(),
                self._kind(a),
                a.default,
                a.metadata[MEANS],
                also_default=also,
            )
            for a in attrs.fields(spec.options)
        }
        return Service(enabled, listens, spec.options(**options))

    def _each(self, section: str, option: Any) -> dict[str, Any]:
        """TOKEN_<name> for whatever names the section has."""
        prefix = f"{option.name}_"
        known = self._known.setdefault(section, set())
        means = option.metadata[MEANS]
        self.keys.append(Key(section, f"{prefix.upper()}<name>", option.metadata[KIND], "", means))
        values = {}
        for key, text in self.file.sections.get(section, {}).items():
            if key.startswith(prefix) and (name := key.removeprefix(prefix)):
                known.add(key)
                line = self.file.lines.get((section, key), 0)
                where = f"{self.file.where(section, key)}: [{section}] {prefix.upper()}{name}"
                try:
                    option.metadata[EACH](name)
                    values[name] = option.metadata[KIND](text)
                except ValueError as why:  # the text may be a secret
                    self.problems.append((line, f"{where}: {why}"))
        return values

    def _kind(self, option: Any) -> Callable[[str], Any]:
        kind: Callable[[str], Any] = option.metadata[KIND]
        return partial(_runnable, self.home) if kind is command else kind

    def refuse_the_unknown(self, specs: Sequence[Spec]) -> None:
        """A misspelt section or key is an error, with the nearest right name."""
        for section, keys in self.file.sections.items():
            line = self.file.lines.get((section, ""), 0)
            if section not in self._known:
                near = _nearest(section, self._known)
                right = f"did you mean [{near}]?" if near else f"there are {_names(self._known)}"
                self.problems.append(
                    (line, f"{self.file.where(section)}: no section [{section}]; {right}")
                )
                continue
            known = [key.upper() for key in sorted(self._known[section])]
            for key in keys:
                if key.upper() in known:
                    continue
                near = _nearest(key.upper(), known)
                right = f"did you mean {near}?" if near else f"there are {', '.join(known)}"
                line = self.file.lines.get((section, key), 0)
                place = self.file.where(section, key)
                self.problems.append((line, f"{place}: [{section}] has no {key.upper()}; {right}"))

    def _listen(self, spec: Spec, port: Port, server_ip: str) -> Listen:
        also = spec.also_default
        number = self.value(
            spec.name,
            port.key,
            partial(count, most=65535),
            port.number,
            port.means,
            also_default=also,
        )
        none: tuple[str, ...] = ()
        instead = f"Twisted endpoints in place of {port.key}"
        endpoints = self.value(spec.name, port.listen_key, _endpoints, none, instead)
        if endpoints:
            key, section, named = port.listen_key, spec.name, True
        else:
            key = port.key
            held = key.lower() in self.file.sections.get(spec.name, {})
            section = "DEFAULT" if also and not held else spec.name
            named = number != port.number
            family = "tcp6" if ":" in server_ip else "tcp"
            endpoints = (f"{family}:{number}:interface={quoteStringArgument(server_ip)}",)
        return Listen(spec.name, port, endpoints, key, self.file.where(section, key), named)

    def _read(
        self, kind: Callable[[str], _T], text: str, default: _T, line: int, key: str, where: str
    ) -> _T:
        try:
            return kind(text)
        except Unspoken as why:
            self.problems.append((line, f"{where}: {why}"))
        except ValueError as why:
            self.problems.append((line, f"{where} = {' '.join(text.split())}: {why}"))
        return default


def _address(text: str) -> str:
    """An address of this machine to listen on."""
    if text.strip().lower() == "localhost":
        return "127.0.0.1"
    try:
        return str(ip_address(text.strip()))
    except ValueError:
        raise ValueError(
            f"{text!r} is not an IP address such as 127.0.0.1, 0.0.0.0 (all) or ::1"
        ) from None


def _path(text: str) -> Path:
    """A path, relative to the folder of config.cfg; `~` is the home of who starts the daemon."""
    if not text.strip() or "\0" in text:
        raise ValueError("a folder is needed, such as data or /var/lib/roundhouse")
    return _expanded(text.strip())


def _expanded(text: str) -> Path:
    """A path; `~` is whose it says."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{text!r} begins with a home that is not known here; write the whole path"
        ) from None


def _file(text: str) -> Path | None:
    """A path, relative to the folder of config.cfg; or empty."""
    return _path(text) if text.strip() else None


def _user(text: str) -> pwd.struct_passwd | None:
    """A user of this machine; empty: whoever starts the daemon."""
    if not text.strip():
        return None
    try:
        return pwd.getpwnam(text.strip())
    except KeyError:
        raise ValueError(f"this machine has no user {text.strip()!r}") from None


def _group(text: str) -> int | None:
    """A group of this machine; or empty."""
    if not text.strip():
        return None
    try:
        return grp.getgrnam(text.strip()).gr_gid
    except KeyError:
        raise ValueError(f"this machine has no group {text.strip()!r}") from None


def _runnable(home: Path, text: str) -> tuple[str, ...]:
    """A program that is there, and its arguments, quoted as for a shell; none runs it. Or empty."""
    words = command(text)
    if not words:
        return ()
    name = words[0]
    found = shutil.which(home / _expanded(name) if "/" in name else name)
    if found is None:
        where = "there" if "/" in name else "on PATH"
        raise ValueError(f"{name} is no executable program {where}; give the path of one")
    return (os.path.abspath(found), *words[1:])


def _endpoints(text: str) -> tuple[str, ...]:
    """Endpoint strings, one a line: `tcp:8080:interface=10.0.0.1`, `unix:/run/chat.sock`."""
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise ValueError("an endpoint is needed, such as tcp:8080 or unix:/run/chat.sock")
    for line in lines:  # only their kind is judged here, the rest when they listen
        kind, colon, _ = line.removeprefix("haproxy:").partition(":")
        if kind not in ENDPOINTS or not colon:
            raise ValueError(
                f"{line!r} is not an endpoint of kind {', '.join(ENDPOINTS)}, or haproxy: and one"
                " of these, such as tcp:8080"
            )
    return lines


def _nearest(name: str, known: Any) -> str | None:
    by_folded = {one.casefold(): one for one in known}
    near = get_close_matches(name.casefold(), by_folded, 1)
    return by_folded[near[0]] if near else None


def _names(sections: Any) -> str:
    return ", ".join(f"[{name}]" for name in sections)
