"""Fast generation of action tokens with a SmolVLM: the answers of `SMOLANDFAST.generate`, with fewer operations.

    prompt, images ─► read: once ─► hidden ─► choose ─┐
                                      ▲               ▼
                                      └── think ◄── token        one `step`, on tensors at fixed addresses

- Weights with the same input are one matrix, and residuals are added by the product in front of them.
- The cache of keys and values is allocated at once; a step attends to its filled part, rounded up to `STRIDE` slots.
- Logits are computed for the action tokens and the end, and a table masks those that are not allowed (`GrammarTable`).
- Nothing in a step waits for the host: on a GPU it is one CUDA graph.
"""

# B batch, L prompt tokens, C cache slots, T heads of queries, keys and values, H head width, D width, V actions.

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.config import TextConfig
from smolact.backbones.layers import DecoderLayer, rotary_tables
from smolact.backbones.smolvlm import SmolVLM, put_images
from smolact.policies.common.attention import attend_folded, block_mask, positions_of
from smolact.policies.common.graphs import Graph
from smolact.policies.common.packed_linear import Int8Weights, plain_weights
from smolact.policies.smolandfast.grammar import Grammar, GrammarTable, unfinished_error
from smolact.policies.smolandfast.vocabulary import ActionVocabulary

STRIDE = 64
"""The visible part of the cache grows in such steps of slots, so that a few CUDA graphs serve all lengths."""
LOOK_EVERY = 8
"""On a GPU, tokens between two checks for complete answers: a check waits for the GPU."""
SPARE_SLOTS = 8
"""Extra slots that recording a CUDA graph writes to; a multiple of 8, as a GPU's attention requires of a mask's rows."""


@dataclass(frozen=True)
class Linear:
    """A linear layer's weight, (inputs, outputs), and bias.

    On a CPU, products of a few rows are up to 1.5 times as fast as with PyTorch's (outputs, inputs).
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Map (rows, inputs) to (rows, outputs)."""
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return the product of (rows, inputs), added to (rows, outputs)."""
        return torch.addmm(residual if self.bias is None else residual + self.bias, x, self.weight)

    def tensors(self) -> list[Tensor]:
        """Return weight and bias."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class WriterBlock(NamedTuple):
    """A decoder layer's weights, fused where their input is the same, with the scales of the norms before them."""

    heads: Linear | Int8Weights
    out: Linear | Int8Weights
    gate_up: Linear | Int8Weights
    down: Linear | Int8Weights


@dataclass
class Slate:
    """The state of a batch of answers; a step reads and changes these tensors and nothing else.

    Attributes:
        cache: keys and values, per layer (2, B, K, C, H).
        bias: (B, 1, 1, C), 0 for a visible slot and −∞ elsewhere.
        rotary_table: cosines and signed sines of each position, (2, C, H).
        rotary: those of the last token, (2, B, T, H); 1 and 0 for values, which are not rotated.
        slot: (1,), the cache slot of the last token.
        position: (B,), the number of tokens before it.
        token, node: (B,), the last token that was chosen, and its node of the grammar.
        written: (B, C), the token that was chosen after each slot.
        noise: (B, V + 1), exponential, for sampling.
    """

    cache: list[Tensor]
    bias: Tensor
    rotary_table: Tensor
    rotary: Tensor
    slot: Tensor
    position: Tensor
    token: Tensor
    node: Tensor
    written: Tensor
    noise: Tensor
    graphs: dict[int, Graph] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        """C, without the spare slots."""
        return self.written.shape[1] - SPARE_SLOTS

    @property
    def step_state(self) -> tuple[Tensor, ...]:
        """The tensors that a step advances."""
        return self.bias, self.slot, self.position, self.token, self.node


class ActionWriter:
    """Writes answers with the weights of a SmolVLM, some of them copied: changed weights need a new writer.

    Args:
        vlm: its vision tower, connector and embeddings are used as they are, where they have the precision.
        vocabulary: the words of actions.
        grammar: the allowed sequences of them.
        dtype: of weights, keys and values; rotations, logits of actions and norms' sums are float32.
        int8: store the weights of the text model's layers in 8 bits, on a CPU.
        temperature: 0 takes the most likely token; otherwise tokens are sampled, at 1 from the model's distribution.
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
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        text, device = vlm.model.text_model, vlm.lm_head.weight.device
        self.config: TextConfig = text.config
        self.device, self.dtype = device, dtype
        self.temperature, self._generator = temperature, generator
        self._image_token = vlm.config.image_token_id
        self._vision, self._connector, self._embed_tokens = (
            to_dtype(part, dtype) for part in (vlm.model.vision_model, vlm.model.connector, text.embed_tokens)
        )
        self._blocks = [fuse_layer(cast(DecoderLayer, layer), dtype, int8) for layer in text.layers]
        words = torch.tensor([*vocabulary.words, vocabulary.end], device=device)
        head = plain_weights(vlm.lm_head)[0].detach()[words] * text.norm.weight.detach()
        self._head = Linear(head.t().to(dtype).contiguous(), None)
        self._embedding = text.embed_tokens.weight.detach()[words].to(dtype)
        self._grammar_table = GrammarTable(grammar.to(device))
        self._longest, self._length = grammar.longest, grammar.length
        self._eps = torch.full((1,), self.config.rms_norm_eps, device=device)
        self._rotated_heads = self.config.num_attention_heads + self.config.num_key_value_heads
        self._slate: Slate | None = None
        linears = [linear for block in self._blocks for linear in block]
        copied = [tensor for linear in (*linears, self._head) for tensor in linear.tensors()]
        own = {parameter.data_ptr() for parameter in vlm.parameters()}
        parts = nn.ModuleList([self._vision, self._connector, self._embed_tokens])
        converted = [parameter for parameter in parts.parameters() if parameter.data_ptr() not in own]
        self.held = sum(t.nbytes for t in (*copied, self._embedding, *converted))
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
        text, device = self.config, self.device
        slots = round_up(slots) + SPARE_SLOTS
        keys, heads = text.num_key_value_heads, self._rotated_heads + text.num_key_value_heads

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._slate = Slate(
            [zeros(2, batch, keys, slots, text.head_dim, dtype=self.dtype) for _ in self._blocks],
            zeros(batch, 1, 1, slots, dtype=self.dtype),
            rotary_factors(torch.arange(slots, device=device), text),
            torch.stack([zeros(batch, heads, text.head_dim, dtype=torch.float32) + fill for fill in (1, 0)]),
            zeros(1),
            zeros(batch),
            zeros(batch),
            zeros(batch),
            zeros(batch, slots),
            zeros(batch, self._grammar_table.end + 1, dtype=torch.float32) + 1,
        )
        return self._slate

    def _read(self, prompt: Tensor, valid: Tensor, pixels: Tensor, slate: Slate) -> Tensor:
        """Run a prompt, cache its keys and values, and return the hidden state (B, D) of its last token."""
        text, (batch, length) = self.config, prompt.shape
        positions = positions_of(valid).clamp_min(0)
        mask = block_mask(valid, torch.ones(length, dtype=torch.bool, device=self.device))
        mask = (mask | torch.eye(length, dtype=torch.bool, device=self.device))[:, None]
        rotary = slate.rotary_table[:, positions, None].transpose(2, 3)
        images = self._connector(*self._vision(pixels.to(self.dtype))).flatten(0, 1)
        hidden = put_images(self._embed_tokens(prompt), prompt == self._image_token, images).flatten(0, 1)
        for block, cache in zip(self._blocks, slate.cache, strict=True):
            heads = block.heads(self._normed(hidden)).view(batch, length, -1, text.head_dim).transpose(1, 2)
            queries, keys, values = heads.tensor_split((text.num_attention_heads, self._rotated_heads), 1)
            queries, keys = apply_rotary(queries, rotary), apply_rotary(keys, rotary)
            cache[0, :, :, :length], cache[1, :, :, :length] = keys, values
            attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
            hidden = self._finish(block, hidden, attended.transpose(1, 2).flatten(2).flatten(0, 1))
        slate.bias.fill_(-torch.inf)[:, 0, 0, :length].masked_fill_(valid, 0)
        slate.slot.fill_(length - 1)
        slate.position.copy_(valid.sum(1) - 1)
        slate.node.fill_(self._grammar_table.start)
        last = (valid * torch.arange(length, device=self.device)).amax(1)
        return hidden.view(batch, length, -1)[torch.arange(batch, device=self.device), last]

    def _advance(self, slate: Slate, seen: int) -> None:
        """Run a step, on a GPU as a graph; `seen` slots of the cache contain all visible tokens."""
        self._draw(slate)
        if self.device.type != "cuda":
            return self._step(slate, seen)
        if seen not in slate.graphs:
            before = [tensor.clone() for tensor in slate.step_state]
            slate.graphs[seen] = Graph(lambda: self._step(slate, seen), self.device)
            for tensor, saved in zip(slate.step_state, before, strict=True):  # recording has changed them
                tensor.copy_(saved)
        return slate.graphs[seen]()

    def _draw(self, slate: Slate) -> None:
        if self.temperature:
            slate.noise.exponential_(generator=self._generator)

    def _step(self, slate: Slate, seen: int) -> None:
        """Run the last token through the model, and choose the next."""
        slate.slot += 1
        slate.position += 1
        slate.bias.index_fill_(3, slate.slot, 0)
        slate.rotary[:, :, : self._rotated_heads] = slate.rotary_table[:, slate.position, None]
        self._choose(self._think(self._embedding[slate.token], slate, slate.bias[..., :seen]), slate)

    def _think(self, hidden: Tensor, slate: Slate, bias: Tensor) -> Tensor:
        """Return the hidden state (B, D) after a token (B, D)."""
        text, (batch, width) = self.config, (len(hidden), self.config.head_dim)
        keys, seen = text.num_key_value_heads, bias.shape[-1]
        for block, cache in zip(self._blocks, slate.cache, strict=True):
            heads = apply_rotary(block.heads(self._normed(hidden)).view(batch, -1, width), slate.rotary)
            queries, new = heads.tensor_split((text.num_attention_heads,), 1)
            cache.index_copy_(3, slate.slot, new.view(batch, 2, keys, 1, width).transpose(0, 1))
            past = cache[:, :, :, :seen]
            attended = attend_folded(queries[:, :, None], past[0], past[1], bias)
            hidden = self._finish(block, hidden, attended.reshape(batch, -1))
        return hidden

    def _finish(self, block: WriterBlock, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = block.out.onto(hidden, attended)
        gate, up = block.gate_up(self._normed(hidden)).chunk(2, -1)
        return block.down.onto(hidden, F.silu(gate).mul_(up))

    def _choose(self, hidden: Tensor, slate: Slate) -> None:
        """Choose the next token from the hidden state (B, D) of the last."""
        logits = self._head(self._normed(hidden)).float()
        logits.masked_fill_(self._grammar_table.barred[slate.node], -torch.inf)
        slate.token.copy_(
            drawn(logits, self.temperature, slate.noise) if self.temperature else logits.argmax(-1)
        )
        slate.written.index_copy_(1, slate.slot, slate.token[:, None])
        slate.node.copy_(self._grammar_table.advance(slate.node, slate.token))

    def _normed(self, x: Tensor) -> Tensor:
        """Normalize to root mean square one, in float32; the scale is in the next weights."""
        if x.is_cuda:
            return F.rms_norm(x, x.shape[-1:], eps=self.config.rms_norm_eps)
        wide = x.float()  # on a CPU `F.rms_norm` takes three times as many operations
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return (wide * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()).to(x.dtype)


def fuse_layer(layer: DecoderLayer, dtype: torch.dtype, int8: bool) -> WriterBlock:
    """Return a layer's weights in this precision, with adapters merged."""

    def fuse(*layers: nn.Module, norm: Tensor | None = None) -> Linear | Int8Weights:
        parts = [plain_weights(part) for part in layers]
        weight = torch.cat([weight.detach() for weight, _ in parts])
        weight = weight if norm is None else weight * norm.detach()
        biases = [bias.detach() for _, bias in parts if bias is not None]
        bias = torch.cat(biases).to(dtype) if biases else None
        if int8 and Int8Weights.takes(weight):
            return Int8Weights(weight, bias)
        weight = weight.to(dtype).t()
        return Linear(weight.contiguous() if weight.device.type == "cpu" else weight, bias)

    attention, mlp = layer.self_attn, layer.mlp
    return WriterBlock(
        fuse(attention.q_proj, attention.k_proj, attention.v_proj, norm=layer.input_layernorm.weight),
        fuse(attention.o_proj),
        fuse(mlp.gate_proj, mlp.up_proj, norm=layer.post_attention_layernorm.weight),
        fuse(mlp.down_proj),
    )


def to_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the module itself if its weights have this dtype, else a converted copy."""
    same = all(parameter.dtype == dtype for parameter in module.parameters())
    return module if same else copy.deepcopy(module).to(dtype)


def rotary_factors(positions: Tensor, text: TextConfig) -> Tensor:
    """Return cosines and sines (2, P, H) of positions (P,), for both halves, the first one's sines negative."""
    cosines, sines = (x[0, 0] for x in rotary_tables(positions[None], text.head_dim, text.rope_theta))
    return torch.stack([torch.cat([cosines, cosines], -1), torch.cat([-sines, sines], -1)])


def apply_rotary(x: Tensor, factors: Tensor) -> Tensor:
    """Apply rotary position embedding to x (…, H) by `rotary_factors` (2, …, H), in float32; see `layers.rotate`."""
    wide = x.float()
    return torch.addcmul(wide * factors[0], wide.roll(x.shape[-1] // 2, -1), factors[1]).to(x.dtype)


def drawn(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """Sample ids (…,) from logits (…, V) by exponential noise (…, V): the argmax of log p + Gumbel noise is a draw from p."""
    return (logits / temperature - noise.log()).argmax(-1)


def round_up(slots: int) -> int:
    """Round up to whole strides."""
    return -(-slots // STRIDE) * STRIDE
