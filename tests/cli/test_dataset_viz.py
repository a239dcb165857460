"""`smolact dataset viz` as a user types it."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from smolact.cli.dataset_viz import chosen_episodes
from smolact.cli.main import main
from smolact.datasets.viz_rerun import check_screen
from smolact.errors import ConfigError
from tests.datasets import make


def viz(root: Path, *flags: str) -> int:
    return main(["dataset", "viz", f"--dataset.root={root}", *flags])


def test_it_writes_a_page_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make.write(tmp_path / "set", dtype="image")
    assert viz(root, "--html", "--episodes=1:3", f"--output={tmp_path / 'page.html'}") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'} (2 of 3 episodes; others: --episodes)\n"
    assert viz(root, "--html", f"--output={tmp_path / 'folder'}") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'folder/index.html'}\n"
    assert len(list((tmp_path / "folder/films").iterdir())) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3", [3]),
        (":2", [0, 1]),
        ("3:", [3, 4]),
        ("1,3:99", [1, 3, 4]),
        ("[0, 0:2]", [0, 1]),
        (":", [0, 1, 2, 3, 4]),
    ],
)
def test_episodes_are_numbers_and_ranges(text: str, expected: list[int]) -> None:
    assert chosen_episodes(text, 5) == expected


@pytest.mark.parametrize("text", ["", "a", "5", "3:3", "1-2", "-1", "7:9"])
def test_other_episodes_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--episodes="):
        chosen_episodes(text, 5)


def test_without_rerun_the_error_names_the_extra_and_html(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert viz(tmp_path / "none") == 1
    shown = capsys.readouterr().err
    assert "smolact[viz]" in shown and "--html" in shown
    assert viz(tmp_path / "none", "--output=page.html") == 2
    assert "add --html" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_without_a_screen_it_says_what_to_do_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", types.ModuleType("rerun"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert viz(make.write(tmp_path / "set", (2,), dtype="image")) == 1
    shown = capsys.readouterr().err
    assert "needs a screen" in shown and "--output=NAME.rrd" in shown
    monkeypatch.setenv("DISPLAY", ":0")
    check_screen("")


def test_rerun_gets_every_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rerun = pytest.importorskip("rerun", reason="needs rerun-sdk")
    root = make.write(tmp_path / "set", dtype="image")
    assert viz(root, "--episodes=:", f"--output={tmp_path / 'set.rrd'}") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'set.rrd'}\n"
    assert rerun is not None and (tmp_path / "set.rrd").stat().st_size > 5000
