"""The words of the language model that stand for actions."""

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
        pad: the padding token.
    """

    words: tuple[int, ...]
    end: int
    pad: int

    @classmethod
    def of(cls, words: tuple[int, ...], tokenizer: Tokenizer) -> ActionVocabulary:
        """Make a vocabulary with a tokenizer's own end and padding tokens."""
        end = tokenizer.token_id(END) if tokenizer.end_token_id is None else tokenizer.end_token_id
        return cls(words, end, tokenizer.pad_token_id)

    def spoken(self, ids: Tensor) -> Tensor:
        """Return the words of action tokens, of any shape."""
        return torch.tensor(self.words, device=ids.device)[ids]


def last_words(count: int, size: int, skipped: int) -> tuple[int, ...]:
    """Return the vocabulary's last words but for some, counted downwards, as π0-FAST adds action tokens to a language model.

    Args:
        count: the number of action tokens.
        size: that of the tokenizer's own vocabulary, without added tokens.
        skipped: the number of last words that actions do not use.

    Raises:
        ConfigError: there are too few words.
    """
    if count + skipped > size:
        raise ConfigError(
            f"{count} action tokens do not fit into a vocabulary of {size} with {skipped} skipped at its "
            f"end. Fit a tokenizer with --vocab_size={max(0, size - skipped)} or less (smolact train-tokenizer), or "
            "lower --policy.fast_skip_tokens."
        )
    return tuple(size - 1 - skipped - number for number in range(count))
