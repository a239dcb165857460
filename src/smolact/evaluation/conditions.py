"""Conditions of an evaluation: the same scenes with other instructions, to measure whether a policy follows them.

A condition changes the instruction or the goal that counts; the scene follows from the episode's seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from smolact.envs.batch import EnvBatch
from smolact.envs.mapping import LanguageConditioned
from smolact.errors import ConfigError
from smolact.types import EmptyInstruction

PLAIN = "as_asked"
SWAPPED = "swapped_instruction"
UNSEEN_PHRASINGS = "unseen_phrasings"
UNSEEN_COMBINATIONS = "unseen_combinations"
EMPTY = "empty_instruction"
NONSENSE = "nonsense_instruction"

DESCRIPTIONS = {
    PLAIN: "what the scene asks for, in words that demonstrations had",
    SWAPPED: "another goal of the same scene, about another block, is asked for",
    UNSEEN_PHRASINGS: "the same goals, in words that no demonstration had",
    UNSEEN_COMBINATIONS: "goals that no demonstration had: its colour and its place were never named together",
    EMPTY: "the scene's own goal counts, and the policy is told nothing",
    NONSENSE: "the scene's own goal counts, and the words mean nothing",
}
"""A description of each condition, for the report."""

NONSENSE_WORDS = ("florp", "the", "quaxly", "wibber", "onto", "a", "zindle")


@dataclass(frozen=True)
class EpisodeCondition:
    """The instruction of an episode, and a second goal to check.

    Attributes:
        instruction: replaces the environment's instruction; None for no replacement.
        other_goal: the goal of the episode's own instruction, which is checked in addition.
    """

    options: dict[str, Any]
    instruction: str | None = None
    other_goal: Any = None


@dataclass(frozen=True)
class Condition:
    """A variant of an episode's instruction.

    Attributes:
        instruct: returns the condition, given the environment in the episode's scene and a generator with the episode's seed.
    """

    name: str
    instruct: Callable[[Any, random.Random], EpisodeCondition]


def conditions_for(envs: EnvBatch) -> list[Condition]:
    """Return the environment's conditions besides the plain one; none if its scene has no `goal`, or every episode one instruction."""
    if envs.instruction is not None or not isinstance(envs[0].unwrapped, LanguageConditioned):
        return []
    envs[0].reset(seed=0)
    inner: Any = envs[0].unwrapped
    if not hasattr(inner, "goal"):
        return []
    conditions = [Condition(SWAPPED, _swapped)] if _other_goals(inner) else []
    if hasattr(inner.goal, "phrasings"):
        conditions.append(Condition(UNSEEN_PHRASINGS, _reworded))
    if hasattr(inner, "unseen_goals") and inner.unseen_goals():
        conditions.append(Condition(UNSEEN_COMBINATIONS, _recombined))
    conditions.append(Condition(EMPTY, _empty))
    conditions.append(Condition(NONSENSE, _nonsense))
    return conditions


def _swapped(env: Any, rng: random.Random) -> EpisodeCondition:
    others = _other_goals(env)
    if not others:
        raise ConfigError(
            f"The scene of '{env.goal}' allows no other goal, so its instruction can't be swapped. Leave --language=false."
        )
    return EpisodeCondition({"goal": rng.choice(others)}, other_goal=env.goal)


def _other_goals(env: Any) -> list[Any]:
    goals: Sequence[Any] = env.other_goals() if hasattr(env, "other_goals") else env.allowed_goals()
    return [goal for goal in goals if goal != env.goal]


def _reworded(env: Any, rng: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": env.goal, "task": rng.choice(env.goal.phrasings("unseen"))})


def _recombined(env: Any, rng: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": rng.choice(env.unseen_goals())})


def _empty(env: Any, rng: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": env.goal}, instruction=EmptyInstruction())


def _nonsense(env: Any, rng: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": env.goal}, instruction=" ".join(rng.sample(NONSENSE_WORDS, 5)))
