"""An `ActionWriter` whose steps run custom kernels: eight launches a layer instead of sixteen.

A token of SmolVLM2-256M reads 270 MB of weights, which an H100 does in 0.09 ms; launching 500 small kernels takes longer, even
from a graph. Prompts, which have many rows, run as in `ActionWriter`.

This module needs triton; only engines with `triton=True` import it.
"""

# B batch, D width, N query heads, K key/value heads, H head width.

from __future__ import annotations

from typing import Any

from torch import Tensor

from smolact.policies.common.attention import attend_folded
from smolact.policies.common.kernels import KernelPackedLinear, split_and_rotate
from smolact.policies.common.packed_linear import DensePackedLinear
from smolact.policies.smolandfast.generation import ActionWriter, Linear, Slate


class KernelWriter(ActionWriter):
    """The writer of this module, with the arguments of an `ActionWriter` except `int8`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._products = [[self._packed_linear(part) for part in block] for block in self._blocks]

    @staticmethod
    def _packed_linear(part: Any) -> KernelPackedLinear:
        assert isinstance(part, Linear)
        # On a GPU the transposed weight is contiguous already.
        return KernelPackedLinear(DensePackedLinear(part.weight.t().contiguous(), part.bias))

    def _think(self, hidden: Tensor, slate: Slate, bias: Tensor) -> Tensor:
        """Return the hidden state (B, D) after a token (B, D)."""
        text, batch, seen = self.config, len(hidden), bias.shape[-1]
        half, eps = text.head_dim // 2, text.rms_norm_eps
        cosines = slate.rotary_table[0, slate.position, :half].view(batch, 1, 1, half)
        sines = slate.rotary_table[1, slate.position, half:].view(batch, 1, 1, half)
        hidden = hidden[:, None]
        for (heads, out, gate_up, down), cache in zip(self._products, slate.cache, strict=True):
            projected = heads.normed(hidden, eps)
            queries = projected.new_empty(batch, text.num_attention_heads, 1, text.head_dim)
            new = projected.new_empty(2, batch, text.num_key_value_heads, 1, text.head_dim)
            split_and_rotate(projected, cosines, sines, queries, new[0], new[1])
            cache.index_copy_(3, slate.slot, new)
            attended = attend_folded(queries, cache[0, :, :, :seen], cache[1, :, :, :seen], bias)
            hidden = out.onto(hidden, attended.transpose(1, 2))
            hidden = down.onto(hidden, gate_up.gated(hidden, eps))
        return hidden[:, 0]
