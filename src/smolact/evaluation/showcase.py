"""Episodes to look at: played again, with their pictures and what the policy meant to do next.

A policy that draws its actions means many things at once. At each replanning several chunks are drawn and kept, so that
they can be fanned out over the picture: a narrow fan is a policy that knows what it wants.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from smolact.envs.batch import EnvBatch
from smolact.evaluation.conditions import PLAIN, SWAPPED, Condition
from smolact.evaluation.metrics import EpisodeResult, EvaluationResult
from smolact.evaluation.rollout import EpisodePlan, Postprocessor, Preprocessor, plan_episodes, play
from smolact.types import Batch, Predictor

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
    policy: Predictor,
    preprocess: Preprocessor,
    postprocess: Postprocessor,
    envs: EnvBatch,
    result: EvaluationResult,
    n: int,
    condition: Condition | None = None,
) -> list[ShowcaseEpisode]:
    """Play `n` episodes of an evaluation again, and keep what there is to see.

    Fans are kept for environments that say where an action lies in their picture:
    `action_positions(actions (…, A)) -> (…, 2)`.

    Args:
        policy, preprocess, postprocess: that were evaluated.
        envs: the evaluation's environments, made with `render=True`.
        result: what was found.
        n: how many to show; successes and failures in turn.
        condition: that `result` was found in.
    """
    chosen = pick(result, n)
    every = plan_episodes(len(result.results), result.seed, condition=condition)
    plans = [every[index] for index in chosen]
    executed = max(1, int(getattr(policy.config, "n_action_steps", 1) or 1))
    snapshots: dict[int, list[Snapshot]] = {index: [] for index in chosen}

    def on_step(group: Sequence[EpisodePlan], step: int, batch: Batch) -> None:
        if step % executed:
            return
        chunks = np.stack(
            [postprocess(policy.predict_action_chunk(batch)).float().cpu().numpy() for _ in range(DRAWS)]
        )
        for number, plan in enumerate(group):
            place = getattr(envs[number].unwrapped, "action_positions", None)
            fan = None if place is None else np.asarray(place(chunks[:, number]))
            snapshots[plan.index].append(Snapshot(step, fan))

    shown = []
    for episode in play(policy, preprocess, postprocess, envs, plans, film=chosen, watch=on_step):
        played = episode.result
        seen = [moment for moment in snapshots[played.index] if moment.step < played.steps]
        shown.append(ShowcaseEpisode(result.condition, played, episode.frames, seen, executed))
    return shown


def showcase(
    policy: Predictor,
    preprocess: Preprocessor,
    postprocess: Postprocessor,
    envs: EnvBatch,
    results: Mapping[str, EvaluationResult],
    conditions: Sequence[Condition],
    n: int,
) -> list[ShowcaseEpisode]:
    """`n` episodes as asked and, where instructions were swapped, half as many of those."""
    shown = show(policy, preprocess, postprocess, envs, results[PLAIN], n)
    for condition in conditions:
        if condition.name == SWAPPED:
            shown += show(policy, preprocess, postprocess, envs, results[SWAPPED], (n + 1) // 2, condition)
    return shown
