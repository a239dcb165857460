"""SmolAndFAST's loss and gradients against the reference's recipe, and its fast generation against the plain one."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from smolact.backbones.config import SmolVLMConfig
from smolact.errors import ActionTokensError, ConfigError
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.policies.smolandfast.grammar import Grammar
from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFAST
from smolact.policies.smolandfast.schemes import ActionVocabulary, Bins
from tests.parity.recipe import DATA, difference, draw_weights

CASE = json.loads((DATA / "smolandfast" / "case.json").read_text())
EXPECTED = load_file(DATA / "smolandfast" / "expected.safetensors")
FAST = FASTTokenizer.load(DATA / CASE["fast_tokenizer"])


@pytest.fixture(scope="module")
def model() -> SMOLANDFAST:
    config = SmolVLMConfig.from_dict(json.loads((DATA / "tiny_vlm" / "config.json").read_text()))
    ids = EXPECTED["input_ids"][0]
    end = int(ids[CASE["lengths"][0] - 1])
    words = FAST.words(SimpleNamespace(vocab_size=CASE["tokenizer_vocab_size"]), CASE["fast_skip_tokens"])
    vocabulary = ActionVocabulary(words, end, pad=0)
    model = SMOLANDFAST(config, vocabulary)
    draw_weights(model.vlm, CASE["seed"])
    return model


def batch(model: SMOLANDFAST) -> dict[str, Tensor]:
    """Prompts padded on the left and answers on the right, cut out of the reference's rows."""
    prompts, answers = [], []
    for row, length in enumerate(CASE["lengths"]):
        whole = EXPECTED["input_ids"][row, :length]
        begin = int(EXPECTED["loss_mask"][row].argmax())
        prompts.append(whole[:begin])
        answers.append(whole[begin:])
        assert (
            model.vocabulary.spoken(torch.tensor(CASE["fast_tokens"][row])).tolist()
            == whole[begin:-1].tolist()
        )

    def padded(rows: list[Tensor], left: bool) -> tuple[Tensor, Tensor]:
        most = max(map(len, rows))
        sides = [(most - len(row), 0) if left else (0, most - len(row)) for row in rows]
        pad = torch.nn.functional.pad
        ids = torch.stack([pad(row, side) for row, side in zip(rows, sides, strict=True)])
        return ids, torch.stack(
            [pad(torch.ones(len(row)), side) for row, side in zip(rows, sides, strict=True)]
        ).bool()

    (prompt, valid), (answer, spoken) = padded(prompts, True), padded(answers, False)
    return {
        "prompt": prompt,
        "valid": valid,
        "pixels": EXPECTED["pixel_values"][:, 0],
        "answer": answer,
        "spoken": spoken,
    }


def test_the_pixels_are_the_images_in_eight_bits() -> None:
    torch.testing.assert_close(EXPECTED["pixel_values"][:, 0], (EXPECTED["image"] * 255).floor() / 127.5 - 1)


def test_the_answers_are_the_chunks() -> None:
    assert FAST.encode(EXPECTED["actions"].numpy()) == CASE["fast_tokens"]


def test_loss_and_gradients_are_the_references(model: SMOLANDFAST) -> None:
    inputs = batch(model)
    losses = model(**inputs)
    for row in range(3):
        found = losses[row][inputs["spoken"][row]].detach()
        mask = EXPECTED["loss_mask"][row, 1:].bool()
        assert difference(found, EXPECTED["token_loss"][row][mask]) <= 1e-5
    loss = losses.sum() / inputs["spoken"].sum()
    assert difference(loss.detach(), EXPECTED["loss"]) <= 1e-5
    model.zero_grad()
    loss.backward()
    norms = {
        name: float(parameter.grad.norm()) if parameter.grad is not None else 0.0
        for name, parameter in model.vlm.named_parameters()
    }
    assert norms.keys() >= CASE["grad_norm"].keys()
    for name, expected in CASE["grad_norm"].items():
        assert norms[name] == pytest.approx(expected, rel=1e-3, abs=1e-6), name


def plainly(model: SMOLANDFAST, inputs: dict[str, Tensor], grammar: Grammar, row: int) -> list[int]:
    """The most likely answer of one sample, the whole of it read anew for each token."""
    prompt = inputs["prompt"][row][inputs["valid"][row]][None]
    pixels = inputs["pixels"][row : row + 1]
    state, left = grammar.start(1)
    written: list[int] = []
    while left.item():
        so_far = model.vocabulary.spoken(torch.tensor([written], dtype=torch.long))
        logits = model.vlm(torch.cat([prompt, so_far], 1), pixels)[0, -1]
        actions = logits[list(model.vocabulary.words)]
        actions[~grammar.allowed(state, left)[0]] = -torch.inf
        written.append(int(actions.argmax()))
        state, left = grammar.advance(state, left, torch.tensor(written[-1:]))
    return written


def test_generation_equals_the_plain_one_and_is_a_chunk(model: SMOLANDFAST) -> None:
    inputs = batch(model)
    prompts: dict[str, Any] = {name: inputs[name] for name in ("prompt", "valid", "pixels")}
    grammar = FAST.grammar()
    with torch.no_grad():
        found = model.generate(**prompts, grammar=grammar, most=100)
        rows = [[int(token) for token in row if token >= 0] for row in found]
        for row in range(3):
            assert rows[row] == plainly(model, inputs, grammar, row)
    chunks = FAST.decode(rows)
    assert chunks.shape == EXPECTED["actions"].shape


def test_drawn_answers_are_chunks_too(model: SMOLANDFAST) -> None:
    inputs = batch(model)
    generator = torch.Generator().manual_seed(0)

    def draw(logits: Tensor) -> Tensor:
        scores = torch.where(torch.isfinite(logits).any(1, keepdim=True), logits, 0.0)
        return torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]

    prompts: dict[str, Any] = {name: inputs[name] for name in ("prompt", "valid", "pixels")}
    found = model.generate(**prompts, grammar=FAST.grammar(), most=100, choose=draw)
    chunks = FAST.decode([[int(token) for token in row if token >= 0] for row in found])
    assert chunks.shape == EXPECTED["actions"].shape and torch.isfinite(torch.as_tensor(chunks)).all()


def test_an_answer_that_takes_too_long_is_a_named_error(model: SMOLANDFAST) -> None:
    inputs = batch(model)
    prompts: dict[str, Any] = {name: inputs[name] for name in ("prompt", "valid", "pixels")}
    with pytest.raises(ActionTokensError, match="max_decoding_steps"):
        model.generate(**prompts, grammar=FAST.grammar(), most=3)


def test_too_many_action_tokens_say_how_many_would_do() -> None:
    with pytest.raises(ConfigError, match="--vocab_size=744"):
        Bins(1000).words(SimpleNamespace(vocab_size=1024), 280)
