from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from smolact.envs.experts import tabletop_action
from smolact.envs.factory import make_env
from smolact.errors import ConfigError, FeatureError
from smolact.evaluation.metrics import EvaluationResult
from smolact.evaluation.rollout import batch_of, evaluate, plan_episodes, play


def same(batch):
    return batch


class ExpertPolicy(torch.nn.Module):
    """The scripted expert behind a policy's face. It looks at the environments, so that success can be known in advance."""

    def __init__(self, envs, noise_shape=None, drawn=False):
        super().__init__()
        self.envs, self.drawn = envs, drawn
        self.config = SimpleNamespace(n_action_steps=1, chunk_size=1)
        self.modes, self.resets = [], 0
        if noise_shape is not None:
            self.noise_shape = noise_shape

    def reset(self):
        self.resets += 1

    def select_action(self, batch, noise=None):
        self.modes.append(self.training)
        inner = [self.envs[number].unwrapped for number in range(len(batch["task"]))]
        assert batch["task"] == [env.task for env in inner]
        actions = torch.tensor([tabletop_action(env.state, env.goal) for env in inner])
        if noise is not None:
            actions = actions + 0.02 * noise[:, 0]
        return actions + 0.02 * torch.randn(actions.shape) if self.drawn else actions


class LookingPolicy:
    """Deterministic, and wrong: goes where the picture and the position send it."""

    config = None

    def reset(self):
        pass

    def select_action(self, batch, noise=None):
        image, state = batch["observation.image"], batch["observation.state"]
        assert image.dtype == torch.float32
        assert image.shape[1:] == (3, 64, 64)
        assert 0.0 <= float(image.min()) <= float(image.max()) <= 1.0
        return (1 - state) * 0.5 + image.mean((2, 3))[:, :2]


def run(batch_size, policy_of, n_episodes=7, **settings):
    options = {key: settings.pop(key) for key in ("obs_type", "render") if key in settings}
    with make_env("tabletop", batch_size, **options) as envs:
        policy = policy_of(envs)
        return evaluate(policy, same, same, envs, n_episodes=n_episodes, **settings), policy


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


@pytest.mark.parametrize("policy_of", [ExpertPolicy, lambda envs: LookingPolicy()])
def test_results_do_not_depend_on_the_batch_size(policy_of):
    results = [without_time(run(size, policy_of)[0]) for size in (1, 3, 7)]
    assert results[0] == results[1] == results[2]


def test_a_policy_that_tells_its_noise_gets_each_episode_its_own():
    results = [without_time(run(size, lambda e: ExpertPolicy(e, (4, 2)), **FAST)[0]) for size in (1, 3)]
    assert results[0] == results[1]
    preserve_rng_state, _ = run(1, ExpertPolicy, **FAST)
    assert [one.steps for one in preserve_rng_state.results] != [one.steps for one in results[0].results]


def test_no_two_episodes_get_the_same_noise():
    class Listening(LookingPolicy):
        noise_shape, heard = (4, 2), None

        def select_action(self, batch, noise=None):
            self.heard = noise if self.heard is None else torch.cat([self.heard, noise])
            return torch.zeros(len(noise), 2)

    _, policy = run(3, lambda envs: Listening(), n_episodes=3, **FAST)
    assert len(torch.unique(policy.heard, dim=0)) == len(policy.heard) == 3 * 80


def test_pictures_become_channels_first_between_0_and_1():
    picture = np.zeros((1, 4, 6, 3), np.uint8)
    picture[0, 1, 5] = (255, 51, 0)
    batch = batch_of({"observation.image": picture, "observation.state": np.ones((1, 2), np.float64)})
    assert batch["observation.image"].shape == (1, 3, 4, 6)
    assert batch["observation.image"][0, :, 1, 5].tolist() == pytest.approx([1.0, 0.2, 0.0])
    assert batch["observation.image"].sum() == pytest.approx(1.2)
    assert batch["observation.state"].dtype == torch.float32


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
        part = [one.result for one in play(ExpertPolicy(envs), same, same, envs, plan_episodes(6, 0)[3:6])]
    assert tuple(part) == whole.results[3:6]


def test_an_instruction_can_be_given_to_all_episodes():
    result, _ = run(2, ExpertPolicy, n_episodes=3, options={"task": "reach the pink block"}, **FAST)
    assert {one.task for one in result.results} == {"reach the pink block"}


def test_a_training_policy_is_evaluated_in_evaluation_mode_and_trains_on():
    _, policy = run(2, ExpertPolicy, n_episodes=2, **FAST)
    assert policy.training
    assert not any(policy.modes)


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


class Broken(LookingPolicy):
    def __init__(self, actions):
        self.actions = actions

    def select_action(self, batch, noise=None):
        return self.actions


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(2, 6), r"shape \(2, 6\).*take \(2, 2\)"),
        (torch.tensor([[0.5, 0.5], [np.nan, 0.5]]), "not finite"),
    ],
)
def test_actions_that_can_not_be_carried_out_are_an_error(actions, message):
    with pytest.raises(FeatureError, match=message):
        run(2, lambda envs: Broken(actions), **FAST)


@pytest.mark.parametrize(
    ("settings", "message"), [({"n_episodes": 0}, "n_episodes=0"), ({"n_videos": 1}, "video_folder")]
)
def test_settings_that_can_not_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        run(1, ExpertPolicy, **settings)


def test_filming_needs_environments_that_draw(tmp_path):
    with pytest.raises(ConfigError, match="render=True"):
        run(1, ExpertPolicy, n_videos=1, video_folder=tmp_path)
