"""FAST: action chunks as few tokens, and back.

A chunk is transformed to frequencies (orthonormal DCT-II along time), scaled and rounded; the coefficients, low frequencies
first and all dimensions of one frequency together, are written as one character each, and byte-pair encoding merges frequent
sequences. Source: K. Pertsch et al., 2025, "FAST: Efficient Action Tokenization for Vision-Language-Action Models".
The folder's format is the reference processor's; no code in it is run.
"""

# N chunks, T steps, D dimensions.

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from smolact import durable
from smolact.errors import ActionTokensError, ConfigError, FeatureError
from smolact.files import read_json_object
from smolact.hub import find_folder
from smolact.policies.smolandfast.byte_pairs import BatchEncoder
from smolact.policies.smolandfast.grammar import Grammar
from smolact.policies.smolandfast.schemes import ActionTokens, validated
from smolact.policies.smolandfast.words import FIRST_SURROGATE, Codes, byte_of_character

logger = logging.getLogger(__name__)

Chunks = NDArray[np.floating[Any]]

CONFIG, TOKENIZER = "processor_config.json", "tokenizer.json"
PROCESSOR = "UniversalActionProcessor"

_LIMIT = 2.0**52  # subtracting a tokenizer's smallest coefficient is still exact
_FIT_HINT = "Fit a tokenizer on this dataset (smolact train-tokenizer), and give its folder as --policy.fast_tokenizer_path."


class FASTTokenizer(ActionTokens):
    """Encodes chunks as lists of token ids, and decodes them.

    Attributes:
        scale: factor of the coefficients before rounding: a larger one is finer and needs more tokens.
        min_token: the offset from a character to its coefficient.
        horizon, dim: T and D of the chunks that it was fitted on; None if it was made for any.
        replaced: the number of coefficients so far that have no token and were replaced by the nearest one that has.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        scale: float,
        min_token: int,
        horizon: int | None = None,
        dim: int | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.scale, self.min_token, self.horizon, self.dim = scale, min_token, horizon, dim
        self.replaced = 0

    @classmethod
    def fit(cls, chunks: Chunks, *, scale: float = 10, vocab_size: int = 1024) -> FASTTokenizer:
        """Fit a tokenizer to chunks.

        Args:
            chunks: (N, T, D), normalized to about [−1, 1].
            scale: see the class.
            vocab_size: the maximum number of tokens.

        Raises:
            FeatureError: the chunks are not (N, T, D), or not finite.
            ConfigError: the coefficients need more characters than `vocab_size`; the message contains their number.
        """
        chunks = validated(chunks)
        coefficients = _coefficients(chunks, scale)
        low, high = int(coefficients.min()), int(coefficients.max())
        code_count = min((high - low) * 3 // 2 + 1, FIRST_SURROGATE)  # margin for larger actions
        characters = {byte: character for character, byte in byte_of_character().items()}
        alphabet = sorted({characters[byte] for code in range(code_count) for byte in chr(code).encode()})
        needed = max(high - low + 1, len(alphabet))
        if needed > vocab_size:
            raise ConfigError(
                f"vocab_size={vocab_size} is too small: at scale {scale:g} the coefficients go from {low} to {high}, and "
                f"each needs a token of its own. Use vocab_size={_next_power(needed)}, or a smaller scale."
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            show_progress=False,
            special_tokens=[],
            initial_alphabet=alphabet,
            max_token_length=10_000,
        )
        tokenizer.train_from_iterator(_as_text(coefficients, low), trainer)
        return cls(tokenizer, scale, low, *chunks.shape[1:])

    @classmethod
    def load(cls, name: str | Path) -> FASTTokenizer:
        """Open a folder or a Hub id, such as `physical-intelligence/fast`. Code in it is not run.

        Raises:
            NotFoundError, HubError: it does not exist.
            CheckpointError: a file is missing or damaged.
            ConfigError: it is another kind of processor.
        """
        folder = find_folder(name, "model", patterns=[CONFIG, TOKENIZER])
        remedy = "Is this the folder of a FAST tokenizer? `smolact train-tokenizer` makes one."
        settings = read_json_object(folder / CONFIG, remedy)
        if settings.get("processor_class") != PROCESSOR:
            raise ConfigError(
                f"{folder / CONFIG} is of a '{settings.get('processor_class')}', expected '{PROCESSOR}'. Whatever code "
                "comes with it is not run here. Give the folder of a FAST tokenizer."
            )
        content = json.dumps(read_json_object(folder / TOKENIZER, remedy))
        try:
            tokenizer = Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises no specific type
            raise ConfigError(f"{folder / TOKENIZER} is no tokenizer: {error}. {remedy}") from error
        return cls(
            tokenizer,
            _number(settings, "scale", folder),
            int(_number(settings, "min_token", folder)),
            _optional_size(settings, "time_horizon", folder),
            _optional_size(settings, "action_dim", folder),
        )

    def save(self, folder: str | Path) -> None:
        """Write a folder that `load` and the reference processor open."""
        folder = Path(folder)
        scale = int(self.scale) if float(self.scale).is_integer() else self.scale
        durable.write_text(folder / TOKENIZER, self._tokenizer.to_str(pretty=True))
        durable.write_json(
            folder / CONFIG,
            {
                "action_dim": self.dim,
                "min_token": self.min_token,
                "processor_class": PROCESSOR,
                "scale": scale,
                "time_horizon": self.horizon,
                "vocab_size": self.vocab_size,
            },
        )
        durable.write_json(
            folder / "tokenizer_config.json",
            {
                "clean_up_tokenization_spaces": False,
                "processor_class": PROCESSOR,
                "tokenizer_class": "PreTrainedTokenizerFast",
            },
        )

    @property
    def vocab_size(self) -> int:
        """The number of token ids."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, chunks: Chunks, *, strict: bool = False) -> list[list[int]]:
        """Encode normalized chunks (N, T, D) as token ids.

        A coefficient without a token, since the tokenizer was fitted on smaller actions, is replaced by the nearest one that has a
        token, as in the reference for those below the smallest. `replaced` counts them; the first are logged with their error.

        Args:
            chunks: the actions.
            strict: raise an error for such a coefficient.

        Raises:
            FeatureError: the chunks are not (N, T, D), or not finite; or see `strict`.
            ConfigError: T or D are not the tokenizer's.
        """
        chunks = validated(chunks)
        self.shape(*chunks.shape[1:])
        numbers = _coefficients(chunks, self.scale) - self.min_token
        codes = self._encoder.nearest(numbers)
        replaced = codes != numbers
        if replaced.any():
            message = self._error_message(chunks, codes, replaced)
            if strict:
                raise FeatureError(f"{message} {_FIT_HINT}")
            if not self.replaced:
                logger.warning("%s The nearest that can be are taken (told once). %s", message, _FIT_HINT)
            self.replaced += int(replaced.sum())
        return self._encoder.encode(codes)

    def _error_message(self, chunks: NDArray[np.float64], codes: Codes, replaced: NDArray[np.bool_]) -> str:
        """Describe the number of replaced coefficients, and the resulting error of the actions."""
        rows = replaced.any(1)
        error = np.abs(self._actions(codes[rows], *chunks.shape[1:]) - chunks[rows]).max((0, 1))
        return (
            f"{replaced.sum()} of {replaced.size} coefficients can't be written with this FAST tokenizer, which was fitted on other "
            f"actions: number {error.argmax()} of an action is up to {error.max():.3g} off, of a normalized range of 2."
        )

    def decode(
        self, ids: Sequence[Sequence[int]], horizon: int | None = None, dim: int | None = None
    ) -> NDArray[np.float32]:
        """Decode token ids to chunks (N, T, D).

        Args:
            ids: one list of ids per chunk.
            horizon, dim: T and D, where the tokenizer has none.

        Raises:
            ActionTokensError: some ids form no chunk of that shape.
            ConfigError: T or D are unknown, or not those of the tokenizer.
        """
        steps, size = self.shape(horizon, dim)
        return self._actions(self._codes(ids, steps * size), steps, size).astype(np.float32)

    def shape(self, horizon: int | None = None, dim: int | None = None) -> tuple[int, int]:
        """Return T and D of a chunk: the tokenizer's own, or the arguments where it has none.

        Raises:
            ConfigError: they are unknown, or differ.
        """
        sizes = []
        for name, fitted, requested in (("horizon", self.horizon, horizon), ("dimension", self.dim, dim)):
            size = requested if fitted is None else fitted
            if size is None:
                raise ConfigError(f"This FAST tokenizer was made for any {name}: say which.")
            if requested is not None and requested != size:
                fix = f"--policy.chunk_size={fitted}" if name == "horizon" else "a dataset with such actions"
                raise ConfigError(
                    f"This FAST tokenizer was fitted on chunks of {name} {fitted}, and these have {requested}. Use {fix}, or fit "
                    "another: smolact train-tokenizer."
                )
            sizes.append(size)
        return sizes[0], sizes[1]

    def grammar(self, horizon: int | None = None, dim: int | None = None) -> Grammar:
        """Return the grammar of ids that `decode` accepts: an automaton over the bytes of UTF-8.

        Raises:
            ConfigError: T or D are unknown, or the tokens can't spell such a chunk.
        """
        steps, size = self.shape(horizon, dim)
        following = np.empty((len(_STATES), self.vocab_size), np.int64)
        ends = np.zeros_like(following)
        for token, content in enumerate(self._bytes):
            for state in range(len(_STATES)):
                following[state, token], ends[state, token] = _state_after(state, content)
        return Grammar.of(torch.from_numpy(following), torch.from_numpy(ends), steps * size)

    def _actions(self, codes: NDArray[np.integer[Any]], steps: int, size: int) -> NDArray[np.float64]:
        """Return the chunks (N, T, D) that characters spell."""
        spectrum = (codes.astype(np.int64) + self.min_token).reshape(-1, steps, size) / self.scale
        chunks: NDArray[np.float64] = _dct(steps).T @ spectrum
        return chunks

    def _codes(self, ids: Sequence[Sequence[int]], expected: int) -> NDArray[np.int64]:
        """Return the characters that ids spell, of all chunks one after the other."""
        lookup = self._bytes_of_id.__getitem__
        try:
            texts = [b"".join(map(lookup, row)).decode() for row in ids]
        except (KeyError, UnicodeDecodeError) as error:
            raise self._decoding_error(ids) from error
        for row, text in zip(ids, texts, strict=True):
            if len(text) != expected:
                raise ActionTokensError(
                    f"{len(row)} action tokens spell {len(text)} coefficients, and a chunk has {expected}."
                )
        return np.frombuffer("".join(texts).encode("utf-32-le"), "<u4").astype(np.int64)

    def _decoding_error(self, ids: Sequence[Sequence[int]]) -> ActionTokensError:
        unknown = next((token for row in ids for token in row if token not in self._bytes_of_id), None)
        if unknown is not None:
            return ActionTokensError(f"{unknown} is no action token: there are 0 to {len(self._bytes) - 1}.")
        return ActionTokensError(
            f"{len(ids)} rows of action tokens are no chunks: in one of them a character is broken off."
        )

    @cached_property
    def _encoder(self) -> BatchEncoder:
        return BatchEncoder(self._tokenizer)

    @cached_property
    def _bytes_of_id(self) -> dict[int, bytes]:
        return dict(enumerate(self._bytes))

    @cached_property
    def _bytes(self) -> list[bytes]:
        """The bytes of each id. A byte-level vocabulary writes each byte as a printable character."""
        table = byte_of_character()
        contents = [b""] * self.vocab_size
        for token, number in self._tokenizer.get_vocab().items():
            is_encoded = all(character in table for character in token)
            contents[number] = bytes(table[c] for c in token) if is_encoded else token.encode("utf-8")
        return contents


# The bytes of UTF-8 as an automaton: a state lists the valid next bytes and the states behind them.
_CONTINUATION = (0x80, 0xBF)
_STATES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    (
        (0x00, 0x7F, 0),
        *((0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5), (0xEE, 0xEF, 2)),
        *((0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)),
    ),
    ((*_CONTINUATION, 0),),
    ((*_CONTINUATION, 1),),
    ((*_CONTINUATION, 2),),
    ((0xA0, 0xBF, 1),),  # no overlong encodings
    ((0x80, 0x9F, 1),),  # no surrogates
    ((0x90, 0xBF, 2),),
    ((0x80, 0x8F, 2),),  # nothing above U+10FFFF
)


def _state_after(state: int, content: bytes) -> tuple[int, int]:
    """Return the state after some bytes and the number of characters that they end; (−1, 0) if they are invalid."""
    completed = 0
    for byte in content:
        state = next((target for low, high, target in _STATES[state] if low <= byte <= high), -1)
        if state < 0:
            return -1, 0
        completed += state == 0
    return (state, completed) if content else (-1, 0)


def _coefficients(chunks: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    """Return coefficients (N, T · D), low frequencies first."""
    spectrum: NDArray[np.float64] = _dct(chunks.shape[1]) @ chunks
    return np.around(spectrum * scale).clip(-_LIMIT, _LIMIT).astype(np.int64).reshape(len(chunks), -1)


def _codes(coefficients: NDArray[np.int64], low: int) -> Codes:
    """Return the characters that coefficients are written as."""
    codes = np.maximum(coefficients - low, 0)
    if codes.max() >= FIRST_SURROGATE:
        raise FeatureError(
            f"An action's coefficient is {codes.max() + low}, far outside of what a tokenizer can write. Are the actions "
            "normalized?"
        )
    return codes.astype(np.uint32)


def _as_text(coefficients: NDArray[np.int64], low: int) -> Iterator[str]:
    return (row.astype("<u4").tobytes().decode("utf-32-le") for row in _codes(coefficients, low))


@lru_cache(maxsize=8)
def _dct(steps: int) -> NDArray[np.float64]:
    """Return the orthonormal DCT-II, (frequencies, steps); its inverse is its transpose."""
    time = np.arange(steps)
    matrix: NDArray[np.float64] = np.cos(np.pi * time[:, None] * (2 * time + 1) / (2 * steps)) * np.sqrt(
        2 / steps
    )
    matrix[0] /= np.sqrt(2)
    return matrix


def _number(settings: dict[str, Any], name: str, folder: Path) -> float:
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
        raise ConfigError(f"{folder / CONFIG} has {name}={value!r}: expected a number.")
    return value


def _optional_size(settings: dict[str, Any], name: str, folder: Path) -> int | None:
    value = settings.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ConfigError(
            f"{folder / CONFIG} has {name}={value!r}: expected a whole number above 0, or null."
        )
    return value


def _next_power(size: int) -> int:
    return 1 << (size - 1).bit_length()
