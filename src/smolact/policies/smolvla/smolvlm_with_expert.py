"""A SmolVLM for images, instruction and state, and a narrow expert for actions.

Distinctive:
- the VLM's first `num_vlm_layers` layers are run over the prefix once; layer by layer the expert attends to their keys and
  values, which is the only connection of the two networks;
- in `cross_attn` mode an expert layer attends to the prefix only, through key and value projections of its own; every
  `self_attn_every_n_layers`-th layer, and in `self_attn` mode each one, attends to the prefix and to the action tokens;
- no prefix token ever attends to an action token: the prefix is finished before the expert begins, in training too.

Parameter names are LeRobot's. Source: Shukor et al. 2025, "SmolVLA", arXiv 2506.01844, section 3.
"""

# B batch, P prefix tokens, S suffix (action) tokens, D width of the VLM, E width of the expert, K key/value heads, H head width.

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from smolact.backbones.config import SmolVLMConfig, TextConfig
from smolact.backbones.layers import (
    ActivationCheckpointing,
    DecoderLayer,
    RMSNorm,
    attend,
    rotary_tables,
    rotate,
)
from smolact.backbones.smolvlm import KeyValues, SmolVLM, make_decoder_layer
from smolact.errors import ConfigError

ROTARY_BASE = 10_000.0
"""SmolVLA's base of rotary embeddings, for VLMs trained with any other base too."""

Rotary = tuple[Tensor, Tensor]


def expert_hidden_width(width: int, multiple_of: int = 256) -> int:
    """The width of the expert's MLP: 8/3 of its own, rounded up to a multiple of 256 (as Llama sizes it)."""
    hidden = int(4 * int(2 * width / 3))
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


class ActionExpert(nn.Module):
    """The action expert: decoder layers of its own width, and a final norm. `cross` marks cross-attention layers."""

    def __init__(self, config: TextConfig, cross: list[bool], vlm_key_value_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            make_decoder_layer(config, vlm_key_value_width if reads else None) for reads in cross
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class SmolVLMWithExpertModel(ActivationCheckpointing):
    """The VLM, the expert, and the expert's attention to the VLM.

    Raises:
        ConfigError: the expert's layers do not divide the VLM's.
    """

    def __init__(
        self,
        config: SmolVLMConfig,
        *,
        train_expert_only: bool = True,
        freeze_vision_encoder: bool = True,
        attention_mode: str = "cross_attn",
        num_expert_layers: int = -1,
        num_vlm_layers: int = 16,
        self_attn_every_n_layers: int = 2,
        expert_width_multiplier: float = 0.75,
    ) -> None:
        super().__init__()
        self.config = config
        self.train_expert_only = train_expert_only
        self.freeze_vision_encoder = freeze_vision_encoder
        self.vlm = SmolVLM(config, num_vlm_layers if num_vlm_layers > 0 else None)
        self.num_vlm_layers = len(self.vlm.model.text_model.layers)
        self.num_expert_layers = num_expert_layers if num_expert_layers > 0 else self.num_vlm_layers
        if self.num_vlm_layers % self.num_expert_layers:
            raise ConfigError(
                f"num_expert_layers={self.num_expert_layers} does not divide the {self.num_vlm_layers} layers of the "
                "VLM that are used. Change --policy.num_expert_layers or --policy.num_vlm_layers."
            )
        # Expert layer i belongs to VLM layer read_layers[i], and its kind follows from that layer's number.
        step = self.num_vlm_layers // self.num_expert_layers
        self.read_layers = [index * step for index in range(self.num_expert_layers)]
        every = self_attn_every_n_layers
        self.cross = [
            attention_mode == "cross_attn" and not (every > 0 and layer % every == 0)
            for layer in self.read_layers
        ]

        text = config.text_config
        self.expert_hidden_size = int(text.hidden_size * expert_width_multiplier)
        if self.expert_hidden_size < 2 or self.expert_hidden_size % 2:
            raise ConfigError(
                f"expert_width_multiplier={expert_width_multiplier} makes an expert of width {self.expert_hidden_size} beside "
                f"a VLM of {text.hidden_size}: its time embedding needs an even width. Change "
                "--policy.expert_width_multiplier."
            )
        expert = dataclasses.replace(
            text,
            hidden_size=self.expert_hidden_size,
            intermediate_size=expert_hidden_width(self.expert_hidden_size),
        )
        self.lm_expert = ActionExpert(expert, self.cross, text.num_key_value_heads * text.head_dim)
        self.set_requires_grad()

    def set_requires_grad(self) -> None:
        """Freeze the parts that the settings name, and those without a gradient: the output layer and the last VLM layers.

        Of the last VLM layer that the expert reads, only keys and values are used; the reference freezes all of it.
        """
        if self.train_expert_only:
            self.vlm.requires_grad_(False)
        if self.freeze_vision_encoder:
            self.vlm.model.vision_model.requires_grad_(False)
        text_model = self.vlm.model.text_model
        self.vlm.lm_head.requires_grad_(False)
        text_model.norm.requires_grad_(False)
        for layer in list(text_model.layers)[self.read_layers[-1] :]:
            layer.requires_grad_(False)

    def embed_image(self, image: Tensor) -> Tensor:
        """Embed images (B, 3, h, w) in [−1, 1] as tokens (B, T, D)."""
        return self.vlm.model.embed_images(image)

    def embed_language_tokens(self, tokens: Tensor) -> Tensor:
        """Embed token ids (B, L) as embeddings (B, L, D)."""
        embeds: Tensor = self.vlm.model.text_model.embed_tokens(tokens)
        return embeds

    def forward_attn_layer(
        self, layer: DecoderLayer, hidden: Tensor, rotary: Rotary, mask: Tensor, past: KeyValues | None = None
    ) -> Tensor:
        """Apply self-attention over `past` keys and values and the tokens' own to `hidden` (B, L, width)."""
        return _self_attention(layer, hidden, rotary, mask, past, attends=True)[0]

    def forward_cross_attn_layer(
        self, layer: DecoderLayer, hidden: Tensor, rotary: Rotary, mask: Tensor, key_values: KeyValues
    ) -> Tensor:
        """Apply attention over the prefix's keys and values only to `hidden` (B, S, E)."""
        queries = rotate(layer.queries(layer.input_layernorm(hidden)), *rotary)
        return layer.output_and_mlp(hidden, attend(queries, *key_values, mask))

    def forward_prefix(
        self, prefix: Tensor, mask: Tensor, positions: Tensor, context: int = 0
    ) -> list[KeyValues]:
        """Run the VLM over the prefix (B, P, D) and return each expert layer's keys and values of it, (B, K, P, H) each.

        For a cross-attention layer they have passed the expert's own projections: they are the same at every denoising
        step, so they are computed once.

        Args:
            prefix, mask, positions: see `forward`.
            context: the number of leading tokens that need no gradient and do not attend to the others. While the VLM is
                frozen, the backward pass is limited to the rest: the state, one token of a hundred and more.
        """
        if context and torch.is_grad_enabled() and not any(w.requires_grad for w in self.vlm.parameters()):
            with torch.no_grad():
                past = self._run_vlm(prefix[:, :context], mask[:, :context, :context], positions[:, :context])
            key_values = self._run_vlm(prefix[:, context:], mask[:, context:], positions[:, context:], past)
        else:
            key_values = self._run_vlm(prefix, mask, positions)
        return [self._project_for_expert(i, *key_values[layer]) for i, layer in enumerate(self.read_layers)]

    def _run_vlm(
        self, hidden: Tensor, mask: Tensor, positions: Tensor, past: list[KeyValues] | None = None
    ) -> list[KeyValues]:
        """Return each layer's keys and values of the `past` tokens and of the `hidden` ones (B, L, D), which attend to both."""
        rotary = rotary_tables(positions, self.config.text_config.head_dim, ROTARY_BASE)
        key_values: list[KeyValues] = []
        last = self.read_layers[-1]
        layers = self.vlm.model.text_model.layers
        for index in range(last + 1):
            layer = layers[index]
            assert isinstance(layer, DecoderLayer)
            layer_past, attends = None if past is None else past[index], index < last
            hidden, keys, values = self.checkpointed_call(
                _self_attention, layer, hidden, rotary, mask, layer_past, attends
            )
            key_values.append((keys, values))
        return key_values

    def forward_suffix(
        self, suffix: Tensor, mask: Tensor, positions: Tensor, cache: list[KeyValues]
    ) -> Tensor:
        """Run the expert over the action tokens (B, S, E); `mask` (B, S, P + S) is true where they may attend."""
        head_width = self.config.text_config.head_dim
        rotary = rotary_tables(positions, head_width, ROTARY_BASE)
        # In cross-attention layers the expert's positions count from 0.
        cross_rotary = rotary_tables(positions - positions[:, :1], head_width, ROTARY_BASE)
        cross_mask = mask[:, :, : cache[0][0].shape[2]]
        hidden = suffix
        for layer, crosses, past in zip(self.lm_expert.layers, self.cross, cache, strict=True):
            assert isinstance(layer, DecoderLayer)
            if crosses:
                inputs = layer, hidden, cross_rotary, cross_mask, past
                hidden = self.checkpointed_call(self.forward_cross_attn_layer, *inputs)
            else:
                hidden = self.checkpointed_call(self.forward_attn_layer, layer, hidden, rotary, mask, past)
        normed: Tensor = self.lm_expert.norm(hidden)
        return normed

    def forward(
        self, prefix: Tensor, suffix: Tensor, mask: Tensor, positions: Tensor, context: int = 0
    ) -> Tensor:
        """Run prefix (B, P, D) and action tokens (B * N, S, E) and return the expert's output (B * N, S, E).

        Args:
            prefix: embedded images, instruction and state.
            suffix: embedded noisy actions and time: N draws for each sample, one behind the other.
            mask: (B, P + S, P + S), true where a token may attend.
            positions: (B, P + S).
            context: see `forward_prefix`.
        """
        length, draws = prefix.shape[1], len(suffix) // len(prefix)
        cache = self.forward_prefix(prefix, mask[:, :length, :length], positions[:, :length], context)
        mask, positions = mask[:, length:], positions[:, length:]
        if draws > 1:
            mask, positions = mask.repeat_interleave(draws, 0), positions.repeat_interleave(draws, 0)
            cache = [
                (keys.repeat_interleave(draws, 0), values.repeat_interleave(draws, 0))
                for keys, values in cache
            ]
        return self.forward_suffix(suffix, mask, positions, cache)

    def _project_for_expert(self, index: int, keys: Tensor, values: Tensor) -> KeyValues:
        if not self.cross[index]:
            return keys, values
        layer = self.lm_expert.layers[index]
        assert isinstance(layer, DecoderLayer)
        # (B, K, P, H) -> (B, P, K * H): the VLM's keys and values are inputs of the expert's projections.
        return layer.keys(keys.transpose(1, 2).flatten(2)), layer.values(values.transpose(1, 2).flatten(2))


def _self_attention(
    layer: DecoderLayer, hidden: Tensor, rotary: Rotary, mask: Tensor, past: KeyValues | None, attends: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a self-attention layer's hidden states, and its keys and values behind those of `past` tokens.

    Of the last layer only keys and values are used: without `attends`, `hidden` is returned unchanged.
    """
    normed = layer.input_layernorm(hidden)
    keys, values = rotate(layer.keys(normed), *rotary), layer.values(normed)
    if past is not None:
        keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
    if attends:
        queries = rotate(layer.queries(normed), *rotary)
        hidden = layer.output_and_mlp(hidden, attend(queries, keys, values, mask))
    return hidden, keys, values
