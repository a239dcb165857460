"""Activations that are made again in the backward pass: the same gradients, and less that waits for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from smolact.errors import ConfigError
from smolact.policies.base import PreTrainedPolicy
from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy

WHOLE = {"train_expert_only": False, "freeze_vision_encoder": False}


def gradients(policy: PreTrainedPolicy) -> tuple[dict[str, Tensor], int]:
    """Of a training step, and the bytes that were kept for its backward pass beside the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = policy.forward(tiny_batch(), tiny_noise(), torch.tensor([0.3, 0.7]))
        memory = sum(kept.values())
    loss.backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}, memory


@pytest.mark.parametrize(("settings", "share"), [({}, 0.6), (WHOLE, 0.35)])
def test_gradients_are_the_same_and_less_is_kept(settings: dict[str, bool], share: float) -> None:
    expected, plain = gradients(tiny_policy(**settings).train())
    policy = tiny_policy(**settings).train()
    policy.recompute_activations()
    found, kept = gradients(policy)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert kept < share * plain


def test_predicting_is_as_before() -> None:
    policy = tiny_policy().eval()
    expected = policy.predict_action_chunk(tiny_batch(), tiny_noise())
    policy.recompute_activations()
    assert torch.equal(policy.predict_action_chunk(tiny_batch(), tiny_noise()), expected)


def test_a_policy_without_such_layers_says_so() -> None:
    policy = tiny_policy()
    policy.model = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="--gradient_checkpointing"):
        policy.recompute_activations()
