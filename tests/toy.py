"""toy: a sixth protocol, as anybody would add one. It is served by tests only.

Wire (TCP, port 7007)
    -> a line             <- the same line backwards
Source: test_roundhouse.py, which shows what such a file gets for nothing.
"""

from __future__ import annotations

from attrs import define, field, frozen

from protocols.connection import Connection, Live, LiveFactory
from protocols.framing import Lines
from protocols.options import duration, option
from protocols.spec import Context, Port, Spec


@define(eq=False, repr=False)
class Toy(Connection):
    _lines: Lines = field(factory=lambda: Lines(1000), init=False)

    def received(self, data: bytes) -> None:
        for line in self._lines.feed(data):
            if isinstance(line, bytes):
                self.transport.write(line[::-1] + b"\n")


@frozen
class Options:
    idle_timeout: float = option(0.0, duration, "seconds of silence after which a peer is closed")


def build(context: Context) -> dict[str, LiveFactory]:
    return {"PORT": LiveFactory(Live("toy", context.clock, context.options.idle_timeout), Toy)}


SPEC = Spec(name="toy", ports=(Port("PORT", 7007),), build=build, options=Options)
