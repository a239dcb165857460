"""Texts encoded all at once, against the tokenizer itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from smolact.policies.smolandfast import byte_pairs
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.policies.smolandfast.byte_pairs import BatchEncoder
from smolact.policies.smolandfast.words import CUT, byte_of_character, word_starts
from tests.policies.smolandfast.test_action_tokenizer import DATA, FOLDERS, reference

ENGLISH = "it's we're 'tis  I'll\tdon't 'd 've 42's  x1 !'re\n\x1f\x1e é\x85ß\u00a0ж '"
"""What words are cut at: contractions, runs of spaces, digits, signs."""


def fitted_on(texts: list[str], size: int) -> FASTTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts * 9, trainer)
    return FASTTokenizer(tokenizer, 10, 0)


def repetitive() -> list[str]:
    """Few letters in long rows: what is merged depends on what is merged far away."""
    random = np.random.default_rng(0)
    rows = random.choice(list("aab"), (60, 40))
    return ["".join(row) for row in rows] + ["a" * length for length in range(1, 40)]


TOKENIZERS = {
    **{name: FASTTokenizer.load(DATA / name) for name in FOLDERS},
    "words": fitted_on([ENGLISH], 330),
    "rows": fitted_on(repetitive(), 400),
}


def plainly(tokenizer: FASTTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def codes_of(texts: list[str]) -> Any:
    return np.array([[ord(character) for character in text] for text in texts], np.uint32)


def at_once(tokenizer: FASTTokenizer, codes: Any) -> list[list[int]]:
    pairs = tokenizer._encoder._pairs
    assert pairs is not None
    return pairs.encode(codes)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40)
@given(data=st.data())
def test_ids_are_the_tokenizers_own(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    able = np.flatnonzero(tokenizer._encoder._writable[:600]).tolist()
    often = [ord(c) for c in ("ab" if name == "rows" else ENGLISH) if ord(c) in able] or able
    characters = st.one_of(st.sampled_from(able), st.sampled_from(often))
    rows = data.draw(st.lists(st.lists(characters, min_size=30, max_size=30), min_size=1, max_size=4))
    texts = ["".join(map(chr, row)) for row in rows]
    assert at_once(tokenizer, codes_of(texts)) == [plainly(tokenizer, text) for text in texts]


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_of_many_new_chunks_are_the_tokenizers_own(name: str) -> None:
    tokenizer, expected, _ = reference(name)
    random, known = np.random.default_rng(0), expected["chunks"]
    first, second = random.integers(len(known), size=(2, 1500))
    chunks = known[first] + 0.3 * (known[second] - known[first]) * random.random((1500, 1, 1))
    chunks += random.normal(0, 0.02, chunks.shape)
    one_by_one = [ids for chunk in chunks for ids in tokenizer.encode(chunk[None])]
    assert tokenizer.encode(chunks) == one_by_one


@pytest.mark.parametrize("reach", [1, 2])
def test_bounds_that_decide_nothing_look_further(monkeypatch: pytest.MonkeyPatch, reach: int) -> None:
    monkeypatch.setattr(byte_pairs, "REACH", reach)
    tokenizer, random = TOKENIZERS["rows"], np.random.default_rng(1)
    codes = random.choice([97, 97, 97, 98], (400, 60)).astype(np.uint32)
    texts = ["".join(map(chr, row)) for row in codes.tolist()]
    assert at_once(tokenizer, codes) == [plainly(tokenizer, text) for text in texts]


def test_words_are_cut_as_the_tokenizer_cuts_them() -> None:
    random = np.random.default_rng(0)
    able = np.array([ord(character) for character in ENGLISH + " ''srevl"])
    codes = random.choice(able, (1500, 24)).astype(np.uint32)
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for row, starts in zip(codes.tolist(), word_starts(codes), strict=True):
        words = cut.pre_tokenize_str("".join(map(chr, row)))
        assert [begin for _, (begin, _) in words] == np.flatnonzero(starts).tolist()


def test_every_character_is_of_the_kind_that_the_tokenizer_says() -> None:
    cut = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for other in "a0!\t":
        codes = np.array([[ord(other), code, ord(other)] for code in range(CUT)], np.uint32)
        for row, starts in zip(codes.tolist(), word_starts(codes), strict=True):
            words = cut.pre_tokenize_str("".join(map(chr, row)))
            assert [begin for _, (begin, _) in words] == np.flatnonzero(starts).tolist()


def test_more_texts_than_are_encoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, expected, ids = reference("fast_tokenizer")
    monkeypatch.setattr(byte_pairs, "AT_ONCE", 25)
    assert tokenizer.encode(expected["chunks"]) == ids


def test_characters_of_three_bytes_are_left_to_the_tokenizer() -> None:
    tokenizer = TOKENIZERS["words"]
    texts = [chr(CUT + number) + "it's" for number in range(40)]
    assert tokenizer._encoder.encode(codes_of(texts)) == [plainly(tokenizer, text) for text in texts]


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["pre_tokenizer"].update(add_prefix_space=True),
        lambda found: found["pre_tokenizer"].update(use_regex=False),
        lambda found: found["model"].update(ignore_merges=True),
        lambda found: found.update(normalizer={"type": "Lowercase"}),
        lambda found: found.update(pre_tokenizer=None),
    ],
)
def test_other_tokenizers_encode_themselves(change: Any) -> None:
    found = json.loads(TOKENIZERS["words"]._tokenizer.to_str())
    change(found)
    other = Tokenizer.from_str(json.dumps(found))
    encoder = BatchEncoder(other)
    text = ENGLISH.replace(" ", "")[:25] if found["pre_tokenizer"] is None else ENGLISH[:25]
    expected = other.encode(text, add_special_tokens=False).ids
    assert encoder.encode(codes_of([text] * 40)) == [expected] * 40
    assert encoder._pairs is None


def with_gaps() -> BatchEncoder:
    """It can write the characters 0 to 9, and every seventh up to 120."""
    able = [*range(10), *range(10, 120, 7)]
    names = {byte: name for name, byte in byte_of_character().items()}
    vocabulary = {names[byte]: number for number, byte in enumerate(able)}
    return BatchEncoder(Tokenizer(models.BPE(vocabulary, [])))


@pytest.mark.parametrize("name", [*TOKENIZERS, "gaps"])
def test_a_character_that_can_not_be_written_becomes_the_nearest(name: str) -> None:
    encoder = with_gaps() if name == "gaps" else TOKENIZERS[name]._encoder
    able = np.flatnonzero(encoder._writable)
    numbers = np.concatenate([np.arange(-300, 3000), [-(2**52), 2**52, 0xD800, 0xDFFF, 2**21]])[None]
    found = encoder.nearest(numbers)[0].astype(np.int64)
    assert (np.abs(found - numbers[0]) == np.abs(able[:, None] - numbers).min(0)).all()
    assert encoder._writable[found].all()
