"""A policy of one's own, which sees only the state and so reaches a goal by chance: `python examples/own_policy.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from smolact.envs.demonstrations import demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import env_id, make_env
from smolact.evaluation.metrics import EvaluationResult
from smolact.evaluation.rollout import evaluate
from smolact.policies.common.chunking import ActsInChunks
from smolact.policies.configuration import PolicyConfig
from smolact.processors.factory import make_default_steps, make_pipelines
from smolact.runtime.local import LocalPolicy
from smolact.types import ACTION, STATE, Batch, FeatureType, NormalizationMode, PolicyFeature


@dataclass
class BlindConfig(PolicyConfig):
    """The settings."""

    type: ClassVar[str] = "blind"
    chunk_size: int = 4
    n_action_steps: int = 2


class BlindPolicy(nn.Module, ActsInChunks):
    """From the state straight to a chunk of four actions."""

    def __init__(self, config: BlindConfig, state: int, action: int) -> None:
        super().__init__()
        self.config = config
        self.net = nn.Sequential(nn.Linear(state, 64), nn.SiLU(), nn.Linear(64, 4 * action))
        self.reset()

    def predict_action_chunk(self, batch: Batch, noise: Tensor | None = None) -> Tensor:
        """The next actions (B, 4, A), normalized."""
        return self.net(batch[STATE]).unflatten(1, (4, -1))


def main(episodes: int = 20, steps: int = 300, trials: int = 20) -> EvaluationResult:
    """Learn from the expert, then play."""
    torch.manual_seed(0)
    with make_env("tabletop") as envs:
        shown = [each.frames for each in demonstrations(envs[0], expert_for(env_id("tabletop")), episodes)]
        pairs = [(f[STATE][i], f[ACTION][i : i + 4]) for f in shown for i in range(len(f[STATE]) - 3)]
        states, actions = (torch.tensor(np.stack(values)) for values in zip(*pairs, strict=True))
        flat = {STATE: states, ACTION: actions.flatten(0, 1)}.items()
        stats = {key: {"mean": v.mean(0).numpy(), "std": v.std(0).numpy()} for key, v in flat}
        inputs = {STATE: PolicyFeature(FeatureType.STATE, states.shape[1:])}
        outputs = {ACTION: PolicyFeature(FeatureType.ACTION, actions.shape[2:])}
        modes = dict.fromkeys((FeatureType.STATE, FeatureType.ACTION), NormalizationMode.MEAN_STD)
        made = make_default_steps(inputs, outputs, modes, stats)
        before, behind = make_pipelines([made.add_batch_dimension, made.normalize], [made.unnormalize])

        policy = BlindPolicy(
            BlindConfig(input_features=inputs, output_features=outputs), states.shape[1], actions.shape[2]
        )
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = torch.randint(len(states), (64,))
            batch = before({STATE: states[rows], ACTION: actions[rows]})
            loss = (policy.predict_action_chunk(batch) - batch[ACTION]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return evaluate(LocalPolicy(policy, before, behind), envs, n_episodes=trials)


if __name__ == "__main__":
    print(f"success: {main().success}")
