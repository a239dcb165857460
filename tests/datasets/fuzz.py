"""Datasets that are damaged at random: each must be a named error, or a dataset. Used by the suite and scripts/torture.

A `Bench` keeps small whole datasets. A case damages one file of one of them (or its JSON, its tables, its names), looks at
it by one of the ways in which datasets are opened, and puts the file back. While it looks, nothing outside the folder may
be opened, nothing imported, run, or connected to.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from smolact.datasets import edit
from smolact.datasets.inspection import check_dataset
from smolact.datasets.reader import LeRobotDataset
from smolact.datasets.repair import repair
from smolact.datasets.rewrite import build
from smolact.datasets.sources import Source
from smolact.datasets.writer import DatasetWriter
from smolact.errors import SmolactError
from tests.datasets.make import write

Rng = np.random.Generator

WEIRD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**70, -(2**63), 0.5, math.nan, math.inf, 1e308, "", " ", "x", "\0", "é" * 99),
    *([], {}, [[]], [None], {"a": 1}, ["a"] * 9, "v3.0", "v2.1", "v9", [32, 48, 3], [3, 32, 48], [0], [10**9] * 3),
    *("../outside.parquet", "/etc/passwd", "data/../../outside.parquet", "..\\..\\x", "C:\\x", "{0}", "{x.y}", "{chunk_index}"),
    *("../../outside/{chunk_index}", "video", "image", "float32", "string", "object", "int64", "bool", "float16"),
)  # fmt: skip
FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.",
    "ctypes.",
)


@dataclasses.dataclass
class Result:
    """What became of a case."""

    what: str
    named: bool
    seconds: float

    @property
    def became(self) -> str:
        """What a case may come to; anything else came through as an error of its own."""
        return "a named error" if self.named else "a dataset, or a list of its faults"


class Bench:
    """The whole datasets, and where they are damaged; `folder` should lie in memory, where the system has such a place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.here, self.made = folder, folder / "here", folder / "made/new"
        self.made.parent.mkdir()
        v30 = {
            kind: write(folder / f"v30_{kind}", (2, 3), kind, video_codec="h264")
            for kind in ("image", "video")
        }
        joined = build(edit.all_episodes(Source(v30["video"])), folder / "v30_joined", quick=True)
        old = [dataclasses.replace(edit.all_episodes(Source(root)), version="v2.1") for root in v30.values()]
        v21 = [build(plan, folder / f"v21_{number}", quick=True) for number, plan in enumerate(old)]
        self.seeds = [*v30.values(), joined, *v21]
        self.here.mkdir()
        self.roots = [Path(shutil.copytree(seed, self.here / seed.name)) for seed in self.seeds]
        self.paths: list[tuple[list[Path], list[Path]]] = []
        for root in self.roots:
            paths = sorted(path for path in root.rglob("*") if path.is_file())
            self.paths.append((paths, [path for path in paths if "meta" in path.parts]))
        (self.here / "outside").mkdir()
        shutil.copyfile(next(v30["image"].rglob("data/*/*.parquet")), self.here / "outside.parquet")
        for root in self.roots:  # what is imported or made at the first use is no case's doing
            for way in WAYS.values():
                with contextlib.suppress(SmolactError):  # not every way is for every version
                    way(root, self.made)
                self._put_back(root)

    def run_case(self, seed: int) -> Result:
        """Anything but a `SmolactError` comes through, and so does a file outside."""
        rng = np.random.default_rng(seed)
        number = int(rng.integers(len(self.roots)))
        root = self.roots[number]
        paths, described = self.paths[number]
        chosen = described if rng.random() < 0.5 else paths
        path = chosen[rng.integers(len(chosen))]
        kind = str(rng.choice([name for name, (suffixes, _) in DAMAGES.items() if path.suffix in suffixes]))
        DAMAGES[kind][1](path, rng)
        if kind == "removed" and rng.random() < 0.2:
            path.symlink_to(self.here / "outside.parquet")
        pictures = path.suffix == ".mp4" or (path.suffix == ".parquet" and "data" in path.parts)
        names = [*["check"] * 6, *["read"] * 3, "build", "dry", "resume"]
        way = str(rng.choice(names)) if pictures or rng.random() > 0.5 else "quick"
        if path.is_symlink():  # its owner's doing: reading follows it, checking tells and does not
            way = str(rng.choice(["check", "quick", "dry"]))
        begun, named = time.process_time(), False
        try:
            with watching(root, self.made):
                WAYS[way](root, self.made)
        except SmolactError as error:
            named = bool(str(error))
            assert named
        seconds = time.process_time() - begun
        if way == "resume":
            self._put_back(root)
        elif (
            path.is_symlink()
            or not path.is_file()
            or path.read_bytes() != (self.seeds[number] / path.relative_to(root)).read_bytes()
        ):
            path.unlink(missing_ok=True)
            shutil.copyfile(self.seeds[number] / path.relative_to(root), path)
        shutil.rmtree(self.made, ignore_errors=True)
        return Result(f"{root.name}: {kind} of {path.relative_to(root)}, {way}", named, seconds)

    def _put_back(self, root: Path) -> None:
        shutil.rmtree(self.made, ignore_errors=True)
        shutil.rmtree(root)
        shutil.copytree(self.seeds[self.roots.index(root)], root)


def _check(root: Path, made: Path) -> None:
    for fault in check_dataset(root):
        assert fault.location and fault.message


def _quick(root: Path, made: Path) -> None:
    for fault in check_dataset(root, quick=True):
        assert fault.location and fault.message


def _read(root: Path, made: Path) -> None:
    dataset = LeRobotDataset(root, delta_timestamps={"action": [-0.1, 0.0, 0.1]})
    for index in {0, len(dataset) // 2, len(dataset) - 1}:
        dataset[index]


def _build(root: Path, made: Path) -> None:
    try:
        build(edit.all_episodes(Source(root)), made, quick=True)
    except SmolactError:
        assert not made.exists()
        raise


def _dry(root: Path, made: Path) -> None:
    repair(root, dry_run=True)


def _resume(root: Path, made: Path) -> None:
    DatasetWriter.resume(root).close()


WAYS: dict[str, Callable[[Path, Path], None]] = {
    "check": _check,
    "quick": _quick,
    "read": _read,
    "build": _build,
    "dry": _dry,
    "resume": _resume,
}


def cut_off(path: Path, rng: Rng) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.integers(len(content))])


def change_bytes(path: Path, rng: Rng) -> None:
    changed = bytearray(path.read_bytes())
    for number in rng.integers(len(changed), size=rng.integers(1, 8)):
        changed[number] = rng.integers(256)
    path.write_bytes(changed)


def change_piece(path: Path, rng: Rng) -> None:
    changed = bytearray(path.read_bytes())
    place = int(rng.integers(len(changed)))
    changed[place : place + int(rng.integers(1, 20))] = rng.bytes(int(rng.integers(0, 20)))
    path.write_bytes(changed)


def remove(path: Path, rng: Rng) -> None:
    path.unlink()


def change_json(path: Path, rng: Rng) -> None:
    """Another value, another key, or a value of one place at another, in a document or in one of its lines."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = int(rng.integers(len(lines)))
    value = json.loads(lines[number])
    for _ in range(rng.integers(1, 3)):
        places = list(_places(value))
        inside, key = places[rng.integers(len(places))]
        weird = copy.deepcopy(WEIRD[rng.integers(len(WEIRD))])  # the next change may be inside of it
        kind = rng.integers(4)
        if kind == 0:
            del inside[key]
        elif kind == 1 and isinstance(inside, dict):
            inside[str(weird)] = inside.pop(key)
        elif kind == 2:
            other, name = places[rng.integers(len(places))]
            with contextlib.suppress(KeyError, IndexError):
                inside[key] = json.loads(json.dumps(other[name]))
        else:
            inside[key] = weird
        if not any(True for _ in _places(value)):
            break
    lines[number] = json.dumps(value)
    if path.suffix == ".jsonl" and rng.random() < 0.2:
        lines.insert(int(rng.integers(len(lines) + 1)), lines[number])
    path.write_text("\n".join(lines) + "\n")


def change_table(path: Path, rng: Rng) -> None:
    """Another column, cell, type, order or number of rows."""
    table = pq.read_table(path)
    name = str(rng.choice(table.column_names))
    place, kind = table.column_names.index(name), rng.integers(6)
    values = table.column(name).to_pylist()
    if kind == 0:
        table = table.drop_columns([name])
    elif kind == 1:
        table = table.slice(0, int(rng.integers(table.num_rows + 1)))
    elif kind == 2:
        table = table.take(rng.integers(table.num_rows, size=rng.integers(1, table.num_rows + 3)))
    elif kind == 3:
        other = str(rng.choice(table.column_names))
        table = table.set_column(place, name, table.column(other))
    else:
        weird = copy.deepcopy(WEIRD[rng.integers(len(WEIRD))])  # the next change may be inside of it
        row = int(rng.integers(len(values)))
        if isinstance(values[row], list) and values[row] and rng.random() < 0.5:
            values[row] = [*values[row][:-1], weird]
        elif isinstance(values[row], dict) and rng.random() < 0.5:
            values[row] = {**values[row], "bytes": None if rng.random() < 0.3 else rng.bytes(20)}
        else:
            values[row] = weird
        if kind == 5:
            values = [values[row]] * len(values)
        with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
            table = table.set_column(place, name, pa.array(values))
    with contextlib.suppress(
        pa.ArrowException
    ):  # not all that Arrow has can be written; then the file is cut off
        pq.write_table(table, path)


EVERY = (".parquet", ".json", ".jsonl", ".mp4")
DAMAGES: dict[str, tuple[tuple[str, ...], Callable[[Path, Rng], None]]] = {
    "cut off": (EVERY, cut_off),
    "bytes changed": (EVERY, change_bytes),
    "piece changed": (EVERY, change_piece),
    "removed": (EVERY, remove),
    "JSON changed": ((".json", ".jsonl"), change_json),
    "more JSON changed": ((".json", ".jsonl"), change_json),
    "table changed": ((".parquet",), change_table),
    "more of a table changed": ((".parquet",), change_table),
}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value, with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


_WATCH: list[tuple[Path, ...]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCH:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes, Path)):
        _must_be_inside(arguments[0])
    elif event.startswith(FORBIDDEN):
        inside, _WATCH[:] = list(_WATCH), []
        try:
            raise AssertionError(f"a dataset made us {event} {arguments!r:.200}")
        finally:
            _WATCH[:] = inside


def _must_be_inside(path: Any) -> None:
    folders, found = _WATCH[-1], Path(os.fsdecode(path)).resolve()
    if not Path(os.fsdecode(path)).is_absolute() and ".." not in Path(os.fsdecode(path)).parts:
        return  # in a folder that is open already: `shutil.rmtree` goes that way
    if not any(found.is_relative_to(folder) for folder in folders) and found.parts[1:2] != ("proc",):
        raise AssertionError(f"{found} was opened, which is outside of {folders[0]}")


def _guarded(real: Callable[..., Any]) -> Callable[..., Any]:
    def stand_in(path: Any, *arguments: Any, **options: Any) -> Any:
        if _WATCH and isinstance(path, (str, Path)):
            _must_be_inside(path)
        return real(path, *arguments, **options)

    return stand_in


@contextlib.contextmanager
def watching(root: Path, made: Path) -> Iterator[None]:
    """Within the block nothing may be opened but below `root`, or in what is being made; nor imported, run, connected to."""
    if not hasattr(sys, "_smolact_fuzz"):
        sys.addaudithook(_audit)
        sys._smolact_fuzz = True  # type: ignore[attr-defined]
    # PyArrow and FFmpeg open files by themselves, which no hook hears.
    parquet, video = pq.ParquetFile, av.open
    _WATCH.append((root.resolve(), made.resolve().parent))
    pq.ParquetFile, av.open = _guarded(parquet), _guarded(video)
    try:
        yield
    finally:
        pq.ParquetFile, av.open = parquet, video
        _WATCH.pop()
