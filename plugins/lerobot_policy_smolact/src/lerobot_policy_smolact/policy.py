"""One of smolact's policies in the place of LeRobot's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lerobot.configs import PreTrainedConfig
from torch import Tensor

from lerobot_policy_smolact.fields import ours
from smolact.policies.base import PreTrainedPolicy
from smolact.policies.common.chunking import ActsInChunks
from smolact.policies.factory import get_policy_class, make_policy

logger = logging.getLogger(__name__)


class SmolactPolicy:
    """What LeRobot asks of a policy, answered by the policy of smolact in `inner`. To be mixed into LeRobot's base class.

    `model` is `inner.model`: what is trained, moved and saved here is that very network, under the names that checkpoints of
    both have.
    """

    kind: ClassVar[str]
    """The policy's type in smolact."""
    inner: PreTrainedPolicy

    def __init__(
        self, config: PreTrainedConfig, *args: Any, inner: PreTrainedPolicy | None = None, **kwargs: Any
    ) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        # Not as a submodule: its parameters would be there twice.
        self.__dict__["inner"] = inner or make_policy(ours(config, self.kind))
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
        """A checkpoint of LeRobot, of this plugin or of smolact, in evaluation mode.

        Raises:
            smolact.NotFoundError, smolact.HubError: it is not there.
            smolact.CheckpointError: a file is damaged, or its weights do not fit.
        """
        if config is None:
            config = PreTrainedConfig.from_pretrained(pretrained_name_or_path, revision=revision)
        inner = get_policy_class(cls.kind).from_pretrained(
            pretrained_name_or_path, config=ours(config, cls.kind), revision=revision
        )
        return cls(config, inner=inner).to(config.device).eval()  # type: ignore[attr-defined]

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save_pretrained(save_directory, state_dict=state_dict)  # type: ignore[misc]
        self.inner.save_extra_files(save_directory)

    def get_optim_params(self) -> Any:
        """What the optimizer is given."""
        return self.inner.get_optim_params()

    def forward(
        self,
        batch: Mapping[str, Any],
        noise: Tensor | None = None,
        time: Tensor | None = None,
        reduction: str = "mean",
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a preprocessed batch, and what to log."""
        complete = self.fill_in_processor(batch)
        loss, found = self.inner(complete, noise, time, reduction, **self.draws(complete))
        return loss, {name: float(value) for name, value in found.items() if value.numel() == 1}

    def predict_action_chunk(
        self, batch: Mapping[str, Any], noise: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """The next actions (B, chunk, A), normalized."""
        if kwargs:
            raise TypeError(
                f"{type(self).__name__} predicts without {', '.join(kwargs)} (real-time chunking: smolact rollout)."
            )
        return self.player.predict_action_chunk(self.fill_in_processor(batch), noise)

    def select_action(self, batch: Mapping[str, Any], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """The next action (B, A), normalized; a new chunk after every `n_action_steps`."""
        return self.player.select_action(self.fill_in_processor(batch), noise)

    def reset(self) -> None:
        """Forget the actions in hand."""
        self.inner.reset()
        if self._engine is not None:
            self._engine.reset()

    @property
    def player(self) -> ActsInChunks:
        """What predicts: the engine, which packs weights anew when they have changed; with adapters the policy itself."""
        if self.config.use_peft:  # type: ignore[attr-defined]
            return self.inner
        if self._engine is None:
            self._engine = self.inner.build_engine()
            logger.info("smolact's engine predicts.")
        return self._engine

    def fill_in_processor(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        """The batch with what LeRobot's pipeline does not make."""
        return batch

    def draws(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Further random arguments of `forward`."""
        return {}
