"""A ledger made of memory that answers when the test says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import define, field
from twisted.internet.defer import Deferred, succeed

from protocols.stores import Entry, Ledger, Refused, Stores


@define(eq=False)
class MemoryLedger:
    """Ids, codes and messages. Codes count up, so that a test knows the next one.

    late: answers wait for `answer`, which may take them out of order. trouble: refuses all.
    """

    late: bool = False
    trouble: Refused | None = None
    codes: dict[str, set[str]] = field(factory=dict)
    logged: list[Entry] = field(factory=list)
    appends: list[list[Entry]] = field(factory=list)  # the calls, refused entries too
    waiting: list[Callable[[], None]] = field(factory=list)

    def claim(self, ident: str, exclusive: bool = False) -> Deferred[str | Refused]:
        codes = self.codes.setdefault(ident, set())
        if self.trouble or (exclusive and codes):
            return self._answer(self.trouble or Refused.TAKEN)
        code = f"{sum(map(len, self.codes.values())) + 1:032x}"
        codes.add(code)
        return self._answer(code)

    def append(self, entries: Sequence[Entry]) -> Deferred[list[int | Refused]]:
        assert entries, "an empty call"
        self.appends.append([*entries])
        return self._answer([self._append(entry) for entry in entries])

    def answer(self, which: int = 0) -> None:
        """Answer one of the calls that wait."""
        self.waiting.pop(which)()

    @property
    def stores(self) -> Stores:
        ledger: Ledger = self
        return Stores(None, None, ledger, None)  # type: ignore[arg-type]

    def _append(self, entry: Entry) -> int | Refused:
        if self.trouble:
            return self.trouble
        if entry.code not in self.codes.get(entry.ident, ()):
            return Refused.WRONG
        self.logged.append(entry)
        return len(self.logged)

    def _answer(self, value: Any) -> Deferred[Any]:
        if not self.late:
            return succeed(value)
        answer: Deferred[Any] = Deferred()
        self.waiting.append(lambda: answer.callback(value))
        return answer
