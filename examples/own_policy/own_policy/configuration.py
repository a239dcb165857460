"""The settings of the policy `blind`. No torch here, so that `--help` stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from smolact.policies.configuration import PolicyConfig
from smolact.settings import setting


@dataclass
class BlindConfig(PolicyConfig):
    """A network from the state to a chunk of actions. It sees nothing, and so reaches a goal by chance."""

    type: ClassVar[str] = "blind"
    policy_class: ClassVar[str] = "own_policy.modeling:BlindPolicy"
    uses_cameras: ClassVar[bool] = False

    chunk_size: int = setting(4, "actions that are predicted at once", least=1, most=100)
    n_action_steps: int = setting(
        2, "actions that are executed before the next prediction", least=1, most=100
    )
    width: int = setting(64, "width of the hidden layer", least=1, most=4096)
