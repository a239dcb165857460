"""The interface of a policy that controls a robot, local or remote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smolact_client.leftover import Leftover
from smolact_client.schema import Schema


@dataclass(frozen=True)
class Request:
    """One question to a policy.

    Attributes:
        observation: cameras (H, W, 3) uint8 and vectors (D,) float32, by the names of the policy's schema; other entries are ignored.
        task: the instruction; None for an empty one, on purpose.
        seed: the seed of the policy's noise; the same seed gives the same chunk. None: the policy draws without a seed.
        leftover: the rest of the last chunk, which the new one continues (real-time chunking); the schema says if it is supported.
    """

    observation: Mapping[str, NDArray[Any]]
    task: str | None
    seed: int | None = None
    leftover: Leftover | None = None


@runtime_checkable
class ChunkPolicy(Protocol):
    """A policy with its processors: raw observations in, actions in the robot's units out.

    `RemotePolicy` runs it on a server, `smolact.serving.local.LocalPolicy` in this process.
    """

    @property
    def schema(self) -> Schema:
        """The policy's inputs and outputs."""
        ...

    def predict_action_chunk(
        self,
        observation: Mapping[str, ArrayLike],
        task: str | None,
        *,
        timeout: float | None = None,
        seed: int | None = None,
        leftover: Leftover | None = None,
    ) -> NDArray[np.float32]:
        """Predict the next actions (T, A) float32.

        Args:
            observation: cameras (H, W, 3) uint8 and vectors (D,), by the schema's names; other entries are ignored.
            task: the instruction; None for a deliberately empty one.
            timeout: seconds until the answer is useless; a local policy ignores it.
            seed: the random seed, which makes the answer reproducible; None for a random answer.
            leftover: the actions that the answer continues, for a policy whose schema takes a leftover.
        """
        ...

    def reset(self) -> None:
        """Begin an episode."""
        ...

    def close(self) -> None:
        """Release the policy's resources."""
        ...
