from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import av
import numpy as np
import pytest
import torch

from smolact.envs.experts import tabletop_action
from smolact.envs.factory import make_env
from smolact.errors import ConfigError, FeatureError
from smolact.evaluation.metrics import EvaluationResult
from smolact.evaluation.rollout import evaluate, plan_episodes, play
from smolact.runtime.policy import Policy
from smolact_client import Schema


class Playing(Policy):
    """A policy of single actions; it has the environments, so that success can be known in advance."""

    def __init__(self, envs):
        self.envs, self.resets = envs, 0
        sizes = {key: feature.shape for key, feature in envs.features.items() if key != "action"}
        cameras = {key: size[1:] for key, size in sizes.items() if "image" in key}
        vectors = {key: size[0] for key, size in sizes.items() if "image" not in key}
        self.schema = Schema("playing", cameras, vectors, action=2, chunk_size=1, n_action_steps=1)

    def reset(self):
        self.resets += 1


class ExpertPolicy(Playing):
    """The scripted expert, disturbed by noise of the request's seed or of torch's generator."""

    def __init__(self, envs, seeded=False, drawn=False):
        super().__init__(envs)
        self.seeded, self.drawn = seeded, drawn

    def predict(self, requests):
        inner = [self.envs[number].unwrapped for number in range(len(requests))]
        assert [request.task for request in requests] == [env.task for env in inner]
        actions = np.array([tabletop_action(env.state, env.goal) for env in inner], np.float32)
        if self.seeded:
            noise = [np.random.default_rng(request.seed).standard_normal(2) for request in requests]
            actions = actions + 0.02 * np.array(noise, np.float32)
        if self.drawn:
            actions = actions + 0.02 * torch.randn(actions.shape).numpy()
        return list(actions[:, None])


class LookingPolicy(Playing):
    """Deterministic, and wrong: goes where the picture and the position send it."""

    def predict(self, requests):
        images = [request.observation["observation.image"] for request in requests]
        assert all(image.dtype == np.uint8 and image.shape == (64, 64, 3) for image in images)
        states = [request.observation["observation.state"] for request in requests]
        pairs = zip(states, images, strict=True)
        return [((1 - state) * 0.5 + image.mean((0, 1))[:2] / 255)[None] for state, image in pairs]


def run(batch_size, policy_of, n_episodes=7, **settings):
    options = {key: settings.pop(key) for key in ("obs_type", "render") if key in settings}
    with make_env("tabletop", batch_size, **options) as envs:
        policy = policy_of(envs)
        return evaluate(policy, envs, n_episodes=n_episodes, **settings), policy


FAST = {"obs_type": "environment_state_agent_pos"}


def without_time(result: EvaluationResult) -> EvaluationResult:
    return replace(result, seconds=0.0)


def test_the_expert_as_a_policy_succeeds_in_every_episode():
    result, policy = run(4, ExpertPolicy, n_episodes=10, **FAST)
    assert result.success.rate == 1.0
    assert [one.index for one in result.results] == list(range(10))
    assert {one.task_kind for one in result.results} == {"reach", "push"} == set(result.per_task)
    assert all(one.reward == one.max_reward == 1.0 and 2 < one.steps < 80 for one in result.results)
    assert result.mean_max_reward == result.to_dict()["mean_max_reward"] == 1.0
    assert (result.n_action_steps, result.chunk_size) == (1, 1)
    assert policy.resets == 3  # 4 + 4 + 2


@pytest.mark.parametrize("policy_of", [ExpertPolicy, LookingPolicy])
def test_results_do_not_depend_on_the_batch_size(policy_of):
    results = [without_time(run(size, policy_of)[0]) for size in (1, 3, 7)]
    assert results[0] == results[1] == results[2]


def test_a_policy_that_takes_seeds_gets_each_episode_its_own():
    results = [without_time(run(size, lambda e: ExpertPolicy(e, seeded=True), **FAST)[0]) for size in (1, 3)]
    assert results[0] == results[1]
    undisturbed, _ = run(1, ExpertPolicy, **FAST)
    assert [one.steps for one in undisturbed.results] != [one.steps for one in results[0].results]


def test_no_two_chunks_get_the_same_seed():
    class Listening(Playing):
        heard: ClassVar[list[int]] = []

        def predict(self, requests):
            self.heard.extend(request.seed for request in requests)
            return [np.zeros((1, 2), np.float32) for _ in requests]

    run(3, Listening, n_episodes=3, **FAST)
    assert len(set(Listening.heard)) == len(Listening.heard) == 3 * 80


def test_a_chunk_is_executed_as_far_as_the_schema_says():
    class Chunks(ExpertPolicy):
        asked = 0

        def predict(self, requests):
            self.asked += 1
            return [np.repeat(chunk, 8, axis=0) for chunk in super().predict(requests)]

    def of(envs):
        policy = Chunks(envs)
        policy.schema = replace(policy.schema, chunk_size=8, n_action_steps=3)
        return policy

    result, policy = run(1, of, n_episodes=1, **FAST)
    assert policy.asked == -(-result.results[0].steps // 3)
    assert (result.n_action_steps, result.chunk_size) == (3, 8)


def test_a_policy_that_draws_for_itself_repeats_and_leaves_the_callers_generator_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, _ = run(3, lambda envs: ExpertPolicy(envs, drawn=True), **FAST)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again, _ = run(3, lambda envs: ExpertPolicy(envs, drawn=True), **FAST)
    assert without_time(first) == without_time(again)


def test_the_first_episodes_are_the_same_however_many_there_are():
    assert plan_episodes(3, seed=5) == plan_episodes(8, seed=5)[:3]
    assert not {plan.seed for plan in plan_episodes(8, seed=5)} & {
        plan.seed for plan in plan_episodes(8, seed=6)
    }


def test_some_episodes_of_an_evaluation_can_be_played_alone():
    """What sharding over processes and resuming need."""
    whole, _ = run(2, ExpertPolicy, n_episodes=6, **FAST)
    with make_env("tabletop", 2, **FAST) as envs:
        part = [one.result for one in play(ExpertPolicy(envs), envs, plan_episodes(6, 0)[3:6])]
    assert tuple(part) == whole.results[3:6]


def test_an_instruction_can_be_given_to_all_episodes():
    result, _ = run(2, ExpertPolicy, n_episodes=3, options={"task": "reach the pink block"}, **FAST)
    assert {one.task for one in result.results} == {"reach the pink block"}


def test_the_first_episodes_are_filmed(tmp_path):
    told = []
    result, _ = run(
        2, ExpertPolicy, n_episodes=3, n_videos=2, video_folder=tmp_path, on_episode=told.append, render=True
    )
    assert [one.video for one in result.results] == [
        str(tmp_path / "episode_000_success.mp4"),
        str(tmp_path / "episode_001_success.mp4"),
        None,
    ]
    assert tuple(told) == result.results
    for one in result.results[:2]:
        with av.open(one.video) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.average_rate) == (256, 256, 10)
            assert len(list(container.decode(stream))) == one.steps + 1


class Broken(Playing):
    actions = np.zeros(6)

    def predict(self, requests):
        return [self.actions[None].astype(np.float32) for _ in requests]


class NotFinite(Broken):
    actions = np.array([0.5, np.nan])


@pytest.mark.parametrize(
    ("policy_of", "message"),
    [(Broken, r"shape \(2, 6\).*take \(2, 2\)"), (NotFinite, "not finite")],
)
def test_actions_that_can_not_be_carried_out_are_an_error(policy_of, message):
    with pytest.raises(FeatureError, match=message):
        run(2, policy_of, **FAST)


@pytest.mark.parametrize(
    ("settings", "message"), [({"n_episodes": 0}, "n_episodes=0"), ({"n_videos": 1}, "video_folder")]
)
def test_settings_that_can_not_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        run(1, ExpertPolicy, **settings)


def test_filming_needs_environments_that_draw(tmp_path):
    with pytest.raises(ConfigError, match="render=True"):
        run(1, ExpertPolicy, n_videos=1, video_folder=tmp_path)
