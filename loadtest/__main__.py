"""python -m loadtest: comparisons that anyone can repeat."""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from types import FrameType
from typing import NoReturn

import click

COMPARISONS = {"echo": "loadtest.compare.echo"}  # imported when used
INTERRUPTED = 130


class Comparisons(click.Group):
    """A command for each comparison."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMPARISONS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMPARISONS:
            return None
        from loadtest.compare.command import command

        return command(import_module(COMPARISONS[name]).COMPARISON)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Load tests that anyone can repeat.

    For scenarios with many users there is locust -f loadtest/locustfile.py.

    \b
    Examples:
      python -m loadtest compare echo --quick
      python -m loadtest compare echo -h
    """


@cli.group(cls=Comparisons)
def compare() -> None:
    """Measure the daemon beside others, and beside the possible."""


def main() -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice stays
            signal.signal(number, _leave)
    try:
        status = cli.main(prog_name="python -m loadtest", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except click.Abort:
        click.echo("Interrupted", err=True)
        status = INTERRUPTED
    sys.exit(status or 0)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """A signal that would kill: unwind instead, so that no server stays behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
