"""The reference's datasets read as the reference reads them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.stats import ImageStatistics, VectorStatistics, aggregate, vector_statistics
from smolact.types import FeatureType, PolicyFeature

DATA = Path(__file__).parent.parent / "parity" / "data"
CAMERAS = ("top", "wrist")


def expected(version: str) -> dict[str, Any]:
    return dict(json.loads((DATA / f"dataset_{version}_expected.json").read_text()))


@pytest.fixture
def v20(tmp_path: Path) -> Path:
    """The v2.1 dataset as v2.0 had it: statistics of all episodes in one file."""
    root = tmp_path / "v20"
    shutil.copytree(DATA / "dataset_v21", root)
    stats = LeRobotDatasetMetadata(root).stats
    plain = {key: {name: value.tolist() for name, value in values.items()} for key, values in stats.items()}
    (root / "meta/stats.json").write_text(json.dumps(plain))
    (root / "meta/episodes_stats.jsonl").unlink()
    info = json.loads((root / "meta/info.json").read_text())
    info["codebase_version"] = "v2.0"
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


def assert_reads_as_expected(dataset: LeRobotDataset, wanted: dict[str, Any]) -> None:
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (
        wanted["frames"],
        wanted["episodes"],
        wanted["fps"],
    )
    assert len(wanted["samples"]) == 10
    for want in wanted["samples"]:
        sample = dataset[want["index"]]
        assert sample["task"] == want["task"]
        for key in ("index", "episode_index", "frame_index", "task_index", "timestamp"):
            assert sample[key].item() == pytest.approx(want[key], abs=1e-6), key
        for key in ("action", "action_is_pad", "observation.state", "observation.state_is_pad"):
            assert sample[key].tolist() == want[key], key
        for camera in CAMERAS:
            picture = sample[f"observation.images.{camera}"]
            assert (picture.shape, picture.dtype) == ((3, 64, 96), torch.float32)
            mean = picture.double().mean(dim=(1, 2)).tolist()
            assert mean == pytest.approx(want[f"{camera}_mean_rgb"], abs=1e-6)


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_samples_are_the_reference_readers(version: str) -> None:
    wanted = expected(version)
    dataset = LeRobotDataset(DATA / f"dataset_{version}", delta_timestamps=wanted["delta_timestamps"])
    assert_reads_as_expected(dataset, wanted)


def test_a_v20_dataset_reads_like_its_v21_twin(v20: Path) -> None:
    wanted = expected("v21")
    dataset = LeRobotDataset(v20, delta_timestamps=wanted["delta_timestamps"])
    assert dataset.meta.codebase_version == "v2.0"
    assert_reads_as_expected(dataset, wanted)
    twin = LeRobotDatasetMetadata(DATA / "dataset_v21").stats
    for key, values in twin.items():
        for name, value in values.items():
            np.testing.assert_array_equal(dataset.meta.stats[key][name], value)


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_metadata_says_the_same_in_every_version(version: str) -> None:
    meta = LeRobotDatasetMetadata(DATA / f"dataset_{version}")
    assert meta.codebase_version == {"v21": "v2.1", "v30": "v3.0"}[version]
    assert (meta.robot_type, meta.fps, meta.total_frames, meta.total_episodes) == (
        "so101_follower",
        10,
        63,
        4,
    )
    assert meta.camera_keys == meta.video_keys == ["observation.images.top", "observation.images.wrist"]
    assert meta.image_keys == []
    assert meta.tasks[1] == "Grasp the lego block."
    assert [episode.length for episode in meta.episodes] == [14, 23, 9, 17]
    assert [(episode.from_index, episode.to_index) for episode in meta.episodes[2:]] == [(37, 46), (46, 63)]
    assert set(meta.episodes[-1].tasks) == {meta.tasks[0], meta.tasks[2]}
    inputs, outputs = meta.policy_features()
    assert inputs["observation.images.top"] == PolicyFeature(FeatureType.VISUAL, (3, 64, 96))
    assert inputs["observation.state"] == PolicyFeature(FeatureType.STATE, (6,))
    assert outputs == {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    assert meta.stats["observation.images.top"]["mean"].shape == (3, 1, 1)
    assert all(value.dtype == np.float64 for values in meta.stats.values() for value in values.values())


def test_aggregated_statistics_are_those_of_all_frames() -> None:
    dataset = LeRobotDataset(DATA / "dataset_v21", delta_timestamps={})
    frames = [dataset[index] for index in range(len(dataset))]
    for key in ("observation.state", "action"):
        every = torch.stack([sample[key] for sample in frames]).double().numpy()
        found = dataset.meta.stats[key]
        np.testing.assert_allclose(found["mean"], every.mean(axis=0), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["std"], every.std(axis=0), rtol=1e-5)
        np.testing.assert_array_equal(found["min"], every.min(axis=0))
        np.testing.assert_array_equal(found["max"], every.max(axis=0))
        assert found["count"] == len(every)


def test_our_statistics_are_the_reference_writers() -> None:
    dataset = LeRobotDataset(DATA / "dataset_v30")
    frames = [dataset[index] for index in range(len(dataset))]
    for key in ("observation.state", "action"):
        episodes, running = [], VectorStatistics((6,))
        for number in range(4):
            rows = np.stack([frame[key].numpy() for frame in frames if frame["episode_index"] == number])
            episodes.append({key: vector_statistics(rows)})
            running.update(rows)
        together, streamed, reference = aggregate(episodes)[key], running.result(), dataset.meta.stats[key]
        scale = reference["max"] - reference["min"]
        for name in ("min", "max", "mean", "std", "count"):
            np.testing.assert_allclose(together[name], reference[name], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(streamed[name], reference[name], rtol=1e-5, atol=1e-5)
        for name, bound in {"q01": min, "q10": min, "q50": min, "q90": max, "q99": max}.items():
            parts = [episode[key][name] for episode in episodes]
            for dimension, value in enumerate(
                together[name]
            ):  # LeRobot 0.6.1 took averages, its next version bounds
                assert value == bound(part[dimension] for part in parts)
            lowest, highest = (np.min(parts, axis=0) - 1e-3 * scale, np.max(parts, axis=0) + 1e-3 * scale)
            assert ((lowest <= reference[name]) & (reference[name] <= highest)).all()


def test_our_image_statistics_are_the_reference_writers() -> None:
    # The reference counted the camera's frames before they were encoded: video moves a colour by a level or two.
    dataset = LeRobotDataset(DATA / "dataset_v30", return_uint8=True)
    running = ImageStatistics()
    for index in range(len(dataset)):
        running.update(dataset[index]["observation.images.top"].permute(1, 2, 0).numpy())
    found, reference = running.result(), dataset.meta.stats["observation.images.top"]
    for name in ("mean", "std"):
        assert found[name].shape == reference[name].shape == (3, 1, 1)
        np.testing.assert_allclose(found[name], reference[name], atol=0.012)
    assert found["count"] == reference["count"] == 63
