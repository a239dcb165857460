"""An exponential moving average of the trained weights: smoother than the weights of the last step.

After every optimizer step, average += (1 - d) · (weight - average), where d = min(decay, (1 + n) / (10 + n)) and n counts
the previous updates, so that the initial weights soon lose influence. The averages are float32, since 1 - d is less than
bfloat16 can add.

`pretrained_model` of a checkpoint contains the averaged policy, which is also evaluated; the trained weights and the
averages are in `training_state/ema_state.safetensors`, so that a run resumes bit for bit.

Source: Polyak and Juditsky 1992; for diffusion policies Chi et al. 2023, arXiv 2303.04137, section V.D. The warm-up is that
of TensorFlow's ExponentialMovingAverage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from smolact import durable
from smolact.errors import CheckpointError, ConfigError
from smolact.files import read_tensors

EMA_STATE = "ema_state.safetensors"
UPDATES, AVERAGE, TRAINED = "updates", "average/", "trained/"
"""Keys of the file: the number of updates, and prefixes of parameter names."""


def decay_after(updates: int, decay: float, *, warmup: bool = True) -> float:
    """Return the share of the old average in the update that follows `updates` others."""
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


class ExponentialMovingAverage:
    """Averages of the parameters of `policy` that train, on their devices.

    Args:
        policy: its weights initialize the averages. Currently frozen parameters are never averaged.
        decay: share of the old average in an update after the warm-up, from 0 to below 1.
    """

    def __init__(self, policy: nn.Module, decay: float = 0.999, *, warmup: bool = True) -> None:
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.averages = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in policy.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, policy: nn.Module) -> None:
        """Update the averages with the weights after an optimizer step."""
        share = 1 - decay_after(self.updates, self.decay, warmup=self.warmup)
        weights = [parameter.detach().float() for parameter in self._parameters(policy)]
        torch._foreach_lerp_(list(self.averages.values()), weights, share)
        self.updates += 1

    @contextmanager
    def swapped(self, policy: nn.Module) -> Iterator[None]:
        """A context in which `policy` has the averaged weights; afterwards always its own, bit for bit."""
        parameters = self._parameters(policy)
        with torch.no_grad():
            trained = [parameter.clone() for parameter in parameters]
            torch._foreach_copy_(parameters, list(self.averages.values()))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, trained)

    def save(self, folder: Path, policy: nn.Module) -> None:
        """Write averages and trained weights into `folder`, the `training_state` of a new checkpoint."""
        parameters = zip(self.averages, self._parameters(policy), strict=True)
        tensors = {UPDATES: torch.tensor(self.updates)}
        tensors |= {AVERAGE + name: average.contiguous() for name, average in self.averages.items()}
        tensors |= {TRAINED + name: parameter.detach().contiguous() for name, parameter in parameters}
        durable.save_tensors(folder / EMA_STATE, tensors)

    @torch.no_grad()
    def load(self, folder: Path, policy: nn.Module) -> None:
        """Restore the averages and `policy`'s weights from `folder`.

        Raises:
            CheckpointError: the file is missing, corrupt, or of another policy.
        """
        path = folder / EMA_STATE
        tensors = read_tensors(
            path,
            "Resume from another checkpoint.",
            if_missing="The run had no average: resume it with --ema.enable=false, or start a new run from its weights with "
            "--policy.path.",
        )
        parameters = dict(zip(self.averages, self._parameters(policy), strict=True))
        expected = {UPDATES: torch.Size()}
        for name, parameter in parameters.items():
            expected |= {AVERAGE + name: parameter.shape, TRAINED + name: parameter.shape}
        actual = {name: tensor.shape for name, tensor in tensors.items()}
        if actual != expected:
            wrong = sorted(
                name for name in actual.keys() | expected if actual.get(name) != expected.get(name)
            )
            raise CheckpointError(
                f"{path} is of other weights than those that train here: {len(wrong)} do not fit, '{wrong[0]}' first "
                f"(expected {_size(expected, wrong[0])}, found {_size(actual, wrong[0])}). Resume with the freezing flags "
                "that the run had."
            )
        self.updates = int(tensors[UPDATES])
        for name, parameter in parameters.items():
            self.averages[name].copy_(tensors[AVERAGE + name])
            parameter.copy_(tensors[TRAINED + name])

    def _parameters(self, policy: nn.Module) -> list[Tensor]:
        return [policy.get_parameter(name) for name in self.averages]


def check_no_average(folder: Path) -> None:
    """Raise a `ConfigError` if a run resumes without an average and the checkpoint's `training_state` has one."""
    if (folder / EMA_STATE).is_file():
        raise ConfigError(
            f"{folder} is of a run with a moving average, whose policy is saved averaged; without the average the run can't "
            f"go on from there. Drop --ema.enable=false, or start a new run: --policy.path={folder.parent}"
        )


def _size(shapes: dict[str, torch.Size], name: str) -> str:
    return str(tuple(shapes[name])) if name in shapes else "nothing"
