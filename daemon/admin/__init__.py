"""What an operator asks the daemon, over HTTP on a port of its own.

    GET /metrics    numbers for Prometheus, in its text format or as OpenMetrics
    GET /healthz    200 while the reactor turns in time, else 503; JSON with its lag
    GET /readyz     200 while everything can be served and kept, else 503; JSON with each check
    GET /status     all of it in one JSON object, for people and `client status`

HEAD is GET without the body; nothing can be changed from here. Whatever else is asked is a 404
with the list of these. A Host that is neither an address, localhost, this machine's name nor in
HOSTS is a 403: the page of a stranger whose name was made to resolve to us reads nothing. With a
TOKEN set, /metrics and /status want it (`Authorization: Bearer`), else 401; the other two are for
whoever only wants to know whether to send work here.

One request a connection. The port is open before anything else is and closes last, so that it
can say that the daemon starts, or drains; it listens on loopback whatever SERVER_IP says, and
LISTEN alone opens it further.
"""

from __future__ import annotations

from functools import partial

from attrs import frozen

from protocols.options import Secret, duration, names, option, secret
from protocols.spec import Port, Spec

NAME = "admin"
HOST = "127.0.0.1"


def token(text: str) -> Secret:
    """8 to 256 printable ASCII characters without blanks; or empty."""
    return secret(text) if text else Secret("")


@frozen
class Options:
    token: Secret = option(  # noqa: RUF009 - a default that cannot change
        Secret(""), token, "what /metrics and /status ask for, as a bearer token"
    )
    max_lag: float = option(
        1.0, partial(duration, least=0.001, most=60.0), "reactor lag from which /healthz says 503"
    )
    request_timeout: float = option(
        30.0, partial(duration, least=0.1), "seconds in which a request must come"
    )
    hosts: tuple[str, ...] = option((), names, "names by which it may be asked, beside our own")


# What settings, claims and doctor need to know of it. It is built by the daemon, which it shows.
PORT = Port("PORT", 8088, secondary=True, means="on loopback, whatever SERVER_IP says")
SPEC = Spec(NAME, (PORT,), lambda context: {}, Options)
