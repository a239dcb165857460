"""Linear layers of an engine: inference-only weights, fused, in a chosen precision.

Several layers that read the same input become one product. The scale of the norm before them is multiplied
into its weights, and adapters are added to them: the policy itself is unchanged.

A layer also offers its product with surrounding operations (`normed`, `onto`, `gated`), which one kernel of a
GPU can compute together (`kernels.KernelPackedLinear`).
"""

# R rows (tokens), I input width, O output width, N heads, H head width.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.layers import rms_norm


class PackedLinear(ABC):
    """The linear layer x Wᵀ + b of a weight (O, I) and a bias (O,)."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None = None
    """The factor (O,) of each output, of weights that are rounded to 8 bits."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """(…, I) to (…, O)."""

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the layer holds."""
        return [tensor for tensor in (self.weight, self.scale, self.bias) if tensor is not None]

    def normed(self, x: Tensor, eps: float) -> Tensor:
        """Return the product of the RMS norm of x; the norm's scale is in the weights."""
        return self(rms_norm(x, eps))

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return the product of x (R, I), or of concatenated heads (…, N, H), added to `residual` (R, O)."""
        return residual + self(x if x.ndim == 2 else x.reshape(len(residual), -1))

    def gated(self, x: Tensor, eps: float) -> Tensor:
        """Return silu(gate) · up of the RMS norm of x, (…, O / 2); gate is the first half of the product."""
        gate, up = self.normed(x, eps).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)


class DensePackedLinear(PackedLinear):
    """A layer in the precision of its weight.

    With `few_rows` a CPU gets a copy of the weight that is (I, O) in memory: products of few rows are up to
    1.5 times as fast.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, few_rows: bool = False) -> None:
        copied = few_rows and weight.device.type == "cpu"
        self.weight, self.bias = weight.t().contiguous().t() if copied else weight, bias
        self._transposed = self.weight.t()

    def __call__(self, x: Tensor) -> Tensor:
        """(…, I) to (…, O)."""
        # For one row of input PyTorch's dispatch counts: what is called here is what `F.linear` comes to.
        if x.ndim == 2:
            return x.mm(self._transposed) if self.bias is None else self.bias.addmm(x, self._transposed)
        return F.linear(x, self.weight, self.bias)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return the product of x (R, I), or of concatenated heads (…, N, H), added to `residual` (R, O)."""
        added = residual if self.bias is None else residual + self.bias
        return added.addmm(x if x.ndim == 2 else x.reshape(len(residual), -1), self._transposed)


class Int8PackedLinear(PackedLinear):
    """Weights rounded to 8 bits per output, inputs per row at run time; sums are exact, in 32 bits.

    A row of the input is scaled and shifted to unsigned bytes, which processors multiply with signed ones;
    oneDNN subtracts the shift again. The rounding error is about a hundredth of the result. For CPUs; on
    those without VNNI inputs have 7 bits, since they add pairs of products in 16 bits, which saturate.
    Source: Dettmers et al. 2022, "LLM.int8()", arXiv 2208.07339, section 2.1 (vector-wise quantization).
    """

    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        rounded = (weight / scale[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self.scale, self.zeros = scale.float(), torch.zeros(len(scale), dtype=torch.int32)
        self.bias = None if bias is None else bias.float()
        self.zero = 128 if pairs_are_exact() else 64

    def __call__(self, x: Tensor) -> Tensor:
        """(…, I) to (…, O)."""
        rows = x.float().reshape(-1, x.shape[-1])
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / (self.zero - 1)
        rounded = (rows / scale).round_().add_(self.zero).to(torch.uint8)
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rounded, 1.0, self.zero, self.weight, self.scale, self.zeros, None, 1.0, 0, torch.float32, "none",
            [], ""
        )  # fmt: skip
        scaled = product.mul_(scale) if self.bias is None else torch.addcmul(self.bias, product, scale)
        return scaled.view(*x.shape[:-1], -1).to(x.dtype)

    def tensors(self) -> list[Tensor]:
        """Return the tensors that the layer holds."""
        return [*super().tensors(), self.zeros]


class Int8WeightOnlyLinear(PackedLinear):
    """Weights rounded to 8 bits per output; inputs are rounded to bfloat16 only.

    For products of a few rows on a CPU, which take as long as loading the weight from memory: a quarter of
    the bytes, and no arithmetic in 8 bits, which is slow on processors without VNNI. For more rows the weight
    is converted back first. The rounding error is about a hundredth of the result.
    """

    FEW = 8
    SIDE = 16
    """Widths must be a multiple of it: the kernel does not check."""
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.scale = (weight.abs().amax(1).float().clamp_min(1e-12) / 127).to(torch.bfloat16)
        rounded = (weight.float() / self.scale.float()[:, None]).round()
        self.weight = rounded.clamp(-127, 127).to(torch.int8)
        self.bias = None if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        """(R, I) to (R, O)."""
        if len(x) <= self.FEW:
            product = torch._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scale).to(x.dtype)
        else:
            product = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return product if self.bias is None else product + self.bias.to(x.dtype)


class Float8PackedLinear(PackedLinear):
    """Weights rounded to float8 (e4m3: 3 bits of fraction) with a scale for each output.

    Inputs are not rounded. For a GPU, and weights that few rows read often: such a product takes as long as loading its weight, which
    has half of bfloat16's bytes. The faster kernel is `KernelPackedLinear`'s. This class converts the weight
    for each product, which gives the same numbers and no gain, so that the rounding error can be measured on
    any machine.
    Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433.
    """

    LARGEST = 448.0
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.scale = weight.abs().amax(1).float().clamp_min(1e-12) / self.LARGEST
        rounded = weight.float() / self.scale[:, None]
        # A value above the largest number would become NaN.
        self.weight = rounded.clamp_(-self.LARGEST, self.LARGEST).to(torch.float8_e4m3fn)
        self.bias = None if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        """(…, I) to (…, O)."""
        product = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return (product if self.bias is None else product + self.bias).to(x.dtype)


@lru_cache(maxsize=1)
def pairs_are_exact() -> bool:
    """Return whether this machine's products of bytes are exact at their largest, 255 · 127: it computes one."""
    width = 64
    weight = torch.ops.onednn.qlinear_prepack(torch.full((width, width), 127, dtype=torch.int8), None)
    ones, zeros = torch.ones(width), torch.zeros(width, dtype=torch.int32)
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        torch.full((width, width), 255, dtype=torch.uint8), 1.0, 0, weight, ones, zeros, None, 1.0, 0,
        torch.float32, "none", [], ""
    )  # fmt: skip
    return bool((product == width * 255 * 127).all())


def plain_weights(linear: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Return weight (O, I) and bias (O,) of a linear layer, with its adapters added."""
    layer: Any = linear
    if not hasattr(layer, "get_delta_weight"):
        return layer.weight, layer.bias
    base = layer.get_base_layer()
    weight = base.weight
    if not layer.merged and not layer.disable_adapters:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                weight = weight + layer.get_delta_weight(name)
    return weight, base.bias


class WeightPacker:
    """Makes packed linear layers from a policy's layers.

    Args:
        int8: the class of the layers that `pack` rounds to 8 bits; None rounds none.
        fp8: round those that few rows read often to float8.
        few_rows: all products are of few rows (`DensePackedLinear`).
        releases: empty each layer that was read, so that no weight is held twice. The policy can't be used
            afterwards.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        *,
        int8: type[Int8PackedLinear | Int8WeightOnlyLinear] | None = None,
        fp8: bool = False,
        few_rows: bool = False,
        releases: bool = False,
    ) -> None:
        self.dtype, self.int8, self.fp8, self.few_rows, self.releases = dtype, int8, fp8, few_rows, releases

    def pack(
        self,
        layers: Sequence[nn.Module],
        norm: Tensor | None = None,
        *,
        exact: bool = False,
        often: bool = False,
    ) -> PackedLinear:
        """Fuse layers that read the same input into one product with concatenated outputs.

        Args:
            norm: the scale (I,) of the norm before them.
            exact: never in 8 bits.
            often: whether few rows, some ten, read it often.
        """
        parts = [plain_weights(layer) for layer in layers]
        weight = torch.cat([weight for weight, _ in parts]) if len(parts) > 1 else parts[0][0]
        if norm is not None:
            weight = weight.float() * norm.float()
        biases = [
            torch.zeros(len(weight), device=weight.device) if bias is None else bias for weight, bias in parts
        ]
        bias = torch.cat(biases).detach() if any(bias is not None for _, bias in parts) else None
        packed = self._packed(weight.detach(), bias, exact=exact, often=often)
        self.release(*layers)
        return packed

    def _packed(self, weight: Tensor, bias: Tensor | None, *, exact: bool, often: bool) -> PackedLinear:
        if self.int8 is not None and not exact and self._fits_int8(weight):
            return self.int8(weight.float(), bias)
        if self.fp8 and often and not exact:
            return Float8PackedLinear(weight.float(), bias)
        bias = None if bias is None else bias.to(self.dtype)
        few_rows = self.few_rows or (often and self.dtype == torch.float32)
        return DensePackedLinear(weight.to(self.dtype), bias, few_rows=few_rows)

    def _fits_int8(self, weight: Tensor) -> bool:
        side = Int8WeightOnlyLinear.SIDE if self.int8 is Int8WeightOnlyLinear else 1
        return not any(size % side for size in weight.shape)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Return a tensor in the weights' dtype; it is the policy's own if that has the dtype."""
        return tensor.detach().to(self.dtype)

    def release(self, *modules: nn.Module) -> None:
        """Release the modules' weights if `releases` is set."""
        for module in modules if self.releases else ():
            module.to("meta")


def weight_sources(module: nn.Module) -> list[tuple[dict[str, Any], str]]:
    """Return where the module's weights are: the dictionary of the owner of each, and its name there."""
    owners = [part._parameters for part in module.modules() if part._parameters]
    return [(owner, name) for owner in owners for name in owner]


def weight_versions(sources: list[tuple[dict[str, Any], str]]) -> list[tuple[int, int]]:
    """Return address and version of each weight.

    A new tensor has another address, an in-place change another version. A write through `parameter.data` is not detected.
    """
    tensors = (owner[name] for owner, name in sources)
    return [
        (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for tensor in tensors
        if tensor is not None
    ]


def tensors_in(part: Any) -> Iterator[Tensor]:
    """Yield all tensors in packed layers, and in tuples and lists of them."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, PackedLinear):
        yield from part.tensors()
    elif isinstance(part, tuple | list):
        for inner in part:
            yield from tensors_in(inner)


def extra_bytes(part: Any, module: nn.Module) -> int:
    """Return the bytes of the tensors in `part` (`tensors_in`) that are not the module's own weights."""
    # oneDNN's packed tensors have no address, and are never the module's.
    sizes = {
        id(tensor) if tensor.is_mkldnn else tensor.data_ptr(): tensor.numel() * tensor.element_size()
        for tensor in tensors_in(part)
    }
    own = {parameter.data_ptr() for parameter in module.parameters() if not parameter.is_meta}
    return sum(size for address, size in sizes.items() if address not in own)
