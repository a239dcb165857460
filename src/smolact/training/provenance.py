"""The provenance of a policy: data, recipe and results. It is saved with the policy, and the card is made from it."""

from __future__ import annotations

import logging
import platform
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from smolact import durable
from smolact.cards import CARD, hub_id
from smolact.datasets.reader import LeRobotDataset
from smolact.files import read_json_object
from smolact.pages import installed_version
from smolact.policies.card import PROVENANCE
from smolact.policies.sharing import card_of
from smolact.policies.tree import tree_of
from smolact.training.config import TrainConfig, given_flags
from smolact.training.facts import samples_per_step
from smolact.training.initialization import PolicyBundle
from smolact.training.sources import Source
from smolact.training.tracking import Evaluated, Event, Measured

logger = logging.getLogger(__name__)

_MEASURED = ("loss", "validation_loss")


@dataclass
class Provenance:
    """The provenance of a run's policy, updated by events and written with each checkpoint.

    Attributes:
        environment: the environment of the run's evaluations, if any.
        measured: the last losses and the last evaluation.
    """

    facts: Mapping[str, Any]
    environment: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)

    def __call__(self, event: Event) -> None:
        """Store the measurements of an event."""
        if isinstance(event, Measured):
            self.measured |= {name: event.metrics[name] for name in _MEASURED if name in event.metrics}
        elif isinstance(event, Evaluated):
            results = {
                name: value
                for name, value in event.result.to_dict().items()
                if name not in ("results", "seconds")
            }
            self.measured["evaluation"] = {"environment": self.environment, "step": event.step, **results}

    def resume(self, folder: Path) -> None:
        """Load the earlier measurements, saved with the policy in `folder`.

        Raises:
            CheckpointError: the file is corrupt.
        """
        path = folder / PROVENANCE
        if path.is_file():
            saved = read_json_object(path, f"Remove it: only the card needs {PROVENANCE}.")
            self.measured = {name: saved[name] for name in (*_MEASURED, "evaluation") if name in saved}
            sizes = [_sizes(provenance.get("datasets")) for provenance in (saved, self.facts)]
            if sizes[0] and sizes[0] != sizes[1]:
                logger.warning(
                    "The data is not what it was: %s now, %s when the run was saved. What comes is another run than it would have "
                    "been.",
                    ", ".join(sizes[1]),
                    ", ".join(sizes[0]),
                )

    def write(self, folder: Path, step: int, name: str | None = None) -> None:
        """Write `provenance.json` and the card next to a policy and its `train_config.json`; `name` is its Hub id."""
        durable.write_json(folder / PROVENANCE, {**self.facts, "step": step, **self.measured})
        durable.write_text(folder / CARD, card_of(folder, name=name))


def provenance_of(
    config: TrainConfig,
    given: Mapping[str, Any],
    sources: Sequence[Source],
    datasets: Sequence[LeRobotDataset],
    start: PolicyBundle,
    accelerator: Accelerator,
) -> Provenance:
    """Return the provenance before the first step."""
    total, size = sum(source.weight for source in sources), tree_of(start.policy).size
    facts = {
        "smolact": installed_version("smolact"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": shlex.join(["smolact", "train", *given_flags(given)]),
        "weights": start.weights_source,
        "parameters": {"total": size.parameters, "trained": size.trained},
        "device": accelerator.device.type,
        "processes": accelerator.num_processes,
        "samples_per_step": samples_per_step(config, accelerator),
        "datasets": [
            _dataset(source, dataset, source.weight / total if len(sources) > 1 else None)
            for source, dataset in zip(sources, datasets, strict=True)
        ],
    }
    return Provenance({name: value for name, value in facts.items() if value is not None}, config.env.type)


def _sizes(datasets: Any) -> list[str]:
    """Return the names and sizes of a run's datasets, for comparison."""
    entries = datasets if isinstance(datasets, list) else []
    return [
        f"{entry.get('name')} with {entry.get('episodes')} episodes, {entry.get('frames')} frames"
        for entry in entries
        if isinstance(entry, dict)
    ]


def _dataset(source: Source, dataset: LeRobotDataset, share: float | None) -> dict[str, Any]:
    section = source.section
    facts = {
        "name": Path(section.repo_id or section.root or "").name,
        "hub_id": hub_id(section.repo_id),
        "share": share,
        "episodes": dataset.num_episodes,
        "frames": dataset.num_frames,
        "fps": dataset.fps,
        "robot_type": source.meta.robot_type,
        "cameras": [source.rename_map.get(key, key) for key in source.meta.color_keys],
        "tasks": list(dict.fromkeys(source.meta.tasks.values())),
    }
    return {name: value for name, value in facts.items() if value is not None}
