"""The map of who may import whom, and that `daemon` is ours."""

from __future__ import annotations

import ast
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

import daemon
from client.defaults import PORTS
from daemon import admin

HOME = Path(__file__).resolve().parents[1]
MAY = {
    "protocols": {"protocols"},
    "daemon": {"daemon", "protocols"},
    "client": {"client", "protocols"},
    "loadtest": {"loadtest", "client"},
}
OURS = {*MAY, "tests"}
# what would tie the wire to a process: its reactor, its files, its clock
IMPURE = {"os", "pathlib", "sqlite3", "socket", "time", "datetime", "threading", "subprocess"}
PYTHON_DAEMON = {"daemon", "pidfile", "runner"}  # module names of PyPI's python-daemon


def modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def calls(path: Path) -> set[str]:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {
        node.func.id
        for node in tree
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in modules(path)}


class LayoutTests(SynchronousTestCase):
    def test_imports_point_downwards(self) -> None:
        for package, allowed in MAY.items():
            for path in (HOME / package).rglob("*.py"):
                assert tops(path) & OURS <= allowed, path

    def test_the_reactor_is_imported_only_where_a_process_begins(self) -> None:
        for package in ("protocols", "daemon"):
            for path in (HOME / package).rglob("*.py"):
                if HOME / "daemon" / "reactor" not in path.parents:
                    assert "twisted.internet.reactor" not in modules(path), path

    def test_the_wire_knows_no_file_no_clock_and_no_socket(self) -> None:
        for path in (HOME / "protocols").rglob("*.py"):
            assert not tops(path) & IMPURE, path
            assert "open" not in calls(path), path

    def test_daemon_is_this_checkout_and_not_the_python_daemon_package(self) -> None:
        assert Path(daemon.__file__).resolve().parent == HOME / "daemon"
        assert not {path.stem for path in (HOME / "daemon").glob("*.py")} & PYTHON_DAEMON

    def test_each_service_has_a_tac_of_its_own_and_the_client_knows_its_ports(self) -> None:
        from daemon.catalogue import CATALOGUE

        shown = (*CATALOGUE, admin.SPEC)
        ports = {(spec.name, port.key): port.number for spec in shown for port in spec.ports}
        assert ports == PORTS  # the client does without Twisted, so it has a table of its own
        tacs = {path.stem for path in (HOME / "tac").glob("*.tac")}
        assert tacs == {spec.name for spec in CATALOGUE}
