"""Which words of the language model stand for actions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from smolact.errors import ConfigError
from smolact.processors.tokenizer import Tokenizer

END = "<end_of_utterance>"


@dataclass(frozen=True)
class ActionVocabulary:
    """The words of action tokens.

    Attributes:
        words: the language model's token for each action token.
        end: the token that ends an answer.
        pad: what fills up shorter sequences.
    """

    words: tuple[int, ...]
    end: int
    pad: int

    @classmethod
    def of(cls, words: tuple[int, ...], tokenizer: Tokenizer) -> ActionVocabulary:
        """With a tokenizer's own tokens for end and padding."""
        end = tokenizer.token_id(END) if tokenizer.end_token_id is None else tokenizer.end_token_id
        return cls(words, end, tokenizer.pad_token_id)

    def spoken(self, ids: Tensor) -> Tensor:
        """Words of action tokens, of any shape."""
        return torch.tensor(self.words, device=ids.device)[ids]


def last_words(count: int, size: int, skipped: int) -> tuple[int, ...]:
    """The vocabulary's last words but for some, counted downwards: how π0-FAST puts action tokens into a language model.

    Args:
        count: how many action tokens there are.
        size: of the tokenizer's own vocabulary, added tokens left aside.
        skipped: the last words, which actions do not use.

    Raises:
        ConfigError: there are not so many words.
    """
    if count + skipped > size:
        raise ConfigError(
            f"{count} action tokens do not fit into a vocabulary of {size} with {skipped} skipped at its "
            f"end. Fit a tokenizer with --vocab_size={max(0, size - skipped)} or less (smolact train-tokenizer), or "
            "lower --policy.fast_skip_tokens."
        )
    return tuple(size - 1 - skipped - number for number in range(count))
