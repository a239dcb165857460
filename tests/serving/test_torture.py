"""Short forms of what `scripts/torture` does at length: nothing is kept of questions that were answered and of who is gone."""

from __future__ import annotations

from tests.serving.torture import hang_up, soak


def test_a_server_keeps_nothing_of_what_it_answered() -> None:
    found = soak(4000, clients=4, renew=100)
    assert found["wrong answers"] == 0 and found["sessions"] == 80


def test_a_server_keeps_nothing_of_who_hangs_up_in_the_middle_of_a_frame() -> None:
    assert hang_up(40)["times"] == 40
