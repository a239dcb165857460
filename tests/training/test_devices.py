"""How exactly a GPU multiplies float32: quickly in a run's steps, exactly in its evaluations, and afterwards as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from smolact.training.devices import matmul_precision


@pytest.fixture(autouse=True)
def afterwards_as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_a_gpu_multiplies_as_is_said_and_then_as_before() -> None:
    for before in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(before)
        with matmul_precision(torch.device("cuda:0"), "high"):
            assert torch.get_float32_matmul_precision() == "high"
            with pytest.raises(ZeroDivisionError), matmul_precision(torch.device("cuda:0"), "highest"):
                assert torch.get_float32_matmul_precision() == "highest"
                raise ZeroDivisionError
            assert torch.get_float32_matmul_precision() == "high"
        assert torch.get_float32_matmul_precision() == before


def test_elsewhere_nothing_changes() -> None:
    torch.set_float32_matmul_precision("highest")
    with matmul_precision(torch.device("cpu"), "high"):
        assert torch.get_float32_matmul_precision() == "highest"
