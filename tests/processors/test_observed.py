"""An observation that no policy can look at is named, with its joint; what a robot may show is let by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smolact.errors import FeatureError
from smolact.processors.normalize import NormalizerProcessorStep
from smolact.processors.observed import check_observed
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.steps import RenameObservationsProcessorStep
from smolact.types import FeatureType, NormalizationMode, PolicyFeature

STATE = "observation.state"
STATS: dict[str, Any] = {
    "mean": [0.0, 10.0, 3.0],
    "std": [1.0, 2.0, 0.0],
    "min": [-2.0, 0.0, 3.0],
    "max": [2.0, 20.0, 3.0],
    "q01": [-1.0, 1.0, 3.0],
    "q99": [1.0, 19.0, 3.0],
}


def look(
    numbers: list[Any],
    mode: NormalizationMode,
    rename: dict[str, str] | None = None,
    key: str | None = None,
    **stats: Any,
) -> dict[str, Any]:
    """Check one observation beside a plain one; what the policy would look at."""
    step = NormalizerProcessorStep(
        {STATE: PolicyFeature(FeatureType.STATE, (3,))}, {FeatureType.STATE: mode}, {STATE: stats or STATS}
    )
    preprocess = ProcessorPipeline([RenameObservationsProcessorStep(rename or {}), step], "p")
    key = key or (next(iter(rename)) if rename else STATE)
    raw = {key: torch.tensor([[0.0, 10.0, 3.0], numbers])}
    batch = preprocess({**raw, "observation.language.tokens": torch.tensor([2**40])})
    check_observed(raw, batch, preprocess, {key: ("a", "b", "c")})
    return batch


MODES = [NormalizationMode.MEAN_STD, NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES]


@pytest.mark.parametrize("mode", [*MODES, NormalizationMode.IDENTITY])
@pytest.mark.parametrize("value", [3e38, -1e30, 3e6 * 20, float("nan"), float("inf")])
def test_what_lies_nowhere_near_the_training_is_named(mode: NormalizationMode, value: float) -> None:
    with pytest.raises(
        FeatureError, match=r"'b' of observation\.state is .*observation is at fault.*mean 10, standard"
    ):
        look([0.0, value, 3.0], mode)


@pytest.mark.parametrize("mode", MODES)
def test_what_a_robot_may_show_is_let_by(mode: NormalizationMode) -> None:
    for numbers in (
        [300.0, -4000.0, 3.0],  # degrees for radians: wrong, and no reason to stop
        [0.0, 10.0, 3.5],  # a joint that never moved in training, and is off a little
    ):
        seen = look(numbers, mode)[STATE]
        assert seen.isfinite().all() and not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("value", [3e38, 1e9])
@pytest.mark.parametrize("mode", MODES)
def test_a_joint_that_never_moved_must_still_be_somewhere_near(mode: NormalizationMode, value: float) -> None:
    with pytest.raises(FeatureError, match=r"'c' of observation\.state is"):
        look([0.0, 10.0, value], mode)


def test_a_source_that_has_the_policys_own_name_needs_no_map() -> None:
    with pytest.raises(FeatureError, match=r"of observation\.state is 1e"):
        look([1e20, 10.0, 3.0], NormalizationMode.MEAN_STD, {"observation.joints": STATE}, key=STATE)


def test_it_is_called_as_the_robot_calls_it() -> None:
    with pytest.raises(FeatureError, match=r"'a' of observation\.joints is 1e"):
        look([1e20, 10.0, 3.0], NormalizationMode.MEAN_STD, {"observation.joints": STATE})
