"""`smolact dataset encode`: what the frozen vision tower makes of a dataset's pictures, computed ahead of a training.

The flags are those of `smolact train`, so that a training's command line does for both; those for the optimizer, the log and so on have no
effect.
Kept are vision tokens, or with `--dataset.cache=frames` (or `resized`) the decoded pictures. A training with the same dataset, tower
and `--cache.…` finds them. Stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from collections.abc import Sequence

from smolact.cli.command import command
from smolact.cli.main import INTERRUPTED
from smolact.cli.progress import announce
from smolact.cli.train import ProgressLine, read_settings
from smolact.errors import ConfigError
from smolact.flags import read_flags
from smolact.training.config import TrainConfig

USAGE = "smolact dataset encode --dataset.root=FOLDER --policy.path=CHECKPOINT [--cache.dtype=bfloat16] [--cache.max_gb=50]"


@command(TrainConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Build the missing part of the cache, and print its size and folder."""
    if any(flag.name == "resume" for flag in read_flags(argv)):
        raise ConfigError(
            "--resume is about a training. To go on with what was kept so far, run the same `smolact dataset encode` again."
        )
    config = read_settings(argv)
    if not config.dataset.cache:
        cache = dataclasses.replace(config.cache, features=True)
        config = dataclasses.replace(config, cache=cache)  # repeats the checks
    is_main_process = os.environ.get("RANK", "0") == "0"
    if not is_main_process:
        logging.getLogger().setLevel(logging.ERROR)

    announce(f"Opening {config.dataset.root or config.dataset.repo_id} …")
    from smolact.training.run_inputs import encode

    try:
        with ProgressLine() as line:
            summary = encode(config, listeners=[line])
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. What was made is kept; the same command goes on from there.\n")
        return INTERRUPTED
    if is_main_process:
        sys.stdout.write(f"{summary}\n")
    return 0
