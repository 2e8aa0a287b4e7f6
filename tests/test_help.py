"""Every command says with -h what it does, with examples that can be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import click
from twisted.trial.unittest import SynchronousTestCase

from client.caller import Caller
from tests.reference import COMMANDS, every_command


def examples(context: click.Context) -> list[str]:
    """The lines below `Examples:` in its help."""
    found = re.search(r"(?m)^ *Examples:\n((?:  .*\n?)+)", context.get_help())
    return [line.strip() for line in found[1].splitlines()] if found else []


def calls(line: str, program: str) -> Iterator[list[str]]:
    """What `program` is called with in a line for a shell."""
    start = r"(?:^(?:\w+=\S+ +)*|[|;&(] *)"
    for found in re.findall(rf"{start}{re.escape(program)}(?: ([^|<>;&)#]*))?(?![\w.])", line):
        yield shlex.split(found)


def parse(command: click.Command, name: str, words: list[str]) -> str:
    """As click would before it calls it; the path of what it would call."""
    context = command.make_context(name, [*words], obj=Caller())
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        found, below, rest = context.command.resolve_command(context, rest)
        assert found is not None
        assert below is not None
        context = below.make_context(found, rest, parent=context)
    return context.command_path


class HelpTests(SynchronousTestCase):
    def test_every_command_shows_examples_of_itself(self) -> None:
        for context in every_command():
            path = context.command_path
            assert any(path in line for line in examples(context)), path

    def test_every_example_is_a_command_that_there_is_with_options_that_it_has(self) -> None:
        parsed = set()
        for context in every_command():
            for line in examples(context):
                for program, command in COMMANDS.items():
                    for words in calls(line, program):
                        try:
                            parsed.add(parse(command, program, words))
                        except click.exceptions.Exit:  # --version
                            pass
                        except click.UsageError as error:
                            raise AssertionError(f"{line}: {error.format_message()}") from None
        groups = {c.command_path for c in every_command() if isinstance(c.command, click.Group)}
        assert parsed == {context.command_path for context in every_command()} - groups

    def test_every_command_takes_h_and_tells_each_option(self) -> None:
        for context in every_command():
            assert {*context.help_option_names} == {"-h", "--help"}, context.command_path
            for option in context.command.params:
                if isinstance(option, click.Option):
                    assert option.help, f"{context.command_path} {option.opts[0]}"
