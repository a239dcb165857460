"""SmolAndFAST as LeRobot's trainer and evaluation know it, computed by smolact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_smolact.configuration_smolandfast import KIND, SMOLANDFASTConfig
from lerobot_policy_smolact.policy import SmolactPolicy
from smolact.policies.smolandfast.processor_smolandfast import SmolAndFASTPromptStep, prompt_step


class SMOLANDFASTPolicy(SmolactPolicy, PreTrainedPolicy):
    """SmolAndFAST: it writes prompts and answers itself, since LeRobot's pipelines are made without the policy."""

    config_class = SMOLANDFASTConfig
    name = KIND
    kind = KIND
    _prompts: SmolAndFASTPromptStep | None = None

    def completed(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch with prompt and, in training, answer."""
        if self._prompts is None:
            parts = self.inner.processor_parts()[SmolAndFASTPromptStep.registry_name]
            self._prompts = prompt_step(self.inner.config, **parts)  # type: ignore[arg-type]
        # LeRobot says None for an action that is not there.
        return self._prompts({key: value for key, value in batch.items() if value is not None})

    def draws(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Where images are cut out in training, (B, cameras, 2) in [0, 1]."""
        if not self.training or self.inner.training_draws is None:
            return {}
        cameras = len(self.inner.config.image_features)
        return {"crop": torch.rand(len(batch["task"]), cameras, 2)}
