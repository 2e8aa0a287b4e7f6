"""500 users, each acting once a second, for a minute."""

from __future__ import annotations

from loadtest.shape import Shape


class Rate500(Shape):
    points = ((0, 100), (5, 500), (65, 500))
    options = {"each": 1.0, "bounds": "500"}  # noqa: RUF012
