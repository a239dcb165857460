"""The names that IL-Studio looks up in `policy.smolandfast`."""

from __future__ import annotations

from typing import Any

from smolact_il_studio.configuration import SmolAndFASTConfig
from smolact_il_studio.data_utils import SmolAndFASTProcessor
from smolact_il_studio.data_utils import smolandfast_collator as data_collator
from smolact_il_studio.loading import get_data_collator, get_data_processor, load_policy
from smolact_il_studio.modeling import SmolAndFASTPolicy
from smolact_il_studio.trainer import SmolVLATrainer as SmolAndFASTTrainer

__all__ = [
    "SmolAndFASTConfig",
    "SmolAndFASTPolicy",
    "SmolAndFASTProcessor",
    "SmolAndFASTTrainer",
    "data_collator",
    "get_data_collator",
    "get_data_processor",
    "load_model",
]


def load_model(args: Any) -> dict[str, Any]:
    """Load SmolAndFAST; see `loading.load_policy`."""
    return load_policy(args, SmolAndFASTPolicy)
