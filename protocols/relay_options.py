"""What may be set of the relay, on both of its ports."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from attrs import frozen

from protocols.options import (
    Secret,
    choice,
    command,
    count,
    duration,
    each,
    names,
    option,
    secret,
    size,
)
from protocols.stores import Allowance

BOX = "queue"  # the box of the raw port
RESERVED = frozenset({"tus", "next"})
_BOX_NAME = re.compile(r"[a-z0-9-]{1,64}")


def box_name(text: str) -> str:
    """Raises ValueError."""
    if text in RESERVED or not _BOX_NAME.fullmatch(text):
        raise ValueError("a box is 1 to 64 of a-z, 0-9 and -, and not tus or next")
    return text


def guarded_box(text: str) -> str:
    """A box that may have a token. Raises ValueError."""
    if text == BOX:
        raise ValueError(
            f"{BOX} is the box of the raw port, which asks nobody for a token:"
            " keep what is secret in another one"
        )
    return box_name(text)


@frozen
class Options:
    """[relay] in config.cfg."""

    receiver_after: float = option(
        1.0,
        partial(duration, least=0.05, most=60.0),
        "seconds of silence after which a peer is a receiver",
    )
    lease: float = option(
        60.0,
        partial(duration, least=1.0),
        "seconds without progress after which a delivery is given back",
    )
    request_timeout: float = option(
        30.0,
        partial(duration, least=0.1),
        "seconds in which an HTTP request must be whole; the body of a file takes its time",
    )
    max_deliveries: int = option(
        5, partial(count, least=1), "deliveries that break off before a file is parked"
    )
    mode: str = option(
        "queue",
        choice("queue", "shared"),
        "queue: a file is handed out COPIES times; shared: once to each receiver",
    )
    copies: int = option(
        1, partial(count, least=1, most=1000), "receivers who get each file (MODE = queue)"
    )
    expires: float = option(
        0.0, duration, "seconds after which a file is deleted, unless its sender said; 0: never"
    )
    unfinished: float = option(
        2 * 86400.0,
        duration,
        "seconds after which a resumable upload that nobody goes on with is deleted; 0: never",
    )
    max_file: int = option(0, size, "most bytes of one file; 0: any number")
    box_quota: int = option(0, size, "most bytes of one box, uploads included; 0: any number")
    quota: int = option(0, size, "most bytes of all boxes together; 0: any number")
    min_free: int = option(256 << 20, size, "bytes that stay free on the disk of DATA_DIR")
    boxes: int = option(1000, partial(count, least=1), "boxes there may be at once")
    hosts: tuple[str, ...] = option(
        (), names, "names, with commas, by which browsers may ask, beside ours and addresses"
    )
    on_complete: tuple[str, ...] = option(
        (), command, "a program to run for each file that is durable, with its JSON's path"
    )
    token: Mapping[str, Secret] = each(
        secret, "what HTTP wants to know for that box, which cannot be queue", guarded_box
    )

    @property
    def told_apart(self) -> bool:
        """Whether it matters who receives: nobody gets a file twice."""
        return self.mode == "shared" or self.copies > 1

    @property
    def allowance(self) -> Allowance:
        return Allowance(
            file=self.max_file,
            box=self.box_quota,
            total=self.quota,
            free=self.min_free,
            boxes=self.boxes,
            idle=min(filter(None, (self.unfinished, self.expires)), default=0.0),
        )
