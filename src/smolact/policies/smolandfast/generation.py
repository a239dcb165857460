"""A SmolVLM that only writes action tokens: the same answers as `SMOLANDFAST.generate`, with less to do for each.

    prompt, images ─► read: once ─► hidden ─► choose ─┐
                                      ▲               ▼
                                      └── think ◄── token        one `step`, on tensors that stay where they are

- Weights that read the same input are one matrix, and residuals are added by the product that ends them.
- Keys and values have their room from the beginning; a step looks at what is filled, rounded up to `STRIDE` places.
- Logits are computed for the action tokens and the end, and a table says which of them may come (`GrammarTable`).
- Nothing in a step waits for the host: on a GPU it is one CUDA graph.
"""

# B batch, L prompt tokens, C places of the cache, T heads of queries, keys and values, H head width, D width, V actions.

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
from smolact.policies.smolandfast.grammar import Grammar, GrammarTable, unfinished
from smolact.policies.smolandfast.vocabulary import ActionVocabulary

STRIDE = 64
"""Places of the cache are looked at in such steps, so that a few CUDA graphs serve all lengths."""
LOOK_EVERY = 8
"""On a GPU, tokens that are written between two looks at whether all answers are done: a look waits for it."""
SPARE = 8
"""Places that recording a CUDA graph writes to before it counts; a multiple of 8, as a GPU's attention wants a mask's rows."""


@dataclass(frozen=True)
class Linear:
    """A product's weight, (inputs, outputs), and bias.

    On a CPU the weight lies as it is read by a few rows, up to 1.5 times as fast as PyTorch's (outputs, inputs).
    """

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, inputs) to (rows, outputs)."""
        return x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """The product of (rows, inputs), added to (rows, outputs)."""
        return torch.addmm(residual if self.bias is None else residual + self.bias, x, self.weight)

    def tensors(self) -> list[Tensor]:
        """What it holds."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class WriterBlock(NamedTuple):
    """A decoder layer's weights: those that read the same input together, scales of norms in what follows them."""

    heads: Linear | Int8Weights
    out: Linear | Int8Weights
    gate_up: Linear | Int8Weights
    down: Linear | Int8Weights


@dataclass
class Slate:
    """What a batch of answers is written on; a step reads and changes these tensors and nothing else.

    Attributes:
        store: keys and values, a layer (2, B, K, C, H).
        bias: (B, 1, 1, C), 0 where a place may be seen and −∞ elsewhere.
        table: cosines and signed sines of each position, (2, C, H).
        turn: of the last token, (2, B, T, H); 1 and 0 for values, which are not turned.
        place: (1,), where the last token stands in the cache.
        position: (B,), how many came before it.
        token, node: (B,), the last one that was chosen, and where the grammar is.
        written: (B, C), what was chosen after each place.
        noise: (B, V + 1), exponential, for sampling.
    """

    store: list[Tensor]
    bias: Tensor
    table: Tensor
    turn: Tensor
    place: Tensor
    position: Tensor
    token: Tensor
    node: Tensor
    written: Tensor
    noise: Tensor
    graphs: dict[int, Graph] = field(default_factory=dict)

    @property
    def places(self) -> int:
        """C, without the spare ones."""
        return self.written.shape[1] - SPARE

    @property
    def moving(self) -> tuple[Tensor, ...]:
        """What a step adds to."""
        return self.bias, self.place, self.position, self.token, self.node


class ActionWriter:
    """Writes answers with the weights of a SmolVLM, some of them copied: when they have changed, make another.

    Args:
        vlm: its vision tower, connector and embeddings are used as they are, where they have the precision.
        vocabulary: the words of actions.
        grammar: which of them may come.
        dtype: of weights, keys and values; rotations, scores of actions and norms' sums are float32.
        int8: keep the weights of the text model's layers in 8 bits, on a CPU.
        temperature: 0 takes the most likely token; otherwise tokens are drawn, and 1 draws as the model says.
        generator: draws them; PyTorch's own when None. It must be of the weights' device.
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
        self._vision, self._connector, self._words = (
            in_precision(part, dtype)
            for part in (vlm.model.vision_model, vlm.model.connector, text.embed_tokens)
        )
        self._blocks = [fused(cast(DecoderLayer, layer), dtype, int8) for layer in text.layers]
        words = torch.tensor([*vocabulary.words, vocabulary.end], device=device)
        head = plain_weights(vlm.lm_head)[0].detach()[words] * text.norm.weight.detach()
        self._head = Linear(head.t().to(dtype).contiguous(), None)
        self._embedding = text.embed_tokens.weight.detach()[words].to(dtype)
        self._table = GrammarTable(grammar.to(device))
        self._longest, self._length = grammar.longest, grammar.length
        self._eps = torch.full((1,), self.config.rms_norm_eps, device=device)
        self._turned = self.config.num_attention_heads + self.config.num_key_value_heads
        self._slate: Slate | None = None
        linears = [linear for block in self._blocks for linear in block]
        copied = [tensor for linear in (*linears, self._head) for tensor in linear.tensors()]
        own = {parameter.data_ptr() for parameter in vlm.parameters()}
        parts = nn.ModuleList([self._vision, self._connector, self._words])
        front = [parameter for parameter in parts.parameters() if parameter.data_ptr() not in own]
        self.held = sum(t.nbytes for t in (*copied, self._embedding, *front))
        """Bytes of the weights that are not the VLM's own."""

    @torch.inference_mode()
    def write(self, prompt: Tensor, valid: Tensor, pixels: Tensor, most: int) -> Tensor:
        """Action ids (B, M) of whole chunks; −1 after an answer's end. See `SMOLANDFAST.generate`.

        Raises:
            ActionTokensError: an answer was not done after `most` ids.
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
                unready = int(slate.node.count_nonzero())
                if not unready:
                    written = slate.written[:, length - 1 : length - 1 + number]
                    return written.masked_fill(written == self._table.end, -1)
            if number < most:
                self._advance(slate, min(slate.places, rounded_up(length + number)))
        raise unfinished(unready, batch, most, self._length)

    def _slate_for(self, batch: int, places: int) -> Slate:
        """The last one if it has room, else a new one."""
        kept = self._slate
        if kept is not None and len(kept.token) == batch and kept.places >= places:
            return kept
        self._slate = None  # before another is made
        text, device = self.config, self.device
        places = rounded_up(places) + SPARE
        keys, heads = text.num_key_value_heads, self._turned + text.num_key_value_heads

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._slate = Slate(
            [zeros(2, batch, keys, places, text.head_dim, dtype=self.dtype) for _ in self._blocks],
            zeros(batch, 1, 1, places, dtype=self.dtype),
            turns(torch.arange(places, device=device), text),
            torch.stack([zeros(batch, heads, text.head_dim, dtype=torch.float32) + one for one in (1, 0)]),
            zeros(1),
            zeros(batch),
            zeros(batch),
            zeros(batch),
            zeros(batch, places),
            zeros(batch, self._table.end + 1, dtype=torch.float32) + 1,
        )
        return self._slate

    def _read(self, prompt: Tensor, valid: Tensor, pixels: Tensor, slate: Slate) -> Tensor:
        """The hidden state (B, D) after a prompt, whose keys and values go onto the slate."""
        text, (batch, length) = self.config, prompt.shape
        positions = positions_of(valid).clamp_min(0)
        mask = block_mask(valid, torch.ones(length, dtype=torch.bool, device=self.device))
        mask = (mask | torch.eye(length, dtype=torch.bool, device=self.device))[:, None]
        turn = slate.table[:, positions, None].transpose(2, 3)
        images = self._connector(*self._vision(pixels.to(self.dtype))).flatten(0, 1)
        hidden = put_images(self._words(prompt), prompt == self._image_token, images).flatten(0, 1)
        for block, store in zip(self._blocks, slate.store, strict=True):
            heads = block.heads(self._normed(hidden)).view(batch, length, -1, text.head_dim).transpose(1, 2)
            queries, keys, values = heads.tensor_split((text.num_attention_heads, self._turned), 1)
            queries, keys = turned(queries, turn), turned(keys, turn)
            store[0, :, :, :length], store[1, :, :, :length] = keys, values
            seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
            hidden = self._finish(block, hidden, seen.transpose(1, 2).flatten(2).flatten(0, 1))
        slate.bias.fill_(-torch.inf)[:, 0, 0, :length].masked_fill_(valid, 0)
        slate.place.fill_(length - 1)
        slate.position.copy_(valid.sum(1) - 1)
        slate.node.fill_(self._table.start)
        last = (valid * torch.arange(length, device=self.device)).amax(1)
        return hidden.view(batch, length, -1)[torch.arange(batch, device=self.device), last]

    def _advance(self, slate: Slate, seen: int) -> None:
        """A step, on a GPU as a graph; `seen` places of the cache hold all that is to be seen."""
        self._draw(slate)
        if self.device.type != "cuda":
            return self._step(slate, seen)
        if seen not in slate.graphs:
            before = [tensor.clone() for tensor in slate.moving]
            slate.graphs[seen] = Graph(lambda: self._step(slate, seen), self.device)
            for tensor, kept in zip(slate.moving, before, strict=True):  # recording has moved them
                tensor.copy_(kept)
        return slate.graphs[seen]()

    def _draw(self, slate: Slate) -> None:
        if self.temperature:
            slate.noise.exponential_(generator=self._generator)

    def _step(self, slate: Slate, seen: int) -> None:
        """Read the last token, and choose the next."""
        slate.place += 1
        slate.position += 1
        slate.bias.index_fill_(3, slate.place, 0)
        slate.turn[:, :, : self._turned] = slate.table[:, slate.position, None]
        self._choose(self._think(self._embedding[slate.token], slate, slate.bias[..., :seen]), slate)

    def _think(self, hidden: Tensor, slate: Slate, bias: Tensor) -> Tensor:
        """The hidden state (B, D) after a token (B, D)."""
        text, (batch, width) = self.config, (len(hidden), self.config.head_dim)
        keys, seen = text.num_key_value_heads, bias.shape[-1]
        for block, store in zip(self._blocks, slate.store, strict=True):
            heads = turned(block.heads(self._normed(hidden)).view(batch, -1, width), slate.turn)
            queries, new = heads.tensor_split((text.num_attention_heads,), 1)
            store.index_copy_(3, slate.place, new.view(batch, 2, keys, 1, width).transpose(0, 1))
            past = store[:, :, :, :seen]
            found = attend_folded(queries[:, :, None], past[0], past[1], bias)
            hidden = self._finish(block, hidden, found.reshape(batch, -1))
        return hidden

    def _finish(self, block: WriterBlock, hidden: Tensor, seen: Tensor) -> Tensor:
        hidden = block.out.onto(hidden, seen)
        gate, up = block.gate_up(self._normed(hidden)).chunk(2, -1)
        return block.down.onto(hidden, F.silu(gate).mul_(up))

    def _choose(self, hidden: Tensor, slate: Slate) -> None:
        """Write the next token after the hidden state (B, D) of the last."""
        logits = self._head(self._normed(hidden)).float()
        logits.masked_fill_(self._table.barred[slate.node], -torch.inf)
        slate.token.copy_(
            drawn(logits, self.temperature, slate.noise) if self.temperature else logits.argmax(-1)
        )
        slate.written.index_copy_(1, slate.place, slate.token[:, None])
        slate.node.copy_(self._table.advance(slate.node, slate.token))

    def _normed(self, x: Tensor) -> Tensor:
        """To root mean square one, in float32; the scale is in the weights that follow."""
        if x.is_cuda:
            return F.rms_norm(x, x.shape[-1:], eps=self.config.rms_norm_eps)
        wide = x.float()  # on a CPU the function is three times as many operations
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return (wide * torch.addcmul(self._eps, norm, norm, value=1 / x.shape[-1]).rsqrt_()).to(x.dtype)


def fused(layer: DecoderLayer, dtype: torch.dtype, int8: bool) -> WriterBlock:
    """A layer's weights in that precision, with adapters added to them."""

    def together(*layers: nn.Module, norm: Tensor | None = None) -> Linear | Int8Weights:
        parts = [plain_weights(part) for part in layers]
        weight = torch.cat([weight.detach() for weight, _ in parts])
        weight = weight if norm is None else weight * norm.detach()
        found = [bias.detach() for _, bias in parts if bias is not None]
        bias = torch.cat(found).to(dtype) if found else None
        if int8 and Int8Weights.takes(weight):
            return Int8Weights(weight, bias)
        weight = weight.to(dtype).t()
        return Linear(weight.contiguous() if weight.device.type == "cpu" else weight, bias)

    attention, mlp = layer.self_attn, layer.mlp
    return WriterBlock(
        together(attention.q_proj, attention.k_proj, attention.v_proj, norm=layer.input_layernorm.weight),
        together(attention.o_proj),
        together(mlp.gate_proj, mlp.up_proj, norm=layer.post_attention_layernorm.weight),
        together(mlp.down_proj),
    )


def in_precision(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself if its weights are of that type, else a copy that is."""
    same = all(parameter.dtype == dtype for parameter in module.parameters())
    return module if same else copy.deepcopy(module).to(dtype)


def turns(positions: Tensor, text: TextConfig) -> Tensor:
    """Cosines and sines of positions (P,), (2, P, H): of both halves, the first one's sines negative."""
    cosines, sines = (x[0, 0] for x in rotary_tables(positions[None], text.head_dim, text.rope_theta))
    return torch.stack([torch.cat([cosines, cosines], -1), torch.cat([-sines, sines], -1)])


def turned(x: Tensor, turn: Tensor) -> Tensor:
    """Rotary position embedding of x (…, H) by cosines and sines (2, …, H) of `turns`, in float32; see `layers.rotate`."""
    wide = x.float()
    return torch.addcmul(wide * turn[0], wide.roll(x.shape[-1] // 2, -1), turn[1]).to(x.dtype)


def drawn(logits: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """Ids (…,), drawn from logits (…, V) by exponential noise (…, V): the largest of log p + Gumbel noise is a draw from p."""
    return (logits / temperature - noise.log()).argmax(-1)


def rounded_up(places: int) -> int:
    """To whole strides."""
    return -(-places // STRIDE) * STRIDE
