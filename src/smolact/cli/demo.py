"""`smolact demo`: the whole road in minutes. Demonstrations, dataset, training, evaluation, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.help import asks_for_help, help_text
from smolact.cli.parsing import parse
from smolact.cli.progress import announce, counted, progress_bar
from smolact.errors import ConfigError
from smolact.settings import setting

if TYPE_CHECKING:
    from rich.console import Console

    from smolact.envs.demonstrations import Demonstration
    from smolact.training.config import TrainConfig

USAGE = "smolact demo [--minutes=10] [--seed=0] [--output=outputs/demo]"

CHUNK, EXECUTED = 16, 4
BATCH_SIZE = 32
NOISE_DRAWS = 2


@dataclass(frozen=True)
class DemoSettings:
    """What is particular to an environment.

    Attributes:
        demonstrated: settings of the environment while it is demonstrated.
        flags: of the training.
        per_minute: episodes that are demonstrated for each minute of the demo.
    """

    demonstrated: dict[str, Any]
    flags: tuple[str, ...] = ()
    per_minute: int = 20


DEMO_SETTINGS = {
    "tabletop": DemoSettings(
        {"tasks": ["reach", "push", "push", "push"]},  # pushing takes longer to learn than reaching
        # What the pusher goes in a step, normalized, is 0.16 at most.
        ("--policy.relative_step=0.12", "--policy.resize_imgs_with_padding=[64,64]"),
        200,
    ),
    "pusht": DemoSettings({}, ("--policy.resize_imgs_with_padding=[96,96]",)),
}
DEMONSTRATIONS_AT_LEAST = 50
DEMONSTRATION_SHARE, EVALUATION_SHARE, REPORT_SHARE = 0.1, 0.12, 0.03
"""Of the minutes: what demonstrations may take at most, and what is kept for what comes behind the training."""
EVALUATION_S, REPORT_S = 14.0, 9.0
"""Seconds that starting processes and playing the first round, and filming, take even in a short demo."""


@dataclass
class DemoConfig:
    """What `smolact demo` takes."""

    minutes: float = setting(10.0, "How long it takes in all; more minutes give a better policy.")
    seed: int = setting(0, "Seed of the demonstrations, the training and the evaluation.")
    output: Path = setting(Path("outputs/demo"), "Folder for everything; it must not exist or be empty.")
    env: str = setting("tabletop", "The environment; one that has a scripted expert.")
    restart: bool = setting(
        False, "Remove what a demo that was stopped has left in the folder, and begin again."
    )

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 24 * 60:
            raise ConfigError(f"--minutes={self.minutes}: expected more than 0 and at most a day.")


BEGUN = "demo.json"
"""The settings of a demo, in its folder from the beginning."""
_LEFT = {BEGUN, "dataset", "train", "evaluation", "videos", "report.html"}


def run(argv: Sequence[str]) -> int:
    """Go the whole road, and say what was reached."""
    if asks_for_help(argv):
        sys.stdout.write(help_text(DemoConfig, USAGE, (__doc__ or "").strip(), argv) + "\n")
        return 0
    began = time.monotonic()
    config, _ = parse(DemoConfig, argv)
    again = [*(word for word in argv if not word.startswith("--restart")), "--restart=true"]
    announce(f"smolact demo: {counted(config.minutes, 'minute')}, into {config.output}")
    from smolact import durable
    from smolact.envs.experts import expert_for
    from smolact.envs.factory import env_id
    from smolact.lock import writing_into

    expert_for(env_id(config.env))  # before anything is written
    with writing_into(config.output, instead="choose another --output"):
        clear(config.output, restart=config.restart)
        durable.write_json(
            config.output / BEGUN, {"minutes": config.minutes, "seed": config.seed, "env": config.env}
        )
        try:
            run_steps(config, began)
        except KeyboardInterrupt:
            sys.stderr.write(
                f"\nThe demo was stopped. To begin it again: {shlex.join(['smolact', 'demo', *again])}\n"
            )
            raise
    return 0


def clear(folder: Path, *, restart: bool) -> None:
    """See that the folder is empty, or remove what a demo that was stopped has left there.

    Raises:
        ConfigError: something else is there, or a demo, and nobody said that it may go.
    """
    from smolact import durable
    from smolact.lock import is_unused

    if is_unused(folder):
        return
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if BEGUN not in names or not names <= _LEFT:
        what = "holds a demo that is complete" if {BEGUN, "metrics.json"} <= names else "is not empty"
        raise ConfigError(
            f"{folder} {what}, and a demo needs a folder of its own. Remove it, or give --output=FOLDER."
        )
    if not restart:
        raise ConfigError(
            f"{folder} holds a demo that was stopped. Begin it again with --restart=true, which removes what is there, or give "
            "--output=FOLDER."
        )
    for name in sorted(names, key=lambda name: name == BEGUN):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            durable.remove_folder(path)
        else:
            path.unlink()


def run_steps(config: DemoConfig, began: float) -> None:
    """Demonstrations, training, evaluation, and a page of it all, in `config.output`."""
    from rich.console import Console

    from smolact import durable
    from smolact.cli.demo_evaluation import ROUNDS, DemoEvaluation, evaluate
    from smolact.cli.demo_report import show, summarize, write_page
    from smolact.machine import cores

    console = Console(stderr=True, highlight=False)
    seconds = 60 * config.minutes
    dataset, run_folder = config.output / "dataset", config.output / "train"

    for_report = min(max(seconds * REPORT_SHARE, REPORT_S), seconds / 4)
    for_evaluation = min(max(seconds * EVALUATION_SHARE, EVALUATION_S), seconds / 4)

    console.rule("1. Demonstrations: a scripted expert does what it is told")
    demonstrations = make_demonstrations(
        config, dataset, console, until=began + seconds * DEMONSTRATION_SHARE
    )
    console.rule("2. Training: a small SmolVLA, from the weights of a small VLM, on this machine")
    training = train(config, dataset, run_folder, until=began + seconds - for_evaluation - for_report)
    console.rule("3. Evaluation: new scenes, in closed loop")
    checkpoint = run_folder / "checkpoints" / "last" / "pretrained_model"
    left = began + seconds - for_report - time.monotonic()
    examination = DemoEvaluation(
        checkpoint, config.env, config.output / "evaluation", config.seed, time.time() + left, ROUNDS
    )
    results, shown = evaluate(examination, cores(), console)
    metrics = {
        **summarize(results),
        **demonstrations,
        **training,
        "n_action_steps": EXECUTED,
        "seed": config.seed,
        "minutes": config.minutes,
        "total_seconds": round(time.monotonic() - began, 1),
    }
    write_page(config.output, results, shown, metrics, run_folder, checkpoint)
    metrics["total_seconds"] = round(time.monotonic() - began, 1)
    durable.write_json(config.output / "metrics.json", metrics)
    show(console, config.output, config.env, results, metrics, checkpoint)


def make_demonstrations(config: DemoConfig, folder: Path, console: Console, until: float) -> dict[str, Any]:
    """Write the expert's episodes to a dataset: as many as are wanted, or as can be made until then, by the monotonic clock."""
    from smolact.envs.demonstrations import ActionNoise, demonstrations, demonstrations_by_processes
    from smolact.envs.experts import expert_for
    from smolact.envs.factory import env_id, make_env
    from smolact.machine import cores
    from smolact.recording.demonstrations import record_demonstrations

    road = DEMO_SETTINGS.get(config.env, DemoSettings({}))
    wanted = max(DEMONSTRATIONS_AT_LEAST, round(config.minutes * road.per_minute))
    began, made = time.monotonic(), 0
    how: dict[str, Any] = {"seed": config.seed, "noise": ActionNoise()}

    def ended(_: Demonstration) -> None:
        nonlocal made
        made += 1
        advance()

    with (
        make_env(config.env, **road.demonstrated) as envs,
        progress_bar(wanted, "episodes", console=console) as advance,
    ):
        expert = expert_for(env_id(config.env))
        # A process that writes them keeps one core busy; for a few it is not worth while to start others.
        episodes: Generator[Demonstration, None, None] = (
            demonstrations_by_processes(config.env, wanted, cores(), settings=road.demonstrated, **how)
            if wanted > DEMONSTRATIONS_AT_LEAST and cores() > 1
            else demonstrations(envs[0], expert, wanted, **how)
        )
        with contextlib.closing(episodes):
            frames = record_demonstrations(
                _in_time(episodes, until), folder, fps=envs.fps or 10, use_videos=False, on_episode=ended
            )
    seconds = round(time.monotonic() - began, 1)
    console.print(f"{made} episodes, {frames} frames in {seconds} s: {folder}", markup=False)
    return {"demonstrations": made, "demonstration_frames": frames, "demonstration_seconds": seconds}


def _in_time(episodes: Iterator[Demonstration], until: float) -> Iterator[Demonstration]:
    """Episodes until then, but so many at least that something can be learned from them."""
    yield from itertools.islice(episodes, DEMONSTRATIONS_AT_LEAST)
    for episode in episodes:
        yield episode
        if time.monotonic() > until:
            return


def train(config: DemoConfig, dataset: Path, run_folder: Path, until: float) -> dict[str, Any]:
    """Train until then, by the monotonic clock."""
    from smolact.cli.train import ProgressLine
    from smolact.training.trainer import train as train_policy

    began = time.monotonic()
    settings, explicit = training_settings(config, dataset, run_folder, minutes=(until - began) / 60)
    with ProgressLine(ending=False) as line:
        ended = train_policy(settings, explicit, listeners=[line])
    if ended.is_stopped:  # it may have been the last step
        raise KeyboardInterrupt
    seconds = time.monotonic() - began
    return {
        "steps": ended.step,
        "batch_size": BATCH_SIZE,
        "train_seconds": round(seconds, 1),
        "samples_per_second": round(ended.step * BATCH_SIZE / seconds, 1),
    }


def training_settings(
    config: DemoConfig, dataset: Path, run_folder: Path, minutes: float
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
        *DEMO_SETTINGS.get(config.env, DemoSettings({})).flags,
        f"--policy.chunk_size={CHUNK}",
        f"--policy.n_action_steps={EXECUTED}",
        "--policy.max_state_dim=8",
        "--policy.max_action_dim=8",
        "--policy.optimizer_lr=1e-3",
        "--policy.scheduler_decay_lr=1e-5",
        f"--batch_size={BATCH_SIZE}",
        f"--train_minutes={max(minutes, 0.01):.4f}",
        "--save_freq=0",
        "--num_workers=0",
        f"--seed={config.seed}",
        f"--output_dir={run_folder}",
    ]
    return parse(TrainConfig, argv)
