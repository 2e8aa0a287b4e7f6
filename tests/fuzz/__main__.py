"""python -m tests.fuzz: hostile bytes for the handshake until the time is over.

Coverage decides what is tried next where atheris is installed (pip install atheris; it needs most
of a minute to begin); without it, or with --plain, inputs are cut, joined and changed at random.
Every input of tests/fuzz/corpus is tried first. One that breaks something is written there, so
that the tests try it ever after.

Exit status: 0 nothing broke, 1 something did.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import click

from tests.fuzz.handshake import CODE, play

CORPUS = Path(__file__).with_name("corpus")
WORDS = [
    b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\0", b"\xff", b"\xc3", b'"', b"{", b"}", b"\\", b"\\ud800",
    b"%00", b"%0d%0a", b"&", b"=", b"+", b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n", b"KEEP\n",
    b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"ana ", b"HEAD",
    b"client_uuid=", b"&server_uuid=", b"&message=", b'"id": ', b'"code": ', b'"message": ',
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"\xe2\x80\xa8", b"\x80", CODE.encode(),
]  # fmt: skip


def corpus() -> list[bytes]:
    return [path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))]


def mutated(seeds: Sequence[bytes], dice: random.Random) -> bytes:
    """One of the seeds, changed in one place or a few."""
    data = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 2, 3, 8))):
        at = dice.randrange(len(data) + 1)
        match dice.randrange(7):
            case 0:
                data[at:at] = dice.choice(WORDS)
            case 1:
                del data[at : at + dice.choice((1, 2, 8, 64))]
            case 2:
                data[at : at + 1] = bytes([dice.randrange(256)])
            case 3:
                other = dice.choice(seeds)
                data[at:] = other[dice.randrange(len(other) + 1) :]
            case 4:
                piece = data[at : at + dice.choice((1, 16, 200))]
                data[at:at] = piece * dice.choice((1, 2, 50))
            case 5:
                data[:2] = dice.randbytes(2)
            case 6:
                data[at:at] = dice.randbytes(dice.choice((1, 4, 32)))
    return bytes(data)


def plain(seconds: float, seed: int, tell: Callable[[str], None]) -> int:
    """How many inputs were tried. Raise what one of them raised."""
    dice, seeds, count = random.Random(seed), corpus(), 0
    until, due = time.monotonic() + seconds, time.monotonic()
    while time.monotonic() < until:
        guarded(mutated(seeds, dice))
        count += 1
        if time.monotonic() >= due:
            tell(f"{count:,} inputs")
            due += 5
    return count


def guarded(data: bytes) -> None:
    """Play it; keep it if it broke something."""
    try:
        play(data)
    except BaseException:
        path = CORPUS / f"broke-{sha256(data).hexdigest()[:12]}.bin"
        path.write_bytes(data)
        click.echo(f"broke: {path}", err=True)
        raise


def guided(seconds: float) -> NoReturn:
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    atheris.instrument_all()
    with TemporaryDirectory() as found:  # what is new goes to the first folder
        options = [f"-max_total_time={max(1, seconds):.0f}", "-max_len=4096", "-verbosity=0"]
        options += ["-print_final_stats=1", found, str(CORPUS)]
        if not (child := os.fork()):
            atheris.Setup([sys.argv[0], *options], guarded)
            atheris.Fuzz()  # ends the process
        _, status = os.waitpid(child, 0)
    raise SystemExit(bool(status))


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    help=__doc__,
    epilog="""\b
Examples:
  python -m tests.fuzz
  python -m tests.fuzz --plain --seconds 5 --seed 7""",
)
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(0.1), help="How long."
)
@click.option("--seed", type=int, help="Of the random changes, to repeat a run.")
@click.option("--plain", "is_plain", is_flag=True, help="Without atheris.")
def main(seconds: float, seed: int | None, is_plain: bool) -> None:
    for data in corpus():
        play(data)
    if not is_plain:
        try:
            guided(seconds)
        except ImportError:
            click.echo("atheris is not installed: changes are made at random", err=True)
    seed = random.randrange(1 << 32) if seed is None else seed
    click.echo(f"seed {seed}", err=True)
    count = plain(seconds, seed, lambda text: click.echo(text, err=True))
    click.echo(f"{count:,} inputs in {seconds:g} s: nothing broke")


if __name__ == "__main__":
    main(prog_name="python -m tests.fuzz")
