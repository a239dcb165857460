"""The programs in examples/ do what they say, as they are typed: `python examples/NAME.py`, in an empty folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from torch import Tensor

import smolact
from smolact.processors.pipeline import ProcessorPipeline
from smolact.processors.step import _REGISTRY
from tests.documents import ROOT, lines

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PROJECTS = [path.parent for path in sorted((ROOT / "examples").glob("*/pyproject.toml"))]
DATASET = ROOT / "tests/parity/data/dataset_v30"


def run(folder: Path, name: str, *arguments: str) -> str:
    """What an example prints; a failure or a warning fails the test."""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", [*EXAMPLES, *PROJECTS], ids=lambda path: path.stem)
def test_each_is_short(path: Path) -> None:
    modules = [path] if path.is_file() else path.rglob("*.py")
    assert sum(len(module.read_text(encoding="utf-8").splitlines()) for module in modules) < 90


def test_the_page_runs_each_without_arguments() -> None:
    typed = [line.split("#")[0].strip() for line in lines(ROOT / "docs/examples.md")]
    assert {f"python examples/{path.name}" for path in EXAMPLES} <= set(typed)
    assert {f"pip install -e examples/{path.name}" for path in PROJECTS} <= set(typed)


def test_a_loop_of_ones_own_trains_a_checkpoint_that_predicts(tmp_path: Path) -> None:
    """`load_and_predict` runs `train_in_a_script` as it is typed, since there is no checkpoint yet."""
    shown = run(tmp_path, "load_and_predict").splitlines()
    before, after = shown[1].split("loss ")[1].split(",")[0].split(" → ")
    assert float(after) < float(before) / 2
    assert shown[3].startswith("8 actions; the first: [")
    trained = tmp_path / "outputs/examples/trained"
    assert smolact.load_policy(trained).policy.config.chunk_size == 8
    again = run(tmp_path, "load_and_predict", str(trained), str(tmp_path / "outputs/examples/table"))
    assert again.splitlines() == shown[2:]


def test_a_loop_of_ones_own_learns_from_a_dataset_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import load_and_predict
    import train_in_a_script

    losses = train_in_a_script.train(str(DATASET), str(tmp_path / "mine"), steps=8, batch_size=4)
    assert sum(losses[4:]) < sum(losses[:4])
    actions = load_and_predict.predict(str(tmp_path / "mine"), str(DATASET))
    assert isinstance(actions, Tensor) and actions.shape == (8, 6) and actions.isfinite().all()


def test_a_step_of_ones_own_is_saved_and_found_again(tmp_path: Path) -> None:
    assert "[12.0, -8.0, 41.5] → [12.0, -8.0, 1.0]" in run(tmp_path, "processor_step")
    assert "mine_binary_gripper" not in _REGISTRY
    with pytest.raises(smolact.errors.SmolactError, match="mine_binary_gripper"):
        ProcessorPipeline.from_pretrained(tmp_path / "outputs/examples/step", "policy_preprocessor.json")
