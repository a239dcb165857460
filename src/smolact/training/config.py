"""Every setting of `smolact train`: the flags of `lerobot-train`, and what they are when they are not given.

What LeRobot has and this project has not (yet) still parses, so that its `train_config.json` files open here; but only
the value that asks for nothing is accepted.
"""

from __future__ import annotations

import datetime
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from smolact.datasets.transforms_config import ImageTransformsConfig
from smolact.errors import ConfigError
from smolact.policies.configuration import OptimizerPreset, PolicyConfig, SchedulerPreset
from smolact.settings import OWN, REFUSED, refused, rest, setting

if TYPE_CHECKING:
    from smolact.policies.adapters import AdapterSettings

BASE, VLM, RANDOM = "base", "vlm", "random"
"""Where weights come from: a policy's checkpoint, the VLM's own weights, or nowhere."""

_LATER = "this release has no such feature yet. Leave it out."


def _asks_nothing(key: str, nothing: Any) -> Any:
    """Whether a section of LeRobot's asks for nothing: it is absent, or its switch `key` is off."""
    return lambda value: value is None or (isinstance(value, dict) and value.get(key, nothing) == nothing)


@dataclass
class DatasetSection:
    """Which demonstrations to learn from."""

    repo_id: str | None = setting(None, "The dataset: a Hub id (owner/name) or a local folder.")
    root: str | None = setting(None, "A local folder that holds the dataset; no network call is made then.")
    episodes: list[int] | None = setting(
        None, "Use only these episodes, as [0, 1, …]; all of them when null."
    )
    exclude_episodes: list[int] | None = setting(None, "Leave these episodes out.", own=True)
    revision: str | None = setting(None, "Branch, tag or commit of the dataset on the Hub.")
    use_imagenet_stats: bool = setting(
        True,
        "Normalize images with ImageNet's statistics, not the dataset's (policies that normalize images).",
    )
    video_backend: Literal["pyav", "torchcodec"] | None = refused(
        None,
        "videos are decoded with PyAV. Leave it out.",
        harmless=lambda value: value in (None, "pyav", "torchcodec"),
    )
    repo_type: str = refused("dataset", "only Hub repositories of type 'dataset' are read.")
    image_transforms: ImageTransformsConfig = field(default_factory=ImageTransformsConfig)
    return_uint8: bool = refused(
        False, "pictures always travel as uint8 here. Leave it out.", harmless=lambda value: True
    )
    depth_output_unit: str = refused(
        "mm", "depth cameras are not read.", harmless=lambda value: value == "mm"
    )
    streaming: bool = refused(False, "datasets are read from the disk. Leave it out.")
    eval_split: float = setting(
        0.0, "Hold out this share of each task's episodes, the last ones, for --eval_steps."
    )

    def __post_init__(self) -> None:
        """Check the episode lists and the split."""
        if not 0 <= self.eval_split < 1:
            raise ConfigError(
                f"--dataset.eval_split={self.eval_split}: it is a share, at least 0 and below 1."
            )
        for name in ("episodes", "exclude_episodes"):
            chosen = getattr(self, name)
            if chosen is None:
                continue
            if any(episode < 0 for episode in chosen):
                raise ConfigError(f"--dataset.{name} has the number {min(chosen)}: episodes count from 0.")
            if len(set(chosen)) < len(chosen):
                twice = sorted({episode for episode in chosen if chosen.count(episode) > 1})
                raise ConfigError(f"--dataset.{name} lists {twice} more than once. List each episode once.")

    @property
    def name(self) -> str:
        """The dataset as the user named it."""
        return self.repo_id or self.root or ""


def policy_type_at(path: str) -> str:
    """The type of the policy whose checkpoint is at `path`: a folder or a Hub id."""
    from smolact.policies.configuration import CONFIG_FILE, find_policy, read_config_file

    return str(read_config_file(find_policy(path, patterns=[CONFIG_FILE])).get("type"))


def policy_fields(section: Mapping[str, Any]) -> type | None:
    """The configuration class whose fields `--policy.…` takes: that of `type`, or of the checkpoint at `path`."""
    from smolact.policies.factory import get_config_class

    if section.get("type"):
        return get_config_class(section["type"])
    return get_config_class(policy_type_at(section["path"])) if section.get("path") else None


@dataclass
class PolicySection:
    """Which policy to train and where its weights come from; further settings are fields of its configuration."""

    type: str | None = setting(None, "A new policy of this type, such as smolvla.")
    path: str | None = setting(None, "Start from this checkpoint: a folder or a Hub id (fine-tuning).")
    init: Literal["base", "vlm", "random"] | None = setting(
        None,
        "Where weights come from: base (the checkpoint of --policy.path), vlm (the VLM's weights, a new action expert; "
        "the default of --policy.type) or random (nothing is loaded, everything trains).",
    )
    allow_frozen_random: bool = setting(
        False, "Accept that a part is frozen although its weights are random: it will never learn."
    )
    stats_key: str | None = refused(
        None,
        "training normalizes with the dataset's statistics. It is a flag of `smolact eval` and its like.",
    )
    settings: dict[str, Any] = rest(policy_fields)

    def __post_init__(self) -> None:
        """Check that the ways to say where weights come from agree."""
        if self.init == BASE and self.path is None:
            raise ConfigError(
                "--policy.init=base needs the base policy: give --policy.path=FOLDER_OR_HUB_ID."
            )
        if self.init in (VLM, RANDOM) and self.path is not None:
            raise ConfigError(
                f"--policy.path={self.path} loads that checkpoint's weights, --policy.init={self.init} does not. "
                "Drop one of them (--policy.type=NAME starts a new policy)."
            )
        if self.settings.get("push_to_hub"):
            raise ConfigError(
                "--policy.push_to_hub=true can't be used: this release does not upload. When the run is done, use "
                "`hf upload OWNER/NAME OUTPUT_DIR/checkpoints/last/pretrained_model`."
            )


@dataclass
class EnvSection:
    """The environment in which the policy is evaluated while it trains."""

    type: str | None = setting(None, "An environment: tabletop, or any id of gymnasium's; none when null.")
    task: str | None = setting(None, "The instruction of every episode; the environment's own when null.")
    mapping: Path | None = setting(
        None, "A YAML file from the environment's observation names to the policy's."
    )
    kwargs: dict[str, Any] = setting(dict, "Arguments for making the environment, as {name: value}.")


@dataclass
class EvalSection:
    """How the policy is evaluated while it trains."""

    n_episodes: int = setting(50, "Episodes of one evaluation.")
    batch_size: int = setting(
        0, "Environments that are stepped side by side; 0: as many as episodes, at most 16."
    )
    use_async_envs: bool = refused(
        True, "environments are stepped in this process.", harmless=lambda value: True
    )
    recording: bool = refused(False, _LATER)
    recording_repo_id: str | None = refused(None, _LATER)
    recording_private: bool = refused(False, _LATER)

    def __post_init__(self) -> None:
        """Check the ranges and settle the batch size."""
        _at_least("eval.n_episodes", self.n_episodes, 1)
        _at_least("eval.batch_size", self.batch_size, 0)
        self.batch_size = min(self.batch_size or 16, self.n_episodes)


@dataclass
class OptimizerSection:
    """AdamW, where the policy's own preset is not used."""

    type: Literal["adamw"] = setting("adamw", "The optimizer.")
    lr: float | None = setting(None, "Peak learning rate.")
    betas: tuple[float, float] | None = setting(None, "Decay of the two moments.")
    eps: float | None = setting(None, "Added to the denominator.")
    weight_decay: float | None = setting(None, "Decoupled weight decay.")
    grad_clip_norm: float | None = setting(None, "Largest norm of all gradients together; 0 does not clip.")


@dataclass
class SchedulerSection:
    """Cosine decay with warm-up, where the policy's own preset is not used."""

    type: Literal["cosine_decay_with_warmup"] = setting("cosine_decay_with_warmup", "The schedule.")
    num_warmup_steps: int | None = setting(None, "Steps of linear warm-up.")
    num_decay_steps: int | None = setting(None, "Steps until the final rate; follows --steps when not set.")
    peak_lr: float | None = setting(None, "The rate after the warm-up.")
    decay_lr: float | None = setting(None, "The rate at the end.")


@dataclass
class WandBSection:
    """Weights & Biases (needs the package wandb)."""

    enable: bool = setting(False, "Log there too.")
    project: str = setting("smolact", "Project.")
    entity: str | None = setting(None, "User or team.")
    notes: str | None = setting(None, "Notes.")
    run_id: str | None = setting(None, "Continue this run.")
    mode: Literal["online", "offline", "disabled"] | None = setting(None, "online, offline or disabled.")
    add_tags: bool = setting(True, "Tag the run with policy, dataset and seed.")
    disable_artifact: bool = refused(False, "checkpoints are never uploaded.", harmless=lambda value: True)


@dataclass
class TensorBoardSection:
    """Event files for TensorBoard in the run's folder."""

    enable: bool = setting(True, "Write them; look with `tensorboard --logdir RUN`.")


@dataclass
class TrackioSection:
    """trackio (needs the package trackio)."""

    enable: bool = setting(False, "Log there too.")
    project: str = setting("smolact", "Project.")
    space_id: str | None = setting(None, "Show it in this Space on the Hub; on this machine when null.")


@dataclass
class PeftSection:
    """Adapters that train in the place of the policy's weights (needs the package peft)."""

    method_type: str = setting("LORA", "The method: lora.")
    target_modules: list[str] | str | None = setting(
        None,
        "Linear layers that get adapters: ends of their names, a regular expression for whole names, or all-linear; the "
        "policy's own choice when null.",
    )
    full_training_modules: list[str] | None = setting(
        None, "Modules that train whole and are saved with the adapters: ends of their names."
    )
    init_type: str | None = setting(None, "gaussian or orthogonal; LoRA's own when null.")
    r: int = setting(16, "Rank.")
    lora_alpha: int | None = setting(None, "Adapters are scaled by lora_alpha / r; 8 when null.")

    def __post_init__(self) -> None:
        """Check the method."""
        if self.method_type.lower() != "lora":
            raise ConfigError(f"--peft.method_type={self.method_type} is not supported. Use lora.")

    def adapter_settings(self) -> AdapterSettings:
        """What `policy.add_adapters` takes.

        Raises:
            ConfigError: a value out of its range.
        """
        from smolact.policies.adapters import AdapterSettings

        return AdapterSettings(
            self.target_modules, self.full_training_modules or (), self.init_type, self.r, self.lora_alpha
        )


_OWN_WARMUP = "the decay grows as min(decay, (1 + step) / (10 + step)). Set --ema.decay and --ema.warmup."


@dataclass
class EMASection:
    """A moving average of the weights: what is evaluated and saved in `pretrained_model` when it is on."""

    enable: bool = setting(False, "Average the weights that train.")
    decay: float | None = setting(None, "Share of the old average that stays in an update; 0.999 when null.")
    warmup: bool = setting(True, "Let the decay grow to its value, as min(decay, (1 + step) / (10 + step)).")
    update_after_step: int = refused(0, _OWN_WARMUP)
    inv_gamma: float = refused(1.0, _OWN_WARMUP)
    power: float = refused(0.75, _OWN_WARMUP)
    min_decay: float = refused(0.0, _OWN_WARMUP)
    max_decay: float = refused(0.9999, _OWN_WARMUP)
    use_for_eval: bool = refused(True, "the averaged policy is what is saved, and so what is evaluated.")

    def __post_init__(self) -> None:
        """Settle the decay and check its range."""
        self.decay = 0.999 if self.decay is None else self.decay
        if not 0 <= self.decay < 1:
            raise ConfigError(f"--ema.decay={self.decay}: it must be at least 0 and below 1.")


@dataclass
class TrainConfig:
    """All settings of a training run. Checked when made.

    Raises:
        ConfigError: a value out of its range, or settings that contradict each other.
    """

    dataset: DatasetSection = field(default_factory=DatasetSection)
    policy: PolicySection = field(default_factory=PolicySection)
    env: EnvSection = field(default_factory=EnvSection)
    eval: EvalSection = field(default_factory=EvalSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    scheduler: SchedulerSection = field(default_factory=SchedulerSection)
    wandb: WandBSection = field(default_factory=WandBSection)
    peft: PeftSection | None = None
    ema: EMASection = setting(EMASection, "Moving average of the weights.", own=True)
    tensorboard: TensorBoardSection = setting(TensorBoardSection, "TensorBoard.", own=True)
    trackio: TrackioSection = setting(TrackioSection, "trackio.", own=True)
    report: bool = setting(
        True, "Write curves.png and report.html into the run's folder when it ends.", own=True
    )
    output_dir: Path | None = setting(
        None, "Folder of the run; outputs/train/DATE/TIME_JOB when null. It must not hold another run."
    )
    job_name: str | None = setting(None, "Name of the run; made of environment and policy when null.")
    resume: bool = setting(
        False, "Continue the run of --config_path (its train_config.json) or of --output_dir."
    )
    seed: int | None = setting(
        1000, "Seed of weights, sampling, noise and evaluation; null draws one and prints it."
    )
    steps: int = setting(100_000, "Optimizer steps.")
    batch_size: int = setting(8, "Samples that a process computes at once.")
    gradient_accumulation_steps: int = setting(
        1,
        "Batches of every process that make one optimizer step; the global batch is printed at the start.",
        own=True,
    )
    noise_draws: int = setting(1, "Noises and times that a sample's loss is the mean of.", own=True)
    num_workers: int = setting(4, "Processes that load data; 0 loads in the training process.")
    prefetch_factor: int = setting(4, "Batches that each worker loads ahead.")
    persistent_workers: bool = refused(True, "workers live as long as the run.", harmless=lambda value: True)
    dataloader_multiprocessing_context: Literal["spawn", "fork", "forkserver"] | None = setting(
        "spawn", "How workers start; null is Python's choice."
    )
    log_freq: int = setting(200, "Log every so many steps.")
    save_freq: int = setting(
        20_000, "Save a checkpoint every so many steps, and at the end; 0: only at the end."
    )
    save_checkpoint: bool = setting(True, "Save checkpoints.")
    keep_last: int = setting(0, "Keep only so many of the newest checkpoints; 0 keeps all.", own=True)
    keep_every: int = setting(
        0, "Keep every checkpoint of a multiple of so many steps, however old; 0: none.", own=True
    )
    max_bad_steps: int = setting(
        10,
        "A step whose loss or gradient is not finite changes nothing; stop after so many in a row, and keep the batch.",
        own=True,
    )
    check: bool = setting(
        False, "Check everything that can be checked before the first step, and stop there.", own=True
    )
    eval_freq: int = setting(
        20_000, "Evaluate in the environment every so many steps; 0: never.", aliases=("env_eval_freq",)
    )
    eval_steps: int = setting(
        0, "Compute the loss on the held-out episodes (--dataset.eval_split) every so many steps; 0: never."
    )
    max_eval_samples: int = setting(0, "On so many samples, evenly spread; 0: on all.")
    rename_map: dict[str, str] = setting(
        dict, "From the dataset's feature names to the policy's, as {from: to}. Saved with the checkpoint."
    )
    use_policy_training_preset: bool = setting(
        True, "Take optimizer and schedule from the policy's configuration (--policy.optimizer_lr, …)."
    )
    lr_multipliers: dict[str, float] = setting(
        dict,
        "Factors on the learning rate, as {part of parameter names: factor}, such as {vision_model: 0.1}; the longest part "
        "that fits a name counts.",
        own=True,
    )
    cudnn_deterministic: bool = setting(
        False, "Only deterministic cuDNN algorithms: slower, the same on every run."
    )
    tolerance_s: float = refused(1e-4, "frames are found by number here, not by time. Leave it out.")
    checkpoint_format: str = refused("safetensors", "checkpoints are always safetensors.")
    save_checkpoint_to_hub: bool = refused(False, "this release does not upload. Use `hf upload`.")
    checkpoint_path: Path | None = refused(
        None, "give --config_path=CHECKPOINT/pretrained_model/train_config.json."
    )
    reward_model: dict[str, Any] | None = refused(None, _LATER)
    sample_weighting: dict[str, Any] | None = refused(None, _LATER)
    job: dict[str, Any] | None = refused(
        None, "runs start on this machine.", harmless=_asks_nothing("target", None)
    )
    parallelism: dict[str, Any] | None = refused(None, _LATER)
    accelerator: dict[str, Any] | None = refused(None, _LATER)

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("log_freq", 1),
            ("prefetch_factor", 1),
            ("gradient_accumulation_steps", 1),
            ("max_bad_steps", 1),
            ("keep_last", 0),
            ("keep_every", 0),
            ("eval_steps", 0),
            ("max_eval_samples", 0),
            ("num_workers", 0),
            ("save_freq", 0),
            ("eval_freq", 0),
        ):
            _at_least(name, getattr(self, name), least)
        if self.dataloader_multiprocessing_context not in (None, *multiprocessing.get_all_start_methods()):
            raise ConfigError(
                f"--dataloader_multiprocessing_context={self.dataloader_multiprocessing_context} is not to be had on this "
                f"system. Use one of {', '.join(multiprocessing.get_all_start_methods())}."
            )
        if bool(self.eval_steps) != bool(self.dataset.eval_split):
            raise ConfigError(
                f"--eval_steps={self.eval_steps} and --dataset.eval_split={self.dataset.eval_split} need each other: the "
                "loss on held-out episodes, and which share of them is held out. Give both or neither."
            )
        if self.wandb.enable and self.wandb.mode == "disabled":
            raise ConfigError(
                "--wandb.enable=true and --wandb.mode=disabled contradict each other. Drop one of them."
            )

    def check_complete(self) -> None:
        """What a new run needs.

        Raises:
            ConfigError: no dataset, or no policy, is named.
        """
        if not self.dataset.name:
            raise ConfigError("Which dataset? Give --dataset.repo_id=OWNER/NAME or --dataset.root=FOLDER.")
        if self.policy.type is None and self.policy.path is None:
            raise ConfigError(
                "Which policy? Give --policy.path=FOLDER_OR_HUB_ID (fine-tuning, such as lerobot/smolvla_base) or "
                "--policy.type=smolvla (a new one)."
            )

        if self.peft is not None and self.policy.path is None:
            raise ConfigError(
                "--peft adapts a policy that has learnt: give --policy.path=FOLDER_OR_HUB_ID, such as lerobot/smolvla_base."
            )
        if self.policy.settings.get("use_peft") and self.policy.path is None:
            raise ConfigError(
                "--policy.use_peft=true says that a checkpoint holds adapters, and a new policy has none. To train some, "
                "give --policy.path=FOLDER_OR_HUB_ID and --peft.method_type=lora."
            )

    def run_name(self, policy_type: str) -> str:
        """`--job_name`, or a name made of environment and policy."""
        parts = [part for part in (self.env.type, policy_type) if part]
        return self.job_name or "_".join(parts).replace("/", "-")

    def run_folder(self, policy_type: str, now: datetime.datetime) -> Path:
        """`--output_dir`, or a fresh folder below outputs/train."""
        return (
            self.output_dir
            or Path("outputs/train") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{self.run_name(policy_type)}"
        )


def to_json(
    config: TrainConfig, policy: PolicyConfig, optimizer: OptimizerPreset, schedule: SchedulerPreset
) -> dict[str, Any]:
    """What `train_config.json` holds: every setting of the run, as LeRobot writes and reads it."""
    data: dict[str, Any] = _encoded(config)
    data["policy"] = policy.to_dict()
    data["env"] = data["env"] if config.env.type else None
    data["env_eval_freq"] = data.pop("eval_freq")
    data["optimizer"] = {"type": "adamw", **_encoded(optimizer)}
    data["scheduler"] = {"type": "cosine_decay_with_warmup", **_encoded(schedule)}
    return data


def own_settings(section: Any, prefix: str = "") -> dict[str, Any]:
    """The settings that are ours alone, by dotted name: what `train_config.json`, which LeRobot reads too, leaves out."""
    found: dict[str, Any] = {}
    for item in fields(section):
        value = getattr(section, item.name)
        if item.metadata.get(OWN):
            found[prefix + item.name] = _encoded(value)
        elif is_dataclass(value):
            found |= own_settings(value, f"{prefix}{item.name}.")
    return found


def _encoded(section: Any) -> Any:
    """A dataclass as JSON, without the settings that are refused here or ours alone."""
    if is_dataclass(section):
        shown = (
            item for item in fields(section) if REFUSED not in item.metadata and not item.metadata.get(OWN)
        )
        return {item.name: _encoded(getattr(section, item.name)) for item in shown}
    if isinstance(section, Mapping):
        return {str(key): _encoded(value) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [_encoded(value) for value in section]
    return str(section) if isinstance(section, Path) else section


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"--{name}={value} is too small: it must be {least} or more.")
