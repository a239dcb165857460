"""LeRobot's drivers by name. Every import of LeRobot goes through this module.

LeRobot's own decoder reads a driver's configuration. Common mistakes are checked first, so that an error names the setting, the
alternatives, and the nearest name.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import logging
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from smolact.errors import ConfigError, MissingDependencyError, RobotError, SmolactError, did_you_mean
from smolact.robots.ports import ports_present

logger = logging.getLogger(__name__)

EXTRA = "lerobot"
NEEDS = "LeRobot's drivers need Python 3.12 or later and: pip install 'smolact[lerobot]'"
RENAMED = {
    f"bi_so{model}_{side}": f"bi_so_{side}" for model in ("100", "101") for side in ("follower", "leader")
}
"""Types of older LeRobot versions, to their names in 0.6."""
EXAMPLES = "koch_follower, omx_follower, lekiwi, hope_jr_arm, reachy2, koch_leader, …"


TYPES = frozenset(
    [
        "bi_openarm_follower",
        "bi_rebot_b601_follower",
        "bi_so_follower",
        "earthrover_mini_plus",
        "hope_jr_arm",
        "hope_jr_hand",
        "koch_follower",
        "lekiwi",
        "lekiwi_client",
        "omx_follower",
        "openarm_follower",
        "reachy2",
        "rebot_b601_follower",
        "so100_follower",
        "so101_follower",
        "unitree_g1",
        "bi_openarm_leader",
        "bi_openarm_mini",
        "bi_rebot_102_leader",
        "bi_so_leader",
        "gamepad",
        "homunculus_arm",
        "homunculus_glove",
        "keyboard",
        "keyboard_ee",
        "keyboard_rover",
        "koch_leader",
        "omx_leader",
        "openarm_leader",
        "openarm_mini",
        "phone",
        "reachy2_teleoperator",
        "rebot_102_leader",
        "so100_leader",
        "so101_leader",
        "unitree_g1",
    ]
)
"""The robots and teleoperators of LeRobot 0.6.1, for the error without it."""


@dataclass(frozen=True)
class DriverKind:
    """One kind of LeRobot device.

    Attributes:
        word: its name in messages.
        flag: the section of its settings on the command line.
        package: LeRobot's package of these devices, with one subpackage per device.
        config: the base class of their configurations.
        factory: the function that makes a device from its configuration.
    """

    word: str
    flag: str
    package: str
    config: str
    factory: str


ROBOT = DriverKind("robot", "robot", "lerobot.robots", "RobotConfig", "make_robot_from_config")
TELEOPERATOR = DriverKind(
    "teleoperator", "teleop", "lerobot.teleoperators", "TeleoperatorConfig", "make_teleoperator_from_config"
)
CAMERA = DriverKind("camera", "cameras", "lerobot.cameras", "CameraConfig", "make_cameras_from_configs")


def is_installed() -> bool:
    """Whether LeRobot can be imported; does not import it."""
    return "lerobot" in sys.modules or importlib.util.find_spec("lerobot") is not None


def version() -> str | None:
    """Return LeRobot's version; None without it."""
    try:
        return importlib.metadata.version("lerobot")
    except importlib.metadata.PackageNotFoundError:
        return None


def load(module: str) -> ModuleType:
    """Import a module of LeRobot.

    Raises:
        MissingDependencyError: LeRobot, or a package that this module needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == "lerobot":
            python = ".".join(map(str, sys.version_info[:2]))
            raise MissingDependencyError(
                f"LeRobot is not installed. {NEEDS} (this is Python {python})."
            ) from error
        raise MissingDependencyError(f"LeRobot's {module} can't be imported: {error}. {NEEDS}.") from error


def known_types(kind: DriverKind) -> dict[str, type]:
    """Return every type of that kind in LeRobot and its installed plugins: name to configuration class.

    Raises:
        MissingDependencyError: LeRobot is not installed.
    """
    package = load(kind.package)
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:  # importing a package registers its type
            try:
                importlib.import_module(f"{kind.package}.{module.name}")
            except ImportError as error:
                logger.warning("LeRobot's %s.%s is left out: %s", kind.package, module.name, error)
    load("lerobot.utils.import_utils").register_third_party_plugins()
    return dict(sorted(getattr(package, kind.config).get_known_choices().items()))


def config_class(kind: DriverKind, type_name: str, builtin: Iterable[str] = ()) -> type:
    """Return the configuration class of a type.

    Raises:
        ConfigError: LeRobot has no such type; the message names the nearest and lists all, with those of `builtin`.
        MissingDependencyError: LeRobot is not installed.
    """
    known = known_types(kind)
    if type_name not in known:
        types = (*builtin, *known)
        suggestion = did_you_mean(RENAMED.get(type_name, type_name), types)
        raise ConfigError(
            f"There is no {kind.word} of type '{type_name}'.{suggestion} There are: {', '.join(types)}."
        )
    return known[type_name]


def make_driver(kind: DriverKind, type_name: str, settings: Mapping[str, Any]) -> Any:
    """Make a LeRobot robot or teleoperator, not connected.

    Args:
        kind: the kind of device.
        type_name: its type.
        settings: its configuration, nested, in LeRobot's YAML spelling.

    Raises:
        ConfigError: an unknown type or setting, a missing setting, or an invalid value.
        MissingDependencyError: LeRobot, or a package of this driver, is not installed.
        RobotError: LeRobot can't make it.
    """
    config = _decode(kind, type_name, settings, f"--{kind.flag}.", type_name)
    with translated(f"{kind.word} '{type_name}'"):
        return getattr(load(kind.package), kind.factory)(config)


def make_camera(type_name: str, settings: Mapping[str, Any], prefix: str) -> Any:
    """Make a LeRobot camera, not connected; `prefix` is the flag of its settings. Raises as `make_driver` does."""
    owner = f"A camera of type '{type_name}'"
    config = _decode(CAMERA, type_name, settings, prefix, owner)
    with translated(f"camera '{type_name}'"):
        (camera,) = getattr(load(CAMERA.package), CAMERA.factory)({"camera": config}).values()
    return camera


def _decode(kind: DriverKind, type_name: str, settings: Mapping[str, Any], prefix: str, owner: str) -> Any:
    """Return the configuration of a type, decoded by LeRobot's own decoder."""
    _check_settings(config_class(kind, type_name), settings, prefix, owner)
    decoder = importlib.import_module("draccus")
    try:
        return decoder.decode(getattr(load(kind.package), kind.config), {"type": type_name, **settings})
    except (decoder.ParsingError, ValueError, TypeError) as error:
        reasons = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        raise ConfigError(
            f"The settings of {kind.word} '{type_name}' can't be used: {' '.join(reasons)}"
        ) from error


def _check_settings(cls: type, settings: Mapping[str, Any], prefix: str, owner: str) -> None:
    """Raise a clearer error than the decoder for unknown or missing names and unknown cameras."""
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for name, value in settings.items():
        if name not in fields:
            raise ConfigError(
                f"{owner} has no setting {prefix}{name}.{did_you_mean(name, fields)} It has: {', '.join(fields)}."
            )
        inner = hints[name]
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            _check_settings(typing.cast(type, inner), value, f"{prefix}{name}.", owner)
        elif _is_camera_table(inner):
            _check_cameras(value, prefix + name)
    for name, field in fields.items():
        if name not in settings and field.default is MISSING and field.default_factory is MISSING:
            parts = (
                f", with {', '.join(nested.name for nested in dataclasses.fields(hints[name]))}"
                if dataclasses.is_dataclass(hints[name])
                else ""
            )
            ports = f" {ports_present()} `smolact robot find-port` finds which." if name == "port" else ""
            raise ConfigError(f"{owner} needs {prefix}{name}{parts}.{ports}")


def _is_camera_table(hint: Any) -> bool:
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is dict and getattr(arguments[1], "__name__", "") == CAMERA.config


def _check_cameras(cameras: Any, flag: str) -> None:
    example = "{front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}}"
    if not isinstance(cameras, Mapping):
        raise ConfigError(f'{flag} is cameras by name, such as "{example}", found {cameras!r}.')
    for name, camera in cameras.items():
        if not isinstance(camera, Mapping) or "type" not in camera:
            raise ConfigError(f"Camera '{name}' of {flag} needs a type, such as {example}, found {camera!r}.")
        if "." in str(name) or not str(name).strip():
            raise ConfigError(f"'{name}' of {flag} can't name a camera: it becomes observation.images.NAME.")
        cls = config_class(CAMERA, str(camera["type"]))
        settings = {key: value for key, value in camera.items() if key != "type"}
        _check_settings(cls, settings, f"{flag}.{name}.", f"A camera of type '{camera['type']}'")


def settings_class(kind: DriverKind, type_name: str) -> type:
    """Return a dataclass of a type's settings, for a command line without LeRobot's classes.

    Numbers, text and sections keep LeRobot's types; all others are any YAML, which `make_driver` checks.
    """
    return _plain_dataclass(config_class(kind, type_name))


def _plain_dataclass(cls: type) -> type:
    hints = typing.get_type_hints(cls)
    fields: list[tuple[str, Any, Any]] = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            hint = _plain_dataclass(typing.cast(type, hint))
            fields.append((field.name, hint, dataclasses.field(metadata=field.metadata)))
            continue
        default = {"default": field.default} if field.default is not MISSING else {}
        if field.default_factory is not MISSING:
            default = {"default_factory": field.default_factory}
        fields.append((field.name, _plain_hint(hint), dataclasses.field(**default)))
    return dataclasses.make_dataclass(cls.__name__, fields, kw_only=True)


def _plain_hint(hint: Any) -> Any:
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return hint if set(kinds) <= {str, int, float, bool, Path, type(None)} else Any


@contextmanager
def translated(label: str, hint: str = "") -> Iterator[None]:
    """Convert a driver's exceptions to a `RobotError` about `label`, or to a `MissingDependencyError`."""
    try:
        yield
    except SmolactError:
        raise
    except ImportError as error:
        raise MissingDependencyError(f"The {label} needs a package that is not installed: {error}") from error
    except EOFError as error:
        raise RobotError(f"The {label} asks questions. Run this in a terminal.") from error
    except Exception as error:  # drivers pass on their libraries' exceptions
        if isinstance(error.__cause__, ImportError):  # LeRobot's factory wraps it
            raise MissingDependencyError(
                f"The {label} needs a package that is not installed: {error.__cause__}"
            ) from error
        text = " ".join(str(error).split()) or type(error).__name__
        raise RobotError(
            f"The {label} failed: {text}{'' if text.endswith(('.', '!')) else '.'}{' ' + hint if hint else ''}"
        ) from error
