"""A preview image of random image transforms: frames, transformed versions, and a sweep of each kind's range."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from smolact.datasets.transforms import ImageTransforms, apply, lerp
from smolact.datasets.transforms_config import ImageTransformsConfig

_CELL = 2.1  # inches
_LABELS = 1.1  # inches left of the images
_LINE, _GAP = 0.135, 0.14  # inches: a line of text above the images, and the gap above it


class Cell(NamedTuple):
    """An image (3, H, W) uint8 and its title."""

    image: Tensor
    title: str


class Row(NamedTuple):
    """A row of the preview and its label on the left."""

    label: str
    cells: list[Cell]


def draw_preview(
    pictures: Mapping[str, Mapping[int, Tensor]], config: ImageTransformsConfig, samples: int, seed: int
) -> bytes:
    """Return a PNG: each camera's frames with `samples` transformed versions, then a sweep of every transform on its first frame.

    Args:
        pictures: camera to frame number to image, (3, H, W) uint8.
        samples: the number of transformed versions per frame, and of steps per sweep of a transform's ranges.

    Raises:
        ConfigError: the configuration is invalid.
    """
    transforms = ImageTransforms(config)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for camera, frames in pictures.items():
        name = camera.rpartition(".")[2]
        for number, image in frames.items():
            rows.append(Row(f"{name}\nframe {number}", _sampled_cells(image, transforms, samples, generator)))
        first = next(iter(frames.values()))
        rows += [Row(kind, _sweep_cells(first, transforms, kind, samples)) for kind in transforms.ranges]
    return _png(rows, columns=1 + samples)


def _sampled_cells(
    image: Tensor, transforms: ImageTransforms, samples: int, generator: torch.Generator
) -> list[Cell]:
    cells = [Cell(image, "original")]
    for _ in range(samples):
        changed, titles = image, []
        for sampled in transforms.draw(generator):
            changed = apply(changed, sampled.values)
            titles.append(_format_values(sampled.values, image) or sampled.name)
        cells.append(Cell(changed, "\n".join(titles)))
    return cells


def _sweep_cells(image: Tensor, transforms: ImageTransforms, name: str, samples: int) -> list[Cell]:
    cells = [Cell(image, "original")]
    for step in range(samples):
        share = step / (samples - 1)
        values = {parameter: lerp(ends, share) for parameter, ends in transforms.ranges[name].items()}
        cells.append(Cell(apply(image, values), _format_values(values, image)))
    return cells


def _format_values(values: Mapping[str, float], image: Tensor) -> str:
    """The title of these parameter values: `brightness 1.13`; for an affine transform `+2.4°, x +12, y -3` (pixels)."""
    size = {"translate_x": image.shape[-1], "translate_y": image.shape[-2]}
    shown = []
    for name, value in values.items():
        if name == "degrees":
            shown.append(f"{value:+.1f}°")
        elif name in size:
            shown.append(f"{name[-1]} {round(value * size[name]):+d}")
        else:
            shown.append(f"{name} {value:+.3f}" if name == "hue" else f"{name} {value:.2f}")
    return ", ".join(sorted(shown, key=lambda text: "xy".find(text[0])))


def _png(rows: list[Row], columns: int) -> bytes:
    texts = [_GAP + _LINE * (1 + max(cell.title.count("\n") for cell in row.cells)) for row in rows]
    talls = [_CELL * row.cells[0].image.shape[-2] / row.cells[0].image.shape[-1] for row in rows]
    width, height = _LABELS + columns * _CELL, sum(texts) + sum(talls) + _GAP
    figure = Figure(figsize=(width, height), dpi=100)
    top = height
    for row, text, tall in zip(rows, texts, talls, strict=True):
        bottom = top - text - tall
        label = "\n".join(part for line in row.label.splitlines() for part in textwrap.wrap(line, 13))
        figure.text(0.1 / width, (bottom + tall / 2) / height, label, fontsize=9, weight="bold", va="center")
        for column, cell in enumerate(row.cells):
            left = (_LABELS + column * _CELL + 0.03) / width
            axes = figure.add_axes((left, bottom / height, (_CELL - 0.06) / width, tall / height))
            axes.imshow(cell.image.permute(1, 2, 0).numpy())
            axes.set_axis_off()
            axes.set_title(cell.title, fontsize=7.5, pad=3)
        top = bottom
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()
