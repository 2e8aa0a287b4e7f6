#!/bin/sh
# Makes .venv where it is missing, half-made or outdated, then starts what was asked for.
set -eu

usage() {
    cat <<'TEXT'
Usage: ./run_app.sh COMMAND [ARGUMENT ...]

  -run [OPTION ...]    serve until Ctrl-C; options go to twistd
  -test [OPTION ...]   run the whole test suite; options go to pytest
  -docs [OPTION ...]   build the documentation; options go to sphinx-build
  -docker [OPTION ...] build the image and serve in a container, with docker or podman, until
                       Ctrl-C; options go to its run command
  -ask                 ask for host, ports and sizes, write config.cfg (the old one is kept)
  -h, --help           this text

The first -run, -test or -docs makes .venv beside this script, with Python 3.11 to 3.14, and
installs what that command needs; every file is checked against its hash. Later ones start at
once and need no network. PYTHON names the interpreter, ROUNDHOUSE_CONFIG another config.cfg.
-docker needs no Python: the ports are on 127.0.0.1, the data is in the volume roundhouse.

Examples:
  ./run_app.sh -run
  ./run_app.sh -ask
  ./run_app.sh -docker --detach       docker stop roundhouse ends it
  ./run_app.sh -test -k echo
  PYTHON=python3.12 ./run_app.sh -test
TEXT
}

say() { printf 'run_app.sh: %s\n' "$*" >&2; }
fail() { # STATUS TEXT
    status=$1
    shift
    say "$@"
    exit "$status"
}

script=$(readlink -f -- "$0" 2>/dev/null) || script=$0
root=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd -P)
venv=$root/.venv
python=$venv/bin/python

version() { "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

# Leaves in $base an interpreter that has the MODULES: PYTHON, else the newest on PATH.
find_python() { # MODULES, separated by commas
    modules=$1
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.14 python3.13 python3.12 python3.11 python3
    fi
    found=
    for base in "$@"; do
        is=$(version "$base") || continue
        case $is in
        3.11.* | 3.12.* | 3.13.* | 3.14.*)
            "$base" -c "import $modules" 2>/dev/null && return
            found="$found $base ($is) has no venv module: on Debian and Ubuntu, apt install python3-venv (or python${is%.*}-venv) adds it."
            ;;
        *) found="$found $base is $is." ;;
        esac
    done
    fail 69 "Python 3.11 to 3.14 is needed.${found:- ${PYTHON:-python3} was not found or does not run.}" \
        "Another one can be named: PYTHON=/path/to/python3 ./run_app.sh ..."
}

# What .venv is made from, in a few figures. daemon: what serving needs; all: everything.
recipe() { # LEVEL
    set -- "$1" pyproject.toml requirements/daemon.txt
    [ "$1" = daemon ] || set -- "$@" requirements.txt
    shift
    (cd "$root" && { pwd -P && version "$python" && cat "$@"; } | cksum)
}

other_python() { # is .venv of another minor version than PYTHON?
    [ -n "${PYTHON:-}" ] || return
    asked=$(version "$PYTHON") && made=$(version "$python") && [ "${asked%.*}" != "${made%.*}" ]
}

ready() { # LEVEL
    [ -x "$python" ] && [ ! -e "$venv/.unfinished" ] && [ -f "$venv/.installed-$1" ] &&
        [ "$(cat "$venv/.installed-$1")" = "$(recipe "$1")" ] && ! other_python
}

# Descriptor 9 holds the lock, so it ends with whoever took it, however that ends.
take_turn() {
    "$base" -c 'import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("run_app.sh: waiting for another one that prepares .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)'
}

worthless() { # pip would trust what it finds in a .venv that is half-made, moved or of another Python
    [ -e "$venv/.unfinished" ] || ! version "$python" >/dev/null || other_python ||
        { [ -e "$venv/.root" ] && [ "$(cat "$venv/.root")" != "$root" ]; }
}

pip_install() { "$python" -m pip install -qq --disable-pip-version-check --no-input "$@"; }

install() { # LEVEL
    say "preparing .venv ($1); this is done once and may take a minute"
    if worthless; then
        find "$venv" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    fi
    : >"$venv/.unfinished"
    rm -f "$venv"/.installed-*
    printf '%s\n' "$root" >"$venv/.root"
    [ -x "$python" ] || "$base" -m venv "$venv" || fail 69 "$base cannot make $venv, see above."
    lock=requirements.txt
    [ "$1" = all ] || lock=requirements/daemon.txt
    if ! pip_install --require-hashes -r "$root/$lock" ||
        ! pip_install --no-deps --no-build-isolation --editable "$root"; then
        fail 69 "pip could not install $lock, see above. The same command starts over."
    fi
    recipe daemon >"$venv/.installed-daemon"
    [ "$1" = daemon ] || recipe all >"$venv/.installed-all"
    rm "$venv/.unfinished"
}

prepare() { # LEVEL
    ready "$1" && return
    find_python ensurepip,venv
    mkdir -p "$venv"
    (
        take_turn
        ready "$1" || install "$1"
    ) 9>"$venv/.lock"
}

# Leaves in $engine the one that answers: docker, else podman.
find_engine() {
    silent=
    for engine in docker podman; do
        command -v "$engine" >/dev/null || continue
        "$engine" info >/dev/null 2>&1 && return
        silent="$silent $engine is here, but '$engine info' fails: is it running, and may you use it?"
    done
    fail 69 "a container needs docker or podman.${silent:- Neither is on PATH.}"
}

command=${1:---help}
[ $# -eq 0 ] || shift
case $command in
-run)
    prepare daemon
    exec "$venv/bin/twistd" --nodaemon --pidfile= "$@" --python="$root/service.tac"
    ;;
-test)
    prepare all
    cd "$root"
    exec "$python" -m pytest "$@"
    ;;
-docs)
    prepare all
    cd "$root"
    "$python" -m sphinx -W --keep-going -q -b html "$@" docs build/docs || fail 1 "see above."
    say "built: $root/build/docs/index.html"
    ;;
-docker)
    find_engine
    "$engine" build --tag roundhouse "$root" || fail 69 "$engine could not build the image, see above."
    for port in 5000 5011 5012 6667 8000 8001 8080 60060; do
        set -- --publish "127.0.0.1:$port:$port" "$@"
    done
    case "$*" in
    *:/data*) ;; # another place for it
    *) set -- --volume roundhouse:/data "$@" ;;
    esac
    exec "$engine" run --rm --name roundhouse --hostname roundhouse --init --stop-timeout 20 \
        --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
        --ulimit nofile=65536:65536 "$@" roundhouse
    ;;
-ask)
    base=$python
    version "$base" >/dev/null || find_python sys
    PYTHONPATH=$root exec "$base" -P -m daemon.ask "$@" # stdlib only: needs no .venv
    ;;
-h | --help) usage ;;
*)
    say "unknown command: $command"
    usage >&2
    exit 64
    ;;
esac
