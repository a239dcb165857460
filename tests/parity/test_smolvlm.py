"""The backbone against transformers' SmolVLM."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from smolact.backbones.config import SmolVLMConfig
from smolact.backbones.smolvlm import SmolVLM
from tests.parity.recipe import DATA, difference, draw_weights


@pytest.mark.parametrize("name", ["single", "split"])
def test_logits_and_greedy_tokens_are_the_references(name: str) -> None:
    expected = load_file(DATA / "smolvlm" / f"{name}.safetensors")
    seed = json.loads((DATA / "smolvlm" / "about.json").read_text())["seed"]
    config = SmolVLMConfig.from_dict(json.loads((DATA / "tiny_vlm" / "config.json").read_text()))
    model = SmolVLM(config)
    draw_weights(model, seed)

    ids, pixels = expected["input_ids"], expected["pixel_values"][0]
    with torch.no_grad():
        logits = model(ids, pixels)
    assert difference(logits[:, -1], expected["last_logits"]) <= 1e-4
    assert difference(logits.mean(-1), expected["logits_mean"]) <= 1e-4
    assert difference(logits.std(-1), expected["logits_std"]) <= 1e-4
    assert torch.equal(model.generate(ids, pixels, 24), expected["greedy"])
