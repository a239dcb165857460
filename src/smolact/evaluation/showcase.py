"""Episodes for a report: played again, with their pictures and several sampled chunks at each replanning.

A flow-matching policy samples its chunks. The spread of several samples over the picture shows the policy's uncertainty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.batch import EnvBatch
from smolact.evaluation.conditions import PLAIN, SWAPPED, Condition
from smolact.evaluation.metrics import EpisodeResult, EvaluationResult
from smolact.evaluation.rollout import EpisodePlan, plan_episodes, play
from smolact.runtime.chunks import checked_chunks
from smolact.runtime.policy import Policy, Request

DRAWS = 8
"""The number of chunks that are sampled at each replanning."""


@dataclass(frozen=True)
class Snapshot:
    """A replanning: its step, and the sampled chunks as picture positions (samples, chunk, 2) in [0, 1], right and down."""

    step: int
    fan: NDArray[np.floating[Any]] | None


@dataclass(frozen=True)
class ShowcaseEpisode:
    """An episode with its pictures (H, W, 3) uint8 before each step and after the last; `executed` actions of a chunk were executed."""

    condition: str
    result: EpisodeResult
    frames: list[NDArray[np.uint8]]
    snapshots: list[Snapshot]
    executed: int


def choose_episodes(result: EvaluationResult, n: int) -> list[int]:
    """Return the indices of `n` episodes: by turns from each kind of task, successes and failures, while they last."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for episode in result.results:
        groups.setdefault((episode.task_kind, episode.success), []).append(episode.index)
    ordered = [groups[key] for key in sorted(groups, key=lambda key: (not key[1], key[0]))]
    longest = max(map(len, ordered), default=0)
    mixed = [group[turn] for turn in range(longest) for group in ordered if turn < len(group)]
    return sorted(mixed[:n])


def show(
    policy: Policy,
    envs: EnvBatch,
    result: EvaluationResult,
    n: int,
    condition: Condition | None = None,
) -> list[ShowcaseEpisode]:
    """Play `n` episodes of an evaluation again, with their pictures and sampled chunks.

    Chunks are shown for environments that map actions to the picture: `action_positions(actions (…, A)) -> (…, 2)`.

    Args:
        envs: the evaluation's environments, made with `render=True`.
    """
    chosen = choose_episodes(result, n)
    n_episodes = len(result.results) // max(1, len(envs.tasks))
    planned = plan_episodes(n_episodes, result.seed, condition=condition, tasks=envs.tasks)
    every = {plan.index: plan for plan in planned}
    snapshots: dict[int, list[Snapshot]] = {index: [] for index in chosen}

    def replanned(group: Sequence[EpisodePlan], step: int, requests: Sequence[Request]) -> None:
        repeated = [replace(request, seed=None) for request in requests for _ in range(DRAWS)]
        chunks = checked_chunks(policy.predict(repeated), len(repeated))
        for number, plan in enumerate(group):
            to_picture = getattr(envs[number].unwrapped, "action_positions", None)
            samples = np.stack(chunks[number * DRAWS : (number + 1) * DRAWS])
            snapshots[plan.index].append(
                Snapshot(step, None if to_picture is None else np.asarray(to_picture(samples)))
            )

    shown = []
    plans = [every[index] for index in chosen]
    for episode in play(policy, envs, plans, film=chosen, on_replan=replanned):
        played = episode.result
        until_end = [snapshot for snapshot in snapshots[played.index] if snapshot.step < played.steps]
        executed = policy.schema.n_action_steps
        shown.append(ShowcaseEpisode(result.condition, played, episode.frames, until_end, executed))
    return shown


def showcase(
    policy: Policy,
    envs: EnvBatch,
    results: Mapping[str, EvaluationResult],
    conditions: Sequence[Condition],
    n: int,
) -> list[ShowcaseEpisode]:
    """Return `n` episodes of the plain condition, and half as many of the swapped one if it was evaluated."""
    shown = show(policy, envs, results[PLAIN], n)
    for condition in conditions:
        if condition.name == SWAPPED:
            shown += show(policy, envs, results[SWAPPED], (n + 1) // 2, condition)
    return shown
