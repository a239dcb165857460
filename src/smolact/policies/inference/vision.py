"""SmolVLM's vision tower and connector on packed weights."""

# I images, P patches, T image tokens, D width of the VLM.

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.layers import attend, merge_heads, split_heads
from smolact.backbones.smolvlm import (
    SmolVLMModel,
    VisionLayer,
    patch_positions,
    pixel_shuffle,
    unfold_patches,
)
from smolact.policies.inference.packing import PackedLinear, WeightPacker, plain_weights

Size = tuple[int, int]
"""Height and width of an image."""


class LayerNorm(NamedTuple):
    """The weights of a layer norm."""

    scale: Tensor
    shift: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize x (…, D)."""
        return F.layer_norm(x, x.shape[-1:], *self)


class PackedVisionLayer(NamedTuple):
    """The weights of a layer of the tower; queries, keys and values are one product."""

    norm1: LayerNorm
    project: PackedLinear
    out: PackedLinear
    norm2: LayerNorm
    fc1: PackedLinear
    fc2: PackedLinear


class PackedVision(NamedTuple):
    """The weights of tower and connector, and their sizes."""

    patch_size: int
    side: int
    head_width: int
    scale_factor: int
    patch_weight: Tensor
    patch_bias: Tensor
    positions: Tensor
    layers: list[PackedVisionLayer]
    norm: LayerNorm
    connector: PackedLinear


def pack_vision(packer: WeightPacker, vlm: SmolVLMModel, scale: float) -> PackedVision:
    """Pack tower and connector; image tokens are multiplied by `scale`."""
    tower, connector = vlm.vision_model, vlm.connector
    embeddings = tower.embeddings
    weight, bias = plain_weights(embeddings.patch_embedding)
    assert bias is not None
    layers: list[PackedVisionLayer] = []
    for layer in tower.encoder.layers:
        assert isinstance(layer, VisionLayer)
        attention = layer.self_attn
        layers.append(
            PackedVisionLayer(
                _layer_norm(packer, layer.layer_norm1),
                packer.pack([attention.q_proj, attention.k_proj, attention.v_proj]),
                packer.pack([attention.out_proj]),
                _layer_norm(packer, layer.layer_norm2),
                packer.pack([layer.mlp.fc1]),
                packer.pack([layer.mlp.fc2]),
            )
        )
        packer.release(layer)
    projection = connector.modality_projection.proj
    return PackedVision(
        embeddings.patch_size,
        embeddings.side,
        vlm.vision_config.hidden_size // vlm.vision_config.num_attention_heads,
        connector.scale_factor,
        packer.to_device(weight).flatten(1),
        packer.to_device(bias),
        packer.to_device(embeddings.position_embedding.weight),
        layers,
        _layer_norm(packer, tower.post_layernorm),
        packer.pack([projection], torch.full((1,), scale, device=weight.device)),
    )


def _layer_norm(packer: WeightPacker, norm: nn.LayerNorm) -> LayerNorm:
    return LayerNorm(packer.to_device(norm.weight), packer.to_device(norm.bias), norm.eps)


def image_tokens(vision: PackedVision, size: Size) -> int:
    """Return the number of tokens of an image of this size."""
    height, width = (side // vision.patch_size for side in size)
    return height * width // vision.scale_factor**2


def position_embeddings(vision: PackedVision, size: Size) -> Tensor:
    """Return the position embeddings (P, D_vision) of such an image's patches, plus the projection's bias."""
    rows, columns = (side // vision.patch_size for side in size)
    positions = patch_positions(rows, columns, vision.side, vision.positions.device)
    return vision.patch_bias + vision.positions[positions]


def embed_images(vision: PackedVision, pixels: Tensor, positions: Tensor) -> Tensor:
    """Embed pixels (I, 3, height, width) in [−1, 1] as scaled image tokens (I, T, D).

    `positions` are those of `position_embeddings`.
    """
    rows, columns = (side // vision.patch_size for side in pixels.shape[-2:])
    hidden = F.linear(unfold_patches(pixels, vision.patch_size), vision.patch_weight) + positions
    for layer in vision.layers:
        projected = layer.project(layer.norm1(hidden)).chunk(3, dim=2)
        attended = attend(*(split_heads(part, vision.head_width) for part in projected))
        hidden = hidden + layer.out(merge_heads(attended))
        hidden = hidden + layer.fc2(F.gelu(layer.fc1(layer.norm2(hidden)), approximate="tanh"))
    return vision.connector(pixel_shuffle(vision.norm(hidden), rows, columns, vision.scale_factor))
