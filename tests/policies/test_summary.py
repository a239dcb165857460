"""What a policy costs, counted from its sizes, against what PyTorch counts while it runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smolact.policies.base import PreTrainedPolicy
from smolact.policies.smolvla import flops_smolvla
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from smolact.policies.summary import (
    empty_policy,
    facts_of,
    flops,
    size,
    summarize,
    table_of,
    tree_lines,
)
from tests.policies.tiny import tiny_batch, tiny_config, tiny_policy

VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention_mode": "self_attn"},
    {"use_cache": False, "num_steps": 3},
    {"num_expert_layers": 2, "chunk_size": 6},
    {"train_expert_only": False, "freeze_vision_encoder": False},
    {"train_state_proj": False},
    {"add_image_special_tokens": True, "prefix_length": 90},
]


@pytest.fixture(autouse=True)
def _instructions_of_the_tiny_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops_smolvla, "TYPICAL_INSTRUCTION", 7)


def counted(work: Any) -> int:
    # Fused attention of the CPU is not counted by PyTorch; as matrix products it is.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_flops_are_those_that_pytorch_counts(variant: dict[str, Any]) -> None:
    policy = tiny_policy(**variant)
    batch = tiny_batch(1, chunk=policy.config.chunk_size)
    work = summarize(policy).workload
    assert work.forward == pytest.approx(counted(lambda: policy.forward(batch)), rel=1e-3)
    assert work.replan == pytest.approx(counted(lambda: policy.predict_action_chunk(batch)), rel=1e-3)


def kept_bytes(policy: SmolVLAPolicy, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of what autograd keeps of a forward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.forward(batch)
    return sum(storage.nbytes() for storage in kept.values())


def attention_keeps_its_weights() -> bool:
    """Whether this PyTorch computes attention with groups of heads step by step on a CPU, as 2.7 does."""
    sizes: list[int] = []
    query, keys = torch.zeros(1, 2, 64, 8, requires_grad=True), torch.zeros(1, 1, 64, 8)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        torch.nn.functional.scaled_dot_product_attention(query, keys, keys, enable_gqa=True)
    return max(sizes) >= 64 * 64


@pytest.mark.skipif(
    attention_keeps_its_weights(), reason="this PyTorch fuses no attention with groups of heads"
)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_activations_are_estimated_to_a_tenth(variant: dict[str, Any]) -> None:
    policy = tiny_policy(**variant)
    batch = tiny_batch(4, chunk=policy.config.chunk_size)
    assert summarize(policy, batch_size=4).activation_bytes == pytest.approx(
        kept_bytes(policy, batch), rel=0.1
    )


def test_parts_add_up_and_say_what_trains() -> None:
    policy = tiny_policy()
    summary = summarize(policy)
    assert summary.total.parameters == sum(parameter.numel() for parameter in policy.parameters())
    assert summary.parts["vision tower"].trained == 0
    assert summary.parts["action expert"].trained == summary.parts["action expert"].parameters
    policy.requires_grad_(True)
    assert summarize(policy).total.trained == summary.total.parameters


def test_memory_follows_from_what_trains() -> None:
    summary = summarize(tiny_policy(train_expert_only=False))
    assert summary.weight_bytes == 4 * summary.total.parameters
    assert (summary.gradient_bytes, summary.optimizer_bytes) == (
        4 * summary.total.trained,
        8 * summary.total.trained,
    )


def test_an_empty_policy_has_the_same_sizes_and_no_memory() -> None:
    config = tiny_config(compile_model=True)
    empty = empty_policy(config)
    assert {parameter.device.type for parameter in empty.parameters()} == {"meta"}
    assert table_of(summarize(empty)) == table_of(summarize(tiny_policy()))


def test_a_configuration_without_cameras_is_counted_with_two() -> None:
    summary = summarize(empty_policy(SmolVLAConfig(vlm_model_name="tiny")))
    assert summary.workload.assumed == "2 images of 512×512, 7 tokens of instruction"


def test_every_camera_is_counted_at_its_own_size() -> None:
    work = summarize(empty_policy(tiny_config(resize_imgs_with_padding=None, empty_cameras=1))).workload
    assert work.assumed.startswith("3 images of 640×480, 64×48,")
    assert work.vision > 10 * summarize(empty_policy(tiny_config())).workload.vision


def test_a_policy_that_counts_no_flops_has_a_summary(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = summarize(tiny_policy())
    monkeypatch.setattr(SmolVLAPolicy, "workload", PreTrainedPolicy.workload)
    summary = summarize(tiny_policy(), batch_size=8)
    assert summary.tree == counted.tree
    assert summary.activation_bytes == 0
    assert facts_of(summary)["memory"].endswith("activations not counted")
    rows = ["trains", "weights", "gradients", "AdamW"]
    assert table_of(summary) == {name: table_of(counted)[name] for name in rows}
    assert not any("FLOP " in line for line in tree_lines(summary)[1:])


def test_the_facts_of_a_run_are_three_lines() -> None:
    facts = facts_of(summarize(tiny_policy(), batch_size=8))
    assert list(facts) == ["parameters", "compute", "memory"]
    assert "of which" in facts["parameters"]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (flops(999), "999 FLOP"),
        (flops(999_600), "1000 kFLOP"),
        (flops(580.3e9), "580 GFLOP"),
        (size(1023), "1023 B"),
        (size(1 << 20), "1 MiB"),
        (size(1.84e9), "1.71 GiB"),
    ],
)
def test_numbers_have_units(shown: str, expected: str) -> None:
    assert shown == expected
