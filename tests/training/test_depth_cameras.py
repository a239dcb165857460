"""A policy is trained on a dataset with depth cameras as if they were not there, and that is said in one line."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.errors import ConfigError
from smolact.policies.factory import load_policy
from smolact.training.train import train
from tests.datasets import make
from tests.datasets.make_depth import COLOR, DEPTH, add_images, add_video
from tests.training.runs import QUICK, SMALL, plain_settings


@pytest.fixture(scope="module", params=["video", "image"])
def dataset(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    root = make.write(tmp_path_factory.mktemp("depth") / "set")
    return add_video(root) if request.param == "video" else add_images(root, "TIFF")


def flags(dataset: Path, run: Path, *more: str) -> list[str]:
    return [f"--dataset.root={dataset}", *SMALL, *QUICK, f"--output_dir={run}", "--steps=2", *more]


def test_check_names_depth_cameras_in_one_line(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = plain_settings(*flags(dataset, tmp_path / "run", "--check=true"))
    with caplog.at_level(logging.INFO):
        train(config)
    assert [DEPTH in record.getMessage() for record in caplog.records].count(True) == 1


@pytest.mark.parametrize("cache", [(), ("--dataset.cache=frames",)], ids=["decoded", "kept"])
def test_a_policy_is_trained_without_depth(dataset: Path, tmp_path: Path, cache: tuple[str, ...]) -> None:
    config = plain_settings(*flags(dataset, tmp_path / "run", f"--cache.folder={tmp_path}", *cache))
    ended = train(config)
    assert ended.is_complete
    assert ended.checkpoint is not None
    policy = load_policy(ended.checkpoint).policy
    assert COLOR in policy.config.input_features
    assert DEPTH not in policy.config.input_features


def test_a_rename_map_does_not_lead_depth_to_a_policy(dataset: Path, tmp_path: Path) -> None:
    config = plain_settings(
        *flags(
            dataset,
            tmp_path / "run",
            f'--rename_map={{"{DEPTH}": "observation.images.wrist"}}',
            "--check=true",
        )
    )
    with pytest.raises(ConfigError, match=f"'{DEPTH}'.*depth camera"):
        train(config)


def test_datasets_with_other_depth_cameras_are_mixed(tmp_path: Path) -> None:
    one = add_video(make.write(tmp_path / "one"))
    other = add_images(make.write(tmp_path / "other"))
    bare = make.write(tmp_path / "bare")
    argv = [*SMALL, *QUICK, f"--output_dir={tmp_path / 'run'}", "--steps=1"]
    mix = f'--dataset.mix={{"{one}": 1, "{other}": 1, "{bare}": 1}}'
    config = plain_settings(mix, *argv)
    assert train(config).is_complete


def test_doctor_names_depth_cameras(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", str(dataset)]) == 0
    assert DEPTH in capsys.readouterr().out
