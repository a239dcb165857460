"""The corrections of `smolact rollout`: settings, the person's device, and what to do with the dataset."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from smolact import unsupported
from smolact.errors import ConfigError, SmolactError
from smolact.hub import RECORDINGS
from smolact.settings import setting

if TYPE_CHECKING:
    from smolact.robots.base import Robot, Teleoperator
    from smolact.robots.keys import Keys
    from smolact.runtime.controller import ChunkController
    from smolact.runtime.corrections import CorrectedSource

logger = logging.getLogger(__name__)


@dataclass
class StrategySection:
    """LeRobot's name for the kinds of a rollout."""

    UNSUPPORTED: ClassVar = unsupported.STRATEGY

    type: Literal["base", "dagger"] = setting(
        "base", "dagger: a person corrects the policy, as with --corrections, into --dataset.repo_id."
    )


@dataclass
class CorrectionsDataset:
    """LeRobot's name for the dataset of corrections."""

    UNSUPPORTED: ClassVar = unsupported.CORRECTIONS_DATASET

    repo_id: str | None = setting(
        None, "Keep corrections in outputs/datasets/REPO_ID, in place of a folder --corrections."
    )


def corrections_folder(
    folder: Path | None, strategy: StrategySection, dataset: CorrectionsDataset
) -> Path | None:
    """Return the folder of the corrections; None without corrections.

    Raises:
        ConfigError: the folder is named twice, or missing, or a dataset is named without corrections.
    """
    if folder is not None and dataset.repo_id:
        raise ConfigError("--corrections and --dataset.repo_id both name the dataset. Give one of them.")
    if dataset.repo_id and strategy.type != "dagger":
        raise ConfigError(
            "--dataset.repo_id is for corrections, --strategy.type=dagger. To keep what a policy drives: --record-to=FOLDER."
        )
    if strategy.type == "dagger" and folder is None and not dataset.repo_id:
        raise ConfigError(
            "Where are the corrections kept? --corrections=FOLDER, or --dataset.repo_id=me/name."
        )
    return RECORDINGS / dataset.repo_id if dataset.repo_id else folder


def check_corrections(teleop_type: str | None, folder: Path | None, others: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` unless teleoperator and corrections are both chosen or both left out.

    Args:
        teleop_type: the chosen teleoperator.
        folder: the folder of the corrections.
        others: flags that can't be used with corrections, with their values.
    """
    if folder is None:
        if teleop_type is not None:
            raise ConfigError(
                f"--teleop.type={teleop_type} would correct the policy: where are the corrections kept? --corrections=FOLDER."
            )
        return
    if teleop_type is None:
        from smolact.registry import TELEOPERATORS
        from smolact.robots.factory import teleoperator_types

        raise ConfigError(
            f"Who corrects the policy? --teleop.type=NAME. Teleoperators: {', '.join(teleoperator_types(TELEOPERATORS))}."
        )
    for name, value in others.items():
        if value:
            raise ConfigError(f"--{name} and --corrections can't be used together. Leave one of them out.")


def check_can_take_over(teleoperator: Teleoperator) -> None:
    """Raise a `ConfigError` if only the key could take over, and there is no terminal."""
    from smolact.robots.keys import has_terminal
    from smolact.runtime.corrections import KEY, DrivenLeader, TakesOver

    if not has_terminal() and not isinstance(teleoperator, (DrivenLeader, TakesOver)):
        raise ConfigError(
            f"With '{teleoperator.name}' the {KEY} key takes over from the policy, and there is no terminal that reads it. Start in a "
            "terminal, or use a gamepad or a leader that smolact drives."
        )


def corrected(
    controller: ChunkController, teleoperator: Teleoperator, robot: Robot, fps: float, keys: Keys
) -> CorrectedSource:
    """Return the policy with a connected teleoperator that corrects it, and say how it takes over."""
    from smolact.runtime.corrections import KEY, CorrectedSource, DrivenLeader, TakesOver

    source = CorrectedSource(controller, teleoperator, robot.gate, fps)
    keys.listen(source.press)
    ways = []
    if getattr(teleoperator, "is_scripted", False):
        ways.append("the expert takes over when it foresees a failure, and gives back")
    elif isinstance(teleoperator, TakesOver):
        ways.append("hold the button to take over")
    elif isinstance(teleoperator, DrivenLeader):
        ways.append("move the leader to take over, let it rest to give back")
    if keys.is_listening:
        ways.append(f"{KEY}: take over, give back")
    logger.info("%s", " · ".join(ways))
    return source


def summary(root: Path, policy: str) -> str:
    """Return how many frames of the dataset are corrections, and the command that fine-tunes the policy with them."""
    from smolact.datasets.metadata import LeRobotDatasetMetadata
    from smolact.types import INTERVENTION

    meta = LeRobotDatasetMetadata(root)
    marked = meta.stats.get(INTERVENTION)
    count = 0 if marked is None else round(float(marked["mean"].item()) * meta.total_frames)
    told = f"corrections: {count} of {meta.total_frames} frames in {root}\n"
    return told + (f"To learn from them:\n  {fine_tuning(root, policy)}\n" if count else "")


def fine_tuning(root: Path, policy: str) -> str:
    """Return the command that fine-tunes a policy with its corrections, and with the data of its training if that is known."""
    from smolact.cli.servers import is_server

    path = "CHECKPOINT" if is_server(policy) else policy
    known = {} if is_server(policy) else _trained_on(policy)
    mix = ", ".join(f"{_quoted(name)}: {weight:g}" for name, weight in {**known, str(root): 1.0}.items())
    data = f"--dataset.mix={{{mix}}}" if known else f"--dataset.root={root}"
    return shlex.join(
        ["smolact", "train", f"--policy.path={path}", data, "--dataset.corrections_weight=only"]
    )


def _quoted(name: str) -> str:
    """Return a name for a mapping in YAML, in quotes if it needs them."""
    return name if re.fullmatch(r"[\w./ +-]+", name) else json.dumps(name)


def _trained_on(policy: str) -> dict[str, float]:
    """Return the datasets that a checkpoint was trained on, with their weights; an empty mapping if they are unknown."""
    from smolact.policies.configuration import TRAIN_CONFIG, find_policy
    from smolact.training.run_folder import SETTINGS, TRAINING_STATE

    try:
        folder = find_policy(policy, patterns=["*.json"])
        own = folder.parent / TRAINING_STATE / SETTINGS
        settings = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else {}
        mix = {str(name): float(weight) for name, weight in (settings.get("dataset.mix") or {}).items()}
        if mix:
            return mix
        dataset = json.loads((folder / TRAIN_CONFIG).read_text(encoding="utf-8")).get("dataset") or {}
        name = dataset.get("root") or dataset.get("repo_id")
    except (OSError, ValueError, AttributeError, SmolactError):
        return {}
    return {str(name): 1.0} if name else {}
