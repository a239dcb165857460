"""From a batch to the inputs of an execution plan."""

# B batch, L text tokens, P prefix tokens, A state width.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smolact.errors import FeatureError
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.policies.smolvla.execution_plan import ExecutionPlan, Shape
from smolact.types import LANGUAGE_MASK, LANGUAGE_TOKENS, STATE


class Inputs(NamedTuple):
    """The images and the instruction of a batch."""

    shape: Shape
    images: list[Tensor]
    """One (B, 3, height, width) in [−1, 1] for each camera that is present."""
    image_masks: list[Tensor | None]
    """One (B,) bool for each of them, false for a missing image; None if none is missing."""
    tokens: Tensor
    """(B, L), on the CPU."""
    text_valid: Tensor
    """(B, L) bool, on the CPU."""

    def load(self, plan: ExecutionPlan) -> None:
        """Copy them into a plan's buffers."""
        sizes = self.shape.cameras[: len(self.images)]
        for size, pixels in plan.pixels.items():
            matching = [image for image, own in zip(self.images, sizes, strict=True) if own == size]
            torch.cat([image.to(pixels) for image in matching], out=pixels)
        valid = torch.ones(self.shape.batch, plan.layout.length, dtype=torch.bool)
        for mask, (_, span) in zip(self.image_masks, plan.layout.images, strict=True):
            if mask is not None:
                valid[:, span] = mask.cpu()[:, None]
        valid[:, plan.layout.text] = self.text_valid
        plan.load_prompt(self.tokens, valid)


def prepare_inputs(policy: Any, batch: Mapping[str, Any], text_bucket: int) -> Inputs:
    """Prepare images and instruction of a batch; the padding that all instructions share is cut off.

    Args:
        text_bucket: instructions are padded to a multiple of this length.

    Raises:
        FeatureError: an input is missing or has the wrong shape.
    """
    tokens, text_valid = (part.cpu() for part in policy.prepare_language(batch))
    images, masks = policy.prepare_images(batch)
    if any(image.ndim != 4 for image in images):
        raise FeatureError(
            "The batch has kept vision tokens in the place of pictures, which are for training. Give an engine pictures."
        )
    present = [key for key in policy.config.image_features if key in batch]
    if len({len(part) for part in (tokens, text_valid, *images)}) > 1 or tokens.shape != text_valid.shape:
        sizes = {"tokens": tuple(tokens.shape), "mask": tuple(text_valid.shape)}
        sizes |= {key: tuple(image.shape) for key, image in zip(present, images, strict=False)}
        raise FeatureError(f"The inputs are not of one batch: {sizes}. Collate samples into one batch.")
    used = text_valid.any(0).nonzero()
    length = 0 if len(used) == 0 else int(used[-1]) + 1
    padding = 0, -length % text_bucket
    tokens, text_valid = (F.pad(part[:, :length], padding) for part in (tokens, text_valid))
    missing = len(images) - len(present)
    images = images[: len(present)]
    image_sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
    return Inputs(
        Shape(len(tokens), (*image_sizes, *[None] * missing), tokens.shape[1]),
        images,
        [mask if f"{key}_padding_mask" in batch else None for key, mask in zip(present, masks, strict=False)],
        tokens,
        text_valid,
    )


def example_batch(config: SmolVLAConfig, device: torch.device) -> dict[str, Tensor]:
    """Return a batch of one sample of the configured sizes."""
    length, state = config.tokenizer_max_length, config.robot_state_feature
    cameras = {key: f for key, f in config.image_features.items() if key in config.input_features}
    return {
        **{key: torch.zeros(1, *feature.shape, device=device) for key, feature in cameras.items()},
        STATE: torch.zeros(1, config.max_state_dim if state is None else state.shape[0], device=device),
        LANGUAGE_TOKENS: torch.zeros(1, length, dtype=torch.long, device=device),
        LANGUAGE_MASK: torch.ones(1, length, dtype=torch.bool, device=device),
    }
