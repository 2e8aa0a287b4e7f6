"""What Prometheus reads: everything is counted elsewhere, and looked up when it asks.

    roundhouse_<service>_open_connections{port}              now
    roundhouse_<service>_connections_total{port, outcome}    that ended, by how
    roundhouse_<service>_received_bytes_total{port}          and sent_bytes_total, by the kernel
    roundhouse_refused_connections_total{reason}             before any service: `all` and `address`
                                                             by the gate, or no descriptors
    roundhouse_..., by `Measured`: stores, reactor           see the help of each
    roundhouse_uptime_seconds, roundhouse_build_info
    process_...                                              memory, CPU, descriptors

port is the key of config.cfg (PORT, HTTP_PORT), reason and outcome are words of a fixed set: no
name or address of a peer ever is a label.
"""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from math import inf
from typing import TYPE_CHECKING

import psutil
import twisted
from attrs import define, field
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from daemon.measures import Durations, Measure

if TYPE_CHECKING:
    from daemon.roundhouse import Roundhouse

PREFIX = "roundhouse_"


@cache  # to find it takes a look at the disk
def release() -> str:
    """The version of this distribution."""
    try:
        return version("roundhouse-daemon")
    except PackageNotFoundError:  # a bare checkout
        return "0+unknown"


@define(eq=False, repr=False)
class Metrics(Collector):
    """A registry of our own, so that nothing else in the process gets in, and its one source."""

    daemon: Roundhouse
    _registry: CollectorRegistry = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def encode(self, accept: str) -> tuple[bytes, str]:
        """All of it, and the media type that `accept` asks for."""
        try:
            encode, media_type = choose_encoder(accept)
        except TypeError:  # it compares a version that is none with numbers
            encode, media_type = choose_encoder("")
        return encode(self._registry), media_type

    def describe(self) -> Iterator[Metric]:
        """Nothing that would have to be collected to know it."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        daemon = self.daemon
        yield InfoMetricFamily(
            PREFIX + "build",
            "What runs here.",
            {
                "version": release(),
                "python": platform.python_version(),
                "twisted": twisted.__version__,
                "reactor": daemon.chosen.name if daemon.chosen else "",
            },
        )
        yield GaugeMetricFamily(
            PREFIX + "uptime_seconds", "Seconds since it was started.", daemon.uptime
        )
        for service in daemon.factories:
            yield from self._service(service)
        yield GaugeMetricFamily(
            PREFIX + "most_connections", "Connections there may be at once.", daemon.gate.most
        )
        refused = CounterMetricFamily(
            PREFIX + "refused_connections", "Connections that were one too many.", labels=["reason"]
        )
        starved = sum(listener.starved for listener in daemon.listeners)
        for reason, count in {**daemon.gate.refusals, "descriptors": starved}.items():
            refused.add_metric([reason], count)
        yield refused
        for source in daemon.measured:
            for measure in source.measures():
                yield _family(measure)
        yield from _process()

    def _service(self, name: str) -> Iterator[Metric]:
        prefix = f"{PREFIX}{re.sub('[^a-z0-9_]', '_', name.lower())}_"
        label = ["port"]
        there = GaugeMetricFamily(
            prefix + "open_connections", "Connections that are open.", labels=label
        )
        ended = CounterMetricFamily(
            prefix + "connections", "Connections that ended.", labels=["port", "outcome"]
        )
        received = CounterMetricFamily(
            prefix + "received_bytes", "Bytes that peers sent, by the kernel.", labels=label
        )
        sent = CounterMetricFamily(
            prefix + "sent_bytes", "Bytes that peers were sent, by the kernel.", labels=label
        )
        for key, factory in self.daemon.factories[name].items():
            there.add_metric([key], sum(map(len, factory.lives)))
            for outcome, count in factory.live.outcomes.items():
                ended.add_metric([key, outcome], count)
            moved = self.daemon.traffic[name, key].so_far(*factory.lives)
            received.add_metric([key], moved.received)
            sent.add_metric([key], moved.sent)
        yield from (there, ended, received, sent)


def _process() -> Iterator[Metric]:
    """What `prometheus_client.ProcessCollector` tells, which takes a millisecond or more to list a
    thousand descriptors."""
    process = psutil.Process()
    memory, times = process.memory_info(), process.cpu_times()
    for name, meaning, value in (
        ("virtual_memory_bytes", "Virtual memory size in bytes.", memory.vms),
        ("resident_memory_bytes", "Resident memory size in bytes.", memory.rss),
        (
            "start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            process.create_time(),
        ),
    ):
        yield GaugeMetricFamily(f"process_{name}", meaning, value)
    yield CounterMetricFamily(
        "process_cpu_seconds",
        "Total user and system CPU time spent in seconds.",
        times.user + times.system,
    )
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield GaugeMetricFamily(
        "process_open_fds", "Number of open file descriptors.", _open_files(process)
    )
    yield GaugeMetricFamily(
        "process_max_fds",
        "Maximum number of open file descriptors.",
        inf if most == resource.RLIM_INFINITY else most,
    )


def _open_files(process: psutil.Process) -> int:
    with suppress(OSError):
        if count := os.stat("/proc/self/fd").st_size:  # since Linux 6.2
            return count
    return process.num_fds()


def _family(measure: Measure) -> Metric:
    name, value = PREFIX + measure.name, measure.value
    if isinstance(value, Durations):
        bounds = [*map(str, value.bounds), "+Inf"]
        buckets = [*zip(bounds, value.up_to(), strict=True)]
        return HistogramMetricFamily(name, measure.meaning, buckets, value.total)
    if name.endswith("_total"):
        return CounterMetricFamily(name, measure.meaning, value)
    return GaugeMetricFamily(name, measure.meaning, value)
