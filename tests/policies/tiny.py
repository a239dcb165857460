"""A SmolVLA that fits in a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.types import FeatureType, PolicyFeature

CAMERAS = ("observation.images.top", "observation.images.wrist")


def tiny_config(**overrides: Any) -> SmolVLAConfig:
    settings: dict[str, Any] = {
        "input_features": {
            **{camera: PolicyFeature(FeatureType.VISUAL, (3, 48, 64)) for camera in CAMERAS},
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))},
        "vlm_model_name": "tiny",
        "chunk_size": 8,
        "n_action_steps": 4,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "resize_imgs_with_padding": (64, 64),
        **overrides,
    }
    return SmolVLAConfig(**settings)


def tiny_policy(seed: int = 0, **overrides: Any) -> SmolVLAPolicy:
    torch.manual_seed(seed)
    return SmolVLAPolicy(tiny_config(**overrides))


def tiny_batch(size: int = 2, seed: int = 1, chunk: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        **{camera: torch.rand(size, 3, 48, 64, generator=generator) for camera in CAMERAS},
        "observation.state": torch.randn(size, 6, generator=generator),
        "observation.language.tokens": torch.randint(0, 500, (size, 7), generator=generator),
        "observation.language.attention_mask": torch.arange(7) < torch.tensor([7, 4] * size)[:size, None],
        "action": torch.randn(size, chunk, 6, generator=generator),
    }


def tiny_noise(size: int = 2, chunk: int = 8, seed: int = 2) -> Tensor:
    return torch.randn(size, chunk, 8, generator=torch.Generator().manual_seed(seed))
