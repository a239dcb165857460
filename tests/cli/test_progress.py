"""Commands show that they live: on a terminal a bar, elsewhere a line now and then, and the first one at once."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from smolact.cli import progress
from smolact.cli.progress import PATIENCE, QUICK, Count, announce, progress_bar, rate_text, stages, time_text


class Clock:
    """A clock that stands still until it is moved on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def plain() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=80)


def terminal(width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, color_system=None, width=width, _environ={"TERM": "xterm"}
    )


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def drawn(console: Console) -> list[str]:
    """Every bar that was drawn on a terminal, and the lines above it."""
    assert isinstance(console.file, io.StringIO)
    pieces = (
        console.file.getvalue().replace("\x1b[2K", "\n").replace("\x1b[?25l", "").replace("\x1b[?25h", "")
    )
    return [piece.strip() for piece in pieces.replace("\x1b[1A", "").splitlines() if piece.strip()]


def test_without_a_terminal_there_is_a_line_at_once_and_one_every_five_seconds(clock: Clock) -> None:
    console = plain()
    with progress_bar(600, "episodes", console=console) as advance:
        assert said(console) == ["600 episodes"]
        for _ in range(60):
            clock.wait(0.5)
            advance(2, "success 84%")
        assert said(console)[1:] == [
            f"{done} of 600 episodes, 4.0/s, {(600 - done) // 4} s left, success 84%"
            for done in (20, 40, 60, 80, 100, 120)
        ]
        for _ in range(9):
            clock.wait(0.5)
            advance(2)
        assert len(said(console)) == 7
        advance(600 - 138)
    assert said(console)[7:] == ["600 of 600 episodes, 17/s, success 84%"]


def test_what_is_at_work_without_an_end_in_sight_still_speaks(clock: Clock) -> None:
    """Episodes that are played side by side end together, after minutes perhaps."""
    console = plain()
    with progress_bar(40, "episodes", console=console) as advance:
        for step in range(11):
            advance(0, f"20 at step {step}")
            clock.wait(1.0)
        assert said(console) == [
            "40 episodes",
            "0 of 40 episodes, 20 at step 5",
            "0 of 40 episodes, 20 at step 10",
        ]
        advance(20, "success 50%")  # after 11 s
        clock.wait(4.0)
        advance(0)
    assert said(console)[3:] == ["20 of 40 episodes, 1.8/s, 7 s left, success 50%"]


def test_a_work_that_is_broken_off_says_nothing_more(clock: Clock) -> None:
    for console in (plain(), terminal()):
        with pytest.raises(KeyboardInterrupt), progress_bar(3, "episodes", console=console) as advance:
            advance()
            raise KeyboardInterrupt
    console = plain()
    with pytest.raises(KeyboardInterrupt), progress_bar(3, "episodes", console=console):
        raise KeyboardInterrupt
    assert said(console) == ["3 episodes"]


def test_what_was_done_before_is_no_part_of_the_rate(clock: Clock) -> None:
    console = plain()
    with progress_bar(100, "episodes", done=80, first="100 episodes, in pairs", console=console) as advance:
        clock.wait(6.0)
        advance(12)
    with progress_bar(100, "episodes", done=100, console=console):
        pass
    assert said(console) == ["100 episodes, in pairs", "92 of 100 episodes, 2.0/s, 4 s left", "100 episodes"]


def test_on_a_terminal_there_is_one_bar_that_has_all_numbers(clock: Clock) -> None:
    console = terminal()
    with progress_bar(600, "episodes", console=console) as advance:
        assert drawn(console) == ["0/600 episodes"] * 2
        for _ in range(10):
            clock.wait(1.0)
            advance(3, "success [84]%")
        assert drawn(console)[-1].startswith("30/600 episodes ━")
        assert drawn(console)[-1].endswith("3.0/s, 190 s left, success [84]%")
        seen = len(drawn(console))
        for _ in range(50):
            advance()  # in no time
        assert len(drawn(console)) == seen
    assert drawn(console)[-1].startswith("80/600 episodes")  # the end is drawn, whenever it comes


def test_a_narrow_terminal_has_a_line_for_a_bar(clock: Clock) -> None:
    console = terminal(60)
    with progress_bar(600, "episodes", first="600 episodes, in 6 conditions", console=console) as advance:
        clock.wait(1.0)
        advance(3, "success 84%, and more that has no place here")
    first, *bars = drawn(console)
    assert first == "600 episodes, in 6 conditions"
    assert all(len(bar) <= 60 for bar in bars)
    assert bars[-1].startswith("3/600 episodes") and bars[-1].endswith("…")


def test_a_terminal_that_cannot_draw_has_lines() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
    with progress_bar(2, "steps", console=console) as advance:
        assert said(console) == ["2 steps"]
        advance(2)
    assert said(console)[1].startswith("2 of 2 steps")


def test_a_result_that_goes_to_a_file_stays_there_while_a_bar_is_shown() -> None:
    before = sys.stdout
    with progress_bar(2, "steps", console=terminal()):
        assert sys.stdout is before


def test_stages_that_are_quick_show_nothing(clock: Clock) -> None:
    for console in (plain(), terminal()):
        with stages(console=console) as advance:
            for done in range(1, 4):
                clock.wait(QUICK / 4)
                advance("data", done, 3)
        assert not said(console)


def test_each_slow_stage_has_a_line_at_once_and_then_one_every_five_seconds(clock: Clock) -> None:
    console = plain()
    with stages(console=console) as advance:
        for done in range(1, 13):
            advance("data", done, 12)
            clock.wait(1.0)
        advance("front", 1, 2)
        clock.wait(1.0)
        advance("front", 2, 2)
        clock.wait(PATIENCE)
        advance("front", 1, 2)  # looked at again
        clock.wait(PATIENCE)
        advance("front", 2, 2)
    assert said(console) == [
        "data: 3 of 12, 1.0/s, 9 s left",
        "data: 6 of 12, 1.0/s, 6 s left",
        "data: 11 of 12, 1.0/s, 1 s left",
        "data: 12 of 12, 1.0/s",
        "front: 1 of 2",
        "front: 2 of 2, 1.0/s",
        "front: 2 of 2, 0.2/s",
    ]


def test_bars_of_slow_stages_go_away(clock: Clock) -> None:
    console = terminal()
    with stages(console=console) as advance:
        for what in ("data", "front"):
            for done in range(1, 4):
                clock.wait(2.0)
                advance(what, done, 3)
    bars = drawn(console)
    assert any(bar.startswith("1/3 data") for bar in bars) and any("3/3 front" in bar for bar in bars)
    assert console.file.getvalue().endswith("\x1b[2K")  # type: ignore[attr-defined]


def test_a_count_is_a_line_for_whoever_shows_it(clock: Clock) -> None:
    count = Count(240, what="keeping frames", done=10)
    assert count.title == "keeping frames: 240" and count.next_line() is None
    clock.wait(11.0)
    count.reach(120)
    assert count.next_line() == "keeping frames: 120 of 240, 10/s, 12 s left"
    assert count.next_line() is None
    count.reach(240, "whole")
    assert count.next_line() == "keeping frames: 240 of 240, 21/s, whole"
    assert count.next_line() is None


@pytest.mark.parametrize(
    ("rate", "text"), [(1234.5, "1234/s"), (31.2, "31/s"), (3.14, "3.1/s"), (0.1, "0.1/s"), (0.02, "1.2/min")]
)
def test_rates_have_a_unit_in_which_they_can_be_read(rate: float, text: str) -> None:
    assert rate_text(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (155.4, "155 s"), (750, "12 min"), (3600 * 3.5, "3.5 h")]
)
def test_durations_have_a_unit_in_which_they_can_be_read(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_of_several_processes_the_first_one_announces(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        announce(f"rank {rank}")
    monkeypatch.delenv("RANK")
    announce("alone")
    assert capsys.readouterr().err == "rank 0\nalone\n"


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (
            ["eval", "--policy.path=ws://127.0.0.1:1", "--env.type=tabletop"],
            "Connecting to ws://127.0.0.1:1 …",
        ),
        (["serve", "--policy.path={policy}"], "Loading {policy} …"),
        (
            ["rollout", "--robot.type=sim", "--robot.env=tabletop", "--policy.path={policy}"],
            "Loading {policy} …",
        ),
        (
            [
                *("record", "--robot.type=sim", "--robot.env=tabletop", "--teleop.type=expert"),
                *("--dataset.root={policy}/set", "--dataset.num_episodes=3"),
            ],
            "Recording 3 episodes into {policy}/set …",
        ),
        (["doctor", "{policy}"], "Looking at {policy} …"),
        (["bench", "--policy.path={policy}"], "Loading {policy} …"),
    ],
)
def test_a_command_speaks_before_it_imports_torch(words: list[str], first: str, tmp_path: Path) -> None:
    """A torch that says when it is imported, and ends the command, stands in for the one that takes seconds."""
    from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig

    policy = tmp_path / "policy"
    SmolVLAConfig().save_pretrained(policy)
    standin = tmp_path / "standin"
    standin.mkdir()
    (standin / "torch.py").write_text(
        "import os, sys; print('TORCH', file=sys.stderr, flush=True); os._exit(7)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(standin), *sys.path])}
    command = [sys.executable, "-m", "smolact", *(word.format(policy=policy) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 7, done.stderr
    assert done.stderr.splitlines() == [first.format(policy=policy), "TORCH"]
    assert not done.stdout


def test_a_robot_of_lerobots_is_announced_before_lerobot_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from smolact.cli.devices import robot_fields
    from smolact.robots import factory, lerobot_drivers

    monkeypatch.setattr(lerobot_drivers, "is_installed", lambda: True)
    monkeypatch.setattr(factory, "robot_settings", lambda *_: None)
    monkeypatch.delitem(sys.modules, "lerobot", raising=False)
    for kind in ("sim", "so101_follower", "koch_follower"):
        robot_fields({"type": kind})
    assert capsys.readouterr().err == "Loading LeRobot …\n"


def test_a_check_tells_how_far_it_is_within_a_video(tmp_path: Path) -> None:
    from smolact.datasets import edit
    from smolact.datasets.inspection import check_dataset
    from smolact.datasets.rewrite import build
    from smolact.datasets.sources import Source
    from tests.datasets.make import write

    several = write(tmp_path / "set", (20, 20, 20, 20), "video")
    root = build(edit.all_episodes(Source(several)), tmp_path / "one_file")
    seen: list[tuple[int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        if what != "data":
            seen.append((done, total))

    assert not check_dataset(root, progress=progress)
    assert seen == [(1, 4), (3, 4), (4, 4), (4, 4)]  # after 32, 64 and 80 frames, and at the file's end
