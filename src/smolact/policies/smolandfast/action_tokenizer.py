"""FAST: chunks of actions as few tokens, and back.

A chunk is turned into frequencies (orthonormal DCT-II along time), scaled and rounded; the coefficients, low frequencies
first and all dimensions of one frequency together, are written as one character each, and byte-pair encoding merges what
often comes together. Source: K. Pertsch et al., 2025, "FAST: Efficient Action Tokenization for Vision-Language-Action
Models". The folder is the reference processor's; no code in it is run.
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
from smolact.policies.smolandfast.words import FIRST_SURROGATE, Codes, byte_of_character

logger = logging.getLogger(__name__)

Chunks = NDArray[np.floating[Any]]

CONFIG, TOKENIZER = "processor_config.json", "tokenizer.json"
PROCESSOR = "UniversalActionProcessor"

_HUGE = 2.0**52  # still a whole number when a tokenizer's smallest is taken from it
_FIT = "Fit a tokenizer on this dataset (smolact train-tokenizer), and give its folder as --policy.fast_tokenizer_path."


class FASTTokenizer:
    """Chunks to lists of token ids, and back.

    Attributes:
        scale: of the coefficients before rounding: the finer, the more tokens.
        min_token: what is added to a character to give its coefficient.
        horizon, dim: of the chunks that it was fitted on, T and D; None if it was made for any.
        replaced: how many coefficients could not be written so far, and were replaced by the nearest that can be.
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
        """A tokenizer for chunks like these.

        Args:
            chunks: (N, T, D), normalized to about [−1, 1].
            scale: see the class.
            vocab_size: at most so many tokens.

        Raises:
            FeatureError: the chunks are not (N, T, D), or not finite.
            ConfigError: the coefficients need more characters than `vocab_size`; the message says how many.
        """
        chunks = _checked(chunks)
        coefficients = _coefficients(chunks, scale)
        low, high = int(coefficients.min()), int(coefficients.max())
        room = min((high - low) * 3 // 2 + 1, FIRST_SURROGATE)  # for larger actions, yet unseen
        written = {byte: character for character, byte in byte_of_character().items()}
        alphabet = sorted({written[byte] for code in range(room) for byte in chr(code).encode()})
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
            NotFoundError, HubError: it is not there.
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
        except Exception as error:  # tokenizers raises nothing more particular
            raise ConfigError(f"{folder / TOKENIZER} is no tokenizer: {error}. {remedy}") from error
        return cls(
            tokenizer,
            _number(settings, "scale", folder),
            int(_number(settings, "min_token", folder)),
            _optional_size(settings, "time_horizon", folder),
            _optional_size(settings, "action_dim", folder),
        )

    def save(self, folder: str | Path) -> None:
        """Write the folder that `load` and the reference processor open."""
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
        """How many token ids there are."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, chunks: Chunks, *, strict: bool = False) -> list[list[int]]:
        """Token ids of chunks (N, T, D), normalized.

        A coefficient that the tokenizer can't write, since it was fitted on smaller actions, becomes the nearest that it can: below
        its smallest that is the reference's way too. That is counted (`replaced`) and told once, with the error that it makes.

        Args:
            chunks: the actions.
            strict: such a coefficient is an error.

        Raises:
            FeatureError: the chunks are not (N, T, D) of the tokenizer's T and D, or not finite; or see `strict`.
        """
        chunks = _checked(chunks)
        self.shape(*chunks.shape[1:])
        numbers = _coefficients(chunks, self.scale) - self.min_token
        codes = self._encoder.nearest(numbers)
        wrong = codes != numbers
        if wrong.any():
            found = self._unwritable(chunks, codes, wrong)
            if strict:
                raise FeatureError(f"{found} {_FIT}")
            if not self.replaced:
                logger.warning("%s The nearest that can be are taken (told once). %s", found, _FIT)
            self.replaced += int(wrong.sum())
        return self._encoder.encode(codes)

    def _unwritable(self, chunks: NDArray[np.float64], codes: Codes, wrong: NDArray[np.bool_]) -> str:
        """How many coefficients are wrong, and how far off the actions are that are written in place of theirs."""
        rows = wrong.any(1)
        away = np.abs(self._actions(codes[rows], *chunks.shape[1:]) - chunks[rows]).max((0, 1))
        return (
            f"{wrong.sum()} of {wrong.size} coefficients can't be written with this FAST tokenizer, which was fitted on other "
            f"actions: number {away.argmax()} of an action is up to {away.max():.3g} off, of a normalized range of 2."
        )

    def decode(
        self, ids: Sequence[Sequence[int]], horizon: int | None = None, dim: int | None = None
    ) -> NDArray[np.float32]:
        """Chunks (N, T, D) from token ids.

        Args:
            ids: a list of ids each.
            horizon, dim: T and D, where the tokenizer does not say.

        Raises:
            ActionTokensError: some ids are no chunk of that shape.
            ConfigError: T or D are not known, or not those of the tokenizer.
        """
        steps, size = self.shape(horizon, dim)
        return self._actions(self._codes(ids, steps * size), steps, size).astype(np.float32)

    def shape(self, horizon: int | None = None, dim: int | None = None) -> tuple[int, int]:
        """T and D of a chunk: the tokenizer's own, or the ones given where it has none.

        Raises:
            ConfigError: they are not known, or differ.
        """
        found = []
        for name, own, given in (("horizon", self.horizon, horizon), ("dimension", self.dim, dim)):
            size = given if own is None else own
            if size is None:
                raise ConfigError(f"This FAST tokenizer was made for any {name}: say which.")
            if given is not None and given != size:
                way = f"--policy.chunk_size={own}" if name == "horizon" else "a dataset with such actions"
                raise ConfigError(
                    f"This FAST tokenizer was fitted on chunks of {name} {own}, and these have {given}. Use {way}, or fit "
                    "another: smolact train-tokenizer."
                )
            found.append(size)
        return found[0], found[1]

    def grammar(self, horizon: int | None = None, dim: int | None = None) -> Grammar:
        """Which ids may follow which, so that `decode` always has a chunk: an automaton over the bytes of UTF-8.

        Raises:
            ConfigError: T or D are not known, or the tokens can't spell such a chunk.
        """
        steps, size = self.shape(horizon, dim)
        following = np.empty((len(_STATES), self.vocab_size), np.int64)
        ends = np.zeros_like(following)
        for token, spelled in enumerate(self._bytes):
            for state in range(len(_STATES)):
                following[state, token], ends[state, token] = _run(state, spelled)
        return Grammar.of(torch.from_numpy(following), torch.from_numpy(ends), steps * size)

    def _actions(self, codes: NDArray[np.integer[Any]], steps: int, size: int) -> NDArray[np.float64]:
        """The chunks (N, T, D) that characters spell."""
        waves = (codes.astype(np.int64) + self.min_token).reshape(-1, steps, size) / self.scale
        chunks: NDArray[np.float64] = _dct(steps).T @ waves
        return chunks

    def _codes(self, ids: Sequence[Sequence[int]], expected: int) -> NDArray[np.int64]:
        """The characters that ids spell, of all chunks one after the other."""
        spelled = self._bytes_of_id.__getitem__
        try:
            texts = [b"".join(map(spelled, each)).decode() for each in ids]
        except (KeyError, UnicodeDecodeError) as error:
            raise self._not_a_chunk(ids) from error
        for each, text in zip(ids, texts, strict=True):
            if len(text) != expected:
                raise ActionTokensError(
                    f"{len(each)} action tokens spell {len(text)} coefficients, and a chunk has {expected}."
                )
        return np.frombuffer("".join(texts).encode("utf-32-le"), "<u4").astype(np.int64)

    def _not_a_chunk(self, ids: Sequence[Sequence[int]]) -> ActionTokensError:
        """What is wrong with the first ids that spell nothing."""
        unknown = next((token for each in ids for token in each if token not in self._bytes_of_id), None)
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
        """What each id spells. A byte-level vocabulary writes each byte as a printable character."""
        table = byte_of_character()
        spelled = [b""] * self.vocab_size
        for token, number in self._tokenizer.get_vocab().items():
            known = all(character in table for character in token)
            spelled[number] = bytes(table[c] for c in token) if known else token.encode("utf-8")
        return spelled


# The bytes of UTF-8, as an automaton: a state is which bytes may come next, and where they lead.
_MORE = (0x80, 0xBF)
_STATES: tuple[tuple[tuple[int, int, int], ...], ...] = (
    (
        (0x00, 0x7F, 0),
        *((0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5), (0xEE, 0xEF, 2)),
        *((0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)),
    ),
    ((*_MORE, 0),),
    ((*_MORE, 1),),
    ((*_MORE, 2),),
    ((0xA0, 0xBF, 1),),  # no character in more bytes than it needs
    ((0x80, 0x9F, 1),),  # no surrogates
    ((0x90, 0xBF, 2),),
    ((0x80, 0x8F, 2),),  # nothing above the last character
)


def _run(state: int, spelled: bytes) -> tuple[int, int]:
    """The state after some bytes and how many characters they end; (−1, 0) if they can't come."""
    ended = 0
    for byte in spelled:
        state = next((after for low, high, after in _STATES[state] if low <= byte <= high), -1)
        if state < 0:
            return -1, 0
        ended += state == 0
    return (state, ended) if spelled else (-1, 0)


def _checked(chunks: Chunks) -> NDArray[np.float64]:
    array = np.asarray(chunks)
    if array.ndim != 3 or 0 in array.shape:
        raise FeatureError(f"Chunks have the shape {array.shape}: expected (chunks, steps, dimensions).")
    if not np.isfinite(array).all():
        raise FeatureError("A chunk of actions holds a number that is not finite.")
    return array.astype(np.float64)


def _coefficients(chunks: NDArray[np.float64], scale: float) -> NDArray[np.int64]:
    """(N, T · D), low frequencies first."""
    waves: NDArray[np.float64] = _dct(chunks.shape[1]) @ chunks
    return np.around(waves * scale).clip(-_HUGE, _HUGE).astype(np.int64).reshape(len(chunks), -1)


def _codes(coefficients: NDArray[np.int64], low: int) -> Codes:
    """The characters that coefficients are written as."""
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
    """The orthonormal DCT-II, (frequencies, steps); its inverse is its transpose."""
    time = np.arange(steps)
    waves: NDArray[np.float64] = np.cos(np.pi * time[:, None] * (2 * time + 1) / (2 * steps)) * np.sqrt(
        2 / steps
    )
    waves[0] /= np.sqrt(2)
    return waves


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
