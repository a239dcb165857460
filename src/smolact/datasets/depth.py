"""Depth cameras: copied bit for bit by every tool, read by none. `Feature.is_depth` says which cameras they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import av

from smolact.datasets.format import DEPTH_MARKERS, DEPTH_MEANING, Feature
from smolact.datasets.metadata import LeRobotDatasetMetadata
from smolact.errors import ConfigError


def depth_story(meta: LeRobotDatasetMetadata) -> str | None:
    """What to say of the dataset's depth cameras; None if it has none."""
    if not meta.depth_keys:
        return None
    names = ", ".join(meta.depth_keys)
    return f"Depth cameras: {names}. Depth is not read: policies are trained without it, and edits copy it as it is."


def check_no_depth(meta: LeRobotDatasetMetadata, names: Sequence[str], what: str) -> None:
    """Refuse something that would make pictures of 8 bits of a depth camera.

    Args:
        meta: the dataset's.
        names: the cameras that it would be done to.
        what: what it is, such as "storing them as images".

    Raises:
        ConfigError: a depth camera is among them.
    """
    found = [name for name in names if name in meta.depth_keys]
    if found:
        raise ConfigError(
            f"{meta.root}: {', '.join(found)} holds depth, and {what} would leave 8 bits of it. {without(meta, found)}"
        )


def without(meta: LeRobotDatasetMetadata, names: Sequence[str]) -> str:
    """How to make a copy that lacks these cameras."""
    return (
        "To make a copy without depth: smolact dataset remove-feature "
        f"--dataset.root={meta.root} --features='{json.dumps(list(names))}' --output=FOLDER"
    )


def meaning(feature: Feature) -> dict[str, Any]:
    """What says which distance a stored number is; empty if this is no depth camera."""
    if not feature.is_depth:
        return {}
    marked = bool(feature.info.get(DEPTH_MARKERS[0]))
    return {DEPTH_MARKERS[0]: marked, **{name: feature.info.get(name) for name in DEPTH_MEANING}}


def bits_of(pixel_format: str) -> int:
    """The bits of a number in FFmpeg's pixel format; 0 if there is no such format."""
    try:
        components = av.VideoFormat(pixel_format, 16, 16).components
    except ValueError:
        return 0
    return max(int(component.bits) for component in components)
