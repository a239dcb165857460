"""SmolAndFAST with the interface of LeRobot's trainer and evaluation, computed by smolact."""

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
    """SmolAndFAST. It writes prompts and answers itself, since LeRobot builds pipelines without the policy."""

    config_class = SMOLANDFASTConfig
    name = KIND
    kind = KIND
    _prompt_step: SmolAndFASTPromptStep | None = None
    _has_warned: bool = False

    def fill_in_processor(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Add the prompt and, in training, the answer to the batch."""
        if self._prompt_step is None:
            parts = self.inner.processor_parts()[SmolAndFASTPromptStep.registry_name]
            self._prompt_step = prompt_step(self.inner.config, **parts)  # type: ignore[arg-type]
        # LeRobot has None for a missing action.
        present = {key: value for key, value in batch.items() if value is not None}
        if ACTION not in present and TASK in present:
            present[TASK] = self._with_empty_instructions(present[TASK])
        return self._prompt_step(present)

    def _with_empty_instructions(self, tasks: str | Sequence[str]) -> list[str]:
        """Mark empty instructions as intended: LeRobot has an empty text where an environment has no task."""
        texts = [tasks] if isinstance(tasks, str) else list(tasks)
        if not self._has_warned and not all(text.strip() for text in texts):
            self._has_warned = True
            logger.warning(
                "Nobody tells the policy what to do: this environment has neither `task_description` nor `task`. The policy "
                "is told nothing, unlike in training. `smolact eval --task='…'` tells it."
            )
        return [text if text.strip() else EmptyInstruction() for text in texts]

    def draws(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Draw the position of the training crop, (B, cameras, 2) in [0, 1]."""
        if not self.training or self.inner.training_draws is None:
            return {}
        cameras = len(self.inner.config.image_features)
        return {"crop": torch.rand(len(batch["task"]), cameras, 2)}
