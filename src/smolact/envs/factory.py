"""From a name to environments: `tabletop`, or any id that gymnasium knows (`module:id` imports the module first)."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from smolact.envs.batch import EnvBatch
from smolact.envs.mapping import EnvMapping, PolicyEnv
from smolact.envs.tabletop import TABLETOP_ID, register_tabletop
from smolact.errors import ConfigError, EnvironmentNotFoundError, MissingDependencyError
from smolact.types import PolicyFeature

register_tabletop()

ALIASES = {"tabletop": TABLETOP_ID}


def make_env(
    name: str,
    n_envs: int = 1,
    *,
    task: str | None = None,
    mapping: EnvMapping | Mapping[str, str] | str | Path | None = None,
    render: bool = False,
    **settings: Any,
) -> EnvBatch:
    """Make `n_envs` copies of an environment, under batch keys.

    Args:
        name: an alias (`tabletop`) or a gymnasium id.
        n_envs: how many run side by side.
        task: what every episode is told to do; None for what the environment says.
        mapping: its observations' names to batch keys: a YAML file (see `mapping.py`), an `EnvMapping`, or just the names.
        render: whether pictures for a video are wanted.
        settings: the environment's own, and `max_episode_steps`.

    Raises:
        EnvironmentNotFoundError: nobody registered that id; the message names the nearest.
        MissingDependencyError: the environment needs a package that is not installed.
        ConfigError: a setting that the environment does not have, or n_envs < 1.
        FeatureError: the mapping does not fit.
    """
    if n_envs < 1:
        raise ConfigError(f"n_envs={n_envs}: at least one environment is needed.")
    if isinstance(mapping, (str, Path)):
        mapping = EnvMapping.from_file(mapping)
    elif mapping is not None and not isinstance(mapping, EnvMapping):
        mapping = EnvMapping(mapping)
    if render:
        settings["render_mode"] = "rgb_array"
    return EnvBatch([PolicyEnv(_make(name, settings), mapping, task) for _ in range(n_envs)])


def env_id(name: str) -> str:
    """The gymnasium id that a name stands for."""
    return ALIASES.get(name, name)


def env_features(env: EnvBatch | PolicyEnv) -> dict[str, PolicyFeature]:
    """What a policy for this environment sees and gives, by batch key; images as (3, H, W)."""
    return env.features


def _make(name: str, settings: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        # gymnasium's own checker would double the time of a step; environments are checked in tests.
        env = gymnasium.make(_spec(name), disable_env_checker=True, **settings)
    except (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled) as error:
        raise MissingDependencyError(
            f"The environment '{name}' needs a package that is not installed: {error}"
        ) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(
            f"The environment '{name}' does not have all of the settings {', '.join(settings)}: {error}"
        ) from error
    if env.spec is None or env.spec.max_episode_steps is None:
        raise ConfigError(
            f"The environment '{name}' sets no longest episode, so an evaluation in it might never end. "
            "Give --env.kwargs='{max_episode_steps: N}'."
        )
    return env


def _spec(name: str) -> EnvSpec:
    module, _, known_id = env_id(name).rpartition(":")
    if module:
        importlib.import_module(module)
    try:
        return gymnasium.spec(known_id)
    except gymnasium.error.Error as error:
        raise EnvironmentNotFoundError(_what_there_is(name)) from error


def _what_there_is(name: str) -> str:
    known = [*ALIASES, *gymnasium.registry]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    nearest = (
        f"Nearest: {', '.join(near)}."
        if near
        else f"There are {', '.join(ALIASES)} and {len(known)} of gymnasium's."
    )
    return (
        f"No environment is registered as '{name}'. {nearest} "
        "If a package of yours registers it on import, write 'package:id'."
    )
