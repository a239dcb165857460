"""The error of a run whose loss stays not finite, with the samples of the last bad step."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from smolact import durable
from smolact.errors import TrainingError
from smolact.training.data import TrainDataset, batch_of
from smolact.training.stream import InfiniteSampler

logger = logging.getLogger(__name__)

MAX_SHOWN = 20


def bad_steps_error(
    samples: TrainDataset,
    first_position: int,
    count: int,
    step: int,
    run: Path,
    *,
    in_a_row: int,
    keep: bool = True,
) -> TrainingError:
    """Write the last bad step's global batch to `run/bad_batch_STEP.safetensors`, and return the error to raise.

    The batch is read again from the stream rather than held in memory at each step.

    Args:
        samples: the run's samples.
        first_position, count: stream positions of the step's samples.
        step: the step.
        run: the run's folder.
        in_a_row: number of consecutive steps that were not finite.
        keep: whether this process writes the batch.
    """
    stream = InfiniteSampler(samples.order)
    indices = [stream.place(position) for position in range(first_position, first_position + count)]
    batch = samples.__getitems__(indices)
    suspects = [
        index.frame
        for index, sample in zip(indices, batch, strict=True)
        if not all(map(_is_finite, sample.values()))
    ]
    path = run / f"bad_batch_{step:06d}.safetensors"
    if keep:
        collated = batch_of(batch)
        tensors = {key: value.contiguous() for key, value in collated.items() if isinstance(value, Tensor)}
        with durable.replacing_file(path) as temporary:
            durable.save_tensors(temporary, tensors, metadata={"task": json.dumps(collated.get("task"))})
    frames = [index.frame for index in indices]
    what = (
        f"Of its frames, {_shown(suspects)} hold NaN or infinity themselves: mend or leave out their episodes "
        "(--dataset.exclude_episodes)."
        if suspects
        else "Its frames are finite: lower --policy.optimizer_lr."
    )
    return TrainingError(
        f"{in_a_row} steps in a row were not finite, the last of them step {step}, of frames {_shown(frames)}. {what} "
        f"The batch is kept in {path}; checkpoints, where there are any, are from before and whole."
    )


def _is_finite(value: object) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _shown(indices: list[int]) -> str:
    more = f" and {len(indices) - MAX_SHOWN} more" if len(indices) > MAX_SHOWN else ""
    return ", ".join(map(str, indices[:MAX_SHOWN])) + more
