"""Configurations for IL-Studio: transformers' `PretrainedConfig` with the settings of smolact's policies."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import transformers
import yaml

from smolact.errors import ConfigError
from smolact.policies.configuration import CONFIG_FILE, PolicyConfig, read_config_file
from smolact.policies.embodiment import read_embodiment
from smolact.policies.field_values import decode_field
from smolact.policies.fit import absent_cameras, real_cameras
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolvla import configuration_smolvla
from smolact.policies.vlm_configuration import VLMConfig
from smolact.types import ACTION, IMAGES, STATE, FeatureType, PolicyFeature
from smolact_client.schema import missing_cameras
from smolact_il_studio.fields import ENGINES, OWN, check_spelling, setting_names

C = TypeVar("C", bound="ILStudioConfig")

_OWN_TYPES = {
    "action_dim": int,
    "state_dim": int,
    "camera_names": list[str],
    "load_vlm_weights": bool,
    "engine": str,
}
_IMAGE_FEATURE = PolicyFeature(FeatureType.VISUAL, (3, 480, 640))
"""A placeholder: images of any size are accepted."""


class ILStudioConfig(transformers.PretrainedConfig):  # type: ignore[misc]
    """Settings of a policy, the sizes of state and action, and the camera names.

    Further arguments of IL-Studio become attributes, as in transformers; a misspelt setting is an error.

    Attributes:
        placeholders: how many of `empty_cameras` no sample has, since the training had none of them. `camera_names` leaves
            them out, and a sample may lack only the others.

    Raises:
        ConfigError: a setting is invalid or misspelt.
    """

    settings_class: ClassVar[type[VLMConfig]]

    def __init__(self, **settings: Any) -> None:
        settings.pop("model_type", None)
        placeholders = settings.pop("placeholders", 0)
        names = [*setting_names(self.settings_class), *OWN]
        values = {name: settings.pop(name) for name in names if name in settings}
        check_spelling(settings, self.settings_class)
        super().__init__(**settings)
        self.placeholders = _cast(int, placeholders, "placeholders")
        defaults = {item.name: item.default for item in dataclasses.fields(self.settings_class)}
        defaults |= {name: default for name, (default, _) in OWN.items()}
        hints = {**typing.get_type_hints(self.settings_class), **_OWN_TYPES}
        for name in names:
            setattr(self, name, _cast(hints[name], values[name], name) if name in values else defaults[name])
        if self.engine not in ENGINES:
            raise ConfigError(f"engine='{self.engine}': expected one of {', '.join(ENGINES)}.")
        self.policy_config()

    @classmethod
    def from_checkpoint(cls: type[C], folder: Path, **settings: Any) -> C:
        """Read `config.json` of a checkpoint of IL-Studio, smolact or LeRobot; `settings` override it.

        Raises:
            NotFoundError, CheckpointError: it is missing or corrupt.
            ConfigError: it is another policy's, or a setting is invalid.
        """
        raw = read_config_file(folder)
        if "type" in raw:
            hints = typing.get_type_hints(cls.settings_class)
            names = setting_names(cls.settings_class)
            overrides = {
                name: _cast(hints[name], value, name) for name, value in settings.items() if name in names
            }
            policy_config = cls.settings_class.from_dict(raw, str(folder / CONFIG_FILE), overrides)
            policy_config.of_robot(read_embodiment(folder))
            return cls(**{**_settings_of(policy_config), **settings})
        # Checkpoints of IL-Studio's own SmolVLA have no model_type.
        kind = raw.get("model_type") or (cls.model_type if cls.settings_class.vlm_field in raw else None)
        if kind != cls.model_type:
            raise ConfigError(f"{folder / CONFIG_FILE} is of a '{kind}' model, expected '{cls.model_type}'.")
        config: C = cls.from_dict({**raw, **settings})
        return config

    def takes(self, cameras: int) -> bool:
        """Whether a sample may have this many images; with fewer than all, they are the policy's first cameras."""
        names = list(self.camera_names)
        absent = max(0, getattr(self, "empty_cameras", 0) - self.placeholders)
        return not names or (cameras <= len(names) and missing_cameras(names, names[:cameras], absent)[1])

    def policy_config(self) -> PolicyConfig:
        """Return the configuration of smolact's policy."""
        settings = {name: getattr(self, name) for name in setting_names(self.settings_class)}
        placeholders = min(self.placeholders, getattr(self, "empty_cameras", 0))
        names = [*self.camera_names, *(f"empty_camera_{number}" for number in range(placeholders))]
        cameras = {f"{IMAGES}.{name}": _IMAGE_FEATURE for name in names}
        state = PolicyFeature(FeatureType.STATE, (self.state_dim,))
        return self.settings_class(
            **settings,
            input_features={**cameras, STATE: state},
            output_features={ACTION: PolicyFeature(FeatureType.ACTION, (self.action_dim,))},
        )


class SmolVLAConfig(ILStudioConfig):
    """SmolVLA's settings (`smolact.SmolVLAConfig`) in IL-Studio."""

    model_type = "smolvla_policy"
    settings_class = configuration_smolvla.SmolVLAConfig

    def __init__(self, **settings: Any) -> None:  # transformers 5 generates one for classes without
        super().__init__(**settings)


SmolVLAPolicyConfig = SmolVLAConfig
"""The class's name in IL-Studio's own YAML."""


class SmolAndFASTConfig(ILStudioConfig):
    """SmolAndFAST's settings in IL-Studio."""

    model_type = "smolandfast_policy"
    settings_class = SMOLANDFASTConfig

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)


def _settings_of(config: PolicyConfig) -> dict[str, Any]:
    settings = {name: getattr(config, name) for name in setting_names(type(config))}
    state = config.robot_state_feature
    if state is not None:
        settings["state_dim"] = state.shape[0]
    if ACTION in config.output_features:
        settings["action_dim"] = config.action_feature.shape[0]
    robot = config.embodiment
    trained = set() if robot is None else set(robot.cameras)
    # A sample has the cameras of the training; the policy masks the others, as in training.
    real = real_cameras(config)
    cameras = [key for key in real if not trained or key in trained]
    n_optional = max(0, absent_cameras(config) - (len(real) - len(cameras)))
    return {
        **settings,
        "camera_names": [key.removeprefix(f"{IMAGES}.") for key in cameras],
        # `empty_cameras` is unchanged: the network sees that many masked cameras.
        "placeholders": getattr(config, "empty_cameras", 0) - n_optional,
    }


def _cast(hint: Any, value: Any, name: str) -> Any:
    """Convert a value to its setting's type. IL-Studio's command line leaves lists as text and writes −1 as −1.0."""
    is_choice = typing.get_origin(hint) in (typing.Union, types.UnionType)
    takes_text = hint is str or (is_choice and str in typing.get_args(hint))
    if isinstance(value, str) and not takes_text:
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{name}={value}: this can't be read ({error}).") from error
    if hint is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, tuple):
        value = list(value)
    if hint == list[str] and isinstance(value, str):
        value = [value]
    return decode_field(hint, value, name)
