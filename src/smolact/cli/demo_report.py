"""Report of `smolact demo`: metrics, web page, and table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from smolact.evaluation.showcase import ShowcaseEpisode
    from smolact.evaluation.suite import Results

GROUNDING = (
    "The VLM `tiny` that ships with smolact was pretrained on synthetic pictures of such tables, with supervised pointing. "
    "The demo's own loss is flow matching on the demonstrations alone: pictures, words, states, actions."
)


def write_page(
    output: Path,
    results: Results,
    shown: Sequence[ShowcaseEpisode],
    metrics: dict[str, Any],
    run_folder: Path,
    checkpoint: Path,
) -> None:
    """Write `report.html`."""
    from smolact.evaluation.report import write_report
    from smolact.pages import command_and_versions, flat_settings
    from smolact.policies.configuration import read_config_file
    from smolact.training.metrics import read_metrics
    from smolact.training.report import curves_section

    run_facts = command_and_versions()
    (by_condition,) = results.values()
    write_report(
        output,
        results,
        title="smolact demo",
        shown=shown,
        commands=[run_facts.pop("command")],
        facts={
            "demonstrations": f"{metrics['demonstrations']} of a scripted expert ({metrics['demonstration_frames']} frames)",
            "training": f"{metrics['steps']} steps of {metrics['batch_size']}, {metrics['train_seconds']:.0f} s, "
            f"{metrics['samples_per_second']:.0f} samples/s",
            "in all": f"{metrics['total_seconds']:.0f} s",
            **({"where words get their meaning": GROUNDING} if len(by_condition) > 1 else {}),
            **run_facts,
        },
        settings=dict(flat_settings(read_config_file(checkpoint))),
        sections=["<h2>Training</h2>", curves_section(read_metrics(run_folder))],
    )


def summarize(results: Results) -> dict[str, Any]:
    """Return the summary for `metrics.json`, without the single episodes."""
    from smolact.evaluation.suite import to_json

    def without_details(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in ("results", "seconds", "policy")}

    totals = without_details(to_json(results))
    conditions = {name: without_details(values) for name, values in totals.pop("conditions").items()}
    seconds = sum(result.seconds for by_condition in results.values() for result in by_condition.values())
    episodes = sum(
        len(result.results) for by_condition in results.values() for result in by_condition.values()
    )
    return {
        **totals,
        **{name: values for name, values in conditions.items() if name != "swapped_instruction"},
        "evaluation_seconds": round(seconds, 1),
        "evaluation_episodes": episodes,
    }


def show(
    console: Console, output: Path, env: str, results: Results, metrics: dict[str, Any], checkpoint: Path
) -> None:
    """Print the table, the output paths and the next commands."""
    from rich.table import Table

    from smolact.evaluation.conditions import PLAIN

    console.rule("What it reached")
    table = Table("what it was told", "reached", "95% interval", "episodes")
    (by_condition,) = results.values()
    plain = by_condition[PLAIN]
    rows = {"what the scene asks for": plain.success}
    rows |= {f"  {name}": rate for name, rate in plain.per_task.items() if len(plain.per_task) > 1}
    for condition, result in by_condition.items():
        if condition != PLAIN:
            rows[condition.replace("_", " ")] = result.success
        if result.other_goal is not None:
            rows["  the goal that is no longer asked for"] = result.other_goal
    for name, rate in rows.items():
        low, high = rate.interval
        table.add_row(
            name, f"{rate.rate:.0%}", f"{low:.0%} to {high:.0%}", f"{rate.successes}/{rate.episodes}"
        )
    console.print(table)
    lines = (
        f"{metrics['total_seconds']:.0f} s in all, {metrics['train_seconds']:.0f} s of them training "
        f"({metrics['samples_per_second']:.0f} samples/s).",
        "",
        f"figures     {output / 'metrics.json'}",
        f"report      {output / 'report.html'}",
        f"videos      {output / 'videos'}",
        f"dataset     {output / 'dataset'}",
        f"checkpoint  {checkpoint}",
        "",
        "Try next:",
        f"  smolact eval --policy.path={checkpoint} --env.type={env}"
        + ' --task="push the red block to the left zone"' * (len(by_condition) > 1),
        f"  smolact train --policy.path={checkpoint} --dataset.root={output / 'dataset'} --steps=1000",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
