"""What MkDocs does besides: names of ours lead into the source, and pages of the reference are made from the code."""

from __future__ import annotations

import json
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
LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")
OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(r"(<a [^>]*>)?<code>([^<]+)</code>")
EMPTY_HEAD = re.compile(r"<thead>\s*<tr>(?:\s*<th[^>]*></th>)+\s*</tr>\s*</thead>\s*")
COMMANDS = re.compile(r'<div class="language-(?:bash|console|shell) highlight">.*?</div>', re.DOTALL)
FLAG = re.compile(r"(?<![\w-])--\w[\w.]*")
WHOLE = '<span class="whole">{}</span>'
"""What is not broken at the end of a line: browsers would do so behind the dashes of a flag."""
PIECES = re.compile(r"\s+|[^\s._=/,]*[._=/,]+|[^\s._=/,]+")
"""Of a piece of code, which may go on in the next line behind each of them."""


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
    """Names in the sentences lead to the line where they are made; tables without titles have no row for them."""
    if page.file.src_uri.startswith(SOURCE):
        return html

    def linked(match: re.Match[str]) -> str:
        place = None if match[1] else symbols.find(match[2])
        target = files.get_file_from_path(_uri(place.path)) if place else None
        code = f"<code>{_breakable(match[2])}</code>"
        if place is None or target is None:
            return (match[1] or "") + code
        line = f"#__codelineno-0-{place.line}" if place.line else ""
        url = target.url_relative_to(page.file)
        return f'<a class="source" href="{url}{line}">{code}</a>'

    html = COMMANDS.sub(lambda match: FLAG.sub(lambda flag: WHOLE.format(flag[0]), match[0]), html)
    return EMPTY_HEAD.sub("", CODE.sub(linked, html))


def _breakable(code: str) -> str:
    pieces = [WHOLE.format(one) if "-" in one else one for one in PIECES.findall(code)]
    return "<wbr>".join(pieces)


def _is_outside(path: Path) -> bool:
    return path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "docs")


def _uri(path: Path) -> str:
    return f"{SOURCE}/{path.relative_to(ROOT).as_posix()}.md"


def _as_page(path: Path) -> str:
    name, text = path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")
    front = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n  - footer\n---\n"
    if len(text) > LARGEST:
        return f"{front}\n# {path.name}\n\n`{name}`, {len(text):,} bytes: too large to show here.\n"
    if path.suffix == ".ipynb":
        return front + "\n" + _notebook(text)
    language = LANGUAGES.get(path.suffix, "bash")
    return f'{front}\n# {path.name}\n\n`````{language} title="{name}" linenums="1"\n{text}\n`````\n'


def _notebook(text: str) -> str:
    """The cells of a notebook; links of its sentences lead from its folder, and are left out here."""
    parts = []
    for cell in json.loads(text)["cells"]:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"`````python\n{source}\n`````" if is_code else LINK.sub(r"\1", source))
    return "\n\n".join(parts) + "\n"
