"""Traces of LeRobot's own environments (`tests/parity/data/benchmarks`), and their replay."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import smolact.envs.factory  # noqa: F401, it registers the ids
from smolact.envs.benchmarks.base import BenchmarkEnv
from smolact.errors import MissingDependencyError

DATA = Path(__file__).parents[1] / "parity" / "data" / "benchmarks"
SMALL = {"observation_height": 32, "observation_width": 48, "rendering": "fast"}


@dataclass(frozen=True)
class Trace:
    """One task's recorded episode of one seed."""

    file: str
    task: str
    seed: int
    number: int  # of LeRobot's environment
    frames: list[dict[str, Any]]
    versions: dict[str, str]

    def __str__(self) -> str:
        return f"{self.task}-{self.seed}"


def load(file: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / file).read_text(encoding="utf-8"))
    return content


def traces(*files: str) -> Iterator[Trace]:
    for file in files:
        content = load(file)
        for key, task in content["tasks"].items():
            name = key.partition("/")[0]
            name = content["config"]["task"] if name == content["env_type"] else name
            name = task["task"][0] if content["env_type"] == "libero" else name
            for number, seed in enumerate(content["seeds"]):
                yield Trace(file, name, seed, number, task["frames"], content["versions"])


def needs(package: str, extra: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"needs the extra: pip install '.[{extra}]'")


def suite(name: str, **settings: Any) -> BenchmarkEnv:
    env = gymnasium.make(name, disable_env_checker=True, **settings).unwrapped
    assert isinstance(env, BenchmarkEnv)
    env.look = False
    return env


def picture(env: BenchmarkEnv) -> np.ndarray:
    return pictures(env)[0]


def pictures(env: BenchmarkEnv) -> list[np.ndarray]:
    try:
        drawn = env.draw()
    except MissingDependencyError as error:
        pytest.skip(f"no graphics library: {error}")
    return list(drawn.values()) if isinstance(drawn, dict) else [drawn]


def replay(env: BenchmarkEnv, trace: Trace, *, exact: bool) -> None:
    """Assert that an episode equals the trace: to the bit, or of other versions nearly."""
    observation, info = env.reset(seed=trace.seed)
    for frame in trace.frames:
        if "action" in frame:
            sent = np.array(frame["action"][trace.number], np.float32)
            observation, reward, terminated, truncated, info = env.step(sent)
            expected = frame["reward"][trace.number]
            assert reward == (expected if exact else pytest.approx(expected, abs=0.05))
            assert terminated == frame["terminated"][trace.number] and not truncated
            assert info["is_success"] == frame["info"]["is_success"][trace.number]
        recorded = frame["raw"]["agent_pos"][trace.number]
        if exact:
            assert observation["agent_pos"].tolist() == recorded
        else:
            assert observation["agent_pos"] == pytest.approx(np.array(recorded), abs=2e-3)


def compare_pictures(env: BenchmarkEnv, trace: Trace, at: tuple[int, ...], **options: int) -> None:
    """Assert that the pictures of some frames are those of the trace: if the first is, all; else nearly."""
    env.reset(seed=trace.seed, options=options)
    same = None
    for frame in trace.frames[: max(at) + 1]:
        if "action" in frame:
            env.step(np.array(frame["action"][trace.number], np.float32))
        if frame["t"] in at:
            for drawn, camera in zip(pictures(env), frame["images"].values(), strict=True):
                recorded = camera[trace.number]
                assert list(drawn.shape) == recorded["shape"] and drawn.dtype == np.uint8
                equal = hashlib.sha256(drawn.tobytes()).hexdigest() == recorded["sha256"]
                same = equal if same is None else same
                assert equal == same
                assert drawn.mean((0, 1)) == pytest.approx(recorded["mean"], abs=0.5)
                assert drawn.std((0, 1)) == pytest.approx(recorded["std"], abs=0.5)


def is_version_of(trace: Trace, *packages: str) -> bool:
    return all(version(package) == trace.versions[package] for package in packages)


def look_later(name: str, task: str, actions: np.ndarray) -> None:
    """Assert that an episode drawn at its end alone equals one that is drawn at every step."""
    always, last = (suite(name, task=task, **SMALL) for _ in range(2))
    always.look = True
    try:
        seen, _ = always.reset(seed=5)
    except MissingDependencyError as error:
        pytest.skip(f"no graphics library: {error}")
    unseen, _ = last.reset(seed=5)
    for action in actions:
        assert set(unseen) == {"agent_pos"} and always.observation_space.contains(seen)
        assert unseen["agent_pos"].tolist() == seen["agent_pos"].tolist()
        (seen, *seen_outcome), (unseen, *outcome) = always.step(action), last.step(action)
        assert outcome == seen_outcome
    first = next(iter(seen["pixels"].values())) if isinstance(seen["pixels"], dict) else seen["pixels"]
    assert first.std() > 5 and np.array_equal(picture(last), first) and picture(last) is picture(last)
    last.look = True
    assert not np.array_equal(picture(last), np.zeros_like(first)) and "pixels" in last.step(actions[0])[0]
    always.close()
    last.close()


def tasks_in_turn(name: str, action: np.ndarray, **settings: Any) -> None:
    """Assert that an episode after those of other tasks equals one of a fresh environment."""

    def play(env: BenchmarkEnv, task_id: int) -> list[Any]:
        observation, info = env.reset(seed=7, options={"task_id": task_id, "init_state": 3})
        assert (info["task"], info["task_kind"], info["task_group"], info["is_success"]) == (
            env.tasks[task_id].instruction,
            env.tasks[task_id].name,
            env.tasks[task_id].group,
            False,
        )
        played = [observation["agent_pos"].tolist()]
        for _ in range(3):
            observation, *outcome = env.step(action)
            played.append((observation["agent_pos"].tolist(), *outcome))
        return played

    used = suite(name, **settings)
    turns = [play(used, number) for number in (0, 1, 0)]
    assert turns[0] == turns[2] and turns[0] != turns[1]
    assert [play(suite(name, **settings), number) for number in (0, 1)] == turns[:2]
