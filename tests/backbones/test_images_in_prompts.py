"""Image tokens in their places: the plain way is a scatter."""

from __future__ import annotations

import pytest
import torch

from smolact.backbones.smolvlm import put_images
from smolact.errors import FeatureError
from tests.cuda_standin import CudaStandin, RealCuda


def test_tokens_come_in_order_and_gradients_go_where_values_came_from() -> None:
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(3, 7, generator=generator) < 0.4
    found, plain = (
        [torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for shape in shapes]
        for shapes in [[(3, 7, 5), (int(places.sum()), 5)]] * 2
    )
    put = put_images(found[0], places, found[1])
    expected = plain[0].masked_scatter(places[..., None], plain[1])
    assert torch.equal(put, expected)
    weights = torch.randn(put.shape, generator=generator)
    for result in (put, expected):
        (result * weights).sum().backward()  # type: ignore[no-untyped-call]
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("count", [0, 3, 5])
def test_as_many_places_as_tokens(count: int) -> None:
    places = torch.arange(8)[None] < count
    with pytest.raises(FeatureError, match=f"has {count} places for image tokens, the images give 4"):
        put_images(torch.zeros(1, 8, 2), places, torch.ones(4, 2))


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_step_on_a_gpu_does_not_ask_and_its_result_is_not_finite(
    cuda: CudaStandin | RealCuda, count: int
) -> None:
    places = (torch.arange(8)[None] < count).to(cuda.device)
    put = put_images(torch.zeros(1, 8, 2, device=cuda.device), places, torch.ones(4, 2, device=cuda.device))
    if not isinstance(cuda, RealCuda):
        assert cuda.waits == []
    assert bool(put.isnan().all())
    good = put_images(
        torch.zeros(1, 8, 2, device=cuda.device),
        (torch.arange(8)[None] < 4).to(cuda.device),
        torch.ones(4, 2, device=cuda.device),
    )
    assert good.cpu()[0, :, 0].tolist() == [1] * 4 + [0] * 4
