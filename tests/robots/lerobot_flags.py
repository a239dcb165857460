"""The flags of LeRobot's robot commands, read from its configuration classes. Imports nothing of smolact.

A Python with LeRobot 0.6.1 and its extras `feetech` and `dataset` writes them: `python lerobot_flags.py lerobot_flags.json`. Each flag
has a value that it takes and that is not its default.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import enum
import importlib
import json
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any
from unittest import mock

COMMANDS = {
    "calibrate": "CalibrateConfig",
    "find_joint_limits": "FindJointLimitsConfig",
    "record": "RecordConfig",
    "replay": "ReplayConfig",
    "rollout": "RolloutConfig",
    "setup_can": "CANSetupConfig",
    "setup_motors": "SetupConfig",
    "teleoperate": "TeleoperateConfig",
}
CHOICES = {
    "robot": ("so100_follower", "so101_follower", "bi_so_follower"),
    "teleop": ("so100_leader", "so101_leader", "bi_so_leader", "keyboard", "gamepad"),
    "strategy": ("base", "sentry", "highlight", "episodic", "dagger"),
    "inference": ("sync", "rtc"),
    "policy": ("smolvla",),
}
"""Of the sections whose settings depend on a type: the types that smolact has as well."""
LOAD_PLUGINS = ("record", "replay", "rollout", "teleoperate")
"""Commands that read `--robot.discover_packages_path` and its like, which no class has."""

Flags = dict[str, Any]


def flags_of(cls: Any, prefix: str = "") -> Flags:
    """Every flag of a configuration class; a section whose settings depend on a type has its `type` alone."""
    found: Flags = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        name, hint = prefix + field.name, without_none(hints[field.name])
        if hasattr(hint, "get_choice_class"):
            found[f"{name}.type"] = CHOICES[name][-1]
        elif dataclasses.is_dataclass(hint):
            found |= flags_of(hint, name + ".")
        else:
            found[name] = plain(another(hint, default_of(field)))
    return found


def without_none(hint: Any) -> Any:
    kinds = typing.get_args(hint)
    return next(kind for kind in kinds if kind is not types.NoneType) if types.NoneType in kinds else hint


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def another(hint: Any, default: Any) -> Any:
    """A value that is not the default."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return another(typing.get_args(hint)[0], default)
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(member for member in kind if member != default)
    if kind is typing.Literal:
        return next(value for value in typing.get_args(hint) if value != default)
    if kind is bool:
        return not default
    if kind in (int, float):
        return kind((default or 6) + 1)
    return {list: [1], tuple: [1], dict: {"a": 1}}.get(kind, "text")


def plain(value: Any) -> Any:
    """A value as JSON has it."""
    return plain(value.value) if isinstance(value, enum.Enum) else value


def arguments_of(module: Any) -> Flags:
    """The flags of a command that reads them with argparse; a word without dashes is `WORD`."""
    reading = mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True, side_effect=SystemExit)
    with contextlib.suppress(SystemExit), reading as parse_args:
        module.main()
    return {
        (action.option_strings or ["WORD"])[0].removeprefix("--"): another(action.type, action.default)
        for action in parse_args.call_args[0][0]._actions
        if action.dest != "help"
    }


def record() -> dict[str, Any]:
    """Flags by command, and by the type of a section."""
    from lerobot.cameras.opencv import OpenCVCameraConfig

    scripts = {name: importlib.import_module(f"lerobot.scripts.lerobot_{name}") for name in COMMANDS}
    scripts["rollout"] = importlib.import_module("lerobot.rollout")
    commands = {name: flags_of(getattr(scripts[name], cls)) for name, cls in COMMANDS.items()}
    for name in LOAD_PLUGINS:
        sections = [
            section for section in ("robot", "teleop", "policy") if f"{section}.type" in commands[name]
        ]
        commands[name] |= {f"{section}.discover_packages_path": "package" for section in sections}
    commands["find_cameras"] = arguments_of(importlib.import_module("lerobot.scripts.lerobot_find_cameras"))
    commands["find_port"] = {}
    bases = {
        name: without_none(hint)
        for name, hint in typing.get_type_hints(scripts["rollout"].RolloutConfig).items()
        if name in CHOICES
    }
    chosen = {
        f"{name}.{kind}": flags_of(base.get_choice_class(kind))
        for name, base in bases.items()
        for kind in CHOICES[name]
    }
    return {"commands": commands, "sections": chosen | {"camera.opencv": flags_of(OpenCVCameraConfig)}}


if __name__ == "__main__":
    text = json.dumps(record(), indent=1, sort_keys=True)
    text = re.sub(r"\n {4,}|\n {3}(?=[\]}])", "", text)  # a line for each flag
    Path(sys.argv[1]).write_text(text + "\n", encoding="utf-8")
