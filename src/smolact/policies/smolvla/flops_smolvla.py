"""What SmolVLA computes and keeps for one sample, counted from its sizes: no weights, no tensors.

FLOPs are those of matrix products and attention, two a multiply-add, as PyTorch's `FlopCounterMode` counts them; norms,
activations and softmax are left out. Kept values are what autograd saves for the backward pass, without the weights.
"""

# P patches of an image, T image tokens, L text tokens, N prefix tokens, S chunk, D width, E width of the expert.

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from smolact.backbones.config import SmolVLMConfig, TextConfig, VisionConfig
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel, expert_hidden_width
from smolact.policies.workload import PartSize, Workload

if TYPE_CHECKING:
    from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy

TYPICAL_CAMERAS = 2
"""Assumed where a configuration has no cameras yet: they come from the dataset."""
TYPICAL_INSTRUCTION = 20
"""Tokens of an instruction that is padded to the longest of its batch."""


def workload(policy: SmolVLAPolicy, parts: Mapping[str, PartSize]) -> Workload:
    """FLOPs of one sample, and the values that a training step keeps of it.

    Args:
        policy: says the sizes and which layer reads what; it may be on the meta device.
        parts: which parts train; a gradient flows through all that comes after the first of them.

    A prompt counts `TYPICAL_INSTRUCTION` tokens, or `tokenizer_max_length` where all are padded to it. All cameras pass
    the vision tower, empty ones too.
    """
    config, vlm, model = policy.config, policy.vlm.config, policy.model.vlm_with_expert
    text = vlm.text_config
    images = _images(config, vlm.vision_config)
    side = vlm.vision_config.patch_size
    patches = [(height // side) * (width // side) for height, width in images]
    words = config.tokenizer_max_length
    words = words if config.pad_language_to == "max_length" else min(TYPICAL_INSTRUCTION, words)
    around = (len(policy.model.image_start) + len(policy.model.image_end)) * len(patches)
    image_tokens = sum(count // vlm.scale_factor**2 for count in patches)
    prefix = max(image_tokens + around + words + 1, config.prefix_length)

    trains = {part for part, size in parts.items() if size.trained}
    prefix_flops, prefix_kept = _prefix(config, text, model, prefix, trains="text model" in trains)
    expert_flops, expert_kept = _suffix(config, text, model, prefix)
    flows = trains & {"vision tower", "connector", "text model"} or config.train_state_proj
    vision_kept = sum(_vision_kept(vlm, count) for count in patches) if "vision tower" in trains else 0
    sizes = ", ".join(sorted({f"{width}×{height}" for height, width in images}))
    return Workload(
        assumed=f"{len(images)} images of {sizes}, {words} tokens of instruction",
        vision=sum(_vision_flops(vlm, count) for count in patches),
        prefix=prefix_flops,
        expert=expert_flops,
        denoising_steps=config.num_steps,
        prefix_once=config.use_cache,
        kept_values=vision_kept + (prefix_kept if flows else 0) + expert_kept,
    )


def _images(config: SmolVLAConfig, vision: VisionConfig) -> list[tuple[int, int]]:
    """(height, width) of each camera's image as the vision tower gets it."""
    own = [feature.shape[-2:] for feature in config.image_features.values()]
    own = own or [(vision.image_size, vision.image_size)] * TYPICAL_CAMERAS
    fitted = config.resize_imgs_with_padding
    return [(fitted[1], fitted[0]) if fitted else (height, width) for height, width in own]


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns


def _attention(queries: int, keys: int, width: int) -> int:
    """Scores and their sum of values, for all heads together."""
    return 2 * _product(queries, width, keys)


def _vision_flops(vlm: SmolVLMConfig, patches: int) -> int:
    vision, width = vlm.vision_config, vlm.vision_config.hidden_size
    embedding = _product(patches, vision.num_channels * vision.patch_size**2, width)
    layer = (
        4 * _product(patches, width, width)
        + _attention(patches, patches, width)
        + 2 * _product(patches, width, vision.intermediate_size)
    )
    packed = width * vlm.scale_factor**2
    connector = _product(patches // vlm.scale_factor**2, packed, vlm.text_config.hidden_size)
    return embedding + vision.num_hidden_layers * layer + connector


def _vision_kept(vlm: SmolVLMConfig, patches: int) -> int:
    # Two norms' inputs and outputs, queries, keys, values and what was attended; the MLP's inner values twice.
    vision = vlm.vision_config
    return patches * vision.num_hidden_layers * (8 * vision.hidden_size + 2 * vision.intermediate_size)


def _prefix(
    config: SmolVLAConfig, text: TextConfig, model: SmolVLMWithExpertModel, prefix: int, *, trains: bool
) -> tuple[int, int]:
    """FLOPs of the VLM's layers over the prefix, and what is kept when a gradient passes them."""
    width, heads, keys = text.hidden_size, text.num_attention_heads * text.head_dim, _key_width(text)
    last = model.read_layers[-1]
    key_values = 2 * _product(prefix, width, keys)
    rest = (
        2 * _product(prefix, width, heads)
        + _attention(prefix, prefix, heads)
        + 3 * _product(prefix, width, text.intermediate_size)
    )
    projected = sum(model.cross) * 2 * _product(prefix, keys, keys)
    flops = _product(1, config.max_state_dim, width) + (last + 1) * key_values + last * rest + projected
    kept = prefix * last * _kept_per_token(width, heads, keys, text.intermediate_size, trains)
    return flops, kept + prefix * width


def _suffix(
    config: SmolVLAConfig, text: TextConfig, model: SmolVLMWithExpertModel, prefix: int
) -> tuple[int, int]:
    """FLOPs of one pass of the expert, and what it keeps."""
    chunk, actions, expert = config.chunk_size, config.max_action_dim, model.expert_hidden_size
    heads, keys, inner = (
        text.num_attention_heads * text.head_dim,
        _key_width(text),
        expert_hidden_width(expert),
    )
    flops = 2 * _product(chunk, actions, expert) + 3 * _product(chunk, expert, expert)
    kept = 6 * chunk * expert
    for crosses in model.cross:
        seen = prefix if crosses else prefix + chunk
        flops += (
            2 * _product(chunk, expert, heads)
            + (0 if crosses else 2 * _product(chunk, expert, keys))
            + _attention(chunk, seen, heads)
            + 3 * _product(chunk, expert, inner)
        )
        # Keys and values lie over all that is seen; those of the prefix are projected from copies that are kept too.
        kept += chunk * _kept_per_token(expert, heads, 0, inner, True) + seen * 2 * keys
        kept += 2 * prefix * keys if crosses else 0
    return flops, kept


def _key_width(text: TextConfig) -> int:
    return text.num_key_value_heads * text.head_dim


def _kept_per_token(width: int, heads: int, keys: int, inner: int, trains: bool) -> int:
    """Values that a decoder layer keeps of a token: the inputs of what is not linear, and of what trains."""
    flowing = 2 * width + 2 * heads + 2 * keys + 3 * inner
    return flowing + (4 * width + inner if trains else 0)
