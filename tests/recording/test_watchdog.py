"""Whatever happens to a server, at whatever moment: the robot holds in time, and nothing stale moves it."""

from __future__ import annotations

from tests.recording.watchdog import SOON, storm


def test_a_server_that_goes_away_at_any_moment() -> None:
    ends, latest = storm(300, seed=0)
    assert latest <= SOON
    assert {end.partition(", ")[2] for end in ends} == {"went on", "given up", "refused", "lost"}
