"""Environments by name: `tabletop`, `pusht`, `so101`, `metaworld`, `aloha`, `libero`, an installed one, or any gymnasium id.

`module:id` imports the module first.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec, load_env_creator

from smolact.envs.batch import EnvBatch
from smolact.envs.benchmarks.aloha import ALOHA_ID, Aloha
from smolact.envs.benchmarks.base import BenchmarkEnv, register_benchmark
from smolact.envs.benchmarks.libero import LIBERO_ID, Libero
from smolact.envs.benchmarks.metaworld import METAWORLD_ID, MetaWorld
from smolact.envs.mapping import EnvMapping, PolicyEnv
from smolact.envs.so101 import SO101_ID, register_so101
from smolact.envs.tabletop import TABLETOP_ID, register_tabletop
from smolact.errors import (
    ConfigError,
    EnvironmentNotFoundError,
    MissingDependencyError,
    optional_import,
)
from smolact.registry import ENVIRONMENTS

logger = logging.getLogger(__name__)

register_tabletop()
register_so101()
register_benchmark(METAWORLD_ID, MetaWorld)
register_benchmark(ALOHA_ID, Aloha)
register_benchmark(LIBERO_ID, Libero)


@dataclass(frozen=True)
class KnownEnv:
    """An environment with a short name. A distribution adds one by an entry point `smolact.envs`.

    Attributes:
        id: gymnasium id, which is registered when this object's module is imported.
        extra: smolact's extra that installs its package; None if always installed.
        task: default instruction, if neither environment nor caller gives one.
        expert: its scripted expert as `module:class` (see `smolact.envs.experts`); None if it has none.
    """

    id: str
    extra: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    expert: str | None = None


TABLETOP = KnownEnv(TABLETOP_ID, expert="smolact.envs.experts:TabletopExpert")
PUSHT = KnownEnv(
    "gym_pusht/PushT-v0",
    extra="pusht",
    # LeRobot's evaluation settings, and the instruction of its dataset `lerobot/pusht`.
    settings={
        "obs_type": "pixels_agent_pos",
        "observation_width": 96,
        "observation_height": 96,
        "visualization_width": 384,
        "visualization_height": 384,
        "max_episode_steps": 300,
    },
    task="Push the T-shaped block onto the T-shaped target.",
    expert="smolact.envs.pusht_expert:PushTExpert",
)
SO101 = KnownEnv(SO101_ID, expert="smolact.envs.so101_expert:SO101Expert")
METAWORLD = KnownEnv(METAWORLD_ID, expert="smolact.envs.benchmarks.metaworld_expert:MetaWorldExpert")
ALOHA = KnownEnv(ALOHA_ID)
LIBERO = KnownEnv(LIBERO_ID)
"""The extras of these four are asked for by the environments themselves."""


def make_env(
    name: str,
    n_envs: int = 1,
    *,
    task: str | None = None,
    instruction: str | None = None,
    mapping: EnvMapping | Mapping[str, str] | str | Path | None = None,
    render: bool | None = False,
    **settings: Any,
) -> EnvBatch:
    """Make `n_envs` copies of an environment, under batch keys.

    Args:
        name: a short name (`tabletop`, `pusht`, `so101`, `metaworld`, `aloha`, `libero`, an installed one) or a gymnasium id.
        task: the instruction of every episode; None for the environment's own. The environment's name (LeRobot's
            `--env.task=PushT-v0`) counts as None. For a benchmark, as in LeRobot: its tasks and groups of tasks, with commas.
        instruction: the instruction of every episode, whatever `task` says.
        mapping: a YAML file (see `mapping.py`), an `EnvMapping`, or its names alone.
        render: whether images are needed; None: if the environment can render (`EnvBatch.can_render`).
        settings: the environment's own arguments, and `max_episode_steps`.

    Raises:
        EnvironmentNotFoundError: the id is not registered; the message names the nearest.
        MissingDependencyError: the environment needs a package that is not installed.
        ConfigError: an unknown or refused setting, or n_envs < 1.
        FeatureError: the mapping does not fit.
    """
    if n_envs < 1:
        raise ConfigError(f"n_envs={n_envs}: at least one environment is needed.")
    if isinstance(mapping, (str, Path)):
        mapping = EnvMapping.from_file(mapping)
    elif mapping is not None and not isinstance(mapping, EnvMapping):
        mapping = EnvMapping(mapping)
    known = known_env(name)
    if task is not None and task in (known.id, known.id.rpartition("/")[2]):
        logger.debug("'%s' is taken for the environment's name, not for an instruction.", task)
        task = None
    settings = {**known.settings, **settings}
    if task is not None and is_benchmark(name):
        settings["task"], task = task, None
    instruction = instruction or task or (mapping.task if mapping is not None else None) or known.task
    return EnvBatch([PolicyEnv(_make(name, settings, render), mapping, instruction) for _ in range(n_envs)])


def is_benchmark(name: str) -> bool:
    """Whether the environment has several tasks, which `task` of `make_env` selects."""
    creator = creator_of(name)
    return inspect.isclass(creator) and issubclass(creator, BenchmarkEnv)


def creator_of(name: str) -> Callable[..., gymnasium.Env[Any, Any]]:
    """Return the class or function that makes an environment.

    Raises:
        EnvironmentNotFoundError, MissingDependencyError: as in `make_env`.
    """
    creator = _spec(name).entry_point
    found: Callable[..., gymnasium.Env[Any, Any]] = (
        load_env_creator(creator) if isinstance(creator, str) else creator
    )
    return found


def env_id(name: str) -> str:
    """Return the gymnasium id of a name."""
    return known_env(name).id


def known_env(name: str) -> KnownEnv:
    """Return the environment of a short name or a gymnasium id.

    Raises:
        ConfigError, MissingDependencyError: the distribution that provides the name is broken.
    """
    if name not in ENVIRONMENTS:
        return next(
            (env for env in (TABLETOP, PUSHT, SO101, METAWORLD, ALOHA, LIBERO) if env.id == name),
            KnownEnv(name),
        )
    found = ENVIRONMENTS[name]
    if not isinstance(found, KnownEnv):
        raise ENVIRONMENTS.refuse(name, "is no smolact.envs.factory.KnownEnv")
    return found


def _make(name: str, settings: dict[str, Any], render: bool | None) -> gymnasium.Env[Any, Any]:
    spec = _spec(name)
    try:
        if render is not False and _can_render(name):
            settings = {**settings, "render_mode": "rgb_array"}
        elif render:
            raise ConfigError(
                f"The environment '{name}' draws no pictures: its metadata has no render mode 'rgb_array'. "
                "Evaluate without films: --n_videos=0."
            )
        # gymnasium's checker would double the time of a step.
        env = gymnasium.make(spec, disable_env_checker=True, **settings)
    except (ModuleNotFoundError, gymnasium.error.DependencyNotInstalled) as error:
        raise MissingDependencyError(
            f"The environment '{name}' needs a package that is not installed: {error}"
        ) from error
    except ConfigError:
        raise  # from smolact's own environments
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" not in str(error):
            raise
        reason, *_ = str(error).partition(" was raised from the environment creator")
        raise ConfigError(
            f"The environment '{name}' refuses its settings {settings}: {reason}. Correct --env.kwargs='{{NAME: VALUE}}'."
        ) from error
    if env.spec is None or env.spec.max_episode_steps is None:
        raise ConfigError(
            f"The environment '{name}' sets no longest episode, so an evaluation in it might never end. "
            "Give --env.episode_length=N."
        )
    return env


def _can_render(name: str) -> bool:
    return "rgb_array" in getattr(creator_of(name), "metadata", {}).get("render_modes", ())


def _spec(name: str) -> EnvSpec:
    known = known_env(name)
    module, _, known_id = known.id.rpartition(":")
    if known.extra is not None:
        # pygame greets on standard output, where our results go.
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        optional_import(known.id.partition("/")[0], known.extra)
    elif module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f"The environment '{name}' needs a package that is not installed: {error}. "
                "If it is a file of yours, say where it lies: PYTHONPATH=FOLDER smolact …"
            ) from error
    try:
        return gymnasium.spec(known_id)
    except gymnasium.error.Error as error:
        raise EnvironmentNotFoundError(_not_registered_message(name)) from error


def _not_registered_message(name: str) -> str:
    known = [*ENVIRONMENTS, *gymnasium.registry]
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    nearest = (
        f"Nearest: {', '.join(matches)}."
        if matches
        else f"There are {', '.join(ENVIRONMENTS)} and {len(gymnasium.registry)} of gymnasium's."
    )
    return (
        f"No environment is registered as '{name}'. {nearest} "
        "If a package of yours registers it on import, write 'package:id'."
    )
