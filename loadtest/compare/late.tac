"""service.tac with a timer every millisecond, and how late each was: late.json, at every second.

    {"late_us": [...]}    of the second that is over, in the folder of ROUNDHOUSE_CONFIG
"""

import json
import os
import time
from pathlib import Path

FOLDER = Path(os.environ["ROUNDHOUSE_CONFIG"]).parent
SERVICE = Path(os.environ["ROUNDHOUSE_SERVICE"])
EVERY = 0.001  # seconds

__file__ = str(SERVICE)
exec(compile(SERVICE.read_text(), SERVICE, "exec"))

from twisted.internet import reactor

late = []


def tick(due):
    now = time.perf_counter()
    late.append(round((now - due) * 1e6))
    reactor.callLater(EVERY, tick, now + EVERY)


def tell(number=0):
    if late:
        fresh = FOLDER / "late.new"
        fresh.write_text(json.dumps({"late_us": late}))
        fresh.rename(FOLDER / f"late-{number:04}.json")
        late.clear()
    reactor.callLater(1.0, tell, number + 1)


reactor.callWhenRunning(lambda: tick(time.perf_counter() + EVERY))
reactor.callWhenRunning(tell)
