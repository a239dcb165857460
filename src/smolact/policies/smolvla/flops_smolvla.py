"""SmolVLA's FLOPs and saved values for one sample, counted from its sizes: no weights, no tensors.

Counting rules: `policies/workload.py`.
"""

# P patches of an image, T image tokens, L text tokens, N prefix tokens, S chunk, D width, E width of the expert.

from __future__ import annotations

from collections.abc import Mapping

from smolact.backbones.config import TextConfig, VisionConfig
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.network_smolvla import VLAFlowMatching
from smolact.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel, expert_hidden_width
from smolact.policies.workload import (
    PartSize,
    Workload,
    decoder_flops,
    kept_per_token,
    key_width,
    product_flops,
    vision_flops,
    vision_kept,
)

TYPICAL_CAMERAS = 2
"""Number assumed while a configuration has no cameras: they come from the dataset."""
TYPICAL_INSTRUCTION = 20
"""Instruction tokens when padding is to the longest of the batch."""


def workload(network: VLAFlowMatching, parts: Mapping[str, PartSize]) -> Workload:
    """Count one sample's FLOPs, and the values that a training step saves for the backward pass.

    A prompt counts `TYPICAL_INSTRUCTION` tokens, or `tokenizer_max_length` where all are padded to it. All cameras pass
    the vision tower, empty ones too.
    """
    config, model = network.config, network.vlm_with_expert
    vlm = model.config
    text = vlm.text_config
    images = _images(config, vlm.vision_config)
    side = vlm.vision_config.patch_size
    patches = [(height // side) * (width // side) for height, width in images]
    tokens = config.tokenizer_max_length
    tokens = tokens if config.pad_language_to == "max_length" else min(TYPICAL_INSTRUCTION, tokens)
    special_tokens = (len(network.image_start) + len(network.image_end)) * len(patches)
    image_tokens = sum(count // vlm.scale_factor**2 for count in patches)
    context = image_tokens + special_tokens + tokens
    prefix = max(context + 1, config.prefix_length)

    trains = {part for part, size in parts.items() if size.trained}
    vlm_trains = bool(trains & {"vision tower", "connector", "text model"})
    prefix_flops, prefix_kept = _prefix(
        config, text, model, prefix, 0 if vlm_trains else context, trains="text model" in trains
    )
    expert_flops, expert_kept = _suffix(config, text, model, prefix)
    needs_gradient = vlm_trains or config.train_state_proj
    tower_kept = sum(vision_kept(vlm, count) for count in patches) if "vision tower" in trains else 0
    sizes = ", ".join(sorted({f"{width}×{height}" for height, width in images}))
    return Workload(
        assumed=f"{len(images)} images of {sizes}, {tokens} tokens of instruction",
        vision=sum(vision_flops(vlm, count) for count in patches),
        prefix=prefix_flops,
        expert=expert_flops,
        denoising_steps=config.num_steps,
        prefix_once=config.use_cache,
        kept_values=tower_kept + (prefix_kept if needs_gradient else 0) + expert_kept,
    )


def _images(config: SmolVLAConfig, vision: VisionConfig) -> list[tuple[int, int]]:
    """(height, width) of each camera's image at the input of the vision tower."""
    sizes = [feature.shape[-2:] for feature in config.image_features.values()]
    sizes = sizes or [(vision.image_size, vision.image_size)] * TYPICAL_CAMERAS
    fitted = config.resize_imgs_with_padding
    return [(fitted[1], fitted[0]) if fitted else (height, width) for height, width in sizes]


def _prefix(
    config: SmolVLAConfig,
    text: TextConfig,
    model: SmolVLMWithExpertModel,
    prefix: int,
    context: int,
    *,
    trains: bool,
) -> tuple[int, int]:
    """Count the FLOPs of the VLM's layers over the prefix, and the values saved when a gradient passes through them.

    The first `context` tokens need no gradient: only their keys and values are saved.
    """
    width, heads, keys = text.hidden_size, text.num_attention_heads * text.head_dim, key_width(text)
    last = model.read_layers[-1]
    key_values = 2 * product_flops(prefix, width, keys)
    rest = decoder_flops(prefix, width, heads, text.intermediate_size, prefix)
    projected = sum(model.cross) * 2 * product_flops(prefix, keys, keys)
    flops = product_flops(1, config.max_state_dim, width) + (last + 1) * key_values + last * rest + projected
    kept = (prefix - context) * last * kept_per_token(width, heads, keys, text.intermediate_size, trains)
    kept += context * last * 2 * keys
    return flops, kept + prefix * width


def _suffix(
    config: SmolVLAConfig, text: TextConfig, model: SmolVLMWithExpertModel, prefix: int
) -> tuple[int, int]:
    """Count the FLOPs of one pass of the expert, and the values that it saves."""
    chunk, actions, expert = config.chunk_size, config.max_action_dim, model.expert_hidden_size
    heads, keys, inner = (
        text.num_attention_heads * text.head_dim,
        key_width(text),
        expert_hidden_width(expert),
    )
    flops = 2 * product_flops(chunk, actions, expert) + 3 * product_flops(chunk, expert, expert)
    kept = 6 * chunk * expert
    for crosses in model.cross:
        visible = prefix if crosses else prefix + chunk
        flops += decoder_flops(chunk, expert, heads, inner, visible)
        flops += 0 if crosses else 2 * product_flops(chunk, expert, keys)
        # Keys and values cover all visible tokens; the prefix's are projected from copies, which are saved too.
        kept += chunk * kept_per_token(expert, heads, 0, inner, True) + visible * 2 * keys
        kept += 2 * prefix * keys if crosses else 0
    return flops, kept
