"""Where the time of a training step goes: data, preprocessing, forward, backward, optimizer.

    python benchmarks/step_shares.py [--steps=N] [--threads=N] -- [FLAGS OF smolact train]

The flags choose policy and dataset as they do for `smolact train`; the run is real but saves nothing. Writes a JSON
object to standard output.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from smolact.parsing import parse
from smolact.training import train as training
from smolact.training.config import TrainConfig
from smolact.training.run import Run
from smolact.training.tracking import Event, Started

PARTS = ("data", "preprocess", "forward", "backward", "optimizer")
WARM_UP = 2


def main() -> None:
    """Train some steps under the profiler and print each part's share."""
    own, flags = _split(sys.argv[1:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args(own)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as scratch:
        config = parse(
            TrainConfig,
            [
                *flags,
                f"--output_dir={Path(scratch) / 'run'}",
                f"--steps={WARM_UP + arguments.steps}",
                *("--save_checkpoint=false", "--report=false", "--tensorboard.enable=false", "--eval_freq=0"),
            ],
        )
        facts: dict[str, str] = {}

        def listen(event: Event) -> None:
            if isinstance(event, Started):
                facts.update(event.facts)

        step, activities = training.train_step, [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        profiler = profile(activities=activities)

        def profiled(run: Run, *args: object) -> object:
            if run.step == WARM_UP:
                profiler.start()
            return step(run, *args)  # type: ignore[arg-type]

        training.train_step = profiled  # type: ignore[assignment]
        training.train(config, listeners=[listen])
        profiler.stop()
    spent = {
        event.key: max(event.cpu_time_total, event.device_time_total) / 1e3 / arguments.steps
        for event in profiler.key_averages()
        if event.key in PARTS
    }
    total = sum(spent.values())
    print(
        json.dumps(
            {
                "command": "python benchmarks/step_shares.py " + " ".join(sys.argv[1:]),
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                "policy": facts["policy"],
                "parameters": facts["parameters"],
                "steps": arguments.steps,
                "milliseconds": {part: round(spent[part], 2) for part in PARTS},
                "shares": {part: round(spent[part] / total, 3) for part in PARTS},
            },
            indent=2,
        )
    )


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in argv:
        return argv, []
    place = argv.index("--")
    return argv[:place], argv[place + 1 :]


if __name__ == "__main__":
    main()
