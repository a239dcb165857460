"""SmolVLA against the numbers of LeRobot 0.6.1."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tests.parity.recipe import DATA, difference, draw_weights, smolvla_batch, smolvla_case

CASES = sorted(path.name for path in (DATA / "smolvla").iterdir())


def make(name: str) -> tuple[SmolVLAPolicy, dict, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    case, config = smolvla_case(name)
    policy = SmolVLAPolicy(SmolVLAConfig.from_dict(config))
    draw_weights(policy, case["seed"])
    return (
        policy,
        case,
        smolvla_batch(case, config),
        load_file(DATA / "smolvla" / name / "expected.safetensors"),
    )


@pytest.mark.parametrize("name", CASES)
def test_loss_chunk_and_gradients_are_the_references(name: str) -> None:
    policy, case, batch, expected = make(name)
    noise, time = batch.pop("noise"), batch.pop("time")
    before = {key: value.clone() for key, value in batch.items()}

    trains = {key for key, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trains == set(case["trainable"])

    loss, _ = policy.forward(batch, noise=noise, time=time)
    assert difference(loss.detach(), expected["loss"]) <= 1e-5
    loss.backward()
    gradients = {
        key: parameter.grad for key, parameter in policy.named_parameters() if parameter.grad is not None
    }
    assert set(gradients) == set(case["grad_norm"])
    for key, norm in case["grad_norm"].items():
        # A key's bias shifts all scores of a query alike, which softmax ignores: its gradient is rounding (1e-9).
        assert float(gradients[key].norm()) == pytest.approx(norm, rel=1e-3, abs=1e-7), key

    per_sample, _ = policy.forward(batch, noise=noise, time=time, reduction="none")
    assert difference(per_sample.detach(), expected["loss_per_sample"]) <= 1e-5

    chunk = policy.predict_action_chunk(batch, noise=noise)
    assert difference(chunk, expected["action_chunk"]) <= 1e-4

    assert batch.keys() == before.keys()
    assert all(torch.equal(batch[key], before[key]) for key in before)


@pytest.mark.parametrize("name", [name for name in CASES if name in ("default", "portrait", "wide_resize")])
def test_images_are_fitted_and_embedded_as_the_reference_does(name: str) -> None:
    policy, _, batch, expected = make(name)
    images, masks = policy.prepare_images(batch)
    assert difference(images[0], expected["resized_camera1"]) <= 1e-5
    assert all(bool(mask.all()) for mask in masks)
    with torch.no_grad():
        embedded = policy.model.vlm_with_expert.embed_image(images[0])
    assert difference(embedded, expected["image_embedding_camera1"]) <= 1e-5
