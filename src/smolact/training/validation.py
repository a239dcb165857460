"""The loss on episodes that a run does not train on: the same samples with the same noise and times at every step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from smolact.datasets.unreadable import Unreadable
from smolact.training.bad_samples import of_all
from smolact.training.data import UNREADABLE, TrainDataset, batch_of, split_noise
from smolact.training.devices import all_reduce_sum
from smolact.training.initialization import PolicyBundle
from smolact.training.stream import SampleIndex


class Validation:
    """Computes the loss on held-out samples, each process a part of them.

    Args:
        samples: of the held-out dataset.
        most: how many samples, evenly spread; 0 takes all.
        batch_size: of a process.

    Attributes:
        unreadable: what the last computation could not read, on any process.
    """

    def __init__(self, samples: TrainDataset, most: int, batch_size: int) -> None:
        count = len(samples.dataset)
        frames = np.unique(np.linspace(0, count - 1, min(most or count, count)).round().astype(int))
        self.samples, self.batch_size = samples, batch_size
        self.unreadable: list[Unreadable] = []
        self.places = [SampleIndex(position, int(frame)) for position, frame in enumerate(frames)]

    @torch.no_grad()
    def loss(
        self, start: PolicyBundle, accelerator: Accelerator, stops: Callable[[], bool] = lambda: False
    ) -> float | None:
        """The mean over all valid entries, the same number on every process.

        Args:
            start: the policy with its processors.
            accelerator: the run's.
            stops: asked before each batch; when it says so on one process, all give up, and there is no mean (None).
        """
        policy, device = start.policy, accelerator.device
        totals = torch.zeros(2, device=device)
        own = self.places[accelerator.process_index :: accelerator.num_processes]
        longest = math.ceil(len(self.places) / accelerator.num_processes)
        unreadable: list[Unreadable] = []
        policy.eval()
        # Weights that are split are gathered by all processes together: each computes as many batches as any other.
        for first in range(0, longest, self.batch_size):
            asked: Tensor | bool = stops()
            if accelerator.num_processes > 1:  # each has to know what the others say
                asked = all_reduce_sum(accelerator, torch.tensor(float(asked), device=device)) > 0
            if asked:
                policy.train()
                return None
            mine = own[first : first + self.batch_size]
            batch, drawn = split_noise(batch_of(self.samples.__getitems__(mine or self.places[:1])))
            unreadable += batch.pop(UNREADABLE, ())
            arguments = {name: value.to(device) for name, value in drawn.items()}
            with accelerator.autocast():
                loss, counted = policy(start.preprocess(batch), **arguments, reduction="sum")
            if mine:
                totals += torch.stack((loss.float(), counted["entries"].float()))
        policy.train()
        self.unreadable = of_all(accelerator, unreadable)
        sums, entries = all_reduce_sum(accelerator, totals).tolist()
        return float(sums / max(entries, 1))
