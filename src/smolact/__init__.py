"""Train, evaluate, record with and serve small vision-language-action policies."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # not typing's, whose import takes longer than everything else here
if TYPE_CHECKING:
    from typing import Any

    from smolact.datasets.reader import LeRobotDataset
    from smolact.errors import SmolactError
    from smolact.policies.factory import load_policy
    from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
    from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFASTPolicy
    from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from smolact.policies.smolvla.modeling_smolvla import SmolVLAPolicy

__version__ = "0.1.0"  # of all distributions of this repository
__all__ = [
    "LeRobotDataset",
    "SMOLANDFASTConfig",
    "SMOLANDFASTPolicy",
    "SmolVLAConfig",
    "SmolVLAPolicy",
    "SmolactError",
    "load_policy",
]

_HOME = {
    "LeRobotDataset": "smolact.datasets.reader",
    "SMOLANDFASTConfig": "smolact.policies.smolandfast.configuration_smolandfast",
    "SMOLANDFASTPolicy": "smolact.policies.smolandfast.modeling_smolandfast",
    "SmolVLAConfig": "smolact.policies.smolvla.configuration_smolvla",
    "SmolVLAPolicy": "smolact.policies.smolvla.modeling_smolvla",
    "SmolactError": "smolact.errors",
    "load_policy": "smolact.policies.factory",
}


def __getattr__(name: str) -> Any:
    # Public names are imported on first use, so that `import smolact` costs nothing.
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'smolact' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
