"""Datasets of other joints, or of the same joints in another order, do not become one without a word."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from smolact.cli.main import main
from smolact.datasets.comparison import differences, order_of_names
from smolact.datasets.edit import merge
from smolact.datasets.format import Feature
from smolact.datasets.inspection import check_dataset
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import ConfigError, DatasetError, FeatureError
from smolact.recording.builtin import make_sim
from smolact.recording.replay import check_fits
from smolact.robots.base import RobotFeatures
from smolact.training.sections import DatasetSection
from smolact.training.sources import find_sources
from tests.datasets.damages import change
from tests.datasets.make import write

STATE = "observation.state"
ORDER = [2, 0, 3, 1]  # "c", "a", "d", "b"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "set", video_codec="h264", episodes_per_file=3)


def say(root: Path, **changes: Any) -> Path:
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    for name, value in changes.items():
        if name == "names":
            info["features"][STATE]["names"] = value
        else:
            info[name] = value
    path.write_text(json.dumps(info))
    return root


@pytest.fixture
def other(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "other"))


@pytest.fixture
def permuted(other: Path) -> Path:
    """The same episodes, recorded with the joints in another order."""

    def permute(table: pa.Table, name: str) -> pa.Table:
        values = [[row[place] for place in ORDER] for row in table[name].to_pylist()]
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, table[name].type))

    say(other, names=[["a", "b", "c", "d"][place] for place in ORDER])
    change(other / "data/chunk-000/file-000.parquet", lambda table: permute(table, STATE))
    rows = other / "meta/episodes/chunk-000/file-000.parquet"
    for name in [name for name in pq.read_schema(rows).names if name.startswith(f"stats/{STATE}/")]:
        if not name.endswith("/count"):
            change(rows, lambda table, name=name: permute(table, name))
    stats = json.loads((other / "meta/stats.json").read_text())
    stats[STATE] = {
        name: value if name == "count" else [value[place] for place in ORDER]
        for name, value in stats[STATE].items()
    }
    (other / "meta/stats.json").write_text(json.dumps(stats))
    assert check_dataset(other) == []
    return other


def same_frames(made: Path, parts: list[Path]) -> None:
    samples = iter(LeRobotDataset(made, return_uint8=True))
    for root in parts:
        for old in LeRobotDataset(root, return_uint8=True):
            new = next(samples)
            for key in (STATE, "action", "observation.images.top"):
                assert torch.equal(new[key], old[key])


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (["b", "a", "c", "d"], "--reorder_names=true"),
        (["a", "b", "c", "e"], "one of them into both"),
        ({"motors": ["a", "b", "d", "c"]}, "--reorder_names=true"),
    ],
)
def test_merge_refuses_other_joints_with_both_lists(
    whole: Path, other: Path, names: Any, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say(other, names=names)
    words = ["dataset", "merge", f"--datasets=[{whole}, {other}]", f"--output={tmp_path / 'new'}"]
    assert main(words) == 1
    shown = capsys.readouterr().err
    flat = names["motors"] if isinstance(names, dict) else names
    assert f"'{STATE}' has the names {flat} in {other} and ['a', 'b', 'c', 'd'] in {whole}" in shown
    assert part in shown and not (tmp_path / "new").exists()


def test_merge_puts_joints_in_order_if_told(
    whole: Path, permuted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset", "merge", f"--datasets=[{whole}, {permuted}]", f"--output={tmp_path / 'new'}"]
    assert main(words) == 1
    assert "--reorder_names=true" in capsys.readouterr().err
    assert main([*words, "--reorder_names=true"]) == 0
    made = tmp_path / "new"
    assert check_dataset(made) == []
    same_frames(made, [whole, whole])
    plain = build(merge([Source(whole), Source(whole)]), tmp_path / "plain")
    found, expected = (LeRobotDatasetMetadata(root) for root in (made, plain))
    assert found.features[STATE].names == ["a", "b", "c", "d"]
    for statistic, value in expected.stats[STATE].items():
        np.testing.assert_array_equal(found.stats[STATE][statistic], value)
    for name in pq.read_schema(made / "meta/episodes/chunk-000/file-000.parquet").names:
        columns = [
            pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet")[name] for root in (made, plain)
        ]
        assert columns[0].equals(columns[1]), name


@pytest.mark.parametrize("numbers", [[0.5], [0.5] * 5, [[0.5] * 4], 0.5])
def test_statistics_of_another_length_are_named_before_they_are_put_in_order(
    whole: Path, permuted: Path, tmp_path: Path, numbers: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = permuted / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats[STATE]["mean"] = numbers
    path.write_text(json.dumps(stats))
    words = ["dataset", "merge", f"--datasets=[{whole}, {permuted}]", f"--output={tmp_path / 'new'}"]
    assert main([*words, "--reorder_names=true"]) == 1
    shown = capsys.readouterr().err
    assert f"{permuted}: the statistic 'mean' of '{STATE}' must have 4 numbers" in shown
    assert f"found the shape {np.atleast_1d(numbers).shape}" in shown
    assert main(shlex.split(shown.partition(": smolact ")[2])) == 0  # the hint
    assert main([*words, "--reorder_names=true"]) == 0


def test_an_episodes_statistics_of_another_length_are_named(whole: Path, permuted: Path) -> None:
    column = f"stats/{STATE}/max"

    def shorten(table: pa.Table) -> pa.Table:
        values = [row[:3] for row in table[column].to_pylist()]
        return table.set_column(table.schema.get_field_index(column), column, pa.array(values))

    change(permuted / "meta/episodes/chunk-000/file-000.parquet", shorten)
    plan = merge([Source(whole), Source(permuted)], reorder_names=True)
    with pytest.raises(DatasetError, match=r"'max' of 'observation.state' must have 4 numbers.*\(3,\)"):
        plan.sources[1].statistics(0)


def test_joints_of_other_names_are_not_put_in_order(whole: Path, other: Path) -> None:
    say(other, names=["a", "b", "c", "e"])
    with pytest.raises(FeatureError, match="has the names"):
        merge([Source(whole), Source(other)], reorder_names=True)


@pytest.mark.parametrize(
    "names",
    [
        None,
        [],
        {"motors": ["a", "b", "c", "d"]},
        {"a": 0, "b": 1, "c": 2, "d": 3},
        [["a", "b"], ["c", "d"]],
        ["state"],
    ],
)
def test_the_same_names_in_another_form_and_no_names_merge(
    whole: Path, other: Path, tmp_path: Path, names: Any
) -> None:
    say(other, names=names)
    for number, pair in enumerate([(whole, other), (other, whole)]):
        made = build(merge([Source(root) for root in pair]), tmp_path / f"new{number}", quick=True)
        assert LeRobotDatasetMetadata(made).features[STATE].dimension_names == [
            "a",
            "b",
            "c",
            "d",
        ] or names == ["state"]


def test_all_differences_are_listed_at_once(whole: Path, tmp_path: Path) -> None:
    root = write(tmp_path / "image", dtype="image")
    say(root, names=["a", "b", "c", "e"])
    with pytest.raises(FeatureError) as raised:
        merge([Source(whole), Source(root)])
    lines = str(raised.value).splitlines()
    assert lines[1].startswith("  'observation.images.top' has the dtype image in")
    assert lines[2].startswith("  'observation.state' has the names ['a', 'b', 'c', 'e'] in")


def test_merge_asks_for_the_robot_where_datasets_name_two(
    whole: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = say(Path(shutil.copytree(whole, tmp_path / "one")), robot_type="so100")
    say(other, robot_type="so100_follower")
    words = ["dataset", "merge", f"--datasets=[{one}, {other}]", f"--output={tmp_path / 'new'}"]
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "so100, so100_follower" in shown
    flag = shlex.split(re.findall(r"--robot_type=\S+", shown)[0])
    assert main([*words, *flag]) == 0
    assert LeRobotDatasetMetadata(tmp_path / "new").robot_type == "so100"
    unsaid = build(merge([Source(whole), Source(other)]), tmp_path / "unsaid", quick=True)
    assert LeRobotDatasetMetadata(unsaid).robot_type == "so100_follower"
    with pytest.raises(ConfigError, match="different robots"):
        merge([Source(whole), Source(other), Source(one)])


def sources(roots: list[Path]) -> Any:
    return find_sources(DatasetSection(mix=dict.fromkeys(map(str, roots), 1.0)), {})


def test_a_mixture_refuses_another_order_and_its_hint_leads_on(
    whole: Path, permuted: Path, tmp_path: Path
) -> None:
    with pytest.raises(FeatureError, match=r"has the names \['a', 'b', 'c', 'd'\] in") as raised:
        sources([whole, permuted])
    command = str(raised.value).partition("order by: smolact ")[2].replace("FOLDER", str(tmp_path / "new"))
    assert main(shlex.split(command)) == 0
    say(permuted, names={"motors": ["a", "b", "c", "d"]})
    assert len(sources([whole, permuted])) == 2  # the same names in another form
    say(permuted, names=None)
    assert len(sources([whole, permuted])) == 2


class Arm:
    """A robot of two joints, as far as it is compared."""

    name = "arm"
    features = RobotFeatures(action=("x", "y"))


def test_replay_compares_names_in_every_form(other: Path) -> None:
    own = ["x", "y"]
    robot: Any = Arm()
    path = other / "meta/info.json"
    info = json.loads(path.read_text())

    def name(names: Any, size: int = len(own)) -> None:
        info["features"]["action"] |= {"names": names, "shape": [size]}
        path.write_text(json.dumps(info))

    for names in (own, {"motors": own}, {joint: place for place, joint in enumerate(own)}, None):
        name(names)
        check_fits(other, robot)
    wrong = own[::-1]
    for names in (wrong, {"motors": wrong}):
        name(names)
        with pytest.raises(FeatureError) as raised:
            check_fits(other, robot)
        assert f"has the names {wrong} in {other} and {own} on the robot 'arm'" in str(raised.value)
    name(None, 3)
    with pytest.raises(FeatureError, match="the shape"):
        check_fits(other, robot)
    simulated = make_sim("tabletop")  # whose numbers have no names
    name(["a", "b", "c", "d"][: len(simulated.features.action)], len(simulated.features.action))
    check_fits(other, simulated)


def test_going_on_with_a_robot_of_another_name_is_told(other: Path, caplog: pytest.LogCaptureFixture) -> None:
    say(other, robot_type="so100")
    features: Mapping[str, Any] = LeRobotDatasetMetadata(other).features
    for robot in ("so100", None, "so101"):
        caplog.clear()
        DatasetWriter.resume(other, features=features, robot_type=robot).close()
        assert ("goes on with 'so101'" in caplog.text) == (robot == "so101")


def test_only_numbers_with_a_name_each_are_compared() -> None:
    named = Feature("float32", (2,), ["a", "b"])
    sides = "here", "there"
    found = differences("x", named, Feature("float32", (2,), ["b", "a"]), sides)
    assert found == ["'x' has the names ['a', 'b'] here and ['b', 'a'] there"]
    found = differences("x", named, Feature("float64", (2,)), sides)
    assert found == ["'x' has the dtype float32 here and float64 there"]
    assert differences("x", named, Feature("float64", (2,)), sides, dtype=False) == []
    images = Feature("video", (3, 8, 9), ["c", "h", "w"]), Feature("video", (8, 9, 3))
    assert differences("x", *images, sides) == []
    assert order_of_names(Feature("float32", (2,), ["b", "a"]), named) == [1, 0]
    assert order_of_names(named, named) is None
    assert order_of_names(Feature("float32", (2,), ["a", "a"]), named) is None


UNITS_OF = {"a": "degrees", "b": "degrees", "c": "degrees", "d": "range_0_100"}


def in_units(root: Path, units: Mapping[str, str]) -> Path:
    """Say of the dataset's state in which units each joint is."""
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    feature = info["features"][STATE]
    feature["info"] = {"units": [units[name] for name in feature["names"]]}
    path.write_text(json.dumps(info))
    return root


def test_units_follow_their_joints_into_another_order(whole: Path, permuted: Path, tmp_path: Path) -> None:
    first = in_units(Path(shutil.copytree(whole, tmp_path / "first")), UNITS_OF)
    in_units(permuted, UNITS_OF)
    made = tmp_path / "made"
    words = ["dataset", "merge", f"--datasets=[{first}, {permuted}]", f"--output={made}"]
    assert main([*words, "--reorder_names=true"]) == 0
    feature = LeRobotDatasetMetadata(made).features[STATE]
    assert dict(zip(feature.dimension_names, feature.info["units"], strict=True)) == UNITS_OF
    in_units(permuted, {**UNITS_OF, "c": "range_0_100", "d": "degrees"})
    with pytest.raises(FeatureError, match="the units"):
        merge([Source(first), Source(permuted)], reorder_names=True)


def test_todays_and_older_names_of_joints_are_the_same(whole: Path, other: Path) -> None:
    say(other, names=["main_a", "main_b", "main_c", "main_d"])
    today = Feature("float32", (4,), ["a.pos", "b.pos", "c.pos", "d.pos"])
    assert differences(STATE, LeRobotDatasetMetadata(other).features[STATE], today, ("old", "new")) == []
    turned = Feature("float32", (4,), ["b.pos", "a.pos", "c.pos", "d.pos"])
    assert order_of_names(LeRobotDatasetMetadata(other).features[STATE], turned) == [1, 0, 2, 3]


def test_actions_in_other_units_are_not_replayed(other: Path) -> None:
    path = other / "meta/info.json"
    info = json.loads(path.read_text())
    joints, size = info["features"]["action"]["names"], info["features"]["action"]["shape"][0]
    names = tuple(map(str, joints)) if joints else tuple(f"joint{number}.pos" for number in range(size))
    info["features"]["action"]["info"] = {"units": ["degrees"] * size}
    path.write_text(json.dumps(info))

    class Arm:
        name = "arm"

        def __init__(self, unit: str) -> None:
            self.features = RobotFeatures(names, units={"action": (unit,) * size})

    check_fits(other, Arm("degrees"))  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match=r"the units.*degrees.*range_m100_100"):
        check_fits(other, Arm("range_m100_100"))  # type: ignore[arg-type]
