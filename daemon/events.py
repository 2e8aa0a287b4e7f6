"""Every event the daemon logs: its name, its level, its fields and what it means.

A name is `area.what`; it never changes its meaning, so that a search or an alarm may rely on it.
Each call of a logger in `daemon` and `protocols` gives one (`event="gate.refused"`) with exactly
these fields. What other libraries log has the name `library`.

docs/reference/events.md is made from here: python -m tests.reference
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

LIBRARY = "library"


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


@frozen
class Event:
    """level: as in twisted.logger. fields: their names, in the order of the sentence.

    alike: the fields that make two of them the same to a reader: of those, one line is written
    a second, and how many more there were; None: each is written.
    """

    name: str
    level: str
    fields: tuple[str, ...] = field(converter=_words)
    means: str
    alike: tuple[str, ...] | None = None


_ALL = (
    Event("daemon.started", "info", "", "All services listen, in the foreground."),
    Event("daemon.reactor", "info", "name why", "Which reactor turns, and why that one."),
    Event("daemon.unusable", "critical", "error", "What is on disk cannot be used; it ends (73)."),
    Event(
        "daemon.stopping",
        "info",
        "name s",
        "A signal came: what is in hand is finished within GRACE (s) seconds.",
    ),
    Event(
        "restart.begun",
        "info",
        "s",
        "What is in hand is finished within s seconds; then the process becomes its successor.",
    ),
    Event("restart.refused", "error", "problem", "The program on disk would not start; all stays."),
    Event("restart.failed", "critical", "", "A restart could not be begun."),
    Event("daemon.unstopped", "critical", "service", "A part of it failed while it stopped."),
    Event("config.read", "info", "path changes", "config.cfg is in force, with these changes."),
    Event("config.restart", "warn", "keys", "Changed keys that wait for a restart."),
    Event("config.bad", "error", "problem", "One thing that is wrong in the changed config.cfg."),
    Event("config.kept", "error", "", "The changed config.cfg is not used, the old one stays."),
    Event("config.gone", "warn", "path", "config.cfg was removed; its settings stay."),
    Event("log.lost", "warn", "count why", "Lines of this log could not be written."),
    Event("log.unusable", "error", "path why", "LOG_FILE cannot be opened; the old one stays."),
    Event("systemd.deaf", "warn", "at why", "NOTIFY_SOCKET takes nothing; said once."),
    Event("service.listening", "info", "name where", "A service takes connections there."),
    Event("service.open", "warn", "name where", "It listens beyond this machine."),
    Event("service.skipped", "warn", "problem", "A port nobody asked for is taken; left out."),
    Event("gate.refused", "warn", "count why", "Connections turned away since the last such line."),
    Event(
        "accept.starved",
        "warn",
        "where reason refused",
        "No descriptor left for a connection; those who waited are refused.",
    ),
    Event("accept.failed", "critical", "factory", "A connection could not be begun.", ()),
    Event(
        "connection.ended",
        "info",
        "name peer outcome detail",
        "A connection ended in another way than its service has in mind.",
        ("name", "outcome", "detail"),
    ),
    Event(
        "connection.refused",
        "info",
        "name peer why",
        "Its TLS or PROXY header never came, or was none.",
        ("name", "why"),
    ),
    Event("connection.cut", "warn", "name count s", "Connections still open after the grace."),
    Event("connection.broken", "critical", "what", "An exception of ours ended it.", ()),
    Event("reactor.error", "error", "what", "The loop has something to say.", ("what",)),
    Event("reactor.failed", "critical", "what", "Something the loop called failed.", ("what",)),
    Event("tls.broken", "info", "name peer why", "TLS broke off.", ("name", "why")),
    Event("tls.read", "info", "name file", "A renewed certificate is in force."),
    Event("tls.kept", "error", "name error", "Its certificate cannot be read or used anew."),
    Event("store.failed", "error", "error again", "Storing bulk bytes failed.", ("error",)),
    Event("store.broken", "critical", "", "Storing failed in a way it must not.", ()),
    Event("store.left", "critical", "", "An aborted stream may have left files behind.", ()),
    Event("database.down", "error", "path error", "It takes no writes; nothing is acknowledged."),
    Event("database.back", "info", "path", "It takes writes again."),
    Event("database.follower", "critical", "path", "What follows its commits failed.", ("path",)),
    Event(
        "ingest.lost", "error", "peer reason stored size", "A stream was not all kept.", ("reason",)
    ),
    Event("ingest.late", "error", "series stored size", "One nobody waited for is not whole."),
    Event("ingest.unusable", "error", "folder error", "What a crash left cannot be looked at."),
    Event("ingest.journal", "info", "folder streams", "Small streams of a crash got their files."),
    Event("ingest.adopted", "info", "folder adopted removed", "Parts that a crash left."),
    Event("ingest.orphan", "error", "name why", "A part that a crash left was not adopted."),
    Event("ingest.torn", "warn", "name count", "The journal's torn end was cut."),
    Event("ingest.manifest", "error", "series error", "A series of a crash has no manifest."),
    Event("ingest.unfinished", "critical", "", "Tidying up after a crash failed."),
    Event("hook.said", "info", "what name line", "A line that the program of ON_COMPLETE wrote."),
    Event("hook.failed", "warn", "what name trouble seconds", "It failed and runs again soon."),
    Event("hook.postponed", "warn", "what name trouble", "It was ended; the next start runs it."),
    Event("hook.given_up", "error", "what name trouble tries mark", "It failed too often."),
    Event("hook.unmarked", "error", "what name error", "It ran, but that was not kept."),
    Event("hook.unreadable", "error", "what folder error", "Its marks cannot be read."),
    Event("relay.found", "info", "waiting parked drafts", "What was there at the start."),
    Event("relay.parked", "warn", "ident box size why path", "A file is handed out no more."),
    Event("relay.gone", "error", "ident folder", "A file of the index is not on disk."),
    Event("relay.draft_gone", "error", "key folder", "An upload of the index is not on disk."),
    Event("relay.draft_unread", "error", "path error", "An upload cannot be gone on with."),
    Event("relay.unread", "error", "path error", "A file cannot be read.", ("path", "error")),
    Event("relay.left", "warn", "path error", "A file could not be removed."),
    Event("relay.unremoved", "error", "ident reason", "Received, yet it may be handed out again."),
    Event("relay.uncounted", "error", "ident reason", "A failed delivery was not counted."),
    Event("relay.broken", "critical", "", "A store or a request failed in a way it must not.", ()),
    Event("chat.broken", "critical", "name", "A command failed in a way it must not.", ("name",)),
    Event("chat.unwritable", "critical", "", "A member cannot be written to and is cut.", ()),
    Event("history.none", "error", "error", "chat.db cannot be used: no history until a restart."),
    Event("history.down", "error", "path why", "It takes nothing: lines may be missing."),
    Event("history.broken", "critical", "path", "Writing it failed in a way it must not."),
    Event("history.gap", "warn", "path", "More was said than it can follow: lines are missing."),
    Event("history.back", "info", "path", "It is written again."),
    Event("handshake.unanswered", "critical", "name", "A request got no answer.", ("name",)),
    Event(
        "handshake.guesses",
        "warn",
        "name count host pause",
        "That many wrong codes came from there; for a while no more are looked at.",
        ("name", "host"),
    ),
    Event("ledger.broken", "critical", "", "The ledger failed in a way it must not."),
    Event("logfile.down", "error", "path error", "logfile.log is behind; the table is not."),
    Event("logfile.back", "info", "path", "It has caught up."),
    Event("logfile.torn", "warn", "path count", "Its torn end was cut."),
    Event("logfile.other", "warn", "path found highest", "It belongs to another database."),
    Event("admin.failed", "critical", "", "A request to the admin port was not served.", ()),
    Event("admin.unchecked", "critical", "", "A check of readiness failed as it must not."),
    Event(LIBRARY, "", "", "Twisted, or another library; info of theirs counts as debug."),
)

EVENTS: Mapping[str, Event] = {event.name: event for event in _ALL}
