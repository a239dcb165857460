"""Pages from templates: what is text stays text, and what is missing is an error."""

from __future__ import annotations

import subprocess
import sys

import pytest
from jinja2 import UndefinedError

from smolact.pages import render
from tests.pages import Page


def test_a_value_is_text_and_not_markup() -> None:
    page = render("curves.html.jinja", drawings={"<b>'\"&": "<svg></svg>"})
    assert "<b>" not in page and "<svg></svg>" in page
    Page(page)


def test_a_page_lacks_nothing_and_a_card_may() -> None:
    with pytest.raises(UndefinedError, match="drawings"):
        render("curves.html.jinja")
    assert "{{" not in render("policy_card.md.jinja", title="<b>", config={"type": "smolvla"}, evaluations=[])


def test_what_can_write_pages_loads_no_templates_before_it_does() -> None:
    modules = "smolact.cards, smolact.evaluation.report, smolact.training.report, smolact.datasets.viz"
    code = f"import sys, {modules}; print('jinja2' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
