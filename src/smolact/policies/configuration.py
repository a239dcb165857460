"""The base class of every policy's configuration: common settings, reading and writing. No torch here."""

from __future__ import annotations

import builtins
import dataclasses
import json
import logging
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from smolact import durable
from smolact.errors import ConfigError, NotFoundError, did_you_mean, list_siblings
from smolact.files import read_json_object
from smolact.hub import find_folder
from smolact.policies.embodiment import Embodiment, read_embodiment
from smolact.policies.field_values import check_shape, decode_enum, decode_field, encode
from smolact.registry import POLICIES
from smolact.settings import OWN, out_of_range, setting
from smolact.types import ACTION, STATE, FeatureType, NormalizationMode, PolicyFeature

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
TRAIN_CONFIG = "train_config.json"
PRETRAINED_MODEL = "pretrained_model"
"""The folder of a checkpoint that holds the policy."""
PLUGIN_TYPES = {"smolvla_fast": "smolvla"}
"""Policy types of our plugin in LeRobot, where our own name is taken, to ours (`plugins/lerobot_policy_smolact`)."""
C = TypeVar("C", bound="PolicyConfig")


@dataclass(frozen=True)
class OptimizerPreset:
    """AdamW with the values of the policy's authors."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    grad_clip_norm: float


@dataclass(frozen=True)
class SchedulerPreset:
    """Linear warm-up, then cosine decay from the peak to `decay_lr`."""

    peak_lr: float
    decay_lr: float
    num_warmup_steps: int
    num_decay_steps: int


class _Optional:
    """What commands read of every policy. A policy that has one of these settings declares it as a field."""

    empty_cameras: int = 0
    """Cameras that may be missing."""
    resize_imgs_with_padding: tuple[int, int] | None = None
    """(width, height) into which images are fitted."""
    drop_n_last_frames: int = 0
    """Frames at the end of each episode that training leaves out."""
    max_state_dim: int | None = None
    max_action_dim: int | None = None
    num_steps: int | None = None
    """Denoising steps of a chunk."""
    compile_model: bool = False
    """Whether the network is compiled."""


def _default_normalization() -> dict[str, NormalizationMode]:
    return {
        "VISUAL": NormalizationMode.IDENTITY,
        "STATE": NormalizationMode.MEAN_STD,
        "ACTION": NormalizationMode.MEAN_STD,
    }


@dataclass
class PolicyConfig(_Optional):
    """The settings of every policy, as in LeRobot's checkpoints. An invalid one raises a `ConfigError` on construction.

    To add a policy, derive a dataclass with its `type`, its `policy_class` and its settings, and name it in the entry points
    `smolact.policies` of its distribution. Its module should import no torch.
    """

    type: ClassVar[str]
    policy_class: ClassVar[str]
    """The policy's class as `module:name`, a subclass of `smolact.policies.base.PreTrainedPolicy`."""
    title: ClassVar[str] = ""
    """The policy's name in model cards; its type if empty."""
    uses_cameras: ClassVar[bool] = True
    """Whether the policy needs a camera; if not, it gets none."""
    reads_instructions: ClassVar[bool] = False
    in_steps: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Settings that a checkpoint's processors store, too: the step's registered name and its field."""

    n_obs_steps: int = setting(1, "observations a policy sees at once", least=1, most=1000)
    input_features: dict[str, PolicyFeature] = setting(
        dict, "cameras and state; taken from the dataset when empty"
    )
    output_features: dict[str, PolicyFeature] = setting(dict, "the action; taken from the dataset when empty")
    device: str | None = setting(None, "cuda, cuda:1, mps or cpu; the best one when not set")
    use_amp: bool = setting(False, "compute in bfloat16 where it is safe, keep float32 weights")
    use_peft: bool = setting(False, "whether adapters (LoRA) were trained")
    push_to_hub: bool = setting(False, "publish the policy on the Hub when the training is done")
    repo_id: str | None = setting(None, "as owner/name on the Hub")
    private: bool | None = setting(None, "in a private repository; the owner's default when null")
    tags: list[str] | None = setting(None, "tags of the model card")
    license: str | None = setting(None, "licence of the model card")
    pretrained_path: str | None = setting(None, "the checkpoint that training began from")
    pretrained_revision: str | None = setting(None, "its revision on the Hub")
    chunk_size: int = setting(1, "actions that are predicted at once", least=1, most=10_000)
    n_action_steps: int = setting(
        1, "actions that are executed before the next prediction", least=1, most=10_000
    )
    normalization_mapping: dict[str, NormalizationMode] = setting(
        _default_normalization, "how each type of feature is normalized"
    )

    embodiment: ClassVar[Embodiment | None] = None
    """The robot of the training, if known; saved in `embodiment.json`."""
    extra_fields: ClassVar[Mapping[str, Any]] = {}
    """Fields of the file that this version does not know; they are saved again."""

    def __post_init__(self) -> None:
        """Raise a `ConfigError` if a setting is out of range, or a feature has an impossible shape."""
        if self.n_obs_steps != 1:
            raise ConfigError(
                f"n_obs_steps={self.n_obs_steps}: a '{self.type}' policy sees one observation. "
                "Leave --policy.n_obs_steps at 1."
            )
        message = out_of_range(self)
        if message is not None:
            raise ConfigError(f"{message} Set --policy.{message.partition('=')[0]}.")
        for field in ("input_features", "output_features"):
            for name, feature in getattr(self, field).items():
                check_shape(feature.shape, f"{field}: {name}")
        self.normalization_mapping = {
            kind: decode_enum(NormalizationMode, mode, f"normalization_mapping.{kind}")
            for kind, mode in self.normalization_mapping.items()
        }
        if self.n_action_steps > self.chunk_size:
            raise ConfigError(
                f"n_action_steps={self.n_action_steps} is more than chunk_size={self.chunk_size}: a chunk can't supply "
                "more actions than it holds. Lower --policy.n_action_steps."
            )

    @property
    def features(self) -> dict[str, PolicyFeature]:
        """Inputs and outputs."""
        return {**self.input_features, **self.output_features}

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """The cameras, in order."""
        return {key: value for key, value in self.input_features.items() if value.type is FeatureType.VISUAL}

    @property
    def robot_state_feature(self) -> PolicyFeature | None:
        """The proprioceptive state, if the policy has one."""
        return self.input_features.get(STATE)

    @property
    def action_feature(self) -> PolicyFeature:
        """The action.

        Raises:
            ConfigError: the configuration has none yet; features come from a dataset or a checkpoint.
        """
        if ACTION not in self.output_features:
            raise ConfigError(
                f"The policy's output_features have no '{ACTION}' (found: {list(self.output_features) or 'nothing'}). "
                "Give them (--policy.output_features), or take them from a dataset: LeRobotDatasetMetadata.policy_features()."
            )
        return self.output_features[ACTION]

    @property
    def observation_delta_indices(self) -> list[int]:
        """Observation frames of a sample, relative to the present one."""
        return [0]

    @property
    def action_delta_indices(self) -> list[int]:
        """Action frames of a sample, relative to the present one."""
        return list(range(self.chunk_size))

    def get_optimizer_preset(self) -> OptimizerPreset:
        """Return the AdamW with which the policy trains; settings of the policy may replace these values."""
        return OptimizerPreset(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, grad_clip_norm=10.0)

    def get_scheduler_preset(self) -> SchedulerPreset:
        """Return the learning rate's schedule, which is fitted to the run's steps."""
        lr = self.get_optimizer_preset().lr
        return SchedulerPreset(peak_lr=lr, decay_lr=lr / 40, num_warmup_steps=1_000, num_decay_steps=30_000)

    def uncompiled(self: C) -> C:
        """Return this configuration without `torch.compile`."""
        return self.replace(compile_model=False) if self.compile_model else self

    def processor_settings(self, changed: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the fields of processor steps, by the step's registered name, that the changed settings determine, too."""
        settings: dict[str, dict[str, Any]] = {}
        if "normalization_mapping" in changed:
            for step in ("normalizer_processor", "unnormalizer_processor"):
                settings.setdefault(step, {})["norm_map"] = dict(self.normalization_mapping)
        if {"input_features", "output_features"} & set(changed):
            settings.setdefault("normalizer_processor", {})["features"] = self.features
            settings.setdefault("unnormalizer_processor", {})["features"] = dict(self.output_features)
        for name in changed:
            if name in self.in_steps:
                step, field = self.in_steps[name]
                settings.setdefault(step, {})[field] = getattr(self, name)
        return settings

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as a JSON object, `type` first.

        A setting that only smolact has is included only if it differs from its default: LeRobot then refuses the file, as it
        should, since it would compute something else.
        """
        values = {
            item.name: encode(getattr(self, item.name))
            for item in dataclasses.fields(self)
            if not item.metadata.get(OWN) or getattr(self, item.name) != item.default
        }
        return {"type": self.type, **values, **self.extra_fields}

    def to_json_string(self) -> str:
        """Return the same as text, which the callbacks of Hugging Face's Trainer log."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(
        cls: builtins.type[C],
        data: Mapping[str, Any],
        source: str = "the configuration",
        overrides: Mapping[str, Any] | None = None,
    ) -> C:
        """Read the output of `to_dict` or LeRobot; values with an override are not read. Unknown fields are kept, with a warning.

        Args:
            overrides: settings by name.

        Raises:
            ConfigError: it is of another policy type, a setting does not exist, or a value is unreadable or invalid.
        """
        data, overrides = dict(data), dict(overrides or {})
        kind = data.pop("type", cls.type)
        if kind != cls.type:
            raise ConfigError(f"{source} is of a '{kind}' policy, expected '{cls.type}'.")
        hints = typing.get_type_hints(cls)
        names = [item.name for item in dataclasses.fields(cls)]
        cls._check_names(overrides)
        in_file = {name: value for name, value in data.items() if name in names and name not in overrides}
        known = {
            name: decode_field(hints[name], value, f"{source}: {name}", f"--policy.{name}")
            for name, value in cls.accepted(in_file, source).items()
        }
        config = cls(**{**known, **overrides})
        extra = {name: value for name, value in data.items() if name not in names}
        if extra:
            logger.warning(
                "%s has fields that this version does not know and keeps: %s", source, ", ".join(extra)
            )
            config.extra_fields = extra  # type: ignore[misc]  # shadows the empty class default
        return config

    @classmethod
    def accepted(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return a file's values; subclasses correct, with a warning, those that the reference accepts but ignores."""
        return dict(values)

    @classmethod
    def _check_names(cls, overrides: Mapping[str, Any]) -> None:
        names = [item.name for item in dataclasses.fields(cls)]
        for name in overrides:
            if name not in names:
                raise ConfigError(
                    f"A '{cls.type}' policy has no setting '{name}'.{did_you_mean(name, names)}"
                )

    def replace(self: C, **overrides: Any) -> C:
        """Return a copy with other values, which are checked.

        Raises:
            ConfigError: there is no such field, or a value is invalid.
        """
        self._check_names(overrides)
        copy = dataclasses.replace(self, **overrides)
        if self.extra_fields:
            copy.extra_fields = self.extra_fields  # type: ignore[misc]
        return copy if self.embodiment is None else copy.of_robot(self.embodiment)

    def of_robot(self: C, embodiment: Embodiment | None) -> C:
        """Set the robot of the policy's training, and return the configuration itself."""
        self.embodiment = embodiment  # type: ignore[misc]  # shadows the class default
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` into `folder`, and `embodiment.json` if the robot of the training is known."""
        durable.write_json(Path(folder) / CONFIG_FILE, self.to_dict())
        if self.embodiment is not None:
            self.embodiment.save(Path(folder))

    @classmethod
    def from_pretrained(cls: builtins.type[C], folder_or_id: str | Path, **overrides: Any) -> C:
        """Read `config.json` of a checkpoint folder or a Hub id.

        Raises:
            NotFoundError, HubError: the checkpoint can't be found or fetched.
            CheckpointError: the file is damaged.
            ConfigError: it is of another policy type, or a setting is invalid.
        """
        folder = find_policy(folder_or_id, patterns=[CONFIG_FILE])
        return cls.in_folder(folder, overrides)

    @classmethod
    def in_folder(cls: builtins.type[C], folder: Path, overrides: Mapping[str, Any] | None = None) -> C:
        """Read the configuration from a folder that is known to be a checkpoint's."""
        config = cls.from_dict(read_config_file(folder), str(folder / CONFIG_FILE), overrides)
        return config.of_robot(read_embodiment(folder))


def get_config_class(kind: str) -> type[PolicyConfig]:
    """Return the configuration class of a policy type, built in or installed.

    Raises:
        ConfigError: there is no such type, or the distribution that provides it is broken.
        MissingDependencyError: its distribution needs a module that is not installed.
    """
    found = POLICIES.find(kind)
    is_config = isinstance(found, type) and issubclass(found, PolicyConfig)
    if not is_config or getattr(found, "type", None) != kind or not hasattr(found, "policy_class"):
        raise POLICIES.refuse(kind, f"is no subclass of PolicyConfig with type = '{kind}' and a policy_class")
    return found  # type: ignore[no-any-return]


def find_policy(
    name: str | Path, *, patterns: Sequence[str] | None = None, revision: str | None = None
) -> Path:
    """Return the folder of a policy: that folder itself, or from a checkpoint, a run (its last checkpoint), or a Hub id.

    Raises:
        NotFoundError, HubError: it can't be found or fetched.
    """
    folder = find_folder(name, "model", patterns=patterns, revision=revision)
    candidates = (folder, folder / PRETRAINED_MODEL, folder / "checkpoints" / "last" / PRETRAINED_MODEL)
    return next((candidate for candidate in candidates if (candidate / CONFIG_FILE).is_file()), folder)


def read_config_file(folder: Path) -> dict[str, Any]:
    """Read `folder/config.json`. Its `type` is translated to our name if it is the plugin's.

    Raises:
        NotFoundError: the folder has none.
        CheckpointError: it is damaged.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise NotFoundError(
            f"{folder} is not a policy checkpoint: it has no {CONFIG_FILE}. {list_siblings(path)}"
        )
    raw = read_json_object(path, "Copy it again, or take another checkpoint.")
    kind = raw.get("type")
    return {**raw, "type": PLUGIN_TYPES[kind]} if kind in PLUGIN_TYPES else raw
