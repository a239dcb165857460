"""A SmolVLM that reads images, instruction and state, and a narrow expert beside it that writes actions.

What is distinctive:
- the VLM's first `num_vlm_layers` layers are run over the prefix once; layer for layer the expert reads their keys and
  values, so that the two networks meet inside attention and nowhere else;
- in `cross_attn` mode an expert layer looks at the prefix only, through key and value projections of its own; every
  `self_attn_every_n_layers`-th layer, and in `self_attn` mode each one, looks at the prefix and at the action tokens;
- no prefix token ever looks at an action token: the prefix is finished before the expert begins, in training too.

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
"""SmolVLA rotates with this base whatever the VLM was trained with."""

Rotary = tuple[Tensor, Tensor]


def expert_hidden_width(width: int, multiple_of: int = 256) -> int:
    """The width of the expert's MLP: 8/3 of its own, rounded up to a multiple of 256 (as Llama sizes it)."""
    hidden = int(4 * int(2 * width / 3))
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


class ActionExpert(nn.Module):
    """The action expert: decoder layers of its own width, and a final norm. `cross` says which layers read from afar."""

    def __init__(self, config: TextConfig, cross: list[bool], vlm_key_value_width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            make_decoder_layer(config, vlm_key_value_width if reads else None) for reads in cross
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class SmolVLMWithExpertModel(ActivationCheckpointing):
    """The VLM and the expert, and how the one reads the other.

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
        """Freeze what the settings say, and what no gradient reaches: the output layer and the last VLM layers.

        Of the last VLM layer that the expert reads, only keys and values are used; the reference freezes it whole.
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
        """Images (B, 3, h, w) in [−1, 1] to tokens (B, T, D)."""
        return self.vlm.model.embed_images(image)

    def embed_language_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids (B, L) to embeddings (B, L, D)."""
        embeds: Tensor = self.vlm.model.text_model.embed_tokens(tokens)
        return embeds

    def forward_attn_layer(
        self, layer: DecoderLayer, hidden: Tensor, rotary: Rotary, mask: Tensor, past: KeyValues | None = None
    ) -> Tensor:
        """Self-attention over `past` keys and values and the tokens' own; (B, L, width) to the same."""
        normed = layer.input_layernorm(hidden)
        keys, values = rotate(layer.keys(normed), *rotary), layer.values(normed)
        if past is not None:
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        return layer.output_and_mlp(
            hidden, attend(rotate(layer.queries(normed), *rotary), keys, values, mask)
        )

    def forward_cross_attn_layer(
        self, layer: DecoderLayer, hidden: Tensor, rotary: Rotary, mask: Tensor, read: KeyValues
    ) -> Tensor:
        """Attention over what was read of the prefix, and nothing else; (B, S, E) to the same."""
        queries = rotate(layer.queries(layer.input_layernorm(hidden)), *rotary)
        return layer.output_and_mlp(hidden, attend(queries, *read, mask))

    def forward_prefix(
        self, prefix: Tensor, mask: Tensor, positions: Tensor, context: int = 0
    ) -> list[KeyValues]:
        """Run the VLM over the prefix (B, P, D) and return what each expert layer reads of it: (B, K, P, H) twice.

        For a cross-attention layer these have passed the expert's own projections: they are the same at every
        denoising step, so they are made once.

        Args:
            prefix, mask, positions: see `forward`.
            context: so many first tokens need no gradient and see none of the others. While the VLM is frozen they are run
                without one, and the backward pass goes through the rest alone: the state, one token of a hundred and more.
        """
        if context and torch.is_grad_enabled() and not any(w.requires_grad for w in self.vlm.parameters()):
            with torch.no_grad():
                past = self._run_vlm(prefix[:, :context], mask[:, :context, :context], positions[:, :context])
            every = self._run_vlm(prefix[:, context:], mask[:, context:], positions[:, context:], past)
        else:
            every = self._run_vlm(prefix, mask, positions)
        return [self._as_expert_reads(place, *every[index]) for place, index in enumerate(self.read_layers)]

    def _run_vlm(
        self, hidden: Tensor, mask: Tensor, positions: Tensor, past: list[KeyValues] | None = None
    ) -> list[KeyValues]:
        """The keys and values of each layer: of `past` tokens, and of the `hidden` ones (B, L, D) that may look at them."""
        rotary = rotary_tables(positions, self.config.text_config.head_dim, ROTARY_BASE)
        found: list[KeyValues] = []
        last = self.read_layers[-1]
        layers = self.vlm.model.text_model.layers
        for index in range(last + 1):
            layer = layers[index]
            assert isinstance(layer, DecoderLayer)
            before, is_read = None if past is None else past[index], index < last
            hidden, keys, values = self.checkpointed_call(
                _vlm_layer, layer, hidden, rotary, mask, before, is_read
            )
            found.append((keys, values))
        return found

    def forward_suffix(
        self, suffix: Tensor, mask: Tensor, positions: Tensor, read: list[KeyValues]
    ) -> Tensor:
        """Run the expert over the action tokens (B, S, E); `mask` (B, S, P + S) is true where they may look."""
        head_width = self.config.text_config.head_dim
        rotary = rotary_tables(positions, head_width, ROTARY_BASE)
        # Where the expert looks at the prefix alone, its positions count from 0.
        cross_rotary = rotary_tables(positions - positions[:, :1], head_width, ROTARY_BASE)
        cross_mask = mask[:, :, : read[0][0].shape[2]]
        hidden = suffix
        for layer, crosses, past in zip(self.lm_expert.layers, self.cross, read, strict=True):
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
        """Prefix (B, P, D) and action tokens (B, S, E) to the expert's output (B, S, E).

        Args:
            prefix: embedded images, instruction and state.
            suffix: embedded noisy actions and time.
            mask: (B, P + S, P + S), true where a token may look.
            positions: (B, P + S).
            context: see `forward_prefix`.
        """
        length = prefix.shape[1]
        read = self.forward_prefix(prefix, mask[:, :length, :length], positions[:, :length], context)
        return self.forward_suffix(suffix, mask[:, length:], positions[:, length:], read)

    def _as_expert_reads(self, index: int, keys: Tensor, values: Tensor) -> KeyValues:
        if not self.cross[index]:
            return keys, values
        layer = self.lm_expert.layers[index]
        assert isinstance(layer, DecoderLayer)
        # (B, K, P, H) -> (B, P, K * H): to the expert, the VLM's keys and values are inputs like any other.
        return layer.keys(keys.transpose(1, 2).flatten(2)), layer.values(values.transpose(1, 2).flatten(2))


def _vlm_layer(
    layer: DecoderLayer, hidden: Tensor, rotary: Rotary, mask: Tensor, past: KeyValues | None, is_read: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states behind a layer of the VLM, and its keys and values behind those of `past` tokens.

    Of the last layer that is read nothing but keys and values is ever used: without `is_read` `hidden` stays as it is.
    """
    normed = layer.input_layernorm(hidden)
    keys, values = rotate(layer.keys(normed), *rotary), layer.values(normed)
    if past is not None:
        keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
    if is_read:
        queries = rotate(layer.queries(normed), *rotary)
        hidden = layer.output_and_mlp(hidden, attend(queries, keys, values, mask))
    return hidden, keys, values
