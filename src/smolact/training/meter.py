"""Means of a run's measurements, read from the device only on demand."""

from __future__ import annotations

import time

import torch
from torch import Tensor


class Meter:
    """Means since the last reading; until then everything stays on the device."""

    def __init__(self, samples_per_step: int) -> None:
        self.samples_per_step = samples_per_step
        self.bad_in_a_row = 0
        self.bad_steps = 0
        self._all_waited = self._all_seconds = 0.0
        self._clear()

    def _clear(self) -> None:
        self._steps: list[int] = []
        self._losses: list[Tensor] = []
        self._norms: list[Tensor] = []
        self._unread = 0
        self._good: list[tuple[float, float]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time since the last step, which was not spent on training."""
        self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, step: int, loss: Tensor, norm: Tensor, waited: float) -> None:
        """Add a step."""
        self._steps.append(step)
        self._losses.append(loss)
        self._norms.append(norm)
        self._waited += waited

    def read_new(self, most: int) -> list[int]:
        """Return the new steps that were not finite, up to the one that makes `most` in a row.

        This synchronizes with the device.
        """
        bad = []
        losses, norms = (
            torch.stack(values[self._unread :]).float().tolist() if values[self._unread :] else []
            for values in (self._losses, self._norms)
        )
        for step, loss, norm in zip(self._steps[self._unread :], losses, norms, strict=True):
            finite = abs(loss) < float("inf") and abs(norm) < float("inf")
            self.bad_in_a_row = 0 if finite else self.bad_in_a_row + 1
            if finite:
                self._good.append((loss, norm))
                continue
            self.bad_steps += 1
            bad.append(step)
            if self.bad_in_a_row >= most:
                break
        self._unread = len(self._steps)
        return bad

    def read(self, lr: float) -> dict[str, float]:
        """Return the means of the finite steps, and the learning rate `lr` of the next step."""
        seconds = time.perf_counter() - self._since
        metrics = {
            "lr": lr,
            "samples_per_second": len(self._steps) * self.samples_per_step / seconds,
            "data_wait": self._waited / seconds,
        }
        self._all_waited += self._waited
        self._all_seconds += seconds
        if self._good:
            losses, norms = zip(*self._good, strict=True)
            means = {"loss": sum(losses) / len(losses), "grad_norm": sum(norms) / len(norms)}
            metrics = means | metrics
        if self.bad_steps:
            metrics["bad_steps"] = self.bad_steps
        self._clear()
        return metrics

    @property
    def data_wait(self) -> float | None:
        """Share of the time of all readings spent waiting for data; None before the first one."""
        return self._all_waited / self._all_seconds if self._all_seconds else None
