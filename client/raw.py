"""The relay's raw port: who speaks is a sender, who is silent a receiver.

So `put` connects with its first bytes in hand, and `get` never says a word. Our ends mean
something too: a connection that is closed before its time resets (SO_LINGER, so even a killed
client does), which discards an upload and gives a delivery back.
"""

from __future__ import annotations

from client.files import Sent, Source, pour
from client.landing import Landing
from client.net import Failed, Reset, Silent, Wire
from client.terminal import Advance, counted


def leave(wire: Wire, source: Source, first: bytes, advance: Advance) -> Sent:
    """Hand `first` and the rest of `source` to the relay; back once it is kept. Raise Failed."""
    wire.fragile()
    try:
        # deaf: who seemed silent for too long may be handed a file that is not meant for it
        sent = pour(wire, source, advance, first, deaf=True)
        if not sent.whole:
            raise Reset(f"{wire.address} closed before the end")
        wire.finish()
        while wire.hear():
            pass
    except Reset as error:
        raise Reset(f"{error.message}: the file was not kept") from None
    except Silent as error:
        raise Silent(f"{error.message}: the file was not kept, or that is unknown") from None
    wire.fragile(False)
    return sent


def take(wire: Wire, landing: Landing, first: bytes, advance: Advance) -> None:
    """Land `first` and all that follows up to the FIN. Raise Failed."""
    data = first
    try:
        while data:
            landing.write(data)
            advance(len(data))
            data = wire.hear()
    except (Reset, Silent) as error:
        raise type(error)(
            f"{error.message}: the file is incomplete after {counted(landing.size, 'byte')}, "
            "and none of it was kept"
        ) from None


def wait(wire: Wire) -> bytes:
    """The first bytes of a file, whenever there is one. Raise Failed."""
    try:
        data = wire.hear()
    except Silent:
        raise Silent(f"no sender at {wire.address} within {wire.silence:g} s") from None
    if not data:
        raise Failed(f"{wire.address} closed without a file")
    return data
