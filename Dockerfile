# Roundhouse in a container; docs/how-to/container.md says how it is run.
# BASE is anything that has Python 3.11 to 3.14 as python3, with its venv module.
ARG BASE=docker.io/library/python:3.14-slim-trixie

FROM ${BASE} AS build
WORKDIR /opt/roundhouse
RUN python3 -m venv .venv
COPY requirements/daemon.txt requirements/
RUN .venv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --only-binary :all: --require-hashes --requirement requirements/daemon.txt
COPY LICENSE README.md pyproject.toml service.tac ./
COPY client client
COPY daemon daemon
COPY protocols protocols
COPY tac tac
# twistd --help lists its plugins, and so writes their cache: where it runs nothing can be written
RUN .venv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check \
        --no-deps --no-build-isolation --editable . \
    && .venv/bin/python -m pip uninstall --quiet --yes setuptools pip \
    && .venv/bin/python -m compileall -q --invalidation-mode unchecked-hash client daemon protocols \
    && .venv/bin/twistd --help >/dev/null \
    && rm -rf requirements *.egg-info

FROM ${BASE}
LABEL org.opencontainers.image.title="Roundhouse" \
      org.opencontainers.image.description="One daemon, one reactor: ingest, relay, chat, handshake, echo" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
# ROUNDHOUSE_HOST is for the client in here: SERVER_IP of config.cfg may be an address of the host
ENV HOME=/tmp \
    PATH=/opt/roundhouse/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ROUNDHOUSE_CONFIG=/etc/roundhouse/config.cfg \
    ROUNDHOUSE_DATA_DIR=/data \
    ROUNDHOUSE_HOST=127.0.0.1 \
    ROUNDHOUSE_SERVER_IP=0.0.0.0
RUN install -d -o 10001 -g 10001 -m 750 /data
COPY --from=build /opt/roundhouse /opt/roundhouse
COPY config.cfg /etc/roundhouse/
WORKDIR /opt/roundhouse
USER 10001:10001
VOLUME /data
EXPOSE 5000 5011 5012 6667 8000 8001 8080 60060
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=2m --retries=3 \
    CMD ["roundhouse", "--timeout", "5", "status", "--ready"]
CMD ["twistd", "--nodaemon", "--pidfile=", "--python=/opt/roundhouse/service.tac"]
