"""Goals of the tabletop and their instructions.

`instructions.py` says what a goal is, and what is held out from training. Each colour and place of such a pair appears in training in
other pairs.
"""

from __future__ import annotations

from smolact.envs.instructions import ColorGoal, Vocabulary
from smolact.envs.tabletop_scene import BLOCK_SIDE, COLORS, PUSHER_RADIUS, ZONES, TableState, zones_at

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


class Goal(ColorGoal):
    """A goal: reach the block of a colour, or push it to a place."""

    vocabulary = Vocabulary(
        "The tabletop", "blocks", "push", tuple(COLORS), tuple(ZONES), PHRASINGS, UNSEEN_COMBINATIONS, {}
    )

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


KINDS = Goal.vocabulary.kinds
ALL_GOALS = Goal.all()
goals, parse_instruction = Goal.select, Goal.parse
