"""Who may attend to whom."""

# B batch, L queries, S keys, N query heads, K key/value heads, H head width.

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def block_mask(valid: Tensor, starts_block: Tensor) -> Tensor:
    """The attention mask (B, L, L) of tokens in blocks: a token sees its own block and all before it, valid tokens only.

    Args:
        valid: (B, L) bool, false where a token is padding.
        starts_block: (B, L) or (L,) bool, true where a token begins a block that earlier tokens do not see.

    A padding token sees what a valid one in its place would; nobody sees it, so that its value never matters, and its
    own row is never empty (which fused attention would turn into NaN).
    Source: big_vision's prefix-LM masks, as openpi and LeRobot use them (`make_att_2d_masks`).
    """
    block = starts_block.long().cumsum(-1).expand(valid.shape)
    return (block[:, None, :] <= block[:, :, None]) & valid[:, None, :]


def positions_of(valid: Tensor) -> Tensor:
    """Position ids (B, L): how many valid tokens come before each one."""
    return valid.long().cumsum(-1) - 1


def attend_folded(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Softmax attention (B, N, L, H) over keys and values (B, K, S, H) that N / K query heads share, without copies of them.

    Queries of heads that share a key head are put below each other, as if they were one longer head's.

    Args:
        queries: (B, N, L, H).
        keys, values: (B, K, S, H).
        bias: (B or 1, 1, N / K * L, S), 0 where a query may look and −∞ elsewhere (`folded_bias`).
    """
    batch, heads, length, width = queries.shape
    rows = heads // keys.shape[1] * length
    folded = queries.reshape(batch, -1, rows, width)
    attended = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias)
    # A view on a CPU; some of a GPU's ways to attend give rows and heads the other way around in memory.
    return attended.reshape(batch, heads, length, width)


def folded_bias(mask: Tensor, groups: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """`attend_folded`'s bias, on `device`, from a mask (B, L, S) that is true where a query may look.

    Its rows begin at multiples of 8 numbers, as a GPU's attention wants them: it would pad a copy each time otherwise.
    """
    batch, length, seen = mask.shape
    aligned = torch.zeros(batch, 1, groups * length, -(-seen // 8) * 8, dtype=dtype, device=device)
    hidden = ~mask[:, None].repeat(1, 1, groups, 1)
    return aligned[..., :seen].masked_fill_(hidden.to(aligned.device), -torch.inf)
