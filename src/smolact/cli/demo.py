"""`smolact demo`: the whole road in minutes. Demonstrations, dataset, training, evaluation, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.parsing import parse
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from rich.console import Console

    from smolact.evaluation.showcase import Shown
    from smolact.evaluation.suite import Results
    from smolact.training.config import TrainConfig

USAGE = "smolact demo [--minutes=10] [--seed=0] [--output=outputs/demo]"

CHUNK, EXECUTED = 16, 4
BATCH_SIZE = 32
NOISE_DRAWS = 2
RELATIVE_STEP = 0.12  # what the pusher goes in a step, normalized, is 0.16 at most
DEMONSTRATED: dict[str, dict[str, Any]] = {"tabletop": {"tasks": ["reach", "push", "push", "push"]}}
"""Settings of an environment while it is demonstrated: pushing takes longer to learn than reaching."""
EPISODES_PER_MINUTE = 200
DEMONSTRATIONS_AT_LEAST = 50
MOST_EVALUATED = 100
"""Episodes in each condition; a shorter demo has fewer, 10 a minute, and its intervals are wider."""
FACTS = ("n_action_steps", "chunk_size", "num_steps")
FILMED = 6
GROUNDING = (
    "The VLM `tiny` that ships with smolact was pretrained on synthetic pictures of such tables, with supervised pointing. "
    "The demo's own loss is flow matching on the demonstrations alone: pictures, words, states, actions."
)
EVALUATION_SHARE = 0.2
"""Of the minutes. Demonstrations take what they take, and training the rest."""
PROBE = 60
"""Steps that measure how fast this machine trains."""


@dataclass
class DemoConfig:
    """What `smolact demo` takes."""

    minutes: float = setting(10.0, "How long it may take in all; more minutes give a better policy.")
    seed: int = setting(0, "Seed of the demonstrations, the training and the evaluation.")
    output: Path = setting(Path("outputs/demo"), "Folder for everything; it must not exist or be empty.")
    env: str = setting("tabletop", "The environment; one that has a scripted expert.")

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 24 * 60:
            raise ConfigError(f"--minutes={self.minutes}: expected more than 0 and at most a day.")


def run(argv: Sequence[str]) -> int:
    """Go the whole road, and say what was reached."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(DemoConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return 0
    config, _ = parse(DemoConfig, argv)
    from smolact.lock import is_unused, writing_into

    with writing_into(config.output, instead="choose another --output"):
        if not is_unused(config.output):
            raise ConfigError(
                f"{config.output} is not empty, and a demo needs a folder of its own. Remove it, or give --output=FOLDER."
            )
        go_the_road(config)
    return 0


def go_the_road(config: DemoConfig) -> None:
    """Demonstrations, training, evaluation, and a page of it all, in `config.output`."""
    from rich.console import Console

    began = time.monotonic()
    console = Console(stderr=True, highlight=False)
    dataset, run_folder = config.output / "dataset", config.output / "train"

    console.rule("1. Demonstrations: a scripted expert does what it is told")
    demonstrations = make_demonstrations(config, dataset, console)
    console.rule("2. Training: a small SmolVLA, from the weights of a small VLM, on this machine")
    seconds = config.minutes * 60 * (1 - EVALUATION_SHARE)
    training = train(config, dataset, run_folder, console, until=began + seconds)
    console.rule("3. Evaluation: new scenes, in closed loop")
    checkpoint = run_folder / "checkpoints" / "last" / "pretrained_model"
    results, shown = evaluate(config, checkpoint, console)

    metrics = {
        **summarize(results),
        **demonstrations,
        **training,
        "n_action_steps": EXECUTED,
        "seed": config.seed,
        "total_seconds": round(time.monotonic() - began, 1),
    }
    from smolact import durable

    durable.write_json(config.output / "metrics.json", metrics)
    write_page(config, results, shown, metrics, run_folder, checkpoint)
    show(console, config, results, metrics, checkpoint)


def make_demonstrations(config: DemoConfig, folder: Path, console: Console) -> dict[str, Any]:
    """Write the expert's episodes to a dataset."""
    from smolact.envs.demonstrations import ActionNoise, demonstrations
    from smolact.envs.experts import expert_for
    from smolact.envs.factory import env_id, make_env
    from smolact.recording.demonstrations import record_demonstrations

    episodes = max(DEMONSTRATIONS_AT_LEAST, round(config.minutes * EPISODES_PER_MINUTE))
    began = time.monotonic()
    with (
        make_env(config.env, **DEMONSTRATED.get(config.env, {})) as envs,
        counting(console, episodes, "episodes") as advance,
    ):
        shown = demonstrations(
            envs[0], expert_for(env_id(config.env)), episodes, seed=config.seed, noise=ActionNoise()
        )
        frames = record_demonstrations(
            shown, folder, fps=envs.fps or 10, use_videos=False, on_episode=lambda _: advance()
        )
    seconds = round(time.monotonic() - began, 1)
    console.print(f"{episodes} episodes, {frames} frames in {seconds} s: {folder}", markup=False)
    return {"demonstrations": episodes, "demonstration_frames": frames, "demonstration_seconds": seconds}


def train(
    config: DemoConfig, dataset: Path, run_folder: Path, console: Console, until: float
) -> dict[str, Any]:
    """Train until about then (by the monotonic clock): the steps follow from this machine's speed."""
    import tempfile

    from smolact.cli.train import ProgressLine
    from smolact.training.trainer import train as train_policy

    with tempfile.TemporaryDirectory() as scratch:
        settings, explicit = training_settings(config, dataset, Path(scratch) / "speed", steps=PROBE)
        settings.save_checkpoint = False
        settings.report = False
        rates: list[float] = []
        ended = train_policy(settings, explicit, listeners=[lambda event: _collect(event, rates)])
    if ended.is_stopped:
        raise KeyboardInterrupt
    samples_per_second = rates[-1]  # the first measurement warms up
    steps = max(30, round((until - time.monotonic()) * samples_per_second / BATCH_SIZE))
    console.print(f"This machine does {samples_per_second:.0f} samples/s: {steps} steps.", markup=False)

    settings, explicit = training_settings(config, dataset, run_folder, steps)
    began = time.monotonic()
    with ProgressLine(ending=False) as line:
        ended = train_policy(settings, explicit, listeners=[line, lambda event: _collect(event, rates)])
    if ended.is_stopped:  # it may have been the last step
        raise KeyboardInterrupt
    seconds = time.monotonic() - began
    return {
        "steps": steps,
        "batch_size": BATCH_SIZE,
        "train_seconds": round(seconds, 1),
        "samples_per_second": round(steps * BATCH_SIZE / seconds, 1),
    }


def training_settings(
    config: DemoConfig, dataset: Path, run_folder: Path, steps: int
) -> tuple[TrainConfig, dict[str, str]]:
    """What a user would type after `smolact train`, and which of it is set on purpose."""
    from smolact.training.config import TrainConfig

    argv = [
        f"--dataset.root={dataset}",
        "--policy.type=smolvla",
        "--policy.vlm_model_name=tiny",
        "--policy.train_expert_only=false",
        "--policy.freeze_vision_encoder=true",
        "--lr_multipliers={vlm_with_expert.vlm: 0.5}",
        f"--noise_draws={NOISE_DRAWS}",
        f"--policy.relative_step={RELATIVE_STEP}",
        "--policy.resize_imgs_with_padding=[64,64]",
        f"--policy.chunk_size={CHUNK}",
        f"--policy.n_action_steps={EXECUTED}",
        "--policy.max_state_dim=8",
        "--policy.max_action_dim=8",
        "--policy.optimizer_lr=1e-3",
        "--policy.scheduler_decay_lr=1e-5",
        f"--policy.scheduler_warmup_steps={min(200, steps // 10 + 1)}",
        f"--batch_size={BATCH_SIZE}",
        f"--steps={steps}",
        f"--log_freq={max(10, steps // 40) if steps > PROBE else PROBE // 2}",
        "--save_freq=0",
        "--num_workers=0",
        f"--seed={config.seed}",
        f"--output_dir={run_folder}",
    ]
    return parse(TrainConfig, argv)


def evaluate(config: DemoConfig, checkpoint: Path, console: Console) -> tuple[Results, list[Shown]]:
    """Try the policy in scenes that it has not seen, and see whether it listens; and some episodes to look at."""
    from smolact.envs.factory import make_env
    from smolact.evaluation.conditions import PLAIN, conditions_for
    from smolact.evaluation.showcase import showcase
    from smolact.evaluation.suite import EpisodeLog, collect, run_suite
    from smolact.policies.factory import load_policy

    n_episodes = min(MOST_EVALUATED, max(10, round(10 * config.minutes)))
    loaded = load_policy(checkpoint)
    policies = [str(checkpoint)]
    log = EpisodeLog(config.output / "evaluation", {"policies": policies, "seed": config.seed})
    with make_env(config.env, 25, render=True) as envs:
        conditions = conditions_for(envs)
        with counting(console, n_episodes * (1 + len(conditions)), "episodes") as advance:
            run_suite(
                policies,
                lambda _: loaded,
                envs,
                conditions,
                log,
                n_episodes=n_episodes,
                seed=config.seed,
                on_episode=lambda *_: advance(),
            )
        names = [PLAIN, *(condition.name for condition in conditions)]
        facts = {policies[0]: {key: getattr(loaded.policy.config, key, None) for key in FACTS}}
        results = collect(policies, names, log, n_episodes, config.seed, facts)
        return results, showcase(*loaded, envs, results[policies[0]], conditions, FILMED)


def write_page(
    config: DemoConfig,
    results: Results,
    shown: Sequence[Shown],
    metrics: dict[str, Any],
    run_folder: Path,
    checkpoint: Path,
) -> None:
    """`report.html`: all of it on a page."""
    from smolact.evaluation.report import write_report
    from smolact.pages import flat, how_it_ran
    from smolact.policies.configuration import read_config_file
    from smolact.training.curves import read_metrics
    from smolact.training.report import curves_section

    ran = how_it_ran()
    write_report(
        config.output,
        results,
        title="smolact demo",
        shown=shown,
        commands=[ran.pop("command")],
        facts={
            "demonstrations": f"{metrics['demonstrations']} of a scripted expert ({metrics['demonstration_frames']} frames)",
            "training": f"{metrics['steps']} steps of {BATCH_SIZE}, {metrics['train_seconds']:.0f} s, "
            f"{metrics['samples_per_second']:.0f} samples/s",
            "in all": f"{metrics['total_seconds']:.0f} s",
            "where words get their meaning": GROUNDING,
            **ran,
        },
        settings=dict(flat(read_config_file(checkpoint))),
        sections=["<h2>Training</h2>", curves_section(read_metrics(run_folder))],
    )


def summarize(results: Results) -> dict[str, Any]:
    """The headline of `metrics.json`, without the single episodes."""
    from smolact.evaluation.suite import to_json

    def short(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in ("results", "seconds", "policy")}

    found = short(to_json(results))
    conditions = {name: short(values) for name, values in found.pop("conditions").items()}
    seconds = sum(result.seconds for by_condition in results.values() for result in by_condition.values())
    episodes = sum(
        len(result.results) for by_condition in results.values() for result in by_condition.values()
    )
    return {
        **found,
        **{name: values for name, values in conditions.items() if name != "swapped_instruction"},
        "evaluation_seconds": round(seconds, 1),
        "evaluation_episodes": episodes,
    }


def show(
    console: Console, config: DemoConfig, results: Results, metrics: dict[str, Any], checkpoint: Path
) -> None:
    """The table, the places, and what to try next."""
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
        f"figures     {config.output / 'metrics.json'}",
        f"report      {config.output / 'report.html'}",
        f"videos      {config.output / 'videos'}",
        f"dataset     {config.output / 'dataset'}",
        f"checkpoint  {checkpoint}",
        "",
        "Try next:",
        f'  smolact eval --policy.path={checkpoint} --env.type={config.env} --task="push the red block to the left zone"',
        f"  smolact train --policy.path={checkpoint} --dataset.root={config.output / 'dataset'} --steps=1000",
    )
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


@contextmanager
def counting(console: Console, total: int, unit: str) -> Iterator[Any]:
    """A bar with rate and time left; the function that it yields advances it by one."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), TextColumn(unit), BarColumn(bar_width=24), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)


def _collect(event: Any, rates: list[float]) -> None:
    from smolact.training.tracking import Measured

    if isinstance(event, Measured):
        rates.append(event.metrics["samples_per_second"])
