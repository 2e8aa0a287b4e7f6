"""What the load shapes in `shapes/` have in common.

A shape is loaded beside the locustfile and decides how many users there are at each moment:

    locust -f loadtest/locustfile.py,loadtest/shapes/rate51.py --headless --stop-timeout 10

It lives in a file of its own because a shape in locustfile.py would make Locust ignore -u, -r and
-t. Locust shows a shape no options of its own, so what else belongs to one (how often a user acts,
which bounds hold) is set here before the first user is born; what the command line says wins.
"""

from __future__ import annotations

from typing import Any, ClassVar

from locust import LoadTestShape


class Shape(LoadTestShape):
    """Users over time, in straight lines between points.

    points: (seconds since the start, users), the first at 0; the last one ends the run.
    """

    abstract = True
    points: ClassVar[tuple[tuple[float, int], ...]] = ()
    options: ClassVar[dict[str, Any]] = {}  # of locustfile.py: each, room_size, bounds

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    def tick(self) -> tuple[int, float] | None:
        if not self._told:
            self._tell()
        return self.at(self.get_run_time())

    def _tell(self) -> None:
        assert self.runner is not None
        said = self.runner.environment.parsed_options
        for name, value in self.options.items():
            if getattr(said, name, None) is None:
                setattr(said, name, value)
        self._told = True

    def at(self, seconds: float) -> tuple[int, float] | None:
        """Users then, and how many a second may come or go; None once it is over."""
        for (began, users), (until, wanted) in zip(self.points, self.points[1:], strict=False):
            if seconds < until:
                share = (seconds - began) / (until - began)
                slope = abs(wanted - users) / (until - began)
                return round(users + share * (wanted - users)), max(slope, users, 1)
        return None
