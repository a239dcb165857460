"""IL-Studio's `PolicyLoader` without IL-Studio: from a policy's YAML to model, processor, collator and trainer.

A YAML names a module; only smolact's modules are imported.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from smolact.errors import CheckpointError, ConfigError, NotFoundError, did_you_mean, list_siblings
from smolact_il_studio.checkout import POLICIES, policy_yaml

_MODULES = {policy.module: f"smolact_il_studio.{name}" for name, policy in POLICIES.items()}


@dataclass
class PolicyConfig:
    """The contents of a policy's YAML."""

    name: str
    module_path: str
    config_class: str | None = None
    model_class: str | None = None
    pretrained_config: dict[str, Any] | None = None
    model_args: dict[str, Any] | None = None
    config_params: dict[str, Any] | None = None
    data_processor: str | None = None
    data_collator: str | None = None
    trainer_class: str | None = None


class PolicyLoader:
    """Loads policies by their YAML.

    Args:
        policy_dir: the folder of the YAMLs of policies that are given by name; for a missing one, smolact's default is used.
    """

    def __init__(self, policy_dir: str | Path = "configs/policy") -> None:
        self.policy_dir = Path(policy_dir)

    def load_policy_config(self, policy_name_or_path: str | Path) -> PolicyConfig:
        """Read a policy's YAML.

        Raises:
            NotFoundError: it is missing.
            CheckpointError: it is corrupt.
            ConfigError: it is not a policy's.
        """
        name = str(policy_name_or_path)
        is_path = name.endswith((".yaml", ".yml")) or "/" in name
        path = Path(name) if is_path else self.policy_dir / f"{name}.yaml"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
        elif not is_path and name in POLICIES:
            text = policy_yaml(name)
        else:
            raise NotFoundError(
                f"There is no {path}. {list_siblings(path.absolute())} Smolact's own go by {' and '.join(POLICIES)}; "
                "`smolact il-studio install PATH` writes them into a checkout."
            )
        try:
            raw = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise CheckpointError(f"{path} is not YAML ({error}).") from error
        known = set(PolicyConfig.__dataclass_fields__)
        if not isinstance(raw, dict) or not {"name", "module_path"} <= raw.keys():
            raise ConfigError(f"{path} is no policy's YAML: expected at least name and module_path.")
        return PolicyConfig(**{key: value for key, value in raw.items() if key in known})

    def load_model(self, policy_name_or_path: str | Path, args: Any) -> dict[str, Any]:
        """Load the model and its components; `args` override the YAML. See `loading.load_policy`.

        Raises:
            ConfigError: the YAML names a module that is not smolact's, or an unknown setting.
        """
        config = self.load_policy_config(policy_name_or_path)
        args.model_args = config.model_args
        for key, value in (config.pretrained_config or {}).items():
            if value is not None and not hasattr(args, key):
                setattr(args, key, value)
        components: dict[str, Any] = self.load_model_module(config).load_model(args)
        return components

    def get_data_processor(
        self, policy_name_or_path: str | Path, args: Any, model_components: dict[str, Any]
    ) -> Any:
        """Return the policy's processor of samples."""
        return self._load_module(policy_name_or_path).get_data_processor(args, model_components)

    def get_data_collator(
        self, policy_name_or_path: str | Path, args: Any, model_components: dict[str, Any]
    ) -> Any:
        """Return the policy's collator."""
        return self._load_module(policy_name_or_path).get_data_collator(args, model_components)

    def get_trainer_class(self, policy_name_or_path: str | Path) -> Any:
        """Return the YAML's trainer class; None if it names none, for IL-Studio's own.

        Raises:
            ConfigError: the policy has no trainer of that name.
        """
        config = self.load_policy_config(policy_name_or_path)
        module = self.load_model_module(config)
        if config.trainer_class is None:
            return None
        if config.trainer_class not in module.__all__:
            raise ConfigError(
                f"trainer_class: {config.module_path} has no '{config.trainer_class}'."
                f"{did_you_mean(config.trainer_class, module.__all__)}"
            )
        return getattr(module, config.trainer_class)

    def list_available_policies(self) -> list[str]:
        """Return the names of policies that have a YAML, and of smolact's."""
        return sorted({*(path.stem for path in self.policy_dir.glob("*.yaml")), *POLICIES})

    def load_model_module(self, policy_config: PolicyConfig) -> ModuleType:
        """Import the YAML's module.

        Raises:
            ConfigError: it is not one of smolact's.
        """
        if policy_config.module_path not in _MODULES:
            raise ConfigError(
                f"module_path: '{policy_config.module_path}' is not a module of smolact, and a file may not say what is run: "
                f"expected {' or '.join(_MODULES)}. Policies of IL-Studio open with its own policy.policy_loader."
            )
        return importlib.import_module(_MODULES[policy_config.module_path])

    def _load_module(self, policy_name_or_path: str | Path) -> ModuleType:
        return self.load_model_module(self.load_policy_config(policy_name_or_path))
