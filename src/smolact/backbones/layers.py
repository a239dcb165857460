"""The operations of every transformer here, as pure functions and as layers that hold their weights."""

# B batch, L query tokens, S key tokens, N query heads, K key/value heads, H head width, D model width.

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def rotary_tables(positions: Tensor, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Return the factors of `rotate` for positions (B, L): two float32 tensors (B, 1, L, H).

    They are the cosines of both halves, and their sines, of which those of the first half are negative.
    """
    half = head_width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=positions.device) * (2.0 / head_width)
    angles = positions[:, None, :, None].float() / base**exponents
    cosines, sines = angles.cos(), angles.sin()
    return torch.cat([cosines, cosines], dim=-1), torch.cat([-sines, sines], dim=-1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, out: Tensor | None = None) -> Tensor:
    """Apply rotary position embedding to x (B, N, L, H), computed in float32.

    The result is written to `out`, which may be x itself, if it is given; there is no gradient then.
    Source: Su et al. 2021, with halves, not pairs.
    """
    wide = x.float()
    swapped = wide.roll(x.shape[-1] // 2, -1)
    return torch.addcmul(wide * cosines, swapped, sines, out=out).to(x.dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """Scale x (…, D) to root mean square one, computed in float32 (Zhang and Sennrich 2019).

    Without a gradient and on a CPU it is computed by a norm, in two thirds of the time that `F.rms_norm`
    takes there.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not (x.is_cpu or x.is_cuda):
        return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype)
    if x.is_cuda:  # one kernel, which computes in float32
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    factor = torch.addcmul(_cpu_scalar(eps), norm, norm, value=1 / x.shape[-1]).rsqrt_()
    return (wide * factor).to(x.dtype)


@lru_cache(maxsize=16)
def _cpu_scalar(number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float32)


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """Softmax attention; (B, N, L, H) from keys and values (B, K, S, H), each shared by N / K query heads.

    `mask` (B, L, S) is true where a query may look; each query must have at least one such key. `causal`, without a mask: each
    of L tokens looks at itself and those before it.
    """
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1 and mask is not None and queries.is_cuda:
        # No fused GPU kernel takes shared heads and a mask, and plain attention stores all L x S weights of all heads.
        keys, values, groups = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), 1
    return F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=None if mask is None else mask[:, None],
        is_causal=causal,
        enable_gqa=groups > 1,
    )


def split_heads(x: Tensor, head_width: int) -> Tensor:
    """(B, L, N * H) to (B, N, L, H)."""
    batch, length, _ = x.shape
    return x.view(batch, length, -1, head_width).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, N, L, H) to (B, L, N * H)."""
    return x.transpose(1, 2).flatten(2)


class ActivationCheckpointing(nn.Module):
    """A stack of layers that can recompute its activations in the backward pass instead of storing them until then.

    Source: Chen et al. 2016, "Training deep nets with sublinear memory cost", arXiv 1604.06174.
    """

    recomputes = False

    def checkpointed_call(self, layer: Callable[..., T], *inputs: Any) -> T:
        """Return `layer(*inputs)`; its inner activations are not stored if the stack `recomputes`."""
        if self.recomputes and torch.is_grad_enabled():
            output: T = checkpoint(layer, *inputs, use_reentrant=False)
            return output
        return layer(*inputs)


class RMSNorm(nn.Module):
    """`rms_norm` with a learned scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (…, D)."""
        return rms_norm(x, self.eps) * self.weight


class Attention(nn.Module):
    """The projections of grouped-query attention; `key_value_width` differs from `width` if keys come from another model."""

    def __init__(
        self, width: int, heads: int, key_value_heads: int, head_width: int, key_value_width: int, bias: bool
    ) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, heads * head_width, bias=bias)
        self.k_proj = nn.Linear(key_value_width, key_value_heads * head_width, bias=bias)
        self.v_proj = nn.Linear(key_value_width, key_value_heads * head_width, bias=bias)
        self.o_proj = nn.Linear(heads * head_width, width, bias=bias)


class GatedMLP(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, width: int, hidden_width: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden_width, bias=bias)
        self.up_proj = nn.Linear(width, hidden_width, bias=bias)
        self.down_proj = nn.Linear(hidden_width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        gated: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return gated


class DecoderLayer(nn.Module):
    """A Llama layer with separate parts, because queries here often attend to keys from elsewhere."""

    def __init__(
        self,
        width: int,
        hidden_width: int,
        heads: int,
        key_value_heads: int,
        head_width: int,
        eps: float,
        *,
        key_value_width: int | None = None,
        attention_bias: bool = False,
        mlp_bias: bool = False,
    ) -> None:
        super().__init__()
        self.head_width = head_width
        self.self_attn = Attention(
            width, heads, key_value_heads, head_width, key_value_width or width, attention_bias
        )
        self.mlp = GatedMLP(width, hidden_width, mlp_bias)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)

    def queries(self, x: Tensor) -> Tensor:
        """(B, N, L, H) from normalized x (B, L, D)."""
        return split_heads(self.self_attn.q_proj(x), self.head_width)

    def keys(self, x: Tensor) -> Tensor:
        """(B, K, S, H) from x (B, S, D), not rotated."""
        return split_heads(self.self_attn.k_proj(x), self.head_width)

    def values(self, x: Tensor) -> Tensor:
        """(B, K, S, H) from x (B, S, D)."""
        return split_heads(self.self_attn.v_proj(x), self.head_width)

    def output_and_mlp(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Apply what follows attention: output projection, residual, MLP, residual; (B, L, D)."""
        hidden = residual + self.self_attn.o_proj(merge_heads(attended))
        finished: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return finished
