#!/usr/bin/env bash
# Builds the image and uses it, where no registry of images can be reached: mmdebstrap makes the
# base, buildah builds in a chroot, and `./run_app.sh -docker` serves with a stand-in for docker
# that is podman. Images, containers and volumes lie in a folder that is deleted at the end; all
# ports are published in a network of its own, so none of this machine's is opened.
#
#   sudo tests/container/check.sh
#
# Exit status 0: all of it holds; 77: it cannot be run here, with the reason. pip of .venv, or of
# PYTHON, fetches the packages as it is set up to; SUITE names another Debian for the base.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

suite=${SUITE:-trixie}
most=150      # MB that the image may have beside its base
far=192.0.2.1 # an address of the container that is not loopback

step() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
skip() {
    printf 'not run: %s\n' "$*"
    exit 77
}
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
same() { [ "$2" = "$3" ] || fail "$1: '$3', not '$2'"; } # WHAT WANTED FOUND

if [ "${1:-}" != inside ]; then
    [ "$(id -u)" = 0 ] || skip "this needs root"
    for tool in buildah catatonit curl ip mmdebstrap nsenter podman runc ss unshare; do
        command -v "$tool" >/dev/null || skip "$tool is missing"
    done
    curl -sfI "http://deb.debian.org/debian/dists/$suite/InRelease" >/dev/null ||
        skip "deb.debian.org has no $suite, or cannot be reached"
    scratch=$(mktemp -d -t roundhouse-XXXXXX)
    tidy() {
        rm -rf "$scratch"
        find /sys/fs/cgroup -depth -type d -path "*/${scratch##*/}*" -exec rmdir {} + || true
    }
    trap tidy EXIT

    step "the base: Debian $suite with python3"
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-venv \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        "$suite" "$scratch/base.tar"
    version=$(tar -tf "$scratch/base.tar" | sed -n 's#^\./usr/bin/python\(3\.[0-9]*\)$#\1#p')

    step "the packages, for Python $version"
    python=.venv/bin/python
    [ -x "$python" ] || python=${PYTHON:-python3}
    platforms=()
    for tag in manylinux_2_28 manylinux_2_17 manylinux2014 manylinux1; do
        platforms+=(--platform "${tag}_$(uname -m)")
    done
    "$python" -m pip -qq download --only-binary :all: --no-deps --require-hashes \
        --python-version "$version" "${platforms[@]}" --dest "$scratch/wheels" \
        --requirement requirements/daemon.txt
    printf '[global]\nno-index = true\nfind-links = /wheels\n' >"$scratch/pip.conf"

    # whatever is mounted or runs in there ends with it, however that ends
    status=0
    unshare --net --mount --pid --fork --kill-child --mount-proc \
        "$0" inside "$scratch" "$SECONDS" || status=$?
    exit "$status"
fi

scratch=$2
SECONDS=$3
mount -t tmpfs none /run
ip link set lo up
mkdir "$scratch"/{bin,etc}
cat >"$scratch/bin/docker" <<TEXT
#!/bin/sh
command=\$1
shift
case \$command in
build)
    exec buildah --root $scratch/store --runroot $scratch/run bud --isolation chroot --layers \\
        --format docker --build-arg BASE=localhost/base --volume $scratch/wheels:/wheels:ro \\
        --volume $scratch/pip.conf:/etc/pip.conf:ro "\$@"
    ;;
esac
exec podman --root $scratch/store --runroot $scratch/run --tmpdir $scratch/tmp \\
    --cgroup-manager cgroupfs --runtime runc --events-backend file "\$command" "\$@"
TEXT
chmod +x "$scratch/bin/docker"
export PATH=$scratch/bin:$PATH
export DISABLE_HC_SYSTEMD=true # there may be none; the health is asked for below
trap 'docker rm --all --force --time 0 >/dev/null 2>&1 || true' EXIT
log=$scratch/log

# podman asks for more of both than a root without CAP_SYS_RESOURCE can give
limits=(--ulimit "nofile=4096:4096" --ulimit "nproc=4096:4096" --cgroup-parent "/${scratch##*/}")

serve() { # OPTION ...: in the background, until it is healthy
    ./run_app.sh -docker "${network[@]}" "${limits[@]}" "$@" >"$log" 2>&1 &
    served=$!
    for _ in {1..300}; do
        docker healthcheck run roundhouse >/dev/null 2>&1 && break
        kill -0 "$served" 2>/dev/null || fail "it ended: $(cat "$log")"
        sleep 0.5
    done
    docker healthcheck run roundhouse >/dev/null || fail "it is not healthy: $(cat "$log")"
    inner=$(docker inspect --format '{{.State.Pid}}' roundhouse)
    nsenter --net --target "$inner" ip address add "$far/32" dev lo
}
stop() { # by STOPSIGNAL, as `docker stop` does
    docker stop roundhouse >/dev/null
    status=0
    wait "$served" || status=$?
    same "the exit status of a stop" 0 "$status"
}
there() { docker exec --interactive roundhouse "$@"; }
other() { # COMMAND: in a container beside it, which reaches it over the network
    docker run --rm --interactive --network container:roundhouse --env "ROUNDHOUSE_HOST=$far" \
        "${limits[@]}" roundhouse "$@"
}
web() { nsenter --net --target "$inner" curl -s -m 10 "$@"; }
answer() { web -o /dev/null -w '%{http_code}' "$@" || true; }

docker import --quiet "$scratch/base.tar" localhost/base >/dev/null
docker run --rm --network none "${limits[@]}" localhost/base true 2>"$log" ||
    skip "podman cannot start a container here: $(cat "$log")"
network=()
docker run --rm --publish 127.0.0.1:1:1 "${limits[@]}" localhost/base true 2>"$log" || {
    step "without published ports, which cannot be had here: $(tail -n 1 "$log")"
    network=(--network none)
}

step "the image, and a container that serves"
serve
size() { docker image inspect --format '{{.Size}}' "$1"; }
beside=$((($(size localhost/roundhouse) - $(size localhost/base)) / 1000000))
[ "$beside" -lt "$most" ] || fail "the image has $beside MB beside its base, $most at most"
step "it has $beside MB beside its base"

same "who it runs as" 10001:10001 "$(there id -u):$(there id -g)"
docker exec --user 0:0 roundhouse touch /opt/roundhouse/x 2>/dev/null &&
    fail "its root can be written to"
may() { there sed -n "s/^$1:\t//p" /proc/1/status; }
same "its capabilities" 0000000000000000 "$(may CapBnd)"
same "whether it can gain any" 1 "$(may NoNewPrivs)"

step "what it answers to others"
same "echo" HOLA "$(echo hola | other roundhouse echo)"
other roundhouse selftest all | sed 's/^/        /'
head -c 3000000 /dev/urandom >"$scratch/stream"
sum=$(sha256sum <"$scratch/stream")
receipt=$(other roundhouse --json ingest - <"$scratch/stream")
[[ $receipt == *"${sum%% *}"* ]] || fail "ingest: $receipt does not name ${sum%% *}"
for host in "$far" localhost 127.0.0.1 roundhouse; do
    same "the relay, asked as $host" 200 "$(answer -H "Host: $host:5012" "http://$far:5012/")"
done
same "the relay, asked as a stranger" 403 "$(answer -H 'Host: example.org' "http://$far:5012/")"
same "an upload" 201 "$(answer -T "$scratch/stream" "http://$far:5012/kept/stream")"
same "the admin port, from outside" 000 "$(answer "http://$far:8088/readyz")"
messages=$(there python -m daemon export)
if [ ${#network[@]} = 0 ]; then
    same "the relay, published" 200 "$(curl -s -o "$log" -w '%{http_code}' http://localhost:5012/)"
    same "the ports published" 8 "$(ss -Htln | grep -c '127.0.0.1:')"
    same "ports open to others" "" "$(ss -Htln | grep -v '127.0.0.1:')"
fi

step "a stop, and the next start, with a configuration of its own"
stop
cat >"$scratch/etc/config.cfg" <<'TEXT'
[echo]
PORT = none
TEXT
status=0
docker run --rm --network none "${limits[@]}" --volume "$scratch/etc:/etc/roundhouse:ro" \
    roundhouse >"$log" 2>&1 || status=$?
same "the exit status of bad settings" 78 "$status"
grep -q 'config.cfg:2: ' "$log" || fail "bad settings are not named: $(cat "$log")"
cat >"$scratch/etc/config.cfg" <<'TEXT'
[admin]
LISTEN = tcp:8088:interface=0.0.0.0
TOKEN = correct-horse-battery
TEXT
serve --volume "$scratch/etc:/etc/roundhouse:ro"
there python -m daemon verify /data/ingest >/dev/null
same "the messages" "$messages" "$(there python -m daemon export)"
there python -m daemon restart >/dev/null
web "http://$far:5012/kept/next" | cmp - "$scratch/stream"
same "metrics without the token" 401 "$(answer "http://$far:8088/metrics")"
same "metrics with it" 200 \
    "$(answer -H 'Authorization: Bearer correct-horse-battery' "http://$far:8088/metrics")"
printf '[ingest]\nMAX_FILE_SIZE = 1 MiB\n' >>"$scratch/etc/config.cfg"
for _ in {1..50}; do
    grep -q 'MAX_FILE_SIZE = 1048576' "$log" && break
    sleep 0.1
done
grep -q 'MAX_FILE_SIZE = 1048576' "$log" || fail "the changed file was not read: $(cat "$log")"
stop
grep -iE 'traceback|error|critical' "$log" && fail "that is in its log"
step "all of it holds"
