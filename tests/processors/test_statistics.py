from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from smolact.errors import StatisticsError
from smolact.processors.legacy import is_statistics_key, state_of_old_weights
from smolact.processors.normalize import NormalizerProcessorStep
from smolact.processors.statistics import (
    dataset_keys,
    fill_statistics,
    rename_statistics,
    require_statistics,
    select_statistics,
)
from smolact.types import FeatureType, NormalizationMode, PolicyFeature


def one(value: float) -> Tensor:
    return torch.tensor([value])


BASE_MODEL = {
    f"{dataset}.buffer.{feature}.{statistic}": one(place)
    for place, (dataset, feature, statistic) in enumerate(
        (dataset, feature, statistic)
        for dataset in ("so100", "so100-red", "so100-blue")
        for feature in ("observation.state", "action")
        for statistic in ("mean", "std")
    )
}


def test_plain_statistics_need_no_key() -> None:
    state = {"observation.state.mean": one(1), "observation.state.std": one(2), "action.q01": one(3)}
    assert select_statistics(state) == {
        "observation.state": {"mean": one(1), "std": one(2)},
        "action": {"q01": one(3)},
    }
    assert dataset_keys(state) == ()


def test_one_of_several_datasets_must_be_picked_and_the_error_lists_them() -> None:
    with pytest.raises(
        StatisticsError, match=r"3 datasets.*--policy\.stats_key=KEY.*so100, so100-blue, so100-red"
    ):
        select_statistics(BASE_MODEL)


def test_the_picked_dataset_is_taken() -> None:
    assert select_statistics(BASE_MODEL, "so100-red") == {
        "observation.state": {"mean": one(4), "std": one(5)},
        "action": {"mean": one(6), "std": one(7)},
    }


def test_a_single_dataset_needs_no_picking() -> None:
    state = {key: value for key, value in BASE_MODEL.items() if key.startswith("so100-red.")}
    assert select_statistics(state) == select_statistics(BASE_MODEL, "so100-red")


def test_a_key_that_is_not_there_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(StatisticsError, match=r"so100, so100-blue, so100-red\. Did you mean 'so100-red'"):
        select_statistics(BASE_MODEL, "so100-rod")
    with pytest.raises(StatisticsError, match=r"not keep them by dataset\. Leave --policy\.stats_key out"):
        select_statistics({"action.mean": one(1)}, "so100")


def test_a_feature_gets_its_own_name_back() -> None:
    state = {"so100.buffer.observation.images.left.wrist.mean": one(1), "so100.buffer.action.mean": one(2)}
    selected = select_statistics(state, features=["observation.images.left_wrist", "action"])
    assert list(selected) == ["observation.images.left_wrist", "action"]


def test_a_feature_that_is_called_buffer_is_no_dataset() -> None:
    assert dataset_keys({"observation.buffer.depth.mean": one(1), "replay_buffer_size.mean": one(2)}) == ()


def test_statistics_are_renamed_with_their_features() -> None:
    assert rename_statistics({"a": 1, "b": 2}, {"a": "c"}) == {"c": 1, "b": 2}


def step(stats_key: str | None = None) -> NormalizerProcessorStep:
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (1,))}
    modes = {FeatureType.STATE: NormalizationMode.MEAN_STD}
    return NormalizerProcessorStep(features, modes, stats_key=stats_key)


def test_the_step_takes_the_picked_dataset_and_keeps_plain_names() -> None:
    normalizer = step("so100-blue")
    normalizer.load_state_dict(BASE_MODEL)
    assert normalizer({"observation.state": one(17)})["observation.state"].item() == pytest.approx(
        (17 - 8) / 9
    )
    assert set(normalizer.state_dict()) == {
        f"{name}.{of}" for name in ("observation.state", "action") for of in ("mean", "std")
    }
    again = step()
    again.load_state_dict(normalizer.state_dict())
    assert again.statistics == normalizer.statistics


def test_the_step_opens_without_choosing_a_dataset_and_keeps_them_all() -> None:
    normalizer = step()
    normalizer.load_state_dict(BASE_MODEL)
    assert normalizer.state_dict() == BASE_MODEL
    with pytest.raises(
        StatisticsError, match=r"Pick one with --policy\.stats_key=KEY.*so100-red.*--policy\.stats="
    ):
        normalizer({"observation.state": one(17)})


ACTIONS_ONLY = {key: value for key, value in BASE_MODEL.items() if ".action." in key}
"""What a migration left of the base model: its actions' statistics, not its state's."""


def test_a_picked_dataset_without_the_feature_is_an_error_when_it_is_used() -> None:
    normalizer = step("so100")
    normalizer.load_state_dict(ACTIONS_ONLY)
    with pytest.raises(
        StatisticsError, match=r"'observation\.state'.*none of it \(it has statistics of action\)"
    ):
        require_statistics(Pipeline(normalizer))
    with pytest.raises(StatisticsError, match=r"'observation\.state'.*--policy\.stats="):
        normalizer({"observation.state": one(17)})


class Pipeline:
    def __init__(self, *steps: NormalizerProcessorStep) -> None:
        self.steps = steps


def test_what_a_checkpoint_lacks_is_filled_and_what_it_has_stays() -> None:
    normalizer = step("so100")
    normalizer.load_state_dict(ACTIONS_ONLY)
    action = normalizer.statistics["action"]["mean"].item()
    given = {"observation.state": {"mean": [1.0], "std": [2.0]}, "action": {"mean": [99.0], "std": [99.0]}}
    assert fill_statistics([Pipeline(normalizer)], given, "mine") == ["observation.state"]
    assert normalizer({"observation.state": one(5)})["observation.state"].item() == 2
    assert normalizer.statistics["action"]["mean"].item() == action
    assert fill_statistics([Pipeline(normalizer)], given, "mine") == []
    require_statistics(Pipeline(normalizer))


def test_statistics_that_do_not_fill_the_gap_are_refused() -> None:
    normalizer = step("so100")
    normalizer.load_state_dict(ACTIONS_ONLY)
    with pytest.raises(
        StatisticsError, match=r"--policy\.stats=mine: it has no mean and std of 'observation\.state'"
    ):
        fill_statistics([Pipeline(normalizer)], {"action": {"mean": [0.0], "std": [1.0]}}, "mine")


def test_filled_statistics_are_saved_beside_those_of_several_datasets() -> None:
    normalizer = step()
    normalizer.load_state_dict(ACTIONS_ONLY)
    fill_statistics([Pipeline(normalizer)], {"observation.state": {"mean": [1.0], "std": [2.0]}}, "mine")
    again = step()
    again.load_state_dict(normalizer.state_dict())
    assert again({"observation.state": one(5)})["observation.state"].item() == 2
    assert again.state_dict().keys() == {*ACTIONS_ONLY, "observation.state.mean", "observation.state.std"}


OLD_WEIGHTS = {
    "normalize_inputs.buffer_observation_state.mean": one(1),
    "normalize_inputs.buffer_observation_state.std": one(2),
    "normalize_inputs.buffer_observation_images_left_wrist.mean": torch.ones(3, 1, 1),
    "normalize_targets.buffer_action.mean": one(3),
    "normalize_targets.buffer_action.std": one(4),
    "unnormalize_outputs.buffer_action.mean": one(3),
    "unnormalize_outputs.buffer_action.std": one(4),
    "model.state_proj.weight": torch.full((2, 2), math.nan),
}
FEATURES = ["observation.state", "observation.images.left_wrist", "action"]


def among(weights: dict[str, torch.Tensor], key: str | None = None) -> dict[str, dict[str, list[float]]]:
    """The statistics that a step finds among an older checkpoint's weights."""
    features = {name: PolicyFeature(FeatureType.STATE, (1,)) for name in ("observation.state", "action")}
    features["observation.images.left_wrist"] = PolicyFeature(FeatureType.VISUAL, (3, 8, 8))
    normalizer = NormalizerProcessorStep(
        features, {FeatureType.STATE: NormalizationMode.MEAN_STD}, stats_key=key
    )
    normalizer.load_state_dict(state_of_old_weights(weights))
    require_statistics(Pipeline(normalizer))
    return {
        key: {name: value.flatten().tolist() for name, value in of.items()}
        for key, of in normalizer.statistics.items()
    }


def test_statistics_are_found_among_older_weights() -> None:
    assert among(OLD_WEIGHTS) == {
        "observation.state": {"mean": [1], "std": [2]},
        "observation.images.left_wrist": {"mean": [1, 1, 1]},
        "action": {"mean": [3], "std": [4]},
    }


def test_only_statistics_are_told_from_weights() -> None:
    keys = [*OLD_WEIGHTS, "normalize_inputs.so100_buffer_action.max", "model.norm.mean", "normalize.weight"]
    assert [key for key in keys if not is_statistics_key(key)] == [
        "model.state_proj.weight",
        "model.norm.mean",
        "normalize.weight",
    ]


def test_older_weights_trained_on_several_datasets_need_a_key() -> None:
    weights = {
        f"normalize_inputs.{dataset}_buffer_{feature}.{name}": one(value)
        for dataset, value in (("so100", 1), ("so100-red", 2))
        for feature in ("observation_state", "action")
        for name in ("mean", "std")
    }
    with pytest.raises(StatisticsError, match="so100, so100-red"):
        among(weights)
    assert among(weights, "so100-red")["observation.state"]["mean"] == [2]


def test_statistics_that_were_never_set_are_an_error() -> None:
    weights = {**OLD_WEIGHTS, "normalize_inputs.buffer_observation_state.mean": one(math.inf)}
    with pytest.raises(
        StatisticsError, match=r"mean of 'observation\.state' is not finite.*--policy\.stats="
    ):
        among(weights)


@pytest.mark.parametrize("layer", ["normalize_targets", "unnormalize_outputs"])
def test_of_two_copies_the_one_that_was_set_is_taken(layer: str) -> None:
    weights = {**OLD_WEIGHTS, f"{layer}.buffer_action.mean": one(math.inf)}
    assert among(weights)["action"]["mean"] == [3]


def test_two_copies_that_differ_are_an_error() -> None:
    weights = {**OLD_WEIGHTS, "unnormalize_outputs.buffer_action.mean": one(5)}
    with pytest.raises(
        StatisticsError, match=r"two different values.*unnormalize_outputs\.buffer_action\.mean"
    ):
        among(weights)


def test_weights_without_statistics_are_an_error_before_they_are_used() -> None:
    with pytest.raises(
        StatisticsError, match=r"needs more statistics.*\n.*'observation\.state'.*\n.*'action'"
    ):
        among({"model.state_proj.weight": one(1)})
