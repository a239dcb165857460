"""What an instruction is worth: the same scenes with other words, to see whether a policy listens.

A condition changes what an episode is told, or which goal counts, and nothing else: the scene is the one that the
episode's seed draws.
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

QUESTIONS = {
    PLAIN: "what the scene asks for, in words that demonstrations had",
    SWAPPED: "another goal of the same scene, about another block, is asked for",
    UNSEEN_PHRASINGS: "the same goals, in words that no demonstration had",
    UNSEEN_COMBINATIONS: "goals that no demonstration had: its colour and its place were never named together",
    EMPTY: "the scene's own goal counts, and the policy is told nothing",
    NONSENSE: "the scene's own goal counts, and the words mean nothing",
}
"""What each condition answers, for a person."""

NONSENSE_WORDS = ("florp", "the", "quaxly", "wibber", "onto", "a", "zindle")


@dataclass(frozen=True)
class EpisodeCondition:
    """What an episode is told, and what else is watched.

    Attributes:
        options: for the environment's `reset`.
        words: what the policy hears in the place of the environment's instruction; None for that.
        other_goal: the goal that the episode's own words would have asked for; whether it is reached is counted beside.
    """

    options: dict[str, Any]
    words: str | None = None
    other_goal: Any = None


@dataclass(frozen=True)
class Condition:
    """One way to tell an episode what to do.

    Attributes:
        name: in files.
        instruct: from the environment, after a `reset` with the episode's seed, and a generator that follows from the seed.
    """

    name: str
    instruct: Callable[[Any, random.Random], EpisodeCondition]


def conditions_for(envs: EnvBatch, task: str | None = None) -> list[Condition]:
    """The conditions that an environment can show; only the plain one (none) if it does not know its scene's goals.

    Args:
        envs: their first one is asked; it is reset.
        task: an instruction that every episode is given; no other words make sense then.
    """
    if task is not None or not isinstance(envs[0].unwrapped, LanguageConditioned):
        return []
    envs[0].reset(seed=0)
    inner: Any = envs[0].unwrapped
    if not hasattr(inner, "goal"):
        return []
    found = [Condition(SWAPPED, _swapped)] if _others(inner) else []
    if hasattr(inner.goal, "phrasings"):
        found.append(Condition(UNSEEN_PHRASINGS, _reworded))
    if hasattr(inner, "unseen_goals") and inner.unseen_goals():
        found.append(Condition(UNSEEN_COMBINATIONS, _recombined))
    found.append(Condition(EMPTY, _told_nothing))
    found.append(Condition(NONSENSE, _told_nonsense))
    return found


def _swapped(env: Any, draw: random.Random) -> EpisodeCondition:
    others = _others(env)
    if not others:
        raise ConfigError(
            f"The scene of '{env.goal}' allows no other goal, so its instruction can't be swapped. Leave --language=false."
        )
    return EpisodeCondition({"goal": draw.choice(others)}, other_goal=env.goal)


def _others(env: Any) -> list[Any]:
    goals: Sequence[Any] = env.other_goals() if hasattr(env, "other_goals") else env.allowed_goals()
    return [goal for goal in goals if goal != env.goal]


def _reworded(env: Any, draw: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": env.goal, "task": draw.choice(env.goal.phrasings("unseen"))})


def _recombined(env: Any, draw: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": draw.choice(env.unseen_goals())})


def _told_nothing(env: Any, draw: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": env.goal}, words=EmptyInstruction())


def _told_nonsense(env: Any, draw: random.Random) -> EpisodeCondition:
    return EpisodeCondition({"goal": env.goal}, words=" ".join(draw.sample(NONSENSE_WORDS, 5)))
