"""The sizes of a SmolVLM, as in its `config.json`. No torch here: commands import this for `--help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from smolact.errors import ConfigError

MAX_LAYERS, MAX_SIZE = 1000, 2**22
"""Upper bounds for a `config.json`; the largest SmolVLM has 32 layers and a vocabulary of 49280."""


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower (SigLIP). Defaults are those of transformers, for files that leave a field out."""

    hidden_size: int = 1152
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 16
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check(self, "vision_config")
        if self.hidden_act != "gelu_pytorch_tanh":
            raise ConfigError(
                f"vision_config.hidden_act is '{self.hidden_act}'; SmolVLM's vision tower uses 'gelu_pytorch_tanh'."
            )
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"vision_config.hidden_size={self.hidden_size} does not divide by "
                f"num_attention_heads={self.num_attention_heads}."
            )


@dataclass(frozen=True)
class TextConfig:
    """The language model (SmolLM2, a Llama)."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    vocab_size: int = 32000
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        _check(self, "text_config")
        if self.hidden_act != "silu":
            raise ConfigError(
                f"text_config.hidden_act is '{self.hidden_act}'; SmolVLM's text model uses 'silu'."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"text_config.num_attention_heads={self.num_attention_heads} does not divide by "
                f"num_key_value_heads={self.num_key_value_heads}."
            )
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)


@dataclass(frozen=True)
class SmolVLMConfig:
    """A whole SmolVLM: vision tower, connector (pixel shuffle by `scale_factor`), text model."""

    vision_config: VisionConfig
    text_config: TextConfig
    scale_factor: int = 2
    image_token_id: int = 128257
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        _check(self, "config")

    @property
    def image_tokens(self) -> int:
        """The number of tokens of a square image of the tower's own size."""
        return (self.vision_config.image_size // self.vision_config.patch_size) ** 2 // self.scale_factor**2

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SmolVLMConfig:
        """Read a `config.json` of transformers, of any version; fields that are not needed here are ignored.

        Raises:
            ConfigError: it is not a SmolVLM, or uses an option that SmolVLM does not.
        """
        kind = data.get("model_type")
        if kind not in ("smolvlm", "idefics3"):
            raise ConfigError(f"The VLM's config.json says model_type={kind!r}; expected 'smolvlm'.")
        text, vision = _section(data, "text_config"), _section(data, "vision_config")
        rope = _section(text, "rope_parameters") or _section(text, "rope_scaling")
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ConfigError(
                f"The VLM's text_config asks for rope_type={rope.get('rope_type')!r}; expected 'default'."
            )
        if "rope_theta" in rope:  # transformers 5 moved it
            text["rope_theta"] = rope["rope_theta"]
        text.setdefault(
            "num_key_value_heads", text.get("num_attention_heads", TextConfig.num_attention_heads)
        )
        return cls(
            vision_config=_known(VisionConfig, vision),
            text_config=_known(TextConfig, text),
            **{
                name: data[name]
                for name in ("scale_factor", "image_token_id", "tie_word_embeddings")
                if name in data
            },
        )


T = TypeVar("T")


def _section(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = data.get(name) or {}
    if not isinstance(found, Mapping):
        raise ConfigError(f"The VLM's config.json: {name} is {found!r:.100}, expected an object.")
    return dict(found)


def _check(config: Any, section: str) -> None:
    """Raise a `ConfigError` if a field of a dataclass has another type than its default, or an impossible size."""
    for item in fields(config):
        value, kind = getattr(config, item.name), type(item.default)
        if kind not in (bool, int, float, str):
            continue
        valid = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        valid = valid or (kind is float and type(value) is int)
        if valid and kind in (int, float):
            least = 0 if kind is float or item.name in ("head_dim", "image_token_id") else 1
            most = MAX_LAYERS if item.name == "num_hidden_layers" else MAX_SIZE if kind is int else 1e12
            valid = least <= value <= most  # not a NaN
            expected = f"a number from {least} to {most:g}"
        else:
            expected = {bool: "true or false", str: "text"}.get(kind, "a number")
        if not valid:
            raise ConfigError(
                f"The VLM's config.json: {section}.{item.name} is {value!r:.100}, expected {expected}."
            )


def _known(cls: type[T], data: Mapping[str, Any]) -> T:
    names = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in data.items() if name in names and value is not None})
