"""Actions as bins and as text: what is written comes back, and the grammar lets through just that."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import smolact
from smolact.errors import ActionTokensError, ConfigError, FeatureError
from smolact.policies.smolandfast.schemes import ActionTokens, Bins, Text
from tests.policies.smolandfast.test_action_tokenizer import written
from tests.policies.smolandfast.test_policy import policy_of, samples

SCHEMES = [Bins(16), Bins(256), Text(9), Text(1000)]
STEP = {Bins(16): 2 / 16, Bins(256): 2 / 256, Text(9): 2 / 9, Text(1000): 2 / 1000}


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_what_is_written_comes_back_within_half_a_step(scheme: ActionTokens) -> None:
    chunks = np.random.default_rng(0).uniform(-1, 1, (20, 4, 3))
    decoded = scheme.decode(scheme.encode(chunks), 4, 3)
    assert np.abs(decoded - chunks).max() <= STEP[scheme] / 2 + 1e-6
    edges = np.array([[[-9.0, 9.0, 1.0]]])
    assert (
        np.abs(scheme.decode(scheme.encode(edges), 1, 3) - edges.clip(-1, 1)).max() <= STEP[scheme] / 2 + 1e-6
    )


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_grammar_lets_chunks_through_and_nothing_else(scheme: ActionTokens) -> None:
    grammar = scheme.grammar(3, 2)
    found = scheme.decode(written(grammar, torch.Generator().manual_seed(0), 50), 3, 2)
    assert found.shape == (50, 3, 2) and np.abs(found).max() <= 1
    for ids in scheme.encode(np.random.default_rng(0).uniform(-1, 1, (20, 3, 2))):
        state, left = grammar.start(1)
        for token in ids:
            assert grammar.allowed(state, left)[0, token]
            state, left = grammar.advance(state, left, torch.tensor([token]))
        assert left.item() == 0


@given(ids=st.lists(st.integers(-1, 12), max_size=30))
def test_any_ids_are_a_chunk_or_a_named_error(ids: list[int]) -> None:
    for scheme in (Bins(11), Text(99)):
        try:
            chunk = scheme.decode([ids], 2, 2)
        except ActionTokensError:
            continue
        assert chunk.shape == (1, 2, 2) and np.isfinite(chunk).all()


def test_numbers_are_plain_text() -> None:
    text = Text(1000)
    (ids,) = text.encode(np.array([[[-1.0, 0.0, 1.0]]]))
    assert "".join("0123456789 "[token] for token in ids) == "0 500 1000 "
    with pytest.raises(FeatureError, match="not finite"):
        text.encode(np.full((1, 1, 1), np.nan))


@pytest.mark.parametrize("scheme", ["bins", "text"])
def test_a_policy_learns_and_keeps_each_scheme(scheme: str, tmp_path: Path) -> None:
    policy, preprocess, postprocess = policy_of(action_tokens=scheme, n_action_bins=64, n_action_levels=99)
    raw = samples()
    batch = preprocess(raw)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(120):
        loss, _ = policy.forward(batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = postprocess(policy.predict_action_chunk(batch))
    assert (found - raw["action"]).abs().mean() < 0.1
    for part in (policy, preprocess, postprocess):
        part.save_pretrained(tmp_path)
    loaded, before, after = smolact.load_policy(tmp_path, device="cpu")
    torch.testing.assert_close(after(loaded.predict_action_chunk(before(raw))), found)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ConfigError, match="fast, bins, text"):
        policy_of(action_tokens="words")
