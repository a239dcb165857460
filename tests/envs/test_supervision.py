"""The expert as a person beside a policy: it leaves a good one alone, and helps one that fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from smolact.envs.experts import expert_for, tabletop_action
from smolact.envs.factory import make_env
from smolact.envs.supervision import Supervisor

EPISODES = 12


def play(policy: str) -> tuple[int, int, int]:
    """Episodes that succeeded, times that the expert took over, and times that it gave back."""
    expert: Any = expert_for("tabletop")
    succeeded = taken = given = 0
    with make_env("tabletop") as envs:
        env, inner = envs[0], envs[0].unwrapped
        for seed in range(EPISODES):
            env.reset(seed=seed)
            supervisor, was, over = Supervisor(expert), False, False
            other = inner.other_goals()[0]
            while not over:
                takes_over = supervisor.takes_over(env)
                taken, given = taken + (takes_over and not was), given + (was and not takes_over)
                was = takes_over
                wrong = {"still": inner.state.pusher, "wrong": tabletop_action(inner.state, other)}
                action = expert.act(env) if takes_over or policy == "good" else wrong[policy]
                *_, terminated, truncated, info = env.step(np.array(action, np.float32))
                over = terminated or truncated
            succeeded += bool(info["is_success"])
    return succeeded, taken, given


def test_a_good_policy_is_left_alone() -> None:
    assert play("good") == (EPISODES, 0, 0)


@pytest.mark.parametrize("policy", ["still", "wrong"])
def test_one_that_stands_still_or_goes_for_another_block_is_helped_and_drives_again(policy: str) -> None:
    succeeded, taken, given = play(policy)
    assert succeeded >= EPISODES - 2 and taken >= EPISODES and given > 0
