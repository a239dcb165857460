"""SmolAndFAST's settings, with its authors' defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from smolact.errors import ConfigError
from smolact.policies.vlm_configuration import VLMConfig
from smolact.settings import setting
from smolact.types import NormalizationMode

_BOUNDED_MODES = (NormalizationMode.MIN_MAX, NormalizationMode.QUANTILES, NormalizationMode.QUANTILE10)
SCHEMES = ("fast", "bins", "text")
MAX_LEVELS = 9999
PRECISIONS = ("float32", "bfloat16", "float16")


def _default_normalization() -> dict[str, NormalizationMode]:
    return {
        "VISUAL": NormalizationMode.IDENTITY,
        "STATE": NormalizationMode.MIN_MAX,
        "ACTION": NormalizationMode.MIN_MAX,
    }


@dataclass
class SMOLANDFASTConfig(VLMConfig):
    """SmolAndFAST's settings; names and defaults as in the authors' code.

    Raises:
        ConfigError: settings are invalid together; the message names the flag to change.
    """

    type: ClassVar[str] = "smolandfast"
    policy_class: ClassVar[str] = "smolact.policies.smolandfast.modeling_smolandfast:SMOLANDFASTPolicy"
    title: ClassVar[str] = "SmolAndFAST"
    vlm_field: ClassVar[str] = "vlm_checkpoint"
    clip_field: ClassVar[str] = "grad_clip_norm"
    freezes: ClassVar[Mapping[str, bool]] = {"freeze_vision_encoder": True, "freeze_connector": True}
    in_steps: ClassVar[Mapping[str, tuple[str, str]]] = {
        name: ("smolandfast_prompt_processor", name) for name in ("n_state_bins", "max_input_seq_len")
    }

    chunk_size: int = setting(10, "actions that are predicted at once", least=1, most=10_000)
    n_action_steps: int = setting(
        5, "actions that are executed before the next prediction", least=1, most=10_000
    )
    normalization_mapping: dict[str, NormalizationMode] = setting(
        _default_normalization, "how each type of feature is normalized; state and action to [-1, 1]"
    )

    action_tokens: str = setting("fast", "how actions are written: fast, bins or text", own=True)
    n_action_bins: int = setting(
        256, "with bins: how many there are over [-1, 1]", own=True, least=2, most=2**16
    )
    n_action_levels: int = setting(
        1000, "with text: the largest number that is written", own=True, least=1, most=MAX_LEVELS
    )
    n_state_bins: int = setting(256, "numbers that a state value is written as", least=1, most=2**16)
    fast_tokenizer_path: str = setting(
        "physical-intelligence/fast", "the FAST tokenizer: a folder (smolact train-tokenizer) or a Hub id"
    )
    fast_skip_tokens: int = setting(
        280, "the vocabulary's last tokens, which actions do not use", least=0, most=2**20
    )
    max_decoding_steps: int = setting(512, "tokens of an answer at most", least=1, most=10**5)
    max_input_seq_len: int = setting(1536, "tokens of prompt and answer at most", least=1, most=10**5)
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
    scale_factor: int = setting(
        1, "patches of an image, on a side, that become one token: 4, 2 or 1", least=1, most=64
    )
    do_image_splitting: bool = setting(False, "show tiles of each image too, as SmolVLM does")
    crop_shape: tuple[int, int] | None = setting(
        None,
        "(height, width) cut out of each image: anywhere in training, from the middle afterwards",
        least=1,
        most=2**14,
    )
    drop_n_last_frames: int = setting(
        0, "leave out so many frames at the end of each episode in training", least=0, most=10**6
    )

    freeze_vision_encoder: bool = setting(True, "do not train the vision tower")
    freeze_connector: bool = setting(False, "do not train the connector")

    vision_model_optimizer_lr: float = setting(
        2e-5, "peak learning rate of the vision tower", least=0, most=3e38
    )
    connector_optimizer_lr: float = setting(2e-4, "peak learning rate of the connector", least=0, most=3e38)
    text_model_optimizer_lr: float = setting(2e-4, "peak learning rate of the text model", least=0, most=3e38)
    optimizer_lr: float = setting(2e-4, "peak learning rate of everything else", least=0, most=3e38)
    optimizer_betas: tuple[float, float] = setting((0.9, 0.95), "AdamW's betas", least=0, most=1)
    optimizer_eps: float = setting(1e-8, "AdamW's epsilon", least=0, most=1)
    optimizer_weight_decay: float = setting(0.01, "AdamW's weight decay", least=0, most=3e38)
    grad_clip_norm: float = setting(1.0, "largest norm of the gradient", least=0)
    scheduler_warmup_steps: int = setting(1_000, "steps of linear warm-up", least=0, most=10**9)
    scheduler_decay_steps: int = setting(
        30_000, "steps until the final rate; follows --steps unless it is set", least=0, most=10**9
    )
    scheduler_decay_lr: float = setting(2.5e-6, "final learning rate", least=0, most=3e38)

    def processor_settings(self, changed: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return the changed processor settings, with the cameras for the prompt step."""
        settings = super().processor_settings(changed)
        if "input_features" in changed:
            settings.setdefault("smolandfast_prompt_processor", {})["cameras"] = tuple(self.image_features)
        return settings

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action_tokens not in SCHEMES:
            raise ConfigError(
                f"action_tokens='{self.action_tokens}': expected one of {', '.join(SCHEMES)}. Set --policy.action_tokens."
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision='{self.precision}': expected one of {', '.join(PRECISIONS)}. Set --policy.precision."
            )
        for kind in ("STATE", "ACTION"):
            mode = self.normalization_mapping.get(kind, NormalizationMode.IDENTITY)
            if mode not in _BOUNDED_MODES:
                raise ConfigError(
                    f"normalization_mapping: {kind} is {mode.value}, and SmolAndFAST writes numbers in [-1, 1]: use MIN_MAX or "
                    "QUANTILES (--policy.normalization_mapping)."
                )
