"""A dataclass whose fields are documented in each of the ways."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Documented:
    below: int = 1
    """A string
    below."""
    beside: int = 2  # A comment beside.
    # Two lines
    # above.
    above: int = 3
    long: tuple[int, ...] = (
        1,
        2,
    )  # After several lines.
    bare: int = 4
