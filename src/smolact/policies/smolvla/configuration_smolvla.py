"""What one can set on SmolVLA, with the defaults of its authors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from smolact.errors import ConfigError
from smolact.policies.common.chunk_settings import ChunkSettings
from smolact.policies.configuration import PolicyConfig
from smolact.settings import setting
from smolact.types import IMAGES, FeatureType, NormalizationMode, PolicyFeature


def _default_normalization() -> dict[str, NormalizationMode]:
    return {
        "VISUAL": NormalizationMode.IDENTITY,
        "STATE": NormalizationMode.MEAN_STD,
        "ACTION": NormalizationMode.MEAN_STD,
    }


@dataclass
class SmolVLAConfig(ChunkSettings, PolicyConfig):
    """SmolVLA's settings; names and defaults as in LeRobot (arXiv 2506.01844).

    Raises:
        ConfigError: a combination that can't work, with the flag that settles it.
    """

    type: ClassVar[str] = "smolvla"
    freezes: ClassVar[Mapping[str, bool]] = {
        "freeze_vision_encoder": True,
        "train_expert_only": True,
        "train_state_proj": False,
    }

    chunk_size: int = setting(50, "actions that are predicted at once")
    n_action_steps: int = setting(50, "actions that are executed before the next prediction")
    normalization_mapping: dict[str, NormalizationMode] = setting(
        _default_normalization, "how each type of feature is normalized"
    )

    max_state_dim: int = setting(32, "state values; a shorter state is padded with zeros")
    max_action_dim: int = setting(32, "action values; a shorter action is padded with zeros")
    resize_imgs_with_padding: tuple[int, int] | None = setting(
        (512, 512), "(width, height) that images are fitted into; null leaves them as they are"
    )
    empty_cameras: int = setting(
        0, "cameras of the base model that are missing here and shown as masked black"
    )
    adapt_to_pi_aloha: bool = setting(False, "convert Aloha joints to those of the pi runtime")
    use_delta_joint_actions_aloha: bool = setting(False, "not supported, here or in LeRobot")
    tokenizer_max_length: int = setting(48, "tokens of an instruction; a longer one is cut")
    num_steps: int = setting(10, "Euler steps from noise to actions")
    use_cache: bool = setting(True, "compute the prefix once a chunk, not once a step")

    freeze_vision_encoder: bool = setting(True, "do not train the vision tower")
    train_expert_only: bool = setting(True, "do not train the VLM")
    train_state_proj: bool = setting(True, "train the projection of the state")

    optimizer_lr: float = setting(1e-4, "peak learning rate")
    optimizer_betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's betas")
    optimizer_eps: float = setting(1e-8, "AdamW's epsilon")
    optimizer_weight_decay: float = setting(1e-10, "AdamW's weight decay")
    optimizer_grad_clip_norm: float = setting(10.0, "largest norm of the gradient")
    scheduler_warmup_steps: int = setting(1_000, "steps of linear warm-up")
    scheduler_decay_steps: int = setting(
        30_000, "steps until the final rate; follows --steps unless it is set"
    )
    scheduler_decay_lr: float = setting(2.5e-6, "final learning rate")

    vlm_model_name: str = setting(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "the VLM: a Hub id, a folder, or a preset (tiny, small, …)",
    )
    load_vlm_weights: bool = setting(False, "begin from the VLM's weights")
    add_image_special_tokens: bool = setting(False, "put SmolVLM's image tokens around each camera")
    attention_mode: str = setting("cross_attn", "how the expert reads the VLM: cross_attn or self_attn")
    prefix_length: int = setting(-1, "pad images, text and state to this many tokens; -1 does not")
    pad_language_to: str = setting("longest", "pad instructions to the batch's longest, or to max_length")
    num_expert_layers: int = setting(-1, "layers of the expert; -1 is as many as the VLM's")
    num_vlm_layers: int = setting(
        16, "the VLM's first layers that are used; -1 uses all, as does a number above what it has"
    )
    self_attn_every_n_layers: int = setting(2, "in cross_attn mode, every n-th layer is self-attention")
    expert_width_multiplier: float = setting(0.75, "width of the expert over that of the VLM")
    min_period: float = setting(4e-3, "shortest period of the time embedding")
    max_period: float = setting(4.0, "longest period of the time embedding")
    rtc_config: dict[str, Any] | None = setting(
        None, "real-time chunking, as LeRobot stores it; kept, not used"
    )
    relative_step: float = setting(
        0.0,
        "above 0: learn the chunk's action k as (action - state) / ((k + 1) * relative_step), all of them normalized; for "
        "actions that are positions of what the state tells",
        own=True,
    )
    compile_model: bool = setting(False, "torch.compile")
    compile_mode: str = setting("max-autotune", "its mode")

    def __post_init__(self) -> None:
        if self.n_obs_steps != 1:
            raise ConfigError(
                f"n_obs_steps={self.n_obs_steps}: SmolVLA sees one observation; its prefix holds one image a camera "
                "and one state. Leave --policy.n_obs_steps at 1."
            )
        for name in ("chunk_size", "n_action_steps", "num_steps", "max_state_dim", "max_action_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: expected at least 1. Raise --policy.{name}."
                )
        if self.relative_step < 0:
            raise ConfigError(
                f"relative_step={self.relative_step}: expected 0 (absolute actions) or more. Set --policy.relative_step."
            )
        if self.n_action_steps > self.chunk_size:
            raise ConfigError(
                f"n_action_steps={self.n_action_steps} is more than chunk_size={self.chunk_size}: a chunk can't supply "
                "more actions than it holds. Lower --policy.n_action_steps."
            )
        if self.use_delta_joint_actions_aloha:
            raise ConfigError(
                "use_delta_joint_actions_aloha=true is not supported (nor is it in LeRobot). "
                "Leave --policy.use_delta_joint_actions_aloha at false."
            )
        for name, least in (("num_vlm_layers", -1), ("num_expert_layers", -1), ("empty_cameras", 0)):
            value = getattr(self, name)
            if value < least or (value == 0 and least < 0):
                expected = "0 or more" if least == 0 else "-1 (all), or 1 or more"
                raise ConfigError(f"{name}={value}: expected {expected}. Set --policy.{name}.")
        if self.attention_mode not in ("cross_attn", "self_attn"):
            raise ConfigError(f"attention_mode='{self.attention_mode}': expected cross_attn or self_attn.")
        if self.pad_language_to not in ("longest", "max_length"):
            raise ConfigError(f"pad_language_to='{self.pad_language_to}': expected longest or max_length.")
        if (
            self.num_expert_layers > 0
            and self.num_vlm_layers > 0
            and self.num_vlm_layers % self.num_expert_layers
        ):
            raise ConfigError(
                f"num_expert_layers={self.num_expert_layers} does not divide num_vlm_layers={self.num_vlm_layers}: each "
                "expert layer reads one of equally many VLM layers. Change --policy.num_expert_layers."
            )
        if self.resize_imgs_with_padding is not None and min(self.resize_imgs_with_padding) < 1:
            raise ConfigError(
                f"resize_imgs_with_padding={self.resize_imgs_with_padding}: expected (width, height)."
            )
        if self.expert_width_multiplier <= 0 or not 0 < self.min_period < self.max_period:
            raise ConfigError(
                f"expert_width_multiplier={self.expert_width_multiplier}, min_period={self.min_period}, "
                f"max_period={self.max_period}: expected a positive width and 0 < min_period < max_period."
            )
        if self.rtc_config is not None and self.rtc_config.get("enabled"):
            raise ConfigError(
                "rtc_config.enabled is true, but this version does not do real-time chunking. "
                "Set --policy.rtc_config=null."
            )
        self.normalization_mapping = {
            kind: NormalizationMode(mode) for kind, mode in self.normalization_mapping.items()
        }

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """The cameras, and after them `empty_cameras` more that are masked."""
        empty = {
            f"{IMAGES}.empty_camera_{index}": PolicyFeature(FeatureType.VISUAL, (3, 480, 640))
            for index in range(self.empty_cameras)
        }
        return {**super().image_features, **{k: v for k, v in empty.items() if k not in self.input_features}}
