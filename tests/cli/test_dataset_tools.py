"""The dataset tools as a user types them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from smolact.cli.main import main
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from tests.datasets import make


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make.write(tmp_path / "set", video_codec="h264")


def run(command: str, root: Path, *flags: str) -> int:
    return main(["dataset", command, f"--dataset.root={root}", *flags])


def test_info_tells_what_there_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", root) == 0
    shown = capsys.readouterr().out
    for part in ("v3.0", "3, 4 to 7 frames", "16 at 10 a second", "48 × 32, video (h264)", "a, b, c, d"):
        assert part in shown
    assert f"'{make.TASKS[0]}': 2 episodes" in shown and f"'{make.TASKS[1]}': 1 episode\n" in shown


def test_check_exits_with_1_on_errors(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", root) == 0
    assert capsys.readouterr().out == f"{root}: whole\n"
    (root / "data/chunk-000/file-001.parquet").unlink()
    assert run("check", root, "--quick") == 1
    shown = capsys.readouterr().out
    assert "error: data/chunk-000/file-001.parquet: " in shown and "1 errors, 0 warnings" in shown


def test_no_dataset_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "check"]) == 2
    assert "Which dataset?" in capsys.readouterr().err
    assert run("info", tmp_path / "none") == 1
    assert "none" in capsys.readouterr().err


def test_every_edit_makes_what_was_asked(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first, second = make.TASKS
    for name, command, flags, episodes in (
        ("a", "delete", ["--episodes=[1]"], 2),
        ("b", "filter", ["--task=PLATE"], 1),
        ("c", "filter", ["--min_frames=5"], 2),
        ("d", "rename-task", [f"--old={first}", f"--new={second}"], 3),
        ("e", "remove-feature", ["--features=[next.done]"], 3),
        ("f", "compact", [], 3),
        ("g", "stats", [], 3),
        ("h", "convert", ["--version=v2.1"], 3),
        ("i", "convert", ["--cameras=image"], 3),
    ):
        assert run(command, root, f"--output={out / name}", *flags) == 0
        assert capsys.readouterr().out.startswith(f"{out / name}: {episodes} episodes, ")
        assert Source(out / name).meta.total_episodes == episodes
    assert main(["dataset", "merge", f"--datasets=[{out / 'a'}, {root}]", f"--output={out / 'm'}"]) == 0
    assert Source(out / "m").meta.total_episodes == 5
    assert run("split", root, "--parts={train: 0.7, test: [2]}", f"--output={out / 's'}") == 0
    assert [Source(out / "s" / part).meta.total_episodes for part in ("train", "test")] == [2, 1]


def test_episodes_are_chosen_by_how_they_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    features = {
        "action": {"dtype": "float32", "shape": (1,)},
        "next.success": {"dtype": "bool", "shape": (1,)},
        "next.reward": {"dtype": "float32", "shape": (1,)},
    }
    with DatasetWriter.create(root, fps=10, features=features) as writer:
        for rewards in ([0.0, 1.0], [1.0, 0.5], [0.2, 0.9, 1.0]):
            for reward in rewards:
                frame = {"action": [0.0], "next.success": reward == 1.0, "next.reward": reward}
                writer.add_frame(
                    {
                        name: np.asarray(value, np.float32) if name != "next.success" else value
                        for name, value in frame.items()
                    },
                    task="Go.",
                )
            writer.save_episode()
    for flags, lengths in (
        (["--success=true"], [2, 3]),
        (["--success=false"], [2]),
        (["--min_reward=0.5"], [2, 2, 3]),
        (["--min_reward=0.6", "--min_frames=3"], [3]),
    ):
        out = tmp_path / "_".join(flags)
        assert run("filter", root, f"--output={out}", *flags) == 0
        assert Source(out).meta.episodes.length.tolist() == lengths


def test_what_the_recorder_kept_says_how_episodes_ended(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("filter", root, "--success=true") == 2
    assert "does not say which episodes succeeded" in capsys.readouterr().err
    assert run("filter", root, "--min_reward=1") == 2
    assert "no column next.reward" in capsys.readouterr().err
    rows = [{"episode_index": 0, "success": False}, {"episode_index": 2, "success": True}]
    (root / "meta/smolact_recording.json").write_text(json.dumps({"episodes": rows}))
    for value, length in (("true", 5), ("false", 7)):
        assert run("filter", root, f"--success={value}", f"--output={tmp_path / value}") == 0
        assert Source(tmp_path / value).meta.episodes.length.tolist() == [length]


def test_without_output_the_result_takes_the_place_of_the_old(root: Path) -> None:
    (root / "README.md").write_text("mine")
    assert run("delete", root, "--episodes=[0]") == 0
    assert Source(root).meta.total_episodes == 2
    assert (root / "README.md").read_text() == "mine"
    assert [path.name for path in root.parent.iterdir()] == ["set"]


def test_repair_tells_in_numbers_what_it_found_and_did(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("repair", root, "--quick") == 0
    assert capsys.readouterr().out == f"{root}: whole, 3 episodes, 16 frames; nothing to do\n"
    path = root / "data/chunk-000/file-002.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    assert run("check", root, "--quick") == 1
    assert "smolact dataset repair" in capsys.readouterr().out
    assert run("repair", root, "--dry_run", "--quick") == 0
    shown = capsys.readouterr().out
    assert path.exists() and "nothing was changed" in shown
    assert run("repair", root, "--quick") == 0
    shown = capsys.readouterr().out
    assert "file-002.parquet is damaged" in shown
    assert "2 episodes are whole, 11 frames; 3 were counted (only its metadata written)" in shown
    assert re.search(r"put aside: 3 files, \d+\.\d kB in", shown) and f"in {root}/unfinished-001" in shown
    assert run("check", root, "--quick") == 0


def test_an_edit_puts_back_what_a_killed_one_had_moved(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root.rename(root.with_name("set.replaced"))
    assert run("check", root) == 1
    assert "smolact dataset repair" in capsys.readouterr().err
    assert run("delete", root, "--episodes=[0]", "--quick") == 0
    assert Source(root).meta.total_episodes == 2
    assert [path.name for path in root.parent.iterdir()] == ["set"]


def test_convert_without_a_version_makes_v30(root: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    assert run("convert", root, "--version=v2.1", f"--output={old}") == 0
    assert run("convert", old) == 0
    assert Source(old).meta.codebase_version == "v3.0"
    assert run("convert", old, "--cameras=image") == 0
    assert Source(old).meta.image_keys == Source(root).meta.video_keys


@pytest.mark.parametrize(
    ("command", "flags", "part"),
    [
        ("delete", [], "--episodes is missing"),
        ("delete", ["--episodes=[7]"], "There is no episode 7"),
        ("filter", [], "Which episodes?"),
        ("filter", ["--task=juggle"], "Nothing would be left"),
        ("rename-task", ["--old=Push"], "--new is missing"),
        ("remove-feature", ["--features=[acton]"], "Did you mean 'action'?"),
        ("convert", [], "is of version v3.0 already: there is nothing to convert. Give --version=v2.1"),
        ("convert", ["--cameras=video"], "all its cameras are stored as video"),
        ("convert", ["--version=v9"], "--version=v9"),
        ("split", ["--parts={../a: 0.5}", "--output=out"], "a folder's name"),
    ],
)
def test_edits_that_can_not_work_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str], command: str, flags: list[str], part: str
) -> None:
    assert run(command, root, *flags) == 2
    assert part in capsys.readouterr().err
    assert Source(root).meta.total_episodes == 3
