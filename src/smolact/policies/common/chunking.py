"""The interface of policies and engines, which predict a chunk of actions and return its actions one by one."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from smolact.errors import ConfigError, did_you_mean
from smolact.policies.configuration import PolicyConfig


class ActsInChunks(ABC):
    """A queue of actions in front of `predict_action_chunk`. Call `reset` before every episode, the first one too."""

    config: PolicyConfig
    takes_leftover: bool = False
    """Whether `predict_action_chunk` takes `guidance` from the rest of the last chunk (`guidance.py`)."""
    _queue: deque[Tensor]

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """The shape of one sample's `noise`; None if prediction is deterministic."""
        return None

    @abstractmethod
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Predict the next actions (B, chunk, A), normalized."""

    def reset(self) -> None:
        """Clear the queue of actions; called when an episode begins."""
        self._queue = deque()

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """Return the next action (B, A), normalized; a new chunk is predicted after every `n_action_steps`."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk.unbind(1)[: self.config.n_action_steps])
        return self._queue.popleft()


class Engine(ActsInChunks):
    """A policy for inference only, as fast as the machine allows; `policy.build_engine()` makes it.

    It returns the results of `policy.predict_action_chunk` for the same batch and noise. It is not an `nn.Module`: it can't be
    trained or saved.
    """

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Raise a `ConfigError` unless the engine has settings of these names."""
        parameters = inspect.signature(cls).parameters.values()
        known = sorted(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        for name in settings:
            if name not in known and not takes_any:
                raise ConfigError(
                    f"{cls.__name__} has no setting '{name}'; it has {', '.join(known)}. Leave it out.{did_you_mean(name, known)}"
                )

    def warm_up(self, batch: Mapping[str, Any] | None = None) -> None:
        """Prepare for batches like this one, or the usual ones if None, so that the first prediction is not delayed."""
        return

    @property
    def memory(self) -> int:
        """Bytes of the engine's weights in addition to the policy's own."""
        return 0
