"""All messages of the ledger, as CSV or as the records of the log file, while the daemon runs.

Read in short transactions, a few thousand messages each: a long one would keep the daemon's
write-ahead log growing. What is logged meanwhile is exported, too, up to the number that was the
highest at the start.
"""

from __future__ import annotations

import csv
import io
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
from attrs import frozen

from daemon import settings
from daemon.catalogue import CATALOGUE
from daemon.stores import files
from daemon.stores.ledger import MIGRATIONS, told
from protocols.handshake_formats import records

EX_NOINPUT = 66
BATCH = 5000  # messages a transaction
COLUMNS = ("seq", "at", "id", "message", "peer")
HOME = Path(__file__).resolve().parents[1]

Row = tuple[int, str, str, str, str]
Form = Callable[[Sequence[Row]], bytes]


class Unreadable(click.ClickException):
    """There is nothing to export."""

    exit_code = EX_NOINPUT


def _instant(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A date or a time, in UTC unless it says otherwise, as the table has it."""
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
        return told((at if at.tzinfo else at.replace(tzinfo=UTC)).astimezone(UTC))
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is no time: 2026-11-21 and 2026-11-21T09:30Z would be"
        ) from None


@frozen
class Wanted:
    """Which messages. since: the time of the earliest, as the table has it."""

    since: str | None = None
    ident: str | None = None

    def rows(self, table: sqlite3.Connection, after: int, last: int) -> list[Row]:
        """The next ones after number `after`."""
        tests, values = ["seq > ?", "seq <= ?"], list[Any]((after, last))
        if self.since is not None:
            tests.append("at >= ?")
            values.append(self.since)
        if self.ident is not None:
            # the index is on codes
            tests.append("id = ? AND code IN (SELECT code FROM codes WHERE id = ?)")
            values += [self.ident, self.ident]
        sql = f"SELECT {', '.join(COLUMNS)} FROM messages WHERE {' AND '.join(tests)}"
        return table.execute(f"{sql} ORDER BY seq LIMIT {BATCH}", values).fetchall()


def as_csv(rows: Sequence[Row]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def as_jsonl(rows: Sequence[Row]) -> bytes:
    return records([row[:4] for row in rows])


FORMS: dict[str, tuple[bytes, Form]] = {  # what comes first, and how the rest is written
    "csv": ((",".join(COLUMNS) + "\n").encode(), as_csv),
    "jsonl": (b"", as_jsonl),
}


def exported(database: Path, wanted: Wanted) -> Iterator[tuple[list[Row], float]]:
    """Batches, and how much of everything has been looked through by then. Raise Unreadable."""
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as table:
            (version,) = table.execute("PRAGMA user_version").fetchone()
            if version != len(MIGRATIONS):
                raise Unreadable(
                    f"{database} is of version {version}, this program exports version"
                    f" {len(MIGRATIONS)}: start its daemon once"
                )
            (last,) = table.execute("SELECT coalesce(max(seq), 0) FROM messages").fetchone()
            after = 0
            while rows := wanted.rows(table, after, last):
                after = rows[-1][0]
                yield rows, after / last
    except sqlite3.Error as error:
        raise Unreadable(f"{database} cannot be read: {error}") from None


@click.command(
    short_help="Write all messages of the ledger.",
    epilog="""\b
Examples:
  python -m daemon export > messages.jsonl
  python -m daemon export --format csv -o messages.csv
  python -m daemon export --since 2026-11-01 --id ana | jq -r .message
  python -m daemon export --database /backup/roundhouse.db --format csv

\b
Exit status: 0 done, 1 it could not be written, 2 wrong usage, 66 there is no database or
it cannot be read, 78 config.cfg is wrong.""",
)
@click.option(
    "--format", "form", type=click.Choice([*FORMS]), help="[default: jsonl, or as FILE is named]"
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="[default: stdout]"
)
@click.option("--force", is_flag=True, help="FILE may be there already.")
@click.option("--since", callback=_instant, metavar="TIME", help="2026-11-21, 2026-11-21T09:30Z")
@click.option("--id", "ident", metavar="ID", help="Of this client alone.")
@click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False),
    help="[default: roundhouse.db in DATA_DIR of config.cfg]",
)
def export(
    form: str | None,
    output: Path | None,
    force: bool,
    since: str | None,
    ident: str | None,
    database: Path | None,
) -> None:
    """Write every message, oldest first, as CSV or as JSON lines. The daemon may run meanwhile.

    CSV has the columns seq, at, id, message and peer; JSON lines are those of logfile.log.
    """
    database = database or _of_the_daemon()
    if not database.exists():
        raise Unreadable(f"{database} is not there: nothing was registered yet, or set --database")
    if form is None:
        form = "csv" if output is not None and output.suffix.lower() == ".csv" else "jsonl"
    first, write = FORMS[form]
    count = 0
    with _out(output, force) as out, _progress(output is not None) as shown:
        for rows, share in exported(database, Wanted(since, ident)):
            _put(out, b"" if count else first)
            _put(out, write(rows))
            count += len(rows)
            shown(share)
        if not count:
            _put(out, first)
    if output is not None:
        click.echo(f"{output}: {count:,} message{'' if count == 1 else 's'}", err=True)


def _of_the_daemon() -> Path:
    path = settings.locate(HOME, os.environ)
    try:
        found = settings.read(path, HOME, CATALOGUE, os.environ)
    except settings.ConfigError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        raise SystemExit(78) from None
    return found.data_dir / "roundhouse.db"


def _put(out: BinaryIO, data: bytes) -> None:
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError:  # head has seen enough
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        raise click.ClickException(f"cannot write: {error.strerror}") from None


@contextmanager
def _out(path: Path | None, force: bool) -> Iterator[BinaryIO]:
    """Standard output; or a file that is there only once it is whole."""
    if path is None:
        yield sys.stdout.buffer
        return
    if path.exists() and not force:
        raise click.UsageError(f"{path} is there already: --force replaces it")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(files.open_new(str(part)), "wb") as out:
            yield out
            os.fsync(out.fileno())
        part.replace(path)
        files.sync_folder(path.parent)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _progress(wanted: bool) -> Iterator[Callable[[float], object]]:
    """A bar on standard error, where that is a terminal; takes the share that is done."""
    if not wanted or not sys.stderr.isatty():
        yield lambda share: None
        return
    from rich.console import Console  # slow to import, so only where it is seen
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("export", total=1.0)
        yield lambda share: bar.update(task, completed=share)
