"""The loop that records: what is kept, what is thrown away, what is told, and what nothing may lose."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.video import VideoReader, VideoWriter
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, FeatureError, RobotError, ServerError, WriteError
from smolact.recording.builtin import ExpertTeleoperator, make_sim
from smolact.recording.disk_space import check_space, estimate_bytes
from smolact.recording.encoding import EncodingThread
from smolact.recording.log import EpisodeReport, RecordingLog
from smolact.recording.recorder import Recorder, RecordingPlan, Status, dataset_features
from smolact.robots.base import ConnectionLostError
from smolact.runtime.controls import Controls
from smolact.runtime.loop import TeleoperatorSource
from tests.recording.worlds import CAMERA, Arm, Clock, Counting


class Session:
    """A recording of the arm, on a clock that costs nothing."""

    def __init__(self, root: Path, plan: RecordingPlan, *, arm: Arm | None = None, **options: Any) -> None:
        self.arm, self.clock, self.controls, self.driver = arm or Arm(), Clock(), Controls(), Counting()
        features = dataset_features(self.arm.features)
        if (root / "meta/info.json").exists():
            self.writer = DatasetWriter.resume(root, fps=plan.fps, features=features)
        else:
            self.writer = DatasetWriter.create(root, fps=plan.fps, features=features, video_codec="h264")
        self.told: list[EpisodeReport] = []
        self.recorder = Recorder(
            self.arm,
            self.driver,
            self.writer,
            plan,
            controls=self.controls,
            on_episode=self.told.append,
            clock=self.clock,
            sleep=self.clock.sleep,
            **options,
        )

    def run(self) -> list[EpisodeReport]:
        with self.writer:
            return self.recorder.run()

    def press(self, at_look: dict[int, str]) -> None:
        """Press keys when the arm looks for the nth time."""
        real = self.arm.get_observation

        def watched() -> Any:
            seen = real()
            if self.arm.looks in at_look:
                self.controls.press(at_look[self.arm.looks])
            return seen

        self.arm.get_observation = watched  # type: ignore[method-assign]


def plan(**changes: Any) -> RecordingPlan:
    return RecordingPlan(
        **{
            "fps": 10,
            "num_episodes": 2,
            "episode_time_s": 0.5,
            "reset_time_s": 0.3,
            "task": "Grip.",
            **changes,
        }
    )


def whole(root: Path) -> list[int]:
    """The episodes' lengths, after frames and rows of all of them were compared."""
    dataset = LeRobotDataset(root)
    for index in range(len(dataset)):
        assert dataset[index]["index"] == index
    for episode in dataset.meta.episodes:
        assert len(VideoReader(root / episode.videos[CAMERA].path)) == episode.length
    return dataset.meta.episodes.length.tolist()


def test_rows_are_what_was_seen_and_what_was_sent(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan())
    session.run()
    assert whole(tmp_path / "d") == [5, 5]
    dataset = LeRobotDataset(tmp_path / "d")
    # 5 frames, 3 ticks of setting the scene back that nobody records, 5 frames; at 1 the arm's limit holds.
    actions = [sample["action"][0].item() for sample in dataset]
    assert actions == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 1, 1, 1, 1])
    states = [sample["observation.state"][0].item() for sample in dataset]
    assert states == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.8, 0.9, 1, 1, 1])
    brightness = [round(255 * sample[CAMERA].mean().item() / 4) for sample in dataset]
    assert brightness == [1, 2, 3, 4, 5, 9, 10, 11, 12, 13]  # the driver's one buffer was copied
    assert {sample["task"] for sample in dataset} == {"Grip."}
    assert session.driver.begun == ["Grip."] * 2
    assert dataset.meta.robot_type is None or dataset.meta.robot_type == "arm"
    assert dataset.meta.features["action"].names == ["pan.pos", "grip.pos"]


def test_each_episode_is_on_disk_before_it_is_told_and_before_the_next(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan(num_episodes=3))
    found: list[tuple[int, int]] = []
    session.driver.begin = lambda task: found.append(  # type: ignore[method-assign]
        (len(session.told), LeRobotDatasetMetadata(tmp_path / "d").total_episodes)
    )
    session.run()
    assert found == [(0, 0), (1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("keys", "lengths", "looks"),
    [
        ({2: "right"}, [2, 5], 10),
        ({2: "enter", 4: "right"}, [2, 5], 9),  # the second one ends the time to set the scene back
        ({2: "left"}, [5, 5], 18),
        ({2: "backspace", 4: "escape"}, [], 4),
        ({5: "right", 8: "right"}, [5, 5], 13),  # in the last moment of an episode, or of the time between
        ({5: "left"}, [5, 5], 21),
        ({7: "escape"}, [5], 7),
        ({2: "escape"}, [2], 2),
        ({11: "q"}, [5, 3], 11),
        ({2: "x"}, [5, 5], 13),
    ],
)
def test_keys_finish_redo_and_stop(
    tmp_path: Path, keys: dict[int, str], lengths: list[int], looks: int
) -> None:
    session = Session(tmp_path / "d", plan())
    session.press(keys)
    reports = session.run()
    assert [report.frames for report in reports] == lengths
    assert LeRobotDatasetMetadata(tmp_path / "d").episodes.length.tolist() == lengths
    assert session.arm.looks == looks
    if lengths:
        assert whole(tmp_path / "d") == lengths


def test_arrows_that_drive_say_nothing_else() -> None:
    controls = Controls(arrows_drive=True)
    controls.press("right")
    assert controls.take() is None
    controls.press("enter")
    assert controls.take() is not None
    assert controls.take() is None


def test_a_pause_moves_nothing_records_nothing_and_costs_no_time(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan(num_episodes=1))
    session.press({2: "space", 40: "space"})
    (report,) = session.run()
    assert whole(tmp_path / "d") == [5]
    assert len(session.arm.sent) == 5
    assert report.timing is not None
    assert (report.timing.late, report.timing.missed) == (0, 0)
    assert report.timing.rate == pytest.approx(10)


class Freezing(Arm):
    """Its camera gives nothing new from one look on, for so many looks."""

    def __init__(self, clock: Clock, freezes_at: int, for_looks: int) -> None:
        super().__init__()
        self.clock, self.freezes_at, self.thaws_at = clock, freezes_at, freezes_at + for_looks
        self.taken = clock()

    def camera_ages(self) -> dict[str, float]:
        if not self.freezes_at <= self.looks < self.thaws_at:
            self.taken = self.clock()
        return {CAMERA: self.clock() - self.taken}


def freezing(root: Path, freezes_at: int, for_looks: int) -> Session:
    clock = Clock()
    session = Session(root, plan(), arm=Freezing(clock, freezes_at, for_looks))
    session.arm.clock = session.clock  # type: ignore[attr-defined]
    return session


def test_a_camera_that_is_late_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    session = freezing(tmp_path / "d", 3, 20)
    session.run()
    assert whole(tmp_path / "d") == [5, 5]
    assert len(session.arm.sent) == 10 + 3  # and the resets: nothing moved while it was waited for
    assert sum("is late by" in record.getMessage() for record in caplog.records) == 1


def test_a_camera_that_died_ends_the_episode_and_what_was_seen_is_kept(tmp_path: Path) -> None:
    session = freezing(tmp_path / "d", 4, 10**6)
    with pytest.raises(RobotError, match=r"observation\.images\.top' has given no picture for 1\.\d s"):
        session.run()
    assert whole(tmp_path / "d") == [5]
    assert len(session.told) == 1


def test_late_and_missing_ticks_are_counted_and_stored(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan(num_episodes=1, episode_time_s=1))
    real = session.arm.send_action

    def slow(action: Any) -> Any:
        session.clock.now += {3: 0.17, 5: 0.35}.get(session.arm.looks, 0.01)
        return real(action)

    session.arm.send_action = slow  # type: ignore[method-assign]
    (report,) = session.run()
    assert report.timing is not None
    assert (report.timing.late, report.timing.missed) == (2, 2)
    assert report.frames == 8  # of 10 places in time
    assert report.timing.rate == pytest.approx(7 / 0.9)
    (stored,) = json.loads((tmp_path / "d/meta/smolact_recording.json").read_text())["episodes"]
    assert stored["timing"]["missed"] == 2
    assert "2 late, 2 missed" in str(report)
    assert whole(tmp_path / "d") == [8]


def test_a_jump_of_the_wall_clock_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 0.0)
    session = Session(tmp_path / "d", plan(num_episodes=1))
    (report,) = session.run()
    assert report.timing is not None
    assert report.timing.rate == pytest.approx(10)
    assert whole(tmp_path / "d") == [5]


def test_when_encoding_cannot_follow_whole_rows_are_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_encode = threading.Event()
    real = VideoWriter.write

    def stuck(self: VideoWriter, image: Any) -> None:
        assert may_encode.wait(20)
        real(self, image)

    monkeypatch.setattr(VideoWriter, "write", stuck)
    session = Session(tmp_path / "d", plan(num_episodes=1, episode_time_s=2), queue_bytes=3 * 4700)
    done = session.arm.send_action

    def release(action: Any) -> Any:
        if session.arm.looks == 20:
            may_encode.set()
        return done(action)

    session.arm.send_action = release  # type: ignore[method-assign]
    (report,) = session.run()
    assert report.dropped > 10
    assert report.frames + report.dropped == 20
    assert "Encoding can't follow" in caplog.text
    assert f"{report.dropped} dropped" in str(report)
    assert whole(tmp_path / "d") == [report.frames]


@pytest.mark.parametrize("error", [RobotError("gone"), KeyboardInterrupt()])
def test_whatever_ends_a_recording_finished_episodes_stay_and_it_goes_on(
    tmp_path: Path, error: BaseException
) -> None:
    session = Session(tmp_path / "d", plan(num_episodes=5, reset_time_s=0))
    real = session.arm.get_observation

    def fails() -> Any:
        if session.arm.looks == 12:
            raise error
        return real()

    session.arm.get_observation = fails  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        session.run()
    assert whole(tmp_path / "d") == [5, 5]
    assert len(session.told) == 2
    again = Session(tmp_path / "d", plan(num_episodes=1))
    assert again.run()[0].episode_index == 2
    assert whole(tmp_path / "d") == [5, 5, 5]
    stored = json.loads((tmp_path / "d/meta/smolact_recording.json").read_text())["episodes"]
    assert [row["episode_index"] for row in stored] == [0, 1, 2]


@pytest.mark.parametrize("error", [ServerError("lost"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [1, 3])
def test_an_unfinished_episode_is_kept_where_that_is_asked_for(
    tmp_path: Path, error: BaseException, at: int
) -> None:
    session = Session(tmp_path / "d", plan(reset_time_s=0), keep_unfinished=True)
    real = session.driver.get_action

    def fails(observation: Any) -> Any:
        if session.arm.looks == 5 + at:
            raise error
        return real(observation)

    session.driver.get_action = fails  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        session.run()
    lengths = [5, at - 1] if at > 1 else [5]
    assert whole(tmp_path / "d") == lengths and len(session.told) == len(lengths)
    again = Session(tmp_path / "d", plan(num_episodes=1))
    assert again.run()[0].episode_index == len(lengths)
    assert whole(tmp_path / "d") == [*lengths, 5]


def test_before_a_driver_knows_what_to_do_nothing_is_sent_and_nothing_kept(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan(num_episodes=1))
    real = session.driver.get_action
    session.driver.get_action = lambda seen: None if session.arm.looks < 4 else real(seen)  # type: ignore
    session.run()
    assert whole(tmp_path / "d") == [5]
    assert session.arm.looks == 8 and len(session.arm.sent) == 5
    dataset = LeRobotDataset(tmp_path / "d")
    assert [sample["action"][0].item() for sample in dataset] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_a_row_has_the_instruction_that_its_action_obeys(tmp_path: Path) -> None:
    class Told(Counting):
        current_instruction = "Grip."

        def get_action(self, observation: Any) -> Any:
            if self.count == 2:
                self.current_instruction = "Let go."
            return super().get_action(observation)

    session = Session(tmp_path / "d", plan(num_episodes=1))
    session.recorder._source = Told()
    session.run()
    tasks = [sample["task"] for sample in LeRobotDataset(tmp_path / "d")]
    assert tasks == ["Grip."] * 2 + ["Let go."] * 3


def test_a_full_disk_ends_the_recording_and_nothing_finished_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VideoWriter.write
    written: list[int] = []

    def full(self: VideoWriter, image: Any) -> None:
        written.append(1)
        if len(written) > 7:
            raise WriteError(errno.ENOSPC, "full")
        real(self, image)

    monkeypatch.setattr(VideoWriter, "write", full)
    session = Session(tmp_path / "d", plan(num_episodes=5))
    with pytest.raises(WriteError):
        session.run()
    assert whole(tmp_path / "d") == [5]
    monkeypatch.setattr(VideoWriter, "write", real)
    Session(tmp_path / "d", plan(num_episodes=1)).run()
    assert whole(tmp_path / "d") == [5, 5]


def test_a_camera_that_falls_silent_is_named(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan())
    session.arm.get_observation = lambda: {"observation.state": np.zeros(2)}  # type: ignore[method-assign]
    with pytest.raises(FeatureError, match=r"declares observation\.images\.top and does not observe"):
        session.run()
    assert LeRobotDatasetMetadata(tmp_path / "d").total_episodes == 0


def test_a_frame_that_does_not_fit_ends_the_recording_with_its_name(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan())
    session.arm.get_observation = lambda: {  # type: ignore[method-assign]
        "observation.state": np.full(2, np.nan, np.float32),
        CAMERA: np.zeros((32, 48, 3), np.uint8),
    }
    with pytest.raises(FeatureError, match="not finite"):
        session.run()


def test_a_simulation_says_its_task_ends_its_episodes_and_judges_them(tmp_path: Path) -> None:
    robot = make_sim(seed=3)
    robot.connect()
    expert = ExpertTeleoperator()
    expert.connect(robot)
    features = dataset_features(robot.features, video=False)
    shown: list[Status] = []
    with DatasetWriter.create(tmp_path / "d", fps=10, features=features) as writer:
        reports = Recorder(
            robot,
            TeleoperatorSource(expert, robot.gate),
            writer,
            RecordingPlan(10, 3, realtime=False),
            on_tick=shown.append,
        ).run()
    robot.disconnect()
    assert [report.success for report in reports] == [True] * 3
    assert all(report.timing is None for report in reports)
    dataset = LeRobotDataset(tmp_path / "d")
    assert [dataset.meta.episodes[at].tasks for at in range(3)] == [(report.task,) for report in reports]
    assert shown


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_episodes": 0}, ConfigError, "num_episodes=0"),
        ({"fps": 0}, ConfigError, "fps=0"),
        ({"episode_time_s": 0}, ConfigError, "episode_time_s=0"),
        ({"reset_time_s": -1}, ConfigError, "reset_time_s=-1"),
        ({"task": "  "}, FeatureError, "task is empty"),
        ({"task": 3}, FeatureError, "must be text"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(**change)


def test_a_robot_that_says_nothing_needs_a_task(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--dataset\.single_task"):
        Session(tmp_path / "d", plan(task=None)).run()


def test_room_is_asked_for_before(tmp_path: Path) -> None:
    features = dataset_features(Arm().features)
    assert estimate_bytes(features, 100) == pytest.approx(100 * (32 * 48 * 0.06 + 16), abs=100)
    check_space(tmp_path / "not/there", 1000)
    with pytest.raises(ConfigError, match=r"may take 1000000\.0 GB.*--dataset\.num_episodes"):
        check_space(tmp_path / "not/there", 10**15)


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/smolact_recording.json").write_text("[]")
    with pytest.raises(DatasetError, match="remove it"):
        RecordingLog(tmp_path, 3)


def test_a_thread_that_failed_works_again_after_a_discard(tmp_path: Path) -> None:
    arm = Arm()
    features = dataset_features(arm.features)
    fits: Callable[[], Any] = lambda: {  # noqa: E731
        **{key: value for key, value in arm.get_observation().items() if key in features},
        "action": np.zeros(2, np.float32),
    }
    with DatasetWriter.create(tmp_path / "d", fps=10, features=features, video_codec="h264") as writer:
        thread = EncodingThread(writer)
        thread.add({**fits(), "action": np.zeros(3)}, "t")
        with pytest.raises(FeatureError):
            thread.save().result()
        thread.discard()
        assert thread.add(fits(), "t")
        thread.save().result()
        thread.add(fits(), "t")
        thread.close()
        thread.close()
    assert whole(tmp_path / "d") == [1]


def test_a_robot_whose_cable_was_pulled_ends_the_episode_and_what_was_seen_is_kept(tmp_path: Path) -> None:
    session = Session(tmp_path / "d", plan())
    real = session.arm.get_observation

    def pulled() -> Any:
        if session.arm.looks >= 4:
            raise ConnectionLostError("The arm lost its port.")
        return real()

    session.arm.get_observation = pulled  # type: ignore[method-assign]
    with pytest.raises(
        RobotError, match=r"lost its port\. The episode ended there, and what was recorded of it is kept"
    ):
        session.run()
    assert whole(tmp_path / "d") == [4]
