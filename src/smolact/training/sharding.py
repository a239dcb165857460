"""Weights, gradients and optimizer state sharded over processes (FSDP2), for policies too large for one device.

Zhao et al. 2023, arXiv 2304.11277, in the form of torch's `fully_shard`: every parameter is a DTensor of which each process
holds a slice; a unit's slices are gathered when it is called, and freed afterwards.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import AdamW, Optimizer

from smolact.errors import ConfigError
from smolact.policies.base import PreTrainedPolicy
from smolact.training.sections import ParallelismSection

logger = logging.getLogger(__name__)


def make_mesh(section: ParallelismSection, accelerator: Accelerator) -> DeviceMesh:
    """Return the mesh of processes, (copies, parts of a copy).

    Raises:
        ConfigError: the number of processes does not match the settings, or this PyTorch can't average gradients on a CPU.
    """
    processes, copies = int(accelerator.num_processes), section.dp_replicate
    parts = processes // copies if section.dp_shard == -1 else section.dp_shard
    if processes == 1 or copies * parts != processes:
        raise ConfigError(
            f"--parallelism.dp_shard={section.dp_shard} with --parallelism.dp_replicate={copies} needs "
            f"{f'{copies * parts} processes' if parts > 1 else 'several processes'}, and this run has {processes}. Start it "
            "with torchrun --nproc-per-node=N -m smolact train …, or drop --parallelism."
        )
    names = ("copies", "parts")
    mesh = init_device_mesh(accelerator.device.type, (copies, parts), mesh_dim_names=names)
    if accelerator.device.type == "cpu":
        _check_averages(parts, mesh)
    return mesh if copies > 1 else mesh["parts"]


def _check_averages(parts: int, mesh: DeviceMesh) -> None:
    """Raise a ConfigError if gloo adds where FSDP2 asks for the average, as in PyTorch 2.7."""
    mean = torch.empty(1)
    group = mesh.get_group("parts")
    distributed.reduce_scatter_tensor(mean, torch.ones(parts), op=distributed.ReduceOp.AVG, group=group)
    if mean.item() != 1:
        raise ConfigError(
            f"--parallelism.dp_shard on a CPU needs a newer PyTorch: version {torch.__version__} adds up the gradients of the processes, "
            "where their average is expected. Drop --parallelism: each process then has its own copy of the weights."
        )


class ShardedPolicy:
    """A policy, sharded in place, and a twin that receives the gathered weights.

    Raises:
        ConfigError: the policy is compiled, or has adapters.
    """

    def __init__(self, policy: PreTrainedPolicy, mesh: DeviceMesh) -> None:
        if policy.config.compile_model:
            raise ConfigError(
                "--policy.compile_model=true does not go with --parallelism.dp_shard. Drop one of them."
            )
        if policy.adapters is not None:
            raise ConfigError(
                "Adapters are small, and --parallelism.dp_shard splits what trains. Drop it: each process then has its own copy."
            )
        empty = {
            id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
            for p in policy.parameters()
        }
        self._twin = copy.deepcopy(policy, empty)
        for unit in policy.sharding_units():
            fully_shard(unit, mesh=mesh)
        fully_shard(policy, mesh=mesh)
        self.policy = policy

    def set_gradient_sync(self, active: bool) -> None:
        """Set whether the next backward pass sums the gradients of all processes."""
        assert isinstance(self.policy, FSDPModule)
        self.policy.set_requires_gradient_sync(active)

    def gather(self, optimizer: Optimizer, *, keep: bool) -> tuple[PreTrainedPolicy, Optimizer]:
        """Gather the full policy and its optimizer on the CPU.

        Every process must call it; without `keep` it returns a policy without weights and the optimizer unchanged.
        """
        weights = {name: _full_tensor(value, keep) for name, value in self.policy.state_dict().items()}
        states = {
            parameter: {name: _full_tensor(value, keep) for name, value in state.items()}
            for parameter, state in optimizer.state.items()
        }
        if not keep:
            return self._twin, optimizer
        self._twin.load_state_dict(weights, assign=True)
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.policy.named_parameters()}
        groups = [
            {**group, "params": [self._twin.get_parameter(names[p]) for p in group["params"]]}
            for group in optimizer.param_groups
        ]
        gathered = AdamW(groups)
        for parameter, state in states.items():
            gathered.state[self._twin.get_parameter(names[parameter])] = state
        return self._twin, gathered


def shard_like(parameter: Tensor, value: Any) -> Any:
    """Shard a full tensor as `parameter` is: over the same processes, or not at all."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        value = value.to(parameter.device, parameter.dtype)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def _full_tensor(value: Any, keep: bool) -> Any:
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) and keep else None
