"""The sections of `smolact train`'s settings: `--dataset.…`, `--policy.…`, `--env.…` and the other dotted flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from smolact import unsupported
from smolact.datasets.transforms_config import ImageTransformsConfig
from smolact.errors import ConfigError
from smolact.settings import RANGE, open_section, setting

if TYPE_CHECKING:
    from smolact.policies.adapters import AdapterSettings

BASE, VLM, RANDOM = "base", "vlm", "random"
"""Sources of weights: a policy's checkpoint, the VLM's own weights, or random initialization."""


@dataclass
class DatasetSection:
    """The demonstrations to train on."""

    UNSUPPORTED: ClassVar = unsupported.DATASET

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
    image_transforms: ImageTransformsConfig = field(default_factory=ImageTransformsConfig)
    eval_split: float = setting(
        0.0, "Hold out this share of each task's episodes, the last ones, for --eval_steps."
    )

    mix: dict[str, float] = setting(
        dict,
        "Several datasets in the place of one, as {Hub id or folder: weight}: each gives its share of the samples.",
        own=True,
    )
    cache: Literal["frames", "resized"] | None = setting(
        None,
        "Decode the pictures once and keep them beside the dataset: as they are (frames), or scaled down to what the policy "
        "takes, which needs less room and rounds them (resized). See --cache.max_gb.",
        own=True,
    )
    max_bad_samples: int | None = setting(
        None,
        "So many frames that can't be read may be left out of a run, others in their place; one more stops it, saved. When null "
        "16, but none that is found before the first step.",
        own=True,
        least=0,
    )
    allow_faults: bool = setting(
        False,
        "Train although the dataset has what `smolact dataset check` calls errors: values that are not finite, statistics of other "
        "data.",
        own=True,
    )
    corrections_weight: float | Literal["only"] | None = setting(
        None,
        "In a dataset of corrections (`smolact rollout --corrections`) a frame that a person drove counts so many times as often as "
        "one that the policy drove; only: the policy's frames are left out. All count once when null. Datasets without the mark "
        "are used as they are.",
        own=True,
    )
    drop_n_last_frames: int | None = setting(
        None,
        "Leave out so many frames at the end of each episode; the policy's choice when null.",
        own=True,
        least=0,
    )

    def __post_init__(self) -> None:
        check_minimums(self, "dataset.")
        self.repo_id, self.root = self.repo_id or None, self.root or None
        single = self.repo_id or self.root
        if self.mix and single:
            raise ConfigError(
                f"--dataset.mix names the datasets, and {single} is another one. Put it into the mixture, or drop one of the flags."
            )
        if self.mix and (self.episodes is not None or self.exclude_episodes or self.revision):
            raise ConfigError(
                "--dataset.mix takes whole datasets at their newest revision: episodes can be chosen of a single one. Drop "
                "--dataset.episodes, --dataset.exclude_episodes and --dataset.revision."
            )
        weight = self.corrections_weight
        if weight is not None and weight != "only" and not 0 < weight < float("inf"):
            raise ConfigError(
                f"--dataset.corrections_weight={weight}: expected a number above 0, or 'only' to leave out what the policy drove."
            )
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
        """The dataset's name as the user gave it."""
        return self.repo_id or self.root or " + ".join(self.mix)


def policy_type_at(path: str) -> str:
    """Return the type of the policy in the checkpoint at `path`: a folder or a Hub id."""
    from smolact.policies.configuration import CONFIG_FILE, find_policy, read_config_file

    return str(read_config_file(find_policy(path, patterns=[CONFIG_FILE])).get("type"))


def policy_fields(section: Mapping[str, Any]) -> type | None:
    """Return the configuration class whose fields `--policy.…` accepts: that of `type`, or of the checkpoint at `path`."""
    from smolact.policies.factory import get_config_class

    if section.get("type"):
        return get_config_class(section["type"])
    return get_config_class(policy_type_at(section["path"])) if section.get("path") else None


@dataclass
class PolicySection:
    """The policy to train and the source of its weights; further settings are fields of its configuration."""

    UNSUPPORTED: ClassVar = unsupported.POLICY

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
    settings: dict[str, Any] = open_section(policy_fields)

    def __post_init__(self) -> None:
        if self.init == BASE and self.path is None:
            raise ConfigError(
                "--policy.init=base needs the base policy: give --policy.path=FOLDER_OR_HUB_ID."
            )
        if self.init in (VLM, RANDOM) and self.path is not None:
            raise ConfigError(
                f"--policy.path={self.path} loads that checkpoint's weights, --policy.init={self.init} does not. "
                "Drop one of them (--policy.type=NAME starts a new policy)."
            )
        if self.settings.get("push_to_hub") and not self.settings.get("repo_id"):
            raise ConfigError(
                "--policy.push_to_hub=true publishes the trained policy: under which name? Give --policy.repo_id=OWNER/NAME, or "
                "publish later with `smolact push RUN OWNER/NAME`."
            )

    @property
    def published_as(self) -> str | None:
        """The Hub id under which the trained policy is published; None if it is not."""
        return str(self.settings["repo_id"]) if self.settings.get("push_to_hub") else None


def env_fields(section: Mapping[str, Any]) -> type | None:
    """Return the class whose fields `--env.…` accepts besides `EnvSection`'s: the arguments of the environment `type`."""
    if not section.get("type"):
        return None
    from smolact.envs.arguments import arguments_class

    return arguments_class(section["type"], {field.name for field in dataclasses.fields(EnvSection)})


@dataclass
class EnvSection:
    """An environment; further settings are arguments of its class."""

    UNSUPPORTED: ClassVar = unsupported.ENV

    type: str | None = setting(
        None,
        "An environment: tabletop, pusht, so101, metaworld, aloha, libero, or any id of gymnasium's; none when null.",
    )
    task: str | None = setting(
        None,
        "The instruction of every episode; the environment's own when null. Of a benchmark: its tasks and groups of tasks, with commas.",
    )
    mapping: Path | None = setting(
        None, "A YAML file from the environment's observation names to the policy's."
    )
    episode_length: int | None = setting(
        None, "Steps after which an episode ends; the environment's own limit when null.", least=1
    )
    kwargs: dict[str, Any] = setting(
        dict, "Arguments for making the environment, as {name: value}, which --env.NAME=VALUE gives, too."
    )
    settings: dict[str, Any] = open_section(env_fields, when_needed=True)

    def __post_init__(self) -> None:
        check_minimums(self, "env.")

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for making the environment (`make_env`)."""
        limit = {} if self.episode_length is None else {"max_episode_steps": self.episode_length}
        return {**self.kwargs, **self.settings, **limit}


@dataclass
class EvalSection:
    """The evaluation of the policy during training."""

    UNSUPPORTED: ClassVar = unsupported.EVAL

    n_episodes: int = setting(50, "Episodes of one evaluation; of each task of a benchmark.", least=1)
    batch_size: int = setting(
        0,
        "Environments that are stepped side by side; 0: as many as episodes, at most 16, and one of a benchmark, whose renderer takes "
        "seconds to start.",
        least=0,
    )

    def __post_init__(self) -> None:
        check_minimums(self, "eval.")

    def n_environments(self, env: EnvSection) -> int:
        """Return the number of environments that are stepped side by side."""
        from smolact.envs.factory import is_benchmark

        default = 1 if self.batch_size == 0 and is_benchmark(str(env.type)) else 16
        return min(self.batch_size or default, self.n_episodes)


@dataclass
class OptimizerSection:
    """AdamW, for runs that do not use the policy's preset."""

    type: Literal["adamw"] = setting("adamw", "The optimizer.")
    lr: float | None = setting(None, "Peak learning rate.")
    betas: tuple[float, float] | None = setting(None, "Decay of the two moments.")
    eps: float | None = setting(None, "Added to the denominator.")
    weight_decay: float | None = setting(None, "Decoupled weight decay.")
    grad_clip_norm: float | None = setting(None, "Largest norm of all gradients together; 0 does not clip.")


@dataclass
class SchedulerSection:
    """Cosine decay with warm-up, for runs that do not use the policy's preset."""

    type: Literal["cosine_decay_with_warmup"] = setting("cosine_decay_with_warmup", "The schedule.")
    num_warmup_steps: int | None = setting(None, "Steps of linear warm-up.")
    num_decay_steps: int | None = setting(None, "Steps until the final rate; follows --steps when not set.")
    peak_lr: float | None = setting(None, "The rate after the warm-up.")
    decay_lr: float | None = setting(None, "The rate at the end.")


@dataclass
class WandBSection:
    """Weights & Biases (needs the package wandb)."""

    UNSUPPORTED: ClassVar = unsupported.WANDB

    enable: bool = setting(False, "Log there too.")
    project: str = setting("smolact", "Project.")
    entity: str | None = setting(None, "User or team.")
    notes: str | None = setting(None, "Notes.")
    run_id: str | None = setting(None, "Continue this run.")
    mode: Literal["online", "offline", "disabled"] | None = setting(None, "online, offline or disabled.")
    add_tags: bool = setting(True, "Tag the run with policy, dataset and seed.")


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
    """Adapters that train instead of the policy's weights (needs the package peft)."""

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
        if self.method_type.lower() != "lora":
            raise ConfigError(f"--peft.method_type={self.method_type} is not supported. Use lora.")

    def adapter_settings(self) -> AdapterSettings:
        """Return the argument of `policy.add_adapters`.

        Raises:
            ConfigError: a value is out of range.
        """
        from smolact.policies.adapters import AdapterSettings

        return AdapterSettings(
            self.target_modules, self.full_training_modules or (), self.init_type, self.r, self.lora_alpha
        )


@dataclass
class ParallelismSection:
    """Parallelism of the processes that torchrun, `accelerate launch` or Slurm started."""

    UNSUPPORTED: ClassVar = unsupported.PARALLELISM

    dp_shard: int = setting(
        1,
        "So many processes split weights, gradients and optimizer state among them (FSDP2); -1: all of them; 1: each has its "
        "own copy.",
    )
    dp_replicate: int = setting(
        1, "With --parallelism.dp_shard: so many such groups, each with a copy of the weights.", least=1
    )

    def __post_init__(self) -> None:
        check_minimums(self, "parallelism.")
        if self.dp_shard < 1 and self.dp_shard != -1:
            raise ConfigError(f"--parallelism.dp_shard={self.dp_shard} is too small: it must be 1 or more.")

    @property
    def splits(self) -> bool:
        """Whether the weights are sharded."""
        return self.dp_shard != 1


@dataclass
class CacheSection:
    """Features computed once from the dataset and cached next to it (`--dataset.cache` caches pictures)."""

    features: bool = setting(
        False,
        "Keep what the frozen vision tower makes of each picture: no video is read and no tower run again.",
    )
    dtype: Literal["bfloat16", "float32", "float8"] = setting(
        "bfloat16",
        "Of the features that are kept; float8 (e4m3, a scale for each token) takes half of bfloat16's room and rounds coarsely.",
    )
    max_gb: float = setting(50.0, "Room for what is kept of a dataset, in 10^9 bytes.")
    folder: Path | None = setting(None, "Where it is kept; NAME.cache beside the dataset when null.")

    def __post_init__(self) -> None:
        if not self.max_gb > 0:
            raise ConfigError(f"--cache.max_gb={self.max_gb}: it must be above 0.")


@dataclass
class EMASection:
    """A moving average of the weights; if enabled, it is evaluated and saved in `pretrained_model`."""

    UNSUPPORTED: ClassVar = unsupported.EMA

    enable: bool = setting(False, "Average the weights that train.")
    decay: float | None = setting(None, "Share of the old average that stays in an update; 0.999 when null.")
    warmup: bool = setting(True, "Let the decay grow to its value, as min(decay, (1 + step) / (10 + step)).")

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ConfigError(f"--ema.decay={self.decay}: it must be at least 0 and below 1.")


def check_minimums(section: Any, prefix: str = "") -> None:
    """Raise a `ConfigError` if a setting that was given is below its minimum."""
    for item in dataclasses.fields(section):
        value, (least, _) = getattr(section, item.name), item.metadata.get(RANGE, (None, None))
        if value is not None and least is not None and value < least:
            raise ConfigError(f"--{prefix}{item.name}={value} is too small: it must be {least} or more.")
