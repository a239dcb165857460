"""Attention masks and position ids."""

# B batch, L tokens.

from __future__ import annotations

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
