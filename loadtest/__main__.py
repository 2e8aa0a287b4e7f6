"""python -m loadtest: comparisons that anyone can repeat."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

COMPARISONS = {  # imported when used
    "echo": "loadtest.compare.echo",
    "ingest": "loadtest.compare.ingest",
    "handshake": "loadtest.compare.handshake",
    "relay": "loadtest.compare.relay",
    "chat": "loadtest.compare.chat",
}
ALL = "all"
INTERRUPTED = 130


def finders() -> dict[str, Callable[[], Any]]:
    """How to come by each comparison; nothing is imported yet."""

    def find(module: str) -> Any:
        return import_module(module).COMPARISON

    return {name: partial(find, module) for name, module in COMPARISONS.items()}


class Comparisons(click.Group):
    """A command for each comparison, and one for all."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMPARISONS, ALL]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == ALL:
            from loadtest.compare import every

            return every.command(finders())
        if name not in COMPARISONS:
            return None
        from loadtest.compare.command import command

        return command(finders()[name]())


class Commands(click.Group):
    """What is registered here, and what is imported when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), "guard", "report"]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "guard":
            from loadtest import guard

            return guard.command(finders())
        if name == "report":
            from loadtest.report import report

            return report
        return super().get_command(ctx, name)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Load tests that anyone can repeat.

    For scenarios with many users there is locust -f loadtest/locustfile.py.

    \b
    Examples:
      python -m loadtest compare echo --quick
      python -m loadtest compare echo -h
      python -m loadtest compare all
      python -m loadtest guard
      python -m loadtest report 51
    """


@cli.group(cls=Comparisons)
def compare() -> None:
    """Measure the daemon beside others, and beside the possible.

    \b
    Examples:
      python -m loadtest compare echo --quick
      python -m loadtest compare all
    """


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
