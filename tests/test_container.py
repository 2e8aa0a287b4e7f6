"""The image and the composition as they are written.

tests/container/check.sh builds the image, and runs it.
"""

from __future__ import annotations

import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from twisted.trial.unittest import SynchronousTestCase

from client.defaults import PORTS
from daemon import settings
from daemon.catalogue import CATALOGUE

HOME = Path(__file__).resolve().parents[1]
SERVED = {port.number for spec in CATALOGUE for port in spec.ports}


def instructions(text: str) -> list[list[tuple[str, str]]]:
    """The stages of a Dockerfile: instruction and arguments each, continued lines joined."""
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    stages: list[list[tuple[str, str]]] = [[]]
    for line in lines:
        if line:
            name, _, rest = line.partition(" ")
            if name == "FROM":
                stages.append([])
            stages[-1].append((name, " ".join(rest.split())))
    return stages


class ImageTests(SynchronousTestCase):
    arguments, build, image = instructions((HOME / "Dockerfile").read_text())

    def only(self, name: str) -> str:
        [found] = [rest for instruction, rest in self.image if instruction == name]
        return found

    def test_it_starts_twistd_itself_without_a_shell_or_a_pidfile(self) -> None:
        command = json.loads(self.only("CMD"))
        assert command[:3] == ["twistd", "--nodaemon", "--pidfile="]
        assert command[3] == f"--python={self.only('WORKDIR')}/service.tac"
        assert self.only("STOPSIGNAL") == "SIGTERM"
        assert "ENTRYPOINT" not in dict(self.image)

    def test_its_health_is_asked_for_without_a_shell(self) -> None:
        options, _, command = self.only("HEALTHCHECK").partition(" CMD ")
        assert json.loads(command) == ["roundhouse", "--timeout", "5", "status", "--ready"]
        assert "--start-period=" in options

    def test_its_user_is_a_number_and_owns_nothing_but_the_data(self) -> None:
        user = self.only("USER")
        assert re.fullmatch(r"[1-9]\d{4}:[1-9]\d{4}", user)
        owner, _, group = user.partition(":")
        assert self.only("RUN") == f"install -d -o {owner} -g {group} -m 750 {self.only('VOLUME')}"
        assert not any("--chown" in rest for name, rest in self.image if name == "COPY")

    def test_its_ports_are_those_of_the_catalogue(self) -> None:
        assert {int(port) for port in self.only("EXPOSE").split()} == SERVED
        assert {*PORTS.values()} - SERVED == {8088}  # on loopback, so nothing to publish

    def test_its_settings_are_those_that_the_daemon_reads(self) -> None:
        pairs = re.findall(r"(ROUNDHOUSE_\w+)=(\S+)", self.only("ENV"))
        environ = dict(pairs)
        assert environ.pop("ROUNDHOUSE_HOST") == "127.0.0.1"  # the client's
        assert settings.locate(HOME, environ) == Path(environ.pop("ROUNDHOUSE_CONFIG"))
        now = settings.read(HOME / "config.cfg", HOME, CATALOGUE, environ)
        assert now.server_ip == environ.pop("ROUNDHOUSE_SERVER_IP") == "0.0.0.0"
        assert str(now.data_dir) == environ.pop("ROUNDHOUSE_DATA_DIR") == self.only("VOLUME")
        assert not environ

    def test_every_package_is_checked_against_its_hash(self) -> None:
        installs = [rest for name, rest in self.build if name == "RUN" and "pip install" in rest]
        assert len(installs) == 2
        assert "--require-hashes --requirement requirements/daemon.txt" in installs[0]
        assert "--no-deps --no-build-isolation" in installs[1]  # nothing else is fetched

    def test_its_python_is_one_that_is_supported(self) -> None:
        [(name, base)] = self.arguments
        assert name == "ARG"
        version = re.fullmatch(r"BASE=docker\.io/library/python:(3\.\d+)-slim-trixie", base)
        assert version is not None
        project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
        assert f"Programming Language :: Python :: {version[1]}" in project["classifiers"]
        assert f'image.version="{project["version"]}"' in self.only("LABEL")

    def test_what_it_is_made_of_is_there_and_gets_past_dockerignore(self) -> None:
        lines = (HOME / ".dockerignore").read_text().splitlines()
        rules = [line for line in lines if line and not line.startswith("#")]
        assert rules[0] == "*"
        let_in = {rule[1:] for rule in rules if rule.startswith("!")}
        copied = {
            source.rstrip("/")
            for name, rest in (*self.build, *self.image)
            if name == "COPY" and "--from" not in rest
            for source in rest.split()[:-1]
        }
        assert copied == let_in
        assert all((HOME / path).exists() for path in copied)
        for secret in ("data/roundhouse.db", ".git/config", ".venv/bin/python", "key.pem"):
            assert not any(fnmatch.fnmatch(secret, rule) for rule in let_in)


class CompositionTests(SynchronousTestCase):
    whole: dict[str, Any] = yaml.safe_load((HOME / "compose.yaml").read_text())
    service: dict[str, Any] = whole["services"]["roundhouse"]

    def test_every_port_is_on_loopback(self) -> None:
        assert {*self.service["ports"]} == {f"127.0.0.1:{port}:{port}" for port in SERVED}

    def test_it_may_write_to_its_data_only_and_do_nothing_special(self) -> None:
        assert self.service["read_only"] is True
        assert self.service["tmpfs"] == ["/tmp"]
        assert self.service["cap_drop"] == ["ALL"]
        assert self.service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in self.service

    def test_its_data_is_in_a_volume_with_a_name(self) -> None:
        assert self.service["volumes"] == ["data:/data"]
        assert self.whole["volumes"] == {"data": {"name": "roundhouse"}}
        run_app = (HOME / "run_app.sh").read_text()
        assert "--name roundhouse --hostname roundhouse " in run_app
        assert "--volume roundhouse:/data " in run_app
        assert self.service["container_name"] == self.service["hostname"] == "roundhouse"

    def test_a_stop_may_take_longer_than_a_drain(self) -> None:
        now = settings.read(HOME / "config.cfg", HOME, CATALOGUE, {})
        for patience in (self.service["stop_grace_period"], self.stop_timeout() + "s"):
            assert int(patience.removesuffix("s")) >= now.grace + 5

    def stop_timeout(self) -> str:
        found = re.search(r"--stop-timeout (\d+)", (HOME / "run_app.sh").read_text())
        assert found is not None
        return found[1]

    def test_the_health_is_that_of_the_image(self) -> None:
        assert "healthcheck" not in self.service
        assert self.service["build"] == "."
