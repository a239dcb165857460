"""The loss on held-out episodes: the same samples with the same noise and times at every step."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from smolact.datasets.unreadable import Unreadable
from smolact.training.data import UNREADABLE, TrainDataset, batch_of, split_noise
from smolact.training.initialization import PolicyBundle
from smolact.training.stream import SampleIndex


class Validation:
    """Computes the loss on held-out samples, split over the processes.

    Args:
        most: maximum number of samples, evenly spread; 0 takes all.
        batch_size: samples of a process.

    Attributes:
        unreadable: frames that the last computation could not read, on any process.
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
        """Return the mean over all valid entries, the same on every process.

        Args:
            stops: called before each batch; if it is true on one process, all return None.
        """
        policy, device = start.policy, accelerator.device
        totals = torch.zeros(2, device=device)
        own = self.places[accelerator.process_index :: accelerator.num_processes]
        longest = math.ceil(len(self.places) / accelerator.num_processes)
        unreadable: list[Unreadable] = []
        policy.eval()
        # All processes gather sharded weights together, so each computes the same number of batches.
        for first in range(0, longest, self.batch_size):
            should_stop = stops()
            if accelerator.num_processes > 1:  # all processes have to agree
                stopping = torch.tensor(float(should_stop), device=device)
                should_stop = bool(accelerator.reduce(stopping, reduction="sum") > 0)
            if should_stop:
                policy.train()
                return None
            part = own[first : first + self.batch_size]
            batch, drawn = split_noise(batch_of(self.samples.__getitems__(part or self.places[:1])))
            unreadable += batch.pop(UNREADABLE, ())
            arguments = {name: value.to(device) for name, value in drawn.items()}
            with accelerator.autocast():
                loss, counted = policy(start.preprocess(batch), **arguments, reduction="sum")
            if part:
                totals += torch.stack((loss.float(), counted["entries"].float()))
        policy.train()
        self.unreadable = gather_object(unreadable)
        sums, entries = accelerator.reduce(totals, reduction="sum").tolist()
        return float(sums / max(entries, 1))
