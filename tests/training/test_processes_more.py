"""Two processes with everything on: the average, adapters, and a run that is stopped and resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from smolact.training.budget import LEAST_STEPS
from smolact.training.checkpoint import read_progress
from tests.training.runs import SMALL, run
from tests.training.test_processes import FROZEN, check_same, run_two

ON = (*FROZEN, "--ema.enable=true", "--dataset.image_transforms.enable=true")
STATE = "checkpoints/last/training_state"


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    apart = torch.stack([(one[name] - other[name]).double().norm() for name in one]).norm()
    return float(apart / torch.stack([tensor.double().norm() for tensor in other.values()]).norm())


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two processes, with a moving average and augmentation."""
    folder = tmp_path_factory.mktemp("runs") / "together"
    run_two(folder, *SMALL, *ON, "--batch_size=2")
    return folder


def test_the_average_of_two_processes_is_that_of_one(together: Path, tmp_path: Path) -> None:
    run(tmp_path / "alone", *ON, "--batch_size=4", "--save_freq=2")
    check_same(together, tmp_path / "alone")
    one, other = (
        load_file(folder / STATE / "ema_state.safetensors") for folder in (together, tmp_path / "alone")
    )
    assert distance(one, other) <= 1e-6
    assert int(one["updates"]) == 4


def run_from(checkpoint: Path, folder: Path) -> None:
    """A copy of a run in `folder` that was stopped after `checkpoint`."""
    shutil.copytree(checkpoint.parents[1], folder, symlinks=True)
    for entry in (folder / "checkpoints").glob("0*"):
        if int(entry.name) > int(checkpoint.name):
            shutil.rmtree(entry)
    last = folder / "checkpoints" / "last"
    last.unlink()
    last.symlink_to(checkpoint.name)


@pytest.mark.slow
def test_two_processes_go_on_bit_for_bit(together: Path, tmp_path: Path) -> None:
    folder = tmp_path / "resumed"
    run_from(together / "checkpoints" / "000002", folder)  # inside an epoch: 8 of 63 frames are seen
    run_two(folder, "--resume=true")
    for name in (
        "pretrained_model/model.safetensors",
        "training_state/optimizer_state.safetensors",
        "training_state/ema_state.safetensors",
        "training_state/rng_state.safetensors",
    ):
        one, other = (load_file(path / "checkpoints" / "last" / name) for path in (folder, together))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert (folder / "checkpoints" / "last").readlink() == Path("000004")


@pytest.mark.slow
@pytest.mark.parametrize("targets", [(), ("--peft.target_modules=all-linear",)], ids=["own", "all-linear"])
def test_adapters_in_two_processes_are_those_of_one(
    together: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    """With all-linear some adapters are in layers that the loss does not need, and get no gradient."""
    pytest.importorskip("peft", reason="peft is not installed (pip install 'smolact[peft]')")
    base = together / "checkpoints" / "000002" / "pretrained_model"
    flags = (
        f"--policy.path={base}",
        "--policy.device=cpu",
        "--peft.method_type=lora",
        "--peft.r=4",
        *targets,
    )
    run(tmp_path / "alone", "--steps=3", "--batch_size=4", policy=flags)
    run_two(tmp_path / "together", *flags, "--steps=3", "--batch_size=2", "--log_freq=1")
    one, other = (
        load_file(tmp_path / name / "checkpoints/last/pretrained_model/adapter_model.safetensors")
        for name in ("together", "alone")
    )
    assert distance(one, other) <= 1e-6
    assert any(tensor.any() for name, tensor in one.items() if "lora_B" in name)


@pytest.mark.slow
def test_two_processes_train_the_whole_vlm_as_one_does(tmp_path: Path) -> None:
    """Some of its parameters are never used, and must not be waited for."""
    flags = (
        *SMALL,
        "--policy.train_expert_only=false",
        "--policy.freeze_vision_encoder=false",
        "--log_freq=1",
    )
    run(tmp_path / "alone", "--steps=4", "--batch_size=4", "--save_freq=2", policy=flags)
    run_two(tmp_path / "together", *flags, "--steps=4", "--batch_size=2")
    check_same(tmp_path / "together", tmp_path / "alone")


def test_two_processes_agree_on_the_clock(tmp_path: Path) -> None:
    """Each looks at a clock of its own; the first one's counts, or they would wait for each other after the last step."""
    folder = tmp_path / "run"
    run_two(folder, *SMALL, "--batch_size=2", "--train_minutes=0.1", "--report=false")
    progress = read_progress(folder / "checkpoints/last")
    assert progress.step >= LEAST_STEPS and 4 < progress.seconds < 60
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["lr"] < 0.1 * max(line["lr"] for line in lines)
