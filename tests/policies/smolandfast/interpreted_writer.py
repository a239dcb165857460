"""Answers written by kernels in triton's interpreter: the policy's own tokens. Run by `tests/policies/test_kernels.py`."""

from __future__ import annotations

import pytest
import torch

from smolact.errors import ActionTokensError
from smolact.policies.inference.kernels import KernelPackedLinear
from smolact.policies.smolandfast import engine as engine_module
from tests.policies.interpreted_kernels import bfloat16_as_a_gpu_has_it  # noqa: F401
from tests.policies.smolandfast.test_engine import MOST, alike, policy_writing, prompts, slowly, writer_of


@pytest.fixture(autouse=True)
def kernels_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine asks for a GPU before it takes kernels; here the interpreter is one."""
    monkeypatch.setattr(engine_module, "check_kernels", lambda device: None)


@pytest.mark.parametrize(
    ("scheme", "lengths", "padded"), [("fast", [5], "left"), ("fast", [3, 40, 17], "right")]
)
def test_the_policys_own_tokens_are_written(scheme: str, lengths: list[int], padded: str) -> None:
    policy = policy_writing(scheme, 1)
    inputs = prompts(policy, lengths, 1, padded)
    writer = writer_of(policy, triton=True)
    assert isinstance(writer._step_layers[0].project, KernelPackedLinear)
    assert not isinstance(writer._layers[0].project, KernelPackedLinear)
    assert alike(writer.write(*inputs, MOST), slowly(policy, inputs))


def test_hidden_states_in_bfloat16_are_near_those_of_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = policy_writing("bins", 1)
    inputs = prompts(policy, [5, 9], 1)
    seen: dict[str, list[torch.Tensor]] = {}
    for name, settings in (("plain", {}), ("kernels", {"triton": True})):
        writer = writer_of(policy, dtype=torch.bfloat16, **settings)
        think, kept = writer._think, seen.setdefault(name, [])
        monkeypatch.setattr(
            writer, "_think", lambda *a, think=think, kept=kept: kept.append(think(*a)) or kept[-1]
        )
        with pytest.raises(ActionTokensError):  # two tokens are no chunk
            writer.write(*inputs, 2)
    first, plain = seen["kernels"][0].float(), seen["plain"][0].float()
    assert (first - plain).norm() <= 2e-2 * plain.norm()
