"""Up to 5,000 users in 90 seconds, each acting every ten seconds; then 30 seconds of them."""

from __future__ import annotations

from loadtest.shape import Shape


class Ramp5000(Shape):
    points = ((0, 50), (90, 5000), (120, 5000))
    options = {"each": 0.1, "room_size": 20, "bounds": "5000"}  # noqa: RUF012
