"""The settings of two arms that are one device: a section for each side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from smolact.errors import ConfigError, did_you_mean

T = TypeVar("T")


def sides(
    cls: type[T], section: str, id_: str | None, left: T | Mapping[str, Any], right: T | Mapping[str, Any]
) -> Iterator[tuple[str, T, str | None, str]]:
    """Yield (side, settings, name of the calibration, flag of the settings) of both arms.

    Args:
        cls: the dataclass of an arm's settings.
        section: `robot` or `teleop`.
        id_: the pair's `id`.
        left, right: the settings, or mappings of them.

    Raises:
        ConfigError: an unknown or missing setting, or one port for both.
    """
    flags = {side: f"--{section}.{side}_arm_config" for side in ("left", "right")}
    arms: dict[str, Any] = {
        side: _build(cls, given, flags[side]) for side, given in (("left", left), ("right", right))
    }
    if arms["left"].port == arms["right"].port:
        raise ConfigError(
            f"{flags['left']}.port and {flags['right']}.port are both {arms['left'].port}: each arm has a port of its own."
        )
    for side, arm in arms.items():
        yield side, arm, f"{id_}_{side}" if id_ else None, flags[side]


def _build(cls: type[T], given: T | Mapping[str, Any], flag: str) -> T:
    if isinstance(given, cls):
        return given
    assert isinstance(given, Mapping)
    known = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in given:
        if name not in known:
            raise ConfigError(
                f"An arm has no setting {flag}.{name}.{did_you_mean(name, known)} It has: {', '.join(known)}."
            )
    if "port" not in given:
        raise ConfigError(f"Each arm needs its port: {flag}.port. `smolact robot find-port` finds which.")
    return cls(**given)
