"""One decoder layer, norm and rotation for all engines: what the plain layers compute, wherever keys and values go."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smolact.backbones.config import TextConfig
from smolact.backbones.layers import DecoderLayer, attend, rms_norm, rotary_tables, rotate
from smolact.backbones.smolvlm import make_decoder_layer
from smolact.policies.inference.decoder import Rows, folded_bias, pack_decoder_layer, run_layer
from smolact.policies.inference.graphs import Graphs
from smolact.policies.inference.packing import DensePackedLinear, WeightPacker
from tests.cuda_standin import CudaStandin, RealCuda
from tests.parity.recipe import difference

BATCH, PAST, HEADS, KEY_HEADS, WIDTH = 2, 5, 4, 2, 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain_layer() -> tuple[DecoderLayer, TextConfig]:
    config = TextConfig(
        vocab_size=8,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=WIDTH,
    )
    layer = make_decoder_layer(config)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = draw(*parameter.shape, seed=seed) * 0.3
    return layer, config


@pytest.mark.parametrize("fuse_gates", [True, False])
@pytest.mark.parametrize("few_rows", [True, False])
@pytest.mark.parametrize(
    ("length", "rows", "gradient"),
    [
        (3, slice(PAST, PAST + 3), False),
        (1, torch.tensor([PAST]), False),
        (3, None, False),
        (3, None, True),  # a cache that is written to is not differentiated
    ],
    ids=str,
)
def test_a_packed_layer_gives_what_the_layer_gives(
    length: int, rows: Rows, gradient: bool, few_rows: bool, fuse_gates: bool
) -> None:
    layer, config = plain_layer()
    packer = WeightPacker(torch.float32, few_rows=few_rows)
    packed = pack_decoder_layer(packer, layer, config, fuse_gates=fuse_gates)
    hidden = draw(BATCH, length, 48)
    rotary = rotary_tables(torch.arange(BATCH * length).view(BATCH, length), WIDTH, 1e4)
    mask = torch.ones(BATCH, length, PAST + length, dtype=torch.bool).tril(PAST)
    mask[1, :, :2] = False
    past = draw(2, BATCH, KEY_HEADS, PAST, WIDTH, seed=9)

    with torch.no_grad():
        normed = layer.input_layernorm(hidden)
        keys = torch.cat([past[0], rotate(layer.keys(normed), *rotary)], dim=2)
        values = torch.cat([past[1], layer.values(normed)], dim=2)
        attended = attend(rotate(layer.queries(normed), *rotary), keys, values, mask)
        expected = layer.output_and_mlp(hidden, attended)

    slots = 0 if rows is None else length
    cache = F.pad(past, (0, 0, 0, slots))
    bias = folded_bias(mask, HEADS // KEY_HEADS, torch.float32)
    with contextlib.nullcontext() if gradient else torch.no_grad():
        found = run_layer(packed, hidden.flatten(0, 1), rotary, cache, rows, bias)
    assert difference(found.detach().view_as(expected), expected) <= 1e-6
    if rows is None:
        assert torch.equal(cache, past)
    else:
        assert difference(cache, torch.stack([keys, values])) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_without_a_gradient_is_the_norm_with_one(dtype: torch.dtype) -> None:
    x = (draw(7, 33) * 10.0 ** torch.arange(-3, 4)[:, None]).to(dtype)
    x[2] = 0
    expected = F.rms_norm(x.double(), x.shape[-1:], eps=1e-3)
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            found = rms_norm(x, 1e-3)
        assert found.dtype == dtype and (found[2] == 0).all()
        assert difference(found.double(), expected) <= (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_heads_rotated_in_place_are_those_rotated_anew(dtype: torch.dtype) -> None:
    heads = draw(2, 5, 6, 8).to(dtype).transpose(1, 2)
    tables = rotary_tables(torch.arange(10).view(2, 5), 8, 1e4)
    angle = torch.atan2(tables[1][..., 4:], tables[0][..., :4])
    turned = torch.polar(torch.ones(()), angle) * torch.complex(
        heads[..., :4].float(), heads[..., 4:].float()
    )
    expected, before = torch.cat([turned.real, turned.imag], dim=-1), heads.clone()
    found = rotate(heads[:, :4], *tables)
    assert difference(found.float(), expected[:, :4]) <= (1e-6 if dtype == torch.float32 else 4e-3)
    rotate(heads[:, :4], *tables, out=heads[:, :4])
    assert torch.equal(heads[:, :4], found) and torch.equal(heads[:, 4:], before[:, 4:])


@pytest.mark.parametrize("biased", [False, True])
def test_the_memory_order_of_a_weight_changes_no_product(biased: bool) -> None:
    weight, bias = draw(6, 10), draw(6, seed=1) if biased else None
    plain, copied = DensePackedLinear(weight, bias), DensePackedLinear(weight, bias, few_rows=True)
    assert plain.weight.data_ptr() == weight.data_ptr() != copied.weight.data_ptr()
    assert plain.weight.is_contiguous() and copied.weight.t().is_contiguous()
    residual = draw(4, 6, seed=2)
    for x in (draw(4, 10), draw(2, 2, 10), draw(4, 1, 2, 5)):
        rows = x.reshape(4, 10)
        expected = F.linear(rows, weight, bias)
        for product in (plain, copied):
            assert difference(product.onto(residual, x), residual + expected) <= 1e-6
            assert difference(product(rows), expected) <= 1e-6
            assert difference(product(rows[None])[0], expected) <= 1e-6


def test_a_recorded_function_advances_its_state_when_it_is_replayed_only(
    cuda: CudaStandin | RealCuda,
) -> None:
    counter = cuda.tensors({"counter": torch.zeros(1)})["counter"]
    graphs = Graphs(cuda.device)

    def count() -> None:
        counter.add_(1)

    graphs.run("count", count)
    assert "count" not in graphs
    graphs.record("count", count, [counter])
    assert "count" in graphs and counter.cpu().item() == 1
    graphs.run("count", count)
    assert counter.cpu().item() == 2


def test_the_quickest_precision_works_where_pytorch_may_use_less_than_the_processor_has() -> None:
    code = (
        "import torch; from smolact.policies.inference.precision import quickest_dtype; "
        "x = torch.ones(1, 1, 128, 64, dtype=quickest_dtype(torch.device('cpu'))); "
        "torch.nn.functional.scaled_dot_product_attention(x, x, x)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**environment, "ATEN_CPU_CAPABILITY": "default"}
    )
