"""The notebook in examples/ runs from its first cell to its last, and is committed without what it showed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "examples/first_policy.ipynb"
SIZES = "EPISODES, STEPS, TRIALS = 200, 200, 20"
SMALL = "EPISODES, STEPS, TRIALS = 12, 3, 2"


def cells(kind: str) -> list[dict[str, Any]]:
    found = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def test_the_notebook_is_committed_without_outputs() -> None:
    for cell in cells("code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None


def test_links_of_the_notebook_lead_somewhere() -> None:
    text = "".join(line for cell in cells("markdown") for line in cell["source"])
    assert (NOTEBOOK.parent / "../docs/modify.md").exists() and "](../docs/modify.md)" in text
    assert "examples/first_policy.ipynb" in text


def test_the_notebook_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own code with smaller sizes, which are in one place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    sources = ["".join(cell["source"]) for cell in cells("code")]
    assert sum(source.count(SIZES) for source in sources) == 1
    world: dict[str, Any] = {"__name__": "notebook"}
    for number, source in enumerate(sources):
        exec(compile(source.replace(SIZES, SMALL), f"{NOTEBOOK.name}, code cell {number + 1}", "exec"), world)
    assert len(world["result"].results) == 2
    assert world["predicted"].shape == (8, 2) and world["predicted"].isfinite().all()
    assert "success " in capsys.readouterr().out
    (made,) = (tmp_path / "outputs/notebook").iterdir()
    assert sorted(path.name for path in made.iterdir()) == ["dataset", "train"]
