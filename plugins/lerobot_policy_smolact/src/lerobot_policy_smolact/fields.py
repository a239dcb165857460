"""A configuration in LeRobot's form from one of smolact's, and back: every setting is written down once."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any, TypeVar

import draccus
from lerobot.configs import NormalizationMode, PreTrainedConfig

from smolact.policies.configuration import PolicyConfig
from smolact.policies.factory import get_config_class
from smolact.types import NormalizationMode as OurNormalizationMode

Base = TypeVar("Base", bound=PreTrainedConfig)


def with_fields_of(ours: type[PolicyConfig], base: type[Base]) -> type[Base]:
    """`base` with the settings of `ours` that it lacks, with their defaults."""
    hints = typing.get_type_hints(ours)
    known = {item.name for item in dataclasses.fields(base)}
    added = [
        (item.name, _hint(hints[item.name]), _field(item))
        for item in dataclasses.fields(ours)
        if item.name not in known
    ]
    return dataclasses.make_dataclass(f"{ours.__name__}Fields", added, bases=(base,))  # type: ignore[return-value]


def ours(config: PreTrainedConfig, kind: str) -> PolicyConfig:
    """The same settings as smolact's configuration of that type.

    Raises:
        smolact.ConfigError: they can't work together.
    """
    made = get_config_class(kind)
    names = {item.name for item in dataclasses.fields(made)}
    values = {name: value for name, value in draccus.encode(config).items() if name in names}
    return made.from_dict({**values, "type": kind}, f"--policy.type={config.type}")


def _hint(hint: Any) -> Any:
    return dict[str, NormalizationMode] if hint == dict[str, OurNormalizationMode] else hint


def _field(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return dataclasses.field(default=item.default)
    make = item.default_factory
    assert make is not dataclasses.MISSING  # every setting has a default
    return dataclasses.field(default_factory=lambda: _value(make()))


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _value(one) for key, one in value.items()}
    return NormalizationMode(value.value) if isinstance(value, OurNormalizationMode) else value
