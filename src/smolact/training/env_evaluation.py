"""Evaluation of a policy in the environment of `--env.type` during training."""

from __future__ import annotations

from pathlib import Path

import torch

from smolact.evaluation.metrics import EvaluationResult
from smolact.policies.base import PreTrainedPolicy
from smolact.processors.pipeline import ProcessorPipeline
from smolact.runtime.local import LocalPolicy
from smolact.training.config import TrainConfig
from smolact.training.devices import matmul_precision
from smolact.training.initialization import PolicyBundle
from smolact.training.random_state import preserve_rng_state
from smolact.training.tracking import MAX_VIDEOS


def evaluate_in_environment(
    config: TrainConfig,
    start: PolicyBundle,
    policy: PreTrainedPolicy,
    *,
    device: torch.device,
    seed: int,
    video_folder: Path,
) -> EvaluationResult:
    """Run `--eval.n_episodes` episodes, and restore the run's random state afterwards.

    Args:
        config: the run's settings.
        start: provides the processors.
        policy: the full policy, with the weights to evaluate.
        device: computes products in full float32 meanwhile.
        seed: the episodes' seed.
        video_folder: the folder for videos of some of them.

    Raises:
        SmolactError: the environment or an episode failed.
    """
    from smolact.envs.factory import make_env
    from smolact.evaluation.rollout import evaluate

    env, count = config.env, config.eval
    with (
        preserve_rng_state(),
        matmul_precision(device, "highest"),
        make_env(
            str(env.type),
            count.n_environments,
            task=env.task,
            mapping=env.mapping,
            render=None,
            **env.kwargs,
        ) as environments,
    ):
        return evaluate(
            _runnable(policy, start.preprocess, start.postprocess),
            environments,
            n_episodes=count.n_episodes,
            seed=seed,
            video_folder=video_folder,
            n_videos=min(MAX_VIDEOS, count.n_episodes) if environments.can_render else 0,
        )


def rates_of(result: EvaluationResult) -> dict[str, float]:
    """Return the metrics of an evaluation."""
    low, high = result.success.interval
    return {
        "success_rate": result.success.rate,
        "success_low": low,
        "success_high": high,
        "max_reward": result.mean_max_reward,
    }


def _runnable(
    policy: PreTrainedPolicy, preprocess: ProcessorPipeline, postprocess: ProcessorPipeline
) -> LocalPolicy:
    """The policy with its present weights, as its engine if it has one.

    In float32, as `smolact eval` predicts, so that both give the same result.
    """
    has_engine = type(policy).build_engine is not PreTrainedPolicy.build_engine
    predictor = policy.build_engine(dtype=torch.float32) if has_engine else policy
    return LocalPolicy(predictor, preprocess, postprocess)
