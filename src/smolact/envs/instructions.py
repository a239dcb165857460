"""Goals about coloured things and places, and the instructions that ask for them: what the tabletop and the twin of the SO-101 share.

The environment scores a goal; an instruction is one of its phrasings. Some phrasings and some pairs of colour and place are held
out from training (`unseen`), to measure generalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from smolact.errors import ConfigError, did_you_mean

SPLITS = ("train", "unseen", "all")

G = TypeVar("G", bound="ColorGoal")


@dataclass(frozen=True)
class Vocabulary:
    """What can be said in an environment.

    Attributes:
        owner: the environment's name at the beginning of messages.
        things: the noun of what has a colour, in the plural.
        placed: the kind of goal that has a place; the other kind, `reach`, has none.
        colors, places: their names.
        phrasings: kind to split (`train`, `unseen`) to templates.
        unseen: the pairs of colour and place that are held out.
        prepositions: of each place, for templates with {into}.
    """

    owner: str
    things: str
    placed: str
    colors: tuple[str, ...]
    places: tuple[str, ...]
    phrasings: Mapping[str, Mapping[str, tuple[str, ...]]]
    unseen: frozenset[tuple[str, str]]
    prepositions: Mapping[str, str]

    @property
    def kinds(self) -> tuple[str, str]:
        """The kinds of goals."""
        return "reach", self.placed

    def templates(self, kind: str, split: str) -> tuple[str, ...]:
        """Return the templates of a kind in a split: `train`, `unseen` or `all`."""
        by_split = self.phrasings[kind]
        return by_split["train"] + by_split["unseen"] if split == "all" else by_split[split]


@dataclass(frozen=True, order=True)
class ColorGoal:
    """A goal: reach the thing of a colour, or bring it to a place. Environments subclass it with their vocabulary.

    Raises:
        ConfigError: the kind, colour or place is unknown, or a place is missing or superfluous.
    """

    kind: str
    color: str
    place: str | None = None

    vocabulary: ClassVar[Vocabulary]

    def __post_init__(self) -> None:
        known = self.vocabulary
        for name, value, allowed in (
            ("kind", self.kind, known.kinds),
            ("color", self.color, known.colors),
            ("place", self.place, known.places if self.kind == known.placed else (None,)),
        ):
            if value not in allowed:
                raise ConfigError(f"A goal to {self.kind} can't have {name}={value!r}: use one of {allowed}.")

    def __str__(self) -> str:
        return self.phrase(0)

    @property
    def combination_seen(self) -> bool:
        """Whether training has this pair of colour and place; true for a reach, which has no place."""
        return (self.color, self.place) not in self.vocabulary.unseen

    def phrasings(self, split: str = "all") -> list[str]:
        """Return every phrasing of the goal in the split: `train`, `unseen` or `all`."""
        into = self.vocabulary.prepositions.get(self.place or "")
        return [
            words.format(color=self.color, place=self.place, into=into)
            for words in self.vocabulary.templates(self.kind, split)
        ]

    def phrase(self, number: int, split: str = "all") -> str:
        """Return one of `phrasings(split)`, for any non-negative number."""
        words = self.phrasings(split)
        return words[number % len(words)]

    @classmethod
    def all(cls: type[G]) -> tuple[G, ...]:
        """Return every goal."""
        known = cls.vocabulary
        placed = (cls(known.placed, color, place) for color in known.colors for place in known.places)
        return (*(cls("reach", color) for color in known.colors), *placed)

    @classmethod
    def select(
        cls: type[G], kinds: tuple[str, ...] | None = None, combinations: str = "all"
    ) -> tuple[G, ...]:
        """Return the goals of those kinds (None: all) whose pair of colour and place is in the split."""
        wanted = {"train": (True,), "unseen": (False,), "all": (True, False)}[combinations]
        kinds = cls.vocabulary.kinds if kinds is None else kinds
        return tuple(goal for goal in cls.all() if goal.kind in kinds and goal.combination_seen in wanted)

    @classmethod
    def parse(cls: type[G], text: str) -> G:
        """Return the goal of an instruction in any phrasing; case, spaces and a full stop are ignored.

        Raises:
            ConfigError: the instruction is no known phrasing; the message lists the phrasings.
        """
        plain, known = _plain(text), cls.vocabulary
        for goal in cls.all():
            if plain in map(_plain, goal.phrasings()):
                return goal
        examples = "\n  ".join(words for kind in known.kinds for words in known.templates(kind, "all"))
        raise ConfigError(
            f"{known.owner} has no goal for the instruction '{text}', so it can't tell success. It understands\n  {examples}\n"
            f"with the colours {', '.join(known.colors)} and the places {', '.join(known.places)}. "
            "To give a policy other words, name the goal beside them: reset(options={'task': …, 'goal': Goal(…)})."
        )


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".! ")


class GoalDrawing:
    """The goal and instruction of an environment's episodes; mixed into an environment.

    Attributes:
        goal_class: the environment's goals.
        np_random: gymnasium's random generator, which `reset(seed=…)` seeds.
    """

    goal_class: ClassVar[type[ColorGoal]]
    np_random: np.random.Generator

    def _set_goals(self, tasks: tuple[str, ...], phrasings: str, combinations: str) -> None:
        """Set what is drawn.

        Raises:
            ConfigError: no goal is left.
        """
        self._goals: tuple[Any, ...] = self.goal_class.select(tasks, combinations)
        if not self._goals:
            placed = self.goal_class.vocabulary.placed
            raise ConfigError(
                f"tasks={tasks} with combinations='{combinations}' leaves no goal: "
                f"pairs of colour and place are kept out of training for '{placed}' only. Add '{placed}' to the tasks."
            )
        self._phrasings = phrasings
        self._kinds = sorted(task for task in tasks if any(goal.kind == task for goal in self._goals))

    def _present_colors(self) -> list[str]:
        """Return the colours in this scene."""
        raise NotImplementedError

    def _draw_goal(self, options: Mapping[str, Any], number: int) -> list[str]:
        """Draw goal and instruction, or take those of `options`; returns the colours of `number` things.

        Every random draw is always made, so that an option changes nothing else.

        Raises:
            ConfigError: an unknown option, or an instruction without a known goal.
        """
        task, requested = self._read_options(options)
        kind = self._kinds[self.np_random.integers(len(self._kinds))]
        candidates = [goal for goal in self._goals if goal.kind == kind]
        drawn = candidates[self.np_random.integers(len(candidates))]
        phrase_number = int(self.np_random.integers(2**16))
        others = [color for color in self.goal_class.vocabulary.colors if color != drawn.color]
        colors = [drawn.color, *self.np_random.permutation(others)[: number - 1].tolist()]
        self._goal = requested or drawn
        self._task = self._goal.phrase(phrase_number, self._phrasings) if task is None else task
        if self._goal.color not in colors:
            colors[0] = self._goal.color
        return colors

    def _read_options(self, options: Mapping[str, Any]) -> tuple[str | None, Any]:
        owner = self.goal_class.vocabulary.owner
        for name in options:
            if name not in ("task", "goal"):
                raise ConfigError(
                    f"{owner}'s reset has no option '{name}': it takes 'task' and 'goal'."
                    + did_you_mean(name, ("task", "goal"))
                )
        task, goal = options.get("task"), options.get("goal")
        if goal is not None and not isinstance(goal, self.goal_class):
            raise ConfigError(f"{owner}'s option 'goal' is a Goal, not {goal!r}; give words as 'task'.")
        return task, self.goal_class.parse(task) if goal is None and task is not None else goal

    @property
    def goal(self) -> Any:
        """The goal of the instruction."""
        return self._goal

    @property
    def task(self) -> str:
        """The instruction."""
        return self._task

    def allowed_goals(self) -> tuple[Any, ...]:
        """Return the environment's goals whose colour is in this scene."""
        present = self._present_colors()
        return tuple(goal for goal in self._goals if goal.color in present)

    def other_goals(self) -> tuple[Any, ...]:
        """Return the allowed goals about other colours, which reaching the present goal does not reach."""
        return tuple(goal for goal in self.allowed_goals() if goal.color != self._goal.color)

    def unseen_goals(self) -> tuple[Any, ...]:
        """Return the goals whose colour and place are held out from training."""
        return self.goal_class.select(tuple(self._kinds), "unseen")

    def _check_present(self, goal: ColorGoal) -> None:
        """Raise a `ConfigError` unless the goal's colour is in this scene."""
        present, known = self._present_colors(), self.goal_class.vocabulary
        if goal.color not in present:
            raise ConfigError(
                f"'{goal}' can't be judged: the {known.things} in this scene are {', '.join(present)}."
            )
