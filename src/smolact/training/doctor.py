"""Descriptions of checkpoints and datasets, and checks whether they fit each other or an environment.

The checkpoint is loaded as for an evaluation, and frames of the dataset pass through its processors and its network.
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
from smolact.policies.fit import (
    check_cameras,
    check_env_names,
    check_env_sizes,
    check_names,
    side_by_side,
    usable_names,
)
from smolact.policies.vlm_configuration import VLMConfig
from smolact.processors.normalize import NormalizerProcessorStep
from smolact.processors.pipeline import processor_files, rename_map_in
from smolact.processors.statistics import fill_statistics, require_statistics
from smolact.registry import ENVIRONMENTS
from smolact.training.preflight import check_features, check_statistics, long_chunk
from smolact.training.sections import EnvSection
from smolact.training.sources import chunk_timestamps, renamed_features
from smolact.types import ACTION, STATE, PolicyFeature, is_image_key

MAX_NORMALIZED = 10.0
"""Normalized values above this limit come from another robot than the statistics."""

Row = tuple[str, str]


@dataclass
class Finding:
    """The result of a check, and a sentence, which for a fault includes the remedy.

    A note is not a fault, but matters before the policy controls a robot.
    """

    passed: bool
    text: str
    is_note: bool = False

    @property
    def label(self) -> str:
        """The result in one word."""
        return "note" if self.is_note else "ok" if self.passed else "FAULT"


@dataclass
class Diagnosis:
    """The description and the results of the checks.

    Attributes:
        rows: pairs of name and value; an empty name continues the row above.
        table: the features of both sides, where there are two.
    """

    rows: list[Row] = field(default_factory=list)
    table: str = ""
    findings: list[Finding] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether there is no fault."""
        return all(finding.passed for finding in self.findings)

    def note(self, what: str, check: Callable[[], None], success_text: str) -> None:
        """Run a check whose error is only noted."""
        try:
            check()
        except SmolactError as error:
            self.findings.append(Finding(True, f"{what}: {error}", is_note=True))
        else:
            self.findings.append(Finding(True, f"{what}: {success_text}"))

    def run_check(self, what: str, check: Callable[[], str | None]) -> bool:
        """Run a check and return whether it passed: an error is a fault."""
        try:
            details = check()
        except SmolactError as error:
            self.findings.append(Finding(False, f"{what}: {error}"))
            return False
        self.findings.append(Finding(True, what if details is None else f"{what}: {details}"))
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
    """Describe a checkpoint or a dataset, and check whether it fits another one.

    Args:
        name: folder of a checkpoint, run or dataset, or Hub id of a policy.
        other: for a checkpoint, a dataset's folder or Hub id, or an environment; for a dataset, a checkpoint.
        stats_key: the dataset whose statistics are used, where the checkpoint contains several.
        stats: a dataset that provides the statistics that the checkpoint lacks.
        rename_map: from the dataset's or environment's names to the policy's; the checkpoint's own if empty.
        settings: policy settings, which override the configuration.
        env: how the environment is made, if `other` is one.

    Raises:
        NotFoundError, HubError: `name` does not exist, or is neither.
        ConfigError: both are datasets, or `env` has settings and `other` is no environment.
    """
    if _is_dataset(name):
        if other is None:
            return Diagnosis(dataset_rows(LeRobotDatasetMetadata(Path(name))))
        if _is_dataset(other):
            raise ConfigError(
                f"{name} and {other} are datasets: a dataset meets a policy. Give a checkpoint --with it."
            )
        name, other = other, name
    result = Diagnosis()
    folder = find_policy(name, patterns=[CONFIG_FILE, "*.json"])
    raw = read_config_file(folder)
    config = get_config_class(str(raw.get("type"))).in_folder(folder, settings)
    result.rows = policy_rows(folder, config)
    loaded: list[LoadedPolicy] = []

    def load() -> str:
        options: dict[str, Any] = {"stats_key": stats_key, "stats": stats, "rename_map": rename_map or None}
        loaded.append(load_policy(name, **{**(settings or {}), "device": "cpu"}, **options))
        tokenizer = ", the tokenizer is there" if isinstance(config, VLMConfig) else ""
        return f"weights fit the configuration{tokenizer}"

    names = dict(rename_map or rename_map_in(folder))
    if result.run_check("the checkpoint opens", load):
        result.run_check("state and action", partial(_check_features, config))
        result.note("statistics", partial(require_statistics, *loaded[0][1:]), "there are all that it needs")
    if other is None:
        return result
    env = env or EnvSection()
    if _is_environment(other):
        _check_against_environment(result, config, other, env, names)
    elif env.task or env.mapping or env.arguments:
        raise ConfigError(
            f"--env.task, --env.mapping and --env.kwargs are an environment's, and {other} is none."
        )
    else:
        _check_against_dataset(result, config, loaded, other, names, is_saved=not rename_map)
    return result


def policy_rows(folder: Path, config: PolicyConfig) -> list[Row]:
    """Return the rows that describe a checkpoint."""
    has_vlm_config = (folder / VLM_FOLDER / CONFIG_FILE).is_file()
    processors = processor_files(folder) is not None
    rows = [
        ("checkpoint", str(folder)),
        (
            "policy",
            f"{config.type}{', adapters (LoRA) upon another' if (folder / ADAPTER_CONFIG).is_file() else ''}",
        ),
        ("chunk", f"{config.chunk_size} actions, of which {config.n_action_steps} are carried out"),
        *(
            [("VLM", f"{config.vlm_name} ({'kept beside it' if has_vlm_config else 'fetched by its name'})")]
            if isinstance(config, VLMConfig)
            else []
        ),
        (
            "statistics",
            "in its processors" if processors else "among its weights (older than LeRobot's processors)",
        ),
    ]
    for index, (name, feature) in enumerate(config.features.items()):
        mode = config.normalization_mapping.get(feature.type.value)
        normalization = "" if mode is None or is_image_key(name) else f", {getattr(mode, 'value', mode)}"
        rows.append(("" if index else "features", f"{name} {feature.shape}{normalization}"))
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
    """Return the rows that describe a dataset in short; `smolact dataset info` shows more."""
    rows = [
        ("dataset", str(meta.root)),
        ("version", meta.codebase_version),
        ("size", f"{meta.total_episodes} episodes, {meta.total_frames} frames at {meta.fps:g} a second"),
        ("tasks", f"{len(meta.tasks)}, such as {next(iter(meta.tasks.values()), '')!r}"),
    ]
    inputs, outputs = meta.policy_features()
    for index, (name, feature) in enumerate({**inputs, **outputs}.items()):
        lacking = "" if name in meta.stats else ", without statistics"
        rows.append(("" if index else "features", f"{name} {feature.shape}{lacking}"))
    if meta.depth_keys:
        rows.append(("depth cameras", f"{', '.join(meta.depth_keys)}: not read"))
    return rows


def _check_against_environment(
    result: Diagnosis, config: PolicyConfig, name: str, env: EnvSection, names: Mapping[str, str]
) -> None:
    from smolact.envs.factory import make_env
    from smolact.envs.mapping import play_random_episode

    with make_env(name, task=env.task, mapping=env.mapping, render=None, **env.arguments) as envs:
        offered = {names.get(key, key): feature for key, feature in envs.features.items()}
        cameras = {key: feature for key, feature in offered.items() if is_image_key(key)}
        result.table = side_by_side(config.features, _feature_lines(offered), name)
        result.run_check("cameras", lambda: check_cameras(config, cameras, names, "the environment"))
        result.run_check("state and action", lambda: check_env_sizes(config, offered, names))
        result.run_check(
            "names and units of joints", lambda: check_env_names(config, envs[0].robot_names, names)
        )
        result.run_check(
            "an episode at random tells a task and success", partial(play_random_episode, envs[0])
        )


def _check_against_dataset(
    result: Diagnosis,
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
    )  # as in training with a checkpoint's map
    inputs, outputs = renamed_features(meta, names)
    result.rows += [("", ""), *dataset_rows(meta)]
    result.table = side_by_side(config.features, _feature_lines({**inputs, **outputs}), meta.root.name)
    fits = result.run_check("cameras, state and action", lambda: check_features(config, meta, names))
    robot = embodiment_of([(meta, names)])

    def compare() -> None:
        try:
            check_names(config, robot.names, robot.units, meta.root.name)
        except FeatureError as error:
            raise FeatureError(f"{error}\n  (To train the policy on it, nothing is to be done.)") from error

    result.run_check("names and units of joints", compare)
    result.run_check(
        "the dataset's statistics, for training",
        lambda: check_statistics(config, {names.get(key, key): value for key, value in meta.stats.items()}),
    )
    result.run_check("the chunk", lambda: _chunk(config, meta))
    if not fits or not loaded:
        return
    batches: list[Mapping[str, Any]] = []

    statistics = {names.get(key, key): values for key, values in meta.stats.items()}

    def normalize_frames() -> str:
        filled = fill_statistics(loaded[0][1:], statistics, str(meta.root))
        batches.append(loaded[0].preprocess(_frames(folder, config, names)))
        origin = f" (of {', '.join(filled)} the dataset's, which the checkpoint lacks)" if filled else ""
        return _ranges(loaded[0], batches[0]) + origin

    if result.run_check("frames through the checkpoint's own statistics", normalize_frames):
        result.run_check("the network's loss of these frames", lambda: _loss(loaded[0], batches[0]))


def _frames(folder: Path, config: PolicyConfig, names: Mapping[str, str]) -> dict[str, Any]:
    """Return eight frames, spread evenly over the dataset, under the policy's names."""
    meta = LeRobotDatasetMetadata(folder)
    offsets = chunk_timestamps(config, meta.fps)
    dataset = LeRobotDataset(folder, delta_timestamps=offsets, return_uint8=True, cameras=meta.color_keys)
    count = min(8, len(dataset))
    samples = dataset.__getitems__(
        [round(index * (len(dataset) - 1) / max(1, count - 1)) for index in range(count)]
    )
    return {names.get(key, key): value for key, value in collate(samples).items()}


def _ranges(loaded: LoadedPolicy, batch: Mapping[str, Any]) -> str:
    """Return the largest normalized values; they are small if the statistics are those of this robot."""
    normalized = any(isinstance(step, NormalizerProcessorStep) for step in loaded.preprocess.steps)
    largest = {key: float(batch[key].abs().max()) for key in (STATE, ACTION) if key in batch}
    message = ", ".join(f"{key} up to {value:.1f}" for key, value in largest.items())
    if normalized and any(value > MAX_NORMALIZED for value in largest.values()):
        raise ConfigError(
            f"{message} after normalization, where some 3 is usual. The statistics are of another robot or other units: to use the "
            "checkpoint as it is, pick others (--policy.stats_key, if it holds several); to train it on this dataset, nothing is to be "
            "done (training takes the dataset's)."
        )
    return message


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
    """Raise a `ConfigError` unless the policy has input features; return a summary of its features."""
    if not config.input_features:
        raise ConfigError(
            "config.json has no input_features, so that the policy looks at nothing. Set --policy.input_features."
        )
    return f"{len(config.input_features)} inputs, an action of {config.action_feature.shape[0]} numbers"


def _feature_lines(features: Mapping[str, PolicyFeature]) -> dict[str, str]:
    return {key: f"{key} {feature.shape}" for key, feature in features.items()}


def _is_dataset(name: str) -> bool:
    return (Path(name) / layout.INFO).is_file()


def _is_environment(name: str) -> bool:
    if Path(name).exists():
        return False
    import gymnasium

    from smolact.envs.factory import env_id

    return name in ENVIRONMENTS or env_id(name) in gymnasium.registry
