"""Depth cameras: recognized by every marker, left out of samples, carried bit for bit, and never made 8 bits."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from smolact.cli.main import main
from smolact.datasets.edit import merge
from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.sources import Source
from smolact.datasets.video import VideoWriter
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, FeatureError
from tests.datasets import make, make_depth
from tests.datasets.make_depth import (
    COLOR,
    DEPTH,
    add_images,
    add_video,
    distances,
    image_bytes,
    video_distances,
)

MARKED: dict[str, dict[str, Any]] = {
    "info.is_depth_map": {"info": {"is_depth_map": True}},
    "info['video.is_depth_map']": {"info": {"video.is_depth_map": True, "is_depth_map": False}},
    "video_info['video.is_depth_map']": {"video_info": {"video.is_depth_map": True}},
    "a single channel": {},
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_video(make.write(tmp_path_factory.mktemp("depth") / "video"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_images(make.write(tmp_path_factory.mktemp("depth") / "images"), "TIFF")


@pytest.mark.parametrize("marked", MARKED.values(), ids=MARKED)
@pytest.mark.parametrize("shape", [(64, 96, 1), (1, 64, 96)])
def test_a_depth_camera_is_recognized_and_left_out_of_samples(
    tmp_path: Path, marked: dict[str, Any], shape: tuple[int, ...]
) -> None:
    root = add_video(make.write(tmp_path / "set"), marked, shape)
    meta = LeRobotDatasetMetadata(root)
    assert (meta.color_keys, meta.depth_keys, meta.camera_keys) == ([COLOR], [DEPTH], [COLOR, DEPTH])
    assert DEPTH not in meta.policy_features()[0]
    sample = LeRobotDataset(root)[3]
    assert COLOR in sample
    assert DEPTH not in sample


def test_a_marked_camera_of_three_channels_is_depth_and_an_unmarked_one_is_not(tmp_path: Path) -> None:
    root = make.write(tmp_path / "set")
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    assert LeRobotDatasetMetadata(root).depth_keys == []
    info["features"][COLOR]["info"]["video.is_depth_map"] = True
    path.write_text(json.dumps(info))
    assert LeRobotDatasetMetadata(root).depth_keys == [COLOR]


def test_who_asks_for_depth_hears_that_it_is_not_read(video: Path) -> None:
    with pytest.raises(ConfigError, match=f"'{DEPTH}', a depth camera"):
        LeRobotDataset(video, cameras=[DEPTH])
    with pytest.raises(ConfigError, match=f"'{DEPTH}', a depth camera"):
        LeRobotDataset(video, delta_timestamps={DEPTH: [0.0]})


@pytest.mark.parametrize("command", ["check", "info"])
def test_commands_name_depth_cameras(video: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", command, f"--dataset.root={video}"]) == 0
    said = next(
        line for line in capsys.readouterr().out.splitlines() if line.lower().startswith("depth cameras")
    )
    assert DEPTH in said


EDITS: dict[str, tuple[list[str], list[int]]] = {
    "compact": ([], [0, 1, 2]),
    "delete": (["--episodes=[1]"], [0, 2]),
    "rename-task": ([f"--old={make.TASKS[0]}", "--new=Push it."], [0, 1, 2]),
    "remove-feature": ([f"--features=[{COLOR}]"], [0, 1, 2]),
    "stats": ([], [0, 1, 2]),
    "convert": (["--version=v2.1"], [0, 1, 2]),
}


@pytest.mark.parametrize("command", EDITS)
def test_every_edit_carries_depth_video_bit_for_bit(video: Path, tmp_path: Path, command: str) -> None:
    flags, kept = EDITS[command]
    output = tmp_path / "new"
    assert main(["dataset", command, f"--dataset.root={video}", f"--output={output}", *flags]) == 0
    for episode, frames in zip(kept, video_distances(output), strict=True):
        for number, frame in enumerate(frames):
            assert (frame == distances(episode, number)).all()
    same_description(video, output)


@pytest.mark.parametrize("command", EDITS)
def test_every_edit_carries_depth_images_byte_for_byte(images: Path, tmp_path: Path, command: str) -> None:
    flags, kept = EDITS[command]
    output = tmp_path / "new"
    assert main(["dataset", command, f"--dataset.root={images}", f"--output={output}", *flags]) == 0
    before, ends = image_bytes(images), LeRobotDatasetMetadata(images).episodes.to_index
    starts = [0, *ends[:-1]]
    assert image_bytes(output) == [one for episode in kept for one in before[starts[episode] : ends[episode]]]
    same_description(images, output)


def same_description(old: Path, new: Path) -> None:
    """What says which distance a number is, and statistics in its unit, came along."""
    before, after = LeRobotDatasetMetadata(old), LeRobotDatasetMetadata(new)
    assert after.features[DEPTH] == before.features[DEPTH]
    assert after.stats[DEPTH]["min"].tolist() == [[[500.0]]]
    assert after.stats[DEPTH]["max"].tolist() == [[[902.0]]]


def test_depth_comes_back_from_the_older_version(video: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "v2.1", tmp_path / "v3.0"
    assert main(["dataset", "convert", f"--dataset.root={video}", "--version=v2.1", f"--output={old}"]) == 0
    assert main(["dataset", "convert", f"--dataset.root={old}", "--version=v3.0", f"--output={new}"]) == 0
    assert [len(frames) for frames in video_distances(new)] == [7, 4, 5]
    for came, went in zip(video_distances(new), video_distances(video), strict=True):
        assert np.array_equal(came, went)


def test_merge_and_split_carry_depth(video: Path, tmp_path: Path) -> None:
    merged = tmp_path / "merged"
    assert main(["dataset", "merge", f"--datasets=[{video}, {video}]", f"--output={merged}"]) == 0
    assert [
        (frames[1] == distances(number % 3, 1)).all() for number, frames in enumerate(video_distances(merged))
    ] == [True] * 6
    assert (
        main(
            [
                "dataset",
                "split",
                f"--dataset.root={merged}",
                '--parts={"a": [4], "b": [0, 1]}',
                f"--output={tmp_path}",
            ]
        )
        == 0
    )
    assert (video_distances(tmp_path / "a")[0][3] == distances(1, 3)).all()


@pytest.mark.parametrize(
    "name, value", [("video.depth_max", 4.0), ("video.use_log", False), ("depth_unit", "m")]
)
def test_merge_refuses_depth_of_another_meaning(
    video: Path, tmp_path: Path, name: str, value: object
) -> None:
    other = shutil.copytree(video, tmp_path / "other")
    info = json.loads((other / "meta/info.json").read_text())
    info["features"][DEPTH]["info"][name] = value
    (other / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(FeatureError, match=name):
        merge([Source(video), Source(other)])


@pytest.mark.parametrize("kind, to", [("video", "image"), ("image", "video")])
def test_depth_is_not_stored_as_another_kind_of_picture(
    tmp_path: Path, kind: str, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make.write(tmp_path / "set", dtype=kind)
    root = add_video(root) if kind == "video" else add_images(root)
    assert (
        main(
            [
                "dataset",
                "convert",
                f"--dataset.root={root}",
                f"--cameras={to}",
                f"--output={tmp_path / 'new'}",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert DEPTH in said
    assert "8 bits" in said
    assert not (tmp_path / "new").exists()
    # The way out that the message names leads somewhere.
    bare = tmp_path / "bare"
    features = json.dumps([DEPTH])
    assert (
        main(
            [
                "dataset",
                "remove-feature",
                f"--dataset.root={root}",
                f"--features={features}",
                f"--output={bare}",
            ]
        )
        == 0
    )
    assert (
        main(
            [
                "dataset",
                "convert",
                f"--dataset.root={bare}",
                f"--cameras={to}",
                f"--output={tmp_path / 'new'}",
            ]
        )
        == 0
    )


def test_a_cut_that_would_encode_depth_again_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = add_video(make.write(tmp_path / "set", episodes_per_file=3), g=250)  # one key frame for all three
    assert not [fault for fault in check_dataset(root) if fault.severity == "error"]
    before = sorted((path, path.stat().st_size) for path in root.rglob("*") if path.is_file())
    assert main(["dataset", "delete", f"--dataset.root={root}", "--episodes=[0]"]) != 0
    said = capsys.readouterr().err
    assert "key frame" in said
    assert "remove-feature" in said
    assert sorted((path, path.stat().st_size) for path in root.rglob("*") if path.is_file()) == before


def test_check_finds_depth_that_was_rounded(video: Path, images: Path, tmp_path: Path) -> None:
    rounded = shutil.copytree(video, tmp_path / "video")
    path = rounded / LeRobotDatasetMetadata(rounded).episodes.video_path[DEPTH][0]
    with VideoWriter(path, make.FPS, 96, 64, "h264") as writer:
        for number in range(7):
            writer.write(np.repeat((distances(0, number)[..., None] >> 4).astype(np.uint8), 3, axis=2))
    (fault,) = [fault for fault in check_dataset(rounded) if fault.severity == "error"]
    assert "8 bits" in fault.message
    assert fault.location == path.relative_to(rounded).as_posix()
    colored = shutil.copytree(images, tmp_path / "images")
    path = colored / LeRobotDatasetMetadata(colored).episodes.data_path[1]
    table = pq.read_table(path)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((64, 96, 3), dtype=np.uint8)).save(buffer, format="PNG")
    rows = table[DEPTH].to_pylist()
    rows[2]["bytes"] = buffer.getvalue()
    index = table.column_names.index(DEPTH)
    pq.write_table(table.set_column(index, DEPTH, pa.array(rows, type=table.schema.field(DEPTH).type)), path)
    (fault,) = [fault for fault in check_dataset(colored) if fault.severity == "error"]
    assert "3 channels" in fault.message


def test_check_finds_damaged_depth(video: Path, images: Path, tmp_path: Path) -> None:
    for place, root in (("video", video), ("images", images)):
        broken = shutil.copytree(root, tmp_path / place)
        meta = LeRobotDatasetMetadata(broken)
        if place == "video":
            path = broken / meta.episodes.video_path[DEPTH][2]
            path.write_bytes(path.read_bytes()[:-3000])
        else:
            path = broken / meta.episodes.data_path[2]
            table = pq.read_table(path)
            rows = table[DEPTH].to_pylist()
            rows[1]["bytes"] = rows[1]["bytes"][:700]
            column = pa.array(rows, type=table.schema.field(DEPTH).type)
            pq.write_table(table.set_column(table.column_names.index(DEPTH), DEPTH, column), path)
        assert [fault for fault in check_dataset(broken) if fault.severity == "error"]


def test_repair_keeps_whole_depth_and_leaves_out_damaged(video: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(video, tmp_path / "set")
    path = broken / LeRobotDatasetMetadata(broken).episodes.video_path[DEPTH][1]
    path.write_bytes(path.read_bytes()[:-3000])
    assert main(["dataset", "repair", f"--dataset.root={broken}"]) == 0
    assert not [fault for fault in check_dataset(broken) if fault.severity == "error"]
    for episode, frames in zip((0, 2), video_distances(broken), strict=True):
        assert all((frame == distances(episode, number)).all() for number, frame in enumerate(frames))


def test_recording_does_not_go_on_in_a_dataset_with_depth(video: Path, images: Path) -> None:
    for root in (video, images):
        with pytest.raises(ConfigError, match=r"depth is not recorded here.*remove-feature"):
            DatasetWriter.resume(root)
    with pytest.raises(ConfigError, match="Depth is not recorded"):
        marked = {"dtype": "video", "shape": (32, 48, 3), "info": {"is_depth_map": True}}
        DatasetWriter.create(video.parent / "new", fps=10, features={DEPTH: marked})


def test_statistics_of_depth_are_not_demanded(video: Path, tmp_path: Path) -> None:
    root = shutil.copytree(video, tmp_path / "set")
    stats = json.loads((root / "meta/stats.json").read_text())
    del stats[DEPTH]
    (root / "meta/stats.json").write_text(json.dumps(stats))
    for path in (root / "meta/episodes").glob("*/*.parquet"):
        table = pq.read_table(path)
        pq.write_table(
            table.drop_columns([n for n in table.column_names if n.startswith(f"stats/{DEPTH}")]), path
        )
    assert check_dataset(root) == []
    assert main(["dataset", "stats", f"--dataset.root={root}"]) == 0
    assert check_dataset(root) == []
    assert DEPTH not in LeRobotDatasetMetadata(root).stats


def test_a_page_and_a_preview_show_the_cameras_in_colour(video: Path, tmp_path: Path) -> None:
    assert (
        main(["dataset", "viz", f"--dataset.root={video}", "--html", f"--output={tmp_path / 'page.html'}"])
        == 0
    )
    assert (
        DEPTH.rpartition(".")[2] not in (tmp_path / "page.html").read_text().partition('"cameras":')[2][:60]
    )
    png = tmp_path / "preview.png"
    assert main(["dataset", "preview-transforms", f"--dataset.root={video}", f"--output={png}"]) == 0
    assert png.stat().st_size


def test_pictures_are_not_made_of_depth(video: Path) -> None:
    with pytest.raises(ConfigError, match="8 bits"):
        next(Source(video).images(DEPTH, 0))


def test_make_depth_makes_what_it_says(video: Path) -> None:
    assert all(
        (frame == distances(episode, number)).all()
        for episode, frames in enumerate(video_distances(video))
        for number, frame in enumerate(frames)
    )
    assert make_depth.distances(0, 0).max() > 255 * 15
    with pytest.raises(DatasetError):
        LeRobotDatasetMetadata(video.parent)
