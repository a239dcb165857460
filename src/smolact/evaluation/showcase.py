"""Episodes for a report: played again, with their pictures and several predictions at each replanning.

A flow-matching policy draws its chunks. Several draws fanned out over the picture show how certain it is: a narrow fan is a certain
policy.
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
from smolact.runtime.policy import Policy, Request

DRAWS = 8
"""Chunks that are drawn at each replanning."""


@dataclass(frozen=True)
class Snapshot:
    """A replanning: at which step, and the chunks drawn, (draws, chunk, 2) in [0, 1] of the picture, right and down."""

    step: int
    fan: NDArray[np.floating[Any]] | None


@dataclass(frozen=True)
class ShowcaseEpisode:
    """An episode to look at: the pictures (H, W, 3) uint8 before each step and after the last."""

    condition: str
    result: EpisodeResult
    frames: list[NDArray[np.uint8]]
    snapshots: list[Snapshot]
    executed: int


def pick(result: EvaluationResult, n: int) -> list[int]:
    """Numbers of `n` episodes: of each kind of task a success and a failure in turn, as far as there are such."""
    groups: dict[tuple[str, bool], list[int]] = {}
    for episode in result.results:
        groups.setdefault((episode.task_kind, episode.success), []).append(episode.index)
    turns = [groups[key] for key in sorted(groups, key=lambda key: (not key[1], key[0]))]
    longest = max(map(len, turns), default=0)
    found = [turn[place] for place in range(longest) for turn in turns if place < len(turn)]
    return sorted(found[:n])


def show(
    policy: Policy,
    envs: EnvBatch,
    result: EvaluationResult,
    n: int,
    condition: Condition | None = None,
) -> list[ShowcaseEpisode]:
    """Play `n` episodes of an evaluation again, with their pictures and predictions.

    Fans are drawn for environments that map actions to their picture: `action_positions(actions (…, A)) -> (…, 2)`.

    Args:
        policy: the policy that was evaluated.
        envs: the evaluation's environments, made with `render=True`.
        result: the evaluation's result.
        n: how many episodes; successes and failures in turn.
        condition: of `result`.
    """
    chosen = pick(result, n)
    every = plan_episodes(len(result.results), result.seed, condition=condition)
    snapshots: dict[int, list[Snapshot]] = {index: [] for index in chosen}

    def replanned(group: Sequence[EpisodePlan], step: int, requests: Sequence[Request]) -> None:
        again = [replace(request, seed=None) for request in requests for _ in range(DRAWS)]
        chunks = policy.predict(again)
        for number, plan in enumerate(group):
            place = getattr(envs[number].unwrapped, "action_positions", None)
            drawn = np.stack(chunks[number * DRAWS : (number + 1) * DRAWS])
            snapshots[plan.index].append(Snapshot(step, None if place is None else np.asarray(place(drawn))))

    shown = []
    plans = [every[index] for index in chosen]
    for episode in play(policy, envs, plans, film=chosen, on_replan=replanned):
        played = episode.result
        seen = [snapshot for snapshot in snapshots[played.index] if snapshot.step < played.steps]
        executed = policy.schema.n_action_steps
        shown.append(ShowcaseEpisode(result.condition, played, episode.frames, seen, executed))
    return shown


def showcase(
    policy: Policy,
    envs: EnvBatch,
    results: Mapping[str, EvaluationResult],
    conditions: Sequence[Condition],
    n: int,
) -> list[ShowcaseEpisode]:
    """`n` episodes as asked and, where instructions were swapped, half as many of those."""
    shown = show(policy, envs, results[PLAIN], n)
    for condition in conditions:
        if condition.name == SWAPPED:
            shown += show(policy, envs, results[SWAPPED], (n + 1) // 2, condition)
    return shown
