"""What one can set on SmolAndFAST, with the defaults of its authors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from smolact.errors import ConfigError
from smolact.policies.common.chunk_settings import ChunkSettings
from smolact.policies.configuration import PolicyConfig
from smolact.settings import setting
from smolact.types import NormalizationMode

_BOUNDED = (NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10)
SCHEMES = ("fast", "bins", "text")
MOST_LEVELS = 9999
PRECISIONS = ("float32", "bfloat16", "float16")


def _default_normalization() -> dict[str, NormalizationMode]:
    return {
        "VISUAL": NormalizationMode.IDENTITY,
        "STATE": NormalizationMode.MIN_MAX,
        "ACTION": NormalizationMode.MIN_MAX,
    }


@dataclass
class SMOLANDFASTConfig(ChunkSettings, PolicyConfig):
    """SmolAndFAST's settings; names and defaults as in the authors' code.

    Raises:
        ConfigError: a combination that can't work, with the flag that settles it.
    """

    type: ClassVar[str] = "smolandfast"
    vlm_field: ClassVar[str] = "vlm_checkpoint"
    clip_field: ClassVar[str] = "grad_clip_norm"
    freezes: ClassVar[Mapping[str, bool]] = {"freeze_vision_encoder": True, "freeze_connector": True}

    chunk_size: int = setting(10, "actions that are predicted at once")
    n_action_steps: int = setting(5, "actions that are executed before the next prediction")
    normalization_mapping: dict[str, NormalizationMode] = setting(
        _default_normalization, "how each type of feature is normalized; state and action to [-1, 1]"
    )

    action_tokens: str = setting("fast", "how actions are written: fast, bins or text", own=True)
    n_action_bins: int = setting(256, "with bins: how many there are over [-1, 1]", own=True)
    n_action_levels: int = setting(1000, "with text: the largest number that is written", own=True)
    n_state_bins: int = setting(256, "numbers that a state value is written as")
    fast_tokenizer_path: str = setting(
        "physical-intelligence/fast", "the FAST tokenizer: a folder (smolact train-tokenizer) or a Hub id"
    )
    fast_skip_tokens: int = setting(280, "the vocabulary's last tokens, which actions do not use")
    max_decoding_steps: int = setting(512, "tokens of an answer at most")
    max_input_seq_len: int = setting(1536, "tokens of prompt and answer at most")
    use_cache: bool = setting(True, "keep keys and values of what was written")
    relaxed_action_decoding: bool = setting(
        True, "kept for the authors' files; every answer is a whole chunk here"
    )

    vlm_checkpoint: str = setting(
        "HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        "the VLM: a Hub id, a folder, or a preset (tiny, small, …)",
    )
    checkpoint_path: str | None = setting(None, "kept for the authors' files; not used")
    precision: str = setting("float32", f"of the weights: {', '.join(PRECISIONS)}")
    scale_factor: int = setting(1, "patches of an image, on a side, that become one token: 4, 2 or 1")
    do_image_splitting: bool = setting(False, "show tiles of each image too, as SmolVLM does")
    crop_shape: tuple[int, int] | None = setting(
        None, "(height, width) cut out of each image: anywhere in training, from the middle afterwards"
    )
    drop_n_last_frames: int = setting(0, "leave out so many frames at the end of each episode in training")

    freeze_vision_encoder: bool = setting(True, "do not train the vision tower")
    freeze_connector: bool = setting(False, "do not train the connector")

    vision_model_optimizer_lr: float = setting(2e-5, "peak learning rate of the vision tower")
    connector_optimizer_lr: float = setting(2e-4, "peak learning rate of the connector")
    text_model_optimizer_lr: float = setting(2e-4, "peak learning rate of the text model")
    optimizer_lr: float = setting(2e-4, "peak learning rate of everything else")
    optimizer_betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's betas")
    optimizer_eps: float = setting(1e-8, "AdamW's epsilon")
    optimizer_weight_decay: float = setting(0.01, "AdamW's weight decay")
    grad_clip_norm: float = setting(1.0, "largest norm of the gradient")
    scheduler_warmup_steps: int = setting(1_000, "steps of linear warm-up")
    scheduler_decay_steps: int = setting(
        30_000, "steps until the final rate; follows --steps unless it is set"
    )
    scheduler_decay_lr: float = setting(2.5e-6, "final learning rate")

    def __post_init__(self) -> None:
        if self.n_obs_steps != 1:
            raise ConfigError(
                f"n_obs_steps={self.n_obs_steps}: SmolAndFAST sees one observation. Leave --policy.n_obs_steps at 1."
            )
        for name in (
            "chunk_size",
            "n_action_steps",
            "n_state_bins",
            "max_decoding_steps",
            "max_input_seq_len",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: expected at least 1. Raise --policy.{name}."
                )
        if self.n_action_steps > self.chunk_size:
            raise ConfigError(
                f"n_action_steps={self.n_action_steps} is more than chunk_size={self.chunk_size}: a chunk can't supply "
                "more actions than it holds. Lower --policy.n_action_steps."
            )
        for name in ("fast_skip_tokens", "drop_n_last_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected 0 or more. Set --policy.{name}.")
        if self.action_tokens not in SCHEMES:
            raise ConfigError(f"action_tokens='{self.action_tokens}': expected one of {', '.join(SCHEMES)}.")
        if self.n_action_bins < 2 or not 1 <= self.n_action_levels <= MOST_LEVELS:
            raise ConfigError(
                f"n_action_bins={self.n_action_bins}, n_action_levels={self.n_action_levels}: expected 2 or more bins, and 1 to "
                f"{MOST_LEVELS} levels."
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision='{self.precision}': expected one of {', '.join(PRECISIONS)}.")
        if self.scale_factor < 1:
            raise ConfigError(f"scale_factor={self.scale_factor}: expected 4, 2 or 1.")
        if self.crop_shape is not None and min(self.crop_shape) < 1:
            raise ConfigError(f"crop_shape={self.crop_shape}: expected (height, width).")
        self.normalization_mapping = {
            kind: NormalizationMode(mode) for kind, mode in self.normalization_mapping.items()
        }
        for kind in ("STATE", "ACTION"):
            mode = self.normalization_mapping.get(kind, NormalizationMode.IDENTITY)
            if mode not in _BOUNDED:
                raise ConfigError(
                    f"normalization_mapping: {kind} is {mode.value}, and SmolAndFAST writes numbers in [-1, 1]: use MIN_MAX or "
                    "QUANTILES (--policy.normalization_mapping)."
                )
