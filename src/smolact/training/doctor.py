"""What a checkpoint or a dataset is, and what would go wrong when one meets the other, or an environment.

Nothing is guessed: a checkpoint is loaded as an evaluation would load it, and a frame of the dataset goes through its
processors and its network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from smolact.backbones.presets import VLM_FOLDER
from smolact.datasets import format as layout
from smolact.datasets.collate import collate
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.datasets.reader import LeRobotDataset
from smolact.errors import ConfigError, FeatureError, SmolactError
from smolact.files import read_json_object
from smolact.hub import find_folder
from smolact.policies.adapters import ADAPTER_CONFIG
from smolact.policies.configuration import (
    CONFIG_FILE,
    TRAIN_CONFIG,
    PolicyConfig,
    find_policy,
    read_config_file,
)
from smolact.policies.embodiment import embodiment_of
from smolact.policies.factory import LoadedPolicy, get_config_class, load_policy
from smolact.policies.fit import check_cameras, check_env_sizes, check_names, side_by_side, usable_names
from smolact.processors.normalize import NormalizerProcessorStep
from smolact.processors.pipeline import processor_files, rename_map_in
from smolact.processors.statistics import fill_statistics, require_statistics
from smolact.training.preflight import (
    check_features,
    check_statistics,
    long_chunk,
)
from smolact.training.sections import EnvSection
from smolact.training.sources import chunk_timestamps, renamed_features
from smolact.types import ACTION, STATE, PolicyFeature, is_image_key

FAR = 10.0
"""Beyond this, normalized numbers are not those of the robot that the statistics came from."""

Row = tuple[str, str]


@dataclass
class Finding:
    """One thing that was looked at: whether it is well, and a sentence; of a fault also what settles it.

    A note is no fault, and is to be known before the policy drives.
    """

    passed: bool
    text: str
    is_note: bool = False

    @property
    def label(self) -> str:
        """One word."""
        return "note" if self.is_note else "ok" if self.passed else "FAULT"


@dataclass
class Diagnosis:
    """What there is, and what was found.

    Attributes:
        rows: a name and a value each; a name that is empty goes on with what is above.
        table: both sides beside each other, where there are two.
        findings: in the order in which they were looked at.
    """

    rows: list[Row] = field(default_factory=list)
    table: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.passed for finding in self.findings)

    def note(self, what: str, check: Callable[[], None], well: str) -> None:
        """Run a check whose failure is no fault of what is looked at: what it raises is told."""
        try:
            check()
        except SmolactError as error:
            self.findings.append(Finding(True, f"{what}: {error}", is_note=True))
        else:
            self.findings.append(Finding(True, f"{what}: {well}"))

    def run_check(self, what: str, check: Callable[[], str | None]) -> bool:
        """Run a check: what it raises is a fault, what it returns is told."""
        try:
            said = check()
        except SmolactError as error:
            self.findings.append(Finding(False, f"{what}: {error}"))
            return False
        self.findings.append(Finding(True, what if said is None else f"{what}: {said}"))
        return True


def diagnose(
    name: str,
    other: str | None = None,
    *,
    stats_key: str | None = None,
    stats: str | None = None,
    rename_map: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    env: EnvSection | None = None,
) -> Diagnosis:
    """Look at a checkpoint or a dataset, and at how it gets on with another.

    Args:
        name: a folder of either, a run's, or a Hub id of a policy.
        other: for a checkpoint, a dataset's folder or Hub id, or an environment; for a dataset, a checkpoint.
        stats_key: which dataset's statistics, where the checkpoint holds several.
        stats: a dataset whose statistics are taken for what the checkpoint lacks.
        rename_map: the dataset's or environment's names to the policy's; the checkpoint's own when there are none.
        settings: of the policy, over those of its configuration.
        env: how the environment is made, if `other` is one.

    Raises:
        NotFoundError, HubError: `name` is not there, or is neither.
        ConfigError: two datasets, or `env` says something and `other` is no environment.
    """
    if _is_dataset(name):
        if other is None:
            return Diagnosis(dataset_rows(LeRobotDatasetMetadata(Path(name))))
        if _is_dataset(other):
            raise ConfigError(
                f"{name} and {other} are datasets: a dataset meets a policy. Give a checkpoint --with it."
            )
        name, other = other, name
    found = Diagnosis()
    folder = find_policy(name, patterns=[CONFIG_FILE, "*.json"])
    raw = read_config_file(folder)
    config = get_config_class(str(raw.get("type"))).in_folder(folder, settings)
    found.rows = policy_rows(folder, config)
    loaded: list[LoadedPolicy] = []

    def load() -> str:
        chosen: dict[str, Any] = {"stats_key": stats_key, "stats": stats, "rename_map": rename_map or None}
        loaded.append(load_policy(name, **{**(settings or {}), "device": "cpu"}, **chosen))
        return "weights fit the configuration, the tokenizer is there"

    names = dict(rename_map or rename_map_in(folder))
    if found.run_check("the checkpoint opens", load):
        found.run_check("state and action", partial(_check_features, config))
        found.note("statistics", partial(require_statistics, *loaded[0][1:]), "there are all that it needs")
    if other is None:
        return found
    env = env or EnvSection()
    if _is_environment(other):
        _check_against_environment(found, config, other, env, names)
    elif env.task or env.mapping or env.kwargs:
        raise ConfigError(
            f"--env.task, --env.mapping and --env.kwargs are an environment's, and {other} is none."
        )
    else:
        _check_against_dataset(found, config, loaded, other, names, is_saved=not rename_map)
    return found


def policy_rows(folder: Path, config: PolicyConfig) -> list[Row]:
    """What a checkpoint says of itself."""
    modes: Mapping[str, Any] = getattr(config, "normalization_mapping", {})
    kept = (folder / VLM_FOLDER / CONFIG_FILE).is_file()
    processors = processor_files(folder) is not None
    features = {**config.input_features, **config.output_features}
    rows = [
        ("checkpoint", str(folder)),
        (
            "policy",
            f"{config.type}{', adapters (LoRA) upon another' if (folder / ADAPTER_CONFIG).is_file() else ''}",
        ),
        (
            "chunk",
            f"{getattr(config, 'chunk_size', 1)} actions, of which {getattr(config, 'n_action_steps', 1)} are carried out",
        ),
        ("VLM", f"{config.vlm_name} ({'kept beside it' if kept else 'fetched by its name'})"),
        (
            "statistics",
            "in its processors" if processors else "among its weights (older than LeRobot's processors)",
        ),
    ]
    for place, (name, feature) in enumerate(features.items()):
        mode = modes.get(feature.type.value)
        how = "" if mode is None or is_image_key(name) else f", {getattr(mode, 'value', mode)}"
        rows.append(("" if place else "features", f"{name} {feature.shape}{how}"))
    robot = config.embodiment
    if robot is not None:
        rate = "" if robot.fps is None else f", {robot.fps:g} frames a second"
        rows.append(("robot", f"{robot.robot_type or 'of no type'}{rate}"))
        rows += [("", f"{key}: {', '.join(names)}") for key, names in robot.names.items()]
    training = folder / TRAIN_CONFIG
    if training.is_file():
        section = read_json_object(training, "Copy the checkpoint again.").get("dataset")
        if isinstance(section, dict) and section.get("repo_id"):
            rows.append(("trained on", str(section["repo_id"])))
    return rows


def dataset_rows(meta: LeRobotDatasetMetadata) -> list[Row]:
    """What a dataset says of itself, in short; `smolact dataset info` says more."""
    rows = [
        ("dataset", str(meta.root)),
        ("version", meta.codebase_version),
        ("size", f"{meta.total_episodes} episodes, {meta.total_frames} frames at {meta.fps:g} a second"),
        ("tasks", f"{len(meta.tasks)}, such as {next(iter(meta.tasks.values()), '')!r}"),
    ]
    inputs, outputs = meta.policy_features()
    for place, (name, feature) in enumerate({**inputs, **outputs}.items()):
        lacking = "" if name in meta.stats else ", without statistics"
        rows.append(("" if place else "features", f"{name} {feature.shape}{lacking}"))
    if meta.depth_keys:
        rows.append(("depth cameras", f"{', '.join(meta.depth_keys)}: not read"))
    return rows


def _check_against_environment(
    found: Diagnosis, config: PolicyConfig, name: str, env: EnvSection, names: Mapping[str, str]
) -> None:
    from smolact.envs.factory import make_env
    from smolact.envs.mapping import rehearse

    with make_env(name, task=env.task, mapping=env.mapping, render=None, **env.kwargs) as envs:
        offered = {names.get(key, key): feature for key, feature in envs.features.items()}
        cameras = {key: feature for key, feature in offered.items() if is_image_key(key)}
        found.table = side_by_side(_features(config), _shown(offered), name)
        found.run_check("cameras", lambda: check_cameras(config, cameras, names, "the environment"))
        found.run_check("state and action", lambda: check_env_sizes(config, offered, names))
        found.run_check("an episode at random tells a task and success", partial(rehearse, envs[0]))


def _check_against_dataset(
    found: Diagnosis,
    config: PolicyConfig,
    loaded: list[LoadedPolicy],
    name: str,
    names: dict[str, str],
    *,
    is_saved: bool,
) -> None:
    folder = find_folder(name, "dataset")
    meta = LeRobotDatasetMetadata(folder)
    names = (
        usable_names(names, meta.features) if is_saved else names
    )  # as a training takes a checkpoint's map
    inputs, outputs = renamed_features(meta, names)
    found.rows += [("", ""), *dataset_rows(meta)]
    found.table = side_by_side(_features(config), _shown({**inputs, **outputs}), meta.root.name)
    fits = found.run_check("cameras, state and action", lambda: check_features(config, meta, names))
    robot = embodiment_of([(meta, names)])

    def compare() -> None:
        try:
            check_names(config, robot.names, robot.units, meta.root.name)
        except FeatureError as error:
            raise FeatureError(f"{error}\n  (To train the policy on it, nothing is to be done.)") from error

    found.run_check("names and units of joints", compare)
    found.run_check(
        "the dataset's statistics, for training",
        lambda: check_statistics(config, {names.get(key, key): value for key, value in meta.stats.items()}),
    )
    found.run_check("the chunk", lambda: _chunk(config, meta))
    if not fits or not loaded:
        return
    batches: list[Mapping[str, Any]] = []

    own = {names.get(key, key): values for key, values in meta.stats.items()}

    def see() -> str:
        filled = fill_statistics(loaded[0][1:], own, str(meta.root))
        batches.append(loaded[0].preprocess(_frames(folder, config, names)))
        whose = f" (of {', '.join(filled)} the dataset's, which the checkpoint lacks)" if filled else ""
        return _ranges(loaded[0], batches[0]) + whose

    if found.run_check("frames through the checkpoint's own statistics", see):
        found.run_check("the network's loss of these frames", lambda: _loss(loaded[0], batches[0]))


def _frames(folder: Path, config: PolicyConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """Eight frames from all over the dataset, under the policy's names."""
    meta = LeRobotDatasetMetadata(folder)
    offsets = chunk_timestamps(config, meta.fps)
    dataset = LeRobotDataset(folder, delta_timestamps=offsets, return_uint8=True, cameras=meta.color_keys)
    count = min(8, len(dataset))
    samples = dataset.__getitems__(
        [round(place * (len(dataset) - 1) / max(1, count - 1)) for place in range(count)]
    )
    return {names.get(key, key): value for key, value in collate(samples).items()}


def _ranges(loaded: LoadedPolicy, batch: Mapping[str, Any]) -> str:
    """How far normalized numbers reach: small where the statistics are those of this robot."""
    normalized = any(isinstance(step, NormalizerProcessorStep) for step in loaded.preprocess.steps)
    far = {key: float(batch[key].abs().max()) for key in (STATE, ACTION) if key in batch}
    told = ", ".join(f"{key} up to {value:.1f}" for key, value in far.items())
    if normalized and any(value > FAR for value in far.values()):
        raise ConfigError(
            f"{told} after normalization, where some 3 is usual. The statistics are of another robot or other units: to use the "
            "checkpoint as it is, pick others (--policy.stats_key, if it holds several); to train it on this dataset, nothing is to be "
            "done (training takes the dataset's)."
        )
    return told


def _loss(loaded: LoadedPolicy, batch: Mapping[str, Any]) -> str:
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loss, _ = loaded.policy(batch)
    if not torch.isfinite(loss):
        raise ConfigError(
            "It is not finite: the weights are damaged, or the numbers far from what they were trained on."
        )
    return f"{float(loss):.3f}"


def _chunk(config: PolicyConfig, meta: LeRobotDatasetMetadata) -> None:
    too_long = long_chunk(config, meta.fps, meta.episodes.length)
    if too_long is not None:
        raise ConfigError(too_long)


def _check_features(config: PolicyConfig) -> str:
    """Raise a `ConfigError` unless the policy looks at something and gives an action."""
    if not config.input_features:
        raise ConfigError(
            "config.json has no input_features, so that the policy looks at nothing. Set --policy.input_features."
        )
    return f"{len(config.input_features)} inputs, an action of {config.action_feature.shape[0]} numbers"


def _features(config: PolicyConfig) -> dict[str, PolicyFeature]:
    return {**config.input_features, **config.output_features}


def _shown(features: Mapping[str, PolicyFeature]) -> dict[str, str]:
    return {key: f"{key} {feature.shape}" for key, feature in features.items()}


def _is_dataset(name: str) -> bool:
    return (Path(name) / layout.INFO).is_file()


def _is_environment(name: str) -> bool:
    if Path(name).exists():
        return False
    import gymnasium

    from smolact.envs.factory import KNOWN, env_id

    return name in KNOWN or env_id(name) in gymnasium.registry
