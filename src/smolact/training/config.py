"""The settings of `smolact train`: the flags of `lerobot-train`, and their defaults.

    config = TrainConfig(dataset=DatasetSection(root="data"), policy=PolicySection(type="smolvla"), steps=1000)
    config = TrainConfig.resume("outputs/train/run", steps=2000)

A setting that is None was not given; `resolve` fills in what follows from others.
"""

from __future__ import annotations

import datetime
import multiprocessing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from smolact import unsupported
from smolact.errors import ConfigError
from smolact.flags import ParsedValue
from smolact.parsing import build
from smolact.policies.configuration import OptimizerPreset, PolicyConfig, SchedulerPreset
from smolact.policies.field_values import encode
from smolact.settings import INTERNAL, OWN, flag_name, internal, setting
from smolact.training.saved_settings import changed_flags, resumption, to_dict, with_changes
from smolact.training.sections import (
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
    check_minimums,
)

DEFAULT_STEPS = 100_000
DEFAULT_LOG_FREQ = 200
LOG_POINTS = 40
"""Number of logged points of a run's curves, unless `--log_freq` is given."""


@dataclass
class TrainConfig:
    """All settings of a training run, checked at construction.

    Raises:
        ConfigError: a value is out of range, or settings contradict each other.
    """

    UNSUPPORTED: ClassVar = unsupported.TRAIN

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
    is_resumed: bool = setting(
        False, "Continue the run of --config_path (its train_config.json) or of --output_dir.", flag="resume"
    )
    seed: int | None = setting(
        1000, "Seed of weights, sampling, noise and evaluation; null draws one and prints it."
    )
    steps: int | None = setting(
        None, f"Optimizer steps; {DEFAULT_STEPS} when neither they nor --train_minutes are given.", least=1
    )
    train_minutes: float | None = setting(
        None,
        "Train until so many minutes after the start, in the place of --steps: the learning rate follows the clock.",
        own=True,
    )
    batch_size: int = setting(8, "Samples that a process computes at once.", least=1)
    gradient_accumulation_steps: int = setting(
        1,
        "Batches of every process that make one optimizer step; the global batch is printed at the start.",
        own=True,
        least=1,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Make activations again in the backward pass instead of keeping them: a third more arithmetic, much less memory.",
        own=True,
    )
    noise_draws: int = setting(1, "Noises and times that a sample's loss is the mean of.", own=True, least=1)
    num_workers: int = setting(4, "Processes that load data; 0 loads in the training process.", least=0)
    cpu_processes: int | None = setting(
        None,
        "Processes that share each step on a CPU. When null, small policies take as many as are fastest, and large ones train in one, "
        "in threads; 1: one process, in threads.",
        own=True,
        least=1,
    )
    prefetch_factor: int = setting(4, "Batches that each worker loads ahead.", least=1)
    dataloader_multiprocessing_context: Literal["spawn", "fork", "forkserver"] | None = setting(
        "spawn", "How workers start; null is Python's choice."
    )
    dataloader_timeout: int = setting(
        60,
        "Seconds that workers may take for a batch before the run ends with an error; 0: no limit.",
        own=True,
        least=0,
    )
    log_freq: int | None = setting(
        None,
        f"Log every so many steps; when null every {DEFAULT_LOG_FREQ}, or more often in a short run.",
        least=1,
    )
    save_freq: int = setting(
        20_000, "Save a checkpoint every so many steps, and at the end; 0: only at the end.", least=0
    )
    save_checkpoint: bool = setting(True, "Save checkpoints.")
    keep_last: int = setting(
        0, "Keep only so many of the newest checkpoints; 0 keeps all.", own=True, least=0
    )
    keep_every: int = setting(
        0, "Keep every checkpoint of a multiple of so many steps, however old; 0: none.", own=True, least=0
    )
    max_bad_steps: int = setting(
        10,
        "A step whose loss or gradient is not finite changes nothing; stop after so many in a row, and keep the batch.",
        own=True,
        least=1,
    )
    check: bool = setting(
        False, "Check everything that can be checked before the first step, and stop there.", own=True
    )
    eval_freq: int = setting(
        20_000,
        "Evaluate in the environment every so many steps; 0: never.",
        aliases=("env_eval_freq",),
        least=0,
    )
    eval_steps: int = setting(
        0,
        "Compute the loss on the held-out episodes (--dataset.eval_split) every so many steps; 0: never.",
        least=0,
    )
    max_eval_samples: int = setting(0, "On so many samples, evenly spread; 0: on all.", least=0)
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

    checkpoint: Path | None = internal(None)
    """The checkpoint from which the run resumes."""
    begins_again: bool = internal(False)
    """Whether a run that was stopped before its first checkpoint begins again in its folder."""
    changed: frozenset[str] = internal(frozenset())
    """The dotted names of the settings that a resumed run changes."""

    @classmethod
    def read(cls, path: Path | None = None, flags: Iterable[ParsedValue] = ()) -> TrainConfig:
        """Return the settings of a file (by hand, or of a run of smolact's or LeRobot's), with flags over them.

        Raises:
            ConfigError, NotFoundError: as by `smolact.parsing.parse`.
        """
        return build(cls, with_changes(cls, path, flags))

    @classmethod
    def resume(cls, location: str | Path, **changes: Any) -> TrainConfig:
        """Return the settings to resume a run with: its own, and changes.

        Args:
            location: the run's folder, one of its checkpoints, or a `train_config.json` in it.
            changes: new values by name; those of a section as a mapping, such as `policy={"optimizer_lr": 1e-5}`.

        Raises:
            NotFoundError, CheckpointError: there is no checkpoint, or it is corrupt.
            ConfigError: a change is invalid, or can't be made when a run resumes.
        """
        return cls.resume_with_flags(Path(location), [ParsedValue.of(*item) for item in changes.items()])

    @classmethod
    def resume_with_flags(cls, location: Path, flags: Iterable[ParsedValue]) -> TrainConfig:
        """Return what `resume` does, with changes by flags."""
        run = resumption(cls, location, flags)
        config = build(cls, run.settings)
        if run.checkpoint is None:
            return replace(config, output_dir=location, begins_again=True)
        return replace(config, checkpoint=run.checkpoint, changed=run.changed)

    def __post_init__(self) -> None:
        if self.steps is not None and self.train_minutes is not None:
            raise ConfigError(
                f"--steps={self.steps} and --train_minutes={self.train_minutes:g} both say how long the run goes. Give one of them."
            )
        check_minimums(self)
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
        """Raise a `ConfigError` unless a new run has what it needs: dataset, policy, and a policy to adapt where adapters train."""
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

    @property
    def n_steps(self) -> int:
        """Optimizer steps of a run that counts them; of a timed run, the default."""
        return DEFAULT_STEPS if self.steps is None else self.steps

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


def given_flags(settings: Mapping[str, Any]) -> list[str]:
    """Return the flags for a run's settings (by dotted name, as `to_dict` makes them), except defaults."""
    defaults = to_dict(TrainConfig()) | to_dict(PeftSection(), "peft.")
    del defaults["peft.method_type"]  # it makes the section
    return changed_flags(settings, defaults)


def resolve(config: TrainConfig) -> TrainConfig:
    """Fill in the settings that were not given and follow from others. A resolved configuration stays as it is."""
    log_freq = config.log_freq
    if log_freq is None:
        is_timed = config.train_minutes is not None
        log_freq = (
            DEFAULT_LOG_FREQ if is_timed else min(DEFAULT_LOG_FREQ, max(1, config.n_steps // LOG_POINTS))
        )
    decay = 0.999 if config.ema.decay is None else config.ema.decay
    resolved = replace(config, log_freq=log_freq, ema=replace(config.ema, decay=decay))
    return resolved if config.train_minutes is not None else replace(resolved, steps=config.n_steps)


def to_json(
    config: TrainConfig, policy: PolicyConfig, optimizer: OptimizerPreset, schedule: SchedulerPreset
) -> dict[str, Any]:
    """Return the content of `train_config.json`: every setting of a resolved run that LeRobot knows, in its format."""
    data: dict[str, Any] = _shared(config)
    data["policy"] = policy.to_dict()
    data["env"] = data["env"] if config.env.type else None
    data["env_eval_freq"] = data.pop("eval_freq")
    data["optimizer"] = {"type": "adamw", **encode(optimizer)}
    data["scheduler"] = {"type": "cosine_decay_with_warmup", **encode(schedule)}
    return data


def with_steps_done(settings: Mapping[str, Any], config: TrainConfig, step: int) -> dict[str, Any]:
    """Return `to_json` of a timed run, with `step` as its number of steps, for other readers of the file."""
    if config.train_minutes is None:
        return dict(settings)
    schedule = settings["scheduler"]
    warmup_steps = round(step * schedule["num_warmup_steps"] / schedule["num_decay_steps"])
    done = {**schedule, "num_warmup_steps": warmup_steps, "num_decay_steps": step}
    return {**settings, "steps": step, "scheduler": done}


def _shared(section: Any) -> Any:
    """Return a dataclass as JSON, without smolact's own settings."""
    if not is_dataclass(section):
        return encode(section)
    included = (
        item for item in fields(section) if not item.metadata.get(OWN) and INTERNAL not in item.metadata
    )
    return {flag_name(item): _shared(getattr(section, item.name)) for item in included}
