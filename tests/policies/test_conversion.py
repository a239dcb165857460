"""SmolVLA under its two names in LeRobot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import smolact
from smolact.cli.main import main
from smolact.errors import ConfigError
from smolact.policies.conversion import convert_checkpoint
from smolact.policies.factory import make_policy, make_pre_post_processors
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.types import FeatureType, PolicyFeature


def checkpoint(folder: Path, **settings: object) -> Path:
    config = SmolVLAConfig(
        vlm_model_name="tiny",
        num_vlm_layers=2,
        resize_imgs_with_padding=(64, 64),
        chunk_size=4,
        n_action_steps=2,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
    ).replace(**settings)
    torch.manual_seed(0)
    policy = make_policy(config, pretrained_vlm=False)
    policy.save_pretrained(folder)
    numbers = {"mean": torch.zeros(2), "std": torch.ones(2)}
    for pipeline in make_pre_post_processors(policy, {"observation.state": numbers, "action": numbers}):
        pipeline.save_pretrained(folder)
    (folder / "train_config.json").write_text(json.dumps({"policy": {"type": "smolvla"}, "steps": 3}))
    return folder


def chunk(folder: Path) -> torch.Tensor:
    policy, preprocess, postprocess = smolact.load_policy(folder, device="cpu")
    seen = {
        "observation.state": torch.ones(2),
        "observation.image": torch.full((3, 64, 64), 0.5),
        "task": "go on",
    }
    noise = torch.randn(1, 4, 32, generator=torch.Generator().manual_seed(0))
    return postprocess(policy.predict_action_chunk(preprocess(seen), noise))


def test_there_and_back_is_the_same_policy_with_the_same_file_of_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = checkpoint(tmp_path / "here")
    fast, back = tmp_path / "fast", tmp_path / "back"
    assert main(["convert", str(here), "--to=smolvla_fast", f"--output={fast}"]) == 0
    assert capsys.readouterr().out.strip() == str(fast)
    assert main(["convert", str(fast), "--to=smolvla", f"--output={back}"]) == 0

    assert json.loads((fast / "config.json").read_text())["type"] == "smolvla_fast"
    assert json.loads((fast / "train_config.json").read_text()) == {
        "policy": {"type": "smolvla_fast"},
        "steps": 3,
    }
    assert (fast / "model.safetensors").samefile(here / "model.safetensors")
    for path in here.rglob("*"):
        if path.is_file():
            other = back / path.relative_to(here)
            same = (json.loads(one.read_text()) for one in (path, other)) if path.suffix == ".json" else None
            assert path.read_bytes() == other.read_bytes() if same is None else next(same) == next(same)
    named = {folder: (folder / "policy_preprocessor.json").read_text() for folder in (here, fast, back)}
    assert '"smolact_tokenizer_processor"' in named[fast]  # LeRobot's own step opens no preset
    assert '"smolact_tokenizer_processor"' not in named[here] + named[back]
    assert torch.equal(chunk(here), chunk(fast))
    assert json.loads((here / "config.json").read_text())["type"] == "smolvla"  # what was there is as it was


def test_what_lerobot_does_not_know_stays_where_it_is(tmp_path: Path) -> None:
    here = checkpoint(tmp_path / "here", relative_step=0.5)
    convert_checkpoint(here, "smolvla_fast", tmp_path / "fast")
    with pytest.raises(ConfigError, match="uses relative_step"):
        convert_checkpoint(tmp_path / "fast", "smolvla", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_mistakes(tmp_path: Path) -> None:
    here = checkpoint(tmp_path / "here")
    with pytest.raises(ConfigError, match=r"smolvla_fats: expected .*Did you mean 'smolvla_fast'"):
        convert_checkpoint(here, "smolvla_fats", tmp_path / "out")
    with pytest.raises(ConfigError, match="exists already"):
        convert_checkpoint(here, "smolvla_fast", here)
    (here / "config.json").write_text(
        json.dumps({**json.loads((here / "config.json").read_text()), "type": "smolandfast"})
    )
    with pytest.raises(ConfigError, match="is a 'smolandfast' policy"):
        convert_checkpoint(here, "smolvla_fast", tmp_path / "out")
    assert main(["convert", "--to=smolvla"]) == 2
