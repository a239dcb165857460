"""SmolVLA's packed weights for its engine, and the parts of its network as functions of tensors.

Fused are query, key and value projections; on a GPU gate and up; and, with custom kernels, the operations around each product
of the expert (`KernelPackedLinear`) and the rotation of its split heads (`project_into`). Folded into weights are the scale of
every RMS norm and of image embeddings, and the action projection into the MLP behind it, whose time half becomes a constant
for each time.
"""

# B batch, I images, L rows (tokens), C chunk, D width of the VLM, E width of the expert, N query heads, K key/value heads, H head width.

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.layers import merge_heads, rotate, split_heads
from smolact.backbones.smolvlm import patch_positions, pixel_shuffle
from smolact.policies.common.attention import attend_folded
from smolact.policies.common.flow_matching import time_embedding
from smolact.policies.common.packed_linear import PackedLinear, WeightPacker, plain_weights, rms_norm
from smolact.policies.smolvla.smolvlm_with_expert import Rotary

Norm = tuple[Tensor, Tensor, float]
"""Scale, shift and epsilon of a layer norm."""


@dataclass(frozen=True)
class VisionBlock:
    """A layer of the vision tower."""

    norm1: Norm
    project: PackedLinear
    out: PackedLinear
    norm2: Norm
    fc1: PackedLinear
    fc2: PackedLinear


class PostAttention(NamedTuple):
    """The part of a layer after attention."""

    out: PackedLinear
    gates: tuple[PackedLinear, ...]
    """Gate and up as one product or, on a CPU, two: its caches are faster with two narrow outputs than with a wide one."""
    down: PackedLinear


@dataclass(frozen=True)
class DecoderBlock:
    """A layer of the VLM or of the expert."""

    project: PackedLinear
    """Queries, keys and values in one product, as far as they are needed: see `queries` and `keys`."""
    queries: int
    """Number of query heads; 0 for the last VLM layer in use, of which only keys and values are used."""
    keys: int
    """Number of key heads and of value heads; 0 for a cross-attention layer, which has `cross_kv`."""
    eps: float
    post_attention: PostAttention | None = None
    """None where only keys and values are used."""
    cross_kv: tuple[PackedLinear, PackedLinear] | None = None
    """The projections of a cross-attention layer from the VLM's keys and values to its own."""


class Network:
    """The network's weights and functions, without activations.

    Args:
        policy: a `SmolVLAPolicy`.
        packer: sets the precision, and whether the policy's own weights are released.
    """

    def __init__(self, policy: Any, packer: WeightPacker) -> None:
        model, config = policy.model, policy.config
        joint, vlm = model.vlm_with_expert, model.vlm_with_expert.vlm.model
        text = joint.config.text_config
        self.dtype, self.has_kernels = packer.dtype, packer.kernel is not None
        self.device = next(policy.parameters()).device
        self.head_width, self.groups = text.head_dim, text.num_attention_heads // text.num_key_value_heads
        self.heads, self.key_heads = text.num_attention_heads, text.num_key_value_heads
        self.cross, self.read_layers = list(joint.cross), list(joint.read_layers)
        self.expert_width = joint.expert_hidden_size
        self.periods = (config.min_period, config.max_period)
        self.image_start, self.image_end = model.image_start, model.image_end
        self._pack_vision(vlm, joint.config.vision_config.num_attention_heads, packer)
        self._pack_text(vlm.text_model, packer)
        self._pack_expert(joint.lm_expert, packer)
        self._pack_actions(model, joint.lm_expert.norm, packer)
        packer.release(policy)

    def _pack_vision(self, vlm: Any, heads: int, packer: WeightPacker) -> None:
        tower = vlm.vision_model
        self.vision_heads = heads
        embeddings = tower.embeddings
        self.patch_size: int = embeddings.patch_size
        self.side: int = embeddings.side
        self.patch_weight = packer.to_device(embeddings.patch_embedding.weight).flatten(1)
        self.patch_bias = packer.to_device(embeddings.patch_embedding.bias)
        self.patch_position = packer.to_device(embeddings.position_embedding.weight)
        self.vision = []
        for layer in tower.encoder.layers:
            attention = layer.self_attn
            self.vision.append(
                VisionBlock(
                    _layer_norm(layer.layer_norm1, packer),
                    packer.pack([attention.q_proj, attention.k_proj, attention.v_proj]),
                    packer.pack([attention.out_proj]),
                    _layer_norm(layer.layer_norm2, packer),
                    packer.pack([layer.mlp.fc1]),
                    packer.pack([layer.mlp.fc2]),
                )
            )
            packer.release(layer)
        self.vision_norm = _layer_norm(tower.post_layernorm, packer)
        self.scale_factor: int = vlm.connector.scale_factor
        projection = vlm.connector.modality_projection.proj
        # Image tokens, like text, are scaled by the root of their width.
        self.connector = packer.pack(
            [projection], torch.full((1,), math.sqrt(projection.out_features)).to(self.device)
        )

    def _pack_text(self, text: Any, packer: WeightPacker) -> None:
        self.embeddings = packer.to_device(text.embed_tokens.weight)
        last = self.read_layers[-1]
        self.text = [
            self._pack_layer(layer, packer, makes_queries=index < last)
            for index, layer in enumerate(text.layers[: last + 1])
        ]

    def _pack_expert(self, expert: Any, packer: WeightPacker) -> None:
        self.expert = [
            self._pack_layer(layer, packer, makes_keys=not crosses, often=True)
            for layer, crosses in zip(expert.layers, self.cross, strict=True)
        ]

    def _pack_layer(
        self,
        layer: Any,
        packer: WeightPacker,
        *,
        makes_queries: bool = True,
        makes_keys: bool = True,
        often: bool = False,
    ) -> DecoderBlock:
        attention, mlp, norm = layer.self_attn, layer.mlp, layer.input_layernorm
        keys_and_values = [attention.k_proj, attention.v_proj]
        parts = [attention.q_proj] * makes_queries + keys_and_values * makes_keys
        separate = self.device.type == "cpu" and not (self.has_kernels and often)
        gates = [[mlp.gate_proj], [mlp.up_proj]] if separate else [[mlp.gate_proj, mlp.up_proj]]
        post_norm = layer.post_attention_layernorm.weight
        block = DecoderBlock(
            packer.pack(parts, norm.weight, often=often),
            self.heads * makes_queries,
            self.key_heads * makes_keys,
            norm.eps,
            PostAttention(
                packer.pack([attention.o_proj], often=often),
                tuple(packer.pack(group, post_norm, often=often) for group in gates),
                packer.pack([mlp.down_proj], often=often),
            )
            if makes_queries
            else None,
            # These read all rows of the prefix, once a replan.
            None if makes_keys else (packer.pack([attention.k_proj]), packer.pack([attention.v_proj])),
        )
        packer.release(layer)
        return block

    def _pack_actions(self, model: Any, norm: Any, packer: WeightPacker) -> None:
        self.state = packer.pack([model.state_proj], exact=True)
        # action_time_mlp_in reads the projected action and the time: W = [W_action | W_time].
        # Multiplied in float64, on the CPU since not every device supports it.
        weight, bias = _float64_weights(model.action_in_proj)
        inner, inner_bias = _float64_weights(model.action_time_mlp_in)
        action_weight, self._time_weight = inner.chunk(2, dim=1)
        self.action_in = (action_weight @ weight).float().to(self.device)
        self._action_bias = action_weight @ bias + inner_bias
        self.action_hidden = packer.pack([model.action_time_mlp_out], exact=True)
        self.action_out = packer.pack([model.action_out_proj], norm.weight, exact=True)
        self.action_eps = norm.eps
        self._time_biases: dict[float, Tensor] = {}

    def time_bias(self, time: float) -> Tensor:
        """The time's constant (E,) inside the action embedding's MLP, computed once for each time."""
        if time not in self._time_biases:
            vector = time_embedding(torch.tensor([time]), self.expert_width, *self.periods)[0].double()
            self._time_biases[time] = (self._time_weight @ vector + self._action_bias).float().to(self.device)
        return self._time_biases[time]

    def image_tokens(self, size: tuple[int, int]) -> int:
        """The number of tokens of an image of this height and width."""
        height, width = (side // self.patch_size for side in size)
        return height * width // self.scale_factor**2

    def patch_positions(self, size: tuple[int, int]) -> Tensor:
        """The position embeddings (P, D_vision) of such an image's patches, with the projection's bias added."""
        rows, columns = (side // self.patch_size for side in size)
        indices = patch_positions(rows, columns, self.side, self.device)
        return self.patch_bias + self.patch_position[indices]

    def embed_images(self, pixels: Tensor, positions: Tensor) -> Tensor:
        """Embed pixels (I, 3, height, width) in [−1, 1] as scaled image tokens (I, T, D).

        `positions` are those of `patch_positions`.
        """
        size = self.patch_size
        rows, columns = pixels.shape[-2] // size, pixels.shape[-1] // size
        images, channels = pixels.shape[:2]
        cropped = pixels[..., : rows * size, : columns * size]
        patches = cropped.reshape(images, channels, rows, size, columns, size).permute(0, 2, 4, 1, 3, 5)
        hidden = F.linear(patches.flatten(3).flatten(1, 2), self.patch_weight) + positions
        for block in self.vision:
            projected = block.project(_normalized(hidden, block.norm1))
            queries, keys, values = (
                split_heads(part, part.shape[-1] // self.vision_heads) for part in projected.chunk(3, dim=2)
            )
            hidden = hidden + block.out(merge_heads(attend_folded(queries, keys, values)))
            inner = F.gelu(block.fc1(_normalized(hidden, block.norm2)), approximate="tanh")
            hidden = hidden + block.fc2(inner)
        hidden = _normalized(hidden, self.vision_norm)
        return self.connector(pixel_shuffle(hidden, rows, columns, self.scale_factor))

    def embed_text(self, tokens: Tensor) -> Tensor:
        """Embed token ids (B, L) as scaled embeddings (B, L, D)."""
        return self.embed_unscaled(tokens) * math.sqrt(self.embeddings.shape[1])

    def embed_unscaled(self, tokens: Tensor) -> Tensor:
        """Embed ids (…, L), such as those of special tokens around an image, as embeddings (…, L, D) without scale."""
        return F.embedding(tokens.to(self.device), self.embeddings)

    def embed_actions(self, noisy: Tensor, time_bias: Tensor) -> Tensor:
        """Embed noisy actions (B, C, A) at the time of `time_bias` as the expert's input (B, C, E)."""
        return self.action_hidden(F.silu(F.linear(noisy, self.action_in, time_bias)).to(self.dtype))

    def velocity(self, hidden: Tensor) -> Tensor:
        """Map the expert's last hidden states (B, C, E) to velocities (B, C, A), float32."""
        return self.action_out.normed(hidden, self.action_eps).float()

    def project(self, block: DecoderBlock, hidden: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, N, L, H), keys and values (B, K, L, H); queries and keys are rotated, unused parts are empty."""
        projected = split_heads(block.project.normed(hidden, block.eps), self.head_width)
        rotated = rotate(projected[:, : block.queries + block.keys], *rotary)
        values = projected[:, block.queries + block.keys :]
        return rotated[:, : block.queries], rotated[:, block.queries :], values

    def project_into(
        self, block: DecoderBlock, hidden: Tensor, rotary: Rotary, keys: Tensor, values: Tensor
    ) -> Tensor:
        """Like `project`, but write the block's keys and values, if any, into `keys` and `values` (B, K, L, H)."""
        if not self.has_kernels:
            queries, own_keys, own_values = self.project(block, hidden, rotary)
            if block.keys:
                keys.copy_(own_keys)
                values.copy_(own_values)
            return queries
        from smolact.policies.common.kernels import split_and_rotate  # needs triton

        projected = block.project.normed(hidden, block.eps)
        queries = projected.new_empty(len(hidden), block.queries, hidden.shape[1], self.head_width)
        split_and_rotate(projected, *rotary, queries, keys[:, : block.keys], values[:, : block.keys])
        return queries

    def project_cross(self, block: DecoderBlock, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Project the VLM's keys and values to a cross-attention layer's own, all (B, K, L, H)."""
        assert block.cross_kv is not None
        outputs = (layer(merge_heads(x)) for layer, x in zip(block.cross_kv, (keys, values), strict=True))
        own_keys, own_values = (split_heads(x, self.head_width) for x in outputs)
        return own_keys, own_values

    def output_and_mlp(self, block: DecoderBlock, hidden: Tensor, attended: Tensor) -> Tensor:
        """Apply the rest of a layer: output projection, residual, MLP, residual."""
        assert block.post_attention is not None
        hidden = block.post_attention.out.onto(hidden, attended.transpose(1, 2))
        if len(block.post_attention.gates) == 1:
            inner = block.post_attention.gates[0].gated(hidden, block.eps)
        else:
            normed = rms_norm(hidden, block.eps)
            gate, up = (product(normed) for product in block.post_attention.gates)
            inner = F.silu(gate).mul_(up)
        return block.post_attention.down.onto(hidden, inner)

    @property
    def width(self) -> int:
        """The width of the VLM."""
        return self.embeddings.shape[1]

    @property
    def tensors(self) -> list[Tensor]:
        """All packed weights."""
        products: list[PackedLinear] = [self.connector, self.state, self.action_hidden, self.action_out]
        weights = [self.patch_weight, self.patch_bias, self.patch_position, self.embeddings, self.action_in]
        for vision in self.vision:
            products += [vision.project, vision.out, vision.fc1, vision.fc2]
        for block in (*self.text, *self.expert):
            products += [block.project, *(block.cross_kv or ())]
            if block.post_attention is not None:
                products += [block.post_attention.out, *block.post_attention.gates, block.post_attention.down]
        return weights + [tensor for product in products for tensor in product.tensors()]


def _float64_weights(layer: nn.Module) -> tuple[Tensor, Tensor]:
    weight, bias = plain_weights(layer)
    assert bias is not None
    return weight.detach().cpu().double(), bias.detach().cpu().double()


def _layer_norm(norm: nn.LayerNorm, packer: WeightPacker) -> Norm:
    return packer.to_device(norm.weight), packer.to_device(norm.bias), norm.eps


def _normalized(x: Tensor, norm: Norm) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], norm[0], norm[1], norm[2])
