"""twistd -y tac/relay.tac    (relay alone, same code, same config.cfg)"""

import sys
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME))  # twistd adds nothing to sys.path

from daemon.reactor import install

chosen = install()  # before anything imports twisted.internet.reactor

from twisted.internet import reactor

from daemon import roundhouse

application = roundhouse.application(HOME, reactor, chosen, "relay")
