"""irc: the rooms of the chat as IRC clients see them, with a real ring and without a socket."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from random import Random

from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores.ring import OWN
from protocols.irc import MOST_ROOMS, PING_AFTER
from protocols.irc_formats import (
    HOST,
    LONGEST_LINE,
    chosen,
    cut,
    lines_of,
    message,
    parsed,
    pieces,
    spelled,
    stamp,
)
from protocols.rooms import A_TURN, LONGEST, PAUSE, valid
from protocols.stores import Kind, Line, Said
from tests.test_chat import Room
from tests.wire import Peer

TIME = r"@time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "
EVERYTHING = "server-time echo-message message-tags batch draft/chathistory"


@define
class Client:
    """An IRC client. `says` gives what it hears because of that, line by line."""

    peer: Peer
    seen: int = field(default=0)

    def says(self, *lines: str) -> list[str]:
        self.peer.connection.dataReceived("".join([f"{line}\r\n" for line in lines]).encode())
        return self.hears()

    def hears(self) -> list[str]:
        """What came since it was asked last; every line is one that IRC allows."""
        self.peer.waits(1)
        heard = self.peer.heard[self.seen :]
        self.seen += len(heard)
        lines = heard.split(b"\r\n")
        assert lines.pop() == b""
        for line in lines:
            bare = line.partition(b" ")[2] if line.startswith(b"@") else line
            assert len(bare) <= LONGEST_LINE
            assert not re.search(rb"[\r\n\0]", line)
        return [line.decode() for line in lines]


class IrcCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()

    def stranger(self) -> Client:
        return Client(self.room.peer("IRC_PORT"))

    def client(self, name: str, *rooms: str, able: str = "") -> Client:
        """Registered, in `rooms`, and what that brought is heard."""
        client = self.stranger()
        if able:
            client.says("CAP LS 302", f"CAP REQ :{able}", "CAP END")
        client.says(f"NICK {name}", f"USER {name} 0 * :{name}", *[f"JOIN {room}" for room in rooms])
        return client

    def plain(self, name: str = "") -> Peer:
        peer = self.room.peer()
        if name:
            peer.says(f"/nick {name}\n".encode())
            peer.waits(1)
            peer.transport.sent.clear()
        return peer


class RegistrationTests(IrcCase):
    def test_nick_and_user_in_any_order_are_welcomed(self) -> None:
        for lines in (("NICK ana", "USER ana 0 * :Ana"), ("USER ana 0 * :Ana", "NICK ana")):
            self.room = Room()
            heard = self.stranger().says("PASS secret", *lines)
            assert [line.split()[1] for line in heard[:5]] == ["001", "002", "003", "004", "005"]
            assert heard[0] == ":irc.roundhouse 001 ana :Welcome to Roundhouse, ana"
            assert heard[-1].split()[1] == "376"

    def test_negotiation_holds_the_welcome_back(self) -> None:
        ana = self.stranger()
        heard = ana.says("CAP LS 302", "NICK ana", "USER ana 0 * :Ana", "CAP REQ :server-time nope")
        assert heard == [
            f":irc.roundhouse CAP * LS :{EVERYTHING}",
            ":irc.roundhouse CAP ana NAK :server-time nope",
        ]
        assert ana.says("CAP REQ :server-time batch", "CAP REQ -batch", "CAP LIST", "CAP X") == [
            ":irc.roundhouse CAP ana ACK :server-time batch",
            ":irc.roundhouse CAP ana ACK :-batch",
            ":irc.roundhouse CAP ana LIST :server-time",
            ":irc.roundhouse 410 ana X :Unknown CAP command",
        ]
        assert ana.says("CAP END")[0].endswith("Welcome to Roundhouse, ana")

    def test_nothing_is_done_for_who_is_not_registered(self) -> None:
        ana = self.stranger()
        assert ana.says("JOIN #main", "PING x", "LIST") == [
            ":irc.roundhouse 451 * :You have not registered",
            ":irc.roundhouse PONG irc.roundhouse :x",
            ":irc.roundhouse 451 * :You have not registered",
        ]

    def test_a_name_that_is_taken_or_none_is_refused_and_another_may_be_tried(self) -> None:
        self.plain("Ana")
        stranger = self.stranger()
        assert stranger.says("USER a 0 * :a", "NICK ANA", "NICK", "NICK a.b", "NICK guest") == [
            ":irc.roundhouse 433 * ANA :Nickname is already in use",
            ":irc.roundhouse 431 * :No nickname given",
            ":irc.roundhouse 432 * a.b :Erroneous nickname: a name has no .",
            ":irc.roundhouse 432 * guest :Erroneous nickname: nobody may be called guest",
        ]
        assert stranger.says("NICK ana_", "USER x 0 * :x")[-1].split()[1:3] == ["462", "ana_"]

    def test_what_is_no_irc_is_refused_in_a_line_and_does_nothing(self) -> None:
        ana = self.client("ana", "#main")
        peer = ana.peer.connection
        for data, why in (
            (b"PRIVMSG #main :\xff\r\n", "only UTF-8 is spoken here"),
            (b"PRIVMSG #main :a\0b\r\n", "a line holds no NUL and no CR"),
            (b"PRIVMSG #main :a\rQUIT\r\n", "a line holds no NUL and no CR"),
            (b"PRIVMSG #main :" + b"x" * 600 + b"\r\n", "a line has 510 bytes at most"),
            (b"@" + b"x" * 8191 + b" PING x\r\n", "a line has 510 bytes at most"),
            (b"x" * 9000, "a line has 510 bytes at most"),
        ):
            peer.dataReceived(data)
            assert ana.hears() == [f":irc.roundhouse NOTICE ana :Not done: {why}"]
        assert ana.says("", "PING :still here") == [
            ":irc.roundhouse PONG irc.roundhouse :still here"
        ]

    def test_no_cut_of_the_stream_matters(self) -> None:
        stream = (
            "NICK añ\r\nUSER a 0 * :x\nJOIN #main\r\n@t=1 :me PRIVMSG #main :ñandú\r\n".encode()
        )
        for at in range(len(stream)):
            self.room = Room()
            ben, ana = self.plain(), self.stranger()
            ana.peer.connection.dataReceived(stream[:at])
            ana.peer.connection.dataReceived(stream[at:])
            ana.hears()
            assert ben.heard == "añ: ñandú\n".encode()

    def test_unknown_and_incomplete_commands_are_told(self) -> None:
        assert self.client("ana").says(
            "FOO a", "JOIN", "PRIVMSG", "PRIVMSG x", "USER a", "MODE"
        ) == [
            ":irc.roundhouse 421 ana FOO :Unknown command",
            ":irc.roundhouse 461 ana JOIN :Not enough parameters",
            ":irc.roundhouse 411 ana :No recipient given",
            ":irc.roundhouse 412 ana :No text to send",
            ":irc.roundhouse 461 ana USER :Not enough parameters",
            ":irc.roundhouse 461 ana MODE :Not enough parameters",
        ]


class RoomTests(IrcCase):
    def test_one_that_joins_is_told_who_is_there_and_the_others_of_it(self) -> None:
        self.plain("Zoe")
        self.plain()
        ben = self.client("ben", "#main")
        ana = self.client("ana")
        assert ana.says("JOIN #Main") == [
            f":ana!{HOST} JOIN #main",
            ":irc.roundhouse 353 ana = #main :ana ben Zoe guest",
            ":irc.roundhouse 366 ana #main :End of NAMES",
        ]
        assert ben.hears() == [f":ana!{HOST} JOIN #main"]
        assert ana.says("JOIN #main") == []

    def test_lines_pass_between_the_wires_both_ways_in_one_order(self) -> None:
        zoe, nobody = self.plain("zoe"), self.plain()
        ana, ben = self.client("ana", "#main"), self.client("ben", "#main", able="echo-message")
        ana.hears()
        zoe.says(b"a\n")
        ana.peer.connection.dataReceived(
            b"PRIVMSG #main :b\r\nPRIVMSG #main :\x01ACTION waves\x01\r\n"
        )
        nobody.says(b"c\nd\n")
        zoe.says(b"/me nods\n")
        assert ben.hears() == [
            f":zoe!{HOST} PRIVMSG #main :a",
            f":ana!{HOST} PRIVMSG #main :b",
            f":ana!{HOST} PRIVMSG #main :\x01ACTION waves\x01",
            f":guest!{HOST} PRIVMSG #main :c",
            f":guest!{HOST} PRIVMSG #main :d",
            f":zoe!{HOST} PRIVMSG #main :\x01ACTION nods\x01",
        ]
        assert len(ana.hears()) == 4  # not what it said itself
        assert nobody.heard == zoe.heard == b"zoe: a\nana: b\n* ana waves\nc\nd\n* zoe nods\n"

    def test_everybody_on_either_wire_hears_one_order(self) -> None:
        plain = [self.plain(f"p{number}") for number in range(3)]
        irc = [self.client(f"i{number}", "#main", able="echo-message") for number in range(3)]
        for client in irc:
            client.hears()
        for number in range(60):
            if number % 2:
                plain[number % 3].says(b"m%d\n" % number)
            else:
                said = b"PRIVMSG #main :m%d\r\n" % number
                irc[number % 3].peer.connection.dataReceived(said)
            if number % 7 == 0:
                plain[0].waits(0.02)
        (order,) = {tuple(line.rpartition(":")[2] for line in client.hears()) for client in irc}
        (heard,) = {peer.heard for peer in plain}
        assert [line.split(": ")[1] for line in heard.decode().splitlines()] == [*order]
        assert order == tuple(f"m{number}" for number in range(60))

    def test_echo_message_brings_back_what_one_says_and_does(self) -> None:
        ana = self.client("ana", able="echo-message server-time")
        heard = ana.says("JOIN #main", "PRIVMSG #main :hi", "NICK bea", "PART #main :bye")
        assert [re.sub(TIME, "", line, count=1) for line in heard if f"!{HOST}" in line] == [
            f":ana!{HOST} JOIN #main",
            f":ana!{HOST} PRIVMSG #main :hi",
            f":ana!{HOST} NICK :bea",
            f":bea!{HOST} PART #main :bye",
        ]
        assert re.fullmatch(TIME + f":ana!{HOST} PRIVMSG #main :hi", heard[3])

    def test_without_it_one_hears_of_oneself_only_what_the_protocol_asks_for(self) -> None:
        ana = self.client("ana", "#main")
        assert ana.says("PRIVMSG #main :hi", "NICK Ana", "NICK Ana", "PART #main :bye") == [
            f":ana!{HOST} NICK :Ana",
            f":Ana!{HOST} PART #main :bye",
        ]

    def test_capabilities_may_change_while_one_is_in_a_room(self) -> None:
        ana = self.client("ana", "#main")
        heard = ana.says("CAP REQ :server-time echo-message", "PRIVMSG #main :a")
        assert re.fullmatch(TIME + f":ana!{HOST} PRIVMSG #main :a", heard[1])
        assert ana.says("CAP REQ :-server-time -echo-message", "PRIVMSG #main :a") == [
            ":irc.roundhouse CAP ana ACK :-server-time -echo-message"
        ]

    def test_everybody_hears_of_a_new_name_and_of_who_leaves(self) -> None:
        ben, zoe = self.client("ben", "#main"), self.plain("zoe")
        ana = self.client("ana", "#main")
        eva = self.client("eva", "#main", "#dev")
        ben.hears()
        ana.says("NICK bea")
        zoe.says("/nick zoé\n/join dev\n".encode())
        zoe.waits(1)
        ana.says("PART #main :see \x02you\x02")
        ana.says("JOIN #main", "QUIT :\x0304bye")
        eva.says("QUIT")
        assert ben.hears() == [
            f":ana!{HOST} NICK :bea",
            f":zoe!{HOST} NICK :zoé",
            f":zoé!{HOST} PART #main :",
            f":bea!{HOST} PART #main :see you",
            f":bea!{HOST} JOIN #main",
            f":bea!{HOST} QUIT :bye",
            f":eva!{HOST} PART #main :",
        ]

    def test_a_plain_peer_is_seen_from_when_it_has_a_name_until_it_goes(self) -> None:
        ben = self.client("ben", "#main")
        ana = self.plain()
        assert ben.hears() == []
        ana.says(b"/nick ana\n")
        assert ben.hears() == [f":ana!{HOST} JOIN #main"]
        ana.resets()
        assert ben.hears() == [f":ana!{HOST} QUIT :"]
        assert self.client("ana")  # the name is free

    def test_only_who_is_in_a_room_may_speak_there(self) -> None:
        ana = self.client("ana")
        assert ana.says("PRIVMSG #main :x", "PART #main", "NOTICE #main :x") == [
            ":irc.roundhouse 404 ana #main :Cannot send to a room you are not in",
            ":irc.roundhouse 442 ana #main :You are not in that room",
        ]

    def test_rooms_that_cannot_be_are_refused(self) -> None:
        ana = self.client("ana")
        assert [line.split()[1:4] for line in ana.says("JOIN main,#,#a\x07,&x")] == [
            ["403", "ana", "main"],
            ["403", "ana", "#"],
            ["403", "ana", "#a\x07"],
            ["403", "ana", "&x"],
        ]
        rooms = ",".join([f"#r{n}" for n in range(MOST_ROOMS + 1)])
        assert ana.says(f"JOIN {rooms}")[-1].split()[1] == "405"
        heard = ana.says("JOIN 0")
        assert len(heard) == MOST_ROOMS
        self.room.set(rooms=1, history=0)
        self.plain()
        assert ana.says("JOIN #other")[0].endswith("405 ana #other :There are too many rooms")

    def test_the_first_room_is_there_for_everybody_however_many_others_there_are(self) -> None:
        self.room.set(rooms=1, history=0)
        self.client("ana", "#dev")
        nobody = self.plain()
        nobody.says(b"x\n")
        nobody.waits(1)
        assert nobody.heard == b"x\n"

    def test_several_rooms_and_people_can_be_named_at_once(self) -> None:
        ana, ben = self.client("ana", "#a,#b"), self.client("ben", "#b", "#a")
        ana.hears()
        assert ana.says("PRIVMSG #a,ben,#b :hi") == []
        assert sorted(ben.hears()) == [
            f":ana!{HOST} PRIVMSG #a :hi",
            f":ana!{HOST} PRIVMSG #b :hi",
            f":ana!{HOST} PRIVMSG ben :hi",
        ]
        ana.says("PART #a,#b :x")
        assert sorted(ben.hears()) == [f":ana!{HOST} PART #a :x", f":ana!{HOST} PART #b :x"]


class TextTests(IrcCase):
    def test_the_rules_of_the_chat_hold_and_formatting_is_taken_off(self) -> None:
        ben, ana = self.plain(), self.client("ana", "#main")
        for text in ("a\x07b", "\x01VERSION\x01", "   ", "\x02\x03", "\u202ex", "\x01ACTION \x01"):
            (answer,) = ana.says(f"PRIVMSG #main :{text}")
            assert answer.startswith(":irc.roundhouse 404 ana #main :Invalid message")
            assert ana.says(f"NOTICE #main :{text}") == []
        ana.says(
            "PRIVMSG #main :\x02bold\x02 \x0304,12red\x03 \x1dx\x0f \x04ff0000y", "NOTICE #main :n"
        )
        assert ben.heard == b"ana: bold red x y\nana: n\n"

    def test_what_is_longer_than_a_line_of_the_chat_becomes_several(self) -> None:
        ben, ana = self.plain(), self.client("ana", "#main")
        text = " ".join(["word"] * 90)
        ana.says(f"PRIVMSG #main :{text}")
        said = [line.removeprefix("ana: ") for line in ben.heard.decode().splitlines()]
        assert "".join(said) == text
        assert [len(line) for line in said] == [255, 194]

    def test_long_lines_are_cut_for_irc_between_characters(self) -> None:
        ana, zoe = self.client("ana", "#main"), self.plain("z" * 32)
        ana.hears()
        text = "x" + "\U0001f600" * 255
        zoe.says(text.encode() + b"\n" + b"/me " + text.encode() + b"\n")
        heard = ana.hears()
        said = [line.partition(" :")[2] for line in heard]
        assert "".join(said[:3]) == text
        assert all(line.startswith("\x01ACTION ") and line.endswith("\x01") for line in said[3:])
        assert "".join([line[8:-1] for line in said[3:]]) == text

    def test_a_whisper_crosses_the_wires(self) -> None:
        zoe, ana = self.plain("Zoe"), self.client("ana", able="echo-message")
        assert ana.says("PRIVMSG zoe :hi", "PRIVMSG ZOE :\x01ACTION waves\x01") == [
            f":ana!{HOST} PRIVMSG Zoe :hi",
            f":ana!{HOST} PRIVMSG Zoe :\x01ACTION waves\x01",
        ]
        assert zoe.heard == b"*ana* hi\n*ana* * waves\n"
        zoe.says(b"/msg ana hello\n")
        assert ana.hears() == [f":Zoe!{HOST} PRIVMSG ana :hello"]
        assert ana.says("PRIVMSG nobody :hi", "PRIVMSG guest :hi", "NOTICE nobody :hi") == [
            ":irc.roundhouse 401 ana nobody :No such nick",
            ":irc.roundhouse 401 ana guest :No such nick",
        ]

    def test_who_is_away_says_so(self) -> None:
        zoe, ana, ben = self.plain("zoe"), self.client("ana"), self.client("ben", "#main")
        assert ana.says("AWAY :at lunch") == [":irc.roundhouse 306 ana :You are away"]
        assert ben.says("PRIVMSG ana :hi", "NOTICE ana :hi") == [
            ":irc.roundhouse 301 ben ana :at lunch"
        ]
        zoe.says(b"/msg ana hi\n")
        zoe.waits(1)
        assert zoe.heard == b"-> *ana* hi\n*** ana is away: at lunch\n"
        assert ben.says("USERHOST ana ben x", "WHO ana")[:2] == [
            f":irc.roundhouse 302 ben :ana=-{HOST} ben=+{HOST}",
            ":irc.roundhouse 352 ben * chat roundhouse irc.roundhouse ana G :0 ana",
        ]
        assert ":irc.roundhouse 301 ben ana :at lunch" in ben.says("WHOIS ana")
        ana.hears()
        assert ana.says("AWAY") == [":irc.roundhouse 305 ana :You are back"]
        assert ben.says("PRIVMSG ana :hi") == []


class AnswerTests(IrcCase):
    def setUp(self) -> None:
        super().setUp()
        self.plain()
        self.ana = self.client("ana", "#main", "#dev")

    def test_names_who_and_whois(self) -> None:
        names = [
            ":irc.roundhouse 353 ana = #main :ana guest",
            ":irc.roundhouse 366 ana #main :End of NAMES",
        ]
        assert self.ana.says("NAMES #main") == names
        assert self.ana.says("NAMES")[:2] == names
        assert self.ana.says("NAMES #x") == [":irc.roundhouse 366 ana #x :End of NAMES"]
        assert self.ana.says("WHO #main") == [
            ":irc.roundhouse 352 ana #main chat roundhouse irc.roundhouse ana H :0 ana",
            ":irc.roundhouse 352 ana #main chat roundhouse irc.roundhouse guest H :0 guest",
            ":irc.roundhouse 315 ana #main :End of WHO",
        ]
        assert len(self.ana.says("WHO", "WHO *")) == 4
        assert self.ana.says("WHOIS irc.roundhouse ANA") == [
            ":irc.roundhouse 311 ana ana chat roundhouse * :ana",
            ":irc.roundhouse 319 ana ana :#main #dev",
            ":irc.roundhouse 312 ana ana irc.roundhouse :Roundhouse",
            ":irc.roundhouse 318 ana ANA :End of WHOIS",
        ]
        assert self.ana.says("WHOIS x", "WHOIS guest", "WHOIS", "WHOWAS x") == [
            ":irc.roundhouse 401 ana x :No such nick",
            ":irc.roundhouse 318 ana x :End of WHOIS",
            ":irc.roundhouse 401 ana guest :Those who have no name speak as this one",
            ":irc.roundhouse 318 ana guest :End of WHOIS",
            ":irc.roundhouse 431 ana :No nickname given",
            ":irc.roundhouse 406 ana x :There is no memory of who was here",
            ":irc.roundhouse 369 ana x :End of WHOWAS",
        ]

    def test_many_names_go_over_several_lines(self) -> None:
        for number in range(40):
            self.client(f"{'ñ' * 29}{number:03}", "#main")
        self.ana.hears()
        *names, _ = self.ana.says("NAMES #main")
        people = [name for line in names for name in line.partition(" :")[2].split()]
        assert len(names) > 1
        assert people == sorted(people, key=lambda name: (name == "guest", name))
        assert len(people) == 42

    def test_list_lusers_ison_version_motd(self) -> None:
        assert self.ana.says("LIST") == [
            ":irc.roundhouse 322 ana #dev 1 :",
            ":irc.roundhouse 322 ana #main 2 :",
            ":irc.roundhouse 323 ana :End of LIST",
        ]
        assert len(self.ana.says("LIST #DEV,#x")) == 2
        assert self.ana.says("LUSERS")[0].endswith(
            "251 ana :There are 1 people with a name on 1 server"
        )
        assert self.ana.says("ISON x Ana :guest") == [":irc.roundhouse 303 ana :ana"]
        assert self.ana.says("VERSION")[0].split()[1] == "351"
        assert any("HISTORY #main 50" in line for line in self.ana.says("MOTD"))

    def test_modes_and_topics_can_only_be_asked_for(self) -> None:
        assert self.ana.says(
            *[
                "MODE #main",
                "MODE #main b",
                "MODE #main +o ana",
                "MODE ana",
                "MODE ana +i",
                "MODE x",
            ],
            *["TOPIC #main", "TOPIC #main :x", "KICK #main x", "INVITE x #main"],
        ) == [
            ":irc.roundhouse 324 ana #main :+",
            ":irc.roundhouse 368 ana #main :End of channel ban list",
            ":irc.roundhouse 482 ana #main :Nobody rules here: rooms have no modes",
            ":irc.roundhouse 221 ana :+",
            ":irc.roundhouse 221 ana :+",
            ":irc.roundhouse 502 ana :Only your own modes can be seen",
            ":irc.roundhouse 331 ana #main :Rooms have no topic here",
            ":irc.roundhouse 482 ana #main :Nobody rules here",
            ":irc.roundhouse 482 ana #main :Nobody rules here",
            ":irc.roundhouse 482 ana #main :Everybody may join every room: just tell them",
        ]


class HistoryTests(IrcCase):
    def setUp(self) -> None:
        super().setUp()
        self.zoe = self.plain("zoe")
        for text in (b"a\n", b"/me waves\n", b"c\n"):
            self.zoe.says(text)
            self.zoe.waits(1)

    def test_a_number_as_the_key_of_a_room_brings_its_last_lines_along(self) -> None:
        ana = self.client("ana")
        assert len(ana.says("JOIN #main", "PART #main")) == 4
        heard = ana.says("JOIN #dev,#main x,2")
        stamp = r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] "
        assert re.fullmatch(f":zoe!{HOST} PRIVMSG #main :\x01ACTION {stamp}waves\x01", heard[-2])
        assert re.fullmatch(f":zoe!{HOST} PRIVMSG #main :{stamp}c", heard[-1])

    def test_with_server_time_and_batch_the_text_is_as_it_was(self) -> None:
        heard = self.client("ana", able="server-time batch").says("JOIN #main 2")
        assert heard[-4] == ":irc.roundhouse BATCH +1 chathistory #main"
        assert re.fullmatch(
            TIME.replace("@", "@batch=1;") + f":zoe!{HOST} PRIVMSG #main :c", heard[-2]
        )
        assert heard[-1] == ":irc.roundhouse BATCH :-1"

    def test_history_can_be_asked_for_at_any_time(self) -> None:
        ana = self.client("ana", able="server-time")
        assert [line.partition(" :")[2][:-1] for line in ana.says("HISTORY #main 1")] == [
            f"zoe!{HOST} PRIVMSG #main :"
        ]
        assert len(ana.says("HISTORY #main")) == 3
        assert [line.split()[1] for line in ana.says("HISTORY #main x", "HISTORY # 2")] == [
            "403"
        ] * 2

    def test_chathistory_looks_from_a_time_on_or_back(self) -> None:
        ana = self.client("ana", "#main", able=EVERYTHING)
        ana.hears()
        heard = ana.says("CHATHISTORY LATEST #main * 2")
        assert [line.split()[-1] for line in heard[1:3]] == ["waves\x01", ":c"]
        for words, count in (
            ("BEFORE #main timestamp=2000-01-01T00:00:00.000Z 10", 0),
            ("AFTER #main timestamp=2000-01-01T00:00:00.000Z 2", 2),
            ("LATEST #main timestamp=2000-01-01T00:00:00.000Z 9", 3),
            ("AROUND #main timestamp=2000-01-01T00:00:00.000Z 9", 3),
            (
                "BETWEEN #main timestamp=2000-01-01T00:00:00.000Z"
                " timestamp=2100-01-01T00:00:00.000Z 9",
                3,
            ),
            ("TARGETS timestamp=x timestamp=y 9", 0),
        ):
            heard = ana.says(f"CHATHISTORY {words}")
            assert len(heard) == count + 2
            assert heard[0].split()[1] == heard[-1].split()[1] == "BATCH"
        for words in (
            "LATEST #main x 2",
            "LATEST # * 2",
            "LATEST #main * x",
            "BEFORE #main * 2",
            "X y",
        ):
            (answer,) = ana.says(f"CHATHISTORY {words}")
            assert answer.startswith(":irc.roundhouse FAIL CHATHISTORY INVALID_PARAMS ")

    def test_what_chathistory_chooses(self) -> None:
        past = [(f"t{n}", Said(n, 0.0, None, Kind.SAY, b"%d" % n)) for n in range(1, 6)]

        def seqs(verb: str, *times: str, most: int = 2) -> list[int]:
            return [said.seq for said in chosen(verb, past, times, most)]

        assert seqs("LATEST") == [4, 5]
        assert seqs("LATEST", "t4") == [5]
        assert seqs("BEFORE", "t4") == [2, 3]
        assert seqs("AFTER", "t2") == [3, 4]
        assert seqs("AROUND", "t3", most=3) == [2, 3, 4]
        assert seqs("BETWEEN", "t1", "t5") == [2, 3]
        assert seqs("BETWEEN", "t5", "t1") == [3, 4]
        assert seqs("LATEST", most=0) == []


class EndTests(IrcCase):
    def test_quit_is_answered_and_closes(self) -> None:
        ben, ana = self.plain(), self.client("ana", "#main")
        assert ana.says("PRIVMSG #main :bye", "QUIT", "PRIVMSG #main :more") == [
            "ERROR :Closing link: you quit"
        ]
        assert ana.peer.hung_up
        assert ana.peer.outcome == "left"
        assert ben.heard == b"ana: bye\n"

    def test_the_silent_are_pinged_and_then_closed(self) -> None:
        ana, ben = self.client("ana"), self.client("ben")
        stranger = self.stranger()
        heard = []
        for _ in range(6):
            ana.peer.waits(PING_AFTER / 4)
            heard += ana.hears()
            ben.says("PONG x")
        assert heard == ["PING :irc.roundhouse"]
        assert stranger.hears() == ["ERROR :Closing link: nothing was heard from you"]
        ana.peer.clock.pump([PING_AFTER / 4] * 6)
        assert ana.hears() == ["ERROR :Closing link: nothing was heard from you"]
        assert (ana.peer.outcome, ana.peer.hung_up) == ("silent", True)
        assert not ben.peer.hung_up or ben.peer.outcome == "silent"

    def test_one_that_answers_stays(self) -> None:
        ana = self.client("ana")
        for _ in range(40):
            ana.peer.waits(PING_AFTER / 4)
            if "PING :irc.roundhouse" in ana.hears():
                ana.says("PONG :irc.roundhouse")
        assert not ana.peer.hung_up

    def test_a_drain_says_why(self) -> None:
        ben, ana = self.plain(), self.client("ana", "#main")
        ana.peer.connection.drain(5)
        assert ana.hears() == ["ERROR :Closing link: the server is stopping"]
        assert (ana.peer.outcome, ana.peer.hung_up) == ("drained", True)
        assert ben.heard == b""

    def test_a_drain_lets_all_go_also_who_is_told_of_the_others(self) -> None:
        peers = [self.plain(), self.plain("zoe"), self.client("ana", "#main").peer]
        for key in ("IRC_PORT", "PORT"):
            Deferred.fromCoroutine(self.room.factories[key].drain(5))
        peers[0].waits(1)
        assert [peer.outcome for peer in peers] == ["drained"] * 3
        assert all(peer.hung_up for peer in peers)

    def test_a_half_closed_client_gets_what_it_is_owed(self) -> None:
        ana = self.client("ana", "#main")
        ana.peer.connection.dataReceived(b"LIST\r\nPING x\r\n")
        ana.peer.ends()
        assert [line.split()[1] for line in ana.hears()] == ["322", "323", "PONG"]
        assert ana.peer.transport.closed

    def test_a_command_that_may_be_costly_is_the_last_of_its_turn(self) -> None:
        ana = self.client("ana", "#main", "#dev")
        for command, answer, at_once in (("CAP REQ :batch", "ACK", 1), ("MOTD", " 376 ", 1)):
            ana.peer.connection.dataReceived(f"{command}\r\n".encode() * 5)
            assert ana.peer.heard[ana.seen :].count(answer.encode()) == at_once
            assert not ana.peer.transport.reading
            assert len([line for line in ana.hears() if answer in line]) == 5
            assert ana.peer.transport.reading
        ana.peer.connection.dataReceived(b"PING x\r\n" * A_TURN)
        assert ana.peer.heard[ana.seen :].count(b"PONG") == A_TURN // 16
        assert len(ana.hears()) == A_TURN

    def test_who_whispers_to_one_that_does_not_read_waits(self) -> None:
        ana, zoe = self.client("ana", able="echo-message"), self.client("zoe")
        zoe.peer.transport.full = True
        said = f"PRIVMSG zoe :{'x' * 256}\r\n".encode()
        for _ in range(10):
            ana.peer.connection.dataReceived(said * 40)
            ana.peer.waits(0.1)
            if not ana.peer.transport.reading:
                break
        heard = ana.peer.heard.count(b"PRIVMSG")
        assert OWN // 256 > heard > OWN // 400
        ana.peer.waits(PAUSE)
        assert ana.peer.heard.count(b"PRIVMSG") == heard + 1

    def test_one_that_reads_nothing_is_not_read(self) -> None:
        ana = self.client("ana", "#main")
        ana.peer.transport.full = True
        ana.peer.connection.dataReceived(b"MOTD\r\n" * 2000)
        ana.peer.waits(1)
        assert not ana.peer.transport.reading
        ana.peer.transport.full = False
        ana.peer.transport.producer.resumeProducing()
        assert len(ana.hears()) == 5 * 2000
        assert ana.peer.transport.reading


COMMANDS = [
    "NICK",
    "USER",
    "JOIN",
    "PART",
    "PRIVMSG",
    "NOTICE",
    "NAMES",
    "WHO",
    "WHOIS",
    "LIST",
    "TOPIC",
    "MODE",
    "AWAY",
    "ISON",
    "USERHOST",
    "LUSERS",
    "MOTD",
    "PING",
    "HISTORY",
    "CHATHISTORY",
    "CAP",
    "KICK",
    "INVITE",
    "WHOWAS",
    "VERSION",
]
WORDS = ["ana", "ben", "eva", "#main", "#x", "guest", "*", ":", "LATEST", "LS", "REQ", "50", "#"]


class HostileTests(IrcCase):
    @settings(deadline=None, max_examples=400)
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=8),
                st.text(max_size=8).map(lambda text: text.encode("utf-8", "replace")),
                st.lists(
                    st.one_of(
                        st.sampled_from(WORDS),
                        st.sampled_from(["\0", "\r", "\x01ACTION ", "\x03", "ñ" * 300, "", " "]),
                        st.text(max_size=5),
                    ),
                    max_size=5,
                ).flatmap(
                    lambda words: st.sampled_from(COMMANDS).map(
                        lambda command: " ".join([command, *words]).encode("utf-8", "replace")
                    )
                ),
                st.sampled_from([b"\r\n", b"\n", b"\r", b" :", b"@", b"x" * 600]),
            ),
            max_size=12,
        ),
        st.sampled_from(["", EVERYTHING]),
    )
    def test_whatever_is_sent_is_answered_in_irc_and_spoils_nothing(
        self, pieces: list[bytes], able: str
    ) -> None:
        self.room = Room()
        plain, ben = self.plain(), self.client("ben", "#main")
        ana = self.client("ana", "#main", able=able)
        ben.hears()
        for piece in pieces:
            ana.peer.connection.dataReceived(piece)
            ana.peer.connection.dataReceived(b"\r\n")
            ana.hears()  # looks at each line
        assert ana.peer.outcome != "failed"
        for line in ben.hears():
            source, command = line.split(" ", 2)[:2]
            assert re.fullmatch(rf":[^ !@:#*,]{{1,32}}!{HOST}", source)
            assert command in ("JOIN", "PART", "QUIT", "NICK", "PRIVMSG")
        for heard in plain.heard.split(b"\n")[:-1]:
            said = heard.split(b" ", 1)[1]
            assert valid(said) or valid(said.split(b" ", 1)[-1])
        before = len(plain.heard)
        assert ben.says("PRIVMSG #main :still here") == []
        assert plain.heard[before:] == b"ben: still here\n"


class FloodTests(IrcCase):
    def test_ten_thousand_hostile_lines_on_each_wire_harm_nobody(self) -> None:
        chance = Random(7)
        bits = [*COMMANDS, *WORDS, *"\0\x01\x02\x03\r\x1b\t :@/#,*", "ñ" * 200, "\u202e", "😀"]
        bits += ["/nick ", "/me ", "/msg ", "/join ", "/who", "/history ", "//", "/x"]
        bits += ["PRIVMSG #main :"] * 5
        watcher, ben = self.client("watcher", "#main"), self.plain("ben")
        ana, eva = self.client("ana", "#main"), self.plain("eva")
        watcher.hears()
        for _ in range(100):
            for peer in (ana.peer, eva):
                stream = b"".join(
                    [
                        " ".join(chance.choices(bits, k=chance.randint(1, 6))).encode()
                        + chance.choice([b"\n", b"\r\n", chance.randbytes(3) + b"\n"])
                        for _ in range(100)
                    ]
                )
                at = chance.randrange(len(stream))
                peer.connection.dataReceived(stream[:at])
                peer.connection.dataReceived(stream[at:])
                peer.waits(0.5)
                assert peer.transport.reading  # all of it was heeded
            watcher.peer.connection.dataReceived(b"PONG x\r\n")
            ana.hears()
        assert not ana.peer.hung_up
        assert not eva.hung_up
        for line in watcher.hears():
            source, command, *_ = line.split(" ")
            assert re.fullmatch(rf":[^ !@:#*,]{{1,32}}!{HOST}", source)
            assert command in ("JOIN", "PART", "QUIT", "NICK", "PRIVMSG")
        for heard in ben.heard.split(b"\n")[:-1]:
            assert valid(heard) or valid(heard.split(b" ", 1)[1])
        before = len(ben.heard)
        assert watcher.says("PRIVMSG #main :still here") == []
        assert ben.heard[before:] == b"watcher: still here\n"


class FormatTests(SynchronousTestCase):
    def test_a_line_is_a_command_and_its_parameters(self) -> None:
        for line, command, params in (
            (b"PING x", "PING", ["x"]),
            (b"@a=b;c :src!u@h privmsg  #a  :hi : there", "PRIVMSG", ["#a", "hi : there"]),
            (b"USER a 0 * :", "USER", ["a", "0", "*", ""]),
            (b":src", "", []),
            (b"@tags", "", []),
            (b"", "", []),
            (b"   ", "", []),
            (b" :x", "", []),
            (b"JOIN #a:b", "JOIN", ["#a:b"]),
        ):
            assert parsed(line) == (command, params), line

    def test_an_answer_is_one_line_whatever_it_repeats(self) -> None:
        assert message("401", "a b", ":x", "", "why\r\nQUIT\0") == (
            b":irc.roundhouse 401 a_b x * :why  QUIT \r\n"
        )
        assert len(message("401", "ñ" * 500, "x")) <= 512

    @settings(deadline=None, max_examples=300)
    @given(st.text(max_size=300), st.integers(4, 40))
    def test_pieces_are_whole_characters_and_all_of_the_text(self, text: str, size: int) -> None:
        cuts = list(pieces(text.encode("utf-8", "replace"), size))
        assert b"".join(cuts) == text.encode("utf-8", "replace")
        assert all(0 < len(piece) <= size for piece in cuts)
        assert all(piece.decode() for piece in cuts)
        assert cut(b"abc", 3) == b"abc"

    @settings(deadline=None, max_examples=300)
    @given(st.text(st.sampled_from("ab ñ\x02\x03\x07"), max_size=900))
    def test_any_text_becomes_lines_that_may_be_said_or_none(self, text: str) -> None:
        lines = lines_of(text)
        assert all(map(valid, lines))
        if lines:
            bare = re.sub("[\x02\x03]", "", text)
            assert b"".join(lines).decode() == bare
        elif len(text) <= LONGEST:
            assert not valid(text.replace("\x02", "").replace("\x03", "").encode())

    @settings(deadline=None, max_examples=300)
    @given(st.floats(0, 4e9))
    def test_a_stamp_is_the_time_in_utc(self, at: float) -> None:
        seconds, milliseconds = divmod(int(at * 1000), 1000)
        right = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        assert stamp(at) == f"{right}.{milliseconds:03}Z"

    def test_no_line_that_is_spelled_is_too_long(self) -> None:
        name, target = "😀" * 32, ("#" + "😀" * 32).encode()
        for kind in Kind:
            for part in spelled(Line("😀".encode() * 256, name, kind), target):
                assert len(part) <= 512 or kind is Kind.NICK
                assert part.endswith(b"\r\n")
                part.decode()
