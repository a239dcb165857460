"""FAST against the reference's numbers, and whatever ids it is given."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smolact.errors import ActionTokensError, CheckpointError, ConfigError, FeatureError
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer, _dct
from smolact.policies.smolandfast.grammar import Grammar
from tests.policies.smolandfast.sequences import DATA, FOLDERS, decode_many


def reference(name: str) -> tuple[FASTTokenizer, dict[str, np.ndarray], list[list[int]]]:
    expected = np.load(DATA / name / "expected.npz")
    ids = [[int(token) for token in row if token >= 0] for row in expected["tokens"]]
    return FASTTokenizer.load(DATA / name), dict(expected), ids


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_and_chunks_are_the_references(name: str) -> None:
    tokenizer, expected, ids = reference(name)
    assert tokenizer.encode(expected["chunks"]) == ids
    np.testing.assert_allclose(tokenizer.decode(ids), expected["decoded"], atol=1e-6)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_fitted_tokenizer_comes_back_from_the_disk(name: str, tmp_path: Path) -> None:
    original, expected, _ = reference(name)
    fitted = FASTTokenizer.fit(expected["chunks"], scale=original.scale, vocab_size=original.vocab_size)
    fitted.save(tmp_path)
    opened = FASTTokenizer.load(tmp_path)
    ids = fitted.encode(expected["chunks"])
    assert opened.encode(expected["chunks"]) == ids
    step = 1 / original.scale
    error = np.abs(opened.decode(ids) - expected["chunks"])
    assert error.mean() < 0.5 * step
    assert sum(map(len, ids)) < expected["chunks"].size  # fewer tokens than numbers
    assert (opened.horizon, opened.dim) == expected["chunks"].shape[1:]


def test_smooth_chunks_take_few_tokens_and_fine_scales_more() -> None:
    time = np.linspace(0, 1, 20)[None, :, None]
    random = np.random.default_rng(0)
    chunks = np.sin(time * random.uniform(1, 3, (200, 1, 4)) + random.uniform(0, 6, (200, 1, 4)))
    coarse, fine = (FASTTokenizer.fit(chunks, scale=scale) for scale in (5, 50))
    tokens = [np.mean([len(ids) for ids in one.encode(chunks)]) for one in (coarse, fine)]
    errors = [np.abs(one.decode(one.encode(chunks)) - chunks).max() for one in (coarse, fine)]
    assert tokens[0] < tokens[1] < 80
    assert errors[1] < errors[0] < 0.3


@pytest.mark.parametrize("name", FOLDERS)
@given(data=st.data())
def test_any_ids_are_a_chunk_or_a_named_error(name: str, data: st.DataObject) -> None:
    tokenizer, expected, ids = reference(name)
    size = tokenizer.vocab_size
    drawn = data.draw(
        st.one_of(
            st.lists(st.integers(-2, size + 2), max_size=60),
            st.sampled_from(ids).flatmap(lambda one: st.permutations(one)),
        )
    )
    try:
        chunk = tokenizer.decode([drawn])
    except ActionTokensError:
        return
    assert chunk.shape == (1, *expected["chunks"].shape[1:])
    assert np.isfinite(chunk).all()


def test_random_sequences_are_chunks_or_named_errors() -> None:
    found = decode_many(6000, seed=0)
    assert found["chunks"] > 500 and found["refused"] > 3000 and found.total() == 6000


def written(grammar: Grammar, generator: torch.Generator, batch: int) -> list[list[int]]:
    """Ids drawn at random from those that may come, until nothing may."""
    state, left = grammar.start(batch)
    ids: list[list[int]] = [[] for _ in range(batch)]
    while (left > 0).any():
        allowed = grammar.allowed(state, left)
        assert (allowed.any(1) == (left > 0)).all()  # there is always a way on, and no way past the end
        weights = torch.where(allowed.any(1, keepdim=True), allowed.double(), torch.ones(1).double())
        token = torch.multinomial(weights, 1, generator=generator)[:, 0]
        moved_state, moved_left = grammar.advance(state, left, token)
        going = left > 0
        for row in going.nonzero()[:, 0].tolist():
            ids[row].append(int(token[row]))
        state, left = torch.where(going, moved_state, state), torch.where(going, moved_left, left)
    assert (state == 0).all()
    return ids


@pytest.mark.parametrize("name", FOLDERS)
def test_whatever_the_grammar_lets_through_is_a_chunk(name: str) -> None:
    tokenizer, expected, _ = reference(name)
    ids = written(tokenizer.grammar(), torch.Generator().manual_seed(0), batch=64)
    chunks = tokenizer.decode(ids)
    assert chunks.shape == (64, *expected["chunks"].shape[1:])
    assert np.isfinite(chunks).all()


@pytest.mark.parametrize("name", FOLDERS)
def test_the_grammar_lets_every_real_chunk_through(name: str) -> None:
    tokenizer, _, ids = reference(name)
    grammar = tokenizer.grammar()
    for each in ids:
        state, left = grammar.start(1)
        for token in each:
            assert grammar.allowed(state, left)[0, token]
            state, left = grammar.advance(state, left, torch.tensor([token]))
        assert left.item() == 0 and state.item() == 0


def test_the_wide_tokenizers_tokens_end_inside_of_characters() -> None:
    """The case that the automaton is for is in the data."""
    tokenizer, _, ids = reference("fast_tokenizer_wide")
    grammar = tokenizer.grammar()
    used = torch.tensor(sorted({token for each in ids for token in each}))
    assert (grammar.following[:, used] > 0).any()


def test_a_tokenizer_for_any_shape_is_told_it(tmp_path: Path) -> None:
    tokenizer, expected, ids = reference("fast_tokenizer")
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    config |= {"time_horizon": None, "action_dim": None, "auto_map": {"AutoProcessor": "evil.Processor"}}
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    opened = FASTTokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="any horizon"):
        opened.decode(ids)
    np.testing.assert_allclose(opened.decode(ids, 20, 6), expected["decoded"], atol=1e-6)
    assert opened.grammar(20, 6).length == 120


def test_a_vocabulary_that_is_too_small_says_what_would_do() -> None:
    chunks = np.random.default_rng(0).uniform(-1, 1, (50, 10, 2))
    with pytest.raises(ConfigError, match="too small") as caught:
        FASTTokenizer.fit(chunks, scale=100, vocab_size=300)
    size = int(str(caught.value).split("Use vocab_size=")[1].split(",")[0])
    assert FASTTokenizer.fit(chunks, scale=100, vocab_size=size).vocab_size <= size


def test_chunks_that_do_not_fit_are_refused() -> None:
    tokenizer, expected, _ = reference("fast_tokenizer")
    with pytest.raises(FeatureError, match=r"\(chunks, steps, dimensions\)"):
        tokenizer.encode(expected["chunks"][0])
    with pytest.raises(ConfigError, match="horizon 20, and these have 19"):
        tokenizer.encode(expected["chunks"][:, 1:])
    with pytest.raises(FeatureError, match="not finite"):
        tokenizer.encode(expected["chunks"] * np.nan)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("size", [3.0, 40.0, 1e6, 1e30])
def test_what_can_not_be_written_becomes_the_nearest_and_is_told_once(
    name: str, size: float, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer, expected, ids = reference(name)
    chunks = expected["chunks"].copy()
    chunks[3] *= size
    chunks[5, 2:] = size
    coefficients = np.around(_dct(chunks.shape[1]) @ chunks * tokenizer.scale).reshape(len(chunks), -1)
    coefficients = coefficients.clip(-(2**40), 2**40)
    able = np.flatnonzero(tokenizer._encoder._writable) + tokenizer.min_token
    nearest = able[np.abs(coefficients[[3, 5], :, None] - able).argmin(-1)]
    lacking = int((np.abs(nearest - coefficients[[3, 5]]) > 0).sum())

    found = tokenizer.encode(chunks)
    assert tokenizer.replaced == lacking
    assert [found[n] for n in range(len(ids)) if n not in (3, 5)] == [
        ids[n] for n in range(len(ids)) if n not in (3, 5)
    ]
    decoded = tokenizer.decode(found)
    spelled = np.around(_dct(chunks.shape[1]) @ decoded[[3, 5]] * tokenizer.scale).reshape(2, -1)
    np.testing.assert_allclose(spelled, nearest, atol=1e-3 * tokenizer.scale)
    assert [tokenizer.encode(chunk[None])[0] for chunk in chunks] == found  # one by one is another way
    assert tokenizer.encode(np.tile(chunks, (2, 1, 1))) == found * 2
    if lacking:
        assert caplog.text.count("coefficients can't be written") == 1
        away = float(re.search(r"up to (\S+) off, of a normalized range of 2", caplog.text)[1])  # type: ignore[index]
        assert away == pytest.approx(np.abs(decoded - chunks)[[3, 5]].max(), rel=0.01)
        with pytest.raises(FeatureError, match=rf"{lacking} of .* can't be written"):
            tokenizer.encode(chunks, strict=True)
    assert tokenizer.encode(expected["chunks"], strict=True) == ids


def test_below_the_smallest_is_the_smallest_as_in_the_reference() -> None:
    tokenizer, expected, _ = reference("fast_tokenizer")
    tokens = tokenizer.encode(expected["chunks"] - 50)
    first = tokenizer._codes(tokens, expected["chunks"][0].size).reshape(64, -1)[:, :6]
    assert (first == np.flatnonzero(tokenizer._encoder._writable)[0]).all()


@pytest.mark.parametrize(
    ("file", "content", "error", "message"),
    [
        ("processor_config.json", '{"processor_class": "Evil"}', ConfigError, "not run here"),
        (
            "processor_config.json",
            '{"processor_class": "UniversalActionProcessor"}',
            ConfigError,
            "scale=None",
        ),
        ("processor_config.json", "{", CheckpointError, "not valid JSON"),
        ("tokenizer.json", "{}", ConfigError, "is no tokenizer"),
        ("tokenizer.json", None, CheckpointError, "tokenizer.json"),
    ],
)
def test_a_folder_that_is_no_tokenizer_is_refused(
    tmp_path: Path, file: str, content: str | None, error: type[Exception], message: str
) -> None:
    reference("fast_tokenizer_small")[0].save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content)
    with pytest.raises(error, match=message):
        FASTTokenizer.load(tmp_path)


def test_a_grammar_that_can_not_spell_the_length_is_refused() -> None:
    pairs = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(ConfigError, match="can't spell a chunk of 3"):
        Grammar.of(pairs, pairs + 2, 3)
