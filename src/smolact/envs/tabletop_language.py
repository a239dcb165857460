"""Goals of the tabletop and their instructions.

The environment scores a `Goal`; an instruction is one of its phrasings. Some phrasings and some pairs of colour and place are
held out from training (`unseen`), to measure generalization. Each colour and place of such a pair appears in training in other
pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

from smolact.envs.tabletop_scene import BLOCK_SIDE, COLORS, PUSHER_RADIUS, ZONES, TableState, zones_at
from smolact.errors import ConfigError

KINDS = ("reach", "push")
SPLITS = ("train", "unseen", "all")

PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "reach": {
        "train": (
            "move to the {color} block",
            "go to the {color} block",
            "reach the {color} block",
            "touch the {color} block",
            "go next to the {color} block and stay there",
            "point at the {color} block",
            "drive to the {color} block",
            "get close to the {color} block",
            "come to the {color} block",
            "the {color} block",
            "move over to the {color} block",
            "move next to the {color} block",
            "go up to the {color} block",
            "go and touch the {color} block",
            "get to the {color} block",
            "visit the {color} block",
            "meet the {color} block",
            "tap the {color} block",
            "travel to the {color} block",
            "stop beside the {color} block",
            "wait near the {color} block",
            "stay close to the {color} block",
            "rest against the {color} block",
            "show me the {color} block",
            "i want you at the {color} block",
            "please go to the {color} block",
        ),
        "unseen": (
            "approach the {color} block",
            "head over to the {color} block",
            "find the {color} block",
        ),
    },
    "push": {
        "train": (
            "push the {color} block to the {place} zone",
            "push the {color} block to the {place}",
            "move the {color} block to the {place} zone",
            "bring the {color} block to the {place} zone",
            "slide the {color} block into the {place} zone",
            "carry the {color} block to the {place}",
            "take the {color} block over to the {place} zone",
            "the {color} block goes in the {place} zone",
            "the {color} block should be in the {place} zone",
            "get the {color} block to the {place}",
            "take the {color} block to the {place}",
            "drag the {color} block into the {place} zone",
            "deliver the {color} block to the {place} zone",
            "drive the {color} block to the {place}",
            "send the {color} block to the {place} zone",
            "place the {color} block in the {place} zone",
            "set the {color} block down at the {place}",
            "transfer the {color} block to the {place} zone",
            "guide the {color} block to the {place} zone",
            "leave the {color} block in the {place} zone",
            "make the {color} block go to the {place}",
            "let the {color} block slide to the {place}",
            "the {color} block has to go to the {place}",
            "the {color} block must end in the {place} zone",
            "i want the {color} block in the {place} zone",
            "please push the {color} block to the {place} zone",
        ),
        "unseen": (
            "shove the {color} block over to the {place}",
            "put the {color} block in the {place} zone",
            "the {color} block belongs in the {place} zone",
        ),
    },
}
"""Phrasings by kind and split. The first of `train` is the plainest, and the goal's name in lists."""

UNSEEN_COMBINATIONS = frozenset({("red", "left"), ("blue", "right"), ("yellow", "top"), ("pink", "bottom")})

REACH_DISTANCE = (
    0.5 * BLOCK_SIDE * 2**0.5 + PUSHER_RADIUS + 0.015
)  # between the centres; contact at a corner is closer


@dataclass(frozen=True, order=True)
class Goal:
    """A goal: reach the block of a colour, or push it to a place.

    Raises:
        ConfigError: the kind, colour or place is unknown, or a place is missing or superfluous.
    """

    kind: str
    color: str
    place: str | None = None

    def __post_init__(self) -> None:
        places = tuple(ZONES) if self.kind == "push" else (None,)
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
        return [words.format(color=self.color, place=self.place) for words in _templates(self.kind, split)]

    def phrase(self, number: int, split: str = "all") -> str:
        """Return one of `phrasings(split)`, for any non-negative number."""
        words = self.phrasings(split)
        return words[number % len(words)]

    def holds(self, state: TableState) -> bool:
        """Whether the table fulfils the goal at this moment.

        Reach: the pusher is at the block, and no other block is nearer. Push: the block's centre is in the zone.
        """
        block = state.block(self.color)
        if self.place is not None:
            return self.place in zones_at(block.x, block.y)
        distance = state.distance_to(block)
        return distance <= REACH_DISTANCE and all(
            state.distance_to(other) >= distance for other in state.blocks
        )


ALL_GOALS: tuple[Goal, ...] = tuple(Goal("reach", color) for color in COLORS) + tuple(
    Goal("push", color, place) for color in COLORS for place in ZONES
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
    goal = _GOAL_BY_PHRASING.get(" ".join(text.lower().split()).rstrip(".! "))
    if goal is None:
        examples = "\n  ".join(words for kind in KINDS for words in _templates(kind, "all"))
        raise ConfigError(
            f"The tabletop has no goal for the instruction '{text}', so it can't tell success. It understands\n  {examples}\n"
            f"with the colours {', '.join(COLORS)} and the places {', '.join(ZONES)}. "
            "To give a policy other words, name the goal beside them: reset(options={'task': …, 'goal': Goal(…)})."
        )
    return goal


def _templates(kind: str, split: str) -> tuple[str, ...]:
    by_split = PHRASINGS[kind]
    return by_split["train"] + by_split["unseen"] if split == "all" else by_split[split]


_GOAL_BY_PHRASING = {words: goal for goal in ALL_GOALS for words in goal.phrasings()}
