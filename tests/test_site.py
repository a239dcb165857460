"""The guide as a site, as `scripts/docs` builds it, opened from a disk: it can be searched, and fits its window."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser, chromium

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="needs mkdocs: scripts/docs installs it"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", f"--site-dir={folder}"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
    )
    return folder


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path) as found:
        yield found


def pages(site: Path) -> list[Path]:
    return [page for page in sorted(site.rglob("*.html")) if page.relative_to(site).parts[0] != "source"]


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in pages(site):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe)[^>]* src="(?:https?:)?//[^"]*"', text), page
        assert not re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*href="(?:https?:)?//', text), (
            page
        )


def test_no_table_begins_with_an_empty_row(site: Path) -> None:
    heads = [
        head
        for page in pages(site)
        for head in re.findall(r"<thead>.*?</thead>", page.read_text(), re.DOTALL)
    ]
    assert len(heads) > 100
    assert all(re.sub(r"<[^>]+>|\s", "", head) for head in heads)


def test_a_flag_is_not_broken_behind_its_dashes(site: Path) -> None:
    page = (site / "use/simulation.html").read_text(encoding="utf-8")
    (command,) = re.findall(r'<div class="language-bash highlight">[^\n]*record.*?</div>', page, re.DOTALL)[
        :1
    ]
    assert '<span class="whole">--robot.type</span>' in command
    assert '<span class="whole">--teleop.</span><wbr>type=<wbr>keyboard' in page


def test_a_notebook_is_a_page(site: Path) -> None:
    page = (site / "source/examples/first_policy.ipynb.html").read_text(encoding="utf-8")
    assert "A first policy" in page and "cell_type" not in page


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_the_site_can_be_searched_from_a_disk(site: Path, browser: Browser) -> None:
    browser.open(site / "use/simulation.html")
    browser.run("document.querySelector('.md-search__input').focus()")
    assert browser.run("document.querySelector('.md-search__input').getBoundingClientRect().width") > 100
    browser.until("typeof __index === 'object'")
    browser.run(
        "(input => { input.value = 'flow matching'; input.dispatchEvent(new KeyboardEvent('keyup', {bubbles: true})); })"
        "(document.querySelector('.md-search__input'))"
    )
    browser.until("document.querySelector('.md-search-result__item a')")
    found = browser.run("document.querySelector('.md-search-result__item a').href")
    assert "learn/flow_matching.html" in found
    assert not browser.complaints
    assert all(address.startswith(("file:", "data:")) for address in browser.requests)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("width", [1280, 480])
def test_no_page_is_wider_than_its_window_and_commands_fit_into_it(
    site: Path, browser: Browser, width: int
) -> None:
    for page in pages(site):
        browser.open(page, width)
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), page
        cut = browser.run(
            "[...document.querySelectorAll('.language-bash pre > code')].filter(code => code.scrollWidth > code.clientWidth + 1)"
            ".map(code => code.innerText)"
        )
        assert not cut, page
