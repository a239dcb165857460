"""Samples, windows, workers: what training sees of a dataset."""

from __future__ import annotations

import fnmatch
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from smolact.datasets import cameras as camera_module
from smolact.datasets import reader as reader_module
from smolact.datasets.collate import collate
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, FeatureError, NotFoundError
from smolact.types import Batch
from tests.datasets.make import FPS, TASKS, frame, image, write

LENGTHS = (7, 4, 5)
CAMERAS = ("observation.image", "observation.images.wrist")


@pytest.fixture(scope="module", params=["video", "image"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three episodes in two files: the first file has two."""
    folder = tmp_path_factory.mktemp(request.param) / "dataset"
    return write(folder, LENGTHS, request.param, CAMERAS, episodes_per_file=2)


def shown(picture: torch.Tensor) -> tuple[int, int]:
    """The episode and frame that an image of `make.image` shows, told by its lower half."""
    red, green, _ = (255 * picture[:, 20:]).mean(dim=(1, 2)).tolist()
    return round((green - 30) / 40), round((red - 20) / 10)


def assert_same(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[key]), key
        else:
            assert value == other[key], key


def test_every_frame_is_the_one_that_was_recorded(root: Path) -> None:
    dataset = LeRobotDataset(root)
    assert (len(dataset), dataset.num_episodes, dataset.episodes) == (sum(LENGTHS), 3, [0, 1, 2])
    place = 0
    for episode, length in enumerate(LENGTHS):
        for number in range(length):
            sample, wanted = dataset[place], frame(episode, number, CAMERAS, length)
            assert shown(sample["observation.image"]) == (episode, number)
            assert sample["observation.image"].shape == (3, 32, 48)
            np.testing.assert_array_equal(sample["observation.state"], wanted["observation.state"])
            np.testing.assert_array_equal(sample["action"], wanted["action"])
            assert sample["next.done"].item() == wanted["next.done"]
            assert sample["task"] == TASKS[episode % 2]
            found = [sample[key].item() for key in ("index", "episode_index", "frame_index", "task_index")]
            assert found == [place, episode, number, episode % 2]
            assert sample["timestamp"].item() == pytest.approx(number / FPS)
            place += 1


def test_images_are_stored_without_loss(tmp_path: Path) -> None:
    dataset = LeRobotDataset(write(tmp_path / "d", (2,), "image", CAMERAS), return_uint8=True)
    for number in range(2):
        for place, camera in enumerate(CAMERAS):
            stored = dataset[number][camera]
            assert stored.dtype == torch.uint8
            np.testing.assert_array_equal(stored.permute(1, 2, 0), image(0, number, place))


def test_uint8_images_are_the_float_ones_times_255(root: Path) -> None:
    whole, floats = LeRobotDataset(root, return_uint8=True)[3], LeRobotDataset(root)[3]
    for camera in CAMERAS:
        assert torch.equal(whole[camera].float() / 255, floats[camera])


def test_windows_repeat_the_first_and_last_frame_and_say_so(root: Path) -> None:
    offsets = {"action": [0, 0.1, 0.2, 0.3], "observation.image": [-0.2, 0.0], "frame_index": [0.1]}
    dataset = LeRobotDataset(root, delta_timestamps=offsets)
    sample = dataset[9]  # episode 1 (frames 7 to 10), its third of four frames
    assert sample["action_is_pad"].tolist() == [False, False, True, True]
    actions = [frame(1, number, CAMERAS, 4)["action"] for number in (2, 3, 3, 3)]
    np.testing.assert_array_equal(sample["action"], np.stack(actions))
    assert [shown(picture) for picture in sample["observation.image"]] == [(1, 0), (1, 2)]
    assert sample["observation.state"].shape == (4,)
    assert sample["frame_index"].tolist() == [3]
    first = dataset[7]
    assert first["observation.image_is_pad"].tolist() == [True, False]
    assert [shown(picture) for picture in first["observation.image"]] == [(1, 0), (1, 0)]


def test_chosen_episodes_keep_their_numbers(root: Path) -> None:
    dataset = LeRobotDataset(root, episodes=[2, 1], delta_timestamps={"action": [-0.1, 0.1]})
    assert (dataset.episodes, len(dataset), dataset.num_episodes) == ([1, 2], 9, 2)
    assert [int(dataset[i]["index"]) for i in range(9)] == list(range(7, 16))
    assert shown(dataset[0]["observation.image"]) == (1, 0)
    assert shown(dataset[4]["observation.image"]) == (2, 0)
    assert dataset[3]["action_is_pad"].tolist() == [False, True]
    only = LeRobotDataset(root, episodes=[1])  # a file of which only a part is used
    assert [int(only[i]["index"]) for i in range(len(only))] == list(range(7, 11))


@pytest.mark.parametrize("asked", [[3], [-1], []])
def test_episodes_that_are_not_there_are_refused(root: Path, asked: list[int]) -> None:
    with pytest.raises(ConfigError, match="0 to 2"):
        LeRobotDataset(root, episodes=asked)


def test_indices_count_from_the_end_and_end_kindly(root: Path) -> None:
    dataset = LeRobotDataset(root)
    assert_same(dataset[-1], dataset[15])
    assert_same(dataset[np.int64(2)], dataset[2])
    for index in (16, -17):
        with pytest.raises(IndexError, match=r"Frame -?\d+ is not in this dataset: it has 16 frames"):
            dataset[index]
    assert sum(1 for _ in dataset) == 16  # ends by IndexError


def test_offsets_between_frames_name_the_nearest(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"0\.25 s.*nearest is 0\.2 s"):
        LeRobotDataset(root, delta_timestamps={"action": [0.0, 0.25]})
    with pytest.raises(ConfigError, match="Did you mean 'action'"):
        LeRobotDataset(root, delta_timestamps={"actoin": [0.0]})
    with pytest.raises(ConfigError, match="list of offsets"):
        LeRobotDataset(root, delta_timestamps={"action": []})
    third = LeRobotDataset(root, delta_timestamps={"action": [0.1 + 0.2]})  # 0.30000000000000004
    assert third.delta_indices["action"].tolist() == [3]


def test_transforms_see_each_image_alone(root: Path) -> None:
    seen: list[tuple[int, ...]] = []

    def invert(picture: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(picture.shape))
        return 1 - picture

    plain = LeRobotDataset(root, delta_timestamps={"observation.image": [-0.1, 0.0]})[5]
    changed = LeRobotDataset(
        root, delta_timestamps={"observation.image": [-0.1, 0.0]}, image_transforms=invert
    )[5]
    assert seen == [(3, 32, 48)] * 3
    for camera in CAMERAS:
        assert torch.equal(changed[camera], 1 - plain[camera])


def test_a_batch_fetch_is_the_single_ones(root: Path) -> None:
    dataset = LeRobotDataset(
        root, delta_timestamps={"action": [0, 0.1], "observation.images.wrist": [-0.1, 0]}
    )
    singles = [dataset[index] for index in range(len(dataset))]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(st.lists(st.integers(-16, 15), min_size=1, max_size=8))
    def same(indices: list[int]) -> None:
        for index, sample in zip(indices, dataset.__getitems__(indices), strict=True):
            assert_same(sample, singles[index])

    same()


def test_samples_do_not_share_memory(root: Path) -> None:
    one, other = LeRobotDataset(root).__getitems__([4, 4])
    one["observation.image"].zero_()
    one["action"].zero_()
    assert other["observation.image"].any()
    assert other["action"].any()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_what_the_process_itself_gives(root: Path, method: str) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system can't {method}")
    # In a process of its own: one that has done other things may hold a lock when it forks.
    child = multiprocessing.get_context("spawn").Process(target=check_workers, args=(root, method))
    child.start()
    child.join(120)
    assert child.exitcode == 0


def check_workers(root: Path, method: str) -> None:
    dataset = LeRobotDataset(root, delta_timestamps={"action": [0.0, 0.1, 0.2]})
    own = list(
        DataLoader(dataset, batch_size=5, collate_fn=collate)
    )  # opens files before the workers are made
    loader = DataLoader(
        dataset, batch_size=5, collate_fn=collate, num_workers=2, multiprocessing_context=method
    )
    for batch, expected in zip(loader, own, strict=True):
        assert_same(batch, expected)
    assert_same(dataset[3], LeRobotDataset(root, delta_timestamps={"action": [0.0, 0.1, 0.2]})[3])


def test_a_pickled_dataset_reads_the_same(root: Path) -> None:
    dataset = LeRobotDataset(root)
    before = dataset[6]
    assert_same(pickle.loads(pickle.dumps(dataset))[6], before)


def test_few_files_stay_open_however_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_module, "OPEN_FILES", 2)
    dataset = LeRobotDataset(write(tmp_path / "d", (2, 2, 2, 2), "video", episodes_per_file=1))
    readers = []
    for index in (0, 7, 2, 5, 1):
        assert shown(dataset[index]["observation.images.top"]) == divmod(index, 2)
        videos: Any = dataset._cameras["observation.images.top"]
        readers.append(videos.readers)
    assert len(readers[-1]) == 2


def test_a_batch_has_a_leading_dimension_and_a_list_of_tasks(root: Path) -> None:
    dataset = LeRobotDataset(root)
    batch = collate([dataset[0], dataset[8]])
    assert batch["observation.image"].shape == (2, 3, 32, 48)
    assert batch["index"].tolist() == [0, 8]
    assert batch["task"] == list(TASKS)


def test_samples_that_do_not_fit_together_are_named() -> None:
    with pytest.raises(FeatureError, match=r"'action' has different shapes.*\(2,\), \(3,\)"):
        collate([{"action": torch.zeros(2)}, {"action": torch.zeros(3)}])
    with pytest.raises(FeatureError, match=r"Sample 1 .* state"):
        collate([{"action": torch.zeros(2)}, {"action": torch.zeros(2), "state": torch.zeros(1)}])
    with pytest.raises(FeatureError, match="no samples"):
        collate([])


def test_a_dataset_that_is_not_there_says_what_is_near(root: Path) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'dataset'"):
        LeRobotDataset("owner/name", root=root.parent / "datasett")
    with pytest.raises(NotFoundError, match="dataset"):
        LeRobotDataset(root.parent / "datasett")


def test_only_the_files_of_the_chosen_episodes_are_fetched(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc"
    asked: list[tuple[Any, Any]] = []

    def fetch(name: str, kind: str, *, root: Any = None, patterns: Any = None, revision: Any = None) -> Path:
        asked.append((patterns, revision))
        for file in (path.relative_to(source) for path in source.rglob("*") if path.is_file()):
            if any(fnmatch.fnmatch(file.as_posix(), pattern) for pattern in patterns):
                (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source / file, snapshot / file)
        return snapshot

    source = root
    monkeypatch.setattr(reader_module, "find_folder", fetch)
    monkeypatch.chdir(tmp_path)
    dataset = LeRobotDataset("owner/name", episodes=[2], revision="main")
    assert shown(dataset[0]["observation.image"]) == (2, 0)
    assert asked[0] == (["meta/**"], "main")
    assert asked[1][1] == "0123abc"  # the commit that the metadata is of
    assert all("file-001" in pattern for pattern in asked[1][0])
    assert not (snapshot / "data/chunk-000/file-000.parquet").exists()


def test_a_dataset_without_episodes_says_so(tmp_path: Path) -> None:
    root = write(tmp_path / "empty", ())
    assert LeRobotDatasetMetadata(root).total_episodes == 0
    with pytest.raises(DatasetError, match="no episodes yet"):
        LeRobotDataset(root)


def test_one_joint_is_a_vector_one_flag_a_number(tmp_path: Path) -> None:
    described = {
        "observation.state": {"dtype": "float32", "shape": (1,)},
        "action": {"dtype": "float64", "shape": (1,)},
        "next.reward": {"dtype": "float32", "shape": (1,)},
        "matrix": {"dtype": "int32", "shape": (2, 3)},
        "note": {"dtype": "string", "shape": (1,)},
    }
    with DatasetWriter.create(tmp_path / "d", fps=5, features=described) as writer:
        values = {"observation.state": 1.5, "action": [2.5], "next.reward": 0.5, "note": "hello"}
        writer.add_frame({**values, "matrix": np.arange(6).reshape(2, 3)}, task="t")
        writer.save_episode()
    dataset = LeRobotDataset(tmp_path / "d", delta_timestamps={"action": [0.0, 0.2]})
    sample = dataset[0]
    assert sample["observation.state"].tolist() == [1.5]
    assert sample["action"].shape == (2, 1)
    assert sample["action"].dtype == torch.float32
    assert sample["next.reward"].shape == ()
    assert sample["matrix"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert sample["note"] == "hello"
    assert collate([sample, sample])["note"] == ["hello", "hello"]
