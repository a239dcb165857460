"""Robots and teleoperators by type: built in, installed (`smolact.registry`), or LeRobot's.

The caller passes the types that are not LeRobot's, as a mapping from type to a class or function whose parameters are the settings.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from smolact.errors import ConfigError, MissingDependencyError, did_you_mean
from smolact.robots import lerobot_drivers as drivers
from smolact.robots.base import Robot, Teleoperator, gate_of
from smolact.robots.ports import ports_present
from smolact.robots.safety import MAX_AGE_S
from smolact.settings import DOC

Device = TypeVar("Device")
Makers = Mapping[str, Callable[..., Device]]

NO_MAKERS: Mapping[str, Any] = MappingProxyType({})


@dataclasses.dataclass(kw_only=True)
class GateSettings:
    """Settings that smolact adds to those of a LeRobot robot."""

    # The largest change of a joint in one tick, in its units: a number, or numbers by name; 0 for none.
    max_step: float | dict[str, float] | None = None
    # The range of some numbers of the action: {shoulder_pan.pos: [-90, 90]}, in place of the calibration's.
    limits: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    # The oldest observation that a chunk of a policy may answer, in seconds.
    max_action_age: float = MAX_AGE_S


def robot_types(builtin: Makers[Robot] = NO_MAKERS, /) -> tuple[str, ...]:
    """Return every type of `make_robot`: built in, then LeRobot's if installed (which imports it)."""
    return _types(drivers.ROBOT, builtin)


def teleoperator_types(builtin: Makers[Teleoperator] = NO_MAKERS, /) -> tuple[str, ...]:
    """Return every type of `make_teleoperator`."""
    return _types(drivers.TELEOPERATOR, builtin)


def make_robot(type_name: str, builtin: Makers[Robot] = NO_MAKERS, /, **settings: Any) -> Robot:
    """Make a robot, not connected.

    Raises:
        ConfigError: an unknown type or setting (the message lists the known ones), or an invalid value.
        MissingDependencyError: the type is not built in, and LeRobot is not installed.
        RobotError: the robot has no gate.
    """
    if type_name in builtin:
        robot = _make_built_in(builtin[type_name], drivers.ROBOT, type_name, settings)
        gate_of(robot)
        return robot
    _require_lerobot(drivers.ROBOT, type_name, builtin)
    from smolact.robots import lerobot

    return lerobot.make_robot(type_name, **settings)


def make_teleoperator(
    type_name: str, builtin: Makers[Teleoperator] = NO_MAKERS, /, **settings: Any
) -> Teleoperator:
    """Make a teleoperator, not connected. Raises as `make_robot` does."""
    if type_name in builtin:
        return _make_built_in(builtin[type_name], drivers.TELEOPERATOR, type_name, settings)
    _require_lerobot(drivers.TELEOPERATOR, type_name, builtin)
    from smolact.robots import lerobot

    return lerobot.make_teleoperator(type_name, **settings)


def robot_settings(type_name: str, builtin: Makers[Robot] = NO_MAKERS, /) -> type:
    """Return a dataclass of a type's settings. Raises as `make_robot` does."""
    if type_name in builtin:
        return parameters_class(builtin[type_name], type_name)
    _require_lerobot(drivers.ROBOT, type_name, builtin)
    base = drivers.settings_class(drivers.ROBOT, type_name)
    return dataclasses.make_dataclass(base.__name__, [], bases=(base, GateSettings), kw_only=True)


def teleoperator_settings(type_name: str, builtin: Makers[Teleoperator] = NO_MAKERS, /) -> type:
    """Return a dataclass of a teleoperator type's settings. Raises as `make_robot` does."""
    if type_name in builtin:
        return parameters_class(builtin[type_name], type_name)
    _require_lerobot(drivers.TELEOPERATOR, type_name, builtin)
    return drivers.settings_class(drivers.TELEOPERATOR, type_name)


def is_simulation(type_name: str, builtin: Makers[Robot] = NO_MAKERS, /) -> bool:
    """Return whether robots of a type are `EpisodicRobot`s, which software resets: a class with `reset`, or what a function returns."""
    if type_name not in builtin:
        return False
    maker = builtin[type_name]
    made = maker if isinstance(maker, type) else typing.get_type_hints(maker).get("return")
    return hasattr(made, "reset")


def given_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Convert parsed settings to plain values: a section becomes a mapping of its non-default values."""
    return {
        name: _changed(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for name, value in settings.items()
    }


def _changed(section: Any) -> dict[str, Any]:
    changed = {}
    for field in dataclasses.fields(section):
        default = (
            field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        )
        value = getattr(section, field.name)
        if value != default:
            changed[field.name] = value
    return given_settings(changed)


def parameters_class(maker: Callable[..., Any], type_name: str) -> type:
    """Return a dataclass with the parameters of a class or function: names, types, defaults, and help from its docstring.

    It has the `UNSUPPORTED` of a class.
    """
    function: Any = getattr(maker, "__init__") if isinstance(maker, type) else maker  # noqa: B009
    hints, lines = typing.get_type_hints(function), _argument_lines(maker)
    fields: list[tuple[str, Any, Any]] = []
    for name, parameter in inspect.signature(maker).parameters.items():
        default, metadata = parameter.default, {DOC: lines.get(name, "")}
        if default is inspect.Parameter.empty:
            field: Any = dataclasses.field(metadata=metadata)
        elif isinstance(default, (list, dict, set)):
            field = dataclasses.field(
                default_factory=functools.partial(copy.copy, default), metadata=metadata
            )
        else:
            field = dataclasses.field(default=default, metadata=metadata)
        fields.append((name, hints.get(name, Any), field))
    refused = {"UNSUPPORTED": getattr(maker, "UNSUPPORTED", {})}
    return dataclasses.make_dataclass(type_name, fields, kw_only=True, namespace=refused)


def _argument_lines(maker: Callable[..., Any]) -> dict[str, str]:
    """Return the text of each argument in the section `Args:` of a docstring in Google's style."""
    section = (inspect.getdoc(maker) or "").partition("Args:\n")[2].partition("\n\n")[0]
    lines: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \w)", "\n" + section):
        names, _, text = entry.strip().partition(": ")
        lines |= dict.fromkeys(re.findall(r"\w+", names), " ".join(text.split()))
    return lines


def _types(kind: drivers.DriverKind, builtin: Mapping[str, Any]) -> tuple[str, ...]:
    lerobot_types = drivers.known_types(kind) if drivers.is_installed() else {}
    return (*builtin, *(name for name in lerobot_types if name not in builtin))


def _make_built_in(
    maker: Callable[..., Device], kind: drivers.DriverKind, type_name: str, settings: Mapping[str, Any]
) -> Device:
    known = inspect.signature(maker).parameters
    for name in settings:
        if name not in known:
            raise ConfigError(
                f"{type_name} has no setting --{kind.flag}.{name}.{did_you_mean(name, known)} It has: {', '.join(known)}."
            )
    for name, parameter in known.items():
        if name not in settings and parameter.default is inspect.Parameter.empty:
            ports = f" {ports_present()} `smolact robot find-port` finds which." if name == "port" else ""
            part = ".port" if name.endswith("_arm_config") else ""
            raise ConfigError(f"{type_name} needs --{kind.flag}.{name}{part}.{ports}")
    return maker(**settings)


def _require_lerobot(kind: drivers.DriverKind, type_name: str, builtin: Mapping[str, Any]) -> None:
    """Raise for a type that is not built in: a misspelt name, or a missing LeRobot."""
    if drivers.is_installed():
        drivers.config_class(kind, type_name, builtin)
        return
    listing = f"Built in: {', '.join(builtin)}. " if builtin else ""
    suggestion = did_you_mean(type_name, builtin)
    if suggestion and type_name not in drivers.TYPES:
        raise ConfigError(f"There is no {kind.word} of type '{type_name}'.{suggestion} {listing}")
    raise MissingDependencyError(
        f"A {kind.word} of type '{type_name}' would be LeRobot's ({drivers.EXAMPLES}), and LeRobot is not installed. "
        f"{listing}{drivers.NEEDS}."
    )
