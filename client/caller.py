"""Who calls: the options every command takes, and how the caller wants to be answered."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial, reduce
from typing import TYPE_CHECKING, Any, TypeVar

import click
from attrs import define, field

from client import defaults
from client.net import Address, Wire
from client.terminal import shown

if TYPE_CHECKING:
    from client.secured import Trust

C = TypeVar("C", bound=Callable[..., Any])


@define(eq=False)
class Caller:
    """host, port, timeout (seconds), and how TLS is spoken: as given, None where nothing was;
    as_json: one JSON object a result instead of text."""

    host: str | None = None
    port: int | None = None
    timeout: float | None = None
    tls: bool | None = None
    cafile: str | None = None
    cert: str | None = None
    key: str | None = None
    servername: str | None = None
    as_json: bool = False
    _trust: Trust | None = field(default=None, init=False)

    def address(self, service: str, key: str = "PORT") -> Address:
        """Raise Misread, or Failed where a file for TLS cannot be used."""
        tls = self.tls
        if tls is None and (self.cafile or self.cert or self.key or self.servername):
            tls = True
        return defaults.address(service, key, self.host, self.port, tls, self.trust)

    def trust(self) -> Trust:
        """Raise Failed."""
        if self._trust is None:
            from client.secured import Trust  # slow: only where TLS is spoken

            given = {
                name: getattr(self, name) or os.environ.get(f"ROUNDHOUSE_{name.upper()}") or None
                for name in ("cafile", "cert", "key", "servername")
            }
            if given["key"] and not given["cert"]:
                raise click.UsageError("--key is the key of a certificate: --cert FILE, too")
            self._trust = Trust(**given)
        return self._trust

    def call(self, service: str, silence: float | None = None) -> Wire:
        """Connect; silence: seconds to wait for an answer without --timeout, None: for ever.

        Raise Failed.
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
    _option("--tls/--no-tls", default=None, help="Speak TLS; else only where config.cfg says so."),
    _option(
        "--cafile",
        type=click.Path(),
        metavar="FILE",
        help="Trust servers that FILE vouches for; implies --tls.",
    ),
    _option(
        "--cert",
        type=click.Path(),
        metavar="FILE",
        help="Our certificate, where the server asks for one.",
    ),
    _option(
        "--key",
        type=click.Path(),
        metavar="FILE",
        help="Its key, where it is not in the same FILE.",
    ),
    _option("--servername", metavar="NAME", help="The name in the server's certificate."),
    _option("--json", "as_json", is_flag=True, default=None, help="Answer in JSON."),
)


def calls(command: C) -> C:
    """Let a command take --host, --port, --timeout, --json, and all for TLS; they land in its
    Caller."""

    def add(command: C, option: Callable[[C], C]) -> C:
        return option(command)

    return reduce(add, reversed(_OPTIONS), command)
