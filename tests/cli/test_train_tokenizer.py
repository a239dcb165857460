"""`smolact train-tokenizer`, on a dataset that a scripted expert made."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smolact.cli.main import main
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter
from smolact.envs.demonstrations import demonstrations
from smolact.envs.experts import expert_for
from smolact.envs.factory import env_id, make_env
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.recording.demonstrations import record_demonstrations


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "dataset"
    with make_env("tabletop", image_size=16) as envs:
        shown = demonstrations(envs[0], expert_for(env_id("tabletop")), 6)
        record_demonstrations(shown, folder, fps=10, use_videos=False)
    return folder


@pytest.mark.parametrize("mode", ["min_max", "quantiles"])
def test_a_tokenizer_is_fitted_saved_and_shown(
    dataset: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tokenizer"
    flags = [f"--dataset.root={dataset}", f"--output={output}", "--chunk_size=8", "--vocab_size=300"]
    assert main(["train-tokenizer", *flags, f"--normalization={mode}", "--max_chunks=50"]) == 0
    shown = capsys.readouterr().out
    assert "50 chunks of 8 x 2 numbers" in shown and "numbers a token" in shown and "mean error" in shown
    tokenizer = FASTTokenizer.load(output)
    assert (tokenizer.horizon, tokenizer.dim) == (8, 2)

    reader = LeRobotDataset(str(dataset))
    kept = reader.meta.stats["action"]
    low, high = (kept[name] for name in (("min", "max") if mode == "min_max" else ("q01", "q99")))
    chunks = 2 * (reader.windows("action", 8) - low) / (high - low) - 1
    assert np.abs(tokenizer.decode(tokenizer.encode(chunks)) - chunks).mean() < 0.05
    with Image.open(io.BytesIO((output / "tokenizer.png").read_bytes())) as picture:
        assert picture.width > 800

    assert main(["train-tokenizer", *flags]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_windows_are_the_samples_chunks(dataset: Path) -> None:
    reader = LeRobotDataset(str(dataset), delta_timestamps={"action": [step / 10 for step in range(8)]})
    frames = reader.frames_before_end(7)
    windows = reader.windows("action", 8)
    assert len(windows) == len(frames) < len(reader)
    for place in (0, len(frames) // 2, -1):
        sample = reader[int(frames[place])]
        assert not sample["action_is_pad"].any()
        np.testing.assert_array_equal(windows[place], sample["action"].numpy())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--dataset.root=FOLDER"),
        (["--dataset.root=DATA"], "--output=FOLDER"),
        (["--dataset.root=DATA", "--output=OUT", "--chunk_size=1000"], "--chunk_size=1000: "),
        (["--dataset.root=DATA", "--output=OUT", "--normalization=mean_std"], "--normalization=mean_std"),
        (["--dataset.root=DATA", "--output=OUT", "--scale=0"], "--scale=0"),
        (["--dataset.root=DATA", "--output=OUT", "--scale=1000"], "Use vocab_size="),
    ],
)
def test_what_can_not_work_is_said(
    dataset: Path, tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [flag.replace("DATA", str(dataset)).replace("OUT", str(tmp_path / "out")) for flag in flags]
    assert main(["train-tokenizer", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_number_that_moves_seldom_keeps_its_motion(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Its quantiles are the same number, and the whole alphabet would go into it."""
    features = {"action": {"dtype": "float32", "shape": (2,)}}
    with DatasetWriter.create(tmp_path / "d", fps=10, features=features) as writer:
        for number in range(600):
            action = np.array([np.sin(number / 20), 200 < number < 204], np.float32)
            writer.add_frame({"action": action}, task="Grip it.")
        writer.save_episode()
    flags = [f"--dataset.root={tmp_path / 'd'}", f"--output={tmp_path / 'out'}", "--chunk_size=8"]
    assert main(["train-tokenizer", *flags, "--normalization=quantiles", "--vocab_size=400"]) == 0
    assert "of the numbers 1 lie together" in caplog.text
    tokenizer = FASTTokenizer.load(tmp_path / "out")
    grips = np.stack([np.zeros(8), [-1, -1, 1, 1, 1, -1, -1, -1]], axis=1)[None]
    decoded = tokenizer.decode(tokenizer.encode(grips))[0, :, 1]
    assert ((decoded > 0) == (grips[0, :, 1] > 0)).all()
