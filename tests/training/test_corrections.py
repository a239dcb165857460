"""Datasets of corrections: how often a frame is drawn follows from its mark, and from the position alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, FeatureError
from smolact.training.corrections import weighted_corrections
from smolact.training.sources import find_sources, order_of
from tests.training.runs import plain_settings

MARKED = {2, 3, 4, 13}  # of 20 frames, in two episodes


def write(root: Path, *, marks: bool = True) -> Path:
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["a", "b"]},
    }
    if marks:
        features["intervention"] = {"dtype": "bool", "shape": (1,), "names": None}  # type: ignore[dict-item]
    with DatasetWriter.create(root, fps=10, features=features) as writer:
        for episode in range(2):
            for frame in range(10):
                vector = np.full(2, frame, np.float32)
                mark = {"intervention": np.array([10 * episode + frame in MARKED])} if marks else {}
                writer.add_frame({"observation.state": vector, "action": vector, **mark}, task="go")
            writer.save_episode()
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("data")
    return write(folder / "marked"), write(folder / "plain", marks=False)


def drawn(folders: list[Path], weight: str, positions: range, drop: int = 0) -> list[int]:
    data = (
        f"--dataset.root={folders[0]}"
        if len(folders) == 1
        else f"--dataset.mix={{{', '.join(f'{folder}: 1' for folder in folders)}}}"
    )
    config = plain_settings("--policy.type=smolvla", data, f"--dataset.corrections_weight={weight}")
    sources = find_sources(config.dataset, {})
    order = order_of(sources, [LeRobotDataset(folder) for folder in folders], 5, drop)
    return [order.frame(position) for position in positions]


def test_a_correction_counts_as_often_as_it_is_weighted(folders: tuple[Path, Path]) -> None:
    found = Counter(drawn([folders[0]], "4", range(4096)))
    each = {
        kind: [found[frame] for frame in range(20) if (frame in MARKED) == kind] for kind in (True, False)
    }
    assert np.ptp(each[True]) <= 1 and np.ptp(each[False]) <= 1 and sum(each[False]) > 0
    assert np.mean(each[True]) / np.mean(each[False]) == pytest.approx(4, rel=0.01)


def test_only_corrections_without_the_ends_of_episodes(folders: tuple[Path, Path]) -> None:
    assert set(drawn([folders[0]], "only", range(60))) == MARKED
    assert set(drawn([folders[0]], "only", range(60), drop=7)) == {2}


def test_in_a_mixture_unmarked_demonstrations_stay_whole(folders: tuple[Path, Path]) -> None:
    found = Counter(drawn([folders[1], folders[0]], "only", range(1024)))
    assert {frame for frame in found if frame >= 20} == {20 + frame for frame in MARKED}
    assert {frame for frame in found if frame < 20} == set(range(20))
    assert sum(count for frame, count in found.items() if frame < 20) == 512


@pytest.mark.parametrize("weight", ["3.5", "only"])
def test_the_order_is_the_same_from_wherever_it_is_read(folders: tuple[Path, Path], weight: str) -> None:
    whole = drawn(list(folders), weight, range(3000))
    assert drawn(list(folders), weight, range(1500, 3000)) == whole[1500:]


def test_without_a_weight_nothing_changes(folders: tuple[Path, Path]) -> None:
    marked, plain = (drawn([folder], "null", range(40)) for folder in folders)
    assert marked == plain


def test_what_can_not_be_weighted_is_told(folders: tuple[Path, Path]) -> None:
    with pytest.raises(FeatureError, match=r"no frame of .*plain is marked as a correction"):
        drawn([folders[1]], "only", range(1))
    for wrong, message in (("0", "above 0, or 'only'"), ("-1", "above 0, or 'only'"), ("inf", "one of only")):
        with pytest.raises(ConfigError, match=message):
            drawn([folders[0]], wrong, range(1))
    frames = np.arange(10_000)
    with pytest.raises(ConfigError, match="leaves nothing"):
        weighted_corrections(frames, frames < 0, "only", 0, "epoch")
    with pytest.raises(ConfigError, match=r"nearer to 1e\+04"):
        weighted_corrections(frames, frames < 1, 2, 0, "epoch")
    assert weighted_corrections(frames, frames < 0, 3, 0, "epoch").frame(0) >= 0
