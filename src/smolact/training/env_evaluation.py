"""A policy's episodes in the environment of `--env.type`, while it trains."""

from __future__ import annotations

from pathlib import Path

import torch

from smolact.evaluation.metrics import EvaluationResult
from smolact.policies.base import PreTrainedPolicy
from smolact.training.config import TrainConfig
from smolact.training.devices import matmul_precision
from smolact.training.initialization import PolicyBundle
from smolact.training.random_state import preserve_rng_state
from smolact.training.tracking import MAX_FILMS
from smolact.types import Predictor


def evaluate_in_environment(
    config: TrainConfig,
    start: PolicyBundle,
    policy: PreTrainedPolicy,
    *,
    device: torch.device,
    seed: int,
    video_folder: Path,
) -> EvaluationResult:
    """Play `--eval.n_episodes` episodes; the run's random state is afterwards as it was before.

    Args:
        config: the run's.
        start: whose processors are used.
        policy: the whole policy, with the weights that are evaluated.
        device: where products are in whole float32 meanwhile.
        seed: of the episodes.
        video_folder: where films of some of them go.

    Raises:
        SmolactError: what the environment or the episodes raise.
    """
    from smolact.envs.factory import make_env
    from smolact.evaluation.rollout import evaluate

    env, count = config.env, config.eval
    with (
        preserve_rng_state(),
        matmul_precision(device, "highest"),
        make_env(
            str(env.type),
            count.batch_size,
            task=env.task,
            mapping=env.mapping,
            render=None,
            **env.kwargs,
        ) as environments,
    ):
        return evaluate(
            predictor(policy),
            start.preprocess,
            start.postprocess,
            environments,
            n_episodes=count.n_episodes,
            seed=seed,
            video_folder=video_folder,
            n_videos=min(MAX_FILMS, count.n_episodes) if environments.draws else 0,
        )


def rates_of(result: EvaluationResult) -> dict[str, float]:
    """What of an evaluation is logged as numbers."""
    low, high = result.success.interval
    return {
        "success_rate": result.success.rate,
        "success_low": low,
        "success_high": high,
        "max_reward": result.mean_max_reward,
    }


def predictor(policy: PreTrainedPolicy) -> Predictor:
    """What predicts as the policy does with its weights of now, as quickly as can be; the policy itself if it has no engine.

    In float32 whatever the machine is quick in, so that an evaluation is the one that `smolact eval` repeats.
    """
    has_engine = type(policy).build_engine is not PreTrainedPolicy.build_engine
    return policy.build_engine(dtype=torch.float32) if has_engine else policy
