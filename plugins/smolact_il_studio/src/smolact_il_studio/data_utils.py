"""Processors and collators that turn IL-Studio's samples into batches, which its trainers pass to a model's `forward`.

A sample of IL-Studio has `image` (K, 3, H, W), uint8 or floating point in [0, 1], `state` (D,) and `action` (T, A), both
normalized by IL-Studio, `is_pad` (T,) bool, and `raw_lang`. Images stay uint8 until they are on the device.
"""

# B batch, K cameras, T steps of a sample's actions, L tokens.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smolact.errors import FeatureError
from smolact.policies.smolandfast.processor_smolandfast import SmolAndFASTPromptStep
from smolact.processors.steps import SmolVLANewLineProcessor
from smolact.processors.tokenizer import Tokenizer, TokenizerProcessorStep
from smolact.types import (
    ACTION,
    ACTION_TOKEN_MASK,
    ACTION_TOKENS,
    IMAGES,
    LANGUAGE_MASK,
    LANGUAGE_TOKENS,
    STATE,
    TASK,
)
from smolact_il_studio.configuration import ILStudioConfig, SmolAndFASTConfig, SmolVLAConfig

Sample = Mapping[str, Any]


class SmolVLAProcessor:
    """Checks a sample, truncates its actions to the policy's chunk, and tokenizes its instruction.

    Raises:
        FeatureError: a feature of a sample is missing, has another size, or is not finite.
        ConfigError: the instruction of a sample is empty.
    """

    def __init__(self, config: SmolVLAConfig, tokenizer: Tokenizer) -> None:
        self.config = config
        self._newline = SmolVLANewLineProcessor()
        self._tokenize = TokenizerProcessorStep(
            tokenizer=tokenizer,
            padding=config.pad_language_to,
            padding_side="right",
            max_length=config.tokenizer_max_length,
        )

    def __call__(self, sample: Sample) -> dict[str, Any]:
        """Process a sample for the collator."""
        tokens = self._tokenize(self._newline({TASK: [_instruction(sample)]}))
        instruction = {"lang_tokens": tokens[LANGUAGE_TOKENS][0], "lang_masks": tokens[LANGUAGE_MASK][0]}
        return {**validated(sample, self.config), **instruction}


class SmolAndFASTProcessor:
    """Checks a sample, and writes its prompt and, in training, its answer.

    Args:
        step: the prompt step with the policy's writer.

    Raises:
        FeatureError: a feature of a sample is missing or has another size, or actions can't be written as tokens.
        ConfigError: the instruction of a sample is empty, or the prompt is too long.
    """

    def __init__(self, config: SmolAndFASTConfig, step: SmolAndFASTPromptStep) -> None:
        self.config, self._step = config, step

    def __call__(self, sample: Sample) -> dict[str, Any]:
        """Process a sample for the collator."""
        tensors = validated(sample, self.config)
        batch = {key: value[None] for key, value in tensors.items() if key != "is_pad"}
        images = batch.pop("image").unbind(1)
        cameras = {f"{IMAGES}.{number}": image for number, image in enumerate(images)}
        self._step.cameras = tuple(cameras)
        output = self._step({**cameras, STATE: batch["state"], TASK: [_instruction(sample)]} | _action(batch))
        names = {LANGUAGE_TOKENS: "lang_tokens", LANGUAGE_MASK: "lang_masks"}
        names |= {ACTION_TOKENS: "action_tokens", ACTION_TOKEN_MASK: "action_masks"}
        return {**tensors, **{name: output[key][0] for key, name in names.items() if key in output}}


def validated(sample: Sample, config: ILStudioConfig) -> dict[str, Tensor]:
    """Return a sample's validated tensors: `image`, `state`, and in training `action` and `is_pad`.

    Raises:
        FeatureError: a feature is missing, has another size, or is not finite.
    """
    tensors = {"image": _images(sample.get("image"), config), "state": _vector(sample.get("state"), config)}
    if sample.get("action") is None:
        return tensors
    action, chunk = torch.as_tensor(sample["action"]).float(), config.chunk_size
    if action.ndim != 2 or action.shape[1] != config.action_dim or len(action) < chunk:
        raise FeatureError(
            f"A sample's actions are {tuple(action.shape)}, and the policy wants {config.action_dim} values in chunks of "
            f"{chunk}. Make chunk_size in the task's dataset arguments {chunk} or more, or set --policy.chunk_size; "
            "action_dim is the task's."
        )
    pad = sample.get("is_pad")
    is_pad = torch.zeros(len(action), dtype=torch.bool) if pad is None else torch.as_tensor(pad).bool()
    action, is_pad = _finite(action[:chunk], "actions"), is_pad[:chunk]
    # IL-Studio pads with zeros after an episode's end, and zero is a valid position. A policy that predicts its whole chunk, as
    # SmolAndFAST does, would learn to move there; so the last action is repeated, as in LeRobot's datasets.
    last = max(int((~is_pad).sum()) - 1, 0)
    return {**tensors, "action": torch.where(is_pad[:, None], action[last], action), "is_pad": is_pad}


def smolvla_collator(samples: Sequence[Sample]) -> dict[str, Any]:
    """Collate processed samples to the arguments of `SmolVLAPolicy.forward`.

    Instructions are padded to the longest of the batch. `images` is a list of K (B, 3, H, W), uint8 or floating point in [0, 1].
    """
    batch = {**_observations(samples), **_padded_tokens(samples, "lang_tokens", "lang_masks", "right")}
    if "action" not in samples[0]:
        return batch
    return {**batch, "actions": _stacked(samples, "action"), "is_pad": _stacked(samples, "is_pad")}


def smolandfast_collator(samples: Sequence[Sample]) -> dict[str, Any]:
    """Collate processed samples to the arguments of `SmolAndFASTPolicy.forward`: prompts padded left, answers right."""
    batch = {**_observations(samples), **_padded_tokens(samples, "lang_tokens", "lang_masks", "left")}
    if "action_tokens" not in samples[0]:
        return batch
    return {**batch, **_padded_tokens(samples, "action_tokens", "action_masks", "right")}


class ProcessThenCollate:
    """A collator for unprocessed samples."""

    def __init__(
        self, processor: Callable[[Sample], Sample], collator: Callable[[Sequence[Sample]], dict[str, Any]]
    ) -> None:
        self.processor, self.collator = processor, collator

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Any]:
        """Process and collate the samples."""
        return self.collator([self.processor(sample) for sample in samples])


def _instruction(sample: Sample) -> str:
    text = sample.get("raw_lang")
    if not isinstance(text, str):
        raise FeatureError(f"A sample's raw_lang is {text!r:.80}: expected its instruction, a text.")
    return text


def _images(value: Any, config: ILStudioConfig) -> Tensor:
    if value is None:
        raise FeatureError(
            "A sample has no image. Name cameras in the task's dataset arguments (camera_names), or let the environment "
            "give pictures."
        )
    images = torch.as_tensor(np.ascontiguousarray(value) if isinstance(value, np.ndarray) else value)
    if images.ndim != 4 or images.shape[1] != 3 or not config.takes(len(images)):
        raise FeatureError(
            f"A sample's image is {tuple(images.shape)}: expected (cameras, 3, height, width), with {len(config.camera_names)} cameras "
            f"({', '.join(config.camera_names) or 'of any name'}). Set --policy.camera_names, or the dataset's or environment's."
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point() or images.max() > 1:
        raise FeatureError(
            f"A sample's image is {images.dtype}, up to {images.max().item()}: expected uint8, or floating point in [0, 1]."
        )
    # IL-Studio's resize_with_pad pads floating-point images with -1.
    return images.float().clamp_min(0)


def _vector(value: Any, config: ILStudioConfig) -> Tensor:
    if value is None:
        raise FeatureError("A sample has no state, which the policy looks at.")
    state = torch.as_tensor(value).float()
    if state.shape != (config.state_dim,):
        raise FeatureError(
            f"A sample's state is {tuple(state.shape)}, and the policy wants {config.state_dim} values: state_dim is the task's "
            "(or --policy.state_dim)."
        )
    return _finite(state, "state")


def _finite(values: Tensor, what: str) -> Tensor:
    if not torch.isfinite(values).all():
        raise FeatureError(
            f"A sample's {what} are not finite after IL-Studio's normalization. A value that never changes has no range: use "
            f"zscore (--policy.{'action' if what == 'actions' else 'state'}_normalize=zscore), or a mask in the task."
        )
    return values


def _action(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {ACTION: batch["action"]} if "action" in batch else {}


def _observations(samples: Sequence[Sample]) -> dict[str, Any]:
    images = list(_stacked(samples, "image").unbind(1))
    masks = [torch.ones(len(samples), dtype=torch.bool) for _ in images]
    return {"images": images, "img_masks": masks, "state": _stacked(samples, "state")}


def _padded_tokens(samples: Sequence[Sample], tokens: str, mask: str, side: str) -> dict[str, Tensor]:
    """Pad tokens and their masks to the longest row. Masked tokens are never read."""
    if tokens not in samples[0]:
        raise FeatureError(
            f"The samples have no {tokens}; they hold {sorted(samples[0])}. Pass each through the processor first (get_data_processor)."
        )
    length = max(len(sample[tokens]) for sample in samples)

    def padded(name: str) -> Tensor:
        counts = [length - len(sample[name]) for sample in samples]
        sides = [(0, count) if side == "right" else (count, 0) for count in counts]
        return torch.stack([F.pad(sample[name], pair) for sample, pair in zip(samples, sides, strict=True)])

    return {tokens: padded(tokens), mask: padded(mask)}


def _stacked(samples: Sequence[Sample], name: str) -> Tensor:
    return torch.stack([sample[name] for sample in samples])
