"""The reactor is chosen as in service.tac; ROUNDHOUSE_REACTOR=epoll|uvloop runs all on either."""

from daemon.reactor import install

CHOSEN = install()
