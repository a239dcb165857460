"""The arguments of an environment's class as settings of the section `env`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Container
from typing import Any

from smolact.envs.factory import creator_of
from smolact.settings import setting

_ENTRY = re.compile(r"^    (?P<names>\w+(?:, \w+)*): (?P<doc>.*(?:\n {8,}.*)*)", re.MULTILINE)


_OF_GYMNASIUM = ("render_mode", "max_episode_steps")


def arguments_class(env_name: str, excluded: Container[str]) -> type:
    """Return a dataclass of the arguments that an environment's class has defaults for, without the `excluded` ones.

    Types come from annotations, or else from the defaults; help lines from the section `Args:` of its docstring.

    Args:
        env_name: as in `make_env`, whose errors are raised.
    """
    creator = creator_of(env_name)
    try:
        hints = typing.get_type_hints(creator.__init__ if inspect.isclass(creator) else creator)
    except (NameError, TypeError):  # an annotation that exists for type checkers only
        hints = {}
    docs = _documented(inspect.getdoc(creator) or "")
    fields = [
        (
            name,
            hints.get(name, Any if parameter.default is None else type(parameter.default)),
            setting(_factory(parameter.default), docs.get(name, "")),
        )
        for name, parameter in inspect.signature(creator).parameters.items()
        if parameter.default is not inspect.Parameter.empty
        and name not in excluded
        and name not in _OF_GYMNASIUM
    ]
    return dataclasses.make_dataclass(creator.__name__, fields)


def _documented(docstring: str) -> dict[str, str]:
    """Return the descriptions under `Args:` by name, each in one line."""
    _, _, arguments = docstring.partition("\nArgs:\n")
    arguments, *_ = re.split(r"\n(?=\S)", arguments, maxsplit=1)
    return {
        name: " ".join(entry["doc"].split())
        for entry in _ENTRY.finditer(arguments)
        for name in entry["names"].split(", ")
    }


def _factory(default: Any) -> Any:
    return (lambda: default) if isinstance(default, (list, dict, set)) else default
