"""The study guide is true: names lead into the source, figures are those of the code, every setting has its row."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from smolact.backbones.presets import PRESETS, PRESETS_WITH_WEIGHTS
from smolact.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GUIDE = [
    DOCS / "models.md",
    DOCS / "modify.md",
    DOCS / "language.md",
    DOCS / "language.zh.md",
    DOCS / "examples.md",
    DOCS / "index.md",
]
PAGES = [*GUIDE, DOCS / "reliability.md", *sorted(DOCS.glob("learn/*.md")), *sorted(DOCS.glob("use/*.md"))]
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts/site"))
    monkeypatch.syspath_prepend(str(ROOT / "scripts/guide"))


def module(name: str) -> ModuleType:
    found = importlib.import_module(name)
    assert Path(found.__file__ or "").is_relative_to(ROOT / "scripts"), sys.path
    return found


@by_page
def test_names_lead_into_the_source(page: Path) -> None:
    symbols = module("symbols")
    lost = [
        text
        for text in symbols.spans(page.read_text(encoding="utf-8"))
        if symbols.looks_like_a_name(text) and not symbols.find(text) and not text.startswith("outputs/")
    ]
    assert not lost, f"{page.name} names what is not there, or what several things are called: {lost}"


def test_a_name_that_is_not_there_is_found_out() -> None:
    symbols = module("symbols")
    for text in ("policies/smolvla/nothing.py", "SmolVLAConfig.nothing", "nothing_at_all()"):
        assert symbols.looks_like_a_name(text) and symbols.find(text) is None
    place = symbols.find("SmolVLAConfig.chunk_size")
    assert "chunk_size" in place.path.read_text(encoding="utf-8").splitlines()[place.line - 1]


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith(("reference/", "../reference/")):
            assert (page.parent / target).exists(), target


def test_every_command_has_its_settings_in_the_reference() -> None:
    reference = module("reference")
    shown = [name for _, names in reference.COMMAND_PAGES.values() for name in names]
    assert sorted(shown) == sorted(COMMANDS)


def test_settings_in_the_reference_are_those_of_the_code() -> None:
    reference = module("reference")
    page = reference._policy("smolvla")
    assert "| `--policy.chunk_size` | `50` | integer | actions that are predicted at once |" in page
    train = reference._command(reference.leaves("train")[0])
    assert "`--batch_size` | `8` | integer" in train and "usage" not in train


def test_the_figures_of_a_change_are_those_of_the_code() -> None:
    modify = module("modify")
    page = (DOCS / "modify.md").read_text(encoding="utf-8")
    for name, change in (("layers", {"num_vlm_layers": 12}), ("batch", {"batch_size": 64})):
        table = page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]
        row = next(line for line in table.splitlines() if line.startswith(f"| {modify.flags(change)} "))
        assert [cell.strip(" *") for cell in row.split("|")[2:-1]] == modify.row(change)[1:]


def test_the_figures_of_a_model_are_those_of_the_code() -> None:
    models = module("models")
    rows = (DOCS / "models.md").read_text(encoding="utf-8").splitlines()
    for model in models.MODELS:
        (line,) = [line for line in rows if line.startswith(f"| {model.typed} |")]
        assert [cell.strip(" ") for cell in line.split("|")[1:-1]] == models.row(model)


def test_the_presets_of_the_models_page_are_those_of_the_code() -> None:
    table = (
        (DOCS / "models.md").read_text(encoding="utf-8").split("## The presets")[1].split("## Which one")[0]
    )
    rows = [line.split("|")[1:3] for line in table.splitlines() if re.match("[|] `[^-]", line)]
    named = {name: weights for names, weights in rows for name in re.findall(r"`([^`/]+)`", names)}
    assert set(named) == set(PRESETS)
    assert {name for name in named if "random" not in named[name]} == set(PRESETS_WITH_WEIGHTS)


def test_every_change_of_the_guide_has_a_table() -> None:
    page = (DOCS / "modify.md").read_text(encoding="utf-8")
    for name in module("modify").CHANGES:
        assert len(page.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0]) > 100, name


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        assert f": {page.relative_to(DOCS).as_posix()}\n" in navigation
