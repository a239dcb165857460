"""The interface of a policy that controls a robot, local or remote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smolact_client.leftover import Leftover
from smolact_client.schema import Schema


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
