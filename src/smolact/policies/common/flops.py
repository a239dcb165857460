"""FLOPs of a SmolVLM's parts, and what they keep for the backward pass.

FLOPs are those of matrix products and attention, two a multiply-add, as PyTorch's `FlopCounterMode` counts them; norms,
activations and softmax are left out. Kept values are what autograd saves for the backward pass, without the weights.
"""

from __future__ import annotations

from smolact.backbones.config import SmolVLMConfig, TextConfig


def product_flops(rows: int, inner: int, columns: int) -> int:
    """Of a matrix product."""
    return 2 * rows * inner * columns


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Scores and their sum of values, for all heads together."""
    return 2 * product_flops(queries, width, keys)


def vision_flops(vlm: SmolVLMConfig, patches: int) -> int:
    """Of an image through the vision tower and the connector."""
    vision, width = vlm.vision_config, vlm.vision_config.hidden_size
    embedding = product_flops(patches, vision.num_channels * vision.patch_size**2, width)
    layer = (
        4 * product_flops(patches, width, width)
        + attention_flops(patches, patches, width)
        + 2 * product_flops(patches, width, vision.intermediate_size)
    )
    packed = width * vlm.scale_factor**2
    connector = product_flops(patches // vlm.scale_factor**2, packed, vlm.text_config.hidden_size)
    return embedding + vision.num_hidden_layers * layer + connector


def vision_kept(vlm: SmolVLMConfig, patches: int) -> int:
    """Values that the vision tower keeps of an image when it trains."""
    # Two norms' inputs and outputs, queries, keys, values and what was attended; the MLP's inner values twice.
    vision = vlm.vision_config
    return patches * vision.num_hidden_layers * (8 * vision.hidden_size + 2 * vision.intermediate_size)


def key_width(text: TextConfig) -> int:
    """Width of the keys, all heads together."""
    return text.num_key_value_heads * text.head_dim


def kept_per_token(width: int, heads: int, keys: int, inner: int, trains: bool) -> int:
    """Values that a decoder layer keeps of a token: the inputs of what is not linear, and of what trains."""
    flowing = 2 * width + 2 * heads + 2 * keys + 3 * inner
    return flowing + (4 * width + inner if trains else 0)
