"""Who says what the robot does while it is recorded: a teleoperator, or a policy."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from smolact.errors import FeatureError
from smolact.processors.observed import check_observed
from smolact.processors.statistics import require_statistics
from smolact.robots.base import Observation, Robot, RobotFeatures, Teleoperator
from smolact.robots.safety import Gate
from smolact.serving.local import schema_of
from smolact.types import TASK, Batch, Predictor, is_image_key
from smolact_client.errors import SchemaMismatchError
from smolact_client.schema import Names, Offer, Schema, check_offer

logger = logging.getLogger(__name__)


@runtime_checkable
class _Begins(Protocol):
    def begin(self) -> None: ...


class TeleoperatorDriver:
    """A connected teleoperator, held to the limits of the robot's gate; it moves the robot between episodes, too."""

    drives_resets = True

    def __init__(self, teleoperator: Teleoperator, gate: Gate) -> None:
        self._teleoperator, self._gate = teleoperator, gate

    def begin(self, task: str) -> None:
        """Tell a teleoperator that wants to know."""
        if isinstance(self._teleoperator, _Begins):
            self._teleoperator.begin()

    def get_action(self, observation: Observation) -> NDArray[Any]:
        """What the teleoperator wants, or what the gate lets pass that is nearest to it."""
        return self._gate.clamp(self._teleoperator.get_action(observation))


class PolicyDriver:
    """A policy with what stands before and behind it. What it executes of a chunk passes the gate whole, or not at all.

    Args:
        policy, preprocess, postprocess: from `smolact.load_policy`; the policy, or its engine.
        features: the robot's.
        gate: the robot's, when it is connected.
        clock: for the age of a chunk.
        any_names: whether the robot's joints may have other names than those of the policy's training.

    Raises:
        FeatureError: the policy needs a camera or numbers that the robot does not have, or acts in other numbers.
        StatisticsError: the policy lacks statistics to predict in the robot's units.
    """

    drives_resets = False

    def __init__(
        self,
        policy: Predictor,
        preprocess: Callable[[Batch], Batch],
        postprocess: Callable[[torch.Tensor], torch.Tensor],
        features: RobotFeatures,
        gate: Gate,
        clock: Callable[[], float] = time.monotonic,
        *,
        any_names: bool = False,
    ) -> None:
        self._policy, self._preprocess, self._postprocess = policy, preprocess, postprocess
        self._gate, self._clock = gate, clock
        self._executed = max(1, int(getattr(policy.config, "n_action_steps", None) or 1))
        self._chunk: deque[NDArray[np.float32]] = deque()
        self._task = ""
        self._names = features.vectors
        check_fit(policy, preprocess, postprocess, features, any_names=any_names)

    def begin(self, task: str) -> None:
        """Forget the last episode's chunk, and obey this instruction."""
        self._task = task
        self._chunk.clear()
        self._policy.reset()

    @torch.inference_mode()
    def get_action(self, observation: Observation) -> NDArray[Any]:
        """The policy's next action, (A,) float32, in the robot's units; a new chunk when the last one is used up.

        Raises:
            FeatureError: it is not finite, or a number of the observation is nowhere near those of the training.
            UnsafeActionError: the gate refuses the chunk; nothing of it is executed.
        """
        if not self._chunk:
            began = self._clock()
            raw = _batch_of(observation)
            batch = self._preprocess({**raw, TASK: [self._task]})
            check_observed(raw, batch, self._preprocess, self._names)
            chunk = self._postprocess(self._policy.predict_action_chunk(batch))[0, : self._executed]
            values: NDArray[np.float32] = chunk.detach().float().cpu().numpy()
            if not np.isfinite(values).all():
                raise FeatureError(
                    "The policy gave an action that is not finite. Its weights or its statistics are damaged."
                )
            self._chunk.extend(self._gate.check_chunk(values, age=self._clock() - began))
        return self._chunk.popleft()


def check_fit(
    policy: Predictor,
    preprocess: Callable[[Batch], Batch],
    postprocess: Callable[[torch.Tensor], torch.Tensor],
    features: RobotFeatures,
    *,
    any_names: bool = False,
) -> Names:
    """Raise unless a policy can drive a robot with these features; returns the cameras that it does without.

    Raises:
        FeatureError: they do not fit together; the message has a table of both sides, and what settles it.
        StatisticsError: the policy lacks statistics to predict in the robot's units.
    """
    require_statistics(preprocess, postprocess)
    schema: Schema | None = getattr(policy, "schema", None)
    at_server = schema is not None
    if schema is None and getattr(policy.config, "output_features", None):
        schema = schema_of(policy.config, preprocess, postprocess)
    if schema is None:  # a policy of one's own may say nothing
        return ()
    return check_robot(
        replace(schema, any_names=schema.any_names or any_names), features, at_server=at_server
    )


def check_robot(schema: Schema, features: RobotFeatures, *, at_server: bool) -> Names:
    """Raise unless a robot has what a policy looks at, and takes what it gives; returns the cameras that it does without.

    Args:
        schema: the policy's.
        features: the robot's.
        at_server: whether the policy is loaded by a server, which then has the flags.

    Raises:
        FeatureError: they do not fit together; the message has a table of both sides, and what settles it.
    """
    offer = Offer(features.cameras, features.vectors, features.action, features.units)
    try:
        return check_offer(schema, offer)
    except SchemaMismatchError as error:
        there = " The policy is on a server: --rename_map and --policy.… are flags of `smolact serve` there."
        raise FeatureError(f"{error}{there if at_server else ''}") from error


def rate_of_training(policy: Predictor) -> float | None:
    """Actions a second in a policy's training, where it or its server says so."""
    schema, known = getattr(policy, "schema", None), getattr(policy.config, "embodiment", None)
    said = schema if schema is not None else known
    return None if said is None else said.fps


def rate_of(asked: float | None, robot: Robot, trained: float | None) -> float:
    """Actions a second: as it was asked for, as the simulation has it, as the policy was trained, or 30."""
    known = getattr(getattr(robot, "env", None), "fps", None) or trained or 30.0
    return float(known if asked is None else asked)


def note_rate(rate: float, trained: float | None) -> None:
    """Say it if a policy's actions are sent at another rate than that of its training."""
    if trained is not None and rate != trained:
        logger.warning(
            "Actions are sent at %g a second, and the policy was trained at %g: its motions take %.2f times as long.",
            rate,
            trained,
            trained / rate,
        )


def note_masked(cameras: Names) -> None:
    """Say which of a policy's cameras a robot does not have."""
    if cameras:
        logger.warning("Not on the robot, shown to the policy as masked black: %s.", ", ".join(cameras))


def _batch_of(observation: Observation) -> Batch:
    """One observation as a raw batch: images (1, 3, H, W) float32 in [0, 1], numbers (1, D) float32."""
    batch: Batch = {}
    for key, value in observation.items():
        tensor = torch.from_numpy(np.ascontiguousarray(value))[None]
        batch[key] = (
            tensor.permute(0, 3, 1, 2).contiguous().float().div_(255.0)
            if is_image_key(key)
            else tensor.float()
        )
    return batch
