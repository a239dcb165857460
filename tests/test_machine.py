"""Cores, threads, and who may start processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from smolact import machine
from smolact.machine import cores


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu.max": "nonsense"}, 8),
    ],
)
def test_a_containers_share_of_the_cores_counts(
    files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    quotas = [
        (tmp_path / "cpu.max", None),
        (tmp_path / "cpu/cpu.cfs_quota_us", tmp_path / "cpu/cpu.cfs_period_us"),
    ]
    monkeypatch.setattr(machine, "_QUOTAS", quotas)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert cores() == expected


SCRIPT = """
from smolact.envs.demonstrations import demonstrations_by_processes

{guard}
    for demonstration in demonstrations_by_processes("tabletop", 2, 2):
        print(len(demonstration) > 0)
"""


@pytest.mark.parametrize("guard", ['if __name__ == "__main__":', "if True:"])
def test_a_script_without_a_guard_starts_no_processes(guard: str, tmp_path: Path) -> None:
    script = tmp_path / "mine.py"
    script.write_text(textwrap.dedent(SCRIPT.format(guard=guard)))
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    if "__main__" in guard:
        assert ended.stdout.split() == ["True", "True"], ended.stderr
    else:
        assert ended.returncode == 1 and "mine.py starts processes" in ended.stderr


def test_a_training_in_a_script_without_a_guard_stays_in_one_process(tmp_path: Path) -> None:
    from tests.training.runs import DATASET, QUICK, SMALL

    flags = [f"--dataset.root={DATASET}", *SMALL, *QUICK, "--batch_size=8", "--steps=2"]
    script = tmp_path / "mine.py"
    script.write_text(
        "import logging, sys\nfrom smolact.cli.main import main\n"
        f"sys.exit(main(['train', *{flags!r}, '--output_dir={tmp_path / 'run'}', *sys.argv[1:]]))\n"
    )
    ended = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0 and "One process trains." in ended.stderr, ended.stderr
    command = [sys.executable, str(script), "--cpu_processes=2", f"--output_dir={tmp_path / 'other'}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and "starts processes" in ended.stderr
