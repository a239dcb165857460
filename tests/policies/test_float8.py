"""Expert weights in float8: what they cost in numbers, what they save in bytes, and where they are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smolact.errors import ConfigError, MissingDependencyError
from smolact.policies.common.guidance import Guidance
from smolact.policies.inference import precision
from smolact.policies.inference.packing import DensePackedLinear, Float8PackedLinear, PackedLinear
from smolact.policies.inference.precision import check_fp8, check_kernels
from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFASTPolicy
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.engine import SmolVLAEngine
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tests.parity.recipe import DATA, difference, draw_weights, smolvla_batch, smolvla_case
from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy

CASES = sorted(path.name for path in (DATA / "smolvla").iterdir())[::4]
FRACTION = 2**-4
"""A number in float8 is off by no more than this share of itself: half of the last of three bits behind the point."""


def whole(product: Float8PackedLinear) -> torch.Tensor:
    return product.weight.float() * product.scale[:, None]


def test_a_weight_is_off_by_a_share_of_itself_whatever_its_row() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 64, generator=generator)
    weight[7], weight[8], weight[9] = weight[7] * 1e-3, weight[8] * 1e4, 0
    product = Float8PackedLinear(weight)
    assert product.weight.dtype == torch.float8_e4m3fn
    found, largest = whole(product), weight.abs().amax(1, keepdim=True)
    assert (found[9] == 0).all() and torch.isfinite(found).all()
    # Below the smallest normal number, 2⁻⁶ of 448, steps do not get finer.
    assert ((found - weight).abs() <= (FRACTION * weight.abs()).clamp(min=largest / 448 * 2**-10)).all()
    assert torch.allclose(found.abs().amax(1, keepdim=True), largest)
    assert 0.01 < difference(found, weight) < 0.04


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_rounded_weight(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(3, 5, 64, generator=generator), torch.randn(48, 64, generator=generator)
    bias = torch.randn(48, generator=generator)
    product = Float8PackedLinear(weight, bias)
    found = product(x.to(dtype))
    assert found.dtype == dtype and found.shape == (3, 5, 48)
    expected = torch.nn.functional.linear(x.to(dtype).float(), whole(product), bias)
    assert difference(found.float(), expected) <= (1e-6 if dtype == torch.float32 else 1e-2)
    assert 1e-3 < difference(found.float(), torch.nn.functional.linear(x, weight, bias)) <= 4e-2


@pytest.mark.parametrize("name", CASES)
def test_chunks_of_every_parity_case_are_near(name: str) -> None:
    case, config = smolvla_case(name)
    policy = SmolVLAPolicy(SmolVLAConfig.from_dict(config)).eval()
    draw_weights(policy, case["seed"])
    batch = smolvla_batch(case, config)
    noise = batch.pop("noise")
    engine = policy.build_engine(dtype=torch.float32, fp8=True)
    expected = policy.predict_action_chunk(batch, noise)
    found = engine.predict_action_chunk(batch, noise)
    assert 1e-5 < difference(found, expected) <= 3e-2
    engine.observe(batch)
    assert difference(engine.act(batch, noise), found) <= 1e-5


def products(engine: SmolVLAEngine, part: str) -> list[PackedLinear]:
    """What multiplies at every step in a part's layers."""
    found: list[PackedLinear] = []
    for layer in getattr(engine._network, part):
        block = layer.packed if part == "expert" else layer
        found.append(block.project)
        if block.post_attention is not None:
            found += [block.post_attention.out, *block.post_attention.gates, block.post_attention.down]
    return found


def size(engine: SmolVLAEngine, part: str) -> int:
    return sum(tensor.nbytes for product in products(engine, part) for tensor in product.tensors())


def test_the_expert_takes_half_of_bfloat16s_bytes_and_the_rest_stays_whole() -> None:
    whole, rounded = (
        tiny_policy(expert_width_multiplier=1.0).build_engine(dtype=torch.bfloat16, release=True, fp8=fp8)
        for fp8 in (False, True)
    )
    assert all(isinstance(product, Float8PackedLinear) for product in products(rounded, "expert"))
    assert all(isinstance(product, DensePackedLinear) for product in products(rounded, "text"))
    assert 0.5 < size(rounded, "expert") / size(whole, "expert") < 0.55  # beside the weights there are scales
    assert size(rounded, "text") == size(whole, "text")
    assert whole.memory - rounded.memory == size(whole, "expert") - size(rounded, "expert")
    assert difference(
        *(engine.predict_action_chunk(tiny_batch(), tiny_noise()) for engine in (rounded, whole))
    ) < 2e-2  # fmt: skip


@pytest.mark.parametrize("settings", [{"num_steps": 3}, {"num_steps": 2, "solver": "heun"}], ids=str)
def test_steps_and_solvers_are_as_ever(settings: dict[str, Any]) -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    whole, rounded = (policy.build_engine(dtype=torch.float32, fp8=fp8, **settings) for fp8 in (False, True))
    expected = whole.predict_action_chunk(batch, noise)
    assert 1e-5 < difference(rounded.predict_action_chunk(batch, noise), expected) < 2e-2
    rounded.use_steps(7)
    whole.use_steps(7)
    expected = whole.predict_action_chunk(batch, noise)
    assert difference(rounded.predict_action_chunk(batch, noise), expected) < 2e-2


def test_weights_that_change_are_rounded_anew() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    engine = policy.build_engine(dtype=torch.float32, fp8=True)
    old = engine.predict_action_chunk(batch, noise)
    policy.load_state_dict(tiny_policy(seed=7).state_dict())
    found = engine.predict_action_chunk(batch, noise)
    assert difference(found, old) > 0.1
    assert torch.equal(
        found, policy.build_engine(dtype=torch.float32, fp8=True).predict_action_chunk(batch, noise)
    )


@pytest.mark.parametrize("jacobian", [True, False])
def test_a_chunk_is_guided_through_rounded_weights(jacobian: bool) -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    guidance = Guidance(torch.full((2, 8, 6), 0.5), torch.linspace(1, 0, 8)[None, :, None].expand(2, -1, -1))
    guidance = Guidance(guidance.actions, guidance.weights, jacobian=jacobian)
    engine = policy.build_engine(dtype=torch.float32, fp8=True)
    assert engine.takes_leftover
    expected = policy.predict_action_chunk(batch, noise, guidance)
    found = engine.predict_action_chunk(batch, noise, guidance)
    assert 1e-6 < difference(found, expected) < 3e-2
    assert difference(found, engine.predict_action_chunk(batch, noise)) > 0.1
    assert not found.requires_grad


def test_what_can_not_work_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = tiny_policy(num_vlm_layers=1)
    for settings, message in (
        ({"fp8": True, "int8": True}, "round the same weights"),
        ({"triton": True}, "triton=True needs a GPU with CUDA, and the policy is on cpu"),
        ({"triton": True, "compile": True}, "fuse the same operations"),
        ({"fp9": True}, r"SmolVLAEngine has no setting 'fp9'.*Did you mean 'fp8'"),
    ):
        with pytest.raises(ConfigError, match=message):
            policy.build_engine(**settings)
    with pytest.raises(ConfigError, match=r"SmolAndFASTEngine has no setting 'fp8'; it has dtype, gen"):
        SMOLANDFASTPolicy.build_engine(policy, fp8=True)
    with pytest.raises(ConfigError, match=r"GPU with CUDA.*mps"):
        check_fp8(torch.device("mps"))

    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(precision, "find_spec", lambda name: None)
    for check in (check_fp8, check_kernels):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        with pytest.raises(MissingDependencyError, match="pip install triton"):
            check(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(ConfigError, match=r"capability 8\.9 or more.*an A100 has 8\.0"):
        check_fp8(gpu)
    monkeypatch.setattr(precision, "find_spec", lambda name: object())
    check_kernels(gpu)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    check_fp8(gpu)
