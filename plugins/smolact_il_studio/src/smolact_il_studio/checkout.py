"""The files that `smolact il-studio install` writes into an IL-Studio checkout: modules that import smolact, and a YAML per policy.

Nothing heavy is imported here; the YAMLs are generated from the policies' settings, so that each default is defined once.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, NamedTuple

from smolact.policies.configuration import PolicyConfig
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolvla.configuration_smolvla import SmolVLAConfig
from smolact.settings import DOC
from smolact_il_studio.fields import OWN, THE_TASKS, setting_names

_SOURCE = "smolact_il_studio"


class Policy(NamedTuple):
    """A policy in IL-Studio: its module there, its settings, IL-Studio's normalization for it, and its class names' prefix."""

    module: str
    title: str
    settings: type[PolicyConfig]
    normalization: str
    stem: str
    files: dict[str, tuple[str, tuple[str, ...]]]
    """File name to its subject and the names that it imports from smolact's module for this policy."""


_SHARED = ("get_data_collator", "get_data_processor", "load_model")
POLICIES = {
    "smolvla": Policy(
        "policy.smolvla",
        "SmolVLA",
        SmolVLAConfig,
        "zscore",
        "SmolVLA",
        {
            "configuration.py": ("settings", ("SmolVLAConfig", "SmolVLAPolicyConfig")),
            "modeling.py": ("model", ("SmolVLAPolicy", "VLAFlowMatching")),
            "smolvlm_with_expert.py": ("VLM and its action expert", ("SmolVLMWithExpertModel",)),
            "data_utils.py": ("samples and batches", ("SmolVLAProcessor", "data_collator")),
            "trainer.py": ("trainer", ("SmolVLATrainer", "create_smolvla_trainer")),
        },
    ),
    "smolandfast": Policy(
        "policy.smolandfast",
        "SmolAndFAST",
        SMOLANDFASTConfig,
        "minmax",
        "SmolAndFAST",
        {
            "configuration.py": ("settings", ("SmolAndFASTConfig",)),
            "modeling.py": ("model", ("SmolAndFASTPolicy",)),
            "data_utils.py": ("samples and batches", ("SmolAndFASTProcessor", "data_collator")),
            "trainer.py": ("trainer", ("SmolAndFASTTrainer",)),
        },
    ),
}


def installed_files() -> dict[str, str]:
    """Return the text of each installed file by its path in the checkout."""
    files = {}
    for name, policy in POLICIES.items():
        folder = policy.module.replace(".", "/")
        all_names: list[str] = []
        for file, (about, names) in policy.files.items():
            files[f"{folder}/{file}"] = _module(f"{policy.title}: {about}", name, names)
            all_names += names
        names = tuple(sorted([*all_names, *_SHARED]))
        files[f"{folder}/__init__.py"] = _module(f"{policy.title}: what IL-Studio looks for", name, names)
        files[f"configs/policy/{name}.yaml"] = policy_yaml(name)
    return files


def policy_yaml(name: str) -> str:
    """Return a policy's YAML: the settings that have an effect in IL-Studio, each with a description."""
    policy = POLICIES[name]
    lines = [
        f"# {policy.title}, computed by smolact. Written by `smolact il-studio install`; `smolact il-studio uninstall` takes it away.",
        f"name: {name}",
        f"module_path: {policy.module}",
        f"config_class: {policy.stem}Config",
        f"model_class: {policy.stem}Policy",
        "data_processor: get_data_processor",
        "data_collator: get_data_collator",
        f"trainer_class: {policy.stem}Trainer",
        "pretrained_config:",
        "  model_name_or_path: null  # a checkpoint of IL-Studio, smolact or LeRobot",
        "  is_pretrained: false  # true: begin from it, with its own settings",
        "# Sizes of state and action, and the cameras' names, are the task's.",
        "model_args:",
    ]
    rows = {item.name: (_default(item), item.metadata[DOC]) for item in dataclasses.fields(policy.settings)}
    rows = {name: rows[name] for name in setting_names(policy.settings)}
    rows |= {name: row for name, row in OWN.items() if name not in THE_TASKS}
    for kind in ("action", "state"):
        rows[f"{kind}_normalize"] = (
            policy.normalization,
            f"how IL-Studio normalizes the {kind} for this policy",
        )
    for setting, (default, about) in rows.items():
        lines.append(f"  {setting}: {json.dumps(default)}  # {about}")
    return "\n".join(lines) + "\n"


def _default(item: dataclasses.Field[Any]) -> Any:
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def _module(about: str, policy: str, names: tuple[str, ...]) -> str:
    """Return the text of a module that only re-exports `names`."""
    listed = "".join(f"    {name},\n" for name in names)
    exported = "".join(f'    "{name}",\n' for name in names)
    return (
        f'"""{about}. The code is smolact\'s (`{_SOURCE}`).\n\n'
        'Written by `smolact il-studio install`; `smolact il-studio uninstall` brings back what was here before.\n"""\n\n'
        f"from {_SOURCE}.{policy} import (\n{listed})\n\n__all__ = [\n{exported}]\n"
    )
