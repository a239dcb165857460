"""Texts encoded by their segments, against the tokenizer itself."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from smolact.errors import FeatureError
from smolact.policies.smolandfast import segments
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.policies.smolandfast.segments import SegmentEncoder
from tests.policies.smolandfast.test_action_tokenizer import DATA, FOLDERS, reference

ENGLISH = "it's we're 'tis  I'll\tdon't 'd 've 42's  x1 !'re\n\x1f\x1e é\x85ß\u3000ж '"
"""What words are cut at: contractions, runs of spaces, digits, signs."""


def fitted_on_words() -> FASTTokenizer:
    """A vocabulary that has merged what stands in such texts, endings too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([ENGLISH] * 9, trainer)
    return FASTTokenizer(tokenizer, 10, 0)


TOKENIZERS = {**{name: FASTTokenizer.load(DATA / name) for name in FOLDERS}, "words": fitted_on_words()}


def plainly(tokenizer: FASTTokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer._tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def codes_of(texts: list[str]) -> Any:
    return np.array([[ord(character) for character in text] for text in texts], np.uint32)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40)
@given(data=st.data())
def test_ids_are_those_of_the_whole_text(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    encoder = tokenizer._segments
    able = [code for code in range(600) if encoder._writable[code]]
    characters = st.one_of(
        st.sampled_from(able), st.sampled_from([ord(c) for c in ENGLISH if encoder._writable[ord(c)]] or able)
    )
    rows = data.draw(st.lists(st.lists(characters, min_size=30, max_size=30), min_size=1, max_size=4))
    texts = ["".join(map(chr, row)) for row in rows]
    expected = [plainly(tokenizer, text) for text in texts]
    assert encoder.encode(codes_of(texts)) == expected
    assert encoder.encode(codes_of(texts)) == expected  # found in the table


def test_words_are_cut_as_they_are_in_the_whole_text() -> None:
    tokenizer, random = TOKENIZERS["words"], np.random.default_rng(0)
    able = np.array([ord(character) for character in ENGLISH + " ''srevl"])
    codes = random.choice(able, (1500, 24)).astype(np.uint32)
    texts = ["".join(map(chr, row)) for row in codes.tolist()]
    assert tokenizer._segments.encode(codes) == [plainly(tokenizer, text) for text in texts]


def test_most_segments_of_new_chunks_are_known() -> None:
    tokenizer, expected, ids = reference("fast_tokenizer_small")
    encoder = SegmentEncoder(tokenizer._tokenizer, tokenizer._bytes)
    spelled = np.stack([tokenizer._codes([each], 20) for each in ids]).astype(np.uint32)
    assert encoder.encode(spelled[:32]) == ids[:32]
    before = len(encoder._known)
    assert encoder.encode(spelled[32:]) == ids[32:]
    assert len(encoder._known) < 1.8 * before < 32 * 20 / 2
    assert len(expected["chunks"]) == 64


def test_the_table_begins_anew_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "MOST_KNOWN", 50)
    tokenizer, expected, ids = reference("fast_tokenizer")
    for chunk, each in zip(expected["chunks"], ids, strict=True):
        assert tokenizer.encode(chunk[None]) == [each]
    assert len(tokenizer._segments._known) < 120


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["pre_tokenizer"].update(add_prefix_space=True),
        lambda found: found["model"].update(ignore_merges=True),
        lambda found: found.update(normalizer={"type": "Lowercase"}),
    ],
)
def test_texts_of_other_tokenizers_stay_whole(change: Any) -> None:
    plain = TOKENIZERS["words"]
    found = json.loads(plain._tokenizer.to_str())
    change(found)
    other = Tokenizer.from_str(json.dumps(found))
    encoder = SegmentEncoder(other, plain._bytes)
    text = ENGLISH[:25]
    assert encoder.encode(codes_of([text])) == [other.encode(text, add_special_tokens=False).ids]
    assert list(encoder._known) == [text]


def test_a_byte_that_no_token_has_is_said() -> None:
    tokenizer, expected, _ = reference("fast_tokenizer_small")
    with pytest.raises(FeatureError, match="fitted on smaller actions"):
        tokenizer.encode(expected["chunks"] * 40)
