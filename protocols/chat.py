"""chat: every line goes to everyone in the room, and all start in one.

Wire (TCP, port 60060, UTF-8 lines; LF ends one, CRLF is taken)
    -> line LF            <- line LF, to everyone connected, the sender too, in one order
    -> line FIN           the same; whoever half-closed still gets what was published up to then
Blanks are kept. Joining and leaving are silent.

Errors, to the sender only, in their place between the lines
    ERR Invalid message   the line is not one of text as protocols/rooms.py has it: blank, longer
                          than LONGEST characters, not UTF-8, with control characters
A line without end gets its ERR as soon as it is too long, and is skipped to its LF.
Silence for IDLE_TIMEOUT seconds closes the connection (0: never).

Commands (COMMANDS = off: they are text like any other)
    /nick NAME            be called NAME; what one says is shown as `NAME: text` from then on
    /me TEXT              everyone sees `* NAME TEXT`
    /msg NAME TEXT        only NAME sees `*NAME* TEXT`, with the sender's name
    /join ROOM            move to another room
    /rooms  /who [ROOM]   which there are; who is in one
    /history [N]          the last N lines of the room (20), `*** 2026-11-21 06:35:12 line`, in UTC;
                          of very many those that fit about 1 MiB
    /help  /quit
    //x                   the text /x
Only these words, in lower case, at the start of a line are commands; any other `/x` is text. The
answer, for the asking peer alone and in its place between the lines, is lines that begin with
`*** `; /msg is answered with the line as it was sent, `-> *NAME* TEXT`. /me and /msg need a name.
Nothing of this reaches who never used a command, except lines that begin with a name; and who
types `ana: hello` looks just like ana: names are a courtesy here, not an identity.

FLUSH_AFTER (milliseconds, 0: off)
    For clients that never send a newline: what has begun counts as a line after that silence. Not
    for a peer that has sent an LF; and one LF right after such a line only ends it. A character
    that is cut waits for its rest, and the line with it.

Who had connected before a line was sent gets it. Who reads too slowly is cut by the room. The
same rooms are on IRC_PORT for IRC clients (protocols/irc.py). Who whispers to one that does not
read waits a while after each line.

Outcomes
    left, reset, slow, silent, drained, cut, failed

Source: "TCP Chat" (port 60060, 256 characters, ERR Invalid message). Commands, bounds, order and
the idle flush are ours.
"""

from __future__ import annotations

from codecs import utf_8_decode
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from attrs import define, field, frozen

from protocols.connection import Live, LiveFactory
from protocols.framing import Lines, Overlong
from protocols.irc import PING_AFTER, Irc
from protocols.options import count, duration, flag, option
from protocols.rooms import (
    A_TURN,
    LONGEST,
    MAIN,
    MOST_HISTORY,
    Speaker,
    as_name,
    as_room,
    moment,
    valid,
    wrapped,
)
from protocols.spec import Context, Port, Spec
from protocols.stores import Kind, Line, Render, Said

ERR = b"ERR Invalid message\n"
UNSENT = 64 << 10  # bytes: a stuck member is to be seen by us, not by the kernel alone
UNREAD = 64 << 10  # bytes of tiny lines that one member may bring in a turn, about
LONGEST_BYTES = 160 + LONGEST * 4 + 1  # a command and a name, the text, a CR
ANSWER = "*** "
LONGEST_ANSWER = 400  # bytes of a line of names, before it goes on in another
RECENT = 20  # lines of /history
HELP = """\
/nick NAME      be called NAME
/me TEXT        say what you do: * NAME TEXT
/msg NAME TEXT  say something to NAME alone
/join ROOM      move to another room
/rooms          the rooms there are
/who [ROOM]     who is in the room
/history [N]    the last N lines of the room
/help           this
/quit           leave
//text          say a text that begins with /"""

_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n"
_COMMANDS = {b"nick", b"me", b"msg", b"join", b"rooms", b"who", b"history", b"help", b"quit"}


def judged(texts: Sequence[bytes], whole: bytes) -> Iterator[tuple[bytes, int]]:
    """Runs of lines: valid ones joined by LF and 0, or nothing and how many are invalid. Pure.

    texts: as they were cut at LF, so that of a CRLF the CR is still there. whole: them joined.
    """
    if b"\r" in whole:
        whole = (whole + b"\n").replace(b"\r\n", b"\n")[:-1]
        texts = whole.split(b"\n")
    if whole.translate(None, _PRINTABLE) or max(map(len, texts)) > LONGEST:
        verdicts = [*map(valid, texts)]
    else:  # nearly every read
        verdicts = [*map(bool, map(bytes.strip, texts))]
    if all(verdicts):
        yield whole, 0
        return
    first = 0
    for good, run in groupby(verdicts):
        last = first + len([*run])
        yield (b"\n".join(texts[first:last]), 0) if good else (b"", last - first)
        first = last


def commanding(whole: bytes) -> bool:
    """Whether a line begins with a slash; nearly every read holds none at all. Pure."""
    return b"/" in whole and (whole[:1] == b"/" or b"\n/" in whole)


def plain(lines: Sequence[Line], at: float) -> bytes:
    """The dialect of this wire."""
    return b"".join([named(line) if line.author else line.text + b"\n" for line in lines])


def named(line: Line | Said) -> bytes:
    """What somebody with a name said or did; nothing, where this wire is silent about it."""
    name = (line.author or "").encode()
    if line.kind is Kind.SAY:
        before = name + b": " if name else b""
        return before + line.text.replace(b"\n", b"\n" + before) + b"\n"
    return b"* " + name + b" " + line.text + b"\n" if line.kind is Kind.ACTION else b""


def remembered(past: Sequence[Said]) -> bytes:
    """Lines of the past."""
    lines = []
    for said in past:
        day, time = moment(int(said.at))
        lines.append(f"{ANSWER}{day} {time} ".encode() + named(said))
    return b"".join(lines)


@define(eq=False, repr=False)
class Chat(Speaker):
    """One client of the plain wire; it is in one room."""

    flush_after: float  # seconds; 0: never
    commands: bool
    _lines: Lines = field(factory=partial(Lines, LONGEST_BYTES), init=False)
    _flushed: bool = field(default=False, init=False)  # an LF now would only end what was flushed

    def render(self, room: str) -> Render:
        return plain

    def opened(self) -> None:
        super().opened()
        self.enter(MAIN, new=True)

    def received(self, data: bytes) -> None:
        lines = self._lines.feed(data)
        if self.flush_after:
            if b"\n" in data:
                self.flush_after = 0.0
                if self._flushed and lines and lines[0] in (b"", b"\r"):
                    del lines[0]
            elif self._lines.begun:
                self._flushed = self._flushed and self._lines.pending == b"\r"
                self.later(self.flush_after, self._flush)
        if lines:
            self.say(lines)

    def finished(self) -> None:
        last = self._lines.take()
        if last and not (self._flushed and last == b"\r"):
            self.say([last])
        self.close("left")

    def told(self, line: Line) -> bool:
        name = (line.author or "").encode()
        act = b"* " if line.kind is Kind.ACTION else b""
        return self.seat.tell(b"*" + name + b"* " + act + line.text + b"\n")

    def heed(self, lines: Sequence[bytes | Overlong]) -> int:
        texts = [b"" if isinstance(line, Overlong) else line for line in lines[:A_TURN]]
        whole = b"\n".join(texts)  # an overlong one is wrong as a blank one is
        if not (self.commands and commanding(whole)):
            self._publish(texts, whole)
            return len(texts)
        for number, text in enumerate(texts):
            if text[:2] == b"//":
                texts[number] = text[1:]
            elif text[:1] == b"/":
                word, _, rest = text[1:].removesuffix(b"\r").partition(b" ")
                if word in _COMMANDS:
                    self._publish(texts[:number], b"\n".join(texts[:number]))
                    if word == b"quit":
                        self.close("left")
                        return len(lines)
                    self.ask(self._obey(word.decode(), rest))
                    return number + 1
        self._publish(texts, b"\n".join(texts))
        return len(texts)

    def _publish(self, texts: Sequence[bytes], whole: bytes) -> None:
        for text, wrong in judged(texts, whole) if texts else ():
            if text:
                self.broadcast.publish(self.rooms[0], [Line(text, self.name)], self.seat)
            else:
                self.seat.private(ERR * wrong)

    async def _obey(self, word: str, rest: bytes) -> None:
        try:
            match word:
                case "nick":
                    await self._be_called(rest.decode().strip())
                case "me" | "msg" if self.name is None:
                    self._answer("Choose a name first: /nick NAME")
                case "me":
                    self._act(rest)
                case "msg":
                    await self._whisper(rest)
                case "join":
                    await self._move(as_room(rest.decode().strip()))
                case "rooms":
                    rooms = [f"{room} ({count})" for room, count in await self.broadcast.rooms()]
                    self._answer("Rooms: " + ", ".join(rooms))
                case "who":
                    await self._who(as_room(rest.decode().strip() or self.rooms[0]))
                case "history":
                    await self._history(rest.decode().strip() or str(RECENT))
                case _:
                    self._answer(*HELP.splitlines())
        except UnicodeDecodeError:
            self.seat.private(ERR)
        except ValueError as why:
            self._answer(f"Not done: {why}")

    async def _be_called(self, name: str) -> None:
        if not name:
            self._answer(f"You are {self.name}" if self.name else "You have no name: /nick NAME")
        elif await self.rename(as_name(name)):
            self._answer(f"You are {name}")
        else:
            self._answer(f"{name} is taken")

    def _act(self, text: bytes) -> None:
        if valid(text):
            line = Line(text, self.name, Kind.ACTION)
            self.broadcast.publish(self.rooms[0], [line], self.seat)
        else:
            self.seat.private(ERR)

    async def _whisper(self, rest: bytes) -> None:
        name, _, text = rest.partition(b" ")
        if not valid(text):
            self.seat.private(ERR)
            return
        ear = await self.roster.tell(as_name(name.decode()), Line(text, self.name))
        if ear is None:
            self._answer(f"Nobody is called {name.decode()}")
            return
        self.seat.private(b"-> *" + ear.name.encode() + b"* " + text + b"\n")
        if ear.away is not None:
            self._answer(f"{ear.name} is away: {ear.away}")
        await self.wait_for(ear)

    async def _move(self, room: str) -> None:
        if room not in self.rooms:
            (old,) = self.rooms
            if not self.enter(room):
                raise ValueError("there are too many rooms")
            self.depart(old)
        await self._who(room)

    async def _who(self, room: str) -> None:
        present, nameless = await self.present(room)
        people = [one.name for one in present]
        if nameless:
            people.append(f"{nameless} without a name")
        self._answer(f"In {room}: " + (", ".join(people) or "nobody"))

    async def _history(self, most: str) -> None:
        (room,) = self.rooms
        number = count(most, least=1, most=MOST_HISTORY)
        pages = await self.recalled(room, number, remembered)
        for page in pages:
            self.seat.private(page)
        if not pages:
            self._answer(f"No history of {room}")

    def _answer(self, *texts: str) -> None:
        lines = [line for text in texts for line in wrapped(text, LONGEST_ANSWER)]
        self.seat.private("".join([f"{ANSWER}{line}\n" for line in lines]).encode())

    def _flush(self) -> None:
        """The silence that ends a line."""
        pending = self._lines.pending
        cut = utf_8_decode(pending, "replace", False)[1] < len(pending)
        if cut or (self._flushed and pending == b"\r"):
            return
        self._flushed = True
        if last := self._lines.take():
            self.say([last])


@frozen
class Options:
    flush_after: int = option(
        0,
        partial(count, most=60_000),
        "milliseconds of silence that end a line without LF; 0 never does",
    )
    idle_timeout: float = option(0.0, duration, "seconds of silence that close; 0 never does")
    commands: bool = option(True, flag, "whether /nick, /me, /join ... are commands or just text")
    rooms: int = option(1000, partial(count, least=1, most=100_000), "most rooms there may be")
    history: int = option(
        1000, partial(count, most=MOST_HISTORY), "lines of each room that are kept; 0 keeps none"
    )


def build(context: Context) -> dict[str, LiveFactory]:
    options, clock = context.options, context.clock
    broadcast, roster = context.stores.broadcast, context.stores.roster
    broadcast.bounds(options.rooms, options.history)
    flush_after = options.flush_after / 1000
    return {
        "PORT": LiveFactory(
            Live("chat", clock, options.idle_timeout),
            lambda live: Chat(live, broadcast, roster, flush_after, options.commands),
        ),
        "IRC_PORT": LiveFactory(
            Live("irc", clock, PING_AFTER), lambda live: Irc(live, broadcast, roster)
        ),
    }


SPEC = Spec(
    name="chat",
    ports=(
        Port("PORT", 60060, broadcasts=True, unsent=UNSENT, unread=UNREAD, busy=b"ERR busy\n"),
        Port(
            "IRC_PORT",
            6667,
            secondary=True,
            broadcasts=True,
            unsent=UNSENT,
            unread=UNREAD,
            busy=b"ERROR :Closing link (too many connections)\r\n",
            means="the same rooms for IRC clients",
        ),
    ),
    build=build,
    options=Options,
    stores={"broadcast", "roster"},
)
