"""How much memory there is: of the machine, within a container's limit, within the process's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from smolact import memory
from smolact.memory import Memory, failed_allocation, memory_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and cgroups are Linux's")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 GiB, of which 40 GiB are available, without limits; its /proc and /sys/fs/cgroup."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 2**24, "SC_PAGE_SIZE": 2**12}.__getitem__)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text(
        f"MemTotal: 999 kB\nMemFree: 1 kB\nMemAvailable:   {40 * 2**20} kB\n"
    )
    return tmp_path


def in_group(machine: Path, line: str, limits: dict[str, str]) -> None:
    (machine / "proc/self/cgroup").write_text(f"3:cpu:/a\n{line}\n")
    for name, value in limits.items():
        (machine / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (machine / "cgroup" / name).write_text(value + "\n")


def test_without_limits_it_is_the_machines(machine: Path) -> None:
    assert memory_of("cpu") == Memory(64 * 2**30, 40 * 2**30)


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": str(8 * 2**30)}),
        ("0::/../outside", {"memory.max": str(8 * 2**30)}),
        ("4:memory:/a", {"memory/memory.limit_in_bytes": str(8 * 2**30)}),
        (
            "4:memory:/a",
            {"memory/a/memory.limit_in_bytes": str(8 * 2**30), "memory/memory.limit_in_bytes": str(2**63)},
        ),
    ],
)
def test_a_containers_limit_counts_whichever_folder_says_it(
    machine: Path, line: str, limits: dict[str, str]
) -> None:
    in_group(machine, line, limits)
    assert memory_of("cpu") == Memory(8 * 2**30, 8 * 2**30)


def test_a_limit_of_the_process_counts() -> None:
    code = "from smolact.memory import memory_of; print(memory_of('cpu').total)"
    done = subprocess.run(
        ["bash", "-c", f'ulimit -v 1048576; "{sys.executable}" -c "{code}"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == 2**30


def test_of_a_device_that_nobody_can_ask_nothing_is_said() -> None:
    assert memory_of("xpu") is None


@pytest.mark.parametrize(
    ("message", "asked"),
    [
        ("DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes.", "1 GiB"),
        (
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 512 bytes. Error code 12",
            "512 B",
        ),
        ("CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 8 GiB", "20.5 MiB"),
        (
            "Caught RuntimeError in DataLoader worker process 0.\nDefaultCPUAllocator: can't allocate memory",
            None,
        ),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", None),
    ],
)
def test_what_was_asked_for_is_read_from_the_message(message: str, asked: str | None) -> None:
    said = failed_allocation(RuntimeError(message))
    assert said is not None
    assert said.startswith("The GPU's" if "CUDA" in message else "The machine's")
    assert said.endswith("memory ran out." if asked is None else f": {asked} more were needed.")
