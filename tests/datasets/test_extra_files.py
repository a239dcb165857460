"""What is the user's own in a dataset's folder goes with every edit, and none of it is lost where datasets become one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from smolact.cli.main import main
from smolact.datasets import edit
from smolact.datasets.edit import EditPlan
from smolact.datasets.inspection import check_dataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build, replace
from smolact.datasets.sharing import dataset_upload
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import DatasetError
from tests.datasets.make import TASKS, record, write

OWN = {
    "meta/modality.json": '{"state": {"arm": {"start": 0, "end": 4}}}',
    "meta/embodiment/notes.txt": "left arm",
    "README.md": "# Mine",
    "LICENSE": "CC0",
    ".gitattributes": "*.mp4 filter=lfs",
    "data/about.txt": "how it was measured",
    "videos/calibration.json": "{}",
    "calibration/cameras.yaml": "fx: 600",
    "images/plan.png": "a plan",
}
EDITS: dict[str, Callable[[Source], EditPlan]] = {
    "compact": edit.all_episodes,
    "delete": lambda source: edit.delete_episodes(source, [0]),
    "filter": lambda source: edit.select_episodes(source, list(range(1, source.meta.total_episodes))),
    "split": lambda source: edit.split(source, {"part": [1]})["part"],
    "rename": lambda source: edit.rename_task(source, TASKS[0], "Another."),
    "remove": lambda source: edit.remove_features(source, ["action"]),
    "stats": lambda source: dataclasses.replace(edit.all_episodes(source), recompute=True),
    "to v2.1": lambda source: dataclasses.replace(edit.all_episodes(source), version="v2.1"),
}


def own(root: Path, **changes: str) -> Path:
    for place, text in {**OWN, **changes}.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(text)
    (root / "empty").mkdir(exist_ok=True)
    return root


def assert_carried(root: Path, without: tuple[str, ...] = ()) -> None:
    assert {place: (root / place).read_text() for place in OWN if place not in without} == {
        place: text for place, text in OWN.items() if place not in without
    }
    assert (root / "empty").is_dir()
    assert [fault for fault in check_dataset(root) if fault.severity == "error"] == []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return own(write(tmp_path / "set", (3, 4, 2), "image"))


@pytest.mark.parametrize("way", EDITS)
def test_every_edit_takes_along_what_is_not_of_the_format(root: Path, tmp_path: Path, way: str) -> None:
    made = build(EDITS[way](Source(root)), tmp_path / "new")
    assert_carried(
        made, without=("images/plan.png",)
    )  # may be what a recorder works on: it stays where it is
    replace(EDITS[way](Source(root)))
    assert_carried(root)
    for old in ("meta/episodes.jsonl", "meta/tasks.jsonl") if way != "to v2.1" else ("meta/tasks.parquet",):
        assert not (root / old).exists()


def test_there_and_back_between_versions_nothing_is_lost(root: Path) -> None:
    for version in ("v2.1", "v3.0"):
        assert main(["dataset", "convert", f"--dataset.root={root}", f"--version={version}"]) == 0
        assert_carried(root)


def test_recording_on_and_repairing_touch_nothing_of_it(root: Path) -> None:
    with DatasetWriter.resume(root) as writer:
        record(writer, 3, 2)
    assert_carried(root)
    first = root / "data/chunk-000/file-000.parquet"
    first.write_bytes(first.read_bytes()[:-10])
    assert repair(root).rewritten
    assert_carried(root, without=("images/plan.png",))  # put aside, with the pictures of unsaved episodes
    assert (root.with_name("set.aside-001") / "images/plan.png").is_file()


def test_meta_is_published_whole(root: Path) -> None:
    assert {"meta/modality.json", "meta/embodiment/notes.txt", "README.md"} <= dataset_upload(
        root
    ).files.keys()


def test_files_that_differ_are_all_kept_by_a_merge(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = own(write(tmp_path / "other", (3, 2), "image"), **{"meta/modality.json": '{"state": {}}'})
    (other / "only.txt").write_text("only there")
    for path, value in ((root, "a"), (other, "b")):
        info = json.loads((path / "meta/info.json").read_text())
        (path / "meta/info.json").write_text(json.dumps({**info, "lab": value, f"of_{value}": 1}))
    made = build(edit.merge([Source(root), Source(other)]), tmp_path / "new")
    assert_carried(made, without=("images/plan.png",))
    kept = {path.relative_to(made / "merged-from").as_posix() for path in (made / "merged-from").rglob("*.*")}
    assert kept == {"1-other/meta/modality.json", "1-other/meta/info.json"}
    assert (made / "merged-from/1-other/meta/modality.json").read_text() == '{"state": {}}'
    assert (made / "only.txt").read_text() == "only there"
    info = json.loads((made / "meta/info.json").read_text())
    assert (info["lab"], info["of_a"], info["of_b"]) == ("a", 1, 1)
    assert "other: meta/modality.json, meta/info.json differ from those of the first dataset" in caplog.text
    caplog.clear()
    build(edit.merge([Source(root), Source(root)]), tmp_path / "same")
    assert not caplog.text and not (tmp_path / "same/merged-from").exists()


def test_what_belongs_to_the_folder_stays_in_it(root: Path, tmp_path: Path) -> None:
    for place in (".git/config", ".cache/huggingface/x", "unfinished-001/a.mp4"):
        (root / place).parent.mkdir(parents=True)
        (root / place).write_text("here")
    made = build(edit.all_episodes(Source(root)), tmp_path / "new")
    assert not any((made / name).exists() for name in (".git", ".cache", "unfinished-001"))
    replace(edit.all_episodes(Source(root)))
    assert all(
        (root / place).is_file() for place in (".git/config", ".cache/huggingface/x", "unfinished-001/a.mp4")
    )


def test_links_are_taken_along_as_links_and_what_they_lead_to_is_not_read(root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("not of the dataset")
    (root / "out.txt").symlink_to(secret)
    (root / "outside").symlink_to(tmp_path)
    (root / "inside.md").symlink_to("README.md")
    replace(edit.delete_episodes(Source(root), [0]))
    assert (root / "out.txt").readlink() == secret and (root / "outside").readlink() == tmp_path
    assert (root / "inside.md").readlink() == Path("README.md")
    (root / "meta/out.txt").symlink_to(secret)
    with pytest.raises(DatasetError, match=r"meta/out.txt leads out of the folder"):
        replace(edit.delete_episodes(Source(root), [0]))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.skipif(os.name == "nt", reason="needs links")
@pytest.mark.parametrize("place", ["videos", "data", "meta/episodes"])
@pytest.mark.parametrize("absolute", [True, False])
def test_nothing_is_written_through_a_folder_that_is_a_link(
    root: Path, tmp_path: Path, place: str, absolute: bool
) -> None:
    there = root / "kept elsewhere"
    shutil.move(root / place, there)
    (root / place).symlink_to(there if absolute else os.path.relpath(there, (root / place).parent))
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file()}
    build(edit.select_episodes(Source(root), [1]), tmp_path / "new")
    assert not check_dataset(tmp_path / "new") and not (tmp_path / "new" / place).is_symlink()
    assert {path: path.read_bytes() for path in there.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_merge_writes_nowhere_else(tmp_path: Path) -> None:
    one, two = (write(tmp_path / name, video_codec="h264") for name in "ab")
    outside = tmp_path / "outside"
    outside.mkdir()
    (one / "notes").symlink_to(outside)
    (one / "plan").write_text("a file here")
    for folder in ("notes", "plan"):
        (two / folder).mkdir()
        (two / folder / "n.txt").write_text("two")
    build(edit.merge([Source(one), Source(two)]), tmp_path / "new")
    assert not list(outside.iterdir()) and (tmp_path / "new/plan").read_text() == "a file here"
    assert all(
        (tmp_path / f"new/merged-from/1-b/{name}/n.txt").read_text() == "two" for name in ("notes", "plan")
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_can_not_be_read_is_not_taken_for_an_empty_one(root: Path, tmp_path: Path) -> None:
    (root / "empty").chmod(0)
    try:
        with pytest.raises(DatasetError, match="empty can't be read"):
            build(edit.all_episodes(Source(root)), tmp_path / "new")
    finally:
        (root / "empty").chmod(0o755)


def test_a_named_pipe_is_not_waited_for(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(root / "pipe")
    replace(edit.all_episodes(Source(root)))
    assert "pipe is no regular file, and is not taken along" in caplog.text


def test_a_copy_of_the_hubs_cache_gives_whole_files(root: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "datasets--a--b/blobs", tmp_path / "datasets--a--b/snapshots/abc"
    blobs.mkdir(parents=True)
    for number, path in enumerate(path for path in sorted(root.rglob("*")) if path.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    (snapshot / "empty").mkdir()
    made = build(edit.delete_episodes(Source(snapshot), [0]), tmp_path / "new")
    assert_carried(made, without=("images/plan.png",))
    assert not any(path.is_symlink() for path in made.rglob("*"))


def test_named_splits_follow_their_episodes(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (2, 2, 2, 2, 2), "image")
    path = root / "meta/info.json"

    def splits(plan: EditPlan, name: str) -> dict[str, str]:
        made = build(plan, tmp_path / name, quick=True)
        found: dict[str, str] = json.loads((made / "meta/info.json").read_text())["splits"]
        return found

    path.write_text(json.dumps({**json.loads(path.read_text()), "splits": {"train": "0:3", "test": "3:5"}}))
    source = Source(root)
    assert splits(edit.all_episodes(source), "whole") == {"train": "0:3", "test": "3:5"}
    assert splits(edit.delete_episodes(source, [0, 4]), "less") == {"train": "0:2", "test": "2:3"}
    assert splits(edit.delete_episodes(source, [3, 4]), "none") == {"train": "0:3"}
    assert splits(edit.merge([source, source]), "both") == {"train": "0:10"}
