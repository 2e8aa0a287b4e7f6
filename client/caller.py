"""Who calls: the options every command takes, and how the caller wants to be answered."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, TypeVar

import click
from attrs import define

from client import defaults
from client.net import Address, Wire
from client.terminal import shown

C = TypeVar("C", bound=Callable[..., Any])


@define(eq=False)
class Caller:
    """host, port, timeout (seconds): as given, None where nothing was; as_json: one JSON object
    a result instead of text."""

    host: str | None = None
    port: int | None = None
    timeout: float | None = None
    as_json: bool = False

    def address(self, service: str, key: str = "PORT") -> Address:
        """Raise Misread."""
        return defaults.address(service, key, self.host, self.port)

    def call(self, service: str, silence: float | None = None) -> Wire:
        """Connect; silence: seconds to wait for an answer without --timeout, None: for ever.

        Raise Misread or Nobody.
        """
        return Wire.to(self.address(service), self.timeout, silence)

    def tell(self, text: str, **facts: object) -> None:
        """A result on standard output: the text, or the facts as JSON."""
        click.echo(json.dumps(facts) if self.as_json else text, color=colour())

    def note(self, text: str) -> None:
        """A remark on standard error; none in JSON mode."""
        if not self.as_json:
            click.echo(text, file=sys.stderr)  # by this name, so that a progress bar makes room

    def relay(self, line: bytes, **facts: object) -> None:
        """A line of the network: harmless on a terminal, untouched in a pipe."""
        if self.as_json or sys.stdout.isatty():
            self.tell(shown(line), **facts)
        else:
            click.echo(line, nl=False)

    def fail(self, error: click.ClickException, **facts: object) -> None:
        """An error on standard error."""
        if self.as_json:
            told = {**facts, "error": error.format_message(), "status": error.exit_code}
            click.echo(json.dumps(told), err=True)
        elif isinstance(error, click.UsageError):
            error.show()
        else:
            text = f"{click.style('Error:', fg='red')} {error.format_message()}"
            click.echo(text, err=True, color=colour())


def colour() -> bool | None:
    """False where NO_COLOR or a dumb terminal forbids it; None leaves it to the stream."""
    return False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None


def _remember(context: click.Context, option: click.Parameter, value: object) -> None:
    if value is not None and option.name is not None:
        setattr(context.ensure_object(Caller), option.name, value)


_option = partial(click.option, expose_value=False, callback=_remember)
_OPTIONS = (
    _option("--host", metavar="HOST", help="Server name or address."),
    _option("--port", type=click.IntRange(1, 65535), help="Port of the service."),
    _option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        metavar="SECONDS",
        help="Give up after this long without an answer.",
    ),
    _option("--json", "as_json", is_flag=True, default=None, help="Answer in JSON."),
)


def calls(command: C) -> C:
    """Let a command take --host, --port, --timeout and --json; all land in its Caller."""

    def add(command: C, option: Callable[[C], C]) -> C:
        return option(command)

    return reduce(add, reversed(_OPTIONS), command)
