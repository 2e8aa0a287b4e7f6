"""51 users, each acting once a second, for a minute."""

from __future__ import annotations

from loadtest.shape import Shape


class Rate51(Shape):
    points = ((0, 51), (60, 51))
    options = {"each": 1.0, "bounds": "51"}  # noqa: RUF012
