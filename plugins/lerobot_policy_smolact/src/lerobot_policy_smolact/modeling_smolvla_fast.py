"""SmolVLA with the interface of LeRobot's trainer and evaluation, computed by smolact."""

from __future__ import annotations

from lerobot.policies.pretrained import PreTrainedPolicy

from lerobot_policy_smolact.configuration_smolvla_fast import KIND, SmolVLAFastConfig
from lerobot_policy_smolact.policy import SmolactPolicy


class SmolVLAFastPolicy(SmolactPolicy, PreTrainedPolicy):
    """SmolVLA, trained by smolact's network and run by its engine. Weights have LeRobot's names."""

    config_class = SmolVLAFastConfig
    name = "smolvla_fast"
    kind = KIND
