"""Benchmarks in an evaluation: LeRobot's seeds and initial states, pictures only for a look, rates by task and group."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from smolact.cli.eval import EvalConfig, summary
from smolact.cli.eval import _settings as evaluation_settings
from smolact.cli.main import main
from smolact.cli.servers import ChosenPolicy
from smolact.envs.benchmarks.base import BenchmarkEnv, BenchmarkTask
from smolact.envs.factory import make_env
from smolact.errors import ConfigError
from smolact.evaluation.conditions import PLAIN
from smolact.evaluation.lerobot_results import eval_info
from smolact.evaluation.metrics import EpisodeResult, EvaluationResult, SuccessRate
from smolact.evaluation.rollout import evaluate, plan_episodes
from smolact.evaluation.suite import EpisodeLog
from smolact.runtime.policy import Policy
from smolact.training.sections import EnvSection
from smolact_client import Schema

TASKS = tuple(
    BenchmarkTask(name, group, f"go to {name}")
    for name, group in (("red", "near"), ("blue", "near"), ("green", "far"))
)
CHUNK = 4


class Dot(BenchmarkEnv):
    """A dot that goes to a colour.

    Args:
        task: names of tasks or groups.
        dimness: how much darker the pictures are.
    """

    suite = "Dot"
    max_episode_steps = 30
    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "render_fps": 10}

    def __init__(self, task: str = "near,far", dimness: int = 0, render_mode: str | None = None) -> None:
        chosen = task.split(",")
        super().__init__(
            tuple(each for each in TASKS if each.group in chosen or each.name in chosen),
            gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8),
            1,
            obs_type="pixels_agent_pos",
            fps=None,
            render_mode=render_mode,
        )
        self.action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.dimness = dimness

    def _make_simulation(self, name: str) -> Line:
        return Line([task.name for task in TASKS].index(name), self.dimness)


class Line:
    """The dot's place, five times which is the brightness of its picture; the seed says whether it succeeds."""

    drawn: ClassVar[int] = 0
    resets: ClassVar[list[tuple[int, int, int]]] = []

    def __init__(self, task: int, dimness: int) -> None:
        self.task, self.dimness = task, dimness

    def reset(self, seed: int, init_state: int) -> None:
        Line.resets.append((self.task, seed, init_state))
        self.seed, self.agent_pos = seed, np.zeros(1)

    def step(self, action: np.ndarray) -> tuple[float, bool]:
        self.agent_pos = self.agent_pos + action
        return 1.0, bool((self.seed + self.task) % 2 == 0 and self.agent_pos[0] >= 5 + self.seed % 3)

    def draw(self) -> np.ndarray:
        Line.drawn += 1
        return np.full((8, 8, 3), 5 * self.agent_pos[0] - self.dimness, np.uint8)

    def close(self) -> None:
        pass


gymnasium.register("tests/Dot-v0", entry_point=Dot, max_episode_steps=30)


class Looking(Policy):
    """Remembers what it saw."""

    def __init__(self, n_action_steps: int) -> None:
        self.schema = Schema(
            "looking", {"observation.image": (8, 8)}, {"observation.state": 1}, action=1, chunk_size=CHUNK,
            n_action_steps=n_action_steps,
        )  # fmt: skip
        self.seen: list[tuple[int, float]] = []

    def reset(self) -> None:
        pass

    def predict(self, requests: Any) -> list[np.ndarray]:
        for request in requests:
            picture = request.observation["observation.image"]
            self.seen.append((int(picture[0, 0, 0]), float(request.observation["observation.state"][0])))
        return [np.ones((CHUNK, 1), np.float32) for _ in requests]


def played(n_action_steps: int = CHUNK, n_envs: int = 2, **settings: Any) -> tuple[EvaluationResult, Looking]:
    Line.drawn, Line.resets[:] = 0, []
    policy = Looking(n_action_steps)
    with make_env("tests/Dot-v0", n_envs, **settings) as envs:
        return evaluate(policy, envs, n_episodes=4, seed=1000), policy


def test_every_task_has_lerobots_seeds_and_initial_states() -> None:
    result, _ = played()
    expected = {(task, 1000 + episode, episode) for task in range(3) for episode in range(4)}
    assert set(Line.resets) == expected and len(Line.resets) == 12
    assert {(one.index, one.seed, one.task_kind) for one in result.results} == {
        (3 * episode + task, 1000 + episode, TASKS[task].name) for task, _, episode in expected
    }
    few, many = (plan_episodes(number, 7, tasks=TASKS) for number in (2, 5))
    assert {plan.index: plan for plan in few}.items() <= {plan.index: plan for plan in many}.items()


@pytest.mark.parametrize("n_envs", [1, 2])
def test_pictures_are_drawn_for_a_look_only_and_are_those_of_always_drawing(n_envs: int) -> None:
    _, policy = played(n_envs=n_envs)
    # Every picture that is asked for is of its step, but for an episode that is over while others go on.
    assert all(brightness in (0, 5 * position) for brightness, position in policy.seen)
    assert Line.drawn == 12 + sum(brightness > 0 for brightness, _ in policy.seen)
    every_step, _ = played(n_action_steps=1, n_envs=n_envs)
    lazily, _ = played(n_envs=n_envs)
    assert [(one.success, one.steps) for one in lazily.results] == [
        (one.success, one.steps) for one in every_step.results
    ]


def test_tasks_and_arguments_are_chosen_by_flags_named_as_the_class_has_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert {one.task_kind for one in played(task="far")[0].results} == {"green"}
    argv = ["eval", f"--env.type={__name__}:tests/Dot-v0", "--env.dimnes=3", "--policy.path=none"]
    assert main(argv) == 2
    assert "--env.dimness" in capsys.readouterr().err
    assert main([*argv[:2], "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "--env.dimness=0" in said and "how much darker the pictures are" in said.lower()


def test_groups_count_their_tasks_as_clusters_and_lerobots_file_has_them() -> None:
    result, _ = played()
    by_group = result.per_group
    assert list(by_group) == ["near", "far"]
    assert by_group["near"].success.episodes == 8 and len(by_group["near"].tasks) == 2
    assert result.over_tasks is not None and len(result.over_tasks.tasks) == 3
    low, high = by_group["near"].interval
    wilson_low, wilson_high = by_group["near"].success.interval
    assert low <= wilson_low and high >= wilson_high
    assert json.loads(json.dumps(result.to_dict()))["per_group"]["far"]["tasks"] == 1

    info = eval_info(result, "dot")
    assert [(one["task_group"], one["task_id"]) for one in info["per_task"]] == [
        ("near", 0), ("near", 1), ("far", 0),
    ]  # fmt: skip
    assert info["per_task"][0]["metrics"]["successes"] == [
        one.success for one in result.results if one.task_kind == "red"
    ]
    assert info["per_group"]["near"]["pc_success"] == 100 * by_group["near"].success.rate
    assert info["overall"]["n_episodes"] == 12
    assert info["overall"]["pc_success"] == pytest.approx(100 * result.success.rate)


def test_whole_chunks_without_a_look_are_told_and_groups_shown() -> None:
    blind, looking = (summary({"policy": {PLAIN: played(number)[0]}}) for number in (CHUNK, 2))
    assert "--policy.n_action_steps" in blind and "--policy.n_action_steps" not in looking
    rows = [line.split("  ")[1] for line in blind.splitlines() if line.startswith("  ")]
    assert rows == ["near", "blue", "green", "red"]


def test_a_folder_of_other_tasks_is_refused_also_with_words_of_the_users(tmp_path: Path) -> None:
    def settings(task: str) -> dict[str, Any]:
        env = EnvSection(type="tests/Dot-v0", task=task)
        config = EvalConfig(policy=ChosenPolicy(path="p"), env=env, task="go")
        return evaluation_settings(config)

    EpisodeLog(tmp_path, settings("near"))
    with pytest.raises(ConfigError, match="other settings"):
        EpisodeLog(tmp_path, settings("far"))


def test_an_environment_that_is_no_benchmark_is_one_task_of_its_type(tmp_path: Path) -> None:
    episodes = tuple(
        EpisodeResult(index, index, "go", kind, index == 0, 3, 2.0, max_reward=1.0)
        for index, kind in enumerate(("push", "reach"))
    )
    info = eval_info(EvaluationResult(0, 1, 1, 4.0, episodes), "tabletop")
    assert [(one["task_group"], one["task_id"]) for one in info["per_task"]] == [("tabletop", 0)]
    assert info["overall"] == {
        "avg_sum_reward": 2.0, "avg_max_reward": 1.0, "pc_success": 50.0, "n_episodes": 2, "video_paths": [],
        "predicted_video_paths": [], "eval_s": 4.0, "eval_ep_s": 2.0,
    }  # fmt: skip


def test_one_success_rate_needs_no_cluster() -> None:
    assert SuccessRate(1, 2).interval == EvaluationResult(
        0, 1, 1, 0.0, (EpisodeResult(0, 0, "a", "a", True, 1, 0.0, task_group="g"),
                       EpisodeResult(1, 1, "a", "a", False, 1, 0.0, task_group="g"))
    ).per_group["g"].interval  # fmt: skip
