"""Goals of the simulated SO-101 and their instructions.

`instructions.py` says what a goal is, and what is held out from training.
"""

from __future__ import annotations

from smolact.envs.instructions import ColorGoal, Vocabulary

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


class Goal(ColorGoal):
    """A goal: bring the gripper to the cube of a colour, or put that cube into or onto a place."""

    vocabulary = Vocabulary(
        "The simulated SO-101",
        "cubes",
        "pick_place",
        tuple(COLORS),
        tuple(PLACES),
        PHRASINGS,
        UNSEEN_COMBINATIONS,
        PLACES,
    )


KINDS = Goal.vocabulary.kinds
ALL_GOALS = Goal.all()
goals, parse_instruction = Goal.select, Goal.parse
