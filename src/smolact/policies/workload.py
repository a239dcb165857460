"""The sizes of a policy's parts and the cost of one sample, as its `flops_*.py` counts and `summary.py` shows them.

FLOPs are those of matrix products and attention, two per multiply-add, as PyTorch's `FlopCounterMode` counts them; norms,
activations and softmax are left out. Saved values are autograd's, without the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from smolact.backbones.config import SmolVLMConfig, TextConfig


@dataclass(frozen=True)
class PartSize:
    """The parameters of a part, and how many of them are trainable."""

    parameters: int
    trained: int

    def __add__(self, other: PartSize) -> PartSize:
        return PartSize(self.parameters + other.parameters, self.trained + other.trained)


@dataclass(frozen=True)
class Workload:
    """The cost of one sample.

    Attributes:
        assumed: the assumptions of the counts.
        vision, prefix, expert: FLOPs of the image tokens, of the prefix, and of one pass of the expert.
        denoising_steps: passes of the expert per chunk.
        prefix_once: whether the prefix is computed once per chunk, or once per pass.
        kept_values: values that a training step saves for its backward pass.
        answer: FLOPs of the loss after the prefix, if it is not one pass of the expert.
        passes: the name of a pass.
    """

    assumed: str
    vision: int
    prefix: int
    expert: int
    denoising_steps: int
    prefix_once: bool
    kept_values: int
    answer: int | None = None
    passes: str = "expert, one pass"

    @property
    def forward(self) -> int:
        """FLOPs of one sample's forward pass."""
        return self.vision + self.prefix + (self.expert if self.answer is None else self.answer)

    @property
    def replan(self) -> int:
        """FLOPs of a chunk, from images to actions."""
        prefix_passes = 1 if self.prefix_once else self.denoising_steps
        return self.vision + prefix_passes * self.prefix + self.denoising_steps * self.expert


def product_flops(rows: int, inner: int, columns: int) -> int:
    """Return the FLOPs of a matrix product."""
    return 2 * rows * inner * columns


def attention_flops(queries: int, keys: int, width: int) -> int:
    """Return the FLOPs of attention (scores, and their weighted sum of values), for all heads together."""
    return 2 * product_flops(queries, width, keys)


def vision_flops(vlm: SmolVLMConfig, patches: int) -> int:
    """Return the FLOPs of an image in the vision tower and the connector."""
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
    """Return the number of values that the vision tower saves for an image when it is trained."""
    # Inputs and outputs of two norms, queries, keys, values and attention's output; the MLP's hidden values twice.
    vision = vlm.vision_config
    return patches * vision.num_hidden_layers * (8 * vision.hidden_size + 2 * vision.intermediate_size)


def key_width(text: TextConfig) -> int:
    """Return the width of the keys, all heads together."""
    return text.num_key_value_heads * text.head_dim


def decoder_flops(tokens: int, width: int, heads: int, inner: int, visible: int) -> int:
    """Return the FLOPs of a decoder layer but for keys and values, over tokens that attend to `visible` ones each."""
    outer = 2 * product_flops(tokens, width, heads) + attention_flops(tokens, visible, heads)
    return outer + 3 * product_flops(tokens, width, inner)


def kept_per_token(width: int, heads: int, keys: int, inner: int, trains: bool) -> int:
    """Return the number of values that a decoder layer saves for a token: inputs of nonlinear and of trainable operations."""
    nonlinear = 2 * width + 2 * heads + 2 * keys + 3 * inner
    return nonlinear + (4 * width + inner if trains else 0)
