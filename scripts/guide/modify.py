"""The figures of docs/modify.md: what each change does to SmolVLA's parameters, memory and arithmetic.

    python scripts/guide/modify.py

Each row is what `smolact info --policy.type=smolvla --policy.vlm_model_name=smolvlm2-500m --batch_size=8` prints with the
row's flags behind it; the first table has the row without any. Nothing is allocated: some seconds.
"""

from __future__ import annotations

from typing import Any

from page import put, table

from smolact.policies.configuration import PolicyConfig
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.summary import ModelSummary, empty_policy, flops, size, summarize

BASE: dict[str, Any] = {"vlm_model_name": "smolvlm2-500m"}
BATCH = 8

CHANGES: dict[str, list[dict[str, Any]]] = {
    "batch": [{"batch_size": 1}, {"batch_size": 64}],
    "dimensions": [
        {"chunk_size": 10, "n_action_steps": 10},
        {"chunk_size": 100},
        {"max_state_dim": 64},
        {"max_action_dim": 64},
    ],
    "images": [
        {"resize_imgs_with_padding": (384, 384)},
        {"resize_imgs_with_padding": (256, 256)},
        {"add_image_special_tokens": True},
    ],
    "layers": [
        {"num_vlm_layers": 8},
        {"num_vlm_layers": 12},
        {"num_vlm_layers": 32},
        {"num_expert_layers": 8},
        {"num_expert_layers": 4},
    ],
    "width": [{"expert_width_multiplier": 0.5}, {"expert_width_multiplier": 1.0}],
    "attention": [
        {"attention_mode": "self_attn"},
        {"self_attn_every_n_layers": 4},
        {"self_attn_every_n_layers": 0},
    ],
    "vlm": [
        {"vlm_model_name": "smolvlm2-256m"},
        {"vlm_model_name": "smolvlm2-2.2b", "resize_imgs_with_padding": (384, 384)},
        {"vlm_model_name": "tiny", "resize_imgs_with_padding": (64, 64)},
    ],
    "freezing": [
        {"train_state_proj": False},
        {"train_expert_only": False},
        {"train_expert_only": False, "freeze_vision_encoder": False},
    ],
    "words": [
        {"pad_language_to": "max_length"},
        {"pad_language_to": "max_length", "tokenizer_max_length": 96},
        {"prefix_length": 256},
    ],
    "steps": [{"num_steps": 5}, {"num_steps": 1}, {"use_cache": False}],
}
HEAD = ["flags", "parameters", "that train", "a training step keeps", "forward, a sample", "replan"]


def summary_of(change: dict[str, Any]) -> ModelSummary:
    """The sizes with some settings changed."""
    settings = {**BASE, **change}
    batch = settings.pop("batch_size", BATCH)
    config: PolicyConfig = SmolVLAConfig(**settings)
    return summarize(empty_policy(config), batch)


def flags(change: dict[str, Any]) -> str:
    """As they are typed."""
    shown = []
    for name, value in change.items():
        if isinstance(value, tuple):
            value = f"'[{','.join(map(str, value))}]'"
        value = str(value).lower() if isinstance(value, bool) else value
        shown.append(f"`--{name if name == 'batch_size' else f'policy.{name}'}={value}`")
    return " ".join(shown)


def row(change: dict[str, Any], first: str = "") -> list[str]:
    """A line of the table; figures that are as before are left out."""
    return [first or flags(change), *figures(summary_of(change))]


def figures(summary: ModelSummary) -> list[str]:
    kept = summary.weight_bytes + summary.gradient_bytes + summary.optimizer_bytes + summary.activation_bytes
    shown = [
        f"{summary.total.parameters / 1e6:.1f} M",
        f"{summary.total.trained / 1e6:.1f} M",
        size(kept),
        flops(summary.workload.forward),
        flops(summary.workload.replan),
    ]
    return [figure.replace(" ", "\u00a0") for figure in shown]  # numbers keep their units


def tables() -> dict[str, str]:
    """Name to table."""
    default = row({}, "default")
    made = {"default": table([HEAD, default])}
    for name, changes in CHANGES.items():
        rows = [row(change) for change in changes]
        bold = [
            [
                line[0],
                *(
                    new if new == old else f"**{new}**"
                    for new, old in zip(line[1:], default[1:], strict=True)
                ),
            ]
            for line in rows
        ]
        made[name] = table([HEAD, *bold])
    return made


if __name__ == "__main__":
    put("modify.md", tables())
