"""From trained adapters to a plain checkpoint: the same predictions, here and in LeRobot."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import smolact
from smolact.cards import is_unedited
from smolact.cli.main import main
from tests.training.runs import DATA, DATASET, SMALL, run

pytest.importorskip("peft", reason="peft is not installed (pip install 'smolact[peft]')")

LEROBOT = os.environ.get("SMOLACT_LEROBOT_PYTHON")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run that trained adapters, and one layer whole, for three steps."""
    folder = tmp_path_factory.mktemp("runs")
    vlm = f"--policy.vlm_model_name={DATA / 'tiny_vlm'}"  # LeRobot wants a folder
    flags = [flag for flag in SMALL if "vlm_model_name" not in flag]
    base, _ = run(
        folder / "base",
        "--steps=1",
        policy=(*flags, vlm, "--policy.allow_frozen_random=true", "--policy.load_vlm_weights=false"),
    )
    assert base.checkpoint is not None
    peft = ("--peft.method_type=lora", "--peft.r=4", "--peft.full_training_modules=[action_out_proj]")
    path = f"--policy.path={base.checkpoint / 'pretrained_model'}"
    ended, _ = run(
        folder / "adapters",
        *("--steps=3", "--policy.optimizer_lr=0.01"),
        policy=(path, "--policy.device=cpu", *peft),
    )
    assert ended.checkpoint is not None
    return ended.checkpoint / "pretrained_model"


@pytest.fixture(scope="module")
def merged(adapters: Path) -> Path:
    output = adapters.parents[3] / "merged"
    assert main(["policy", "merge-adapters", f"--policy.path={adapters}", f"--output={output}"]) == 0
    return output


def observation() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = json.loads((DATASET / "meta" / "info.json").read_text())["features"]
    batch = {
        "observation.state": torch.randn(2, *features["observation.state"]["shape"], generator=generator)
    }
    for key, feature in features.items():
        if feature["dtype"] == "video":
            height, width, _ = feature["shape"]
            batch[key] = torch.rand(2, 3, height, width, generator=generator)
    return batch


def noise() -> Tensor:
    return torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))


def actions(checkpoint: Path) -> Tensor:
    policy, preprocess, postprocess = smolact.load_policy(checkpoint, device="cpu")
    batch = preprocess({**observation(), "task": ["push the block"] * 2})
    return postprocess(policy.predict_action_chunk(batch, noise()))


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_the_merged_checkpoint_predicts_what_the_adapters_do(adapters: Path, merged: Path) -> None:
    base = Path(json.loads((adapters / "config.json").read_text())["pretrained_path"])
    assert distance(actions(base), actions(adapters)) > 1e-3
    assert distance(actions(merged), actions(adapters)) < 1e-5


def test_it_is_a_plain_checkpoint_with_all_that_stood_beside_the_adapters(
    adapters: Path, merged: Path
) -> None:
    names = {str(path.relative_to(adapters)) for path in adapters.rglob("*") if path.is_file()}
    kept = names - {"adapter_config.json", "adapter_model.safetensors"}
    found = {str(path.relative_to(merged)) for path in merged.rglob("*") if path.is_file()}
    assert found == kept | {"model.safetensors"}
    for name in kept - {"config.json", "README.md"}:
        assert (merged / name).read_bytes() == (adapters / name).read_bytes(), name
    assert json.loads((merged / "config.json").read_text())["use_peft"] is False
    cards = [(folder / "README.md").read_text() for folder in (adapters, merged)]
    assert all(map(is_unedited, cards))
    base = Path(json.loads((adapters / "config.json").read_text())["pretrained_path"])
    assert load_file(merged / "model.safetensors").keys() == load_file(base / "model.safetensors").keys()
    assert smolact.load_policy(merged, device="cpu").policy.adapters is None


def test_a_folder_that_is_there_is_left_alone(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    assert main(["policy", "merge-adapters", f"--policy.path={adapters}", f"--output={tmp_path}"]) == 2
    assert f"--output={tmp_path} exists already" in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_a_plain_policy_has_nothing_to_merge(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "again"
    assert main(["policy", "merge-adapters", f"--policy.path={merged}", f"--output={output}"]) == 1
    assert "has no adapters" in capsys.readouterr().err
    assert not output.exists()


def test_both_flags_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "merge-adapters"]) == 2
    assert "needs --policy.path=CHECKPOINT" in capsys.readouterr().err
    assert main(["policy", "merge-adapters", "--policy.path=x"]) == 2
    assert "needs --output=FOLDER" in capsys.readouterr().err


@pytest.mark.lerobot
@pytest.mark.skipif(LEROBOT is None, reason="set SMOLACT_LEROBOT_PYTHON to a Python that has LeRobot 0.6.1")
def test_lerobot_opens_both_and_predicts_the_same(adapters: Path, merged: Path, tmp_path: Path) -> None:
    """Its Python needs peft too."""
    save_file(observation() | {"noise": noise()}, tmp_path / "inputs.safetensors")
    output = tmp_path / "chunks.safetensors"
    command = [LEROBOT, Path(__file__).with_name("lerobot_predicts.py"), DATASET]
    done = subprocess.run(
        [*map(str, [*command, tmp_path / "inputs.safetensors", output, adapters, merged])],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": os.environ["PATH"]},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = load_file(output)
    for checkpoint in (adapters, merged):
        assert distance(theirs[str(checkpoint)], actions(checkpoint)) < 1e-5
