"""SmolVLA's data in Hugging Face's form: a processor for samples, a collator for batches, and a sampler."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from smolact.datasets.collate import collate
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import FeatureError
from smolact.hub import find_folder
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.configuration import PolicyConfig, find_policy
from smolact.policies.factory import load_processors, make_pre_post_processors
from smolact.policies.sharing import CHECKPOINT_PATTERNS
from smolact.processors.pipeline import ProcessorPipeline
from smolact.training.sources import chunk_timestamps
from smolact.training.stream import IndexOrder, SampleIndex
from smolact.types import ACTION, ACTION_IS_PAD, IMAGES, STATE, TASK, Batch


class SmolVLAProcessor:
    """Converts samples of a robot or a dataset to the policy's inputs, and its actions to the robot's units.

    Attributes:
        preprocess, postprocess: the policy's pipelines. They run on the CPU, also in a loader's workers; the trainer moves
            batches to the device.
    """

    def __init__(self, preprocess: ProcessorPipeline, postprocess: ProcessorPipeline) -> None:
        self.preprocess, self.postprocess = preprocess, postprocess

    @classmethod
    def of(
        cls,
        policy: PreTrainedPolicy,
        statistics: Mapping[str, Mapping[str, Any]],
        rename_map: Mapping[str, str] | None = None,
    ) -> SmolVLAProcessor:
        """Create the processor of a policy with the statistics of its training dataset; `rename_map` has the dataset's names to the policy's.

        Raises:
            StatisticsError: a required statistic is missing or not finite.
        """
        with _on_cpu(policy):
            return cls(*make_pre_post_processors(policy, statistics, rename_map=rename_map))

    @classmethod
    def from_pretrained(cls, folder_or_id: str | Path, policy: PreTrainedPolicy) -> SmolVLAProcessor:
        """Load the processor of a checkpoint.

        Raises:
            NotFoundError, HubError: it is missing.
            CheckpointError, StatisticsError: it is corrupt, or has no statistics.
        """
        with _on_cpu(policy):
            return cls(*load_processors(find_policy(folder_or_id, patterns=CHECKPOINT_PATTERNS), policy))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write both pipelines in the checkpoint format."""
        self.preprocess.save_pretrained(folder)
        self.postprocess.save_pretrained(folder)

    def __call__(
        self,
        images: Mapping[str, Any],
        text: str,
        state: Any,
        actions: Any = None,
        actions_is_pad: Any = None,
    ) -> Batch:
        """Return a sample for the collator, not yet normalized.

        Args:
            images: one per camera: a PIL image, (H, W, 3) uint8, or a tensor (3, H, W). A name without a dot is a camera's: `top`
                is `observation.images.top`.
            text: the instruction.
            state: (D,), in the robot's units.
            actions: (chunk, A), in the robot's units, for training.
            actions_is_pad: (chunk,) bool, true after the episode's end.

        Raises:
            FeatureError: an image has another shape.
        """
        sample: Batch = {
            name if "." in name else f"{IMAGES}.{name}": _image(name, value) for name, value in images.items()
        }
        sample |= {STATE: torch.as_tensor(np.asarray(state), dtype=torch.float32), TASK: text}
        if actions is not None:
            chunk = torch.as_tensor(np.asarray(actions), dtype=torch.float32)
            is_pad = torch.zeros(len(chunk), dtype=torch.bool) if actions_is_pad is None else actions_is_pad
            sample |= {ACTION: chunk, ACTION_IS_PAD: torch.as_tensor(is_pad)}
        return sample

    def data_collator(self, samples: Sequence[Batch]) -> Batch:
        """Collate samples to a batch for the policy: stacked, normalized, tokenized."""
        return self.preprocess(collate(samples))

    def actions(self, normalized: Tensor) -> Tensor:
        """Convert the policy's actions (…, A) to the robot's units."""
        return self.postprocess(normalized)


def dataset_for(
    config: PolicyConfig,
    repo_id: str | Path,
    root: str | Path | None = None,
    episodes: Sequence[int] | None = None,
) -> LeRobotDataset:
    """Open a dataset whose samples have the policy's action chunks, with images as uint8.

    Raises:
        NotFoundError, HubError, DatasetError: it is missing or corrupt.
    """
    fps = LeRobotDatasetMetadata(find_folder(repo_id, "dataset", root=root, patterns=["meta/**"])).fps
    return LeRobotDataset(
        repo_id, root, episodes, delta_timestamps=chunk_timestamps(config, fps), return_uint8=True
    )


class EpochSampler(Sampler[SampleIndex]):
    """The positions of smolact's sample stream, split into epochs: the n-th batch is the n-th batch of `smolact train`.

    Args:
        order: the order of the frames.
        length: the number of samples per epoch.
    """

    def __init__(self, order: IndexOrder, length: int) -> None:
        self.order, self.length, self.epoch = order, length, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; the trainer calls this, also when it resumes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[SampleIndex]:
        first = self.epoch * self.length
        return (
            SampleIndex(position, self.order.frame(position))
            for position in range(first, first + self.length)
        )


@contextlib.contextmanager
def _on_cpu(policy: PreTrainedPolicy) -> Iterator[None]:
    """Keep pipelines that are created within the block on the CPU."""
    device, policy.config.device = policy.config.device, "cpu"
    try:
        yield
    finally:
        policy.config.device = device


def _image(name: str, value: Any) -> Tensor:
    if isinstance(value, Tensor) and value.ndim == 3 and value.shape[0] == 3:
        return value
    pixels = np.asarray(value)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise FeatureError(
            f"The picture '{name}' is {pixels.shape} {pixels.dtype}: expected a PIL image in RGB, (H, W, 3) uint8, or a tensor "
            "(3, H, W)."
        )
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
