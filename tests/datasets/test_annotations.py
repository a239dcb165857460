"""What other tools have written into a dataset goes with its frames: annotations, subtasks, unknown columns, notes on episodes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from smolact.cli.main import main
from smolact.datasets import edit
from smolact.datasets.edit import EditPlan
from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import DatasetError
from tests.datasets.annotated import LANGUAGE, annotate, declare, number_subtasks, rows_of
from tests.datasets.make import TASKS, record, write

CAMERA = "observation.images.top"
PLANS: dict[str, tuple[Callable[[Source], EditPlan], list[int]]] = {
    "compact": (edit.all_episodes, [0, 1, 2, 3]),
    "stats": (lambda source: dataclasses.replace(edit.all_episodes(source), recompute=True), [0, 1, 2, 3]),
    "rename": (lambda source: edit.rename_task(source, TASKS[0], "Another."), [0, 1, 2, 3]),
    "delete": (lambda source: edit.delete_episodes(source, [0, 2]), [1, 3]),
    "split": (lambda source: edit.split(source, {"part": [2, 3]})["part"], [2, 3]),
    "filter": (lambda source: edit.select_episodes(source, [0, 1]), [0, 1]),
    "remove": (lambda source: edit.remove_features(source, ["action"]), [0, 1, 2, 3]),
    "merge": (lambda source: edit.merge([source, source]), [0, 1, 2, 3, 0, 1, 2, 3]),
    "cameras": (
        lambda source: dataclasses.replace(edit.all_episodes(source), cameras={CAMERA: "video"}),
        [0, 1, 2, 3],
    ),
}


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    root = write(tmp_path / "set", (3, 4, 5, 3), "image")
    return annotate(root, CAMERA, silent=[2])


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
@pytest.mark.parametrize("way", PLANS)
def test_language_columns_go_with_their_frames(
    annotated: Path, tmp_path: Path, way: str, version: str
) -> None:
    before = rows_of(annotated, *LANGUAGE)
    plan, episodes = PLANS[way]
    made = build(dataclasses.replace(plan(Source(annotated)), version=version), tmp_path / "new")
    assert rows_of(made, *LANGUAGE) == [before[number] for number in episodes]
    assert check_dataset(made) == []
    if version == "v2.1":
        made = build(edit.all_episodes(Source(made)), tmp_path / "back")
        assert rows_of(made, *LANGUAGE) == [before[number] for number in episodes]
    assert json.loads((made / "meta/info.json").read_text())["features"]["language_events"] == {
        "dtype": "language",
        "shape": [1],
        "names": None,
    }


def test_samples_have_the_annotations_after_an_edit_as_before(annotated: Path, tmp_path: Path) -> None:
    made = build(edit.delete_episodes(Source(annotated), [0]), tmp_path / "new")
    old, new = LeRobotDataset(annotated, episodes=[1, 2, 3]), LeRobotDataset(made)
    for before, after in zip(old, new, strict=True):
        for name in LANGUAGE:
            assert before[name] == after[name]


def test_a_language_column_can_be_removed(annotated: Path, tmp_path: Path) -> None:
    made = build(edit.remove_features(Source(annotated), LANGUAGE), tmp_path / "new")
    assert not set(LANGUAGE) & set(pq.read_schema(next(made.rglob("data/*/*.parquet"))).names)


def test_check_knows_what_annotations_must_be(annotated: Path) -> None:
    assert check_dataset(annotated) == []
    path = annotated / "data/chunk-000/file-001.parquet"
    table = pq.read_table(path)

    def faults(name: str, values: list[object]) -> list[str]:
        place = table.schema.get_field_index(name)
        pq.write_table(table.set_column(place, name, pa.array(values)), path)
        return [str(fault) for fault in check_dataset(annotated)]

    good = table[LANGUAGE[0]].to_pylist()
    (fault,) = faults(LANGUAGE[0], [good[0], good[0], [], good[0]])
    assert "not the same in every frame of episode 1" in fault
    (fault,) = faults(LANGUAGE[0], [1, 2, 3, 4])
    assert "expected a list of records" in fault
    (fault,) = faults(LANGUAGE[0], [[{"content": "no role", "timestamp": 0.0}]] * 4)
    assert "lacks camera, role, style, tool_calls in its records" in fault
    pq.write_table(table, path)
    info = annotated / "meta/info.json"
    info.write_text(info.read_text().replace(CAMERA, "observation.images.wrist"))
    pq.write_table(
        table.rename_columns(
            [name.replace(CAMERA, "observation.images.wrist") for name in table.column_names]
        ),
        path,
    )
    assert any(
        "is about the camera 'observation.images.top'" in str(f) for f in check_dataset(annotated, quick=True)
    )


def test_subtasks_of_several_datasets_become_one_table(tmp_path: Path) -> None:
    texts = (["Reach.", "Grasp."], ["Lift.", "Reach.", "Place."])
    roots = [
        number_subtasks(write(tmp_path / name, (3, 4), "image"), subtasks)
        for name, subtasks in zip("ab", texts, strict=True)
    ]

    def said(root: Path) -> list[str]:
        table = pq.read_table(root / "meta/subtasks.parquet").to_pylist()
        known = {row["subtask_index"]: row["subtask"] for row in table}
        return [known[row["subtask_index"]] for episode in rows_of(root, "subtask_index") for row in episode]

    made = build(edit.merge([Source(root) for root in roots]), tmp_path / "both")
    assert said(made) == [*said(roots[0]), *said(roots[1])]
    assert check_dataset(made) == []
    table = pq.read_table(made / "meta/subtasks.parquet")
    assert table["subtask"].to_pylist() == ["Reach.", "Grasp.", "Lift.", "Place."]
    less = build(edit.delete_episodes(Source(made), [0, 1]), tmp_path / "less")
    assert said(less) == said(roots[1])
    (roots[1] / "meta/subtasks.parquet").unlink()
    with pytest.raises(DatasetError, match=r"b/meta/subtasks.parquet is missing, and .*remove-feature"):
        build(edit.merge([Source(root) for root in roots]), tmp_path / "none")


def test_check_names_a_subtask_that_is_not_listed(tmp_path: Path) -> None:
    root = number_subtasks(write(tmp_path / "set", (3, 4), "image"), ["Reach.", "Grasp.", "Lift."])
    pq.write_table(pq.read_table(root / "meta/subtasks.parquet").slice(0, 2), root / "meta/subtasks.parquet")
    said = "subtask_index 2 is no subtask: meta/subtasks.parquet lists 2"
    assert [said in str(fault) for fault in check_dataset(root)].count(True) == 2  # in each data file


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_columns_that_nobody_declared_and_kinds_that_we_do_not_know_are_copied(
    tmp_path: Path, version: str
) -> None:
    root = write(tmp_path / "set", (3, 4), "image")
    for number, path in enumerate(sorted(root.rglob("data/*/*.parquet"))):
        table = pq.read_table(path)
        odd = [[{"x": number}, {"x": None}]] * len(table)
        table = table.append_column("odd", pa.array(odd))
        if number:  # only in the second file
            table = table.append_column("note", pa.array(["late"] * len(table)))
        pq.write_table(table, path)
    declare(root, {"odd": "a kind of next year"})
    made = build(
        dataclasses.replace(edit.merge([Source(root), Source(root)]), version=version), tmp_path / "new"
    )
    rows = rows_of(made, "odd", "note")
    assert rows == [
        [{"odd": [{"x": number}, {"x": None}], "note": "late" if number else None}] * length
        for number, length in ((0, 3), (1, 4), (0, 3), (1, 4))
    ]


def test_what_else_is_said_of_a_feature_stays(tmp_path: Path) -> None:
    root = write(tmp_path / "set", (3,), "image")
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"]["action"] |= {"fps": 10, "unit": "degrees"}
    path.write_text(json.dumps(info))
    made = build(dataclasses.replace(edit.all_episodes(Source(root)), version="v2.1"), tmp_path / "new")
    made = build(edit.merge([Source(made), Source(root)]), tmp_path / "both")
    assert json.loads((made / "meta/info.json").read_text())["features"] == info["features"]


@pytest.mark.parametrize("version", ["v3.0", "v2.1"])
def test_what_other_tools_say_of_episodes_goes_with_them(tmp_path: Path, version: str) -> None:
    root = write(tmp_path / "set", (3, 4, 5), "image")
    for number, path in enumerate(sorted(root.rglob("meta/episodes/*/*.parquet"))):
        table = pq.read_table(path)
        table = table.append_column("subtask_names", pa.array([["reach", f"grasp {number}"]]))
        pq.write_table(table.append_column("quality", pa.array([number / 2])), path)
    made = build(
        dataclasses.replace(edit.delete_episodes(Source(root), [1]), version=version), tmp_path / "new"
    )
    if version == "v2.1":
        made = build(edit.all_episodes(Source(made)), tmp_path / "back")
    (table,) = [pq.read_table(path) for path in made.rglob("meta/episodes/*/*.parquet")]
    assert table["subtask_names"].to_pylist() == [["reach", "grasp 0"], ["reach", "grasp 2"]]
    assert table["quality"].to_pylist() == [0.0, 1.0]
    assert check_dataset(made) == []


def test_what_is_recorded_later_has_no_annotations_yet(annotated: Path, tmp_path: Path) -> None:
    before = rows_of(annotated, *LANGUAGE)
    first = annotated / "data/chunk-000/file-000.parquet"
    table = pq.read_table(first)
    pq.write_table(table.append_column("undeclared", pa.array([1] * len(table))), first)
    with DatasetWriter.resume(annotated) as writer:
        record(writer, 4, 2)
    assert rows_of(annotated, *LANGUAGE) == [*before, [{name: [] for name in LANGUAGE}] * 2]
    assert check_dataset(annotated) == []
    made = build(edit.delete_episodes(Source(annotated), [0]), tmp_path / "new")
    assert rows_of(made, *LANGUAGE) == [*before[1:], [{name: [] for name in LANGUAGE}] * 2]


def test_a_repair_that_makes_the_dataset_anew_keeps_annotations(annotated: Path) -> None:
    before = rows_of(annotated, *LANGUAGE)
    path = annotated / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert repair(annotated).rewritten
    assert rows_of(annotated, *LANGUAGE) == before[1:]


def test_the_command_edits_an_annotated_dataset_in_its_place(
    annotated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = rows_of(annotated, *LANGUAGE)
    assert main(["dataset", "delete", f"--dataset.root={annotated}", "--episodes=[3]"]) == 0
    assert rows_of(annotated, *LANGUAGE) == before[:3]
    assert LeRobotDatasetMetadata(annotated).total_episodes == 3
