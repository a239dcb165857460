"""What MkDocs does besides: names of ours lead into the source, and pages of the reference are made from the code."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))

import reference
import symbols

ROOT = symbols.ROOT
SOURCE = "source"
LARGEST = 100_000
"""Bytes of a file that is shown as a page."""
LANGUAGES = {
    ".py": "python",
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".toml": "toml",
    ".md": "markdown",
}
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"(<a [^>]*>)?<code>([^<]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the reference, and one for each file that a page names."""
    for name, text in reference.pages():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    wanted: set[Path] = set()
    for file in files.documentation_pages():
        text = file.content_string
        wanted |= {place.path for span in symbols.spans(text) if (place := symbols.find(span))}
        base = (ROOT / "docs" / file.src_uri).parent
        wanted |= {
            path
            for link in OUTSIDE.findall(text)
            if (path := (base / link).resolve()).is_file() and _is_outside(path)
        }
    for path in sorted(wanted):
        files.append(File.generated(config, _uri(path), content=_as_page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links to files of this repository that are no pages lead to their copies here."""
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def turned(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if not _is_outside(path) or not path.is_file():
            return match[0]  # MkDocs says what is wrong with it
        here = Path("docs") / Path(page.file.src_uri).parent
        return f"]({os.path.relpath(Path('docs') / _uri(path), here)})"

    return OUTSIDE.sub(turned, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Names in the sentences lead to the line where they are made."""
    if page.file.src_uri.startswith(SOURCE):
        return html

    def linked(match: re.Match[str]) -> str:
        place = None if match[1] else symbols.find(match[2])
        target = files.get_file_from_path(_uri(place.path)) if place else None
        if place is None or target is None:
            return match[0]
        line = f"#__codelineno-0-{place.line}" if place.line else ""
        url = target.url_relative_to(page.file)
        return f'<a class="source" href="{url}{line}"><code>{match[2]}</code></a>'

    return CODE.sub(linked, html)


def _is_outside(path: Path) -> bool:
    return path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")


def _uri(path: Path) -> str:
    return f"{SOURCE}/{path.relative_to(ROOT).as_posix()}.md"


def _as_page(path: Path) -> str:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    front = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n  - footer\n---\n"
    if len(text) > LARGEST:
        return f"{front}\n# {path.name}\n\n`{name}`, {len(text):,} bytes: too large to show here.\n"
    language = LANGUAGES.get(path.suffix, "bash")
    return f'{front}\n# {path.name}\n\n`````{language} title="{name}" linenums="1"\n{text}\n`````\n'
