"""The settings of `smolact train`: the flags of `lerobot-train`, and their defaults.

LeRobot settings that smolact lacks are parsed, so that LeRobot's `train_config.json` files can be read, but only a value
without effect is accepted.
"""

from __future__ import annotations

import datetime
import multiprocessing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from smolact.errors import ConfigError
from smolact.policies.configuration import OptimizerPreset, PolicyConfig, SchedulerPreset
from smolact.settings import OWN, REFUSED, setting, unsupported
from smolact.training.sections import (
    LATER,
    CacheSection,
    DatasetSection,
    EMASection,
    EnvSection,
    EvalSection,
    OptimizerSection,
    ParallelismSection,
    PeftSection,
    PolicySection,
    SchedulerSection,
    TensorBoardSection,
    TrackioSection,
    WandBSection,
    at_least,
)


def _is_off(key: str, default: Any) -> Any:
    """Return a predicate for a LeRobot section that is absent, or whose switch `key` is off."""
    return lambda value: value is None or (isinstance(value, dict) and value.get(key, default) == default)


@dataclass
class TrainConfig:
    """All settings of a training run, checked at construction.

    Raises:
        ConfigError: a value is out of range, or settings contradict each other.
    """

    dataset: DatasetSection = field(default_factory=DatasetSection)
    policy: PolicySection = field(default_factory=PolicySection)
    env: EnvSection = field(default_factory=EnvSection)
    eval: EvalSection = field(default_factory=EvalSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    scheduler: SchedulerSection = field(default_factory=SchedulerSection)
    wandb: WandBSection = field(default_factory=WandBSection)
    peft: PeftSection | None = None
    parallelism: ParallelismSection = setting(ParallelismSection, "How processes share the work.", own=True)
    cache: CacheSection = setting(CacheSection, "What is kept of the dataset.", own=True)
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
    train_minutes: float | None = setting(
        None,
        "Train until so many minutes after the start, in the place of --steps: the learning rate follows the clock.",
        own=True,
    )
    batch_size: int = setting(8, "Samples that a process computes at once.")
    gradient_accumulation_steps: int = setting(
        1,
        "Batches of every process that make one optimizer step; the global batch is printed at the start.",
        own=True,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Make activations again in the backward pass instead of keeping them: a third more arithmetic, much less memory.",
        own=True,
    )
    noise_draws: int = setting(1, "Noises and times that a sample's loss is the mean of.", own=True)
    num_workers: int = setting(4, "Processes that load data; 0 loads in the training process.")
    cpu_processes: int | None = setting(
        None,
        "Processes that share each step on a CPU. When null, small policies take as many as are fastest, and large ones train in one, "
        "in threads; 1: one process, in threads.",
        own=True,
    )
    prefetch_factor: int = setting(4, "Batches that each worker loads ahead.")
    persistent_workers: bool = unsupported(
        True, "workers live as long as the run.", harmless=lambda value: True
    )
    dataloader_multiprocessing_context: Literal["spawn", "fork", "forkserver"] | None = setting(
        "spawn", "How workers start; null is Python's choice."
    )
    dataloader_timeout: int = setting(
        60,
        "Seconds that workers may take for a batch before the run ends with an error; 0: no limit.",
        own=True,
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
    tolerance_s: float = unsupported(1e-4, "frames are found by number here, not by time. Leave it out.")
    checkpoint_format: str = unsupported("safetensors", "checkpoints are always safetensors.")
    save_checkpoint_to_hub: bool = unsupported(
        False, "the last checkpoint is published (--policy.push_to_hub=true), not each. Use `smolact push`."
    )
    checkpoint_path: Path | None = unsupported(
        None, "give --config_path=CHECKPOINT/pretrained_model/train_config.json."
    )
    reward_model: dict[str, Any] | None = unsupported(None, LATER)
    sample_weighting: dict[str, Any] | None = unsupported(None, LATER)
    job: dict[str, Any] | None = unsupported(
        None, "runs start on this machine.", harmless=_is_off("target", None)
    )
    accelerator: dict[str, Any] | None = unsupported(None, LATER)

    def __post_init__(self) -> None:
        at_least("cpu_processes", 1 if self.cpu_processes is None else self.cpu_processes, 1)
        for name, least in (
            ("steps", 1),
            ("batch_size", 1),
            ("log_freq", 1),
            ("prefetch_factor", 1),
            ("gradient_accumulation_steps", 1),
            ("noise_draws", 1),
            ("max_bad_steps", 1),
            ("keep_last", 0),
            ("keep_every", 0),
            ("eval_steps", 0),
            ("max_eval_samples", 0),
            ("num_workers", 0),
            ("save_freq", 0),
            ("dataloader_timeout", 0),
            ("eval_freq", 0),
        ):
            at_least(name, getattr(self, name), least)
        if self.train_minutes is not None and not 0 < self.train_minutes < 60 * 24 * 365:
            raise ConfigError(
                f"--train_minutes={self.train_minutes:g}: expected more than 0, and less than a year."
            )
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
        if self.policy.published_as is not None and not self.save_checkpoint:
            raise ConfigError(
                "--policy.push_to_hub=true publishes the last checkpoint, and --save_checkpoint=false writes none. Drop one of them."
            )
        if self.wandb.enable and self.wandb.mode == "disabled":
            raise ConfigError(
                "--wandb.enable=true and --wandb.mode=disabled contradict each other. Drop one of them."
            )

        if self.cache.features and self.dataset.cache:
            raise ConfigError(
                "--cache.features=true needs no pictures in training, and --dataset.cache keeps them. Drop one of them."
            )
        if self.cache.features and self.dataset.image_transforms.enable:
            raise ConfigError(
                "--cache.features=true keeps what the vision tower makes of pictures as they are, and "
                "--dataset.image_transforms.enable=true changes them each time. Drop one of them (--dataset.cache=frames goes with "
                "both)."
            )
        if self.parallelism.splits and self.ema.enable:
            raise ConfigError(
                "--ema.enable=true does not go with --parallelism.dp_shard: the average is kept whole. Drop one of them."
            )

    def check_complete(self) -> None:
        """Check the settings that a new run needs.

        Raises:
            ConfigError: no dataset or policy is named, or adapters have no policy to adapt.
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
        """Return `--job_name`, or a name made of environment and policy."""
        parts = [part for part in (self.env.type, policy_type) if part]
        return self.job_name or "_".join(parts).replace("/", "-")

    def run_folder(self, policy_type: str, now: datetime.datetime) -> Path:
        """Return `--output_dir`, or a new folder below outputs/train."""
        return (
            self.output_dir
            or Path("outputs/train") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{self.run_name(policy_type)}"
        )


def to_json(
    config: TrainConfig, policy: PolicyConfig, optimizer: OptimizerPreset, schedule: SchedulerPreset
) -> dict[str, Any]:
    """Return the content of `train_config.json`: every setting of the run, in LeRobot's format."""
    data: dict[str, Any] = _encoded(config)
    data["policy"] = policy.to_dict()
    data["env"] = data["env"] if config.env.type else None
    data["env_eval_freq"] = data.pop("eval_freq")
    data["optimizer"] = {"type": "adamw", **_encoded(optimizer)}
    data["scheduler"] = {"type": "cosine_decay_with_warmup", **_encoded(schedule)}
    return data


def with_steps_done(settings: Mapping[str, Any], config: TrainConfig, step: int) -> dict[str, Any]:
    """Return `to_json` of a timed run, with `step` as its number of steps, for other readers of the file."""
    if config.train_minutes is None:
        return dict(settings)
    schedule = settings["scheduler"]
    warmup_steps = round(step * schedule["num_warmup_steps"] / schedule["num_decay_steps"])
    done = {**schedule, "num_warmup_steps": warmup_steps, "num_decay_steps": step}
    return {**settings, "steps": step, "scheduler": done}


def own_settings(section: Any, prefix: str = "") -> dict[str, Any]:
    """Return smolact's own settings, by dotted name, which `train_config.json` (shared with LeRobot) leaves out."""
    settings: dict[str, Any] = {}
    for item in fields(section):
        value = getattr(section, item.name)
        if item.metadata.get(OWN):
            settings[prefix + item.name] = _encoded(value)
        elif is_dataclass(value):
            settings |= own_settings(value, f"{prefix}{item.name}.")
    return settings


def _encoded(section: Any) -> Any:
    """Return a dataclass as JSON, without refused settings and smolact's own."""
    if is_dataclass(section):
        included = (
            item for item in fields(section) if REFUSED not in item.metadata and not item.metadata.get(OWN)
        )
        return {item.name: _encoded(getattr(section, item.name)) for item in included}
    if isinstance(section, Mapping):
        return {str(key): _encoded(value) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [_encoded(value) for value in section]
    return str(section) if isinstance(section, Path) else section
