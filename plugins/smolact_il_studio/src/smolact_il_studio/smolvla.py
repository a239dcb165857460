"""The names that IL-Studio looks up in `policy.smolvla`."""

from __future__ import annotations

from typing import Any

from smolact.policies.smolvla.network_smolvla import VLAFlowMatching
from smolact.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from smolact_il_studio.configuration import SmolVLAConfig, SmolVLAPolicyConfig
from smolact_il_studio.data_utils import SmolVLAProcessor
from smolact_il_studio.data_utils import smolvla_collator as data_collator
from smolact_il_studio.loading import get_data_collator, get_data_processor, load_policy
from smolact_il_studio.modeling import SmolVLAPolicy
from smolact_il_studio.trainer import SmolVLATrainer, create_smolvla_trainer

__all__ = [
    "SmolVLAConfig",
    "SmolVLAPolicy",
    "SmolVLAPolicyConfig",
    "SmolVLAProcessor",
    "SmolVLATrainer",
    "SmolVLMWithExpertModel",
    "VLAFlowMatching",
    "create_smolvla_trainer",
    "data_collator",
    "get_data_collator",
    "get_data_processor",
    "load_model",
]


def load_model(args: Any) -> dict[str, Any]:
    """Load SmolVLA; see `loading.load_policy`."""
    return load_policy(args, SmolVLAPolicy)
