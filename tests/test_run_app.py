"""run_app.sh in a checkout of its own, with an interpreter that only notes what pip should do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from daemon.catalogue import CATALOGUE

HOME = Path(__file__).resolve().parents[1]
NAMES = ("python3.14", "python3.13", "python3.12", "python3.11", "python3")
PARTS = ("run_app.sh", "pyproject.toml", "requirements.txt", "requirements", "daemon/ask.py")

# Answers for its version, makes a .venv of itself, notes pip and what is started; the rest
# (flock, the modules it has) is real.
PYTHON = """#!/bin/sh
case "$*" in
*version_info*) echo {version} ;;
*ensurepip*) exit {lacks_venv} ;;
"-m venv "*)
    mkdir -p "$3/bin" && cp "$0" "$3/bin/python"
    printf '#!/bin/sh\\necho twistd "$@" >>"$NOTES"\\n' >"$3/bin/twistd" && chmod +x "$3/bin/twistd"
    ;;
"-m pip "*) echo "pip $*" >>"$NOTES"; sleep 0.1; exit "${{PIP_STATUS:-0}}" ;;
"-m pytest"*) echo "pytest $*" >>"$NOTES" ;;
"-m sphinx "*) echo "sphinx $*" >>"$NOTES"; exit "${{SPHINX_STATUS:-0}}" ;;
*) exec '{real}' -S "$@" ;;
esac
"""

ENGINE = """#!/bin/sh
case $1 in
info) exit "${INFO_STATUS:-0}" ;;
build) echo "$0 $*" >>"$NOTES"; exit "${BUILD_STATUS:-0}" ;;
run) printf '%s\\n' "$@" >>"$NOTES"; exit "${RUN_STATUS:-0}" ;;
esac
"""


@frozen
class Checkout:
    """A copy of what run_app.sh needs, in a folder with a blank in its name."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "a checkout"

    @property
    def notes(self) -> list[str]:
        """What was installed and started since the last look."""
        path = self.folder / "notes"
        if not path.exists():
            return []
        lines = path.read_text().splitlines()
        path.unlink()
        return [
            "the lock" if "--require-hashes" in line else "itself" if "--editable" in line else line
            for line in lines
        ]

    def interpreter(self, name: str, version: str = "3.12.1", lacks_venv: int = 0) -> Path:
        path = self.folder / "bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PYTHON.format(version=version, lacks_venv=lacks_venv, real=sys.executable))
        path.chmod(0o755)
        return path

    def engine(self, name: str) -> None:
        """A docker that only notes what it should build, and run."""
        path = self.folder / "bin" / name
        path.write_text(ENGINE)
        path.chmod(0o755)

    def tools(self) -> str:
        """A PATH of what every system has, and of what was put into this checkout's."""
        folder = self.folder / "tools"
        folder.mkdir()
        for name in ("sh", "cat", "dirname", "readlink"):
            (folder / name).symlink_to(shutil.which(name) or "/bin/" + name)
        return f"{self.folder / 'bin'}:{folder}"

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("ROUNDHOUSE", "COV"))}
        keep.pop("PYTHON", None)
        keep["PATH"] = f"{self.folder / 'bin'}:{keep['PATH']}"
        return subprocess.Popen(
            [self.root / "run_app.sh", *arguments],
            cwd=self.folder,
            env=keep | {"NOTES": str(self.folder / "notes")} | environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, typed: str = "", **environ: str) -> tuple[int, str, str]:
        """Exit status, output, errors."""
        with self.start(*arguments, **environ) as process:
            out, err = process.communicate(typed, timeout=20)
        return process.returncode, out, err


class RunAppCase(SynchronousTestCase):
    def checkout(self) -> Checkout:
        folder = TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        checkout = Checkout(Path(folder.name))
        for part in PARTS:
            target = checkout.root / part
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (HOME / part).is_dir() else shutil.copy2)(HOME / part, target)
        (checkout.root / "daemon" / "__init__.py").touch()
        checkout.interpreter("python3.14")
        return checkout


class SurfaceTests(RunAppCase):
    def test_help_is_given_when_asked_for_and_when_nothing_is_asked_for(self) -> None:
        checkout = self.checkout()
        for arguments in ((), ("-h",), ("--help",)):
            status, out, err = checkout.run(*arguments)
            assert (status, err) == (0, "")
            for word in ("-run", "-test", "-docker", "-ask", "Examples:"):
                assert word in out

    def test_an_unknown_command_is_named_with_the_help_on_stderr(self) -> None:
        status, out, err = self.checkout().run("-serve")
        assert (status, out) == (64, "")
        assert "unknown command: -serve" in err
        assert "Usage:" in err


class DocsTests(RunAppCase):
    def test_they_are_built_with_warnings_as_errors_and_it_says_where(self) -> None:
        checkout = self.checkout()
        status, _, err = checkout.run("-docs", "-E")
        assert status == 0
        built = "sphinx -m sphinx -W --keep-going -q -b html -E docs build/docs"
        assert checkout.notes == ["the lock", "itself", built]
        assert err.endswith("/a checkout/build/docs/index.html\n")

    def test_documentation_that_cannot_be_built_is_a_failure(self) -> None:
        checkout = self.checkout()
        status, _, err = checkout.run("-docs", SPHINX_STATUS="2")
        assert status == 1
        assert "index.html" not in err


class InterpreterTests(RunAppCase):
    def only(self, checkout: Checkout, version: str, lacks_venv: int = 0) -> None:
        for name in NAMES:  # the others are there like a version manager's, but do not run
            path = checkout.interpreter(name, version, lacks_venv)
            if name != "python3":
                path.write_text("#!/bin/sh\nexit 127\n")

    def test_an_older_python_is_named_with_what_is_needed(self) -> None:
        checkout = self.checkout()
        for version in ("3.10.13", "3.9.18", "2.7.18", "3.15.0"):
            self.only(checkout, version)
            status, _, err = checkout.run("-run")
            assert status == 69
            assert "Python 3.11 to 3.14 is needed" in err
            assert f"python3 is {version}" in err
            assert "PYTHON=/path/to/python3" in err
        assert not (checkout.root / ".venv").exists()

    def test_a_python_without_venv_is_named_with_the_package_that_adds_it(self) -> None:
        checkout = self.checkout()
        self.only(checkout, "3.11.2", lacks_venv=1)
        status, _, err = checkout.run("-test")
        assert status == 69
        assert "python3 (3.11.2) has no venv module" in err
        assert "apt install python3-venv" in err
        assert not (checkout.root / ".venv").exists()

    def test_one_without_venv_gives_way_to_an_older_one_that_has_it(self) -> None:
        checkout = self.checkout()
        checkout.interpreter("python3.14", "3.14.0", lacks_venv=1)
        checkout.interpreter("python3.13", "3.13.1")
        assert checkout.run("-test")[0] == 0
        assert "echo 3.13.1" in (checkout.root / ".venv/bin/python").read_text()

    def test_the_one_that_python_names_is_taken_and_another_replaces_the_venv(self) -> None:
        checkout = self.checkout()
        named = checkout.interpreter("my python", "3.13.0")
        assert checkout.run("-test", PYTHON=str(named))[0] == 0
        assert checkout.notes == ["the lock", "itself", "pytest -m pytest"]
        assert checkout.run("-test")[0] == 0
        assert checkout.notes == ["pytest -m pytest"]
        assert checkout.run("-test", PYTHON="python3.14")[0] == 0
        assert checkout.notes == ["the lock", "itself", "pytest -m pytest"]
        assert "echo 3.12.1" in (checkout.root / ".venv/bin/python").read_text()

    def test_a_named_one_that_is_not_there_is_said(self) -> None:
        status, _, err = self.checkout().run("-run", PYTHON="/nowhere/python")
        assert status == 69
        assert "/nowhere/python was not found or does not run" in err


class VenvTests(RunAppCase):
    def test_the_first_start_installs_and_the_second_one_only_starts(self) -> None:
        checkout = self.checkout()
        status, out, err = checkout.run("-test", "-k", "two words")
        assert (status, out) == (0, "")
        assert err == "run_app.sh: preparing .venv (all); this is done once and may take a minute\n"
        assert checkout.notes == ["the lock", "itself", "pytest -m pytest -k two words"]
        assert checkout.run("-test") == (0, "", "")
        assert checkout.notes == ["pytest -m pytest"]

    def test_serving_needs_less_than_testing_and_everything_includes_it(self) -> None:
        checkout = self.checkout()
        served = f"twistd --nodaemon --pidfile= --python={checkout.root.resolve()}/service.tac"
        assert checkout.run("-run")[0] == 0
        assert checkout.notes == ["the lock", "itself", served]
        assert checkout.run("-test")[0] == 0
        assert checkout.notes == ["the lock", "itself", "pytest -m pytest"]
        (checkout.root / "requirements.txt").write_text("another lock\n")
        assert checkout.run("-run")[0] == 0
        assert checkout.notes == [served]

    def test_a_changed_lock_or_project_is_installed_before_anything_starts(self) -> None:
        checkout = self.checkout()
        checkout.run("-test")
        for name in ("requirements.txt", "requirements/daemon.txt", "pyproject.toml"):
            assert checkout.notes[-1] == "pytest -m pytest"
            with (checkout.root / name).open("a") as text:
                text.write("# newer\n")
            checkout.run("-test")
            assert checkout.notes == ["the lock", "itself", "pytest -m pytest"], name
            checkout.run("-test")

    def test_going_back_to_an_earlier_lock_installs_that_one_again(self) -> None:
        checkout = self.checkout()
        checkout.run("-test")
        lock = checkout.root / "requirements" / "daemon.txt"
        earlier = lock.read_text()
        lock.write_text(earlier + "# newer\n")
        checkout.run("-run")
        lock.write_text(earlier)
        assert checkout.notes[-3:-1] == ["the lock", "itself"]
        checkout.run("-test")
        assert checkout.notes == ["the lock", "itself", "pytest -m pytest"]

    def test_what_pip_could_not_finish_starts_nothing_and_is_made_anew(self) -> None:
        checkout = self.checkout()
        status, _, err = checkout.run("-test", PIP_STATUS="1")
        assert status == 69
        assert "pip could not install requirements.txt" in err
        assert checkout.notes == ["the lock"]
        (checkout.root / ".venv" / "half").touch()
        assert checkout.run("-test")[0] == 0
        assert checkout.notes == ["the lock", "itself", "pytest -m pytest"]
        assert not (checkout.root / ".venv" / "half").exists()

    def test_a_venv_that_somebody_made_by_hand_is_completed(self) -> None:
        checkout = self.checkout()
        venv = checkout.root / ".venv"
        subprocess.run([checkout.folder / "bin" / "python3.14", "-m", "venv", venv], check=True)
        (venv / "theirs").touch()
        assert checkout.run("-test")[0] == 0
        assert checkout.notes == ["the lock", "itself", "pytest -m pytest"]
        assert (venv / "theirs").exists()

    def test_a_checkout_that_was_moved_gets_a_new_venv(self) -> None:
        checkout = self.checkout()
        checkout.run("-test")
        (checkout.root / ".venv" / "old").touch()
        moved = Checkout(checkout.folder / "elsewhere")
        moved.interpreter("python3.14")
        checkout.root.rename(moved.root)
        assert moved.run("-test")[0] == 0
        assert moved.notes == ["the lock", "itself", "pytest -m pytest"]
        assert not (moved.root / ".venv" / "old").exists()

    def test_two_at_once_install_once_and_both_start(self) -> None:
        checkout = self.checkout()
        both = [checkout.start("-test", "first"), checkout.start("-test", "second")]
        for process in both:
            with process:
                process.communicate(timeout=20)
            assert process.returncode == 0
        notes = checkout.notes
        assert notes[:2] == ["the lock", "itself"]
        assert sorted(notes[2:]) == ["pytest -m pytest first", "pytest -m pytest second"]


class AskTests(RunAppCase):
    def test_answers_through_a_pipe_are_written_and_nothing_is_installed(self) -> None:
        checkout = self.checkout()
        checkout.interpreter("python3.14").write_text(
            f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n"
        )
        config = checkout.root / "config.cfg"
        config.write_text("[echo]\nPORT = 5000   # the line check\n")
        status, out, err = checkout.run("-ask", typed="\n" * 6 + "5001\n")
        assert (status, err) == (0, "")
        assert config.read_text() == "[echo]\nPORT = 5001   # the line check\n"
        assert "Start: ./run_app.sh -run" in out
        kept = list(checkout.root.glob("config.cfg.*.bak"))
        assert [path.read_text() for path in kept] == ["[echo]\nPORT = 5000   # the line check\n"]
        assert not (checkout.root / ".venv").exists()


class ContainerTests(RunAppCase):
    def test_the_image_is_built_and_run_with_what_it_needs_and_no_more(self) -> None:
        checkout = self.checkout()
        checkout.engine("docker")
        status, _, err = checkout.run("-docker", "--detach", "--env", "TZ=two words")
        assert (status, err) == (0, "")
        built, *run = checkout.notes
        assert built.endswith(f"bin/docker build --tag roundhouse {checkout.root.resolve()}")
        assert run[0] == "run"
        assert run[-4:] == ["--detach", "--env", "TZ=two words", "roundhouse"]
        said = " ".join(run)
        for words in (
            "--read-only",
            "--tmpfs /tmp",
            "--cap-drop ALL",
            "--security-opt no-new-privileges",
            "--init",
            "--stop-timeout 20",
            "--ulimit nofile=65536:65536",
            "--volume roundhouse:/data",
        ):
            assert words in said
        published = {run[at + 1] for at, word in enumerate(run) if word == "--publish"}
        assert published == {
            f"127.0.0.1:{port.number}:{port.number}" for spec in CATALOGUE for port in spec.ports
        }
        assert not (checkout.root / ".venv").exists()

    def test_the_data_can_be_put_elsewhere(self) -> None:
        checkout = self.checkout()
        checkout.engine("docker")
        checkout.run("-docker", "--volume", "/srv/round house:/data")
        notes = checkout.notes
        assert notes.count("--volume") == 1
        assert notes[notes.index("--volume") + 1] == "/srv/round house:/data"

    def test_its_exit_status_is_that_of_the_container(self) -> None:
        checkout = self.checkout()
        checkout.engine("docker")
        assert checkout.run("-docker", RUN_STATUS="78")[0] == 78

    def test_podman_does_it_where_docker_does_not_answer(self) -> None:
        checkout = self.checkout()
        checkout.engine("docker")
        (checkout.folder / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
        checkout.engine("podman")
        assert checkout.run("-docker")[0] == 0
        assert "bin/podman build " in checkout.notes[0]

    def test_where_there_is_neither_that_is_said(self) -> None:
        checkout = self.checkout()
        status, out, err = checkout.run("-docker", PATH=checkout.tools())
        assert (status, out) == (69, "")
        assert "a container needs docker or podman. Neither is on PATH." in err

    def test_one_that_does_not_answer_is_named_with_what_to_look_at(self) -> None:
        checkout = self.checkout()
        checkout.engine("podman")
        status, _, err = checkout.run("-docker", PATH=checkout.tools(), INFO_STATUS="1")
        assert status == 69
        assert "podman is here, but 'podman info' fails: is it running, and may you use it?" in err
        assert checkout.notes == []

    def test_an_image_that_cannot_be_built_is_not_run(self) -> None:
        checkout = self.checkout()
        checkout.engine("docker")
        status, _, err = checkout.run("-docker", BUILD_STATUS="1")
        assert status == 69
        assert "docker could not build the image, see above" in err
        assert len(checkout.notes) == 1


class LockTests(SynchronousTestCase):
    """What pip would refuse, or what would tie a lock to one machine."""

    serving = (HOME / "requirements" / "daemon.txt").read_text()
    everything = (HOME / "requirements.txt").read_text()

    def pins(self, text: str) -> dict[str, str]:
        """Name to version. A name may have two pins where each says for which Python it is."""
        found = re.findall(r"^([a-z0-9-]+)==(\S+)( ;)?", text, re.MULTILINE)
        always = [name for name, _, marker in found if not marker]
        assert len(always) == len(set(always))
        assert not {*always} & {name for name, _, marker in found if marker}
        return {name: version for name, version, _ in found}

    def test_everything_includes_what_serves_and_repeats_no_pin_of_it(self) -> None:
        assert self.everything.startswith("-r requirements/daemon.txt\n")
        assert len(self.pins(self.serving + self.everything)) > 30

    def test_what_serves_is_pinned_wherever_it_runs(self) -> None:
        # a marker here could leave out what requirements.txt relies on
        assert not re.findall(r"^[a-z0-9-]+==\S+ ;.*", self.serving, re.MULTILINE)

    def test_every_file_has_a_hash_and_no_line_names_an_index_or_a_folder(self) -> None:
        for text in (self.serving, self.everything):
            for pin in re.findall(r"^[a-z0-9-]+==.*\n.*", text, re.MULTILINE):
                assert pin.endswith("\\") or "--hash=sha256:" in pin
                assert re.search(r"\\\n    --hash=sha256:[0-9a-f]{64}", pin), pin
            assert not re.search(r"://|index-url|find-links|trusted-host|@ ?file| /", text)

    def test_all_that_is_asked_for_is_pinned(self) -> None:
        project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
        asked = "\n".join(project["dependencies"])
        serving = {*re.findall(r"^[a-z-]+", asked, re.MULTILINE), "setuptools"}
        assert serving <= set(self.pins(self.serving))
        inputs = (HOME / "requirements" / "all.in").read_text()
        more = set(re.findall(r"^[a-z][a-z-]+", inputs, re.MULTILINE))
        assert {"pytest", "locust", "mypy"} <= more <= set(self.pins(self.everything))
