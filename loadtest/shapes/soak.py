"""200 users for half an hour: watch the daemon's memory and descriptors meanwhile."""

from __future__ import annotations

from loadtest.shape import Shape


class Soak(Shape):
    points = ((0, 10), (30, 200), (1800, 200))
    options = {"each": 1.0, "room_size": 20}  # noqa: RUF012
