"""python -m client: the surface, and what every command's end comes to.

Exit statuses
    0    done
    1    failed: refused by the server, a receipt that differs, a broken connection, a full disk
    2    wrong usage
    66   nothing waits in the box (get)
    69   nobody listens there
    78   config.cfg cannot be read
    130  Ctrl-C
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from importlib import import_module
from types import FrameType
from typing import Any, NoReturn

import click

from client.caller import Caller, calls
from client.net import Failed

COMMANDS = {  # where each lives: imported when used, so that a start stays quick
    "ingest": "client.ingest",
    "put": "client.relay",
    "get": "client.relay",
    "ls": "client.relay",
    "rm": "client.relay",
    "requeue": "client.relay",
    "relay": "client.relay",
    "chat": "client.chat",
    "register": "client.handshake",
    "say": "client.handshake",
    "tail": "client.handshake",
    "echo": "client.echo",
    "selftest": "client.selftest",
    "status": "client.status",
    "completion": "client.completion",
}
INTERRUPTED = 130


class Surface(click.Group):
    """The group of all commands; turns every way to end into a line and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(COMMANDS[name]), name)
        return command

    def main(self, *args: Any, **extra: Any) -> NoReturn:
        caller = Caller()
        try:
            status = super().main(*args, **{**extra, "standalone_mode": False, "obj": caller})
        except click.ClickException as error:
            caller.fail(error)
            status = error.exit_code
        except click.Abort as error:
            # click hides Ctrl-C and the end of the input behind the same exception
            ctrl_c = isinstance(error.__cause__ or error.__context__, KeyboardInterrupt)
            status = INTERRUPTED if ctrl_c else 1
            caller.note("Interrupted" if ctrl_c else "Nothing more to read: given up")
        except OSError as error:  # every other one was turned into a Failed where it happened
            caller.fail(Failed(f"cannot write to standard output: {error.strerror}"))
            status = 1
            _forget_output()
        sys.exit(status or 0)


def _forget_output() -> None:
    """Let the interpreter's last flush go nowhere, or it would fail once more, loudly."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _version(context: click.Context, option: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            number = version("roundhouse-daemon")
        except PackageNotFoundError:
            number = "0+unknown"
        click.echo(f"roundhouse {number}")
        context.exit()


@click.command(cls=Surface, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Show the version and exit.",
)
@calls
def cli() -> None:
    """Talk to a Roundhouse daemon.

    Host and ports come from --host and --port, else from ROUNDHOUSE_HOST and config.cfg
    (ROUNDHOUSE_CONFIG names another file), else they are the defaults on 127.0.0.1. TLS is spoken
    as its options say, else as ROUNDHOUSE_TLS, ROUNDHOUSE_CAFILE and so on, else as config.cfg.

    \b
    Examples:
      roundhouse selftest
      roundhouse ingest backup.tar
      roundhouse --host 10.0.0.5 put report.pdf

    Exit status: 0 done, 1 failed, 2 wrong usage, 66 nothing to get, 69 nobody listens,
    78 config.cfg cannot be read, 130 Ctrl-C.
    """


def main() -> NoReturn:
    """The entry point of `roundhouse`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's choice stays
            signal.signal(number, _leave)
    cli.main()


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """A signal that would kill: unwind instead, so that no partial file stays behind."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
