"""A VLM's `config.json` that can't be one is refused with the field's name, before anything is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from smolact.backbones.config import SmolVLMConfig
from smolact.errors import ConfigError
from tests.parity.recipe import DATA


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("text_config", "hidden_size", 2**62),
        ("text_config", "num_hidden_layers", 10**9),
        ("text_config", "num_attention_heads", 0),
        ("text_config", "vocab_size", "many"),
        ("text_config", "rms_norm_eps", float("nan")),
        ("text_config", "attention_bias", "yes"),
        ("vision_config", "patch_size", 0),
        ("vision_config", "image_size", -1),
        ("vision_config", "hidden_act", 5),
        (None, "scale_factor", 0),
        (None, "text_config", [1]),
        (None, "vision_config", "x"),
    ],
)
def test_an_impossible_size_is_refused_by_name(section: str | None, field: str, value: Any) -> None:
    raw = json.loads((DATA / "tiny_vlm" / "config.json").read_text())
    assert SmolVLMConfig.from_dict(raw).text_config.hidden_size > 0
    (raw if section is None else raw[section])[field] = value
    with pytest.raises(ConfigError, match=rf"VLM's config\.json: .*{field} is"):
        SmolVLMConfig.from_dict(raw)
