"""smolact's policies for LeRobot; the import registers their types and their processor steps."""

from lerobot_policy_smolact import processor_smolandfast, processor_smolvla_fast  # noqa: F401
from lerobot_policy_smolact.configuration_smolandfast import SMOLANDFASTConfig
from lerobot_policy_smolact.configuration_smolvla_fast import SmolVLAFastConfig

__all__ = ["SMOLANDFASTConfig", "SmolVLAFastConfig"]
