"""The page of an evaluation: its numbers, its pictures, and that nothing in it runs or is fetched."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from smolact.envs.factory import make_env
from smolact.evaluation.conditions import PLAIN, SWAPPED, conditions_for
from smolact.evaluation.metrics import EpisodeResult, EvaluationResult
from smolact.evaluation.report import evenly_spaced, write_report
from smolact.evaluation.rollout import evaluate
from smolact.evaluation.showcase import DRAWS, ShowcaseEpisode, Snapshot, choose_episodes, showcase
from smolact.runtime.policy import Chunk, Request
from tests.evaluation.test_conditions import Listener
from tests.pages import Page


class Planner(Listener):
    """A listener that also says which way it would go: straight on, in chunks of three, of which two are executed."""

    def __init__(self, envs: Any) -> None:
        super().__init__(envs)
        self.schema = replace(self.schema, n_action_steps=2, chunk_size=3)

    def predict(self, requests: Sequence[Request]) -> list[Chunk]:
        """The expert's actions; for the fans, which have no seed, lines that differ."""
        if requests[0].seed is not None:
            return [np.repeat(chunk, 3, axis=0) for chunk in super().predict(requests)]
        here = [request.observation["observation.state"] for request in requests]
        return [
            np.stack([one + 0.01 * float(torch.randn(())) * step for step in range(3)]).astype(np.float32)
            for one in here
        ]


def result_of(kinds: str, condition: str = PLAIN) -> EvaluationResult:
    """One episode a letter: p and r are kinds of task, a capital one succeeded."""
    results = tuple(
        EpisodeResult(index, index, "do it", kind.lower(), kind.isupper(), 3, 0.0)
        for index, kind in enumerate(kinds)
    )
    return EvaluationResult(0, 4, 16, 1.0, results, 10, condition)


def test_successes_and_failures_of_each_kind_are_picked_in_turn() -> None:
    assert choose_episodes(result_of("PPPpPPrRRR"), 4) == [0, 3, 6, 7]
    assert choose_episodes(result_of("PPP"), 2) == [0, 1]
    assert choose_episodes(result_of("pP"), 6) == [0, 1]
    assert choose_episodes(result_of(""), 6) == []


def shown_with(tmp_path: Path, **settings: Any) -> tuple[dict[str, EvaluationResult], list[ShowcaseEpisode]]:
    with make_env("tabletop", 2, render=True, **settings) as envs:
        policy = Planner(envs)
        conditions = conditions_for(envs)[:1]
        results = {
            one.name if one else PLAIN: evaluate(policy, envs, n_episodes=3, seed=4, condition=one)
            for one in (None, *conditions)
        }
        return results, showcase(policy, envs, results, conditions, 2)


def test_shown_episodes_are_those_of_the_evaluation_with_what_was_meant(tmp_path: Path) -> None:
    results, shown = shown_with(tmp_path)
    assert [one.condition for one in shown] == [PLAIN, PLAIN, SWAPPED]
    for one in shown:
        played = results[one.condition].results[one.result.index]
        assert one.result == played
        assert len(one.frames) == played.steps + 1
        assert [moment.step for moment in one.snapshots] == list(range(0, played.steps, 2))
        for moment in one.snapshots:
            assert moment.fan is not None and moment.fan.shape == (DRAWS, 3, 2)
            assert (
                np.ptp(moment.fan[:, 0], axis=0).max() == 0.0 and np.ptp(moment.fan[:, 2], axis=0).max() > 0
            )


def test_the_page_stands_alone_and_runs_nothing(tmp_path: Path) -> None:
    results, shown = shown_with(tmp_path, max_episode_steps=12)
    evil = ShowcaseEpisode(
        SWAPPED,
        EpisodeResult(9, 9, "<script>alert(1)</script>", "k", False, 2, 0.0, None, "<b>", True),
        shown[0].frames[:3],
        [Snapshot(0, None)],
        2,
    )
    path = write_report(
        tmp_path / "out",
        {"<i>a": results, "b": results},
        title="<u>title",
        shown=[*shown, evil],
        commands=["smolact eval --task='<p>'"],
        facts={"x": "<q>"},
        settings={"y": "<s>"},
        sections=["<h2>More</h2>"],
    )
    text = path.read_text()
    page = Page(text)
    for raw in ("<script", "<i>a", "<u>", "<p>'", "<q>", "<s>", "<b>&"):
        assert raw not in text
    assert all(link.startswith("data:") for link in page.links)
    assert text.count("data:video/mp4;base64,") == len(shown) + 1
    assert len(list((tmp_path / "out" / "videos").glob("*.mp4"))) == len(shown) + 1
    assert text.count("<polyline") == sum(2 * DRAWS * len(evenly_spaced(one.snapshots, 6)) for one in shown)
    assert "Against &lt;i&gt;a" in text and "<h2>More</h2>" in text


def test_the_table_has_a_row_for_each_condition_and_kind(tmp_path: Path) -> None:
    results = {PLAIN: result_of("PPprRRRR"), SWAPPED: result_of("Pp", SWAPPED)}
    page = write_report(tmp_path, {"policy": results}, title="title").read_text()
    rows = re.findall(r"<tr class=.*?</tr>", page, re.DOTALL)
    assert len(rows) == 4
    assert "75%" in rows[0] and "6 of 8" in rows[0] and "67%" in rows[1] and "50%" in rows[3]


@pytest.mark.parametrize(("n", "of", "steps"), [(3, 7, [0, 3, 6]), (6, 2, [0, 1]), (6, 0, []), (1, 5, [0])])
def test_moments_are_spread_evenly(n: int, of: int, steps: list[int]) -> None:
    assert [one.step for one in evenly_spaced([Snapshot(step, None) for step in range(of)], n)] == steps
