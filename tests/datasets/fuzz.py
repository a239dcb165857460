"""Datasets that are damaged at random: each must be a named error, or a dataset. Used by the suite and scripts/torture."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np

from smolact.datasets import edit
from smolact.datasets.inspection import check_dataset
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from smolact.errors import SmolactError

SEEDS = tuple(Path(__file__).parent.parent / f"parity/data/dataset_{version}" for version in ("v21", "v30"))


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, some bytes changed, or a piece replaced by one of another length."""
    kind, changed = rng.integers(3), bytearray(content)
    place = int(rng.integers(len(changed)))
    if kind == 0:
        return content[:place]
    if kind == 1:
        for number in rng.integers(len(changed), size=rng.integers(1, 8)):
            changed[number] = rng.integers(256)
    else:
        changed[place : place + int(rng.integers(1, 20))] = rng.bytes(int(rng.integers(0, 20)))
    return bytes(changed)


def run_case(seed: int, folder: Path) -> float:
    """Damage a dataset, check it, and every other time make it anew; the seconds that took.

    Anything but a `SmolactError` comes through.
    """
    rng, root, output = np.random.default_rng(seed), folder / "damaged", folder / "made"
    for path in (root, output):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(SEEDS[seed % 2], root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    path = files[rng.integers(len(files))]
    path.write_bytes(damage(path.read_bytes(), rng))
    begun = time.monotonic()
    for fault in check_dataset(root):
        assert fault.place and fault.message
    if seed % 4 < 2:
        try:
            build(edit.whole(Source(root)), output, quick=True)
        except SmolactError as error:
            assert str(error)
            assert not output.exists()
    return time.monotonic() - begun
