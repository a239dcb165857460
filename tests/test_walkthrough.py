"""All pages can be typed one after the other in one folder: nothing is written twice, nothing is missing, each page says what it needs."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

from tests.documents import ROOT, commands, in_order, read
from tests.walkthrough import FIRST_STEPS, NEED, TRANSLATED, Walk, pieces, the_walk, walk

TYPED = [page for page in in_order() if any(piece.language in ("bash", "console") for piece in pieces(page))]


@functools.cache
def walked() -> Walk:
    return walk(the_walk())


def test_no_command_meets_what_an_earlier_one_left_or_misses_what_it_needs() -> None:
    assert not walked().problems


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("smolact record --dataset.repo_id=me/a\nsmolact record --dataset.repo_id=me/a", "outputs/datasets/me/a is there"),
        ("scripts/demo\nsmolact demo --minutes=1", "outputs/demo is there"),
        ("smolact convert me/x --output=outputs/a/b", "nothing made outputs/datasets/me/x"),
        ("scripts/demo\nsmolact eval --policy.path=outputs/demo/train --output_dir=outputs/demo/eval", "is there"),
        ("smolact train --output_dir=outputs/a\nsmolact eval --policy.path=outputs/b", "nothing made outputs/b"),
        ("smolact train --output_dir=outputs/a\nsmolact train --output_dir=outputs/a \\\n --steps=9", "is there"),
        ("smolact eval --policy.path=my_user/p --compare='[outputs/a, B]'", "nothing made outputs/a"),
        ("smolact doctor outputs/a --with=DATASET", "nothing made outputs/a"),
        ("(umask 077; openssl rand -hex 32 > token)\nsmolact serve --token-file=tokens", "nothing made tokens"),
        ("smolact serve --policy.path=here", "nothing made here"),
    ],
)  # fmt: skip
def test_a_collision_and_a_gap_are_seen(tmp_path: Path, text: str, problem: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"```bash\n{text}\n```\n")
    (said,) = walk([page]).problems
    assert problem in said


def test_what_goes_on_or_asks_first_is_no_collision(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```bash\nscripts/demo\n[ -e outputs/demo/report.html ] || scripts/demo\n"
        "smolact train --resume=true --output_dir=outputs/demo/train\nsmolact eval --policy.path=CHECKPOINT\n```\n"
    )
    assert not walk([page]).problems


@pytest.mark.parametrize("page", TYPED, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_says_before_its_first_command_what_it_needs(page: Path) -> None:
    text = read(page)
    if page in FIRST_STEPS:
        assert "source .venv/bin/activate" in text
        return
    lines = [part for part in text.split("\n\n") if part.startswith(NEED)]
    assert len(lines) == 1, f"{page.name}: expected one line that begins with **You need**"
    assert "`.venv`" in lines[0]
    first = next(piece for piece in pieces(page) if piece.language in ("bash", "console"))
    assert text.index(lines[0]) < first.start
    linked = {(page.parent / target).resolve() for target in re.findall(r"\]\(([^)#]+)[^)]*\)", lines[0])}
    assert ROOT / "docs/index.md" in linked
    for makers in walked().needs.get(page, []):
        assert makers & linked, f"{page.name} does not link to a page that makes what it reads: {makers}"


@pytest.mark.parametrize("page", TRANSLATED, ids=lambda page: page.name)
def test_a_translation_shows_the_same_commands(page: Path) -> None:
    assert list(commands(page)) == list(commands(TRANSLATED[page]))
