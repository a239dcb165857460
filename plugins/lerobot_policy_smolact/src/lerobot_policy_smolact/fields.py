"""Conversion of configurations between smolact and LeRobot, so that each setting is defined once."""

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


def with_fields_of(source: type[PolicyConfig], base: type[Base]) -> type[Base]:
    """Return `base` with the missing settings of `source` and their defaults."""
    hints = typing.get_type_hints(source)
    known = {item.name for item in dataclasses.fields(base)}
    added = [
        (item.name, _hint(hints[item.name]), _field(item))
        for item in dataclasses.fields(source)
        if item.name not in known
    ]
    return dataclasses.make_dataclass(f"{source.__name__}Fields", added, bases=(base,))  # type: ignore[return-value]


def smolact_config(config: PreTrainedConfig, kind: str) -> PolicyConfig:
    """Convert LeRobot's configuration to smolact's of the type `kind`.

    Raises:
        smolact.ConfigError: the settings are an invalid combination.
    """
    config_class = get_config_class(kind)
    fields = {item.name for item in dataclasses.fields(config_class)}
    values = {name: value for name, value in draccus.encode(config).items() if name in fields}
    return config_class.from_dict({**values, "type": kind}, f"--policy.type={config.type}")


def _hint(hint: Any) -> Any:
    return dict[str, NormalizationMode] if hint == dict[str, OurNormalizationMode] else hint


def _field(item: dataclasses.Field[Any]) -> Any:
    if item.default is not dataclasses.MISSING:
        return dataclasses.field(default=item.default)
    factory = item.default_factory
    assert factory is not dataclasses.MISSING  # every setting has a default
    return dataclasses.field(default_factory=lambda: _value(factory()))


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _value(item) for key, item in value.items()}
    return NormalizationMode(value.value) if isinstance(value, OurNormalizationMode) else value
