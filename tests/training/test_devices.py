"""How exactly float32 is multiplied: on a CPU as ever, on a GPU quickly in a step and exactly in an evaluation."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from smolact.training.devices import exact_products, quicken_products


@pytest.fixture(autouse=True)
def afterwards_as_before() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def test_a_gpu_multiplies_quickly_and_nothing_else_changes() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    quicken_products(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"
    quicken_products(torch.device("cuda:0"))
    assert torch.backends.cuda.matmul.allow_tf32


def test_an_evaluation_multiplies_exactly_and_leaves_the_run_as_it_was() -> None:
    for quick in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = quick
        with pytest.raises(ZeroDivisionError), exact_products():
            assert torch.get_float32_matmul_precision() == "highest"
            raise ZeroDivisionError
        assert torch.backends.cuda.matmul.allow_tf32 is quick
