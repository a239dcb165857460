"""`smolact train`: train a policy on a dataset, fine-tune one, or resume a run."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smolact.cli.command import command
from smolact.cli.main import INTERRUPTED, aligned
from smolact.cli.progress import PATIENCE, Count, announce
from smolact.errors import ConfigError
from smolact.flags import split_file
from smolact.training.config import TrainConfig
from smolact.training.sections import EnvSection

if TYPE_CHECKING:
    from rich.progress import TaskID

    from smolact.training.tracking import Ended, Event, Prepared

USAGE = (
    "smolact train --dataset.repo_id=OWNER/NAME (--policy.path=… | --policy.type=smolvla) [--NAME=VALUE …]"
)
HIGH_DATA_WAIT = 0.1
"""Share of a run's time spent waiting for data above which advice is printed."""


@command(TrainConfig, USAGE)
def run(argv: Sequence[str]) -> int:
    """Train with the given flags and show the progress."""
    config = read_settings(argv)
    if os.environ.get("RANK", "0") != "0":  # only rank 0 logs
        logging.getLogger().setLevel(logging.ERROR)

    announce("Loading PyTorch …")
    from smolact.training.train import train

    with ProgressLine(env_flags=env_flags(config.env)) as line:
        result = train(config, listeners=[line])
    return INTERRUPTED if result.is_stopped else 0


def read_settings(argv: Sequence[str]) -> TrainConfig:
    """Return the settings of a command line: of a new run, or with `--resume` of the run that it names.

    Raises:
        ConfigError: a setting is invalid; or the flags name no run to resume, or two runs.
        NotFoundError: there is no checkpoint.
    """
    path, flags = split_file(argv)
    texts = {flag.name: flag.value for flag in flags}
    if "resume" not in texts or str(texts["resume"] or "true").lower() in ("false", "0"):
        return TrainConfig.read(path, flags)
    from smolact.training.run_folder import is_unfinished

    run = Path(str(texts["output_dir"])) if texts.get("output_dir") else None
    if run is not None and is_unfinished(run):
        logging.getLogger(__name__).info("%s holds a run without a checkpoint: it begins anew.", run)
        if path is not None:
            return dataclasses.replace(TrainConfig.read(path, flags), begins_again=True)
    location = run if path is None else path
    if location is None:
        raise ConfigError(
            "Which run is to be resumed? Give --output_dir=RUN or --config_path=…/train_config.json."
        )
    return TrainConfig.resume_with_flags(location, flags)


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
        self.prepared: dict[str, tuple[Count, TaskID]] = {}
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
            for _, task in self.prepared.values():
                self.bar.remove_task(task)
            self.printed_at = time.monotonic()
            total = event.steps if event.minutes is None else 60 * event.minutes
            self.task = self.bar.add_task("", total=total, place=self._step_text(event.step), numbers="")
            for line in (*aligned([*event.facts.items()]), event.features):
                self.console.print(line, soft_wrap=True, markup=False)
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
        if event.what not in self.prepared:
            count = Count(event.of, done=event.done, what=event.what)
            self.prepared[event.what] = count, self.bar.add_task("", total=event.of, place="", numbers="")
            if not self.console.is_terminal:
                self.console.print(count.title, soft_wrap=True, markup=False)
        count, task = self.prepared[event.what]
        count.total = event.of
        count.reach(event.done)
        place, numbers = f"{event.done}/{event.of}", f"{event.what}  {count.numbers}"
        self.bar.update(task, completed=event.done, total=event.of, place=place, numbers=numbers)
        if not self.console.is_terminal and (line := count.next_line()) is not None:
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
    if env.task is not None:
        flags.append(f"--env.task={env.task}")
    if env.arguments:
        flags.append(f"--env.kwargs={json.dumps(env.arguments)}")
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
