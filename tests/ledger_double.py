"""A ledger made of memory that answers when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, evolve, field
from twisted.internet.defer import Deferred, succeed

from protocols.stores import Claim, Entry, Ledger, Query, Record, Refused, Rules, Stores


@define(eq=False)
class MemoryLedger:
    """Ids, codes and messages. Codes count up, so that a test knows the next one.

    late: answers wait for `answer`, which may take them out of order. trouble: refuses all.
    """

    late: bool = False
    trouble: Refused | None = None
    behind: bool = False
    codes: dict[str, set[str]] = field(factory=dict)
    logged: list[Entry] = field(factory=list)  # of one message each
    appends: list[list[str]] = field(factory=list)  # the messages of each call, refused ones too
    asked: list[Entry] = field(factory=list)  # as they came
    waiting: list[Callable[[], None]] = field(factory=list)
    rules: Rules = field(factory=Rules)

    def rule(self, rules: Rules) -> None:
        self.rules = rules

    def claim(self, claim: Claim) -> Deferred[str | Refused]:
        codes = self.codes.setdefault(claim.ident, set())
        if self.trouble or (claim.exclusive and codes and claim.code not in codes):
            return self._answer(self.trouble or Refused.TAKEN)
        code = f"{sum(map(len, self.codes.values())) + 1:032x}"
        codes.add(code)
        return self._answer(code)

    def append(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        assert entries, "an empty call"
        self.asked += entries
        self.appends.append([text for entry in entries for text in entry.messages])
        return self._answer([self._append(entry) for entry in entries])

    def read(self, query: Query) -> Deferred[Sequence[Record] | Refused]:
        if query.code not in self.codes.get(query.ident, ()):
            return self._answer(self.trouble or Refused.WRONG)
        found = [
            Record(seq, "now", ident, text)
            for seq, (ident, code, text) in enumerate(self.kept, 1)
            if ident == query.ident and (query.whole or code == query.code) and seq > query.after
        ]
        return self._answer(self.trouble or found[: query.limit])

    @property
    def kept(self) -> list[tuple[str, str, str]]:
        """The id, the code and the text of each message."""
        return [(e.ident, e.code, e.messages[0]) for e in self.logged]

    def answer(self, which: int = 0) -> None:
        """Answer one of the calls that wait."""
        self.waiting.pop(which)()

    @property
    def stores(self) -> Stores:
        ledger: Ledger = self
        return Stores(None, None, ledger, None, None)  # type: ignore[arg-type]

    def _append(self, entry: Entry) -> int | Refused:
        if self.trouble:
            return self.trouble
        if entry.code not in self.codes.get(entry.ident, ()):
            return Refused.WRONG
        self.logged += [evolve(entry, messages=(text,)) for text in entry.messages]
        return len(self.logged) - len(entry.messages) + 1

    def _answer(self, value: Any) -> Deferred[Any]:
        if not self.late:
            return succeed(value)
        answer: Deferred[Any] = Deferred()
        self.waiting.append(lambda: answer.callback(value))
        return answer
