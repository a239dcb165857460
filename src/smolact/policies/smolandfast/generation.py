"""Fast generation of action tokens with a SmolVLM: the answers of `SMOLANDFAST.generate`, with fewer operations.

    prompt, images ─► read: once ─► hidden ─► choose ─┐
                                      ▲               ▼
                                      └── think ◄── token        one `step`, on tensors at fixed addresses

- Layers are packed (`inference.decoder`); the cache of keys and values is allocated at once.
- A step attends to the filled part of the cache, rounded up to `STRIDE` slots.
- Logits are computed for the action tokens and the end, and a table masks those that are not allowed
  (`GrammarTable`).
- Nothing in a step waits for the host: on a GPU it is one CUDA graph.
"""

# B batch, L prompt tokens, S cache slots, K key/value heads, H head width, D width, V actions.

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

from smolact.backbones.config import TextConfig
from smolact.backbones.layers import DecoderLayer, rotary_tables
from smolact.backbones.smolvlm import SmolVLM, put_images
from smolact.policies.common.attention import positions_of
from smolact.policies.inference.decoder import folded_bias, pack_decoder_layer, run_layer
from smolact.policies.inference.graphs import Graphs
from smolact.policies.inference.packing import (
    DensePackedLinear,
    Int8WeightOnlyLinear,
    WeightPacker,
    extra_bytes,
    plain_weights,
)
from smolact.policies.smolandfast.grammar import Grammar, GrammarTable, unfinished_error
from smolact.policies.smolandfast.network import causal_mask, last_valid
from smolact.policies.smolandfast.schemes import ActionVocabulary

STRIDE = 64
"""The visible part of the cache grows in such steps of slots, so that a few CUDA graphs serve all lengths."""
LOOK_EVERY = 8
"""On a GPU, tokens between two checks for complete answers: a check waits for the GPU."""
SPARE_SLOTS = 8
"""Extra slots that recording a CUDA graph writes to; a multiple of 8, as a GPU requires of a mask's rows."""


class Slate:
    """The state of a batch of answers; a step reads and changes these tensors and nothing else."""

    def __init__(
        self,
        config: TextConfig,
        layers: int,
        batch: int,
        slots: int,
        actions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        cache = 2, batch, config.num_key_value_heads, slots + SPARE_SLOTS, config.head_dim
        positions = torch.arange(cache[3], device=device)[None]
        rotary = rotary_tables(positions, config.head_dim, config.rope_theta)
        self.capacity = slots
        """S, without the spare slots."""
        self.caches = [zeros(*cache, dtype=dtype) for _ in range(layers)]
        """Keys and values of each layer."""
        self.bias = zeros(batch, 1, 1, cache[3], dtype=dtype)
        """0 for a visible slot and −∞ elsewhere."""
        self.rotary = torch.stack([table[0, 0] for table in rotary])
        """The tables of all positions, (2, S, H)."""
        self.slot, self.position = zeros(1), zeros(batch)
        """The cache slot of the last token, and the number of tokens before it."""
        self.token, self.node = zeros(batch), zeros(batch)
        """The last token that was chosen, and its node of the grammar."""
        self.written = zeros(batch, cache[3])
        """The token that was chosen after each slot."""
        self.noise = torch.ones(batch, actions + 1, device=device)
        """Exponential, for sampling."""
        self.graphs = Graphs(device)
        """Of a step, by the number of slots that are seen."""

    @property
    def step_state(self) -> tuple[Tensor, ...]:
        """The tensors that a step advances."""
        return self.bias, self.slot, self.position, self.token, self.node


class ActionWriter:
    """Writes answers with the weights of a SmolVLM, some of them copied: changed weights need a new writer.

    Args:
        dtype: of weights, keys and values; rotations, logits of actions and norms' sums are float32.
        int8: store the weights of the text model's layers in 8 bits, on a CPU.
        triton: run steps, of few rows, with kernels of our own.
        temperature: 0 takes the most likely token; otherwise tokens are sampled, at 1 from the model's
            distribution.
        generator: the source of randomness, on the weights' device; PyTorch's own when None.
    """

    def __init__(
        self,
        vlm: SmolVLM,
        vocabulary: ActionVocabulary,
        grammar: Grammar,
        *,
        dtype: torch.dtype,
        int8: bool = False,
        triton: bool = False,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        text, device = vlm.model.text_model, vlm.lm_head.weight.device
        self.config: TextConfig = text.config
        self.device, self.dtype = device, dtype
        self.temperature, self._generator = temperature, generator
        self._image_token = vlm.config.image_token_id
        # Plain modules: packed, a vision tower is no faster with one image of many patches.
        self._vision, self._connector, self._embed_tokens = (
            to_dtype(part, dtype) for part in (vlm.model.vision_model, vlm.model.connector, text.embed_tokens)
        )
        packer = WeightPacker(dtype, int8=Int8WeightOnlyLinear if int8 else None, few_rows=True)
        self._layers = [
            pack_decoder_layer(packer, cast(DecoderLayer, layer), text.config) for layer in text.layers
        ]
        self._step_layers = self._layers
        if triton:
            from smolact.policies.inference.kernels import with_kernels  # needs triton

            self._step_layers = [with_kernels(layer) for layer in self._layers]
        words = torch.tensor([*vocabulary.words, vocabulary.end], device=device)
        head = plain_weights(vlm.lm_head)[0].detach()[words] * text.norm.weight.detach()
        self._head = DensePackedLinear(head.to(dtype), few_rows=True)
        self._embedding = text.embed_tokens.weight.detach()[words].to(dtype)
        self._grammar_table = GrammarTable(grammar.to(device))
        self._longest, self._length = grammar.longest, grammar.length
        self._slate: Slate | None = None
        parts = nn.ModuleList([self._vision, self._connector, self._embed_tokens]).parameters()
        self.held = extra_bytes([self._layers, self._head, self._embedding, *parts], vlm)
        """Bytes of the weights that are not the VLM's own."""

    @torch.inference_mode()
    def write(self, prompt: Tensor, valid: Tensor, pixels: Tensor, most: int) -> Tensor:
        """Write action ids (B, M) of whole chunks; −1 after an answer's end. See `SMOLANDFAST.generate`.

        Raises:
            ActionTokensError: an answer was not complete after `most` ids.
        """
        most = min(most, self._longest)
        batch, length = prompt.shape
        slate = self._slate_for(batch, length + most)
        hidden = self._read(prompt, valid, pixels, slate)
        self._draw(slate)
        self._choose(hidden, slate)
        look_every = LOOK_EVERY if self.device.type == "cuda" else 1
        for number in range(1, most + 1):
            if number % look_every == 0 or number == most:
                incomplete = int(slate.node.count_nonzero())
                if not incomplete:
                    written = slate.written[:, length - 1 : length - 1 + number]
                    return written.masked_fill(written == self._grammar_table.end, -1)
            if number < most:
                self._advance(slate, min(slate.capacity, round_up(length + number)))
        raise unfinished_error(incomplete, batch, most, self._length)

    def _slate_for(self, batch: int, slots: int) -> Slate:
        """Return the last slate if it is large enough, else a new one."""
        slate = self._slate
        if slate is not None and len(slate.token) == batch and slate.capacity >= slots:
            return slate
        self._slate = None  # frees its memory for the new one
        actions = self._grammar_table.end
        self._slate = Slate(
            self.config, len(self._layers), batch, round_up(slots), actions, self.dtype, self.device
        )
        return self._slate

    def _read(self, prompt: Tensor, valid: Tensor, pixels: Tensor, slate: Slate) -> Tensor:
        """Run a prompt, cache its keys and values, and return the hidden state (B, D) of its last token."""
        text, (batch, length) = self.config, prompt.shape
        groups = text.num_attention_heads // text.num_key_value_heads
        bias = folded_bias(causal_mask(valid), groups, self.dtype, self.device)
        cosines, sines = slate.rotary[:, positions_of(valid).clamp_min(0), None].transpose(2, 3)
        images = self._connector(*self._vision(pixels.to(self.dtype))).flatten(0, 1)
        hidden = put_images(self._embed_tokens(prompt), prompt == self._image_token, images).flatten(0, 1)
        for layer, cache in zip(self._layers, slate.caches, strict=True):
            rows = slice(0, length)
            hidden = run_layer(layer, hidden, (cosines, sines), cache[:, :, :, rows], rows, bias)
        slate.bias.fill_(-torch.inf)[:, 0, 0, :length].masked_fill_(valid, 0)
        slate.slot.fill_(length - 1)
        slate.position.copy_(valid.sum(1) - 1)
        slate.node.fill_(self._grammar_table.start)
        return hidden.view(batch, length, -1)[torch.arange(batch, device=self.device), last_valid(valid)]

    def _advance(self, slate: Slate, seen: int) -> None:
        """Run a step, on a GPU as a graph; `seen` slots of the cache contain all visible tokens."""
        self._draw(slate)
        if self.device.type == "cuda" and seen not in slate.graphs:
            slate.graphs.record(seen, lambda: self._step(slate, seen), slate.step_state)
        slate.graphs.run(seen, lambda: self._step(slate, seen))

    def _draw(self, slate: Slate) -> None:
        if self.temperature:
            slate.noise.exponential_(generator=self._generator)

    def _step(self, slate: Slate, seen: int) -> None:
        """Run the last token through the model, and choose the next."""
        slate.slot.add_(1)
        slate.position.add_(1)
        slate.bias.index_fill_(3, slate.slot, 0)
        self._choose(self._think(self._embedding.index_select(0, slate.token), slate, seen), slate)

    def _think(self, hidden: Tensor, slate: Slate, seen: int) -> Tensor:
        """Return the hidden state (B, D) after a token (B, D), to which `seen` slots of the cache are visible."""
        cosines, sines = slate.rotary.index_select(1, slate.position)[:, :, None, None].unbind()
        bias = slate.bias[..., :seen]
        for layer, cache in zip(self._step_layers, slate.caches, strict=True):
            hidden = run_layer(layer, hidden, (cosines, sines), cache.narrow(3, 0, seen), slate.slot, bias)
        return hidden

    def _choose(self, hidden: Tensor, slate: Slate) -> None:
        """Choose the next token from the hidden state (B, D) of the last."""
        logits = self._logits(hidden)
        logits.masked_fill_(self._grammar_table.barred.index_select(0, slate.node), -torch.inf)
        slate.token.copy_(
            drawn(logits, self.temperature, slate.noise) if self.temperature else logits.argmax(-1)
        )
        slate.written.index_copy_(1, slate.slot, slate.token[:, None])
        slate.node.copy_(self._grammar_table.advance(slate.node, slate.token))

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, V + 1), float32, of action tokens and the end from hidden states (B, D)."""
        return self._head.normed(hidden, self.config.rms_norm_eps).float()


def to_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the module itself if its weights have this dtype, else a converted copy."""
    same = all(parameter.dtype == dtype for parameter in module.parameters())
    return module if same else copy.deepcopy(module).to(dtype)


def drawn(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """Sample ids (…,) from logits (…, V) by exponential noise (…, V): the argmax of log p + Gumbel noise is a draw from p."""
    return (logits / temperature - noise.log()).argmax(-1)


def round_up(slots: int) -> int:
    """Round up to whole strides."""
    return -(-slots // STRIDE) * STRIDE
