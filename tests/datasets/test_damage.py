"""Datasets that are damaged, incomplete or hostile: a named error that says which file and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smolact.datasets.format import fill_template
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import DatasetError
from tests.datasets.make import write

DATA = Path(__file__).parent.parent / "parity" / "data"


@pytest.fixture(params=["v21", "v30"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / f"dataset_{request.param}", tmp_path / "dataset"))


@pytest.fixture
def v30(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DATA / "dataset_v30", tmp_path / "dataset"))


def read_all(root: Path) -> None:
    dataset = LeRobotDataset(root)
    for index in (0, 20, 40, -1):  # one of each episode
        dataset[index]


def change_info(root: Path, **changes: Any) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_table(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def test_every_file_is_missed_by_name(root: Path) -> None:
    optional = {"stats.json", "episodes_stats.jsonl"}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.name in optional:
            continue
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(DatasetError) as error:
            read_all(root)
        listed = "meta/episodes" if "meta/episodes/" in path.as_posix() else path.relative_to(root).as_posix()
        assert listed in str(error.value)
        assert "again" in str(error.value)
        path.write_bytes(content)
    read_all(root)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.9, 0.99])
def test_every_file_that_is_cut_off_is_named(root: Path, kept: float) -> None:
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))])
        try:
            read_all(root)
        except DatasetError as error:
            assert path.parent.name in str(error) or path.name in str(error) or "meta/" in str(error)
        else:  # what is lost without a trace: a last line that nothing counts, a video's closing remarks
            assert path.name == "tasks.jsonl" or (path.suffix == ".mp4" and kept == 0.99)
        path.write_bytes(content)


def test_random_damage_is_a_named_error_or_samples(root: Path) -> None:
    rng = np.random.default_rng(0)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    failures = 0
    for attempt in range(42):
        path = files[attempt % len(files)]
        content = path.read_bytes()
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), size=4):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_all(root)
        except DatasetError:
            failures += 1
        path.write_bytes(content)
    assert failures > 10


@pytest.mark.parametrize(
    "template",
    [
        "/etc/{chunk_index}/{file_index}",
        "../{chunk_index}/{file_index}.parquet",
        "data/../../{chunk_index}",
        "data\\..\\..\\{chunk_index}",
        "C:\\{chunk_index}",
        "\\\\server\\{chunk_index}",
        "data/{chunk_index.__class__}",
        "data/{chunk_index[0]}",
        "data/{chunk_index!r}",
        "data/{chunk_index:999999999d}",
        "data/{chunk_index:{file_index}}",
        "data/{unknown}",
        "data/{}",
        "data/{chunk_index",
        "data/\0{chunk_index}",
        7,
    ],
)
def test_a_path_template_cannot_lead_out(v30: Path, template: Any) -> None:
    change_info(v30, data_path=template)
    with pytest.raises(DatasetError, match=r"info\.json: the path template"):
        LeRobotDataset(v30)


def test_a_camera_name_cannot_lead_out(root: Path) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    features = {
        key.replace("observation.images.top", "../../../top"): value
        for key, value in info["features"].items()
    }
    change_info(root, features=features)
    with pytest.raises(DatasetError, match=r"out of the dataset's folder|no column"):
        LeRobotDataset(root)


def test_a_plain_template_is_filled() -> None:
    path = fill_template(
        "a/{video_key}/{file_index:03d}.mp4", Path("x"), video_key="observation.image", file_index=7
    )
    assert str(path) == "a/observation.image/007.mp4"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, r"'v1\.6'; known are v2\.0, v2\.1, v3\.0"),
        ({"codebase_version": None}, "codebase_version None"),
        ({"fps": 0}, "'fps'"),
        ({"fps": "ten"}, "'fps'"),
        ({"total_episodes": -1}, "'total_episodes'"),
        ({"total_episodes": 5}, "says 5 episodes"),
        ({"total_frames": 64}, "says 64 frames"),
        ({"features": []}, "'features'"),
        ({"features": {"action": {"shape": [6]}}}, "'action' needs a 'dtype'"),
        ({"features": {"action": {"dtype": "float32", "shape": "6"}}}, "'action' needs a 'shape'"),
        ({"features": {"camera": {"dtype": "video", "shape": [6]}}}, "'camera' is a camera"),
    ],
)
def test_impossible_metadata_is_named(root: Path, changes: dict[str, Any], message: str) -> None:
    change_info(root, **changes)
    with pytest.raises(DatasetError, match=rf"info\.json.*{message}"):
        LeRobotDataset(root)


def test_metadata_that_is_no_object_or_too_deep_is_named(root: Path) -> None:
    for text in ("[]", "[" * 100_000, "{", '{"a": 1}', "\xff"):
        (root / "meta/info.json").write_text(text, encoding="latin-1")
        with pytest.raises(DatasetError, match=r"info\.json"):
            LeRobotDataset(root)


def test_unknown_keys_are_kept(root: Path) -> None:
    change_info(root, tools=[{"name": "say"}], licence="MIT")
    info = LeRobotDataset(root).meta.info
    assert (info["tools"], info["licence"]) == ([{"name": "say"}], "MIT")


def test_a_dataset_without_statistics_opens(v30: Path) -> None:
    (v30 / "meta/stats.json").unlink()
    assert LeRobotDataset(v30).meta.stats == {}


def test_columns_that_do_not_fit_are_named(v30: Path) -> None:
    path = v30 / "data/chunk-000/file-000.parquet"
    whole = pq.read_table(path)
    place = whole.column_names.index("action")
    uneven = pa.array([[1.0] * (5 + row % 2) for row in range(63)])
    gaps = pa.array([None if row == 5 else [1.0] * 6 for row in range(63)])
    cases = [
        (whole.drop_columns(["action"]), "no column 'action'"),
        (whole.set_column(place, "action", uneven), "differing size"),
        (whole.set_column(place, "action", gaps), "differing size|empty"),
        (whole.set_column(place, "action", pa.array([[1.0] * 5] * 63)), r"5 values a row.*shape \[6\]"),
        (whole.set_column(place, "action", pa.array(["x"] * 63)), "not numbers"),
        (whole.slice(0, 60), "episode 3 should have 17 frames"),
    ]
    for table, message in cases:
        pq.write_table(table, path)
        with pytest.raises(DatasetError, match=rf"file-000\.parquet.*({message})"):
            LeRobotDataset(v30)


def test_a_task_that_is_not_listed_is_named(v30: Path) -> None:
    change_table(v30 / "meta/tasks.parquet", lambda table: table.slice(0, 2))
    with pytest.raises(DatasetError, match=r"task_index \[2\]"):
        LeRobotDataset(v30)


def test_lists_of_any_kind_are_read(v30: Path) -> None:
    before = LeRobotDataset(v30)[9]
    path = v30 / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("action")
    change_table(path, lambda t: t.set_column(place, "action", pa.array(t.column("action").to_pylist())))
    assert LeRobotDataset(v30)[9]["action"].tolist() == before["action"].tolist()


def test_what_an_unfinished_write_left_is_ignored(v30: Path) -> None:
    episodes = v30 / "meta/episodes/chunk-000"
    whole = pq.read_table(episodes / "file-000.parquet")
    later = whole.set_column(0, "episode_index", pa.array([4, 5, 6, 7]))
    pq.write_table(later, episodes / "file-001.parquet")  # published, but info.json never said so
    (episodes / ".tmp-1234-file-002.parquet").write_bytes(b"half")
    assert LeRobotDataset(v30).num_episodes == 4


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "d", (3,), "image")
    path = root / "data/chunk-000/file-000.parquet"
    good = pq.read_table(path).column(0).to_pylist()
    for data, message in (
        (None, "no image"),
        (b"GIF89a", "not a whole PNG"),
        (good[0]["bytes"][:60], "not a whole PNG"),
    ):
        images = [{"bytes": data, "path": "a.png"}, *good[1:]]
        change_table(path, lambda t, images=images: t.set_column(0, t.column_names[0], pa.array(images)))  # type: ignore[misc]
        with pytest.raises(DatasetError, match=rf"file-000\.parquet, row 0.*{message}"):
            LeRobotDataset(root)[0]
    change_table(path, lambda t: t.set_column(0, t.column_names[0], pa.array([1, 2, 3])))
    with pytest.raises(DatasetError, match="holds int64"):
        LeRobotDataset(root)[0]


def test_a_picture_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    import io

    from PIL import Image

    root = write(tmp_path / "d", (1,), "image")
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, format="PNG")
    path = root / "data/chunk-000/file-000.parquet"
    image = pa.array([{"bytes": buffer.getvalue(), "path": None}])
    change_table(path, lambda t: t.set_column(0, t.column_names[0], image))
    with pytest.raises(DatasetError, match=r"row 0"):
        LeRobotDataset(root)[0]
