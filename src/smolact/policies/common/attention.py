"""Who may attend to whom."""

# B batch, L queries, S keys.

from __future__ import annotations

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
