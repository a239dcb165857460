"""Random image transforms: the arithmetic, by hand and beside torchvision's, and what decides what is drawn."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor

from smolact.datasets import transforms
from smolact.datasets.transforms import ImageTransforms
from smolact.datasets.transforms_config import ImageTransformConfig, ImageTransformsConfig
from smolact.datasets.transforms_preview import draw_preview
from smolact.errors import ConfigError, FeatureError
from tests.training.runs import DATA

COLORS = ("brightness", "contrast", "saturation", "sharpness")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def pixels(*colors: tuple[int, int, int]) -> Tensor:
    """(3, 1, W) uint8."""
    return torch.tensor(colors, dtype=torch.uint8).T[:, None]


def listed(image: Tensor) -> list[Any]:
    return [tuple(color) for color in image[:, 0].T.tolist()]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=Generator().manual_seed(seed))


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def adjust(function: str, image: Tensor, value: Any) -> Tensor:
    if function == "affine":
        return transforms.affine(image, value[0], (value[1], value[2]))
    return getattr(transforms, f"adjust_{function}")(image, value)


def test_brightness_multiplies_and_stops_at_white() -> None:
    image = pixels((10, 100, 250))
    assert listed(transforms.adjust_brightness(image, 1.2)) == [(12, 120, 255)]
    assert listed(transforms.adjust_brightness(image, 0)) == [(0, 0, 0)]
    assert listed(transforms.adjust_brightness(image, 3)) == [
        (30, 255, 255)
    ]  # an integer does not wrap around


def test_contrast_moves_away_from_the_mean_grey() -> None:
    # Greys: floor(0.2989 · 255) = 76 and floor(0.9999 · 100) = 99; their mean is 87.5.
    image = pixels(RED, (100, 100, 100))
    assert listed(transforms.adjust_contrast(image, 0.0)) == [(87, 87, 87)] * 2
    assert listed(transforms.adjust_contrast(image, 0.5)) == [(171, 43, 43), (93, 93, 93)]


def test_saturation_moves_away_from_each_pixels_grey() -> None:
    image = pixels(RED, (0, 200, 0))
    assert listed(transforms.adjust_saturation(image, 0.0)) == [(76,) * 3, (117,) * 3]
    assert listed(transforms.adjust_saturation(image, 0.5)) == [(165, 38, 38), (58, 158, 58)]


def test_hue_turns_the_color_wheel() -> None:
    image = pixels(RED, GREEN, BLUE, (90, 90, 90), (200, 50, 50))
    assert listed(transforms.adjust_hue(image, 1 / 3)) == [GREEN, BLUE, RED, (90, 90, 90), (50, 200, 50)]
    assert listed(transforms.adjust_hue(image, -1 / 3)) == [BLUE, RED, GREEN, (90, 90, 90), (50, 50, 200)]
    assert listed(transforms.adjust_hue(image, 0.5))[0] == (0, 255, 255)
    assert listed(transforms.adjust_hue(image, 1 / 12))[0] == (255, 127, 0)  # halfway to yellow


def test_sharpness_blurs_below_one_and_leaves_the_edge() -> None:
    image = torch.zeros(3, 3, 3, dtype=torch.uint8)
    image[:, 1, 1] = 130
    blurred = transforms.adjust_sharpness(image, 0.0)
    assert blurred[:, 1, 1].tolist() == [50] * 3  # 130 · 5 / 13
    assert transforms.adjust_sharpness(image, 2.0)[0, 1, 1] == 210
    assert int(blurred.sum()) == 150
    assert transforms.adjust_sharpness(image // 13, 0.0)[0, 1, 1] == 4  # 50 / 13 = 3.8: rounded, not cut off
    assert torch.equal(transforms.adjust_sharpness(image[:, :2], 0.0), image[:, :2])


def test_affine_turns_clockwise_then_shifts_and_fills_with_black() -> None:
    image = noise(3, 4, 4)
    assert torch.equal(transforms.affine(image, 90.0), image.rot90(-1, (-2, -1)))
    shifted = transforms.affine(image, 0.0, (1, -2))
    assert torch.equal(shifted[:, :2, 1:], image[:, 2:, :3])
    assert not shifted[:, 2:].any()
    assert not shifted[..., 0].any()


@pytest.mark.parametrize("function", [*COLORS, "hue", "affine"])
def test_the_value_that_changes_nothing_changes_nothing(function: str) -> None:
    neutral: Any = {"hue": 0.0, "affine": (0.0, 0, 0)}.get(function, 1.0)
    image = noise(2, 3, 9, 7)
    as_float = image / 255
    before = image.clone()
    made = adjust(function, image, neutral)
    assert torch.equal(made, image)
    assert made.data_ptr() != image.data_ptr()
    torch.testing.assert_close(adjust(function, as_float, neutral), before / 255)
    for each in (image, as_float):
        adjust(function, each, {"hue": 0.3, "affine": (20.0, 1, 1)}.get(function, 0.3))
    assert torch.equal(image, before)
    assert torch.equal(as_float, before / 255)


@pytest.mark.parametrize("function", [*COLORS, "hue", "affine"])
@given(value=st.floats(0, 2.5), seed=st.integers(0, 50))
def test_floats_and_films_are_treated_as_bytes_and_single_images(
    function: str, value: float, seed: int
) -> None:
    film = noise(2, 3, 6, 8, seed=seed)
    setting: Any = {"hue": value / 5, "affine": (value * 40, 1, -2)}.get(function, value)
    made = adjust(function, film, setting)
    assert (made.dtype, made.shape) == (torch.uint8, film.shape)
    for whole, single in zip(made, film, strict=True):
        assert torch.equal(whole, adjust(function, single, setting))
    as_float = adjust(function, film / 255, setting)
    assert as_float.dtype == torch.float32
    assert 0 <= float(as_float.min()) <= float(as_float.max()) <= 1
    assert (as_float * 255 - made).abs().max() <= 2  # bytes are cut off, and so are their greys


def test_the_result_is_the_generators_alone() -> None:
    augment = ImageTransforms(ImageTransformsConfig(enable=True))
    image = noise(3, 24, 32)
    first = [augment(image, seeded(seed)) for seed in range(8)]
    torch.manual_seed(99)
    torch.rand(5)
    again = [augment(image, seeded(seed)) for seed in range(8)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    in_a_worker = pickle.loads(pickle.dumps(augment))
    assert torch.equal(in_a_worker(image, seeded(3)), first[3])
    assert len({bytes(one.flatten().tolist()) for one in first}) == 8
    assert all(one.dtype == torch.uint8 and one.shape == image.shape for one in first)


def test_the_frames_of_a_film_are_changed_alike() -> None:
    augment = ImageTransforms(ImageTransformsConfig(enable=True))
    image = noise(3, 12, 16)
    film = augment(image.expand(3, -1, -1, -1), seeded(4))
    assert all(torch.equal(frame, augment(image, seeded(4))) for frame in film)


def test_transforms_are_chosen_by_weight_and_each_at_most_once() -> None:
    config = ImageTransformsConfig(max_num_transforms=1)
    config.tfs["hue"].weight, config.tfs["affine"].weight = 4.0, 0.0
    generator = seeded(0)
    chosen = Counter(ImageTransforms(config).draw(generator)[0].name for _ in range(800))
    assert "affine" not in chosen
    assert 360 < chosen["hue"] < 440  # 4 of 8, five standard deviations
    for drawn in (ImageTransforms(ImageTransformsConfig()).draw(generator) for _ in range(50)):
        names = [each.name for each in drawn]
        assert len(set(names)) == 3
        assert names == [name for name in config.tfs if name in names]  # in the order of tfs
    few = dataclasses.replace(config, tfs={"hue": config.tfs["hue"]}, max_num_transforms=3)
    assert len(ImageTransforms(few).draw(generator)) == 1


def test_a_random_order_is_one() -> None:
    augment = ImageTransforms(ImageTransformsConfig(random_order=True, max_num_transforms=6))
    generator = seeded(0)
    assert len({tuple(each.name for each in augment.draw(generator)) for _ in range(20)}) > 15


def test_values_fill_their_ranges() -> None:
    config = ImageTransformsConfig(max_num_transforms=6)
    augment, generator = ImageTransforms(config), seeded(0)
    found: dict[str, list[float]] = {}
    for _ in range(300):
        for drawn in augment.draw(generator):
            for name, value in drawn.values.items():
                found.setdefault(name, []).append(value)
    ranges = {name: ends for each in config.ranges().values() for name, ends in each.items()}
    assert found.keys() == ranges.keys()
    for name, (low, high) in ranges.items():
        slack = (high - low) / 20
        assert low <= min(found[name]) < low + slack
        assert high - slack < max(found[name]) <= high


def test_one_jitter_of_several_colors_applies_them_in_a_random_order() -> None:
    both = ImageTransformConfig(type="ColorJitter", kwargs={"brightness": 0.5, "hue": 0.1, "contrast": None})
    augment, generator = ImageTransforms(ImageTransformsConfig(tfs={"both": both})), seeded(0)
    assert {tuple(augment.draw(generator)[0].values) for _ in range(20)} == {
        ("brightness", "hue"),
        ("hue", "brightness"),
    }
    assert augment.ranges == {"both": {"brightness": (0.5, 1.5), "hue": (-0.1, 0.1)}}


@pytest.mark.parametrize(
    ("kwargs", "ranges"),
    [
        ({"type": "ColorJitter", "kwargs": {"contrast": 1.5}}, {"contrast": (0.0, 2.5)}),
        (
            {"type": "RandomAffine", "kwargs": {"degrees": 10, "translate": (0.1, 0)}},
            {"degrees": (-10.0, 10.0), "translate_x": (-0.1, 0.1), "translate_y": (0.0, 0.0)},
        ),
        ({}, {}),
    ],
)
def test_numbers_are_ranges_around_no_change(kwargs: dict[str, Any], ranges: dict[str, Any]) -> None:
    assert ImageTransformConfig(**kwargs).ranges() == ranges


@pytest.mark.parametrize(
    ("transform", "part"),
    [
        ({"type": "ColourJitter"}, "Did you mean 'ColorJitter'?"),
        ({"type": "ColorJitter", "kwargs": {"brightnes": 0.2}}, "Did you mean 'brightness'?"),
        ({"type": "Identity", "kwargs": {"x": 1}}, "takes none"),
        ({"type": "ColorJitter", "kwargs": {"brightness": [1.2, 0.8]}}, "low ≤ high"),
        ({"type": "ColorJitter", "kwargs": {"brightness": -0.2}}, "from 0 to inf"),
        ({"type": "ColorJitter", "kwargs": {"brightness": "much"}}, "'much'"),
        ({"type": "ColorJitter", "kwargs": {"brightness": True}}, "True"),
        ({"type": "ColorJitter", "kwargs": {"hue": 0.7}}, "from -0.5 to 0.5"),
        ({"type": "ColorJitter", "kwargs": {"hue": [float("nan"), 0.1]}}, "from -0.5 to 0.5"),
        ({"type": "SharpnessJitter"}, "lacks 'sharpness'"),
        ({"type": "RandomAffine", "kwargs": {"translate": [0.1, 0.1]}}, "lacks 'degrees'"),
        ({"type": "RandomAffine", "kwargs": {"degrees": 5, "translate": 0.1}}, "[share of width"),
        ({"type": "RandomAffine", "kwargs": {"degrees": 5, "translate": [0, 2]}}, "from 0 to 1"),
        ({"type": "RandomAffine", "kwargs": {"degrees": 5, "shear": 2}}, "takes degrees, translate"),
        ({"type": "Identity", "weight": -1.0}, "weight -1.0"),
        ({"type": "Identity", "weight": 0.0}, "no transform of a weight above 0"),
    ],
)
def test_what_can_not_work_is_refused_when_enabled(transform: dict[str, Any], part: str) -> None:
    tfs = {"mine": ImageTransformConfig(**transform)}
    ImageTransformsConfig(tfs=tfs)  # off: it does not matter
    with pytest.raises(ConfigError) as caught:
        ImageTransformsConfig(enable=True, tfs=tfs)
    assert part in str(caught.value)
    assert "--dataset.image_transforms.tfs" in str(caught.value)


def test_no_transforms_at_all_is_said_with_enable() -> None:
    with pytest.raises(ConfigError, match=r"max_num_transforms=0 is too small"):
        ImageTransformsConfig(enable=True, max_num_transforms=0)


@pytest.mark.parametrize(
    "image", [noise(1, 8, 8), noise(8, 8, 3), noise(3, 8, 8).to(torch.float64), noise(8, 8)]
)
def test_what_is_no_color_image_is_refused(image: Tensor) -> None:
    with pytest.raises(FeatureError, match="height, width"):
        ImageTransforms(ImageTransformsConfig())(image, seeded(0))


def test_the_defaults_are_lerobots() -> None:
    file = DATA / "lerobot_checkpoint" / "pretrained_model" / "train_config.json"
    assert (
        dataclasses.asdict(ImageTransformsConfig())
        == json.loads(file.read_text())["dataset"]["image_transforms"]
    )


def test_the_preview_has_a_row_for_each_frame_and_each_transform() -> None:
    images = {
        "observation.images.a_camera_of_a_long_name": {3: noise(3, 20, 30), 9: noise(3, 20, 30, seed=1)}
    }
    tfs = {name: ImageTransformsConfig().tfs[name] for name in ("hue", "affine")}
    config = ImageTransformsConfig(tfs=tfs)
    few, more = draw_preview(images, config, 2, seed=0), draw_preview(images, config, 3, seed=1)
    assert few == draw_preview(images, config, 2, seed=0)
    assert _size(more)[0] - _size(few)[0] == 210
    one = {key: {9: frames[9]} for key, frames in images.items()}
    row = _size(few)[1] - _size(draw_preview(one, config, 2, seed=0))[1]
    assert 140 < row < 210  # 2 : 3, and text
    assert 4 * 140 < _size(few)[1] < 4 * row


def _size(png: bytes) -> tuple[int, int]:
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.lerobot
@pytest.mark.skipif(
    "SMOLACT_LEROBOT_PYTHON" not in os.environ,
    reason="set SMOLACT_LEROBOT_PYTHON to a Python that has LeRobot 0.6.1",
)
def test_it_is_what_torchvision_does(tmp_path: Path) -> None:
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 3, 5, 6, generator=seeded(0)), (120, 160), mode="bilinear"
    )
    bytes_ = {
        "noise": noise(2, 3, 96, 128),
        "smooth": (smooth[0] * 255).to(torch.uint8),
        "grey": noise(1, 40, 40).expand(3, -1, -1).contiguous(),
        "odd": noise(3, 33, 47),
    }
    images = bytes_ | {f"{name}_float": image / 255 for name, image in bytes_.items()}
    cases: list[tuple[str, Any]] = [
        *((name, factor) for name in COLORS for factor in (0.0, 0.5, 0.83, 1.0, 1.2, 3.0)),
        *(("hue", shift) for shift in (-0.5, -0.3, -0.05, 0.0, 0.05, 0.2, 0.5)),
        *(
            ("affine", value)
            for value in ([0.0, 5, -3], [5.0, 0, 0], [-4.2, 7, 4], [90.0, 0, 0], [180.0, 1, 0])
        ),
    ]
    save_file(images, tmp_path / "images.safetensors")
    found = subprocess.run(
        [
            os.environ["SMOLACT_LEROBOT_PYTHON"],
            str(Path(__file__).with_name("lerobot_transforms.py")),
            str(tmp_path / "images.safetensors"),
            json.dumps(cases),
            str(tmp_path / "theirs.safetensors"),
        ],
        capture_output=True,
        text=True,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": os.environ["PATH"]},
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    theirs = load_file(tmp_path / "theirs.safetensors")
    for name, image in images.items():
        for function, value in cases:
            ours, other = (
                adjust(function, image, value).double(),
                theirs[f"{name}/{function}/{value}"].double(),
            )
            off = (ours - other).abs()
            if function == "affine":  # a source halfway between two pixels
                assert (off > 1e-6).double().mean() < 1e-3, (name, value)
            elif name.endswith("_float"):
                assert off.max() < 3e-6, (name, function, value)
            elif function == "hue":  # a value next to a whole number
                assert off.max() <= 1, (name, value)
                assert (off > 0).double().mean() < 1e-3, (name, value)
            else:
                assert off.max() == 0, (name, function, value)
    tfs = json.loads(found.stdout.splitlines()[-1])
    assert {name: dataclasses.asdict(each) for name, each in ImageTransformsConfig().tfs.items()} == tfs
