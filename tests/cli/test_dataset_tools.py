"""The dataset tools as a user types them."""

from __future__ import annotations

from pathlib import Path

import pytest

from smolact.cli.main import main
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
