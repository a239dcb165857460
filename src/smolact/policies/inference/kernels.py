"""Two Triton kernels for products of few rows and what surrounds them, instead of a dozen small kernels.

    multiply            x Wᵀ; before it a norm, after it bias, residual or silu(gate) · up
    split_and_rotate    queries, keys and values of one product, rotated, each to its own tensor

A GPU takes as long to launch a small kernel as to run it, and an expert's layer consists of small ones only,
160 times per replan. With these two, attention, and a copy that reorders its rows, a layer takes seven.

The norm needs no pass of its own. An RMS norm is a scale per input, which is in the weights already
(`WeightPacker.pack`), and a factor per row, which can be applied after the product: the squares are summed
while the row is read.

A token of SmolAndFAST reads 270 MB of weights (SmolVLM2-256M), which an H100 does in 0.09 ms; launching 500
small kernels takes longer, even from a graph. With these, one of its layers takes eight launches instead of
sixteen.

This module needs triton, which PyTorch's CUDA builds for Linux include; only engines that use these kernels
import it. The plain versions are `DensePackedLinear`, `Float8PackedLinear` and `decoder.project`.
"""

# B batch, L tokens, R = B * L rows, I input width, O output width, N query heads, K key/value heads, H head
# width, S cache slots.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from smolact.policies.inference.decoder import PackedDecoderLayer, PostAttention, Rotary, Rows, write_rows
from smolact.policies.inference.packing import DensePackedLinear, Float8PackedLinear, PackedLinear

BLOCK_OUT, BLOCK_IN, MAX_ROWS = 16, 128, 64
"""The tile of one program: 16 outputs, so that the 720 of an expert keep 45 programs busy; all 50 rows of a
chunk, so that a weight is read once.
"""


# Arguments of kernels have no annotations, which triton would compile for the GPU.


@triton.jit
def _multiply(
    x, weight, scale, bias, residual, out, rows, length, outputs, x_batch, x_row, x_head, eps,
    NORMED: tl.constexpr, GATED: tl.constexpr, WIDTH: tl.constexpr, HEAD_WIDTH: tl.constexpr,
    OUT: tl.constexpr, ROWS: tl.constexpr, IN: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * OUT + tl.arange(0, OUT)
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    x_rows = x + (r // length) * x_batch + (r % length) * x_row
    total = tl.zeros((OUT, ROWS), tl.float32)
    total_up = tl.zeros((OUT, ROWS), tl.float32)
    squares = tl.zeros((ROWS,), tl.float32)
    for start in range(0, WIDTH, IN):
        i = start + tl.arange(0, IN)
        offset = i
        if HEAD_WIDTH > 0:
            offset = (i // HEAD_WIDTH) * x_head + i % HEAD_WIDTH
        part = tl.load(x_rows[None, :] + offset[:, None], (r < rows)[None, :] & (i < WIDTH)[:, None], 0.0)
        if NORMED:
            squares += tl.sum(part.to(tl.float32) * part.to(tl.float32), 0)
        # The weight is the first factor, which may be in registers: float8 is converted there.
        inside = (o < outputs)[:, None] & (i < WIDTH)[None, :]
        pointer = weight + o[:, None] * WIDTH + i[None, :]
        total = tl.dot(_to_dtype(tl.load(pointer, inside, 0.0), part.dtype), part, total, "ieee")
        if GATED:
            up = tl.load(pointer + outputs * WIDTH, inside, 0.0)
            total_up = tl.dot(_to_dtype(up, part.dtype), part, total_up, "ieee")
    factor = tl.full((ROWS,), 1.0, tl.float32)
    if NORMED:
        factor = tl.rsqrt(squares / WIDTH + eps)
    total = _scaled(total, factor, scale, bias, o, outputs)
    if GATED:
        total = total * tl.sigmoid(total) * _scaled(total_up, factor, scale, bias, o + outputs, 2 * outputs)
    inside = (o < outputs)[:, None] & (r < rows)[None, :]
    position = r[None, :] * outputs + o[:, None]
    if residual is not None:
        total += tl.load(residual + position, inside, 0.0).to(tl.float32)
    tl.store(out + position, total.to(out.dtype.element_ty), inside)


@triton.jit
def _to_dtype(weight, dtype: tl.constexpr):
    if weight.dtype == tl.float8e4nv:
        # triton 3.6 converts float8 directly to bfloat16 on Hopper only; for Ada it fails to compile.
        weight = weight.to(tl.float32)
    return weight.to(dtype)


@triton.jit
def _scaled(total, factor, scale, bias, o, outputs):
    total = total * factor[None, :]
    if scale is not None:
        total *= tl.load(scale + o, o < outputs, 0.0)[:, None]
    if bias is not None:
        total += tl.load(bias + o, o < outputs, 0.0).to(tl.float32)[:, None]
    return total


def multiply(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    eps: float | None = None,
    gated: bool = False,
) -> Tensor:
    """Compute residual + scale · (norm(x) Wᵀ) + bias, (B, L, O), in float32, rounded once.

    Args:
        x: (B, L, I), or (B, L, N, H) of concatenated heads; any layout with a contiguous last dimension. Or
            rows (R, I), and the result is (R, O).
        weight: (O, I), contiguous; in the precision of `x` or float8.
        scale: (O,) float32, of the weight's outputs; 1 when None.
        bias: (O,).
        residual: (B, L, O) or (R, O), as the result is.
        eps: of the RMS norm of `x`; no norm when None.
        gated: `weight` is of gate and up, one below the other; the result is silu(gate) · up, (B, L, O / 2).
    """
    shape = x.shape[:-1] if residual is None else residual.shape[:-1]
    x = x[None] if x.ndim == 2 else x
    length = x.shape[1]
    rows, heads = len(x) * length, x.ndim == 4
    outputs = len(weight) // 2 if gated else len(weight)
    out = x.new_empty(*shape, outputs)
    block = min(MAX_ROWS, max(16, triton.next_power_of_2(rows)))
    # Triton launches on PyTorch's current device, not on the tensors'.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _multiply[triton.cdiv(outputs, BLOCK_OUT), triton.cdiv(rows, block)](
            *(x, weight, scale, bias, None if residual is None else residual.contiguous(), out),
            *(rows, length, outputs),
            *(x.stride(0), x.stride(1), x.stride(2) if heads else 0, 0.0 if eps is None else eps),
            NORMED=eps is not None,
            GATED=gated,
            WIDTH=weight.shape[1],
            HEAD_WIDTH=x.shape[3] if heads else 0,
            OUT=BLOCK_OUT,
            ROWS=block,
            IN=BLOCK_IN,
            num_warps=4,
            num_stages=3,
        )
    return out


@triton.jit
def _split_and_rotate(
    projected, cosines, sines, queries, keys, values, length, table_batch,
    queries_batch, queries_head, queries_row, keys_batch, keys_head, keys_row, values_batch, values_head,
    values_row,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, HALF: tl.constexpr,
    HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    b, token = row // length, row % length
    n, h = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside = (n < QUERIES + 2 * KEYS) & (h < HALF)
    source = projected + (row * (QUERIES + 2 * KEYS) + n) * 2 * HALF + h
    first = tl.load(source, inside, 0.0).to(tl.float32)
    second = tl.load(source + HALF, inside, 0.0).to(tl.float32)
    table = b * table_batch + token * 2 * HALF + h
    rotated = n < QUERIES + KEYS
    cosine = tl.where(rotated, tl.load(cosines + table, h < HALF, 1.0), 1.0)
    sine = tl.where(rotated, tl.load(sines + table, h < HALF, 0.0), 0.0)
    first, second = first * cosine - second * sine, second * cosine + first * sine
    if QUERIES > 0:
        pointer = queries + b * queries_batch + n * queries_head + token * queries_row + h
        _store_halves(pointer, first, second, inside & (n < QUERIES), HALF)
    if KEYS > 0:
        pointer = keys + b * keys_batch + (n - QUERIES) * keys_head + token * keys_row + h
        _store_halves(pointer, first, second, inside & (n >= QUERIES) & rotated, HALF)
        pointer = values + b * values_batch + (n - QUERIES - KEYS) * values_head + token * values_row + h
        _store_halves(pointer, first, second, inside & (n >= QUERIES + KEYS), HALF)


@triton.jit
def _store_halves(pointer, first, second, inside, HALF: tl.constexpr):
    tl.store(pointer, first.to(pointer.dtype.element_ty), inside)
    tl.store(pointer + HALF, second.to(pointer.dtype.element_ty), inside)


def split_and_rotate(
    projected: Tensor, cosines: Tensor, sines: Tensor, queries: Tensor, keys: Tensor, values: Tensor
) -> None:
    """Write the heads of one product to their tensors: queries and keys rotated, values unchanged.

    Args:
        projected: (B, L, (N + 2K) · H), contiguous.
        cosines, sines: the tables of `layers.rotary_tables`, (B or 1, 1, L, H), rows one behind the other.
        queries: (B, N, L, H), written; like keys and values in any layout with a contiguous last dimension.
        keys, values: (B, K, L, H), written; K may be 0, as may N.
    """
    batch, length, _ = projected.shape
    half = cosines.shape[-1] // 2
    heads = queries.shape[1] + 2 * keys.shape[1]
    with torch.cuda.device_of(projected):  # type: ignore[no-untyped-call]
        _split_and_rotate[(batch * length,)](
            *(projected, cosines, sines[..., half:], queries, keys, values),
            *(length, cosines.stride(0) if len(cosines) > 1 else 0),
            *(stride for output in (queries, keys, values) for stride in output.stride()[:3]),
            QUERIES=queries.shape[1],
            KEYS=keys.shape[1],
            HALF=half,
            HEADS_BLOCK=triton.next_power_of_2(heads),
            HALF_BLOCK=triton.next_power_of_2(half),
            num_warps=4,
        )


def place_heads(
    layer: PackedDecoderLayer, projected: Tensor, rotary: Rotary, cache: Tensor, rows: Rows
) -> tuple[Tensor, Tensor]:
    """Do the second half of `decoder.project`, from a product (R, (N + 2K) · H)."""
    batch, width = cache.shape[1], layer.head_width
    projected = projected.view(batch, -1, projected.shape[-1])
    length = projected.shape[1]
    queries = projected.new_empty(batch, layer.queries, length, width)
    if isinstance(rows, slice):
        own = cache[:, :, :, rows] if layer.keys else cache[:, :, :0]
    else:
        own = cache.new_empty(2, batch, layer.keys, length, width)
    split_and_rotate(projected, *rotary, queries, own[0], own[1])
    return queries, cache if isinstance(rows, slice) or not layer.keys else write_rows(cache, rows, own)


def with_kernels(layer: PackedDecoderLayer, *, products: bool = True) -> PackedDecoderLayer:
    """Return a layer that is computed by these kernels: its heads, and its `products` if they are of few rows."""
    layer = layer._replace(place_heads=place_heads)
    if not products:
        return layer
    if layer.post_attention is not None:
        out, gates, down = layer.post_attention
        fused = PostAttention(
            KernelPackedLinear(out), tuple(map(KernelPackedLinear, gates)), KernelPackedLinear(down)
        )
        layer = layer._replace(post_attention=fused)
    return layer._replace(project=KernelPackedLinear(layer.project))


class KernelPackedLinear(PackedLinear):
    """A packed linear layer that fuses its surrounding operations by `multiply`.

    With gradients enabled, the plain layer is used. In float8 it needs a GPU of compute capability 8.9 or more.
    """

    def __init__(self, plain: PackedLinear) -> None:
        assert isinstance(plain, DensePackedLinear | Float8PackedLinear)
        self.plain, self.scale, self.bias = plain, plain.scale, plain.bias
        self.weight = plain.weight.contiguous()
        self._factors = self.weight, self.scale, self.bias

    def __call__(self, x: Tensor) -> Tensor:
        """(…, I) to (…, O), for (R, I) or (B, L, I)."""
        return self.plain(x) if torch.is_grad_enabled() else multiply(x, *self._factors)

    def normed(self, x: Tensor, eps: float) -> Tensor:
        """Return the product of the RMS norm of x."""
        if torch.is_grad_enabled():
            return self.plain.normed(x, eps)
        return multiply(x, *self._factors, eps=eps)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return the product of x (R, I), or of concatenated heads (B, L, N, H), added to `residual` (R, O)."""
        if torch.is_grad_enabled():
            return self.plain.onto(residual, x)
        return multiply(x, *self._factors, residual=residual)

    def gated(self, x: Tensor, eps: float) -> Tensor:
        """Return silu(gate) · up of the RMS norm of x."""
        if torch.is_grad_enabled():
            return self.plain.gated(x, eps)
        return multiply(x, *self._factors, eps=eps, gated=True)
