"""The adapter from smolact's policies to LeRobot's policy interface."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lerobot.configs import PreTrainedConfig
from torch import Tensor

from lerobot_policy_smolact.fields import smolact_config
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.common.chunking import ActsInChunks
from smolact.policies.factory import get_policy_class, make_policy

logger = logging.getLogger(__name__)


class SmolactPolicy:
    """A mixin for LeRobot's base class that delegates to smolact's policy `inner`.

    `model` is `inner.model`: LeRobot trains, moves and saves this same network, with the weight names of both.
    """

    kind: ClassVar[str]
    """The policy's type in smolact."""
    inner: PreTrainedPolicy

    def __init__(
        self, config: PreTrainedConfig, *args: Any, inner: PreTrainedPolicy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        # Not a submodule, which would register its parameters twice.
        self.__dict__["inner"] = inner or make_policy(smolact_config(config, self.kind))
        self.model = self.inner.model
        self._engine: ActsInChunks | None = None

    @classmethod
    def from_pretrained(  # type: ignore[no-untyped-def]
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ):
        """Load a checkpoint of LeRobot, of this plugin or of smolact, in evaluation mode.

        Raises:
            smolact.NotFoundError, smolact.HubError: it is missing.
            smolact.CheckpointError: a file is corrupt, or its weights do not match.
        """
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, revision=revision)
        inner = get_policy_class(cls.kind).from_pretrained(
            pretrained_name_or_path, config=smolact_config(config, cls.kind), revision=revision
        )
        return cls(config, inner=inner).to(config.device).eval()  # type: ignore[attr-defined]

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)  # type: ignore[misc]
        self.inner.save_extra_files(save_directory)

    def get_optim_params(self) -> Any:
        """The parameters for the optimizer."""
        return self.inner.get_optim_params()

    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a preprocessed batch and the scalars to log."""
        complete = self.fill_in_processor(batch)
        loss, logged = self.inner(complete, noise, time, reduction, **self.draws(complete))
        return loss, {name: float(value) for name, value in logged.items() if value.numel() == 1}

    def predict_action_chunk(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Predict the next actions (B, chunk, A), normalized."""
        if kwargs:
            raise TypeError(
                f"{type(self).__name__} predicts without {', '.join(kwargs)} (real-time chunking: smolact rollout)."
            )
        return self.player.predict_action_chunk(self.fill_in_processor(batch), noise)

    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Return the next action (B, A), normalized; a new chunk is predicted every `n_action_steps`."""
        return self.player.select_action(self.fill_in_processor(batch), noise)

    def reset(self) -> None:
        """Clear the action queue."""
        self.inner.reset()
        if self._engine is not None:
            self._engine.reset()

    @property
    def player(self) -> ActsInChunks:
        """The engine, which repacks weights after they change; with adapters, the policy itself."""
        if self.config.use_peft:  # type: ignore[attr-defined]
            return self.inner
        if self._engine is None:
            self._engine = self.inner.build_engine()
            logger.info("smolact's engine predicts.")
        return self._engine

    def fill_in_processor(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """Add the inputs that LeRobot's pipeline does not make."""
        return batch

    def draws(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Draw further random arguments of `forward`."""
        return {}
