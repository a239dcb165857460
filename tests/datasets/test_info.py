"""Versions, numbers, names and text as others write them: what LeRobot reads is read, and written again so that LeRobot reads it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smolact.cli.main import main
from smolact.datasets import edit
from smolact.datasets.format import Feature, flat_names
from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata, warn_of_size_mismatch
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build, replace
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import DatasetError, VideoError
from tests.datasets.damages import change
from tests.datasets.make import TASKS, record, write

PARITY = Path(__file__).parent.parent / "parity" / "data"
TOP = "observation.images.top"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "set", video_codec="h264")


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


@pytest.mark.parametrize("told", [None, [1], "x"])
def test_a_number_of_tasks_that_is_none_is_told(root: Path, told: object) -> None:
    path = root / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "total_tasks": told}))
    assert any("tasks" in fault.message for fault in check_dataset(root))


@pytest.fixture
def v21(tmp_path: Path) -> Path:
    return Path(shutil.copytree(PARITY / "dataset_v21", tmp_path / "v21"))


def change_info(root: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    edit(info)
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    "version", ["v3.0", "v3.1", "3.0", "v3.0.0", "v3", "3", "V3.0", "v3.0rc1", "v3.0+local"]
)
def test_a_version_of_major_number_3_is_read_edited_and_resumed(
    root: Path, tmp_path: Path, version: str
) -> None:
    change_info(root, lambda info: info.update(codebase_version=version))
    assert LeRobotDatasetMetadata(root).codebase_version == "v3.0"
    assert check_dataset(root) == []
    assert LeRobotDataset(root).num_frames == 16
    with DatasetWriter.resume(root) as writer:
        record(writer, 3, 4)
    assert repair(root).needed is False
    made = build(edit.select_episodes(Source(root), [0, 3]), tmp_path / "new")
    assert json.loads((made / "meta/info.json").read_text())["codebase_version"] == "v3.0"


@pytest.mark.parametrize("version", ["v2.1", "2.1", "v2.1.0", "v2.2", "v2.0", "v2"])
def test_a_version_of_major_number_2_is_read(v21: Path, version: str) -> None:
    change_info(v21, lambda info: info.update(codebase_version=version))
    assert LeRobotDatasetMetadata(v21).codebase_version == ("v2.0" if version in ("v2.0", "v2") else "v2.1")
    assert LeRobotDataset(v21).num_frames == LeRobotDataset(PARITY / "dataset_v21").num_frames


@pytest.mark.parametrize(
    ("version", "part"),
    [
        ("v4.0", "needs a newer smolact"),
        ("v1.6", "with the LeRobot that made it"),
        ("vx", "fetch it again"),
        (None, "fetch it again"),
        (3.0, "fetch it again"),
        ("", "fetch it again"),
    ],
)
def test_other_versions_are_refused_by_name(root: Path, version: Any, part: str) -> None:
    change_info(root, lambda info: info.update(codebase_version=version))
    with pytest.raises(DatasetError, match=part) as raised:
        LeRobotDatasetMetadata(root)
    assert f"codebase_version {version!r}" in str(raised.value)


def loosely(info: dict[str, Any]) -> None:
    info.update(fps=str(info["fps"]), chunks_size=1000.0, total_tasks=2.0)
    info.update(total_episodes=float(info["total_episodes"]), total_frames=str(info["total_frames"]))
    for feature in info["features"].values():
        feature["shape"] = [float(size) for size in feature["shape"]]


def test_numbers_as_text_and_counts_with_a_point_are_read_and_written_plainly(
    root: Path, tmp_path: Path
) -> None:
    before = json.loads((root / "meta/info.json").read_text())
    change_info(root, loosely)
    assert check_dataset(root) == []
    made = build(edit.all_episodes(Source(root)), tmp_path / "new")
    after = json.loads((made / "meta/info.json").read_text())
    assert {**after, "splits": None} == {**before, "splits": None}
    assert [type(after[name]) for name in ("fps", "chunks_size", "total_frames")] == [int] * 3
    replace(
        edit.delete_episodes(Source(root), [0])
    )  # in its own place: not taken for a change by another process
    assert LeRobotDataset(root).num_episodes == 2
    with DatasetWriter.resume(root, fps=10) as writer:
        record(writer, 3, 4)
    assert type(json.loads((root / "meta/info.json").read_text())["chunks_size"]) is int


def test_numbers_as_text_are_read_in_the_old_versions_lines(v21: Path) -> None:
    expected = LeRobotDataset(PARITY / "dataset_v21")[20]
    change_info(v21, loosely)
    for name in ("episodes", "tasks", "episodes_stats"):
        path = v21 / f"meta/{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            row.update({key: float(value) for key, value in row.items() if type(value) is int})
        path.write_text("\n".join(map(json.dumps, rows)))
    found = LeRobotDataset(v21)[20]
    assert found["task"] == expected["task"] and (found["action"] == expected["action"]).all()
    assert (
        LeRobotDatasetMetadata(v21).stats.keys()
        == LeRobotDatasetMetadata(PARITY / "dataset_v21").stats.keys()
    )


def test_numbers_that_pandas_made_floats_are_read(root: Path) -> None:
    def floats(table: pa.Table) -> pa.Table:
        for place, name in enumerate(table.column_names):
            if name.endswith("_index"):
                table = table.set_column(place, name, table[name].cast(pa.float64()))
        return table

    for path in [root / "meta/tasks.parquet", *root.glob("meta/episodes/*/*.parquet")]:
        change(path, floats)
    assert LeRobotDataset(root)[15]["task"] == TASKS[0]
    (root / "meta/stats.json").unlink()
    assert repair(root).episodes == 3


@pytest.mark.parametrize("value", ["ten", "nan", "inf", True, [], "0", -1])
def test_a_rate_that_is_none_is_named(root: Path, value: Any) -> None:
    change_info(root, lambda info: info.update(fps=value))
    with pytest.raises(DatasetError, match="needs 'fps'"):
        LeRobotDatasetMetadata(root)


ODD = "Fold it.\u2028Then\u0085 stop.\x0b\x0c\x1c é"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_any_text_in_a_task_and_a_byte_order_mark_are_read_and_written(
    v21: Path, tmp_path: Path, encoding: str, ending: str
) -> None:
    old = LeRobotDatasetMetadata(v21).tasks[0]
    for name in ("tasks", "episodes", "episodes_stats"):
        path = v21 / f"meta/{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        text = json.dumps(rows, ensure_ascii=False).replace(
            json.dumps(old), json.dumps(ODD, ensure_ascii=False)
        )
        lines = [json.dumps(row, ensure_ascii=False) for row in json.loads(text)]
        path.write_bytes("".join(line + ending for line in lines).encode(encoding))
    info = v21 / "meta/info.json"
    info.write_bytes(info.read_text().encode(encoding))
    assert check_dataset(v21) == []
    assert ODD in LeRobotDatasetMetadata(v21).tasks.values()
    assert LeRobotDataset(v21)[0]["task"] in (ODD, *LeRobotDatasetMetadata(v21).tasks.values())
    for words in (["convert", "--version=v3.0"], ["compact"]):
        made = tmp_path / words[0]
        assert main(["dataset", *words, f"--dataset.root={v21}", f"--output={made}"]) == 0
        assert LeRobotDatasetMetadata(made).tasks == LeRobotDatasetMetadata(v21).tasks


def test_lines_that_an_editor_has_spread_are_read(v21: Path) -> None:
    before = LeRobotDatasetMetadata(v21)
    for name in ("tasks", "episodes", "episodes_stats"):
        path = v21 / f"meta/{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    after = LeRobotDatasetMetadata(v21)
    assert after.tasks == before.tasks and after.episodes.length.tolist() == before.episodes.length.tolist()


def test_what_is_no_json_is_named_with_its_line(v21: Path) -> None:
    path = v21 / "meta/tasks.jsonl"
    path.write_text(path.read_text() + '{"task_index": 9, "task": }\n')
    with pytest.raises(DatasetError, match=r"line \d+: .*Fetch it again, or mend that place"):
        LeRobotDatasetMetadata(v21)
    path.write_bytes(b'{"task_index": 0, "task": "\xff"}\n')
    with pytest.raises(DatasetError, match=r"not UTF-8 text \(byte 27\)"):
        LeRobotDatasetMetadata(v21)


CHANNELS_FIRST, LAST = (3, 32, 48), (32, 48, 3)


@pytest.mark.parametrize(
    ("shape", "names"),
    [
        (CHANNELS_FIRST, ["c", "h", "w"]),
        (CHANNELS_FIRST, ["rgb", "height", "width"]),
        (CHANNELS_FIRST, ["channels", "height", "width"]),
        (CHANNELS_FIRST, ["height", "width", "channels"]),  # which the sizes contradict
        (CHANNELS_FIRST, None),
        (CHANNELS_FIRST, []),
        (CHANNELS_FIRST, [["c", "h", "w"]]),
        (CHANNELS_FIRST, {"axes": ["channel", "height", "width"]}),
        (CHANNELS_FIRST, {"c": 0, "h": 1, "w": 2}),
        (CHANNELS_FIRST, ["x", "y", "z"]),
        (CHANNELS_FIRST, "chw"),
        (LAST, ["h", "w", "c"]),
        (LAST, ["height", "width", "rgb"]),
        (LAST, ["Height", "Width", "Channel"]),
        (LAST, ["channels", "height", "width"]),
        (LAST, {"axes": {"of": ["height", "width", "channels"]}}),
        (LAST, None),
        ((48, 32, 3), ["width", "height", "channels"]),
        ((3, 48, 32), ["c", "w", "h"]),
    ],
)
def test_a_cameras_axes_are_found_in_every_form(root: Path, shape: tuple[int, ...], names: Any) -> None:
    feature = Feature("video", shape, names)
    assert feature.image_shape == CHANNELS_FIRST
    assert feature.resized(10, 20).image_shape == (3, 10, 20)
    change_info(root, lambda info: info["features"][TOP].update(shape=list(shape), names=names))
    assert check_dataset(root) == []
    assert LeRobotDataset(root)[0][TOP].shape == CHANNELS_FIRST
    with DatasetWriter.resume(root) as writer:
        record(writer, 3, 4)


def test_where_sizes_do_not_say_it_names_do() -> None:
    assert Feature("image", (4, 2, 3), ["h", "w", "c"]).image_shape == (3, 4, 2)
    assert Feature("image", (3, 4, 2), ["c", "h", "w"]).image_shape == (3, 4, 2)
    assert Feature("image", (4, 2, 3)).image_shape == (3, 4, 2)


@pytest.mark.parametrize(
    ("names", "flat"),
    [
        (None, []),
        ("x", ["x"]),
        (["a", 1], ["a", "1"]),
        ({"motors": ["a", "b"]}, ["a", "b"]),
        ({"left": {"motors": ["a"]}, "right": ["b"]}, ["a", "b"]),
        ({"b": 1, "a": 0}, ["a", "b"]),
        ([["a"], ("b",)], ["a", "b"]),
        ({}, []),
    ],
)
def test_names_are_found_in_every_form(names: Any, flat: list[str]) -> None:
    assert flat_names(names) == flat


def test_a_size_that_the_video_contradicts_is_told_and_the_videos_is_used(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_size_mismatch.cache_clear()

    def wrong(info: dict[str, Any]) -> None:
        info["features"][TOP].update(shape=[64, 96, 3])
        info["features"][TOP]["info"].update({"video.height": 64, "video.width": 96})

    change_info(root, wrong)
    with caplog.at_level(logging.WARNING):
        dataset = LeRobotDataset(root)
        LeRobotDataset(root)
    assert dataset[0][TOP].shape == (3, 32, 48)
    assert dataset.meta.policy_features()[0][TOP].shape == (3, 32, 48)
    del dataset  # who reads a dataset keeps edits out
    (told,) = [each.getMessage() for each in caplog.records]
    assert f"'{TOP}' is 64 × 96 (height × width), but its video is 32 × 48" in told
    (fault,) = check_dataset(root)
    assert fault.severity == "warning" and "smolact dataset compact" in fault.message
    with DatasetWriter.resume(root) as writer:
        record(writer, 3, 4)
    assert repair(root).needed is False
    path = root / "data/chunk-000/file-001.parquet"
    path.rename(tmp_path / "lost")
    assert repair(root).episodes == 3
    assert main(["dataset", "compact", f"--dataset.root={root}"]) == 0
    feature = json.loads((root / "meta/info.json").read_text())["features"][TOP]
    assert feature["shape"] == [32, 48, 3]
    assert (feature["info"]["video.height"], feature["info"]["video.width"]) == (32, 48)
    assert check_dataset(root) == []


def test_videos_of_two_sizes_are_named(root: Path, tmp_path: Path) -> None:
    from smolact.datasets.video import VideoWriter

    path = root / f"videos/{TOP}/chunk-000/file-001.mp4"
    with VideoWriter(path, 10, 64, 48, "h264") as video:
        for _ in range(4):
            video.write(np.zeros((48, 64, 3), dtype=np.uint8))
    with pytest.raises(VideoError, match=r"file-001\.mp4 has frames of .*\(48, 64, 3\).*other videos"):
        LeRobotDataset(root)[8]
    (fault,) = [each for each in check_dataset(root) if each.severity == "error"]
    assert "its frames are 48 × 64, and those of the camera's first video 32 × 48" in fault.message
    assert main(["dataset", "delete", f"--dataset.root={root}", "--episodes=[1]"]) == 0  # the hint
    assert check_dataset(root) == [] and LeRobotDataset(root).num_episodes == 2
    assert pq.read_table(root / "data/chunk-000/file-000.parquet").num_rows == 12
