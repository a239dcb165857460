"""Kept pictures: the same samples bit for bit, whatever was killed, cut off or overwritten before."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from smolact.datasets.frame_cache import FrameCache, cache_folder, fingerprint, scale_down
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.store import FrameStore
from smolact.errors import ConfigError, WriteError
from smolact.types import Batch

DATA = Path(__file__).parents[1] / "parity" / "data" / "dataset_v30"
CAMERAS = ("observation.images.top", "observation.images.wrist")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA, tmp_path / "set"))


def same(first: Batch, second: Batch) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key]
        for key, value in first.items()
    )


def keep(dataset: LeRobotDataset, **options: object) -> int:
    """How many pictures had to be made."""
    made = 0

    def count(what: str, done: int, of: int) -> None:
        nonlocal made
        made = max(made, done) if what.startswith("keeping") else made

    FrameCache(dataset.meta, **options).fill(dataset, progress=count)  # type: ignore[arg-type]
    return made


def test_samples_are_the_same_bit_for_bit(root: Path) -> None:
    plain, kept = LeRobotDataset(root, return_uint8=True), LeRobotDataset(root, return_uint8=True)
    assert keep(kept) == 2 * len(plain)
    shutil.rmtree(root / "videos")  # they are not read any more
    indices = [5, 0, len(kept) - 1, 5]
    expected = LeRobotDataset(DATA, return_uint8=True)
    assert all(
        same(a, b) for a, b in zip(expected.__getitems__(indices), kept.__getitems__(indices), strict=True)
    )
    floats = LeRobotDataset(DATA)
    keep(floats, folder=root.parent)
    assert same(floats[3], LeRobotDataset(DATA)[3])


def test_chosen_episodes_and_a_second_run_find_what_is_there(root: Path) -> None:
    some = LeRobotDataset(root, episodes=[1], return_uint8=True)
    assert keep(some) == 2 * len(some)
    every = LeRobotDataset(root, return_uint8=True)
    assert keep(every) == 2 * (len(every) - len(some))
    assert keep(LeRobotDataset(root)) == 0
    assert same(some[1], LeRobotDataset(root, episodes=[1], return_uint8=True)[1])


def test_what_does_not_fit_is_decoded_each_time(root: Path) -> None:
    dataset = LeRobotDataset(root, return_uint8=True)
    of_one = sum(int(np.prod(dataset.features[key].shape)) for key in CAMERAS)
    assert keep(dataset, max_bytes=10.5 * of_one) == 20
    plain = LeRobotDataset(root, return_uint8=True)
    assert all(
        same(a, b)
        for a, b in zip(plain.__getitems__([3, 9, 10, 20]), dataset.__getitems__([3, 9, 10, 20]), strict=True)
    )


def test_scaled_down_they_are_what_the_policy_would_make_of_them_but_rounded(root: Path) -> None:
    dataset = LeRobotDataset(root, return_uint8=True)
    _, height, width = dataset.features[CAMERAS[0]].image_shape
    fit = (width // 2, height)
    keep(dataset, fit=fit, max_bytes=10 * 3 * height * width)
    plain = LeRobotDataset(root, return_uint8=True)
    for index in (0, len(dataset) - 1):  # one is kept, one is not
        picture = plain[index][CAMERAS[0]]
        exact = torch.nn.functional.interpolate(
            picture[None].float(), (height // 2, width // 2), mode="bilinear"
        )[0]
        found = dataset[index][CAMERAS[0]]
        assert found.dtype == torch.uint8 and (found - exact).abs().max() <= 0.5
    assert scale_down(picture[None], (1000, 1000)).shape[-2:] == (height, width)  # never up


def test_a_changed_dataset_has_a_cache_of_its_own(root: Path) -> None:
    before = fingerprint(LeRobotDataset(root).meta)
    assert before == fingerprint(LeRobotDataset(DATA).meta)  # wherever it lies
    info = root / "meta/info.json"
    info.write_text(info.read_text() + " ")
    assert fingerprint(LeRobotDataset(root).meta) != before


def test_only_named_cameras_are_read(root: Path) -> None:
    shutil.rmtree(root / "videos" / CAMERAS[1])
    dataset = LeRobotDataset(root, cameras=[CAMERAS[0]], return_uint8=True)
    assert CAMERAS[0] in dataset[0] and CAMERAS[1] not in dataset[0]
    with pytest.raises(ConfigError, match="Did you mean"):
        LeRobotDataset(root, cameras=["observation.images.tip"])


def test_the_cache_lies_beside_the_dataset_or_in_the_hubs_folder_of_it() -> None:
    assert cache_folder(Path("/data/me/set")) == Path("/data/me/set.cache")
    hub = Path("/hub/datasets--me--set")
    assert cache_folder(hub / "snapshots" / "0a1b") == hub / "smolact.cache"


def store(folder: Path) -> FrameStore:
    return FrameStore(folder, "camera", (2, 3), np.dtype("uint8"), 6)


ARRAYS = np.arange(36, dtype=np.uint8).reshape(6, 2, 3)


def test_a_store_knows_what_is_not_whole(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.write([1, 4, 2], ARRAYS[[1, 4, 2]])
    assert (made.read(np.array([4, 1])) == ARRAYS[[4, 1]]).all()
    assert store(tmp_path).missing(range(6)) == [0, 3, 5]
    path = tmp_path / "camera.arrays"
    data = bytearray(path.read_bytes())
    data[2 * 6 + 1] ^= 1
    path.write_bytes(bytes(data))
    assert store(tmp_path).missing([1, 2, 4]) == [2]
    path.write_bytes(bytes(data)[:20])
    assert store(tmp_path).missing(range(6)) == [0, 2, 3, 4, 5]
    (tmp_path / "camera.checksums").unlink()
    assert store(tmp_path).missing(range(6)) == list(range(6))


def test_arrays_reach_the_disk_before_their_checksums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = store(tmp_path)
    calls = 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(WriteError, match="disk is full"):
            made.write([0], ARRAYS[:1])
    assert calls == 1 and made.missing([0]) == [0]
    made.write([0], ARRAYS[:1])
    assert made.missing([0]) == []


def test_a_store_travels_without_its_map(tmp_path: Path) -> None:
    made = store(tmp_path)
    made.write(range(6), ARRAYS)
    made.read(np.array([0]))
    travelled = pickle.loads(pickle.dumps(made))
    assert (travelled.read(np.arange(6)) == ARRAYS).all()
    assert len(pickle.dumps(made)) < 1000
