"""Which words of the language model stand for actions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from smolact.errors import ConfigError


@dataclass(frozen=True)
class ActionVocabulary:
    """Which tokens of the language model stand for action tokens: the last ones, but for some, counted downwards.

    Attributes:
        size: of the tokenizer's own vocabulary, added tokens left aside.
        skipped: the last tokens, which actions do not use.
        actions: how many action tokens there are.
        end: the token that ends an answer.
        pad: what fills up shorter sequences.

    Raises:
        ConfigError: there are more action tokens than tokens.
    """

    size: int
    skipped: int
    actions: int
    end: int
    pad: int

    def __post_init__(self) -> None:
        if self.actions + self.skipped > self.size:
            raise ConfigError(
                f"{self.actions} action tokens do not fit into a vocabulary of {self.size} with {self.skipped} skipped at its "
                f"end. Fit a tokenizer with --vocab_size={max(0, self.size - self.skipped)} or less (smolact train-tokenizer), or "
                "lower --policy.fast_skip_tokens."
            )

    def swapped(self, ids: Tensor) -> Tensor:
        """Action ids to token ids, and token ids to action ids: the one is counted from the other's end."""
        return self.size - 1 - self.skipped - ids
