"""python -m daemon: commands on this box's files. Serving is `twistd -y service.tac`."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import click

from daemon import settings
from daemon.catalogue import CATALOGUE
from daemon.doctor import doctor
from daemon.export import export
from daemon.restart import restart
from daemon.roundhouse import EX_CONFIG
from daemon.settings import ConfigError, Settings
from daemon.verify import verify
from protocols.options import MEANS, Secret

HOME = Path(__file__).resolve().parents[1]


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  python -m daemon check-config
  python -m daemon doctor
  python -m daemon verify data/ingest""",
)
@click.version_option(package_name="roundhouse-daemon", prog_name="roundhouse daemon")
def main() -> None:
    """Commands on this box's files. To serve: twistd -y service.tac, or ./run_app.sh -run."""


@main.command(
    "check-config",
    epilog="""\b
Examples:
  python -m daemon check-config
  python -m daemon check-config /etc/roundhouse/config.cfg
  python -m daemon check-config --json | jq .services.chat""",
)
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the settings as one JSON object.")
def check_config(path: Path | None, as_json: bool) -> None:
    """Read config.cfg as the daemon would, and print the settings in force.

    Without PATH: the file that ROUNDHOUSE_CONFIG names, else config.cfg beside service.tac.
    Exit status 78 when something is wrong, with a line for each.
    """
    path = path.absolute() if path else settings.locate(HOME, os.environ)
    try:
        found = settings.read(path, HOME, CATALOGUE, os.environ)
    except ConfigError as error:
        if as_json:
            click.echo(json.dumps({"ok": False, "problems": error.problems}))
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(EX_CONFIG) from None
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
        return
    click.echo(f"{path or 'no config.cfg: these are the defaults'}")
    click.echo(f"  DATA_DIR   {found.data_dir}")
    click.echo(f"  GRACE      {found.grace:g} s")
    where = found.log.file or "where twistd logs"
    click.echo(f"  LOG        {found.log.format}, {found.log.level}, {where}")
    here = ", also from here" if found.limit_loopback else ""
    most, each = found.connections or "as descriptors allow", found.per_address or "any"
    click.echo(f"  LIMITS     connections: {most}; from one address: {each}{here}")
    if found.user is not None:
        click.echo(f"  USER       {found.user[0]}, group {found.user[1]}")
    for name, service in found.services.items():
        where = ", ".join(e for listen in service.listens for e in listen.endpoints)
        click.echo(f"{name:12}{where if service.enabled else 'disabled'}")
        for option in attrs.fields(type(service.options)) if service.enabled else ():
            value = _shown(getattr(service.options, option.name))
            click.echo(f"  {option.name.upper():16} = {value:12} {option.metadata[MEANS]}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return shlex.join(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in sorted(value.items()))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _harmless(_: object, __: object, value: object) -> object:
    """No secret is ever shown."""
    if isinstance(value, Mapping):
        return {k: str(v) for k, v in value.items()}
    return str(value) if isinstance(value, Secret) else value


def _as_json(found: Settings) -> dict[str, Any]:
    return {
        "ok": True,
        "path": None if found.path is None else str(found.path),
        "data_dir": str(found.data_dir),
        "grace": found.grace,
        "connections": found.connections,
        "per_address": found.per_address,
        "limit_loopback": found.limit_loopback,
        "user": found.user,
        "log": attrs.asdict(found.log) | {"file": found.log.file and str(found.log.file)},
        "services": {
            name: {
                "enabled": service.enabled,
                "listen": {one.port.key: list(one.endpoints) for one in service.listens},
                "options": attrs.asdict(service.options, value_serializer=_harmless),
            }
            for name, service in found.services.items()
        },
    }


main.add_command(verify)
main.add_command(doctor)
main.add_command(export)
main.add_command(restart)


if __name__ == "__main__":
    main(prog_name="python -m daemon")
