"""SmolVLA's settings, with its authors' defaults."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from smolact import unsupported
from smolact.errors import ConfigError
from smolact.policies.vlm_configuration import VLMConfig
from smolact.settings import setting
from smolact.types import IMAGES, FeatureType, PolicyFeature

logger = logging.getLogger(__name__)

ATTENTION_MODES = ("cross_attn", "self_attn")


@dataclass
class SmolVLAConfig(VLMConfig):
    """SmolVLA's settings; names and defaults as in LeRobot (arXiv 2506.01844).

    Raises:
        ConfigError: settings are invalid together; the message names the flag to change.
    """

    UNSUPPORTED: ClassVar = unsupported.RTC_CONFIG

    type: ClassVar[str] = "smolvla"
    policy_class: ClassVar[str] = "smolact.policies.smolvla.modeling_smolvla:SmolVLAPolicy"
    title: ClassVar[str] = "SmolVLA"
    freezes: ClassVar[Mapping[str, bool]] = {
        "freeze_vision_encoder": True,
        "train_expert_only": True,
        "train_state_proj": False,
    }
    in_steps: ClassVar[Mapping[str, tuple[str, str]]] = {
        "tokenizer_max_length": ("tokenizer_processor", "max_length"),
        "pad_language_to": ("tokenizer_processor", "padding"),
    }

    chunk_size: int = setting(50, "actions that are predicted at once", least=1, most=10_000)
    n_action_steps: int = setting(
        50, "actions that are executed before the next prediction", least=1, most=10_000
    )

    max_state_dim: int = setting(32, "state values; a shorter state is padded with zeros", least=1, most=4096)
    max_action_dim: int = setting(
        32, "action values; a shorter action is padded with zeros", least=1, most=4096
    )
    resize_imgs_with_padding: tuple[int, int] | None = setting(
        (512, 512),
        "(width, height) that images are fitted into; null leaves them as they are",
        least=1,
        most=4096,
    )
    empty_cameras: int = setting(
        0, "cameras of the base model that are missing here and shown as masked black", least=0, most=32
    )
    adapt_to_pi_aloha: bool = setting(False, "convert Aloha joints to those of the pi runtime")
    use_delta_joint_actions_aloha: bool = setting(False, "not supported, here or in LeRobot")
    tokenizer_max_length: int = setting(
        48, "tokens of an instruction; a longer one is cut", least=1, most=4096
    )
    num_steps: int = setting(10, "Euler steps from noise to actions", least=1, most=1000)
    use_cache: bool = setting(True, "compute the prefix once a chunk, not once a step")

    freeze_vision_encoder: bool = setting(True, "do not train the vision tower")
    train_expert_only: bool = setting(True, "do not train the VLM")
    train_state_proj: bool = setting(True, "train the projection of the state")

    optimizer_lr: float = setting(1e-4, "peak learning rate", least=0, most=3e38)
    optimizer_betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's betas", least=0, most=1)
    optimizer_eps: float = setting(1e-8, "AdamW's epsilon", least=0, most=1)
    optimizer_weight_decay: float = setting(1e-10, "AdamW's weight decay", least=0, most=3e38)
    optimizer_grad_clip_norm: float = setting(10.0, "largest norm of the gradient", least=0)
    scheduler_warmup_steps: int = setting(1_000, "steps of linear warm-up", least=0, most=10**9)
    scheduler_decay_steps: int = setting(
        30_000, "steps until the final rate; follows --steps unless it is set", least=0, most=10**9
    )
    scheduler_decay_lr: float = setting(2.5e-6, "final learning rate", least=0, most=3e38)

    vlm_model_name: str = setting(
        "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
        "the VLM: a Hub id, a folder, or a preset (tiny, small, …)",
    )
    load_vlm_weights: bool = setting(False, "begin from the VLM's weights")
    add_image_special_tokens: bool = setting(False, "put SmolVLM's image tokens around each camera")
    attention_mode: str = setting("cross_attn", "how the expert reads the VLM: cross_attn or self_attn")
    prefix_length: int = setting(
        -1, "pad images, text and state to this many tokens; -1 or 0 does not", most=10**5
    )
    pad_language_to: str = setting("longest", "pad instructions to the batch's longest, or to max_length")
    num_expert_layers: int = setting(-1, "layers of the expert; -1 or 0 is as many as the VLM's", most=1000)
    num_vlm_layers: int = setting(
        16,
        "the VLM's first layers that are used; -1 or 0 uses all, as does a number above what it has",
        most=1000,
    )
    self_attn_every_n_layers: int = setting(
        2, "in cross_attn mode, every n-th layer is self-attention", most=1000
    )
    expert_width_multiplier: float = setting(
        0.75, "width of the expert over that of the VLM", least=1e-6, most=16
    )
    min_period: float = setting(4e-3, "shortest period of the time embedding", least=1e-9, most=1e9)
    max_period: float = setting(4.0, "longest period of the time embedding", least=1e-9, most=1e9)
    rtc_config: dict[str, Any] | None = setting(
        None,
        "real-time chunking, as LeRobot stores it; kept, not used (see --inference.type=rtc of `smolact rollout`)",
    )
    relative_step: float = setting(
        0.0,
        "above 0: learn the chunk's action k as (action - state) / ((k + 1) * relative_step), all of them normalized; for "
        "actions that are positions of what the state tells",
        own=True,
        least=0,
        most=1e6,
    )
    compile_model: bool = setting(False, "torch.compile")
    compile_mode: str = setting("max-autotune", "its mode")

    @classmethod
    def accepted(cls, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return the file's values, with `attention_mode` as the reference reads it; log that `rtc_config` has no effect."""
        values = super().accepted(values, source)
        rtc = values.get("rtc_config")
        if isinstance(rtc, Mapping) and rtc.get("enabled"):
            logger.info(
                "%s: rtc_config.enabled is kept and has no effect here: `smolact rollout --inference.type=rtc` chunks in "
                "real time.",
                source,
            )
        mode = values.get("attention_mode")
        if isinstance(mode, str) and mode not in ATTENTION_MODES:  # the reference looks for "cross" in it
            values["attention_mode"] = ATTENTION_MODES["cross" not in mode]
            logger.warning("%s: attention_mode=%r is %s.", source, mode, values["attention_mode"])
        return values

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_delta_joint_actions_aloha:
            raise ConfigError(
                "use_delta_joint_actions_aloha=true is not supported (nor is it in LeRobot). "
                "Set --policy.use_delta_joint_actions_aloha=false."
            )
        if self.attention_mode not in ATTENTION_MODES:
            raise ConfigError(
                f"attention_mode='{self.attention_mode}': expected {' or '.join(ATTENTION_MODES)}. "
                "Set --policy.attention_mode."
            )
        if self.pad_language_to not in ("longest", "max_length"):
            raise ConfigError(
                f"pad_language_to='{self.pad_language_to}': expected longest or max_length. Set --policy.pad_language_to."
            )
        if (
            self.num_expert_layers > 0
            and self.num_vlm_layers > 0
            and self.num_vlm_layers % self.num_expert_layers
        ):
            raise ConfigError(
                f"num_expert_layers={self.num_expert_layers} does not divide num_vlm_layers={self.num_vlm_layers}: each "
                "expert layer reads one of equally many VLM layers. Change --policy.num_expert_layers."
            )
        if self.min_period >= self.max_period:
            raise ConfigError(
                f"min_period={self.min_period}, max_period={self.max_period}: the first must be the smaller one. Set "
                "--policy.min_period and --policy.max_period."
            )

    @property
    def image_features(self) -> dict[str, PolicyFeature]:
        """The cameras, followed by `empty_cameras` masked ones."""
        empty = {
            f"{IMAGES}.empty_camera_{index}": PolicyFeature(FeatureType.VISUAL, (3, 480, 640))
            for index in range(self.empty_cameras)
        }
        return {**super().image_features, **{k: v for k, v in empty.items() if k not in self.input_features}}
