"""chat on a terminal: the input line stays where it is, and what is said appears above it.

Nothing of the network is held back by the terminal: what comes faster than it can be read is
counted instead of shown, so that the server never takes us for a slow reader.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime

from attrs import define, field
from prompt_toolkit import PromptSession, print_formatted_text
from prompt_toolkit.application import run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText

from client.chat_lines import ANSWER, Fragments, Known, dated
from client.net import Address, Failed, Socket, dial, reason, speaks_tls, wants_tls
from client.terminal import counted, shown

WAITS = (1.0, 2.0, 5.0, 10.0)  # seconds before each try to connect again; the last for good
PATIENCE = 2.0  # seconds for such a try
TICK = 0.05  # seconds between two showings
MOST = 300  # lines of one showing; earlier ones are only counted
LONGEST = 65536  # bytes of a line that are waited for its end
CHUNK = 65536

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Words(Completer):
    """TAB: commands at the start, then names, and rooms after /join."""

    def __init__(self, known: Known) -> None:
        self._known = known

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        before = document.text_before_cursor
        length = len(before.rpartition(" ")[2])
        return [Completion(f"{word} ", -length) for word in self._known.completions(before)]


@define(eq=False, repr=False)
class Screen:
    """One conversation. nick, room: what to ask for at the start, and after a new connection."""

    address: Address
    nick: str
    room: str
    known: Known = field(factory=Known, init=False)
    clock: Callable[[], datetime] = datetime.now
    _session: PromptSession[str] = field(init=False)
    _writer: asyncio.StreamWriter | None = field(default=None, init=False)
    _waiting: deque[bytes] = field(factory=lambda: deque(maxlen=MOST), init=False)
    _error: BaseException | None = field(default=None, init=False)
    _missed: int = field(default=0, init=False)  # lines that were pushed out of _waiting
    _more: asyncio.Event = field(factory=asyncio.Event, init=False)

    async def talk(self, sock: Socket) -> None:
        """Until Ctrl-D or /quit. sock: the first connection; later ones are made here.

        Raise Failed where TLS cannot be spoken.
        """
        streams = await self._open(sock)
        self._session = PromptSession(
            message=lambda: f"{self.known.nick}> ",
            completer=Words(self.known),
            complete_while_typing=False,
            bottom_toolbar=self._status,
            erase_when_done=True,
            enable_suspend=True,
        )
        tasks = [
            asyncio.create_task(self._stay(*streams)),
            asyncio.create_task(self._keep_showing()),
        ]
        for task in tasks:
            task.add_done_callback(self._failed)
        try:
            await self._prompt()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                self._show()
            finally:
                await self._leave()

    def _failed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._error = task.exception()
            if self._session.app.is_running:
                self._give_up()

    def _give_up(self) -> None:
        if self._error is not None:
            self._session.app.exit(exception=self._error)

    async def _prompt(self) -> None:
        kept = ""
        while True:
            try:
                text = await self._session.prompt_async(default=kept, pre_run=self._give_up)
            except EOFError:
                return
            kept = ""
            if text.split()[:1] == ["/quit"]:
                return
            if self._writer is None:
                kept = text
                self._note("not connected: press Enter again later")
                continue
            for line in text.splitlines():
                if line.strip():
                    self.known.typed(line)
                    self._writer.write(line.encode(errors="replace") + b"\n")

    async def _open(self, sock: Socket) -> Streams:
        """Raise Failed."""
        tls = self.address.tls
        if tls is None:
            return await asyncio.open_connection(sock=sock, limit=CHUNK)
        try:
            tls.session(self.address, ssl.MemoryBIO(), ssl.MemoryBIO())  # asyncio trusts the name
            return await asyncio.open_connection(
                sock=sock,
                limit=CHUNK,
                ssl=tls.context,
                server_hostname=tls.name(self.address),
                ssl_handshake_timeout=PATIENCE,
            )
        except Failed:
            sock.close()
            raise
        except ssl.SSLError as error:
            raise tls.failure(self.address, error) from None
        except OSError as error:
            raise tls.broken_off(self.address, error) from None

    async def _stay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Be connected, again and again."""
        while True:
            self._writer = writer
            self._introduce()
            why = await self._listen(reader)
            self._writer = None
            await _closed(writer)
            self._note(f"{self.address} {why}; trying to connect again")
            reader, writer = await self._again()
            self._note(f"connected to {self.address} again")

    def _introduce(self) -> None:
        assert self._writer is not None
        self.nick, self.room = self.known.nick or self.nick, self.known.room or self.room
        self.known.nick = self.known.room = ""  # until the server says so again
        for command, word in (("/nick", self.nick), ("/join", self.room)):
            if word:
                self.known.typed(f"{command} {word}")
                self._writer.write(f"{command} {word}\n".encode())

    async def _listen(self, reader: asyncio.StreamReader) -> str:
        """Take lines until the connection ends; how it did."""
        rest = b""
        try:
            while data := await reader.read(CHUNK):
                if self.address.tls is None and speaks_tls(data):
                    raise wants_tls(self.address)
                *lines, rest = (rest + data).split(b"\n")
                if len(rest) > LONGEST:
                    lines.append(rest)
                    rest = b""
                self._take(lines)
        except OSError as error:
            tls = self.address.tls
            if tls is not None and (refusal := tls.refusal(self.address, error)) is not None:
                raise refusal from None
            return f"broke the connection ({reason(error)})"
        self._take([rest] if rest else [])
        return "closed the chat"

    async def _again(self) -> Streams:
        tries = 0
        while True:
            await asyncio.sleep(WAITS[min(tries, len(WAITS) - 1)])
            tries += 1
            with suppress(Failed):
                return await self._open(await asyncio.to_thread(dial, self.address, PATIENCE))

    def _note(self, text: str) -> None:
        self._take([f"{ANSWER}{text}".encode()])

    def _take(self, lines: list[bytes]) -> None:
        self._missed += max(0, len(self._waiting) + len(lines) - MOST)
        self._waiting.extend(lines)
        self._more.set()

    async def _keep_showing(self) -> None:
        while True:
            await self._more.wait()
            self._more.clear()
            await run_in_terminal(self._show)
            await asyncio.sleep(TICK)

    def _show(self) -> None:
        """What waits, in one write."""
        now = self.clock()
        fragments: Fragments = []
        if self._missed:
            text = f"{ANSWER}{counted(self._missed, 'line')} went by too fast to be shown\n"
            fragments += dated(text, now)
        for data in self._waiting:
            line = shown(data)
            self.known.heard(line)
            fragments += [*dated(line, now), ("", "\n")]
        self._waiting.clear()
        self._missed = 0
        if fragments:
            print_formatted_text(FormattedText(fragments), end="", output=self._session.app.output)

    def _status(self) -> str:
        state = "" if self._writer is not None else " - not connected"
        room = f" - {self.known.room}" if self.known.room else ""
        return f" {self.address}{room}{state} - /help, Ctrl-D leaves"

    async def _leave(self) -> None:
        """Let go out what was typed last."""
        if self._writer is not None:
            await _closed(self._writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await writer.wait_closed()
