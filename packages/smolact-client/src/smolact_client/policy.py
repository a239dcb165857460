"""What a policy is to whoever moves a robot by it, wherever it runs."""

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
    """A policy with what stands before and behind it: raw observations in, actions in the robot's units out.

    `RemotePolicy` is one on a server, `smolact.serving.local.LocalPolicy` one in this process.
    """

    @property
    def schema(self) -> Schema:
        """What it looks at and answers."""
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
        """The next actions (T, A) float32.

        Args:
            observation: cameras (H, W, 3) uint8 and vectors (D,), by the schema's names; what else is there is not looked at.
            task: the instruction; None for an empty one, on purpose.
            timeout: seconds until the answer is of no use any more; a policy in this process takes as long as it takes.
            seed: what it draws from; the same one gives the same answer. None: it draws as it likes.
            leftover: what the answer is to go on from, for a policy whose schema takes one.
        """
        ...

    def reset(self) -> None:
        """An episode begins."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...
