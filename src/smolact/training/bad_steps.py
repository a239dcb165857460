"""When the loss stays not finite: which samples it was, kept for a look, and a stop that says so."""

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
    first_place: int,
    count: int,
    step: int,
    run: Path,
    *,
    in_a_row: int,
    keep: bool = True,
) -> TrainingError:
    """The error of a run that stops, and the global batch of its last bad step in `run/bad_batch_STEP.safetensors`.

    The stream decides every sample, so the batch is read again rather than held in memory at each step.

    Args:
        samples: the run's.
        first_place, count: the places of the stream that the step took.
        step: the step.
        run: the run's folder.
        in_a_row: how many steps in a row were not finite.
        keep: write the batch (one of several processes does).
    """
    stream = InfiniteSampler(samples.order)
    places = [stream.place(position) for position in range(first_place, first_place + count)]
    batch = samples.__getitems__(places)
    suspects = [
        place.frame
        for place, sample in zip(places, batch, strict=True)
        if not all(map(_is_finite, sample.values()))
    ]
    path = run / f"bad_batch_{step:06d}.safetensors"
    if keep:
        collated = batch_of(batch)
        tensors = {key: value.contiguous() for key, value in collated.items() if isinstance(value, Tensor)}
        with durable.replacing_file(path) as temporary:
            durable.save_tensors(temporary, tensors, metadata={"task": json.dumps(collated.get("task"))})
    indices = [place.frame for place in places]
    what = (
        f"Of its frames, {_shown(suspects)} hold NaN or infinity themselves: mend or leave out their episodes "
        "(--dataset.exclude_episodes)."
        if suspects
        else "Its frames are finite: lower --policy.optimizer_lr."
    )
    return TrainingError(
        f"{in_a_row} steps in a row were not finite, the last of them step {step}, of frames {_shown(indices)}. {what} "
        f"The batch is kept in {path}; checkpoints, where there are any, are from before and whole."
    )


def _is_finite(value: object) -> bool:
    return not isinstance(value, Tensor) or not value.is_floating_point() or bool(torch.isfinite(value).all())


def _shown(indices: list[int]) -> str:
    more = f" and {len(indices) - MAX_SHOWN} more" if len(indices) > MAX_SHOWN else ""
    return ", ".join(map(str, indices[:MAX_SHOWN])) + more
