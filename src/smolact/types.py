"""The data contract: batch keys, feature types, and the policy interface.

A **sample** is one moment of a demonstration, a **batch** several of them with a leading B:

    observation.images.NAME, observation.image   (3, H, W)  uint8, or float32 in [0, 1]
    observation.state                            (D,)       float32, the robot's own units
    action                                       (chunk, A) float32, the robot's own units
    action_is_pad                                (chunk,)   bool, true past the episode's end
    task                                         str        the instruction
    timestamp, frame_index, episode_index, index, task_index

The preprocessor adds `observation.language.tokens` (B, L) and `observation.language.attention_mask` (B, L) and normalizes; the
postprocessor returns actions to the robot's units. Policies get only normalized units, robots only raw ones. No step changes a
batch in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

OBSERVATION = "observation"
STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
IMAGE = "observation.image"
IMAGES = "observation.images"
LANGUAGE_TOKENS = "observation.language.tokens"
LANGUAGE_MASK = "observation.language.attention_mask"
ACTION = "action"
ACTION_IS_PAD = "action_is_pad"
ACTION_TOKENS = "action.tokens"
ACTION_TOKEN_MASK = "action.token_mask"
VISION_TOKENS = "_vision_tokens"
"""Suffix of a camera's key whose image is replaced by its cached vision tokens: (T, D) (`--cache.features`)."""
REWARD = "next.reward"
DONE = "next.done"
SUCCESS = "next.success"
TASK = "task"
INTERVENTION = "intervention"
"""(1,) bool, in a dataset of corrections: whether a person drove, and not the policy. LeRobot's name."""


class EmptyInstruction(str):
    """The intentionally empty instruction, to test a policy without one. Any other empty instruction is an error."""

    __slots__ = ()


Batch = dict[str, Any]
"""A batch or a sample: key to tensor (or str, or list of str for `task`)."""

Statistics = dict[str, dict[str, "np.ndarray[Any, Any]"]]
"""Feature to statistic (`min, max, mean, std, count, q01, …`) to array."""


class FeatureType(str, Enum):
    """The type of a feature, which determines its normalization."""

    STATE = "STATE"
    VISUAL = "VISUAL"
    ENV = "ENV"
    ACTION = "ACTION"
    REWARD = "REWARD"
    LANGUAGE = "LANGUAGE"


class NormalizationMode(str, Enum):
    """The mapping of a feature type's values to the policy's range."""

    MIN_MAX = "MIN_MAX"  # (min, max) -> [-1, 1]
    MEAN_STD = "MEAN_STD"  # (x - mean) / std
    IDENTITY = "IDENTITY"
    QUANTILES = "QUANTILES"  # (q01, q99) -> [-1, 1]
    QUANTILE10 = "QUANTILE10"  # (q10, q90) -> [-1, 1]


@dataclass(frozen=True)
class PolicyFeature:
    """A policy's input or output: its type and its shape without batch (images: channels, height, width)."""

    type: FeatureType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class RobotNames:
    """The robot that an environment simulates: with its names and units, their datasets and checkpoints fit each other.

    Attributes:
        robot_type: the robot's type in a dataset.
        names: names of the action's numbers, and of the state's, in order.
        units: their units.
        max_step: the largest change of each in one control step; inf for none.
    """

    robot_type: str
    names: tuple[str, ...]
    units: tuple[str, ...]
    max_step: tuple[float, ...]


def is_image_key(key: str) -> bool:
    """Whether `key` names a camera: `observation.image` or `observation.images.NAME`."""
    return (key == IMAGE or key.startswith(IMAGES + ".")) and not key.endswith(VISION_TOKENS)


class Predictor(Protocol):
    """The interface for evaluation, recording and serving: a policy, or an engine built from one. Batches are preprocessed."""

    config: Any

    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Predict the next actions, (B, chunk, A), normalized."""
        ...

    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Return the next action, (B, A), normalized; predicts a chunk whenever the last one is used up."""
        ...

    def reset(self) -> None:
        """Discard the current chunk; called at the start of an episode."""
        ...
