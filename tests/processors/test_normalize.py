from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smolact.errors import ConfigError, FeatureError, StatisticsError
from smolact.processors.normalize import (
    NormalizerProcessorStep,
    UnnormalizerProcessorStep,
    normalize,
    unnormalize,
)
from smolact.types import FeatureType, NormalizationMode, PolicyFeature

STATE = {"observation.state": PolicyFeature(FeatureType.STATE, (2,))}
IMAGE = {"observation.image": PolicyFeature(FeatureType.VISUAL, (3, 4, 4))}
ACTION = {"action": PolicyFeature(FeatureType.ACTION, (2,))}
MODES = [mode for mode in NormalizationMode if mode is not NormalizationMode.IDENTITY]
VALUES = {
    "mean": [1.0, 2.0],
    "std": [2.0, 4.0],
    "min": [0.0, -10.0],
    "max": [4.0, 10.0],
    "q01": [1.0, -8.0],
    "q99": [3.0, 8.0],
    "q10": [1.5, -4.0],
    "q90": [2.5, 4.0],
}


def every_type(mode: NormalizationMode) -> dict[FeatureType, NormalizationMode]:
    return dict.fromkeys(FeatureType, mode)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (NormalizationMode.MEAN_STD, [1.0, 1.5]),
        (NormalizationMode.MIN_MAX, [0.5, 0.8]),
        (NormalizationMode.QUANTILES, [1.0, 1.0]),
        (NormalizationMode.QUANTILE10, [2.0, 2.0]),
        (NormalizationMode.IDENTITY, [3.0, 8.0]),
    ],
)
def test_each_mode_uses_its_own_statistics(mode: NormalizationMode, expected: list[float]) -> None:
    data = {"observation.state": torch.tensor([[3.0, 8.0]]), "action": torch.tensor([[[3.0, 8.0]]])}
    stats = {"observation.state": VALUES, "action": VALUES}
    normalized = NormalizerProcessorStep({**STATE, **ACTION}, every_type(mode), stats)(data)
    for key in data:
        torch.testing.assert_close(normalized[key].flatten(), torch.tensor(expected))
    back = UnnormalizerProcessorStep(ACTION, every_type(mode), stats)(normalized)
    torch.testing.assert_close(back["action"], data["action"])


finite = st.floats(-1e3, 1e3)


@pytest.mark.parametrize("mode", MODES)
@given(values=st.lists(finite, min_size=1, max_size=8), first=finite, width=st.floats(0.01, 1e3))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_unnormalizing_undoes_normalizing(
    mode: NormalizationMode, values: list[float], first: float, width: float
) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    second = width if mode is NormalizationMode.MEAN_STD else first + width
    pair = (torch.tensor(first, dtype=torch.float64), torch.tensor(second, dtype=torch.float64))
    there = normalize(x, pair, mode)
    slack = 2e3 * 1e-8 / width + 1e-9  # (x - mean) / (std + eps) comes back times std
    torch.testing.assert_close(unnormalize(there, pair, mode), x, rtol=0, atol=slack)


@pytest.mark.parametrize(
    "mode", [NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10]
)
def test_a_value_that_never_moved_becomes_minus_one_and_comes_back(mode: NormalizationMode) -> None:
    pair = (torch.tensor([5.0]), torch.tensor([5.0]))
    there = normalize(torch.tensor([5.0]), pair, mode)
    assert there.item() == -1
    assert unnormalize(there, pair, mode).item() == 5.0


def test_a_standard_deviation_of_zero_does_not_divide_by_zero() -> None:
    pair = (torch.tensor([5.0]), torch.tensor([0.0]))
    assert normalize(torch.tensor([5.0]), pair, NormalizationMode.MEAN_STD).item() == 0
    assert unnormalize(torch.tensor([9.0]), pair, NormalizationMode.MEAN_STD).item() == 5.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("step_class", [NormalizerProcessorStep, UnnormalizerProcessorStep])
def test_a_missing_statistic_is_an_error_when_the_step_is_made(
    step_class: Any, mode: NormalizationMode
) -> None:
    stats = {"observation.state": {"count": [3]}, "other": VALUES}
    with pytest.raises(
        StatisticsError, match=rf"'observation\.state'.*{mode.value}.*has only its count.*--policy\.stats="
    ):
        step_class(STATE, every_type(mode), stats)
    with pytest.raises(
        StatisticsError, match=r"'observation\.state'.*none of it \(it has statistics of other"
    ):
        step_class(STATE, every_type(mode), {"other": VALUES})


def test_without_any_statistics_the_first_batch_is_an_error() -> None:
    step = NormalizerProcessorStep(STATE, every_type(NormalizationMode.MEAN_STD))
    assert step({"task": "x"}) == {"task": "x"}
    with pytest.raises(StatisticsError, match=r"'observation\.state'.*mean and std.*none of it\."):
        step({"observation.state": torch.zeros(1, 2)})


def test_a_state_file_without_the_statistics_is_an_error_when_they_are_used() -> None:
    step = NormalizerProcessorStep(STATE, every_type(NormalizationMode.MEAN_STD))
    step.load_state_dict({})
    assert list(step.statistics_problems()) == ["observation.state"]
    with pytest.raises(StatisticsError, match=r"'observation\.state'"):
        step({"observation.state": torch.zeros(1, 2)})


def test_identity_needs_no_statistics() -> None:
    step = NormalizerProcessorStep(STATE, every_type(NormalizationMode.IDENTITY))
    step.load_state_dict({})
    state = torch.tensor([[1.0, 2.0]])
    assert torch.equal(step({"observation.state": state})["observation.state"], state)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_a_statistic_that_is_not_finite_is_an_error(bad: float) -> None:
    stats = {"observation.state": {**VALUES, "std": [1.0, bad]}}
    with (
        pytest.raises(StatisticsError, match=r"std of 'observation\.state' is not finite"),
        np.errstate(over="ignore"),
    ):
        NormalizerProcessorStep(STATE, every_type(NormalizationMode.MEAN_STD), stats)


def test_statistics_that_no_mode_needs_may_be_anything_finite_or_not() -> None:
    stats = {"observation.state": {**VALUES, "max": [math.inf, 0.0]}, "unused": {"mean": [math.nan]}}
    step = NormalizerProcessorStep(STATE, every_type(NormalizationMode.MEAN_STD), stats)
    assert torch.isfinite(step({"observation.state": torch.zeros(1, 2)})["observation.state"]).all()


def test_statistics_of_another_shape_are_an_error() -> None:
    stats = {"observation.state": {"mean": [0.0] * 7, "std": [1.0] * 7}}
    with pytest.raises(StatisticsError, match=r"\(7,\).*\(2,\).*another robot"):
        NormalizerProcessorStep(STATE, every_type(NormalizationMode.MEAN_STD), stats)


@pytest.mark.parametrize("bad", ["abc", [[1], [2, 3]], {"a": 1}])
def test_statistics_that_are_no_numbers_are_an_error(bad: Any) -> None:
    with pytest.raises(StatisticsError, match="not arrays of numbers"):
        NormalizerProcessorStep(
            STATE, every_type(NormalizationMode.MEAN_STD), {"observation.state": {"mean": bad}}
        )


def test_data_of_another_shape_is_an_error_not_a_broadcast() -> None:
    step = NormalizerProcessorStep(
        STATE, every_type(NormalizationMode.MEAN_STD), {"observation.state": VALUES}
    )
    for shape in [(4, 3), (4, 1), ()]:
        with pytest.raises(FeatureError, match=r"observation\.state"):
            step({"observation.state": torch.zeros(shape)})
    with pytest.raises(FeatureError, match="ndarray"):
        step({"observation.state": np.zeros(2)})


def test_an_action_that_is_not_there_is_passed_over() -> None:
    step = NormalizerProcessorStep(ACTION, every_type(NormalizationMode.MEAN_STD), {"action": VALUES})
    assert step({"action": None}) == {"action": None}


@pytest.mark.parametrize("shape", [(3,), (3, 1, 1)])
def test_images_are_made_floats_and_normalized_by_channel(shape: tuple[int, ...]) -> None:
    stats = {"observation.image": {"mean": np.full(shape, 0.5), "std": np.full(shape, 0.25)}}
    step = NormalizerProcessorStep(IMAGE, every_type(NormalizationMode.MEAN_STD), stats)
    image = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    normalized = step({"observation.image": image})["observation.image"]
    torch.testing.assert_close(normalized, torch.full((2, 3, 4, 4), 2.0))


def test_images_that_are_not_normalized_are_made_floats_too() -> None:
    step = NormalizerProcessorStep(IMAGE, {FeatureType.VISUAL: NormalizationMode.IDENTITY})
    image = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    assert torch.equal(step({"observation.image": image})["observation.image"], torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize("shape", [(), (2,)])
def test_half_precision_is_computed_in_float32(shape: tuple[int, ...]) -> None:
    one = {"mean": np.full(shape, 100.0), "std": np.full(shape, 0.1)}
    modes, stats = every_type(NormalizationMode.MEAN_STD), {"observation.state": one, "action": one}
    state = torch.tensor([[100.5, 101.0]], dtype=torch.bfloat16)  # bfloat16 steps by 0.5 up there
    batch = NormalizerProcessorStep(STATE, modes, stats)({"observation.state": state})
    torch.testing.assert_close(batch["observation.state"], torch.tensor([[5.0, 10.0]], dtype=torch.bfloat16))
    action = torch.ones(1, 2, dtype=torch.bfloat16)
    back = UnnormalizerProcessorStep(ACTION, modes, stats)({"action": action})
    torch.testing.assert_close(back["action"], torch.tensor([[100.1, 100.1]]))


def test_only_the_chosen_observations_are_normalized() -> None:
    features = {**STATE, **ACTION, "observation.more": PolicyFeature(FeatureType.STATE, (1,))}
    stats = {"observation.state": VALUES, "action": VALUES}
    step = NormalizerProcessorStep(
        features,
        every_type(NormalizationMode.MEAN_STD),
        stats,
        normalize_observation_keys={"observation.state"},
    )
    data = {key: torch.ones(1, *feature.shape) for key, feature in features.items()}
    normalized = step(data)
    assert [key for key in data if not torch.equal(normalized[key], data[key])] == [
        "observation.state",
        "action",
    ]
    assert step.get_config()["normalize_observation_keys"] == ["observation.state"]


def test_the_statistics_are_a_copy_of_those_given() -> None:
    mean = np.zeros(2, dtype=np.float32)
    step = NormalizerProcessorStep(
        STATE,
        every_type(NormalizationMode.MEAN_STD),
        {"observation.state": {"mean": mean, "std": torch.ones(2)}},
    )
    mean += 5
    step.state_dict()["observation.state.std"].fill_(9)
    assert step.statistics["observation.state"]["mean"].tolist() == [0, 0]
    assert step.statistics["observation.state"]["std"].tolist() == [1, 1]


def test_given_statistics_win_over_those_of_a_state_file() -> None:
    step = NormalizerProcessorStep(
        STATE, every_type(NormalizationMode.MEAN_STD), {"observation.state": VALUES}
    )
    step.load_state_dict(
        {"observation.state.mean": torch.full((2,), 7.0), "observation.state.std": torch.ones(2)}
    )
    assert step.statistics["observation.state"]["mean"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("features", "norm_map", "eps"),
    [
        ({"a": {"type": "SMELL", "shape": [1]}}, {}, 1e-8),
        ({"a": {"shape": [1]}}, {}, 1e-8),
        ({"a": {"type": "STATE", "shape": None}}, {}, 1e-8),
        ([], {}, 1e-8),
        ({}, {"STATE": "MEDIAN"}, 1e-8),
        ({}, {"SMELL": "IDENTITY"}, 1e-8),
        ({}, None, 1e-8),
        ({}, {}, "small"),
        ({}, {}, math.nan),
        ({}, {}, -1.0),
    ],
)
def test_a_configuration_that_makes_no_sense_is_an_error(features: Any, norm_map: Any, eps: Any) -> None:
    with pytest.raises(ConfigError):
        NormalizerProcessorStep(features, norm_map, eps=eps)
