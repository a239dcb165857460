from __future__ import annotations

import pytest

from smolact.envs.tabletop_language import (
    ALL_GOALS,
    KINDS,
    PHRASINGS,
    UNSEEN_COMBINATIONS,
    Goal,
    goals,
    parse_instruction,
)
from smolact.envs.tabletop_scene import COLORS, ZONES, Block, TableState
from smolact.errors import ConfigError


def test_every_wording_of_every_goal_is_understood_again():
    said = [(words, goal) for goal in ALL_GOALS for words in goal.phrasings("all")]
    assert len({words for words, _ in said}) == len(said), "two goals share a wording"
    for words, goal in said:
        assert parse_instruction(words) == goal
        assert parse_instruction(f"  {words.upper()} . ") == goal


def test_no_wording_is_in_both_splits():
    for kind in KINDS:
        assert not set(PHRASINGS[kind]["train"]) & set(PHRASINGS[kind]["unseen"])
        assert len(PHRASINGS[kind]["train"]) >= 3
        assert len(PHRASINGS[kind]["unseen"]) >= 2


def test_training_meets_every_colour_and_place_of_an_unseen_combination():
    trained = {(goal.color, goal.place) for goal in goals(("push",), "train")}
    assert trained | UNSEEN_COMBINATIONS == {(color, place) for color in COLORS for place in ZONES}
    assert not trained & UNSEEN_COMBINATIONS
    assert {color for color, _ in trained} == set(COLORS)
    assert {place for _, place in trained} == set(ZONES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fly", "red"), "kind='fly'"),
        (("reach", "brown"), "color='brown'"),
        (("push", "red"), "place=None"),
        (("push", "red", "middle"), "place='middle'"),
        (("reach", "red", "left"), "place='left'"),
    ],
)
def test_a_goal_that_can_not_be_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Goal(*arguments)


def test_reaching_needs_the_named_block_to_be_the_nearest():
    blocks = (Block("red", 0.5, 0.5, 0.0), Block("blue", 0.7, 0.5, 0.0))
    near_both = TableState((0.61, 0.5), blocks)
    assert Goal("reach", "blue").holds(near_both)
    assert not Goal("reach", "red").holds(near_both)
    assert not Goal("reach", "blue").holds(TableState((0.9, 0.5), blocks))


def test_pushing_is_done_when_the_centre_is_in_the_zone():
    x, y = ZONES["top"]
    pusher = (0.5, 0.9)
    assert Goal("push", "red", "top").holds(TableState(pusher, (Block("red", x + 0.1, y, 0.0),)))
    assert not Goal("push", "red", "top").holds(TableState(pusher, (Block("red", x + 0.12, y, 0.0),)))
    assert not Goal("push", "red", "left").holds(TableState(pusher, (Block("red", x, y, 0.0),)))
