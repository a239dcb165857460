"""A training run that takes a second: the parity dataset (two AV1 cameras, 63 frames) and a SmolVLA of two layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smolact.cli.train import read_settings
from smolact.training.config import TrainConfig
from smolact.training.tracking import Ended, Event, Measured
from smolact.training.train import train

DATA = Path(__file__).parents[1] / "parity" / "data"
DATASET = DATA / "dataset_v30"

SMALL = (
    "--policy.type=smolvla",
    "--policy.vlm_model_name=tiny",
    "--policy.init=random",
    "--policy.num_vlm_layers=2",
    "--policy.chunk_size=4",
    "--policy.n_action_steps=4",
    "--policy.resize_imgs_with_padding=[64, 64]",
    "--policy.device=cpu",
)
QUICK = ("--batch_size=2", "--num_workers=0", "--log_freq=1", "--save_freq=0", "--report=false")


class Recorder:
    """Keeps what a run tells."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def losses(self) -> dict[int, float]:
        return {event.step: event.metrics["loss"] for event in self.of(Measured)}


def plain_settings(*argv: str) -> TrainConfig:
    return read_settings(argv)


def settings(*argv: str) -> TrainConfig:
    return plain_settings(f"--dataset.root={DATASET}", *argv)


def run(output: Path, *argv: str, policy: tuple[str, ...] = SMALL) -> tuple[Ended, Recorder]:
    """Train as the flags say."""
    config = settings(*policy, *QUICK, f"--output_dir={output}", *argv)
    recorder = Recorder()
    return train(config, listeners=[recorder]), recorder
