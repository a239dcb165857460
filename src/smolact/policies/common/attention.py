"""Attention masks, position ids, and attention with shared key/value heads."""

# B batch, L queries, S keys, N query heads, K key/value heads, H head width.

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def block_mask(valid: Tensor, starts_block: Tensor) -> Tensor:
    """Return the attention mask (B, L, L) of tokens in blocks: each attends to valid tokens of its own and earlier blocks.

    Args:
        valid: (B, L) bool, false where a token is padding.
        starts_block: (B, L) or (L,) bool, true where a token begins a block that earlier tokens do not attend to.

    A padding token attends like a valid one in its place; no token attends to it, so that its value never matters, and its
    row is never empty (which fused attention would turn into NaN).
    Source: big_vision's prefix-LM masks, as openpi and LeRobot use them (`make_att_2d_masks`).
    """
    block = starts_block.long().cumsum(-1).expand(valid.shape)
    return (block[:, None, :] <= block[:, :, None]) & valid[:, None, :]


def positions_of(valid: Tensor) -> Tensor:
    """Return position ids (B, L): the number of valid tokens before each one."""
    return valid.long().cumsum(-1) - 1


def attend_folded(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention (B, N, L, H) over keys and values (B, K, S, H) that N / K query heads share, without copies of them.

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
    """Return `attend_folded`'s bias, on `device`, from a mask (B, L, S) that is true where a query may attend.

    Its rows begin at multiples of 8 elements, as GPU kernels require: otherwise they would pad a copy in each call.
    """
    batch, length, keys = mask.shape
    aligned = torch.zeros(batch, 1, groups * length, -(-keys // 8) * 8, dtype=dtype, device=device)
    hidden = ~mask[:, None].repeat(1, 1, groups, 1)
    return aligned[..., :keys].masked_fill_(hidden.to(aligned.device), -torch.inf)
