"""The protocol of a policy at run time: raw observations in, chunks of actions in the robot's units out.

`LocalPolicy` (a checkpoint or its engine, with its processors), `ServedPolicy` (a policy on a server of smolact's or openpi's)
and a user's own subclass are all used through it by evaluation, rollout, recording and serving.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from smolact_client.policy import Request
from smolact_client.schema import Schema

__all__ = ["Chunk", "Policy", "Request"]

Chunk = NDArray[np.float32]
"""Actions (T, A) in the robot's units."""


class Policy(ABC):
    """A policy with its processors. A subclass needs `schema` and `predict`."""

    schema: Schema
    """Inputs and outputs of the policy, under the robot's names and in its units."""

    @abstractmethod
    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """Return a chunk (T, A) float32 for each request.

        Raises:
            BadObservationError: an observation does not fit the schema, or is far outside the training data.
            FeatureError: the policy's output is not finite or has a wrong shape.
            ServerError: a server does not answer.
        """

    def reset(self) -> None:
        """Begin an episode. A request that waits for a server in another thread is dropped."""
        return

    def warm_up(self, max_batch: int = 1) -> None:
        """Predict once from black pictures and zeros, so that the first real request does not wait for lazy initialization.

        Args:
            max_batch: the largest number of requests in one call.
        """
        self.predict([self.blank_request()])

    def close(self) -> None:
        """Release connections and memory. A request that waits for a server in another thread fails at once."""
        return

    def blank_request(self) -> Request:
        """Return a request with black pictures and zeros."""
        black = {name: np.zeros((*size, 3), np.uint8) for name, size in self.schema.cameras.items()}
        zeros = {name: np.zeros(size, np.float32) for name, size in self.schema.vectors.items()}
        return Request({**black, **zeros}, "warm up")
