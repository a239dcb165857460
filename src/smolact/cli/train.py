"""`smolact train`: train a policy on a dataset, fine-tune one, or resume a run."""

from __future__ import annotations

import datetime
import json
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.parsing import CONFIG_PATH, parse, read_flags
from smolact.cli.progress import PATIENCE, announce
from smolact.errors import ConfigError
from smolact.training.config import TrainConfig
from smolact.training.sections import EnvSection

if TYPE_CHECKING:
    from rich.progress import TaskID

    from smolact.training.tracking import Ended, Event, Prepared

USAGE = (
    "smolact train --dataset.repo_id=OWNER/NAME (--policy.path=… | --policy.type=smolvla) [--NAME=VALUE …]"
)
INTERRUPTED = 130
HIGH_DATA_WAIT = 0.1
"""Share of a run's time spent waiting for data above which advice is printed."""


@command(TrainConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Train with the given flags and show the progress."""
    flags, checkpoint = with_resumed_settings(argv)
    config, explicit = parse(TrainConfig, flags, recorded=_recorded)
    if os.environ.get("RANK", "0") != "0":  # only rank 0 logs
        logging.getLogger().setLevel(logging.ERROR)

    announce("Loading PyTorch …")
    from smolact.training.trainer import train

    with ProgressLine(env_flags=env_flags(config.env)) as line:
        result = train(config, explicit, checkpoint=checkpoint, listeners=[line])
    return INTERRUPTED if result.is_stopped else 0


def with_resumed_settings(argv: Sequence[str]) -> tuple[list[str], Path | None]:
    """With `--resume`, return the flags on top of the checkpoint's own settings, and the checkpoint.

    It is the link `last` if the flags name the run and no other checkpoint: its target may change before the run's folder
    is locked. A run that was stopped before its first checkpoint has none: the flags override its original ones.

    Raises:
        ConfigError: the flags name no run, or two runs.
        NotFoundError: there is no checkpoint.
    """
    flags = {flag.name: flag.value for flag in read_flags(argv)}
    if "resume" not in flags or str(flags["resume"] or "true").lower() in ("false", "0"):
        return list(argv), None

    from smolact.policies.configuration import PRETRAINED_MODEL, TRAIN_CONFIG
    from smolact.training.checkpoint import CHECKPOINTS, LAST, find_checkpoint, read_own_settings
    from smolact.training.run_folder import is_unfinished, read_saved_flags

    run = flags.get("output_dir")
    if run and is_unfinished(Path(str(run))):
        logging.getLogger(__name__).info("%s holds a run without a checkpoint: it begins anew.", run)
        return [*([] if CONFIG_PATH in flags else read_saved_flags(Path(str(run)))), *argv], None
    location = flags.get(CONFIG_PATH) or flags.get("output_dir")
    if not location:
        raise ConfigError(
            "Which run is to be resumed? Give --output_dir=RUN or --config_path=…/train_config.json."
        )
    checkpoint = find_checkpoint(Path(str(location)))
    if run and Path(str(run)).resolve() != checkpoint.parent.parent:
        raise ConfigError(
            f"--output_dir={run} is not the run of --config_path={location}, and a run goes on in its own folder. Drop "
            "--output_dir, or start a new run from the weights with --policy.path."
        )
    own_flags = [
        f"--{name}={json.dumps(value)}"
        for name, value in read_own_settings(checkpoint).items()
        if name != "train_minutes" or "steps" not in flags  # --steps replaces it
    ]
    other_flags = [
        f"--{flag.name}" if flag.value is None else f"--{flag.name}={flag.value}"
        for flag in read_flags(argv)
        if flag.name not in (CONFIG_PATH, "output_dir")
    ]
    settings = [f"--{CONFIG_PATH}={checkpoint / PRETRAINED_MODEL / TRAIN_CONFIG}", *own_flags, *other_flags]
    last = checkpoint.parent / LAST
    is_last = CONFIG_PATH not in flags and checkpoint.parent.name == CHECKPOINTS and last.exists()
    return settings, last if is_last and last.resolve() == checkpoint else checkpoint


def _recorded(path: Path) -> Mapping[str, str] | None:
    from smolact.policies.configuration import TRAIN_CONFIG

    if path.name != TRAIN_CONFIG:
        return None
    from smolact.training.checkpoint import read_explicit

    return read_explicit(path)


@dataclass
class _Preparation:
    """A preparation step: its bar, start time, initial count, and the time of its last printed line."""

    task: TaskID
    started_at: float
    initial: int
    printed_at: float


class ProgressLine:
    """A live line on a terminal, elsewhere a line per measurement; `ending` prints the next command at the end."""

    def __init__(self, ending: bool = True, env_flags: Sequence[str] = ()) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.console = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("{task.fields[place]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.ending = ending
        self.env_flags = env_flags
        self.prepared: dict[str, _Preparation] = {}
        self.left = ""
        self.steps = 0
        self.minutes: float | None = None
        self.printed_at = 0.0
        self.run = Path()

    def __enter__(self) -> ProgressLine:
        self.bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        from smolact.training import tracking

        if isinstance(event, tracking.Prepared):
            self._prepare(event)
        elif isinstance(event, tracking.Started):
            self.steps, self.minutes, self.run = event.steps, event.minutes, event.run
            for preparation in self.prepared.values():
                self.bar.remove_task(preparation.task)
            self.printed_at = time.monotonic()
            total = event.steps if event.minutes is None else 60 * event.minutes
            self.task = self.bar.add_task("", total=total, place=self._step_text(event.step), numbers="")
            width = max(map(len, event.facts))
            for name, value in event.facts.items():
                self.console.print(f"{name.ljust(width)}  {value}", soft_wrap=True, markup=False)
            self.console.print(event.features, soft_wrap=True, markup=False)
        elif isinstance(event, tracking.Stepped):
            left = event.seconds_left
            self.left = "" if left is None else f"  {datetime.timedelta(seconds=round(left))} left"
            done = event.step if self.minutes is None else 60 * self.minutes - (left or 0.0)
            self.bar.update(self.task, completed=done, place=self._step_text(event.step))
            if time.monotonic() - self.printed_at > PATIENCE:
                self._print_progress(event.step)
        elif isinstance(event, tracking.Measured):
            self.bar.update(self.task, numbers=_numbers(event.metrics))
            self._print_progress(event.step, _numbers(event.metrics))
        elif isinstance(event, tracking.Evaluated):
            self.console.print(f"step {event.step}: success {event.result.success}", soft_wrap=True)
        elif isinstance(event, tracking.Saved):
            self.console.print(f"step {event.step}: saved {event.checkpoint}", soft_wrap=True, markup=False)
        elif isinstance(event, tracking.Ended):
            self._end(event)

    def _prepare(self, event: Prepared) -> None:
        """Show a bar for each preparation step; without a terminal, an occasional line."""
        now = time.monotonic()
        if event.what not in self.prepared:
            task = self.bar.add_task("", total=event.of, place="", numbers=event.what)
            self.prepared[event.what] = _Preparation(task, now, event.done, now)
            if not self.console.is_terminal:
                self.console.print(f"{event.what}: {event.of}", soft_wrap=True, markup=False)
        preparation = self.prepared[event.what]
        rate = (event.done - preparation.initial) / max(now - preparation.started_at, 1e-9)
        numbers = f"{event.what}  {rate:.0f}/s" if rate else event.what
        place = f"{event.done}/{event.of}"
        self.bar.update(preparation.task, completed=event.done, total=event.of, place=place, numbers=numbers)
        if not self.console.is_terminal and rate and now - preparation.printed_at > PATIENCE:
            preparation.printed_at = now
            left = datetime.timedelta(seconds=round((event.of - event.done) / rate))
            line = f"{event.what}: {event.done} of {event.of}, {rate:.0f}/s, {left} left"
            self.console.print(line, soft_wrap=True, markup=False)

    def _step_text(self, step: int) -> str:
        return f"step {step}" if self.minutes is not None else f"{step}/{self.steps}"

    def _print_progress(self, step: int, numbers: str = "") -> None:
        """Without a terminal, print a line: after each measurement, or `PATIENCE` seconds without one."""
        self.printed_at = time.monotonic()
        if not self.console.is_terminal:
            numbers = f"  {numbers}" if numbers else ""
            self.console.print(
                f"step {self._step_text(step).removeprefix('step ')}{numbers}{self.left}", soft_wrap=True
            )

    def _end(self, event: Ended) -> None:
        self.bar.stop()
        if event.data_wait is not None:
            options = (
                "More --num_workers, or --dataset.cache=frames,"
                if event.has_readers
                else "--dataset.cache=frames"
            )
            advice = f" {options} would help." * (event.data_wait > HIGH_DATA_WAIT)
            self.console.print(f"Waited for data {event.data_wait:.0%} of the time.{advice}", soft_wrap=True)
        if event.is_complete:
            if self.ending and event.checkpoint is not None:
                command = shlex.join(
                    ["smolact", "eval", f"--policy.path={event.checkpoint}", *self.env_flags]
                )
                line = f"Done: {event.checkpoint}. How good is it? {command}"
                self.console.print(line, soft_wrap=True, markup=False)
            return
        resume = f"smolact train --resume=true --output_dir={self.run}"
        text = (
            f"Stopped after step {event.step}. Go on with: {resume}"
            if event.checkpoint
            else "Stopped; nothing was saved."
        )
        self.console.print(text, soft_wrap=True, markup=False)


def env_flags(env: EnvSection) -> list[str]:
    """Return the flags that select this environment in another command."""
    flags = [f"--env.type={env.type or 'ENV'}"]
    if env.mapping is not None:
        flags.append(f"--env.mapping={env.mapping}")
    if env.kwargs:
        flags.append(f"--env.kwargs={json.dumps(env.kwargs)}")
    return flags


def _numbers(metrics: Mapping[str, float]) -> str:
    loss = (
        f"loss {metrics['loss']:.4f}  grad {metrics['grad_norm']:.2f}"
        if "loss" in metrics
        else "no finite step"
    )
    if "validation_loss" in metrics:
        loss += f"  held out {metrics['validation_loss']:.4f}"
    return (
        f"{loss}  lr {metrics['lr']:.1e}  "
        f"{metrics['samples_per_second']:.1f} samples/s  data {metrics['data_wait']:.0%}"
    )
