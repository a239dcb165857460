"""`report.html` of an evaluation: success rates with intervals, and videos of episodes, embedded in one file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from smolact import durable
from smolact.evaluation.conditions import DESCRIPTIONS, PLAIN
from smolact.evaluation.metrics import Comparison, EvaluationResult, SuccessRate
from smolact.evaluation.showcase import ShowcaseEpisode, Snapshot
from smolact.evaluation.suite import Results
from smolact.evaluation.video import write_video
from smolact.pages import data_uri, render

REPORT, VIDEOS = "report.html", "videos"
PICTURES = 6
"""The number of pictures in an episode's filmstrip."""


def write_report(
    folder: Path,
    results: Results,
    *,
    title: str,
    shown: Sequence[ShowcaseEpisode] = (),
    fps: int = 10,
    commands: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
    settings: Mapping[str, str] | None = None,
    sections: Sequence[str] = (),
) -> Path:
    """Write `report.html`, and a video of each shown episode in `videos`, into `folder`.

    Args:
        results: the results of one or more policies; the page is about the first one.
        facts: further facts, name to text.
        sections: further HTML, before the episodes.

    Returns:
        the page's path.

    Raises:
        WriteError: the disk is full or refused.
    """
    by_condition = next(iter(results.values()))
    plain = by_condition[PLAIN]
    films = [data_uri(_write_episode_video(folder / VIDEOS, episode, fps), "video/mp4") for episode in shown]
    page = render(
        "evaluation.html.jinja",
        title=title,
        subtitle=f"Did what it was told in {plain.success}.",
        numbers=headline(by_condition),
        by_condition=by_condition,
        plain=PLAIN,
        descriptions=DESCRIPTIONS,
        first=next(iter(results)),
        comparisons=_comparisons(results),
        sections=sections,
        episodes=list(zip(shown, films, strict=True)),
        commands=commands,
        facts={**evaluation_settings(plain), **(facts or {})},
        settings=settings,
        picture=_picture,
        points=_points,
        evenly_spaced=evenly_spaced,
    )
    durable.write_text(folder / REPORT, page)
    return folder / REPORT


def headline(by_condition: Mapping[str, EvaluationResult]) -> dict[str, str]:
    """Return the page's main numbers, name to text."""
    plain = by_condition[PLAIN]
    low, high = plain.success.interval
    numbers = {f"success (95%: {low:.0%} to {high:.0%})": f"{plain.success.rate:.0%}"}
    numbers |= {name: f"{rate.rate:.0%}" for name, rate in plain.per_task.items() if len(plain.per_task) > 1}
    for result in by_condition.values():
        if result.other_goal is not None:
            numbers["swapped: the asked goal"] = f"{result.success.rate:.0%}"
            numbers["swapped: the old goal"] = f"{result.other_goal.rate:.0%}"
    return numbers


def _comparisons(results: Results) -> list[tuple[str, str, SuccessRate, Comparison]]:
    """Compare the others with the first policy: condition, policy, its success rate and the comparison."""
    first, *others = results
    return [
        (condition, name, results[name][condition].success, Comparison.of(result, results[name][condition]))
        for condition, result in results[first].items()
        for name in others
    ]


def evaluation_settings(result: EvaluationResult) -> dict[str, str]:
    """Return the settings of an evaluation, name to text; unknown ones are left out."""
    known = {
        "actions executed of each chunk": f"{result.n_action_steps} of {result.chunk_size}",
        "denoising steps": str(result.num_steps),
        "mean length of an episode": f"{result.mean_steps:.0f} steps",
        "seed": str(result.seed),
    }
    return {name: text for name, text in known.items() if "None" not in text}


def _write_episode_video(folder: Path, shown: ShowcaseEpisode, fps: int) -> bytes:
    outcome = "success" if shown.result.success else "failure"
    path = folder / f"{shown.condition}_{shown.result.index:03d}_{outcome}.mp4"
    write_video(path, shown.frames, fps)
    return path.read_bytes()


def _points(positions: NDArray[np.floating], width: int, height: int) -> str:
    return " ".join(f"{x * width:.1f},{y * height:.1f}" for x, y in positions)


def _picture(frame: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=88)
    return data_uri(buffer.getvalue(), "image/jpeg")


def evenly_spaced(snapshots: Sequence[Snapshot], n: int = PICTURES) -> list[Snapshot]:
    """Return at most `n` of the snapshots, evenly spaced from the first to the last."""
    indices = sorted({round(index) for index in np.linspace(0, len(snapshots) - 1, min(n, len(snapshots)))})
    return [snapshots[index] for index in indices]
