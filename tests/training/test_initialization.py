"""Where weights come from, and what is allowed to stay frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smolact.errors import ConfigError
from smolact.training.config import TrainConfig
from smolact.training.initialization import policy_config_of
from smolact.training.sources import find_sources, shared_features, training_statistics
from smolact.types import FeatureType, PolicyFeature
from tests.training.runs import DATA, settings

CHECKPOINT = DATA / "lerobot_checkpoint"
HUB_VLM = "--policy.vlm_model_name=HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


def features(config: TrainConfig) -> Any:
    return shared_features(find_sources(config.dataset, config.rename_map))


def decide(*argv: str) -> tuple[dict[str, bool], str]:
    config = settings(*argv)
    made, source = policy_config_of(config, *features(config))
    names = ("load_vlm_weights", "freeze_vision_encoder", "train_expert_only", "train_state_proj")
    return {name: getattr(made, name) for name in names}, source


VLM_DEFAULTS = {
    "load_vlm_weights": True,
    "freeze_vision_encoder": True,
    "train_expert_only": True,
    "train_state_proj": True,
}
ALL_TRAINS = {
    "load_vlm_weights": False,
    "freeze_vision_encoder": False,
    "train_expert_only": False,
    "train_state_proj": True,
}


@pytest.mark.parametrize(
    "flags", [[], ["--policy.init=vlm"], ["--policy.load_vlm_weights=true"], ["--policy.vlm_model_name=tiny"]]
)
def test_a_new_policy_begins_from_the_vlm(flags: list[str]) -> None:
    assert decide("--policy.type=smolvla", *flags) == (VLM_DEFAULTS, "vlm")


@pytest.mark.parametrize(
    "flags",
    [
        ["--policy.init=random"],
        ["--policy.load_vlm_weights=false"],
        ["--policy.load_vlm_weights=False", "--policy.train_expert_only=False"],  # the seeds' Example 3
        ["--policy.vlm_model_name=small"],  # a shape without weights
    ],
)
def test_without_weights_everything_trains(flags: list[str]) -> None:
    assert decide("--policy.type=smolvla", *flags) == (ALL_TRAINS, "random")


@pytest.mark.parametrize(
    "freeze", ["freeze_vision_encoder=true", "train_expert_only=true", "train_state_proj=false"]
)
def test_freezing_random_weights_must_be_confirmed(freeze: str, caplog: pytest.LogCaptureFixture) -> None:
    flags = ["--policy.type=smolvla", "--policy.init=random", f"--policy.{freeze}"]
    with pytest.raises(ConfigError, match=r"--policy\.allow_frozen_random=true") as caught:
        decide(*flags)
    assert freeze in str(caught.value)
    fields, _ = decide(*flags, "--policy.allow_frozen_random=true")
    assert fields != ALL_TRAINS
    assert freeze in caplog.text


def test_a_freeze_in_a_file_counts_as_set_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("policy:\n  type: smolvla\n  init: random\n  train_expert_only: true\n")
    with pytest.raises(ConfigError, match=r"--policy\.train_expert_only=true would freeze"):
        decide(f"--config_path={tmp_path / 'a.yaml'}")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--policy.init=random", "--policy.load_vlm_weights=true"], "contradict"),
        (["--policy.init=vlm", "--policy.load_vlm_weights=false"], "contradict"),
        (["--policy.init=vlm", "--policy.vlm_model_name=small"], "shape without weights"),
    ],
)
def test_contradictions_are_refused(flags: list[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        decide("--policy.type=smolvla", *flags)


def test_a_path_and_another_source_contradict() -> None:
    with pytest.raises(ConfigError, match="Drop one of them"):
        settings(f"--policy.path={CHECKPOINT}", "--policy.init=random")


def test_a_new_policy_takes_its_features_from_the_dataset_under_their_new_names() -> None:
    config = settings(
        "--policy.type=smolvla", '--rename_map={"observation.images.top": "observation.images.camera1"}'
    )
    made, _ = policy_config_of(config, *features(config))
    assert list(made.input_features) == [
        "observation.images.camera1",
        "observation.images.wrist",
        "observation.state",
    ]
    assert made.action_feature == PolicyFeature(FeatureType.ACTION, (6,))


def test_a_base_policy_keeps_its_names_and_settings_and_takes_flags() -> None:
    config = settings(f"--policy.path={CHECKPOINT}", "--policy.optimizer_lr=5e-5", "--policy.num_steps=3")
    made, source = policy_config_of(config, *features(config))
    assert source == "base"
    assert (made.chunk_size, made.optimizer_lr, made.num_steps) == (8, 5e-5, 3)  # type: ignore[attr-defined]
    assert made.pretrained_path == str(CHECKPOINT)
    assert made.input_features["observation.images.top"].shape == (3, 64, 96)


def test_image_statistics_are_imagenets_if_asked_for_and_the_datasets_are_untouched() -> None:
    sources = find_sources(settings().dataset, {})
    meta = sources[0].meta
    before = meta.stats["observation.images.top"]["mean"].copy()
    statistics = training_statistics(sources, imagenet=True)
    assert statistics["observation.images.top"]["mean"].ravel().tolist() == [0.485, 0.456, 0.406]
    assert np.array_equal(meta.stats["observation.images.top"]["mean"], before)
    plain = training_statistics(sources, imagenet=False)
    assert np.array_equal(plain["observation.images.top"]["mean"], before)
    assert np.array_equal(statistics["action"]["mean"], meta.stats["action"]["mean"])
