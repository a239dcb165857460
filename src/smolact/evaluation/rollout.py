"""Episodes of a policy in closed loop with an environment.

Episodes run in groups, one episode per environment. The episodes of a group begin and replan together; the next group begins when all
of them have ended.

The same seed gives the same episodes: each has its own seed for its environment and for the noise of each of its chunks, so a result
does not depend on the number of parallel environments, except for the rounding of batched arithmetic. Torch's global generators are
seeded for every group; for a policy that draws from them the number of environments is part of the seed.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from smolact.envs.batch import EnvBatch
from smolact.envs.benchmarks.base import BenchmarkTask
from smolact.envs.mapping import Observation
from smolact.envs.seeding import episode_seed
from smolact.errors import ConfigError, FeatureError
from smolact.evaluation.conditions import PLAIN, Condition, EpisodeCondition
from smolact.evaluation.metrics import EpisodeResult, EvaluationResult
from smolact.evaluation.video import write_video
from smolact.runtime.chunks import checked_chunks
from smolact.runtime.local import LocalPolicy
from smolact.runtime.policy import Chunk, Policy, Request
from smolact.types import ACTION, TASK, EmptyInstruction


@dataclass(frozen=True)
class EpisodePlan:
    """An episode to play: its number, the seed and options of the environment's `reset`, and its condition."""

    index: int
    seed: int
    options: dict[str, Any] | None = None
    condition: Condition | None = None


Replanned = Callable[[Sequence[EpisodePlan], int, Sequence[Request]], None]
"""Callback before each prediction, with a group's plans, the step and the requests."""


@dataclass(frozen=True)
class PlayedEpisode:
    """The result of a plan and, if it was filmed, its pictures."""

    result: EpisodeResult
    frames: list[NDArray[np.uint8]]


def plan_episodes(
    n_episodes: int,
    seed: int,
    options: dict[str, Any] | None = None,
    condition: Condition | None = None,
    tasks: Sequence[BenchmarkTask] = (),
) -> list[EpisodePlan]:
    """Return the plans of `n_episodes` episodes, of each of `tasks` if there are any; a plan does not depend on `n_episodes`.

    Episode k of every task of a benchmark has the seed `seed` + k and the initial state k, as in LeRobot's evaluation. The plans
    are ordered by task, since an environment keeps one task's simulation; episode k of the i-th of n tasks has the index nk + i.
    """
    if tasks:
        return [
            EpisodePlan(
                index=len(tasks) * episode + task,
                seed=seed + episode,
                options={**(options or {}), "task_id": task, "init_state": episode},
                condition=condition,
            )
            for task in range(len(tasks))
            for episode in range(n_episodes)
        ]
    return [
        EpisodePlan(index, episode_seed(seed, index, "evaluation"), options, condition)
        for index in range(n_episodes)
    ]


def evaluate(
    policy: Policy,
    envs: EnvBatch,
    *,
    n_episodes: int,
    seed: int = 0,
    options: dict[str, Any] | None = None,
    condition: Condition | None = None,
    plans: Sequence[EpisodePlan] | None = None,
    video_folder: str | Path | None = None,
    n_videos: int = 0,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Play `n_episodes` and count the successes.

    Args:
        policy: such as `LocalPolicy(*smolact.load_policy(…))`.
        envs: from `make_env`; their number is the batch size.
        options: the options of every `reset`, such as {"task": "push the red block to the top zone"}.
        condition: the condition of the episodes; None for the environment's own instructions.
        plans: the episodes to play; None for all.
        video_folder, n_videos: the folder for mp4 files of the first `n_videos` episodes; the environments need `render=True`.
        on_episode: called with each episode's result when its group ends.
        on_step: called before each step of a group with the number of its episodes and the step.

    Raises:
        ConfigError: n_episodes < 1, videos without a folder, or an environment that lacks a task or success.
        FeatureError: the policy's actions do not fit the environment or are not finite, or an observation is far outside the
            training data.
    """
    if not hasattr(policy, "predict"):
        raise ConfigError(
            f"A {type(policy).__name__} does not predict by itself: give LocalPolicy(policy, preprocess, postprocess) of "
            "smolact.runtime.local."
        )
    if n_episodes < 1:
        raise ConfigError(f"n_episodes={n_episodes}: an evaluation needs one episode at least.")
    if n_videos > 0 and video_folder is None:
        raise ConfigError(f"n_videos={n_videos} and no folder to write them to: give video_folder.")
    began = time.monotonic()
    results = []
    plans = plan_episodes(n_episodes, seed, options, condition, envs.tasks) if plans is None else plans
    for episode in play(policy, envs, plans, film=range(n_videos), on_step=on_step):
        result = episode.result
        if episode.frames and video_folder is not None:
            name = f"episode_{result.index:03d}_{'success' if result.success else 'failure'}.mp4"
            path = Path(video_folder) / name
            write_video(path, episode.frames, envs.fps or 10)
            result = replace(result, video=str(path))
        results.append(result)
        if on_episode is not None:
            on_episode(result)
    return EvaluationResult(
        seed=seed,
        n_action_steps=policy.schema.n_action_steps,
        chunk_size=policy.schema.chunk_size,
        num_steps=policy.config.num_steps if isinstance(policy, LocalPolicy) else None,
        condition=PLAIN if condition is None else condition.name,
        seconds=time.monotonic() - began,
        results=tuple(results),
    )


def play(
    policy: Policy,
    envs: EnvBatch,
    plans: Sequence[EpisodePlan],
    film: Sequence[int] = (),
    on_step: Callable[[int, int], None] | None = None,
    on_replan: Replanned | None = None,
) -> Iterator[PlayedEpisode]:
    """Play the plans in groups and yield the episodes in order, each group when it ends.

    Args:
        film: the indices of the episodes to film.
    """
    for first in range(0, len(plans), len(envs)):
        group = plans[first : first + len(envs)]
        with _seeded_draws(group[0].seed):
            played = _play_group(policy, envs, group, film, on_step, on_replan)
        yield from played


def _play_group(
    policy: Policy,
    envs: EnvBatch,
    group: Sequence[EpisodePlan],
    film: Sequence[int],
    on_step: Callable[[int, int], None] | None,
    on_replan: Replanned | None,
) -> list[PlayedEpisode]:
    conditions = [_condition(envs, number, plan) for number, plan in enumerate(group)]
    observations, infos = envs.reset([plan.seed for plan in group], [item.options for item in conditions])
    others = np.zeros(len(group), np.bool_)
    policy.reset()
    due: deque[NDArray[np.float32]] = deque()  # actions (B, A) of the last chunks
    step = replans = 0
    steps = np.zeros(len(group), np.int64)
    reward_sums, max_rewards = np.zeros(len(group)), np.full(len(group), -np.inf)
    successes = np.zeros(len(group), np.bool_)
    filmed = [number for number, plan in enumerate(group) if plan.index in film]
    frames = {number: [envs.render(number)] for number in filmed}

    done = envs.done
    while not done.all():
        if on_step is not None:
            on_step(len(group), step)
        if not due:
            requests = _requests(group, observations, _instructions(conditions, infos), replans)
            if on_replan is not None:
                on_replan(group, step, requests)
            due.extend(_executed(policy, checked_chunks(policy.predict(requests), len(group)), envs))
            replans += 1
        running = ~done
        action = due.popleft()
        observations, rewards, done, infos = envs.step(action, look=not due)
        step += 1
        steps += running
        reward_sums += rewards
        max_rewards[running] = np.maximum(max_rewards, rewards)[running]
        successes |= running & np.array([info["is_success"] for info in infos])
        for number in np.flatnonzero(running).tolist():
            if conditions[number].other_goal is not None:
                others[number] |= envs[number].unwrapped.goal_reached(conditions[number].other_goal)
        for number in filmed:
            if running[number]:
                frames[number].append(envs.render(number))

    instructions = _instructions(conditions, infos)
    return [
        PlayedEpisode(
            EpisodeResult(
                index=plan.index,
                seed=plan.seed,
                task=str(instructions[number]),
                task_kind=str(infos[number].get("task_kind", infos[number][TASK])),
                success=bool(successes[number]),
                steps=int(steps[number]),
                reward=float(reward_sums[number]),
                other_task=None if (other := conditions[number].other_goal) is None else str(other),
                other_goal_reached=None if other is None else bool(others[number]),
                max_reward=float(max_rewards[number]),
                task_group=infos[number].get("task_group"),
            ),
            frames.get(number, []),
        )
        for number, plan in enumerate(group)
    ]


def _condition(envs: EnvBatch, number: int, plan: EpisodePlan) -> EpisodeCondition:
    """Return the condition of an episode. It depends on the scene, so the environment is reset."""
    if plan.condition is None:
        return EpisodeCondition(dict(plan.options or {}))
    envs[number].reset(seed=plan.seed, options=plan.options)
    condition = plan.condition.instruct(envs[number].unwrapped, random.Random(plan.seed))
    return replace(condition, options={**(plan.options or {}), **condition.options})


def _instructions(conditions: Sequence[EpisodeCondition], infos: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        condition.instruction if condition.instruction is not None else info[TASK]
        for condition, info in zip(conditions, infos, strict=True)
    ]


def _requests(
    group: Sequence[EpisodePlan], observations: Observation, instructions: Sequence[str], replans: int
) -> list[Request]:
    """Return a request for each episode; its noise follows from the episode's seed and the number of replannings."""
    return [
        Request(
            {key: values[number] for key, values in observations.items()},
            None if isinstance(instructions[number], EmptyInstruction) else instructions[number],
            episode_seed(plan.seed, replans, "noise"),
        )
        for number, plan in enumerate(group)
    ]


def _executed(policy: Policy, chunks: Sequence[Chunk], envs: EnvBatch) -> list[NDArray[np.float32]]:
    """Return the actions (B, A) of the next `n_action_steps` steps."""
    lengths = {len(chunk) for chunk in chunks}
    if len(lengths) > 1:
        raise FeatureError(
            f"The policy gave chunks of {sorted(lengths)} actions in one answer: expected one length."
        )
    actions = np.stack(chunks, axis=1)[: policy.schema.n_action_steps]
    expected = (len(chunks), envs.features[ACTION].shape[0])
    if actions.shape[1:] != expected:
        raise FeatureError(
            f"The policy gives actions of shape {actions.shape[1:]}, and the environments take {expected} (episodes, numbers): "
            "the policy was trained for another action space."
        )
    return list(actions)


@contextlib.contextmanager
def _seeded_draws(seed: int) -> Iterator[None]:
    """Seed torch's generators, and restore them at the end: an evaluation does not change a training run."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
