"""Installs a distribution of examples/ into a folder, without the network: its modules, and the metadata that pip would write."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.documents import ROOT

PREFIX = "project.entry-points."


def install(project: Path, site: Path) -> Path:
    """Copy a project's modules beside a `.dist-info` with its entry points; returns `site`."""
    parsed = configparser.ConfigParser(delimiters=["="])
    parsed.optionxform = str  # type: ignore[assignment]
    parsed.read(project / "pyproject.toml")
    name, version = (parsed["project"][key].strip('"') for key in ("name", "version"))
    for path in project.iterdir():
        if path.is_dir() and path.name != "__pycache__":
            shutil.copytree(path, site / path.name, dirs_exist_ok=True)
        elif path.suffix == ".py":
            site.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, site)
    groups = {
        section.removeprefix(PREFIX).strip('"'): {
            key: value.strip('"') for key, value in parsed[section].items()
        }
        for section in parsed.sections()
        if section.startswith(PREFIX)
    }
    write_metadata(site, name, version, groups)
    return site


def write_metadata(site: Path, name: str, version: str, groups: dict[str, dict[str, str]]) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines) + "\n")


def smolact(
    site: Path, *argv: str, cwd: Path | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a command with the distributions in `site` installed, and check its exit status."""
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "smolact", *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == code, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def example(name: str, site: Path) -> Path:
    """Install `examples/NAME` into `site`; returns `site`."""
    return install(ROOT / "examples" / name, site)
