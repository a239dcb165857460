"""A person corrects a policy: no jump, no stale chunk, and every frame says who drove."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, RobotError, UnsafeActionError
from smolact.recording.builtin import ExpertTeleoperator, make_sim
from smolact.recording.recorder import Recorder, RecordingPlan, dataset_features
from smolact.robots.base import move
from smolact.robots.incremental_teleop import GamepadTeleoperator
from smolact.robots.safety import Gate, make_limits
from smolact.runtime.controller import ChunkController
from smolact.runtime.corrections import ALIGN_SPEED, KEY, MOTION, STILL_S, CorrectedSource, Phase
from smolact.runtime.inference import Inference
from smolact.runtime.loop import ControlLoop, RecordedSource
from tests.recording.worlds import Clock

FPS = 10
SEE: dict[str, Any] = {}


class Backend:
    """A policy at once: chunks of eight actions that begin at `begins` and climb by `climbs`."""

    def __init__(self, begins: float = 0.0, climbs: float = 1.0) -> None:
        self.begins, self.climbs, self.resets, self.asked = begins, climbs, 0, 0

    def ask(self, observation: Any, task: str, leftover: Any = None) -> None:
        self.asked += 1

    def answer(self) -> NDArray[np.float32]:
        rows = self.begins + self.climbs * np.arange(1, 9, dtype=np.float32)
        self.begins = float(rows[-1])
        return np.stack([rows, rows], axis=1).astype(np.float32)

    def reset(self) -> None:
        self.resets += 1


class Hand:
    """A teleoperator that is where it is put."""

    name = "hand"

    def __init__(self, position: float = 0.0) -> None:
        self.position, self.begun, self.reads = position, 0, 0

    def connect(self, robot: Any) -> None: ...

    def disconnect(self) -> None: ...

    def begin(self) -> None:
        self.begun += 1

    def get_action(self, observation: Any) -> NDArray[np.float32]:
        self.reads += 1
        return np.full(2, self.position, np.float32)


class Leader(Hand):
    """One with motors."""

    name = "leader"

    def __init__(self, position: float = 0.0) -> None:
        super().__init__(position)
        self.driven: list[float] = []
        self.has_torque = False

    def drive_to(self, position: Any) -> None:
        self.has_torque = True
        self.position = float(np.asarray(position)[0])
        self.driven.append(self.position)

    def let_go(self) -> None:
        self.has_torque = False


class Robot:
    name = "arm"

    def __init__(self, step: float = 20.0) -> None:
        self.gate = Gate(make_limits(("a", "b"), {}, step, float("inf")))
        self.gate.position = np.zeros(2, np.float32)
        self.sent: list[float] = []
        self.times: list[float] = []
        self.clock: Clock | None = None

    def get_observation(self) -> dict[str, Any]:
        return {}

    def send_action(self, action: NDArray[Any]) -> NDArray[Any]:
        self.sent.append(float(action[0]))
        if self.clock is not None:
            self.times.append(self.clock.now)
        return action


class Drive:
    """A policy, a person and a robot, tick by tick."""

    def __init__(self, hand: Hand, backend: Backend | None = None, step: float = 20.0) -> None:
        self.robot, self.backend, self.hand = Robot(step), backend or Backend(), hand
        controller = ChunkController(self.backend, Inference(), self.robot.gate)
        self.source = CorrectedSource(controller, hand, self.robot.gate, FPS)
        self.source.begin("go")
        self.marks: list[bool] = []

    def ticks(self, count: int) -> list[float]:
        before = len(self.robot.sent)
        for _ in range(count):
            action = self.source.get_action(SEE)
            if action is not None:
                move(self.robot, action)  # type: ignore[arg-type]
                self.marks.append(self.source.is_correction)
        return self.robot.sent[before:]


def test_the_key_takes_over_and_gives_back_and_nothing_stale_is_carried_out() -> None:
    drive = Drive(Hand(43.0))
    assert drive.ticks(3) == [1, 2, 3]
    drive.source.press("left")
    assert drive.ticks(1) == [4]
    drive.source.press(KEY)
    # The distance of 39 is gone after half a second, that is five ticks; where the person goes counts from then on.
    assert drive.ticks(6) == pytest.approx([11.8, 19.6, 27.4, 35.2, 43, 43])
    assert drive.hand.begun == 2 and drive.source.phase is Phase.CORRECTING
    drive.hand.position = 50.0
    assert drive.ticks(1) == [50]
    drive.source.press(KEY)
    drive.backend.begins = 50.0
    resets = drive.backend.resets
    assert drive.ticks(2) == [51, 52]  # and not 5, 6, which were predicted before
    assert drive.backend.resets == resets + 1
    assert drive.marks == [False] * 4 + [True] * 7 + [False] * 2
    assert str(drive.source.counts) == "1 correction of 7 ticks"


def test_no_command_is_further_than_a_step_of_the_gate_from_the_last() -> None:
    drive = Drive(Hand(500.0), step=9.0)
    drive.ticks(2)
    drive.source.press(KEY)
    sent = drive.ticks(80)
    assert np.abs(np.diff([2.0, *sent])).max() <= 9.0 and sent[-1] == 500.0


def test_while_the_policy_is_asked_after_a_correction_the_robot_stays_where_the_person_left_it() -> None:
    drive = Drive(Hand(8.0))
    drive.ticks(1)
    drive.source.press(KEY)
    drive.ticks(8)
    drive.source.press(KEY)
    answer, drive.backend.answer = drive.backend.answer, lambda: None  # type: ignore[method-assign,assignment,return-value]
    assert drive.ticks(3) == []  # and not back to where the policy had been
    drive.backend.begins, drive.backend.answer = 8.0, answer  # type: ignore[method-assign]
    assert drive.ticks(1) == [9]


def test_a_leader_is_driven_to_the_robot_first_and_the_robot_holds() -> None:
    leader = Leader(-20.0)
    drive = Drive(leader)
    drive.ticks(4)
    drive.source.press(KEY)
    assert drive.ticks(5) == [] and leader.has_torque  # 24 degrees at 60 a second: five steps at 10 a second
    assert leader.driven[-1] == 4.0 and np.diff([-20.0, *leader.driven]).max() <= ALIGN_SPEED / FPS
    assert drive.ticks(1) == [] and not leader.has_torque
    leader.position = 4.5  # the hand moves it
    assert drive.ticks(1) == pytest.approx([4.1])
    drive.source.press(KEY)
    assert drive.ticks(1)[0] > 4.5 and drive.source.phase is Phase.DRIVING


def test_a_leader_takes_over_when_it_is_moved_and_gives_back_when_it_rests() -> None:
    leader = Leader()
    drive = Drive(leader, Backend(climbs=0.0))
    leader.position = 3 * MOTION
    drive.ticks(1)
    leader.position = 0.0  # laid down: what moves before it has been still once is no take-over
    drive.ticks(1 + round(STILL_S * FPS) + 5)
    assert drive.source.counts.corrections == 0
    leader.position = MOTION / 2
    drive.ticks(10)
    assert drive.source.phase is Phase.DRIVING  # a nudge
    leader.position = 2 * MOTION
    drive.ticks(1)
    assert drive.source.phase is Phase.ALIGNING
    drive.ticks(8)
    for _ in range(20):
        leader.position += 2.0
        drive.ticks(1)
    assert drive.source.phase is Phase.CORRECTING and drive.robot.sent[-1] == leader.position
    drive.backend.begins = leader.position
    drive.ticks(round(STILL_S * FPS) + 1)
    assert drive.source.phase is Phase.DRIVING and drive.source.counts.corrections == 1


def test_a_leader_is_read_at_most_once_a_tick() -> None:
    leader = Leader()
    drive, phases = Drive(leader), set()
    drive.ticks(round(STILL_S * FPS) + 2)
    for _ in range(40):
        leader.position += 2 * MOTION * (drive.source.phase is not Phase.ALIGNING)
        leader.reads = 0
        drive.ticks(1)
        phases.add(drive.source.phase)
        assert leader.reads <= 1
    assert phases == {Phase.ALIGNING, Phase.CORRECTING}


def test_a_button_drives_while_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: set[int] = set()
    stick = SimpleNamespace(
        get_numaxes=lambda: 2,
        get_axis=lambda at: 0.0,
        get_numbuttons=lambda: 8,
        get_button=lambda at: at in held,
    )
    joystick = SimpleNamespace(init=lambda: None, get_count=lambda: 1, Joystick=lambda at: stick)
    pygame = SimpleNamespace(
        init=lambda: None,
        quit=lambda: None,
        joystick=joystick,
        event=SimpleNamespace(pump=lambda: None),
    )
    monkeypatch.setitem(sys.modules, "pygame", pygame)
    robot, gamepad = make_sim("tabletop", max_step=0), GamepadTeleoperator(button=6)
    robot.connect()
    with pytest.raises(RobotError, match="not connected"):
        gamepad.takes_over({})
    gamepad.connect(robot)
    see, taken = robot.get_observation(), []
    at = float(see["observation.state"][0])
    controller = ChunkController(Backend(at, 0.0), Inference(), robot.gate)
    source = CorrectedSource(controller, gamepad, robot.gate, FPS)
    source.begin("go")
    for buttons in (set(), {5}, {6}, {5, 6}, set()):
        held.clear()
        held.update(buttons)
        source.get_action(see)
        taken.append(source.is_correction)
    assert taken == [False, False, True, True, False]


def test_an_episode_begins_with_the_policy_and_a_loose_leader() -> None:
    leader = Leader(-50.0)
    drive = Drive(leader)
    drive.ticks(1)
    drive.source.press(KEY)
    drive.ticks(2)
    drive.source.press(KEY)
    drive.source.begin("again")
    assert not leader.has_torque and drive.source.phase is Phase.DRIVING
    drive.ticks(1)
    assert drive.source.phase is Phase.DRIVING and drive.source.current_instruction == "again"


def test_the_expert_corrects_in_the_simulation_and_every_frame_says_who_drove(tmp_path: Path) -> None:
    class Still(Backend):
        def ask(self, observation: Any, task: str, leftover: Any = None) -> None:
            self.at = observation["observation.state"]

        def answer(self) -> NDArray[np.float32]:
            return np.repeat(self.at[None], 8, 0).astype(np.float32)

    robot, expert = make_sim("tabletop", seed=3), ExpertTeleoperator()
    robot.connect()
    expert.connect(robot)
    controller = ChunkController(Still(), Inference(), robot.gate)
    source = CorrectedSource(controller, expert, robot.gate, FPS)
    features = dataset_features(robot.features, video=False, corrections=True)
    with DatasetWriter.create(tmp_path / "d", fps=FPS, features=features) as writer:
        reports = Recorder(robot, source, writer, RecordingPlan(FPS, 2, 20.0, 0.0, realtime=False)).run()
    assert sum(bool(report.success) for report in reports) == 2  # the policy alone would stand still
    dataset = LeRobotDataset(tmp_path / "d")
    assert (dataset.features["intervention"].dtype, dataset.features["intervention"].shape) == ("bool", (1,))
    for episode, report in enumerate(reports):
        frames = [sample for sample in dataset if int(sample["episode_index"]) == episode]
        marks = [bool(sample["intervention"]) for sample in frames]
        assert len(frames) == report.frames and not any(marks[:10]) and any(marks)
        for mark, sample in zip(marks, frames, strict=True):
            moved = float((sample["action"] - sample["observation.state"]).norm())
            assert mark or moved < 1e-6 + 0.04 * 8  # within what was left of a chunk


@pytest.mark.parametrize("realtime", [True, False])
def test_commands_between_two_actions_lie_on_a_line_and_are_evenly_spread(realtime: bool) -> None:
    robot, clock = Robot(), Clock()
    robot.clock = clock
    seen: list[float] = []
    actions = np.array([[3.0, 3.0], [9.0, 9.0]], np.float32)
    source = RecordedSource(actions)
    loop = ControlLoop(robot, FPS, realtime, None, clock, clock.sleep, interpolation=3)  # type: ignore[arg-type]
    loop.run(source, lambda: source.is_over, lambda observation, action: seen.append(float(action[0])))
    assert robot.sent == pytest.approx([1, 2, 3, 5, 7, 9])
    assert seen == [3.0, 9.0] and loop.ticks == 2
    if realtime:
        assert np.diff(robot.times) == pytest.approx(np.full(5, 1 / (3 * FPS)))


def test_parts_of_a_step_that_is_too_large_are_not_sent() -> None:
    robot = Robot(step=5.0)
    source = RecordedSource(np.full((1, 2), 9.0, np.float32))
    with pytest.raises(UnsafeActionError, match="largest step"):
        ControlLoop(robot, FPS, False, interpolation=3).run(source, lambda: source.is_over)  # type: ignore[arg-type]
    assert robot.sent == []
    with pytest.raises(ConfigError, match="--interpolation=0"):
        ControlLoop(robot, FPS, interpolation=0)  # type: ignore[arg-type]
