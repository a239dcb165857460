"""An evaluation can tell who listens: one who parses the words, one who looks at the scene's goal, one who does neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from smolact.envs.experts import tabletop_action
from smolact.envs.factory import make_env
from smolact.envs.tabletop_language import Goal, goals, parse_instruction
from smolact.errors import ConfigError
from smolact.evaluation.conditions import (
    EMPTY,
    NONSENSE,
    SWAPPED,
    UNSEEN_COMBINATIONS,
    UNSEEN_PHRASINGS,
    conditions_for,
)
from smolact.evaluation.metrics import EvaluationResult
from smolact.evaluation.rollout import evaluate
from smolact.runtime.policy import Chunk, Policy, Request
from smolact.types import EmptyInstruction
from smolact_client import Schema

FAST = {"obs_type": "environment_state_agent_pos"}


class Listener(Policy):
    """Does what its words say, as the scripted expert would; without words it stays where it is."""

    def __init__(self, envs: Any) -> None:
        self.envs = envs
        sizes = {key: feature.shape for key, feature in envs.features.items() if key != "action"}
        cameras = {key: size[1:] for key, size in sizes.items() if "image" in key}
        vectors = {key: size[0] for key, size in sizes.items() if "image" not in key}
        self.schema = Schema("listener", cameras, vectors, action=2, chunk_size=1, n_action_steps=1)
        self.heard: list[str] = []

    def goal(self, number: int, words: str) -> Goal | None:
        try:
            return parse_instruction(words)
        except ConfigError:
            return None

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        told = [request.task or "" for request in requests]
        self.heard += told
        actions = []
        for number, words in enumerate(told):
            env = self.envs[number].unwrapped
            goal = self.goal(number, words)
            actions.append(env.state.pusher if goal is None else tabletop_action(env.state, goal))
        return list(np.array(actions, np.float32)[:, None])


class Deaf(Listener):
    """Does what the scene's seed asked for in the first place, whatever it is told."""

    own: dict[tuple[Any, ...], Goal]

    def goal(self, number: int, words: str) -> Goal:
        env = self.envs[number].unwrapped
        start = env.state.blocks[0].color
        return Goal("reach", start)


def results(policy_of: Any, n_episodes: int = 8, **settings: Any) -> dict[str, EvaluationResult]:
    with make_env("tabletop", 4, **FAST, **settings) as envs:
        policy = policy_of(envs)
        found = {}
        for condition in conditions_for(envs):
            policy.heard.clear()
            found[condition.name] = evaluate(policy, envs, n_episodes=n_episodes, condition=condition)
        return found


def test_one_who_listens_follows_the_swapped_words_and_leaves_the_old_goal() -> None:
    found = results(Listener)
    assert list(found) == [SWAPPED, UNSEEN_PHRASINGS, UNSEEN_COMBINATIONS, EMPTY, NONSENSE]
    assert found[SWAPPED].success.rate == 1.0
    swapped = found[SWAPPED]
    assert swapped.other_goal is not None and swapped.other_goal.rate <= 0.25
    for one in swapped.results:
        other = parse_instruction(str(one.other_task))
        assert other.color != parse_instruction(one.task).color
    assert found[UNSEEN_PHRASINGS].success.rate == found[UNSEEN_COMBINATIONS].success.rate == 1.0
    assert found[EMPTY].success.rate == found[NONSENSE].success.rate == 0.0


def test_what_is_unseen_is_not_in_training() -> None:
    found = results(Listener)
    words = {one.task for one in found[UNSEEN_PHRASINGS].results}
    trained = {phrase for goal in goals() for phrase in goal.phrasings("train")}
    assert not words & trained
    asked = {parse_instruction(one.task) for one in found[UNSEEN_COMBINATIONS].results}
    assert not any(goal.combination_seen for goal in asked) and len(asked) > 1
    assert {one.task for one in found[EMPTY].results} == {""}
    assert not any(parse(one.task) for one in found[NONSENSE].results)


def parse(words: str) -> Goal | None:
    try:
        return parse_instruction(words)
    except ConfigError:
        return None


def test_one_who_does_not_listen_is_found_out() -> None:
    found = results(Deaf, tasks=("reach",))
    swapped = found[SWAPPED]
    assert UNSEEN_COMBINATIONS not in found  # reaching has no place
    assert swapped.other_goal is not None
    assert swapped.success.rate <= 0.25 and swapped.other_goal.rate == 1.0
    assert found[EMPTY].success.rate == found[NONSENSE].success.rate == 1.0


def test_the_scene_is_the_seeds_in_every_condition() -> None:
    scenes = []
    with make_env("tabletop", 1, **FAST) as envs:
        for condition in [None, *conditions_for(envs)]:

            class Onlooker(Listener):
                def predict(self, requests: Sequence[Request]) -> list[Chunk]:
                    state = self.envs[0].unwrapped.state
                    scenes.append((state.pusher, [block[1:] for block in state.blocks]))
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                evaluate(Onlooker(envs), envs, n_episodes=1, condition=condition)
    assert len(scenes) == 6
    assert all(scene == scenes[0] for scene in scenes)


def test_without_goals_or_with_words_of_the_users_there_is_nothing_to_compare() -> None:
    with make_env("tabletop", 1, task="push the red block to the top zone", **FAST) as envs:
        assert conditions_for(envs) == []
    with make_env(
        "MountainCarContinuous-v0", 1, mapping={"observation": "observation.state"}, task="go up"
    ) as envs:
        assert conditions_for(envs) == []


def test_only_silence_on_purpose_passes_the_tokenizer() -> None:
    from smolact.backbones.presets import find_vlm
    from smolact.processors.steps import SmolVLANewLineProcessor
    from smolact.processors.tokenizer import TokenizerProcessorStep

    step = TokenizerProcessorStep(tokenizer_name=str(find_vlm("tiny").tokenizer_folder()))
    batch = SmolVLANewLineProcessor()({"task": [EmptyInstruction(), "push"]})
    mask = step(batch)["observation.language.attention_mask"]
    assert mask[0].sum() == 1 and mask[1].sum() == 2
    with pytest.raises(ConfigError, match="empty"):
        step(SmolVLANewLineProcessor()({"task": ["", "push"]}))


def test_a_scene_with_one_goal_is_not_swapped() -> None:
    with make_env("tabletop", n_blocks=1, **FAST) as envs:
        assert SWAPPED not in [condition.name for condition in conditions_for(envs)]
