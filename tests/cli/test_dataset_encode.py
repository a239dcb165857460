"""`smolact dataset encode`: a training's flags, and what is kept is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from smolact.cli import dataset_encode
from smolact.cli.main import INTERRUPTED, main
from smolact.cli.train import ProgressLine
from smolact.training.tracking import Event
from tests.training.runs import DATASET

POLICY = ("--policy.type=smolvla", "--policy.vlm_model_name=tiny", "--policy.device=cpu", "--num_workers=0")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATASET, tmp_path / "set"))


def test_it_says_how_much_is_kept_where(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--dataset.root", str(root), *POLICY, "--steps=100", "--batch_size=64", "--output_dir=/nowhere"]
    assert dataset_encode.run(flags) == 0
    said = capsys.readouterr()
    (folder,) = (root.parent / "set.cache").iterdir()
    assert said.out == f"vision tokens of 63 frames, 0.52 MB in {folder}\n"
    assert "keeping frames of 2 cameras: 126" in said.err
    assert dataset_encode.run(flags) == 0
    assert "keeping" not in capsys.readouterr().err


def test_ctrl_c_says_that_the_same_command_goes_on(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(_line: ProgressLine, _event: Event) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLine, "__call__", press)
        assert dataset_encode.run([f"--dataset.root={root}", *POLICY]) == INTERRUPTED
    assert "the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--resume=true"], "run the same `smolact dataset encode` again"),
        (["--dataset.image_transforms.enable=true"], "changes them each time"),
        (["--policy.freeze_vision_encoder=false", "--policy.train_expert_only=false"], "that stay"),
    ],
)
def test_what_training_refuses_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    assert main(["dataset", "encode", f"--dataset.root={root}", *POLICY, *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
