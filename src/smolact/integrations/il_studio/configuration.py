"""Configurations as IL-Studio wants them: transformers' `PretrainedConfig`, around the settings of smolact's policies."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from smolact.errors import ConfigError, optional_import
from smolact.integrations.il_studio.fields import ENGINES, OWN, refuse_misspelt, setting_names
from smolact.policies.configuration import CONFIG_FILE, PolicyConfig, decode_field, read_config_file
from smolact.policies.embodiment import read_embodiment
from smolact.policies.fit import absent_cameras, real_cameras
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolvla import configuration_smolvla
from smolact.types import ACTION, IMAGES, STATE, FeatureType, PolicyFeature
from smolact_client.schema import missing_cameras

transformers = optional_import("transformers", extra="hf")
C = TypeVar("C", bound="ILStudioConfig")

_OWN_TYPES = {
    "action_dim": int,
    "state_dim": int,
    "camera_names": list[str],
    "load_vlm_weights": bool,
    "engine": str,
}
_PICTURE = PolicyFeature(FeatureType.VISUAL, (3, 480, 640))
"""What a camera gives, as far as anybody must know: pictures of any size are taken."""


class ILStudioConfig(transformers.PretrainedConfig):  # type: ignore[misc,name-defined]
    """Settings of a policy, the sizes of state and action, and the cameras' names.

    What IL-Studio passes besides is kept as an attribute, as transformers does; a name that is almost a setting's is an error.

    Attributes:
        placeholders: how many of `empty_cameras` no sample has, since the training had none of them. `camera_names` leaves
            them out, and a sample may lack only the others.

    Raises:
        ConfigError: a setting that can't work or is misspelt.
    """

    settings_class: ClassVar[type[PolicyConfig]]

    def __init__(self, **settings: Any) -> None:
        settings.pop("model_type", None)
        placeholders = settings.pop("placeholders", 0)
        names = [*setting_names(self.settings_class), *OWN]
        given = {name: settings.pop(name) for name in names if name in settings}
        refuse_misspelt(settings, self.settings_class)
        super().__init__(**settings)
        self.placeholders = _typed(int, placeholders, "placeholders")
        defaults = {item.name: item.default for item in dataclasses.fields(self.settings_class)}
        defaults |= {name: default for name, (default, _) in OWN.items()}
        hints = {**typing.get_type_hints(self.settings_class), **_OWN_TYPES}
        for name in names:
            setattr(self, name, _typed(hints[name], given[name], name) if name in given else defaults[name])
        if self.engine not in ENGINES:
            raise ConfigError(f"engine='{self.engine}': expected one of {', '.join(ENGINES)}.")
        self.policy_config()

    @classmethod
    def from_checkpoint(cls: type[C], folder: Path, **settings: Any) -> C:
        """Read `config.json` of a folder that IL-Studio, smolact or LeRobot wrote; `settings` go over what it says.

        Raises:
            NotFoundError, CheckpointError: it is not there, or damaged.
            ConfigError: it is another policy's, or a setting can't work.
        """
        raw = read_config_file(folder)
        if "type" in raw:
            hints = typing.get_type_hints(cls.settings_class)
            own = setting_names(cls.settings_class)
            given = {
                name: _typed(hints[name], value, name) for name, value in settings.items() if name in own
            }
            known = cls.settings_class.from_dict(raw, str(folder / CONFIG_FILE), given)
            known.of_robot(read_embodiment(folder))
            return cls(**{**_settings_of(known), **settings})
        # What IL-Studio's own SmolVLA wrote has no model_type.
        kind = raw.get("model_type") or (cls.model_type if cls.settings_class.vlm_field in raw else None)
        if kind != cls.model_type:
            raise ConfigError(f"{folder / CONFIG_FILE} is of a '{kind}' model, expected '{cls.model_type}'.")
        found: C = cls.from_dict({**raw, **settings})
        return found

    def takes(self, cameras: int) -> bool:
        """Whether a sample may have so many pictures: those of the policy's first cameras, if it may lack some."""
        names = list(self.camera_names)
        absent = max(0, getattr(self, "empty_cameras", 0) - self.placeholders)
        return not names or (cameras <= len(names) and missing_cameras(names, names[:cameras], absent)[1])

    def policy_config(self) -> PolicyConfig:
        """The same as smolact's policies take it."""
        settings = {name: getattr(self, name) for name in setting_names(self.settings_class)}
        never_there = min(self.placeholders, getattr(self, "empty_cameras", 0))
        names = [*self.camera_names, *(f"empty_camera_{number}" for number in range(never_there))]
        cameras = {f"{IMAGES}.{name}": _PICTURE for name in names}
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

    def __init__(self, **settings: Any) -> None:  # transformers 5 makes one for classes that have none
        super().__init__(**settings)


SmolVLAPolicyConfig = SmolVLAConfig
"""What IL-Studio's own YAML calls it."""


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
    # A sample has the pictures that the training had; the policy masks the others as it did there.
    real = real_cameras(config)
    cameras = [key for key in real if not trained or key in trained]
    may_lack = max(0, absent_cameras(config) - (len(real) - len(cameras)))
    return {
        **settings,
        "camera_names": [key.removeprefix(f"{IMAGES}.") for key in cameras],
        # `empty_cameras` stays as it is: the network sees so many masked cameras.
        "placeholders": getattr(config, "empty_cameras", 0) - may_lack,
    }


def _typed(hint: Any, value: Any, name: str) -> Any:
    """A value as its setting declares it. IL-Studio's command line leaves lists as text and writes −1 as −1.0."""
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
