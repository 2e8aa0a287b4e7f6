"""Cases, samples and what they come to: medians, ratios within a round, bounds. Pure.

One round measures every peer once, one after the other, so a ratio of two peers of the same round
has seen the same noise. Medians and spread are taken over such ratios, not over absolute figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import median

from attrs import define, field, frozen

LIMIT = "C"  # the peer that all others are related to


@frozen
class Sample:
    """One run of one case against one server.

    ops: operations answered and found right. seconds: the time it took. cpu: seconds of CPU the
    server spent on them. p50_us, p99_us: latency. memory: bytes its resident memory grew by.
    load_cpu: seconds of CPU of the generator. bytes: that they carried, where that is the point.
    peak: the most bytes that were resident since the server started. grown: how far its resident
    memory went, at most, beyond what it was before; only where GROWN is a column of the case.
    """

    ops: int
    seconds: float
    cpu: float
    p50_us: float
    p99_us: float
    memory: int = 0
    load_cpu: float = 0.0
    bytes: int = 0
    peak: int = 0
    grown: int = 0


@frozen
class Figure:
    """What of a sample counts. unit may hold {ops}; more: whether more is better.

    related: whether it is told as a ratio to the limit, or as it is.
    """

    name: str
    unit: str
    more: bool
    of: Callable[[Sample], float]
    related: bool = True


PER_CPU = Figure(
    "per_cpu", "{ops}/CPU-s", True, lambda s: s.ops / s.cpu if s.cpu > 0 else float("inf")
)
PER_SECOND = Figure("per_second", "{ops}/s", True, lambda s: s.ops / s.seconds)
GBPS = Figure("gbps", "GB/s", True, lambda s: s.bytes / s.seconds / 1e9)
CPU_PER_GB = Figure("cpu_per_gb", "CPU-s/GB", False, lambda s: s.cpu / s.bytes * 1e9)
P50 = Figure("p50_us", "p50 µs", False, lambda s: s.p50_us)
P99 = Figure("p99_us", "p99 µs", False, lambda s: s.p99_us)
GROWN = Figure("grown", "MB more", False, lambda s: s.grown / 1e6, related=False)
PEAK = Figure("peak", "peak MB", False, lambda s: s.peak / 1e6, related=False)
MEMORY = Figure("memory", "KiB each", False, lambda s: s.memory / s.ops / 1024, related=False)


@frozen
class Bound:
    """What `peer` must show: a ratio to `against`, or without it the figure as it is.

    figure: another one than the case's own.
    """

    peer: str
    value: float
    against: str | None = LIMIT
    figure: Figure | None = None


@frozen
class Case:
    """One thing to measure.

    name: for --only. load: the generator's arguments after port and seconds. ops: what one
    operation is. descriptors: how many a server and the generator need. fresh: each sample wants a
    server that has served nothing. columns: figures to tell beside. peers: who takes part; empty:
    everybody. many: it leaves thousands of files, which stay until all is measured: for minutes
    after they are deleted ext4 makes new ones ten times slower.
    """

    name: str
    title: str
    load: tuple[str, ...]
    ops: str
    figure: Figure = PER_CPU
    bounds: tuple[Bound, ...] = ()
    descriptors: int = 0
    fresh: bool = False
    columns: tuple[Figure, ...] = (P50, P99)
    peers: tuple[str, ...] = ()
    many: bool = False

    def unit(self, figure: Figure) -> str:
        return figure.unit.format(ops=self.ops)

    def wants(self, peer: str) -> bool:
        return not self.peers or peer in self.peers


@frozen
class Spread:
    """A figure over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@frozen
class Verdict:
    """A bound, and what was measured of its figure."""

    bound: Bound
    figure: Figure
    shown: Spread

    @property
    def more(self) -> bool:
        """Whether it is a lower one."""
        return self.figure.more

    @property
    def met(self) -> bool:
        if self.more:
            return self.shown.median >= self.bound.value
        return self.shown.median <= self.bound.value


@frozen
class Row:
    """One peer in one case.

    ratio: to the limit's, None where the figure is told as it is. columns: the other figures.
    """

    case: Case
    peer: str
    value: Spread
    ratio: Spread | None
    columns: tuple[Spread, ...]


@define
class Table:
    """Samples as they come, and everything that is read off them."""

    _samples: dict[Case, dict[str, list[Sample]]] = field(factory=dict, init=False)

    def add(self, case: Case, peer: str, sample: Sample) -> None:
        """Rounds are told apart by their order: every peer once in each."""
        self._samples.setdefault(case, {}).setdefault(peer, []).append(sample)

    @property
    def cases(self) -> list[Case]:
        return [*self._samples]

    @property
    def ops(self) -> int:
        """All operations whose answers were compared."""
        return sum(s.ops for _, _, samples in self._all() for s in samples)

    @property
    def bytes(self) -> int:
        return sum(s.bytes for _, _, samples in self._all() for s in samples)

    def samples(self, case: Case, peer: str) -> Sequence[Sample]:
        return tuple(self._samples[case].get(peer, ()))

    def rows(self, case: Case) -> Iterator[Row]:
        for peer, samples in self._samples[case].items():
            yield Row(
                case,
                peer,
                Spread.of([case.figure.of(s) for s in samples]),
                self.ratio(case, peer, LIMIT) if case.figure.related else None,
                tuple(Spread.of([figure.of(s) for s in samples]) for figure in case.columns),
            )

    def ratio(
        self, case: Case, peer: str, against: str, figure: Figure | None = None
    ) -> Spread | None:
        """Of two peers in the same rounds; None where one of them was not measured.

        figure: None: the case's own.
        """
        of = (figure or case.figure).of
        pairs = [
            of(one) / of(other)
            for one, other in zip(
                self.samples(case, peer), self.samples(case, against), strict=False
            )
        ]
        return Spread.of(pairs) if pairs else None

    def verdicts(self, case: Case) -> Iterator[Verdict]:
        """Of the bounds whose peers were measured."""
        for bound in case.bounds:
            figure = bound.figure or case.figure
            shown: Spread | None = None
            if bound.against is not None:
                shown = self.ratio(case, bound.peer, bound.against, figure)
            elif samples := self.samples(case, bound.peer):
                shown = Spread.of([figure.of(s) for s in samples])
            if shown is not None:
                yield Verdict(bound, figure, shown)

    def _all(self) -> Iterator[tuple[Case, str, list[Sample]]]:
        for case, peers in self._samples.items():
            for peer, samples in peers.items():
                yield case, peer, samples
