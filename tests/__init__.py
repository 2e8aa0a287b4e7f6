"""The reactor is chosen as in service.tac; ROUNDHOUSE_REACTOR=epoll|uvloop runs all on either."""

import signal

from daemon.reactor import install

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell gives to `command &`
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHOSEN = install()
