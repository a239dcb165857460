"""The base class of a pipeline's steps, and the registry of their names.

A step takes a batch (a flat mapping, see `smolact.types`) and returns a new one. A file stores its registered name, a
configuration in JSON and, for some, tensors. To add one: derive from `ProcessorStep`, decorate with
`@register_step("name")`, and name the class in the entry points `smolact.steps` of its distribution, or import its module
before a pipeline that names it is loaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from smolact.errors import CheckpointError, ConfigError, did_you_mean
from smolact.registry import STEPS


class ProcessorStep(ABC):
    """One change to a batch: a renaming, a move, a normalization. The input is not changed."""

    registry_name: ClassVar[str]

    unknown_config: Mapping[str, Any] = {}
    """Fields that a newer LeRobot wrote and this version does not know; they are saved again unchanged."""

    @abstractmethod
    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a new batch; `data` and its tensors are not changed."""

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON values, in the order in which LeRobot writes them."""
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the step's tensors; empty if it has none."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the saved tensors; called with none if there is no file.

        Raises:
            CheckpointError: there are tensors, and this step has none.
        """
        if state:
            raise CheckpointError(
                f"The step '{self.registry_name}' keeps no tensors, but the checkpoint has some for it: "
                f"{', '.join(state)}. Another version wrote it, or another step of that name."
            )


S = TypeVar("S", bound=ProcessorStep)

_REGISTRY: dict[str, type[ProcessorStep]] = {}

PLUGIN_STEPS = {"smolact_tokenizer_processor": "tokenizer_processor"}
"""Our plugin's names of steps in LeRobot, where LeRobot's own opens less, to ours (`plugins/lerobot_policy_smolact`)."""
OLDER_STEPS = {"rename_processor": "rename_observations_processor"}
"""LeRobot's names of steps in August 2025, to the present ones."""


def register_step(name: str) -> Callable[[type[S]], type[S]]:
    """Register a step's class as `name`.

    Raises:
        ConfigError: another class has that name.
    """

    def register(step_class: type[S]) -> type[S]:
        if _REGISTRY.get(name, step_class) is not step_class:
            raise ConfigError(
                f"The step name '{name}' belongs to {_REGISTRY[name].__qualname__} already. "
                f"Register {step_class.__qualname__} under another name."
            )
        _REGISTRY[name] = step_class
        step_class.registry_name = name
        return step_class

    return register


def registered_steps() -> tuple[str, ...]:
    """Return every registered name, sorted."""
    return tuple(sorted(_REGISTRY))


def own_name(name: str) -> str:
    """Return the name under which a step is registered here, given that or the plugin's or an older one."""
    return {**PLUGIN_STEPS, **OLDER_STEPS}.get(name, name)


def find_step(name: str) -> type[ProcessorStep]:
    """Return the class that is registered as `name`, here or by an installed distribution.

    Raises:
        CheckpointError: there is none.
        ConfigError, MissingDependencyError: the distribution that provides it is broken.
    """
    name = own_name(name)
    if name not in _REGISTRY and name in STEPS:
        installed = STEPS[name]
        if _REGISTRY.get(name) is not installed:
            raise STEPS.refuse(name, f'is not a class that is registered by @register_step("{name}")')
    if name not in _REGISTRY:
        raise CheckpointError(
            f"There is no processor step '{name}'.{did_you_mean(name, _REGISTRY)} Known steps: "
            f"{', '.join(registered_steps())}. If it is a step of yours, decorate its class with "
            f'@register_step("{name}") (smolact.processors.step) and import that module first, or name it in the entry points '
            "smolact.steps of an installed distribution."
        )
    return _REGISTRY[name]
