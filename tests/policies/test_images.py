"""Images on their way into a vision tower."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from smolact.policies.common.images import resize_with_pad


def test_images_of_the_right_size_are_what_resizing_would_give() -> None:
    images = torch.rand(2, 3, 48, 64)
    resized = F.interpolate(images, size=(48, 64), mode="bilinear", align_corners=False)
    assert torch.equal(resize_with_pad(images, 64, 48), resized)


@pytest.mark.parametrize(
    ("height", "width", "black"), [(30, 60, (30, 0)), (60, 30, (0, 30)), (60, 60, (0, 0))]
)
def test_padding_is_black_left_and_above(height: int, width: int, black: tuple[int, int]) -> None:
    padded = resize_with_pad(torch.ones(1, 3, height, width), 60, 60)
    assert padded.shape == (1, 3, 60, 60)
    assert not padded[..., : black[0], :].any() and not padded[..., : black[1]].any()
    assert (padded[..., black[0] :, black[1] :] == 1).all()
