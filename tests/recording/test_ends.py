"""What ends a command is said when it happens, and letting go waits for nobody who does not answer."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smolact.cli import main as command
from smolact.cli.main import main
from smolact.datasets.writer import DatasetWriter
from smolact.errors import RobotError, WriteError
from smolact.policies.factory import load_policy
from smolact.recording.chunk_driver import ThreadedInference
from smolact.recording.encoding import EncodingThread
from smolact.recording.recorder import Recorder, dataset_features
from smolact.robots.sim import SimRobot
from smolact.serving.background import serving
from smolact.serving.local import LocalPolicy, Request
from smolact.serving.remote import load_remote
from smolact.types import TASK
from smolact_client import ClosedError, DroppedError, RemotePolicy
from tests.evaluation.test_suite import checkpoint
from tests.recording.test_recorder import plan
from tests.recording.worlds import Arm, Counting
from tests.robots.gate import OPEN
from tests.serving.test_deadlines import Road
from tests.serving.worlds import Echo, observation, until

LONG = 600
"""Seconds that a question may take in these tests: who waits for one waits for ever."""
SIM = ["--robot.type=sim", "--robot.env=tabletop", *OPEN]


class Stalls(LocalPolicy):
    """Answers twice, and then no more."""

    def __init__(self, *loaded: Any) -> None:
        super().__init__(*loaded)
        self.asked, self.resume = 0, threading.Event()

    def predict(self, questions: Sequence[Request]) -> list[Any]:
        self.asked += 1
        assert self.asked <= 3 or self.resume.wait(LONG)  # the first one warms up
        return super().predict(questions)


@pytest.fixture
def stalled(tmp_path: Path) -> Iterator[str]:
    policy = Stalls(*load_policy(checkpoint(tmp_path / "policy", 0), device="cpu"))
    with serving(policy) as url:
        yield url
        policy.resume.set()


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said, and what was let go of, in the order of it."""
    found: list[str] = []

    def noted(owner: Any, name: str, what: str) -> None:
        real = getattr(owner, name)

        def noting(*arguments: Any, **settings: Any) -> Any:
            found.append(what)
            return real(*arguments, **settings)

        monkeypatch.setattr(owner, name, noting)

    noted(command, "_show", "said")
    noted(SimRobot, "disconnect", "robot")
    noted(RemotePolicy, "close", "server")
    noted(EncodingThread, "close", "encoder")
    return found


def soon(work: Callable[[], int]) -> int:
    """The exit code of a command that ends long before the time that a question may take."""
    began = time.monotonic()
    code = work()
    assert time.monotonic() - began < LONG / 5
    return code


@pytest.mark.parametrize("keep", [False, True])
def test_a_rollout_says_that_it_holds_and_ends_at_its_deadline(
    keep: bool,
    stalled: str,
    happened: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [*SIM, f"--policy.path={stalled}", f"--policy.timeout={LONG}", "--inference.deadline=3"]
    kept = [f"--record-to={tmp_path / 'd'}", "--video=false"] * keep
    assert soon(lambda: main(["rollout", *words, *kept, "--duration=1000", "--episodes=9"])) == 1
    assert "and the robot holds where it is. After 3 s of that this ends" in caplog.text
    assert f"{stalled}: No answer for 2 s: waiting for 600 s in all." in caplog.text
    assert capsys.readouterr().err.count("The policy has given no actions for 3.") == 1
    assert happened[0] == "said" and happened.count("said") == 1
    assert happened.index("robot") < len(happened) and "server" in happened


def test_a_recording_says_why_it_ends_before_it_lets_go(
    stalled: str, happened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SIM, f"--policy.path={stalled}", "--policy.timeout=3", f"--dataset.root={tmp_path / 'd'}"]
    assert soon(lambda: main(["record", *words, "--dataset.video=false", "--dataset.num_episodes=9"])) == 1
    assert capsys.readouterr().err.count("No answer within 3 s") == 1
    assert happened[0] == "said" and happened.count("said") == 1


def test_an_evaluation_says_why_it_ends_before_it_lets_go(
    stalled: str,
    happened: list[str],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ["--env.type=tabletop", "--eval.n_episodes=9", "--eval.batch_size=3", "--language=false"]
    assert soon(lambda: main(["eval", f"--policy.path={stalled}", "--policy.timeout=3", *words])) == 1
    assert capsys.readouterr().err.count("No answer within 3 s") == 1
    assert caplog.text.count("No answer for 2 s") == 1  # one client speaks for all
    assert happened.count("said") == 1 and happened[-3:] == ["server"] * 3
    assert happened.index("said") < len(happened) - 3


def test_a_robot_that_fails_is_told_before_it_is_let_go(
    happened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SIM, "--teleop.type=expert", "--dataset.num_episodes=1", "--realtime=false"]
    root = f"--dataset.root={tmp_path / 'd'}"
    assert main(["record", *words, "--dataset.video=false", root]) == 0
    happened.clear()

    def unplugged(self: SimRobot, action: Any) -> Any:
        raise RobotError("The arm was unplugged.")

    monkeypatch.setattr(SimRobot, "send_action", unplugged)
    for again in (
        ["replay", *SIM, root],
        ["robot", "teleoperate", *SIM, "--teleop.type=expert"],
        ["record", *words, "--dataset.video=false", root, "--resume"],
    ):
        assert main(again) == 1
        assert capsys.readouterr().err.count("The arm was unplugged.") == 1
        assert happened[0] == "said" and happened.count("said") == 1 and "robot" in happened
        happened.clear()


def test_ctrl_c_does_not_wait_for_a_server(stalled: str) -> None:
    remote = load_remote(stalled, timeout=LONG)
    picture = torch.zeros((3, 3, 64, 64))
    batch = {"observation.image": picture, "observation.state": torch.zeros((3, 2)), TASK: ["go"] * 3}
    with pytest.raises(KeyboardInterrupt):
        for _ in range(4):
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            soon(lambda: len(remote.policy.predict_action_chunk(batch)))
            time.sleep(1)
    soon(lambda: remote.policy.close() or 0)


def test_a_question_that_waits_for_a_connection_is_dropped_or_ends_with_the_client() -> None:
    with serving(Echo()) as url:
        policies = [RemotePolicy(url, timeout=LONG) for _ in range(2)]
    until(lambda: all(policy._link is None for policy in policies))
    for policy, let_go, error in zip(policies, ("reset", "close"), (DroppedError, ClosedError), strict=True):
        found: list[BaseException] = []

        def ask(policy: RemotePolicy = policy, found: list[BaseException] = found) -> None:
            try:
                policy.predict_action_chunk(observation(), "go")
            except BaseException as raised:
                found.append(raised)

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda policy=policy: len(policy._tasks) > 0)  # type: ignore[misc]
        time.sleep(0.1)
        getattr(policy, let_go)()
        thread.join(LONG / 10)
        assert not thread.is_alive() and isinstance(found[0], error)
        policy.close()


def test_a_server_that_does_not_say_goodbye_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Echo()) as url, Road(url) as road:
        threading.Thread(target=road.serve_forever).start()
        policy = RemotePolicy(f"ws://127.0.0.1:{road.server_address[1]}", timeout=LONG)
        asks = ThreadedInference(policy, policy.reset)
        road.open.clear()
        asks.ask(observation(), "go")
        began = time.monotonic()
        asks.reset()  # an episode begins
        asks.ask(observation(), "go")
        asks.close()
        assert time.monotonic() - began < 5  # the client's own limit for its thread
        assert not policy._thread.is_alive()
        road.open.set()
        road.shutdown()


def test_a_lost_connection_and_a_new_one_are_told_when_they_happen(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with serving(Echo()) as url, RemotePolicy(url) as policy:
        assert policy.predict_action_chunk(observation(1), "go")[0, 0] == 1
        assert not caplog.records
        policy._loop.call_soon_threadsafe(policy._link._socket.transport.abort)  # type: ignore[union-attr]
        until(lambda: f"{url}: It is there again" in caplog.text)
        assert f"{url}: The connection is lost" in caplog.text


# The encoder.


def writer_of(folder: Path) -> DatasetWriter:
    features = dataset_features(Arm().features, video=False)
    return DatasetWriter.create(folder, fps=10, features=features)


def frame(number: int) -> dict[str, Any]:
    arm = Arm()
    seen = arm.get_observation()
    return {key: seen[key] for key in (*arm.features.vectors, *arm.features.cameras)} | {
        "action": np.full(2, number, np.float32)
    }


@pytest.mark.parametrize("end", ["close", "discard"])
def test_frames_that_nobody_keeps_are_not_encoded_before_the_end(end: str, tmp_path: Path) -> None:
    begun, resume, encoded = threading.Event(), threading.Event(), []
    with writer_of(tmp_path / "d") as writer:
        real = writer.add_frame

        def slow(values: Any, task: str) -> None:
            encoded.append(float(values["action"][0]))
            begun.set()
            assert resume.wait(60)
            real(values, task)

        writer.add_frame = slow  # type: ignore[method-assign]
        encoding = EncodingThread(writer)
        for number in range(3):
            assert encoding.add(frame(number), "go")
        saved = encoding.save()
        for number in range(10, 60):
            assert encoding.add(frame(number), "go")
        assert begun.wait(60)
        ending = threading.Thread(target=getattr(encoding, end))
        ending.start()
        time.sleep(0.1)
        resume.set()
        ending.join(60)
        saved.result(60)
        assert encoded == [0, 1, 2]  # what was to be saved, all of it; and nothing else
        if end == "discard":
            assert encoding.add(frame(7), "go")
            encoding.save().result(60)
            assert encoded == [0, 1, 2, 7]
        encoding.close()
        assert writer.num_episodes == 1 + (end == "discard")


def test_what_becomes_of_an_episode_is_told_while_the_scene_is_set_back(tmp_path: Path) -> None:
    arm, told = Arm(), []
    with writer_of(tmp_path / "d") as writer:
        recorder: Recorder

        def on_episode(report: Any) -> None:
            told.append(report)
            recorder._controls.press("escape")

        real, failures = writer.save_episode, []
        settings = plan(fps=50, num_episodes=3, episode_time_s=0.1, reset_time_s=LONG)
        recorder = Recorder(arm, Counting(), writer, settings, on_episode=on_episode)
        soon(lambda: len(recorder.run()))
        assert len(told) == 1

        def full() -> None:
            real()
            raise WriteError("The disk is full.")

        writer.save_episode = full  # type: ignore[method-assign]
        recorder = Recorder(arm, Counting(), writer, settings, on_failure=failures.append)
        with pytest.raises(WriteError, match="disk is full"):
            soon(lambda: len(recorder.run()))
        assert len(failures) == 1


def test_a_camera_that_died_is_told_before_its_episode_is_saved(tmp_path: Path) -> None:
    class Dying(Arm):
        def camera_ages(self) -> dict[str, float]:
            return {"top": 0.0 if self.looks < 4 else 1.5}

    events: list[str] = []
    with writer_of(tmp_path / "d") as writer:
        real = writer.save_episode

        def saving() -> None:
            events.append("saved")
            real()

        writer.save_episode = saving  # type: ignore[method-assign]
        recorder = Recorder(
            Dying(), Counting(), writer, plan(), on_failure=lambda error: events.append(type(error).__name__)
        )
        with pytest.raises(RobotError, match="has given no picture"):
            recorder.run()
        assert events[:2] == ["RobotError", "saved"] and writer.num_episodes == 1
