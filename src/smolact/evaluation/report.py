"""`report.html` of an evaluation: success rates with intervals, and videos of episodes, embedded in one file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
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
from smolact.pages import command_lines, document, embedded, header, table, tiles

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
        folder: the output folder, created if missing.
        results: the results of one or more policies; the page is about the first one.
        title: the page's title.
        shown: the episodes to show.
        fps: the frame rate of the videos.
        commands: the commands that produced the results.
        facts: further facts, name to text.
        settings: the policy's settings, name to text.
        sections: further HTML, before the episodes.

    Returns:
        the page's path.

    Raises:
        WriteError: the disk is full or refused.
    """
    episodes = [_episode(episode, _write_episode_video(folder / VIDEOS, episode, fps)) for episode in shown]
    by_condition = next(iter(results.values()))
    plain = by_condition[PLAIN]
    parts = [
        header(title, f"Did what it was told in {plain.success}."),
        tiles(headline(by_condition)),
        "<h2>What it was told, and how often it did it</h2>",
        conditions_table(by_condition),
        compared(results),
        *sections,
        "<h2>Episodes</h2>" * bool(shown),
        f"<p class=note>{LEGEND}</p>" if any(item.snapshots for item in shown) else "",
        *episodes,
        "<h2>Commands</h2>" if commands else "",
        command_lines(*commands),
        table("How it was measured", {**how(plain), **(facts or {})}),
        table("The policy's settings", settings or {}, folded=True),
        "<footer>Intervals are Wilson's, at 95%. Every episode is in metrics.json.</footer>",
    ]
    durable.write_text(folder / REPORT, document(title, parts, f"<style>{STYLE}</style>\n"))
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


def conditions_table(by_condition: Mapping[str, EvaluationResult]) -> str:
    """Return a table with a row for each condition and a drawing of its interval."""
    rows = []
    for name, result in by_condition.items():
        rows.append(_row(name.replace("_", " "), DESCRIPTIONS.get(name, ""), result.success))
        if name == PLAIN and len(result.per_task) > 1:
            rows += [_row(kind, "", rate, "part") for kind, rate in result.per_task.items()]
        if result.other_goal is not None:
            rows.append(_row("the goal no longer asked for", "lower is better", result.other_goal, "part"))
    return (
        "<div class=wide><table class=rates><thead><tr><th>condition</th><th>reached</th><th>95% interval</th>"
        f"<th class=drawn></th><th>episodes</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(name: str, description: str, rate: SuccessRate, kind: str = "") -> str:
    low, high = rate.interval
    small = f"<small>{escape(description)}</small>" if description else ""
    return (
        f'<tr class="{kind}"><th>{escape(name)}{small}</th><td><b>{rate.rate:.0%}</b></td><td>{low:.0%} to {high:.0%}</td>'
        f"<td class=drawn>{_interval(rate)}</td><td>{rate.successes} of {rate.episodes}</td></tr>"
    )


def _interval(rate: SuccessRate) -> str:
    low, high = (100 * end for end in rate.interval)
    return (
        '<svg viewBox="-2 0 104 10" role="img" aria-hidden="true"><path class=scale d="M0 5H100M0 3V7M50 3V7M100 3V7"/>'
        f'<path class=between d="M{low:.1f} 5H{high:.1f}"/><circle cx="{100 * rate.rate:.1f}" cy="5" r="2.4"/></svg>'
    )


def compared(results: Results) -> str:
    """Return a table that compares the other policies with the first one; empty for a single policy."""
    first, *others = results
    if not others:
        return ""
    rows = []
    for condition in results[first]:
        for name in others:
            pair = Comparison.of(results[first][condition], results[name][condition])
            rate = results[name][condition].success
            rows.append(
                f"<tr><th>{escape(condition.replace('_', ' '))}<small>{escape(name)}</small></th><td><b>{rate.rate:.0%}</b></td>"
                f"<td>{pair.difference:+.0%}</td><td>{pair.p_value:.2g}</td><td>{pair.only_first} : {pair.only_second}</td></tr>"
            )
    return (
        f"<h2>Against {escape(first)}</h2><div class=wide><table class=rates><thead><tr><th>condition, policy</th>"
        "<th>reached</th><th>difference</th><th>p (McNemar)</th><th>only the first : only this one</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def how(result: EvaluationResult) -> dict[str, str]:
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


def _episode(shown: ShowcaseEpisode, film: bytes) -> str:
    result = shown.result
    outcome = "reached" if result.success else "not reached"
    instruction = escape(result.task) if result.task.strip() else "<i>nothing</i>"
    note = "" if shown.condition == PLAIN else f"{escape(shown.condition.replace('_', ' '))} · "
    if result.other_task is not None:
        note += f"the scene asked: {escape(result.other_task)} · "
    first = embedded(_picture(shown.frames[0]), "image/jpeg")
    strip = "".join(_cell(shown, snapshot) for snapshot in spread(shown.snapshots, PICTURES))
    return (
        f"<article><h3>“{instruction}” <span class={'good' if result.success else 'bad'}>{outcome}</span></h3>"
        f"<p class=note>{note}{result.steps} steps, episode {result.index}</p><div class=seen>"
        f'<video controls muted loop playsinline preload="none" poster="{first}" src="{embedded(film, "video/mp4")}"></video>'
        f"<div class=strip>{strip}</div></div></article>"
    )


def _cell(shown: ShowcaseEpisode, snapshot: Snapshot) -> str:
    frame = shown.frames[snapshot.step]
    height, width = frame.shape[:2]
    lines = "".join(
        f'<polyline class={name} points="{_points(chunk[part], width, height)}"/>'
        for chunk in (() if snapshot.fan is None else snapshot.fan)
        for name, part in (("later", slice(shown.executed - 1, None)), ("now", slice(0, shown.executed)))
    )
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="step {snapshot.step}">'
        f'<image width="{width}" height="{height}" href="{embedded(_picture(frame), "image/jpeg")}"/>{lines}</svg>'
        f"<figcaption>step {snapshot.step}</figcaption></figure>"
    )


def _points(positions: NDArray[np.floating], width: int, height: int) -> str:
    return " ".join(f"{x * width:.1f},{y * height:.1f}" for x, y in positions)


def _picture(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def spread(snapshots: Sequence[Snapshot], n: int) -> list[Snapshot]:
    """Return at most `n` of the snapshots, evenly spaced from the first to the last."""
    indices = sorted({round(index) for index in np.linspace(0, len(snapshots) - 1, min(n, len(snapshots)))})
    return [snapshots[index] for index in indices]


LEGEND = (
    "Played again after the evaluation. Over each picture: chunks that the policy draws from there, the dark part of which is "
    "carried out before it looks again."
)

STYLE = """
h3 { margin: 0; font-size: 16px; font-weight: 600 } h3 span { font-size: 12px; font-weight: 500; padding: 2px 8px;
  border-radius: 9px; margin-left: 6px; white-space: nowrap; color: #fff } .good { background: #23824d } .bad { background: #b3402a }
.note, small { color: var(--ink); font-size: 13px } .note { margin: 2px 0 10px } small { display: block; font-weight: 400 }
article { background: var(--card); border-radius: 10px; padding: 12px 14px; margin: 0 0 12px }
.seen { display: grid; grid-template-columns: minmax(0, 1.3fr) minmax(0, 6fr); gap: 12px; align-items: start }
.strip { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 8px } .strip figure { padding: 0 }
.strip figcaption { font-size: 12px; font-weight: 400; color: var(--ink); margin: 0 } .strip svg { border-radius: 6px }
polyline { fill: none; stroke-linecap: round; stroke-linejoin: round } .now { stroke: #111; stroke-width: 1.6; opacity: .75 }
.later { stroke: #111; stroke-width: 1; opacity: .28 }
.wide { overflow-x: auto; border-radius: 10px; background: var(--card) } .rates th { text-align: left }
.rates thead th { font-size: 13px; color: var(--ink); white-space: nowrap } .rates tbody th { color: var(--text); min-width: 220px }
.rates td { white-space: nowrap } .rates .part th { padding-left: 30px; color: var(--ink) } .drawn { width: 26%; min-width: 140px }
.drawn svg { max-height: 22px } .scale { stroke: var(--faint); stroke-width: .8 } .between { stroke: var(--line); stroke-width: 1.6 }
circle { fill: var(--line) }
@media (max-width: 640px) { .seen { grid-template-columns: 1fr } .seen video { max-width: 260px }
  .strip { grid-template-columns: repeat(3, minmax(0, 1fr)) }
  .rates .drawn, .rates small { display: none } .rates tbody th { min-width: 0 } .rates th, .rates td { padding: 6px 8px } }
"""
