"""irc: the rooms of the chat for IRC clients; the same lines, order and history.

Wire (TCP, port 6667; RFC 1459, RFC 2812 and IRCv3 as far as said here)
    Lines end with CR LF or LF and hold 512 bytes with it, plus 8,191 of tags, in UTF-8. One that is
    longer, not UTF-8, or holds NUL or a CR of its own is refused, and does nothing.
    The room `main` is #main. Names and texts are those of protocols/rooms.py; who has none and
    speaks on the plain wire is shown as `guest`, to whom nobody can speak in private.

    CAP PASS NICK USER          PASS is taken and ignored; nobody has an account
    JOIN #a,#b [n,m]  PART      a number as the key of a room asks for its last n lines
    PRIVMSG NOTICE              to rooms one is in, and to names. A NOTICE is said like a PRIVMSG;
                                CTCP ACTION is /me, other CTCP is refused; colours and the like are
                                taken off. What is longer than a line of the chat becomes several
    HISTORY #room [n]           the last n lines; CHATHISTORY for clients that know it
    NAMES WHO WHOIS WHOWAS LIST LUSERS ISON USERHOST AWAY
    TOPIC MODE                  to ask only: rooms have no topic, no operators and no modes
    MOTD VERSION PING PONG QUIT

    Capabilities: server-time, echo-message, message-tags, batch, draft/chathistory. A client
    without server-time gets history with the time (UTC) before the text.
    Who leaves and shared several rooms with others is seen leaving each of them (PART).

Who says nothing for PING_AFTER seconds is sent a PING, and after as long again is closed.

Outcomes
    left, reset, slow, silent, drained, cut, failed

Source: the RFCs; https://ircv3.net/specs for the capabilities. Framing and limits are ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial

from attrs import define, field
from twisted.internet.defer import Deferred

from protocols.connection import Live
from protocols.framing import Lines, Overlong
from protocols.irc_formats import (
    HOST,
    LONGEST_LINE,
    LONGEST_TAGS,
    SERVER,
    TOO_LONG,
    Dialect,
    chosen,
    lines_of,
    message,
    moment_of,
    parsed,
    reason,
    spelled,
    stamp,
)
from protocols.options import count
from protocols.rooms import (
    A_TURN,
    GUEST,
    LONGEST_NAME,
    MOST_HISTORY,
    Speaker,
    as_name,
    as_room,
    folded,
    moment,
    wrapped,
)
from protocols.stores import Kind, Line, Render, Said, Sighting

PING_AFTER = 120.0  # seconds
MOST_ROOMS = 50  # of one client
MOST_TARGETS = 4  # of one PRIVMSG
LONGEST_NAMES = 200  # bytes of a line of them; room for a long name and a long room before it
ASKED = 1000  # lines that CHATHISTORY looks through

CAPABILITIES = ("server-time", "echo-message", "message-tags", "batch", "draft/chathistory")
SUPPORTED = (
    "CASEMAPPING=ascii CHANTYPES=# PREFIX= CHANMODES=,,, NETWORK=Roundhouse UTF8ONLY SAFELIST",
    f"NICKLEN={LONGEST_NAME} CHANNELLEN={LONGEST_NAME + 1} CHANLIMIT=#:{MOST_ROOMS} TOPICLEN=0"
    f" TARGMAX=PRIVMSG:{MOST_TARGETS},NOTICE:{MOST_TARGETS} CHATHISTORY={ASKED}"
    " MSGREFTYPES=timestamp",
)
MOTD = (
    "#main is where everybody of the plain wire is: /join #main",
    "The last 50 lines come along with: /join #main 50",
    "and at any time with: /quote HISTORY #main 50",
)

_NUMBER = re.compile("[1-9][0-9]{0,4}", re.ASCII)  # as the key of a room
_LIGHT = {"PRIVMSG", "NOTICE", "PING", "PONG", ""}  # any other command is the last of its turn
_TURN = A_TURN // 16  # lines; one costs more than one of the plain wire, an answer its own write
_NEEDY = {"CAP", "PING", "USER", "JOIN", "PART", "TOPIC", "INVITE", "KICK", "USERHOST"} | {
    "HISTORY",
    "CHATHISTORY",
}


@define(eq=False, repr=False)
class Irc(Speaker):
    """One IRC client."""

    _lines: Lines = field(factory=partial(Lines, LONGEST_TAGS + LONGEST_LINE + 2), init=False)
    _has_user: bool = field(default=False, init=False)
    _negotiating: bool = field(default=False, init=False)  # CAP LS or REQ came, END did not
    _welcome: bool = field(default=False, init=False)  # it was told so: it is registered
    _able: frozenset[str] = field(default=frozenset(), init=False)  # its capabilities
    _batches: int = field(default=0, init=False)

    def render(self, room: str) -> Render:
        return Dialect(room, "server-time" in self._able)

    @property
    def echo(self) -> bool:
        """It wants to hear what it says."""
        return "echo-message" in self._able

    @property
    def called(self) -> str:
        return self.name or "*"

    def received(self, data: bytes) -> None:
        if lines := self._lines.feed(data):
            self.say(lines)

    def silent(self) -> None:
        if not self._welcome or self.quiet > 2 * Live.BEATS:
            self._farewell("nothing was heard from you")
            self.close("silent")
        elif self.quiet == Live.BEATS + 1:
            self.seat.private(f"PING :{SERVER}\r\n".encode())

    def drain(self, grace: float) -> None:
        self._farewell("the server is stopping")
        self.close("drained")

    def told(self, line: Line) -> bool:
        return self.seat.tell(b"".join(spelled(line, self.called.encode())))

    def heed(self, lines: Sequence[bytes | Overlong]) -> int:
        for number, line in enumerate(lines[:_TURN], 1):
            try:
                if isinstance(line, Overlong):
                    raise ValueError(TOO_LONG)
                command, params = parsed(line.removesuffix(b"\r"))
            except ValueError as wrong:
                self._send("NOTICE", self.called, f"Not done: {wrong}")
                continue
            if command:
                self._obey(command, params)
            if self.leaving is not None:
                return len(lines)
            asked = self._asked or self._planned
            if asked or self.seat.muted or command not in _LIGHT:
                return number
        return min(len(lines), _TURN)

    def _obey(self, command: str, params: list[str]) -> None:
        """One command; those that need an answer of a store go on by themselves."""
        match command, params:
            case "CAP", [verb, *words]:
                self._negotiate(verb.upper(), words)
            case "PING", [token, *_]:
                self._send("PONG", SERVER, token)
            case "PONG" | "PASS" | "ERROR" | "TAGMSG", _:
                pass
            case "NICK", [name, *_]:
                self.ask(self._be_called(name))
            case "NICK", _:
                self._reply("431", "No nickname given")
            case "USER", [_, _, _, _, *_] if not self._has_user:
                self._has_user = True
                self._greet()
            case "USER", [_, _, _, _, *_]:
                self._reply("462", "You may not reregister")
            case "QUIT", _:
                self.quit(reason(params[0] if params else "").encode())
                self._farewell("you quit")
                self.close("left")
            case _ if not self._welcome:
                self._reply("451", "You have not registered")
            case (("PRIVMSG" | "NOTICE"), [_] | []):
                code, why = ("412", "No text to send") if params else ("411", "No recipient given")
                self._reply(code, why)
            case (("PRIVMSG" | "NOTICE"), [targets, text, *_]):
                self._speak(targets.split(",")[:MOST_TARGETS], text, quiet=command == "NOTICE")
            case "JOIN", ["0"]:
                for room in [*self.rooms]:
                    self._part(room, "")
            case "JOIN", [rooms, *keys]:
                self.ask(self._join(rooms.split(","), keys[0].split(",") if keys else []))
            case "PART", [rooms, *why]:
                self._part_all(rooms.split(","), reason(why[0] if why else ""))
            case "AWAY", _:
                why = reason(params[0]) if params else ""
                self.roster.away(self, why or None)
                code, text = ("306", "You are away") if why else ("305", "You are back")
                self._reply(code, text)
            case "MODE", _:
                self._modes(params)
            case "TOPIC", [room]:
                self._reply("331", room, "Rooms have no topic here")
            case (("TOPIC" | "KICK"), [room, *_]):
                self._reply("482", room, "Nobody rules here")
            case "INVITE", [_, room, *_]:
                self._reply("482", room, "Everybody may join every room: just tell them")
            case "MOTD", _:
                self._motd()
            case "VERSION", _:
                self._reply("351", "roundhouse", SERVER, "the chat of Roundhouse")
            case (("NAMES" | "WHO" | "WHOIS" | "WHOWAS" | "LIST" | "LUSERS" | "ISON"), _):
                self.ask(self._tell(command, params))
            case (("USERHOST" | "HISTORY" | "CHATHISTORY"), [_, *_]):
                self.ask(self._tell(command, params))
            case _ if command in _NEEDY:
                self._reply("461", command, "Not enough parameters")
            case _:
                self._reply("421", command, "Unknown command")

    async def _tell(self, command: str, params: list[str]) -> None:
        """What takes a look at the stores."""
        match command, params:
            case "NAMES", [rooms, *_]:
                for room in rooms.split(",")[:MOST_TARGETS]:
                    await self._names(room)
            case "NAMES", _:
                for room in self.rooms:
                    await self._names(room)
            case "WHO", _:
                await self._who(params[0] if params else "*")
            case "WHOIS", [*_, names]:
                for name in names.split(",")[:MOST_TARGETS]:
                    await self._whois(name)
            case "WHOIS", _:
                self._reply("431", "No nickname given")
            case "WHOWAS", _:
                name = params[0] if params else "*"
                self._reply("406", name, "There is no memory of who was here")
                self._reply("369", name, "End of WHOWAS")
            case "LIST", _:
                words = ",".join(params[:1]).split(",")
                wanted = {folded(word.removeprefix("#")) for word in words} - {""}
                open_rooms = [
                    ("322", f"#{room}", str(members), "")
                    for room, members in await self.broadcast.rooms()
                    if not wanted or room in wanted
                ]
                self._replies([*open_rooms, ("323", "End of LIST")])
            case "LUSERS", _:
                people = len(await self.roster.present())
                self._reply("251", f"There are {people} people with a name on 1 server")
                self._reply("254", str(len(await self.broadcast.rooms())), "rooms there are")
                self._reply("255", f"I have {people} clients and 0 servers")
            case "ISON", _:
                found = await self._found(" ".join(params).split())
                self._reply("303", " ".join([one.name for one in found]))
            case "USERHOST", _:
                found = await self._found(params[:5])
                here = [f"{one.name}={'+' if one.away is None else '-'}{HOST}" for one in found]
                self._reply("302", " ".join(here))
            case "HISTORY", [room, *most]:
                await self._history(room, most[0] if most else "50")
            case "CHATHISTORY", [verb, *words]:
                await self._chathistory(verb.upper(), words)

    # Who one is

    def _negotiate(self, verb: str, words: list[str]) -> None:
        match verb:
            case "LS" | "LIST":
                self._negotiating |= verb == "LS" and not self._welcome
                have = CAPABILITIES if verb == "LS" else sorted(self._able)
                self._send("CAP", self.called, verb, " ".join(have))
            case "REQ":
                self._negotiating |= not self._welcome
                asked = " ".join(words).split()
                off = {word[1:] for word in asked if word[0] == "-"}
                on = {word for word in asked if word[0] != "-"}
                known = on | off <= {*CAPABILITIES}
                if known:
                    self._become_able((self._able | on) - off)
                self._send("CAP", self.called, "ACK" if known else "NAK", " ".join(asked))
            case "END":
                self._negotiating = False
                self._greet()
            case _:
                self._reply("410", verb, "Unknown CAP command")

    def _become_able(self, able: frozenset[str]) -> None:
        """From now on its rooms are told to it in another way."""
        changed = (self._able ^ able) & {"server-time", "echo-message"}
        self._able = able
        if changed:
            for room in self.rooms:
                self.seat.leave(room)
                self.seat.follow(room, self.render(room), self.echo)

    async def _be_called(self, wanted: str) -> None:
        try:
            name = as_name(wanted)
        except ValueError as why:
            self._reply("432", wanted, f"Erroneous nickname: {why}")
            return
        was = self.name
        if not await self.rename(name):
            self._reply("433", name, "Nickname is already in use")
        elif was is None:
            self._greet()
        elif was != name and not (self.echo and self.rooms):
            self._show(Line(name.encode(), was, Kind.NICK))

    def _greet(self) -> None:
        """It has said who it is, and what it can."""
        if self._welcome or self._negotiating or not self._has_user or self.name is None:
            return
        self._welcome = True
        supported = [("005", *words.split(), "are supported by this server") for words in SUPPORTED]
        self._replies(
            [
                ("001", f"Welcome to Roundhouse, {self.name}"),
                ("002", f"Your host is {SERVER}"),
                ("003", "The rooms are the same as on the plain wire"),
                ("004", SERVER, "roundhouse", "0", "0"),
                *supported,
            ]
        )
        self._motd()

    def _motd(self) -> None:
        lines = [("372", f"- {line}") for line in MOTD]
        self._replies([("375", f"- {SERVER}"), *lines, ("376", "End of MOTD")])

    def _farewell(self, why: str) -> None:
        self.seat.private(f"ERROR :Closing link: {why}\r\n".encode())

    # What one says

    def _speak(self, targets: list[str], text: str, quiet: bool) -> None:
        """quiet: nothing is answered, whatever becomes of it (NOTICE)."""
        kind = Kind.SAY
        if text.startswith("\x01ACTION "):
            kind, text = Kind.ACTION, text[8:].removesuffix("\x01")
        lines = [Line(one, self.name, kind) for one in lines_of(text)]
        people = []
        for target in targets:
            room = folded(target[1:]) if target.startswith("#") else None
            why = ""
            if not lines:
                why = "Invalid message: blank, or with control characters"
            elif room is None:
                people.append(target)
            elif room in self.rooms:
                self.broadcast.publish(room, lines, self.seat)
            else:
                why = "Cannot send to a room you are not in"
            if why and not quiet:
                self._reply("404", target, why)
        if people:
            self.ask(self._whisper(people, lines, quiet))

    async def _whisper(self, names: list[str], lines: list[Line], quiet: bool) -> None:
        for name in names:
            for line in lines:
                ear = await self.roster.tell(name, line)
                if ear is None:
                    if not quiet:
                        self._reply("401", name, "No such nick")
                    break
                if self.echo:
                    self._show(line, ear.name)
                if ear.away is not None and not quiet:
                    self._reply("301", ear.name, ear.away)
                await self.wait_for(ear)

    # Rooms

    async def _join(self, wanted: list[str], keys: list[str]) -> None:
        for number, word in enumerate(wanted):
            try:
                if not word.startswith("#"):
                    raise ValueError("the name of a room begins with #")
                room = as_room(word)
            except ValueError as why:
                self._reply("403", word, f"No such room: {why}")
                continue
            if room in self.rooms:
                continue
            if len(self.rooms) == MOST_ROOMS or not self.enter(room, echo=self.echo):
                self._reply("405", word, "There are too many rooms")
                continue
            if not self.echo:
                self._show(Line(b"", self.name, Kind.JOIN), f"#{room}")
            key = keys[number] if number < len(keys) else ""
            most = int(key) if _NUMBER.fullmatch(key) else 0
            past = Deferred.fromCoroutine(self._recall(room, most)) if most else None
            await self._names(word)
            if past is not None:
                self._replay(await past)

    def _part_all(self, rooms: Iterable[str], why: str) -> None:
        for word in rooms:
            if (room := folded(word.removeprefix("#"))) in self.rooms:
                self._part(room, why)
            else:
                self._reply("442", word, "You are not in that room")

    def _part(self, room: str, why: str) -> None:
        self.depart(room, why.encode())
        if not self.echo:
            self._show(Line(why.encode(), self.name, Kind.PART), f"#{room}")

    def _modes(self, params: list[str]) -> None:
        match params:
            case [room] if room.startswith("#"):
                self._reply("324", room, "+")
            case [room, "b" | "+b"] if room.startswith("#"):
                self._reply("368", room, "End of channel ban list")
            case [room, *_] if room.startswith("#"):
                self._reply("482", room, "Nobody rules here: rooms have no modes")
            case [name, *_] if folded(name) == folded(self.called):
                self._reply("221", "+")
            case [_, *_]:
                self._reply("502", "Only your own modes can be seen")
            case _:
                self._reply("461", "MODE", "Not enough parameters")

    # Who is where

    async def _names(self, word: str) -> None:
        room = folded(word.removeprefix("#"))
        present, nameless = await self.present(room)
        people = " ".join([one.name for one in present] + [GUEST] * bool(nameless))
        lines = wrapped(people, LONGEST_NAMES) if people else []
        names = [("353", "=", f"#{room}", line) for line in lines]
        self._replies([*names, ("366", f"#{room}", "End of NAMES")])

    async def _who(self, mask: str) -> None:
        present: Sequence[Sighting]
        if mask.startswith("#"):
            room = folded(mask[1:])
            present, nameless = await self.present(room)
            present = [*present, *[Sighting(GUEST, (room,))] * bool(nameless)]
        elif mask in ("*", "0"):
            present = await self.roster.present()
        else:
            present = await self._found([mask])
        people = []
        for one in present:
            where = mask if mask.startswith("#") else f"#{one.rooms[0]}" if one.rooms else "*"
            here = "H" if one.away is None else "G"
            words = (where, *HOST.split("@"), SERVER, one.name, here, f"0 {one.name}")
            people.append(("352", *words))
        self._replies([*people, ("315", mask, "End of WHO")])

    async def _whois(self, name: str) -> None:
        one = await self.roster.find(name)
        if one is not None:
            self._reply("311", one.name, *HOST.split("@"), "*", one.name)
            rooms = " ".join([f"#{room}" for room in one.rooms])
            for line in wrapped(rooms, LONGEST_NAMES) if rooms else ():
                self._reply("319", one.name, line)
            self._reply("312", one.name, SERVER, "Roundhouse")
            if one.away is not None:
                self._reply("301", one.name, one.away)
        elif folded(name) == GUEST:
            self._reply("401", name, "Those who have no name speak as this one")
        else:
            self._reply("401", name, "No such nick")
        self._reply("318", name, "End of WHOIS")

    async def _found(self, names: Iterable[str]) -> list[Sighting]:
        found = [await self.roster.find(name) for name in names]
        return [one for one in found if one is not None]

    # What was said

    async def _history(self, word: str, most: str) -> None:
        try:
            room, number = as_room(word), count(most, least=1, most=MOST_HISTORY)
        except ValueError as why:
            self._reply("403", word, f"No history: {why}")
            return
        self._replay(await self._recall(room, number))

    async def _chathistory(self, verb: str, words: list[str]) -> None:
        marks: list[str]
        match verb, words:
            case "TARGETS", [_, _, _]:
                start, end, _ = self._batch("draft/chathistory-targets")
                self._replay([start, end])
                return
            case "LATEST", [word, "*", most]:
                marks = []
            case (("LATEST" | "BEFORE" | "AFTER" | "AROUND"), [word, mark, most]):
                marks = [mark]
            case "BETWEEN", [word, one, other, most]:
                marks = [one, other]
            case _:
                self._fail("INVALID_PARAMS", verb, "unknown or incomplete")
                return
        try:
            room, number, times = as_room(word), count(most, most=ASKED), [*map(moment_of, marks)]
        except ValueError as why:
            self._fail("INVALID_PARAMS", verb, str(why))
            return
        past = [(stamp(said.at), said) for said in await self.broadcast.history(room, ASKED)]
        start, end, mark = self._batch("chathistory", f"#{room}")
        self._replay([start, self._shown(room, mark, chosen(verb, past, times, number)), end])

    async def _recall(self, room: str, most: int) -> list[bytes]:
        """The last `most` lines of `room` as one batch."""
        start, end, mark = self._batch("chathistory", f"#{room}")
        return [start, *await self.recalled(room, most, partial(self._shown, room, mark)), end]

    def _shown(self, room: str, mark: str, past: Sequence[Said]) -> bytes:
        """Lines of the past, as this client can show them. mark: the tag of their batch."""
        target = f"#{room}".encode()
        timed = "server-time" in self._able
        lines: list[bytes] = []
        for said in past:
            if timed:
                tags, before = [mark, f"time={stamp(said.at)}"], b""
            else:
                day, time = moment(int(said.at))
                tags, before = [mark], f"[{day} {time}] ".encode()
            tag = ";".join(filter(None, tags))
            first = f"@{tag} ".encode() if tag else b""
            lines += [first + line for line in spelled(said, target, before)]
        return b"".join(lines)

    def _batch(self, kind: str, *params: str) -> tuple[bytes, bytes, str]:
        """How a batch begins and ends, and the tag of what is in it; nothing, for a client that
        does not know what that is."""
        if "batch" not in self._able:
            return b"", b"", ""
        self._batches += 1
        opening = " ".join([f":{SERVER} BATCH +{self._batches} {kind}", *params])
        closing = message("BATCH", f"-{self._batches}")
        return f"{opening}\r\n".encode(), closing, f"batch={self._batches}"

    def _replay(self, parts: Sequence[bytes]) -> None:
        for part in parts:
            self.seat.private(part)

    # Answers

    def _reply(self, code: str, *words: str) -> None:
        self._replies([(code, *words)])

    def _replies(self, replies: Sequence[tuple[str, ...]]) -> None:
        """In one write; each is a number and its words."""
        called = self.called
        self.seat.private(b"".join([message(code, called, *words) for code, *words in replies]))

    def _fail(self, code: str, *words: str) -> None:
        self._send("FAIL", "CHATHISTORY", code, *words)

    def _show(self, line: Line, target: str = "*") -> None:
        """What no room tells it."""
        self.seat.private(b"".join(spelled(line, target.encode())))

    def _send(self, *words: str) -> None:
        self.seat.private(message(*words))
