"""config.cfg: the defaults, the seed's own file, and every way of getting it wrong."""

from __future__ import annotations

import grp
import pwd
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from daemon import admin, settings
from daemon.catalogue import CATALOGUE
from daemon.logs import Wanted
from daemon.settings import ConfigError, Settings
from protocols.options import EACH, choice, command, count, duration, names, option, size
from protocols.spec import Port, Spec

HOME = Path(__file__).resolve().parents[1]


@frozen
class Landing:
    max_file_size: int = option(64 << 20, partial(size, least=1), "size of a part")
    file_prefix: str = option("data", str, "beginning of the names")


@frozen
class Talking:
    idle_timeout: float = option(0.0, duration, "silence")
    mode: str = option("calm", choice("calm", "loud"), "how")
    most: int = option(5, partial(count, least=1), "how many")
    run: tuple[str, ...] = option((), command, "what then")
    hosts: tuple[str, ...] = option((), names, "who asks")


INGEST = Spec("ingest", (Port("PORT", 8080),), lambda _: {}, Landing, also_default=True)
TALK = Spec("talk", (Port("PORT", 1), Port("CODE_PORT", 2)), lambda _: {}, Talking)


class SettingsCase(SynchronousTestCase):
    def setUp(self) -> None:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.home = Path(folder.name)
        self.config = self.home / "config.cfg"

    def read(self, text: str | bytes | None = None, **environ: str) -> Settings:
        if text is not None:
            self.config.write_bytes(text.encode() if isinstance(text, str) else text)
        path = settings.locate(self.home, environ)
        return settings.read(path, self.home, (INGEST, TALK), environ)

    def problems(self, text: str | bytes, **environ: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            self.read(text, **environ)
        return [line.replace(f"{self.home}/", "") for line in caught.value.problems]

    def endpoints(self, found: Settings, name: str) -> list[str]:
        return [e for listen in found.services[name].listens for e in listen.endpoints]


class ReadingTests(SettingsCase):
    def test_without_a_file_the_defaults_hold(self) -> None:
        found = self.read()
        assert (found.path, found.server_ip, found.grace) == (None, "127.0.0.1", 10.0)
        assert found.data_dir == self.home / "data"
        assert found.services["talk"].options == Talking()
        assert self.endpoints(found, "talk") == [
            "tcp:1:interface=127.0.0.1",
            "tcp:2:interface=127.0.0.1",
        ]

    def test_the_seeds_own_file_works_unchanged(self) -> None:
        found = self.read(
            "[DEFAULT]\nSERVER_IP = localhost\nPORT = 9999\nMAX_FILE_SIZE = 15  # bytes\n"
            "FILE_PREFIX = prefixo\n"
        )
        assert found.services["ingest"].options == Landing(15, "prefixo")
        assert self.endpoints(found, "ingest") == ["tcp:9999:interface=127.0.0.1"]
        assert self.endpoints(found, "talk")[0] == "tcp:1:interface=127.0.0.1"

    def test_a_section_of_its_own_wins_over_default(self) -> None:
        found = self.read("[DEFAULT]\nMAX_FILE_SIZE = 1\nPORT = 7\n[ingest]\nMAX_FILE_SIZE = 2k\n")
        assert found.services["ingest"].options == Landing(2048)
        (listen,) = found.services["ingest"].listens
        assert listen.where == f"{self.config}:3"

    def test_a_port_is_named_once_the_file_speaks_of_it(self) -> None:
        found = self.read("[DEFAULT]\nPORT = 7\n[talk]\nCODE_LISTEN = tcp:5\n")
        named = [one.named for name in ("ingest", "talk") for one in found.services[name].listens]
        assert named == [True, False, True]

    def test_units_comments_case_and_a_byte_order_mark_are_understood(self) -> None:
        found = self.read(
            "\ufeff[ingest]\nmax_file_size: 1.5 KiB # small\n[daemon]\nGrace=2 min\n"
            "[talk]\nIDLE_TIMEOUT = 7d\nMODE = LOUD\n"
        )
        assert found.services["ingest"].options == Landing(1536)
        assert found.grace == 120
        assert found.services["talk"].options == Talking(7 * 86400.0, "loud")

    def test_listen_takes_the_place_of_a_port_and_may_name_several_endpoints(self) -> None:
        found = self.read("[talk]\nCODE_LISTEN =\n  tcp:5:interface=10.0.0.1\n  unix:run/x # us\n")
        assert self.endpoints(found, "talk") == [
            "tcp:1:interface=127.0.0.1",
            "tcp:5:interface=10.0.0.1",
            "unix:run/x",
        ]
        assert found.services["talk"].listens[1].key == "CODE_LISTEN"

    def test_an_ipv6_address_is_listened_on_as_one(self) -> None:
        found = self.read("[DEFAULT]\nSERVER_IP = ::1\n")
        assert self.endpoints(found, "ingest") == [r"tcp6:8080:interface=\:\:1"]

    def test_a_service_can_be_disabled(self) -> None:
        assert not self.read("[talk]\nENABLED = no\n").services["talk"].enabled

    def test_the_environment_names_the_file_and_wins_over_it(self) -> None:
        other = self.home / "etc" / "other.cfg"
        other.parent.mkdir()
        other.write_text("[DEFAULT]\nSERVER_IP = 127.0.0.9\nDATA_DIR = here\n[daemon]\nGRACE = 3\n")
        found = self.read(ROUNDHOUSE_CONFIG=str(other))
        assert (found.server_ip, found.grace) == ("127.0.0.9", 3)
        assert found.data_dir == self.home / "etc" / "here"
        found = self.read(
            ROUNDHOUSE_CONFIG=str(other), ROUNDHOUSE_SERVER_IP="::", ROUNDHOUSE_DATA_DIR="/srv/x"
        )
        assert (found.server_ip, found.data_dir) == ("::", Path("/srv/x"))

    def test_what_a_reload_changes_and_what_it_cannot_is_told_apart(self) -> None:
        was = self.read("[ingest]\nMAX_FILE_SIZE = 1\n")
        now = self.read(
            "[DEFAULT]\nDATA_DIR = b\n[daemon]\nGRACE = 4\n[ingest]\nMAX_FILE_SIZE = 2\nPORT = 9\n"
            "[talk]\nENABLED = off\nCODE_LISTEN = tcp:3\n"
        )
        assert was.changes(now) == ["[daemon] GRACE = 4", "[ingest] MAX_FILE_SIZE = 2"]
        more = self.read("[daemon]\nCONNECTIONS = 1234567\nGRACE = 0.5\n")
        assert was.changes(more)[:2] == ["[daemon] GRACE = 0.5", "[daemon] CONNECTIONS = 1234567"]
        assert was.needing_restart(now) == [
            "DATA_DIR",
            "[ingest] PORT",
            "[talk] ENABLED",
            "[talk] CODE_LISTEN",
        ]
        elsewhere = self.read("[DEFAULT]\nSERVER_IP = ::1\n")
        assert was.needing_restart(elsewhere) == ["SERVER_IP"]


class BadConfigurationTests(SettingsCase):
    def test_a_bad_value_names_file_line_key_and_what_would_be_right(self) -> None:
        for text, wanted in {
            "[ingest]\nMAX_FILE_SIZE = 12 parsecs\n": (
                "config.cfg:2: [ingest] MAX_FILE_SIZE = 12 parsecs: '12 parsecs' is not a number of"
                " bytes such as 1024, 64 KiB or 1 GB"
            ),
            "[DEFAULT]\n\nMAX_FILE_SIZE = 0\n": (
                "config.cfg:3: [DEFAULT] MAX_FILE_SIZE = 0: 0 is too little: at least 1 bytes"
            ),
            "[talk]\nPORT = 70000\n": (
                "config.cfg:2: [talk] PORT = 70000: 70000 is too much: at most 65535"
            ),
            "[talk]\nPORT = http\n": (
                "config.cfg:2: [talk] PORT = http: 'http' is not a whole number"
            ),
            "[talk]\nMODE = wild\n": (
                "config.cfg:2: [talk] MODE = wild: 'wild' is not one of: calm, loud"
            ),
            "[talk]\nENABLED = maybe\n": (
                "config.cfg:2: [talk] ENABLED = maybe: 'maybe' is neither on nor off"
            ),
            "[talk]\nIDLE_TIMEOUT = soon\n": (
                "config.cfg:2: [talk] IDLE_TIMEOUT = soon: 'soon' is not seconds, or a time such as"
                " 250 ms, 10 min, 12h or 7d"
            ),
            "[daemon]\nGRACE = 2h\n": (
                "config.cfg:2: [daemon] GRACE = 2h: 7200 is too much: at most 3600 seconds"
            ),
            "[DEFAULT]\nSERVER_IP = my.host\n": (
                "config.cfg:2: [DEFAULT] SERVER_IP = my.host: 'my.host' is not an IP address such"
                " as 127.0.0.1, 0.0.0.0 (all) or ::1"
            ),
            "[DEFAULT]\nDATA_DIR =\n": (
                "config.cfg:2: [DEFAULT] DATA_DIR = : a folder is needed, such as data or"
                " /var/lib/roundhouse"
            ),
            "[talk]\nLISTEN =\n": (
                "config.cfg:2: [talk] LISTEN = : an endpoint is needed, such as tcp:8080 or"
                " unix:/run/chat.sock"
            ),
            "[talk]\nLISTEN = udp:53\n": (
                "config.cfg:2: [talk] LISTEN = udp:53: 'udp:53' is not an endpoint of kind tcp,"
                " tcp6, unix, systemd, ssl, tls, or haproxy: and one of these, such as tcp:8080"
            ),
            "[talk]\nLISTEN = haproxy:haproxy:tcp:1\n": (
                "config.cfg:2: [talk] LISTEN = haproxy:haproxy:tcp:1: 'haproxy:haproxy:tcp:1' is"
                " not an endpoint of kind tcp, tcp6, unix, systemd, ssl, tls, or haproxy: and one"
                " of these, such as tcp:8080"
            ),
        }.items():
            assert self.problems(text) == [wanted]

    def test_a_home_that_is_not_known_is_no_path(self) -> None:
        wrong = "'~no-such-user/x' begins with a home that is not known here; write the whole path"
        for section, key in (("DEFAULT", "DATA_DIR"), ("daemon", "LOG_FILE"), ("talk", "RUN")):
            assert self.problems(f"[{section}]\n{key} = ~no-such-user/x\n") == [
                f"config.cfg:2: [{section}] {key} = ~no-such-user/x: {wrong}"
            ]

    def test_a_misspelt_name_is_refused_with_the_nearest_right_one(self) -> None:
        assert self.problems("[ingest]\nMAX_FILE_SIZ = 1\n") == [
            "config.cfg:2: [ingest] has no MAX_FILE_SIZ; did you mean MAX_FILE_SIZE?"
        ]
        assert self.problems("[ingets]\nPORT = 1\n") == [
            "config.cfg:1: no section [ingets]; did you mean [ingest]?"
        ]
        assert self.problems("[default]\nPORT = 1\n") == [
            "config.cfg:1: no section [default]; did you mean [DEFAULT]?"
        ]
        assert self.problems("[daemon]\nX = 1\n") == [
            "config.cfg:2: [daemon] has no X; there are CONNECTIONS, GRACE, GROUP, LIMIT_LOOPBACK,"
            " LOG_FILE, LOG_FORMAT, LOG_KEEP, LOG_LEVEL, LOG_SIZE, PER_ADDRESS, USER"
        ]
        assert self.problems("[zzz]\n") == [
            "config.cfg:1: no section [zzz]; there are [DEFAULT], [daemon], [ingest], [talk],"
            " [admin]"
        ]

    def test_an_option_of_another_service_is_not_one_of_default(self) -> None:
        (problem,) = self.problems("[DEFAULT]\nMODE = loud\n")
        assert problem.startswith("config.cfg:2: [DEFAULT] has no MODE; ")

    def test_everything_wrong_is_said_at_once_in_the_order_of_the_file(self) -> None:
        found = self.problems(
            "[talk]\nMOST = 0\nPORTT = 1\nMODE = x\n[ingest]\nMAX_FILE_SIZE = y\n"
        )
        assert [line.split(" ")[0] for line in found] == [
            "config.cfg:2:",
            "config.cfg:3:",
            "config.cfg:4:",
            "config.cfg:6:",
        ]

    def test_a_file_that_is_no_ini_file_is_refused_by_line(self) -> None:
        wrong: dict[str | bytes, str] = {
            "PORT = 1\n": "config.cfg:1: a key before the first section; begin with [DEFAULT]",
            "[talk]\nPORT = 1\nPORT = 2\n": "config.cfg:3: [talk] PORT stands twice",
            "[talk]\n[talk]\n": "config.cfg:2: section [talk] stands twice",
            "[talk]\nwhat is this\n": (
                "config.cfg:2: not `KEY = value`, a [section] or a # comment"
            ),
            b"[talk]\n\nMODE = \xff\n": "config.cfg:3: not UTF-8; save the file as UTF-8",
        }
        for text, wanted in wrong.items():
            assert self.problems(text) == [wanted]

    def test_a_named_file_that_is_missing_is_an_error(self) -> None:
        gone = str(self.home / "gone.cfg")
        with pytest.raises(ConfigError) as caught:
            self.read(ROUNDHOUSE_CONFIG=gone)
        assert caught.value.problems == (f"{gone}: cannot be read: No such file or directory",)

    def test_a_bad_variable_of_the_environment_is_named_as_one(self) -> None:
        (problem,) = self.problems("", ROUNDHOUSE_SERVER_IP="nowhere")
        assert problem.startswith("$ROUNDHOUSE_SERVER_IP = nowhere: ")


class ShippedFileTests(SynchronousTestCase):
    def test_it_names_every_key_and_says_the_defaults(self) -> None:
        shipped = settings.read(HOME / "config.cfg", HOME, CATALOGUE, {})
        bare = settings.read(None, HOME, CATALOGUE, {})
        assert shipped.services.keys() == bare.services.keys()
        for name, service in shipped.services.items():
            assert service.options == bare.services[name].options
            assert [a.endpoints for a in service.listens] == [
                b.endpoints for b in bare.services[name].listens
            ]
        assert (shipped.server_ip, shipped.grace, shipped.data_dir) == (
            bare.server_ip,
            bare.grace,
            bare.data_dir,
        )
        assert (shipped.log, shipped.user) == (bare.log, bare.user)
        named = settings._File.load(HOME / "config.cfg").sections
        for spec in (*CATALOGUE, admin.SPEC):
            fields = spec.options.__attrs_attrs__
            wanted = {field.name for field in fields if EACH not in field.metadata}
            wanted |= {port.key.lower() for port in spec.ports}
            assert set(named[spec.name]) == wanted


class LogTests(SettingsCase):
    def test_format_level_file_and_rotation_of_the_log_can_be_set(self) -> None:
        found = self.read(
            "[daemon]\nLOG_FORMAT = JSON\nLOG_LEVEL = warn\nLOG_FILE = log/own.log\n"
            "LOG_SIZE = 1 MiB\nLOG_KEEP = 0\n"
        )
        assert found.log == Wanted("json", "warn", self.home / "log" / "own.log", 1 << 20, 0)
        assert self.read("[daemon]\nLOG_FILE =\n").log == Wanted()
        assert self.read("[daemon]\nLOG_FILE = /var/log/x\n").log.file == Path("/var/log/x")

    def test_a_change_needs_no_restart(self) -> None:
        was = self.read("[daemon]\n")
        now = self.read("[daemon]\nLOG_FILE = own.log\nLOG_LEVEL = debug\n")
        changes = ["[daemon] LOG_LEVEL = debug", f"[daemon] LOG_FILE = {self.home / 'own.log'}"]
        assert was.changes(now) == changes
        assert now.changes(was) == ["[daemon] LOG_LEVEL = info", "[daemon] LOG_FILE = "]
        assert was.needing_restart(now) == []


class UserTests(SettingsCase):
    def test_a_user_brings_a_group_unless_one_is_named(self) -> None:
        nobody, root = pwd.getpwnam("nobody"), pwd.getpwuid(0)
        assert self.read("[daemon]\nUSER =\nGROUP =\n").user is None
        assert self.read("[daemon]\nUSER = nobody\n").user == (nobody.pw_uid, nobody.pw_gid)
        group = grp.getgrgid(root.pw_gid)
        found = self.read(f"[daemon]\nUSER = nobody\nGROUP = {group.gr_name}\n")
        assert found.user == (nobody.pw_uid, group.gr_gid)

    def test_whom_this_machine_does_not_know_is_refused(self) -> None:
        assert self.problems("[daemon]\nUSER = no one\nGROUP = no-such\n") == [
            "config.cfg:2: [daemon] USER = no one: this machine has no user 'no one'",
            "config.cfg:3: [daemon] GROUP = no-such: this machine has no group 'no-such'",
        ]
        group = grp.getgrgid(0).gr_name
        assert self.problems(f"[daemon]\nGROUP = {group}\n") == [
            "config.cfg:2: [daemon] GROUP is set, but no USER is"
        ]

    def test_another_one_needs_a_restart(self) -> None:
        was, now = self.read("[daemon]\n"), self.read("[daemon]\nUSER = nobody\n")
        assert was.needing_restart(now) == ["[daemon] USER"]


class HostileFileTests(SettingsCase):
    def test_no_control_character_of_the_file_reaches_the_terminal(self) -> None:
        for text in ("[talk]\nMOST = \x1b[2J\n", "[\x1b]2;x\x07]\n", "[talk]\n\u202eTSOM = 1\n"):
            (problem,) = self.problems(text)
            assert problem.isprintable(), problem


class CommandTests(SettingsCase):
    def run_of(self, text: str) -> object:
        return self.read(f"[talk]\nRUN = {text}\n").services["talk"].options.run

    def test_a_program_is_looked_for_on_path_and_beside_the_file(self) -> None:
        own = self.home / "bin" / "move"
        own.parent.mkdir()
        own.write_text("#!/bin/sh\n")
        own.chmod(0o755)
        assert self.run_of("bin/move --to 'a b'  # as it comes") == (str(own), "--to", "a b")
        assert self.run_of(str(own)) == (str(own),)
        shell = self.run_of("sh -c true")
        assert isinstance(shell, tuple)
        assert Path(shell[0]).is_absolute()
        assert shell[1:] == ("-c", "true")
        assert self.run_of("") == ()

    def test_a_program_that_is_not_there_or_may_not_be_run_is_refused(self) -> None:
        (self.home / "notes.txt").write_text("")
        wrong = "is no executable program there; give the path of one"
        assert self.problems("[talk]\nRUN = ./notes.txt x\n") == [
            f"config.cfg:2: [talk] RUN = ./notes.txt x: ./notes.txt {wrong}"
        ]
        assert self.problems("[talk]\nRUN = no-such-program\n")[0].endswith(
            "no-such-program is no executable program on PATH; give the path of one"
        )

    def test_a_change_is_told_as_it_would_be_typed(self) -> None:
        before = self.read("[talk]\n")
        after = self.read("[talk]\nRUN = /bin/sh 'a b'\n")
        assert before.changes(after) == ["[talk] RUN = /bin/sh 'a b'"]
        after = self.read("[talk]\nHOSTS = Chat.example.org,chat\n")
        assert before.changes(after) == ["[talk] HOSTS = chat.example.org, chat"]
