"""completion: the script that makes a shell ask at TAB, and what it is told.

Options, commands and words that are the only right ones are known to click. What is asked of a
daemon is asked briefly, and where that fails nothing is offered, and nothing said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import click
from click.shell_completion import CompletionItem, get_completion_class

from client import codes
from client.caller import Caller
from client.terminal import printable

SHELLS = ("bash", "zsh", "fish")
PATIENCE = 0.5  # seconds that a daemon may be silent while somebody waits at TAB
_WORD = re.compile(r"[\w.@+-]+")  # what a shell takes as it is


@click.command(short_help="Print what lets a shell complete commands.")
@click.argument("shell", required=False, type=click.Choice(SHELLS))
def completion(shell: str | None) -> None:
    """Print the script that lets SHELL complete `roundhouse` (without SHELL: the one you use).

    What comes after TAB: commands, options and files, ids whose code is kept here, and of the
    relay, while it runs, its boxes and what is in them.

    \b
    Where it is found at each start of the shell:
      bash  ~/.local/share/bash-completion/completions/roundhouse
      zsh   _roundhouse, in a folder of $fpath
      fish  ~/.config/fish/completions/roundhouse.fish

    \b
    Examples:
      roundhouse completion bash > ~/.local/share/bash-completion/completions/roundhouse
      roundhouse completion fish > ~/.config/fish/completions/roundhouse.fish
      eval "$(roundhouse completion)"
    """
    if shell is None:
        shell = os.path.basename(os.environ.get("SHELL", ""))
        if shell not in SHELLS:
            raise click.UsageError(f"which shell? There are {', '.join(SHELLS)}")
    made = get_completion_class(shell)
    assert made is not None
    click.echo(made(click.Command(None), {}, "roundhouse", "_ROUNDHOUSE_COMPLETE").source())


def files(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """The shell knows them."""
    return [CompletionItem(begun, type="file")]


def boxes(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    return [
        CompletionItem(name, help=f"{box['parcels']} files")
        for name, box in _listed(context, "/?format=json", "boxes", "box")
        if name.startswith(begun)
    ]


def parcels(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Those in the box that was named before."""
    box, taken = context.params.get("box") or "queue", context.params.get("idents") or ()
    return [
        CompletionItem(ident, help=printable(str(one["name"])))
        for ident, one in _listed(context, f"/{quote(box)}", "parcels", "id")
        if ident.startswith(begun) and ident not in taken
    ]


def idents(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    with suppress(click.ClickException, OSError):
        return [
            CompletionItem(ident)
            for ident in codes.idents()
            if ident.startswith(begun) and _WORD.fullmatch(ident)
        ]
    return []


def _listed(
    context: click.Context, path: str, what: str, name: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the relay lists under `what`, each with its `name`."""
    from client.http import Site

    with suppress(click.ClickException, OSError, LookupError, TypeError, ValueError):
        address = context.ensure_object(Caller).address("relay", "HTTP_PORT")
        site = Site(address, PATIENCE, os.environ.get("ROUNDHOUSE_TOKEN", "").strip() or None)
        with site.ask("GET", path) as answer:
            for one in answer.json()[what]:
                if _WORD.fullmatch(one[name]):
                    yield one[name], one
