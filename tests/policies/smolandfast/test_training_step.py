"""What a training step computes, and what it does not: FLOPs as PyTorch counts them, padding, precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from smolact.errors import ConfigError, FeatureError
from smolact.policies.smolandfast import flops_smolandfast
from smolact.policies.smolandfast.action_tokenizer import FASTTokenizer
from smolact.policies.summary import summarize
from smolact.types import ACTION_TOKEN_MASK, ACTION_TOKENS, LANGUAGE_MASK, LANGUAGE_TOKENS
from tests.cuda_standin import CudaStandin, RealCuda
from tests.policies.smolandfast.test_policy import policy_of, samples
from tests.training.runs import run


def counted(work: Any) -> int:
    # Fused attention of the CPU is not counted by PyTorch; as matrix products it is.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("settings", [{"chunk_size": 8}, {"chunk_size": 12, "scale_factor": 1}], ids=str)
def test_flops_are_those_that_pytorch_counts(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, preprocess, _ = policy_of(action_tokens="bins", n_action_bins=64, **settings)
    batch = preprocess(samples(1, chunk=policy.config.chunk_size))
    prompt, images = batch[LANGUAGE_TOKENS].shape[1], 2 * policy.model.vlm.config.image_tokens
    # Chunks of 16 and 24 numbers: the policy looks every eight tokens whether it is done.
    monkeypatch.setattr(flops_smolandfast, "TYPICAL_INSTRUCTION", prompt - images)
    work = summarize(policy).workload
    assert work.forward == pytest.approx(counted(lambda: policy.forward(batch)), rel=0.01)
    assert work.replan == pytest.approx(counted(lambda: policy.predict_action_chunk(batch)), rel=0.01)


def test_a_batch_is_as_long_as_its_longest_and_longer_padding_changes_nothing() -> None:
    policy, preprocess, _ = policy_of()
    batch = preprocess(samples())
    assert batch[LANGUAGE_MASK].all(1).any() and batch[ACTION_TOKEN_MASK].all(1).any()
    padded = {
        **batch,
        LANGUAGE_TOKENS: F.pad(batch[LANGUAGE_TOKENS], (150, 0)),
        LANGUAGE_MASK: F.pad(batch[LANGUAGE_MASK], (150, 0)),
        ACTION_TOKENS: F.pad(batch[ACTION_TOKENS], (0, 90)),
        ACTION_TOKEN_MASK: F.pad(batch[ACTION_TOKEN_MASK], (0, 90)),
    }
    losses, gradients = [], []
    for each in (batch, padded):
        policy.zero_grad()
        loss, _ = policy.forward(each)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in policy.parameters() if p.grad is not None])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=0)
    for padding, right in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(padding, right, rtol=1e-3, atol=1e-6)


def test_training_in_bfloat16_autocast_and_with_bfloat16_weights_is_near_float32() -> None:
    policy, preprocess, _ = policy_of()
    batch = preprocess(samples())
    whole = policy.forward(batch)[0]
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = policy.forward(batch)
    assert mixed.dtype == torch.float32
    mixed.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad.dtype == torch.float32 for p in policy.parameters() if p.grad is not None)
    small, _, _ = policy_of(precision="bfloat16")
    lowered = small.forward(batch)[0]
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    for found in (mixed, lowered):
        torch.testing.assert_close(found.detach(), whole.detach(), rtol=0.02, atol=0)


def test_the_policys_own_wish_for_ends_of_episodes_is_heeded(tmp_path: Path) -> None:
    small = ("--policy.type=smolandfast", "--policy.vlm_checkpoint=tiny", "--policy.init=random")
    cheap = ("--policy.scale_factor=4", "--policy.action_tokens=bins", "--policy.device=cpu", "--steps=1")
    policy = (*small, *cheap, "--policy.chunk_size=2", "--policy.n_action_steps=2")
    with pytest.raises(ConfigError, match="leaves nothing"):
        run(tmp_path / "a", "--policy.drop_n_last_frames=1000", policy=policy)
    ended, _ = run(
        tmp_path / "b", "--policy.drop_n_last_frames=3", "--policy.crop_shape=[40, 40]", policy=policy
    )
    assert ended.is_complete


def test_a_forward_pass_does_not_wait_for_the_gpu(cuda: CudaStandin | RealCuda) -> None:
    if isinstance(cuda, RealCuda):
        pytest.skip("only the stand-in counts")
    policy, preprocess, _ = policy_of()
    batch = preprocess(samples())
    expected = policy.forward(batch)[0].detach()
    policy, batch = cuda.module(policy), cuda.tensors(batch)
    cuda.waits.clear()
    loss, _ = policy.forward(batch)
    with torch.autocast("cuda", torch.bfloat16):
        mixed, _ = policy.forward(batch)
    assert cuda.waits == []
    torch.testing.assert_close(loss.detach().cpu(), expected)
    torch.testing.assert_close(mixed.detach().cpu(), expected, rtol=0.02, atol=0)
    tokens = batch[LANGUAGE_TOKENS].clone()
    tokens[tokens == policy.model.vlm.config.image_token_id] = 7
    loss, _ = policy.forward({**batch, LANGUAGE_TOKENS: tokens})  # no places for the image
    assert not bool(loss.isfinite())
    with torch.no_grad(), pytest.raises(FeatureError, match="has 0 places for image tokens"):
        policy.forward({**batch, LANGUAGE_TOKENS: tokens})


def test_a_training_goes_on_with_actions_that_its_tokenizer_was_not_fitted_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = np.random.default_rng(0).uniform(-0.05, 0.05, (50, 10, 6))
    FASTTokenizer.fit(chunks, scale=10, vocab_size=64).save(tmp_path / "fast")
    small = ("--policy.type=smolandfast", "--policy.vlm_checkpoint=tiny", "--policy.init=random")
    more = (
        f"--policy.fast_tokenizer_path={tmp_path / 'fast'}",
        "--policy.chunk_size=10",
        "--policy.device=cpu",
    )
    ended, _ = run(tmp_path / "run", "--steps=3", policy=(*small, *more, "--policy.n_action_steps=10"))
    assert ended.is_complete
    assert caplog.text.count("coefficients can't be written") == 1
