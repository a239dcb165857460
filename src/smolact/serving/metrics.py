"""A server's counters, in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)


class Histogram:
    """Cumulative counts of values by upper bound, and their sum."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterator[str]:
        """Yield the lines of this histogram."""
        count = 0
        for bound, in_bucket in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            count += in_bucket
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self._sum:.9g}"
        yield f"{name}_count {count}"


OUTCOMES = ("answered", "superseded", "expired", "refused", "failed", "dropped")


class Metrics:
    """Counters of one server.

    Attributes:
        requests: counts by outcome: `answered`; `superseded` by a newer request; `expired` before inference; `refused` as invalid;
            `failed` in the policy; `dropped` because the session ended or was reset.
    """

    def __init__(self) -> None:
        self.requests = dict.fromkeys(OUTCOMES, 0)
        self.sessions = 0
        self.rejected: dict[str, int] = {}
        self.received = 0
        self.waited, self.inference, self.batch = Histogram(SECONDS), Histogram(SECONDS), Histogram(SIZES)

    def reject(self, reason: str) -> None:
        """Count a connection that was refused or closed by the server."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return all counters and the given gauges."""
        lines: list[str] = []
        for name, value in gauges.items():
            lines += [f"# TYPE smolact_{name} gauge", f"smolact_{name} {value:g}"]
        for name, value in (("sessions_total", self.sessions), ("received_bytes_total", self.received)):
            lines += [f"# TYPE smolact_{name} counter", f"smolact_{name} {value}"]
        for name, label, counts in (
            ("questions_total", "outcome", self.requests),
            ("rejected_total", "reason", self.rejected),
        ):
            lines.append(f"# TYPE smolact_{name} counter")
            lines += [f'smolact_{name}{{{label}="{key}"}} {count}' for key, count in counts.items()]
        for name, histogram in (
            ("waited_seconds", self.waited),
            ("inference_seconds", self.inference),
            ("batch_size", self.batch),
        ):
            lines += [f"# TYPE smolact_{name} histogram", *histogram.lines(f"smolact_{name}")]
        return "\n".join(lines) + "\n"
