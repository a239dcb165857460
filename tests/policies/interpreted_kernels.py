"""Kernels in triton's interpreter, on a CPU: beside the plain way, and in a whole engine.

Run by `test_kernels.py` in a process of its own: triton must find TRITON_INTERPRET=1 when it is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from smolact.backbones.layers import merge_heads, rotary_tables, rotate, split_heads
from smolact.policies.common.guidance import Guidance
from smolact.policies.inference import packing as products_module
from smolact.policies.inference.kernels import KernelPackedLinear, multiply, split_and_rotate, with_kernels
from smolact.policies.inference.packing import DensePackedLinear, Float8PackedLinear, PackedLinear
from smolact.policies.smolvla import engine as engine_module
from tests.parity.recipe import difference
from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy

WITHIN = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
SHAPES = [(1, 50, 72, 48), (2, 7, 200, 34), (3, 40, 18, 16), (1, 1, 128, 2), (2, 33, 128, 64)]
"""(B, L, I, O): blocks that fit and blocks that do not, one block of rows and several."""


@pytest.fixture(autouse=True)
def bfloat16_as_a_gpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Round to nearest, and multiply the numbers: the interpreter (3.6 to 3.9) cuts off, and multiplies their bits."""
    cast, dot = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, kind)
        bits = torch.from_numpy(source.data.copy()).bfloat16().view(torch.int16).numpy()
        return TensorHandle(bits.view("uint16"), tl.bfloat16)

    def multiplied(self: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(self, *(self.cast_impl(factor, tl.float32) for factor in (a, b)), *others)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", multiplied)


def draws(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


@pytest.mark.parametrize("dtype", WITHIN, ids=str)
@pytest.mark.parametrize("kind", [DensePackedLinear, Float8PackedLinear])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_the_plain_one(
    shape: tuple[int, int, int, int], kind: type[PackedLinear], dtype: torch.dtype
) -> None:
    b, l, i, o = shape  # noqa: E741
    x, weight, bias, residual = draws((b, l, i), (o, i), (o,), (b, l, o), dtype=dtype)
    with torch.no_grad():
        for added in (None, bias):
            plain = kind(weight, added)  # type: ignore[call-arg]
            fused = KernelPackedLinear(plain)
            for found, expected in (
                (fused(x), plain(x)),
                (fused.normed(x, 0.1), plain.normed(x, 0.1)),
                (fused.gated(x, 1e-5), plain.gated(x, 1e-5)),
                (fused.onto(residual.flatten(0, 1), x), plain.onto(residual.flatten(0, 1), x)),
            ):
                assert found.dtype == dtype and found.shape == expected.shape
                assert difference(found.float(), expected.float()) <= WITHIN[dtype]


def test_heads_are_merged_as_they_are_read() -> None:
    attended, weight, residual = draws((2, 3, 7, 20), (16, 60), (2, 7, 16))
    expected = residual + F.linear(merge_heads(attended), weight)
    strided = attended.transpose(1, 2).contiguous().transpose(1, 2)  # what some ways to attend give
    for heads in (attended, strided):
        found = multiply(heads.transpose(1, 2), weight, residual=residual)
        assert difference(found, expected) <= 1e-6


def test_outputs_of_two_products_that_lie_beside_each_other_do_not_mix() -> None:
    """A block of outputs that does not fit must not read the next one's weights, scales or biases."""
    x, weight, bias = draws((1, 5, 40), (2 * 17, 40), (2 * 17,))
    scale = torch.arange(1.0, 35.0) / 34
    found = multiply(x, weight, scale, bias, gated=True)
    gate, up = (F.linear(x, weight) * scale + bias).chunk(2, dim=-1)
    assert difference(found, F.silu(gate) * up) <= 1e-6


@pytest.mark.parametrize("dtype", WITHIN, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(3, 1), (4, 2), (5, 0), (0, 2)])
def test_heads_go_where_they_belong_and_nowhere_else(queries: int, keys: int, dtype: torch.dtype) -> None:
    batch, length, width, behind = 2, 7, 20, 4
    (projected,) = draws((batch, length, (queries + 2 * keys) * width), dtype=dtype)
    tables = rotary_tables(torch.arange(24).view(2, 12) % 13, width, 1e4)
    for cosines, sines in (tuple(t[:, :, 3:10] for t in tables), tuple(t[:1, :, 2:9] for t in tables)):
        places = [projected.new_zeros(batch, heads, length, width) for heads in (queries,)]
        places += [projected.new_zeros(batch, keys, behind + length + 2, width) for _ in range(2)]
        inside = [place[:, :, behind : behind + length] for place in places[1:]]
        split_and_rotate(projected, cosines, sines, places[0], *inside)
        heads = split_heads(projected, width)
        rotated = rotate(heads[:, : queries + keys], cosines, sines)
        assert torch.allclose(places[0], rotated[:, :queries], rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
        assert torch.allclose(inside[0], rotated[:, queries:], rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)
        assert torch.equal(inside[1], heads[:, queries + keys :])
        for place in places[1:]:
            assert (place[:, :, :behind] == 0).all() and (place[:, :, behind + length :] == 0).all()


@pytest.fixture
def kernels_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine asks for a GPU before it takes kernels; here the interpreter is one."""
    monkeypatch.setattr(engine_module, "check_kernels", lambda device: None)


ENGINES: list[dict[str, Any]] = [
    {"dtype": torch.float32},
    {"dtype": torch.bfloat16},
    {"dtype": torch.float32, "fp8": True},
    {"dtype": torch.bfloat16, "fp8": True},
]


@pytest.mark.usefixtures("kernels_allowed")
@pytest.mark.parametrize("settings", ENGINES, ids=str)
def test_an_engine_with_kernels_gives_what_it_gives_without(settings: dict[str, Any]) -> None:
    policy = tiny_policy(num_vlm_layers=2, num_steps=2)
    batch, noise = tiny_batch(), tiny_noise()
    plain = policy.build_engine(**settings)
    fused = policy.build_engine(**settings, triton=True)
    assert sorted(layer.cross is None for layer in fused._network.expert) == [
        False,
        True,
    ]  # both kinds of layers
    multiplied = [layer.packed.post_attention.down for layer in fused._network.expert]
    assert all(isinstance(product, KernelPackedLinear) for product in multiplied)
    assert not any(isinstance(block.project, KernelPackedLinear) for block in fused._network.text)
    expected = plain.predict_action_chunk(batch, noise)
    within = 1e-5 if settings["dtype"] == torch.float32 else 1e-2
    assert difference(fused.predict_action_chunk(batch, noise), expected) <= within
    fused.observe(batch)
    assert difference(fused.act(batch, noise), expected) <= within
    assert fused.memory == plain.memory


def test_float8_brings_the_kernels_along_on_a_gpu_and_not_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "check_fp8", lambda device: None)
    engine = tiny_policy(num_vlm_layers=1).build_engine(dtype=torch.float32, fp8=True)
    assert engine._kernels(torch.device("cpu")) is None
    assert engine._kernels(torch.device("cuda", 0)) is with_kernels


@pytest.mark.usefixtures("kernels_allowed")
def test_what_is_guided_is_differentiated_the_plain_way() -> None:
    policy = tiny_policy(num_vlm_layers=2, num_steps=1)
    batch, noise = tiny_batch(), tiny_noise()
    plain = policy.build_engine(dtype=torch.float32, fp8=True)
    fused = policy.build_engine(dtype=torch.float32, fp8=True, triton=True)
    for jacobian in (True, False):
        guidance = Guidance(torch.full((2, 8, 6), 0.5), torch.ones(2, 8, 1), jacobian=jacobian)
        expected = plain.predict_action_chunk(batch, noise, guidance)
        assert difference(fused.predict_action_chunk(batch, noise, guidance), expected) <= 1e-5


def test_the_plain_way_is_what_products_do() -> None:
    """The twin of a kernel is code that every engine runs, not code for tests."""
    assert KernelPackedLinear.normed is not PackedLinear.normed
    assert products_module.DensePackedLinear.normed is PackedLinear.normed
    assert Float8PackedLinear.gated is PackedLinear.gated and Float8PackedLinear.onto is PackedLinear.onto
