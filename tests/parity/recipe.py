"""How the parity kit draws weights and inputs: every tensor from its own generator, so nothing random is stored."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DATA = Path(__file__).parent / "data"

RTC_CASES = {
    "as the paper": ("default", 3, 7, "exp", 5.0),
    "linear, strong": ("default", 1, 9, "linear", 10.0),
    "all of it": ("self_attn", 2, 6, "ones", 5.0),
    "only what is sure": ("self_attn", 4, 10, "zeros", 5.0),
    "more delay than there is left": ("default", 5, 2, "exp", 5.0),
}
"""Real-time chunking: a case of SmolVLA, delay, actions left, schedule, largest weight."""


def rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def normal(seed: int, name: str, *shape: int) -> Tensor:
    return torch.from_numpy(rng(seed, name).standard_normal(shape, dtype=np.float32))


def uniform(seed: int, name: str, *shape: int) -> Tensor:
    return torch.from_numpy(rng(seed, name).random(shape, dtype=np.float32))


@torch.no_grad()
def draw_weights(module: nn.Module, seed: int) -> None:
    """Give every parameter the value that its name decides."""
    for name, parameter in module.named_parameters():
        draw = normal(seed, name, *parameter.shape)
        if parameter.ndim >= 2:
            parameter.copy_(0.08 * draw)
        elif "norm" in name and name.endswith("weight"):
            parameter.copy_(1 + 0.1 * draw)
        else:
            parameter.copy_(0.05 * draw)


def smolvla_case(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A case's `case.json` and `config.json`, the VLM's name led to the folder."""
    folder = DATA / "smolvla" / name
    config = json.loads((folder / "config.json").read_text())
    config["vlm_model_name"] = str(DATA / "tiny_vlm")
    return json.loads((folder / "case.json").read_text()), config


def smolvla_batch(case: dict[str, Any], config: dict[str, Any]) -> dict[str, Tensor]:
    """The batch of a case, with `noise` and `time` in it."""
    seed, size, chunk = case["seed"], case["batch_size"], config["chunk_size"]
    height, width = case["image_hw"]
    state_dim = config["input_features"]["observation.state"]["shape"][0]
    batch = {}
    for camera in ("camera1", "camera2") if case["camera2_in_batch"] else ("camera1",):
        key = f"observation.images.{camera}"
        batch[key] = uniform(seed, key, size, 3, height, width)
    state = normal(seed, "observation.state", size, state_dim)
    batch["observation.state"] = 0.02 * state + 0.03 if config["adapt_to_pi_aloha"] else state
    tokens = 8 + 390 * uniform(seed, "observation.language.tokens", size, 12)
    batch["observation.language.tokens"] = tokens.long()
    lengths = torch.tensor(case["language_mask_lengths"])
    batch["observation.language.attention_mask"] = torch.arange(12) < lengths[:, None]
    batch["action"] = 0.3 * normal(seed, "action", size, chunk, state_dim)
    if case["action_is_pad_from"] is not None:
        starts = torch.tensor([chunk if start is None else start for start in case["action_is_pad_from"]])
        batch["action_is_pad"] = torch.arange(chunk) >= starts[:, None]
    batch["noise"] = normal(seed, "noise", size, chunk, config["max_action_dim"])
    batch["time"] = 0.001 + 0.998 * uniform(seed, "time", size)
    return batch


def difference(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of the reference."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30))
