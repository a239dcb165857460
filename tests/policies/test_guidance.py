"""Real-time chunking: the new chunk goes on from the old one, by the formulas and as LeRobot's numbers have it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from smolact.errors import ConfigError, FeatureError
from smolact.policies.common.flow_matching import SOLVERS, integrate
from smolact.policies.common.guidance import Guidance, guidance_weight, guided, prefix_weights
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from tests.parity.recipe import (
    DATA,
    RTC_CASES,
    difference,
    draw_weights,
    normal,
    smolvla_batch,
    smolvla_case,
)
from tests.policies.tiny import tiny_batch, tiny_noise, tiny_policy

LENGTH = 8


def weights(delay: int, left: int, schedule: str = "exp", length: int = LENGTH) -> Tensor:
    return prefix_weights(delay, left, length, schedule)[None, :, None]


# The schedule.


def test_the_mask_is_the_papers() -> None:
    """Equation 5: 1 before d; c (e^c − 1) / (e − 1) with c = (H − s − i) / (H − s − d + 1) before H − s; 0."""
    length, delay, left = 10, 3, 8
    for place, found in enumerate(prefix_weights(delay, left, length).tolist()):
        c = (left - place) / (left - delay + 1)
        expected = 1.0 if place < delay else c * (math.e**c - 1) / (math.e - 1) if place < left else 0.0
        assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("schedule", ["exp", "linear", "ones", "zeros"])
@pytest.mark.parametrize(("delay", "left"), [(0, 0), (0, 5), (3, 3), (9, 2), (2, 99), (8, 8)])
def test_every_mask_freezes_the_delay_and_ends_with_what_is_left(
    schedule: str, delay: int, left: int
) -> None:
    found = prefix_weights(delay, left, LENGTH, schedule)
    left = min(left, LENGTH)
    assert found.shape == (LENGTH,) and found.dtype == torch.float32
    assert (found[: min(delay, left)] == 1).all() and (found[left:] == 0).all()
    assert (found.diff() <= 0).all()
    assert ((found[min(delay, left) : left] > 0) == (schedule != "zeros")).all()


def test_a_schedule_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        prefix_weights(1, 2, 3, "lineal")


# The formulas, on a flow that is known: actions that are normal with mean m and covariance S.
# With x = t · noise + (1 − t) · action: E[action | x] = m + K (x − (1 − t) m), K = (1 − t) S ((1 − t)² S + t² 1)⁻¹, and v = (x − E) / t.


def covariance() -> np.ndarray:
    """A smooth motion: each action is much like its neighbours."""
    places = np.arange(LENGTH)
    return np.exp(-0.5 * ((places[:, None] - places) / 3.0) ** 2) + 1e-3 * np.eye(LENGTH)


def gain(time: float) -> np.ndarray:
    s = covariance()
    return (1 - time) * s @ np.linalg.inv((1 - time) ** 2 * s + time**2 * np.eye(LENGTH))


def known_velocity(x: Tensor, time: float) -> Tensor:
    return (x - torch.from_numpy(gain(time)) @ x) / time


def sampled(steps: int, y: np.ndarray, w: np.ndarray, most: float, noise: np.ndarray) -> np.ndarray:
    """Slowly: the matrices of the formulas in the docstring."""
    x = noise
    for step in range(steps):
        t = 1 - step / steps
        k = gain(t)
        estimate, jacobian = k @ x, k  # x̂ = x − t v = K x
        pull = jacobian.T @ (w[:, None] * (y - estimate))
        strength = min(most, ((1 - t) ** 2 + t**2) / (t * (1 - t))) if t < 1 else most
        x = x - ((x - estimate) / t - strength * pull) / steps
    return x


@pytest.mark.parametrize("most", [0.5, 5.0, 50.0])
def test_a_known_flow_is_bent_as_the_formulas_say(most: float) -> None:
    chance = np.random.default_rng(0)
    noise, y = chance.standard_normal((2, LENGTH, 1))
    w = weights(2, 5)[0, :, 0].double().numpy()
    guidance = Guidance(torch.from_numpy(y)[None], torch.from_numpy(w)[None, :, None], most)
    found = integrate(guided(known_velocity, guidance), torch.from_numpy(noise)[None], 20)[0].numpy()
    assert np.abs(found - sampled(20, y, w, most, noise)).max() < 1e-9


def test_a_frozen_prefix_is_reproduced_and_a_smooth_motion_goes_on_from_it() -> None:
    chance = torch.Generator().manual_seed(0)
    s = torch.from_numpy(covariance())
    y = torch.linalg.cholesky(s) @ torch.randn(LENGTH, 1, generator=chance, dtype=torch.float64)
    noise = torch.randn(200, LENGTH, 1, generator=chance, dtype=torch.float64)
    left = 4
    w = weights(left, left, "ones").double().expand(200, -1, -1)
    plain = integrate(known_velocity, noise, 50)
    found = integrate(guided(known_velocity, Guidance(y[None].expand(200, -1, -1), w, 10.0)), noise, 50)

    def far(chunk: Tensor) -> float:
        return float((chunk - y)[:, :left].pow(2).mean().sqrt())

    assert far(plain) > 0.8 and far(found) < far(plain) / 10
    jumps = [float((chunk[:, left] - y[left - 1]).abs().mean()) for chunk in (plain, found)]
    assert jumps[1] < jumps[0] / 2


def test_what_a_policy_is_sure_of_is_not_bent_but_without_the_jacobian() -> None:
    """All actions are one and the same: v = (x − a) / t, the estimate is a whatever x is, and J is 0."""
    only, other, noise = torch.full((1, LENGTH, 1), 0.3), torch.ones(1, LENGTH, 1), torch.randn(1, LENGTH, 1)

    def sure(x: Tensor, time: float) -> Tensor:
        return (x - only) / time

    free = integrate(guided(sure, Guidance(other, weights(4, 4))), noise, 10)
    assert (free - only).abs().max() < 1e-5
    bent = integrate(guided(sure, Guidance(other, weights(4, 4), jacobian=False)), noise, 10)
    assert (bent - only)[:, :4].min() > 0.1 and (bent - only)[:, 4:].abs().max() < 1e-5


def test_the_weight_of_guidance_is_bounded_everywhere() -> None:
    for time in (1.0, 0.999, 0.7, 0.5, 0.1, 1e-9, 0.0):
        assert 0 < guidance_weight(time, 5.0) <= 5.0
    assert guidance_weight(0.5, 5.0) == 2.0 and guidance_weight(1.0, 5.0) == guidance_weight(0.0, 5.0) == 5.0


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_is_guided(solver: str) -> None:
    def flat(x: Tensor, time: float) -> Tensor:
        return x * 0.5

    old = torch.ones(1, LENGTH, 1)
    noise = torch.zeros(1, LENGTH, 1)
    found = integrate(guided(flat, Guidance(old, weights(8, 8))), noise, 10, solver)
    assert 0.8 < float(found.min()) <= float(found.max()) < 1.2


# SmolVLA.


def policy_of(name: str) -> tuple[SmolVLAPolicy, dict, int]:
    case, config = smolvla_case(name)
    policy = SmolVLAPolicy(SmolVLAConfig.from_dict(config)).eval()
    draw_weights(policy, case["seed"])
    return policy, smolvla_batch(case, config), case["seed"]


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("name", RTC_CASES)
def test_chunks_are_the_references(name: str, jacobian: bool) -> None:
    case, delay, left, schedule, most = RTC_CASES[name]
    policy, batch, seed = policy_of(case)
    size, width, chunk = len(batch["noise"]), policy.config.max_action_dim, policy.config.chunk_size
    old = torch.zeros(size, chunk, width)
    old[:, :left] = normal(seed, "leftover", size, left, width)
    w = weights(delay, left, schedule, chunk).expand(size, -1, -1)
    with torch.no_grad():
        found = policy.model.sample_actions(
            *policy._inputs(batch), noise=batch["noise"], guidance=Guidance(old, w, most, jacobian)
        )
    expected = np.load(DATA / "rtc" / "expected.npz")
    key = f"{name}.{'with a gradient' if jacobian else 'as it is'}"
    assert difference(found, torch.from_numpy(expected[key])) <= 1e-5


VARIANTS = [
    {},
    {"attention_mode": "self_attn"},
    {"self_attn_every_n_layers": -1},
    {"relative_step": 0.2},
    {"use_cache": False},
    {"empty_cameras": 1, "prefix_length": 70},
    {"num_steps": 3},
]


@pytest.mark.parametrize("jacobian", [True, False])
@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_the_engine_gives_what_the_policy_gives(settings: dict, jacobian: bool) -> None:
    policy, batch, noise = tiny_policy(**settings).eval(), tiny_batch(), tiny_noise()
    policy.model.vlm_with_expert.vlm.requires_grad_(True)  # nothing of it is differentiated all the same
    old = torch.randn(2, LENGTH, 6, generator=torch.Generator().manual_seed(5))
    w = torch.stack([prefix_weights(2, 5, LENGTH), prefix_weights(0, 8, LENGTH, "linear")])[..., None]
    guidance = Guidance(old, w, 5.0, jacobian)
    plain = policy.predict_action_chunk(batch, noise)
    expected = policy.predict_action_chunk(batch, noise, guidance)
    engine = policy.build_engine(dtype=torch.float32)
    before = engine.predict_action_chunk(batch, noise)
    found = engine.predict_action_chunk(batch, noise, guidance)
    assert difference(found, expected) <= 1e-5
    assert torch.equal(engine.predict_action_chunk(batch, noise), before)
    assert torch.equal(policy.predict_action_chunk(batch, noise), plain)
    assert not found.requires_grad and all(parameter.grad is None for parameter in policy.parameters())
    near, far = ((x - old)[0, :2].abs().mean() for x in (expected, plain))
    assert near < far / 2
    with torch.inference_mode():
        inside = {key: value.clone() for key, value in batch.items()}, noise.clone(), guidance
        assert torch.equal(policy.predict_action_chunk(*inside), expected)
        assert torch.equal(engine.predict_action_chunk(*inside), found)


@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_the_engines_other_solvers_are_guided(solver: str) -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    old = policy.predict_action_chunk(batch, tiny_noise(seed=9))
    engine = policy.build_engine(dtype=torch.float32, solver=solver)
    found = engine.predict_action_chunk(batch, noise, Guidance(old, weights(4, 4).expand(2, -1, -1)))
    plain = engine.predict_action_chunk(batch, noise)
    assert (found - old)[:, :4].abs().mean() < (plain - old)[:, :4].abs().mean() / 2


def test_weights_of_nothing_change_nothing() -> None:
    policy, batch, noise = tiny_policy().eval(), tiny_batch(), tiny_noise()
    guidance = Guidance(torch.full((2, LENGTH, 6), 100.0), torch.zeros(2, LENGTH, 1))
    assert (
        difference(
            policy.predict_action_chunk(batch, noise, guidance), policy.predict_action_chunk(batch, noise)
        )
        < 1e-6
    )


def test_network_actions_undo_what_finishes_them() -> None:
    for settings in ({}, {"relative_step": 0.3}):
        policy = tiny_policy(**settings)
        state = policy.prepare_state(tiny_batch())
        actions = torch.randn(2, LENGTH, 6)
        network = policy.network_actions(actions, state)
        assert network.shape == (2, LENGTH, 8) and (network[..., 6:] == 0).all()
        assert torch.allclose(policy.finish_actions(network, state), actions, atol=1e-6)
    policy, batch, _ = policy_of("aloha")
    state = policy.prepare_state(batch)
    sampled = 0.1 * torch.randn(3, policy.config.chunk_size, 14)
    finished = policy.finish_actions(sampled, state)
    assert torch.allclose(policy.network_actions(finished, state)[..., :14], sampled, atol=1e-5)


def test_guidance_of_another_shape_and_without_a_gradient_is_told() -> None:
    policy, batch, noise = tiny_policy(), tiny_batch(), tiny_noise()
    for actions, w in (
        ((2, 7, 6), (2, 7, 1)),
        ((1, LENGTH, 6), (2, LENGTH, 1)),
        ((2, LENGTH, 6), (2, LENGTH)),
    ):
        with pytest.raises(FeatureError, match="Guidance is for actions"):
            policy.predict_action_chunk(batch, noise, Guidance(torch.zeros(actions), torch.zeros(w)))
    engine = policy.build_engine(int8=True)
    assert not engine.takes_leftover and policy.takes_leftover and policy.build_engine().takes_leftover
    with pytest.raises(ConfigError, match="no gradient"):
        engine.predict_action_chunk(
            batch, noise, Guidance(torch.zeros(2, LENGTH, 6), torch.zeros(2, LENGTH, 1))
        )
