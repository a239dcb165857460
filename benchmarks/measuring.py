"""What benchmarks share: sides that take turns at the same work, timed as their device needs it, and a profile of one of them.

python benchmarks/measuring.py RESULTS.json …     # prints the tables of what was written
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from smolact.errors import ConfigError, MissingDependencyError
from smolact.policies.inference.precision import quickest_dtype

WARM_UPS = 3
"""Of each side, before any is timed."""
_IMPORTED = time.perf_counter()


class Stopwatch:
    """Seconds on the clock until the answer is there; those of the processor, or between two events of a GPU; and the GPU's memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.start()

    def start(self) -> None:
        """From now on; again, to leave out what was until now."""
        wait_for(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._held = allocated(self._device)
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self._events[0].record()
        self._began, self._busy = time.perf_counter(), time.process_time()

    def stop(self) -> tuple[float, float, int]:
        """Both kinds of seconds, and the peak of GPU memory above what lay there."""
        if self._device.type != "cuda":
            return time.perf_counter() - self._began, time.process_time() - self._busy, 0
        self._events[1].record()
        wait_for(self._device)
        seconds = time.perf_counter() - self._began
        busy = self._events[0].elapsed_time(self._events[1]) / 1e3
        return seconds, busy, torch.cuda.max_memory_allocated(self._device) - self._held


@dataclass
class Side:
    """A way to do the work.

    Attributes:
        work: what is timed, and has been run once; it may start the watch again, to be timed from there.
        before: comes before it and is not timed.
        differences: what differs from the exact side, and by how much.
        units: how much one call does (tokens, say), for figures by unit.
    """

    work: Callable[[Stopwatch], object]
    before: Callable[[], object] | None = None
    differences: Mapping[str, float] = field(default_factory=dict)
    units: int = 1


@dataclass
class Timed:
    """Seconds of each call: on the clock, until the answer is there; of the processor, or on a GPU between two of its events."""

    clock: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    memory: int = 0
    """Bytes on a GPU, at the peak above what lay there before."""


class Contest:
    """Sides of one device that take turns. `left_out` are those that this machine can't, `failed` those that should have worked.

    Args:
        device: whose time and memory count.
        base: the side that the others are compared with; the first one when it is not there.
    """

    def __init__(self, device: torch.device, base: str | None = None) -> None:
        self.device, self._base = device, base
        self.sides: dict[str, Side] = {}
        self.failed: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        self._ready: dict[str, tuple[float, int]] = {}

    def add(self, name: str, make: Callable[[], Side]) -> None:
        """Make a side, which has then run once, and note how long that takes and what GPU memory it goes on holding."""
        with self._excusing(name):
            held, began = allocated(self.device), time.perf_counter()
            side = make()
            wait_for(self.device)
            self._ready[name] = time.perf_counter() - began, allocated(self.device) - held
            sys.stderr.write(f"{name}: ready after {self._ready[name][0]:.1f} s\n")
            self.sides[name] = side

    def measure(self, repeats: int, seconds: float) -> dict[str, dict[str, Any]]:
        """A row of figures for each side; every other round the sides come in reverse.

        So many seconds after this module was imported, only the first round still begins.
        """
        times = {name: Timed() for name in self.sides}
        for turn in range(-WARM_UPS if self.device.type == "cuda" else 0, repeats):
            if turn > 0 and time.perf_counter() - _IMPORTED > seconds:
                break
            for name in list(self.sides) if turn % 2 else [*reversed(self.sides)]:
                with self._excusing(name):
                    clock, busy, memory = once(self.sides[name], self.device)
                    if turn >= 0:
                        times[name].clock.append(clock)
                        times[name].busy.append(busy)
                        times[name].memory = max(times[name].memory, memory)
        rows = {name: self._row(name, times[name]) for name in self.sides}
        base = rows.get(self._base or "", next(iter(rows.values()), {}))
        for row in rows.values():
            row["times_base"] = base["median_seconds"] / row["median_seconds"]
            row["times_base_busy"] = base["median_busy_seconds"] / row["median_busy_seconds"]
        return rows

    def _row(self, name: str, times: Timed) -> dict[str, Any]:
        side, (ready, held) = self.sides[name], self._ready[name]
        clock, busy = ([seconds / side.units for seconds in some] for some in (times.clock, times.busy))
        row = {
            "median_seconds": statistics.median(clock),
            "spread": [min(clock), max(clock)],
            "median_busy_seconds": statistics.median(busy),
            "repeats": len(clock),
            "ready_after_seconds": ready,
            "differences": dict(side.differences),
        }
        if self.device.type == "cuda":
            row |= {"gpu_bytes_held": held, "gpu_bytes_while_working": times.memory}
        return row

    @contextlib.contextmanager
    def _excusing(self, name: str) -> Iterator[None]:
        # A side that can't must not cost the figures of the others: time on a GPU is dear.
        try:
            yield
        except (ConfigError, MissingDependencyError) as error:
            self.left_out[name] = str(error)
            self.sides.pop(name, None)
        except Exception as error:
            sys.stderr.write(f"{name} failed:\n{traceback.format_exc()}")
            self.failed[name] = f"{type(error).__name__}: {error}"
            self.sides.pop(name, None)


def once(side: Side, device: torch.device) -> tuple[float, float, int]:
    """What the watch says of one call."""
    if side.before is not None:
        side.before()
    watch = Stopwatch(device)
    side.work(watch)
    return watch.stop()


def wait_for(device: torch.device) -> None:
    """Until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int:
    """Bytes of tensors on a GPU; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def relative(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, over the norm of what was expected."""
    return float((found - expected).double().norm() / expected.double().norm())


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of what trains, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The norm of the difference of all gradients together, over the norm of what was expected."""
    both = [(found[name], gradient) for name, gradient in expected.items() if name in found]
    off = sum(float((a - b).double().square().sum()) for a, b in both)
    size = sum(float(b.double().square().sum()) for _, b in both)
    return float((off / size) ** 0.5)


@contextlib.contextmanager
def computing_in(precision: str, device: torch.device) -> Iterator[None]:
    """`float32`, `TF32`, or `bfloat16` where autocast says so, as the trainer's `use_amp` does."""
    torch.set_float32_matmul_precision("high" if precision == "TF32" else "highest")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision("highest")


# What it was measured on, and how it is told.


def parser_of(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """With the flags of all benchmarks that know a GPU."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--bfloat16", action="store_true", help="also where this machine is slow in it")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=math.inf, help="after so many, repeat no more")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="also write what one call spends its time on"
    )
    parser.add_argument("--output", type=Path, help="the figures, as JSON")
    return parser


def precisions(device: torch.device, bfloat16: bool) -> dict[str, torch.dtype]:
    """By name, the slowest first: float32, and bfloat16 where the device is quick in it or it is asked for."""
    wanted = bfloat16 or quickest_dtype(device) == torch.bfloat16
    return {"float32": torch.float32} | ({"bfloat16": torch.bfloat16} if wanted else {})


def setting_of(device: torch.device) -> dict[str, Any]:
    """A record to begin with: command, machine and versions."""
    flags = [flag for flag in sys.argv[1:] if not flag.startswith(("--output", "--profile", "--seconds"))]
    found: dict[str, Any] = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *flags]),
        "device": device.type,
        "machine": f"{os.cpu_count()} cores, {processor_name()}, {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 1),
        "busy": "of the processor" if device.type == "cpu" else "between two events of the GPU",
        "versions": {"python": platform.python_version()}
        | {
            name: str(sys.modules[name].__version__)
            for name in ("torch", "triton", "transformers", "lerobot")
            if hasattr(sys.modules.get(name), "__version__")
        },
    }
    if device.type == "cuda":
        facts = torch.cuda.get_device_properties(device)
        found["gpu"] = f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"
    return found | {"figures": {}, "failed": {}, "left_out": {}, "notes": []}


def run(
    record: dict[str, Any],
    group: str,
    contest: Contest,
    arguments: argparse.Namespace,
    samples: int | None = None,
) -> None:
    """Measure, and write what there is by now; with samples a second where a call takes so many."""
    rows = contest.measure(arguments.repeats, arguments.seconds)
    for row in rows.values() if samples else ():
        row["samples_a_second"] = samples / row["median_seconds"]
    record["figures"][group] = rows
    for kind in ("failed", "left_out"):
        record[kind] |= {f"{group}, {name}": reason for name, reason in getattr(contest, kind).items()}
    write(record, arguments.output)


def processor_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def write(record: Mapping[str, Any], output: Path | None) -> None:
    """As JSON, whole or not at all: a benchmark that runs out of time leaves what it had."""
    if output is not None:
        beside = output.with_suffix(".part")
        beside.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        beside.replace(output)


def table(record: Mapping[str, Any]) -> str:
    """A record's figures, to be read."""
    lines = [f"{record.get('gpu', record['machine'])}; {record['command']}"]
    for group, rows in record["figures"].items():
        lines.append(f"{group}:")
        for name, row in rows.items():
            low, high = (1e3 * seconds for seconds in row["spread"])
            line = f"{name:>42} {1e3 * row['median_seconds']:9.2f} ms ({low:.2f} to {high:.2f}) {row['times_base']:6.2f}×"
            if record["device"] == "cpu":
                line += f" ({row['times_base_busy']:.2f}× by processor)"
            if "samples_a_second" in row:
                line += f", {row['samples_a_second']:.1f}/s"
            if "gpu_bytes_held" in row:
                line += f", {row['gpu_bytes_held'] / 1e6:.0f}+{row['gpu_bytes_while_working'] / 1e6:.0f} MB"
            off = (f"{what} {size:.0e}" for what, size in row["differences"].items())
            lines.append(", ".join([line, *off]))
    for kind in ("failed", "left_out"):
        for reason in dict.fromkeys(record[kind].values()):
            names = [name for name, its in record[kind].items() if its == reason]
            lines.append(f"{kind}: {'; '.join(names)}: {reason.splitlines()[0]}")
    return "\n".join([*lines, *record["notes"]])


# Where the time of one call goes.


def profiled(
    name: str, side: Side, device: torch.device, output: Path, repeats: int = 3, rows: int = 40
) -> None:
    """Add to a file the kernels of one call by the time that they take, with their number; on a CPU, the operations."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    seconds = [once(side, device)[0] for _ in range(repeats)]
    with profile(activities=activities) as found:
        for _ in range(repeats):
            once(side, device)
    kind = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    # Named ranges (an optimizer's step) would count what is in them twice.
    averages = found.key_averages()
    events = [e for e in averages if e.device_type == kind and not e.is_user_annotation]
    spent = {
        event.key: (event.self_device_time_total if on_gpu else event.self_cpu_time_total, event.count)
        for event in events
    }
    total, count = (sum(each[part] for each in spent.values()) / repeats for part in (0, 1))
    what = "kernels and copies" if on_gpu else "operations"
    lines = [
        f"# {Path(sys.argv[0]).name}: {name}",
        f"one call: {1e3 * statistics.median(seconds):.3f} ms on the clock without the profiler, {total / 1e3:.3f} ms in "
        f"{count:.0f} {what}",
        *(
            f"  {event.count / repeats:.0f} × {event.key}"
            for event in averages
            if on_gpu and event.key.startswith(("cuda", "cuLaunch")) and event.count >= repeats
        ),
        f"{'µs':>10} {'share':>6} {'calls':>7} {'µs each':>8}",
    ]
    for kernel, (time_spent, calls) in sorted(spent.items(), key=lambda item: -item[1][0])[:rows]:
        share = time_spent / repeats / total if total else 0
        lines.append(
            f"{time_spent / repeats:10.1f} {share:6.1%} {calls / repeats:7.1f} {time_spent / calls:8.2f}  {kernel[:150]}"
        )
    with output.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        sys.stdout.write(f"== {argument}\n{table(json.loads(Path(argument).read_text(encoding='utf-8')))}\n")
