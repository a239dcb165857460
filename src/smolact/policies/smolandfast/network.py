"""SmolAndFAST's network: a SmolVLM, the loss of its answers, and their generation.

The policy (`modeling_smolandfast.py`) handles samples, checkpoints and tokenizers; `generation.py` writes the same answers faster.
"""

# B batch, L prompt tokens, M answer tokens, V action tokens, D width, K heads, S prompt tokens in a cache, H head width.

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from smolact.backbones.config import SmolVLMConfig
from smolact.backbones.layers import DecoderLayer, attend, rotary_tables, rotate
from smolact.backbones.smolvlm import KeyValues, SmolVLM
from smolact.policies.common.attention import block_mask, positions_of
from smolact.policies.smolandfast.grammar import Grammar, unfinished_error
from smolact.policies.smolandfast.schemes import ActionVocabulary

CHECK_EVERY = 8
"""Tokens between two checks for complete answers: a check waits for the device."""


class SMOLANDFAST(nn.Module):
    """The network: a SmolVLM, the loss of its answers, and their generation.

    Args:
        config: the VLM's, with the `scale_factor` that is used.
        vocabulary: its action tokens.
    """

    def __init__(self, config: SmolVLMConfig, vocabulary: ActionVocabulary) -> None:
        super().__init__()
        self.vlm = SmolVLM(config)
        self.vocabulary = vocabulary

    def forward(
        self, prompt: Tensor, valid: Tensor, pixels: Tensor, answer: Tensor, spoken: Tensor
    ) -> Tensor:
        """Return the cross-entropy of each answer token, (B, M) float32; 0 where an answer is padded.

        Args:
            prompt: (B, L) token ids, padded on the left, with a placeholder for each image token.
            valid: (B, L) bool, false where padded.
            pixels: (I, 3, h, w) in [−1, 1], in the order in which the prompts show them.
            answer: (B, M) token ids, the end token last, padded on the right.
            spoken: (B, M) bool, false where padded.
        """
        # Rows are rotated so that their padding comes last. Then no token has padding before it, and no mask is needed.
        padding = (~valid).sum(1, keepdim=True)
        ids = torch.cat([prompt, answer[:, :-1]], 1)  # the last token is no input
        indices = torch.arange(ids.shape[1], device=ids.device)
        ids = ids.gather(1, (indices + padding) % len(indices))
        text = self.vlm.model.text_model
        hidden, _ = text(self.vlm.embed(ids, pixels), indices.expand(len(ids), -1), None)
        index = indices[prompt.shape[1] - 1 :] - padding  # where each answer token is predicted
        logits = self.vlm.lm_head(hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))).float()
        losses = F.cross_entropy(logits.flatten(0, 1), answer.flatten(), reduction="none")
        return losses.view_as(answer) * spoken

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        valid: Tensor,
        pixels: Tensor,
        grammar: Grammar,
        most: int,
        choose: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Generate action ids (B, M) of whole chunks; −1 after an answer's end.

        Args:
            prompt, valid, pixels: as for `forward`, but prompts may be padded on either side.
            grammar: the allowed ids; on the device of the weights.
            most: the maximum number of ids of an answer.
            choose: maps logits (B, V), −inf where an id is not allowed, to ids (B,); the most likely one when None.

        Raises:
            ActionTokensError: an answer was not complete after `most` ids.
        """
        rows = torch.tensor(self.vocabulary.words, device=prompt.device)
        head = self.vlm.lm_head.weight[rows]  # logits are for action tokens only
        embedding = self.vlm.model.text_model.embed_tokens.weight[rows]
        hidden, past = self._read(self.vlm.embed(prompt, pixels), valid)
        cache = Cache(past, valid, most)
        last = hidden[torch.arange(len(prompt), device=prompt.device), last_valid(valid)]
        state, left = grammar.start(len(prompt))
        written: list[Tensor] = []
        for number in range(most):
            logits = F.linear(last, head).float().masked_fill(~grammar.allowed(state, left), -torch.inf)
            unfinished = left > 0
            token = torch.where(unfinished, logits.argmax(-1) if choose is None else choose(logits), 0)
            written.append(torch.where(unfinished, token, -1))
            advanced = grammar.advance(state, left, token)
            state, left = (
                torch.where(unfinished, new, old) for new, old in zip(advanced, (state, left), strict=True)
            )
            if (number % CHECK_EVERY == CHECK_EVERY - 1 or number == most - 1) and not (left > 0).any():
                return torch.stack(written, 1)
            last = self._step(embedding[token], cache)
        raise unfinished_error(int((left > 0).sum()), len(left), most, grammar.length)

    def _read(self, embeds: Tensor, valid: Tensor) -> tuple[Tensor, list[KeyValues]]:
        return self.vlm.model.text_model(embeds, positions_of(valid).clamp_min(0), causal_mask(valid))  # type: ignore[no-any-return]

    def _step(self, embeds: Tensor, cache: Cache) -> Tensor:
        """Return the last hidden state (B, D) after one more token (B, D), and cache its keys and values."""
        text = self.vlm.model.text_model
        slot, positions, mask = cache.advance()
        tables = rotary_tables(positions, text.config.head_dim, text.config.rope_theta)
        hidden = embeds[:, None]
        for layer, (keys, values) in zip(text.layers, cache.layers, strict=True):
            assert isinstance(layer, DecoderLayer)
            normed = layer.input_layernorm(hidden)
            keys[:, :, slot] = rotate(layer.keys(normed), *tables)[:, :, 0]
            values[:, :, slot] = layer.values(normed)[:, :, 0]
            queries = rotate(layer.queries(normed), *tables)
            attended = attend(queries, keys[:, :, : slot + 1], values[:, :, : slot + 1], mask)
            hidden = layer.output_and_mlp(hidden, attended)
        last: Tensor = text.norm(hidden)[:, 0]
        return last


def causal_mask(valid: Tensor) -> Tensor:
    """Return the mask (B, L, L) of a prompt's tokens, true where one attends to another.

    A row of padding before the first token attends to itself only, and no row attends to it.
    """
    each = torch.ones(valid.shape[1], dtype=torch.bool, device=valid.device)
    return block_mask(valid, each) | each.diag()


def last_valid(valid: Tensor) -> Tensor:
    """Return the index (B,) of each row's last token in (B, L)."""
    return (valid * torch.arange(valid.shape[1], device=valid.device)).amax(1)


class Cache:
    """Keys and values of prompt and answer, each layer's (B, K, S + most, H), filled from the left."""

    def __init__(self, past: list[KeyValues], valid: Tensor, most: int) -> None:
        def extended(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, most))

        self.layers = [(extended(keys), extended(values)) for keys, values in past]
        self.valid = F.pad(valid, (0, most), value=True)
        self.length = valid.shape[1]
        self.positions = valid.sum(1, keepdim=True)

    def advance(self) -> tuple[int, Tensor, Tensor]:
        """Add a token and return its slot, its position (B, 1), and the mask of its visible keys (B, 1, slot + 1)."""
        slot, position = self.length, self.positions
        self.length, self.positions = slot + 1, position + 1
        return slot, position, self.valid[:, None, : slot + 1]
