"""`smolact demo`: the whole road in minutes. Demonstrations, dataset, training, evaluation, and what came of it."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smolact.cli.command import command
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
    """Settings of the demo for one environment.

    Attributes:
        env_settings: settings of the environment for the demonstrations.
        per_minute: demonstrations per minute of the demo.
    """

    env_settings: dict[str, Any]
    policy_settings: Mapping[str, Any] = field(default_factory=dict)
    per_minute: int = 20


DEMO_SETTINGS = {
    "tabletop": DemoSettings(
        {"tasks": ["reach", "push", "push", "push"]},  # pushing takes longer to learn than reaching
        # The pusher moves at most 0.16 (normalized) per step.
        {"relative_step": 0.12, "resize_imgs_with_padding": (64, 64)},
        200,
    ),
    "pusht": DemoSettings({}, {"resize_imgs_with_padding": (96, 96)}),
    # Drawing is slow without a GPU, so it has one small camera, and the quicker of the two tasks.
    "so101": DemoSettings(
        {"tasks": ["reach"], "cameras": ["front"], "image_size": (96, 96)},
        {"resize_imgs_with_padding": (96, 96)},
        40,
    ),
}
DEMONSTRATIONS_AT_LEAST = 50
DEMONSTRATION_SHARE, EVALUATION_SHARE, REPORT_SHARE = 0.1, 0.12, 0.03
"""Shares of the total time: the limit of the demonstrations, and the reserves for evaluation and report."""
EVALUATION_S, REPORT_S = 14.0, 9.0
"""Seconds that even a short demo needs: to start processes and play the first round; to film."""


@dataclass
class DemoConfig:
    """Settings of `smolact demo`."""

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


SETTINGS_FILE = "demo.json"
"""File with a demo's settings, written to its folder at the start."""
_OUTPUTS = {SETTINGS_FILE, "dataset", "train", "evaluation", "videos", "report.html"}


@command(DemoConfig, USAGE)
def run(config: DemoConfig, argv: Sequence[str]) -> None:
    """Run the whole demo and print the results."""
    began = time.monotonic()
    restart_argv = [*(word for word in argv if not word.startswith("--restart")), "--restart=true"]
    announce(f"smolact demo: {counted(config.minutes, 'minute')}, into {config.output}")
    from smolact import durable
    from smolact.envs.experts import expert_for
    from smolact.lock import writing_into

    expert_for(config.env)  # raises before anything is written
    with writing_into(config.output, instead="choose another --output"):
        clear(config.output, restart=config.restart)
        durable.write_json(
            config.output / SETTINGS_FILE, {"minutes": config.minutes, "seed": config.seed, "env": config.env}
        )
        try:
            run_steps(config, began)
        except KeyboardInterrupt:
            sys.stderr.write(
                f"\nThe demo was stopped. To begin it again: {shlex.join(['smolact', 'demo', *restart_argv])}\n"
            )
            raise


def clear(folder: Path, *, restart: bool) -> None:
    """Remove the files of a stopped demo from the folder, if there are any.

    Raises:
        ConfigError: the folder contains other files or a complete demo, or `restart` is false.
    """
    from smolact import durable
    from smolact.lock import is_unused

    if is_unused(folder):
        return
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".")}
    if SETTINGS_FILE not in names or not names <= _OUTPUTS:
        what = "holds a demo that is complete" if {SETTINGS_FILE, "metrics.json"} <= names else "is not empty"
        raise ConfigError(
            f"{folder} {what}, and a demo needs a folder of its own. Remove it, or give --output=FOLDER."
        )
    if not restart:
        raise ConfigError(
            f"{folder} holds a demo that was stopped. Begin it again with --restart=true, which removes what is there, or give "
            "--output=FOLDER."
        )
    for name in sorted(names, key=lambda name: name == SETTINGS_FILE):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            durable.remove_folder(path)
        else:
            path.unlink()


def run_steps(config: DemoConfig, began: float) -> None:
    """Make demonstrations, train, evaluate, and write a report, in `config.output`."""
    from rich.console import Console

    from smolact import durable
    from smolact.cli.demo_evaluation import ROUNDS, DemoEvaluation, evaluate
    from smolact.cli.demo_report import show, summarize, write_page
    from smolact.machine import cores

    console = Console(stderr=True, highlight=False)
    seconds = 60 * config.minutes
    dataset, run_folder = config.output / "dataset", config.output / "train"

    report_seconds = min(max(seconds * REPORT_SHARE, REPORT_S), seconds / 4)
    evaluation_seconds = min(max(seconds * EVALUATION_SHARE, EVALUATION_S), seconds / 4)

    console.rule("1. Demonstrations: a scripted expert does what it is told")
    demonstrations = make_demonstrations(
        config, dataset, console, until=began + seconds * DEMONSTRATION_SHARE
    )
    console.rule("2. Training: a small SmolVLA, from the weights of a small VLM, on this machine")
    training = train(config, dataset, run_folder, until=began + seconds - evaluation_seconds - report_seconds)
    console.rule("3. Evaluation: new scenes, in closed loop")
    checkpoint = run_folder / "checkpoints" / "last" / "pretrained_model"
    seconds_left = began + seconds - report_seconds - time.monotonic()
    evaluation = DemoEvaluation(
        checkpoint, config.env, config.output / "evaluation", config.seed, time.time() + seconds_left, ROUNDS
    )
    results, shown = evaluate(evaluation, cores(), console)
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
    """Write the expert's episodes to a dataset: the wanted number, or fewer by the deadline `until` (monotonic clock)."""
    from smolact.envs.demonstrations import ActionNoise, demonstrations, demonstrations_by_processes
    from smolact.envs.experts import expert_for
    from smolact.envs.factory import make_env
    from smolact.machine import cores
    from smolact.recording.demonstrations import record_demonstrations

    demo = DEMO_SETTINGS.get(config.env, DemoSettings({}))
    wanted = max(DEMONSTRATIONS_AT_LEAST, round(config.minutes * demo.per_minute))
    began, made = time.monotonic(), 0
    options: dict[str, Any] = {"seed": config.seed, "noise": ActionNoise()}

    def count(_: Demonstration) -> None:
        nonlocal made
        made += 1
        advance()

    with (
        make_env(config.env, **demo.env_settings) as envs,
        progress_bar(wanted, "episodes", console=console) as advance,
    ):
        expert = expert_for(config.env)
        # The writing process keeps one core busy; for few episodes, starting others does not pay.
        episodes: Generator[Demonstration, None, None] = (
            demonstrations_by_processes(config.env, wanted, cores(), settings=demo.env_settings, **options)
            if wanted > DEMONSTRATIONS_AT_LEAST and cores() > 1
            else demonstrations(envs[0], expert, wanted, **options)
        )
        with contextlib.closing(episodes):
            frames = record_demonstrations(
                _take_until(episodes, until), folder, fps=envs.fps or 10, use_videos=False, on_episode=count
            )
    seconds = round(time.monotonic() - began, 1)
    console.print(f"{made} episodes, {frames} frames in {seconds} s: {folder}", markup=False)
    return {"demonstrations": made, "demonstration_frames": frames, "demonstration_seconds": seconds}


def _take_until(episodes: Iterator[Demonstration], deadline: float) -> Iterator[Demonstration]:
    """Yield episodes until the deadline, but enough for a training at least."""
    yield from itertools.islice(episodes, DEMONSTRATIONS_AT_LEAST)
    for episode in episodes:
        yield episode
        if time.monotonic() > deadline:
            return


def train(config: DemoConfig, dataset: Path, run_folder: Path, until: float) -> dict[str, Any]:
    """Train until the deadline `until` (monotonic clock)."""
    from smolact.cli.train import ProgressLine
    from smolact.training.train import train as train_policy

    began = time.monotonic()
    settings = training_settings(config, dataset, run_folder, minutes=(until - began) / 60)
    with ProgressLine(ending=False) as line:
        result = train_policy(settings, listeners=[line])
    if result.is_stopped:  # even after the last step
        raise KeyboardInterrupt
    seconds = time.monotonic() - began
    return {
        "steps": result.step,
        "batch_size": BATCH_SIZE,
        "train_seconds": round(seconds, 1),
        "samples_per_second": round(result.step * BATCH_SIZE / seconds, 1),
    }


def training_settings(config: DemoConfig, dataset: Path, run_folder: Path, minutes: float) -> TrainConfig:
    """Return the settings of the demo's training."""
    from smolact.training.config import TrainConfig
    from smolact.training.sections import DatasetSection, PolicySection

    policy = {
        "vlm_model_name": "tiny",
        "train_expert_only": False,
        "freeze_vision_encoder": True,
        **DEMO_SETTINGS.get(config.env, DemoSettings({})).policy_settings,
        "chunk_size": CHUNK,
        "n_action_steps": EXECUTED,
        "max_state_dim": 8,
        "max_action_dim": 8,
        "optimizer_lr": 1e-3,
        "scheduler_decay_lr": 1e-5,
    }
    return TrainConfig(
        dataset=DatasetSection(root=str(dataset)),
        policy=PolicySection(type="smolvla", settings=policy),
        lr_multipliers={"vlm_with_expert.vlm": 0.5},
        noise_draws=NOISE_DRAWS,
        batch_size=BATCH_SIZE,
        train_minutes=max(minutes, 0.01),
        save_freq=0,
        num_workers=0,
        seed=config.seed,
        output_dir=run_folder,
    )
