"""Folders that look as the published SmolVLA checkpoints and users' fine-tunes of them do, at tiny sizes.

Fields, names of files and tensors, and the base's statistics are those of the published files; weights are those of
`parity/data/lerobot_checkpoint`, or random ones.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from smolact.policies.factory import make_pre_post_processors
from smolact.types import FeatureType, PolicyFeature
from tests.parity.recipe import DATA
from tests.policies.tiny import tiny_policy

SOURCE = DATA / "lerobot_checkpoint" / "pretrained_model"
VLM = str(DATA / "tiny_vlm")
PRE_STATE = "policy_preprocessor_step_5_normalizer_processor.safetensors"
POST_STATE = "policy_postprocessor_step_0_unnormalizer_processor.safetensors"
GROUPS = {  # mean and standard deviation of the action, in degrees
    "so100": ([1.60, 119.94, 109.77, 56.71, -27.42, 12.00], [26.39, 52.41, 49.85, 37.0, 59.36, 19.04]),
    "so100-blue": (
        [1.42, 125.72, 125.42, 63.78, -106.54, 3.35],
        [14.08, 39.43, 18.24, 23.49, 38.11, 5.05],
    ),
    "so100-red": (
        [2.44, 124.94, 123.56, 66.99, -103.88, 2.89],
        [14.30, 42.77, 18.88, 21.65, 33.53, 4.48],
    ),
}
BASE_FIELDS = {
    "num_expert_layers": 0,
    "prefix_length": 0,
    "pad_language_to": "max_length",
    "load_vlm_weights": True,
}
CAMERAS = tuple(f"observation.images.camera{number}" for number in (1, 2, 3))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=4))


def fresh(folder: Path, **config: Any) -> Path:
    """LeRobot's checkpoint, with these values in its configuration."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("model*"))
    weights = {
        key: value for shard in SOURCE.glob("model-*.safetensors") for key, value in load_file(shard).items()
    }
    save_file(weights, folder / "model.safetensors")
    edit(folder / "config.json", lambda c: c.update(vlm_model_name=VLM, **config))
    edit(folder / "policy_preprocessor.json", lambda c: c["steps"][3]["config"].update(tokenizer_name=VLM))
    return folder


def features(size: int = 6) -> dict[str, Any]:
    cameras = {name: {"type": "VISUAL", "shape": [3, 256, 256]} for name in CAMERAS}
    return {"observation.state": {"type": "STATE", "shape": [size]}, **cameras}


def as_the_base(folder: Path, size: int = 6) -> Path:
    """Give a checkpoint the base's configuration, its statistics (of actions, by dataset) and none of its state's."""
    edit(folder / "config.json", lambda c: c.update(BASE_FIELDS, input_features=features(size)))

    def processor(content: Any) -> None:
        steps = content["steps"]
        steps[3]["config"].update(padding="max_length")
        steps[4]["config"].update(device="cuda")
        steps[5]["config"]["features"] = {
            **features(size),
            "action": {"type": "ACTION", "shape": [size]},
        }

    edit(folder / "policy_preprocessor.json", processor)
    state = {
        f"{group}.buffer.action.{name}": torch.tensor(values[:size])
        for group, of in GROUPS.items()
        for name, values in zip(("mean", "std"), of, strict=True)
    }
    for name in (PRE_STATE, POST_STATE):
        save_file(state, folder / name)
    return folder


def base(folder: Path) -> Path:
    """lerobot/smolvla_base."""
    return as_the_base(fresh(folder))


def finetune_of_base(folder: Path) -> Path:
    """What a training from the base leaves: the base's fields, statistics of one dataset."""
    fresh(folder, **BASE_FIELDS)
    edit(folder / "policy_preprocessor.json", lambda c: c["steps"][3]["config"].update(padding="max_length"))
    return folder


def rtc_enabled(folder: Path) -> Path:
    rtc = {"enabled": True, "prefix_attention_schedule": "EXP", "max_guidance_weight": 10.0}
    return fresh(folder, rtc_config={**rtc, "execution_horizon": 10, "debug": False, "debug_maxlen": 100})


def august_2025(folder: Path) -> Path:
    """Processor files of another name, the normalizer second, a step of another name, `seed: null`."""
    fresh(folder)
    names = {
        "policy_preprocessor.json": "robot_preprocessor",
        "policy_postprocessor.json": "robot_postprocessor",
    }

    def before(content: Any) -> None:
        steps = content["steps"]
        steps[0]["registry_name"] = "rename_processor"
        normalizer = steps.pop(5)
        normalizer["state_file"] = "robot_preprocessor_step_1_normalizer_processor.safetensors"
        steps.insert(1, normalizer)
        content.update(name="robot_preprocessor", seed=None)

    def behind(content: Any) -> None:
        content.update(name="robot_postprocessor", seed=None)
        content["steps"][0]["state_file"] = "robot_postprocessor_step_0_unnormalizer_processor.safetensors"

    for (old, new), change in zip(names.items(), (before, behind), strict=True):
        edit(folder / old, change)
        (folder / old).rename(folder / f"{new}.json")
    (folder / PRE_STATE).rename(folder / "robot_preprocessor_step_1_normalizer_processor.safetensors")
    (folder / POST_STATE).rename(folder / "robot_postprocessor_step_0_unnormalizer_processor.safetensors")
    return folder


def old_base(folder: Path) -> Path:
    """The base before there were processor files: statistics of several datasets among the weights."""
    fresh(folder)
    layers = (
        ("normalize_inputs", "observation_state"),
        ("normalize_targets", "action"),
        ("unnormalize_outputs", "action"),
    )
    statistics = {
        f"{layer}.{group}_buffer_{feature}.{name}": torch.tensor(values)
        for group, of in GROUPS.items()
        for layer, feature in layers
        for name, values in zip(("mean", "std"), of, strict=True)
    }
    weights = load_file(folder / "model.safetensors")
    save_file({**weights, **statistics}, folder / "model.safetensors")
    for name in (PRE_STATE, POST_STATE, "policy_preprocessor.json", "policy_postprocessor.json"):
        (folder / name).unlink()
    return folder


def unnormalizer_second(folder: Path) -> Path:
    """HuggingFaceVLA/smolvla_libero's order: the device first, the unnormalizer's file numbered 1."""
    fresh(folder, n_action_steps=1)
    name = POST_STATE.replace("step_0", "step_1")
    edit(
        folder / "policy_postprocessor.json",
        lambda c: c.update(steps=[c["steps"][1], {**c["steps"][0], "state_file": name}]),
    )
    (folder / POST_STATE).rename(folder / name)
    return folder


FOLDERS: Mapping[str, Callable[[Path], Path]] = {
    made.__name__: made
    for made in (base, finetune_of_base, rtc_enabled, august_2025, old_base, unnormalizer_second)
}


def base_for_tabletop(folder: Path, **config: Any) -> Path:
    """A base as the published one, with three cameras, that knows the tabletop's two state and two action values."""
    shapes = {
        **{name: PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for name in CAMERAS},
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    }
    policy = tiny_policy(
        input_features=shapes,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        num_vlm_layers=2,
        num_steps=2,
        **config,
    )
    ones = {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
    processors = make_pre_post_processors(policy, {"observation.state": ones, "action": ones})
    for part in (policy, *processors):
        part.save_pretrained(folder)
    return as_the_base(folder, 2)
