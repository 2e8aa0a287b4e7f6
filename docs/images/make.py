"""The screenshots in this folder, made anew: python docs/images/make.py

A daemon of its own serves on the usual ports, so nothing else may have them (where it may not be
stopped: unshare -n sh -c 'ip link set lo up && python docs/images/make.py'). Real clients fill it;
tmux holds the terminals, chromium draws: apt-get install chromium tmux.

    chat.png                          roundhouse chat, with others on the plain wire and by IRC
    status.png                        roundhouse status, after all that
    relay-light.png, relay-dark.png   the relay's page
    report.png                        Locust's page of loadtest/reports/500
The drawings (*.svg) are made by hand.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import define
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

HERE = Path(__file__).resolve().parent
HOME = HERE.parents[1]
sys.path.insert(0, str(HOME))

from tests.process import PORTS, Twistd  # noqa: E402
from tests.screen import Screen, absent  # noqa: E402

MOST = 300 << 10  # bytes of a picture
PATIENCE = 60.0  # seconds for a program
CHROMIUM = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
LIGHT, DARK = 1, 0  # blink's preferredColorScheme

FRAME = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; padding: 18px; background: {paper}; width: max-content; }}
pre {{ margin: 0; color: {ink}; font: 15px/1.35 "DejaVu Sans Mono", monospace; }}
</style>{code}"""


@define
class Window(Screen):
    """A shell in a terminal of any size, with the commands of this checkout."""

    def fit(self, columns: int, rows: int) -> None:
        self._tmux("resize-window", "-x", str(columns), "-y", str(rows))

    def html(self, columns: int) -> str:
        """What is to be seen, without the empty lines below."""
        console = Console(record=True, width=columns, file=StringIO())
        console.print(Text.from_ansi(self.painted.rstrip()), soft_wrap=True)
        code = "<pre>{code}</pre>"
        painted = console.export_html(theme=SVG_EXPORT_THEME, inline_styles=True, code_format=code)
        theme = SVG_EXPORT_THEME
        paper, ink = theme.background_color.hex, theme.foreground_color.hex
        return FRAME.format(code=painted, paper=paper, ink=ink)


@contextmanager
def window(daemon: Twistd, columns: int, rows: int) -> Iterator[Window]:
    path = f"{HOME / '.venv' / 'bin'}:{os.environ['PATH']}"
    environ = {"ROUNDHOUSE_CONFIG": str(daemon.config), "PATH": path, "TZ": "UTC"}
    shell = ["env", "PS1=$ ", "bash", "--norc", "--noprofile"]
    screen = Window(shell, environ)
    try:
        screen.fit(columns, rows)
        screen.shows("$")
        yield screen
    finally:
        screen.close()


def draw(page: str, target: str, width: int, height: int, scheme: int = LIGHT) -> None:
    """page: a URL. Raises SystemExit where the picture is too large."""
    picture = HERE / target
    with TemporaryDirectory(prefix="roundhouse-profile-") as profile:
        command = [
            *(shutil.which("chromium") or "chromium", *CHROMIUM, f"--user-data-dir={profile}"),
            f"--window-size={width},{height}",
            "--force-device-scale-factor=1.5",
            f"--blink-settings=preferredColorScheme={scheme}",
            "--virtual-time-budget=4000",
            f"--screenshot={picture}",
            page,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    size = picture.stat().st_size
    print(f"{target}: {size >> 10} KiB")
    if size > MOST:
        raise SystemExit(f"{target} has more than {MOST >> 10} KiB")


def draw_window(screen: Window, target: str, columns: int, rows: int) -> None:
    with TemporaryDirectory(prefix="roundhouse-page-") as folder:
        page = Path(folder) / "page.html"
        page.write_text(screen.html(columns), encoding="utf-8")
        draw(page.as_uri(), target, round(columns * 9.04) + 36, rows * 21 + 36)


def roundhouse(daemon: Twistd, *words: str, said: str = "") -> None:
    environ = os.environ | {"ROUNDHOUSE_CONFIG": str(daemon.config)}
    environ["XDG_STATE_HOME"] = str(daemon.home / "state")
    subprocess.run(
        [sys.executable, "-m", "client", *words],
        check=True,
        capture_output=True,
        cwd=HOME,
        env=environ,
        input=said.encode(),
        timeout=PATIENCE,
    )


@define
class Member:
    """Somebody in the chat who has no terminal: a script, or an IRC client."""

    peer: socket.socket

    def says(self, *lines: str) -> None:
        for line in lines:
            self.peer.sendall(f"{line}\r\n".encode())
            time.sleep(0.2)  # seconds: so that it reads like a talk


def chat(daemon: Twistd, also: ExitStack) -> None:
    """Who came in stays until `also` is closed."""
    bob, eva, ci = (
        Member(also.enter_context(daemon.connect(port))) for port in (60060, 6667, 60060)
    )
    bob.says("/nick bob", "moin, the night's files are all there: 412 series, verify says 0 wrong")
    eva.says("NICK eva", "USER eva 0 * :eva", "JOIN #main")
    ci.says("/nick ci", "build 1841 passed: roundhouse put --to builds --expires 2d dist.tar")
    screen = also.enter_context(window(daemon, 92, 14))
    screen.types("roundhouse chat --nick ana")
    screen.shows("You are ana")
    screen.types("/history 3")
    screen.shows("build 1841")
    screen.types("thanks, both. ¿Quién recoge el build?")
    screen.shows("¿Quién recoge el build?")
    eva.says("PRIVMSG #main :I do, in a minute")
    eva.says("PRIVMSG #main :\x01ACTION fetches builds/next\x01")
    bob.says("/msg ana lunch at one?")
    screen.shows("lunch at one?")
    screen.types("/msg bob sí, a la una")
    screen.shows("a la una")
    screen.types("/who")
    screen.shows("In main:")
    screen.types("eva: take the one of 09:40, it", enter=False)
    screen.shows("it")
    time.sleep(0.5)
    draw_window(screen, "chat.png", 92, 14)


def relay(daemon: Twistd, folder: Path) -> None:
    archive = folder / "roundhouse-docs.tgz"
    subprocess.run(["tar", "czf", str(archive), "docs", "deploy"], check=True, cwd=HOME)
    roundhouse(daemon, "put", "--to", "builds", "--expires", "2d", str(archive))
    roundhouse(daemon, "put", "--to", "team", "README.md", "LICENSE", "CONTRIBUTING.md")
    charts = HOME / "loadtest" / "reports" / "500"
    roundhouse(daemon, "put", "--to", "team", str(charts / "over_time.svg"), "--expires", "7d")
    roundhouse(daemon, "get", "--from", "team", "-o", str(folder / "collected"))
    for name, scheme in (("light", LIGHT), ("dark", DARK)):
        draw("http://127.0.0.1:5012/?box=team", f"relay-{name}.png", 900, 760, scheme)


def status(daemon: Twistd) -> None:
    roundhouse(daemon, "ingest", "README.md", "daemon", "protocols")
    roundhouse(daemon, "register", "carla")
    roundhouse(daemon, "say", "carla", "--stdin", said="".join(f"line {n}\n" for n in range(1000)))
    for _ in range(5):
        roundhouse(daemon, "selftest", "all")
    with window(daemon, 104, 20) as screen:
        screen.types("roundhouse status")
        screen.shows("checks:")
        time.sleep(0.5)
        draw_window(screen, "status.png", 104, len("\n".join(screen.lines).rstrip().split("\n")))


def main() -> None:
    if lacking := absent("chromium", "tmux"):
        raise SystemExit(lacking)
    daemon = Twistd()
    daemon.ports = {number: number for number in PORTS.values()}
    daemon.configure()
    try:
        daemon.start()
        with ExitStack() as also, TemporaryDirectory(prefix="roundhouse-files-") as folder:
            chat(daemon, also)
            relay(daemon, Path(folder))
            status(daemon)
    finally:
        daemon.discard()
    report = HOME / "loadtest" / "reports" / "500" / "locust.html"
    draw(report.as_uri(), "report.png", 1200, 900)


if __name__ == "__main__":
    main()
