"""Quantiles that lie together: a gripper that moves in 3 of 600 frames is normalized by minimum and maximum, and told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from smolact.datasets.stats import VectorStatistics
from smolact.processors.factory import make_default_steps, make_pipelines
from smolact.processors.normalize import (
    NormalizerProcessorStep,
    UnnormalizerProcessorStep,
    normalize,
    unnormalize,
)
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.quantiles import STATISTICS_OF
from smolact.types import FeatureType, NormalizationMode, PolicyFeature

LEROBOT = os.environ.get("SMOLACT_LEROBOT_PYTHON")
FEATURES = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
MODES = [NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10]


def actions() -> np.ndarray:
    """A joint that moves, a gripper that moves in 3 of 600 frames, and a joint that never does."""
    found = np.random.default_rng(0).uniform(-2, 3, (600, 3)).astype(np.float32)
    found[:, 1] = 0
    found[[100, 101, 102], 1] = 1
    found[:, 2] = 0.25
    return found


def statistics() -> dict[str, Any]:
    running = VectorStatistics((3,))
    running.update(actions())
    return running.result()


def steps(mode: NormalizationMode, stats: Any) -> tuple[NormalizerProcessorStep, UnnormalizerProcessorStep]:
    modes = {FeatureType.ACTION: mode}
    return (
        NormalizerProcessorStep(FEATURES, modes, {"action": stats}),
        UnnormalizerProcessorStep(FEATURES, modes, {"action": stats}),
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_gripper_that_moves_seldom_stays_in_range_and_comes_back(
    mode: NormalizationMode, caplog: pytest.LogCaptureFixture
) -> None:
    stats, x = statistics(), torch.from_numpy(actions())
    there, back = steps(mode, stats)
    normalized = there({"action": x})["action"]
    assert normalized[:, 1].unique().tolist() == [-1, 1]
    torch.testing.assert_close(back({"action": normalized})["action"], x)
    # The others are as ever, bit for bit.
    pair = tuple(torch.as_tensor(stats[name], dtype=torch.float32) for name in STATISTICS_OF[mode])
    expected = normalize(x, (pair[0], pair[1]), mode)
    assert torch.equal(normalized[:, [0, 2]], expected[:, [0, 2]])
    assert (expected[:, 1] > 1e6).any()
    assert caplog.text.count("of the numbers 1 lie together, so minimum and maximum") == 1


@given(
    rests=st.floats(-1e3, 1e3),
    moves=st.floats(0.1, 1e3),
    noise=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_what_is_normalized_comes_back_whatever_the_quantiles(
    rests: float, moves: float, noise: float
) -> None:
    width = moves * noise**8
    stats = {"q01": [rests], "q99": [rests + width], "min": [rests - moves], "max": [rests + moves]}
    modes = {FeatureType.ACTION: NormalizationMode.QUANTILES}
    feature = {"action": PolicyFeature(FeatureType.ACTION, (1,))}
    x = torch.tensor([[rests - moves], [rests], [rests + moves]])
    there = NormalizerProcessorStep(feature, modes, {"action": stats})({"action": x})
    assert there["action"].abs().max() < 1e4  # it would be 2e8 · moves
    back = UnnormalizerProcessorStep(feature, modes, {"action": stats})(there)
    torch.testing.assert_close(back["action"], x, rtol=1e-4, atol=1e-4 * (moves + abs(rests)))


@pytest.mark.parametrize("mode", MODES)
def test_saved_and_opened_it_is_the_same_both_ways(
    tmp_path: Path, mode: NormalizationMode, caplog: pytest.LogCaptureFixture
) -> None:
    x = torch.from_numpy(actions())
    before, after = pipelines(mode, statistics())
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    caplog.clear()
    again = ProcessorPipeline.from_pretrained(tmp_path, "policy_preprocessor.json")
    back = ProcessorPipeline.from_pretrained(tmp_path, "policy_postprocessor.json")
    normalized = before({"action": x})["action"]
    assert torch.equal(again({"action": x})["action"], normalized)
    torch.testing.assert_close(back({"action": normalized})["action"], x)
    assert "lie together" not in caplog.text  # it was settled when the policy was trained


def pipelines(mode: NormalizationMode, stats: Any) -> tuple[ProcessorPipeline, ProcessorPipeline]:
    made = make_default_steps({}, FEATURES, {FeatureType.ACTION: mode}, stats={"action": stats}, device="cpu")
    return make_pipelines([made.normalize], [made.unnormalize])


def test_a_checkpoint_that_was_trained_without_keeps_its_numbers_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    x, mode = torch.from_numpy(actions()), NormalizationMode.QUANTILES
    stats = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in statistics().items()}
    pair = (stats["q01"], stats["q99"])
    without = {name: stats[name] for name in ("q01", "q99")}
    for kept, words in ((stats, "the checkpoint was trained with them"), (without, "maximum are not known")):
        caplog.clear()
        there, back = (
            kind(FEATURES, {FeatureType.ACTION: mode})
            for kind in (NormalizerProcessorStep, UnnormalizerProcessorStep)
        )
        for step in (there, back):
            step.load_state_dict({f"action.{name}": value for name, value in kept.items()})
        normalized = there({"action": x})["action"]
        assert torch.equal(normalized, normalize(x, pair, mode))
        assert torch.equal(back({"action": normalized})["action"], unnormalize(normalized, pair, mode))
        assert caplog.text.count(words) == 1


@pytest.mark.lerobot
@pytest.mark.skipif(not LEROBOT, reason="SMOLACT_LEROBOT_PYTHON names no Python with LeRobot 0.6.1")
@pytest.mark.parametrize("mode", MODES)
def test_lerobot_normalizes_with_our_checkpoint_as_we_do(tmp_path: Path, mode: NormalizationMode) -> None:
    x = torch.from_numpy(actions())
    before, after = pipelines(mode, statistics())
    before.save_pretrained(tmp_path)
    after.save_pretrained(tmp_path)
    save_file({"action": x}, tmp_path / "inputs.safetensors")
    script = Path(__file__).with_name("lerobot_normalizes.py")
    words = [
        str(LEROBOT),
        str(script),
        str(tmp_path),
        *(str(tmp_path / f"{n}.safetensors") for n in ("inputs", "found")),
    ]
    subprocess.run(words, check=True)
    found = load_file(tmp_path / "found.safetensors")
    assert torch.equal(found["there"], before({"action": x})["action"])
    torch.testing.assert_close(found["back"], x)
