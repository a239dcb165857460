"""SmolVLA in Hugging Face's Trainer: the losses of `smolact train`, checkpoints that open, errors of joints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import smolact
from smolact.errors import ConfigError, FeatureError
from smolact.policies.embodiment import Embodiment
from tests import published
from tests.training.runs import DATASET, run

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from smolact_transformers.data import SmolVLAProcessor, dataset_for  # noqa: E402
from smolact_transformers.trainer import ActionErrors, SmolVLATrainer, create_smolvla_trainer  # noqa: E402

STEPS = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that has made a step, to begin from."""
    ended, _ = run(tmp_path_factory.mktemp("base") / "run", "--steps=1")
    assert ended.checkpoint is not None
    return ended.checkpoint / "pretrained_model"


def arguments(folder: Path, **more: Any) -> Any:
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": STEPS,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 4,
            "remove_unused_columns": False,
            "max_grad_norm": 10.0,
            "seed": 1000,
            "logging_steps": 1,
            "save_steps": 3,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **more,
        }
    )


def trainer_for(base: Path, folder: Path, **more: Any) -> SmolVLATrainer:
    config = smolact.SmolVLAConfig.from_pretrained(base)
    return create_smolvla_trainer(
        base,
        arguments(folder, **more),
        dataset_for(config, DATASET),
        dataset_for(config, DATASET, episodes=[0]),
        policy_recipe=True,
    )


def losses(trainer: SmolVLATrainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def straight(base: Path, tmp_path_factory: pytest.TempPathFactory) -> SmolVLATrainer:
    trainer = trainer_for(base, tmp_path_factory.mktemp("hf") / "run")
    trainer.train()
    return trainer


def test_every_step_is_the_step_of_smolact_train(
    base: Path, straight: SmolVLATrainer, tmp_path: Path
) -> None:
    ended, recorder = run(
        tmp_path / "ours",
        f"--steps={STEPS}",
        "--seed=1000",
        policy=(f"--policy.path={base}", "--policy.device=cpu"),
    )
    assert losses(straight) == pytest.approx(list(recorder.losses.values()), rel=2e-4)  # it logs four digits
    assert ended.checkpoint is not None
    ours = smolact.load_policy(ended.checkpoint, device="cpu").policy.state_dict()
    before, theirs = smolact.load_policy(base, device="cpu").policy.state_dict(), straight.model.state_dict()
    # AdamW divides a gradient by its own size. Where that is nearly nothing (a key's bias has no effect on a softmax) rounding
    # decides a weight's step, so what must agree is the update of all weights together.
    update = torch.cat([(ours[name] - before[name]).flatten() for name in ours])
    difference = torch.cat([(ours[name] - theirs[name]).flatten() for name in ours])
    assert difference.norm() <= 1e-3 * update.norm()


def test_a_run_that_was_stopped_goes_on_as_it_would_have(
    base: Path, straight: SmolVLATrainer, tmp_path: Path
) -> None:
    stopped = Path(straight.args.output_dir) / "checkpoint-3"
    again = trainer_for(base, tmp_path / "again")
    again.train(resume_from_checkpoint=str(stopped))
    assert losses(again)[-3:] == losses(straight)[-3:]
    for (name, one), other in zip(
        again.model.state_dict().items(), straight.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_a_checkpoint_is_smolacts(straight: SmolVLATrainer) -> None:
    folder = Path(straight.args.output_dir) / f"checkpoint-{STEPS}"
    policy, preprocess, postprocess = smolact.load_policy(folder, device="cpu")
    assert json.loads((folder / "config.json").read_text())["type"] == "smolvla"
    seen = straight.train_dataset[0]
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    batch = preprocess({key: value for key, value in seen.items() if key.startswith(("observation", "task"))})
    chunk = postprocess(policy.predict_action_chunk(batch, noise))
    here = straight.model.eval().predict_action_chunk(batch, noise)
    torch.testing.assert_close(chunk, straight.processor.actions(here), rtol=1e-5, atol=1e-5)


def test_an_evaluation_tells_the_error_of_each_joint_and_is_repeatable(straight: SmolVLATrainer) -> None:
    first, second = straight.evaluate(), straight.evaluate()
    errors = {name: value for name, value in first.items() if "action_error" in name}
    assert errors == {name: second[name] for name in errors}
    assert first["eval_loss"] == second["eval_loss"]
    names = json.loads((DATASET / "meta" / "info.json").read_text())["features"]["action"]["names"]
    names = names if isinstance(names, list) else next(iter(names.values()))
    assert set(errors) == {"eval_action_error", *(f"eval_action_error/{name}" for name in names)}
    joints = [errors[f"eval_action_error/{name}"] for name in names]
    assert all(value > 0 for value in joints) and errors["eval_action_error"] == pytest.approx(
        np.mean(joints), rel=1e-5
    )


def test_what_lies_behind_an_episodes_end_is_no_error() -> None:
    wanted = np.array([[[1.0, 2.0], [np.nan, np.nan]]])
    found = np.array([[[1.5, 2.0], [9.0, 9.0]]])
    prediction = transformers.EvalPrediction(predictions=found, label_ids=wanted)
    assert ActionErrors(["a", "b"])(prediction) == {
        "action_error": 0.25,
        "action_error/a": 0.5,
        "action_error/b": 0.0,
    }


def test_the_processor_makes_samples_of_pictures_words_and_numbers(base: Path) -> None:
    from PIL import Image

    policy = smolact.SmolVLAPolicy.from_pretrained(base)
    processor = SmolVLAProcessor.from_pretrained(base, policy)
    cameras = {key.rpartition(".")[2]: feature.shape for key, feature in policy.config.image_features.items()}
    pixels = {
        name: np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        for name, (_, height, width) in cameras.items()
    }
    state = np.zeros(policy.config.robot_state_feature.shape, np.float32)
    one = processor({name: Image.fromarray(value) for name, value in pixels.items()}, "push", state)
    other = processor(pixels, "push", state)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], Tensor))
    batch = processor.data_collator([one, other])
    actions = processor.actions(policy.predict_action_chunk(batch, torch.zeros(2, 4, 32)))
    assert actions.shape == (2, 4, *policy.config.action_feature.shape)
    with pytest.raises(FeatureError, match=r"expected a PIL image in RGB"):
        processor({name: value[..., 0] for name, value in pixels.items()}, "push", state)


def test_cameras_names_and_the_robot_are_those_of_every_training(base: Path, tmp_path: Path) -> None:
    """The base of three cameras on a dataset of two: the same rule, map and embodiment as `smolact train`."""
    cameras = {
        f"observation.images.{old}": f"observation.images.{new}" for old, new in (("top", 1), ("wrist", 2))
    }
    folder = published.finetune_of_base(tmp_path / "base")
    as_base = published.as_the_base(folder)
    data = dataset_for(smolact.SmolVLAConfig.from_pretrained(as_base), DATASET)
    with pytest.raises(FeatureError, match=r"policy's cameras are not in the dataset.*camera1"):
        create_smolvla_trainer(as_base, arguments(tmp_path / "run"), data)
    names = {old: f"observation.images.camera{new[-1]}" for old, new in cameras.items()}
    policy = smolact.SmolVLAPolicy.from_pretrained(as_base, empty_cameras=1)
    trainer = create_smolvla_trainer(
        policy, arguments(tmp_path / "run", max_steps=1, save_steps=1), data, rename_map=names
    )
    trainer.train()
    saved = smolact.load_policy(tmp_path / "run" / "checkpoint-1", device="cpu")
    assert saved.policy.config.embodiment is not None
    assert saved.policy.config.embodiment.cameras == {new: old for old, new in names.items()}
    assert len(saved.policy.config.embodiment.names["action"]) == 6
    again = create_smolvla_trainer(
        smolact.SmolVLAPolicy.from_pretrained(tmp_path / "run" / "checkpoint-1"),
        arguments(tmp_path / "again"),
        data,
        rename_map=names,
    )
    assert again.policy is not None and again.policy.config.empty_cameras == 1
    by_saved_map = create_smolvla_trainer(
        tmp_path / "run" / "checkpoint-1", arguments(tmp_path / "third"), data
    )
    assert by_saved_map.processor is not None
    assert by_saved_map.processor.preprocess.steps[0].rename_map == names  # type: ignore[attr-defined]


def test_a_policy_of_another_robot_says_so_and_goes_on(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = dataset_for(smolact.SmolVLAConfig.from_pretrained(base), DATASET)
    create_smolvla_trainer(base, arguments(tmp_path / "same"), data)
    assert "learns the dataset's" not in caplog.text
    other = Path(shutil.copytree(base, tmp_path / "other"))
    Embodiment(names={"action": ("a", "b", "c", "d", "e", "f")}).save(other)
    trainer = create_smolvla_trainer(other, arguments(tmp_path / "run"), data)
    assert "other joints, or other names" in caplog.text and "learns the dataset's" in caplog.text
    assert trainer.policy is not None and trainer.policy.config.embodiment is not None
    assert list(trainer.policy.config.embodiment.names["action"]) == data.meta.features["action"].names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            {"observation.images.topp": "observation.images.camera1"},
            r"'observation\.images\.topp'.*which the",
        ),
        (
            {"observation.images.wrist": "observation.images.top"},
            r"two features to 'observation\.images\.top'",
        ),
    ],
)
def test_a_rename_map_that_does_not_fit_the_dataset_is_refused(
    base: Path, tmp_path: Path, names: dict[str, str], message: str
) -> None:
    policy = smolact.SmolVLAPolicy.from_pretrained(base, empty_cameras=1)  # so that no camera is missing
    data = dataset_for(policy.config, DATASET)
    with pytest.raises(ConfigError, match=message):
        create_smolvla_trainer(policy, arguments(tmp_path), data, rename_map=names)


def test_of_a_processors_map_only_the_datasets_names_count(base: Path, tmp_path: Path) -> None:
    """A checkpoint's map may begin at names of another dataset; what it maps of this one must stay apart."""
    policy = smolact.SmolVLAPolicy.from_pretrained(base)
    data = dataset_for(policy.config, DATASET)
    elsewhere = {"observation.images.elsewhere": "observation.images.top"}
    SmolVLAProcessor.of(policy, data.meta.stats, elsewhere).save_pretrained(tmp_path / "saved")
    policy.save_pretrained(tmp_path / "saved")
    processor = SmolVLAProcessor.from_pretrained(tmp_path / "saved", policy)
    SmolVLATrainer(policy, arguments(tmp_path / "run"), processor=processor, train_dataset=data)
    create_smolvla_trainer(tmp_path / "saved", arguments(tmp_path / "run"), data)
    one = "observation.images.one"
    both = {"observation.images.top": one, "observation.images.wrist": one}
    twice = SmolVLAProcessor.of(policy, data.meta.stats, both)
    with pytest.raises(ConfigError, match=r"two features to 'observation\.images\.one'"):
        SmolVLATrainer(policy, arguments(tmp_path / "run"), processor=twice, train_dataset=data)


def test_arguments_that_would_lose_images_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="remove_unused_columns=False"):
        trainer_for(base, tmp_path, remove_unused_columns=True)


def test_a_new_policy_needs_statistics(base: Path, tmp_path: Path) -> None:
    config = smolact.SmolVLAConfig.from_pretrained(base)
    with pytest.raises(ConfigError, match="statistics"):
        create_smolvla_trainer(config, arguments(tmp_path), [])  # type: ignore[arg-type]
