"""The engine against the policy itself: the same tokens, one by one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from smolact.errors import ActionTokensError, ConfigError
from smolact.policies.inference.packing import Int8WeightOnlyLinear
from smolact.policies.inference.precision import check_int8
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.policies.smolandfast.engine import SmolAndFASTEngine
from smolact.policies.smolandfast.generation import LOOK_EVERY, STRIDE, ActionWriter, drawn
from smolact.policies.smolandfast.grammar import Grammar, GrammarTable
from smolact.policies.smolandfast.modeling_smolandfast import SMOLANDFASTPolicy
from smolact.policies.smolandfast.schemes import ActionTokens, Bins, Text
from tests.cuda_standin import CudaStandin, RealCuda
from tests.policies.smolandfast.test_action_tokenizer import DATA, FOLDERS, written
from tests.policies.smolandfast.test_policy import policy_of, samples

MOST = 400


@lru_cache(maxsize=8)
def policy_writing(scheme: str, seed: int = 0) -> SMOLANDFASTPolicy:
    """A policy whose answers differ: its weights are random and large."""
    policy, _, _ = policy_of(action_tokens=scheme, n_action_bins=64, n_action_levels=99)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.15, generator=generator)
    return policy


def prompts(
    policy: SMOLANDFASTPolicy, lengths: list[int], seed: int = 0, padded: str = "left"
) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts of one image and some text each, of these lengths of text, padded to the longest."""
    generator = torch.Generator().manual_seed(seed)
    config = policy.model.vlm.config
    image = torch.full((config.image_tokens,), config.image_token_id)
    rows = [torch.cat([image, torch.randint(10, 500, (n,), generator=generator)]) for n in lengths]
    longest = max(map(len, rows))
    prompt, valid = torch.zeros(len(rows), longest, dtype=torch.int64), torch.zeros(len(rows), longest)
    for row, tokens in enumerate(rows):
        where = slice(longest - len(tokens), None) if padded == "left" else slice(len(tokens))
        prompt[row, where], valid[row, where] = tokens, 1
    pixels = torch.rand(len(rows), 3, policy.side, policy.side, generator=generator) * 2 - 1
    return prompt, valid.bool(), pixels


def slowly(
    policy: SMOLANDFASTPolicy, inputs: Any, choose: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    return policy.model.generate(*inputs, policy.actions.grammar(*policy.chunk_shape), MOST, choose)


def writer_of(policy: SMOLANDFASTPolicy, **settings: Any) -> ActionWriter:
    return policy.build_engine(**({"dtype": torch.float32} | settings)).writer


def alike(first: Tensor, second: Tensor) -> bool:
    """The same answers, whatever pads them."""
    rows = [
        [[token for token in row if token >= 0] for row in answers.tolist()] for answers in (first, second)
    ]
    return rows[0] == rows[1]


@pytest.mark.parametrize("scheme", ["fast", "bins", "text"])
@pytest.mark.parametrize("padded", ["left", "right"])
@pytest.mark.parametrize(("lengths", "seed"), [([5], 0), ([3, 40, 17], 1), ([70, 9], 2)])
def test_the_policys_own_tokens_are_written(scheme: str, padded: str, lengths: list[int], seed: int) -> None:
    policy = policy_writing(scheme, seed)
    inputs = prompts(policy, lengths, seed, padded)
    slow = slowly(policy, inputs)
    assert alike(writer_of(policy).write(*inputs, MOST), slow)
    assert len({tuple(row) for row in slow.tolist()}) == len(lengths)  # answers that depend on what was asked


def test_a_writer_that_was_used_before_writes_the_same() -> None:
    policy = policy_writing("fast")
    writer = writer_of(policy)
    asked = [
        prompts(policy, lengths, seed)
        for seed, lengths in enumerate([[60, 4], [5, 20], [2 * STRIDE, 3], [8], [5, 20]])
    ]
    for inputs in asked:
        assert alike(writer.write(*inputs, MOST), slowly(policy, inputs))


def test_answers_of_one_batch_end_at_different_times() -> None:
    policy = policy_writing("fast", 1)
    answers = writer_of(policy).write(*prompts(policy, [3, 40, 17, 22], 1), MOST)
    assert len(set((answers >= 0).sum(1).tolist())) > 1
    assert ((answers < 0).int().diff(dim=1) >= 0).all()  # nothing after an end


@pytest.mark.parametrize("temperature", [0.7, 3.0])
def test_drawn_tokens_are_those_that_the_policys_own_logits_draw(temperature: float) -> None:
    policy = policy_writing("fast")
    inputs = prompts(policy, [12, 30])
    generator = torch.Generator().manual_seed(5)

    def choose(logits: Tensor) -> Tensor:
        noise = torch.ones(len(logits), logits.shape[1] + 1)  # the end token has its share
        return drawn(logits, temperature, noise.exponential_(generator=generator)[:, :-1])

    slow = slowly(policy, inputs, choose)
    drawing = writer_of(policy, temperature=temperature, generator=torch.Generator().manual_seed(5))
    first, second = (drawing.write(*inputs, MOST) for _ in range(2))
    assert alike(first, slow)
    assert not alike(first, second)


def test_draws_have_the_models_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.5])
    noise = torch.ones(40_000, 4).exponential_(generator=torch.Generator().manual_seed(0))
    shares = drawn(logits.expand(40_000, -1), 2.0, noise).bincount(minlength=4) / 40_000
    torch.testing.assert_close(shares, (logits / 2).softmax(-1), atol=0.01, rtol=0)


def test_an_engine_stands_where_the_policy_stands() -> None:
    policy, preprocess, _ = policy_of()
    batch, engine = preprocess(samples()), policy.build_engine(dtype=torch.float32)
    assert isinstance(engine, SmolAndFASTEngine) and engine.config is policy.config
    torch.testing.assert_close(engine.predict_action_chunk(batch), policy.predict_action_chunk(batch))
    policy.reset()
    for _ in range(policy.config.n_action_steps + 2):
        torch.testing.assert_close(engine.select_action(batch), policy.select_action(batch))
    assert engine.memory > 0


def test_weights_that_have_changed_are_packed_anew() -> None:
    policy, preprocess, _ = policy_of()
    batch, engine = preprocess(samples()), policy.build_engine(dtype=torch.float32)
    engine.predict_action_chunk(batch)
    before = engine.writer
    with torch.no_grad():
        policy.model.vlm.model.text_model.layers[0].mlp.up_proj.weight.mul_(-30)
    torch.testing.assert_close(engine.predict_action_chunk(batch), policy.predict_action_chunk(batch))
    assert engine.writer is not before
    after = engine.writer
    engine.predict_action_chunk(batch)
    assert engine.writer is after


def test_bfloat16_writes_whole_chunks_near_the_policys() -> None:
    policy = policy_writing("bins")
    inputs = prompts(policy, [12, 30])
    writer = writer_of(policy, dtype=torch.bfloat16)
    answers = writer.write(*inputs, MOST)
    assert answers.shape == (2, 20) and (answers >= 0).all()
    assert (answers[:, 0] == slowly(policy, inputs)[:, 0]).any()
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    assert 0 < writer_of(policy).held < 0.6 * weights < weights == pytest.approx(2 * writer.held, rel=0.2)


def test_an_answer_that_takes_too_long_is_an_error() -> None:
    policy = policy_writing("bins")
    with pytest.raises(ActionTokensError, match="2 of 2 answers were not done after 7 tokens"):
        writer_of(policy).write(*prompts(policy, [3, 5]), 7)
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="temperature"):
            policy.build_engine(temperature=temperature)


GRAMMARS = [
    *(FASTTokenizer.load(DATA / name).grammar() for name in FOLDERS),
    Bins(16).grammar(4, 3),
    Text(1000).grammar(2, 2),
]


@pytest.mark.parametrize("grammar", GRAMMARS, ids=[*FOLDERS, "bins", "text"])
def test_the_table_is_the_grammar(grammar: Grammar) -> None:
    table, (states, tokens) = GrammarTable(grammar), grammar.following.shape
    state = torch.arange(states).repeat_interleave(grammar.length + 1)
    left = torch.arange(grammar.length + 1).repeat(states)
    allowed = grammar.allowed(state, left)
    assert torch.equal(~table.barred[:, :tokens], allowed)
    assert table.barred[1:, table.end].all() and not table.barred[0, table.end]
    node, token = allowed.nonzero().unbind(1)
    after, remaining = grammar.advance(state[node], left[node], token)
    assert torch.equal(table.advance(node, token), after * (grammar.length + 1) + remaining)
    assert table.advance(torch.tensor([0]), torch.tensor([table.end])).item() == 0
    answers = written(grammar, torch.Generator().manual_seed(0), 64)
    assert max(map(len, answers)) <= grammar.longest


def longest(scheme: ActionTokens) -> int:
    return scheme.grammar(2, 3).longest


def test_the_longest_answer_is_known() -> None:
    assert longest(Bins(8)) == 6
    assert longest(Text(1000)) == 6 * 5
    assert FASTTokenizer.load(DATA / "fast_tokenizer_wide").grammar().longest >= 2 * 20


@pytest.mark.gpu
@pytest.mark.parametrize("scheme", ["fast", "bins"])
@pytest.mark.parametrize("lengths", [[5], [3, 40, 17]])
def test_graphs_on_a_gpu_write_the_policys_tokens(
    cuda: CudaStandin | RealCuda, scheme: str, lengths: list[int]
) -> None:
    policy = cuda.module(copy.deepcopy(policy_writing(scheme, 3)))
    inputs = [part.to(cuda.device) for part in prompts(policy, lengths)]
    grammar = policy.actions.grammar(*policy.chunk_shape).to(cuda.device)
    slow = policy.model.generate(*inputs, grammar, MOST).cpu()
    writer = writer_of(policy)
    for _ in range(2):  # as it is recorded, and as it is replayed
        assert alike(writer.write(*inputs, MOST).cpu(), slow)


@pytest.mark.gpu
def test_graphs_on_a_gpu_write_in_bfloat16_and_draw(cuda: CudaStandin | RealCuda) -> None:
    policy = cuda.module(copy.deepcopy(policy_writing("bins", 3)))
    inputs = [part.to(cuda.device) for part in prompts(policy, [5, 9])]
    length = policy.chunk_shape[0] * policy.chunk_shape[1]
    for settings in ({"dtype": torch.bfloat16}, {"temperature": 0.7}):
        answers = writer_of(policy, **settings).write(*inputs, MOST).cpu()
        assert answers.shape == (2, length)
        assert bool((answers >= 0).all())


@pytest.mark.gpu
def test_kernels_of_our_own_write_the_policys_tokens(cuda: CudaStandin | RealCuda) -> None:
    if not isinstance(cuda, RealCuda):
        pytest.skip("needs a CUDA device; without one the interpreter runs them (interpreted_writer.py)")
    policy = cuda.module(copy.deepcopy(policy_writing("fast", 3)))
    inputs = [part.to(cuda.device) for part in prompts(policy, [3, 40, 17])]
    grammar = policy.actions.grammar(*policy.chunk_shape).to(cuda.device)
    slow = policy.model.generate(*inputs, grammar, MOST).cpu()
    writer = writer_of(policy, triton=True)
    for _ in range(2):
        assert alike(writer.write(*inputs, MOST).cpu(), slow)


def test_kernels_need_a_gpu() -> None:
    with pytest.raises(ConfigError, match=r"triton=True needs a GPU with CUDA, and the policy is on cpu"):
        policy_writing("bins").build_engine(triton=True)


def test_tokens_are_written_without_waiting_for_each(cuda: CudaStandin | RealCuda) -> None:
    if isinstance(cuda, RealCuda):
        pytest.skip("only the stand-in counts")
    policy = cuda.module(copy.deepcopy(policy_writing("bins", 3)))
    inputs = [part.to(cuda.device) for part in prompts(policy, [5])]
    writer = writer_of(policy)
    writer.write(*inputs, MOST)
    cuda.waits.clear()
    tokens = writer.write(*inputs, MOST).shape[1]
    assert 1 <= len(cuda.waits) <= 2 + tokens // LOOK_EVERY


@pytest.mark.parametrize("rows", [1, Int8WeightOnlyLinear.FEW, Int8WeightOnlyLinear.FEW + 1])
@pytest.mark.parametrize("biased", [False, True])
def test_weights_in_8_bits_multiply_almost_as_before(rows: int, biased: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 64, generator=generator) for n in (96, rows))
    bias = torch.randn(96, generator=generator) if biased else None
    residual = torch.randn(rows, 96, generator=generator)
    exact = torch.nn.functional.linear(x, weight, bias)
    rounded = Int8WeightOnlyLinear(weight, bias)
    assert (rounded(x) - exact).norm() < 0.02 * exact.norm()
    assert (rounded.onto(residual, x) - exact - residual).norm() < 0.02 * exact.norm()
    assert sum(tensor.nbytes for tensor in rounded.tensors()) < weight.nbytes / 3


def test_answers_in_8_bits_are_whole_and_mostly_the_same() -> None:
    policy = policy_writing("bins")
    inputs = prompts(policy, [5, 30, 17])
    exact, rounded = writer_of(policy), policy.build_engine(int8=True).writer
    answers = rounded.write(*inputs, MOST)
    same = (answers == exact.write(*inputs, MOST)).float().mean()
    assert answers.shape == (3, policy.chunk_shape[0] * policy.chunk_shape[1])
    assert 0.5 < same < 1  # of random weights; and something was rounded
    assert rounded.held < 0.5 * exact.held


def test_8_bits_are_for_float32_on_a_cpu() -> None:
    policy = policy_writing("bins")
    with pytest.raises(ConfigError, match=r"not with torch\.bfloat16"):
        policy.build_engine(int8=True, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="is for a CPU"):
        check_int8(torch.device("cuda"), None)
