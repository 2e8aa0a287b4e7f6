"""What the lines of the chat mean to who reads them: authors, answers, colours. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime, tzinfo
from zlib import crc32

from attrs import define, field

Fragments = list[tuple[str, str]]  # prompt_toolkit's: a style and a text each

COMMANDS = ("/nick", "/me", "/msg", "/join", "/rooms", "/who", "/history", "/help", "/quit")
ANSWER = "*** "
MOST_NAMES = 1000  # that are remembered

_NAME = r"[^\s!#$%&*+,./:;<=>?@~]{1,32}"
_SAID = re.compile(rf"({_NAME}): (.*)")
_ACTED = re.compile(rf"\* ({_NAME}) (.*)")
_WHISPER = re.compile(rf"(-> )?\*({_NAME})\* (.*)")
_PRESENT = re.compile(r"In (\S+): (.*)")
_PAST = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")
_QUIET = "fg:ansibrightblack"
_COLOURS = tuple(
    f"fg:ansi{colour}"
    for colour in (
        *("red", "green", "yellow", "blue", "magenta", "cyan"),
        *("brightred", "brightgreen", "brightyellow", "brightblue", "brightmagenta", "brightcyan"),
    )
)


def colour_of(name: str) -> str:
    """A name has the same colour everywhere, however it is spelled."""
    return _COLOURS[crc32(name.casefold().encode()) % len(_COLOURS)]


def painted(line: str) -> Fragments:
    """A line with its author in their colour, and answers dim."""
    if found := _WHISPER.fullmatch(line):
        arrow, name, text = found.groups()
        return [("", arrow or ""), (f"{colour_of(name)} italic", f"*{name}*"), ("", f" {text}")]
    if line.startswith(ANSWER):
        return [(_QUIET, line)]
    if found := _ACTED.fullmatch(line):
        return [("", "* "), (colour_of(found[1]), found[1]), ("italic", f" {found[2]}")]
    if found := _SAID.fullmatch(line):
        return [(f"{colour_of(found[1])} bold", f"{found[1]}:"), ("", f" {found[2]}")]
    return [("bold fg:ansired", line)] if line.startswith("ERR ") else [("", line)]


def dated(line: str, now: datetime, zone: tzinfo | None = None) -> Fragments:
    """`painted`, after the time; a line of the past has its own. zone: None is the local one."""
    if line.startswith(ANSWER) and (found := _PAST.fullmatch(line.removeprefix(ANSWER))):
        try:
            at = datetime.fromisoformat(found[1]).replace(tzinfo=UTC).astimezone(zone)
        except (ValueError, OverflowError):  # anybody may say something that looks like it
            return [(_QUIET, now.strftime("%H:%M ")), *painted(line)]
        form = "%H:%M " if at.date() == now.date() else "%Y-%m-%d %H:%M "
        return [(_QUIET, at.strftime(form)), *painted(found[2])]
    return [(_QUIET, now.strftime("%H:%M ")), *painted(line)]


@define
class Known:
    """What the lines taught us: how we are called, where we are, who else there is.

    nick, room: as the server confirmed them last. wanted, asked: the name and the room that we
    asked for; anybody may say a line that looks like an answer.
    """

    nick: str = ""
    room: str = ""
    wanted: str = ""
    asked: str = ""
    names: dict[str, None] = field(factory=dict)  # the latest last
    rooms: dict[str, None] = field(factory=dict)

    def typed(self, text: str) -> None:
        """We are about to say `text`."""
        if text.startswith("/join "):
            self.asked = text.removeprefix("/join ").strip()
        elif text.startswith("/nick "):
            self.wanted = text.removeprefix("/nick ").strip()

    def heard(self, line: str) -> None:
        answer = line.removeprefix(ANSWER)
        if line is answer:
            found = _SAID.fullmatch(line) or _ACTED.fullmatch(line)
            whisper = _WHISPER.fullmatch(line)
            self._met([found[1]] if found else [whisper[2]] if whisper else [])
        elif self.wanted and answer == f"You are {self.wanted}":
            self.nick = self.wanted
        elif answer.startswith("Not done: "):
            self.asked = ""
        elif answer.startswith("Rooms: "):
            rooms = answer.removeprefix("Rooms: ").split(", ")
            self.rooms = dict.fromkeys(room.partition(" ")[0] for room in rooms)
        elif found := _PRESENT.fullmatch(answer):
            if self.asked:
                self.room, self.asked = found[1], ""
            self._met(name for name in found[2].split(", ") if " " not in name)

    def completions(self, before: str) -> list[str]:
        """What may stand for the last word of `before`, the text up to the cursor."""
        head, _, word = before.rpartition(" ")
        if not head:
            known: Iterable[str] = COMMANDS if word.startswith("/") else self._addressed()
        elif head == "/join":
            known = self.rooms
        else:
            known = reversed(self.names)
        folded = word.casefold()
        return [one for one in known if one.casefold().startswith(folded)]

    def _addressed(self) -> Iterable[str]:
        return (f"{name}:" for name in reversed(self.names))

    def _met(self, names: Iterable[str]) -> None:
        for name in names:
            self.names.pop(name, None)
            self.names[name] = None
        while len(self.names) > MOST_NAMES:
            del self.names[next(iter(self.names))]
