"""smolact's policies in Hugging Face's Trainer."""

from smolact_transformers.data import EpochSampler, SmolVLAProcessor, dataset_for
from smolact_transformers.trainer import (
    ActionErrors,
    SmolVLATrainer,
    create_smolvla_trainer,
    policy_optimizers,
)

__all__ = [
    "ActionErrors",
    "EpochSampler",
    "SmolVLAProcessor",
    "SmolVLATrainer",
    "create_smolvla_trainer",
    "dataset_for",
    "policy_optimizers",
]
