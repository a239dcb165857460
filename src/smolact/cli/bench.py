"""`smolact bench`: how quickly a policy answers on this machine, itself and as an engine, and how far the answers are apart."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.command import command
from smolact.cli.progress import announce, progress_bar
from smolact.cli.servers import AnyPolicy, announce_policy
from smolact.errors import ConfigError, SmolactError
from smolact.settings import at_least, setting

if TYPE_CHECKING:
    from torch import Tensor

    from smolact.policies.base import PreTrainedPolicy
    from smolact.policies.configuration import PolicyConfig

USAGE = "smolact bench --policy.path=CHECKPOINT | --policy.type=smolvla [--repeats=10] [--output=FILE.json]"

CAMERAS, HEIGHT, WIDTH, N_JOINTS = ("top", "wrist"), 480, 640, 6
"""Inputs of a policy without a checkpoint: a typical robot arm with two cameras."""
IMAGES_ENCODED = "engine, float32, images seen"
"""Times only state to chunk; images and instruction are encoded before."""
PROBE = """
import json, resource, sys, time
from pathlib import Path
import torch
from smolact.policies.factory import load_policy
def peak():
    status = Path("/proc/self/status")
    if status.is_file():  # Linux counts in ru_maxrss what a parent had before it became this process
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
options, before, began = json.loads(sys.argv[1]), peak(), time.perf_counter()
loaded = load_policy(engine=True, **options)
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "peak_bytes": peak(), "torch_bytes": before, "weights_bytes": loaded.policy.memory}))
"""
"""Runs in a separate process, since this one has the policy in memory already."""


@dataclass
class BenchConfig:
    """Settings of `smolact bench`."""

    policy: AnyPolicy = field(default_factory=AnyPolicy)
    task: str = setting("pick up the red block and put it into the box", "The instruction.")
    batch_size: int = setting(1, "Observations that are answered at once.")
    repeats: int = setting(10, "Answers that are timed for each way; the ways take turns.")
    int8: bool = setting(False, "Time the engine with 8-bit weights, too (on a CPU).")
    fp8: bool = setting(False, "Time the engine with the expert's weights in float8, too.")
    triton: bool = setting(False, "Time the engine with kernels of our own for the expert, too (on a GPU).")
    compile: bool = setting(False, "Time the engine with torch.compile, too: minutes, at first.")
    threads: int = setting(0, "CPU threads; 0 leaves the number to torch.")
    output: Path | None = setting(None, "Write the figures, the machine and the versions there, as JSON.")

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("repeats", 1), ("threads", 0)):
            at_least(name, getattr(self, name), least)
        if (self.policy.path is None) == (self.policy.type is None):
            raise ConfigError(
                "`smolact bench` needs one policy: --policy.path=CHECKPOINT, or --policy.type=smolvla for random weights."
            )


@dataclass(frozen=True)
class Row:
    """Measurements of one inference variant; times in milliseconds."""

    way: str
    median: float
    p90: float
    ratio: float
    """Speed relative to the policy itself, by medians."""
    difference: float | None
    """Relative norm of the difference to the policy's own chunk for the same noise."""
    weights: int
    """Bytes of weights in addition to the policy's."""


@command(BenchConfig, USAGE)
def run(config: BenchConfig, argv: Sequence[str]) -> None:
    """Run the benchmark and print a table."""
    rows, facts = measure(config)
    show(rows, facts)
    if config.output is not None:
        from smolact import durable

        command = "smolact bench " + " ".join(argv)
        durable.write_json(
            config.output, {"command": command, **facts, "rows": [asdict(row) for row in rows]}
        )
        sys.stdout.write(f"{config.output}\n")


def measure(config: BenchConfig) -> tuple[list[Row], dict[str, Any]]:
    """Measure each variant; also return the machine, versions and policy.

    Raises:
        SmolactError: the policy can't be loaded.
    """
    announce_policy(config.policy.path or config.policy.type)
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    policy, batch = _policy_and_batch(config)
    shape = getattr(policy, "noise_shape", None)
    noise = None if shape is None else torch.randn(config.batch_size, *shape).to(_device(policy))
    engines = {"engine, float32": policy.build_engine(dtype=torch.float32)}
    fastest = policy.build_engine()
    if getattr(fastest, "dtype", torch.float32) != torch.float32:
        engines["engine, bfloat16"] = fastest
    if config.int8:
        engines["engine, int8"] = policy.build_engine(int8=True)
    if config.fp8:
        engines["engine, float8"] = policy.build_engine(fp8=True)
    if config.triton:
        engines["engine, kernels"] = policy.build_engine(triton=True)
    if config.compile:
        engines["engine, compiled"] = policy.build_engine(dtype=torch.float32, compile=True)
    for name, engine in engines.items():
        announce(f"Warming up: {name} …")
        engine.warm_up(batch)
    variants: dict[str, Callable[[], Tensor]] = {"policy": lambda: policy.predict_action_chunk(batch, noise)}
    for name, engine in engines.items():
        variants[name] = lambda engine=engine: engine.predict_action_chunk(batch, noise)  # type: ignore[misc]
    first: Any = engines["engine, float32"]
    before: dict[str, Callable[[], None]] = {}
    if hasattr(first, "observe"):
        variants[IMAGES_ENCODED] = lambda: first.act(batch, noise)
        before[IMAGES_ENCODED] = lambda: first.observe(batch)
    times, chunks = _time_in_turns(variants, before, config.repeats, _device(policy))
    reference, baseline = chunks["policy"], statistics.median(times["policy"])
    rows = [
        Row(
            name,
            median=(median := statistics.median(times[name])),
            p90=sorted(times[name])[max(0, round(0.9 * len(times[name])) - 1)],
            ratio=baseline / median,
            difference=None if name == "policy" else _relative_difference(chunks[name], reference),
            weights=getattr(engines.get(name), "memory", 0),
        )
        for name in variants
    ]
    facts = {
        "machine": machine(torch.get_num_threads(), str(_device(policy))),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "policy": policy.config.type,
        "parameters": sum(parameter.numel() for parameter in policy.parameters()),
        "ready": None if config.policy.path is None else _measure_loading(config),
    }
    return rows, facts


def machine(threads: int, device: str) -> dict[str, Any]:
    """Return the processor, threads and device, without host or user names."""
    import torch

    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    facts = {
        "processor": next(names, platform.processor()),
        "cores": os.cpu_count(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "device": device,
    }
    return facts | ({"gpu": torch.cuda.get_device_name()} if device.startswith("cuda") else {})


def show(rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    hardware = facts["machine"]
    title = f"{facts['policy']}, {facts['parameters'] / 1e6:.0f}M parameters, on {hardware.get('gpu', hardware['processor'])}"
    table = Table(title=f"{title}, {hardware['threads']} CPU threads", title_justify="left")
    table.add_column("observation → chunk")
    for name in ("median ms", "p90 ms", "×", "difference", "weights MB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.way,
            f"{row.median:.1f}",
            f"{row.p90:.1f}",
            f"{row.ratio:.2f}",
            "" if row.difference is None else f"{row.difference:.0e}",
            f"+{row.weights / 1e6:.0f}" if row.weights else "",
        )
    console = Console()
    console.print(table)
    ready = facts["ready"]
    if ready is not None:
        policy_bytes = ready["peak_bytes"] - ready["torch_bytes"]
        console.print(
            f"Ready to predict after {ready['seconds']:.2f} s; peak memory {policy_bytes / 1e6:.0f} MB above torch's own, for "
            f"{ready['weights_bytes'] / 1e6:.0f} MB of weights."
        )


def _policy_and_batch(config: BenchConfig) -> tuple[PreTrainedPolicy, dict[str, Any]]:
    import torch

    from smolact.policies.factory import (
        best_device,
        get_config_class,
        load_policy,
        make_policy,
        make_pre_post_processors,
    )
    from smolact.processors.statistics import fill_statistics

    settings = dict(config.policy.settings)
    if config.policy.path is not None:
        loaded = load_policy(config.policy.path, device=settings.pop("device", None), **settings)
        policy, preprocess = loaded.policy, loaded.preprocess
        # Timings do not depend on units, so missing statistics are filled with placeholders.
        fill_statistics([preprocess], _statistics(policy.config), "the numbers of a benchmark")
    else:
        features = _typical_features()
        chosen = get_config_class(str(config.policy.type))(
            **{"device": best_device(), **features, **settings}
        )
        torch.manual_seed(0)
        policy = make_policy(chosen, pretrained_vlm=False).eval().to(str(chosen.device))
        preprocess, _ = make_pre_post_processors(policy, _statistics(chosen))
    sample = {
        key: torch.rand(config.batch_size, *feature.shape, generator=torch.Generator().manual_seed(1))
        for key, feature in policy.config.input_features.items()
    }
    return policy, preprocess({**sample, "task": [config.task] * config.batch_size})


def _typical_features() -> dict[str, Any]:
    from smolact.types import ACTION, IMAGES, STATE, FeatureType, PolicyFeature

    cameras = {f"{IMAGES}.{name}": PolicyFeature(FeatureType.VISUAL, (3, HEIGHT, WIDTH)) for name in CAMERAS}
    return {
        "input_features": {**cameras, STATE: PolicyFeature(FeatureType.STATE, (N_JOINTS,))},
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (N_JOINTS,))},
    }


def _statistics(config: PolicyConfig) -> dict[str, Any]:
    """Return placeholder statistics, as if every value were between −1 and 1."""
    import numpy as np

    low, high = dict.fromkeys(("min", "q01", "q10"), -1.0), dict.fromkeys(("max", "q90", "q99"), 1.0)
    placeholders = {**low, **high, "mean": 0.0, "std": 1.0}
    features = config.features
    return {
        key: {name: np.full(feature.shape, value, np.float32) for name, value in placeholders.items()}
        for key, feature in features.items()
        if len(feature.shape) == 1
    }


def _time_in_turns(
    variants: dict[str, Callable[[], Tensor]],
    before: dict[str, Callable[[], None]],
    repeats: int,
    device: Any,
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Time the variants (in ms) in turns, so that other load affects all alike; also return their chunks."""
    import torch

    times: dict[str, list[float]] = {name: [] for name in variants}
    chunks: dict[str, Tensor] = {}
    with progress_bar((repeats + 1) * len(variants), "answers") as advance:
        for turn in range(repeats + 1):  # the first one warms up
            for name, predict in variants.items():
                if name in before:
                    before[name]()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                began = time.perf_counter()
                chunks[name] = predict()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if turn:
                    times[name].append((time.perf_counter() - began) * 1000)
                advance()
    return times, chunks


def _device(policy: PreTrainedPolicy) -> Any:
    return next(policy.parameters()).device


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def _measure_loading(config: BenchConfig) -> dict[str, float]:
    """Measure loading time and peak memory in a new process, after the import of torch."""
    announce("Loading the policy once more, in a process of its own …")
    options = {"folder_or_id": config.policy.path, **config.policy.settings}
    result = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(options)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise SmolactError(f"Loading the policy in a process of its own failed:\n{result.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return figures
