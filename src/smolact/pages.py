"""Self-contained HTML pages and Markdown cards, made from the templates in `templates/`."""

from __future__ import annotations

import platform
import shlex
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

PACKAGES = ("smolact", "torch", "accelerate", "numpy", "av")


@cache
def _environment(is_html: bool) -> Environment:
    from jinja2 import ChainableUndefined, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("smolact"),
        autoescape=is_html,
        undefined=StrictUndefined if is_html else ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["format"] = format
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def render(template: str, **values: Any) -> str:
    """Return the text of a page or card.

    Args:
        template: the file in `smolact/templates`. In `NAME.html.jinja` every value is escaped and must be given;
            in `NAME.md.jinja` nothing is escaped, and what is not given is empty.
    """
    return _environment(template.endswith(".html.jinja")).get_template(template).render(values)


def data_uri(data: bytes, kind: str) -> str:
    """Return a file as a data URI; `kind` is its media type, such as `image/png`."""
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings by dotted name, as in flags."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat_settings(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def command_and_versions() -> dict[str, str]:
    """Return this process's command and package versions, without host or user names."""
    versions = [
        f"Python {platform.python_version()}",
        *(f"{name} {found}" for name in PACKAGES if (found := installed_version(name))),
    ]
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {"command": shlex.join(command), "versions": ", ".join(versions)}


def installed_version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
