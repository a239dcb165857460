"""The benchmarks that know a GPU run on tiny models on a CPU, and say what they found, what they left out, and what failed."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
ROW = {"median_seconds", "spread", "median_busy_seconds", "ready_after_seconds", "differences", "times_base"}
FLAGS = {
    "replan": ["--preset=tiny", "--batch=1", "--without-lerobot"],
    "training_step": ["--preset=tiny", "--samples=2", "--checkpointing", "--without-lerobot"],
    "answers": ["--vlm=tiny", "--tokens=4", "--answers=2", "--batch=2", "--padded=80"],
}
GROUPS = {
    "replan": {
        "batch 1": {"policy, float32", "engine, float32", "engine, float32, act alone", "engine, int8"},
    },
    "training_step": {
        "a step of 2 samples": {
            "smolact, float32",
            "smolact, float32, kept tokens",
            "smolact, float32, checkpointing",
        }
    },
    "answers": {
        "a token after the first, a prompt of 64 tokens, batch 2": {
            "smolact, float32",
            "transformers, float32",
        },
        "a training step, a prompt of 64 tokens, batch 2": {
            "smolact, float32",
            "transformers, float32",
            "transformers, float32, padded to 80",
        },
    },
}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.mark.parametrize("name", FLAGS)
def test_a_benchmark_measures_each_side(
    name: str,
    benchmark: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "answers":
        pytest.importorskip("transformers")
    output, profile = tmp_path / "found.json", tmp_path / "profile.txt"
    flags = [*FLAGS[name], "--repeats=1", "--threads=1", f"--output={output}"]
    if name == "training_step":  # it takes as long as all the rest
        flags.append(f"--profile={profile}")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *flags])
    with pytest.raises(SystemExit) as ended:
        benchmark(name).main()
    assert not ended.value.code
    record = json.loads(output.read_text())
    assert {"command", "machine", "device", "versions", "threads", "failed", "left_out"} <= record.keys()
    assert str(tmp_path) not in output.read_text()  # figures are published, and folders are not
    assert not record["failed"]
    for group, sides in GROUPS[name].items():
        rows = record["figures"][group]
        # What is measured once is measured in the precision that this processor is quick in.
        assert sides <= rows.keys() | {side.replace("bfloat16", "float32") for side in rows}
        assert all(row.keys() >= ROW for row in rows.values())
        exact = [row["differences"] for side, row in rows.items() if "float32" in side]
        assert max(size for row in exact for size in row.values()) < 1e-3
    assert "float32" in capsys.readouterr().out
    if profile.exists():
        assert re.search(rf"# {name}\.py: smolact, b?float(32|16)\none call: ", profile.read_text())


def test_sides_that_fail_are_told_and_others_are_measured(benchmark: Any) -> None:
    from smolact.errors import ConfigError

    measuring = benchmark("measuring")
    contest = measuring.Contest(torch.device("cpu"), base="slow")

    def side_that(error: Exception | None, after: int = 0) -> Any:
        calls: list[None] = []

        def work(_: object) -> None:
            calls.append(None)
            if error is not None and len(calls) > after:
                raise error

        side = measuring.Side(work)
        if after == 0:
            work(None)
        return side

    contest.add("slow", lambda: side_that(None))
    contest.add("not here", lambda: side_that(ConfigError("no GPU")))
    contest.add("broken", lambda: side_that(RuntimeError("a bug")))
    contest.add("broken later", lambda: side_that(RuntimeError("another"), after=1))
    rows = contest.measure(3, math.inf)
    assert rows.keys() == {"slow"}
    assert contest.left_out == {"not here": "no GPU"}
    assert contest.failed == {"broken": "RuntimeError: a bug", "broken later": "RuntimeError: another"}
    assert contest.measure(3, 0.0)["slow"]["repeats"] == 1  # no time is left


@pytest.mark.slow
def test_one_command_goes_on_where_one_part_fails_and_says_so(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *replan.py*) exit 3;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    command = ["scripts/gpu", "--device=cpu", "--small", "--only=tests,replan,training_step"]
    done = subprocess.run(
        [*command, str(tmp_path / "found")],
        cwd=ROOT,
        env={**os.environ, "PYTHON": str(python), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "smolact, bfloat16, kept tokens" in done.stdout
    assert done.stdout.endswith("FAILED: replan (exit code 3)\n")
    found = {path.name for path in (tmp_path / "found").iterdir()}
    assert found == {"log.txt", "profiles.txt", "training_step.json"}
