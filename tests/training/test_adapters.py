"""`--peft.…` of a run: what its checkpoints hold, and that it resumes bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import smolact
from smolact.errors import ConfigError
from smolact.flags import read_flags
from smolact.training.config import TrainConfig, resolve
from smolact.training.train import train
from tests.training.runs import SMALL, run, settings

PEFT = ("--peft.method_type=lora", "--peft.r=4")


def needs_peft() -> None:
    pytest.importorskip("peft", reason="peft is not installed (pip install 'smolact[peft]')")


def test_a_run_of_adapters_saves_them_alone_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    needs_peft()
    run(tmp_path / "base", "--steps=1")
    base = tmp_path / "base" / "checkpoints" / "last" / "pretrained_model"
    policy = (f"--policy.path={base}", "--policy.device=cpu", *PEFT)
    straight, _ = run(tmp_path / "straight", "--steps=4", "--save_freq=2", policy=policy)
    assert straight.checkpoint is not None
    saved = straight.checkpoint / "pretrained_model"
    assert not (saved / "model.safetensors").exists()
    assert json.loads((saved / "config.json").read_text())["pretrained_path"] == str(base.resolve())
    assert json.loads((saved / "train_config.json").read_text())["peft"]["r"] == 4

    half = tmp_path / "straight" / "checkpoints" / "000002"
    resumed = resume(half, "--steps=4")
    one, other = (
        load_file(folder / "pretrained_model" / "adapter_model.safetensors")
        for folder in (straight.checkpoint, resumed)
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert smolact.load_policy(straight.checkpoint, device="cpu").policy.adapters is not None


def resume(checkpoint: Path, *argv: str) -> Path:
    """A copy of the run up to `checkpoint`, trained on; its last checkpoint."""
    copy = checkpoint.parents[2] / "resumed" / "checkpoints" / checkpoint.name
    shutil.copytree(checkpoint, copy)
    ended = train(TrainConfig.resume_with_flags(copy, read_flags(argv)))
    assert ended.checkpoint is not None
    return ended.checkpoint


def test_flags_are_those_of_lerobot() -> None:
    config = settings(
        *SMALL, "--peft.method_type=LORA", "--peft.target_modules=[q_proj, v_proj]", "--peft.lora_alpha=8"
    )
    assert config.peft is not None
    assert config.peft.adapter_settings().target_modules == ["q_proj", "v_proj"]
    assert config.peft.adapter_settings().r == 16
    config = settings(*SMALL, "--peft.target_modules=.*_proj")
    assert config.peft is not None
    assert config.peft.adapter_settings().target_modules == ".*_proj"
    assert settings(*SMALL).peft is None
    with pytest.raises(ConfigError, match=r"--peft.method_type=ia3 is not supported\. Use lora"):
        settings(*SMALL, "--peft.method_type=ia3")


def test_adapters_of_a_new_policy_are_refused() -> None:
    for flag, message in (
        ("--peft.r=4", "--peft adapts a policy that has learnt"),
        ("--policy.use_peft=true", "a new policy has none"),
    ):
        config = settings(*SMALL, flag)
        with pytest.raises(ConfigError, match=message):
            config.check_complete()


def test_the_average_has_the_flags_of_lerobot_and_a_warm_up_of_its_own() -> None:
    config = settings(*SMALL, "--ema.enable=true", "--ema.decay=0.99", "--ema.power=0.75")
    assert (config.ema.enable, config.ema.decay, config.ema.warmup) == (True, 0.99, True)
    assert resolve(settings(*SMALL, "--ema.decay=null")).ema.decay == 0.999
    with pytest.raises(ConfigError, match=r"--ema\.decay=1\.0: it must be at least 0 and below 1"):
        settings(*SMALL, "--ema.decay=1")
    with pytest.raises(ConfigError, match=r"--ema.power=0.5 can't be used: the decay grows as"):
        settings(*SMALL, "--ema.power=0.5")


def test_multipliers_are_read_from_the_flag() -> None:
    config = settings(*SMALL, '--lr_multipliers={"vision_model": 0.1, "connector": 1}')
    assert config.lr_multipliers == {"vision_model": 0.1, "connector": 1.0}
