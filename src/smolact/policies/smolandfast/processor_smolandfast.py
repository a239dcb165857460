"""SmolAndFAST's processor step, which writes prompts and answers as tokens."""

# B batch, L prompt tokens, M answer tokens.

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from smolact.errors import ConfigError, FeatureError
from smolact.files import read_json_object
from smolact.policies.smolandfast.configuration_smolandfast import SMOLANDFASTConfig
from smolact.policies.smolandfast.prompts import FETCH_HINT, image_tokens, instruction, prompt, state_bins
from smolact.policies.smolandfast.schemes import ActionTokens, ActionVocabulary
from smolact.policies.smolandfast.tiles import grid
from smolact.processors.step import ProcessorStep, register_step
from smolact.processors.tokenizer import Tokenizer, instructions
from smolact.types import ACTION, ACTION_TOKEN_MASK, ACTION_TOKENS, LANGUAGE_MASK, LANGUAGE_TOKENS, STATE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptWriter:
    """Writes prompts and answers. It belongs to the policy and is not in the pipeline's file.

    Attributes:
        image_tokens: tokens of an image, or of a tile of it.
        tile, longest_edge: for image splitting; no splitting where `longest_edge` is None.
        crop: (height, width) of the crop of each image, or None.
    """

    tokenizer: Tokenizer
    template: str
    actions: ActionTokens
    vocabulary: ActionVocabulary
    image_tokens: int
    tile: int
    longest_edge: int | None
    crop: tuple[int, int] | None

    def image(self, height: int, width: int) -> str:
        """Return the tokens of an image of this size."""
        if self.longest_edge is None:
            return image_tokens(self.image_tokens)
        rows, columns = grid(*(self.crop or (height, width)), self.tile, self.longest_edge)
        return image_tokens(self.image_tokens, rows, columns)


@register_step("smolandfast_prompt_processor")
@dataclass
class SmolAndFASTPromptStep(ProcessorStep):
    """Writes task, normalized state and images' sizes as a prompt, and normalized actions as the answer.

    It adds `observation.language.tokens` (B, L) int64, padded on the left, with their mask, and, if the batch has actions,
    `action.tokens` (B, M) int64, padded on the right, with theirs.

    Args:
        n_state_bins: number of bins of a state value.
        max_input_seq_len: maximum number of tokens of prompt and answer.

    Raises:
        ConfigError: in a batch, a task that is empty, or a prompt that is too long.
        FeatureError: the batch has no task or state, or its actions can't be written.
    """

    n_state_bins: int = 256
    max_input_seq_len: int = 1536
    cameras: Sequence[str] = ()
    writer: PromptWriter | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._warned = False

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with prompt and, in training, answer."""
        writer = self.writer
        if writer is None:
            raise ConfigError("The prompt step has no writer: load the policy with smolact.load_policy.")
        tasks, state = instructions(data), data.get(STATE)
        if state is None:
            raise FeatureError(f"The batch has no '{STATE}', which SmolAndFAST writes into its prompt.")
        bins, outside = state_bins(state, self.n_state_bins)
        if outside and not self._warned:
            self._warned = True
            logger.warning(
                "%d of %d state values lie outside of the range that the statistics tell, and are clipped to it (told once).",
                outside,
                state.numel(),
            )
        images = [writer.image(*data[key].shape[-2:]) for key in self.cameras if key in data]
        texts = [
            prompt(instruction(task, row), images, writer.template)
            for task, row in zip(tasks, bins.tolist(), strict=True)
        ]
        prompts, valid = writer.tokenizer.encode_batch(texts, padding_side="left")
        encoded: dict[str, Any] = {LANGUAGE_TOKENS: prompts, LANGUAGE_MASK: valid}
        if ACTION in data:
            encoded[ACTION_TOKENS], encoded[ACTION_TOKEN_MASK] = encode_answers(writer, data[ACTION])
        self._check_length(prompts, encoded.get(ACTION_TOKENS))
        return {**data, **{key: value.to(state.device) for key, value in encoded.items()}}

    def get_config(self) -> dict[str, Any]:
        """Return the settings; the writer is the policy's."""
        return {
            "n_state_bins": self.n_state_bins,
            "max_input_seq_len": self.max_input_seq_len,
            "cameras": list(self.cameras),
        }

    def _check_length(self, prompts: Tensor, answer: Tensor | None) -> None:
        length = prompts.shape[1] + (0 if answer is None else answer.shape[1])
        if length > self.max_input_seq_len:
            raise ConfigError(
                f"Prompt and answer have {length} tokens, more than max_input_seq_len={self.max_input_seq_len}. Raise "
                "--policy.max_input_seq_len, shorten the task, or use fewer image tokens (--policy.scale_factor)."
            )


def encode_answers(writer: PromptWriter, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Encode normalized chunks (B, T, D) as token ids (B, M) and their mask; each ends with the end token."""
    vocabulary = writer.vocabulary
    rows = [
        F.pad(vocabulary.spoken(torch.tensor(ids, dtype=torch.int64)), (0, 1), value=vocabulary.end)
        for ids in writer.actions.encode(actions.detach().float().cpu().numpy())
    ]
    longest = max(map(len, rows))
    ids = torch.stack([F.pad(row, (0, longest - len(row)), value=vocabulary.pad) for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


def prompt_step(config: SMOLANDFASTConfig, writer: PromptWriter | None) -> SmolAndFASTPromptStep:
    """Return the prompt step of a policy with this configuration."""
    return SmolAndFASTPromptStep(
        config.n_state_bins, config.max_input_seq_len, tuple(config.image_features), writer
    )


def longest_edge(folder: Path, tile: int) -> int:
    """Return the length of an image's longer side before splitting, as in the VLM's processor; four tiles if it has none.

    Raises:
        CheckpointError: a file is damaged.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = folder / name
        if path.is_file():
            settings = read_json_object(path, FETCH_HINT)
            inner = settings.get("image_processor")
            size = (inner if isinstance(inner, dict) else settings).get("size")
            edge = size.get("longest_edge") if isinstance(size, dict) else None
            if isinstance(edge, int) and edge >= tile:
                return edge
    return 4 * tile
