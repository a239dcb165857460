"""Tokenization of the instruction by the `tokenizers` library, with transformers' results for the same folder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from smolact.errors import CheckpointError, ConfigError, FeatureError, NotFoundError, list_siblings
from smolact.files import read_json_object
from smolact.openable import check_own
from smolact.processors.step import ProcessorStep, register_step
from smolact.types import LANGUAGE_MASK, LANGUAGE_TOKENS, TASK, EmptyInstruction

log = logging.getLogger(__name__)

LENGTH_FLAG = "--policy.tokenizer_max_length"


class Tokenizer:
    """A tokenizer of the Hub's folder format.

    Args:
        tokenizer: the library's object, without truncation and padding of its own.
        truncation_side: the side on which too long a sequence loses tokens.
        end_token_id: the token that ends a sequence, if the folder names it.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        pad_token_id: int,
        truncation_side: str = "right",
        end_token_id: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.pad_token_id = pad_token_id
        self.truncation_side = truncation_side
        self.end_token_id = end_token_id

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Load a folder's tokenizer: `tokenizer.json`, and the padding token's name in one of the files next to it.

        Raises:
            NotFoundError: there is no `tokenizer.json`.
            CheckpointError: a file is damaged, or none names a padding token.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise NotFoundError(
                f"There is no tokenizer in {folder}: {path} is missing. {list_siblings(path.absolute())}"
            )
        try:
            check_own(path)
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare `Exception`
            raise CheckpointError(f"{path} is not a tokenizer ({error}). Fetch or copy it again.") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        config = _read_json(folder / "tokenizer_config.json")
        special = _read_json(folder / "special_tokens_map.json")
        name, end = (
            _token_text(config.get(kind)) or _token_text(special.get(kind))
            for kind in ("pad_token", "eos_token")
        )
        pad = tokenizer.token_to_id(name) if name is not None else None
        if pad is None:
            problem = (
                "no padding token is named"
                if name is None
                else f"the padding token '{name}' is not in the vocabulary"
            )
            raise CheckpointError(
                f"In {folder}, {problem}: expected a `pad_token` in tokenizer_config.json that tokenizer.json knows."
            )
        side = config.get("truncation_side", "right")
        if side not in ("right", "left"):
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: truncation_side={side!r} is neither right nor left."
            )
        return cls(tokenizer, pad, side, None if end is None else tokenizer.token_to_id(end))

    def encode_batch(
        self,
        texts: Sequence[str],
        max_length: int | None = None,
        padding: str = "longest",
        padding_side: str = "right",
        truncation: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return token ids (B, L) int64 and the attention mask (B, L) bool.

        L is the longest text's length, or `max_length` with padding `max_length`. A text over `max_length` is truncated,
        or, without truncation, makes L larger.
        """
        limit = max_length if truncation else None
        encoded = {text: self.encode(text, limit) for text in set(texts)}  # few tasks, often repeated
        rows = [encoded[text] for text in texts]
        length = max(map(len, rows), default=0)
        if padding == "max_length" and max_length is not None:
            length = max(length, max_length)
        ids, mask = [], []
        for row in rows:
            missing = length - len(row)
            left, right = (0, missing) if padding_side == "right" else (missing, 0)
            ids.append([self.pad_token_id] * left + row + [self.pad_token_id] * right)
            mask.append([False] * left + [True] * len(row) + [False] * right)
        return torch.tensor(ids, dtype=torch.int64), torch.tensor(mask, dtype=torch.bool)

    def encode(self, text: str, max_length: int | None = None) -> list[int]:
        """Return the token ids of one text, at most `max_length` with the special tokens that the tokenizer adds.

        Raises:
            ConfigError: the special tokens alone are more.
        """
        # One text at a time: `encode_batch` of the library would start threads, which forked data workers can't use.
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        if max_length is not None:
            remaining = max_length - self._tokenizer.num_special_tokens_to_add(is_pair=False)
            if remaining < 0:
                raise ConfigError(
                    f"{max_length} tokens do not even hold the special ones that this tokenizer adds. Raise {LENGTH_FLAG}."
                )
            encoding.truncate(remaining, direction=self.truncation_side)
        ids: list[int] = self._tokenizer.post_process(encoding).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_id(self, token: str) -> int:
        """Return the id of a token given as text, such as `<image>`.

        Raises:
            ConfigError: it is not in the vocabulary.
        """
        token_id: int | None = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ConfigError(f"The tokenizer has no token '{token}'. Use one that was made for a SmolVLM.")
        return token_id

    @property
    def vocab_size(self) -> int:
        """The number of tokens of the tokenizer's model, without added tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        """Return the number of tokens, with added tokens."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))


@register_step("tokenizer_processor")
@dataclass
class TokenizerProcessorStep(ProcessorStep):
    """Tokenizes `task` to `observation.language.tokens` (B, L) int64 and `observation.language.attention_mask` (B, L) bool.

    Args:
        max_length: a longer task is truncated, which is logged once.
        task_key: the key of the text, a str or a list of B.
        padding_side: `right` or `left`.
        padding: `longest` (of the batch) or `max_length`.
        truncation: whether a task over `max_length` is truncated; otherwise L grows.
        tokenizer_name: the tokenizer's folder, as a checkpoint names it.
        tokenizer: used instead of opening `tokenizer_name`.

    Raises:
        ConfigError: a setting that does not exist, or, in a batch, a task that is empty.
        NotFoundError: `tokenizer_name` is no folder with a tokenizer, and no `tokenizer` was given.
        FeatureError: the batch has no task, or it is not text.
    """

    max_length: int = 512
    task_key: str = TASK
    padding_side: str = "right"
    padding: str = "max_length"
    truncation: bool = True
    tokenizer_name: str | None = None
    tokenizer: Tokenizer | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.max_length, bool) or not isinstance(self.max_length, int) or self.max_length < 1:
            raise ConfigError(
                f"max_length={self.max_length!r} is not a positive number of tokens ({LENGTH_FLAG})."
            )
        for name, value, known in (
            ("padding_side", self.padding_side, ("right", "left")),
            ("padding", self.padding, ("longest", "max_length")),
        ):
            if value not in known:
                raise ConfigError(f"{name}={value!r} of the tokenizer step is not one of {', '.join(known)}.")
        if not isinstance(self.task_key, str) or not isinstance(self.tokenizer, (Tokenizer, type(None))):
            raise ConfigError(
                f"task_key={self.task_key!r} should be a name, tokenizer={self.tokenizer!r} a Tokenizer or nothing."
            )
        self._tokenizer = self.tokenizer if self.tokenizer is not None else _open(self.tokenizer_name)
        self._has_warned = False

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch with the tokens of its task."""
        texts = instructions(data, self.task_key)
        ids, mask = self._tokenizer.encode_batch(
            texts, self.max_length, self.padding, self.padding_side, self.truncation
        )
        if self.truncation and not self._has_warned:
            self._warn_of_truncation(texts, mask)
        return {**data, LANGUAGE_TOKENS: ids, LANGUAGE_MASK: mask}

    def get_config(self) -> dict[str, Any]:
        """Return the settings, and the tokenizer's name if it has one."""
        config = {
            "max_length": self.max_length,
            "task_key": self.task_key,
            "padding_side": self.padding_side,
            "padding": self.padding,
            "truncation": self.truncation,
        }
        return config if self.tokenizer_name is None else {**config, "tokenizer_name": self.tokenizer_name}

    def _warn_of_truncation(self, texts: Sequence[str], mask: Tensor) -> None:
        for text, is_full in zip(texts, (mask.sum(dim=1) == self.max_length).tolist(), strict=True):
            length = len(self._tokenizer.encode(text)) if is_full else 0
            if length > self.max_length:
                self._has_warned = True
                log.warning(
                    "A task has %d tokens, %d are used, and it loses its end (told once): %r. Shorten it, or raise %s.",
                    length,
                    self.max_length,
                    text,
                    LENGTH_FLAG,
                )
                return


def instructions(data: Mapping[str, Any], key: str = TASK) -> list[str]:
    """Return the instructions of a batch, one per sample.

    Raises:
        FeatureError: there are none, or they are not text.
        ConfigError: one is empty, and not an `EmptyInstruction`.
    """
    task = data.get(key)
    if task is None:
        raise FeatureError(
            f"The batch has no '{key}': this policy needs an instruction with each observation. "
            f"The batch has: {', '.join(sorted(data)) or 'nothing'}."
        )
    texts = [task] if isinstance(task, str) else task
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise FeatureError(f"'{key}' is {task!r:.200}: expected a text, or a list of one for each sample.")
    for index, text in enumerate(texts):
        if not text.strip() and not isinstance(text, EmptyInstruction):
            raise ConfigError(
                f"The task of sample {index} is empty: say what the robot should do, such as "
                "'Pick up the red cube.' (in the dataset's tasks, or the command's --task)."
            )
    return list(texts)


def _open(name: str | None) -> Tokenizer:
    if name is None:
        raise ConfigError(
            "The tokenizer step needs a tokenizer: a folder (--policy.vlm_model_name=FOLDER) or an object."
        )
    if not Path(name).is_dir():
        raise NotFoundError(
            f"The tokenizer '{name}' is not a folder: expected one that holds tokenizer.json. Give it with "
            f"--policy.vlm_model_name=FOLDER. {list_siblings(Path(name).absolute())}"
        )
    return Tokenizer.from_folder(name)


def _read_json(path: Path) -> dict[str, Any]:
    return read_json_object(path, "Fetch or copy it again.") if path.exists() else {}


def _token_text(token: Any) -> str | None:
    # Older files: {"content": "<pad>", …}.
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None
