"""50 users; for twenty seconds 1,000; then 50 again."""

from __future__ import annotations

from loadtest.shape import Shape


class Spike(Shape):
    points = ((0, 50), (30, 50), (32, 1000), (52, 1000), (54, 50), (90, 50))
    options = {"each": 0.5, "room_size": 20}  # noqa: RUF012
