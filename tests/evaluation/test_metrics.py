from __future__ import annotations

import json
from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smolact.errors import ConfigError
from smolact.evaluation.metrics import (
    EpisodeResult,
    EvaluationResult,
    SuccessRate,
    clustered_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe, 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_s_interval_has_the_published_values(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 300), st.integers(0, 300), st.floats(0.5, 0.999))
def test_the_interval_holds_the_rate_and_mirrors(successes, failures, confidence):
    trials = successes + failures
    low, high = wilson_interval(successes, trials, confidence)
    assert 0.0 <= low <= high <= 1.0
    if trials:
        assert low <= successes / trials <= high
    mirrored = wilson_interval(failures, trials, confidence)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_tasks_that_are_all_or_nothing_count_once_each():
    clusters = [SuccessRate(10, 10)] * 5 + [SuccessRate(0, 10)] * 5
    # 9 independent episodes (10 clusters less one), and Student's quantiles 1.984 (99 degrees) and 2.262 (9)
    effective = 9 * (1.984 / 2.262) ** 2
    assert clustered_interval(clusters) == pytest.approx(wilson_interval(effective / 2, effective), abs=2e-3)


def test_tasks_that_are_equal_count_as_their_episodes_but_for_the_small_number():
    low, high = clustered_interval([SuccessRate(5, 10)] * 50)
    assert (low, high) == pytest.approx(wilson_interval(250, 500), abs=2e-3)
    assert clustered_interval([SuccessRate(10, 10)] * 10)[1] == 1.0
    with pytest.raises(ConfigError, match="two"):
        clustered_interval([SuccessRate(5, 10)])


@pytest.mark.parametrize(
    ("successes", "trials", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 0.0), (1, 2, 1.0)]
)
def test_an_impossible_interval_is_refused(successes, trials, confidence):
    with pytest.raises(ConfigError, match=f"{successes} successes in {trials}"):
        wilson_interval(successes, trials, confidence)


def test_a_rate_reads_as_a_sentence():
    assert str(SuccessRate.of([True] * 84 + [False] * 16)) == "84% (84 of 100; 95% between 76% and 90%)"
    assert isnan(SuccessRate(0, 0).rate)


def test_the_largest_rewards_are_averaged_where_they_were_kept():
    kept = [EpisodeResult(index, index, "t", "k", False, 9, 3.0, max_reward=index / 4) for index in range(3)]
    older = EpisodeResult(3, 3, "t", "k", False, 9, 3.0)
    assert EvaluationResult(0, 4, 16, 1.5, (*kept, older)).mean_max_reward == 0.25
    result = EvaluationResult(0, 4, 16, 1.5, (older,))
    assert isnan(result.mean_max_reward) and result.to_dict()["mean_max_reward"] is None


def test_a_result_counts_overall_and_per_kind_and_goes_into_json():
    outcomes = [("reach", True, 5), ("push", False, 80), ("reach", True, 7), ("push", True, 30)]
    results = tuple(
        EpisodeResult(index, 100 + index, f"{kind} it", kind, success, steps, float(success))
        for index, (kind, success, steps) in enumerate(outcomes)
    )
    result = EvaluationResult(0, 4, 16, 1.5, results)
    assert result.success == SuccessRate(3, 4)
    assert result.per_task == {"push": SuccessRate(1, 2), "reach": SuccessRate(2, 2)}
    assert result.mean_steps == 30.5
    written = json.loads(json.dumps(result.to_dict()))
    assert written["success_rate"] == 0.75
    assert written["confidence_interval"] == list(wilson_interval(3, 4))
    assert written["per_task"]["reach"]["episodes"] == 2
    assert written["results"][1]["task"] == "push it"
