from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from smolact.errors import StatisticsError
from smolact.processors.legacy import is_statistics_key, statistics_from_old_weights
from smolact.processors.normalize import NormalizerProcessorStep
from smolact.processors.statistics import dataset_keys, rename_statistics, select_statistics
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


def test_the_step_does_not_choose_a_dataset() -> None:
    with pytest.raises(StatisticsError, match="Pick one"):
        step().load_state_dict(BASE_MODEL)


def test_a_picked_dataset_without_the_feature_is_an_error() -> None:
    # What a migration left of the base model: its actions' statistics, not its state's.
    actions_only = {key: value for key, value in BASE_MODEL.items() if ".action." in key}
    with pytest.raises(StatisticsError, match=r"'observation\.state'.*statistics of action"):
        step("so100").load_state_dict(actions_only)


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


def test_statistics_are_found_among_older_weights() -> None:
    found = statistics_from_old_weights(OLD_WEIGHTS, FEATURES)
    assert {
        key: {name: value.flatten().tolist() for name, value in of.items()} for key, of in found.items()
    } == {
        "observation.state": {"mean": [1], "std": [2]},
        "observation.images.left_wrist": {"mean": [1, 1, 1]},
        "action": {"mean": [3], "std": [4]},
    }
    assert all(isinstance(value, np.ndarray) for of in found.values() for value in of.values())


def test_only_statistics_are_told_from_weights() -> None:
    keys = [*OLD_WEIGHTS, "normalize_inputs.so100_buffer_action.max", "model.norm.mean", "normalize.weight"]
    assert [key for key in keys if not is_statistics_key(key)] == [
        "model.state_proj.weight",
        "model.norm.mean",
        "normalize.weight",
    ]


def test_older_weights_trained_on_several_datasets_need_a_key() -> None:
    weights = {
        f"normalize_inputs.{dataset}_buffer_observation_state.{name}": one(value)
        for dataset, value in (("so100", 1), ("so100-red", 2))
        for name in ("mean", "std")
    }
    with pytest.raises(StatisticsError, match="so100, so100-red"):
        statistics_from_old_weights(weights, ["observation.state"])
    picked = statistics_from_old_weights(weights, ["observation.state"], "so100-red")
    assert picked["observation.state"]["mean"].tolist() == [2]


def test_statistics_that_were_never_set_are_an_error() -> None:
    weights = {**OLD_WEIGHTS, "normalize_inputs.buffer_observation_state.mean": one(math.inf)}
    with pytest.raises(StatisticsError, match=r"mean of observation\.state.*not finite"):
        statistics_from_old_weights(weights, FEATURES)


@pytest.mark.parametrize("layer", ["normalize_targets", "unnormalize_outputs"])
def test_of_two_copies_the_one_that_was_set_is_taken(layer: str) -> None:
    weights = {**OLD_WEIGHTS, f"{layer}.buffer_action.mean": one(math.inf)}
    assert statistics_from_old_weights(weights, FEATURES)["action"]["mean"].tolist() == [3]


def test_two_copies_that_differ_are_an_error() -> None:
    weights = {**OLD_WEIGHTS, "unnormalize_outputs.buffer_action.mean": one(5)}
    with pytest.raises(
        StatisticsError, match=r"two different values.*unnormalize_outputs\.buffer_action\.mean"
    ):
        statistics_from_old_weights(weights, FEATURES)


def test_weights_without_statistics_are_an_error() -> None:
    with pytest.raises(StatisticsError, match="neither processor files nor statistics"):
        statistics_from_old_weights({"model.state_proj.weight": one(1)}, FEATURES)
