"""chat, with a real room and without a socket."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from daemon.stores.ring import OWN, Ring
from daemon.stores.roster import Names
from protocols.chat import ERR, LONGEST_BYTES, SPEC, Options
from protocols.rooms import A_PAGE, A_TURN, LONGEST, MOST_RECALLED, PAUSE, valid
from protocols.stores import Stores
from tests.wire import House, Peer


class Room(House):
    """A chat service whose room is a real one."""

    def __init__(self, options: Options | None = None, roster: Names | None = None) -> None:
        clock = Clock()
        self.ring = Ring(clock)
        stores = Stores(None, None, None, self.ring, roster or Names())  # type: ignore[arg-type]
        super().__init__(SPEC, clock, stores=stores, options=options)

    def peers(self, count: int) -> list[Peer]:
        return [self.peer() for _ in range(count)]


def says(*chunks: bytes, ends: bool = False) -> bytes:
    """What a lone peer hears that says `chunks`."""
    (ana,) = Room().peers(1)
    ana.says(*filter(None, chunks))
    if ends:
        ana.ends()
    ana.waits(0)
    return ana.heard


def turn(clock: Clock) -> None:
    """One turn of the reactor: what is planned in it is for the next."""
    due = [call for call in clock.calls if call.getTime() <= clock.seconds()]
    for call in due:
        clock.calls.remove(call)
        call.called = 1
        call.func(*call.args, **call.kw)


def fine(text: bytes) -> bool:
    """WIRE chat, rule 3, word by word."""
    try:
        characters = text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return (
        characters.strip() != ""
        and len(characters) <= 256
        and not any(
            (unicodedata.category(c) == "Cc" and c != "\t") or c in "\u202d\u202e"
            for c in characters
        )
    )


def answers(stream: bytes) -> bytes:
    """What the lone sender of `stream` hears, FIN after it."""
    *lines, rest = stream.split(b"\n")
    lines += [rest] if rest else []
    texts = [line.removesuffix(b"\r") for line in lines]
    texts = [text[1:] if text.startswith(b"//") else text for text in texts]
    return b"".join(text + b"\n" if fine(text) else ERR for text in texts)


class LineTests(SynchronousTestCase):
    def test_a_line_goes_to_everyone_the_sender_too(self) -> None:
        ana, ben, eva = Room().peers(3)
        ana.says(b"hola\n")
        ben.says("¿qué tal?\n".encode())
        ana.waits(0)
        assert {peer.heard.decode() for peer in (ana, ben, eva)} == {"hola\n¿qué tal?\n"}

    def test_joining_and_leaving_are_silent(self) -> None:
        ana, ben = (room := Room()).peers(2)
        ben.resets()
        eva = room.peer()
        eva.ends()
        ana.waits(1)
        assert ana.heard == b""

    def test_crlf_is_taken_and_lf_is_sent(self) -> None:
        assert says(b"a\r\nb\r", b"\n") == b"a\nb\n"

    def test_blanks_inside_and_around_are_kept(self) -> None:
        assert says(b" \ta  b \t\n") == b" \ta  b \t\n"

    def test_a_character_may_be_cut(self) -> None:
        assert says(b"hol\xc3", b"\xb1\n") == "holñ\n".encode()

    def test_errors_go_to_the_sender_only_and_keep_their_place(self) -> None:
        ana, ben = Room().peers(2)
        ana.says(b"a\n\nb\n", b" \n\xff\nc\n")
        ana.waits(0)
        assert ana.heard == b"a\n" + ERR + b"b\n" + ERR + ERR + b"c\n"
        assert ben.heard == b"a\nb\nc\n"

    def test_256_characters_pass_and_one_more_does_not(self) -> None:
        for character in ("x", "ñ", "€", "😀", " x"):
            line = (character * LONGEST)[:LONGEST].encode()
            assert says(line + b"\n") == line + b"\n"
            assert says(line + b"\r\n") == line + b"\n"
            assert says(line + character[-1:].encode() + b"\n") == ERR

    def test_what_would_change_a_terminal_is_refused(self) -> None:
        for text in ("a\x00b", "\x1b[31mred", "a\rb", "a\r\r", "\x7f", "\x85", "\u202ea", "\u202d"):
            assert says(text.encode() + b"\n") == ERR
        for text in ("\u2028", "\u200f", "\u2066", "\ufeff"):
            assert says(f"a{text}\n".encode()) == f"a{text}\n".encode()

    def test_blank_is_what_unicode_calls_blank(self) -> None:
        for text in ("", " ", "\t \t", "\u3000", "\xa0 ", "\u2028"):
            assert says(text.encode() + b"\n") == ERR

    def test_an_endless_line_is_one_error_as_soon_as_it_is_too_long(self) -> None:
        room = Room()
        ana, ben = room.peers(2)
        ana.says(b"x" * LONGEST_BYTES)
        assert ana.heard == b""
        ana.says(b"x")
        assert ana.heard == ERR
        ana.says(*[b"x" * 60_000] * 10)
        ana.says(b"\nok\n")
        ana.waits(0)
        assert ana.heard == ERR + b"ok\n"
        assert ben.heard == b"ok\n"

    def test_good_lines_that_share_a_read_with_an_overlong_one_are_kept(self) -> None:
        assert says(b"a\n" + b"x" * 2000 + b"\nb\n") == b"a\n" + ERR + b"b\n"

    def test_no_pair_of_cuts_changes_what_is_heard(self) -> None:
        stream = "a\r\n\n ñ\n\x1b\n€\r\nb\r\r\n/x\nlast".encode() + b"\xff\n \n\t.\n\xc3\xb1\r"
        for one in range(len(stream)):
            for two in range(one, len(stream)):
                pieces = (stream[:one], stream[one:two], stream[two:])
                assert says(*pieces, ends=True) == answers(stream)

    @settings(deadline=None, max_examples=200)
    @given(
        st.lists(
            st.one_of(
                st.text("añ \t\r\n\u202e\u3000\x85", max_size=6).map(str.encode),
                st.binary(max_size=4),
                st.sampled_from([b"x" * 256, b"x" * 257, "😀".encode() * 256, b"x" * 1100, b"\n"]),
            ),
            max_size=8,
        )
    )
    def test_whatever_is_said_is_judged_by_the_rules(self, pieces: list[bytes]) -> None:
        assert says(*pieces, ends=True) == answers(b"".join(pieces))

    @settings(deadline=None, max_examples=300)
    @given(st.text(max_size=300).map(lambda text: text.encode().replace(b"\n", b"")))
    def test_any_line_is_valid_exactly_by_the_rules(self, text: bytes) -> None:
        assert valid(text) == fine(text)


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.room = Room()
        self.ana, self.ben, self.eva = self.room.peers(3)

    def hears(self, peer: Peer, *commands: str) -> str:
        """What one more hears from now on, saying `commands` in one go."""
        peer.waits(1)
        before = len(peer.heard)
        peer.says("".join([f"{command}\n" for command in commands]).encode())
        peer.waits(1)
        return peer.heard[before:].decode()

    def named(self) -> None:
        """ana and ben have names, eva has none."""
        self.hears(self.ana, "/nick ana")
        self.hears(self.ben, "/nick Ben")

    def test_what_a_peer_with_a_name_says_goes_out_under_it(self) -> None:
        assert (
            self.hears(self.ana, "a", "/nick ana", "b", "c")
            == "a\n*** You are ana\nana: b\nana: c\n"
        )
        assert self.ben.heard == self.eva.heard == b"a\nana: b\nana: c\n"

    def test_whoever_uses_no_command_hears_of_none(self) -> None:
        self.named()
        self.hears(
            self.ana,
            "/who",
            "/msg Ben psst",
            "/join dev",
            "/history",
            "/help",
            "/rooms",
            "/nick eva",
        )
        self.ben.resets()
        self.eva.waits(1)
        assert self.eva.heard == b""

    def test_names_are_unique_however_they_are_written(self) -> None:
        self.named()
        for name in ("ANA", "ben", "\uff42\uff45\uff4e"):
            assert self.hears(self.eva, f"/nick {name}") == f"*** {name} is taken\n"
        assert self.hears(self.ana, "/nick Ana", "x") == "*** You are Ana\nAna: x\n"

    def test_a_name_is_free_again_once_it_is_not_borne(self) -> None:
        self.named()
        self.hears(self.ana, "/nick bea")
        self.ben.resets()
        assert (
            self.hears(self.eva, "/nick ana", "/nick ben") == "*** You are ana\n*** You are ben\n"
        )

    def test_a_name_that_would_break_a_wire_is_refused_with_the_reason(self) -> None:
        for name, why in (
            ("a b", "a name has no blanks and no control characters"),
            ("a\u202db", "a name has no blanks and no control characters"),
            ("x" * 33, "a name has 1 to 32 characters"),
            ("a:b!", "a name has no ! :"),
            ("\uff20x", "a name has no @"),
            ("Guest", "nobody may be called Guest"),
        ):
            assert self.hears(self.ana, f"/nick {name}") == f"*** Not done: {why}\n"
        assert self.hears(self.ana, "/nick", "x") == "*** You have no name: /nick NAME\nx\n"

    def test_without_a_name_one_neither_acts_nor_whispers(self) -> None:
        self.named()
        said = self.hears(self.eva, "/me waves", "/msg ana hi")
        assert said == "*** Choose a name first: /nick NAME\n" * 2
        assert self.ana.heard == b"*** You are ana\n"

    def test_everybody_sees_what_one_does(self) -> None:
        self.named()
        assert self.hears(self.ana, "/me waves") == "* ana waves\n"
        assert self.eva.heard == b"* ana waves\n"
        for text in ("/me", "/me  ", "/me a\x1bb", "/me " + "x" * 257):
            assert self.hears(self.ana, text) == "ERR Invalid message\n"
        assert len(self.hears(self.ana, "/me " + "\U0001f600" * 256)) == 256 + len("* ana \n")

    def test_a_whisper_reaches_one_alone(self) -> None:
        self.named()
        assert self.hears(self.ana, "/msg BEN how are you?") == "-> *Ben* how are you?\n"
        assert self.ben.heard.endswith(b"*ana* how are you?\n")
        assert self.eva.heard == b""
        assert self.hears(self.ana, "/msg bob hi") == "*** Nobody is called bob\n"
        assert (
            self.hears(self.ana, "/msg Ben", "/msg", "/msg Ben \x07") == "ERR Invalid message\n" * 3
        )

    def test_who_whispers_to_one_that_does_not_read_waits_and_nothing_is_lost(self) -> None:
        self.named()
        self.ben.transport.full = True
        self.ana.connection.dataReceived((b"/msg ben " + b"x" * 256 + b"\n") * 300)
        self.ana.waits(PAUSE / 2)
        told = self.ana.heard.count(b"-> *Ben*")
        assert OWN // 263 <= told < 300
        assert not self.ana.transport.reading
        self.eva.says(b"still here\n")
        assert self.hears(self.eva, "x").endswith("x\n")
        self.ben.transport.full = False
        self.ben.transport.producer.resumeProducing()
        self.ana.waits(PAUSE)
        assert self.ana.heard.count(b"-> *Ben*") == 300
        assert self.ben.heard.count(b"*ana* x") == 300
        assert self.ana.transport.reading

    def test_rooms_hear_only_their_own(self) -> None:
        self.named()
        assert self.hears(self.ana, "/join Dev", "x") == "*** In dev: ana\nana: x\n"
        assert self.hears(self.eva, "y") == "y\n"
        assert self.ana.heard.endswith(b"ana: x\n")
        assert b"ana: x" not in self.ben.heard
        assert self.hears(self.ben, "/join #dev", "z") == "*** In dev: ana, Ben\nBen: z\n"
        assert self.hears(self.eva, "/rooms") == "*** Rooms: dev (2), main (1)\n"
        assert (
            self.hears(self.ben, "/join main", "/who") == "*** In main: Ben, 1 without a name\n" * 2
        )
        assert self.hears(self.eva, "/join a,b", "/join") == (
            "*** Not done: a name has no ,\n*** Not done: a name has 1 to 32 characters\n"
        )

    def test_there_is_a_most_of_rooms(self) -> None:
        self.room.set(rooms=2, history=0)
        self.hears(self.ana, "/join a")
        assert self.hears(self.ben, "/join b") == "*** Not done: there are too many rooms\n"
        assert self.hears(self.ben, "/who") == "*** In main: 2 without a name\n"

    def test_who_is_there_tells_those_without_a_name_by_their_number(self) -> None:
        self.named()
        assert self.hears(self.eva, "/who") == "*** In main: ana, Ben, 1 without a name\n"
        assert self.hears(self.eva, "/who nowhere") == "*** In nowhere: nobody\n"

    def test_a_long_list_goes_on_in_another_line(self) -> None:
        for number, peer in enumerate(self.room.peers(60)):
            self.hears(peer, f"/nick somebody-{number:03}")
        lines = self.hears(self.eva, "/who").splitlines()
        assert len(lines) == 3
        assert all(line.startswith("*** ") and len(line) <= 404 for line in lines)
        assert " ".join(lines).count("somebody-") == 60

    def test_history_is_given_only_if_asked_for_and_with_its_time(self) -> None:
        self.named()
        self.hears(self.ana, "one", "/me waves")
        self.hears(self.eva, "two")
        (new,) = self.room.peers(1)
        shown = self.hears(new, "/history").splitlines()
        stamp = r"\*\*\* \d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
        for line, said in zip(shown, ("ana: one", r"\* ana waves", "two"), strict=True):
            assert re.fullmatch(stamp + said, line)
        assert self.hears(new, "/history 1") == shown[2] + "\n"
        assert self.hears(new, "/history x") == "*** Not done: 'x' is not a whole number\n"
        assert self.hears(new, "/join empty", "/history").endswith("*** No history of empty\n")

    def test_history_neither_lacks_nor_repeats_what_the_same_turn_says(self) -> None:
        assert self.hears(self.ana, "a", "/history", "b").splitlines()[0::2] == ["a", "b"]
        assert self.ana.heard.count(b"a\n") == 2

    def test_a_long_history_takes_its_turns_with_the_others(self) -> None:
        room = Room(Options(history=10_000))
        ana, eva = room.peers(2)
        lines = [b"%d" % number for number in range(5 * A_PAGE)]
        for first in range(0, len(lines), 100):
            ana.says(b"\n".join(lines[first : first + 100]) + b"\n")
            ana.waits(0)
        before = len(eva.heard)
        asked: list[int] = []
        past = Ring.history

        def history(ring: Ring, room: str, most: int, before: int | None = None) -> Any:
            asked.append(most)
            return past(ring, room, most, before)

        self.patch(Ring, "history", history)
        eva.says(b"/history %d\n" % (5 * A_PAGE - 1))
        for number in range(1, 6):
            assert len(asked) == number
            ana.says(b"meanwhile\n")
            turn(room.clock)
        eva.waits(0)
        assert asked == [A_PAGE] * 4 + [A_PAGE - 1]
        heard = eva.heard[before:].splitlines()
        told = [line.split(b" ")[-1] for line in heard if line.startswith(b"*** ")]
        assert told == lines[1:]
        assert heard.count(b"meanwhile") == 5

    def test_of_a_history_no_more_is_told_than_may_wait_for_a_reader(self) -> None:
        room = Room(Options(history=100_000))
        (ana,) = room.peers(1)
        line = b"x" * LONGEST + b"\n"
        for _ in range(60):
            ana.says(line * 100)
            ana.waits(0)
        before = len(ana.heard)
        ana.says(b"/history 100000\n")
        ana.waits(0.1)
        for _ in range(20):
            ana.waits(0)
        size = len(ana.heard) - before
        assert MOST_RECALLED <= size < MOST_RECALLED + A_PAGE * 300

    def test_help_names_every_command(self) -> None:
        shown = self.hears(self.ana, "/help")
        for command in [
            "/nick",
            "/me",
            "/msg",
            "/join",
            "/rooms",
            "/who",
            "/history",
            "/quit",
            "//",
        ]:
            assert f"*** {command}" in shown
        assert all(line.startswith("*** ") for line in shown.splitlines())

    def test_quit_leaves_and_drops_what_follows_it(self) -> None:
        self.ana.says(b"a\n/quit\nb\n")
        self.ana.waits(1)
        assert self.ana.heard == b"a\n"
        assert self.ana.hung_up
        assert self.ben.heard == b"a\n"
        assert self.ana.outcome == "left"

    def test_only_known_words_at_the_start_are_commands(self) -> None:
        for text in (
            "/x",
            "/",
            "/Who",
            "/whoever",
            " /who",
            "a /who",
            "/ who",
            "/who\tx",
            "/usr/bin",
        ):
            assert self.hears(self.ana, text) == f"{text}\n"
        assert self.hears(self.ana, "//who", "///") == "/who\n//\n"
        line = "/" + "x" * 255
        assert self.hears(self.ana, "/" + line, "/x" + line) == line + "\nERR Invalid message\n"

    def test_commands_take_crlf_too(self) -> None:
        self.ana.says(b"/nick ana\r\n/me waves\r\n")
        self.ana.waits(1)
        assert self.ana.heard == b"*** You are ana\n* ana waves\n"

    def test_a_command_that_is_not_utf8_is_an_error(self) -> None:
        self.ana.says(b"/nick \xff\n/msg \xff x\n")
        self.ana.waits(1)
        assert self.ana.heard == ERR + b"*** Choose a name first: /nick NAME\n"

    def test_off_all_of_it_is_text(self) -> None:
        (ana,) = Room(Options(commands=False)).peers(1)
        said = b"/nick ana\n//x\n/quit\n"
        ana.says(said)
        ana.waits(1)
        assert ana.heard == said

    def test_a_silence_ends_a_command_too(self) -> None:
        (ana,) = Room(Options(flush_after=300)).peers(1)
        for text in (b"/nick ana", b"hola"):
            ana.says(text)
            ana.waits(0.3)
            ana.waits(0)
        assert ana.heard == b"*** You are ana\nana: hola\n"

    def test_commands_before_fin_are_carried_out(self) -> None:
        self.ana.says(b"/nick ana\nhola\n/who")
        self.ana.ends()
        self.ana.waits(1)
        assert self.ana.heard == b"*** You are ana\nana: hola\n*** In main: ana, 2 without a name\n"
        assert self.ana.hung_up
        assert self.ben.heard == b"ana: hola\n"

    def test_a_flood_of_commands_is_answered_one_a_turn_and_read_on_only_then(self) -> None:
        self.ana.connection.dataReceived(b"/who\n" * 5 + b"x\n")
        assert self.ana.heard.count(b"***") == 1
        assert not self.ana.transport.reading
        self.ana.waits(1)
        assert self.ana.heard == b"*** In main: 3 without a name\n" * 5 + b"x\n"
        assert self.ana.transport.reading

    def test_who_ends_before_it_has_read_its_answers_gets_them_all_and_the_end(self) -> None:
        self.ana.transport.full = True
        self.ana.connection.dataReceived(b"/help\n" * 500)
        self.ana.ends()
        self.ana.waits(1)
        assert not self.ana.hung_up
        self.ana.transport.full = False
        self.ana.transport.producer.resumeProducing()
        self.ana.waits(1)
        assert self.ana.heard.count(b"/nick NAME") == 500
        assert self.ana.transport.closed

    def test_without_history_none_is_kept(self) -> None:
        (ana,) = Room(Options(history=0)).peers(1)
        ana.says(b"a\n")
        ana.waits(1)
        ana.says(b"/history\n")
        ana.waits(1)
        assert ana.heard == b"a\n*** No history of main\n"

    def test_who_does_not_read_its_answers_is_not_answered_any_more(self) -> None:
        self.ana.transport.full = True
        self.ana.connection.dataReceived(b"/help\n" * 2000)
        self.ana.waits(1)
        assert not self.ana.transport.reading
        help = len(self.ana.heard)
        self.ana.transport.full = False
        self.ana.transport.producer.resumeProducing()
        self.ana.waits(1)
        assert len(self.ana.heard) == help * 2000
        assert self.ana.transport.reading


class SlowRoster(Names):
    """A roster somewhere else: its answer takes its time."""

    asked: ClassVar[list[tuple[Deferred[bool], str, Any]]] = []

    def claim(self, name: str, who: Any) -> Deferred[bool]:
        answer: Deferred[bool] = Deferred()
        self.asked.append((answer, name, who))
        return answer

    def answer(self) -> None:
        answer, name, who = self.asked.pop()
        super().claim(name, who).chainDeferred(answer)


class WaitingTests(SynchronousTestCase):
    """What an answer of a store is waited for with."""

    def setUp(self) -> None:
        self.roster = SlowRoster()
        self.room = Room(roster=self.roster)
        self.ana, self.ben = self.room.peers(2)

    def test_what_follows_a_command_waits_for_its_answer_and_only_that_of_the_peer(self) -> None:
        self.ana.says(b"/nick ana\nx\n")
        self.ben.says(b"y\n")
        self.ana.waits(1)
        assert self.ana.heard == b"y\n"
        assert not self.ana.transport.reading
        self.roster.answer()
        self.ana.waits(1)
        assert self.ana.heard == b"y\n*** You are ana\nana: x\n"
        assert self.ana.transport.reading

    def test_a_half_closed_peer_is_waited_for(self) -> None:
        self.ana.says(b"/nick ana\nx\n")
        self.ana.ends()
        self.ana.waits(1)
        assert not self.ana.hung_up
        self.roster.answer()
        self.ana.waits(1)
        assert self.ana.heard == b"*** You are ana\nana: x\n"
        assert self.ana.transport.closed

    def test_a_name_for_one_that_is_gone_is_nobodys(self) -> None:
        self.ana.says(b"/nick ana\n")
        self.ana.resets()
        self.roster.answer()
        assert self.successResultOf(self.roster.find("ana")) is None
        self.ana.waits(1)
        assert self.ana.clock.getDelayedCalls() == []

    def test_a_store_that_fails_costs_that_peer_alone(self) -> None:
        self.ana.says(b"/nick ana\n")
        self.roster.asked.pop()[0].errback(RuntimeError("no"))
        assert len(self.flushLoggedErrors(RuntimeError)) == 1
        assert self.ana.hung_up
        assert self.ana.outcome == "failed"
        self.ben.says(b"y\n")
        self.ben.waits(1)
        assert self.ben.heard == b"y\n"


class HostileTests(SynchronousTestCase):
    @settings(deadline=None, max_examples=400)
    @given(
        st.lists(
            st.one_of(
                st.binary(max_size=8),
                st.text(max_size=8).map(lambda text: text.encode("utf-8", "replace")),
                st.sampled_from(
                    [
                        *[b"/%b " % word for word in (b"nick", b"me", b"msg", b"join", b"history")],
                        *[b"/who\n", b"/rooms\n", b"/help\n", b"//", b"/", b"\n", b"\r\n", b" "],
                        *[b"eva", b"ben", b"main", b"\xff", b"\x00", "\u202e".encode(), b"9" * 20],
                        *[b"x" * 256, b"x" * 2000, b"#", b":", "\U0001f600".encode() * 33],
                    ]
                ),
            ),
            max_size=12,
        ),
    )
    def test_whatever_is_sent_is_answered_in_lines_and_spoils_nothing(
        self, pieces: list[bytes]
    ) -> None:
        """No exception (the peer would fail), nothing forged, neighbours unharmed."""
        room = Room()
        ana, ben, eva = room.peers(3)
        eva.says(b"/nick eva\n")
        eva.waits(1)
        for piece in pieces:
            ana.connection.dataReceived(piece)
            ana.waits(0.1)
        assert ana.outcome != "failed"
        before = len(ben.heard)
        eva.says(b"still here\n")
        ben.waits(1)
        assert ben.heard[before:] == b"eva: still here\n"
        for line in ana.heard.split(b"\n")[:-1]:
            assert line == ERR.rstrip() or line.startswith(b"*** ") or fine(line[-256:])
        for line in ben.heard.split(b"\n")[:-1]:
            assert fine(line.split(b": ", 1)[-1])


class RoomTests(SynchronousTestCase):
    def test_everybody_hears_one_order(self) -> None:
        peers = Room().peers(4)
        for number in range(40):
            peers[number % 4].says(b"m%d\n" % number)
            if number % 7 == 0:
                peers[0].waits(0)
        peers[0].waits(1)
        assert {peer.heard for peer in peers} == {b"".join(b"m%d\n" % n for n in range(40))}

    def test_who_waits_in_the_backlog_hears_what_is_sent_next(self) -> None:
        room = Room()
        late: list[Peer] = []
        room.ring.accept = lambda: late.append(room.peer())
        ana = room.peer()
        ana.says(b"a\n")
        ana.waits(0)
        assert late[0].heard == b"a\n"

    def test_the_port_asks_for_that(self) -> None:
        assert [(port.number, port.broadcasts) for port in SPEC.ports] == [
            (60060, True),
            (6667, True),
        ]
        assert SPEC.stores == {"broadcast", "roster"}

    def test_a_slow_peer_is_cut_and_costs_no_neighbour(self) -> None:
        room = Room()
        ana, ben = room.peers(2)
        ben.transport.full = True
        said = b"x" * 200 + b"\n"
        for _ in range(100):
            ana.says(said * 100)
            ana.waits(0.05)
        ben.transport.settle()
        assert ben.transport.reset
        assert ben.outcome == "slow"
        assert ben.heard == said * 100
        assert ana.heard == said * 10_000
        assert ana.connection.live.outcomes == {"slow": 1}

    def test_a_peer_that_reads_no_errors_is_not_read_until_it_does(self) -> None:
        (ana,) = Room().peers(1)
        ana.transport.full = True
        ana.says(b"\n" * 10)
        ana.says(*[b"\n" * 1000] * 4)
        assert not ana.transport.reading
        assert ana.heard == ERR * 10
        ana.transport.full = False
        ana.transport.producer.resumeProducing()
        assert ana.transport.reading
        assert ana.heard == ERR * 4010


class FloodTests(SynchronousTestCase):
    """Many tiny lines in one read."""

    def setUp(self) -> None:
        self.ana, self.ben = Room().peers(2)

    def test_a_flood_is_published_a_part_a_turn_and_not_read_on_meanwhile(self) -> None:
        self.ana.says(b"a\n" * (A_TURN * 2 + 1))
        assert not self.ana.transport.reading
        self.ana.waits(0)
        assert self.ana.transport.reading
        self.ana.says(b"b\n")
        self.ana.waits(1)
        assert self.ana.heard == self.ben.heard == b"a\n" * (A_TURN * 2 + 1) + b"b\n"

    def test_what_is_read_all_the_same_keeps_its_order(self) -> None:
        self.ana.connection.dataReceived(b"a\n" * (A_TURN + 1))
        self.ana.connection.dataReceived(b"\nb\n")
        self.ana.waits(1)
        assert self.ana.heard == b"a\n" * (A_TURN + 1) + ERR + b"b\n"

    def test_whoever_ends_meanwhile_has_said_it_all(self) -> None:
        self.ana.says(b"a\n" * (A_TURN + 1) + b"b")
        self.ana.ends()
        self.ana.waits(1)
        assert self.ana.heard == self.ben.heard == b"a\n" * (A_TURN + 1) + b"b\n"
        assert self.ana.transport.closed

    def test_whoever_is_gone_meanwhile_says_no_more(self) -> None:
        self.ana.says(b"a\n" * (A_TURN * 3))
        self.ana.resets()
        self.ben.waits(1)
        assert self.ben.heard == b"a\n" * A_TURN

    def test_reading_goes_on_only_once_the_errors_are_taken_too(self) -> None:
        self.ana.transport.full = True
        self.ana.says(b"\n" * A_TURN * 4)
        self.ana.waits(1)
        assert not self.ana.transport.reading
        self.ana.transport.full = False
        self.ana.transport.producer.resumeProducing()
        self.ana.waits(1)
        assert self.ana.transport.reading
        assert self.ana.heard == ERR * A_TURN * 4


class EndTests(SynchronousTestCase):
    def test_an_unterminated_last_line_counts_at_fin(self) -> None:
        ana, ben = Room().peers(2)
        ana.says(b"a\nadios\r")
        ana.ends()
        ana.waits(0)
        assert ana.heard == ben.heard == b"a\nadios\n"
        assert ana.transport.closed
        assert not ben.hung_up

    def test_a_half_closed_peer_gets_what_was_published_up_to_then_and_no_more(self) -> None:
        ana, ben = Room().peers(2)
        ben.says(b"1\n")
        ana.says(b"2\n", b"\n")
        ana.ends()
        ben.says(b"3\n")
        assert not ana.hung_up
        ana.waits(0)
        assert ana.heard == b"1\n2\n" + ERR
        assert ben.heard == b"1\n2\n3\n"
        assert ana.outcome == "left"

    def test_a_half_closed_peer_that_is_slow_is_waited_for(self) -> None:
        ana, ben = Room().peers(2)
        ana.transport.full = True
        ben.says(b"1\n")
        ana.waits(0)
        ana.says(b"2\n")
        ana.ends()
        ana.waits(1)
        assert (ana.heard, ana.hung_up) == (b"1\n", False)
        ana.transport.full = False
        ana.transport.producer.resumeProducing()
        assert ana.heard == b"1\n2\n"
        assert ana.transport.closed

    def test_a_last_line_that_is_wrong_is_told(self) -> None:
        assert says(b"a\n\xff", ends=True) == b"a\n" + ERR
        assert says(b"x" * 2000, ends=True) == ERR

    def test_nothing_said_is_nothing_heard(self) -> None:
        assert says(ends=True) == b""

    def test_a_peer_that_is_gone_is_not_written_to(self) -> None:
        ana, ben = (room := Room()).peers(2)
        ana.says(b"a\n")
        ana.resets()
        ben.waits(0)
        assert ana.heard == b""
        assert ben.heard == b"a\n"
        assert ana.connection.live.outcomes == {"reset": 1}
        assert len(room.factories["PORT"].live) == 1

    def test_a_drain_delivers_what_was_said_then_closes(self) -> None:
        room = Room()
        ana, ben = room.peers(2)
        ana.says(b"a\n")
        for peer in (ana, ben):
            peer.connection.drain(5)
        ana.waits(0)
        assert ana.heard == ben.heard == b"a\n"
        assert ana.hung_up
        assert ben.hung_up
        assert ana.outcome == "drained"

    def test_silence_closes_only_if_it_is_asked_for(self) -> None:
        (ana,) = Room().peers(1)
        ana.waits(1e6)
        assert not ana.hung_up
        (ana,) = Room(Options(idle_timeout=4.0)).peers(1)
        ana.clock.pump([1.0] * 5)
        assert ana.hung_up
        assert ana.outcome == "silent"
        ana.ends()
        ana.waits(2)
        assert ana.clock.getDelayedCalls() == []


class FlushTests(SynchronousTestCase):
    """FLUSH_AFTER."""

    def peers(self, count: int = 1) -> list[Peer]:
        return Room(Options(flush_after=300)).peers(count)

    def test_it_is_off_unless_asked_for(self) -> None:
        (ana,) = Room().peers(1)
        ana.says(b"hola")
        ana.waits(100)
        assert ana.heard == b""

    def test_a_silence_ends_a_line(self) -> None:
        ana, ben = self.peers(2)
        ana.says(b"hola")
        ana.waits(0.2)
        ana.says(b" mundo")
        ana.waits(0.2)
        assert ben.heard == b""
        ana.waits(0.1)
        ana.waits(0)
        ana.says(b"adios\r")
        ana.waits(0.3)
        ana.waits(0)
        assert ana.heard == ben.heard == b"hola mundo\nadios\n"

    def test_a_line_ended_by_silence_is_judged_like_any_other(self) -> None:
        (ana,) = self.peers()
        ana.says(b"   ")
        ana.waits(0.3)
        ana.says(b"\xff")
        ana.waits(0.3)
        assert ana.heard == ERR + ERR

    def test_it_never_applies_to_a_peer_that_has_sent_an_lf(self) -> None:
        (ana,) = self.peers()
        ana.says(b"a\nb")
        ana.waits(10)
        assert ana.heard == b"a\n"
        ana.says(b"c\n")
        ana.waits(0)
        assert ana.heard == b"a\nbc\n"

    def test_one_lf_right_after_flushed_text_ends_it(self) -> None:
        for end in ([b"\n"], [b"\r\n"], [b"\r", b"\n"]):
            (ana,) = self.peers()
            ana.says(b"hola")
            ana.waits(0.3)
            for part in end:
                ana.says(part)
                ana.waits(1)
            assert ana.heard == b"hola\n"
            ana.says(b"\nb\n")
            ana.waits(0)
            assert ana.heard == b"hola\n" + ERR + b"b\n"

    def test_two_lfs_after_flushed_text_are_a_blank_line(self) -> None:
        (ana,) = self.peers()
        ana.says(b"hola")
        ana.waits(0.3)
        ana.says(b"\n\n")
        ana.waits(0)
        assert ana.heard == b"hola\n" + ERR

    def test_an_lf_after_more_text_ends_that(self) -> None:
        (ana,) = self.peers()
        ana.says(b"hola")
        ana.waits(0.3)
        ana.says(b"x", b"\n", b"\n")
        ana.waits(0)
        assert ana.heard == b"hola\nx\n" + ERR

    def test_a_cut_character_waits_for_its_rest(self) -> None:
        (ana,) = self.peers()
        ana.says(b"hol\xc3")
        ana.waits(10)
        assert ana.heard == b""
        ana.says(b"\xb1")
        ana.waits(0.3)
        ana.waits(0)
        assert ana.heard == "holñ\n".encode()

    def test_an_overlong_line_is_ended_by_silence_too(self) -> None:
        (ana,) = self.peers()
        ana.says(b"x" * 2000)
        ana.waits(0.3)
        ana.says(b"hola")
        ana.waits(0.3)
        ana.waits(0)
        assert ana.heard == ERR + b"hola\n"

    def test_the_lf_of_an_overlong_line_that_silence_ended_is_no_blank_line(self) -> None:
        (ana,) = self.peers()
        ana.says(b"x" * 2000)
        ana.waits(0.3)
        ana.says(b"\nhola\n")
        ana.waits(0)
        assert ana.heard == ERR + b"hola\n"

    def test_fin_comes_before_the_silence(self) -> None:
        for last in (b"hola", b"hola\r"):
            (ana,) = self.peers()
            ana.says(last)
            ana.ends()
            ana.waits(1)
            assert ana.heard == b"hola\n"
            assert ana.clock.getDelayedCalls() == []

    def test_a_cr_after_flushed_text_is_no_line_at_fin_either(self) -> None:
        (ana,) = self.peers()
        ana.says(b"hola")
        ana.waits(0.3)
        ana.says(b"\r")
        ana.ends()
        ana.waits(0)
        assert ana.heard == b"hola\n"

    def test_a_reload_changes_it_for_new_peers_only(self) -> None:
        room = Room()
        (old,) = room.peers(1)
        room.set(flush_after=300)
        (new,) = room.peers(1)
        old.says(b"old")
        new.says(b"new")
        new.waits(0.3)
        new.waits(0)
        assert old.heard == new.heard == b"new\n"
