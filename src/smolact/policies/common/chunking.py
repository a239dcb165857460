"""What predicts a chunk of actions and hands it out one by one: a policy, and an engine built from one."""

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
    """A queue of actions in front of `predict_action_chunk`. Call `reset` before the first action, too."""

    config: PolicyConfig
    takes_leftover: bool = False
    """Whether `predict_action_chunk` takes `guidance`: what is left of the last chunk (`guidance.py`)."""
    _queue: deque[Tensor]

    @abstractmethod
    def predict_action_chunk(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next actions (B, chunk, A), normalized."""

    def reset(self) -> None:
        """Forget the actions in hand; called when an episode begins."""
        self._queue = deque()

    @torch.no_grad()
    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None) -> Tensor:
        """The next action (B, A), normalized; a new chunk is predicted after every `n_action_steps`."""
        if not self._queue:
            chunk = self.predict_action_chunk(batch, noise)
            self._queue.extend(chunk.unbind(1)[: self.config.n_action_steps])  # type: ignore[attr-defined]
        return self._queue.popleft()


class Engine(ActsInChunks):
    """A policy that only predicts, as fast as the machine can; `policy.build_engine()` makes it.

    It gives what `policy.predict_action_chunk` gives from the same batch and noise. It is no `nn.Module`: nothing of it
    trains, and nothing is saved.
    """

    @classmethod
    def check_settings(cls, settings: Mapping[str, Any]) -> None:
        """Whether it can be built with settings of these names.

        Raises:
            ConfigError: there is one that it does not have.
        """
        parameters = inspect.signature(cls).parameters.values()
        known = sorted(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
        takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
        for name in settings:
            if name not in known and not takes_any:
                raise ConfigError(
                    f"{cls.__name__} has no setting '{name}'; it has {', '.join(known)}. Leave it out.{did_you_mean(name, known)}"
                )

    @property
    def noise_shape(self) -> tuple[int, ...] | None:
        """The shape of one sample's `noise`; None if predicting draws nothing."""
        return None

    def warm_up(self, batch: Mapping[str, Any] | None = None) -> None:
        """Make ready what the first prediction would have to wait for, for batches like this one; else for the usual ones."""
        return

    @property
    def memory(self) -> int:
        """Bytes of the weights that it holds beside the policy's own."""
        return 0
