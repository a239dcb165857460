"""SmolAndFAST's network: a SmolVLM, the loss of its answers, and their generation.

What reads samples, keeps checkpoints and knows of tokenizers is the policy (`modeling_smolandfast.py`); `generation.py` writes
the same answers faster.
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
from smolact.policies.smolandfast.grammar import Grammar, unfinished
from smolact.policies.smolandfast.vocabulary import ActionVocabulary

CHECK_EVERY = 8
"""Tokens that are written between two looks at whether all answers are done: a look waits for the device."""


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
        """The cross-entropy of each answer token, (B, M) float32; 0 where an answer is padded.

        Args:
            prompt: (B, L) token ids, padded on the left, with a place for each image token.
            valid: (B, L) bool, false where padded.
            pixels: (I, 3, h, w) in [−1, 1], in the order in which the prompts show them.
            answer: (B, M) token ids, the end token last, padded on the right.
            spoken: (B, M) bool, false where padded.
        """
        # Rows are turned so that their padding comes last. Then no token has padding before it, and no mask is needed.
        padding = (~valid).sum(1, keepdim=True)
        ids = torch.cat([prompt, answer[:, :-1]], 1)  # nothing comes after the last one
        places = torch.arange(ids.shape[1], device=ids.device)
        ids = ids.gather(1, (places + padding) % len(places))
        text = self.vlm.model.text_model
        hidden, _ = text(self.vlm.embed(ids, pixels), places.expand(len(ids), -1), None)
        said = places[prompt.shape[1] - 1 :] - padding  # where each answer token is foretold
        logits = self.vlm.lm_head(hidden.gather(1, said[..., None].expand(-1, -1, hidden.shape[2]))).float()
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
        """Action ids (B, M) of whole chunks; −1 after an answer's end.

        Args:
            prompt, valid, pixels: as for `forward`, but that a prompt may be padded on either side.
            grammar: which ids may come; on the device of the weights.
            most: ids of an answer at most.
            choose: from logits (B, V), −inf where an id can't come, to ids (B,); the most likely one when None.

        Raises:
            ActionTokensError: an answer was not done after `most` ids.
        """
        rows = torch.tensor(self.vocabulary.words, device=prompt.device)
        head = self.vlm.lm_head.weight[rows]  # what is not an action is never written: no logits for it
        embedding = self.vlm.model.text_model.embed_tokens.weight[rows]
        hidden, past = self._read(self.vlm.embed(prompt, pixels), valid)
        cache = Cache(past, valid, most)
        last = hidden[torch.arange(len(prompt), device=prompt.device), last_valid(valid)]
        state, left = grammar.start(len(prompt))
        written: list[Tensor] = []
        for number in range(most):
            logits = F.linear(last, head).float().masked_fill(~grammar.allowed(state, left), -torch.inf)
            going = left > 0
            token = torch.where(going, logits.argmax(-1) if choose is None else choose(logits), 0)
            written.append(torch.where(going, token, -1))
            moved = grammar.advance(state, left, token)
            state, left = (
                torch.where(going, new, old) for new, old in zip(moved, (state, left), strict=True)
            )
            if (number % CHECK_EVERY == CHECK_EVERY - 1 or number == most - 1) and not (left > 0).any():
                return torch.stack(written, 1)
            last = self._step(embedding[token], cache)
        raise unfinished(int((left > 0).sum()), len(left), most, grammar.length)

    def _read(self, embeds: Tensor, valid: Tensor) -> tuple[Tensor, list[KeyValues]]:
        mask = block_mask(valid, torch.ones(valid.shape[1], dtype=torch.bool, device=valid.device))
        # A row of padding before the first token sees nothing; it may see itself, and nobody sees it.
        mask = mask | torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
        return self.vlm.model.text_model(embeds, positions_of(valid).clamp_min(0), mask)  # type: ignore[no-any-return]

    def _step(self, embeds: Tensor, cache: Cache) -> Tensor:
        """The last hidden state (B, D) after one more token (B, D), whose keys and values go into the cache."""
        text = self.vlm.model.text_model
        place, positions, mask = cache.advance()
        tables = rotary_tables(positions, text.config.head_dim, text.config.rope_theta)
        hidden = embeds[:, None]
        for layer, (keys, values) in zip(text.layers, cache.layers, strict=True):
            assert isinstance(layer, DecoderLayer)
            normed = layer.input_layernorm(hidden)
            keys[:, :, place] = rotate(layer.keys(normed), *tables)[:, :, 0]
            values[:, :, place] = layer.values(normed)[:, :, 0]
            queries = rotate(layer.queries(normed), *tables)
            seen = attend(queries, keys[:, :, : place + 1], values[:, :, : place + 1], mask)
            hidden = layer.output_and_mlp(hidden, seen)
        last: Tensor = text.norm(hidden)[:, 0]
        return last


def last_valid(valid: Tensor) -> Tensor:
    """The place (B,) of each row's last token in (B, L)."""
    return (valid * torch.arange(valid.shape[1], device=valid.device)).amax(1)


class Cache:
    """Keys and values of what was read and written, each layer's (B, K, S + most, H), filled from the left."""

    def __init__(self, past: list[KeyValues], valid: Tensor, most: int) -> None:
        def roomy(x: Tensor) -> Tensor:
            return F.pad(x, (0, 0, 0, most))

        self.layers = [(roomy(keys), roomy(values)) for keys, values in past]
        self.valid = F.pad(valid, (0, most), value=True)
        self.length = valid.shape[1]
        self.positions = valid.sum(1, keepdim=True)

    def advance(self) -> tuple[int, Tensor, Tensor]:
        """Make room for a token: its place, its position (B, 1), and which keys it sees (B, 1, place + 1)."""
        place, position = self.length, self.positions
        self.length, self.positions = place + 1, position + 1
        return place, position, self.valid[:, None, : place + 1]
