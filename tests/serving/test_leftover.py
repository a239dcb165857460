"""A new chunk goes on from what is left of the old one, in the robot's units, here and on a server."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from smolact.errors import FeatureError
from smolact.policies.common.guidance import Guidance, prefix_weights
from smolact.policies.factory import LoadedPolicy, load_policy
from smolact.processors.normalize import NormalizerProcessorStep, UnnormalizerProcessorStep
from smolact.runtime.local import LocalPolicy
from smolact.runtime.policy import Request
from smolact.serving.background import serving
from smolact.types import ACTION, TASK
from smolact_client import Leftover, ObservationError, RemotePolicy, handshake
from smolact_client.leftover import check_leftover, read_leftover
from tests.evaluation.test_suite import checkpoint
from tests.serving.test_local import IMAGE, STATE, WORDS, seen


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    return load_policy(checkpoint(tmp_path_factory.mktemp("policy"), 0), device="cpu")


def left(local: LocalPolicy, count: int = 5, **settings: Any) -> Leftover:
    chunk = local.predict_action_chunk(seen(9), WORDS, seed=9)
    return Leftover(chunk[:count], **{"delay": 3, **settings})


def test_it_is_normalized_as_the_policys_actions_are(loaded: LoadedPolicy) -> None:
    policy, preprocess, postprocess = loaded
    local = LocalPolicy(*loaded)
    leftover = left(local, schedule="linear", max_weight=4.0)
    noise = torch.randn(policy.noise_shape, generator=torch.Generator().manual_seed(5))  # type: ignore[attr-defined]
    old = torch.zeros(1, 8, 2)
    old[0, :5] = torch.from_numpy(leftover.actions)
    batch = preprocess(
        {
            IMAGE: torch.from_numpy(seen(1)[IMAGE]).permute(2, 0, 1)[None] / 255,
            STATE: torch.from_numpy(seen(1)[STATE])[None],
            TASK: [WORDS],
            ACTION: old,
        }
    )
    weights = prefix_weights(3, 5, 8, "linear")[None, :, None]
    guidance = Guidance(batch[ACTION], weights, 4.0)
    expected = postprocess(policy.predict_action_chunk(batch, noise[None], guidance))[0]  # type: ignore[call-arg]
    found = local.predict_action_chunk(seen(1), WORDS, seed=5, leftover=leftover)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_here_and_there_and_in_a_batch_it_is_the_same(loaded: LoadedPolicy) -> None:
    local = LocalPolicy(*loaded)
    assert local.schema.takes_leftover
    first, second = left(local), left(local, 2, delay=1)
    alone = [
        local.predict_action_chunk(seen(number), WORDS, seed=number, leftover=one)
        for number, one in enumerate((first, second, None))
    ]
    plain = local.predict_action_chunk(seen(0), WORDS, seed=0)
    near, far = (np.abs(chunk - left(local).actions[0])[0].max() for chunk in (alone[0], plain))
    assert near < far / 3
    with serving(local) as url, RemotePolicy(url, timeout=60) as remote:
        there = remote.predict_action_chunk(seen(0), WORDS, seed=0, leftover=first)
        np.testing.assert_array_equal(there, alone[0])
        np.testing.assert_array_equal(remote.predict_action_chunk(seen(0), WORDS, seed=0), plain)
    questions = [
        Request(seen(number), WORDS, number, one) for number, one in enumerate((first, second, None))
    ]
    for found, expected in zip(local.predict(questions), alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def with_spread(loaded: LoadedPolicy, spread: list[float], both: bool = True) -> LocalPolicy:
    """The same policy, its second number's scale changed."""
    feature = loaded.policy.config.output_features[ACTION]
    known = {"mean": np.array([0.5, 90.0]), "std": np.array(spread)}
    kinds = {feature.type: loaded.policy.config.normalization_mapping[feature.type]}
    before = NormalizerProcessorStep({ACTION: feature}, kinds, {ACTION: known})
    after = UnnormalizerProcessorStep({ACTION: feature}, kinds, {ACTION: known})

    def preprocess(batch: dict[str, Any]) -> dict[str, Any]:
        action = {ACTION: batch[ACTION]} if ACTION in batch else {}
        rest = loaded.preprocess({key: value for key, value in batch.items() if key != ACTION})
        return {**rest, **(before(action) if both else action)}

    return LocalPolicy(loaded.policy, preprocess, lambda action: after({ACTION: action})[ACTION])


def test_a_number_that_never_moved_is_not_guided(loaded: LoadedPolicy) -> None:
    """Its scale is 0: a rounding of 1e-6 in the robot's units would be hundreds to the policy."""
    still = with_spread(loaded, [0.2, 0.0])
    actions = np.array([[0.5, 90.00001]] * 4, np.float32)
    found = still.predict_action_chunk(seen(0), WORDS, seed=0, leftover=Leftover(actions, 2))
    assert np.abs(found[:2, 0] - 0.5).max() < 0.1 and np.abs(found[:, 1] - 90).max() < 1e-3


def test_processors_that_are_not_of_one_training_are_told(loaded: LoadedPolicy) -> None:
    odd = with_spread(loaded, [0.2, 3.0], both=False)
    with pytest.raises(FeatureError, match="does not normalize actions"):
        odd.predict_action_chunk(seen(0), WORDS, leftover=Leftover(np.ones((3, 2), np.float32), 1))


GOOD = Leftover(np.zeros((4, 2), np.float32), 2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"actions": np.zeros((4, 3), np.float32)}, "expected .1 to 8, 2. float32"),
        ({"actions": np.zeros((9, 2), np.float32)}, "expected .1 to 8"),
        ({"actions": np.zeros((0, 2), np.float32)}, "expected .1 to 8"),
        ({"actions": np.zeros((4, 2))}, "float64"),
        ({"actions": np.full((4, 2), np.nan, np.float32)}, "not finite"),
        ({"delay": -1}, "count of actions"),
        ({"delay": True}, "count of actions"),
        ({"delay": 2**40}, "count of actions"),
        ({"schedule": "steep"}, "one of exp"),
        ({"schedule": ["exp"]}, "one of exp"),
        ({"jacobian": 1}, "true or false"),
        ({"max_weight": 0}, "above 0"),
        ({"max_weight": float("nan")}, "above 0"),
        ({"max_weight": 1e9}, "above 0"),
    ],
)
def test_what_can_not_be_gone_on_from_is_told(
    loaded: LoadedPolicy, wrong: dict[str, Any], message: str
) -> None:
    schema = LocalPolicy(*loaded).schema
    check_leftover(schema, GOOD)
    with pytest.raises(ObservationError, match=message):
        check_leftover(schema, dataclasses.replace(GOOD, **wrong))


def test_a_policy_that_can_not_go_on_says_so(loaded: LoadedPolicy) -> None:
    local = LocalPolicy(*loaded)
    schema = dataclasses.replace(local.schema, takes_leftover=False, policy="smolandfast")
    with pytest.raises(ObservationError, match="'smolandfast' policy can't go on"):
        check_leftover(schema, GOOD)
    told = handshake.welcome(local.schema, handshake.Limits(), True)
    told["schema"] = {key: list(value) if key == "names" else value for key, value in told["schema"].items()}
    told["schema"] |= {"cameras": {IMAGE: [64, 64]}, "names": {}, "action_range": None}
    assert handshake.read_welcome(told).schema.takes_leftover
    told["schema"].pop("takes_leftover")  # a server that knows nothing of it
    assert not handshake.read_welcome(told).schema.takes_leftover


def test_half_of_a_leftover_is_refused() -> None:
    assert read_leftover({"task": "x"}, None) is None
    whole = read_leftover(GOOD.fields, GOOD.actions)
    assert whole is not None and whole.fields == GOOD.fields
    for fields, array in ((GOOD.fields, None), ({}, GOOD.actions), ({"leftover": 3}, GOOD.actions)):
        with pytest.raises(ObservationError, match="one of them is missing"):
            read_leftover(fields, array)
