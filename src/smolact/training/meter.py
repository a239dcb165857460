"""Means of what a run measures, read off the device only when they are asked for."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from smolact.errors import TrainingError


class Meter:
    """Means since the last reading; until then everything stays on the device."""

    def __init__(self, step: int, batch_size: int) -> None:
        self.step, self.batch_size = step, batch_size
        self._clear()

    def _clear(self) -> None:
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """What was done since the last step is not training."""
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, step: int, loss: Tensor, norm: Tensor, waited: float) -> None:
        """Take note of a step."""
        self.step = step
        self._losses.append(loss)
        self._norms.append(norm)
        self._waited += waited

    def read(self, lr: float) -> dict[str, float]:
        """The means, and the rate `lr` that the next step will have. Waits for the device.

        Raises:
            TrainingError: a loss since the last reading was not finite.
        """
        losses, norms = (torch.stack(values).float().cpu() for values in (self._losses, self._norms))
        bad = (~(torch.isfinite(losses) & torch.isfinite(norms))).nonzero()
        if len(bad):
            at = int(bad[0])
            what = f"loss {losses[at].item()}, gradient norm {norms[at].item()}"
            raise TrainingError(
                f"Step {self.step - len(losses) + at + 1} is not finite: {what}. Nothing was saved since the last "
                "checkpoint, which is whole. Resume from it with a lower --policy.optimizer_lr; if it comes back at the "
                "same step, look for NaN or huge values in the dataset."
            )
        seconds = time.perf_counter() - self._since
        metrics = {
            "loss": losses.mean().item(),
            "grad_norm": norms.mean().item(),
            "lr": lr,
            "samples_per_second": len(losses) * self.batch_size / seconds,
            "data_wait": self._waited / seconds,
        }
        self._clear()
        return metrics
