"""The figures of docs/models.md: what each model has and what its training keeps in memory.

    python scripts/guide/models.py

Each row is what `smolact info` prints for the row's settings. Nothing is allocated: some seconds.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from page import put, table

from smolact.policies.factory import get_config_class
from smolact.policies.summary import ModelSummary, empty_policy, flops, size, summarize
from smolact.types import ACTION, STATE, FeatureType, PolicyFeature


class Model(NamedTuple):
    """A row: what is typed for it, and the settings that this means."""

    typed: str
    policy: str
    settings: dict[str, Any]


ARM: dict[str, Any] = {
    "action_tokens": "bins",  # the FAST tokenizer of the default is on the Hub
    "input_features": {
        "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 480, 640)),
        "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 480, 640)),
        STATE: PolicyFeature(FeatureType.STATE, (6,)),
    },
    "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (6,))},
}
"""What a robot arm has: `smolandfast` depends on it, and `smolvla` assumes two cameras where it is not told."""

MODELS = (
    Model(
        "`smolvla`, `tiny`, 64×64, all but the vision tower trains",
        "smolvla",
        {"vlm_model_name": "tiny", "resize_imgs_with_padding": (64, 64), "train_expert_only": False},
    ),
    Model(
        "`smolvla`, `small`, 128×128, everything trains",
        "smolvla",
        {
            "vlm_model_name": "small",
            "resize_imgs_with_padding": (128, 128),
            "train_expert_only": False,
            "freeze_vision_encoder": False,
        },
    ),
    Model("`smolvla`, SmolVLM2-256M", "smolvla", {"vlm_model_name": "smolvlm2-256m"}),
    Model("`smolvla`, SmolVLM2-500M (the default, the base)", "smolvla", {"vlm_model_name": "smolvlm2-500m"}),
    Model(
        "`smolvla`, SmolVLM2-2.2B, 384×384",
        "smolvla",
        {"vlm_model_name": "smolvlm2-2.2b", "resize_imgs_with_padding": (384, 384)},
    ),
    Model(
        "`smolandfast`, SmolVLM2-256M (the default)",
        "smolandfast",
        {"vlm_checkpoint": "smolvlm2-256m", **ARM},
    ),
    Model(
        "`smolandfast`, SmolVLM2-256M, `--policy.scale_factor=4`",
        "smolandfast",
        {"vlm_checkpoint": "smolvlm2-256m", "scale_factor": 4, **ARM},
    ),
)
HEAD = [
    "policy, VLM",
    "parameters",
    "that train",
    "weights, float32",
    "training, batch of 8",
    "batch of 64",
    "a replan",
]


def summary_of(model: Model, batch_size: int) -> ModelSummary:
    """The sizes of a model."""
    return summarize(empty_policy(get_config_class(model.policy)(**model.settings)), batch_size)


def row(model: Model) -> list[str]:
    """A line of the table."""
    small, large = (summary_of(model, batch) for batch in (8, 64))
    figures = [
        f"{small.total.parameters / 1e6:.1f} M",
        f"{small.total.trained / 1e6:.1f} M",
        size(small.weight_bytes),
        *(
            size(one.weight_bytes + one.gradient_bytes + one.optimizer_bytes + one.activation_bytes)
            for one in (small, large)
        ),
        flops(small.workload.replan),
    ]
    return [model.typed, *(figure.replace(" ", "\u00a0") for figure in figures)]  # numbers keep their units


if __name__ == "__main__":
    put("models.md", {"models": table([HEAD, *map(row, MODELS)])})
