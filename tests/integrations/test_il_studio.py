"""smolact in IL-Studio's interfaces: the losses, actions and checkpoints of our own policies. IL-Studio itself is not needed."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import smolact
from smolact.errors import (
    CheckpointError,
    ConfigError,
    DeviceError,
    FeatureError,
    NotFoundError,
    StatisticsError,
)

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from smolact.policies.embodiment import Embodiment  # noqa: E402
from smolact.policies.factory import make_pre_post_processors  # noqa: E402
from smolact.policies.fit import absent_cameras  # noqa: E402
from smolact.types import ACTION, ACTION_IS_PAD, IMAGES, STATE, TASK, NormalizationMode  # noqa: E402
from smolact_il_studio import smolandfast, smolvla  # noqa: E402
from smolact_il_studio.export import export_checkpoint  # noqa: E402
from smolact_il_studio.normalization import STATISTICS_FILE, normalizers_of  # noqa: E402
from smolact_il_studio.policy_loader import PolicyLoader  # noqa: E402

CHUNK, ACTIONS, STATES = 5, 4, 3
TEXTS = ["pick up the red block", "push it to the far left corner", "wait"]


def settings(**more: Any) -> dict[str, Any]:
    return {
        "vlm_model_name": "tiny",
        "chunk_size": CHUNK,
        "n_action_steps": CHUNK,
        "num_steps": 2,
        "action_dim": ACTIONS,
        "state_dim": STATES,
        "camera_names": ["top", "wrist"],
        "num_vlm_layers": 2,
        "resize_imgs_with_padding": [64, 64],
        **more,
    }


def fast_settings(**more: Any) -> dict[str, Any]:
    return {
        "vlm_checkpoint": "tiny",
        "chunk_size": CHUNK,
        "n_action_steps": CHUNK,
        "action_tokens": "bins",
        "scale_factor": 2,
        "action_dim": ACTIONS,
        "state_dim": STATES,
        "camera_names": ["top", "wrist"],
        **more,
    }


def sample(number: int, steps: int = CHUNK, cameras: int = 2) -> dict[str, Any]:
    """As IL-Studio's datasets give them."""
    draws = np.random.default_rng(number)
    return {
        "image": torch.from_numpy(draws.integers(0, 256, (cameras, 3, 48, 64), dtype=np.uint8)),
        "state": torch.from_numpy(draws.uniform(-1, 1, STATES)).float(),
        "action": torch.from_numpy(draws.uniform(-1, 1, (steps, ACTIONS))).float(),
        "is_pad": torch.arange(steps) >= steps - number,
        "raw_lang": TEXTS[number % len(TEXTS)],
        "reasoning": "",
        "timestamp": 0,
        "episode_id": 0,
    }


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return smolvla.SmolVLAPolicy(smolvla.SmolVLAConfig(**settings())).eval()


@pytest.fixture(scope="module")
def fast_model() -> Any:
    torch.manual_seed(0)
    return smolandfast.SmolAndFASTPolicy(smolandfast.SmolAndFASTConfig(**fast_settings())).eval()


def batch_of(model: Any, *samples: dict[str, Any]) -> dict[str, Any]:
    batch: dict[str, Any] = type(model).data_collator([model.processor(one) for one in samples])
    return batch


def held(one: dict[str, Any]) -> dict[str, Any]:
    """The sample as a LeRobot dataset has it: behind an episode's end the last action stays."""
    last = one["action"][~one["is_pad"]][-1]
    return {**one, "action": torch.where(one["is_pad"][:, None], last, one["action"])[:CHUNK]}


def ours(model: Any, *samples: dict[str, Any]) -> dict[str, Any]:
    """The same samples through smolact's own processors, which leave numbers as they are."""
    config = model.core.config
    kinds = dict.fromkeys(("VISUAL", "STATE", "ACTION"), NormalizationMode.IDENTITY)
    if config.type == "smolvla":
        config = config.replace(normalization_mapping=kinds)
    span = {"min": -np.ones(STATES), "max": np.ones(STATES)}
    wide = {"min": -np.ones(ACTIONS), "max": np.ones(ACTIONS)}
    policy, model.core.config = model.core, config
    preprocess, _ = make_pre_post_processors(policy, {STATE: span, ACTION: wide})
    cameras = {
        f"{IMAGES}.{name}": torch.stack([one["image"][number] for one in samples])
        for number, name in enumerate(model.config.camera_names)
    }
    return preprocess(
        {
            **cameras,
            STATE: torch.stack([one["state"] for one in samples]),
            ACTION: torch.stack([held(one)["action"] for one in samples]),
            ACTION_IS_PAD: torch.stack([one["is_pad"][:CHUNK] for one in samples]),
            TASK: [one["raw_lang"] for one in samples],
        }
    )


def draws(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "noise": torch.randn(number, CHUNK, 32, generator=generator),
        "time": torch.rand(number, generator=generator) * 0.9 + 0.05,
    }


def observation(*samples: dict[str, Any], raw_lang: Any = None) -> dict[str, Any]:
    """As IL-Studio's MetaPolicy gives them."""
    return {
        "state": np.stack([one["state"].numpy() for one in samples]),
        "image": np.stack([one["image"].numpy() for one in samples]),
        "raw_lang": [one["raw_lang"] for one in samples] if raw_lang is None else raw_lang,
        "depth": None,
        "timestep": np.zeros((len(samples), 1)),
    }


# What is computed.


def test_the_loss_is_smolacts(model: Any) -> None:
    samples = [sample(number) for number in range(3)]  # with actions behind the end of an episode
    loss = model(**batch_of(model, *samples), **draws(3))["loss"]
    expected, _ = model.core(ours(model, *samples), **draws(3))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_the_loss_does_not_count_what_lies_behind_an_episodes_end(model: Any) -> None:
    short, same = sample(2), sample(2)
    same["action"][-2:] = 9.0
    losses = [model(**batch_of(model, one), **draws(1))["loss"] for one in (short, same)]
    assert losses[0] == losses[1]


def test_the_loss_of_smolandfast_is_smolacts(fast_model: Any) -> None:
    samples = [sample(number) for number in range(3)]
    loss = fast_model(**batch_of(fast_model, *samples))["loss"]
    expected, _ = fast_model.core(ours(fast_model, *samples))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)


def test_behind_an_episodes_end_the_last_action_stays(fast_model: Any) -> None:
    ended = sample(2)
    ended["action"][-2:] = 0.0  # what IL-Studio fills up with
    one, other = batch_of(fast_model, ended), batch_of(fast_model, held(ended))
    assert torch.equal(one["action_tokens"], other["action_tokens"])


@pytest.mark.parametrize("kind", ["model", "fast_model"])
def test_actions_are_those_of_the_network_that_trains(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    samples = [sample(number) for number in range(3)]
    torch.manual_seed(3)
    with torch.inference_mode():
        found = model.select_action(observation(*samples))
    assert found.shape == (3, CHUNK, ACTIONS) and not found.is_inference()
    torch.manual_seed(3)
    seen = {key: value for key, value in ours(model, *samples).items() if key not in (ACTION, ACTION_IS_PAD)}
    torch.testing.assert_close(found, model.core.predict_action_chunk(seen), rtol=1e-5, atol=1e-5)
    assert model._engine is not None


def test_after_a_step_of_training_the_new_weights_predict(model: Any) -> None:
    seen = observation(sample(0))
    torch.manual_seed(0)
    before = model.select_action(seen)
    with torch.no_grad():
        model.model.action_out_proj.bias += 0.1
    torch.manual_seed(0)
    assert not torch.allclose(before, model.select_action(seen))


def test_one_text_is_for_all_and_not_cut_into_letters(model: Any) -> None:
    samples = [sample(0), sample(0)]
    torch.manual_seed(0)
    one = model.select_action(observation(*samples, raw_lang=TEXTS[0]))
    torch.manual_seed(0)
    assert torch.equal(one, model.select_action(observation(*samples, raw_lang=[TEXTS[0]] * 2)))


def test_pictures_between_0_and_1_are_not_divided_again(model: Any) -> None:
    bytes_, floats = sample(0), sample(0)
    floats["image"] = floats["image"].float() / 255
    losses = [model(**batch_of(model, one), **draws(1))["loss"] for one in (bytes_, floats)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)
    floats["image"][:, :, :10] = -1  # what IL-Studio's resizing pads with
    black = sample(0)
    black["image"][:, :, :10] = 0
    losses = [model(**batch_of(model, one), **draws(1))["loss"] for one in (black, floats)]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=1e-6)


def test_a_chunk_that_is_longer_than_the_policys_is_cut(model: Any) -> None:
    longer = sample(0, steps=CHUNK + 3)
    shorter = {**longer, "action": longer["action"][:CHUNK], "is_pad": longer["is_pad"][:CHUNK]}
    one, other = batch_of(model, longer), batch_of(model, shorter)
    assert torch.equal(one["actions"], other["actions"]) and torch.equal(one["is_pad"], other["is_pad"])


def test_robots_that_ask_at_once_get_their_own_answers(model: Any) -> None:
    normal = [{**sample(number), "action": None} for number in range(4)]
    asked = [{**batch_of(model, one), "noise": draws(1)["noise"]} for one in normal]
    alone = [model(**batch)["action"] for batch in asked]
    together: list[list[Tensor]] = [[] for _ in asked]

    def ask(number: int) -> None:
        for _ in range(10):
            together[number].append(model(**asked[number])["action"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, others in zip(alone, together, strict=True):
        for other in others:
            torch.testing.assert_close(other, mine, rtol=1e-5, atol=1e-5)


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": torch.zeros(CHUNK - 1, ACTIONS)}, "chunk_size"),
        ({"action": torch.zeros(CHUNK, ACTIONS + 1)}, "action_dim"),
        ({"action": torch.full((CHUNK, ACTIONS), torch.nan)}, "not finite"),
        ({"state": torch.zeros(STATES + 1)}, "state_dim"),
        ({"state": torch.full((STATES,), torch.inf)}, "state_normalize"),
        ({"state": None}, "no state"),
        ({"image": None}, "no image"),
        ({"image": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)}, "camera_names"),
        ({"image": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)}, "height, width"),
        ({"image": torch.full((2, 3, 8, 8), 255.0)}, r"\[0, 1\]"),
        ({"raw_lang": None}, "raw_lang"),
    ],
)
def test_a_sample_that_does_not_fit_is_an_error(model: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        model.processor({**sample(0), **change})


def test_an_empty_instruction_is_an_error(model: Any) -> None:
    with pytest.raises(ConfigError, match="empty"):
        model.select_action(observation(sample(0), raw_lang=""))


def test_samples_that_were_not_processed_are_an_error() -> None:
    with pytest.raises(FeatureError, match="processor"):
        smolvla.data_collator([sample(0)])


def test_a_misspelt_setting_is_an_error_and_a_strange_one_is_kept() -> None:
    with pytest.raises(ConfigError, match="'chunk_size'"):
        smolvla.SmolVLAConfig(**settings(chunksize=8))
    assert smolvla.SmolVLAConfig(**settings(somebodys_own=8)).somebodys_own == 8
    with pytest.raises(ConfigError, match="n_action_steps"):
        smolvla.SmolVLAConfig(**settings(n_action_steps=99))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"num_expert_layers": -1.0}, {"num_expert_layers": -1}),
        ({"resize_imgs_with_padding": "[64, 32]"}, {"resize_imgs_with_padding": (64, 32)}),
        ({"resize_imgs_with_padding": None}, {"resize_imgs_with_padding": None}),
        ({"camera_names": "['left']"}, {"camera_names": ["left"]}),
        ({"expert_width_multiplier": 1}, {"expert_width_multiplier": 1.0}),
    ],
)
def test_values_are_read_as_il_studios_command_line_leaves_them(
    given: dict[str, Any], meant: dict[str, Any]
) -> None:
    config = smolvla.SmolVLAConfig(**settings(**given))
    assert {name: getattr(config, name) for name in meant} == meant


# Checkpoints.


@pytest.mark.parametrize("kind", ["model", "fast_model"])
def test_what_is_saved_opens_again(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    model.save_pretrained(tmp_path / "run/checkpoint-2")
    model.save_pretrained(tmp_path / "run/checkpoint-10")
    again = type(model).from_pretrained(tmp_path / "run")
    assert again.config.camera_names == ["top", "wrist"] and not again.training
    for (name, one), other in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    seen = observation(sample(0))
    torch.manual_seed(0)
    here = model.select_action(seen)
    torch.manual_seed(0)
    torch.testing.assert_close(again.select_action(seen), here)
    raw = json.loads((tmp_path / "run/checkpoint-10/config.json").read_text())
    assert raw["chunk_size"] == CHUNK and raw["architectures"] == [type(model).__name__]


def test_it_goes_on_from_a_checkpoint_of_smolact(model: Any, tmp_path: Path) -> None:
    model.core.save_pretrained(tmp_path)
    again = smolvla.SmolVLAPolicy.from_pretrained(tmp_path, action_dim=6)
    assert (again.config.action_dim, again.config.state_dim) == (6, STATES)
    assert torch.equal(again.model.action_in_proj.weight, model.model.action_in_proj.weight)


def test_a_policy_that_may_lack_cameras_takes_the_samples_of_its_training(model: Any, tmp_path: Path) -> None:
    """A fine-tune of three cameras on a robot with two: LeRobot's placeholder and the camera that was not there."""
    model.core.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    shape = {"type": "VISUAL", "shape": [3, 48, 64]}
    raw["input_features"] |= {f"observation.images.{name}": shape for name in ("elbow", "empty_camera_0")}
    (tmp_path / "config.json").write_text(json.dumps({**raw, "empty_cameras": 2}))
    by_number = smolvla.SmolVLAPolicy.from_pretrained(tmp_path)
    assert by_number.config.camera_names == ["top", "wrist", "elbow"]
    assert torch.isfinite(by_number(**batch_of(by_number, sample(0)), **draws(1))["loss"])
    with pytest.raises(FeatureError, match="with 3 cameras"):
        by_number.processor(sample(0, cameras=4))
    Embodiment(cameras={f"observation.images.{name}": name for name in ("top", "wrist")}).save(tmp_path)
    by_name = smolvla.SmolVLAPolicy.from_pretrained(tmp_path)
    assert by_name.config.camera_names == ["top", "wrist"]
    batch = batch_of(by_name, sample(0))
    losses = [float(one(**batch, **draws(1))["loss"].detach()) for one in (by_name, by_number)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("others", "trained_on"),
    [
        pytest.param(["empty_camera_0"], [], id="a placeholder"),
        pytest.param(["elbow"], ["top", "wrist"], id="a camera that the training lacked"),
    ],
)
def test_a_camera_of_the_training_may_not_be_missing_in_the_place_of_one_that_never_was_there(
    model: Any, tmp_path: Path, others: list[str], trained_on: list[str]
) -> None:
    model.core.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    shape = {"type": "VISUAL", "shape": [3, 48, 64]}
    raw["input_features"] |= {f"{IMAGES}.{name}": shape for name in others}
    # With these tokens the network sees how many cameras are masked.
    raw |= {"empty_cameras": 1, "add_image_special_tokens": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    if trained_on:
        Embodiment(cameras={f"{IMAGES}.{name}": name for name in trained_on}).save(tmp_path)
    opened = smolvla.SmolVLAPolicy.from_pretrained(tmp_path)
    opened.save_pretrained(tmp_path / "run/checkpoint-1")
    (tmp_path / "run/checkpoint-1" / STATISTICS_FILE).write_text(
        json.dumps({name: {"mode": "identity"} for name in ("action", "state")})
    )
    again = smolvla.SmolVLAPolicy.from_pretrained(tmp_path / "run")
    for config in (opened.config, again.config):
        assert config.camera_names == ["top", "wrist"]
        assert config.takes(2) and not config.takes(1)
    with pytest.raises(FeatureError, match="with 2 cameras"):
        again.processor(sample(0, cameras=1))
    out = export_checkpoint(tmp_path / "run", tmp_path / "out")
    before, after = (smolact.SmolVLAPolicy.from_pretrained(folder) for folder in (tmp_path, out))
    assert absent_cameras(after.config) == 0
    batch = ours(again, sample(0))
    losses = [policy.forward(batch, **draws(1))[0] for policy in (before, again.core, after)]
    assert losses[0] == losses[1] == losses[2]


def test_a_value_of_the_base_opens_and_a_setting_goes_over_it(model: Any, tmp_path: Path) -> None:
    model.core.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "num_expert_layers": 0, "num_steps": 10**12}))
    with pytest.raises(ConfigError, match=r"num_steps=1000000000000"):
        smolvla.SmolVLAPolicy.from_pretrained(tmp_path)
    assert smolvla.SmolVLAPolicy.from_pretrained(tmp_path, num_steps="3").config.num_steps == 3


def test_what_il_studios_own_smolvla_wrote_opens(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    theirs = {key: value for key, value in raw.items() if key not in ("model_type", "camera_names", "engine")}
    (tmp_path / "config.json").write_text(json.dumps({**theirs, "device": "cuda", "rtc_config": None}))
    shutil.rmtree(tmp_path / "vlm")
    again = smolvla.SmolVLAPolicy.from_pretrained(tmp_path)
    batch = batch_of(model, sample(0))
    losses = [float(one(**batch, **draws(1))["loss"].detach()) for one in (again, model)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)  # where its weights lie may round differently
    assert again.config.camera_names == ["camera1", "camera2"]  # the first batch has named them


def test_another_policys_checkpoint_is_an_error(fast_model: Any, tmp_path: Path) -> None:
    fast_model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="smolandfast_policy"):
        smolvla.SmolVLAPolicy.from_pretrained(tmp_path)


def test_a_damaged_checkpoint_is_an_error(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        smolvla.SmolVLAPolicy.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(NotFoundError, match="no weights"):
        smolvla.SmolVLAPolicy.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(NotFoundError, match="checkpoint-N"):
        smolvla.SmolVLAPolicy.from_pretrained(tmp_path)


# IL-Studio's call.


def arguments(**more: Any) -> Namespace:
    """As train.py merges them."""
    return Namespace(**{"is_pretrained": False, "config_overrides": {"policy": {}}, **settings(), **more})


def test_a_new_policy_is_what_the_arguments_say(caplog: pytest.LogCaptureFixture) -> None:
    args = arguments(model_args={"chunk_size": 50, "num_steps": 10, "history_len": 1})
    found = smolvla.load_model(args)
    assert (found["config"].chunk_size, found["config"].num_steps) == (CHUNK, 2)
    assert found["tokenizer"](TEXTS[0])["input_ids"]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        smolvla.load_model(arguments(load_vlm_weights=False))
    assert "random" in caplog.text


@pytest.mark.parametrize("where", ["yaml", "flag"])
def test_a_setting_that_does_not_exist_is_an_error(where: str) -> None:
    args = arguments(model_args={"chunk_sise": 3} if where == "yaml" else {})
    if where == "flag":
        args.config_overrides = {"policy": {"model_args.chunk_sise": "3"}}
    with pytest.raises(ConfigError, match=r"'chunk_sise'.*'chunk_size'"):
        smolvla.load_model(args)


def test_driving_opens_a_checkpoint_on_the_device_that_was_asked_for(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    args = Namespace(is_pretrained=True, model_name_or_path=str(tmp_path), device="cpu", chunk_size=64)
    found = smolvla.load_model(args)
    assert found["model"].device.type == "cpu" and args.chunk_size == CHUNK
    missing = "cuda" if not torch.cuda.is_available() else "cuda:99"
    args.device = missing
    with pytest.raises(DeviceError, match="--device"):
        smolvla.load_model(args)


def test_fine_tuning_takes_the_tasks_sizes_and_what_was_typed(model: Any, tmp_path: Path) -> None:
    model.core.save_pretrained(tmp_path)
    args = arguments(
        is_pretrained=True,
        model_name_or_path=str(tmp_path),
        action_dim=6,
        camera_names=[],
        num_steps=3,
        chunk_size=7,
    )
    args.config_overrides = {"policy": {"num_steps": "3"}}
    config = smolvla.load_model(args)["config"]
    assert (config.action_dim, config.num_steps, config.chunk_size) == (6, 3, CHUNK)
    assert config.camera_names == ["top", "wrist"]


def test_the_policy_loader_opens_what_the_seeds_show(tmp_path: Path) -> None:
    loader = PolicyLoader(tmp_path)
    config = loader.load_policy_config("smolvla")
    assert (config.name, config.module_path) == ("smolvla", "policy.smolvla")
    args = Namespace(**settings())
    components = loader.load_model("smolvla", args)
    processor = loader.get_data_processor("smolvla", args, components)
    collator = loader.get_data_collator("smolvla", args, components)
    assert components["model"](**collator([processor(sample(0))]))["loss"] > 0
    assert loader.get_trainer_class("smolvla") is smolvla.SmolVLATrainer
    assert loader.list_available_policies() == ["smolandfast", "smolvla"]


def test_a_yaml_as_il_studio_ships_it_opens(tmp_path: Path) -> None:
    raw = {
        "name": "smolvla",
        "module_path": "policy.smolvla",
        "config_class": "SmolVLAPolicyConfig",
        "model_class": "SmolVLAPolicy",
        "trainer_class": None,
        "pretrained_config": {"is_pretrained": False},
        "model_args": {**settings(), "model_type": "smolvla_policy", "history_len": 1, "prediction_len": 50},
    }
    (tmp_path / "smolvla.yaml").write_text(json.dumps(raw))
    loader = PolicyLoader(tmp_path)
    assert loader.load_model("smolvla", Namespace())["config"].chunk_size == CHUNK
    assert loader.get_trainer_class("smolvla") is None  # IL-Studio's own


def test_a_file_does_not_say_what_is_run(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("name: evil\nmodule_path: antigravity\n")
    with pytest.raises(ConfigError, match="antigravity"):
        PolicyLoader(tmp_path).load_model("evil", Namespace())
    (tmp_path / "odd.yaml").write_text("name: odd\nmodule_path: policy.smolvla\ntrainer_class: load_modle\n")
    with pytest.raises(ConfigError, match="load_model"):
        PolicyLoader(tmp_path).get_trainer_class("odd")
    with pytest.raises(NotFoundError, match="smolvla and smolandfast"):
        PolicyLoader(tmp_path).load_policy_config("configs/policy/nothing.yaml")


# Training, and what comes of it.


class Normalizer:
    """As IL-Studio's: what it is called, and what it normalizes with."""

    def __init__(self, mode: str, mask: list[int] | None = None) -> None:
        self.mode, self.mask_spec, self.min_std = mode, mask, 0.01
        names = {"mean": 0.5, "std": 0.001, "min": -2.0, "max": 2.0}
        self.all_stats = {
            "action": {name: np.full(ACTIONS, value) for name, value in names.items()},
            "state": {name: np.full(STATES, value) for name, value in names.items()},
        }

    def __str__(self) -> str:
        return self.mode


class Normalized(torch.utils.data.Dataset):
    def __init__(self, mode: str) -> None:
        self.action_normalizer, self.state_normalizer = Normalizer(mode, [-1]), Normalizer(mode)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, Any]:
        return sample(index % 3)


class Processed(torch.utils.data.Dataset):
    def __init__(self, dataset: Normalized, processor: Any) -> None:
        self.dataset, self.processor = dataset, processor

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        return self.processor(self.dataset[index])


def trained(policy: Any, args: Namespace, folder: Path, mode: str, steps: int = 2) -> Any:
    components = policy.load_model(args)
    processor = policy.get_data_processor(args, components)
    loader = torch.utils.data.DataLoader(
        Processed(Normalized(mode), processor), 2, collate_fn=policy.get_data_collator(args, components)
    )
    training = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        save_steps=1,
        logging_steps=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer_class = PolicyLoader().get_trainer_class(args.name)
    trainer = trainer_class(
        args=training,
        model=components["model"],
        tokenizer=components["tokenizer"],
        train_loader=loader,
        eval_loader=loader,
    )
    resume = any(folder.glob("checkpoint-*"))
    trainer.train(resume_from_checkpoint=resume or None)
    trainer.save_state()
    trainer.save_model(str(folder))
    return trainer


def test_a_policy_trains_resumes_evaluates_and_becomes_smolacts(tmp_path: Path) -> None:
    trained(smolvla, arguments(name="smolvla"), tmp_path / "run", "zscore", steps=1)
    trainer = trained(smolvla, arguments(name="smolvla"), tmp_path / "run", "zscore", steps=2)
    assert trainer.state.global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0

    model = smolvla.SmolVLAPolicy.from_pretrained(tmp_path / "run/checkpoint-2")
    policy, preprocess, postprocess = smolact.load_policy(
        export_checkpoint(tmp_path / "run/checkpoint-2", tmp_path / "exported"), device="cpu"
    )
    raw_state, one = np.array([0.5, 0.51, 0.49], np.float32), sample(0)
    pictures = {f"{IMAGES}.{name}": one["image"][number] for number, name in enumerate(("top", "wrist"))}
    noise = draws(1)["noise"]
    found = postprocess(
        policy.predict_action_chunk(
            preprocess({**pictures, STATE: torch.from_numpy(raw_state), TASK: TEXTS[0]}), noise
        )
    )
    normal = {**one, "state": torch.from_numpy((raw_state - 0.5) / 0.01), "action": None}
    expected = model(**batch_of(model, normal), noise=noise)["action"]
    scale = torch.tensor([0.01] * (ACTIONS - 1) + [1.0])  # the last value is masked, a std is 0.01 at least
    shift = torch.tensor([0.5] * (ACTIONS - 1) + [0.0])
    torch.testing.assert_close(found, expected * scale + shift, rtol=1e-4, atol=1e-4)


def test_smolandfast_trains_and_becomes_smolacts(tmp_path: Path) -> None:
    args = Namespace(name="smolandfast", is_pretrained=False, **fast_settings())
    trained(smolandfast, args, tmp_path / "run", "minmax", steps=1)
    policy, preprocess, _ = smolact.load_policy(
        export_checkpoint(tmp_path / "run", tmp_path / "out"), device="cpu"
    )
    assert policy.name == "smolandfast" and policy.config.action_tokens == "bins"
    assert any(type(step).__name__ == "SmolAndFASTPromptStep" for step in preprocess.steps)


def test_without_what_was_normalized_with_nothing_is_exported(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "checkpoint-1")
    with pytest.raises(StatisticsError, match=STATISTICS_FILE):
        export_checkpoint(tmp_path / "checkpoint-1", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_normalization_that_is_not_said_is_not_taken_for_none(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "checkpoint-1")
    (tmp_path / "checkpoint-1" / STATISTICS_FILE).write_text(json.dumps({"action": {"mode": "identity"}}))
    with pytest.raises(StatisticsError, match="does not say how 'state' is normalized"):
        export_checkpoint(tmp_path / "checkpoint-1", tmp_path / "out")
    assert normalizers_of(Namespace(dataset=Namespace(action_normalizer=None, state_normalizer=None))) == {
        "action": {"mode": "identity"},
        "state": {"mode": "identity"},
    }


def test_create_smolvla_trainer_takes_the_samples_of_a_dataset(model: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "base")
    training = transformers.TrainingArguments(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        remove_unused_columns=False,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
    )
    trainer = smolvla.create_smolvla_trainer(
        model_name_or_path=tmp_path / "base", training_args=training, train_dataset=Normalized("zscore")
    )
    assert trainer.train().training_loss > 0
