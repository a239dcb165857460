from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from smolact.errors import ConfigError, DeviceError, FeatureError
from smolact.processors.normalize import NormalizerProcessorStep, UnnormalizerProcessorStep
from smolact.processors.step import ProcessorStep
from smolact.processors.steps import (
    AddBatchDimensionProcessorStep,
    DeviceProcessorStep,
    RenameObservationsProcessorStep,
    SmolVLANewLineProcessor,
    find_device,
    to_float_image,
)
from smolact.processors.tokenizer import Tokenizer, TokenizerProcessorStep
from smolact.types import FeatureType, NormalizationMode, PolicyFeature
from tests.processors.conftest import same


def sample() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "observation.images.top": torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8, generator=generator),
        "observation.image": torch.rand(3, 4, 5, generator=generator),
        "observation.state": torch.randn(6, generator=generator),
        "observation.environment_state": torch.randn(2, generator=generator),
        "observation.state_is_pad": torch.tensor([False]),
        "action": torch.randn(6, generator=generator),
        "index": torch.tensor(7),
        "task_index": torch.tensor(1),
        "timestamp": torch.tensor(0.5),
        "task": "Grasp it.",
    }


FEATURES = {
    "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 4, 5)),
    "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
    "action": PolicyFeature(FeatureType.ACTION, (6,)),
}
MODES = {FeatureType.STATE: NormalizationMode.MEAN_STD, FeatureType.ACTION: NormalizationMode.MIN_MAX}
STATS = {
    "observation.state": {"mean": [1.0] * 6, "std": [2.0] * 6},
    "action": {"min": [-1.0] * 6, "max": [3.0] * 6},
}


def every_step(tokenizer: Tokenizer) -> list[ProcessorStep]:
    return [
        RenameObservationsProcessorStep({"observation.state": "observation.joints"}),
        AddBatchDimensionProcessorStep(),
        SmolVLANewLineProcessor(),
        TokenizerProcessorStep(max_length=8, tokenizer=tokenizer),
        DeviceProcessorStep("cpu", "float16"),
        NormalizerProcessorStep(FEATURES, MODES, STATS),
        UnnormalizerProcessorStep(FEATURES, MODES, STATS),
    ]


@pytest.mark.parametrize("place", range(7))
def test_no_step_changes_the_batch_that_comes_in(place: int, tokenizer: Tokenizer) -> None:
    step = every_step(tokenizer)[place]
    data = sample()
    before = copy.deepcopy(data)
    result = step(data)
    assert same(data, before)
    assert result is not data
    assert not same(result, before), "a step that changes nothing proves nothing"


def test_renaming_takes_the_padding_mark_along_and_leaves_other_names() -> None:
    data = {"observation.state": 1, "observation.state_is_pad": 2, "observation.state_extra": 3, "task": "x"}
    renamed = RenameObservationsProcessorStep({"observation.state": "observation.joints"})(data)
    assert renamed == {
        "observation.joints": 1,
        "observation.joints_is_pad": 2,
        "observation.state_extra": 3,
        "task": "x",
    }


def test_two_names_can_be_swapped() -> None:
    step = RenameObservationsProcessorStep({"a": "b", "b": "a"})
    assert step({"a": 1, "b": 2}) == {"b": 1, "a": 2}


def test_renaming_onto_a_name_that_is_taken_is_an_error() -> None:
    step = RenameObservationsProcessorStep({"observation.images.top": "observation.images.camera1"})
    with pytest.raises(FeatureError, match=r"observation\.images\.camera1.*--rename_map"):
        step({"observation.images.top": 1, "observation.images.camera1": 2})


@pytest.mark.parametrize("rename_map", ["ab", ["a"], {"a": 1}, None])
def test_a_rename_map_that_is_no_mapping_of_names_is_an_error(rename_map: Any) -> None:
    with pytest.raises(ConfigError, match="rename_map"):
        RenameObservationsProcessorStep(rename_map)


def test_a_single_sample_becomes_a_batch_of_one_and_a_batch_stays() -> None:
    step = AddBatchDimensionProcessorStep()
    batch = step(sample())
    assert {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, torch.Tensor)} == {
        "observation.images.top": (1, 3, 4, 5),
        "observation.image": (1, 3, 4, 5),
        "observation.state": (1, 6),
        "observation.environment_state": (1, 2),
        "observation.state_is_pad": (1,),
        "action": (1, 6),
        "index": (1,),
        "task_index": (1,),
        "timestamp": (),
    }
    assert batch["task"] == ["Grasp it."]
    assert same(step(batch), batch)


def test_a_chunk_of_actions_keeps_its_dimensions() -> None:
    assert AddBatchDimensionProcessorStep()({"action": torch.zeros(5, 6)})["action"].shape == (5, 6)


@pytest.mark.parametrize(
    ("task", "ended"),
    [
        ("go", "go\n"),
        ("go\n", "go\n"),
        (["go", "stop\n"], ["go\n", "stop\n"]),
        (("go",), ["go\n"]),
        (None, None),
        ([1], [1]),
    ],
)
def test_every_task_ends_with_one_newline(task: Any, ended: Any) -> None:
    assert SmolVLANewLineProcessor()({"task": task}) == {"task": ended}


def test_a_batch_without_task_passes_the_newline_step() -> None:
    assert SmolVLANewLineProcessor()({"index": 1}) == {"index": 1}


def test_the_float_dtype_is_for_floating_point_only() -> None:
    moved = DeviceProcessorStep("cpu", "bfloat16")(sample())
    assert moved["observation.state"].dtype == torch.bfloat16
    assert moved["observation.images.top"].dtype == torch.uint8
    assert moved["index"].dtype == torch.int64
    assert moved["task"] == "Grasp it."


def test_an_unknown_dtype_is_an_error() -> None:
    with pytest.raises(ConfigError, match="float_dtype='float8'"):
        DeviceProcessorStep("cpu", "float8")


@pytest.mark.parametrize("device", ["cuda:97", "gpu", "", "cpu:x", "meta", None, 3])
def test_a_device_that_is_not_there_is_an_error(device: Any) -> None:
    with pytest.raises(DeviceError, match=r"--policy\.device"):
        find_device(device)


def test_uint8_images_become_floats_in_zero_one() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(to_float_image(image), torch.tensor([0.0, 51 / 255, 1.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_floating_point_images_pass_as_they_are(dtype: torch.dtype) -> None:
    image = torch.rand(3, 2, 2).to(dtype)
    assert to_float_image(image) is image


def test_images_of_other_dtypes_are_an_error() -> None:
    with pytest.raises(FeatureError, match="int64"):
        to_float_image(torch.zeros(3, 2, 2, dtype=torch.int64))
