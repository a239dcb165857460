from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from smolact.processors.tokenizer import Tokenizer

DATA = Path(__file__).parents[1] / "parity" / "data"
CHECKPOINT = DATA / "lerobot_checkpoint" / "pretrained_model"
TINY_VLM = DATA / "tiny_vlm"


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(TINY_VLM)


def same(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    """Whether two batches hold the same keys in the same order, with values of the same type, dtype and bits."""
    return list(left) == list(right) and all(_same_value(left[key], right[key]) for key in left)


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and left.shape == right.shape and torch.equal(left, right)
    return type(left) is type(right) and left == right
