"""The types that commands accept by name: built in, and those that installed distributions add through entry points.

    [project.entry-points."smolact.policies"]
    blind = "own_policy.configuration:BlindConfig"

A type is imported when it is asked for, so a distribution that can't be imported stops only the commands that use its type.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from smolact.errors import ConfigError, MissingDependencyError, did_you_mean


class Registry(Mapping[str, Any]):
    """A mapping from each type to the object that implements it, which is imported on access.

    Args:
        word: a type's kind, for messages.
        builtin: smolact's own types, each as `module:name`. An installed distribution can't replace one.
    """

    def __init__(self, group: str, word: str, builtin: Mapping[str, str]) -> None:
        self.group, self.word = group, word
        self._builtin = dict(builtin)

    @property
    def builtin(self) -> tuple[str, ...]:
        """The built-in types."""
        return tuple(self._builtin)

    def __iter__(self) -> Iterator[str]:
        yield from self._builtin
        yield from sorted({entry.name for entry in entry_points(group=self.group)} - self._builtin.keys())

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, kind: object) -> bool:
        return kind in self._builtin or kind in entry_points(group=self.group).names

    def __getitem__(self, kind: str) -> Any:
        """Return the object of a type.

        Raises:
            KeyError: there is no such type.
            ConfigError: several distributions provide it, or one that can't be imported.
            MissingDependencyError: its distribution needs a module that is not installed.
        """
        found = list(entry_points(group=self.group).select(name=kind))
        if kind in self._builtin:
            if found:
                raise ConfigError(
                    f"The {self.word} '{kind}' is built in, and {_source(found[0])} provides another one of that name. "
                    "Uninstall it, or give its type another name."
                )
            return _import(self._builtin[kind])
        if not found:
            raise KeyError(kind)
        if len(found) > 1:
            raise ConfigError(
                f"The {self.word} '{kind}' is provided by {' and by '.join(sorted(map(_source, found)))}. Uninstall one of them."
            )
        return self._load(found[0], found[0].value)

    def find(self, kind: str) -> Any:
        """Return the object of a type; raise a `ConfigError` that lists the known types if there is none."""
        if kind not in self:
            raise ConfigError(
                f"There is no {self.word} '{kind}'; known: {', '.join(self)}.{did_you_mean(kind, self)}"
            )
        return self[kind]

    def part_of(self, kind: str, path: str) -> Any:
        """Import `module:name`, which the object of a type names. Raises as `self[kind]` does."""
        entry = next(iter(entry_points(group=self.group).select(name=kind)), None)
        return _import(path) if entry is None else self._load(entry, path)

    def distribution_of(self, kind: str) -> str | None:
        """Return the name of the distribution that adds a type; None if it is built in or not installed."""
        names = (entry.dist.name for entry in entry_points(group=self.group).select(name=kind) if entry.dist)
        return next(names, None)

    def refuse(self, kind: str, reason: str) -> ConfigError:
        """Return the error about an installed type whose object is not usable."""
        entry = next(iter(entry_points(group=self.group).select(name=kind)))
        return ConfigError(
            f"The {self.word} '{kind}' of {_source(entry)} can't be used: {entry.value} {reason}."
        )

    def _load(self, entry: EntryPoint, path: str) -> Any:
        try:
            return _import(path)
        except Exception as error:  # whatever the foreign module raises
            described = str(error).strip() or type(error).__name__
            message = (
                f"The {self.word} '{entry.name}' of {_source(entry)} can't be imported ({path}): {described}."
            )
            if isinstance(error, ModuleNotFoundError):
                raise MissingDependencyError(f"{message} Install what it needs, or uninstall it.") from error
            raise ConfigError(f"{message} Update that distribution, or uninstall it.") from error


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module.strip()), name.strip())


def _source(entry: EntryPoint) -> str:
    return (
        f"the distribution '{entry.dist.name}' {entry.dist.version}"
        if entry.dist
        else "an unknown distribution"
    )


POLICIES = Registry(
    "smolact.policies",
    "policy type",
    {
        "smolvla": "smolact.policies.smolvla.configuration_smolvla:SmolVLAConfig",
        "smolandfast": "smolact.policies.smolandfast.configuration_smolandfast:SMOLANDFASTConfig",
    },
)
"""Subclasses of `smolact.policies.configuration.PolicyConfig`."""

STEPS = Registry("smolact.steps", "processor step", {})
"""Subclasses of `smolact.processors.step.ProcessorStep`, registered under the name of their entry point."""

ENVIRONMENTS = Registry(
    "smolact.envs",
    "environment",
    {
        "tabletop": "smolact.envs.factory:TABLETOP",
        "pusht": "smolact.envs.factory:PUSHT",
        "so101": "smolact.envs.factory:SO101",
        "metaworld": "smolact.envs.factory:METAWORLD",
        "aloha": "smolact.envs.factory:ALOHA",
        "libero": "smolact.envs.factory:LIBERO",
    },
)
"""Objects of `smolact.envs.factory.KnownEnv`."""

ROBOTS = Registry(
    "smolact.robots",
    "robot",
    {
        "sim": "smolact.recording.builtin:make_sim",
        "so100_follower": "smolact.robots.so_arm.follower:make_follower",
        "so101_follower": "smolact.robots.so_arm.follower:make_follower",
        "bi_so_follower": "smolact.robots.so_arm.follower:make_bimanual_follower",
    },
)
"""Classes or functions whose parameters are the settings and that return a `smolact.robots.base.Robot`."""

TELEOPERATORS = Registry(
    "smolact.teleoperators",
    "teleoperator",
    {
        "expert": "smolact.recording.builtin:ExpertTeleoperator",
        "keyboard": "smolact.robots.incremental_teleop:KeyboardTeleoperator",
        "gamepad": "smolact.robots.incremental_teleop:GamepadTeleoperator",
        "so100_leader": "smolact.robots.so_arm.leader:make_leader",
        "so101_leader": "smolact.robots.so_arm.leader:make_leader",
        "bi_so_leader": "smolact.robots.so_arm.leader:make_bimanual_leader",
    },
)
"""Classes or functions whose parameters are the settings and that return a `smolact.robots.base.Teleoperator`."""
