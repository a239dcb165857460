"""SmolAndFAST as LeRobot's trainer and evaluation know it, computed by smolact."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_smolact.configuration_smolandfast import KIND, SMOLANDFASTConfig
from lerobot_policy_smolact.policy import SmolactPolicy
from smolact.policies.smolandfast.processor_smolandfast import SmolAndFASTPromptStep, prompt_step
from smolact.types import ACTION, TASK, EmptyInstruction

logger = logging.getLogger(__name__)


class SMOLANDFASTPolicy(SmolactPolicy, PreTrainedPolicy):
    """SmolAndFAST: it writes prompts and answers itself, since LeRobot's pipelines are made without the policy."""

    config_class = SMOLANDFASTConfig
    name = KIND
    kind = KIND
    _prompts: SmolAndFASTPromptStep | None = None
    _has_warned: bool = False

    def fill_in_processor(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with prompt and, in training, answer."""
        if self._prompts is None:
            parts = self.inner.processor_parts()[SmolAndFASTPromptStep.registry_name]
            self._prompts = prompt_step(self.inner.config, **parts)  # type: ignore[arg-type]
        # LeRobot says None for an action that is not there.
        there = {key: value for key, value in batch.items() if value is not None}
        if ACTION not in there and TASK in there:
            there[TASK] = self._as_told(there[TASK])
        return self._prompts(there)

    def _as_told(self, tasks: str | Sequence[str]) -> list[str]:
        """LeRobot says an empty text where an environment says nothing; smolact wants that to be on purpose."""
        texts = [tasks] if isinstance(tasks, str) else list(tasks)
        if not self._has_warned and not all(text.strip() for text in texts):
            self._has_warned = True
            logger.warning(
                "Nobody tells the policy what to do: this environment has neither `task_description` nor `task`. The policy "
                "is told nothing, unlike in training. `smolact eval --task='…'` tells it."
            )
        return [text if text.strip() else EmptyInstruction() for text in texts]

    def draws(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Where images are cut out in training, (B, cameras, 2) in [0, 1]."""
        if not self.training or self.inner.training_draws is None:
            return {}
        cameras = len(self.inner.config.image_features)
        return {"crop": torch.rand(len(batch["task"]), cameras, 2)}
