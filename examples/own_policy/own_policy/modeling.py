"""The network of the policy `blind`, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from own_policy.configuration import BlindConfig
from smolact.policies.base import PreTrainedPolicy
from smolact.types import ACTION, ACTION_IS_PAD, STATE


class BlindPolicy(PreTrainedPolicy):
    """From the state straight to a chunk of actions."""

    config_class = BlindConfig
    config: BlindConfig

    def __init__(self, config: BlindConfig) -> None:
        super().__init__(config)
        (state,), (action,) = config.input_features[STATE].shape, config.action_feature.shape
        self.net = nn.Sequential(
            nn.Linear(state, config.width), nn.SiLU(), nn.Linear(config.width, config.chunk_size * action)
        )

    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean squared error of actions inside the episode; the sum and the number of entries for `reduction="sum"`."""
        inside = ~batch[ACTION_IS_PAD][..., None]
        loss = ((self._chunk(batch) - batch[ACTION]).square() * inside).sum()
        entries = inside.sum() * batch[ACTION].shape[-1]
        if reduction == "sum":
            return loss, {"entries": entries}
        return loss / entries, {"loss": (loss / entries).detach()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next actions (B, chunk, A), normalized."""
        return self._chunk(batch)

    def _chunk(self, batch: Mapping[str, Any]) -> Tensor:
        return self.net(batch[STATE]).unflatten(1, (self.config.chunk_size, -1))
