"""Depth cameras (`Feature.is_depth`), which tools copy bit for bit and never decode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import av

from smolact.datasets.format import DEPTH_MARKERS, DEPTH_MEANING, Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.errors import ConfigError


def depth_notice(meta: LeRobotDatasetMetadata) -> str | None:
    """A notice about the dataset's depth cameras; None if there are none."""
    if not meta.depth_keys:
        return None
    names = ", ".join(meta.depth_keys)
    return f"Depth cameras: {names}. Depth is not read: policies are trained without it, and edits copy it as it is."


def check_no_depth(meta: LeRobotDatasetMetadata, names: Sequence[str], what: str) -> None:
    """Raise a `ConfigError` if an operation, such as "storing them as images", would reduce a depth camera to 8 bits."""
    depth_cameras = [name for name in names if name in meta.depth_keys]
    if depth_cameras:
        raise ConfigError(
            f"{meta.root}: {', '.join(depth_cameras)} holds depth, and {what} would leave 8 bits of it. {removal_advice(meta, depth_cameras)}"
        )


def removal_advice(meta: LeRobotDatasetMetadata, names: Sequence[str]) -> str:
    """Advice for a copy of the dataset without these cameras."""
    return (
        "To make a copy without depth: smolact dataset remove-feature "
        f"--dataset.root={meta.root} --features='{json.dumps(list(names))}' --output=FOLDER"
    )


def depth_encoding(feature: Feature) -> dict[str, Any]:
    """The `info` entries that map stored numbers to distances; empty for other features."""
    if not feature.is_depth:
        return {}
    marked = bool(feature.info.get(DEPTH_MARKERS[0]))
    return {DEPTH_MARKERS[0]: marked, **{name: feature.info.get(name) for name in DEPTH_MEANING}}


def bit_depth(pixel_format: str) -> int:
    """The bits per component of an FFmpeg pixel format; 0 if there is no such format."""
    try:
        components = av.VideoFormat(pixel_format, 16, 16).components
    except ValueError:
        return 0
    return max(int(component.bits) for component in components)
