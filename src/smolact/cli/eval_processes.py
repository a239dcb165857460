"""The processes of `smolact eval`: those that a launcher started, and those that it starts itself for small policies on a CPU."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from smolact.cli.servers import is_server
from smolact.errors import ConfigError
from smolact.machine import cores

EPISODES_PER_PROCESS = 10
"""Episodes of a condition per process: fewer are not worth starting one."""


class Processes:
    """This process's rank among those that torchrun or `accelerate launch` started.

    Raises:
        ConfigError: there are several processes, and no --output_dir that they share or --cpu_processes besides.
    """

    def __init__(self, cpu_processes: int | None, output_dir: Path | None) -> None:
        from smolact.evaluation.suite import Shard

        self.shard = Shard(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
        self.device: str | None = None
        self._state: Any = None
        if self.shard.processes == 1:
            return
        if cpu_processes is not None and cpu_processes > 1:
            raise ConfigError(
                f"--cpu_processes={cpu_processes} starts processes, and torchrun or accelerate did. Leave it out."
            )
        if output_dir is None:
            raise ConfigError(
                "Several processes share an evaluation through its folder. Give --output_dir=FOLDER."
            )
        import torch
        from accelerate import PartialState

        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.device = str(self._state.device)

    def wait(self) -> None:
        """Wait for all processes."""
        if self._state is not None:
            self._state.wait_for_everyone()


def default_processes(policies: Sequence[str], device: str | None, n_episodes: int) -> int:
    """Return how many processes play: one for each core for small policies on a CPU, which gain nothing from threads; else 1.

    Args:
        device: what --policy.device says; None for this machine's best.
    """
    from smolact.policies.factory import best_device, is_small

    if (device or best_device()) != "cpu" or any(is_server(name) or not is_small(name) for name in policies):
        return 1
    return max(1, min(cores(), n_episodes // EPISODES_PER_PROCESS))


def n_processes_for(
    given: int | None,
    policies: Sequence[str],
    device: str | None,
    n_episodes: int,
    n_tasks: int,
    launched: Processes,
) -> int:
    """Return how many processes this one starts for the episodes of a condition: 1, in which it plays them itself, or more.

    Args:
        given: what --cpu_processes says.
        device: what --policy.device says.
        n_episodes: what --eval.n_episodes says: of each of `n_tasks` tasks.
        launched: the processes of a launcher, which start none.

    Raises:
        ConfigError: there are fewer episodes than processes.
    """
    if launched.shard.processes > 1:
        return 1
    if given is None:
        return default_processes(policies, device, n_episodes * n_tasks)
    if given > n_episodes * n_tasks:
        raise ConfigError(
            f"--cpu_processes={given}: expected no more than the {n_episodes * n_tasks} episodes of a condition "
            f"(--eval.n_episodes={n_episodes}), which they share."
        )
    return given
