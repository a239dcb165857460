"""Goals of the simulated SO-101 and their instructions.

As on the tabletop (`tabletop_language.py`), the environment scores a `Goal`, an instruction is one of its phrasings, and some
phrasings and some pairs of colour and place are held out from training (`unseen`).
"""

from __future__ import annotations

from dataclasses import dataclass

from smolact.errors import ConfigError

KINDS = ("reach", "pick_place")
SPLITS = ("train", "unseen", "all")

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.10, 0.10),
    "green": (0.10, 0.52, 0.20),
    "blue": (0.10, 0.25, 0.75),
    "yellow": (0.93, 0.78, 0.10),
    "purple": (0.42, 0.16, 0.58),
    "orange": (0.90, 0.42, 0.06),
}
"""Name to linear RGB of a cube."""

PLACES = {"bin": "into", "plate": "onto"}
"""Where a cube can be put, and the preposition that goes with it."""

PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "reach": {
        "train": (
            "Move the gripper to the {color} cube.",
            "Reach for the {color} cube.",
            "Go to the {color} cube.",
            "Hover over the {color} cube.",
            "Point at the {color} cube.",
            "Bring the gripper above the {color} cube.",
            "Stop over the {color} cube.",
            "Show me the {color} cube.",
            "Get close to the {color} cube.",
            "Please go to the {color} cube.",
        ),
        "unseen": (
            "Approach the {color} cube.",
            "Find the {color} cube.",
            "Head over to the {color} cube.",
        ),
    },
    "pick_place": {
        "train": (
            "Put the {color} cube {into} the {place}.",
            "Place the {color} cube {into} the {place}.",
            "Pick up the {color} cube and put it {into} the {place}.",
            "Move the {color} cube to the {place}.",
            "Take the {color} cube to the {place}.",
            "Drop the {color} cube {into} the {place}.",
            "Grasp the {color} cube and place it {into} the {place}.",
            "Bring the {color} cube to the {place}.",
            "The {color} cube goes {into} the {place}.",
            "Please put the {color} cube {into} the {place}.",
        ),
        "unseen": (
            "Set the {color} cube down {into} the {place}.",
            "Carry the {color} cube over to the {place}.",
            "The {color} cube belongs {into} the {place}.",
        ),
    },
}
"""Phrasings by kind and split. The first of `train` is the plainest, and the goal's name in lists."""

UNSEEN_COMBINATIONS = frozenset({("red", "plate"), ("green", "bin"), ("yellow", "plate"), ("purple", "bin")})


@dataclass(frozen=True, order=True)
class Goal:
    """A goal: bring the gripper to the cube of a colour, or put that cube into or onto a place.

    Raises:
        ConfigError: the kind, colour or place is unknown, or a place is missing or superfluous.
    """

    kind: str
    color: str
    place: str | None = None

    def __post_init__(self) -> None:
        places = tuple(PLACES) if self.kind == "pick_place" else (None,)
        for name, value, known in (
            ("kind", self.kind, KINDS),
            ("color", self.color, tuple(COLORS)),
            ("place", self.place, places),
        ):
            if value not in known:
                raise ConfigError(f"A goal to {self.kind} can't have {name}={value!r}: use one of {known}.")

    def __str__(self) -> str:
        return self.phrase(0)

    @property
    def combination_seen(self) -> bool:
        """Whether training has this pair of colour and place; true for a reach, which has no place."""
        return (self.color, self.place) not in UNSEEN_COMBINATIONS

    def phrasings(self, split: str = "all") -> list[str]:
        """Return every phrasing of the goal in the split: `train`, `unseen` or `all`."""
        into = PLACES.get(self.place or "")
        return [
            words.format(color=self.color, place=self.place, into=into)
            for words in _templates(self.kind, split)
        ]

    def phrase(self, number: int, split: str = "all") -> str:
        """Return one of `phrasings(split)`, for any non-negative number."""
        words = self.phrasings(split)
        return words[number % len(words)]


ALL_GOALS: tuple[Goal, ...] = tuple(Goal("reach", color) for color in COLORS) + tuple(
    Goal("pick_place", color, place) for color in COLORS for place in PLACES
)


def goals(kinds: tuple[str, ...] = KINDS, combinations: str = "all") -> tuple[Goal, ...]:
    """Return the goals of those kinds whose pair of colour and place is in the split."""
    wanted = {"train": (True,), "unseen": (False,), "all": (True, False)}[combinations]
    return tuple(goal for goal in ALL_GOALS if goal.kind in kinds and goal.combination_seen in wanted)


def parse_instruction(text: str) -> Goal:
    """Return the goal of an instruction in any phrasing; case, spaces and a full stop are ignored.

    Raises:
        ConfigError: the instruction is no known phrasing; the message lists the phrasings.
    """
    goal = _GOAL_BY_PHRASING.get(_plain(text))
    if goal is None:
        examples = "\n  ".join(words for kind in KINDS for words in _templates(kind, "all"))
        raise ConfigError(
            f"The simulated SO-101 has no goal for the instruction '{text}', so it can't tell success. It understands\n"
            f"  {examples}\nwith the colours {', '.join(COLORS)} and the places {', '.join(PLACES)}. "
            "To give a policy other words, name the goal beside them: reset(options={'task': …, 'goal': Goal(…)})."
        )
    return goal


def _templates(kind: str, split: str) -> tuple[str, ...]:
    by_split = PHRASINGS[kind]
    return by_split["train"] + by_split["unseen"] if split == "all" else by_split[split]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".! ")


_GOAL_BY_PHRASING = {_plain(words): goal for goal in ALL_GOALS for words in goal.phrasings()}
