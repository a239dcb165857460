"""A policy in closed loop: observation -> preprocessor -> policy -> postprocessor -> environment.

Episodes run in waves of as many as there are environments. A wave begins together, so the policy's queue of actions is
that of all its episodes; one that ends early waits for the others. Then the next wave begins.

The same seed gives the same episodes: each has an environment seed of its own. What the policy draws is seeded by
episode too, if it tells the shape of its noise (`policy.noise_shape`, (chunk, A)): then a result does not depend on how
many environments ran side by side, but for the rounding of batched arithmetic. Any other policy's draws come from
torch's generators, seeded for every wave; for these the number of environments is part of the seed.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smolact.envs.batch import EnvBatch
from smolact.envs.mapping import Observation
from smolact.envs.seeding import episode_seed
from smolact.errors import ConfigError, FeatureError
from smolact.evaluation.conditions import PLAIN, Condition, EpisodeCondition
from smolact.evaluation.metrics import EpisodeResult, EvaluationResult
from smolact.evaluation.video import write_video
from smolact.processors.observed import check_observed
from smolact.types import ACTION, TASK, Batch, Predictor, is_image_key

Preprocessor = Callable[[Batch], Batch]
Postprocessor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EpisodePlan:
    """An episode to run: its number, the environment's seed, the options for its `reset`, and how it is told what to do."""

    index: int
    seed: int
    options: dict[str, Any] | None = None
    condition: Condition | None = None


Watch = Callable[[Sequence[EpisodePlan], int, Batch], None]


@dataclass(frozen=True)
class PlayedEpisode:
    """What came of a plan: the result and, where they were asked for, the pictures from the first to the last."""

    result: EpisodeResult
    frames: list[NDArray[np.uint8]]


def plan_episodes(
    n_episodes: int,
    seed: int,
    options: dict[str, Any] | None = None,
    condition: Condition | None = None,
) -> list[EpisodePlan]:
    """Episodes 0 to `n_episodes` − 1 of an evaluation; the first ones are the same whatever `n_episodes` is."""
    return [
        EpisodePlan(index, episode_seed(seed, index, "evaluation"), options, condition)
        for index in range(n_episodes)
    ]


def evaluate(
    policy: Predictor,
    preprocess: Preprocessor,
    postprocess: Postprocessor,
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
    """Run `n_episodes` and say how many succeeded.

    Args:
        policy: is put into evaluation mode, and back.
        preprocess, postprocess: the checkpoint's own, from raw batch to the policy's and from its actions to raw ones.
        envs: from `make_env`; their number is the batch size.
        options: for every `reset`, such as {"task": "push the red block to the top zone"}.
        condition: how episodes are told what to do; as the environment does it when None.
        plans: only these of the episodes; all of them when None.
        video_folder: where the first `n_videos` episodes are written, as mp4; the environments need `render=True`.
        on_episode: is called with each episode as its wave ends, for a progress bar.
        on_step: is called before each step of a wave: how many episodes the wave has, and the step's number.

    Raises:
        ConfigError: n_episodes < 1, videos without a folder, or an environment that does not tell task or success.
        FeatureError: the policy's actions do not fit the environment, or are not finite; or a number that the environment
            observes is nowhere near those of the training.
    """
    if n_episodes < 1:
        raise ConfigError(f"n_episodes={n_episodes}: an evaluation needs one episode at least.")
    if n_videos > 0 and video_folder is None:
        raise ConfigError(f"n_videos={n_videos} and no folder to write them to: give video_folder.")
    began = time.monotonic()
    results = []
    plans = plan_episodes(n_episodes, seed, options, condition) if plans is None else plans
    watch = None if on_step is None else lambda group, step, batch: on_step(len(group), step)
    for episode in play(policy, preprocess, postprocess, envs, plans, film=range(n_videos), watch=watch):
        result = episode.result
        if episode.frames and video_folder is not None:
            name = f"episode_{result.index:03d}_{'success' if result.success else 'failure'}.mp4"
            path = Path(video_folder) / name
            write_video(path, episode.frames, envs.fps or 10)
            result = replace(result, video=str(path))
        results.append(result)
        if on_episode is not None:
            on_episode(result)
    config = getattr(policy, "config", None)
    return EvaluationResult(
        seed=seed,
        n_action_steps=getattr(config, "n_action_steps", None),
        chunk_size=getattr(config, "chunk_size", None),
        num_steps=getattr(config, "num_steps", None),
        condition=PLAIN if condition is None else condition.name,
        seconds=time.monotonic() - began,
        results=tuple(results),
    )


def play(
    policy: Predictor,
    preprocess: Preprocessor,
    postprocess: Postprocessor,
    envs: EnvBatch,
    plans: Sequence[EpisodePlan],
    film: Sequence[int] = (),
    watch: Watch | None = None,
) -> Iterator[PlayedEpisode]:
    """Play the plans in waves and yield them in order, each wave as it ends.

    Args:
        film: whose pictures are kept, by index.
        watch: is shown every step before its action: the wave's plans, the step's number, the preprocessed batch.
    """
    for first in range(0, len(plans), len(envs)):
        group = plans[first : first + len(envs)]
        with _evaluation_mode(policy), _seeded_draws(group[0].seed), torch.inference_mode():
            played = _play_group(policy, preprocess, postprocess, envs, group, film, watch)
        yield from played


def _play_group(
    policy: Predictor,
    preprocess: Preprocessor,
    postprocess: Postprocessor,
    envs: EnvBatch,
    group: Sequence[EpisodePlan],
    film: Sequence[int],
    watch: Watch | None,
) -> list[PlayedEpisode]:
    told = [_tell(envs, number, plan) for number, plan in enumerate(group)]
    observations, infos = envs.reset([plan.seed for plan in group], [one.options for one in told])
    others = np.zeros(len(group), np.bool_)
    policy.reset()
    draw_noise = _noise_source(policy, group)
    n_actions = envs.features[ACTION].shape[0]
    steps = np.zeros(len(group), np.int64)
    reward_sums, max_rewards = np.zeros(len(group)), np.full(len(group), -np.inf)
    successes = np.zeros(len(group), np.bool_)
    filmed = [number for number, plan in enumerate(group) if plan.index in film]
    frames = {number: [envs.render(number)] for number in filmed}

    done = envs.done
    while not done.all():
        raw = {**batch_of(observations), TASK: _words(told, infos)}
        batch = preprocess(raw)
        check_observed(raw, batch, preprocess, {})
        if watch is not None:
            watch(group, int(steps.max()), batch)
        actions = postprocess(policy.select_action(batch, **draw_noise(batch)))
        running = ~done
        observations, rewards, done, infos = envs.step(_checked(actions, (len(group), n_actions)))
        steps += running
        reward_sums += rewards
        max_rewards[running] = np.maximum(max_rewards, rewards)[running]
        successes |= running & np.array([info["is_success"] for info in infos])
        for number in np.flatnonzero(running).tolist():
            if told[number].other_goal is not None:
                others[number] |= envs[number].unwrapped.goal_reached(told[number].other_goal)
        for number in filmed:
            if running[number]:
                frames[number].append(envs.render(number))

    words = _words(told, infos)
    return [
        PlayedEpisode(
            EpisodeResult(
                index=plan.index,
                seed=plan.seed,
                task=str(words[number]),
                task_kind=str(infos[number].get("task_kind", infos[number][TASK])),
                success=bool(successes[number]),
                steps=int(steps[number]),
                reward=float(reward_sums[number]),
                other_task=None if (other := told[number].other_goal) is None else str(other),
                other_goal_reached=None if other is None else bool(others[number]),
                max_reward=float(max_rewards[number]),
            ),
            frames.get(number, []),
        )
        for number, plan in enumerate(group)
    ]


def _tell(envs: EnvBatch, number: int, plan: EpisodePlan) -> EpisodeCondition:
    """What an episode is told; its scene has to be there for that, so the environment is reset."""
    if plan.condition is None:
        return EpisodeCondition(dict(plan.options or {}))
    envs[number].reset(seed=plan.seed, options=plan.options)
    told = plan.condition.tell(envs[number].unwrapped, random.Random(plan.seed))
    return replace(told, options={**(plan.options or {}), **told.options})


def _words(told: Sequence[EpisodeCondition], infos: Sequence[Mapping[str, Any]]) -> list[str]:
    return [one.words if one.words is not None else info[TASK] for one, info in zip(told, infos, strict=True)]


def batch_of(observations: Observation) -> Batch:
    """Stacked observations as a raw batch: images (B, H, W, 3) uint8 to (B, 3, H, W) float32 in [0, 1], the rest float32."""
    batch: Batch = {}
    for key, values in observations.items():
        tensor = torch.from_numpy(values)
        batch[key] = (
            tensor.permute(0, 3, 1, 2).contiguous().float().div_(255.0)
            if is_image_key(key)
            else tensor.float()
        )
    return batch


def _checked(actions: Tensor, shape: tuple[int, int]) -> NDArray[np.float32]:
    values = actions.detach().float().cpu().numpy()
    if values.shape != shape:
        raise FeatureError(
            f"The policy gives actions of shape {values.shape}, and the environments take {shape} (episodes, numbers): "
            "the policy was trained for another action space."
        )
    if not np.isfinite(values).all():
        raise FeatureError(
            "The policy gave actions that are not finite numbers. Its weights or its statistics are damaged."
        )
    return values


def _noise_source(
    policy: Predictor, group: Sequence[EpisodePlan]
) -> Callable[[Mapping[str, Any]], dict[str, Tensor]]:
    """What to pass to `select_action` beside a batch: each episode's own noise, if the policy tells its shape."""
    shape = getattr(policy, "noise_shape", None)
    if shape is None:
        return lambda batch: {}
    generators = [torch.Generator().manual_seed(plan.seed) for plan in group]

    def draw(batch: Mapping[str, Any]) -> dict[str, Tensor]:
        device = next(value.device for value in batch.values() if isinstance(value, Tensor))
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return {"noise": noise.to(device)}

    return draw


@contextlib.contextmanager
def _evaluation_mode(policy: Predictor) -> Iterator[None]:
    if not (isinstance(policy, torch.nn.Module) and policy.training):
        yield
        return
    policy.eval()
    try:
        yield
    finally:
        policy.train()


@contextlib.contextmanager
def _seeded_draws(seed: int) -> Iterator[None]:
    """Seed torch's generators, and give the caller back its own: an evaluation in the middle of a training changes nothing."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
