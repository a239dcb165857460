"""An `ActionWriter` whose steps run kernels of our own: eight launches a layer where there were sixteen.

A token of SmolVLM2-256M reads 270 MB of weights, which an H100 does in 0.09 ms; beginning 500 small kernels takes it longer than
that, also from a graph. Prompts, whose rows are many, are read as ever.

This module needs triton; engines import it that were asked for its kernels.
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
    """See the module; takes what an `ActionWriter` takes, but for `int8`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._products = [[self._product(part) for part in block] for block in self._blocks]

    @staticmethod
    def _product(part: Any) -> KernelPackedLinear:
        assert isinstance(part, Linear)
        return KernelPackedLinear(
            DensePackedLinear(part.weight.t().contiguous(), part.bias)
        )  # on a GPU it lies so

    def _think(self, hidden: Tensor, slate: Slate, bias: Tensor) -> Tensor:
        """The hidden state (B, D) after a token (B, D)."""
        text, batch, seen = self.config, len(hidden), bias.shape[-1]
        half, eps = text.head_dim // 2, text.rms_norm_eps
        cosines = slate.table[0, slate.position, :half].view(batch, 1, 1, half)
        sines = slate.table[1, slate.position, half:].view(batch, 1, 1, half)
        hidden = hidden[:, None]
        for (heads, out, gate_up, down), store in zip(self._products, slate.store, strict=True):
            projected = heads.normed(hidden, eps)
            queries = projected.new_empty(batch, text.num_attention_heads, 1, text.head_dim)
            new = projected.new_empty(2, batch, text.num_key_value_heads, 1, text.head_dim)
            split_and_rotate(projected, cosines, sines, queries, new[0], new[1])
            store.index_copy_(3, slate.place, new)
            found = attend_folded(queries, store[0, :, :, :seen], store[1, :, :, :seen], bias)
            hidden = out.onto(hidden, found.transpose(1, 2))
            hidden = down.onto(hidden, gate_up.gated(hidden, eps))
        return hidden[:, 0]
