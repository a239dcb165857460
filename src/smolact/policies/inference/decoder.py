"""One decoder layer of an engine, which the VLM of every policy and SmolVLA's expert consist of.

    hidden ─► project: norm, queries, keys, values, rotation ─► cache ─► attention ─► output, MLP ─► hidden

Hidden states are rows (R, D): a batch's tokens, sample by sample. Keys and values of a layer are one tensor
(2, B, K, S, H), whose slots are allocated at once; queries of heads that share a key head become rows of one
head (`attend_folded`).
"""

# B batch, L tokens, R = B * L rows, D width, N query heads, K key/value heads, H head width, S cache slots.

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smolact.backbones.config import TextConfig
from smolact.backbones.layers import DecoderLayer, rms_norm, rotate
from smolact.policies.inference.packing import PackedLinear, WeightPacker

Rotary = tuple[Tensor, Tensor]
"""The tables of `rotary_tables`, (B or 1, 1, L, H)."""
Rows = slice | Tensor | None
"""Where a layer's new keys and values go: to a range of slots, or to the slots of these numbers (L,). None: behind
the others in a new tensor, which can be differentiated."""


class PostAttention(NamedTuple):
    """The part of a layer after attention."""

    out: PackedLinear
    gates: tuple[PackedLinear, ...]
    """Gate and up as one product, or as two."""
    down: PackedLinear


class PackedDecoderLayer(NamedTuple):
    """A decoder layer's weights."""

    project: PackedLinear
    """Queries, keys and values in one product, as far as they are needed."""
    queries: int
    """N; 0 for a layer of which only keys and values are used."""
    keys: int
    """K; 0 for a layer that attends to the keys of another network."""
    head_width: int
    eps: float
    post_attention: PostAttention | None
    """None where only keys and values are used."""
    place_heads: Callable[..., tuple[Tensor, Tensor]] | None = None
    """A kernel for the second half of `project`: `kernels.place_heads`."""


def pack_decoder_layer(
    packer: WeightPacker,
    layer: DecoderLayer,
    config: TextConfig,
    *,
    with_queries: bool = True,
    with_keys: bool = True,
    fuse_gates: bool = True,
    often: bool = False,
) -> PackedDecoderLayer:
    """Pack a layer's weights.

    Args:
        with_queries: whether more than its keys and values is used.
        with_keys: whether it attends to keys and values of its own.
        fuse_gates: make gate and up one product. Many rows on a CPU are faster with two: its caches prefer
            two narrow outputs.
        often: whether few rows read the weights often.
    """
    attention, mlp, norm = layer.self_attn, layer.mlp, layer.post_attention_layernorm.weight
    parts = [attention.q_proj] * with_queries + [attention.k_proj, attention.v_proj] * with_keys
    project = packer.pack(parts, layer.input_layernorm.weight, often=often)
    post_attention = None
    if with_queries:
        gates = [[mlp.gate_proj, mlp.up_proj]] if fuse_gates else [[mlp.gate_proj], [mlp.up_proj]]
        post_attention = PostAttention(
            packer.pack([attention.o_proj], often=often),
            tuple(packer.pack(group, norm, often=often) for group in gates),
            packer.pack([mlp.down_proj], often=often),
        )
    return PackedDecoderLayer(
        project,
        config.num_attention_heads * with_queries,
        config.num_key_value_heads * with_keys,
        config.head_dim,
        layer.input_layernorm.eps,
        post_attention,
    )


def run_layer(
    layer: PackedDecoderLayer, hidden: Tensor, rotary: Rotary, cache: Tensor, rows: Rows, bias: Tensor | None
) -> Tensor:
    """Return the hidden states (R, D) after a layer; unchanged ones where only its keys and values are used.

    Args:
        rotary: the tables of the tokens' positions.
        cache: (2, B, K, S, H), the slots that are attended to.
        rows: where the tokens' own keys and values go in the cache.
        bias: (B or 1, 1, N / K * L, S); see `folded_bias`.
    """
    queries, cache = project(layer, hidden, rotary, cache, rows)
    if layer.post_attention is None:
        return hidden
    keys, values = cache.unbind()
    return output_and_mlp(layer, hidden, attend_folded(queries, keys, values, bias))


def project(
    layer: PackedDecoderLayer, hidden: Tensor, rotary: Rotary, cache: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Return rotated queries (B, N, L, H), and the cache with the tokens' keys and values; see `run_layer`."""
    projected = layer.project.normed(hidden, layer.eps)
    is_functional = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if layer.place_heads is not None and not is_functional:
        return layer.place_heads(layer, projected, rotary, cache, rows)
    batch, keys, width = cache.shape[1], layer.keys, layer.head_width
    rotated = layer.queries + keys
    heads = projected.view(batch, -1, rotated + keys, width).transpose(1, 2)
    turned = heads.narrow(1, 0, rotated)
    if is_functional:
        heads = torch.cat([rotate(turned, *rotary), heads.narrow(1, rotated, keys)], dim=1)
    else:  # in place, which spares copies
        rotate(turned, *rotary, out=turned)
    if keys:
        own = heads.narrow(1, layer.queries, 2 * keys).view(batch, 2, keys, -1, width)
        cache = write_rows(cache, rows, own.transpose(0, 1))
    return heads.narrow(1, 0, layer.queries), cache


def write_rows(cache: Tensor, rows: Rows, own: Tensor) -> Tensor:
    """Return the cache (2, B, K, S, H) with the tokens' own keys and values (2, B, K, L, H)."""
    if rows is None:
        return torch.cat([cache, own], dim=3)
    if isinstance(rows, slice):
        cache[:, :, :, rows] = own
        return cache
    return cache.index_copy_(3, rows, own)


def output_and_mlp(layer: PackedDecoderLayer, hidden: Tensor, attended: Tensor) -> Tensor:
    """Apply what follows attention (B, N, L, H): output projection, residual, MLP, residual; (R, D)."""
    assert layer.post_attention is not None
    out, gates, down = layer.post_attention
    hidden = out.onto(hidden, attended.flatten(1) if attended.shape[2] == 1 else attended.transpose(1, 2))
    if len(gates) == 1:
        return down.onto(hidden, gates[0].gated(hidden, layer.eps))
    normed = rms_norm(hidden, layer.eps)
    gate, up = (product(normed) for product in gates)
    return down.onto(hidden, F.silu(gate).mul_(up))


def attend_folded(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention (B, N, L, H) over keys and values that N / K query heads share, without copies of them.

    Queries of heads that share a key head are stacked as rows of one head.

    Args:
        queries: (B, N, L, H).
        keys, values: (B, K, S, H).
        bias: (B or 1, 1, N / K * L, S), 0 where a query may attend and −∞ elsewhere (`folded_bias`).
    """
    batch, heads, length, width = queries.shape
    rows = heads // keys.shape[1] * length
    folded = queries.reshape(batch, -1, rows, width)
    attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias)
    # A view on a CPU; some GPU kernels return rows and heads in another memory order.
    return attended.reshape(batch, heads, length, width)


def folded_bias(mask: Tensor, groups: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return `attend_folded`'s bias, on `device`, from a mask (B, L, S), true where a query may attend.

    Its rows begin at multiples of 8 elements, as GPU kernels require: otherwise they would pad a copy in each
    call.
    """
    batch, length, keys = mask.shape
    aligned = torch.zeros(batch, 1, groups * length, -(-keys // 8) * 8, dtype=dtype, device=device)
    hidden = ~mask[:, None].repeat(1, 1, groups, 1)
    return aligned[..., :keys].masked_fill_(hidden.to(aligned.device), -torch.inf)
